"""What all processes wrote in one step, and the numbers that describe it: what a log is about.

    lines = gather_lines(rollout)          # this process's rollout in, the whole batch out, everywhere the same
    lines.jokes, lines.judgements
    text_numbers(lines)["reward/mean"]

A rollout holds one process's share. Its texts are small beside its tensors, so they are exchanged, and the log of two
processes is that of one with the same batch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from humor_env import measures
from humor_env.agents.processes import gather_records
from humor_env.agents.rollout import Rollout
from humor_env.types import Joke, Judgement, Prompt, Usage


@dataclass(frozen=True)
class Lines:
    """`[B]` each, over all processes: attempts in order, and within an attempt the batch's order."""

    jokes: tuple[Joke, ...]
    judgements: tuple[Judgement, ...]
    rewards: Tensor
    lengths: Tensor  # response tokens

    def __len__(self) -> int:
        return len(self.jokes)

    @property
    def valid(self) -> Tensor:
        return torch.tensor([not j.failed for j in self.judgements], dtype=torch.bool)

    @property
    def families(self) -> list[list[int]]:
        """The places of the lines for each prompt."""
        found: dict[str, list[int]] = {}
        for place, joke in enumerate(self.jokes):
            found.setdefault(joke.prompt.id, []).append(place)
        return list(found.values())


def gather_lines(rollout: Rollout) -> Lines:
    """The batch of which `rollout` is this process's share; every process must call it."""
    attempts = [0] * len(rollout)
    for row, following in enumerate(rollout.following.tolist()):
        if following >= 0:
            attempts[following] = attempts[row] + 1
    columns = (rollout.jokes, rollout.judgements, rollout.rewards.tolist(), rollout.lengths.tolist(), attempts)
    rows = [
        {"joke": joke, "judgement": judgement, "reward": reward, "length": length, "attempt": attempt}
        for joke, judgement, reward, length, attempt in zip(*columns, strict=True)
    ]
    gathered = gather_jokes(rows)
    gathered.sort(key=lambda row: row["attempt"])  # stable: one process would have all first attempts first
    return Lines(
        tuple(row["joke"] for row in gathered),
        tuple(row["judgement"] for row in gathered),
        torch.tensor([row["reward"] for row in gathered]),
        torch.tensor([row["length"] for row in gathered]),
    )


def gather_jokes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of all processes, in their order; each holds a `joke`, its `judgement`, and plain data."""
    records = gather_records(
        [row | {"joke": asdict(row["joke"]), "judgement": asdict(row["judgement"])} for row in rows]
    )
    if records is None:
        return rows
    return [row | {"joke": _joke(row["joke"]), "judgement": _judgement(row["judgement"])} for row in records]


def _joke(record: dict[str, Any]) -> Joke:
    return Joke(**{**record, "prompt": Prompt(**record["prompt"])})


def _judgement(record: dict[str, Any]) -> Judgement:
    return Judgement(**{**record, "usage": Usage(**record["usage"])})


def text_numbers(lines: Lines, teacher_grams: frozenset[tuple[str, ...]] = frozenset()) -> dict[str, float]:
    """What was written and what the critic said: reward and its parts, failures, length, variety, cost."""
    valid = lines.valid
    scored = lines.rewards[valid]
    ended = sum(j.stop_reason == "end" for j in lines.jokes)
    numbers = {
        "reward/mean": float(scored.mean()) if len(scored) else 0.0,
        "reward/deviation": float(scored.std(unbiased=False)) if len(scored) else 0.0,
        "failures/share": 1 - float(valid.float().mean()),
        "length/tokens": float(lines.lengths.float().mean()),
        "length/ended_share": ended / len(lines),
    }
    parts: dict[str, list[float]] = {}
    for judgement in lines.judgements:
        for name, value in judgement.parts.items():
            parts.setdefault(name, []).append(value)
    numbers |= {f"reward/part/{n}": sum(v) / len(v) for n, v in parts.items()}
    texts = [j.text for j in lines.jokes]
    numbers |= {
        "text/distinct_2": measures.distinct_n(texts, 2),
        "text/self_overlap": measures.self_overlap(texts),
        "text/commonest_share": measures.commonest_share(texts),
        "text/prompt_overlap": sum(measures.overlap([j.text], [j.prompt.text], 3) for j in lines.jokes) / len(texts),
    }
    if teacher_grams:
        numbers["text/teacher_overlap"] = measures.overlap(texts, teacher_grams)
    families = lines.families
    if len(families) < len(lines):
        flat = [_deviation(lines.rewards[f][valid[f]]) for f in map(torch.tensor, families)]
        numbers["groups/no_spread_share"] = sum(s < 1e-6 for s in flat) / len(flat)
    usages = [j.usage for j in lines.judgements]
    numbers["critic/calls"] = float(sum(u.calls for u in usages))
    if all(u.cost is not None for u in usages):
        numbers["critic/cost"] = float(sum(u.cost or 0.0 for u in usages))
    return numbers


def _deviation(values: Tensor) -> float:
    return float(values.std(unbiased=False)) if len(values) else 0.0
