"""Direct preference optimisation: make the better line of a pair more likely than the worse, relative to imitation.

    result = train(DPOConfig(epochs=10, rounds=2), judge, student, log, prompts=prompts)

The method (phases and names as in `ppo.py`, so that the files compare line by line); steps 1 to 3 run once per round:

1. *Collect*: the student writes k lines for each prompt; the two most different make a pair (`pairs.py`).
2. *Preferences*: the judge says which line is better, asked in both orders; ties and failures are dropped.
3. *Reference*: log-probabilities of all lines under the frozen imitation, computed once per round.
4. *Margins*: for each pair in the step's batch, log(pi/ref) of the chosen line minus that of the rejected one.
5. *Update*: -log sigmoid(beta x margin); with `label_smoothing` e, (1 - e) times it plus e times the loss of the
   swapped pair. With `loss="ipo"`, the squared distance of the per-token margin from 1 / (2 beta), which bounds the
   push even if the judge is certain.
6. *Log and evaluate.*

Deviations: (a) the reference is the imitation adapter on the same base, not a second model; (b) the end token
counts as a token of the line; (c) random numbers depend only on (seed, round, prompt), and the preferences of the
current round are saved, so a resumed run is reproducible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from humor_env.agents.feedback.pairs import student_pairs
from humor_env.agents.session.checkpoint import CheckpointStore
from humor_env.agents.session.config import rows_at_once
from humor_env.agents.session.limits import RunControl
from humor_env.agents.session.log import Log
from humor_env.agents.session.session import Evaluate, TrainResult
from humor_env.agents.student import IMITATION, Student
from humor_env.agents.student.writer import Backend
from humor_env.agents.update.from_pairs import PairLearnerConfig, PairSession
from humor_env.agents.update.minibatch import encode_pairs
from humor_env.errors import InvalidOption
from humor_env.types import Judge, Preference, Prompt


@dataclass(frozen=True)
class DPOConfig(PairLearnerConfig):
    beta: float = 0.1
    label_smoothing: float = 0.0
    loss: str = "sigmoid"  # or "ipo"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in ("sigmoid", "ipo"):
            raise InvalidOption(f"loss must be 'sigmoid' or 'ipo', found '{self.loss}'.")
        if self.loss == "ipo" and self.label_smoothing:
            raise InvalidOption("label_smoothing applies to the sigmoid loss only: IPO already limits the margin.")
        if not self.beta > 0 or not 0 <= self.label_smoothing < 0.5:
            raise InvalidOption(
                f"beta must be above 0 and label_smoothing in [0, 0.5); found {self.beta} and {self.label_smoothing}."
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
    """The loss, and *sums* over pairs to log. Inputs are `[2P, T]`: even rows are chosen lines, odd rows rejected."""
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
    evaluate: Evaluate | None = None,
    backend: Backend | None = None,
    control: RunControl | None = None,
) -> TrainResult:
    """Improve the student's `policy` adapter. With `preferences` (from people, say) the judge is not called.

    With `checkpoints` the run resumes from the newest intact one. Ctrl-C finishes the step, saves and returns.
    """
    with PairSession(
        config, student, log, judge, prompts, preferences, checkpoints, evaluate, backend, control
    ) as session:
        for round in session.rounds():
            # 1. Collect; 2. preferences
            if judge is not None and round.is_due:
                lines = (student, judge, round.prompts(), config.pairs)
                round.begin(student_pairs(*lines, seed=config.seed, round_index=round.index, backend=backend))

            # 3. Reference. Not merged, as in the update, so that the first margins are 0.
            rows = encode_pairs(student, round.preferences)
            ref_logprobs = student.score_in_batches(
                rows, adapter=IMITATION, micro_batch=rows_at_once(config), merge=False
            ).logprobs

            for batch in round.minibatches(rows, lines_each=2):
                # 4. Margins; 5. update
                for part in batch:
                    loss, sums = dpo_loss(
                        part.logprobs,
                        part(ref_logprobs),
                        part.mask,
                        batch.examples,
                        beta=config.beta,
                        label_smoothing=config.label_smoothing,
                        loss=config.loss,
                    )
                    loss.backward()
                    part.record(sums)
                batch.clip_and_step(config.max_grad_norm)

                # 6. Log and evaluate
                round.log(batch)
    return session.result()
