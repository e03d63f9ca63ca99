"""The answers of a session, in one SQLite file: lines, raters, what each was asked, and what each answered.

    with Store.create(Path("arena.sqlite"), material, Settings()) as store:
        [rater] = store.raters()
        ...
    with Store.open(Path("arena.sqlite")) as store: store.votes("humor")

An answer is written in one transaction before its rater sees the next pair, so a server that is killed loses nothing;
the server also waits until it is on disk, so a power cut loses nothing either. The file is in WAL mode: exports and
`--forget` work while a server is running. Names are never kept: a rater is a number. Links are made from the store's
own secret, so anyone who can read the file could answer for others: only its owner can read it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from humor_env.errors import InvalidOption
from humor_env.experiments.arena.sources import Line, Material, systems_of

Mode = Literal["pairs", "ratings"]
What = Literal["answer", "skip", "offence"]
QUESTIONS = ("humor", "consistency", "overall")
SIDES = {"first": 1.0, "second": 0.0, "tie": 0.5}
GRADES = ("0", "1", "2", "3", "4")
FORM = 1  # version of the tables; others are refused

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE prompts (id INTEGER PRIMARY KEY, name TEXT NOT NULL, text TEXT NOT NULL);
CREATE TABLE lines (
  id INTEGER PRIMARY KEY, prompt INTEGER NOT NULL REFERENCES prompts, system TEXT NOT NULL, text TEXT NOT NULL,
  scores TEXT NOT NULL
);
CREATE TABLE plan (id INTEGER PRIMARY KEY, a INTEGER NOT NULL REFERENCES lines, b INTEGER NOT NULL REFERENCES lines);
CREATE TABLE raters (
  id INTEGER PRIMARY KEY, token TEXT NOT NULL UNIQUE, agreed REAL, rested INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE asks (
  id INTEGER PRIMARY KEY, rater INTEGER NOT NULL REFERENCES raters, nonce TEXT NOT NULL UNIQUE,
  a INTEGER NOT NULL REFERENCES lines, b INTEGER REFERENCES lines, turned INTEGER NOT NULL,
  again INTEGER UNIQUE REFERENCES asks, at REAL NOT NULL
);
CREATE INDEX asks_of_a_rater ON asks (rater);
CREATE TABLE answers (
  ask INTEGER PRIMARY KEY REFERENCES asks, what TEXT NOT NULL CHECK (what IN ('answer', 'skip', 'offence')),
  humor TEXT, consistency TEXT, overall TEXT, at REAL NOT NULL
);
"""


@dataclass(frozen=True)
class Settings:
    """How a session asks; fixed when it is created."""

    title: str = "Which is funnier?"
    mode: Mode = "pairs"
    questions: tuple[str, ...] = ("humor", "consistency")
    per_rater: int = 100
    repeats: float = 0.1
    overlap: float = 0.3
    choose: Literal["adaptive", "random", "plan"] = "adaptive"
    rest: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [q for q in self.questions if q not in QUESTIONS]
        if unknown or not self.questions:
            raise InvalidOption(f"--ask is one of {', '.join(QUESTIONS)}; found {', '.join(unknown) or 'nothing'}.")
        for name in ("repeats", "overlap"):
            if not 0 <= getattr(self, name) <= 0.5:
                raise InvalidOption(f"--{name} is a share from 0 to 0.5; found {getattr(self, name)}.")
        if self.per_rater < 1 or self.rest < 1:
            raise InvalidOption(f"--per-rater and --rest must be at least 1; found {self.per_rater} and {self.rest}.")


@dataclass(frozen=True)
class Rater:
    id: int
    agreed: bool
    rested: int


@dataclass(frozen=True)
class Ask:
    """One page shown to one rater: two lines (one if lines are graded), the first of which is `b` if `turned`.
    `again` is the ask that it repeats."""

    id: int
    rater: int
    nonce: str
    a: int
    b: int | None
    turned: bool
    again: int | None
    at: float


@dataclass(frozen=True)
class Answered:
    """An ask with its answer as given: sides are those of the page."""

    ask: Ask
    what: What
    replies: Mapping[str, str]
    at: float

    def share(self, question: str) -> float | None:
        """1 if line a won, 0 if it lost, 0.5 for a tie; None if the question was not answered."""
        side = SIDES.get(self.replies.get(question, ""))
        return None if side is None else 1 - side if self.ask.turned else side


class Refused(Exception):
    """An answer that changes nothing, and why: "unknown", "foreign", "replayed", "incomplete" or "closed"."""


