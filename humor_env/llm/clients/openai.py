"""Any server that speaks OpenAI's chat completions: vLLM, Ollama, llama.cpp, `transformers serve`, OpenAI itself.

    client = OpenAIClient("my-model", base_url="http://127.0.0.1:8000/v1")

Your own server needs no key. OpenAI's own service gets the one in OPENAI_API_KEY; any other address gets a key (that
one, or the one in the variable named by `key_variable`) only if the user has allowed its host: see address.py. With
`probabilities=True` replies include the probability of each answer symbol, if the server returns log-probabilities
(vLLM and llama.cpp do; a server that ignores the request gives plain votes).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from humor_env.errors import CredentialError, MissingExtra
from humor_env.llm.budget import Budget, most_tokens, reported
from humor_env.llm.clients import address, background
from humor_env.llm.clients.failed_calls import failed_connection, from_status, garbled
from humor_env.llm.clients.retry import Caller, Policy
from humor_env.llm.clients.sdk_client import SdkClient
from humor_env.llm.prices import price_of
from humor_env.llm.protocol import Reply, Request
from humor_env.llm.replies import read
from humor_env.types import Usage

SERVICE = "api.openai.com"
OWN_KEY = "OPENAI_API_KEY"
_STOPS = {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}
_ANSWER = re.compile(r'"answer"\s*:\s*"')


class OpenAIClient(SdkClient):
    """`structured=False` leaves the schema out, for servers that refuse it; replies are checked against it anyway.

    An address other than OpenAI's own is part of `name`, and so of the ledger's key: two servers are two critics,
    whatever model they say they serve. `called` names a server whose address changes; `called=""` leaves the address
    out, as ledgers of version 0.1 did. `bare_name` is the name without `probabilities`, as ledgers before had it.
    `name_for` adds that a request's schema is left out.
    """

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
        key_variable: str = OWN_KEY,
        must_have_key: bool = True,
        called: str | None = None,
    ) -> None:
        super().__init__(policy, budget)
        self.model = model
        self._base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        self._own = address.is_own(self._base_url, SERVICE)
        self._keyed = self._may_send_key(base_url, key_variable)
        settings = "" if temperature is None else f" temperature={temperature}"
        at = called if called is not None or self._own or self._base_url is None else address.label(self._base_url)
        self.bare_name = f"openai:{model}{'@' + at if at else ''}{settings}"
        self.name = f"{self.bare_name} probabilities=true" if probabilities else self.bare_name
        self.former_name = f"openai:{model}{settings}"
        self.probabilities = probabilities
        self.price = price_of(model, prices)
        self._structured, self._temperature, self._key_variable = structured, temperature, key_variable
        if must_have_key:
            self._connect()

    def name_for(self, request: Request) -> str:
        return self.name if self._structured or request.schema is None else f"{self.name} structured=false"

    def parameters(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": request.system},
                {"role": "user", "content": request.user_text},
            ],
            # OpenAI's own models accept only the new name, most other servers only the old one.
            "max_completion_tokens" if self._own else "max_tokens": request.max_tokens,
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

    @property
    def where(self) -> str:
        """The service's name in messages."""
        return "OpenAI" if self._own or self._base_url is None else address.shown(self._base_url)

    def _may_send_key(self, api_key: str | None, variable: str) -> bool:
        """Whether a key is sent: never because of a spec alone, be it by the address or the variable's name."""
        if self._base_url is not None and address.may_have_key(self._base_url):
            return True
        return variable == OWN_KEY and (self._own or not api_key)

    def _connect(self) -> Any:
        try:
            import openai
        except ImportError:
            raise MissingExtra("This client needs the openai package: pip install 'humor-env[openai]'.") from None
        home = background.loop()
        with self._connecting:
            if self._sdk is not None and self._sdk_loop is home:
                return self._sdk
            key = os.environ.get(self._key_variable) if self._keyed else None
            if not key and self._own:
                if not self._keyed:
                    raise CredentialError(
                        f"The variable {self._key_variable} is sent only to hosts that you allow: set "
                        f"{address.ALLOW_KEY_HOSTS}={SERVICE} in the environment, or use {OWN_KEY}."
                    )
                raise CredentialError(
                    f"There is no key for OpenAI's service. Set {self._key_variable} in the environment, or give a "
                    "server of your own: 'openai:MODEL@http://127.0.0.1:8000/v1'."
                )
            # The SDK requires a key; the user's own server ignores it.
            self._sdk = openai.AsyncOpenAI(
                api_key=key or "none",
                base_url=self._base_url,
                timeout=self.policy.timeout,
                max_retries=0,
                http_client=address.http_client(openai, self.policy.timeout),
            )
            self._sdk_loop = home
            if self._caller is None or self._caller.home is not home:
                self._caller = Caller(
                    self._send, self.policy, self.budget, self.worst_case, key or "", self.where, home=home
                )
                if not self._own and self._base_url is not None:
                    self._caller.remedy = (
                        f"Start it (for example: vllm serve {self.model}, or ollama serve), or correct the address."
                    )
                    if not self._keyed:
                        self._caller.refused = address.no_key_was_sent(self._base_url, self._key_variable)
            return self._sdk

    async def _send(self, request: Request) -> Reply:
        import openai

        try:
            answer = await self._sdk.chat.completions.create(**self.parameters(request))
        except openai.APIStatusError as problem:
            body = problem.body if isinstance(problem.body, dict) else {}
            explanation = body.get("message") or body.get("detail") or "no explanation"
            headers = problem.response.headers
            if headers.get("location"):
                explanation = address.redirected(headers["location"])
            raise from_status(self.where, problem.status_code, str(explanation), headers.get("retry-after")) from None
        except openai.OpenAIError as problem:
            raise failed_connection(self.where, problem) from None
        choices = getattr(answer, "choices", None)
        if not isinstance(choices, list) or not choices or getattr(choices[0], "message", None) is None:
            # A web page, an error, nothing at all: no model answered, so it is not a verdict.
            raise garbled(self.where, "no choices")
        if getattr(choices[0], "finish_reason", None) == "error":
            # A gateway in front of several services reports a service's failure in place of its answer.
            raise garbled(self.where, "an error in place of a choice")
        return self._read(answer, request)

    def _read(self, answer: Any, request: Request) -> Reply:
        usage = self._usage(answer, request)
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
        probabilities = answer_probabilities(text, getattr(first, "logprobs", None), request.choices)
        return Reply(text, reply.data, reply.stop_reason, usage=usage, probabilities=probabilities)

    def _usage(self, answer: Any, request: Request) -> Usage:
        """The usage that the server reports; omitted or invalid counts are taken at their maximum."""
        counts = getattr(answer, "usage", None)
        input_tokens, output_tokens = reported(counts, "prompt_tokens"), reported(counts, "completion_tokens")
        input_tokens = input_tokens or most_tokens(request)  # 0 cannot be a prompt's count
        if output_tokens is None or (output_tokens == 0 and getattr(answer, "choices", None)):
            output_tokens = request.max_tokens
        cached = min(input_tokens, reported(getattr(counts, "prompt_tokens_details", None), "cached_tokens") or 0)
        # Discounts for cached input differ between services: the full price is the upper bound.
        cost = None if self.price is None else self.price.cost(input_tokens, output_tokens)
        return Usage(1, input_tokens, output_tokens, cached, cost)


def answer_probabilities(text: str, logprobs: Any, symbols: Sequence[str]) -> dict[str, float]:
    """How likely each symbol was as the value of "answer", normalised over the symbols; empty if unreadable."""
    try:
        return _answer_probabilities(text, logprobs, symbols)
    except (ArithmeticError, AttributeError, TypeError, ValueError):
        return {}  # the answer itself was read: it counts as a plain vote


def _answer_probabilities(text: str, logprobs: Any, symbols: Sequence[str]) -> dict[str, float]:
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
    # An infinite total comes from an infinite "log-probability", which Python's JSON allows.
    return {symbol: weight / total for symbol, weight in weights.items()} if 0 < total < math.inf else {}
