"""Which model judges in the end: a judge used for training must not also evaluate, under any name.

identities_of("win-tie", {"judge": "pocket-crowd"})      # {("pocket-crowd", "")}
identities_of("lift", {})                                # {("pocket", "")}: its critic by default
identities_of("scorer", {"client": "anthropic:a"})       # {("scorer", "anthropic:a")}
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from humor_env import registry
from humor_env.registry import Registry

Identity = tuple[str, str]


def identities_of(name: str, options: Mapping[str, Any], kind: Registry | None = None) -> set[Identity]:
    """The models that judge in the end: of a win-tie critic, its judge; of a mix, its members; by their own names. What
    the options leave out is what the critic takes by default."""
    kind = kind or (registry.critics if name in registry.critics.names() else registry.judges)
    target = kind.resolve(name)
    options = _defaults(target) | dict(options)
    found: set[Identity] = set()
    for option, value in options.items():
        if isinstance(value, str) and (option in ("judge", "critic") or f"{option}_options" in options):
            inside = options.get(f"{option}_options") or {}
            found |= identities_of(value, inside, _kind_of(value, critics_first=option == "critic"))
    for option in ("critics", "judges"):
        members = options.get(option)
        for member in members if isinstance(members, Sequence) and not isinstance(members, str) else ():
            table = {"critic": member} if isinstance(member, str) else member
            if isinstance(table, Mapping) and isinstance(who := table.get("critic") or table.get("judge"), str):
                found |= identities_of(
                    who, table.get("options") or {}, _kind_of(who, critics_first=option == "critics")
                )
    if found:
        return found
    called = getattr(target, "name", None)
    which = "/".join(same(str(options[key])) for key, same in _IDENTITY.items() if options.get(key) is not None)
    return {(called if isinstance(called, str) else name, which)}


def _defaults(target: Any) -> dict[str, Any]:
    """What it is made with where nothing else is given."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # an object that is not made, or says nothing of itself
        return {}
    return {p.name: None if p.default is p.empty else p.default for p in parameters}


def _kind_of(name: str, *, critics_first: bool) -> Registry:
    """Some names are both a critic's and a judge's, and a wrapper may ask either."""
    first, second = (registry.critics, registry.judges) if critics_first else (registry.judges, registry.critics)
    return second if name not in first.names() and name in second.names() else first


def _client(written: str) -> str:
    """The model of a client's line: Anthropic's default one where none is named, asked one by one or in batches."""
    service, at, url = written.partition("@")
    service, _, model = service.partition(":")
    if service in ("anthropic", "anthropic-batch"):
        from humor_env.llm.clients.anthropic import DEFAULT_MODEL

        service, model = "anthropic", model or DEFAULT_MODEL
    elif service == "local":
        return f"local:{_place(written.partition(':')[2])}"
    return f"{service}:{model}{at}{url.rstrip('/')}" if model else written


def _place(written: str) -> str:
    """A folder, however it is written. What is none, such as a model's name, stays as it is."""
    return str(Path(written).resolve()) if Path(written).exists() else os.path.normpath(written)


# The options that distinguish two models behind one kind of critic, and how each is written in one way only.
_IDENTITY: Mapping[str, Callable[[str], str]] = {"client": _client, "model": _place, "path": _place, "folder": _place}
