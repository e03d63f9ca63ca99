"""Which model judges in the end: a judge used for training must not also evaluate, under any name.

identities_of("win-tie", {"judge": "pocket-crowd"})      # {("pocket-crowd", "")}
identities_of("lift", {})                                # {("pocket", "")}: its critic by default
identities_of("scorer", {"client": "anthropic:a"})       # {("scorer", "anthropic:a")}
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from humor_env import registry
from humor_env.experiments.options import parameters, with_members
from humor_env.registry import Registry

Identity = tuple[str, str]


def identities_of(name: str, options: Mapping[str, Any], kind: Registry | None = None) -> set[Identity]:
    """The models that judge in the end: of a win-tie critic, its judge; of a mix, its members; by their own names.
    Options that are not given have the critic's defaults."""
    kind = kind or (registry.critics if name in registry.critics.names() else registry.judges)
    identities: set[Identity] = set()

    def visit(inner_kind: Registry, inner: str, inner_options: Mapping[str, Any]) -> dict[str, Any]:
        identities.update(identities_of(inner, inner_options, inner_kind))
        return dict(inner_options)

    with_members(kind, name, options, visit)
    if identities:
        return identities
    called = getattr(kind.resolve(name), "name", None)
    settings = {key: p.default for key, p in parameters(kind, name).items() if p.default is not p.empty} | dict(options)
    which = "/".join(same(str(settings[key])) for key, same in _IDENTITY.items() if settings.get(key) is not None)
    return {(called if isinstance(called, str) else name, which)}


def _client(text: str) -> str:
    """The model that a client string names; single calls and batches of Anthropic's service ask the same model."""
    service, at, url = text.partition("@")
    service, _, model = service.partition(":")
    if service in ("anthropic", "anthropic-batch"):
        from humor_env.llm.clients.anthropic import DEFAULT_MODEL

        service, model = "anthropic", model or DEFAULT_MODEL
    elif service == "local":
        return f"local:{_place(text.partition(':')[2])}"
    return f"{service}:{model}{at}{url.rstrip('/')}" if model else text


def _place(text: str) -> str:
    """A folder's one spelling. A name that is not a folder, such as a model's, is only normalised."""
    return str(Path(text).resolve()) if Path(text).exists() else os.path.normpath(text)


# The options that distinguish two models behind one kind of critic, and what brings each to one spelling.
_IDENTITY: Mapping[str, Callable[[str], str]] = {"client": _client, "model": _place, "path": _place, "folder": _place}
