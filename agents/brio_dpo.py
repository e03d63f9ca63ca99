"""Supervision, then feedback: BRIO on pairs of the teacher's lines, then DPO on pairs of the student's own.

    result = train(BRIODPOConfig(), judge, student, log, prompts=prompts, demonstrations=buffer)

The strongest recipe of the paper. In the first phase the judge ranks two of the teacher's lines for each prompt; in the
second it ranks what the student then writes. Both phases train the same `policy` adapter, and DPO's reference stays the
imitation (what BRIO learned counts as a margin already gained). A stopped run resumes in the phase it was in; steps,
logs and evaluations are numbered across both phases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from humor_env.agents import brio, dpo
from humor_env.agents.brio import BRIOConfig
from humor_env.agents.dpo import DPOConfig
from humor_env.agents.session.checkpoint import CheckpointStore
from humor_env.agents.session.limits import RunControl
from humor_env.agents.session.log import Log, Silent, flush_log
from humor_env.agents.session.session import TrainResult
from humor_env.agents.student import Student
from humor_env.agents.student.writer import Backend
from humor_env.types import Demonstration, Joke, Judge, Judgement, Prompt


@dataclass(frozen=True)
class BRIODPOConfig:
    brio: BRIOConfig = field(default_factory=lambda: BRIOConfig(pairs_of="teacher"))
    dpo: DPOConfig = field(default_factory=DPOConfig)


def train(
    config: BRIODPOConfig,
    judge: Judge,
    student: Student,
    log: Log | None = None,
    *,
    prompts: Sequence[Prompt],
    demonstrations: Sequence[Demonstration],
    checkpoints: CheckpointStore | None = None,
    evaluate: Callable[[Student], Mapping[str, float]] | None = None,
    backend: Backend | None = None,
    control: RunControl | None = None,
) -> TrainResult:
    """Improve the student's `policy` adapter. Arguments and behaviour as in `dpo.train`."""
    log, control = log or Silent(), control or RunControl()
    stores: list[CheckpointStore | None] = [None, None]
    if checkpoints is not None:
        stores = [CheckpointStore(checkpoints.folder / n, keep_last=checkpoints.keep_last) for n in ("brio", "dpo")]
    finished = None if stores[0] is None else stores[0].latest()
    if finished is not None and stores[1] is not None and stores[1].latest() is not None:
        # The second phase has begun: its checkpoint holds the whole student, and the first must not rewind the log.
        first = TrainResult(finished.step, False, finished.state["evaluations"], finished.folder)
    else:
        first = brio.train(
            config.brio,
            judge,
            student,
            log,
            prompts=prompts,
            demonstrations=demonstrations,
            checkpoints=stores[0],
            evaluate=evaluate,
            backend=backend,
            control=control,
        )
        if first.stopped or first.why:
            return first
        control.check()  # the second phase asks for more, which a limit reached in the first does not allow
        if control.ending:
            why = "" if control.by_user else control.ending
            return replace(first, stopped=control.by_user, why=why)
    control.steps_before = first.steps
    second = dpo.train(
        config.dpo,
        judge,
        student,
        _After(log, first.steps),
        prompts=prompts,
        checkpoints=stores[1],
        evaluate=evaluate,
        backend=backend,
        control=control,
    )
    later = [e | {"step": e["step"] + first.steps} for e in second.evaluations]
    return replace(second, steps=first.steps + second.steps, evaluations=[*first.evaluations, *later])


class _After:
    """A log whose steps continue from the end of an earlier phase."""

    def __init__(self, log: Log, steps: int) -> None:
        self.log, self.steps = log, steps

    def metrics(self, step: int, numbers: Mapping[str, float]) -> None:
        self.log.metrics(self.steps + step, numbers)

    def jokes(self, step: int, jokes: Sequence[Joke], judgements: Sequence[Judgement]) -> None:
        self.log.jokes(self.steps + step, jokes, judgements)

    def rewind(self, step: int) -> None:
        self.log.rewind(self.steps + step)

    def flush(self) -> None:
        flush_log(self.log)
