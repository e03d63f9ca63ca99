"""The strings that name a language model, and the options of each: the tables of docs/first-real-student.md.

    print(clients_table(meanings))

Options and defaults are read from the clients' signatures, so that the page cannot be out of date; the meaning of each
is one line in docs/meanings.toml.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from typing import Any, Protocol

from humor_env.llm.clients.retry import Policy
from humor_env.llm.factory import SERVICES

# Set by the string itself, by the run, or in Python only.
_ELSEWHERE = ("model", "base_url", "api_key", "budget", "policy", "must_have_key", "ledger")
ROWS = {
    "anthropic": ("anthropic:MODEL", "Anthropic's service", "`ANTHROPIC_API_KEY`"),
    "anthropic-batch": (
        "anthropic-batch:MODEL",
        "its batch service: half the price, an answer within a day; to judge files, not to train",
        "`ANTHROPIC_API_KEY`",
    ),
    "openai": (
        "openai:MODEL@URL",
        "any server that speaks OpenAI's chat completions: vLLM, llama.cpp, Ollama; without `@URL` OpenAI's own",
        "none for a server of your own; `OPENAI_API_KEY` for OpenAI's",
    ),
    "local": ("local:FOLDER", "a Hugging Face model in this process, by folder or name", "none"),
}
_PACE = {"requests_per_minute": None, "tokens_per_minute": None}


class HasMeanings(Protocol):
    def of(self, table: str, name: str) -> str: ...


def options_of(service: str) -> dict[str, Any]:
    """The options that a spec may give to this client, with their defaults."""
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(_class_of(service)).parameters.items()
        if name not in _ELSEWHERE
    }
    retries = {field.name: field.default for field in dataclasses.fields(Policy)} if service != "local" else {}
    pace = _PACE if service != "anthropic-batch" else {}  # a batch service has its own limits
    return {**defaults, **retries, **pace}


def _class_of(service: str) -> type:
    from humor_env.llm.clients.anthropic import AnthropicClient
    from humor_env.llm.clients.batches import AnthropicBatchClient
    from humor_env.llm.clients.local import LocalClient
    from humor_env.llm.clients.openai import OpenAIClient

    kinds: dict[str, type] = {
        "anthropic": AnthropicClient,
        "anthropic-batch": AnthropicBatchClient,
        "openai": OpenAIClient,
        "local": LocalClient,
    }
    return kinds[service]


def clients_table(meanings: HasMeanings) -> str:
    """One row for each kind of string, then one for each option."""
    rows = ["| `client = ` | who answers | key |", "|---|---|---|"]
    rows += [f'| `"{ROWS[service][0]}"` | {ROWS[service][1]} | {ROWS[service][2]} |' for service in SERVICES]
    rows += ["", "| option | default | for | meaning |", "|---|---|---|---|"]
    options = {service: options_of(service) for service in SERVICES}
    for name in dict.fromkeys(name for names in options.values() for name in names):
        having = [service for service in SERVICES if name in options[service]]
        who = "all" if len(having) == len(SERVICES) else ", ".join(f"`{service}`" for service in having)
        default = options[having[0]][name]
        default_text = "none" if default is None else f"`{json.dumps(default)}`"
        rows.append(f"| `{name}` | {default_text} | {who} | {meanings.of('clients', name)} |")
    return "\n".join(rows)
