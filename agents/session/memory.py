"""How much memory a step of a learner takes, and the largest micro-batch that fits.

    memory = step_memory(student, RowLength(60, 40), rows=64)
    memory.needed(micro_batch=32), free_memory_of(student.device)     # bytes
    memory.micro_batch_that_fits(free, most=64)                       # 32

Most of it is counted: weights by their type, gradients and AdamW's two moments of the trained parameters, keys and
values of the lines being generated, a chunk of logits. What is saved for the backward pass differs too much between
models (and kinds of attention) to be derived from their settings, so one row of that length goes through the student,
and the bytes that autograd saves are added up. The result is within a factor of two of the truth
(tests/test_memory.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from humor_env.agents.session.processes import process_count
from humor_env.agents.student import POLICY, Student
from humor_env.agents.student.logprobs import TILE_ROWS, chunk_rows, tile
from humor_env.agents.student.sampling import BLOCK, LEAST_BLOCKS
from humor_env.shared.precision import free_memory

SHARE = 0.8  # of the free memory that a micro-batch may fill; the rest is for what is not counted here
_FLOAT, _DOUBLE = 4, 8
# Tensors as wide as the widest layer that a pass holds besides the saved ones: its input, output and their gradients.
_IN_PASSING = 4
# float32 tables of logits at a time: raw, shifted, probabilities; in generation of few words also the running sum in
# doubles, twice.
_LOGITS_SCORED = 3 * _FLOAT
_RUNNING_SUM = 2 * _DOUBLE


@dataclass(frozen=True)
class RowLength:
    """The longest expected row, in tokens."""

    prompt: int
    response: int

    @property
    def whole(self) -> int:
        return self.prompt + self.response


@dataclass(frozen=True)
class StepMemory:
    """Bytes. `weights` are held once the student is loaded, `training` from the first step to the last; on top of them
    either `writing` (the whole batch at once) or a micro-batch's forward and backward pass."""

    weights: int
    training: int
    writing: int
    row: int
    logits_row: int
    logits_most: int  # for any number of rows: they are processed in chunks

    def update(self, micro_batch: int) -> int:
        """Bytes for a micro-batch of that many rows, on top of weights and training."""
        return micro_batch * self.row + min(micro_batch * self.logits_row, self.logits_most)

    def needed(self, micro_batch: int) -> int:
        return self.weights + self.training + max(self.writing, self.update(micro_batch))

    def micro_batch_that_fits(self, free: int | None, most: int) -> int:
        """The largest power of two up to `most` that fits once the student is loaded; 1 if none does.
        `free` is None if unknown."""
        fitting = 1 << (max(1, most).bit_length() - 1)
        room = None if free is None else SHARE * free - self.training
        while fitting > 1 and room is not None and self.update(fitting) > room:
            fitting //= 2
        return fitting


def step_memory(
    student: Student, length: RowLength, *, rows: int, full: bool = False, entropy: bool = True
) -> StepMemory:
    """The memory of a step that generates `rows` lines of this length at once (0 for none) and then learns from them.
    With `full` the base is trained instead of an adapter. The student is unchanged."""
    length = _within_context(student, length)
    trained = _trained(student, full)
    bases: list[Tensor] = [layer.get_base_layer().weight for layer in student.lora_layers]
    merged = sum(_bytes(weight) for weight in bases)
    cache = rows * _cache_bytes(student, length)
    vocabulary, width = student.base.get_output_embeddings().weight.shape
    widest = max(max(weight.shape) for weight in bases)
    in_blocks = vocabulary >= BLOCK * LEAST_BLOCKS
    logits = rows * vocabulary * (_LOGITS_SCORED if in_blocks else _LOGITS_SCORED + _RUNNING_SUM)
    # A captured step keeps all its output buffers, merged weights included, between learning steps.
    captured = merged + cache + logits if student.device.type == "cuda" and rows else 0
    writing = 0 if captured else cache + logits
    # A merge, for generation and for the reference's pass, is computed in float32, one layer at a time.
    writing += merged + 3 * _FLOAT * max(weight.numel() for weight in bases) + rows * length.prompt * widest * _FLOAT
    saved = _saved_bytes(student, length, trained, values=not full, entropy=entropy)
    slopes = length.response * width * student.base.dtype.itemsize
    in_passing = _IN_PASSING * length.whole * widest * _FLOAT
    at_once, columns = tile(TILE_ROWS, vocabulary, student.device)
    if full:  # a layer that is trained is called as a whole
        at_once, columns = chunk_rows(vocabulary, student.device), vocabulary
    logits_row = length.response * min(columns, vocabulary) * _LOGITS_SCORED
    most = at_once * min(columns, vocabulary) * _LOGITS_SCORED
    if student.passes.backbone is None:  # such a model computes the logits of whole rows, all at once
        logits_row = length.response * vocabulary * _LOGITS_SCORED + length.whole * vocabulary * _FLOAT
        most = rows * logits_row or 1 << 62
    return StepMemory(
        weights=sum(_bytes(p) for p in _unique([*student.model.parameters(), *student.value_head.parameters()])),
        training=sum(3 * _bytes(p) for p in trained) + captured,
        writing=writing,
        row=saved + slopes + in_passing,
        logits_row=logits_row,
        logits_most=most,
    )


