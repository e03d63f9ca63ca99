"""Addresses of services: their labels, which of them may get a key, and how much of an answer is read.

    label("http://user:pw@127.0.0.1:8000/v1?x=1")      # "127.0.0.1:8000": part of a client's name, and so of ledgers
    allow_key_hosts("openrouter.ai")                   # called by the command line at the user's request
    HUMOR_ENV_ALLOW_KEY_HOSTS=openrouter.ai            # the same from the environment

A spec may come from somebody else and name any address. So a key goes only to its own service, to an address set in
the user's environment (ANTHROPIC_BASE_URL, OPENAI_BASE_URL), and to hosts that the user has allowed; a spec alone can
neither send a key elsewhere nor choose which environment variable is sent.
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
"""Bytes of an answer after unpacking. Far above the longest possible reply, far below a decompression bomb."""
_ENCODINGS = ("", "identity", "gzip", "x-gzip", "deflate")
_PORTS = {"http": 80, "https": 443}
_allowed: set[str] = set()


def label(url: str) -> str:
    """`host:port` of an address, and its path unless that is /v1; without user, password or query."""
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
    """An address without user, password or query, for display."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _plain(url: str) -> str:
    return url.rpartition("@")[2].partition("?")[0]


def is_own(url: str | None, service: str) -> bool:
    """Whether an address (None: the default) is the service's own. Without encryption, it may be anybody's."""
    return url is None or (label(url) == service and urlsplit(url).scheme == "https")


def allow_key_hosts(*hosts: str) -> None:
    """Allow keys to be sent to these hosts (`host` or `host:port`) in this process, as set on the command line."""
    _allowed.update(host.strip().lower() for host in hosts if host.strip())


def may_have_key(url: str) -> bool:
    """Whether the user has allowed keys to be sent to this address."""
    listed = {host.strip().lower() for host in os.environ.get(ALLOW_KEY_HOSTS, "").split(",")} | _allowed
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    return bool(host) and bool({host, f"{host}:{parts.port or _PORTS.get(parts.scheme)}"} & listed)


def no_key_was_sent(url: str, variable: str) -> str:
    """The message for a call refused by a server that was sent no key."""
    host = urlsplit(url).netloc.rpartition("@")[2]
    return (
        f"No key was sent to {shown(url)}: by default only the service itself gets one. If {variable} is meant for it, "
        f"set {ALLOW_KEY_HOSTS}={host} in the environment."
    )


class AnswerTooLarge(ValueError):
    """An answer larger than any reply can be."""


class AnswerDamaged(ValueError):
    """An answer that cannot be decompressed."""


def redirected(target: str) -> str:
    """The message for a redirect."""
    return f"it points to {shown(target)}. Redirects are not followed: if that is the service, give its address"


def http_client(sdk: Any, timeout: float) -> Any:
    """An SDK's HTTP client that follows no redirects (which would send the jokes to another host) and reads at most
    LARGEST_ANSWER unpacked bytes of an answer. Proxies from the environment still apply."""

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
    """`inner`, unpacked, up to LARGEST_ANSWER bytes, as a stream of the HTTP library's own type."""

    class Stream(kind):
        def __init__(self) -> None:
            pass

        async def __aiter__(self) -> AsyncIterator[bytes]:
            bytes_left = LARGEST_ANSWER
            unpack = zlib.decompressobj(47) if encoding not in ("", "identity") else None  # 47: gzip or zlib
            async for chunk in inner:
                part = chunk
                if unpack is not None:
                    try:
                        part = unpack.decompress(chunk, bytes_left + 1)
                    except zlib.error:
                        raise AnswerDamaged("an answer whose compression is damaged") from None
                bytes_left -= len(part)
                if bytes_left < 0:
                    raise AnswerTooLarge(f"an answer of more than {LARGEST_ANSWER} bytes")
                yield part
            if unpack is not None and not unpack.eof:
                raise AnswerDamaged("a compressed answer that was cut off")

        async def aclose(self) -> None:
            await inner.aclose()

    return Stream()


def reason_of(problem: BaseException) -> BaseException:
    """The root cause of an SDK's error: the SDK's own message is only 'Connection error.'"""
    while problem.__cause__ is not None:
        problem = problem.__cause__
    return problem


def never_connected(problem: BaseException) -> bool:
    """Whether no connection was made (refused, unknown host), so that nothing was sent or billed."""
    cause: BaseException | None = problem
    while cause is not None:
        # By name, because each SDK chooses its own HTTP library.
        if type(cause).__name__ in ("ConnectError", "ConnectTimeout"):
            return True
        cause = cause.__cause__
    return False
