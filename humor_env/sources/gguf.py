"""Convert GGUF files, the model format of llama.cpp and Ollama, to folders that transformers reads and writes.

    folder = unpacked("models/smollm2.gguf")
    Student.load("models/smollm2.gguf")          # unpacks the file, then loads the folder

transformers reads such a file slowly and marks the model as quantised, so that it cannot be saved, merged or resumed.
So a file is converted once to a plain folder in float32, kept under `HUMOR_ENV_CACHE` (by default ~/.cache/humor_env)
by the hash of its content. The tokenizer of "gpt2" vocabularies is built here from the file's own merges: that of
transformers takes half a minute and does not know that SmolLM splits numbers into single digits.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from humor_env.errors import MissingExtra, StudentError
from humor_env.shared.user_path import user_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Pre-tokenizers of "gpt2" vocabularies, by the name in the file: whether they split numbers into single digits.
_DIGITS_APART = {"smollm": True, "gpt-2": False, "default": False}
_CONTROL = 3  # the token type that stands for no text


def cache_folder() -> Path:
    """The folder for unpacked models."""
    chosen = os.environ.get("HUMOR_ENV_CACHE")
    if chosen:
        return user_path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "humor_env"


def unpacked(path: str | Path) -> Path:
    """The folder with a GGUF file's model and tokenizer, created if missing."""
    file = user_path(path)
    if not file.is_file():
        raise StudentError(f"There is no GGUF file '{file}'.")
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise StudentError(f"'{file}' is not a GGUF file: it does not begin with the letters GGUF.")
        stream.seek(0)
        content = hashlib.file_digest(stream, "sha256").hexdigest()
    target = cache_folder() / "students" / f"{file.stem}-{content[:16]}"
    if (target / "config.json").is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".making-"))
    except OSError as problem:
        raise StudentError(
            f"'{file}' is unpacked into '{target.parent}', which cannot be written ({problem.strerror}). Set "
            "HUMOR_ENV_CACHE to a writable folder."
        ) from problem
    try:
        _unpack(file, temporary)
        try:
            os.replace(temporary, target)
        except OSError:
            if not (target / "config.json").is_file():  # else another process has written the same content
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _unpack(file: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        from gguf import GGUFReader
    except ImportError:
        raise MissingExtra("GGUF files are read with the package gguf: pip install 'humor-env[gguf]'.") from None
    try:
        reader = GGUFReader(str(file))
        tokenizer = _tokenizer(reader, file)
        # Read as the architecture it names; other files fail with a variety of exceptions.
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, AttributeError, TypeError) as problem:
        why = str(problem).strip().split("\n")[0]
        raise StudentError(
            f"The GGUF file '{file}' cannot be read as a student ({type(problem).__name__}: {why}). It must be "
            "complete and hold a causal model that transformers reads from GGUF, such as Llama, Qwen2 or GPT-2."
        ) from problem
    # The model is dequantised: these marks say otherwise and forbid saving.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    if tokenizer.eos_token_id is not None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    tokenizer.save_pretrained(target)
    model.save_pretrained(target)


def _tokenizer(reader: Any, file: Path) -> PreTrainedTokenizerBase:
    """The file's own tokenizer, its special tokens and its chat template."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    def value(name: str) -> Any:
        field = reader.fields.get(f"tokenizer.{name}")
        return None if field is None else field.contents()

    cut = _DIGITS_APART.get(str(value("ggml.pre") or "default"))
    if value("ggml.model") != "gpt2" or value("ggml.merges") is None or cut is None:
        converted: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(file.parent), gguf_file=file.name, trust_remote_code=False
        )
        return converted
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    words: list[str] = value("ggml.tokens")
    kinds: list[int] = value("ggml.token_type") or [1] * len(words)
    merges = [tuple(merge.split(" ")) for merge in value("ggml.merges")]
    core = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level]) if cut else byte_level
    )
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(
        [
            AddedToken(word, special=True, normalized=False)
            for word, kind in zip(words, kinds, strict=True)
            if kind == _CONTROL
        ]
    )
    named = {
        kind: words[int(value(f"ggml.{key}_token_id"))]
        for kind, key in (
            ("bos_token", "bos"),
            ("eos_token", "eos"),
            ("unk_token", "unknown"),
            ("pad_token", "padding"),
        )
        if value(f"ggml.{key}_token_id") is not None
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **named)
    tokenizer.chat_template = value("chat_template")
    return tokenizer
