r"""Text that somebody else wrote, put into a Markdown page: a model's line, a name from a file.

table_cell("*a* | b")        # r"\*a\* \| b", which a page shows as it was written
"""

from __future__ import annotations

import re

_MARKS = re.compile(r"([\\`*_{}\[\]<>|#~$])")


def table_cell(text: str, longest: int | None = None) -> str:
    """The text as the cell of a table: on one line, no markup of its own, cut after `longest` characters."""
    plain = " ".join(text.split())
    if longest is not None and len(plain) > longest:
        plain = plain[: longest - 1] + "…"  # before the marks are escaped: no half of an escape is left
    return _MARKS.sub(r"\\\1", plain)
