"""The training loop of learners from preferences: rounds of feedback, each learned for some epochs.

    with PairSession(config, student, log, judge, prompts, preferences) as session:
        for round in session.rounds():
            if round.is_due:
                round.begin(student_pairs(student, judge, round.prompts(), config.pairs, seed=config.seed, ...))
            rows = encode_pairs(student, round.preferences)
            for batch in round.minibatches(rows, lines_each=2):
                for part in batch:
                    loss, sums = my_loss(part.logprobs, part.mask, batch.examples)
                    loss.backward()
                    part.record(sums)
                batch.clip_and_step(config.max_grad_norm)
                round.log(batch)
    return session.result()

A round's lines cannot be regenerated once the student has learned from them, so the current round's preferences are
part of a checkpoint, and a run can resume in mid-round. Its reference log-probabilities are not: they are recomputed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from humor_env.agents.feedback.metrics import example_numbers
from humor_env.agents.feedback.pairs import Feedback, PairConfig
from humor_env.agents.feedback.rounds import Rounds
from humor_env.agents.session.checkpoint import CheckpointStore
from humor_env.agents.session.config import LearnerConfig, rows_at_once
from humor_env.agents.session.limits import RunControl
from humor_env.agents.session.log import Log
from humor_env.agents.session.session import Evaluate, Session
from humor_env.agents.student import Student
from humor_env.agents.student.token_rows import TokenRows
from humor_env.agents.student.writer import Backend
from humor_env.agents.update.minibatch import Minibatch, my_examples, pairs_together
from humor_env.errors import InvalidOption
from humor_env.types import Judge, Preference, Prompt


@dataclass(frozen=True)
class PairLearnerConfig(LearnerConfig):
    """Settings of learners from preferences. `micro_batch` counts lines, `batch_size` pairs."""

    epochs: int = 10
    rounds: int = 1  # of feedback, spread evenly over the epochs
    prompts_per_round: int = 0  # 0: all
    pairs: PairConfig = field(default_factory=PairConfig)
    batch_size: int = 32  # pairs per step, over all processes

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.rounds <= self.epochs:
            raise InvalidOption(
                f"rounds must be between 1 and the number of epochs ({self.epochs}), found {self.rounds}."
            )


class PairSession(Session):
    """One run of a learner from preferences. With `preferences` (from people, say) the judge is not called."""

    config: PairLearnerConfig
    stream: Rounds

    def __init__(
        self,
        config: PairLearnerConfig,
        student: Student,
        log: Log | None,
        judge: Judge | None,
        prompts: Sequence[Prompt],
        preferences: Sequence[Preference],
        checkpoints: CheckpointStore | None = None,
        evaluate: Evaluate | None = None,
        backend: Backend | None = None,
        control: RunControl | None = None,
    ) -> None:
        if judge is None and not preferences:
            raise InvalidOption("This learner needs preferences: give a judge, or existing preferences.")
        self.given, self.backend = preferences, backend
        rounds = Rounds(
            prompts,
            epochs=config.epochs,
            rounds=1 if preferences else config.rounds,
            prompts_per_round=config.prompts_per_round,
            batch_size=config.batch_size,
            seed=config.seed,
        )
        super().__init__(config, student, log, rounds, checkpoints=checkpoints, evaluate=evaluate, control=control)

    @property
    def done(self) -> bool:
        return self.stream.done

    @property
    def asks(self) -> bool:
        return self.stream.due

    def rounds(self) -> Iterator[FeedbackRound]:
        """The remaining rounds, starting with the one that a checkpoint interrupted."""
        while not self.done and not self.control.ending:
            yield FeedbackRound(self)


class FeedbackRound:
    """One round: its feedback, and the minibatches that learn from it."""

    def __init__(self, session: PairSession) -> None:
        self.session, self._rounds = session, session.stream
        self.index = self._rounds.begun
        self.feedback = Feedback.given(session.given)
        self._is_first = False
        self._began = time.perf_counter()
        if self._rounds.due and session.given:
            self.begin(self.feedback)

    @property
    def is_due(self) -> bool:
        """Whether this round's feedback must be collected: not if it was given, or collected before a restart."""
        return self._rounds.due

    @property
    def preferences(self) -> list[Preference]:
        return self._rounds.preferences

    def prompts(self) -> list[Prompt]:
        """The prompts to collect feedback on. Refreshes the backend with the newest weights."""
        if self.session.backend is not None and self.session.step:
            self.session.backend.refresh()
        return self._rounds.take_prompts()

    def begin(self, feedback: Feedback) -> None:
        """Start the round with this feedback. Without preferences the round is skipped, but its cost is counted."""
        session = self.session
        self._rounds.begin(feedback)
        session.control.count(feedback.samples, feedback.judged)
        self.feedback = feedback
        if not self._rounds.preferences:
            session.control.check(asks=session.asks)
            session.save()

    def minibatches(self, rows: TokenRows, *, lines_each: int) -> Iterator[Minibatch]:
        """The optimiser steps of this round's epochs; example e starts at row e x lines_each."""
        session, rounds = self.session, self._rounds
        while self.preferences and not (rounds.done or rounds.due or session.control.ending):
            self._began = time.perf_counter()
            self._is_first = rounds.is_fresh
            session.set_learning_rate(rounds.expected_steps(session.step))
            mine = my_examples(rounds.next_batch())
            yield Minibatch(
                session.student,
                session.optimizer,
                rows,
                pairs_together(rows, mine, lines_each, rows_at_once(session.config)),
                examples=len(mine),
            )

    def log(self, batch: Minibatch, more: Mapping[str, float] | None = None) -> None:
        """End a step: metrics, and after a round's first step its lines."""
        session, is_first = self.session, self._is_first
        session.step += 1
        numbers = example_numbers(batch.sums, batch.example_count, batch.norm) | self._rounds.numbers()
        numbers |= dict(more or {}) | {"seconds/step": time.perf_counter() - self._began}
        lines = (self.feedback.jokes, self.feedback.judgements) if is_first else ((), ())
        # A round's first step is always saved, because its preferences were paid for.
        session.finish_step(numbers, *lines, save=is_first)
