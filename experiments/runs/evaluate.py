"""Measure a student on held-out prompts with a judge that did not train it.

    measured = evaluate(student, prompts.split("test"), critic, adapter="policy", seed=0)
    measured.mean, measured.interval    # mean score and its 95 % bootstrap interval over prompts
    measured.parts["meaning"], measured.distinct_2, measured.jokes

Chance is one number per prompt and position, derived from the seed alone: the raw base, the imitation and the trained
policy are measured with the same random numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from humor_env.agents.session.log import joke_record
from humor_env.agents.student import POLICY, Student
from humor_env.agents.student.sampling import Sampling, draw_uniforms
from humor_env.agents.student.writer import Backend, write_jokes
from humor_env.episodes.episode import checked_reply
from humor_env.experiments.runs.interval import bootstrap_interval
from humor_env.shared import text_stats
from humor_env.shared.streams import stream_seed
from humor_env.types import Critic, Joke, Judgement, Prompt, critic_name


@dataclass(frozen=True)
class Evaluation:
    """Scores over prompts. Failed judgements are left out of the means and counted in `failures`."""

    name: str
    jokes: tuple[Joke, ...]
    judgements: tuple[Judgement, ...]
    interval: tuple[float, float]

    @property
    def scores(self) -> list[float]:
        return [j.score for j in self.judgements if j.score is not None]

    @property
    def mean(self) -> float:
        return float(np.mean(self.scores)) if self.scores else float("nan")

    @property
    def failures(self) -> int:
        return sum(j.failed for j in self.judgements)

    @property
    def parts(self) -> dict[str, float]:
        names = dict.fromkeys(n for j in self.judgements for n in j.parts)
        return {n: float(np.mean([j.parts[n] for j in self.judgements if n in j.parts])) for n in names}

    @property
    def distinct_2(self) -> float:
        return text_stats.distinct_n([j.text for j in self.jokes], 2)

    @property
    def length_ratio(self) -> float:
        """Characters written per character of the prompt."""
        return sum(len(j.text) for j in self.jokes) / max(1, sum(len(j.prompt.text) for j in self.jokes))

    def numbers(self) -> dict[str, float]:
        numbers = {"score": self.mean, "low": self.interval[0], "high": self.interval[1]}
        numbers |= {f"part/{n}": v for n, v in self.parts.items()}
        return numbers | {
            "distinct_2": self.distinct_2,
            "length_ratio": self.length_ratio,
            "failures": float(self.failures),
        }


def evaluate(
    student: Student,
    prompts: Sequence[Prompt],
    critic: Critic,
    *,
    adapter: str | None = POLICY,
    sampling: Sampling | None = None,
    seed: int = 0,
    name: str = "",
    batch: int = 128,
    backend: Backend | None = None,
) -> Evaluation:
    """One sampled line per prompt, judged."""
    sampling = sampling or Sampling()
    source = torch.Generator().manual_seed(stream_seed(seed, "evaluation"))
    uniforms = draw_uniforms(len(prompts), sampling.max_new_tokens, source)
    author = name or (adapter or "base")
    jokes = write_jokes(
        student, prompts, sampling, uniforms, author=author, adapter=adapter, at_once=batch, backend=backend
    )
    return judged(jokes, critic, name=author, seed=seed)


def judged(jokes: Sequence[Joke], critic: Critic, *, name: str, seed: int = 0) -> Evaluation:
    """The evaluation of lines that are already written, such as the teacher's."""
    judgements = checked_reply(critic, critic_name(critic), jokes) if jokes else []
    scores = [j.score for j in judgements if j.score is not None]
    return Evaluation(name, tuple(jokes), tuple(judgements), bootstrap_interval(scores, seed=seed))


def save_lines(measured: Evaluation, folder: Path) -> dict[str, float | None]:
    """Write `evaluation-NAME.jsonl`, each line with its judgement; returns the numbers for a results file."""
    from humor_env.experiments.runs.run_folder import write_text

    folder.mkdir(parents=True, exist_ok=True)
    records = [joke_record(0, j, v) for j, v in zip(measured.jokes, measured.judgements, strict=True)]
    write_text(folder / f"evaluation-{measured.name}.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    numbers = measured.numbers() | {"count": float(len(measured.jokes))}
    return {k: v if math.isfinite(v) else None for k, v in numbers.items()}
