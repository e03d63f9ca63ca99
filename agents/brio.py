"""Contrastive ranking: the better line of a pair should be twice as likely as the worse, beside imitating the teacher.

    result = train(BRIOConfig(epochs=10), judge, student, log, prompts=prompts, demonstrations=buffer)

The method (phases and names as in `dpo.py`, so that two files compare line by line); 1 to 3 once in each round:

1. *Collect*: the student writes k lines for each prompt; the two most different make a pair (`pairs.py`). With
   `pairs_of="teacher"` the pairs are made of the teacher's own lines instead.
2. *Preferences*: the judge says which line is better, asked in both orders; ties and failures are dropped.
3. *Length*: lambda is the mean number of tokens of the round's lines.
4. *Margins*: a line's rank score is its log-probability per token; of lines i before j in the judge's order, i's must
   lead by log(2 (j - i)) / lambda, which at the average length makes it twice as likely.
5. *Update*: `ranking_weight` times the mean of max(0, margin - lead), plus `imitation_weight` times the cross-entropy
   on a batch of the teacher's lines, which keeps what the student writes fluent.
6. *Log and evaluate.*

Deviations: (a) lambda counts tokens, as the log-probabilities do; (b) and (c) as in `dpo.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from humor_env.agents.bounds import check_bounds
from humor_env.agents.checkpoint import CheckpointStore
from humor_env.agents.line_update import Counts, encode_pairs, example_means, take_line_step
from humor_env.agents.logprobs import masked_row_mean
from humor_env.agents.memory import keep_freed_memory
from humor_env.agents.pairs import Feedback, PairConfig, student_pairs, teacher_pairs
from humor_env.agents.progress import Progress, TrainResult
from humor_env.agents.rounds import Rounds
from humor_env.agents.rows import Rows, Scored
from humor_env.agents.runlog import Log, Silent
from humor_env.agents.schedule import learning_rate_share
from humor_env.agents.student import POLICY, Student
from humor_env.agents.update import ImitationLoss
from humor_env.agents.watch import Watch
from humor_env.errors import InvalidOption
from humor_env.types import Demonstration, Judge, Preference, Prompt


@dataclass(frozen=True)
class BRIOConfig:
    epochs: int = 10
    rounds: int = 1  # of feedback, spread evenly over the epochs
    prompts_per_round: int = 0  # 0 is all of them
    pairs: PairConfig = field(default_factory=PairConfig)
    pairs_of: str = "student"  # or "teacher"
    batch_size: int = 32  # pairs a step, over all processes
    micro_batch: int = 32  # lines in memory at once
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    decay: str = "constant"
    max_grad_norm: float = 1.0
    ranking_weight: float = 1.0
    average_length: float | None = None  # lambda; None measures it
    imitation_weight: float = 1.0
    imitation_batch_size: int = 32  # teacher lines a step
    checkpoint_every: int = 10
    evaluate_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_bounds(self, "epochs", "rounds", "batch_size", "micro_batch", "imitation_batch_size", "checkpoint_every")
        if self.rounds > self.epochs:
            raise InvalidOption(f"rounds lies between 1 and the number of epochs ({self.epochs}), found {self.rounds}.")
        if self.pairs_of not in ("student", "teacher"):
            raise InvalidOption(f"pairs_of is 'student' or 'teacher', found '{self.pairs_of}'.")
        if self.pairs_of == "teacher" and self.rounds > 1:
            raise InvalidOption(f"The teacher's lines do not change: one round is enough, found rounds={self.rounds}.")
        if self.average_length is not None and not self.average_length > 0:
            raise InvalidOption(f"average_length is above 0, found {self.average_length}.")


def brio_loss(
    logprobs: Tensor,
    mask: Tensor,
    pair_count: Tensor | float,
    *,
    average_length: float,
    ranked: int = 2,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The ranking loss, and *sums* over examples worth logging. `[N x ranked, T]`: an example's lines, best first."""
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
    evaluate: Callable[[Student], Mapping[str, float]] | None = None,
    watch: Watch | None = None,
) -> TrainResult:
    """Improve the student's `policy` adapter. Arguments and behaviour as in `dpo.train`; `demonstrations` are the
    teacher's lines to imitate, and those to be ranked where `pairs_of="teacher"`.
    """
    if judge is None and not preferences:
        raise InvalidOption("BRIO learns from preferences: give a judge to ask, or preferences that were made before.")
    if not demonstrations and (config.imitation_weight or config.pairs_of == "teacher"):
        raise InvalidOption(
            "BRIO imitates the teacher beside ranking: give demonstrations, or set imitation_weight=0 and rank the "
            "student's own lines."
        )
    log = log or Silent()
    keep_freed_memory()
    policy = student.adapter_parameters(POLICY)
    student.activate(POLICY)
    student.train_only(list(policy.values()))
    optimizer = torch.optim.AdamW(policy.values(), lr=config.learning_rate, weight_decay=0.0, fused=True)
    rounds = Rounds(
        prompts,
        epochs=config.epochs,
        rounds=1 if preferences else config.rounds,
        prompts_per_round=config.prompts_per_round,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    progress = Progress(student, optimizer, policy, rounds, checkpoints, watch)
    step = progress.resume(log)
    imitation = ImitationLoss(
        student,
        demonstrations,
        weight=config.imitation_weight,
        decay=1.0,
        batch_size=config.imitation_batch_size,
        micro_batch=config.micro_batch,
        seed=config.seed,
    )
    feedback = Feedback.given(preferences)
    rows: Rows | None = None
    average_length = 1.0

    with progress.watch as watch:
        while not rounds.done and not watch.ending:
            began = time.perf_counter()

            # 1. Collect; 2. preferences
            if rounds.due:
                if not preferences and judge is not None:
                    if config.pairs_of == "teacher":
                        feedback = teacher_pairs(judge, demonstrations, config.pairs)
                    else:
                        feedback = student_pairs(
                            student,
                            judge,
                            rounds.take_prompts(),
                            config.pairs,
                            seed=config.seed,
                            round_index=rounds.begun,
                        )
                rounds.begin(feedback)
                watch.spend(feedback.samples, feedback.judged)
                rows = None
                if not rounds.preferences:  # passed over, but paid for
                    watch.look(asks=rounds.due)
                    progress.save(step)
                continue

            # 3. Length
            if rows is None:
                rows = encode_pairs(student, rounds.preferences)
                average_length = config.average_length or float(rows.action_mask.sum(-1).float().mean())

            # 4. Margins
            def loss_of(
                scored: Scored,
                index: Tensor,
                cut: slice,
                counts: Counts,
                rows: Rows = rows,
                average_length: float = average_length,
            ) -> tuple[Tensor, dict[str, Tensor]]:
                loss, sums = brio_loss(
                    scored.logprobs,
                    rows.action_mask[index, cut],
                    counts.examples,
                    average_length=average_length,
                )
                return config.ranking_weight * loss, sums

            # 5. Update
            is_first = rounds.is_fresh
            progress.set_learning_rate(
                learning_rate_share(step, rounds.expected_steps(step), warmup=config.warmup_steps, decay=config.decay)
            )
            sums, norm = take_line_step(
                student,
                optimizer,
                rows,
                rounds.next_batch(),
                loss_of,
                lines_each=2,
                micro_batch=config.micro_batch,
                max_grad_norm=config.max_grad_norm,
                also=imitation.at(step),
            )
            step += 1

            # 6. Log and evaluate
            numbers = example_means(sums, norm) | rounds.numbers() | {"update/average_length": average_length}
            numbers |= {"learning_rate": optimizer.param_groups[0]["lr"], "seconds/step": time.perf_counter() - began}
            numbers |= progress.evaluate(step, config.evaluate_every, evaluate)
            news = (feedback.jokes, feedback.judgements) if is_first else ((), ())
            progress.record(log, step, numbers, *news)
            progress.check_health(step, policy.values(), 0.0, 0.0)
            # A round's first step is always saved: its preferences were paid for.
            if is_first or step % config.checkpoint_every == 0 or rounds.done or watch.ending:
                progress.save(step)
    student.train_only(())
    return progress.result(step, done=rounds.done)
