"""Best of n: no learning. The student writes n lines, the critic picks one; the control that learners must beat.

    writer = BestOfN(student, critic, BestOfNConfig(n=8))
    jokes = writer.write(prompts)              # one line per prompt
    writer.judgements                          # how many it took: n for each line, now and for ever
    train(BestOfNConfig(n=8), critic, student).writer      # the same, as a learner that learns nothing

What PPO gains over the imitation is only worth its training if it beats this with the same critic. Chance is a function
of (seed, place of the prompt, sibling): the first n lines of best-of-16 are those of best-of-8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from humor_env.agents.feedback.rollout import check_failures
from humor_env.agents.session.limits import RunControl
from humor_env.agents.session.log import Log, Silent
from humor_env.agents.session.session import TrainResult
from humor_env.agents.student import POLICY, Student
from humor_env.agents.student.sampling import Sampling, draw_uniforms
from humor_env.agents.student.writer import Backend, write_jokes
from humor_env.episodes.episode import checked_reply
from humor_env.errors import InvalidOption
from humor_env.shared.streams import stream_seed
from humor_env.types import Critic, Joke, Judgement, Prompt, critic_name


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
    """A writer: prompts in, one joke for each out. `samples`, `judgements` and `unjudged` count what it took."""

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
        """The best line for each prompt; of equals, and where every judgement failed, the one written first."""
        config = self.config
        jokes = self._lines(prompts, config.seed if seed is None else seed)
        judgements = checked_reply(self.critic, critic_name(self.critic), jokes) if jokes else []
        self.samples += len(jokes)
        self.judgements += len(judgements)
        check_failures(judgements, config.max_failure_share)
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
    """The place of the highest score, the first of equals; 0 where nothing was judged."""
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
    """No step is taken, nothing is spent and nothing saved: what comes out is a writer to measure and to use."""
    (log or Silent()).rewind(0)
    return TrainResult(0, False, [], None, writer=BestOfN(student, critic, config, backend=backend))
