"""Progress of a learner from preferences: feedback rounds, spread over epochs, and the position in the current one.

    rounds = Rounds(prompts, epochs=10, rounds=2, batch_size=32, seed=0)
    while not rounds.done:
        if rounds.due:
            rounds.begin(student_pairs(student, judge, rounds.take_prompts(), ...))
            continue
        batch = rounds.next_batch()        # indices into rounds.preferences

A round's lines cannot be regenerated once the student has learned from them, so the current round's preferences are
part of the saved state. Its reference log-probabilities are not: they are recomputed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from humor_env.agents.feedback.pairs import Feedback, preference_record, read_preference
from humor_env.errors import InvalidOption, TrainingStopped
from humor_env.prompts import PromptStream
from humor_env.shared.streams import generator
from humor_env.types import Preference, Prompt


class Rounds:
    """Round r starts at epoch r × epochs / rounds. An epoch is one pass over the preferences of its round."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        epochs: int,
        rounds: int,
        batch_size: int,
        seed: int,
        prompts_per_round: int = 0,
    ) -> None:
        if not 1 <= rounds <= epochs:
            raise InvalidOption(f"rounds must be between 1 and the number of epochs ({epochs}), found {rounds}.")
        self.stream = PromptStream(prompts, seed=seed) if prompts else None
        self.prompts_per_round = prompts_per_round or len(prompts)
        self.epochs, self.rounds, self.batch_size, self.seed = epochs, rounds, batch_size, seed
        self.epoch = 0
        self.position = 0  # preferences done in this epoch
        self.begun = 0  # rounds begun
        self.preferences: list[Preference] = []
        self.counts: dict[str, float] = {}

    @property
    def done(self) -> bool:
        return self.epoch >= self.epochs

    @property
    def due(self) -> bool:
        """Whether the next round's feedback must be collected now."""
        return not self.done and self.begun < self.rounds and self.epoch >= self._first_epoch(self.begun)

    def _first_epoch(self, index: int) -> int:
        return index * self.epochs // self.rounds

    def take_prompts(self) -> list[Prompt]:
        """The prompts of the next round."""
        if self.stream is None:
            raise InvalidOption("Collecting feedback needs prompts: give prompts, or existing preferences.")
        return self.stream.take(self.prompts_per_round)

    def begin(self, feedback: Feedback) -> None:
        """Start a round. A round without preferences is skipped; in the first round that is an error."""
        for name, count in feedback.counts.items():
            self.counts[name] = self.counts.get(name, 0.0) + count
        self.preferences = list(feedback.preferences)
        self.begun += 1
        self.position = 0
        if self.preferences:
            return
        if self.begun == 1:
            why = ", ".join(f"{n}: {v:.0f}" for n, v in feedback.counts.items())
            raise TrainingStopped(
                f"There is nothing to learn from: the feedback holds no preference ({why}). 'alike' counts prompts "
                "whose candidates were all the same, 'uneven' those dropped by the length filter."
            )
        self.epoch = self._first_epoch(self.begun) if self.begun < self.rounds else self.epochs

    @property
    def is_fresh(self) -> bool:
        """Whether nothing has been learned from the current round yet."""
        return self.position == 0 and self.begun > 0 and self.epoch == self._first_epoch(self.begun - 1)

    def next_batch(self) -> Tensor:
        """Indices of the next preferences: each once per epoch, in an order determined by (seed, epoch)."""
        order = generator(self.seed, "preference-order", self.epoch).permutation(len(self.preferences))
        batch = order[self.position : self.position + self.batch_size]
        self.position += len(batch)
        if self.position == len(order):
            self.epoch, self.position = self.epoch + 1, 0
        return torch.from_numpy(batch)

    def expected_steps(self, step: int) -> int:
        """Estimated steps of the whole run, for the learning rate, from the steps taken and the round's size."""
        batches = (self.epochs - self.epoch) * -(-len(self.preferences) // self.batch_size)
        return step + batches - -(-self.position // self.batch_size)

    def numbers(self) -> dict[str, float]:
        """Feedback counts so far, over all rounds."""
        return {f"feedback/{n}": v for n, v in self.counts.items()} | {
            "feedback/rounds": float(self.begun),
            "feedback/round_preferences": float(len(self.preferences)),
        }

    def get_state(self) -> dict[str, Any]:
        return {
            "stream": None if self.stream is None else self.stream.get_state(),
            "epoch": self.epoch,
            "position": self.position,
            "begun": self.begun,
            "counts": self.counts,
            "preferences": [preference_record(p) for p in self.preferences],
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        if self.stream is not None and state["stream"] is not None:
            self.stream.set_state(state["stream"])
        self.epoch, self.position, self.begun = state["epoch"], state["position"], state["begun"]
        self.counts = dict(state["counts"])
        if "judged" in self.counts:  # of a version that did not count those with an answer in both orders
            self.counts.setdefault("both_orders", self.counts["judged"] - self.counts["failed"])
        self.preferences = [read_preference(record) for record in state["preferences"]]