class Store:
    """Open with `create` or `open`; one connection, used by one thread."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path, self._db = path, connection
        meta = dict(connection.execute("SELECT key, value FROM meta"))
        if meta.get("form") != str(FORM):
            raise InvalidOption(f"'{path}' was written by another version of the arena (form {meta.get('form')}).")
        settings = json.loads(meta["settings"])
        self.settings = Settings(**{**settings, "questions": tuple(settings["questions"])})
        self.secret = bytes.fromhex(meta["secret"])
        self.digest = meta["material"]
        self.begun = float(meta["begun"])
        rows = connection.execute("SELECT id, prompt, system, text, scores FROM lines ORDER BY id")
        self.lines = [Line(str(prompt), system, text, json.loads(scores)) for _, prompt, system, text, scores in rows]
        self.prompts = {
            str(id): (name, text) for id, name, text in connection.execute("SELECT id, name, text FROM prompts")
        }
        self.plan = [(a, b) for a, b in connection.execute("SELECT a, b FROM plan ORDER BY id")]
        self.systems = systems_of(self.lines)

    # Beginning

    @classmethod
    def create(cls, path: Path, material: Material, settings: Settings, tokens: Sequence[str] | int = 1) -> Store:
        """A new session; `tokens` are the raters' own tokens, or how many to make."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(path.name + ".begun")
        unfinished.unlink(missing_ok=True)
        os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        db = _connect(unfinished)
        secret = secrets.token_bytes(32)
        with _transaction(db):
            for statement in _TABLES.split(";\n"):
                db.execute(statement)
            meta = {
                "form": str(FORM),
                "settings": json.dumps(asdict(settings)),
                "secret": secret.hex(),
                "material": material.digest(),
                "begun": str(time.time()),
            }
            db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
            number = {key: place for place, key in enumerate(material.prompts)}
            db.executemany(
                "INSERT INTO prompts VALUES (?, ?, ?)", [(number[k], *prompt) for k, prompt in material.prompts.items()]
            )
            db.executemany(
                "INSERT INTO lines VALUES (?, ?, ?, ?, ?)",
                [
                    (place, number[x.prompt], x.system, x.text, json.dumps(dict(x.scores)))
                    for place, x in enumerate(material.lines)
                ],
            )
            db.executemany("INSERT INTO plan (a, b) VALUES (?, ?)", material.plan)
            _add_raters(db, secret, tokens)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.close()
        # Written in full or not at all: if the file exists, the session can be served.
        os.replace(unfinished, path)
        for end in ("-wal", "-shm"):
            Path(f"{unfinished}{end}").unlink(missing_ok=True)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> Store:
        if not path.is_file():
            raise InvalidOption(f"There is no session in '{path}'. Start one: humor-env arena RUN --store {path}")
        try:
            return cls(path, _connect(path))
        except (sqlite3.DatabaseError, KeyError, ValueError) as problem:
            raise InvalidOption(f"'{path}' is not the store of an arena ({problem}). Give another --store.") from None

    def add_raters(self, tokens: Sequence[str] | int) -> None:
        """Add raters until there are this many, or until each of these tokens has one."""
        with _transaction(self._db):
            _add_raters(self._db, self.secret, tokens)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    # Who

    def sign(self, *what: object) -> str:
        """A signature that only somebody who has read the store can make."""
        message = "\x1f".join(map(str, what)).encode()
        return hmac.new(self.secret, message, hashlib.sha256).hexdigest()[:32]

    def token(self, rater: int) -> str | None:
        """The token of a rater's link, if this store made it; tokens from a file are kept as digests."""
        token = self.sign("rater", rater)
        return token if self.rater_of(token) == rater else None

    def rater_of(self, token: str) -> int | None:
        row = self._db.execute("SELECT id FROM raters WHERE token = ?", (_digest(token),)).fetchone()
        return None if row is None else row[0]

    def rater(self, id: int) -> Rater | None:
        row = self._db.execute("SELECT id, agreed, rested FROM raters WHERE id = ?", (id,)).fetchone()
        return None if row is None else Rater(row[0], row[1] is not None, row[2])

    def raters(self) -> list[Rater]:
        rows = self._db.execute("SELECT id, agreed, rested FROM raters ORDER BY id")
        return [Rater(id, agreed is not None, rested) for id, agreed, rested in rows]

    def agree(self, rater: int) -> None:
        with _transaction(self._db):
            self._db.execute("UPDATE raters SET agreed = coalesce(agreed, ?) WHERE id = ?", (time.time(), rater))

    def rest(self, rater: int, at: int) -> None:
        with _transaction(self._db):
            self._db.execute("UPDATE raters SET rested = ? WHERE id = ?", (at, rater))

    # Asking and answering

    @property
    def closed(self) -> bool:
        return self._db.execute("SELECT 1 FROM meta WHERE key = 'closed'").fetchone() is not None

    def set_closed(self, closed: bool) -> None:
        with _transaction(self._db):
            if closed:
                self._db.execute("INSERT OR REPLACE INTO meta VALUES ('closed', ?)", (str(time.time()),))
            else:
                self._db.execute("DELETE FROM meta WHERE key = 'closed'")

    def version(self) -> int:
        """Changes whenever another process has written to the store."""
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction around several of the calls below: all or nothing."""
        with _transaction(self._db):
            yield

    def open_ask(self, rater: int) -> Ask | None:
        row = self._db.execute(
            "SELECT asks.* FROM asks LEFT JOIN answers ON ask = id WHERE rater = ? AND ask IS NULL ORDER BY id LIMIT 1",
            (rater,),
        ).fetchone()
        return None if row is None else _ask(row)

    def add_ask(self, rater: int, a: int, b: int | None, turned: bool, again: int | None = None) -> Ask:
        """Call inside `writing`."""
        row = (rater, secrets.token_urlsafe(12), a, b, int(turned), again, time.time())
        cursor = self._db.execute(
            "INSERT INTO asks (rater, nonce, a, b, turned, again, at) VALUES (?, ?, ?, ?, ?, ?, ?)", row
        )
        return _ask((cursor.lastrowid, *row))

    def find(self, rater: int, nonce: str) -> Ask:
        """The open ask of that form; raises Refused if it cannot be answered."""
        row = self._db.execute("SELECT * FROM asks WHERE nonce = ?", (nonce,)).fetchone()
        if row is None:
            raise Refused("unknown")
        ask = _ask(row)
        if ask.rater != rater:
            raise Refused("foreign")
        if self._db.execute("SELECT 1 FROM answers WHERE ask = ?", (ask.id,)).fetchone():
            raise Refused("replayed")
        return ask

    def answer(self, ask: Ask, what: What, replies: Mapping[str, str]) -> Answered:
        """Call inside `writing`. Anything that is not an answer to a question of this session is refused."""
        allowed = SIDES if ask.b is not None else GRADES
        if what == "answer" and any(replies.get(q) not in allowed for q in self.settings.questions):
            raise Refused("incomplete")
        by_question = {q: replies[q] for q in self.settings.questions} if what == "answer" else {}
        answered = Answered(ask, what, by_question, time.time())
        self._db.execute(
            "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?)",
            (ask.id, what, *(by_question.get(q) for q in QUESTIONS), answered.at),
        )
        return answered

    def undo(self, rater: int) -> bool:
        """Take back a rater's last answer: its pair is asked again, and any later ask is dropped. The old page's form
        no longer works. False if there is no answer."""
        row = self._db.execute(
            "SELECT id FROM asks JOIN answers ON ask = id WHERE rater = ? ORDER BY id DESC LIMIT 1", (rater,)
        ).fetchone()
        if row is None:
            return False
        with _transaction(self._db):
            self._db.execute("DELETE FROM asks WHERE rater = ? AND id > ?", (rater, row[0]))
            self._db.execute("DELETE FROM answers WHERE ask = ?", row)
            self._db.execute("UPDATE asks SET nonce = ? WHERE id = ?", (secrets.token_urlsafe(12), row[0]))
        return True

    def forget(self, rater: int) -> int:
        """Delete a rater's answers and their consent, and return the number of answers deleted."""
        with _transaction(self._db):
            self._db.execute("PRAGMA secure_delete = ON")
            mine = "SELECT id FROM asks WHERE rater = ?"
            answers = self._db.execute(f"DELETE FROM answers WHERE ask IN ({mine})", (rater,)).rowcount
            self._db.execute("DELETE FROM asks WHERE rater = ?", (rater,))
            self._db.execute("UPDATE raters SET agreed = NULL, rested = 0 WHERE id = ?", (rater,))
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return answers

    # Reading

    def asks(self) -> list[Ask]:
        return [_ask(row) for row in self._db.execute("SELECT * FROM asks ORDER BY id")]

    def answers(self) -> list[Answered]:
        """All of them, in the order in which they were given."""
        rows = self._db.execute(
            "SELECT asks.*, what, humor, consistency, overall, answers.at FROM answers JOIN asks ON ask = id "
            "ORDER BY answers.at, id"
        )
        return [_answered(row) for row in rows]

    def count(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM answers").fetchone()[0])


def _add_raters(db: sqlite3.Connection, secret: bytes, tokens: Sequence[str] | int) -> None:
    count = int(db.execute("SELECT count(*) FROM raters").fetchone()[0])
    if isinstance(tokens, int):
        messages = [(n, f"rater\x1f{n}".encode()) for n in range(count + 1, tokens + 1)]
        numbered = [(n, hmac.new(secret, what, hashlib.sha256).hexdigest()[:32]) for n, what in messages]
    else:
        digests = {row[0] for row in db.execute("SELECT token FROM raters")}
        fresh = [token for token in tokens if _digest(token) not in digests]
        numbered = list(enumerate(fresh, count + 1))
    db.executemany("INSERT INTO raters (id, token) VALUES (?, ?)", [(n, _digest(token)) for n, token in numbered])


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=5, check_same_thread=False)
    db.execute("PRAGMA journal_mode = WAL")
    # The file survives any crash. The server itself makes sure that the last answers are on disk (`session.Kept`).
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA foreign_keys = ON")
    return db


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        # After a disk error, SQLite may have rolled back already.
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _ask(row: Sequence[Any]) -> Ask:
    id, rater, nonce, a, b, turned, again, at = row[:8]
    return Ask(id, rater, nonce, a, b, bool(turned), again, at)


def _answered(row: Sequence[Any]) -> Answered:
    what, *replies, at = row[8:]
    by_question = {q: str(value) for q, value in zip(QUESTIONS, replies, strict=True) if value is not None}
    return Answered(_ask(row), what, by_question, at)
