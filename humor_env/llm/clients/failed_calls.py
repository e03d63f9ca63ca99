"""What a failed call means: how clients report failures to the retry loop (`retry.py`).

    raise from_status("Anthropic", 529, "overloaded", headers.get("retry-after"))
    raise garbled("the server", "not JSON")               # an answer came, but it is not a message

Services repeat keys in their messages: `redact` removes them before anything is shown or stored.
"""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime
from typing import Literal

from humor_env.llm.clients import address
from humor_env.llm.protocol import ErrorKind
from humor_env.shared.json_lines import NOT_JSON

Trouble = Literal["absent", "timeout", "garbled"]
"""No connection; no answer in time; an answer that is not a message."""

ODD_ANSWER = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What reading an answer raises that holds something other than it should, such as a number of 400 digits."""


class CallFailed(Exception):
    """One attempt failed. `billed_unknown`: the service may have done the work and charged for it."""

    def __init__(
        self,
        kind: ErrorKind,
        detail: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        billed_unknown: bool = False,
        trouble: Trouble | None = None,
    ) -> None:
        super().__init__(detail)
        self.trouble = trouble
        self.kind, self.detail, self.status = kind, detail, status
        self.retry_after, self.billed_unknown = retry_after, billed_unknown


SHORTEST_KEY = 8
ABOUT_THE_REQUEST = (400, 403, 413, 414, 422, 451)


def garbled(service: str, what: str) -> CallFailed:
    """For an answer that is not a message: a transport error, though the service may have charged."""
    return CallFailed(
        "unreachable", f"{service}: the answer is no message ({what})"[:300], billed_unknown=True, trouble="garbled"
    )


def lasting_kind(failure: CallFailed) -> ErrorKind:
    """The kind of failure to keep. A rejection that is not about the request, such as a redirect to a gateway's log-in
    page or a 404, is no answer to it: a later run asks again."""
    about = failure.status is None or failure.status in ABOUT_THE_REQUEST
    return failure.kind if failure.kind != "rejected" or about else "unreachable"


def from_status(service: str, status: int, message: str, retry_after: str | None = None) -> CallFailed:
    """The CallFailed for an HTTP status."""
    transient = status in (408, 409, 429) or status >= 500
    timeout = status in (408, 504)
    return CallFailed(
        "overloaded" if transient else "rejected",
        f"{service} answered {status}: {message}"[:300],
        status=status,
        retry_after=parse_retry_after(retry_after),
        # A gateway's 504 or 502 does not say what happened behind it.
        billed_unknown=status in (408, 502, 504),
        trouble="timeout" if timeout else None,
    )


def failed_connection(where: str, problem: Exception) -> CallFailed:
    """The CallFailed for an SDK's error that is not an answer of the service. Only the classes of the error and its
    cause are kept: the error holds the request, and that holds the key."""
    cause = address.reason_of(problem)
    if address.never_connected(problem):
        return CallFailed("unreachable", f"{where}: {cause or type(cause).__name__}", trouble="absent")
    if isinstance(cause, NOT_JSON) or type(cause).__name__ == "DecodingError":
        return garbled(where, str(cause) or type(cause).__name__)
    trouble: Trouble | None = "timeout" if "Timeout" in type(problem).__name__ else None
    return CallFailed("unreachable", f"{where}: {type(problem).__name__}", billed_unknown=True, trouble=trouble)


def parse_retry_after(value: str | None) -> float | None:
    """Seconds from a `retry-after` header, a number or a date; None if absent or invalid."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, ArithmeticError):
            # The year 99999999999 does not fit a date.
            return None
    return seconds if seconds >= 0 and seconds == seconds else None


def redact(text: str, *secrets: str | None) -> str:
    """`text` without keys, which services repeat in their error messages. A value shorter than any real key ("1", for
    a server that checks none) stays: removing it would garble addresses and numbers."""
    for secret in secrets:
        if secret and len(secret) >= SHORTEST_KEY:
            text = text.replace(secret, "[key]")
    return re.sub(r"\b(?:sk|key)-[A-Za-z0-9_*\-]{6,}|(?i:bearer)\s+\S+", "[key]", text)
