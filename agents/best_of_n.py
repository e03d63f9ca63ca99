"""Best of n: no learning. The student writes n lines and the critic picks one; the baseline that learners must beat.

    writer = BestOfN(student, critic, BestOfNConfig(n=8))
    jokes = writer.write(prompts)              # one line per prompt
    writer.judgements                          # the number spent: n per line, on every call
    train(BestOfNConfig(n=8), critic, student).writer      # the same, through the learners' interface

PPO is worth its training only if it beats this with the same critic. Random numbers depend only on (seed, prompt index,
sibling), so the first 8 lines of best-of-16 are those of best-of-8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from humor_env.agents.feedback.rollout import check_failures_here
from humor_env.agents.session.limits import RunControl
from humor_env.agents.session.log import Log, Silent
from humor_env.agents.session.session import TrainResult
from humor_env.agents.student import POLICY, Student
from humor_env.agents.student.sampling import Sampling, draw_uniforms
from humor_env.agents.student.writer import Backend, write_jokes
from humor_env.episodes.episode import judged_with_words
from humor_env.errors import InvalidOption
from humor_env.shared.streams import stream_seed
from humor_env.types import Critic, Joke, Judgement, Prompt


@dataclass(frozen=True)
class BestOfNConfig:
    n: int = 8
    sampling: Sampling = field(default_factory=Sampling)
    adapter: str = POLICY
    micro_batch: int = 96  # lines written at once
    max_failure_share: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n < 1 or self.micro_batch < 1:
            raise InvalidOption(f"n and micro_batch must be at least 1, found {self.n} and {self.micro_batch}.")


class BestOfN:
    """A writer: one joke per prompt. `samples`, `judgements` and `unjudged` are running counts."""

    def __init__(
        self,
        student: Student,
        critic: Critic,
        config: BestOfNConfig | None = None,
        *,
        backend: Backend | None = None,
    ) -> None:
        self.student, self.critic, self.backend = student, critic, backend
        self.config = config or BestOfNConfig()
        self.name = f"best-of-{self.config.n}"
        self.samples = self.judgements = self.unjudged = 0

    def write(self, prompts: Sequence[Prompt], *, seed: int | None = None) -> list[Joke]:
        """The best line for each prompt. Ties, and groups in which every judgement failed, go to the first line."""
        config = self.config
        jokes = self._lines(prompts, config.seed if seed is None else seed)
        judgements = judged_with_words(self.critic, jokes) if jokes else []
        self.samples += len(jokes)
        self.judgements += len(judgements)
        # A run measures in its main process only: the others would not join an exchange.
        check_failures_here(judgements, config.max_failure_share)
        best = []
        for start in range(0, len(jokes), config.n):
            group = judgements[start : start + config.n]
            self.unjudged += all(j.failed for j in group)
            best.append(jokes[start + best_place(group)])
        return best

    def _lines(self, prompts: Sequence[Prompt], seed: int) -> list[Joke]:
        config = self.config
        if not prompts:
            return []
        return write_jokes(
            self.student,
            [p for p in prompts for _ in range(config.n)],
            config.sampling,
            torch.stack([self._chance(seed, f"{i}/{k}") for i in range(len(prompts)) for k in range(config.n)]),
            author=self.name,
            adapter=config.adapter,
            at_once=max(1, config.micro_batch // config.n) * config.n,
            backend=self.backend,
        )

    def _chance(self, seed: int, name: str) -> torch.Tensor:
        source = torch.Generator().manual_seed(stream_seed(seed, "best-of-n", name))
        return draw_uniforms(1, self.config.sampling.max_new_tokens, source)[0]


def best_place(judgements: Sequence[Judgement]) -> int:
    """Index of the highest score, the first one on ties; 0 if nothing was judged."""
    scores = [-1.0 if j.score is None else j.score for j in judgements]
    return scores.index(max(scores))


def train(
    config: BestOfNConfig,
    critic: Critic,
    student: Student,
    log: Log | None = None,
    *,
    backend: Backend | None = None,
    control: RunControl | None = None,
) -> TrainResult:
    """Return a writer to evaluate and use. Takes no step, spends nothing and saves nothing."""
    (log or Silent()).rewind(0)
    return TrainResult(0, False, [], None, writer=BestOfN(student, critic, config, backend=backend))
