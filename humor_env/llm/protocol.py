"""The interface of every language model: a list of requests in, a list of replies out.

    request = Request(system="Rate the joke ...", data={"joke": text}, schema=SCHEMA)
    [reply] = client([request])
    reply.data                 # {"reason": ..., "wit": 4}, checked against the schema; or None, and then
    reply.error                # "refusal", "invalid", "overloaded", ... says why

The instructions (`system`) are ours. Everything untrusted is in `data`, which is sent as one JSON object in the user
turn and nowhere else, so that no joke can act as an instruction.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from humor_env.shared.control_tokens import escaped
from humor_env.types import NO_USAGE, Usage

ErrorKind = Literal[
    "refusal",  # the model declined; counted, never asked again
    "cut",  # the reply ended at the token limit
    "invalid",  # the reply does not have the requested form
    "rejected",  # the service rejects this request (400, 403, 413, 414, 422, 451)
    "overloaded",  # 408, 409, 429 or 5xx until the deadline
    "unreachable",  # no connection, or none that lasted, until the deadline; or an answer that is not about the request
    "budget",  # not sent: a spending limit was reached
]

TRANSIENT: frozenset[str] = frozenset({"overloaded", "unreachable", "budget"})
"""Failures that are not about the request itself: a later run asks again."""


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a model.

    `schema` is the JSON schema of the reply (None: free text). `choices` are the allowed values of the reply's
    `answer` field; a client with `probabilities` returns the probability of each. `sample` distinguishes equal requests
    that are meant to be sent more than once (votes, several tries of a teacher); it is never sent.
    """

    system: str
    data: Mapping[str, Any]
    schema: Mapping[str, Any] | None = None
    max_tokens: int = 300
    choices: tuple[str, ...] = ()
    sample: int = 0

    @property
    def user_text(self) -> str:
        """The user turn: `data` as JSON, and nothing else."""
        return encode_data(self.data)


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's reply. `data` is set only if the reply has the requested form; otherwise `error` says why not.

    `replayed` marks a reply that cost nothing now: from the ledger, or a duplicate within the batch.
    """

    text: str = ""
    data: Mapping[str, Any] | None = None
    stop_reason: str | None = None
    error: ErrorKind | None = None
    detail: str = ""
    usage: Usage = NO_USAGE
    probabilities: Mapping[str, float] = field(default_factory=dict)
    replayed: bool = False

    @property
    def failed(self) -> bool:
        return self.error is not None


OnReply = Callable[[int, Reply], None]
"""Called with a request's index and its reply as it arrives, one at a time, in the client's own thread."""


@runtime_checkable
class Client(Protocol):
    """A language model. Calling it blocks until every request has a reply; `on_reply` sees each as it finishes.

    `name` identifies service, model and every setting that changes answers: it is part of the ledger's key. A client
    with settings that change only the answers to some requests may have `name_for(request)`, which is used instead.
    `probabilities` says whether replies have the probability of each of a request's `choices`.
    """

    name: str
    probabilities: bool

    def __call__(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]: ...

    def close(self) -> None: ...


# "<" opens tags and the control tokens of most chat formats (<|im_end|>, </s>, <start_of_turn>), "[" those of others
# ([INST]). In JSON the matched ones are only inside strings, so the escape changes no value.
_MARKUP = re.compile(r"<|\[(?=/?[A-Z_]+\])")


def encode_data(data: Mapping[str, Any]) -> str:
    """`data` as JSON without anything that could be read as markup or is invisible to a reader.

    Control, format (zero-width, bidirectional) and private characters, lone surrogates, "<" and bracketed capitals
    are written as escapes: the value stays the same, and neither a chat format's control tokens nor hidden
    characters reach the model as such. Other scripts stay as they are.
    """
    text = _MARKUP.sub(lambda match: escaped(match[0]), json.dumps(data, ensure_ascii=False))
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(c) for c in text)


def _visible(character: str) -> str:
    if " " <= character <= "~" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return character
    return escaped(character)
