"""Which model judges in the end: a judge used for training must not also evaluate, under any name.

identities_of("win-tie", {"judge": "pocket-crowd"})      # {("pocket-crowd", "")}
identities_of("scorer", {"client": "anthropic:a"})       # {("scorer", "anthropic:a")}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from humor_env import registry

# The options that distinguish two models behind one kind of critic.
_IDENTITY = ("client", "model", "path", "folder")


def identities_of(name: str, options: Mapping[str, Any]) -> set[tuple[str, str]]:
    """The models that judge in the end: of a win-tie critic, its judge; of a mix, its members; by their own names."""
    for inner in ("judge", "critic"):
        if isinstance(options.get(inner), str):
            return identities_of(options[inner], options.get(f"{inner}_options") or {})
    members: Sequence[Any] = options.get("critics") or options.get("judges") or ()
    identities: set[tuple[str, str]] = set()
    for member in members:
        table = {"critic": member} if isinstance(member, str) else member
        if isinstance(table, Mapping):
            who = table.get("critic") or table.get("judge")
            inside: Mapping[str, Any] = dict(table).get("options") or {}
            identities |= identities_of(str(who), inside)
    if identities:
        return identities
    kind = registry.critics if name in registry.critics.names() else registry.judges
    called = getattr(kind.resolve(name), "name", None)
    which = "/".join(str(options[key]) for key in _IDENTITY if key in options)
    return {(called if isinstance(called, str) else name, which)}
