"""The common part of clients that use a service's own SDK: connecting lazily, calling, closing.

class MyClient(SdkClient):
    def _connect(self): ...          # makes `_sdk` and `_caller` for the background loop, unless they exist
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from humor_env.errors import CredentialError
from humor_env.llm.budget import Budget
from humor_env.llm.clients import background
from humor_env.llm.clients.retry import Caller, OnWait, Policy
from humor_env.llm.protocol import OnReply, Reply, Request


class SdkClient:
    """Subclasses set `name` and implement `_connect`."""

    name: str
    # What the name in ledgers of version 0.1 lacks, and what to do about it.
    former_lacks = "the address that gave them"
    former_remedy = "If they are this server's, give the client's option called = ''."

    def __init__(self, policy: Policy | None, budget: Budget | None) -> None:
        self.policy = policy or Policy()
        self.budget = budget or Budget()
        self.on_wait: OnWait | None = None
        self._connecting = threading.Lock()
        self._caller: Caller | None = None
        self._sdk: Any = None
        self._sdk_loop: Any = None

    def _connect(self) -> Any:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def __call__(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        self._connect()
        assert self._caller is not None
        self._caller.on_wait = self.on_wait
        return self._caller.ask(requests, on_reply)

    def close(self) -> None:
        sdk, self._sdk = self._sdk, None
        if sdk is not None and self._sdk_loop is background.loop():
            background.run(sdk.close())

    @property
    def lacks_key(self) -> bool:
        """Whether a call would fail for lack of a key."""
        try:
            self._connect()
        except CredentialError:
            return True
        return False
