"""Prompt sets, in splits that never share a prompt, and prompt streams in a seeded order.

    prompts = load_prompts("pocket")                          # bundled, or any registered name
    prompts = load_prompts("mine.jsonl")                      # one JSON object per line: {"text": "The bus was late."}
    prompts = load_prompts("hf:owner/dataset", text="sentence", limit=5000)
    prompts = load_prompts("flute:sarcasm_train.jsonl")       # or "isarcasm:train.En.csv": see `sources/human_pairs.py`
    stream = PromptStream(prompts.split("train"), seed=0)
    stream.next()                                             # every prompt once per epoch, each epoch in a new order

A row's split is its own `split` column, else the `split` option, else drawn from a hash of its text (80 % train, 10 %
dev, 10 % test), so that it does not change when the file grows. Columns other than id, text, task and split go to
`Prompt.extra`, where `words` (a list) means words that must appear in the line.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np

from humor_env import registry
from humor_env.errors import CheckpointError, InvalidOption, PromptError, did_you_mean
from humor_env.shared.streams import generator, stream_seed
from humor_env.sources import prompt_files
from humor_env.spaces import is_encodable
from humor_env.types import SPLITS, Prompt

_SPLIT_NAMES = {
    **{name: name for name in SPLITS},
    "validation": "dev",
    "valid": "dev",
    "val": "dev",
    "eval": "dev",
}
_TEXT_COLUMNS = ("text", "literal", "prompt")


class PromptSet:
    """Prompts by split and by id, checked once: unique ids, known splits, valid text, nothing shared between splits."""

    def __init__(self, name: str, prompts: Iterable[Prompt]) -> None:
        self.name = name
        self.prompts = tuple(prompts)
        if not self.prompts:
            raise PromptError(f"The prompt set '{name}' is empty: it needs at least one prompt.")
        self._by_id: dict[str, Prompt] = {}
        self._by_split: dict[str, list[Prompt]] = {}
        first_seen: dict[str, Prompt] = {}
        for prompt in self.prompts:
            _check_prompt(name, prompt)
            if prompt.id in self._by_id:
                raise PromptError(f"The prompt set '{name}' has two prompts with the id '{prompt.id}'.")
            twin = first_seen.setdefault(comparable(prompt.text), prompt)
            if twin.split != prompt.split:
                raise PromptError(
                    f"The prompt set '{name}' has the same text in two splits, so a student would be tested on what it "
                    f"learned: '{twin.id}' ({twin.split}) and '{prompt.id}' ({prompt.split}). Remove one of them."
                )
            self._by_id[prompt.id] = prompt
            self._by_split.setdefault(prompt.split, []).append(prompt)

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def __repr__(self) -> str:
        return f"PromptSet('{self.name}', {self._sizes()})"

    def _sizes(self) -> str:
        return ", ".join(f"{split}: {len(prompts)}" for split, prompts in self._by_split.items())

    def split(self, split: str) -> tuple[Prompt, ...]:
        """The prompts of one split, in the set's own order; an empty split is an error."""
        if split not in SPLITS:
            raise InvalidOption(
                f"No split is called '{split}'.{did_you_mean(split, SPLITS)} Known: {', '.join(SPLITS)}."
            )
        prompts = self._by_split.get(split)
        if not prompts:
            raise PromptError(
                f"The prompt set '{self.name}' has no prompt in the split '{split}'. It has {self._sizes()}."
            )
        return tuple(prompts)

    def get(self, prompt_id: str) -> Prompt:
        prompt = self._by_id.get(prompt_id)
        if prompt is None:
            near = did_you_mean(str(prompt_id), self._by_id)
            raise PromptError(f"The prompt set '{self.name}' has no prompt with the id {prompt_id!r}.{near}")
        return prompt

    @property
    def longest(self) -> int:
        """The number of characters of the longest prompt."""
        return max(len(prompt.text) for prompt in self.prompts)

    def digest(self, split: str) -> str:
        """A short hash of a split's ids and texts: runs with equal digests used the same prompts."""
        lines = "\x1e".join(f"{prompt.id}\x1f{prompt.text}" for prompt in self.split(split))
        return hashlib.blake2b(lines.encode(), digest_size=8).hexdigest()


