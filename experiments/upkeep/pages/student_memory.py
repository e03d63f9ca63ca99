"""How much memory a GRPO or PPO step takes, by size of student: the table of docs/first-real-student.md.

    python -m humor_env.experiments.upkeep.pages.student_memory       # under a minute, no GPU, nothing is downloaded

The calculation is that of `humor-env doctor --spec`, which loads the student. Here the weights are not needed: models
with the same widths and vocabulary but one and two layers are filled with zeros, and every further layer needs as much
as the second. The captured graphs that a GPU keeps for writing are counted, as `doctor` does on a GPU. The table is for
float32: a processor that computes bfloat16 slowly would take an hour.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from humor_env import pocket
from humor_env.agents.session.memory import RowLength, StepMemory, step_memory
from humor_env.agents.student import Lora, Student

ROW = RowLength(prompt=64, response=64)
RANK, LINES = 16, 32
MICRO_BATCHES = (1, 8, 32)


@dataclass(frozen=True)
class Size:
    """The sizes in a model's config.json."""

    name: str
    model_type: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool


SIZES = (
    Size("SmolLM2-135M-Instruct", "llama", 30, 576, 1536, 9, 3, 49152, True),
    Size("Qwen2.5-0.5B-Instruct", "qwen2", 24, 896, 4864, 14, 2, 151936, True),
    Size("Qwen2.5-1.5B-Instruct", "qwen2", 28, 1536, 8960, 12, 2, 151936, True),
)


class _OnGpu:
    """A student that claims to be on a GPU: memory is counted as on a GPU, but the row runs on the CPU."""

    def __init__(self, student: Student) -> None:
        self._student = student
        self.device = torch.device("cuda")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._student, name)


def with_layers(size: Size, layers: int, dtype: torch.dtype = torch.float32) -> StepMemory:
    """The memory of a step of a student of this size with this many layers."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.for_model(
        size.model_type,
        num_hidden_layers=layers,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        vocab_size=size.vocabulary,
        tie_word_embeddings=size.tied,
        max_position_embeddings=2048,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model = model.to_empty(device="cpu")
    model.tie_weights()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    tokenizer = AutoTokenizer.from_pretrained(pocket.path("causal"))  # any tokenizer: lengths are given in tokens
    student: Any = _OnGpu(Student(model, tokenizer, lora=Lora(rank=RANK)))
    return step_memory(student, ROW, rows=LINES)


def memory_of(size: Size, dtype: torch.dtype = torch.float32) -> StepMemory:
    """The memory of all layers: that of the first, plus what the second added for each further one."""
    one, two = (dataclasses.asdict(with_layers(size, layers, dtype)) for layers in (1, 2))
    return StepMemory(**{name: one[name] + (size.layers - 1) * (two[name] - one[name]) for name in one})


def table(sizes: Sequence[Size] = SIZES) -> str:
    heads = " | ".join(f"`micro_batch = {number}`" for number in MICRO_BATCHES)
    rows = [f"| student | its weights | {heads} |", f"|---|---:|{'---:|' * len(MICRO_BATCHES)}"]
    for size in sizes:
        memory = memory_of(size)
        needed = " | ".join(f"{memory.needed(number) / 1e9:.1f} GB" for number in MICRO_BATCHES)
        rows.append(f"| {size.name} | {memory.weights / 1e9:.1f} GB | {needed} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
    sys.exit(0)
