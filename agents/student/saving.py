"""A student on disk: reading its base model, and the folder with its adapters and value head.

    source = read_source("models/smollm2.gguf", device="cpu", dtype="auto")   # or a name, a folder, a saved student
    source.model, source.tokenizer, source.saved                              # `saved` is empty for a bare model

Use it through `Student.load` and `Student.save_pretrained`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftMixedModel, PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from humor_env.agents.student.settings import Lora
from humor_env.agents.student.transfers import ready
from humor_env.errors import StudentError
from humor_env.shared.frozen_weights import share_weights
from humor_env.shared.model_hub import check_hub
from humor_env.shared.precision import check_precision, in_paying_precision
from humor_env.sources import students

DESCRIBED, TENSORS = "student.json", "student.safetensors"


@dataclass(frozen=True)
class Source:
    """A base model, its tokenizer, and the description by `write_folder`, if any."""

    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    saved: Mapping[str, Any]

    def lora(self) -> Lora:
        """The shape of the saved adapters."""
        fields = dict(self.saved["lora"])
        targets = fields.pop("targets")
        return Lora(**fields, targets=targets if isinstance(targets, str) else tuple(targets))

    def tensors(self) -> dict[str, Tensor]:
        """The saved adapters and value head."""
        try:
            return load_file(self.folder / TENSORS)
        except SafetensorError as problem:
            raise StudentError(f"'{self.folder / TENSORS}' is damaged ({problem}): save the student again.") from None


def read_source(path: str | Path, *, device: str | torch.device, dtype: torch.dtype | str) -> Source:
    """Load model and tokenizer from a name listed by `humor-env students`, a Hugging Face name or folder, a GGUF file,
    or a folder written by `write_folder`."""
    if not isinstance(dtype, torch.dtype):
        check_precision(dtype)
    folder = Path(path)
    saved: dict[str, Any] = {}
    source: str | Path = path
    if (folder / DESCRIBED).is_file():
        saved = _description(folder / DESCRIBED)
        base = saved["base"]
        source = folder / "base" if base is None else base
    stored = 0  # bytes of a GGUF file, if it is one
    if not isinstance(source, Path) or not source.is_dir():
        stored = students.gguf_bytes(str(source))
        source = students.source(str(source))
        check_hub(source)
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    family = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = family.from_pretrained(source, dtype=dtype, use_safetensors=True, trust_remote_code=False)
    if dtype == "auto":
        quantised = 0 < stored < 2 * sum(w.numel() for w in model.parameters())
        model = in_paying_precision(model, device, quantised=quantised)
    model = share_weights(model.to(ready(device)))  # type: ignore[arg-type]
    tokenizer = AutoTokenizer.from_pretrained(folder if saved else source, trust_remote_code=False)
    return Source(folder, model, tokenizer, saved)


def _description(file: Path) -> dict[str, Any]:
    """What `write_folder` wrote of a student."""
    try:
        saved = json.loads(file.read_text())
        if isinstance(saved["base"], str | None) and isinstance(saved["lora"], dict):
            return dict(saved)
        problem = "its base is no text, or its lora no table"
    except (ValueError, KeyError, TypeError, RecursionError) as why:
        problem = f"{type(why).__name__}: {why}"
    raise StudentError(f"'{file}' is damaged ({problem}): save the student again.")


def copy_tensors(saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into a student's own, which must have the same names and shapes."""
    if set(own) != set(saved):
        odd = sorted(set(own) ^ set(saved))[:3]
        raise StudentError(
            f"The saved student and this one differ in {len(set(own) ^ set(saved))} tensors, such as {odd}: "
            "was it saved with another base model or another LoRA shape?"
        )
    for name, tensor in saved.items():
        if tensor.shape != own[name].shape:
            raise StudentError(
                f"'{name}' was saved with shape {tuple(tensor.shape)}, here it is {tuple(own[name].shape)}."
            )
        own[name].copy_(tensor)


def write_folder(
    folder: Path,
    model: PeftModel | PeftMixedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    adapters: Sequence[str],
    tensors: Mapping[str, Tensor],
    described: Mapping[str, Any],
    plain_base: PreTrainedModel | None,
) -> None:
    """Write each adapter as a PEFT folder, all tensors in one file, and `plain_base` unless the description names a
    base."""
    folder.mkdir(parents=True, exist_ok=True)
    base = described["base"]
    base_folder = folder / "base"
    if plain_base is not None:
        plain_base.save_pretrained(base_folder)
        tokenizer.save_pretrained(base_folder)
    tokenizer.save_pretrained(folder)
    for adapter in adapters:
        model.peft_config[adapter].base_model_name_or_path = (
            str(base_folder) if base is None else students.hub_name(base)
        )
    page = folder / "README.md"
    own_page = page.exists()
    # The base's embeddings never change. Left to find that out, PEFT queries the Hub, and warns if it is unreachable.
    model.save_pretrained(str(folder), selected_adapters=list(adapters), save_embedding_layers=False)
    if not own_page:
        page.unlink(missing_ok=True)  # PEFT's, full of "more information needed"
    save_file({n: t.cpu().contiguous() for n, t in tensors.items()}, folder / TENSORS)
    (folder / DESCRIBED).write_text(json.dumps(described, indent=2) + "\n")
