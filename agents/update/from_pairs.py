"""The loop of learners from preferences: rounds of feedback, each with some epochs of learning.

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

The student's lines of a round cannot be written again once it has learned from them, so the preferences of the round
under way are part of a checkpoint, and a resumed run goes on in the middle of its round. Its reference
log-probabilities are not: they are computed again.
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
    """What learners from preferences have in common. `micro_batch` counts lines, `batch_size` pairs."""

    epochs: int = 10
    rounds: int = 1  # of feedback, spread evenly over the epochs
    prompts_per_round: int = 0  # 0 is all of them
    pairs: PairConfig = field(default_factory=PairConfig)
    batch_size: int = 32  # pairs a step, over all processes

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.rounds <= self.epochs:
            raise InvalidOption(f"rounds lies between 1 and the number of epochs ({self.epochs}), found {self.rounds}.")


class PairSession(Session):
    """One run of a learner from preferences. With `preferences` (from people, say) nobody is asked."""

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
            raise InvalidOption(
                "This learner needs preferences: give a judge to ask, or preferences that were made before."
            )
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
        """The rounds that are left. One that a checkpoint was in the middle of is resumed."""
        while not self.done and not self.control.ending:
            yield FeedbackRound(self)


class FeedbackRound:
    """One round: its feedback, and the minibatches in which it is learned."""

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
        """Whether this round's feedback must be collected. Not where it was given, or begun before a restart."""
        return self._rounds.due

    @property
    def preferences(self) -> list[Preference]:
        return self._rounds.preferences

    def prompts(self) -> list[Prompt]:
        """The prompts to collect feedback on. A backend gets the newest weights first."""
        if self.session.backend is not None and self.session.step:
            self.session.backend.refresh()
        return self._rounds.take_prompts()

    def begin(self, feedback: Feedback) -> None:
        """Learn from this. Feedback without a single preference is passed over, but it was paid for."""
        session = self.session
        self._rounds.begin(feedback)
        session.control.count(feedback.samples, feedback.judged)
        self.feedback = feedback
        if not self._rounds.preferences:
            session.control.check(asks=session.asks)
            session.save()

    def minibatches(self, rows: TokenRows, *, lines_each: int) -> Iterator[Minibatch]:
        """The optimiser steps of this round's epochs; example e is the rows from e x lines_each on."""
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
        # A round's first step is always saved: its preferences were paid for.
        session.finish_step(numbers, *lines, save=is_first)
