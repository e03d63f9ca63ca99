"""Direct preference optimisation: make the better line of a pair likelier than the worse, measured from the imitation.

    result = train(DPOConfig(epochs=10, rounds=2), judge, student, log, prompts=prompts)

The method (phases and names as in `ppo.py`, so that two files compare line by line); 1 to 3 once in each round:

1. *Collect*: the student writes k lines for each prompt; the two most different make a pair (`pairs.py`).
2. *Preferences*: the judge says which line is better, asked in both orders; ties and failures are dropped.
3. *Reference*: log-probabilities of all lines under the frozen imitation, which the whole round shares.
4. *Margins*: of each pair in the step's batch, log(pi/ref) of the chosen line minus that of the rejected one.
5. *Update*: -log sigmoid(beta x margin); with `label_smoothing` e, (1 - e) of it and e of the loss of the pair turned
   round. With `loss="ipo"` the squared distance of the margin per token from 1 / (2 beta), which does not push without
   end where the judge is sure.
6. *Log and evaluate.*

Deviations: (a) the reference is the imitation adapter on the same base, not a second model; (b) at a line's end the end
token counts as a token of the line; (c) chance is a function of (seed, round, prompt), and the preferences of the round
under way are saved: a resumed run repeats itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from humor_env.agents.bounds import check_bounds
from humor_env.agents.checkpoint import CheckpointStore
from humor_env.agents.line_update import Counts, encode_pairs, example_means, take_line_step
from humor_env.agents.memory import keep_freed_memory
from humor_env.agents.pairs import Feedback, PairConfig, student_pairs
from humor_env.agents.progress import Progress, TrainResult
from humor_env.agents.rounds import Rounds
from humor_env.agents.rows import Rows, Scored
from humor_env.agents.runlog import Log, Silent
from humor_env.agents.schedule import learning_rate_share
from humor_env.agents.student import IMITATION, POLICY, Student
from humor_env.agents.watch import Watch
from humor_env.errors import InvalidOption
from humor_env.types import Judge, Preference, Prompt


@dataclass(frozen=True)
class DPOConfig:
    epochs: int = 10
    rounds: int = 1  # of feedback, spread evenly over the epochs
    prompts_per_round: int = 0  # 0 is all of them
    pairs: PairConfig = field(default_factory=PairConfig)
    batch_size: int = 32  # pairs a step, over all processes
    micro_batch: int = 32  # lines in memory at once
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    decay: str = "constant"
    max_grad_norm: float = 1.0
    beta: float = 0.1
    label_smoothing: float = 0.0
    loss: str = "sigmoid"  # or "ipo"
    checkpoint_every: int = 10
    evaluate_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_bounds(self, "epochs", "rounds", "batch_size", "micro_batch", "checkpoint_every")
        if self.rounds > self.epochs:
            raise InvalidOption(f"rounds lies between 1 and the number of epochs ({self.epochs}), found {self.rounds}.")
        if self.loss not in ("sigmoid", "ipo"):
            raise InvalidOption(f"loss is 'sigmoid' or 'ipo', found '{self.loss}'.")
        if self.loss == "ipo" and self.label_smoothing:
            raise InvalidOption("label_smoothing belongs to the sigmoid loss: IPO bounds its own push.")
        if not self.beta > 0 or not 0 <= self.label_smoothing < 0.5:
            raise InvalidOption(
                f"beta is above 0 and label_smoothing lies in [0, 0.5); found {self.beta} and {self.label_smoothing}."
            )


def dpo_loss(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    pair_count: Tensor | float,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    loss: str = "sigmoid",
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and *sums* over pairs worth logging. All `[2P, T]`: even rows are chosen lines, odd rows rejected."""
    mask = mask.to(logprobs.dtype)
    gains = ((logprobs - ref_logprobs) * mask).sum(-1)
    if loss == "ipo":
        per_token = gains / mask.sum(-1).clamp(min=1)
        margins = per_token[::2] - per_token[1::2]
        losses = (margins - 1 / (2 * beta)).square()
    else:
        margins = gains[::2] - gains[1::2]
        losses = -(1 - label_smoothing) * logsigmoid(beta * margins) - label_smoothing * logsigmoid(-beta * margins)
    sums = {
        "policy_loss": losses,
        "margin": margins,
        "ranked_right": (margins > 0).to(mask.dtype),
        "chosen_gain": gains[::2],  # falls below 0 where DPO pushes both lines down
        "rejected_gain": gains[1::2],
    }
    return losses.sum() / pair_count, {n: s.detach().sum() for n, s in sums.items()}


def train(
    config: DPOConfig,
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
    """Improve the student's `policy` adapter. With `preferences` (from people, say) nobody is asked.

    With `checkpoints` the run resumes from the newest whole one. Ctrl-C finishes the step, saves and returns.
    """
    if judge is None and not preferences:
        raise InvalidOption("DPO learns from preferences: give a judge to ask, or preferences that were made before.")
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
    ref_logprobs: Tensor | None = None

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

            # 3. Reference
            if rows is None or ref_logprobs is None:
                rows = encode_pairs(student, rounds.preferences)
                # Not merged: the update does not merge either, so that the first margins are 0.
                ref_logprobs = student.score_in_batches(
                    rows, adapter=IMITATION, micro_batch=config.micro_batch, merge=False
                ).logprobs

            # 4. Margins
            def loss_of(
                scored: Scored,
                index: Tensor,
                cut: slice,
                counts: Counts,
                rows: Rows = rows,
                ref_logprobs: Tensor = ref_logprobs,
            ) -> tuple[Tensor, dict[str, Tensor]]:
                return dpo_loss(
                    scored.logprobs,
                    ref_logprobs[index, cut],
                    rows.action_mask[index, cut],
                    counts.examples,
                    beta=config.beta,
                    label_smoothing=config.label_smoothing,
                    loss=config.loss,
                )

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
