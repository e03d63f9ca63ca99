"""A JSON-lines file that several processes may append to, and that survives a write cut off within a line.

    file = LineFile("lines.jsonl", take=lambda number, line: rows.append(json.loads(line)))
    file.read_new()                              # `take` gets each whole line once, whichever process wrote it
    file.append(lambda: [b'{"a": 1}'])           # under a lock, after reading what is new

An append is one locked write, so a crash can only tear the last line. Reading changes nothing: a torn line is skipped,
and dropped by the next append, with a warning and counted in `dropped_bytes`. A line that cannot be the start of a JSON
object was not written by this class: it goes to `take` like any other line, for the caller to refuse.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from humor_env.errors import InvalidOption
from humor_env.shared.user_path import user_path


class LineFile:
    """`take(number, line)` is called once for every line, in order; its exceptions go to the caller."""

    def __init__(self, path: str | os.PathLike[str], take: Callable[[int, bytes], None]) -> None:
        self.path = user_path(path)
        self.dropped_bytes = 0
        self._take = take
        self._offset = 0
        self._lines = 0
        self._unended = b""  # a last line that was taken before its line break was written

    def read_new(self) -> None:
        """Take the lines written since the last call. A missing file has no lines."""
        if not self.path.exists():
            return
        with open(self.path, "rb", buffering=0) as file, locked(file, exclusive=False):
            self._read(file, repair=False)

    def append(self, choose: Callable[[], Sequence[bytes]]) -> None:
        """Write the lines that `choose` returns, after taking everything that others wrote."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b", buffering=0) as file, locked(file, exclusive=True):
            self._read(file, repair=True)
            lines = choose()
            if not lines:
                return
            payload = b"".join(line + b"\n" for line in lines)
            try:
                _write_all(file, payload)
            except OSError:
                # A full disk: remove the part that was written, so that the file holds exactly what was added.
                file.truncate(self._offset)
                raise
            self._offset += len(payload)
            self._lines += len(lines)

    def _read(self, file: Any, repair: bool) -> None:
        file.seek(self._offset)
        data: bytes = file.read()
        end = data.rfind(b"\n") + 1
        for line in data[:end].split(b"\n")[:-1]:
            self._lines += 1
            if line.strip() and line != self._unended:
                self._take(self._lines, line)
            self._unended = b""
            self._offset += len(line) + 1
        tail = data[end:]
        if not tail:
            return
        # A truncated JSON object never parses, so a last line that parses only lacks its line break.
        if _is_json(tail) or not tail.lstrip().startswith(b"{"):
            if tail != self._unended:
                self._take(self._lines + 1, tail)
                self._unended = tail
            if repair:
                file.seek(0, os.SEEK_END)
                _write_all(file, b"\n")
                self._lines, self._offset, self._unended = self._lines + 1, self._offset + len(tail) + 1, b""
        elif repair:
            warnings.warn(f"{self.path}: dropped a last line that was cut off, {tail[:60]!r}", stacklevel=4)
            self.dropped_bytes += len(tail)
            file.truncate(self._offset)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _write_all(file: Any, payload: bytes) -> None:
    rest = memoryview(payload)
    while rest:
        rest = rest[file.write(rest) :]


@contextmanager
def locked(file: Any, exclusive: bool, wait: bool = True) -> Iterator[None]:
    """Hold an open file's lock. Without `wait`, raises BlockingIOError if another process holds it."""
    try:
        import fcntl
    except ImportError:  # Windows has no fcntl: there, one process at a time may write.
        yield
        return
    fcntl.flock(file.fileno(), (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
    try:
        yield
    finally:
        fcntl.flock(file.fileno(), fcntl.LOCK_UN)


@contextmanager
def only_writer(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock file `path` during the block, then remove it; raises InvalidOption(refusal) if another process
    holds it. A file left by a killed process holds no lock."""
    while True:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open(path, "a"))
            try:
                stack.enter_context(locked(file, exclusive=True, wait=False))
            except BlockingIOError:
                raise InvalidOption(refusal) from None
            if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                continue  # the previous holder has just removed it: we hold a file that is no longer at this path
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
