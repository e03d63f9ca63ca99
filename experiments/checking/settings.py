"""What a learner's signature and settings must be like for a run, seen without training; and small settings to try it.

signature(train, "mine")                    # a sentence; raises `Broken` if a run could not call it
table = small_settings(MyConfig, {})        # {"steps": 3, "batch_size": 8, …}, as far as the learner accepts them
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from humor_env.errors import HumorEnvError, InvalidOption
from humor_env.experiments.runs.run import OFFERS, chosen_arguments
from humor_env.experiments.specs.learner_settings import (
    OURS,
    config_class,
    make_config,
    plain,
    settings_model,
    with_full_names,
)
from humor_env.experiments.specs.mistakes import checked
from humor_env.experiments.specs.overrides import Source
from humor_env.experiments.specs.spec import NOT_SETTINGS
from humor_env.findings import Broken

EVERY = "evaluate_every"
SET = {"steps": 3, "rounds": 2, "checkpoint_every": 1, EVERY: 0, "length_filter": "off"}
AT_MOST = {
    **{"batch_size": 8, "siblings": 4, "micro_batch": 8, "epochs": 2, "prompts_per_round": 12, "n": 3},
    **{"candidates": 3, "max_new_tokens": 12, "imitation_batch_size": 8},
}


def signature(train: Any, name: str) -> str:
    try:
        config_class(train, name)
        arguments = chosen_arguments(train, name, {offer: lambda: None for offer in OFFERS})
    except InvalidOption as problem:
        raise Broken(str(problem)) from None
    try:
        inspect.signature(train).bind(None, **arguments)
    except TypeError as problem:
        raise Broken(
            f"a run calls train(config, env=…, student=…), the settings by place and the rest by name, but {problem}."
        ) from None
    return "a run has every argument that it asks for."


def checked_settings(config: type, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The caller's settings; a mistake in them is the caller's and no finding."""
    problems: list[str] = []
    full_settings = with_full_names(config, settings)
    if not _missing(config, full_settings):
        checked(settings_model(config), full_settings, ("learner",), Source("the settings", {}), problems)
    if problems:
        raise InvalidOption("\n".join(problems))
    return full_settings


def _missing(config: type, settings: Mapping[str, Any]) -> list[str]:
    fields = settings_model(config).model_fields
    return [name for name, field in fields.items() if field.is_required() and name not in settings]


def survive_a_spec(config: type, settings: Mapping[str, Any]) -> str:
    fields = {f.name for f in dataclasses.fields(config) if f.init and f.name not in OURS}
    for name in sorted(fields & set(NOT_SETTINGS)):
        raise Broken(f"the key '{name}' of [learner] is not a learner's to use: give the setting another name.")
    missing = _missing(config, settings)
    if missing:
        raise Broken(
            f"{', '.join(missing)} has no default: give it one, or check the learner with --option {missing[0]}=…."
        )
    try:
        instance = make_config(config, settings)
        again = make_config(config, plain(instance))
    except HumorEnvError as problem:
        raise Broken(f"the defaults are refused: {problem}") from None
    for field in dataclasses.fields(config):
        before, after = getattr(instance, field.name), getattr(again, field.name)
        if before != after:
            raise Broken(
                f"{field.name} is {before!r}, and {after!r} when read back from the run's spec: a resumed run would "
                "have other settings. Leave the fields as they were given, and compute from them in train."
            )
    return f"{len(fields)} can be set in a spec, which refuses unknown ones, and are read back as they were."


def refusals(config: type, settings: Mapping[str, Any]) -> str:
    for path, kind in _places(config):
        for value in ("no such choice",) if kind is str else (-1, 0):
            try:
                make_config(config, _put(settings, path, value))
            except (HumorEnvError, ValidationError):
                continue
            except Exception as problem:
                name, error = ".".join(path), type(problem).__name__
                raise Broken(
                    f"{name} = {value!r} ends in a traceback ({error}: {problem}): raise humor_env.errors.InvalidOption"
                    " with a sentence."
                ) from None
    return "a value out of range is accepted or refused in a sentence."


def small_settings(config: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The given settings, and small values for others that decide how long a run takes, as far as the learner accepts
    them."""
    table: dict[str, Any] = copy.deepcopy(dict(settings))
    for path, _ in _places(config):
        name, now = path[-1], make_config(config, table)
        for part in path:
            now = getattr(now, part)
        if _has(settings, path):
            continue
        if name in SET:
            value: Any = SET[name]
        elif name in AT_MOST:
            value = min(now, AT_MOST[name]) if isinstance(now, (int, float)) and now else AT_MOST[name]
        else:
            continue
        smaller = _put(table, path, value)
        try:
            make_config(config, smaller)
        except Exception:  # whatever it raises; `refusals` tells how it should
            continue
        table = smaller
    return table


def _places(config: type, outer: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The path and type of every setting, those of nested tables too."""
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        hint = hints[field.name]
        if not field.init or field.name in OURS:
            continue
        if inspect.isclass(hint) and dataclasses.is_dataclass(hint):
            yield from _places(hint, (*outer, field.name))
        elif hint in (int, float, str) or field.name in SET or field.name in AT_MOST:
            yield (*outer, field.name), hint


def _has(table: Any, path: Sequence[str]) -> bool:
    return not path or (isinstance(table, Mapping) and path[0] in table and _has(table[path[0]], path[1:]))


def _put(table: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    first, *rest = path
    return {**table, first: _put(table.get(first, {}), rest, value) if rest else value}


def with_everywhere(config: Any, values: Mapping[str, Any]) -> Any:
    """The settings with these values at every depth."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in values:
            changes[field.name] = values[field.name]
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            changes[field.name] = with_everywhere(value, values)
    return dataclasses.replace(config, **changes)
