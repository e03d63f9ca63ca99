"""Self-distillation: imitate the student's own lines that the judge preferred.

    result = train(SelfDistillConfig(epochs=10), judge, student, log, prompts=prompts)

The control for methods that also learn from the *worse* line: it learns from the judge's choice alone. The method
(phases and names as in `dpo.py`, so that the files compare line by line); steps 1 to 3 run once per round:

1. *Collect*: the student writes k lines for each prompt; the two most different make a pair (`pairs.py`).
2. *Preferences*: the judge says which line is better, asked in both orders; ties and failures are dropped.
3. *Rows*: the better lines only.
4. *Margins*: none.
5. *Update*: cross-entropy on the tokens of the better lines, the mean over the tokens of the step.
6. *Log and evaluate.*

Deviations: (b) and (c) as in `dpo.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from humor_env.agents.feedback.pairs import student_pairs
from humor_env.agents.session.checkpoint import CheckpointStore
from humor_env.agents.session.limits import RunControl
from humor_env.agents.session.log import Log
from humor_env.agents.session.session import Evaluate, TrainResult
from humor_env.agents.student import Student
from humor_env.agents.student.writer import Backend
from humor_env.agents.update.from_pairs import PairLearnerConfig, PairSession
from humor_env.agents.update.imitation import sft_loss
from humor_env.types import Judge, Preference, Prompt


@dataclass(frozen=True)
class SelfDistillConfig(PairLearnerConfig):
    """`batch_size` counts lines, the better one of each pair."""


def train(
    config: SelfDistillConfig,
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
    """Improve the student's `policy` adapter. Arguments and behaviour as in `dpo.train`."""
    with PairSession(
        config, student, log, judge, prompts, preferences, checkpoints, evaluate, backend, control
    ) as session:
        for round in session.rounds():
            # 1. Collect; 2. preferences
            if judge is not None and round.is_due:
                asked = (student, judge, round.prompts(), config.pairs)
                round.begin(student_pairs(*asked, seed=config.seed, round_index=round.index, backend=backend))

            # 3. Rows
            better = round.preferences
            lines, ended = [p.chosen for p in better], [p.chosen_ended for p in better]
            rows = student.rows_from_text([p.prompt.text for p in better], lines, ended)

            for batch in round.minibatches(rows, lines_each=1):
                # 4. Margins: none; 5. update
                for part in batch:
                    loss = sft_loss(part.logprobs, part.mask, batch.tokens)
                    loss.backward()
                    part.record({"line_logprob": part.logprobs.sum(), "line_tokens": part.mask.sum().float()})
                batch.clip_and_step(config.max_grad_norm)

                # 6. Log and evaluate
                round.log(batch)
    return session.result()
