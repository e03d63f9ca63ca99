"""The ledger's storage format: its tables, a reply's key, and conversion between replies and rows.

    key = request_key("scorer 3", "anthropic:claude-haiku-4-5", request)      # a hash of all that the reply depends on
    row = row_of(key, "scorer 3", "anthropic:claude-haiku-4-5", request, reply)
    reply_if_whole(reply_columns(row))                                        # the reply again

`ledger.py` opens the file, waits for its locks and keeps pending replies.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from humor_env.llm.protocol import TRANSIENT, ErrorKind, Reply, Request
from humor_env.types import Usage


@dataclass(frozen=True, slots=True)
class Call:
    """One call: the question, the reply or error, the time, and the cost."""

    purpose: str
    client: str
    instructions: str
    asked: str
    answered: str
    error: str | None
    cost: float | None
    input_tokens: int
    output_tokens: int
    stored_at: float


Row = tuple[Any, ...]
"""The columns of `replies` in their order."""

TABLE_NAMES = {"replies", "instructions", "accounts", "batch_items"}
TABLES = """
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY, purpose TEXT NOT NULL, client TEXT NOT NULL, instructions TEXT NOT NULL, asked TEXT NOT NULL,
    text TEXT NOT NULL, data TEXT, stop_reason TEXT, error TEXT, detail TEXT NOT NULL, probabilities TEXT NOT NULL,
    calls INTEGER NOT NULL, input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL, cost REAL, stored_at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS instructions (hash TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS accounts (
    scope TEXT PRIMARY KEY, calls INTEGER NOT NULL, tokens INTEGER NOT NULL, cost REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batch_items (key TEXT PRIMARY KEY, batch TEXT NOT NULL) WITHOUT ROWID;
"""
# In `batch_items`, before a key: a row that says how far its batch is. Versions before this one pass it by.
BATCH_STATE = "state of "
INSERT_BATCH_ITEM = "INSERT OR REPLACE INTO batch_items VALUES (?, ?)"
REPLY_COLUMNS = (
    "text, data, stop_reason, error, detail, probabilities, calls, input_tokens, output_tokens, cached_tokens, cost"
)
# Of two replies to one key the first counts, unless it was a transient failure or the last value (`over`) is true.
# Their costs are added up.
INSERT_REPLY = (
    "INSERT INTO replies VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT(key) DO UPDATE SET"
    " text=excluded.text, data=excluded.data, stop_reason=excluded.stop_reason, error=excluded.error,"
    " detail=excluded.detail, probabilities=excluded.probabilities, calls=calls+excluded.calls,"
    " input_tokens=input_tokens+excluded.input_tokens, output_tokens=output_tokens+excluded.output_tokens,"
    " cached_tokens=cached_tokens+excluded.cached_tokens, cost=cost+excluded.cost,"
    f" stored_at=excluded.stored_at WHERE error IN ({', '.join(map(repr, sorted(TRANSIENT)))}) OR ?"
)


def request_key(purpose: str, client: str, request: Request) -> str:
    """The hash under which a reply is stored. `purpose` names the critic and its version."""
    parts = [
        purpose,
        client,
        request.system,
        request.data,
        request.schema,
        request.max_tokens,
        request.choices,
        request.sample,
    ]
    # The order of keys in `data` counts: {"1": a, "2": b} and its reverse are different questions.
    text = json.dumps(parts, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def row_of(key: str, purpose: str, client: str, request: Request, reply: Reply) -> Row:
    usage = reply.usage
    return (
        key,
        purpose,
        client,
        hashlib.sha256(request.system.encode()).hexdigest()[:16],
        request.user_text,
        _storable(reply.text),
        None if reply.data is None else json.dumps(reply.data),
        None if reply.stop_reason is None else _storable(reply.stop_reason),
        reply.error,
        _storable(reply.detail),
        json.dumps(dict(reply.probabilities)),
        usage.calls,
        usage.input_tokens,
        usage.output_tokens,
        usage.cached_tokens,
        usage.cost,
        time.time(),
    )


def _storable(text: str) -> str:
    """Text for UTF-8 storage: a lone surrogate is escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def reply_columns(row: Row) -> Row:
    """The columns REPLY_COLUMNS of a whole row."""
    return row[5:16]


def reply_if_whole(row: Sequence[Any]) -> Reply | None:
    """The reply in a row; None if the row is invalid."""
    try:
        reply = reply_of(row)
        usage = reply.usage
        whole = (
            isinstance(reply.text, str)
            and isinstance(reply.detail, str)
            and (reply.error is None or reply.error in get_args(ErrorKind))
            and (reply.data is None or isinstance(reply.data, dict))
            and all(type(n) is int and n >= 0 for n in (usage.calls, usage.input_tokens, usage.output_tokens))
            and all(0 <= p <= 1 for p in reply.probabilities.values())
        )
    except (TypeError, ValueError, AttributeError, RecursionError):
        return None
    return reply if whole else None


def reply_of(row: Sequence[Any]) -> Reply:
    text, data, stop_reason, error, detail, probabilities, calls, read, written, cached, cost = row
    return Reply(
        text,
        None if data is None else json.loads(data),
        stop_reason,
        error,
        detail,
        Usage(calls, read, written, cached, cost),
        json.loads(probabilities),
    )
