"""A gate that needs no key: is the line English at all, as a base language model sees it?

    critic = registry.critics.make("fluency")                        # SmolLM2: `humor-env students`
    critic([Joke(prompt, "Before, we had two, and then the people interested.")])[0].score    # 0.06

Small students write broken English long before they write a joke, and a critic trained on grades of whole lines may not
see it. A language model does: it gives the words of a broken line little probability. The score is a logistic function
of the mean log-probability of the line's tokens, read without its prompt; 0.5 lies where as many broken lines of the
bundled grades are below it as fluent ones above (`MIDDLE` and `WIDTH`: see humor_env/data/README.md for the lines). It
says nothing about funny or meaning, and the likeliest line of all is a cliché: use it as a gate in a mix, not as a
weight that a student is to climb.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from humor_env.errors import InvalidOption
from humor_env.rewards.shared.reading import well_formed
from humor_env.types import Joke, Judgement

if TYPE_CHECKING:
    import torch

MIDDLE, WIDTH = -4.0, 0.5  # nats a token: fitted on train and dev lines of the bundled grades, with SmolLM2
LONGEST = 128  # tokens that are read of a line


class FluencyCritic:
    """`model` is a causal model: a student's name, a folder, a GGUF file or a Hugging Face name. With another one than
    SmolLM2, set `middle` (log-probability of a token in nats, the mean over a line, that scores 0.5) and `width` anew.
    `batch_size` bounds memory, `device` is "auto" or a torch device. The weights are loaded at the first call."""

    name = "fluency"

    def __init__(
        self,
        model: str = "smollm2",
        middle: float = MIDDLE,
        width: float = WIDTH,
        batch_size: int = 32,
        device: str = "auto",
    ) -> None:
        if batch_size < 1:
            raise InvalidOption(f"batch_size must be at least 1, found {batch_size}.")
        if not (math.isfinite(middle) and math.isfinite(width) and width > 0):
            raise InvalidOption(f"middle is a number and width one above 0, found {middle} and {width}.")
        self.model, self.middle, self.width = model, middle, width
        self.batch_size, self.device = batch_size, device
        self._loaded: tuple[Any, Any, int] | None = None

    def __call__(self, jokes: Sequence[Joke]) -> list[Judgement]:
        # A line that comes twice is read once.
        texts = list(dict.fromkeys(joke.text for joke in jokes))
        means = dict(zip(texts, self.log_probabilities(texts), strict=True))
        return [self._judgement(means[joke.text]) for joke in jokes]

    def log_probabilities(self, texts: Sequence[str]) -> list[float]:
        """The mean log-probability of each text's tokens, in nats; minus infinity for a text without any."""
        if not texts:
            return []
        import torch

        model, tokenizer, first = self._loaded = self._loaded or self._load()
        rows = [
            tokenizer.encode(well_formed(text.strip())[: 8 * LONGEST], add_special_tokens=False)[:LONGEST]
            for text in texts
        ]
        # By length, then by content: the same lines make the same batches, in whatever order they come.
        order = sorted((i for i, row in enumerate(rows) if row), key=lambda i: (len(rows[i]), rows[i]))
        found = [-math.inf] * len(rows)
        with torch.inference_mode():
            for start in range(0, len(order), self.batch_size):
                chosen = order[start : start + self.batch_size]
                for i, mean in zip(chosen, _means(model, [rows[i] for i in chosen], first), strict=True):
                    found[i] = mean
        return found

    def _judgement(self, mean: float) -> Judgement:
        if math.isnan(mean):
            return Judgement(self.name, None, error="the model's log-probability is not a number")
        if mean == -math.inf:
            return Judgement(self.name, 0.0, reason="nothing to read")
        x = max(-700.0, (mean - self.middle) / self.width)
        return Judgement(self.name, 1 / (1 + math.exp(-x)), {"log_probability": mean})

    def _load(self) -> tuple[Any, Any, int]:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from humor_env.rewards.trained.scoring_head import find_model
        from humor_env.shared.precision import in_paying_precision

        device = self.device if self.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
        path = find_model(self.model)
        only_weights: dict[str, Any] = {"trust_remote_code": False}
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, **only_weights)
            model = AutoModelForCausalLM.from_pretrained(path, dtype="auto", use_safetensors=True, **only_weights)
        except (OSError, ValueError) as problem:
            raise InvalidOption(
                f"'{self.model}' cannot be loaded as a language model ({str(problem).splitlines()[0]}). Expected a "
                "student's name, or a folder or Hugging Face name of a causal model with a tokenizer."
            ) from problem
        # What a text begins with in such a model's own training: the token that parts documents, else the first.
        names = ("<|endoftext|>", tokenizer.bos_token, tokenizer.eos_token)
        known = [tokenizer.convert_tokens_to_ids(name) for name in names if name]
        first = next((i for i in known if i is not None and i != tokenizer.unk_token_id), None)
        if first is None:
            raise InvalidOption(f"The tokenizer of '{self.model}' has no token that a text begins with (bos or eos).")
        return in_paying_precision(model, device).to(device).eval(), tokenizer, int(first)


def _means(model: Any, rows: Sequence[Sequence[int]], first: int) -> list[float]:
    """Mean log-probability of each row's tokens after `first`, in one pass padded on the right."""
    import torch

    tokens: torch.Tensor = torch.full((len(rows), 1 + max(len(row) for row in rows)), first, dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, 1 : 1 + len(row)] = torch.tensor(row)
    tokens = tokens.to(model.device)
    # Padding stands behind the text, where a causal model's earlier positions do not see it.
    logits = model(input_ids=tokens[:, :-1]).logits.float()
    chosen = logits.gather(-1, tokens[:, 1:, None])[..., 0] - logits.logsumexp(-1)
    lengths = torch.tensor([len(row) for row in rows], device=chosen.device)
    read = torch.arange(chosen.shape[1], device=chosen.device) < lengths[:, None]
    return [float(mean) for mean in (chosen.masked_fill(~read, 0).sum(-1) / lengths).tolist()]