class PromptStream:
    """An endless stream of prompts: each once per epoch, in an order that depends only on (seed, epoch)."""

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        if not prompts:
            raise PromptError("A prompt stream needs at least one prompt.")
        self._prompts = prompts
        self._seed = seed
        self._epoch = 0
        self._position = 0
        self._order = self._shuffled()

    def _shuffled(self) -> np.ndarray:
        # int32 to save memory: a vector environment keeps one order per sub-environment.
        return generator(self._seed, "prompt-order", self._epoch).permutation(len(self._prompts)).astype(np.int32)

    @property
    def epoch(self) -> int:
        """Number of completed passes over the prompts."""
        return self._epoch

    def next(self) -> Prompt:
        prompt = self._prompts[self._order[self._position]]
        self._position += 1
        if self._position == len(self._order):
            self._epoch, self._position = self._epoch + 1, 0
            self._order = self._shuffled()
        return prompt

    def take(self, count: int) -> list[Prompt]:
        return [self.next() for _ in range(count)]

    def get_state(self) -> dict[str, int]:
        """Plain data from which `set_state` continues exactly here."""
        return {"seed": self._seed, "epoch": self._epoch, "position": self._position}

    def set_state(self, state: Mapping[str, int]) -> None:
        try:
            seed, epoch, position = int(state["seed"]), int(state["epoch"]), int(state["position"])
        except (KeyError, TypeError, ValueError) as problem:
            raise CheckpointError(
                f"A prompt stream's state must have seed, epoch and position, found {state!r}."
            ) from problem
        if epoch < 0 or not 0 <= position < len(self._prompts):
            raise CheckpointError(
                f"The saved position {position} of epoch {epoch} does not fit a stream of {len(self._prompts)} prompts."
            )
        self._seed, self._epoch, self._position = seed, epoch, position
        self._order = self._shuffled()


def load_prompts(what: str | PromptSet | Iterable[str | Prompt], **options: Any) -> PromptSet:
    """A prompt set from a name, a file, a Hugging Face dataset, or live texts (put in the split "train")."""
    if isinstance(what, str):
        from humor_env.sources import human_pairs  # imported here because it imports this module

        if human_pairs.is_pairs(what):
            if options:
                raise InvalidOption(f"The prompts '{what}' take no options, found {', '.join(options)}.")
            return human_pairs.pair_prompts(what)
        if what.startswith("hf:") or prompt_files.is_file_name(what):
            return _from_rows(what, **options)
        return _as_set(what, registry.prompts.make(what, **options))
    if options:
        raise InvalidOption(f"Prompts given as live objects take no options, found {', '.join(options)}.")
    return _as_set("given", what)


def _as_set(name: str, source: object) -> PromptSet:
    if isinstance(source, PromptSet):
        return source
    if isinstance(source, (str, Mapping)) or not isinstance(source, Iterable):
        raise PromptError(
            f"The prompts '{name}' must be a PromptSet or a list of texts or Prompts, found {type(source).__name__}."
        )
    prompts = []
    for index, item in enumerate(source):
        if isinstance(item, str):
            item = Prompt(f"{name}-{index}", item)
        if not isinstance(item, Prompt):
            raise PromptError(
                f"Item {index} of the prompts '{name}' must be a text or a Prompt, found {type(item).__name__}."
            )
        prompts.append(item)
    return PromptSet(name, prompts)


def _from_rows(
    what: str,
    *,
    text: str | None = None,
    split: str | None = None,
    task: str = "paraphrase",
    limit: int | None = None,
    **reading: Any,
) -> PromptSet:
    """Prompts from rows of a file or dataset; a bad row raises with its location and the reason."""
    if split is not None and split not in SPLITS:
        raise InvalidOption(f"No split is called '{split}'.{did_you_mean(split, SPLITS)} Known: {', '.join(SPLITS)}.")
    if limit is not None and limit < 1:
        raise InvalidOption(f"limit must be at least 1, found {limit}.")
    prompts: list[Prompt] = []
    seen: set[str] = set()
    repeated = 0
    for place, own_split, row in prompt_files.rows(what, **reading):
        try:
            prompt = _prompt_of_row(row, text, own_split, split, task)
        except PromptError as problem:
            raise PromptError(f"{what}, {place}: {problem}") from None
        if row.get("id") is None and prompt.id in seen:
            repeated += 1
            continue
        seen.add(prompt.id)
        prompts.append(prompt)
        if limit is not None and len(prompts) == limit:
            break
    if repeated:
        warnings.warn(f"{what}: {repeated} rows repeat the text of an earlier row and were left out.", stacklevel=3)
    return PromptSet(what, prompts)


