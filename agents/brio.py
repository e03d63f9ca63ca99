"""Contrastive ranking: make the better line of a pair twice as likely as the worse, while imitating the teacher.

    result = train(BRIOConfig(epochs=10), judge, student, log, prompts=prompts, demonstrations=buffer)

The method (phases and names as in `dpo.py`, so that the files compare line by line); steps 1 to 3 run once per round:

1. *Collect*: the student writes k lines for each prompt; the two most different make a pair (`pairs.py`). With
   `pairs_of="teacher"` the pairs are made of the teacher's own lines instead.
2. *Preferences*: the judge says which line is better, asked in both orders; ties and failures are dropped.
3. *Length*: lambda is the mean number of tokens of the round's lines.
4. *Margins*: a line's rank score is its log-probability per token; of lines i before j in the judge's order, i's must
   lead by log(2 (j - i)) / lambda, which at the average length makes it twice as likely.
5. *Update*: `ranking_weight` times the mean of max(0, margin - lead), plus `imitation_weight` times the cross-entropy
   on a batch of the teacher's lines, which keeps the student fluent.
6. *Log and evaluate.*

Deviations: (a) lambda counts tokens, as the log-probabilities do; (b) and (c) as in `dpo.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from humor_env.agents.feedback.pairs import student_pairs, teacher_pairs
from humor_env.agents.session.checkpoint import CheckpointStore
from humor_env.agents.session.config import check_bounds
from humor_env.agents.session.limits import RunControl
from humor_env.agents.session.log import Log
from humor_env.agents.session.session import Evaluate, TrainResult
from humor_env.agents.student import Student
from humor_env.agents.student.logprobs import masked_row_mean
from humor_env.agents.student.writer import Backend
from humor_env.agents.update.from_pairs import PairLearnerConfig, PairSession
from humor_env.agents.update.imitation import ImitationLoss
from humor_env.agents.update.minibatch import encode_pairs
from humor_env.errors import InvalidOption
from humor_env.types import Demonstration, Judge, Preference, Prompt


@dataclass(frozen=True)
class BRIOConfig(PairLearnerConfig):
    pairs_of: str = "student"  # or "teacher"
    ranking_weight: float = 1.0
    average_length: float | None = None  # lambda; None: measured
    imitation_weight: float = 1.0
    imitation_batch_size: int = 32  # teacher lines per step

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self, "imitation_batch_size")
        if self.pairs_of not in ("student", "teacher"):
            raise InvalidOption(f"pairs_of must be 'student' or 'teacher', found '{self.pairs_of}'.")
        if self.pairs_of == "teacher" and self.rounds > 1:
            raise InvalidOption(f"The teacher's lines do not change: one round is enough, found rounds={self.rounds}.")
        if self.average_length is not None and not self.average_length > 0:
            raise InvalidOption(f"average_length must be above 0, found {self.average_length}.")


def brio_loss(
    logprobs: Tensor,
    mask: Tensor,
    pair_count: Tensor | float,
    *,
    average_length: float,
    ranked: int = 2,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The ranking loss, and *sums* over examples to log. `[N x ranked, T]`: each example's lines, best first."""
    scores = masked_row_mean(logprobs, mask).unflatten(0, (-1, ranked))
    losses = scores.new_zeros(len(scores))
    for i in range(ranked):
        for j in range(i + 1, ranked):
            margin = math.log(2 * (j - i)) / average_length
            losses = losses + (scores[:, j] - scores[:, i] + margin).clamp(min=0)
    lead = scores[:, 0] - scores[:, -1]
    sums = {
        "ranking_loss": losses,
        "margin": lead,
        "ranked_right": (lead > 0).to(scores.dtype),
        "chosen_score": scores[:, 0],
        "rejected_score": scores[:, -1],
    }
    return losses.sum() / pair_count, {n: s.detach().sum() for n, s in sums.items()}


def train(
    config: BRIOConfig,
    judge: Judge | None,
    student: Student,
    log: Log | None = None,
    *,
    prompts: Sequence[Prompt] = (),
    demonstrations: Sequence[Demonstration] = (),
    preferences: Sequence[Preference] = (),
    checkpoints: CheckpointStore | None = None,
    evaluate: Evaluate | None = None,
    backend: Backend | None = None,
    control: RunControl | None = None,
) -> TrainResult:
    """Improve the student's `policy` adapter. Arguments and behaviour as in `dpo.train`; `demonstrations` are the
    teacher's lines to imitate, and with `pairs_of="teacher"` also the lines to rank.
    """
    if not demonstrations and (config.imitation_weight or config.pairs_of == "teacher"):
        raise InvalidOption(
            "BRIO also imitates the teacher: give demonstrations, or set imitation_weight=0 and rank the "
            "student's own lines."
        )
    with PairSession(
        config, student, log, judge, prompts, preferences, checkpoints, evaluate, backend, control
    ) as session:
        imitation = ImitationLoss(
            student,
            demonstrations,
            config,
            weight=config.imitation_weight,
            decay=1.0,
            batch_size=config.imitation_batch_size,
        )
        for round in session.rounds():
            # 1. Collect; 2. preferences
            if judge is not None and round.is_due:
                if config.pairs_of == "teacher":
                    round.begin(teacher_pairs(judge, demonstrations, config.pairs))
                else:
                    lines = (student, judge, round.prompts(), config.pairs)
                    round.begin(student_pairs(*lines, seed=config.seed, round_index=round.index, backend=backend))

            # 3. Length
            rows = encode_pairs(student, round.preferences)
            average_length = config.average_length or float(rows.host.action_mask.sum(-1).float().mean())

            for batch in round.minibatches(rows, lines_each=2):
                # 4. Margins; 5. update
                for part in batch:
                    loss, sums = brio_loss(part.logprobs, part.mask, batch.examples, average_length=average_length)
                    (config.ranking_weight * loss).backward()
                    part.record(sums)
                imitation.backward(session.step)
                batch.clip_and_step(config.max_grad_norm)

                # 6. Log and evaluate
                round.log(batch, {"update/average_length": average_length})
    return session.result()
