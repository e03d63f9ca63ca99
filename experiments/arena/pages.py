"""The arena's pages: templates filled with escaped text, one stylesheet, one script.

    html = render("message", title="Not here", text="Copy the whole link.", link="", label="")

A line may be anything a model wrote: it enters a page only through Jinja2's escaping, is in an element of its own that
isolates its text direction, and control characters are shown as dots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from humor_env.experiments.drawing.chart_parts import style

TEMPLATES = Path(__file__).parent / "templates"
LONG = 600  # characters; longer lines scroll in their own box

# Each button's value, label and key.
_SIDES = (("first", "Line 1", "1"), ("second", "Line 2", "2"), ("tie", "No difference", "0"))
_FUNNY = tuple(
    (str(n), f"{n} – {word}", str(n)) for n, word in enumerate(("not at all", "hardly", "somewhat", "quite", "very"))
)
QUESTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "pairs": {
        "humor": {"text": "Which line is funnier?", "choices": _SIDES},
        "consistency": {"text": "Which line keeps the meaning of the sentence better?", "choices": _SIDES},
        "overall": {"text": "All in all, which line would you rather say?", "choices": _SIDES},
    },
    "ratings": {
        "humor": {"text": "How funny is the line?", "choices": _FUNNY},
        "consistency": {"text": "How well does it keep the meaning of the sentence?", "choices": _FUNNY},
        "overall": {"text": "All in all, how happy would you be to say it?", "choices": _FUNNY},
    },
}


def visible(text: str) -> str:
    """Replace control characters, which no page can show, except line breaks and tabs."""
    plain = "".join("·" if (c < " " and c not in "\n\t") or c == "\x7f" or "\x80" <= c <= "\x9f" else c for c in text)
    return plain if plain.strip() else "(nothing was written)"


def render(name: str, **view: object) -> str:
    return _environment().get_template(f"{name}.html.j2").render(**view)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters["visible"] = visible
    environment.globals["long"] = LONG
    return environment


@cache
def _css() -> str:
    return style() + (TEMPLATES / "arena.css").read_text(encoding="utf-8")


@cache
def _script() -> str:
    return (TEMPLATES / "arena.js").read_text(encoding="utf-8")


STATIC: Mapping[str, tuple[str, Callable[[], str]]] = {
    "arena.css": ("text/css", _css),
    "arena.js": ("text/javascript", _script),
}
