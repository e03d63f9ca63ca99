"""A teacher's lines, kept on disk: a student imitates them and is compared with them.

    buffer = TeacherBuffer("lines.jsonl")                 # a JSON line per demonstration; may not exist yet
    fill(buffer, teacher, prompts, n=3)                   # asks only for missing lines: stop and continue at will
    buffer.lines_for("p1")                                # ["The meeting was so slow that ..."]
    good = buffer.filter("rules", at_least=0.5)           # any critic; a new buffer, in memory
    good.split("train").to_dataset()                      # columns that SFT trainers expect

Appending is safe with other processes (a file lock) and against crashes: an append is one write, and a last line that
a crash cut off is dropped when the next reader or writer sees it. Nothing else is ever removed.
"""

from __future__ import annotations

import json
import math
import os
from collections import ChainMap, Counter
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from humor_env import exports
from humor_env.episodes.episode import judged_with_words
from humor_env.errors import InvalidOption, PromptError
from humor_env.registry import critics
from humor_env.shared.line_file import LineFile
from humor_env.shared.user_path import user_path
from humor_env.sources import human_pairs
from humor_env.types import SPLITS, Critic, Demonstration, Joke, Prompt, critic_name


@runtime_checkable
class Teacher(Protocol):
    """Writes lines for a prompt. May return fewer than requested (a refusal is an empty list).

    A teacher that answers many prompts at once may also have `lines_batch(prompts, n) -> list[list[str]]`, which
    `fill` then uses.
    """

    def lines(self, prompt: Prompt, n: int) -> list[str]: ...


@runtime_checkable
class StreamingTeacher(Protocol):
    """A teacher, such as `LanguageModelTeacher`, that sets the number of lines per prompt itself and yields them as
    they come."""

    def __call__(self, prompts: Iterable[Prompt], /) -> Iterable[Demonstration]: ...


@runtime_checkable
class HasLines(Protocol):
    """The part of a buffer that critics read."""

    def lines_for(self, prompt_id: str) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class FillReport:
    """The result of `fill`: prompts asked about, lines added, and prompts that still lack lines."""

    asked: int
    added: int
    short: tuple[str, ...] = ()


