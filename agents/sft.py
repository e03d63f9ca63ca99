"""Imitation: learn to write like the teacher, by cross-entropy on the tokens of its lines.

    result = train(SFTConfig(epochs=3), student, demonstrations, dev, log)

1. Each demonstration is a row: the prompt, then the line with its end token. All lines of a prompt are used; several
   targets per prompt keep the student's output varied.
2. The loss is the mean of -log p over *response* tokens of the whole batch, so that the
   micro-batch size changes nothing.
3. After each epoch the loss on dev lines is measured; training stops when it has not improved for `patience` epochs,
   and the best epoch's weights are kept.
4. The result is frozen as the `imitation` adapter (the reference from now on), and `policy` starts as its copy.

With `full=True` all base weights are trained and the adapters stay empty: the tuned base is then the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from humor_env.agents.session.checkpoint import CheckpointStore, load_optimizer, optimizer_tensors
from humor_env.agents.session.config import MicroBatch, check_bounds, rows_at_once
from humor_env.agents.session.limits import RunControl
from humor_env.agents.session.log import Log, Silent, flush_log
from humor_env.agents.session.processes import keep_freed_memory, process_count
from humor_env.agents.session.schedule import learning_rate_share
from humor_env.agents.student import IMITATION, Student
from humor_env.agents.student.token_rows import TokenRows, length_sorted, take_rows, widths_of
from humor_env.agents.update.imitation import encode, sft_loss
from humor_env.agents.update.minibatch import Minibatch, my_examples
from humor_env.errors import InvalidOption, PromptError, StudentError, TrainingStopped
from humor_env.shared.precision import precision_of
from humor_env.shared.streams import generator
from humor_env.types import Demonstration


@dataclass(frozen=True)
class SFTConfig:
    epochs: int = 3
    batch_size: int = 64
    micro_batch: MicroBatch = 64
    learning_rate: float = 2e-3
    decay: str = "cosine"
    warmup_steps: int = 10
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    full: bool = False
    patience: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        check_bounds(self, "epochs", "batch_size", "micro_batch")
        if self.batch_size % process_count():
            raise InvalidOption(f"batch_size {self.batch_size} does not divide among {process_count()} processes.")


@dataclass(frozen=True)
class SFTResult:
    steps: int
    train_loss: float
    dev_loss: float | None
    best_epoch: int
    stopped: bool = False  # by the user
    why: str = ""  # any other reason for an early end


def train(
    config: SFTConfig,
    student: Student,
    demonstrations: Sequence[Demonstration],
    dev: Sequence[Demonstration] = (),
    log: Log | None = None,
    *,
    checkpoints: CheckpointStore | None = None,
    control: RunControl | None = None,
) -> SFTResult:
    """Train `imitation` on the demonstrations and start `policy` from it."""
    if not demonstrations:
        raise PromptError("There is nothing to imitate: the teacher buffer holds no line for this split.")
    log, control, at_once = log or Silent(), control or RunControl(), rows_at_once(config)
    keep_freed_memory()
    rows = encode(student, demonstrations)
    dev_rows = encode(student, dev) if dev else None
    names, optimizer = _make_optimizer(config, student)
    per_epoch = -(-len(demonstrations) // config.batch_size)
    total = config.epochs * per_epoch
    step, best_epoch, best_loss, dev_loss, last = 0, 0, float("inf"), None, float("nan")
    best: dict[str, Tensor] = {}
    learned = False  # whether the dev loss has stopped improving

    checkpoint = checkpoints.resume() if checkpoints else None
    if checkpoint is not None:
        step = checkpoint.step
        _load(student, optimizer, names, checkpoint.tensors, config.full)
        best = {n.removeprefix("best/"): t for n, t in checkpoint.tensors.items() if n.startswith("best/")}
        best_epoch, best_loss, dev_loss, last = (
            checkpoint.state[k] for k in ("best_epoch", "best_loss", "dev", "last")
        )
        best_loss = float("inf") if best_loss is None else best_loss
        control.set_state(checkpoint.state["watch"], checkpoint.seconds)
        control.check(asks=False)
    if checkpoints is not None:
        log.rewind(step)  # a run killed before its first checkpoint may have logged some steps
    adapter = None if config.full else IMITATION
    control.start(step, student, adapter)

    def save() -> None:
        if checkpoints is None:
            return
        tensors = _weights(student, config.full) | optimizer_tensors(optimizer, names)
        tensors |= {f"best/{n}": t for n, t in best.items()}
        finite = best_loss if best_loss < float("inf") else None
        state = {"best_epoch": best_epoch, "best_loss": finite, "dev": dev_loss, "last": last}
        flush_log(log)
        checkpoints.save(step, tensors, state | {"watch": control.get_state()}, seconds=control.seconds)

    with student.using(adapter), control:
        while step < total and not control.ending:
            began = perf_counter()
            epoch, within = divmod(step, per_epoch)
            shuffled = generator(config.seed, "sft", epoch).permutation(len(demonstrations))
            batch = torch.from_numpy(shuffled[within * config.batch_size : (within + 1) * config.batch_size])
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * learning_rate_share(
                    step, total, warmup=config.warmup_steps, decay=config.decay
                )
                group["lr"] *= control.rate
            mine = my_examples(batch)
            order = [mine[part] for part in length_sorted(take_rows(rows.host, mine), at_once)]
            minibatch = Minibatch(student, optimizer, rows, order)
            for part in minibatch:
                loss = sft_loss(part.logprobs, part.mask, minibatch.tokens)
                loss.backward()
                part.record({"loss": loss})
            minibatch.clip_and_step(config.max_grad_norm)
            last, norm = minibatch.sums["loss"], minibatch.norm
            step += 1
            if not torch.isfinite(torch.tensor(last)):
                raise TrainingStopped(f"The imitation loss became {last} at step {step}: lower the learning rate.")
            numbers = {"sft/loss": last, "sft/grad_norm": norm, "sft/epoch": step / per_epoch}
            seconds = perf_counter() - began
            numbers |= {
                "seconds/update": seconds,
                "seconds/step": seconds,
                "seconds/spent": control.seconds,
                "tokens_per_second": minibatch.token_count / seconds,
                "samples_per_second": len(batch) / seconds,
            }
            log.metrics(step, numbers | control.measure_drift(step, student, adapter))
            control.check(asks=False)
            if step % per_epoch == 0 and dev_rows is not None:
                with control.paused():
                    dev_loss = dev_nll(student, dev_rows, at_once)
                log.metrics(step, {"sft/dev_loss": dev_loss})
                if dev_loss < best_loss:
                    best_loss, best_epoch = dev_loss, epoch + 1
                    best = {n: t.clone() for n, t in _weights(student, config.full).items()}
                elif epoch + 1 - best_epoch >= config.patience:
                    learned = True
                    break
            if step % per_epoch == 0 or control.ending:
                save()
        learned = learned or step >= total
        if control.by_user and not learned:
            return SFTResult(step, last, dev_loss, best_epoch, stopped=True)
        if best:
            _load_weights(student, best, config.full)
    student.train_only(())
    student.start_policy_from_imitation()
    why = "" if learned else control.ending
    return SFTResult(step, last, best_loss if best else dev_loss, best_epoch, why=why)


def dev_nll(student: Student, rows: TokenRows, micro_batch: int) -> float:
    """The mean of -log p per response token, with the active adapter."""
    order, sums = length_sorted(rows, micro_batch), []
    with torch.no_grad():
        for index, width in zip(order, widths_of(rows, order), strict=True):
            sums.append(student.score(take_rows(rows, index, width)).logprobs.sum())
    total = sum(-each for each in torch.stack(sums).tolist())
    return float(total / int(rows.host.action_mask.sum()))


def _trained(student: Student, full: bool) -> dict[str, torch.nn.Parameter]:
    if not full:
        return student.adapter_parameters(IMITATION)
    return {n: p for n, p in student.model.named_parameters() if "lora_" not in n}


def _make_optimizer(config: SFTConfig, student: Student) -> tuple[dict[int, str], torch.optim.Optimizer]:
    if config.full and student.base.dtype.itemsize < torch.float32.itemsize:
        # AdamW's second moment decays by a thousandth per step, which 16 bits round to nothing.
        raise StudentError(
            f"full = true trains the base's own weights, which are in {precision_of(student.base)}: "
            'small steps are lost in 16 bits. Set [student] dtype = "float32", or leave full out and train an adapter.'
        )
    parameters = _trained(student, config.full)
    student.train_only(list(parameters.values()))
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    return {id(p): n for n, p in parameters.items()}, optimizer


def _weights(student: Student, full: bool) -> dict[str, Tensor]:
    return {f"weights/{n}": p.detach() for n, p in _trained(student, full).items()}


@torch.no_grad()
def _load_weights(student: Student, tensors: dict[str, Tensor], full: bool) -> None:
    for name, parameter in _trained(student, full).items():
        parameter.copy_(tensors[f"weights/{name}"])


def _load(
    student: Student, optimizer: torch.optim.Optimizer, names: dict[int, str], tensors: dict[str, Any], full: bool
) -> None:
    _load_weights(student, tensors, full)
    load_optimizer(optimizer, names, tensors)
