"""Untrusted text in tables that people open in a spreadsheet.

no_formula('=HYPERLINK("http://…")')     # "'=HYPERLINK(…": shown as text, never executed
"""

from __future__ import annotations

from typing import Any

# The last four are the wide forms of the first, which some spreadsheets take for them.
_BEGINS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def no_formula(cell: Any) -> Any:
    """The cell, with an apostrophe before text that a spreadsheet would take for a formula; numbers stay as is."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_BEGINS) and not _is_number(cell) else cell


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text == text.strip()
