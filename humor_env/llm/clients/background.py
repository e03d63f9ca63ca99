"""One event loop in one background thread, behind plain synchronous calls.

    run(coroutine)          # blocks until it is done; works in scripts, notebooks and inside other event loops

Pooled connections belong to the loop that opened them, so all clients of the process share this one.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar, cast

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None
_process = 0


def loop() -> asyncio.AbstractEventLoop:
    """The background loop, started on first use. A forked process gets its own: threads do not survive a fork."""
    global _loop, _thread, _process
    with _lock:
        if _loop is None or _thread is None or not _thread.is_alive() or _process != os.getpid():
            _loop = asyncio.new_event_loop()
            _process = os.getpid()
            _thread = threading.Thread(target=_loop.run_forever, name="humor-env-llm", daemon=True)
            _thread.start()
        return _loop


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` on the background loop and return its result. An interrupt here cancels it there."""
    home = loop()
    if threading.current_thread() is _thread:
        work.close()
        raise RuntimeError("a language-model client was called from inside its own on_reply: that would never return")
    future = asyncio.run_coroutine_threadsafe(_guarded(work), home)
    try:
        result, wish_to_end = future.result()
    except BaseException:
        if not future.done():
            future.cancel()
        raise
    if wish_to_end is not None:
        raise wish_to_end
    return cast("T", result)


async def _guarded(work: Coroutine[Any, Any, T]) -> tuple[T | None, BaseException | None]:
    """Pass KeyboardInterrupt and SystemExit to the caller: escaping from a task they would end the loop."""
    try:
        return await work, None
    except (KeyboardInterrupt, SystemExit) as wish_to_end:
        return None, wish_to_end
