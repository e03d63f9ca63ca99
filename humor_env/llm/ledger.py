"""The ledger: every paid reply is stored on disk before it is used.

    ledger = Ledger("verdicts.sqlite")
    ledger.find(keys)          # the replies already stored
    ledger.put(key, ...)       # stored at once; a killed process loses only calls in flight

A reply's key is a hash of everything it depends on: the caller (critic and version), the model with its settings, the
instructions, the texts in order, the form of the reply. So each joke is paid for once, and a finished run replays from
its ledger, without a key and with the same numbers. The file is SQLite in WAL mode: several processes may share it, and
if two ask the same thing at once, both use the reply stored first. It holds texts and replies, never API keys.

A reply that cannot be written (the file is locked, the disk is full) is kept in memory, read from there, and written as
soon as possible, at the latest when the ledger is closed; only then is it an error. A ledger on a read-only disk is
read as it is. A row that cannot be read counts as missing: the question is asked again.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from humor_env.errors import InvalidOption
from humor_env.llm.budget import Account, LedgerBusy, LedgerError
from humor_env.llm.ledger_rows import (
    BATCH_STATE,
    INSERT_BATCH_ITEM,
    INSERT_REPLY,
    REPLY_COLUMNS,
    TABLE_NAMES,
    TABLES,
    Call,
    Row,
    reply_columns,
    reply_if_whole,
    reply_of,
    row_of,
)
from humor_env.llm.protocol import TRANSIENT, Reply, Request
from humor_env.shared.user_path import user_path
from humor_env.types import Usage

T = TypeVar("T")
_FORMAT = 1
_SHORT, _LONG = 0.25, 60.0
"""Seconds to wait for another process's lock: where that blocks the loop of all calls, and where it blocks nothing."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored reply with its question: purpose, client, the instructions, the data as sent."""

    purpose: str
    client: str
    instructions: str
    data: Mapping[str, Any]
    reply: Reply


