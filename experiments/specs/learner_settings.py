"""Checked tables of a spec from a learner's config dataclass, so that a new learner needs no change here.

    Config = config_class(train)                        # PPOConfig: the dataclass of `train`'s first parameter
    config = make_config(Config, {"steps": 5}, seed=0)  # PPOConfig(steps=5, ..., seed=0)
    plain(config)                                       # {"steps": 5, "batch_size": 64, ...}: what a TOML file can hold

Fields are checked by their types, without conversion: a text is never read as a number. The run sets the field `seed`.
`lr` stands for `learning_rate` if the dataclass has that field.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import PurePath
from types import SimpleNamespace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from humor_env.errors import InvalidOption

OURS = ("seed",)
SHORT_FORMS = {"lr": "learning_rate"}
_MISSING = object()


class Table(BaseModel):
    """A table of a spec: unknown keys are refused, types are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


def config_class(train: Callable[..., Any], name: str = "") -> type:
    """The dataclass that `train`'s first parameter is annotated with."""
    called = name or getattr(train, "__name__", repr(train))
    if not callable(train):
        raise InvalidOption(
            f"The learner '{called}' is a {type(train).__name__}; expected a function train(config, …)."
        )
    first = next(iter(inspect.signature(train).parameters.values()), None)
    annotation: Any = None if first is None else first.annotation
    if isinstance(annotation, str):
        holder = SimpleNamespace(__annotations__={"config": annotation})
        module = inspect.getmodule(inspect.unwrap(train))
        try:
            annotation = typing.get_type_hints(holder, globalns=vars(module) if module else {})["config"]
        except NameError:
            annotation = None
    if not (inspect.isclass(annotation) and dataclasses.is_dataclass(annotation)):
        raise InvalidOption(
            f"The learner '{called}' does not say what its settings are: annotate the first parameter of its train "
            "function with a dataclass, as in train(config: MyConfig, env, student, log)."
        )
    return annotation


def settings_model(config: type) -> type[BaseModel]:
    """A table with the dataclass's fields, types and defaults; nested dataclasses are nested tables."""
    hints = typing.get_type_hints(config)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        if not field.init or field.name in OURS:
            continue
        hint = hints[field.name]
        if inspect.isclass(hint) and dataclasses.is_dataclass(hint):
            hint = settings_model(hint)
        default: Any = ...
        if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING:
            default = None  # never read: only the given keys are passed on
        fields[field.name] = (hint, Field(default, validate_default=False))
    return create_model(config.__name__, __base__=_Open, **fields)


def table_of(config: type) -> Any:
    """A table with a dataclass's fields, limits and defaults: the base of tables that mirror one."""
    hints = typing.get_type_hints(config, include_extras=True)
    fields: dict[str, Any] = {
        f.name: (hints[f.name], ... if f.default is dataclasses.MISSING else f.default)
        for f in dataclasses.fields(config)
    }
    return create_model(config.__name__, __base__=Table, **fields)


class _Open(Table):
    """Allows fields of types that only code can build, so that the others can be checked."""

    model_config = ConfigDict(arbitrary_types_allowed=True)


def check_table(model: type[BaseModel], table: Mapping[str, Any]) -> BaseModel:
    """Validate as JSON: strict about numbers and texts, while a list may still become a tuple. Raises pydantic's
    ValidationError."""
    return model.model_validate_json(json.dumps(table, default=str))


def make_config(config: type, table: Mapping[str, Any], seed: int | None = None) -> Any:
    """The dataclass from a checked table. Errors that it raises itself (InvalidOption) pass through."""
    instance = _build(config, check_table(settings_model(config), table))
    return instance if seed is None else _with_seed(instance, seed)


def _build(config: type, model: BaseModel) -> Any:
    values: dict[str, Any] = {}
    hints = typing.get_type_hints(config)
    for name in model.model_fields_set:
        value = getattr(model, name)
        values[name] = _build(hints[name], value) if isinstance(value, BaseModel) else value
    return config(**values)


def _with_seed(config: Any, seed: int) -> Any:
    """Set the seed at every depth: a learner made of two others, such as BRIO-DPO, has it only in its parts."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in OURS:
            changes[field.name] = seed
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            changes[field.name] = _with_seed(value, seed)
    return dataclasses.replace(config, **changes)


def with_full_names(config: type, table: Mapping[str, Any]) -> dict[str, Any]:
    """Rename `lr` to `learning_rate`, if the dataclass has the latter and not the former."""
    names = {f.name for f in dataclasses.fields(config)}
    return {SHORT_FORMS[k] if k not in names and SHORT_FORMS.get(k) in names else k: v for k, v in table.items()}


def plain(config: Any) -> dict[str, Any]:
    """The dataclass as data for a TOML file, without the seed, None, what it computes, and what only code can build."""
    table = {}
    for field in dataclasses.fields(config):
        ours = field.name in OURS or not field.init  # as in `settings_model`: no file may set it
        value = _MISSING if ours else _plain_value(getattr(config, field.name))
        if value is not _MISSING and value is not None:
            table[field.name] = value
    return table


def _plain_value(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, Enum):
        return _plain_value(value.value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, (list, tuple)):
        inner = [_plain_value(v) for v in value]
        return _MISSING if any(v is _MISSING or v is None for v in inner) else inner
    if isinstance(value, Mapping):
        return {str(k): v for k, v in ((k, _plain_value(v)) for k, v in value.items()) if v is not _MISSING}
    return _MISSING
