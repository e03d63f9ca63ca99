"""The bundled grades as a rated set: a large language model's grades of lines for sentences of `everyday`.

    audit("everyday", load_rated("everyday-grades"))

Only lines for sentences without grades in any bundled critic's training data. Every line was graded twice, blind; the
two grades count as two raters. humor_env/data/README.md describes how they were made.
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
    """All lines of the bundled file, including those that the critics learned from."""
    file = files("humor_env.data") / "everyday_grades.jsonl"
    return [json.loads(line) for line in lines_of(file.read_text(encoding="utf-8"))]


def load_everyday_grades(paths: Sequence[Path]) -> RatedSet:
    """`paths` is empty: the grades are part of this package."""
    if paths:
        raise InvalidOption("The rated set 'everyday-grades' is part of this package and takes no file.")
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
