"""Cross-entropy on a teacher's lines: the loss of imitation, which other learners may add to their own.

imitation = ImitationLoss(student, demonstrations, config, weight=0.5, decay=0.99)
imitation.backward(step)          # adds its gradients to those of the learner's own loss
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from humor_env.agents.session.config import MicroBatch, rows_at_once
from humor_env.agents.session.processes import process_count
from humor_env.agents.student import Student
from humor_env.agents.student.token_rows import TokenRows, length_sorted, take_rows, widths_of
from humor_env.shared.streams import generator
from humor_env.types import Demonstration


def sft_loss(logprobs: Tensor, action_mask: Tensor, token_count: Tensor | float) -> Tensor:
    """-sum of log p over response tokens / the number of tokens in the *whole* batch."""
    return -(logprobs * action_mask).sum() / token_count


def encode(student: Student, demonstrations: Sequence[Demonstration]) -> TokenRows:
    return student.rows_from_text([d.prompt.text for d in demonstrations], [d.text for d in demonstrations])


class BatchedConfig(Protocol):
    """The batch settings of a learner."""

    @property
    def batch_size(self) -> int: ...

    @property
    def micro_batch(self) -> MicroBatch: ...

    @property
    def seed(self) -> int: ...


class ImitationLoss:
    """Cross-entropy on a batch of teacher lines, added to an update with a decaying weight. Weight 0 disables it."""

    def __init__(
        self,
        student: Student,
        demonstrations: Sequence[Demonstration],
        config: BatchedConfig,
        *,
        weight: float,
        decay: float,
        batch_size: int | None = None,
    ) -> None:
        self.student = student
        self.weight, self.decay = weight, decay
        self.batch_size = config.batch_size if batch_size is None else batch_size
        self.micro_batch, self.seed = rows_at_once(config), config.seed
        self.rows: TokenRows | None = encode(student, demonstrations) if weight and demonstrations else None

    def backward(self, step: int) -> None:
        """Add the gradients of this step's batch."""
        if self.rows is None:
            return
        rows, weight = self.rows, self.weight * self.decay**step
        chosen = generator(self.seed, "imitation", step).permutation(len(rows.tokens))[: self.batch_size]
        batch = take_rows(rows, torch.from_numpy(chosen))
        count = batch.action_mask.sum() * process_count()
        order = length_sorted(batch, self.micro_batch)
        for local, width in zip(order, widths_of(batch, order), strict=True):
            part = take_rows(batch, local, width)
            (weight * sft_loss(self.student.score(part).logprobs, part.action_mask, count)).backward()
