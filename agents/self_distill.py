"""Self-distillation: imitate those of the student's own lines that the judge preferred.

    result = train(SelfDistillConfig(epochs=10), judge, student, log, prompts=prompts)

The control of methods that also learn from the *worse* line: what does the judge's choice alone teach? The method
(phases and names as in `dpo.py`, so that two files compare line by line); 1 to 3 once in each round:

1. *Collect*: the student writes k lines for each prompt; the two most different make a pair (`pairs.py`).
2. *Preferences*: the judge says which line is better, asked in both orders; ties and failures are dropped.
3. *Rows*: the better lines only.
4. *Margins*: none.
5. *Update*: cross-entropy on the tokens of the better lines, the mean over the tokens of the step.
6. *Log and evaluate.*

Deviations: (b) and (c) as in `dpo.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from humor_env.agents.bounds import check_bounds
from humor_env.agents.checkpoint import CheckpointStore
from humor_env.agents.line_update import Counts, example_means, take_line_step
from humor_env.agents.memory import keep_freed_memory
from humor_env.agents.pairs import Feedback, PairConfig, student_pairs
from humor_env.agents.progress import Progress, TrainResult
from humor_env.agents.rounds import Rounds
from humor_env.agents.rows import Rows, Scored
from humor_env.agents.runlog import Log, Silent
from humor_env.agents.schedule import learning_rate_share
from humor_env.agents.sft import sft_loss
from humor_env.agents.student import POLICY, Student
from humor_env.agents.watch import Watch
from humor_env.errors import InvalidOption
from humor_env.types import Judge, Preference, Prompt


@dataclass(frozen=True)
class SelfDistillConfig:
    epochs: int = 10
    rounds: int = 1  # of feedback, spread evenly over the epochs
    prompts_per_round: int = 0  # 0 is all of them
    pairs: PairConfig = field(default_factory=PairConfig)
    batch_size: int = 32  # lines a step, over all processes
    micro_batch: int = 32  # lines in memory at once
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    decay: str = "constant"
    max_grad_norm: float = 1.0
    checkpoint_every: int = 10
    evaluate_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_bounds(self, "epochs", "rounds", "batch_size", "micro_batch", "checkpoint_every")
        if self.rounds > self.epochs:
            raise InvalidOption(f"rounds lies between 1 and the number of epochs ({self.epochs}), found {self.rounds}.")


def train(
    config: SelfDistillConfig,
    judge: Judge | None,
    student: Student,
    log: Log | None = None,
    *,
    prompts: Sequence[Prompt] = (),
    preferences: Sequence[Preference] = (),
    checkpoints: CheckpointStore | None = None,
    evaluate: Callable[[Student], Mapping[str, float]] | None = None,
    watch: Watch | None = None,
) -> TrainResult:
    """Improve the student's `policy` adapter. Arguments and behaviour as in `dpo.train`."""
    if judge is None and not preferences:
        raise InvalidOption(
            "Self-distillation learns from preferences: give a judge to ask, or preferences that were made before."
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
    feedback = Feedback.given(preferences)
    rows: Rows | None = None

    with progress.watch as watch:
        while not rounds.done and not watch.ending:
            began = time.perf_counter()

            # 1. Collect; 2. preferences
            if rounds.due:
                if not preferences and judge is not None:
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

            # 3. Rows
            if rows is None:
                chosen = rounds.preferences
                rows = student.rows_from_text([p.prompt.text for p in chosen], [p.chosen for p in chosen])

            # 4. Margins: none
            def loss_of(
                scored: Scored, index: Tensor, cut: slice, counts: Counts, rows: Rows = rows
            ) -> tuple[Tensor, dict[str, Tensor]]:
                mask = rows.action_mask[index, cut]
                sums = {"line_logprob": scored.logprobs.detach().sum(), "line_tokens": mask.sum().float()}
                return sft_loss(scored.logprobs, mask, counts.tokens), sums

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
                lines_each=1,
                micro_batch=config.micro_batch,
                max_grad_norm=config.max_grad_norm,
            )
            step += 1

            # 6. Log and evaluate
            numbers = example_means(sums, norm) | rounds.numbers()
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
