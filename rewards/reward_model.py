"""A trained critic: a scoring head on a Hugging Face encoder or decoder, loaded from a folder.

    critic = RewardModelCritic("runs/reward-model")      # config.json and model.safetensors, or a PEFT adapter
    [judgement] = critic([joke])
    judgement.score                # 0.5: the model's decision threshold, calibrated on held-out labels

    judge = RewardModelJudge("runs/reward-model")        # the same model on pairs; no position bias
    [verdict] = judge([(a, b)])

The folder is what `humor-env train-critic` writes (see scoring_head.py), or what `save_pretrained` writes
(`AutoModelForSequenceClassification`, one label), with the tokenizer and, if it was calibrated, `calibration.json`:
score = s(scale * logit + shift), with s the logistic function. Only safetensors are read and no code from the folder is
run. Texts are sorted by length to reduce padding.
"""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from humor_env.errors import InvalidOption, MissingExtra
from humor_env.rewards.shared.model_input import SCORING_FILE, as_seen, frame, longest
from humor_env.rewards.shared.read_once import read_once
from humor_env.shared.frozen_weights import share_weights
from humor_env.shared.precision import check_precision, device_for, in_paying_precision
from humor_env.shared.user_path import user_path
from humor_env.types import Joke, Judgement, Verdict

if TYPE_CHECKING:
    import torch

    from humor_env.rewards.trained.scoring_head import Ensemble

CALIBRATION_FILE = "calibration.json"


@dataclass(frozen=True, slots=True)
class Calibration:
    """From a logit to a score: the logistic function of `scale * logit + shift`."""

    scale: float = 1.0
    shift: float = 0.0

    def score(self, logit: float) -> float:
        return _logistic(self.scale * logit + self.shift)

    def wins(self, first: float, second: float) -> float:
        """The probability that the first of two logits belongs to the better joke."""
        return _logistic(self.scale * (first - second))

    def save(self, folder: str | os.PathLike[str]) -> None:
        Path(folder, CALIBRATION_FILE).write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Calibration:
        """The folder's calibration, or the plain logistic function if it has none."""
        file = Path(folder, CALIBRATION_FILE)
        if not file.exists():
            return cls()
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            calibration = cls(float(data["scale"]), float(data["shift"]))
        except (ValueError, TypeError, KeyError) as problem:
            raise InvalidOption(
                f"'{file}' is not a calibration ({type(problem).__name__}: {problem}): "
                'expected {"scale": 1.0, "shift": 0.0}.'
            ) from problem
        if not (math.isfinite(calibration.scale) and calibration.scale > 0 and math.isfinite(calibration.shift)):
            raise InvalidOption(f"'{file}' needs a scale above 0 and a finite shift, found {calibration}.")
        return calibration


def _logistic(x: float) -> float:
    # Choose the branch that cannot overflow.
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


@dataclass(frozen=True, slots=True)
class Row:
    """One model input; `types` marks the two parts of a pair, for models that use it."""

    ids: list[int]
    types: list[int]


