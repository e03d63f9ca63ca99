"""A Hugging Face model in this process: a judge with exact answer probabilities, and a free teacher.

    client = LocalClient("path/to/model")                      # causal, or encoder-decoder
    [reply] = client([Request(system, {"1": a, "2": b}, choices=("1", "2"))])
    reply.probabilities        # {"1": 0.71, "2": 0.29}

If a request has `choices`, nothing is generated: the reply is started as {"answer": " and each symbol's probability
there is read from one forward pass and normalised over the symbols. Small judges do best without a reason before the
answer, and the probability is more informative than the choice.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from humor_env.errors import InvalidOption
from humor_env.llm.budget import Budget, most_tokens
from humor_env.llm.protocol import OnReply, Reply, Request
from humor_env.llm.replies import read
from humor_env.shared.control_tokens import as_text
from humor_env.shared.frozen_weights import sample, share_weights
from humor_env.shared.model_hub import check_hub
from humor_env.shared.plain_numbers import check_number
from humor_env.shared.precision import check_precision, device_for, in_paying_precision
from humor_env.shared.streams import stream_seed
from humor_env.shared.user_path import user_path
from humor_env.types import Usage

if TYPE_CHECKING:
    import torch

ANSWER_PREFIX = '{"answer": "'
_DATA = "DATA-GOES-HERE"
Row = tuple[tuple[int, ...], tuple[int, ...]]
"""The encoder's input (empty for a causal model), and the decoder's."""


class LocalClient:
    """`temperature=None`, or 0, generates greedily. With a temperature each request has its own stream: its reply
    depends on the seed and the request (including its `sample`), not on the rest of the batch.

    Limits on calls and tokens apply as for a service; the cost is 0. Threads take turns. `name` tells the weights and
    the chat template; `former_name` is the name without the template, as ledgers before had it.
    """

    probabilities = True
    former_lacks = "the chat template that made their prompts"

    def __init__(
        self,
        model: str,
        *,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int = 16,
        temperature: float | None = None,
        seed: int = 0,
        budget: Budget | None = None,
    ) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

        if batch_size < 1:
            raise InvalidOption(f"batch_size must be at least 1, found {batch_size}.")
        if temperature is not None:
            check_number("temperature", temperature, least=0)
        temperature = temperature or None
        check_precision(dtype)
        model = str(user_path(model)) if model.startswith("~") else model
        self.path = model
        self.batch_size, self.temperature, self.seed = batch_size, temperature, seed
        place = device_for(device or "auto")
        self.budget = budget or Budget()
        self._turn = threading.Lock()
        # Explicit: by default transformers asks on the terminal whether to run the folder's code.
        safe = {"trust_remote_code": False}
        try:
            check_hub(model)
            self.encoder_decoder = bool(AutoConfig.from_pretrained(model, **safe).is_encoder_decoder)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(model, **safe)
            kind: Any = AutoModelForSeq2SeqLM if self.encoder_decoder else AutoModelForCausalLM
            loaded = kind.from_pretrained(model, dtype=dtype, use_safetensors=True, **safe)
        except (OSError, ValueError) as problem:
            reason = str(problem).strip().split("\n")[0]
            raise InvalidOption(
                f"'local:{model}' cannot be loaded ({reason[:300]}). Give the folder of a saved model or the name of "
                "one that is in the cache. Models with custom code are not run."
            ) from None
        if dtype == "auto":
            loaded = in_paying_precision(loaded, place)
        self.model: Any = share_weights(loaded.to(place).eval())
        named = f"local:{Path(model).name}#{fingerprint(self.model)}"
        settings = "" if temperature is None else f" temperature={temperature} seed={seed}"
        template = self.tokenizer.chat_template
        self.name = f"{named}{'' if template is None else f' template={template_hash(template)}'}{settings}"
        self.former_name = f"{named}{settings}"

    def __repr__(self) -> str:
        return f"LocalClient({self.name!r})"

    def __call__(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        replies: list[Reply | None] = [None] * len(requests)
        # Longest first: running out of memory shows at once, and rows of similar length share a batch.
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i].user_text))
        by_choice = [i for i in order if requests[i].choices]
        free = [i for i in order if not requests[i].choices]
        for todo, work in ((by_choice, self._choose), (free, self._write)):
            for start in range(0, len(todo), self.batch_size):
                part = todo[start : start + self.batch_size]
                for places, tickets in self.budget.portions([self.worst_case(requests[i]) for i in part]):
                    chosen = [part[place] for place in places]
                    self._work(work, chosen, tickets, requests, replies, on_reply)
        return [reply for reply in replies if reply is not None]

    def _work(
        self,
        work: Callable[[Sequence[Request]], Iterable[Reply]],
        chosen: Sequence[int],
        tickets: Sequence[int],
        requests: Sequence[Request],
        replies: list[Reply | None],
        on_reply: OnReply | None,
    ) -> None:
        open_tickets = dict(zip(chosen, tickets, strict=True))
        try:
            with self._turn:
                answers = list(work([requests[i] for i in chosen]))
            for index, reply in zip(chosen, answers, strict=True):
                self.budget.settle(open_tickets.pop(index), reply.usage)
                replies[index] = reply
                if on_reply is not None:
                    on_reply(index, reply)
        finally:
            for ticket in open_tickets.values():
                self.budget.settle(ticket, None)

    def worst_case(self, request: Request) -> tuple[int, float | None]:
        """The most tokens that one call can use; the cost is 0."""
        return most_tokens(request) + request.max_tokens, 0.0

    def close(self) -> None:
        self.model = None

    def prompt_text(self, request: Request, answer: str = "") -> str:
        """The model's input: by its chat template if it has one, else the two parts as paragraphs.

        The template is applied to a placeholder and the data inserted afterwards, so that a template that trims or
        rewrites its messages cannot change the data. Control tokens of this tokenizer inside the data are escaped.
        """
        data = as_text(self.tokenizer, request.user_text)
        if self.tokenizer.chat_template is None:
            return f"{request.system}\n\n{data}\n{answer}"
        rendered = self._rendered(request.system)
        count = rendered.count(self._placeholder(request.system))
        if count != 1:
            raise InvalidOption(
                f"The chat template of '{self.path}' contains the user's message {count} times; expected once, "
                "unchanged. Use another model, or fix its chat_template."
            )
        head, _, tail = rendered.partition(self._placeholder(request.system))
        return head + data + tail + answer

    def _placeholder(self, system: str) -> str:
        """A placeholder for the data while the template is applied; not contained in the instructions."""
        word = _DATA
        while word in system:
            word += "-X"
        return word

    def _rendered(self, system: str) -> str:
        """The template with the instructions filled in. If it refuses a system turn (Gemma 2, Mistral 7B v0.1), the
        instructions open the user turn."""
        from jinja2 import TemplateError

        word = self._placeholder(system)
        separate = [{"role": "system", "content": system}, {"role": "user", "content": word}]
        single = [{"role": "user", "content": f"{system}\n\n{word}"}]
        problem: Exception | None = None
        for messages in (separate, single):
            try:
                text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            except (TemplateError, TypeError, ValueError) as refused:
                problem = refused
                continue
            # A template may also drop the system turn silently, so that the model would not know its task, or put the
            # data before it.
            if messages is single or system.strip().lower() in str(text).partition(word)[0].lower():
                return str(text)
        raise InvalidOption(
            f"The chat template of '{self.path}' takes neither a system turn nor a user turn with the instructions in "
            f"it ({type(problem).__name__}: {str(problem)[:200]}). Use another model, or fix its chat_template."
        )

    def _ids(self, text: str) -> list[int]:
        # A chat template writes the start token itself; without one the tokenizer adds it.
        plain = self.tokenizer.chat_template is None
        return list(self.tokenizer(text, add_special_tokens=plain and not self.encoder_decoder)["input_ids"])

    def _choose(self, requests: Sequence[Request]) -> list[Reply]:
        logprobs = self.choice_logprobs(requests)
        replies = []
        for row, read_tokens in logprobs:
            top = max(row.values())
            weights = {symbol: math.exp(value - top) for symbol, value in row.items()}
            total = sum(weights.values())
            probabilities = {symbol: weight / total for symbol, weight in weights.items()}
            best = max(probabilities, key=lambda symbol: probabilities[symbol])
            replies.append(
                Reply(
                    ANSWER_PREFIX + best + '"}',
                    {"answer": best},
                    "end_turn",
                    usage=Usage(1, read_tokens, 0, 0, 0.0),
                    probabilities=probabilities,
                )
            )
        return replies

    def choice_logprobs(self, requests: Sequence[Request]) -> list[tuple[dict[str, float], int]]:
        """For each request, the log-probability of each symbol after the started answer, and the number of input
        tokens.

        The whole text with the symbol is tokenized and compared, because a tokenizer may join a symbol with the text
        before it. Symbols share rows: if each is one token, there is one row per request.
        """
        rows: dict[Row, int] = {}
        firsts: list[int] = []  # per row, the position that predicts the first token of its symbols
        entries: list[dict[str, tuple[int, int, tuple[int, ...]]]] = []
        read_tokens: list[int] = []
        for request in requests:
            source, tails = self._spellings(request)
            common = _common_prefix(list(tails.values()))
            entry: dict[str, tuple[int, int, tuple[int, ...]]] = {}
            for symbol, ids in tails.items():
                if any(other[: len(ids)] == ids for s, other in tails.items() if s != symbol):
                    raise InvalidOption(f"The answer symbol {symbol!r} is the beginning of another: choose others.")
                row = rows.setdefault((source, ids[:-1]), len(rows))
                if row == len(firsts):
                    firsts.append(common - 1)
                # Another request's symbols may share the row and start earlier or later in it.
                firsts[row] = min(firsts[row], common - 1)
                entry[symbol] = (row, common - 1, ids[common:])
            entries.append(entry)
            read_tokens.append(len(source) + common)
        logprobs = self._forward(list(rows), firsts)
        return [
            (
                {
                    symbol: sum(float(logprobs[row][at - firsts[row] + k, t]) for k, t in enumerate(tail))
                    for symbol, (row, at, tail) in entry.items()
                },
                count,
            )
            for entry, count in zip(entries, read_tokens, strict=True)
        ]

    def _spellings(self, request: Request) -> tuple[tuple[int, ...], dict[str, tuple[int, ...]]]:
        """The encoder's tokens (none for a causal model), and for each symbol the tokens of the text ending in it."""
        if not self.encoder_decoder:
            return (), {s: tuple(self._ids(self.prompt_text(request, ANSWER_PREFIX + s))) for s in request.choices}
        source = tuple(self.tokenizer(self.prompt_text(request))["input_ids"])
        start = self.model.config.decoder_start_token_id
        return source, {
            s: (start, *self.tokenizer(ANSWER_PREFIX + s, add_special_tokens=False)["input_ids"])
            for s in request.choices
        }

    def _forward(self, rows: list[Row], firsts: list[int]) -> list[torch.Tensor]:
        """Log-probabilities [T - first, V] of each row from its first wanted position on, in float32 on the CPU.

        Only wanted positions go through the head: with a large vocabulary the logits of a whole prompt would need
        more memory than the model.
        """
        import torch

        outputs: list[torch.Tensor] = []
        selects = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        for start in range(0, len(rows), self.batch_size):
            part = rows[start : start + self.batch_size]
            first = firsts[start : start + self.batch_size]
            ids, mask = self._padded([row[1] for row in part])
            inputs: dict[str, torch.Tensor] = {"input_ids": ids, "attention_mask": mask}
            if self.encoder_decoder:
                source, source_mask = self._padded([row[0] for row in part])
                inputs = {"input_ids": source, "attention_mask": source_mask, "decoder_input_ids": ids}
            columns = list(range(ids.shape[1]))
            if selects:
                columns = sorted({t for f, (_, tokens) in zip(first, part, strict=True) for t in range(f, len(tokens))})
                inputs["logits_to_keep"] = torch.tensor(columns, device=ids.device)
            with torch.no_grad():
                logits = self.model(**inputs).logits  # [B, len(kept), V]
            for row, f, (_, tokens) in zip(logits, first, part, strict=True):
                places = [columns.index(t) for t in range(f, len(tokens))]
                outputs.append(row[places].float().log_softmax(-1).cpu())
        return outputs

    def _padded(self, rows: Sequence[Sequence[int]], left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask [B, T], where the model is: in a critic's thread "cuda" may be another GPU. In a causal model
        right padding cannot change earlier positions."""
        import torch

        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        longest = max(len(row) for row in rows)
        ids = torch.full((len(rows), longest), pad)
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        for index, row in enumerate(rows):
            place = slice(longest - len(row), longest) if left else slice(0, len(row))
            ids[index, place] = torch.tensor(list(row))
            mask[index, place] = 1
        return ids.to(self.model.device), mask.to(self.model.device)

    def _write(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """Generate replies. Sampling runs row by row, each with its own stream; greedy rows share a batch."""
        if self.temperature is None:
            yield from self._generate(requests, {"do_sample": False})
            return
        import torch

        devices = [self.model.device] if self.model.device.type == "cuda" else []
        for request in requests:
            sampling = {"do_sample": True, "temperature": self.temperature, "top_p": 1.0, "top_k": 0}
            name = f"{request.system}\x1f{request.user_text}"
            # generate() draws from torch's global generator: restore its state afterwards.
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(stream_seed(self.seed, name, request.sample))
                yield from self._generate([request], sampling)

    def _generate(self, requests: Sequence[Request], sampling: dict[str, Any]) -> Iterator[Reply]:
        import torch

        if self.encoder_decoder:
            rows = [list(self.tokenizer(self.prompt_text(r))["input_ids"]) for r in requests]
        else:
            rows = [self._ids(self.prompt_text(r)) for r in requests]
        ids, mask = self._padded(rows, left=not self.encoder_decoder)
        ends = self.model.generation_config.eos_token_id
        ends = set(ends) if isinstance(ends, list) else {ends, self.tokenizer.eos_token_id}
        with torch.no_grad():
            sequences = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max(r.max_tokens for r in requests),
                pad_token_id=self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0,
                **sampling,
            )
        skip = 1 if self.encoder_decoder else ids.shape[1]
        for request, row, out in zip(requests, rows, sequences[:, skip:].tolist(), strict=True):
            end = next((k for k, token in enumerate(out) if token in ends), None)
            tokens = out[: request.max_tokens] if end is None else out[:end]
            stop = "max_tokens" if end is None or end >= request.max_tokens else "end_turn"
            text = self.tokenizer.decode(tokens[: request.max_tokens], skip_special_tokens=True)
            yield read(text, stop, request, Usage(1, len(row), len(tokens), 0, 0.0))


def _common_prefix(rows: Sequence[Sequence[int]]) -> int:
    shortest = min(len(row) for row in rows)
    return next((k for k in range(shortest) if len({row[k] for row in rows}) > 1), shortest)


def fingerprint(model: Any) -> str:
    """Eight hex digits that identify a model's weights (from a sample of each), so that retrained weights differ."""
    digest = hashlib.blake2b(digest_size=4)
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(sample(weight))
    return digest.hexdigest()


def template_hash(template: str | Mapping[str, str]) -> str:
    """Eight hex digits that identify a tokenizer's chat template, or its several."""
    text = template if isinstance(template, str) else json.dumps(dict(template), sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
