"""What people are shown: the lines of runs and files, by prompt and system, and optionally a plan of pairs.

    material = gather([Path("runs/pocket-quickstart")], ["teacher=lines.jsonl"], teacher=True)
    material.systems                # ("base", "imitation", "ppo", "teacher")

A run gives the held-out lines of its stages with the scores of every critic that saw them. A file is a teacher buffer,
a file of jokes (`prompt`, `text`, perhaps `author`), or blind pairs (`prompt`, `input`, `first`, `second`, as
`humor-env reproduce` writes them), which are shown as they are.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from humor_env.errors import InvalidOption, PromptError, did_you_mean
from humor_env.experiments.reports.report_data import load_run
from humor_env.prompts import comparable
from humor_env.shared.json_lines import read_lines
from humor_env.shared.plain_numbers import real_number
from humor_env.shared.user_path import user_path

TEACHER = "teacher"
_HALVES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Line:
    """One line of a system ("" if its author is hidden), and its scores by critic. `prompt` is a key of
    `Material.prompts`."""

    prompt: str
    system: str
    text: str
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Material:
    """`prompts` holds (id, text) by key; `plan`, if given, pairs of indices into `lines`; `asks_overall` says whether
    the plan includes the third question of a reproduction, "all in all"."""

    prompts: dict[str, tuple[str, str]] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    plan: list[tuple[int, int]] = field(default_factory=list)
    asks_overall: bool = False

    def __post_init__(self) -> None:
        self._places: dict[tuple[str, str, str], int] = {}
        self._by_text: dict[tuple[str, str], int] = {}

    @property
    def systems(self) -> tuple[str, ...]:
        return systems_of(self.lines)

    def digest(self) -> str:
        """A hash that identifies the material."""
        whole = [sorted(self.prompts.values()), [(x.prompt, x.system, x.text) for x in self.lines], self.plan]
        return hashlib.blake2b(json.dumps(whole).encode(), digest_size=12).hexdigest()

    def prompt(self, id: str, text: str) -> str:
        """The key of a prompt: the same sentence is the same prompt, whichever file it is in."""
        text = sound(text)
        key = comparable(text)
        self.prompts.setdefault(key, (sound(id), text))
        return key

    def add(self, prompt: str, system: str, text: str, scores: Mapping[str, float] | None = None) -> int:
        """Add a line and return its index. A system's line is kept once, with all scores that it was given."""
        text, system = sound(text), sound(system)
        scores = {critic: score for critic, score in (scores or {}).items() if math.isfinite(score)}
        place = self._places.setdefault((prompt, system, text), len(self.lines))
        self._by_text.setdefault((prompt, text), place)
        if place == len(self.lines):
            self.lines.append(Line(prompt, system, text, scores))
        elif scores:
            line = self.lines[place]
            self.lines[place] = Line(prompt, system, text, {**line.scores, **scores})
        return place

    def named(self, prompt: str, text: str) -> int:
        """The index of a line of a plan: that of the system that wrote it, or of a new line without a system."""
        line = self._by_text.get((prompt, sound(text)))
        return self.add(prompt, "", text) if line is None else line


def systems_of(lines: Sequence[Line]) -> tuple[str, ...]:
    """The systems that wrote the lines, in the order in which they were read, the teacher last."""
    names = dict.fromkeys(line.system for line in lines if line.system)
    return tuple(sorted(names, key=lambda name: name == TEACHER))


def sound(text: str) -> str:
    """Replace lone surrogates, which JSON can hold but no file or page can, by U+FFFD."""
    return _HALVES.sub("\ufffd", text)


def gather(
    runs: Sequence[Path],
    files: Sequence[str] = (),
    *,
    teacher: bool = False,
    systems: Sequence[str] = (),
    plan: Path | None = None,
) -> Material:
    """Everything to judge; with `systems`, only their lines."""
    material = Material()
    for folder in runs:
        if (folder / "people.jsonl").is_file() and not (folder / "results.json").is_file():
            _read_file(material, str(folder / "people.jsonl"))  # a reproduction's: blind pairs
        else:
            _read_run(material, folder, alone=len(runs) == 1, teacher=teacher)
    for file in files:
        _read_file(material, file)
    if teacher and TEACHER not in material.systems:
        raise InvalidOption(
            "--teacher: no run has an evaluation-teacher.jsonl. Give the teacher's lines as --file teacher=LINES.jsonl."
        )
    if systems:
        material = _only(material, systems)
    if plan is not None:
        material.plan = []
        _read_file(material, str(plan), pairs_only=True)
    _check(material)
    return material


