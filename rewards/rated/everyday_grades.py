"""The bundled grades as a rated set: what a large language model gave to lines for sentences of `everyday`.

    audit("everyday", load_rated("everyday-grades"))

Only lines of sentences that no bundled critic has seen a grade of. Every line was graded twice, blind; the two grades
stand as two raters. How they were made: humor_env/data/README.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from humor_env.errors import InvalidOption
from humor_env.rewards.rated.rated_sets import RatedSet, RatedText
from humor_env.shared.json_lines import lines_of
from humor_env.types import Prompt

_HIGHEST = 4.0


def graded_rows() -> list[dict[str, Any]]:
    """All lines of the bundled file, those that the critics learned from too."""
    file = files("humor_env.data") / "everyday_grades.jsonl"
    return [json.loads(line) for line in lines_of(file.read_text(encoding="utf-8"))]


def load_everyday_grades(paths: Sequence[Path]) -> RatedSet:
    """`paths` is empty: the grades are part of this package."""
    if paths:
        raise InvalidOption("The rated set 'everyday-grades' is part of this package and is read from no other file.")
    texts = tuple(
        RatedText(
            row["id"],
            Prompt(row["prompt_id"], row["prompt"]),
            row["text"],
            row["score"],
            raters=tuple(row["raters"]),
            kind=row["kind"],
        )
        for row in graded_rows()
        if row["use"] == "evaluation"
    )
    notes = ("graded by a large language model, twice and blind; no person was asked",)
    return RatedSet("everyday-grades", texts, scale=(0.0, _HIGHEST), notes=notes, rated_by="a large language model")