class Ledger:
    """One SQLite file, or ":memory:" for the life of the process. Safe to use from several threads."""

    def __init__(self, path: str | Path = ":memory:") -> None:
        self.path = str(path) if str(path) == ":memory:" else str(user_path(path))
        self._lock = threading.RLock()
        self._instructions: set[str] = set()
        # Not on disk yet, by key: each row in order, whether it replaces another, and the instructions.
        self._waiting: dict[str, list[tuple[Row, bool, str]]] = {}
        self._took: set[str] = set()  # of the last written rows, those that count
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
            # Before any change, so that a foreign file is left as it is, including its journal mode.
            version = self._format(db)
            db.execute("PRAGMA journal_mode = WAL")
            # With WAL this loses nothing if the process dies; only a power failure may lose the last moments.
            db.execute("PRAGMA synchronous = NORMAL")
            if version == 0:
                db.executescript(f"BEGIN IMMEDIATE; {TABLES} PRAGMA user_version = {_FORMAT}; COMMIT;")
        except BaseException:
            db.close()
            raise
        return db

    def _open_to_read(self) -> sqlite3.Connection:
        """Open a read-only ledger: the file itself, or if the last writer left a journal, a copy of both, because
        SQLite reads a journal only where it may write."""
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
        """The format of an open file, 0 if it is new; raises if it is not one of our ledgers."""
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")}
        if (version == 0 and tables and not tables <= TABLE_NAMES) or (
            version == _FORMAT and not tables >= TABLE_NAMES
        ):
            raise InvalidOption(
                f"'{self.path}' is an SQLite file but not a ledger (it has "
                f"{', '.join(sorted(tables)[:4]) or 'nothing'}), and was left as it is. Give the ledger another path."
            )
        if version not in (0, _FORMAT):
            raise InvalidOption(
                f"The ledger '{self.path}' has format {version}; this version reads format {_FORMAT}. "
                "Give another path."
            )
        return version

    def __repr__(self) -> str:
        return f"Ledger({self.path!r})"

    def __len__(self) -> int:
        waiting = list(self._waiting)
        [(stored,)] = self._do(lambda: self._db.execute("SELECT count(*) FROM replies").fetchall())
        return int(stored) + len(waiting) - len(self._find(waiting)) if waiting else int(stored)

    def is_blank(self) -> bool:
        """Whether it holds nothing that cost or may cost anything: no reply, no reserved call, no batch."""
        query = (
            "SELECT (SELECT count(*) FROM replies) + (SELECT count(*) FROM batch_items)"
            " + (SELECT count(*) FROM accounts WHERE calls <> 0 OR tokens <> 0 OR abs(cost) > 1e-9)"
        )
        return not self._waiting and self._do(lambda: self._db.execute(query).fetchone()) == (0,)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write pending replies. Raises LedgerError if that still fails; the file is closed anyway, and closing again
        tries again."""
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
        """Write the replies that could not be written when they came. Raises LedgerError if they still cannot.

        Waits up to `patience` seconds for another process's lock, without blocking other threads.
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
        """Try once to write all pending replies; return the error, or None."""
        with self._lock:
            if not self._waiting:
                return None
            try:
                self._wait_at_most(seconds)
                with self._transaction():
                    self._took = {
                        key for key, rows in self._waiting.items() if [self._insert(*row) for row in rows][-1]
                    }
            except sqlite3.Error as problem:
                return problem
            self._waiting.clear()
            return None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Run the block as one transaction, exclusive among all processes."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            self._instructions.clear()
            # A full disk ends the transaction by itself.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _wait_at_most(self, seconds: float) -> None:
        self._db.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")

    def _do(self, work: Callable[[], T], seconds: float = _LONG) -> T:
        """Run `work` on the file, exclusive among threads; SQLite errors become LedgerErrors."""
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
        """The stored replies among `keys`, with their original usage. Unreadable rows are left out and named in
        `damaged`: the next reply replaces them."""
        replies = self._find(keys)
        with self._lock:
            replies.update({key: self._of_waiting(key) for key in keys if key in self._waiting})
        return replies

    def _of_waiting(self, key: str) -> Reply:
        """Of the replies to this that are not on disk yet, the one that counts."""
        rows = self._waiting[key]
        counts = reply_of(reply_columns(rows[0][0]))
        for row, over, _ in rows[1:]:
            if over or counts.error in TRANSIENT:
                later = reply_of(reply_columns(row))
                counts = replace(later, usage=counts.usage + later.usage)
        return counts

    def _find(self, keys: Sequence[str]) -> dict[str, Reply]:
        replies: dict[str, Reply] = {}
        for key, *columns in self._select(f"key, {REPLY_COLUMNS}", "replies", keys):
            reply = reply_if_whole(columns)
            if reply is None:
                self.damaged.add(key)
            else:
                replies[key] = reply
        return replies

    def _select(self, columns: str, table: str, keys: Sequence[str]) -> Iterator[Row]:
        """The rows with these keys, in portions, because SQLite limits the values per query."""
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            query = f"SELECT {columns} FROM {table} WHERE key IN ({','.join('?' * len(part))})"
            yield from self._do(lambda query=query, part=part: self._db.execute(query, part).fetchall())  # type: ignore[misc]

    def stored(self, purpose: str) -> Iterator[Stored]:
        """Every good reply whose purpose starts with this prefix, in an order that depends only on the replies."""
        columns = REPLY_COLUMNS.replace("text,", "r.text,", 1)
        rows = self._do(
            lambda: self._db.execute(
                f"SELECT purpose, client, i.text, asked, {columns} FROM replies AS r"
                " JOIN instructions AS i ON i.hash = r.instructions"
                " WHERE substr(purpose, 1, ?) = ? AND error IS NULL AND data IS NOT NULL ORDER BY key",
                (len(purpose), purpose),
            ).fetchall()
        )
        for row in rows:
            reply = reply_if_whole(row[4:])
            try:
                data = json.loads(row[3])
            except (TypeError, ValueError):
                continue
            if reply is not None and isinstance(data, dict):
                yield Stored(row[0], row[1], row[2], data, reply)

    def calls_since(self, moment: float, most: int) -> list[Call]:
        """The latest `most` calls made after `moment` (seconds since 1970), oldest first."""
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
        """Store a reply and return the one that counts: the first stored, unless that was a transient failure, an
        unreadable row, or (`over`) one asked again on purpose.

        Never fails because of the file: what cannot be written is kept and retried with the next reply.
        """
        row = row_of(key, purpose, client, request, reply)
        with self._lock:
            # The first try waits a moment for a busy file; while replies are pending, later tries do not wait.
            quick = bool(self._waiting)
            rows = self._waiting.setdefault(key, [])
            rows.append((row, over or (key in self.damaged and not rows), request.system))
            if self._try_waiting(0.0 if quick else _SHORT) is not None:
                return reply if len(rows) == 1 else self._of_waiting(key)
            self.damaged.discard(key)
            if key in self._took:
                return reply
        return self._find([key]).get(key, reply)

    def _insert(self, row: Row, over: bool, instructions: str) -> bool:
        """Write one row; False if an existing one counts instead."""
        instructions_hash = row[3]
        if instructions_hash not in self._instructions:
            self._db.execute("INSERT OR IGNORE INTO instructions VALUES (?, ?)", (instructions_hash, instructions))
            self._instructions.add(instructions_hash)
        return self._db.execute(INSERT_REPLY, (*row, over)).rowcount > 0

    def spent(self, purpose: str | None = None) -> Usage:
        """The original usage of all stored replies (of one purpose)."""
        where, parameters = ("", ()) if purpose is None else (" WHERE purpose = ?", (purpose,))
        self._try_waiting(_SHORT)
        row = self._do(
            lambda: self._db.execute(
                "SELECT coalesce(sum(calls),0), coalesce(sum(input_tokens),0), coalesce(sum(output_tokens),0),"
                f" coalesce(sum(cached_tokens),0), sum(cost), count(*) = count(cost) FROM replies{where}",
                parameters,
            ).fetchone()
        )
        return Usage(row[0], row[1], row[2], row[3], float(row[4] or 0.0) if row[5] else None)

    def account(self, scope: str) -> Account:
        query = "SELECT calls, tokens, cost FROM accounts WHERE scope = ?"
        row = self._do(lambda: self._db.execute(query, (scope,)).fetchone())
        return Account(*row) if row else Account()

    def change_account(self, scope: str, change: Callable[[Account], Account | None]) -> bool:
        """Read, change and write one account in a single transaction, exclusive among all processes.

        Raises LedgerBusy if another process holds the file, because calls on the shared loop must not wait for it.
        """

        def alone() -> bool:
            with self._transaction():
                after = change(self.account(scope))
                if after is not None:
                    row = (scope, after.calls, after.tokens, after.cost)
                    self._db.execute("INSERT OR REPLACE INTO accounts VALUES (?, ?, ?, ?)", row)
            return after is not None

        return self._do(alone, _SHORT)

    def batches_of(self, keys: Sequence[str]) -> dict[str, str]:
        """The batch id of each key that was sent in an offline batch."""
        return dict(self._select("key, batch", "batch_items", keys))

    def record_batch(self, batch: str, keys: Iterable[str]) -> None:
        """Record that these were sent in that batch, of which nothing was read yet."""
        self._change_batch_items(
            INSERT_BATCH_ITEM, [row for key in keys for row in ((key, batch), (BATCH_STATE + key, "sent"))]
        )

    def batch_was_read(self, keys: Iterable[str]) -> None:
        """Record that the replies to these were delivered with their cost: reading them again costs nothing."""
        self._change_batch_items(INSERT_BATCH_ITEM, [(BATCH_STATE + key, "read") for key in keys])

    def batch_states(self, keys: Sequence[str]) -> dict[str, str]:
        """For keys in batches: "sent" or "read"; no entry for those that an earlier version sent."""
        states = self.batches_of([BATCH_STATE + key for key in keys])
        return {key.removeprefix(BATCH_STATE): state for key, state in states.items()}

    def forget_batch(self, keys: Iterable[str]) -> None:
        """Forget these keys' batch, which returned nothing usable for them: a later run sends them again."""
        rows = [(row,) for key in keys for row in (key, BATCH_STATE + key)]
        self._change_batch_items("DELETE FROM batch_items WHERE key = ?", rows)

    def _change_batch_items(self, statement: str, rows: Sequence[Row]) -> None:
        def all_or_none() -> None:
            with self._transaction():
                self._db.executemany(statement, rows)

        if rows:
            self._do(all_or_none)


def _is_busy(problem: sqlite3.Error) -> bool:
    return getattr(problem, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
