"""The lines of one step from all processes, and every metric of a step in the log.

    lines = gather_lines(rollout)          # from this process's rollout to the whole batch, equal on every process
    lines.jokes, lines.judgements
    text_numbers(lines)["reward/mean"]
    kl_numbers(rollout)["kl/per_token"]

A rollout holds one process's share. Its texts are small compared with its tensors, so they are exchanged, and two
processes log the same as one process with the same batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from humor_env.agents.feedback.rollout import Rollout
from humor_env.agents.session.processes import gather_records, spread_over_processes, sum_over_processes
from humor_env.agents.student.logprobs import kl_k1
from humor_env.agents.student.transfers import read
from humor_env.shared import text_stats
from humor_env.types import Joke, Judgement, Prompt, Usage

NO_SPREAD = 1e-6  # rewards that are closer are equal but for rounding


@dataclass(frozen=True)
class WrittenBatch:
    """`[B]` each, over all processes: by attempt, then in batch order."""

    jokes: tuple[Joke, ...]
    judgements: tuple[Judgement, ...]
    rewards: Tensor
    lengths: Tensor  # response tokens
    attempts: tuple[int, ...]  # from 0

    def __len__(self) -> int:
        return len(self.jokes)

    @property
    def valid(self) -> Tensor:
        return torch.tensor([not j.failed for j in self.judgements], dtype=torch.bool)

    @property
    def families(self) -> list[list[int]]:
        """Indices of the lines, grouped by prompt and attempt."""
        siblings: dict[tuple[str, int], list[int]] = {}
        for place, (joke, attempt) in enumerate(zip(self.jokes, self.attempts, strict=True)):
            siblings.setdefault((joke.prompt.id, attempt), []).append(place)
        return list(siblings.values())


def gather_lines(rollout: Rollout) -> WrittenBatch:
    """Gather the whole batch from every process's `rollout`; every process must call it."""
    attempts = [0] * len(rollout)
    for row, following in enumerate(rollout.following.tolist()):
        if following >= 0:
            attempts[following] = attempts[row] + 1
    lengths = rollout.rows.host.action_mask.sum(-1).tolist()
    columns = (rollout.jokes, rollout.judgements, rollout.rewards.tolist(), lengths, attempts)
    rows = [
        {"joke": joke, "judgement": judgement, "reward": reward, "length": length, "attempt": attempt}
        for joke, judgement, reward, length, attempt in zip(*columns, strict=True)
    ]
    gathered = gather_jokes(rows)
    gathered.sort(key=lambda row: row["attempt"])  # stable; a single process has all first attempts first
    return WrittenBatch(
        tuple(row["joke"] for row in gathered),
        tuple(row["judgement"] for row in gathered),
        torch.tensor([row["reward"] for row in gathered]),
        torch.tensor([row["length"] for row in gathered]),
        tuple(row["attempt"] for row in gathered),
    )


def gather_jokes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Gather rows from all processes, in process order; each holds a `joke`, its `judgement`, and plain data."""
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


def text_numbers(lines: WrittenBatch, teacher_grams: frozenset[tuple[str, ...]] = frozenset()) -> dict[str, float]:
    """Metrics of the lines and their judgements: reward and its parts, failures, length, variety, cost."""
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
        "text/distinct_2": text_stats.distinct_n(texts, 2),
        "text/self_overlap": text_stats.self_overlap(texts),
        "text/commonest_share": text_stats.commonest_share(texts),
        "text/commonest_line": text_stats.commonest_line(texts)[1],
        "text/commonest_frame": text_stats.commonest_frame(texts)[1],
        "text/frame_variety": text_stats.frame_variety(texts),
        "text/prompt_overlap": sum(text_stats.overlap([j.text], [j.prompt.text], 3) for j in lines.jokes) / len(texts),
    }
    if teacher_grams:
        numbers["text/teacher_overlap"] = text_stats.overlap(texts, teacher_grams)
    families = lines.families
    if len(families) < len(lines):
        flat = [_deviation(lines.rewards[f][valid[f]]) for f in map(torch.tensor, families)]
        numbers["groups/no_spread_share"] = sum(s < NO_SPREAD for s in flat) / len(flat)
    usages = [j.usage for j in lines.judgements]
    numbers["critic/calls"] = float(sum(u.calls for u in usages))
    if all(u.cost is not None for u in usages):
        numbers["critic/cost"] = float(sum(u.cost or 0.0 for u in usages))
    return numbers


def _deviation(values: Tensor) -> float:
    return float(values.std(unbiased=False)) if len(values) else 0.0


def learning_numbers(sums: Mapping[str, float], norms: Sequence[float]) -> dict[str, float]:
    """Update diagnostics as means over tokens (loss parts, ratio, clip share, entropy), and the gradient norm.
    Empty if no step was taken."""
    if not norms:
        return {}
    tokens = max(1.0, sums["tokens"])
    numbers = {f"update/{n}": sums[n] / tokens for n in sums if n not in ("tokens", "lines", "mismatch")}
    numbers["update/grad_norm"] = sum(norms) / len(norms)
    return numbers


def example_numbers(sums: Mapping[str, float], examples: float, norm: float) -> dict[str, float]:
    """Update diagnostics as means over examples (lines, or pairs of lines), and the gradient norm."""
    means = {f"update/{n}": total / max(1.0, examples) for n, total in sums.items()}
    return means | {"update/grad_norm": norm}


def kl_numbers(rollout: Rollout) -> dict[str, float]:
    """KL to the imitation: mean per token, and sum per line."""
    if not rollout.has_reference:
        return {"kl/per_token": 0.0, "kl/per_line": 0.0}
    mask = rollout.mask
    kl = kl_k1(rollout.logprobs, rollout.ref_logprobs) * mask
    total, tokens, lines = sum_over_processes(
        torch.stack([kl.sum(), mask.sum().float(), mask.any(-1).sum().float()])
    ).tolist()
    return {"kl/per_token": total / max(1.0, tokens), "kl/per_line": total / max(1.0, lines)}


def value_numbers(rollout: Rollout, returns: Tensor, token_rewards: Tensor) -> dict[str, float]:
    """Variance of the returns that the values explain, and a line's reward after its KL, over all processes."""
    numbers = {}
    returns, values, token_rewards, mask, valid = read(
        returns, rollout.values, token_rewards, rollout.mask.bool(), rollout.valid
    )
    count, _, spread = spread_over_processes(returns, mask)
    _, mean, _ = spread_over_processes(values, mask)
    _, _, unexplained = spread_over_processes(returns - values, mask)
    if count > 1:
        numbers["value/explained_variance"] = 1 - unexplained / spread if spread > 0 else 0.0
        numbers["value/mean"] = mean
    earned, lines = sum_over_processes(torch.stack([token_rewards.sum(), valid.sum().float()])).tolist()
    numbers["reward/per_line_after_kl"] = earned / max(1.0, lines)
    return numbers


def clock_numbers(rollout: Rollout, update_seconds: float, step_seconds: float) -> dict[str, float]:
    """Seconds by phase in this process; `judge` is the critic's total time, and `judge_wait` the part of it that the
    process waited for. Tokens and samples are over all processes."""
    numbers = {f"seconds/{n}": s for n, s in rollout.seconds.items()}
    numbers |= {"seconds/update": update_seconds, "seconds/step": step_seconds}
    counts = torch.stack([rollout.rows.host.action_mask.sum().float(), torch.tensor(float(len(rollout)))])
    tokens, samples = sum_over_processes(counts).tolist()
    return numbers | {"tokens_per_second": tokens / step_seconds, "samples_per_second": samples / step_seconds}