class TeacherBuffer:
    """Demonstrations in a JSON-lines file, or in memory if `path` is None.

    Iteration is in order of writing. Duplicate texts for one prompt (ignoring case and spacing) are kept once.
    `dropped_bytes` counts the bytes of torn last lines that adding has dropped.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, demonstrations: Iterable[Demonstration] = ()
    ) -> None:
        self.path = None if path is None else user_path(path)
        self._file = None if path is None else LineFile(path, self._take)
        self._items: list[Demonstration] = []
        self._keys: set[tuple[str, str]] = set()
        self._by_prompt: dict[str, list[Demonstration]] = {}
        self._prompt_of_id: dict[str, Prompt] = {}
        self._prompt_of_text: dict[tuple[str, str], Prompt] = {}
        self.refresh()
        self.add(demonstrations)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Demonstration]:
        return iter(list(self._items))

    def __contains__(self, prompt_id: object) -> bool:
        return prompt_id in self._by_prompt

    def lines_for(self, prompt_id: str) -> list[str]:
        """The teacher's lines for a prompt, oldest first; empty if there are none."""
        return [d.text for d in self._by_prompt.get(prompt_id, [])]

    def demonstrations_for(self, prompt_id: str) -> list[Demonstration]:
        return list(self._by_prompt.get(prompt_id, []))

    def prompts(self) -> list[Prompt]:
        """Each prompt once, in the order of first writing."""
        return [items[0].prompt for items in self._by_prompt.values()]

    def splits(self) -> dict[str, int]:
        """The number of demonstrations per split."""
        return dict(Counter(d.prompt.split for d in self._items))

    # Writing

    def add(self, demonstrations: Iterable[Demonstration]) -> int:
        """Append those that are new and not blank; return their number. Refuses prompts that contradict the buffer."""
        candidates = list(demonstrations)
        if not candidates:
            return 0
        fresh: list[Demonstration] = []

        def choose() -> list[bytes]:
            # Called with the file locked and read to its end, so that other processes' lines count as duplicates too.
            fresh.extend(self._new_among(candidates))
            return [_encode(d) for d in fresh]

        if self._file is None:
            choose()
        else:
            self._file.append(choose)
        for demonstration in fresh:
            _check_prompt(demonstration.prompt, self._prompt_of_id, self._prompt_of_text)
            self._remember(demonstration)
        return len(fresh)

    def refresh(self) -> int:
        """Read what other processes have appended; return the number of demonstrations."""
        before = len(self._items)
        if self._file is not None:
            self._file.read_new()
        return len(self._items) - before

    @property
    def dropped_bytes(self) -> int:
        return 0 if self._file is None else self._file.dropped_bytes

    # Choosing

    def select(self, keep: Callable[[Demonstration], bool]) -> TeacherBuffer:
        """A new in-memory buffer with the demonstrations for which `keep` is true."""
        return TeacherBuffer(None, (d for d in self._items if keep(d)))

    def split(self, split: str) -> TeacherBuffer:
        if split not in SPLITS:
            raise InvalidOption(f"No split is called '{split}'. Known: {', '.join(SPLITS)}.")
        return self.select(lambda d: d.prompt.split == split)

    def scored(self, critic: str | Critic, batch_size: int = 256, **options: Any) -> TeacherBuffer:
        """The same demonstrations in memory, each with the critic's score, or None if it could not judge; 0 for a line
        without a required word of its prompt."""
        judge = cast(Critic, critics.make(critic, **options))
        demonstrations: list[Demonstration] = []
        for start in range(0, len(self._items), batch_size):
            batch = self._items[start : start + batch_size]
            judgements = judged_with_words(judge, [Joke(d.prompt, d.text, author="teacher") for d in batch])
            demonstrations += [replace(d, score=j.score) for d, j in zip(batch, judgements, strict=True)]
        return TeacherBuffer(None, demonstrations)

    def filter(
        self, critic: str | Critic | None = None, at_least: float = 0.5, batch_size: int = 256, **options: Any
    ) -> TeacherBuffer:
        """The demonstrations that the critic scores `at_least` this much (critic None: by their stored scores). Lines
        without a score, because the critic failed or was never called, are left out."""
        buffer = self if critic is None else self.scored(critic, batch_size, **options)
        return buffer.select(lambda d: d.score is not None and d.score >= at_least)

    # Export

    def to_dataset(self) -> Any:
        """A `datasets.Dataset` with `prompt` and `completion` (for SFT trainers) and each line's source."""
        return exports.to_dataset(self._items)

    def to_minari(self, dataset_id: str, data_format: str = "hdf5") -> Any:
        """A Minari dataset of one-step episodes (needs the extra `minari`): the prompt is the observation, the line the
        action, its score the reward. Every demonstration must have a score; see `scored`."""
        return exports.to_minari(self._items, dataset_id, data_format)

    # Inside

    def _new_among(self, candidates: Sequence[Demonstration]) -> list[Demonstration]:
        fresh: dict[tuple[str, str], Demonstration] = {}
        # An overlay, so that a refused batch leaves no trace.
        prompts, texts = ChainMap({}, self._prompt_of_id), ChainMap({}, self._prompt_of_text)
        for d in candidates:
            _check_prompt(d.prompt, prompts, texts)
            key = _key(d)
            if key[1] and key not in self._keys:
                fresh.setdefault(key, d)
        return list(fresh.values())

    def _remember(self, d: Demonstration) -> None:
        self._items.append(d)
        self._keys.add(_key(d))
        self._by_prompt.setdefault(d.prompt.id, []).append(d)

    def _take(self, number: int, line: bytes) -> None:
        d = _decode(line, self.path, number)
        _check_prompt(d.prompt, self._prompt_of_id, self._prompt_of_text)
        if _key(d) not in self._keys:
            self._remember(d)


