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
    """The models that judge in the end: of a win-tie critic, its judge; of a mix, its members; by their own names.
    Options that are not given have the critic's defaults."""
    kind = kind or (registry.critics if name in registry.critics.names() else registry.judges)
    target = kind.resolve(name)
    options = _defaults(target) | dict(options)
    found: set[Identity] = set()
    for option, value in options.items():
        if isinstance(value, str) and (option in ("judge", "critic") or f"{option}_options" in options):
            inside: Mapping[str, Any] = options.get(f"{option}_options") or {}
            found |= identities_of(value, inside, _kind_of(value, critics_first=option == "critic"))
    for option in ("critics", "judges"):
        members = options.get(option)
        for member in members if isinstance(members, Sequence) and not isinstance(members, str) else ():
            table = {"critic": member} if isinstance(member, str) else member
            if isinstance(table, Mapping) and isinstance(who := table.get("critic") or table.get("judge"), str):
                given: Any = table.get("options") or {}
                found |= identities_of(who, given, _kind_of(who, critics_first=option == "critics"))
    if found:
        return found
    called = getattr(target, "name", None)
    which = "/".join(same(str(options[key])) for key, same in _IDENTITY.items() if options.get(key) is not None)
    return {(called if isinstance(called, str) else name, which)}


def _defaults(target: Any) -> dict[str, Any]:
    """The default arguments of a critic or judge; None for those without a default."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # it has no signature
        return {}
    return {p.name: None if p.default is p.empty else p.default for p in parameters}


def _kind_of(name: str, *, critics_first: bool) -> Registry:
    """Some names are both a critic's and a judge's, and a wrapper may ask either."""
    first, second = (registry.critics, registry.judges) if critics_first else (registry.judges, registry.critics)
    return second if name not in first.names() and name in second.names() else first


def _client(written: str) -> str:
    """The model that a client string names; single calls and batches of Anthropic's service ask the same model."""
    service, at, url = written.partition("@")
    service, _, model = service.partition(":")
    if service in ("anthropic", "anthropic-batch"):
        from humor_env.llm.clients.anthropic import DEFAULT_MODEL

        service, model = "anthropic", model or DEFAULT_MODEL
    elif service == "local":
        return f"local:{_place(written.partition(':')[2])}"
    return f"{service}:{model}{at}{url.rstrip('/')}" if model else written


def _place(written: str) -> str:
    """A folder's one spelling. A name that is not a folder, such as a model's, is only normalised."""
    return str(Path(written).resolve()) if Path(written).exists() else os.path.normpath(written)


# The options that distinguish two models behind one kind of critic, and what brings each to one spelling.
_IDENTITY: Mapping[str, Callable[[str], str]] = {"client": _client, "model": _place, "path": _place, "folder": _place}