def _prompt_of_row(
    row: Mapping[str, Any], column: str | None, own_split: str | None, option_split: str | None, task: str
) -> Prompt:
    columns = [str(key) for key in row]
    column = column or next((name for name in _TEXT_COLUMNS if name in row), None)
    if column is None or column not in row:
        column_name = f"'{column}'" if column else f"called {' or '.join(_TEXT_COLUMNS)}"
        raise PromptError(
            f"no column {column_name}. It has: {', '.join(columns)}. Name the text's column with the option text=…"
        )
    text = row[column]
    if not isinstance(text, str) or not text.strip():
        raise PromptError(f"the column '{column}' must hold a non-empty text, found {text!r}")
    if not is_encodable(text):
        raise PromptError(f"the column '{column}' holds a lone surrogate, which is not a character")
    split_name = row.get("split") or option_split or own_split
    if split_name is None:
        split_name = split_by_hash(text)
    elif not isinstance(split_name, str) or split_name not in _SPLIT_NAMES:
        raise PromptError(
            f"no split is called {split_name!r}.{did_you_mean(str(split_name), SPLITS)} Known: {', '.join(SPLITS)}"
        )
    extra = {
        key: value for key, value in row.items() if key not in ("id", "task", "split", column) and value is not None
    }
    if "words" in extra:
        extra["words"] = _words(extra["words"])
    digest = hashlib.blake2b(comparable(text).encode(), digest_size=6).hexdigest()
    name = digest if row.get("id") is None else str(row["id"])
    return Prompt(name, text, str(row.get("task") or task), _SPLIT_NAMES[split_name], extra)


def _words(value: object) -> list[str]:
    """Required words: a list in JSON, separated by commas or semicolons in CSV."""
    words = value.replace(";", ",").split(",") if isinstance(value, str) else value
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) and word.strip() for word in words):
        raise PromptError(f"'words' must be a list of words that must appear, found {value!r}")
    return [word.strip() for word in words]


def split_by_hash(text: str) -> str:
    """80 % train, 10 % dev, 10 % test; depends only on the text."""
    share = stream_seed(0, "prompt-split", comparable(text)) % 10
    return "test" if share == 9 else "dev" if share == 8 else "train"


def comparable(text: str) -> str:
    """A form in which texts that differ only in case, spaces or Unicode form are equal."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _check_prompt(name: str, prompt: Prompt) -> None:
    if not isinstance(prompt, Prompt):
        raise PromptError(f"The prompt set '{name}' holds a {type(prompt).__name__} where a Prompt was expected.")
    if prompt.split not in SPLITS:
        raise PromptError(
            f"Prompt '{prompt.id}' of '{name}' has the unknown split '{prompt.split}'. Known: {', '.join(SPLITS)}."
        )
    if not isinstance(prompt.text, str) or not prompt.text.strip() or not is_encodable(prompt.text):
        raise PromptError(f"Prompt '{prompt.id}' of '{name}' has no valid text: {prompt.text!r}.")
    words = prompt.extra.get("words")
    if words is not None and (isinstance(words, str) or not all(isinstance(word, str) for word in words)):
        raise PromptError(f"Prompt '{prompt.id}' of '{name}': extra['words'] must be a list of words, found {words!r}.")


@lru_cache(maxsize=1)
def make_pocket() -> PromptSet:
    """Literal sentences of the pocket world. Built once: it is checked, immutable and shared by every environment."""
    from humor_env.pocket import load_world

    return PromptSet("pocket", load_world().prompts(task="paraphrase"))


@lru_cache(maxsize=1)
def make_pocket_oneliner() -> PromptSet:
    """Topics, headlines and word pairs of the pocket world."""
    from humor_env.pocket import load_world

    return PromptSet("pocket-oneliner", load_world().prompts(task="oneliner"))


@lru_cache(maxsize=1)
def make_everyday() -> PromptSet:
    """Everyday sentences for real language models, written for this project (CC BY 4.0)."""
    records = _bundled("everyday.jsonl")
    return PromptSet("everyday", [Prompt(r["id"], r["literal"], "paraphrase", r["split"]) for r in records])


@lru_cache(maxsize=1)
def make_everyday_oneliner() -> PromptSet:
    """Everyday topics, headlines, and pairs of words that must both appear, written for this project (CC BY 4.0)."""
    prompts = []
    for record in _bundled("oneliners.jsonl"):
        extra: dict[str, Any] = {"kind": record["kind"]}
        if record.get("words"):
            extra["words"] = list(record["words"])
        prompts.append(Prompt(record["id"], record["text"], "oneliner", record["split"], extra))
    return PromptSet("everyday-oneliner", prompts)


def _bundled(file_name: str) -> list[dict[str, Any]]:
    text = (resources.files("humor_env.data") / file_name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line.strip()]