def fill(
    buffer: TeacherBuffer,
    teacher: Teacher | StreamingTeacher,
    prompts: Iterable[Prompt],
    n: int = 3,
    licence: str | None = None,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> FillReport:
    """Ask the teacher for the lines that each prompt lacks, up to `n`. Lines are written after every batch, so a second
    call continues where the first stopped. `progress(done, total)` is called after every batch. `licence` is that of
    the lines; by default the teacher's `licence`, else "unknown"."""
    if n < 1 or batch_size < 1:
        raise InvalidOption(f"n and batch_size must be at least 1, found n={n} and batch_size={batch_size}.")
    source = critic_name(teacher)
    licence = licence or str(getattr(teacher, "licence", "unknown"))
    by_id = {prompt.id: prompt for prompt in prompts}
    lacking = [prompt for prompt in by_id.values() if len(buffer.lines_for(prompt.id)) < n]
    added = 0
    for start in range(0, len(lacking), batch_size):
        batch = lacking[start : start + batch_size]
        for prompt, lines in zip(batch, _ask(teacher, batch, n), strict=True):
            room = n - len(buffer.lines_for(prompt.id))
            fresh = [Demonstration(prompt, line.strip(), source, licence) for line in lines]
            added += buffer.add(_first_new(buffer, fresh, room))
        if progress is not None:
            progress(min(start + batch_size, len(lacking)), len(lacking))
    short = tuple(p.id for p in lacking if len(buffer.lines_for(p.id)) < n)
    return FillReport(len(lacking), added, short)


def _ask(teacher: Teacher | StreamingTeacher, prompts: Sequence[Prompt], n: int) -> list[list[str]]:
    together: Callable[[Sequence[Prompt], int], list[list[str]]] | None = getattr(teacher, "lines_batch", None)
    if together is None:
        if isinstance(teacher, Teacher):
            return [list(teacher.lines(prompt, n)) for prompt in prompts]
        lines_of: dict[str, list[str]] = {}
        for demonstration in teacher(prompts):
            lines_of.setdefault(demonstration.prompt.id, []).append(demonstration.text)
        return [lines_of.get(prompt.id, []) for prompt in prompts]
    answers = [list(lines) for lines in together(prompts, n)]
    if len(answers) != len(prompts):
        raise InvalidOption(
            f"The teacher '{critic_name(teacher)}' was asked about {len(prompts)} prompts and answered {len(answers)}: "
            "lines_batch must return one list per prompt, in order."
        )
    return answers


def _first_new(buffer: TeacherBuffer, fresh: Sequence[Demonstration], room: int) -> list[Demonstration]:
    keys = {_key(d) for d in (buffer.demonstrations_for(fresh[0].prompt.id) if fresh else ())}
    chosen: dict[tuple[str, str], Demonstration] = {}
    for d in fresh:
        if len(chosen) < room and _key(d)[1] and _key(d) not in keys:
            chosen.setdefault(_key(d), d)
    return list(chosen.values())


def everyday_lines() -> TeacherBuffer:
    """The bundled everyday sentences with the paraphrases written for them, in memory."""
    demonstrations = []
    text = files("humor_env.data").joinpath("everyday.jsonl").read_text(encoding="utf-8")
    for line in text.splitlines():
        row = json.loads(line)
        prompt = Prompt(row["id"], row["literal"], split=row["split"])
        demonstrations += [Demonstration(prompt, each["text"], row["source"], row["licence"]) for each in row["lines"]]
    return TeacherBuffer(None, demonstrations)


@cache
def pocket_lines(n: int = 3, seed: int = 0) -> TeacherBuffer:
    """The pocket teacher's lines for every pocket prompt, in memory. Shared: add to a `select` of it instead."""
    from humor_env.pocket import load_world
    from humor_env.pocket.teacher import PocketTeacher

    world = load_world()
    buffer = TeacherBuffer()
    fill(buffer, PocketTeacher(seed=seed), [*world.prompts("paraphrase"), *world.prompts("oneliner")], n)
    return buffer


def open_lines(what: str | os.PathLike[str] | HasLines) -> HasLines:
    """Teacher lines from plain data: "pocket", "everyday" (both bundled), "isarcasm:FILE", "flute:FILE" and
    "humicroedit:FILE" (see `humor_env.sources.human_pairs`), or the path of an existing buffer. A live buffer, or
    anything with `lines_for`, is returned unchanged.
    """
    if not isinstance(what, (str, os.PathLike)):
        return what
    if what == "pocket":
        return pocket_lines()
    if what == "everyday":
        return everyday_lines()
    if isinstance(what, str) and human_pairs.is_pairs(what):
        return TeacherBuffer(None, human_pairs.pair_lines(what))
    if not user_path(what).is_file():
        raise PromptError(
            f"There is no teacher buffer at '{os.fspath(what)}'. Give the path of a JSON-lines buffer, 'pocket', "
            "'everyday', or a TeacherBuffer; `fill` makes one from a teacher."
        )
    return TeacherBuffer(what)


def _check_prompt(
    prompt: Prompt, by_id: MutableMapping[str, Prompt], by_text: MutableMapping[tuple[str, str], Prompt]
) -> None:
    """Refuse a prompt that contradicts the known ones; otherwise add it to them."""
    first = by_id.setdefault(prompt.id, prompt)
    if (first.text, first.split) != (prompt.text, prompt.split):
        raise PromptError(
            f"The prompt id '{prompt.id}' is already '{_shorten(first.text)}' (split {first.split}) but now comes "
            f"as '{_shorten(prompt.text)}' (split {prompt.split}): one id must stay one prompt. Use another file."
        )
    twin = by_text.setdefault((prompt.task, prompt.text), prompt)
    if twin.split != prompt.split:
        raise PromptError(
            f"The prompt '{_shorten(prompt.text)}' is in split {twin.split} (as '{twin.id}') and in split "
            f"{prompt.split} (as '{prompt.id}'): what is trained on must not be tested on."
        )


def _key(d: Demonstration) -> tuple[str, str]:
    return d.prompt.id, " ".join(d.text.split()).casefold()


def _encode(d: Demonstration) -> bytes:
    # Escaped ASCII: lone surrogates survive, and no Unicode line separator splits a record.
    record = {
        "prompt": {**asdict(d.prompt), "extra": dict(d.prompt.extra)},
        "text": d.text,
        "source": d.source,
        "licence": d.licence,
        "score": d.score,
    }
    try:
        return json.dumps(record, ensure_ascii=True, allow_nan=False).encode("ascii")
    except (TypeError, ValueError) as problem:
        raise InvalidOption(
            f"The demonstration for prompt '{d.prompt.id}' cannot be written as JSON ({problem}): "
            "a prompt's extra must be plain data and a score a finite number."
        ) from problem


def _decode(line: bytes, path: Path | None, number: int) -> Demonstration:
    try:
        row = json.loads(line)
        prompt = row["prompt"]
        text, score = row["text"], row.get("score")
        if not (isinstance(text, str) and isinstance(prompt["id"], str) and isinstance(prompt["text"], str)):
            raise TypeError("id and text must be strings")
        if score is not None and not (isinstance(score, (int, float)) and math.isfinite(score)):
            raise TypeError(f"score must be a number or null, found {score!r}")
        fields = {k: prompt[k] for k in ("id", "text", "task", "split", "extra") if k in prompt}
        return Demonstration(Prompt(**fields), text, row.get("source", "unknown"), row.get("licence", "unknown"), score)
    except (ValueError, TypeError, KeyError) as problem:
        raise PromptError(
            f"Line {number} of the teacher buffer '{path}' is not a demonstration "
            f"({type(problem).__name__}: {problem}). "
            'Expected one JSON object per line: {"prompt": {"id": ..., "text": ...}, "text": ..., "source": ...}. '
            "Fix or delete the line; nothing was changed."
        ) from problem


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
