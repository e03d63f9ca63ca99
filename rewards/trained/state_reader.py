"""Grades from a frozen language model: it reads a sentence and a line, and a small head on its states grades.

    reader = StateReader("smollm2", layers=12, instruction="Rewrite the input text ...")
    states = reader.states(jokes)                     # [N, 3 * width]: the line's mean, its last token, its end token
    head = GradeHead.fit(states, grades, dev=...)     # [N, Q] shares of the highest grade
    head(states)                                      # [N, Q] shares

A small language model cannot recognise a good joke, but its middle layers encode whether English is fluent and whether
a line is about its sentence. Reading them takes one pass without gradients, so a head can be fitted in a minute, and it
beats adapters trained for an hour on a CPU (experiments/LOG.md).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from humor_env.errors import InvalidOption
from humor_env.rewards.shared.model_input import as_seen
from humor_env.rewards.trained.scoring_head import keep_layers, pretrained
from humor_env.shared.framing import prompt_tokens
from humor_env.shared.frozen_weights import share_weights
from humor_env.shared.precision import device_for
from humor_env.types import Joke

HEAD_FILE = "head.json"
WEIGHTS_FILE = "head.safetensors"
LONGEST = 96  # most tokens read of a sentence, and of a line
WIDEST = 6.0  # standard deviations at which a state is clipped


class StateReader:
    """`model` is a causal model with a chat template; `layers` is the number of lowest layers used. `instruction`
    precedes every sentence, as for a student. The weights are loaded on the first call."""

    def __init__(self, model: str, layers: int, instruction: str, batch_size: int = 32, device: str = "auto") -> None:
        if batch_size < 1:
            raise InvalidOption(f"batch_size must be at least 1, found {batch_size}.")
        self.model, self.layers, self.instruction = model, layers, instruction
        self.batch_size, self.device = batch_size, device
        self._loaded: tuple[Any, Any] | None = None

    def states(self, jokes: Sequence[Joke]) -> Tensor:
        """`[N, 3 * width]` in float32 on the CPU, in the order of the jokes."""
        model, tokenizer = self._loaded = self._loaded or self._load()
        end = int(tokenizer.eos_token_id)
        before = {joke.prompt.text: self._prompt(tokenizer, joke.prompt.text) for joke in jokes}
        lines = [self._ids(tokenizer, joke.text) for joke in jokes]
        rows = [[*before[joke.prompt.text], *line, end] for joke, line in zip(jokes, lines, strict=True)]
        # By length, then by content, so that the same jokes form the same batches in any order.
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), rows[i]))
        states = torch.zeros(len(rows), 3 * int(model.config.hidden_size))
        with torch.inference_mode():
            for start in range(0, len(order), self.batch_size):
                chosen = order[start : start + self.batch_size]
                states[chosen] = _read(model, [rows[i] for i in chosen], [len(lines[i]) for i in chosen], end)
        return states

    def _ids(self, tokenizer: Any, text: str) -> list[int]:
        visible = as_seen(tokenizer, text, LONGEST).strip()
        return list(tokenizer.encode(visible, add_special_tokens=False)[:LONGEST])

    def _prompt(self, tokenizer: Any, sentence: str) -> list[int]:
        shortened = tokenizer.decode(self._ids(tokenizer, sentence))
        return prompt_tokens(tokenizer, shortened, self.instruction, is_seq2seq=False)

    def _load(self) -> tuple[Any, Any]:
        device = device_for(self.device)
        body, tokenizer = pretrained(self.model)
        if tokenizer.chat_template is None or tokenizer.eos_token_id is None or not hasattr(body, "norm"):
            raise InvalidOption(f"'{self.model}' is not a chat model whose states can be read (such as SmolLM2).")
        keep_layers(body, self.layers)
        body.norm = nn.Identity()  # it belongs to the last layer, which was removed
        return share_weights(body.to(device).eval()), tokenizer


def _read(model: Any, rows: Sequence[list[int]], lengths: Sequence[int], pad: int) -> Tensor:
    """States of one batch. The common prefix of all rows is read once."""
    shared = _common(rows, lengths) if len(rows) > 1 else 0
    endings = [row[shared:] for row in rows]
    tokens = torch.full((len(endings), max(len(row) for row in endings)), pad, dtype=torch.long)
    for i, row in enumerate(endings):
        tokens[i, : len(row)] = torch.tensor(row)
    tokens = tokens.to(model.device)
    cache = None
    if shared:
        head = torch.tensor([rows[0][:shared]], device=model.device)
        cache = model(input_ids=head, use_cache=True).past_key_values
        cache.batch_repeat_interleave(len(rows))
    # Padding follows the text, where a causal model's earlier positions do not see it.
    states = model(input_ids=tokens, past_key_values=cache, use_cache=cache is not None).last_hidden_state.float().cpu()
    vectors = []
    for state, row, length in zip(states, endings, lengths, strict=True):
        line = state[len(row) - 1 - length : len(row) - 1]
        end = state[len(row) - 1]
        vectors.append(torch.cat([line.mean(0), line[-1], end]) if length else torch.cat([end, end, end]))
    return torch.stack(vectors)


def _common(rows: Sequence[list[int]], lengths: Sequence[int]) -> int:
    """Length of the prompts' common prefix. Never includes a line, whose own states are needed."""
    first, last = min(rows), max(rows)
    most = min(len(row) - 1 - length for row, length in zip(rows, lengths, strict=True))
    return next((k for k in range(most) if first[k] != last[k]), most)


