"""One optimiser step over lines given as text, alone or in pairs: what `update.take_step` is to rollouts.

    rows = encode_pairs(student, preferences)                     # chosen and rejected side by side
    sums, norm = take_line_step(student, optimizer, rows, batch, loss_of, lines_each=2, ...)

`loss_of(scored, rows, cut, counts)` is the learner's own. An example's lines always share a micro-batch, and losses are
divided by the counts of the *whole* step over all processes, so that neither micro-batches nor processes change it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from humor_env.agents.processes import local_share, process_count, sum_gradients, sum_over_processes
from humor_env.agents.rows import Rows, Scored, take_rows
from humor_env.agents.student import Student
from humor_env.types import Preference


@dataclass(frozen=True)
class Counts:
    """Of one step, over all processes: response tokens, and examples (lines, or pairs of lines)."""

    tokens: Tensor
    examples: Tensor


LineLoss = Callable[[Scored, Tensor, slice, Counts], tuple[Tensor, dict[str, Tensor]]]


def encode_pairs(student: Student, preferences: Sequence[Preference]) -> Rows:
    """Row 2i is the chosen line of pair i, row 2i + 1 the rejected one."""
    return student.rows_from_text(
        [p.prompt.text for p in preferences for _ in range(2)],
        [line for p in preferences for line in (p.chosen, p.rejected)],
    )


def take_line_step(
    student: Student,
    optimizer: torch.optim.Optimizer,
    rows: Rows,
    examples: Tensor,
    loss_of: LineLoss,
    *,
    lines_each: int,
    micro_batch: int,
    max_grad_norm: float,
    also: Callable[[], None] | None = None,
) -> tuple[dict[str, float], float]:
    """One step over `examples`; example e is the rows from e × lines_each on. Sums over all processes, and the
    gradient norm before clipping. `also` may add gradients of its own before they are exchanged and clipped.
    """
    # A last batch that does not divide is done by every process: sums and counts then grow alike.
    mine = examples[local_share(len(examples))] if len(examples) % process_count() == 0 else examples
    offsets = torch.arange(lines_each)
    index = (mine[:, None] * lines_each + offsets).to(rows.tokens.device)
    counts = Counts(
        sum_over_processes(rows.action_mask[index.flatten()].sum().float()).clamp(min=1),
        sum_over_processes(torch.tensor(float(len(mine)), device=rows.tokens.device)),
    )
    optimizer.zero_grad(set_to_none=True)
    totals: dict[str, Tensor] = {}
    longest = rows.attention[index].sum(-1).amax(-1)
    order = torch.argsort(longest, descending=True, stable=True)
    for local in order.split(max(1, micro_batch // lines_each)):
        here = index[local].flatten()
        part = take_rows(rows, here)
        loss, sums = loss_of(student.score(part), here, slice(0, part.tokens.shape[1]), counts)
        loss.backward()
        for name, number in sums.items():
            totals[name] = totals.get(name, 0) + number.detach()
    if also is not None:
        also()
    parameters = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
    sum_gradients(parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()
    totals |= {"examples": torch.tensor(float(len(mine)))}
    names = list(totals)
    summed = sum_over_processes(torch.stack([torch.as_tensor(totals[n], dtype=torch.float32).cpu() for n in names]))
    return dict(zip(names, summed.tolist(), strict=True)), float(norm)


def example_means(sums: Mapping[str, float], norm: float) -> dict[str, float]:
    """The health of an update as means over examples, and the gradient norm."""
    examples = max(1.0, sums["examples"])
    means = {f"update/{n}": total / examples for n, total in sums.items() if n != "examples"}
    return means | {"update/grad_norm": norm}