def free_memory_of(device: torch.device) -> int | None:
    """Bytes available to this process on the device; None if unknown. Processes on one machine share its RAM, while
    each has its own GPU."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    free = free_memory()
    return None if free is None else free // process_count()


def in_a_sentence(memory: StepMemory, micro_batch: int, free: int | None, most: int = 0) -> str:
    """A message for users. `free` is the free memory before the student was loaded; `most` is the largest micro-batch
    to advise where more fits."""
    needed = memory.needed(micro_batch)
    sentence = f"about {_gigabytes(needed)} with micro_batch {micro_batch}"
    if free is None:
        return f"{sentence}; the free memory of this machine is unknown"
    sentence += f"; {_gigabytes(free)} are free"
    if needed <= free:
        fitting = memory.micro_batch_that_fits(free - memory.weights, most)
        if fitting <= micro_batch:
            return sentence
        return f'{sentence}: micro_batch {fitting} fits too ("auto" chooses it), which a GPU computes faster'
    least = memory.needed(1)
    if least <= free:
        fitting = memory.micro_batch_that_fits(free - memory.weights, micro_batch)
        return f'{sentence}, too little: micro_batch {fitting} fits ("auto" chooses it)'
    return (
        f"{sentence}, too little, and micro_batch 1 takes {_gigabytes(least)}: use a smaller student, dtype bfloat16, "
        "or shorter or fewer lines per step"
    )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _unique(tensors: Iterable[Tensor]) -> list[Tensor]:
    return list({id(t): t for t in tensors}.values())


def _within_context(student: Student, length: RowLength) -> RowLength:
    prompt = min(length.prompt, student.context - 1)
    room = student.context if student.is_seq2seq else student.context - prompt
    return RowLength(max(1, prompt), max(1, min(length.response, room)))


def _trained(student: Student, full: bool) -> list[nn.Parameter]:
    if full:
        return [p for n, p in student.model.named_parameters() if "lora_" not in n]
    return [*student.adapter_parameters(POLICY).values(), *student.value_head.parameters()]


def _cache_bytes(student: Student, length: RowLength) -> int:
    """Keys and values of one row."""
    config: Any = student.base.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 2 * config.num_hidden_layers * heads * size * student.base.dtype.itemsize
    return int(token * length.whole)  # of an encoder-decoder: the prompt's for its attention to the source


def _saved_bytes(
    student: Student, length: RowLength, trained: list[nn.Parameter], *, values: bool, entropy: bool
) -> int:
    """Bytes that autograd saves in a pass over one row of this length, without the weights themselves."""
    weights = {p.untyped_storage().data_ptr() for p in student.model.parameters()}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    rows = student.rows([[student.end_token] * length.prompt], [[student.end_token] * length.response])
    trainable = [p for p in (*student.model.parameters(), *student.value_head.parameters()) if p.requires_grad]
    before = student.active
    student.train_only(trained)
    student.activate(POLICY)
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            scored = student.score(rows, values=values, entropy=entropy)  # kept alive, so that no address is reused
        assert scored.logprobs.requires_grad
    finally:
        student.train_only(trainable)
        student.activate(before)
    return sum(sizes.values())
