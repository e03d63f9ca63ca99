r"""Escaping of untrusted text for Markdown pages: a model's line, a name from a file.

table_cell("*a* | b")        # r"\*a\* \| b", which a page shows literally
"""

from __future__ import annotations

import re

_MARKS = re.compile(r"([\\`*_{}\[\]<>|#~$])")


def table_cell(text: str, longest: int | None = None) -> str:
    """The text as a table cell: on one line, with markup escaped, cut after `longest` characters."""
    plain = " ".join(text.split())
    if longest is not None and len(plain) > longest:
        plain = plain[: longest - 1] + "…"  # before escaping, so that no escape is cut in half
    return _MARKS.sub(r"\\\1", plain)
