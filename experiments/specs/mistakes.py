"""The mistakes in a table of a spec, a sentence each: the place, what was expected, and the fix.

    problems: list[str] = []
    spec = checked(Spec, data, (), source, problems)      # None if there are mistakes
    problems      # ["mine.toml, line 3: [learner] has no key 'stesp'. Did you mean 'steps'?"]

pydantic finds the mistakes; its messages name Python's types, these name TOML's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from humor_env.experiments.specs.learner_settings import SHORT_FORMS, check_table
from humor_env.experiments.specs.overrides import KeyPath, Source

# Names of settings elsewhere (TRL, Hugging Face), and their names here.
ELSEWHERE = {
    "beta": "kl_weight",
    "kl_coef": "kl_weight",
    "num_generations": "siblings",
    "max_completion_length": "max_new_tokens",
    "max_steps": "steps",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "epsilon": "clip",
}


def checked(model: type[BaseModel], data: Any, at: KeyPath, source: Source, problems: list[str]) -> BaseModel | None:
    """The table as its model; if it is wrong, None, with a sentence for each mistake added to `problems`."""
    try:
        return check_table(model, data)
    except ValidationError as problem:
        grouped: dict[KeyPath, list[Any]] = {}
        for error in problem.errors(include_url=False):
            # Inside a union of types the location also names the type: cut it back to keys in the file.
            missing = error["type"] in ("missing", "extra_forbidden")
            path = error["loc"] if missing else _written(data, error["loc"])
            grouped.setdefault(path, []).append(error)
        for path, errors in grouped.items():
            problems.append(_sentence(model, (*at, *path), path, errors, source))
        return None


def _written(data: Any, path: KeyPath) -> KeyPath:
    for place, part in enumerate(path):
        inside = isinstance(data, Mapping) and part in data
        if not inside and not (isinstance(data, list) and isinstance(part, int) and part < len(data)):
            return path[:place]
        data = data[part]
    return path


def _sentence(
    model: type[BaseModel],
    full: KeyPath,
    path: KeyPath,
    errors: Sequence[Any],
    source: Source,
) -> str:
    kind = errors[0]["type"]
    where, name = source.where(full), ".".join(map(str, full))
    table = ".".join(map(str, full[:-1]))
    home = f"[{table}]" if table else "the top level"
    if kind == "extra_forbidden":
        table_model, key = _table_at(model, path[:-1]), str(full[-1])
        keys = list(table_model.model_fields)
        inside = _inside(table_model, key) or _inside(table_model, ELSEWHERE.get(key, ""))
        if key == "seed":
            hint = "'seeds' at the top gives the seed."
        elif inside:
            hint = f"Did you mean '{'.'.join(map(str, (*full[:-1], inside)))}'?"
        else:
            hint = _near(key, keys)
        return f"{where}: {home} has no key '{full[-1]}'. {hint or 'Known: ' + ', '.join(keys) + '.'}"
    if kind == "missing":
        return f"{where}: {home} needs the key '{full[-1]}'."
    if kind == "list_type" and isinstance(errors[0]["input"], Mapping):
        return f"{where}: '{name}' may be given more than once, so its header is [[{name}]], with two brackets."
    expected = " or ".join(dict.fromkeys(_in_toml_words(e["msg"]) for e in errors))
    return f"{where}: '{name}' should {expected}, found {errors[0]['input']!r}."


def _in_toml_words(message: str) -> str:
    message = re.sub(r"^\w+ should ", "", message)
    message = re.sub(r" after validation, not \d+$", "", message)
    for theirs, ours in (("an object", "a table"), ("valid array", "list"), ("valid string", "text")):
        message = message.replace(theirs, ours)
    return message.replace("valid integer", "whole number").replace("valid number", "number")


def _near(key: str, keys: Sequence[str]) -> str:
    """A hint for a misspelt key, or an abbreviation from the first letters of a key's words."""
    initials = {"".join(word[0] for word in name.split("_") if word): name for name in keys}
    close = get_close_matches(key, keys, n=1, cutoff=0.6)
    nearest = close[0] if close else initials.get(key) or SHORT_FORMS.get(key)
    return f"Did you mean '{nearest}'?" if nearest in keys else ""


def _inside(model: type[BaseModel], key: str) -> str | None:
    """The dotted path from a table to a key of that name, in it or in a nested table."""
    if key in model.model_fields:
        return key
    for name, info in model.model_fields.items():
        inner = _model_in(info.annotation)
        if inner is not None and key in inner.model_fields:
            return f"{name}.{key}"
    return None


def _table_at(model: type[BaseModel], path: KeyPath) -> type[BaseModel]:
    for part in path:
        if isinstance(part, str) and part in model.model_fields:
            inner = _model_in(model.model_fields[part].annotation)
            if inner is not None:
                model = inner
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for a in getattr(annotation, "__args__", ()) if (m := _model_in(a)) is not None), None)
