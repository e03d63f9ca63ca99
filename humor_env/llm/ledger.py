"""Every reply that was ever paid for, on disk, before it is used.

    ledger = Ledger("verdicts.sqlite")
    ledger.find(keys)          # what is known already
    ledger.put(key, ...)       # stored at once; a killed process loses only calls in the air

A reply's key is a hash of all that it depends on: who asks (critic and version), which model with which settings, the
instructions, the texts in their order, the form of the reply. So a joke is paid for once, and a finished run replays
from its ledger, without a key and with the same numbers. The file is SQLite in WAL mode: several processes may
share it, and where two ask the same thing at once, both use what was stored first. It holds texts and replies; keys
never.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from humor_env.errors import InvalidOption
from humor_env.llm.budget import Account
from humor_env.llm.protocol import TRANSIENT, Reply, Request
from humor_env.types import Usage

_FORMAT = 1
_TABLES = """
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
_REPLY = (
    "text, data, stop_reason, error, detail, probabilities, calls, input_tokens, output_tokens, cached_tokens, cost"
)


@dataclass(frozen=True, slots=True)
class Stored:
    """A reply as it lies in the ledger, with what was asked: who asked whom, the instructions, the data as sent."""

    purpose: str
    client: str
    instructions: str
    data: Mapping[str, Any]
    reply: Reply


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
    # Order of keys in `data` counts: {"1": a, "2": b} is another question than the other way round anyway.
    text = json.dumps(parts, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Ledger:
    """One SQLite file, or ":memory:" for the life of the process. Safe to use from several threads."""

    def __init__(self, path: str | Path = ":memory:") -> None:
        self.path = str(path)
        if self.path != ":memory:":
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._instructions: set[str] = set()
        try:
            self._db = sqlite3.connect(self.path, timeout=60.0, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            # With WAL this loses nothing when the process dies; only a power cut may cost the last moments.
            self._db.execute("PRAGMA synchronous = NORMAL")
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found == 0:
                self._db.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {_FORMAT}; COMMIT;")
        except sqlite3.DatabaseError as problem:
            raise InvalidOption(f"'{self.path}' cannot be used as a ledger: {problem}. Give another path.") from None
        if found not in (0, _FORMAT):
            raise InvalidOption(
                f"The ledger '{self.path}' has format {found}; this version reads format {_FORMAT}. Give another path."
            )

    def __repr__(self) -> str:
        return f"Ledger({self.path!r})"

    def __len__(self) -> int:
        with self._lock:
            return int(self._db.execute("SELECT count(*) FROM replies").fetchone()[0])

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def find(self, keys: Sequence[str]) -> dict[str, Reply]:
        """The stored replies among `keys`, with the usage that they once had."""
        found: dict[str, Reply] = {}
        with self._lock:
            for start in range(0, len(keys), 500):
                part = keys[start : start + 500]
                marks = ",".join("?" * len(part))
                rows = self._db.execute(f"SELECT key, {_REPLY} FROM replies WHERE key IN ({marks})", part)
                found.update((row[0], _reply(row[1:])) for row in rows)
        return found

    def stored(self, purpose: str) -> Iterator[Stored]:
        """Every good reply whose purpose begins with these letters, in an order that depends on nothing but them."""
        with self._lock:
            rows = self._db.execute(
                f"SELECT purpose, client, i.text, asked, {_REPLY.replace('text,', 'r.text,', 1)} FROM replies AS r"
                " JOIN instructions AS i ON i.hash = r.instructions"
                " WHERE substr(purpose, 1, ?) = ? AND error IS NULL AND data IS NOT NULL ORDER BY key",
                (len(purpose), purpose),
            ).fetchall()
        for row in rows:
            yield Stored(row[0], row[1], row[2], json.loads(row[3]), _reply(row[4:]))

    def put(self, key: str, purpose: str, client: str, request: Request, reply: Reply) -> Reply:
        """Store a reply and return the one that counts: what was there first, unless that was a passing failure."""
        with self._lock:
            known = hashlib.sha256(request.system.encode()).hexdigest()[:16]
            if known not in self._instructions:
                self._db.execute("INSERT OR IGNORE INTO instructions VALUES (?, ?)", (known, request.system))
                self._instructions.add(known)
            usage = reply.usage
            changed = self._db.execute(
                "INSERT INTO replies VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT(key) DO UPDATE SET"
                " text=excluded.text, data=excluded.data, stop_reason=excluded.stop_reason, error=excluded.error,"
                " detail=excluded.detail, probabilities=excluded.probabilities, calls=calls+excluded.calls,"
                " input_tokens=input_tokens+excluded.input_tokens, output_tokens=output_tokens+excluded.output_tokens,"
                " cached_tokens=cached_tokens+excluded.cached_tokens, cost=cost+excluded.cost,"
                f" stored_at=excluded.stored_at WHERE error IN ({','.join('?' * len(TRANSIENT))})",
                (
                    key,
                    purpose,
                    client,
                    known,
                    request.user_text,
                    _storable(reply.text),
                    None if reply.data is None else json.dumps(reply.data),
                    reply.stop_reason,
                    reply.error,
                    _storable(reply.detail),
                    json.dumps(dict(reply.probabilities)),
                    usage.calls,
                    usage.input_tokens,
                    usage.output_tokens,
                    usage.cached_tokens,
                    usage.cost,
                    time.time(),
                    *sorted(TRANSIENT),
                ),
            ).rowcount
            return reply if changed else self.find([key])[key]

    def spent(self, purpose: str | None = None) -> Usage:
        """What all stored replies (of one purpose) cost when they were made."""
        where, given = ("", ()) if purpose is None else (" WHERE purpose = ?", (purpose,))
        with self._lock:
            row = self._db.execute(
                "SELECT coalesce(sum(calls),0), coalesce(sum(input_tokens),0), coalesce(sum(output_tokens),0),"
                f" coalesce(sum(cached_tokens),0), sum(cost), count(*) = count(cost) FROM replies{where}",
                given,
            ).fetchone()
        return Usage(row[0], row[1], row[2], row[3], float(row[4] or 0.0) if row[5] else None)

    def account(self, scope: str) -> Account:
        with self._lock:
            row = self._db.execute("SELECT calls, tokens, cost FROM accounts WHERE scope = ?", (scope,)).fetchone()
        return Account(*row) if row else Account()

    def change_account(self, scope: str, change: Callable[[Account], Account | None]) -> bool:
        """Read, change and write one account as a single transaction, alone among all processes."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                after = change(self.account(scope))
                if after is not None:
                    self._db.execute(
                        "INSERT OR REPLACE INTO accounts VALUES (?, ?, ?, ?)",
                        (scope, after.calls, after.tokens, after.cost),
                    )
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        return after is not None

    def batches_of(self, keys: Sequence[str]) -> dict[str, str]:
        """For keys that were sent in an offline batch: that batch's id."""
        found: dict[str, str] = {}
        with self._lock:
            for start in range(0, len(keys), 500):
                part = keys[start : start + 500]
                marks = ",".join("?" * len(part))
                found.update(self._db.execute(f"SELECT key, batch FROM batch_items WHERE key IN ({marks})", part))
        return found

    def record_batch(self, batch: str, keys: Iterable[str]) -> None:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR REPLACE INTO batch_items VALUES (?, ?)", [(key, batch) for key in keys])
            self._db.execute("COMMIT")

    def forget_batch(self, keys: Iterable[str]) -> None:
        """Of these, nothing came back: a later run sends them anew."""
        with self._lock:
            self._db.executemany("DELETE FROM batch_items WHERE key = ?", [(key,) for key in keys])


def _storable(text: str) -> str:
    """A lone surrogate cannot be written as UTF-8; it is written out instead."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _reply(row: Sequence[Any]) -> Reply:
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