def encode(tokenizer: Any, jokes: Sequence[Joke], max_length: int) -> list[Row]:
    """Token ids of (prompt, joke). As a text pair if the tokenizer supports pairs, else with a line break
    between. If both do not fit, the longer is truncated until they do, so that a long prompt cannot hide the joke.
    """
    apart = tokenizer.num_special_tokens_to_add(pair=True) > tokenizer.num_special_tokens_to_add(pair=False)
    prompts = [as_seen(tokenizer, joke.prompt.text, max_length) for joke in jokes]
    texts = [as_seen(tokenizer, joke.text, max_length) for joke in jokes]
    if apart:
        batch = tokenizer(prompts, texts, truncation="longest_first", max_length=max_length, return_token_type_ids=True)
        return [Row(ids, types) for ids, types in zip(batch["input_ids"], batch["token_type_ids"], strict=True)]
    before, after = frame(tokenizer)
    room = max_length - len(before) - len(after)
    rows = []
    for prompt, text in zip(prompts, texts, strict=True):
        first = tokenizer.encode(prompt + "\n", add_special_tokens=False)
        second = tokenizer.encode(text, add_special_tokens=False)
        first = first[: max(room // 2, room - len(second))]
        ids = [*before, *first, *second[: room - len(first)], *after]
        rows.append(Row(ids, [0] * len(ids)))
    return rows


class RewardModelCritic:
    """`batch_size` and `max_length` (tokens) bound memory; `device` is "auto" or a torch device; `dtype` is "auto" (as
    stored, or float32 if 16 bits are slow here), "float32" or "bfloat16". The weights are loaded on the first call."""

    name = "reward-model"

    def __init__(
        self,
        folder: str | os.PathLike[str],
        batch_size: int = 32,
        max_length: int = 256,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        self.folder = user_path(folder)
        if batch_size < 1 or max_length < 8:
            raise InvalidOption(
                f"batch_size must be at least 1 and max_length at least 8, found {batch_size} and {max_length}."
            )
        check_precision(dtype, ("auto", "float32", "bfloat16"))
        if not any((self.folder / file).is_file() for file in (SCORING_FILE, "config.json", "adapter_config.json")):
            raise InvalidOption(
                f"'{self.folder}' has no reward model: expected a folder with {SCORING_FILE}, as train-critic writes "
                "it, or with config.json (or adapter_config.json), as save_pretrained writes it."
            )
        self.batch_size, self.max_length, self.device, self.dtype = batch_size, max_length, device, dtype
        self.calibration = Calibration.load(self.folder)
        self._loaded: tuple[Any, Any] | None = None
        self._scoring: Ensemble | None = None

    def __call__(self, jokes: Sequence[Joke]) -> list[Judgement]:
        return [self._judgement(logit) for logit in self.logits(jokes)]

    def logits(self, jokes: Sequence[Joke]) -> list[float]:
        """The model's logits, in the order of the jokes (for calibration)."""
        return read_once((self.folder.resolve(), self.max_length, self.device, self.dtype), jokes, self._read)

    def _read(self, jokes: Sequence[Joke]) -> list[float]:
        import torch

        if (self.folder / SCORING_FILE).is_file():
            self._scoring = self._scoring or self._load_scoring()
            return self._scoring.scores(jokes, self.batch_size, self.max_length)
        model, tokenizer = self._loaded = self._loaded or self._load()
        rows = encode(tokenizer, jokes, min(self.max_length, longest(model.config, tokenizer)))
        # By length, then by content, so that the same jokes form the same batches in any order.
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i].ids), rows[i].ids))
        logits = [math.nan] * len(rows)
        with torch.inference_mode():
            for start in range(0, len(order), self.batch_size):
                chosen = order[start : start + self.batch_size]
                batch_logits = _forward(model, [rows[i] for i in chosen])
                for i, logit in zip(chosen, batch_logits, strict=True):
                    logits[i] = logit
        return logits

    def _judgement(self, logit: float) -> Judgement:
        if not math.isfinite(logit):
            return Judgement(self.name, None, error=f"the model's number is {logit}")
        return Judgement(self.name, self.calibration.score(logit), {"logit": logit})

    def _load_scoring(self) -> Ensemble:
        from humor_env.rewards.trained.scoring_head import load_model

        return load_model(self.folder, self.dtype, device_for(self.device))

    def _load(self) -> tuple[Any, Any]:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        adapter = self.folder / "adapter_config.json"
        base: str = str(self.folder)
        if adapter.is_file():
            base = str(json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path") or "")
            if not base:
                raise InvalidOption(f"'{adapter}' names no base model (base_model_name_or_path).")
        # Explicit: by default transformers asks on the terminal whether to run the folder's code.
        only_weights: dict[str, Any] = {"trust_remote_code": False}
        has_tokenizer = (self.folder / "tokenizer_config.json").is_file()
        kind: Any = "auto" if self.dtype == "auto" else getattr(torch, self.dtype)
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(self.folder) if has_tokenizer else base, **only_weights)
            model = AutoModelForSequenceClassification.from_pretrained(
                base, num_labels=1, dtype=kind, use_safetensors=True, **only_weights
            )
        except (OSError, ValueError) as problem:
            why = str(problem).strip().split("\n")[0]
            raise InvalidOption(
                f"'{self.folder}' cannot be loaded as a reward model ({why}). Expected a folder with a sequence "
                "classifier's config.json and model.safetensors (or a PEFT adapter) and a tokenizer."
            ) from problem
        if adapter.is_file():
            try:
                from peft import PeftModel
            except ImportError as problem:
                raise MissingExtra(
                    f"'{self.folder}' has a PEFT adapter, but PEFT cannot be imported: pip install peft"
                ) from problem
            model = PeftModel.from_pretrained(model, str(self.folder)).merge_and_unload()
        if self.dtype == "auto":
            model = in_paying_precision(model, device_for(self.device))
        share_weights(model.to(device_for(self.device)).eval())
        # A decoder takes its score at the last token that is not padding, found by the padding's id.
        config = model.config.get_text_config()
        if config.pad_token_id is None:
            config.pad_token_id = tokenizer.pad_token_id
        return model, tokenizer


class RewardModelJudge:
    """The critic's model as a pair judge: the probability that the first line is better, from the calibrated logits.
    Lines are read separately, so their order cannot matter. The options are those of the critic."""

    name = "reward-model"

    def __init__(
        self,
        folder: str | os.PathLike[str],
        batch_size: int = 32,
        max_length: int = 256,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        self.critic = RewardModelCritic(folder, batch_size, max_length, device, dtype)

    def __call__(self, pairs: Sequence[tuple[Joke, Joke]], /) -> list[Verdict]:
        jokes = {(joke.prompt.text, joke.text): joke for pair in pairs for joke in pair}
        logits = dict(zip(jokes, self.critic.logits(list(jokes.values())), strict=True))
        return [self._verdict(logits[a.prompt.text, a.text], logits[b.prompt.text, b.text]) for a, b in pairs]

    def _verdict(self, first: float, second: float) -> Verdict:
        if not (math.isfinite(first) and math.isfinite(second)):
            return Verdict(self.name, None, error=f"the model's numbers are {first} and {second}")
        return Verdict(self.name, self.critic.calibration.wins(first, second))


def _forward(model: Any, rows: Sequence[Row]) -> list[float]:
    """Logits of one batch, padded on the right; row by row if padding could be mistaken for text."""
    import torch

    pad = model.config.get_text_config().pad_token_id
    if len(rows) > 1 and (pad is None or any(pad in row.ids[-1:] or not row.ids for row in rows)):
        return [logit for row in rows for logit in _forward(model, [row])]
    width = max([1, *(len(row.ids) for row in rows)])
    device = next(model.parameters()).device

    def padded(lists: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
        return torch.tensor([[*row, *[fill] * (width - len(row))] for row in lists], device=device)

    inputs = {
        "input_ids": padded([row.ids for row in rows], pad or 0),
        "attention_mask": padded([[1] * max(1, len(row.ids)) for row in rows], 0),
    }
    if "token_type_ids" in inspect.signature(model.forward).parameters:
        inputs["token_type_ids"] = padded([row.types for row in rows], 0)
    logits: torch.Tensor = model(**inputs).logits
    return [float(x) for x in logits.float().reshape(len(rows), -1)[:, 0].cpu()]
