"""Critics with a memory: what a run saves of them, and what it shows them.

    remembering = with_memory([critic])      # the critic itself, or those inside a mix; [] for most
    show(remembering, jokes)                 # these lines were learned from
    [one.get_state() for one in remembering]

A critic has a memory if it has `get_state()`, which gives plain JSON, and `set_state(state)`, which goes on from there.
A run saves the one and calls the other when it is resumed. If it also has `remember(jokes)`, that is called after each
step of a learner, in every process, with the lines of all processes: so two processes remember what one would. Asking
alone should change nothing, since evaluations ask too. A critic around others names them in `inner_critics`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from humor_env.types import Joke


@runtime_checkable
class Remembering(Protocol):
    """A critic whose memory is saved with a run."""

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...


def with_memory(critics: Iterable[object]) -> list[Remembering]:
    """Those of the critics that have a memory, and those inside of them, each once and always in the same order."""
    remembering: dict[int, Remembering] = {}
    for critic in critics:
        if isinstance(critic, Remembering):  # one that names others as well saves what they remember itself
            remembering.setdefault(id(critic), critic)
        else:
            for inner in with_memory(getattr(critic, "inner_critics", ())):
                remembering.setdefault(id(inner), inner)
    return list(remembering.values())


def show(critics: Iterable[Remembering], jokes: Sequence[Joke]) -> None:
    """Let them remember what was written and learned from."""
    for critic in critics:
        remember = getattr(critic, "remember", None)
        if callable(remember):
            remember(jokes)
