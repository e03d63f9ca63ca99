"""Anthropic's Messages API.

    client = AnthropicClient("claude-haiku-4-5")         # the key comes from ANTHROPIC_API_KEY
    replies = client([Request(system=RUBRIC, data={"joke": text}, schema=SCHEMA)])

The instructions are marked for the service's prompt cache, the data is the user turn, and a schema is sent as
structured output. No sampling settings are sent: current models refuse them. Equal answers on a second run come from
the ledger, never from a temperature of 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from humor_env.errors import CredentialError
from humor_env.llm import background
from humor_env.llm.budget import Budget, most_tokens
from humor_env.llm.prices import price_of
from humor_env.llm.protocol import OnReply, Reply, Request
from humor_env.llm.replies import read
from humor_env.llm.retry import Caller, CallFailed, Policy, from_status
from humor_env.types import Usage

DEFAULT_MODEL = "claude-haiku-4-5"  # small, and its price is known: limits in money hold
NO_KEY = (
    "There is no key for Anthropic's service. Set ANTHROPIC_API_KEY in the environment, or choose a model that needs "
    "none: 'openai:MODEL@http://127.0.0.1:8000/v1' (a server of your own) or 'local:FOLDER'. A run whose ledger is "
    "complete replays without a key."
)


class AnthropicClient:
    """`effort` and `thinking` are sent only where given: what a model allows differs."""

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
        api_key: str | None = None,
    ) -> None:
        self.model = model
        settings = {"effort": effort, "thinking": thinking}
        self.name = f"anthropic:{model}" + "".join(f" {k}={v}" for k, v in settings.items() if v is not None)
        self.price = price_of(model, prices)
        self.policy = policy or Policy()
        self.budget = budget or Budget()
        self._base_url, self._effort, self._thinking, self._cache_ttl = base_url, effort, thinking, cache_ttl
        self._sdk: Any = None
        self._sdk_loop: Any = None
        self._api_key = api_key
        if must_have_key:
            self._connect()

    def __repr__(self) -> str:
        return f"AnthropicClient({self.name!r})"

    def __call__(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        sdk = self._connect()
        caller = Caller(self._send, self.policy, self.budget, self.worst_case, sdk.api_key or sdk.auth_token or "")
        return caller.ask(requests, on_reply)

    def close(self) -> None:
        sdk, self._sdk = self._sdk, None
        if sdk is not None and self._sdk_loop is background.loop():
            background.run(sdk.close())

    @property
    def lacks_key(self) -> bool:
        """Whether a call would fail for want of a key."""
        try:
            self._connect()
        except CredentialError:
            return True
        return False

    def parameters(self, request: Request) -> dict[str, Any]:
        """The body that is sent. All that is untrusted stands in the one user turn, as JSON."""
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

    def _unseen(self) -> Usage:
        """A call of which the service reported nothing. The budget keeps its worst case."""
        return Usage(1, cost=None if self.price is None else 0.0)

    def _connect(self) -> Any:
        """The SDK's client, made anew where the background loop changed (after a fork)."""
        import anthropic

        home = background.loop()
        if self._sdk is None or self._sdk_loop is not home:
            try:
                sdk = anthropic.AsyncAnthropic(
                    api_key=self._api_key, base_url=self._base_url, timeout=self.policy.timeout, max_retries=0
                )
            except anthropic.AnthropicError as problem:
                # A profile that is named in the environment and cannot be read. Its message may quote the file.
                raise CredentialError(f"The stored credentials fail ({type(problem).__name__}). {NO_KEY}") from None
            if not (sdk.api_key or sdk.auth_token or sdk.credentials):
                raise CredentialError(NO_KEY)
            self._sdk, self._sdk_loop = sdk, home
        return self._sdk

    async def _send(self, request: Request) -> Reply:
        import anthropic

        try:
            message = await self._sdk.messages.create(**self.parameters(request))
        except anthropic.APIStatusError as problem:
            said = problem.api_message or problem.type or "no explanation"
            headers = problem.response.headers
            raise from_status("Anthropic", problem.status_code, str(said), headers.get("retry-after")) from None
        except anthropic.APIConnectionError as problem:
            # The class only: the exception itself holds the request, and the request holds the key.
            raise CallFailed("unreachable", f"Anthropic: {type(problem).__name__}", billed_unknown=True) from None
        except anthropic.CredentialsError:
            raise CallFailed("rejected", "Anthropic: the stored credentials cannot be used", status=401) from None
        except anthropic.AnthropicError as problem:
            raise CallFailed("unreachable", f"Anthropic: {type(problem).__name__}", billed_unknown=True) from None
        except (ValueError, TypeError, AttributeError) as problem:
            # The body was not the JSON it said it was. It was paid for, so it counts as a reply of the wrong form.
            return Reply(error="invalid", detail=f"unreadable: {type(problem).__name__}", usage=self._unseen())
        return read_message(message, request, self.usage(message))

    def usage(self, message: Any, batch: bool = False) -> Usage:
        """Tokens and dollars of one message. `input_tokens` is all that was read, the cached part included."""
        used = getattr(message, "usage", None)

        def count(name: str) -> int:
            value = getattr(used, name, None)
            return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0

        plain, read, written = (
            count("input_tokens"),
            count("cache_read_input_tokens"),
            count("cache_creation_input_tokens"),
        )
        hour = getattr(getattr(used, "cache_creation", None), "ephemeral_1h_input_tokens", None)
        hour = hour if isinstance(hour, int) else (written if self._cache_ttl == "1h" else 0)
        cost = None
        if self.price is not None and used is not None:
            cost = self.price.cost(plain, count("output_tokens"), read, written - hour, hour, batch)
        return Usage(1, plain + read + written, count("output_tokens"), read, cost)


def read_message(message: Any, request: Request, usage: Usage) -> Reply:
    """A message of the Messages API as a Reply. Anything out of the ordinary is an error, never a guess."""
    stop = getattr(message, "stop_reason", None)
    blocks = getattr(message, "content", None)
    if not isinstance(blocks, list):
        return Reply(error="invalid", detail="the message has no content", usage=usage)
    texts = [getattr(block, "text", None) for block in blocks if getattr(block, "type", None) == "text"]
    text = "".join(part for part in texts if isinstance(part, str))
    return read(text, stop, request, usage)
