"""Every reply that was ever paid for, on disk, before it is used.

    ledger = Ledger("verdicts.sqlite")
    ledger.find(keys)          # what is known already
    ledger.put(key, ...)       # stored at once; a killed process loses only calls in the air

A reply's key is a hash of all that it depends on: who asks (critic and version), which model with which settings, the
instructions, the texts in their order, the form of the reply. So a joke is paid for once, and a finished run replays
from its ledger, without a key and with the same numbers. The file is SQLite in WAL mode: several processes may
share it, and where two ask the same thing at once, both use what was stored first. It holds texts and replies; keys
never.

A reply that cannot be written (the file is locked, the disk is full) is kept in memory, read from there, and written as
soon as it can be, at the latest when the ledger is closed; only then does it become an error. A ledger on a disk that
cannot be written to is read as it is. A row that cannot be read is no reply: it is asked anew.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from humor_env.errors import InvalidOption
from humor_env.llm.budget import Account, LedgerBusy, LedgerError
from humor_env.llm.protocol import TRANSIENT, ErrorKind, Reply, Request
from humor_env.types import Usage

T = TypeVar("T")
_FORMAT = 1
_SHORT, _LONG = 0.25, 60.0
"""Seconds to wait for another process's lock: where the loop of all calls waits with us, and where nobody does."""
_OURS = {"replies", "instructions", "accounts", "batch_items"}
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


