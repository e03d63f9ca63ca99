"""Where requests go: what an address is called, which addresses may have a key, how much of an answer is read.

    label("http://user:pw@127.0.0.1:8000/v1?x=1")      # "127.0.0.1:8000": part of a client's name, and so of ledgers
    allow_key_hosts("openrouter.ai")                   # what the command line calls for a user who says so
    HUMOR_ENV_ALLOW_KEY_HOSTS=openrouter.ai            # the same from the environment

A spec may come from somebody else and name any address. So a key goes to the service it belongs to, to an address that
the user's own environment names (ANTHROPIC_BASE_URL, OPENAI_BASE_URL), and to hosts that the user has allowed; a spec
alone can neither send a key elsewhere nor choose which environment variable is sent.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

from humor_env.errors import InvalidOption

ALLOW_KEY_HOSTS = "HUMOR_ENV_ALLOW_KEY_HOSTS"
LARGEST_ANSWER = 16 * 2**20
"""Bytes of an answer after unpacking. The longest reply that can be asked for is far below; a bomb is far above."""
_ENCODINGS = ("", "identity", "gzip", "x-gzip", "deflate")
_PORTS = {"http": 80, "https": 443}
_allowed: set[str] = set()


def label(url: str) -> str:
    """`host:port` of an address, and its path where that is more than /v1: no user, no password, no query."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidOption(f"'{_plain(url)}' is not an address. Expected one like http://127.0.0.1:8000/v1.") from None
    if parts.scheme not in _PORTS or not parts.hostname:
        raise InvalidOption(f"'{_plain(url)}' is not an address. Expected one like http://127.0.0.1:8000/v1.")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    where = host if port in (None, _PORTS[parts.scheme]) else f"{host}:{port}"
    path = parts.path.rstrip("/").removesuffix("/v1")
    return where + path


def shown(url: str) -> str:
    """An address as it may be shown: no user, no password, no query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _plain(url: str) -> str:
    return url.rpartition("@")[2].partition("?")[0]


def is_own(url: str | None, service: str) -> bool:
    """Whether an address (None: the service's default) is that of the service itself."""
    return url is None or label(url) == service


def allow_key_hosts(*hosts: str) -> None:
    """Keys may go to these hosts (`host`, or `host:port`) in this process: for what a user says on a command line."""
    _allowed.update(host.strip().lower() for host in hosts if host.strip())


def may_have_key(url: str) -> bool:
    """Whether the user has allowed keys to go to this address."""
    listed = {host.strip().lower() for host in os.environ.get(ALLOW_KEY_HOSTS, "").split(",")} | _allowed
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    return bool(host) and bool({host, f"{host}:{parts.port or _PORTS.get(parts.scheme)}"} & listed)


def no_key_was_sent(url: str, variable: str) -> str:
    """What to say where a server that got no key refuses the call."""
    host = urlsplit(url).netloc.rpartition("@")[2]
    return (
        f"No key was sent to {shown(url)}: only the service itself gets one unasked. If {variable} is meant for it, "
        f"set {ALLOW_KEY_HOSTS}={host} in the environment."
    )


class AnswerTooLarge(ValueError):
    """An answer of more bytes than any reply has."""


class AnswerDamaged(ValueError):
    """An answer whose compression cannot be undone."""


UNREADABLE = (ValueError, RecursionError)


def redirected(target: str) -> str:
    """What to say of an answer that sends the caller elsewhere."""
    return f"it points to {shown(target)}. Redirects are not followed: if that is the service, give its address"


def http_client(sdk: Any, timeout: float) -> Any:
    """An SDK's HTTP client that follows no redirect (it would take the jokes to another host) and reads no more of an
    answer than LARGEST_ANSWER, however small it was packed. Proxies of the environment are used as ever."""

    class Bounded(sdk.DefaultAsyncHttpxClient):
        async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
            response = await super().send(request, stream=True, **{**options, "follow_redirects": False})
            try:
                encoding = response.headers.get("content-encoding", "").strip().lower()
                if encoding not in _ENCODINGS:
                    raise AnswerDamaged(f"an answer packed as '{encoding}'")
                if encoding not in ("", "identity"):
                    del response.headers["content-encoding"]
                response.stream = _bounded_stream(type(response.stream), response.stream, encoding)
                if not stream:
                    await response.aread()
            except BaseException:
                await response.aclose()
                raise
            return response

    connect = min(5.0, timeout)
    return Bounded(
        timeout=sdk.Timeout(timeout, connect=connect), follow_redirects=False, headers={"accept-encoding": "identity"}
    )


def _bounded_stream(kind: type, inner: Any, encoding: str) -> Any:
    """`inner`, unpacked, up to LARGEST_ANSWER bytes. It stays of the HTTP library's own kind of stream."""

    class Stream(kind):
        def __init__(self) -> None:
            pass

        async def __aiter__(self) -> AsyncIterator[bytes]:
            left = LARGEST_ANSWER
            unpack = zlib.decompressobj(47) if encoding not in ("", "identity") else None  # 47: gzip or zlib
            async for chunk in inner:
                part = chunk
                if unpack is not None:
                    try:
                        part = unpack.decompress(chunk, left + 1)
                    except zlib.error:
                        raise AnswerDamaged("an answer whose compression is damaged") from None
                left -= len(part)
                if left < 0:
                    raise AnswerTooLarge(f"an answer of more than {LARGEST_ANSWER} bytes")
                yield part
            if unpack is not None and not unpack.eof:
                raise AnswerDamaged("a compressed answer that was cut off")

        async def aclose(self) -> None:
            await inner.aclose()

    return Stream()


def reason_of(problem: BaseException) -> BaseException:
    """The deepest cause of an SDK's error: the SDK's own message says only 'Connection error.'"""
    while problem.__cause__ is not None:
        problem = problem.__cause__
    return problem


def never_connected(problem: BaseException) -> bool:
    """Whether no connection came about (refused, unknown host): then nothing was sent, and nothing billed."""
    cause: BaseException | None = problem
    while cause is not None:
        # By name: the SDKs' HTTP library is theirs to choose.
        if type(cause).__name__ in ("ConnectError", "ConnectTimeout"):
            return True
        cause = cause.__cause__
    return False
