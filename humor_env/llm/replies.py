"""Strict parsing of a model's reply: it has exactly the requested form, or it is an error.

    parse('{"wit": 4}', schema)          # {"wit": 4}
    parse('{"wit": 9}', schema)          # ReplyError: 'wit' is 9, expected one of 0, 1, ...
    parse('I would say {"wit": 4}', schema)   # ReplyError: numbers are never extracted from prose

Services promise structured output but do not enforce bounds, and some servers ignore the schema altogether. The part
of JSON Schema that our requests use is checked here; anything else in a schema is refused when the request is made.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from humor_env.llm.protocol import Reply, Request
from humor_env.shared.json_lines import NOT_JSON
from humor_env.types import Usage

_FENCED = re.compile(r"\A```(?:json)?\s*\n(.*)\n```\Z", re.DOTALL)
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}
_KNOWN = {"type", "enum", "properties", "required", "additionalProperties", "items"}


class ReplyError(ValueError):
    """Why a reply does not have the requested form."""


def parse(text: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The reply's JSON object. One code fence around it is allowed; anything else around it is not."""
    body = text.strip()
    fenced = _FENCED.match(body)
    try:
        value = json.loads(fenced[1] if fenced else body, object_pairs_hook=_unique, parse_constant=_no_constant)
    except ReplyError:
        raise
    except NOT_JSON as problem:
        raise ReplyError(f"not JSON: {type(problem).__name__}") from None
    check(value, schema)
    if not isinstance(value, dict):
        raise ReplyError(f"expected an object, found {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        # Python would keep the last of two scores, but which one was meant is unknown.
        raise ReplyError("a field is given twice")
    return fields


def _no_constant(name: str) -> float:
    raise ReplyError(f"{name} is not JSON")


def check(value: Any, schema: Mapping[str, Any], where: str = "the reply") -> None:
    """Raise ReplyError if `value` does not fit `schema`."""
    unknown = set(schema) - _KNOWN
    if unknown:
        raise ValueError(f"replies.check does not know the schema words {sorted(unknown)}; known: {sorted(_KNOWN)}")
    kind = schema.get("type")
    if kind is not None:
        # bool is an int in Python: true must not pass as the score 1.
        if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
            raise ReplyError(f"{where} is {type(value).__name__}, expected {kind}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ReplyError(f"{where} is not a finite number")
    if "enum" in schema and not any(type(value) is type(choice) and value == choice for choice in schema["enum"]):
        raise ReplyError(f"{where} is {str(value)[:40]!r}, expected one of {schema['enum']}")
    if isinstance(value, dict):
        _check_object(value, schema, where)
    if isinstance(value, list) and "items" in schema:
        for item in value:
            check(item, schema["items"], f"an item of {where}")


def _check_object(value: dict[str, Any], schema: Mapping[str, Any], where: str) -> None:
    properties: Mapping[str, Any] = schema.get("properties", {})
    missing = [name for name in schema.get("required", ()) if name not in value]
    if missing:
        raise ReplyError(f"{where} lacks {', '.join(missing)}")
    if schema.get("additionalProperties") is False and set(value) - set(properties):
        raise ReplyError(f"{where} has fields that were not asked for")
    for name, rule in properties.items():
        if name in value:
            check(value[name], rule, f"'{name}'")


def read(text: str, stop: object, request: Request, usage: Usage) -> Reply:
    """The Reply for a text and a stop reason (as named in the Messages API). Anything unusual is an error."""
    stop = stop if isinstance(stop, str) else None
    if stop == "refusal":
        return Reply(text, stop_reason=stop, error="refusal", detail="the model declined", usage=usage)
    if stop in ("max_tokens", "model_context_window_exceeded"):
        return Reply(text, stop_reason=stop, error="cut", detail="the reply was cut off", usage=usage)
    if stop not in ("end_turn", "stop_sequence"):
        return Reply(text, stop_reason=stop, error="invalid", detail=f"unexpected stop reason {stop!r}", usage=usage)
    if request.schema is None:
        if not text.strip():
            return Reply(text, stop_reason=stop, error="invalid", detail="an empty reply", usage=usage)
        return Reply(text, stop_reason=stop, usage=usage)
    try:
        return Reply(text, parse(text, request.schema), stop, usage=usage)
    except ReplyError as problem:
        return Reply(text, stop_reason=stop, error="invalid", detail=str(problem), usage=usage)
