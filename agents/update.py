"""One optimiser step over rows of a rollout: the mechanics that on-policy learners share.

    sums, norm = take_step(student, optimizer, rollout, mask, index, loss_of, micro_batch=32, max_grad_norm=1.0)

`loss_of(scored, rows, cut, token_count)` is the learner's own: it gets the fresh scores of some rows (`cut` trims the
columns), and returns their share of the loss with sums worth logging. Losses are divided by the token count of the
*whole* step over all processes, so that neither micro-batches nor processes change it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from humor_env.agents.generate import Sampling, draw_uniforms
from humor_env.agents.processes import process_count, sum_gradients, sum_over_processes
from humor_env.agents.rollout import Rollout
from humor_env.agents.rows import Rows, Scored, length_sorted, take_rows
from humor_env.agents.sft import encode, sft_loss
from humor_env.agents.student import Student
from humor_env.errors import TrainingStopped
from humor_env.streams import generator, stream_seed
from humor_env.types import Demonstration

LossOf = Callable[[Scored, Tensor, slice, Tensor], tuple[Tensor, dict[str, Tensor]]]

MISMATCH_LIMIT = 0.1  # mean |log-ratio| between sampler and update above which they cannot be the same policy


def take_step(
    student: Student,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    mask: Tensor,
    index: Tensor,
    loss_of: LossOf,
    *,
    micro_batch: int,
    max_grad_norm: float,
    sampling: Sampling,
    values: bool = False,
    detach_values: bool = False,
    entropy: bool = True,
    entropy_gradient: bool = False,
    also: Callable[[], None] | None = None,
) -> tuple[dict[str, float], float]:
    """One step over the rows `index`: sums over tokens and all processes, and the gradient norm before clipping.

    `also` may add gradients of its own before they are exchanged and clipped.
    """
    index = index.to(rollout.tokens.device)  # it is cut by indices that are there
    token_count = sum_over_processes(mask[index].sum().float()).clamp(min=1)
    optimizer.zero_grad(set_to_none=True)
    totals: dict[str, Tensor] = {}
    for local in length_sorted(take_rows(rollout.rows, index), micro_batch):
        rows = index[local]
        part = take_rows(rollout.rows, rows)
        cut = slice(0, part.tokens.shape[1])
        scored = student.score(
            part,
            values=values,
            detach_values=detach_values,
            entropy=entropy,
            entropy_gradient=entropy_gradient,
            temperature=sampling.temperature or 1.0,
        )
        loss, sums = loss_of(scored, rows, cut, token_count)
        here = mask[rows, cut]
        if rollout.logprobs is not None:
            sums["mismatch"] = ((scored.logprobs.detach() - rollout.logprobs[rows, cut]).abs() * here).sum()
        sums["tokens"] = here.sum().float()
        sums["lines"] = here.any(-1).sum().float()
        loss.backward()
        for name, number in sums.items():
            totals[name] = totals.get(name, 0) + number
    if also is not None:
        also()
    parameters = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
    sum_gradients(parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()
    names = list(totals)
    summed = sum_over_processes(torch.stack([torch.as_tensor(totals[n], dtype=torch.float32) for n in names]))
    return dict(zip(names, summed.tolist(), strict=True)), float(norm)


def check_first_ratio(step: int, numbers: dict[str, float]) -> float:
    """Before a batch's first optimiser step old and new policy are one: their log-probabilities must agree.

    Returns their mean distance per token; raises `TrainingStopped` where it cannot be rounding.
    """
    mismatch = numbers["mismatch"] / max(1.0, numbers["tokens"])
    if not mismatch <= MISMATCH_LIMIT:  # not-a-number included
        raise TrainingStopped(
            f"At step {step + 1} the update's log-probabilities differ from the sampler's by {mismatch:.3f} a token "
            f"before anything was learned (at most {MISMATCH_LIMIT} can be rounding). The rows are misaligned, the "
            "precision is too low, or a weight is not a number."
        )
    return mismatch


def chance(seed: int, step: int, rows: int, mine: slice) -> Callable[[int, int], Tensor]:
    """The random numbers of one step as a function of the attempt: what a row draws depends on nothing else."""

    def uniforms(attempt: int, columns: int) -> Tensor:
        source = torch.Generator().manual_seed(stream_seed(seed, "sampling", f"{step}/{attempt}"))
        return draw_uniforms(rows, columns, source)[mine]

    return uniforms


def minibatches(rows: int, count: int, seed: int, name: str) -> list[Tensor]:
    """Row indices in `count` random parts (an episode with several attempts gives more rows than prompts)."""
    if count == 1:
        return [torch.arange(rows)]
    shuffled = torch.from_numpy(generator(seed, "minibatches", name).permutation(rows))
    return [part for part in shuffled.chunk(count) if len(part)]


class ImitationLoss:
    """Cross-entropy on a batch of teacher lines, mixed into an update with a weight that fades."""

    def __init__(
        self,
        student: Student,
        demonstrations: Sequence[Demonstration],
        *,
        weight: float,
        decay: float,
        batch_size: int,
        micro_batch: int,
        seed: int,
    ) -> None:
        self.student = student
        self.weight, self.decay = weight, decay
        self.batch_size, self.micro_batch, self.seed = batch_size, micro_batch, seed
        self.rows: Rows | None = encode(student, demonstrations) if weight and demonstrations else None

    def at(self, step: int) -> Callable[[], None] | None:
        """Adds the gradients of this step's batch; None where there is nothing to imitate."""
        if self.rows is None:
            return None
        rows, weight = self.rows, self.weight * self.decay**step

        def backward() -> None:
            chosen = generator(self.seed, "imitation", step).permutation(len(rows.tokens))[: self.batch_size]
            batch = take_rows(rows, torch.from_numpy(chosen))
            count = batch.action_mask.sum() * process_count()
            for local in length_sorted(batch, self.micro_batch):
                part = take_rows(batch, local)
                (weight * sft_loss(self.student.score(part).logprobs, part.action_mask, count)).backward()

        return backward