@dataclass(frozen=True, slots=True)
class Call:
    """One call that was made: what was asked, what came back or went wrong, when, and what it cost."""

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
        self._lock = threading.RLock()
        self._instructions: set[str] = set()
        self._waiting: dict[str, tuple[Any, ...]] = {}  # rows that are not on disk yet, by their key
        self._took: set[str] = set()  # of the rows written last, those that count
        self._closed = False
        self.damaged: set[str] = set()
        self.read_only = False
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        try:
            try:
                self._db = self._open()
            except (sqlite3.OperationalError, PermissionError):
                if not Path(self.path).is_file():
                    raise
                self._db = self._open_to_read()
                self.read_only = True
        except (sqlite3.Error, OSError) as problem:
            raise InvalidOption(f"'{self.path}' cannot be used as a ledger: {problem}. Give another path.") from None

    def _open(self) -> sqlite3.Connection:
        if self.path != ":memory:":
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(self.path, timeout=_LONG, check_same_thread=False, isolation_level=None)
        try:
            # Before anything is changed: somebody else's file stays as it is, its journal mode too.
            found = self._format(db)
            db.execute("PRAGMA journal_mode = WAL")
            # With WAL this loses nothing when the process dies; only a power cut may cost the last moments.
            db.execute("PRAGMA synchronous = NORMAL")
            if found == 0:
                db.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {_FORMAT}; COMMIT;")
        except BaseException:
            db.close()
            raise
        return db

    def _open_to_read(self) -> sqlite3.Connection:
        """A ledger where nothing can be written: as it is; with the last writer's journal, where that is left, a copy
        of both, because SQLite reads a journal only where it may write."""
        source = Path(self.path).resolve()
        journal = source.with_name(source.name + "-wal")
        if journal.is_file() and journal.stat().st_size:
            self._copy = tempfile.TemporaryDirectory(prefix="humor-env-ledger-")
            copied = Path(self._copy.name) / source.name
            shutil.copy(source, copied)
            shutil.copy(journal, copied.with_name(journal.name))
            address = f"{copied.as_uri()}?mode=rw"
        else:
            address = f"{source.as_uri()}?mode=ro&immutable=1"
        db = sqlite3.connect(address, uri=True, check_same_thread=False, isolation_level=None)
        if self._format(db) == 0:
            db.close()
            raise sqlite3.OperationalError("it is empty, and cannot be written to")
        return db

    def _format(self, db: sqlite3.Connection) -> int:
        """The format of an open file, 0 where it is new; complains of a file that is no ledger of ours."""
        found = int(db.execute("PRAGMA user_version").fetchone()[0])
        tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")}
        if (found == 0 and tables and not tables <= _OURS) or (found == _FORMAT and not tables >= _OURS):
            raise InvalidOption(
                f"'{self.path}' is an SQLite file of something else (it has "
                f"{', '.join(sorted(tables)[:4]) or 'nothing'}), and was left as it is. Give the ledger another path."
            )
        if found not in (0, _FORMAT):
            raise InvalidOption(
                f"The ledger '{self.path}' has format {found}; this version reads format {_FORMAT}. Give another path."
            )
        return found

    def __repr__(self) -> str:
        return f"Ledger({self.path!r})"

    def __len__(self) -> int:
        waiting = list(self._waiting)
        [(stored,)] = self._do(lambda: self._db.execute("SELECT count(*) FROM replies").fetchall())
        return int(stored) + len(waiting) - len(self._find(waiting)) if waiting else int(stored)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what is not written yet. Raises LedgerError where that fails even now; the file is closed all the same,
        and closing again tries again."""
        with self._lock:
            if self._closed and not self._waiting:
                return
        try:
            if self._closed:
                self._db, self._closed = self._open(), False
            self.write_down()
        except (sqlite3.Error, OSError) as problem:
            raise LedgerError(self._unwritten(problem)) from None
        finally:
            with self._lock:
                self._closed = True
                self._db.close()
            if self._copy is not None:
                self._copy.cleanup()

    def write_down(self, patience: float = _LONG) -> None:
        """Write the replies that could not be written when they came. Raises LedgerError where they still cannot be.

        Waits for another process's lock, up to `patience` seconds, without holding up other threads.
        """
        until = time.monotonic() + patience
        while True:
            problem = self._try_waiting(0.0 if patience == 0 else _SHORT)
            if problem is None:
                return
            if not _is_busy(problem) or time.monotonic() >= until:
                raise LedgerError(self._unwritten(problem))
            time.sleep(0.1)

    def _unwritten(self, problem: Exception) -> str:
        many = len(self._waiting)
        return (
            f"The ledger '{self.path}' cannot be written ({problem}). Paid replies that are not on disk yet: {many}. "
            "They are kept in memory and tried once more at the end. Free the disk or the file, then start again."
        )

    def _try_waiting(self, seconds: float) -> sqlite3.Error | None:
        """One try to write all that waits; what went wrong, or None."""
        with self._lock:
            if not self._waiting:
                return None
            try:
                self._wait_at_most(seconds)
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    self._took = {key for key, row in self._waiting.items() if self._insert(row)}
                    self._db.execute("COMMIT")
                except BaseException:
                    self._roll_back()
                    raise
            except sqlite3.Error as problem:
                return problem
            self._waiting.clear()
            return None

    def _roll_back(self) -> None:
        self._instructions.clear()
        # A full disk ends the transaction by itself.
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _wait_at_most(self, seconds: float) -> None:
        self._db.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")

    def _do(self, work: Callable[[], T], seconds: float = _LONG) -> T:
        """`work` on the file, alone among threads; what SQLite complains of becomes a sentence."""
        with self._lock:
            try:
                self._wait_at_most(seconds)
                return work()
            except sqlite3.Error as problem:
                if self._closed:
                    raise LedgerError(f"The ledger '{self.path}' is closed.") from None
                if _is_busy(problem):
                    raise LedgerBusy(
                        f"The ledger '{self.path}' is locked by another process. End it, or give another path."
                    ) from None
                raise LedgerError(
                    f"The ledger '{self.path}' cannot be used ({problem}). If the file is damaged, 'sqlite3 FILE "
                    ".recover' may save its rows; or give another path."
                ) from None

    def find(self, keys: Sequence[str]) -> dict[str, Reply]:
        """The stored replies among `keys`, with the usage that they once had. Rows that cannot be read are left out,
        and named in `damaged`: the next reply to them takes their place."""
        found = self._find(keys)
        with self._lock:
            found.update({key: _reply(_as_read(self._waiting[key])) for key in keys if key in self._waiting})
        return found

    def _find(self, keys: Sequence[str]) -> dict[str, Reply]:
        found: dict[str, Reply] = {}
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            marks = ",".join("?" * len(part))
            query = f"SELECT key, {_REPLY} FROM replies WHERE key IN ({marks})"
            for row in self._do(lambda query=query, part=part: self._db.execute(query, part).fetchall()):  # type: ignore[misc]
                reply = _reply_if_whole(row[1:])
                if reply is None:
                    self.damaged.add(row[0])
                else:
                    found[row[0]] = reply
        return found

    def stored(self, purpose: str) -> Iterator[Stored]:
        """Every good reply whose purpose begins with these letters, in an order that depends on nothing but them."""
        rows = self._do(
            lambda: self._db.execute(
                f"SELECT purpose, client, i.text, asked, {_REPLY.replace('text,', 'r.text,', 1)} FROM replies AS r"
                " JOIN instructions AS i ON i.hash = r.instructions"
                " WHERE substr(purpose, 1, ?) = ? AND error IS NULL AND data IS NOT NULL ORDER BY key",
                (len(purpose), purpose),
            ).fetchall()
        )
        for row in rows:
            reply = _reply_if_whole(row[4:])
            try:
                data = json.loads(row[3])
            except (TypeError, ValueError):
                continue
            if reply is not None and isinstance(data, dict):
                yield Stored(row[0], row[1], row[2], data, reply)

    def calls_since(self, moment: float, most: int) -> list[Call]:
        """The latest calls made after a moment (seconds since 1970), the oldest of them first."""
        rows = self._do(
            lambda: self._db.execute(
                "SELECT purpose, client, i.text, asked, r.text, error, cost, input_tokens, output_tokens, stored_at"
                " FROM replies AS r JOIN instructions AS i ON i.hash = r.instructions WHERE stored_at > ?"
                " ORDER BY stored_at DESC LIMIT ?",
                (moment, most),
            ).fetchall()
        )
        return [Call(*row) for row in reversed(rows)]

    def put(self, key: str, purpose: str, client: str, request: Request, reply: Reply, *, over: bool = False) -> Reply:
        """Store a reply and return the one that counts: what was there first, unless that was a passing failure, a row
        that cannot be read, or (`over`) one that was asked anew on purpose.

        Never fails for the file's sake: what cannot be written now is kept, and tried again with the next reply.
        """
        usage = reply.usage
        row = (
            key,
            purpose,
            client,
            hashlib.sha256(request.system.encode()).hexdigest()[:16],
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
            over or key in self.damaged,
            request.system,
        )
        with self._lock:
            # The first try waits a moment for a busy file; while something waits already, nobody is held up again.
            quick = bool(self._waiting)
            self._waiting[key] = row
            if self._try_waiting(0.0 if quick else _SHORT) is not None:
                return reply
            self.damaged.discard(key)
            if key in self._took:
                return reply
        return self._find([key]).get(key, reply)

    def _insert(self, row: tuple[Any, ...]) -> bool:
        """Write one row; False where one is there that counts instead."""
        *values, over, system = row
        known = row[3]
        if known not in self._instructions:
            self._db.execute("INSERT OR IGNORE INTO instructions VALUES (?, ?)", (known, system))
            self._instructions.add(known)
        done = self._db.execute(
            "INSERT INTO replies VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT(key) DO UPDATE SET"
            " text=excluded.text, data=excluded.data, stop_reason=excluded.stop_reason, error=excluded.error,"
            " detail=excluded.detail, probabilities=excluded.probabilities, calls=calls+excluded.calls,"
            " input_tokens=input_tokens+excluded.input_tokens, output_tokens=output_tokens+excluded.output_tokens,"
            " cached_tokens=cached_tokens+excluded.cached_tokens, cost=cost+excluded.cost,"
            f" stored_at=excluded.stored_at WHERE ? OR error IN ({','.join('?' * len(TRANSIENT))})",
            (*values, over, *sorted(TRANSIENT)),
        )
        return done.rowcount > 0

    def spent(self, purpose: str | None = None) -> Usage:
        """What all stored replies (of one purpose) cost when they were made."""
        where, given = ("", ()) if purpose is None else (" WHERE purpose = ?", (purpose,))
        self._try_waiting(_SHORT)
        row = self._do(
            lambda: self._db.execute(
                "SELECT coalesce(sum(calls),0), coalesce(sum(input_tokens),0), coalesce(sum(output_tokens),0),"
                f" coalesce(sum(cached_tokens),0), sum(cost), count(*) = count(cost) FROM replies{where}",
                given,
            ).fetchone()
        )
        return Usage(row[0], row[1], row[2], row[3], float(row[4] or 0.0) if row[5] else None)

    def account(self, scope: str) -> Account:
        query = "SELECT calls, tokens, cost FROM accounts WHERE scope = ?"
        row = self._do(lambda: self._db.execute(query, (scope,)).fetchone())
        return Account(*row) if row else Account()

    def change_account(self, scope: str, change: Callable[[Account], Account | None]) -> bool:
        """Read, change and write one account as a single transaction, alone among all processes.

        Raises LedgerBusy where another process holds the file: calls on the loop of all clients must not wait for it.
        """

        def alone() -> bool:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                after = change(self.account(scope))
                if after is not None:
                    self._db.execute(
                        "INSERT OR REPLACE INTO accounts VALUES (?, ?, ?, ?)",
                        (scope, after.calls, after.tokens, after.cost),
                    )
                self._db.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise
            return after is not None

        return self._do(alone, _SHORT)

    def batches_of(self, keys: Sequence[str]) -> dict[str, str]:
        """For keys that were sent in an offline batch: that batch's id."""
        found: dict[str, str] = {}
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            marks = ",".join("?" * len(part))
            query = f"SELECT key, batch FROM batch_items WHERE key IN ({marks})"
            found.update(self._do(lambda query=query, part=part: self._db.execute(query, part).fetchall()))  # type: ignore[misc]
        return found

    def record_batch(self, batch: str, keys: Iterable[str]) -> None:
        def all_or_none() -> None:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("INSERT OR REPLACE INTO batch_items VALUES (?, ?)", [(key, batch) for key in keys])
                self._db.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise

        self._do(all_or_none)

    def forget_batch(self, keys: Iterable[str]) -> None:
        """Of these, nothing came back: a later run sends them anew."""
        self._do(lambda: self._db.executemany("DELETE FROM batch_items WHERE key = ?", [(key,) for key in keys]))


def _is_busy(problem: sqlite3.Error) -> bool:
    return getattr(problem, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _storable(text: str) -> str:
    """A lone surrogate cannot be written as UTF-8; it is written out instead."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _as_read(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Of a row to be written, what is read of one in the file."""
    return row[5:16]


def _reply_if_whole(row: Sequence[Any]) -> Reply | None:
    """The reply in a row; None where the row is not one that was ever written."""
    try:
        reply = _reply(row)
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
