"""What every language model looks like to the rest of the project: a list of requests in, a list of replies out.

    request = Request(system="Rate the joke ...", data={"joke": text}, schema=SCHEMA)
    [reply] = client([request])
    reply.data                 # {"reason": ..., "wit": 4}, checked against the schema; or None, and then
    reply.error                # "refusal", "invalid", "overloaded", ... says why

The instructions (`system`) are ours. Everything untrusted is in `data`, which is sent as one JSON object in the user
turn and nowhere else, so that no joke can become an instruction by the way it is written.
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
    "invalid",  # the reply does not have the form that was asked for
    "rejected",  # the service will not take this request (400, 404, 413, 422)
    "overloaded",  # 408, 409, 429 or 5xx until the deadline
    "unreachable",  # no connection, or none that lasted, until the deadline
    "budget",  # not sent: a spending limit was reached
]

TRANSIENT: frozenset[str] = frozenset({"overloaded", "unreachable", "budget"})
"""Failures that say nothing of the request itself: a later run asks again."""


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a model.

    `schema` is the JSON schema of the reply (None: free text). `choices` are the symbols that the reply's `answer`
    field may have; a client with `probabilities` returns how likely each one is. `sample` tells equal requests
    apart that are meant to be asked more than once (votes, several tries of a teacher); it is never sent.
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
    """What came back. `data` is set only where the reply has the form that was asked for; `error` says why not.

    `replayed` marks a reply that cost nothing now: it was in the ledger, or was a duplicate within the batch.
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
"""Called with a request's index and its reply as soon as it is there, one at a time, from the client's own thread."""


@runtime_checkable
class Client(Protocol):
    """A language model. Calling it blocks until every request has a reply; `on_reply` sees each as it finishes.

    `name` says which service and model, and every setting that changes answers: it is part of the ledger's key.
    `probabilities` tells whether replies carry the probability of each of a request's `choices`.
    """

    name: str
    probabilities: bool

    def __call__(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]: ...

    def close(self) -> None: ...


# "<" opens tags and the control tokens of most chat formats (<|im_end|>, </s>, <start_of_turn>), "[" those of others
# ([INST]). In JSON both stand only inside strings where they match here, so the escape changes no value.
_MARKUP = re.compile(r"<|\[(?=/?[A-Z_]+\])")


def encode_data(data: Mapping[str, Any]) -> str:
    """`data` as JSON without anything that could be read as markup or that a reader would not see.

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
