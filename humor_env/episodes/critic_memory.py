"""Critics with a memory: saving their state with a run, and showing them the lines learned from.

    remembering = with_memory([critic])      # the critic itself, or those inside a mix; [] for most
    show(remembering, jokes)                 # these lines were learned from
    [critic.get_state() for critic in remembering]

A critic has a memory if it has `get_state()`, which returns plain JSON, and `set_state(state)`, which restores it. A
run saves the state and restores it on resuming. If the critic also has `remember(jokes)`, that is called after each
learner step, in every process, with the lines of all processes, so that two processes remember the same as one. A plain
call should change nothing, since evaluations call critics too. A critic around others names them in `inner_critics`.
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
    """The critics with a memory, nested ones included, each once and in a fixed order."""
    remembering: dict[int, Remembering] = {}
    for critic in critics:
        if isinstance(critic, Remembering):  # one that also names others saves their memory itself
            remembering.setdefault(id(critic), critic)
        else:
            for inner in with_memory(getattr(critic, "inner_critics", ())):
                remembering.setdefault(id(inner), inner)
    return list(remembering.values())


def show(critics: Iterable[Remembering], jokes: Sequence[Joke]) -> None:
    """Call `remember` with the lines learned from, on critics that have it."""
    for critic in critics:
        remember = getattr(critic, "remember", None)
        if callable(remember):
            remember(jokes)
