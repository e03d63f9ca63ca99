"""Text that somebody else wrote, put into a table that people open in a spreadsheet.

no_formula('=HYPERLINK("http://…")')     # "'=HYPERLINK(…": shown as a text, and never run
"""

from __future__ import annotations

from typing import Any

# The last four are the wide forms of the first, which some spreadsheets take for them.
_BEGINS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def no_formula(cell: Any) -> Any:
    """The cell, with an apostrophe before a text that a spreadsheet would run. Numbers are left alone."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_BEGINS) and not _is_number(cell) else cell


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text == text.strip()
