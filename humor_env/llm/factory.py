"""Language-model clients from strings.

make_client("anthropic:claude-haiku-4-5")                   # Anthropic's service; "anthropic" alone: the default model
make_client("openai:my-model@http://127.0.0.1:8000/v1")     # any OpenAI-compatible server
make_client("local:path/to/model")                          # a Hugging Face model in this process
make_client("my_package.models:MyClient")                   # your own: anything with the protocol of protocol.py
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Mapping
from typing import Any

from humor_env.errors import InvalidOption, UnknownName, did_you_mean, unknown_name
from humor_env.llm.budget import Budget
from humor_env.llm.clients.limited import LimitedClient
from humor_env.llm.clients.retry import Policy
from humor_env.llm.protocol import Client
from humor_env.registry import clients

# Options of a critic, and of its client, that say how to ask and not what.
_OF_A_CRITIC = frozenset({"ledger", "budget", "prices", "device", "batch_size"})
_OF_A_CLIENT = _OF_A_CRITIC | {"policy", "must_have_key", "requests_per_minute", "tokens_per_minute", "ask_again"}
_OF_A_CLIENT |= {field.name for field in dataclasses.fields(Policy)}
_TABLES = ("options", "critic_options")

SERVICES = ("anthropic", "anthropic-batch", "openai", "local")
_SERVICE = re.compile(rf"({'|'.join(SERVICES)})((?:[:@].*)?)\Z", re.DOTALL)


def make_client(
    what: str | Client,
    *,
    budget: Budget | None = None,
    must_have_key: bool = True,
    requests_per_minute: float | None = None,
    tokens_per_minute: float | None = None,
    **options: Any,
) -> Client:
    """A client for `SERVICE[:MODEL][@URL]`, for `package.module:name`, or the live client that was given.

    `options` go to the client's class and may include those of the retry policy (concurrency, timeout, deadline, ...).
    `requests_per_minute` and `tokens_per_minute` work with every client; those of the budget hold as well. Without
    `must_have_key` a missing key is an error only when something is sent.
    """
    if not isinstance(what, str):
        if options or any(limit is not None for limit in (budget, requests_per_minute, tokens_per_minute)):
            raise InvalidOption("A live client takes no options: give them when making it.")
        return what
    if requests_per_minute is not None or tokens_per_minute is not None:
        budget = budget or Budget()
        budget.keep_pace(requests_per_minute, tokens_per_minute)
    match = _SERVICE.match(what)
    service, address = (match[1], match[2]) if match else ("", what)
    model, _, url = address.removeprefix(":").partition("@")
    if service == "local":
        return _local(address.removeprefix(":"), {"budget": budget, **options})
    if service in ("anthropic", "anthropic-batch", "openai"):
        client_options: dict[str, Any] = {"budget": budget, "must_have_key": must_have_key, **_with_policy(options)}
        if url:
            client_options["base_url"] = url
        if service == "openai":
            return _openai(model, client_options)
        return _anthropic(service, model, client_options)
    if ":" in what or what in clients.names():
        return _own(what, options, budget)
    raise unknown_name(
        "language model",
        what,
        SERVICES,
        "Give 'anthropic:MODEL', 'openai:MODEL@URL', 'local:FOLDER', or package.module:name.",
    )


def _anthropic(service: str, model: str, client_options: dict[str, Any]) -> Client:
    from humor_env.llm.clients.anthropic import DEFAULT_MODEL, AnthropicClient
    from humor_env.llm.clients.batches import AnthropicBatchClient

    kind = AnthropicClient if service == "anthropic" else AnthropicBatchClient
    return kind(model or DEFAULT_MODEL, **_checked(kind, client_options))


def _openai(model: str, client_options: dict[str, Any]) -> Client:
    from humor_env.llm.clients.openai import OpenAIClient

    if not model:
        raise InvalidOption("An OpenAI-compatible server needs a model: 'openai:MODEL@http://127.0.0.1:8000/v1'.")
    return OpenAIClient(model, **_checked(OpenAIClient, client_options))


def _local(folder: str, options: Mapping[str, Any]) -> Client:
    from humor_env.llm.clients.local import LocalClient

    if not folder:
        raise InvalidOption("A local model needs a folder or a model's name: 'local:path/to/model'.")
    return LocalClient(folder, **_checked(LocalClient, dict(options)))


def _own(what: str, options: Mapping[str, Any], budget: Budget | None) -> Client:
    """A user-written client; if it does not take `budget`, it is wrapped to enforce the limits."""
    try:
        target = clients.resolve(what)
    except UnknownName as problem:
        module = what.partition(":")[0]
        hint = "" if module in sys.modules else did_you_mean(module, SERVICES)
        raise UnknownName(f"{problem}{hint}") from None
    if budget is None:
        return clients.make(what, **options)
    makes = inspect.isclass(target) or inspect.isroutine(target)
    if makes and "budget" in inspect.signature(target).parameters:
        return clients.make(what, **{"budget": budget, **options})
    return LimitedClient(clients.make(what, **options), budget)


def _with_policy(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the retry policy, gathered into one `policy`."""
    names = {field.name for field in dataclasses.fields(Policy)}
    policy_options = {name: value for name, value in options.items() if name in names}
    client_options = {name: value for name, value in options.items() if name not in names}
    return {**client_options, "policy": Policy(**policy_options)} if policy_options else client_options


def _checked(kind: Any, client_options: dict[str, Any]) -> dict[str, Any]:
    names = [name for name in inspect.signature(kind).parameters if name not in ("model", "api_key")]
    for name in client_options:
        if name not in names:
            pace = ("requests_per_minute", "tokens_per_minute")
            offered = sorted({*names, *pace, *(field.name for field in dataclasses.fields(Policy))} - {"policy"})
            raise InvalidOption(
                f"{kind.__name__} has no option '{name}'.{did_you_mean(name, offered)} Known: {', '.join(offered)}."
            )
    return client_options


def what_is_asked(table: Mapping[str, Any], name: str = "options", outer: str = "") -> dict[str, Any]:
    """The table, such as a critic's options or a whole spec, without options that only say how to ask a model
    (concurrency, limits, the place of the ledger). They may change when judging or a run is continued."""
    how = _OF_A_CRITIC if name in _TABLES else frozenset[str]()
    if name == "options" and outer in _TABLES:
        how = _OF_A_CLIENT
    question: dict[str, Any] = {}
    for key, value in table.items():
        if key in how and (key != "budget" or isinstance(value, Mapping)):
            continue
        if isinstance(value, Mapping):
            inner = what_is_asked(value, key, name)
            if inner or key not in _TABLES:
                question[key] = inner
        elif isinstance(value, list | tuple):
            question[key] = [what_is_asked(v, key, name) if isinstance(v, Mapping) else v for v in value]
        else:
            question[key] = value
    return question
