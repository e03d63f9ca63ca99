"""Measure a student on held-out prompts with a judge that did not train it.

    measured = evaluate(student, prompts.split("test"), critic, adapter="policy", seed=0)
    measured.mean, measured.interval    # mean score and its 95 % bootstrap interval over prompts
    measured.parts["meaning"], measured.distinct_2, measured.jokes

There is one random number per prompt, line and position, derived from the seed alone, so the raw base, the imitation
and the trained policy are measured with the same ones. With several lines for each prompt, the first is that of an
evaluation with one line, and the lines of a prompt are averaged: intervals are over prompts, because four lines for
one prompt are not four independent tests.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from humor_env.agents.session.log import joke_record
from humor_env.agents.session.session import Writer
from humor_env.agents.student import POLICY, Student
from humor_env.agents.student.sampling import Sampling, draw_uniforms
from humor_env.agents.student.writer import Backend, write_jokes
from humor_env.episodes.episode import judged_with_words
from humor_env.errors import InvalidOption
from humor_env.experiments.runs.interval import bootstrap_interval
from humor_env.shared import text_stats
from humor_env.shared.streams import stream_seed
from humor_env.types import Critic, Joke, Judgement, Prompt


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
        """The mean over prompts of the means of their lines."""
        scores = prompt_means(self.jokes, self.judgements)
        return float(np.mean(scores)) if scores else float("nan")

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
    lines: int = 1,
) -> Evaluation:
    """Sample `lines` lines for each prompt and judge them."""
    sampling = sampling or Sampling()
    author = name or (adapter or "base")

    def write(line: int) -> list[Joke]:
        source = torch.Generator().manual_seed(stream_seed(seed, "evaluation", line))
        uniforms = draw_uniforms(len(prompts), sampling.max_new_tokens, source)
        return write_jokes(
            student, prompts, sampling, uniforms, author=author, adapter=adapter, at_once=batch, backend=backend
        )

    return judged(_by_prompt([write(line) for line in _places(lines)]), critic, name=author, seed=seed)


def written_by(writer: Writer, prompts: Sequence[Prompt], *, lines: int, seed: int) -> list[Joke]:
    """`lines` lines for each prompt from a writer used instead of the student, such as best-of-n. Each is requested
    separately, so that a critic that compares the candidates for one prompt sees only those of one line."""
    seeds = [stream_seed(seed, "evaluation", line) if line else None for line in _places(lines)]
    return _by_prompt([writer.write(prompts, seed=turn_seed) for turn_seed in seeds])


def _places(lines: int) -> range:
    if lines < 1:
        raise InvalidOption(f"An evaluation writes at least 1 line for each prompt, not {lines}.")
    return range(lines)


def _by_prompt(by_turn: Sequence[Sequence[Joke]]) -> list[Joke]:
    """All lines of the first prompt, then those of the second."""
    return [joke for prompt_jokes in zip(*by_turn, strict=True) for joke in prompt_jokes]


def judged(jokes: Sequence[Joke], critic: Critic, *, name: str, seed: int = 0) -> Evaluation:
    """The evaluation of lines that are already written, such as the teacher's."""
    judgements = judge_apart(critic, jokes)
    scores = prompt_means(jokes, judgements)
    return Evaluation(name, tuple(jokes), tuple(judgements), bootstrap_interval(scores, seed=seed))


def judge_apart(critic: Critic, jokes: Sequence[Joke]) -> list[Judgement]:
    """The critic's judgements, without ever showing it two lines for one prompt together. A critic that compares
    siblings, or lowers the score of repeats, then scores each line as if it were the only one. As in learning, a line
    without a required word of its prompt scores 0."""
    judgements: dict[int, Judgement] = {}
    turns = line_places(jokes)
    for turn in range(max(turns, default=-1) + 1):
        now = [i for i, own_turn in enumerate(turns) if own_turn == turn]
        judgements |= zip(now, judged_with_words(critic, [jokes[i] for i in now]), strict=True)
    return [judgements[i] for i in range(len(jokes))]


def line_places(jokes: Sequence[Joke]) -> list[int]:
    """For each line, how many of its prompt's lines come before it."""
    before: Counter[str] = Counter()
    places = []
    for joke in jokes:
        places.append(before[joke.prompt.id])
        before[joke.prompt.id] += 1
    return places


def prompt_means(jokes: Sequence[Joke], judgements: Sequence[Judgement]) -> list[float]:
    """The mean score of each prompt's lines; a prompt without any judged line is left out."""
    scores: dict[str, list[float]] = {}
    for joke, judgement in zip(jokes, judgements, strict=True):
        if judgement.score is not None:
            scores.setdefault(joke.prompt.id, []).append(judgement.score)
    return [float(np.mean(prompt_scores)) for prompt_scores in scores.values()]


def save_lines(measured: Evaluation, folder: Path) -> dict[str, float | None]:
    """Write `evaluation-NAME.jsonl`, each line with its judgement; returns the numbers for a results file."""
    from humor_env.experiments.runs.run_folder import write_text

    folder.mkdir(parents=True, exist_ok=True)
    records = [joke_record(0, j, v) for j, v in zip(measured.jokes, measured.judgements, strict=True)]
    write_text(folder / f"evaluation-{measured.name}.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    numbers = measured.numbers() | {"count": float(len(measured.jokes))}
    return {k: v if math.isfinite(v) else None for k, v in numbers.items()}
