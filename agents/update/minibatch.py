"""One optimiser step: rows are scored in micro-batches, then gradients are exchanged, clipped and applied.

    batch = Minibatch(student, optimizer, rows, length_sorted(rows, 32), mask=mask)
    for part in batch:                              # forward
        loss = -(part.logprobs * part.mask).sum() / batch.tokens
        loss.backward()
        part.record({"policy_loss": loss})
    batch.clip_and_step(1.0)
    batch.sums["policy_loss"], batch.norm

Losses are divided by the counts of the *whole* step over all processes (`batch.tokens`, `batch.examples`), so that
neither micro-batches nor processes change the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from humor_env.agents.session.processes import local_share, process_count, sum_gradients, sum_over_processes
from humor_env.agents.student import Student
from humor_env.agents.student.token_rows import TokenRows, take_rows, widths_of
from humor_env.agents.student.transfers import send
from humor_env.types import Preference


class ScoreOptions(TypedDict, total=False):
    """What `Student.score` computes besides log-probabilities."""

    values: bool
    detach_values: bool
    entropy: bool
    entropy_gradient: bool
    temperature: float


@dataclass
class Part:
    """One micro-batch: `rows` of the step's table, `[b]`, and the active adapter's scores for them, `[b, t]`.

    `values` and `entropy` are empty unless requested. `part(table)` selects the same rows and columns of any table of
    the step, `[B, T]` or `[B]`.
    """

    rows: Tensor
    width: int
    mask: Tensor
    logprobs: Tensor
    values: Tensor
    entropy: Tensor
    sums: dict[str, Tensor]

    def __call__(self, table: Tensor) -> Tensor:
        return table[self.rows] if table.ndim == 1 else table[self.rows, : self.width]

    def record(self, sums: Mapping[str, Tensor]) -> None:
        """Add to the step's sums."""
        for name, number in sums.items():
            self.sums[name] = self.sums.get(name, 0) + number.detach()


class Minibatch:
    """`order` holds row indices, one tensor per micro-batch; `tokens` and `examples` are counts over all processes.

    After `clip_and_step`, `sums` are the recorded sums over all processes, `norm` is the gradient norm before clipping,
    and `token_count` and `example_count` are the counts as numbers. It synchronises with the device once, only there.
    """

    def __init__(
        self,
        student: Student,
        optimizer: torch.optim.Optimizer,
        rows: TokenRows,
        order: Sequence[Tensor],
        *,
        mask: Tensor | None = None,
        examples: int = 0,
        options: ScoreOptions | None = None,
    ) -> None:
        self.student, self.optimizer, self.rows = student, optimizer, rows
        self.order = [index.cpu() for index in order]
        self._places = send(rows.tokens.device, *self.order)
        self.mask = rows.action_mask if mask is None else mask
        self.options = options or {}
        here = self.mask[torch.cat(self._places)] if self.order else self.mask[:0]
        self.tokens = sum_over_processes(here.sum().float()).clamp(min=1)
        counted = torch.full((), float(examples), device=rows.tokens.device)
        self.examples = sum_over_processes(counted) if examples else counted
        self.sums: dict[str, float] = {}
        self.norm = self.token_count = self.example_count = 0.0
        self._totals: dict[str, Tensor] = {}

    def __iter__(self) -> Iterator[Part]:
        self.optimizer.zero_grad(set_to_none=True)
        for index, place, width in zip(self.order, self._places, widths_of(self.rows, self.order), strict=True):
            rows = take_rows(self.rows, index, width)
            scored = self.student.score(rows, **self.options)
            nothing = scored.logprobs.new_zeros(0)
            yield Part(
                place,
                width,
                self.mask[place, :width],
                scored.logprobs,
                nothing if scored.values is None else scored.values,
                nothing if scored.entropy is None else scored.entropy,
                self._totals,
            )

    def clip_and_step(self, max_grad_norm: float) -> None:
        """Sum gradients over processes, clip their norm, update the weights."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        sum_gradients(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        self.optimizer.step()
        device = self.rows.tokens.device
        totals = [torch.as_tensor(t, dtype=torch.float32, device=device) for t in self._totals.values()]
        summed = [sum_over_processes(torch.stack(totals))] if totals else []
        # Read together: each read waits for the device's whole queue.
        scalars = [number.detach().to(device).reshape(1) for number in (norm, self.tokens, self.examples)]
        *sums, self.norm, self.token_count, self.example_count = torch.cat([*summed, *scalars]).tolist()
        self.sums = dict(zip(self._totals, sums, strict=True))


def my_examples(examples: Tensor) -> Tensor:
    """This process's share. A batch that does not divide is done by every process: sums and counts scale alike."""
    return examples[local_share(len(examples))] if len(examples) % process_count() == 0 else examples


def encode_pairs(student: Student, preferences: Sequence[Preference]) -> TokenRows:
    """Row 2i is the chosen line of pair i, row 2i + 1 the rejected one."""
    return student.rows_from_text(
        [p.prompt.text for p in preferences for _ in range(2)],
        [line for p in preferences for line in (p.chosen, p.rejected)],
        [ended for p in preferences for ended in (p.chosen_ended, p.rejected_ended)],
    )


def pairs_together(rows: TokenRows, examples: Tensor, lines_each: int, micro_batch: int) -> list[Tensor]:
    """Micro-batches of row indices that keep each example's lines (rows from e x lines_each on) together."""
    index = examples.cpu()[:, None] * lines_each + torch.arange(lines_each)
    longest = rows.host.attention[index].sum(-1).amax(-1)
    order = torch.argsort(longest, descending=True, stable=True)
    return [index[part].flatten() for part in order.split(max(1, micro_batch // lines_each))]