def _read_run(material: Material, folder: Path, alone: bool, teacher: bool) -> None:
    run = load_run(folder)
    for seed in run.seeds:
        for stage, lines in seed.stages.items():
            if stage == TEACHER and not teacher:
                continue
            system = stage if alone or stage == TEACHER else f"{run.name}/{stage}"
            for line in lines:
                scores = dict(line.others)
                if line.score is not None and line.critic:
                    scores[line.critic] = line.score
                material.add(material.prompt(line.prompt_id, line.prompt), system, line.text, scores)


def _read_file(material: Material, source: str, pairs_only: bool = False) -> None:
    name, equals, path = source.partition("=")
    if not equals or user_path(source).exists():
        name, path = "", source
    for place, row in _rows(user_path(path)):
        try:
            if "first" in row and "second" in row:
                key = material.prompt(_text(row, "prompt"), _text(row, "input" if "input" in row else "prompt"))
                material.plan.append(
                    (material.named(key, _text(row, "first")), material.named(key, _text(row, "second")))
                )
                material.asks_overall |= "overall" in row
                continue
            if pairs_only:
                raise ValueError("a plan's row has prompt, first and second")
            prompt = row["prompt"]
            if isinstance(prompt, Mapping):
                key = material.prompt(str(prompt.get("id", prompt["text"])), str(prompt["text"]))
            else:
                key = material.prompt(str(row.get("prompt_id", prompt)), _text(row, "prompt"))
            system = name or str(row.get("author") or row.get("source") or Path(path).stem)
            score, critic = real_number(row.get("score")), row.get("critic")
            scores = {str(critic): score} if critic and score is not None else {}
            material.add(key, system, _text(row, "text"), scores)
        except (KeyError, ValueError, TypeError) as problem:
            raise PromptError(
                f"{path}, line {place}: not a line to judge ({type(problem).__name__}: {problem}). Expected an object "
                "with prompt and text, or a pair with prompt, first and second."
            ) from None


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        lines = read_lines(path)
    except UnicodeDecodeError as problem:
        raise PromptError(f"'{path}' is not UTF-8 text ({problem}).") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as problem:
            raise PromptError(f"{path}, line {number}: not JSON ({problem}).") from None
        if not isinstance(row, dict):
            raise PromptError(f"{path}, line {number}: expected an object, found {type(row).__name__}.")
        yield number, row


def _text(row: Mapping[str, Any], name: str) -> str:
    if not isinstance(row[name], str):
        raise TypeError(f"'{name}' is not a string")
    return row[name]


def _only(material: Material, systems: Sequence[str]) -> Material:
    for name in systems:
        if name not in material.systems:
            raise InvalidOption(
                f"No system is called '{name}'.{did_you_mean(name, material.systems)} There are: "
                f"{', '.join(material.systems)}."
            )
    subset = Material(dict(material.prompts), asks_overall=material.asks_overall)
    for line in material.lines:
        if line.system in systems:
            subset.add(line.prompt, line.system, line.text, line.scores)
    return subset


def _check(material: Material) -> None:
    if material.plan:
        return
    if not material.lines:
        raise InvalidOption("There is nothing to judge: give a run's folder, or --file LINES.jsonl.")
    by_prompt: dict[str, set[str]] = {}
    for line in material.lines:
        by_prompt.setdefault(line.prompt, set()).add(line.system)
    if len(material.systems) > 1 and all(len(lines) < 2 for lines in by_prompt.values()):
        raise InvalidOption(
            f"The systems {', '.join(material.systems)} have no prompt in common, so none of their lines can be "
            "compared. Have them write for the same prompts."
        )


def scored(material: Material, critics: Sequence[str]) -> Material:
    """The same material, with each line scored by these critics."""
    from humor_env import registry
    from humor_env.types import Joke, Prompt

    prompts = {key: Prompt(id, text) for key, (id, text) in material.prompts.items()}
    for name in critics:
        judgements = registry.critics.make(name)([Joke(prompts[x.prompt], x.text, x.system) for x in material.lines])
        for place, (line, judgement) in enumerate(zip(list(material.lines), judgements, strict=True)):
            if judgement.score is not None:
                material.lines[place] = Line(
                    line.prompt, line.system, line.text, {**line.scores, name: judgement.score}
                )
    return material
