"""Cache a local critic's readings during an evaluation, so that it reads each line once however often it is called.

    def states(self, jokes):                                        # in a critic
        return read_once(("my-critic", self.folder), jokes, self._read)     # `_read` gives one answer for each joke

    known: Readings = {}
    with reading_once(known):            # around an evaluation
        critic(jokes), judge(pairs)      # with the same weights: the second reads only lines that are new to it

An evaluation calls the same critic for scores, for pairs with the teacher's lines, and for the pairs of a win-tie
critic. Each of these would read the line again, in 12 or 18 layers of a language model. The cache holds the model's
output for single lines, below everything that compares or remembers lines, so that such critics still see every call.

Training does not use it: a batch with some lines cached is padded differently from a whole one, and a resumed run, with
an empty cache, would differ in the last digits. A critic that calls a service has its ledger instead.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from humor_env.types import Joke

Answer = TypeVar("Answer")
Readings = dict[Hashable, dict[tuple[str, str], Any]]  # by reader, then by prompt and line

_known: ContextVar[Readings | None] = ContextVar("known", default=None)


@contextmanager
def reading_once(readings: Readings) -> Iterator[None]:
    """Within the block, look lines up in `readings` before reading them, and store readings there."""
    token = _known.set(readings)
    try:
        yield
    finally:
        _known.reset(token)


def read_once(reader: Hashable, jokes: Sequence[Joke], read: Callable[[list[Joke]], Sequence[Answer]]) -> list[Answer]:
    """The result of `read` for each joke; duplicate lines for a sentence are read once. `reader` identifies everything
    else that the answers depend on: the weights, and how they are used."""
    readings = _known.get()
    answers: dict[tuple[str, str], Answer] = {} if readings is None else readings.setdefault(reader, {})
    keys = [(joke.prompt.text, joke.text) for joke in jokes]
    new = {key: joke for key, joke in zip(keys, jokes, strict=True) if key not in answers}
    if new:
        answers.update(zip(new, read(list(new.values())), strict=True))
    return [answers[key] for key in keys]
