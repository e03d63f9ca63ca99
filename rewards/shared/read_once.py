"""A critic with weights of its own reads a line once while something is measured, however often it is asked.

    def states(self, jokes):                                        # in a critic
        return read_once(("my-critic", self.folder), jokes, self._read)     # `_read` gives one answer for each joke

    known: Readings = {}
    with reading_once(known):            # around what is measured
        critic(jokes), judge(pairs)      # with the same weights: the second reads only lines that are new to it

A measurement asks the same critic for scores, for pairs beside the teacher's lines, and for the pairs of a win-tie
critic. Each of these reads the line again, in 12 or 18 layers of a language model. Kept is what the model says of one
line, below all that compares lines or remembers them, so that such critics still see what they are asked about.

Learning is not measured like this: a batch in which some lines are known is padded otherwise than a whole one, and a
resumed run, which knows none, would differ in the last digits. A critic that asks a service has its ledger instead.
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
def reading_once(known: Readings) -> Iterator[None]:
    """Here lines are looked up in `known` before they are read, and what was read is put there."""
    token = _known.set(known)
    try:
        yield
    finally:
        _known.reset(token)


def read_once(reader: Hashable, jokes: Sequence[Joke], read: Callable[[list[Joke]], Sequence[Answer]]) -> list[Answer]:
    """What `read` says of each joke; a line that comes twice for a sentence is read once. `reader` names all that the
    answers depend on besides sentence and line: the weights, and how they are used."""
    known = _known.get()
    answers: dict[tuple[str, str], Answer] = {} if known is None else known.setdefault(reader, {})
    keys = [(joke.prompt.text, joke.text) for joke in jokes]
    new = {key: joke for key, joke in zip(keys, jokes, strict=True) if key not in answers}
    if new:
        answers.update(zip(new, read(list(new.values())), strict=True))
    return [answers[key] for key in keys]
