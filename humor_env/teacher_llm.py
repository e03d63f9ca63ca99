"""A language model as the teacher: several lines for each prompt, to imitate and to compare with.

    teacher = LanguageModelTeacher("anthropic:claude-haiku-4-5", n=3, ledger="teacher.sqlite")
    for demonstration in teacher(prompts):
        ...
    teacher.counts          # {"lines": 297, "refused": 1, "unreadable": 0, "short": 0}

The request has no examples, as in the paper: n creative, humorous versions with the same meaning, as a numbered
list. Refusals are dropped and counted (about 3 to 4 % of inputs in the paper). Every reply is in the ledger
before it is used, so an interrupted collection resumes without paying twice.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from humor_env.errors import InvalidOption
from humor_env.llm.budget import Budget
from humor_env.llm.ledger import Ledger
from humor_env.llm.ledgered_client import Estimate, LedgeredClient, OnProgress, OverBudget
from humor_env.llm.protocol import Client, Reply, Request
from humor_env.llm.template import fill, load
from humor_env.shared.json_lines import NOT_JSON
from humor_env.types import Demonstration, Prompt

VERSION = 1
_ITEM = re.compile(r"^\s*(?:\*\*)?\(?(\d{1,2})[.):](?:\*\*)?\s+(.*\S)\s*$")
_QUOTES = {'"': '"', "“": "”", "«": "»"}
# Refusals in words, with a normal stop reason. Only checked if there is no list.
_DECLINED = re.compile(
    r"\bI(?:['’]m| am)? (?:cannot|can['’]t|won['’]t|unable|not able|sorry)\b"
    r"|\bnot (?:appropriate|comfortable)\b|\bas an AI\b",
    re.IGNORECASE,
)


class LanguageModelTeacher:
    """Sends each prompt `samples` times (for n lines each). `licence` is set on every demonstration."""

    def __init__(
        self,
        client: str | Client = "anthropic",
        *,
        n: int = 3,
        samples: int = 1,
        template: str = "teacher",
        max_tokens: int = 400,
        licence: str = "unknown",
        ledger: str | Path | Ledger | None = None,
        budget: Budget | Mapping[str, Any] | None = None,
        over_budget: OverBudget = "stop",
        options: Mapping[str, Any] | None = None,
        on_progress: OnProgress | None = None,
        batch: int = 256,
        name: str | None = None,
    ) -> None:
        if n < 1 or samples < 1 or batch < 1:
            raise InvalidOption(f"n, samples and batch must be at least 1, found {n}, {samples} and {batch}.")
        self.n, self.samples, self.max_tokens, self.batch = n, samples, max_tokens, batch
        self.licence = licence
        self.ledgered = LedgeredClient(
            f"teacher {VERSION}",
            client,
            ledger=ledger,
            budget=budget,
            over_budget=over_budget,
            options=options,
            on_progress=on_progress,
        )
        self.name = name or self.ledgered.client.name
        self.counts: Counter[str] = Counter(lines=0, refused=0, unreadable=0, short=0, failed=0)
        self._system = fill(load("humor_env.llm", template), n=n)

    def __call__(self, prompts: Iterable[Prompt]) -> Iterator[Demonstration]:
        """Lines as they come, batch by batch, in the order of the prompts. A prompt may get fewer than n, or none."""
        todo = iter(prompts)
        while part := list(islice(todo, self.batch)):
            replies = iter(self.ledgered.ask([request for prompt in part for request in self.requests(prompt)]))
            for prompt in part:
                seen: set[str] = set()
                for _ in range(self.samples):
                    for line in self._lines(next(replies)):
                        if line not in seen:
                            seen.add(line)
                            self.counts["lines"] += 1
                            yield Demonstration(prompt, line, self.name, self.licence)

    def requests(self, prompt: Prompt) -> list[Request]:
        data = {"task": prompt.task, "input": prompt.text}
        return [Request(self._system, data, None, self.max_tokens, (), sample) for sample in range(self.samples)]

    def estimate(self, prompts: Sequence[Prompt]) -> Estimate:
        return self.ledgered.estimate([request for prompt in prompts for request in self.requests(prompt)])

    def close(self) -> None:
        self.ledgered.close()

    def _lines(self, reply: Reply) -> list[str]:
        if reply.error == "refusal":
            self.counts["refused"] += 1
            return []
        # A list that was cut off is intact up to its last line: those lines were paid for and are good.
        if reply.error is not None and reply.error != "cut":
            self.counts["failed"] += 1
            return []
        lines = read_list(reply.text, cut=reply.error == "cut")[: self.n]
        if not lines:
            self.counts["refused" if _DECLINED.search(reply.text) else "unreadable"] += 1
        elif len(lines) < self.n:
            self.counts["short"] += 1
        return lines


def read_list(text: str, cut: bool = False) -> list[str]:
    """The lines of a numbered list, or of a JSON list of strings. Text before and after the list is ignored.

    With `cut`, the last line is dropped: it may be half a joke.
    """
    lines = _json_lines(text)
    if lines is None:
        lines = []
        for row in text.splitlines():
            item = _ITEM.match(row)
            # Numbers must count up from 1: "2024. That was a year" is not an item.
            if item and int(item[1]) == len(lines) + 1:
                lines.append(item[2])
        if cut:
            lines = lines[:-1]
    return [line for line in map(_unquoted, lines) if line]


def _json_lines(text: str) -> list[str] | None:
    body = re.sub(r"\A```(?:json)?\s*|\s*```\Z", "", text.strip())
    if not body.startswith(("[", "{")):
        return None
    try:
        value = json.loads(body)
    except NOT_JSON:
        return None
    if isinstance(value, dict) and len(value) == 1:
        value = next(iter(value.values()))
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return value
    return None


def _unquoted(line: str) -> str:
    line = " ".join(line.split())
    if len(line) > 1 and _QUOTES.get(line[0]) == line[-1] and line[0] not in line[1:-1]:
        line = line[1:-1].strip()
    return line
