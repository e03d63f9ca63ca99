"""Remove servers, passwords and local paths from a run or a file of lines before it is shared.

    publishable("openai:judge@http://me:secret@10.1.2.3:8000/v1")     # "openai:judge"
    publishable({"rubric": "/home/me/rubric.txt", "ledger": "/home/me/v.sqlite"})      # {"rubric": "rubric.txt"}
    publishable(results, hosts=hosts_in(spec))     # also the bare names of these servers, as in "h:8000 is down"

Addresses go, ledgers go, and of an absolute path the last part stays. Texts of lines and prompts are for `keep`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

_ADDRESS = re.compile(r"@?\b[A-Za-z][\w+.-]*://[^\s\"'<>\]})]*")
_CLIENT = re.compile(r"\b((?:openai|anthropic|anthropic-batch)(?::[^@\s\"']*)?)@[^\s\"']+")
_ROOT = r"(?:(?:~[\w.-]*|[A-Za-z]:)?[/\\])"
# A text that is one path, perhaps after a name ("local:/home/me/model"); a path in quotes; and one inside a sentence.
_WHOLE = re.compile(rf"((?:[\w.-]{{2,}}[:=])?){_ROOT}([^\n]*)\Z")
_QUOTED = re.compile(rf"(['\"]){_ROOT}([^'\"\n]*)\1")
_INSIDE = re.compile(rf"(?<![\w./\\-]){_ROOT}[/\\]?(?:[^\s/\\\"'<>|]+[/\\])+([^\s/\\\"'<>|]*)")
_DROPPED = ("ledger",)
_WORD = "[A-Za-z0-9]"


class Password(str):
    """One of the texts to remove that is not the name of a server."""

    __slots__ = ()


def publishable(value: Any, *, hosts: Collection[str] = (), keep: Collection[str] = ()) -> Any:
    """Plain data without what is private. Texts under the keys of `keep` stay as they are; a text of which nothing
    remains is dropped with its key."""
    if isinstance(value, str):
        return _text(value, hosts)
    if isinstance(value, Mapping):
        cleaned: dict[Any, Any] = {}
        for key, inner in value.items():
            if key in _DROPPED:
                continue
            new = inner if key in keep and isinstance(inner, str) else publishable(inner, hosts=hosts, keep=keep)
            if new != "" or inner == "":
                # A plain name is a setting's, also where a server is called "judge".
                cleaned[_text(key, hosts) if isinstance(key, str) and not key.isidentifier() else key] = new
        return cleaned
    if isinstance(value, list | tuple):
        return [publishable(inner, hosts=hosts, keep=keep) for inner in value]
    return value


def _text(text: str, hosts: Collection[str]) -> str:
    cleaned = _CLIENT.sub(r"\1", _ADDRESS.sub("", text))
    if whole := _WHOLE.match(cleaned):
        return whole[1] + _last(whole[2])
    cleaned = _QUOTED.sub(lambda match: f"{match[1]}{_last(match[2])}{match[1]}", cleaned)
    cleaned = _INSIDE.sub(r"\1", cleaned)
    for host in sorted(hosts, key=len, reverse=True):
        name = re.escape(host)
        # A server may be called like a part of a word; a password goes wherever it stands.
        cleaned = re.sub(name if isinstance(host, Password) else rf"(?<!{_WORD}){name}(?!{_WORD})", "[server]", cleaned)
    return cleaned if cleaned == text else cleaned.strip()


def _last(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def hosts_in(value: Any) -> set[str]:
    """The servers and passwords in the addresses that plain data contains."""
    if isinstance(value, Mapping):
        return set().union(*map(hosts_in, value.values())) if value else set()
    if isinstance(value, list | tuple):
        return set().union(*map(hosts_in, value)) if value else set()
    hosts: set[str] = set()
    for address in _ADDRESS.findall(value) if isinstance(value, str) else ():
        try:
            parts = urlsplit(address.removeprefix("@"))
            hosts |= {part for part in (parts.netloc, parts.hostname) if part}
            hosts |= {Password(parts.password)} if parts.password else set()
        except ValueError:
            continue
    return hosts
