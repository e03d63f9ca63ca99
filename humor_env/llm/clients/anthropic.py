"""Anthropic's Messages API.

    client = AnthropicClient("claude-haiku-4-5")         # the key comes from ANTHROPIC_API_KEY
    replies = client([Request(system=RUBRIC, data={"joke": text}, schema=SCHEMA)])

The instructions are marked for the service's prompt cache, the data is the user turn, and a schema is sent as
structured output. No sampling settings are sent, because current models refuse them: a second run gets the same
answers from the ledger, not from a temperature of 0.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from humor_env.errors import CredentialError
from humor_env.llm.budget import Budget, most_tokens, reported
from humor_env.llm.clients import address, background
from humor_env.llm.clients.failed_calls import CallFailed, failed_connection, from_status, garbled
from humor_env.llm.clients.retry import Caller, Policy
from humor_env.llm.clients.sdk_client import SdkClient
from humor_env.llm.prices import price_of
from humor_env.llm.protocol import Reply, Request
from humor_env.llm.replies import read
from humor_env.types import Usage

SERVICE = "api.anthropic.com"
DEFAULT_MODEL = "claude-haiku-4-5"  # small, and its price is known, so limits in money work
NO_KEY = (
    "There is no key for Anthropic's service. Set ANTHROPIC_API_KEY in the environment, or choose a model that needs "
    "none: 'openai:MODEL@http://127.0.0.1:8000/v1' (a server of your own) or 'local:FOLDER'. A run whose ledger is "
    "complete replays without a key."
)


class AnthropicClient(SdkClient):
    """`effort` and `thinking` are sent only if given, because models differ in what they allow.

    An address other than the service's own is part of `name`, and so of the ledger's key: two servers are two critics,
    whatever model they say they serve. `called` names a server whose address changes; `called=""` leaves the address
    out, as ledgers of version 0.1 did.
    """

    probabilities = False

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        base_url: str | None = None,
        budget: Budget | None = None,
        prices: Mapping[str, Mapping[str, float]] | None = None,
        policy: Policy | None = None,
        effort: str | None = None,
        thinking: str | None = None,
        cache_ttl: str = "1h",
        must_have_key: bool = True,
        called: str | None = None,
        api_key: str | None = None,
    ) -> None:
        super().__init__(policy, budget)
        self.model = model
        settings = "".join(f" {k}={v}" for k, v in (("effort", effort), ("thinking", thinking)) if v is not None)
        self._base_url = base_url or os.environ.get("ANTHROPIC_BASE_URL") or None
        self._own = address.is_own(self._base_url, SERVICE)
        # The key may go to an address that the user chose (by the environment or an allowed host).
        self._keyed = self._own or not base_url or api_key is not None or address.may_have_key(base_url)
        at = called if called is not None or self._own or self._base_url is None else address.label(self._base_url)
        self.name = f"anthropic:{model}{'@' + at if at else ''}{settings}"
        self.former_name = f"anthropic:{model}{settings}"
        self.price = price_of(model, prices)
        self._effort, self._thinking, self._cache_ttl = effort, thinking, cache_ttl
        self._api_key = api_key
        if must_have_key:
            self._connect()

    def parameters(self, request: Request) -> dict[str, Any]:
        """The request body. Everything untrusted is in the one user turn, as JSON."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": request.max_tokens,
            "system": [
                {
                    "type": "text",
                    "text": request.system,
                    "cache_control": {"type": "ephemeral", "ttl": self._cache_ttl},
                }
            ],
            "messages": [{"role": "user", "content": request.user_text}],
        }
        output: dict[str, Any] = {}
        if self._effort is not None:
            output["effort"] = self._effort
        if request.schema is not None:
            output["format"] = {"type": "json_schema", "schema": dict(request.schema)}
        if output:
            body["output_config"] = output
        if self._thinking is not None:
            body["thinking"] = {"type": self._thinking}
        return body

    def worst_case(self, request: Request) -> tuple[int, float | None]:
        read = most_tokens(request)
        cost = None if self.price is None else self.price.at_most(read, request.max_tokens)
        return read + request.max_tokens, cost

    @property
    def where(self) -> str:
        """The service's name in messages."""
        return "Anthropic" if self._own or self._base_url is None else address.shown(self._base_url)

    def _connect(self) -> Any:
        """The SDK's client, remade if the background loop changed (after a fork)."""
        import anthropic

        home = background.loop()
        with self._connecting:
            if self._sdk is not None and self._sdk_loop is home:
                return self._sdk
            try:
                sdk = anthropic.AsyncAnthropic(
                    # Any explicit key keeps the SDK from looking for one in the environment.
                    api_key=self._api_key if self._keyed else "none",
                    base_url=self._base_url,
                    timeout=self.policy.timeout,
                    max_retries=0,
                    http_client=address.http_client(anthropic, self.policy.timeout),
                )
            except anthropic.AnthropicError as problem:
                # A profile named in the environment that cannot be read. Its message may quote the file.
                raise CredentialError(f"The stored credentials fail ({type(problem).__name__}). {NO_KEY}") from None
            if not (sdk.api_key or sdk.auth_token or sdk.credentials):
                raise CredentialError(NO_KEY)
            self._sdk, self._sdk_loop = sdk, home
            if self._caller is None or self._caller.home is not home:
                secret = (sdk.api_key or sdk.auth_token or "") if self._keyed else ""
                self._caller = Caller(
                    self._send, self.policy, self.budget, self.worst_case, secret, self.where, home=home
                )
                if not self._keyed and self._base_url is not None:
                    self._caller.refused = address.no_key_was_sent(self._base_url, "ANTHROPIC_API_KEY")
            return sdk

    async def _send(self, request: Request) -> Reply:
        import anthropic

        try:
            message = await self._sdk.messages.create(**self.parameters(request))
        except anthropic.APIStatusError as problem:
            explanation = problem.api_message or problem.type or "no explanation"
            headers = problem.response.headers
            if headers.get("location"):
                explanation = address.redirected(headers["location"])
            raise from_status(self.where, problem.status_code, str(explanation), headers.get("retry-after")) from None
        except anthropic.CredentialsError:
            raise CallFailed("rejected", "Anthropic: the stored credentials cannot be used", status=401) from None
        except anthropic.AnthropicError as problem:
            raise failed_connection(self.where, problem) from None
        if getattr(message, "type", None) == "error" or not isinstance(getattr(message, "content", None), list):
            # A web page, an error, nothing at all: no model answered, so it is not a verdict.
            raise garbled(self.where, "no content")
        return read_message(message, request, self.usage(message, request))

    def usage(self, message: Any, request: Request, batch: bool = False) -> Usage:
        """Tokens and dollars of one message. `input_tokens` counts all input, including the cached part.

        Fields that the service omits, or that cannot be counts, are taken at their maximum.
        """
        counts = getattr(message, "usage", None)
        most = most_tokens(request)
        plain = reported(counts, "input_tokens")
        read, written = _optional(counts, "cache_read_input_tokens"), _optional(counts, "cache_creation_input_tokens")
        output = reported(counts, "output_tokens")
        if output is None or (output == 0 and getattr(message, "content", None)):
            output = request.max_tokens
        if plain is None or read is None or written is None or plain + read + written == 0:
            price = self.price
            cost = None if price is None else price.at_most(most, output) / (2 if batch else 1)
            return Usage(1, most, output, 0, cost)
        details = getattr(counts, "cache_creation", None)
        hour = None if details is None else reported(details, "ephemeral_1h_input_tokens")
        if hour is None:
            # Without a breakdown, the price of the requested cache; with an invalid one, the higher price.
            hour = written if self._cache_ttl == "1h" or details is not None else 0
        hour = min(hour, written)
        cost = None if self.price is None else self.price.cost(plain, output, read, written - hour, hour, batch)
        return Usage(1, plain + read + written, output, read, cost)


def _optional(counts: object, name: str) -> int | None:
    """A count that a service may omit if it is 0; None if it is present but invalid."""
    return 0 if getattr(counts, name, None) is None else reported(counts, name)


def read_message(message: Any, request: Request, usage: Usage) -> Reply:
    """A Reply from a message of the Messages API. Anything unusual is an error, never a guess."""
    stop = getattr(message, "stop_reason", None)
    blocks = getattr(message, "content", None)
    if not isinstance(blocks, list):
        return Reply(error="invalid", detail="the message has no content", usage=usage)
    texts = [getattr(block, "text", None) for block in blocks if getattr(block, "type", None) == "text"]
    text = "".join(part for part in texts if isinstance(part, str))
    return read(text, stop, request, usage)
