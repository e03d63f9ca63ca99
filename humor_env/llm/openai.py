"""Any server that speaks OpenAI's chat completions: vLLM, Ollama, llama.cpp, `transformers serve`, OpenAI itself.

    client = OpenAIClient("my-model", base_url="http://127.0.0.1:8000/v1")

A server of your own needs no key; others take it from OPENAI_API_KEY or from the variable that `key_variable` names.
With `probabilities=True` replies carry how likely each answer symbol was, where the server returns log-probabilities
(vLLM and llama.cpp do; a server that ignores the wish gives plain votes).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from humor_env.errors import CredentialError, MissingExtra
from humor_env.llm import background
from humor_env.llm.budget import Budget, most_tokens
from humor_env.llm.prices import price_of
from humor_env.llm.protocol import OnReply, Reply, Request
from humor_env.llm.replies import read
from humor_env.llm.retry import Caller, CallFailed, Policy, from_status
from humor_env.types import Usage

_STOPS = {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}
_ANSWER = re.compile(r'"answer"\s*:\s*"')


class OpenAIClient:
    """`structured=False` leaves the schema out, for servers that refuse it; replies are checked against it anyway."""

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        budget: Budget | None = None,
        prices: Mapping[str, Mapping[str, float]] | None = None,
        policy: Policy | None = None,
        structured: bool = True,
        probabilities: bool = False,
        temperature: float | None = None,
        key_variable: str = "OPENAI_API_KEY",
        must_have_key: bool = True,
    ) -> None:
        self.model = model
        self.name = f"openai:{model}" + ("" if temperature is None else f" temperature={temperature}")
        self.probabilities = probabilities
        self.price = price_of(model, prices)
        self.policy = policy or Policy()
        self.budget = budget or Budget()
        self._base_url = base_url or os.environ.get("OPENAI_BASE_URL")
        self._structured, self._temperature, self._key_variable = structured, temperature, key_variable
        self._sdk: Any = None
        self._sdk_loop: Any = None
        if must_have_key:
            self._connect()

    def __repr__(self) -> str:
        return f"OpenAIClient({self.name!r})"

    def __call__(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        sdk = self._connect()
        return Caller(self._send, self.policy, self.budget, self.worst_case, sdk.api_key).ask(requests, on_reply)

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
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": request.system},
                {"role": "user", "content": request.user_text},
            ],
            # OpenAI's own models know only the new name, most other servers only the old one.
            "max_completion_tokens" if self._base_url is None else "max_tokens": request.max_tokens,
        }
        if self._temperature is not None:
            body["temperature"] = self._temperature
        if request.schema is not None and self._structured:
            form = {"name": "reply", "schema": dict(request.schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        if request.choices and self.probabilities:
            body |= {"logprobs": True, "top_logprobs": 20}
        return body

    def worst_case(self, request: Request) -> tuple[int, float | None]:
        read_tokens = most_tokens(request)
        cost = None if self.price is None else self.price.cost(read_tokens, request.max_tokens)
        return read_tokens + request.max_tokens, cost

    def _unseen(self) -> Usage:
        """A call of which the service reported nothing. The budget keeps its worst case."""
        return Usage(1, cost=None if self.price is None else 0.0)

    def _connect(self) -> Any:
        try:
            import openai
        except ImportError:
            raise MissingExtra("This client needs the openai package: pip install 'humor-env[openai]'.") from None
        home = background.loop()
        if self._sdk is None or self._sdk_loop is not home:
            key = os.environ.get(self._key_variable)
            host = urlsplit(self._base_url or "").hostname
            if not key and (self._base_url is None or host == "api.openai.com"):
                raise CredentialError(
                    f"There is no key for OpenAI's service. Set {self._key_variable} in the environment, or give a "
                    "server of your own: 'openai:MODEL@http://127.0.0.1:8000/v1'."
                )
            # The SDK insists on some key; a server of one's own does not look at it.
            self._sdk = openai.AsyncOpenAI(
                api_key=key or "none", base_url=self._base_url, timeout=self.policy.timeout, max_retries=0
            )
            self._sdk_loop = home
        return self._sdk

    async def _send(self, request: Request) -> Reply:
        import openai

        try:
            answer = await self._sdk.chat.completions.create(**self.parameters(request))
        except openai.APIStatusError as problem:
            body = problem.body if isinstance(problem.body, dict) else {}
            said = body.get("message") or body.get("detail") or "no explanation"
            headers = problem.response.headers
            raise from_status("The server", problem.status_code, str(said), headers.get("retry-after")) from None
        except openai.OpenAIError as problem:
            raise CallFailed("unreachable", f"The server: {type(problem).__name__}", billed_unknown=True) from None
        except (ValueError, TypeError, AttributeError) as problem:
            return Reply(error="invalid", detail=f"unreadable: {type(problem).__name__}", usage=self._unseen())
        return self._read(answer, request)

    def _read(self, answer: Any, request: Request) -> Reply:
        usage = self._usage(answer)
        choices = getattr(answer, "choices", None)
        first = choices[0] if isinstance(choices, list) and choices else None
        message = getattr(first, "message", None)
        if message is None:
            return Reply(error="invalid", detail="the answer has no choices", usage=usage)
        if isinstance(getattr(message, "refusal", None), str):
            return Reply(message.refusal, stop_reason="refusal", error="refusal", usage=usage)
        content = getattr(message, "content", None)
        text = content if isinstance(content, str) else ""
        stop = getattr(first, "finish_reason", None)
        reply = read(text, _STOPS.get(stop, stop) if isinstance(stop, str) else None, request, usage)
        if reply.failed or not request.choices or not self.probabilities:
            return reply
        found = answer_probabilities(text, getattr(first, "logprobs", None), request.choices)
        return Reply(text, reply.data, reply.stop_reason, usage=usage, probabilities=found)

    def _usage(self, answer: Any) -> Usage:
        used = getattr(answer, "usage", None)

        def count(holder: Any, name: str) -> int:
            value = getattr(holder, name, None)
            return value if isinstance(value, int) and value >= 0 else 0

        entered, left = count(used, "prompt_tokens"), count(used, "completion_tokens")
        cached = min(entered, count(getattr(used, "prompt_tokens_details", None), "cached_tokens"))
        # Discounts for cached input differ between services: the full price is the honest upper end.
        cost = None if self.price is None or used is None else self.price.cost(entered, left)
        return Usage(1, entered, left, cached, cost)


def answer_probabilities(text: str, logprobs: Any, symbols: Sequence[str]) -> dict[str, float]:
    """How likely each symbol was as the value of "answer", normalised over the symbols; empty where not to be read."""
    content = getattr(logprobs, "content", None)
    places = list(_ANSWER.finditer(text))
    if not content or not places or "".join(token.token for token in content) != text:
        return {}
    position, start = 0, places[-1].end()
    for token in content:
        if position + len(token.token) > start:
            break
        position += len(token.token)
    before = token.token[: start - position]
    weights = dict.fromkeys(symbols, 0.0)
    for other in token.top_logprobs:
        if other.token.startswith(before):
            value = other.token[len(before) :].split('"')[0]
            if value in weights:
                weights[value] += math.exp(other.logprob)
    total = sum(weights.values())
    return {symbol: weight / total for symbol, weight in weights.items()} if total > 0 else {}