@dataclass(frozen=True)
class HeadConfig:
    """How a head is fitted. `members` heads start from different seeds; their outputs are averaged."""

    hidden: int = 64
    members: int = 3
    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    dropout: float = 0.4
    seed: int = 0


class GradeHead(nn.Module):
    """From states to shares of the highest grade, one per question."""

    def __init__(self, width: int, questions: Sequence[str], config: HeadConfig) -> None:
        super().__init__()
        self.questions, self.config = tuple(questions), config
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.members = nn.ModuleList(
            nn.Sequential(
                nn.Dropout(config.dropout),
                nn.Linear(width, config.hidden),
                nn.GELU(),
                nn.Dropout(config.dropout),
                nn.Linear(config.hidden, len(self.questions)),
            )
            for _ in range(config.members)
        )

    def normal(self, states: Tensor) -> Tensor:
        return ((states - self.mean) / self.scale).clamp(-WIDEST, WIDEST)

    @torch.no_grad()
    def forward(self, states: Tensor) -> Tensor:
        inputs = self.normal(states)
        return torch.stack([member(inputs).sigmoid() for member in self.members]).mean(0)

    @classmethod
    def fit(cls, states: Tensor, shares: Tensor, questions: Sequence[str], config: HeadConfig) -> GradeHead:
        """Train a head by cross-entropy on shares in [0, 1], `[N, Q]`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            head = cls(states.shape[1], questions, config)
            head.mean.copy_(states.mean(0))
            head.scale.copy_(states.std(0) + 1e-3)
            inputs = head.normal(states)
            for member in head.members.train():
                _fit(member, inputs, shares, config)
        return head.eval()

    def save(self, folder: str | os.PathLike[str], reading: dict[str, Any]) -> None:
        """Save the weights in 16 bits, with the reader's arguments."""
        from safetensors.torch import save_file

        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        save_file({k: v.to(torch.float16).contiguous() for k, v in self.state_dict().items()}, place / WEIGHTS_FILE)
        description = {"reading": reading, "questions": list(self.questions), "head": asdict(self.config)}
        (place / HEAD_FILE).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def load_head(folder: str | os.PathLike[str]) -> tuple[GradeHead, dict[str, Any]]:
    """Load a saved head, and the `StateReader` arguments that it was fitted with."""
    from safetensors.torch import load_file

    place = Path(folder)
    try:
        description = json.loads((place / HEAD_FILE).read_text(encoding="utf-8"))
        weights = {k: v.float() for k, v in load_file(place / WEIGHTS_FILE).items()}
        head = GradeHead(len(weights["mean"]), description["questions"], replace(HeadConfig(), **description["head"]))
        head.load_state_dict(weights)
        reading = {key: description["reading"][key] for key in ("model", "layers", "instruction")}
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as problem:
        raise InvalidOption(
            f"'{place}' has no grade head ({HEAD_FILE} and {WEIGHTS_FILE}): {str(problem).splitlines()[0]}"
        ) from problem
    return head.eval(), reading


def _fit(member: nn.Module, inputs: Tensor, shares: Tensor, config: HeadConfig) -> None:
    optimizer = torch.optim.AdamW(member.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    per_epoch = -(-len(inputs) // config.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.epochs * per_epoch
    )
    for _ in range(config.epochs):
        for chosen in torch.randperm(len(inputs)).split(config.batch_size):
            loss = nn.functional.binary_cross_entropy_with_logits(member(inputs[chosen]), shares[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
