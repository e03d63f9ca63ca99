"""Batched sampling from the student in this process.

    out = sample(student, ["The meeting was slow."] * 8, Sampling(max_new_tokens=40), uniforms=None)
    out.texts, out.stop_reasons

Implemented here for three things that `generate` of `transformers` does not do: finished rows are dropped from the
batch; the random numbers are passed in, one per row and position, so that a row's text does not depend on its batch and
a resumed run is reproducible; and values come from the same pass as the tokens. Everything that generates lines goes
through `writer.write_jokes` or a backend, and so comes here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from humor_env.agents.student import POLICY, Student
from humor_env.agents.student.forward import nearly_equal, two_tokens
from humor_env.agents.student.growing_cache import growing_cache
from humor_env.agents.student.settings import Sampling
from humor_env.agents.student.shared_prompts import common_prefix_of, read_prefix, unique_prompts
from humor_env.agents.student.short_attention import NAME as SHORT
from humor_env.agents.student.transfers import read, send
from humor_env.shared.precision import memory_is_full

ASK_EVERY = 8  # tokens between checks of which rows are unfinished, on a GPU
BLOCK = 256  # weights summed at once in the search for a token
LEAST_BLOCKS = 16  # with fewer, one cumulative sum is faster
COMPACT_BELOW = 0.8  # drop finished rows once fewer than this share of the batch is unfinished


@dataclass(frozen=True)
class Generation:
    """Generated responses. `logprobs` and `values` are `[N, R]`, by response token; values only if requested."""

    prompts: list[list[int]]
    responses: list[list[int]]
    texts: list[str]
    stop_reasons: list[str]  # "end" or "length"
    logprobs: Tensor
    values: Tensor | None = None


def draw_uniforms(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """One number in [0, 1) per row and position: all the randomness of a batch of samples."""
    return torch.rand(rows, columns, generator=generator)


@torch.no_grad()
def sample(
    student: Student,
    observations: Sequence[str],
    sampling: Sampling,
    *,
    uniforms: Tensor | None = None,
    adapter: str | None = POLICY,
    values: bool = False,
) -> Generation:
    """Generate one response per observation. Without `uniforms`, they are drawn from torch's global generator."""
    if not observations:
        return no_lines(values)
    prompts = encode_all(student, observations)
    if uniforms is None:
        uniforms = torch.rand(len(prompts), sampling.max_new_tokens)
    with student.merged(adapter):
        writer = _Writer(student, prompts, sampling, uniforms, values)
        outputs = writer.write()
    return as_generation(student, prompts, *outputs)


def no_lines(values: bool) -> Generation:
    return Generation([], [], [], [], torch.zeros(0, 0), torch.zeros(0, 0) if values else None)


def encode_all(student: Student, observations: Sequence[str]) -> list[list[int]]:
    encoded = {o: student.encode_prompt(o) for o in dict.fromkeys(observations)}
    return [encoded[o] for o in observations]


def as_generation(
    student: Student,
    prompts: list[list[int]],
    responses: list[list[int]],
    stops: list[str],
    logprobs: Tensor,
    values: Tensor | None,
) -> Generation:
    """Wrap generated tokens, with their decoded texts."""
    texts = [student.decode(r[:-1] if stop == "end" else r) for r, stop in zip(responses, stops, strict=True)]
    return Generation(prompts, responses, texts, stops, logprobs, values)


def most_new_tokens(student: Student, prompts: Sequence[Sequence[int]], sampling: Sampling, uniforms: Tensor) -> int:
    """Most new tokens per row: the requested number, capped by the context length. Near the context's end the longest
    prompt sets it for its whole batch."""
    if uniforms.shape[0] != len(prompts) or uniforms.shape[1] < sampling.max_new_tokens:
        raise ValueError(f"uniforms must be [{len(prompts)}, >= {sampling.max_new_tokens}], not {uniforms.shape}")
    used = len(student.decoder_prefix) - 1 if student.is_seq2seq else max(len(p) for p in prompts)
    return max(1, min(sampling.max_new_tokens, student.context - used))


class Decoding:
    """The model's state in token-by-token generation: a cache, and the next position's states of each live row.

    A prefix common to all prompts is read once, by `__init__`; in a causal model's rows the padding follows it.
    `made` are masks in the form that transformers would convert them to.
    """

    def __init__(self, student: Student, prompts: Sequence[Sequence[int]], *, made: bool | None = None) -> None:
        self.student = student
        self.made = makes_masks(student) if made is None else made
        self.base = student.base
        width = max(len(p) for p in prompts)
        pad, device = student.pad_token, student.device
        side_right = student.is_seq2seq
        prefix = 0 if side_right else self._prefix(prompts)
        tokens = torch.full((len(prompts), width), pad, dtype=torch.long)
        attention = torch.zeros_like(tokens)
        for i, prompt in enumerate(prompts):
            length = len(prompt) - prefix
            part = slice(0, length) if side_right else slice(width - length, width)
            tokens[i, part] = torch.tensor(prompt[prefix:])
            attention[i, part] = 1
        attention[:, :prefix] = 1
        self.uneven = not bool(attention.all())
        self.first_input, self.attention = send(device, tokens, attention)
        self.encoded: Tensor | None = None
        self.cache: DynamicCache | EncoderDecoderCache
        if student.is_seq2seq:
            encoder = self.base.get_encoder()
            self.encoded = encoder(input_ids=self.first_input, attention_mask=self._source_mask()).last_hidden_state
            [begun] = send(device, torch.tensor(student.decoder_prefix))
            self.first_input = begun.expand(len(prompts), -1)
            decoder_config = self.base.config.get_text_config(decoder=True)
            self.cache = EncoderDecoderCache(growing_cache(decoder_config), DynamicCache(config=decoder_config))
            self.position = None
        else:
            self.cache = growing_cache(self.base.config.get_text_config())
            self.position = (self.attention.cumsum(-1) - 1).clamp(min=0)[:, prefix:]
            if prefix:
                assert student.passes.backbone is not None
                [shared] = send(device, torch.tensor(prompts[0][:prefix]))
                read_prefix(student.passes.backbone, self.cache, shared, len(prompts))
                self.first_input = self.first_input[:, prefix:]

    def _prefix(self, prompts: Sequence[Sequence[int]]) -> int:
        passes = self.student.passes
        prefix = common_prefix_of(prompts)
        if not prefix or passes.backbone is None:
            return 0
        even = len({len(prompt) for prompt in prompts}) == 1
        return prefix if (passes.reach is None or even) and passes.prompts_can_be_shared else 0

    def _source_mask(self) -> Tensor | None:
        if not self.made:
            return self.attention
        return self.attention.bool()[:, None, None] if self.uneven else None

    def advance(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Feed `[n, k]` tokens; return the last position's hidden states `[n, H]` and logits `[n, V]`."""
        inputs: dict[str, object] = {"past_key_values": self.cache, "use_cache": True}
        rows, queries = tokens.shape
        if self.student.is_seq2seq:
            inputs |= {
                "decoder_input_ids": tokens,
                "attention_mask": self._source_mask(),
                "encoder_outputs": (self.encoded,),
            }
            if self.made:  # without one, some models make it themselves, and transformers asks what it hides
                columns = int(self.cache.get_seq_length()) + queries
                inputs["decoder_attention_mask"] = _in_sight(self.attention.new_ones(rows, columns), queries)
        else:
            inputs["input_ids"] = tokens
            if self.uneven:
                mask = _in_sight(self.attention, queries) if self.made else self.attention
                inputs |= {"attention_mask": mask, "position_ids": self.position}
        backbone = self.student.passes.backbone
        if backbone is not None:
            hidden = backbone(**inputs).last_hidden_state[:, -1]
            logits = self.student.passes.logits(hidden)
        else:
            out = self.base(**inputs, output_hidden_states=True)
            states = out.decoder_hidden_states if self.student.is_seq2seq else out.hidden_states
            hidden, logits = states[-1][:, -1], out.logits[:, -1]
        if not self.student.is_seq2seq and self.uneven:
            self.attention = torch.cat([self.attention, self.attention.new_ones(len(tokens), 1)], dim=1)
            assert self.position is not None
            self.position = self.position[:, -1:] + 1
        return hidden, logits.reshape(len(tokens), -1).float()

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows, in this order (a row may be repeated)."""
        self.cache.batch_select_indices(rows)
        self.attention = self.attention[rows]
        if self.position is not None:
            self.position = self.position[rows]
        if self.encoded is not None:
            self.encoded = self.encoded[rows]


def _in_sight(attention: Tensor, queries: int) -> Tensor:
    """Which columns the last ones see, `[n, 1, queries, columns]`, as transformers would make it."""
    seen, columns = attention.bool()[:, None, None], attention.shape[1]
    if queries > 1:
        seen = seen & torch.ones(queries, columns, dtype=torch.bool, device=attention.device).tril(columns - queries)
    return seen


def makes_masks(student: Student) -> bool:
    """On a GPU, which would be asked at every token whether a plain mask hides anything."""
    return student.device.type != "cpu" and steps_take_masks(student)


def steps_take_masks(student: Student) -> bool:
    """Whether the model accepts made masks. Tried once per student."""
    passes = student.passes
    if passes.step_masks is None:
        known = student.base.config._attn_implementation in ("sdpa", SHORT)
        passes.step_masks = known and passes.reach is None and _made_masks_change_nothing(student)
    return passes.step_masks


@torch.no_grad()
def _made_masks_change_nothing(student: Student) -> bool:
    end, (a, b) = student.end_token, two_tokens(student.end_token)
    for shorter in (1, 3):  # with something to hide, and without
        try:
            with student.using(None):
                ways = [Decoding(student, [[end, a, b], [b, end, a][-shorter:]], made=made) for made in (False, True)]
                for token in (None, a, b):
                    tokens = [
                        w.first_input if token is None else torch.full_like(w.first_input[:, :1], token) for w in ways
                    ]
                    plain, made = (way.advance(fed)[1] for way, fed in zip(ways, tokens, strict=True))
                    if not nearly_equal(made, plain):
                        return False
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as problem:
            if memory_is_full(problem):
                raise
            return False
    return True


class _Writer:
    def __init__(
        self,
        student: Student,
        prompts: list[list[int]],
        sampling: Sampling,
        uniforms: Tensor,
        values: bool,
    ) -> None:
        self.limit = most_new_tokens(student, prompts, sampling, uniforms)
        self.student, self.sampling = student, sampling
        [self.uniforms] = send(student.device, uniforms)
        unique, self.prompt_of = unique_prompts(prompts)
        self.decoding = Decoding(student, unique)
        self.wants_values = values
        # On a GPU each check waits for its queue to finish; on a CPU it is free.
        self.ask_every = 1 if student.device.type == "cpu" else ASK_EVERY

    def write(self) -> tuple[list[list[int]], list[str], Tensor, Tensor | None]:
        student = self.student
        count, device = len(self.uniforms), student.device
        response_tokens = torch.full((count, self.limit), student.pad_token, dtype=torch.long, device=device)
        lengths = torch.full((count,), self.limit, dtype=torch.long, device=device)
        all_logprobs = torch.zeros(count, self.limit, device=device)
        all_values = torch.zeros(count, self.limit, device=device) if self.wants_values else None
        [ends] = send(device, torch.tensor(student.end_tokens))
        ended = torch.zeros(count, dtype=torch.bool, device=device)
        live = torch.arange(count, device=device)  # the row of each entry of the running batch
        tokens = self.decoding.first_input
        for t in range(self.limit):
            hidden, logits = self.decoding.advance(tokens)
            if t == 0 and len(logits) < count:  # from here on each row continues by itself
                [rows] = send(device, torch.tensor(self.prompt_of))
                self.decoding.keep(rows)
                hidden, logits = hidden[rows], logits[rows]
            if all_values is not None:
                all_values[live, t] = torch.where(ended[live], 0.0, student.value_head(hidden))
            chosen, logprobs = choose(logits, self.uniforms[live, t], self.sampling)
            going = ~ended[live]
            all_logprobs[live, t] = torch.where(going, logprobs, 0.0)
            response_tokens[live, t] = torch.where(going, chosen, student.pad_token)
            just_ended = (chosen[:, None] == ends).any(-1) & going
            lengths[live] = torch.where(just_ended, t + 1, lengths[live])
            going &= ~just_ended
            ended[live] = ~going
            if (t + 1) % self.ask_every == 0:
                remaining = going.cpu().nonzero().squeeze(1)
                if len(remaining) == 0:
                    break
                if len(remaining) < COMPACT_BELOW * len(live):
                    [keep] = send(device, remaining)
                    self.decoding.keep(keep)
                    live, chosen = live[keep], chosen[keep]
            tokens = chosen[:, None]
        response_tokens, lengths, ended = read(response_tokens, lengths, ended)
        responses = [row[:n] for row, n in zip(response_tokens.tolist(), lengths.tolist(), strict=True)]
        stops = ["end" if e else "length" for e in ended.tolist()]
        width = max(len(r) for r in responses)
        return responses, stops, all_logprobs[:, :width], None if all_values is None else all_values[:, :width]


def choose(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The token at which the cumulative probability passes `uniform`, row by row: `[n, V]`, `[n]` to `[n]`.

    Also its log-probability under the tempered but untruncated distribution, which is what learners score.
    """
    if sampling.temperature == 0:
        best = logits.log_softmax(-1).max(-1)
        return best.indices, best.values
    tempered = logits if sampling.temperature == 1 else logits / sampling.temperature
    whole = probabilities = torch.softmax(tempered, dim=-1)
    if sampling.top_k:
        cut = probabilities.topk(min(sampling.top_k, probabilities.shape[-1]), dim=-1).values[:, -1:]
        probabilities = probabilities.where(probabilities >= cut, 0.0)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        ordered = ordered.where(before < sampling.top_p * ordered.sum(-1, keepdim=True), 0.0)
        probabilities = torch.zeros_like(probabilities).scatter_(-1, order, ordered)
    chosen = _at(probabilities, uniform.double()[:, None])
    return chosen.squeeze(-1), whole.gather(-1, chosen).squeeze(-1).log()


def _at(weights: Tensor, uniform: Tensor) -> Tensor:
    """The first index at which the sum of the weights so far exceeds `uniform` `[n, 1]` times their total, `[n, 1]`.

    Among many weights the block is found first: one pass over them, where cumulative sums in double precision take
    several. A weight of 0 is never chosen: in double precision a number below 1 times a total stays below it.
    """
    blocks = weights.shape[-1] // BLOCK
    if blocks < LEAST_BLOCKS:
        running = weights.double().cumsum(-1)
        # The clamp only matters for NaN; the log-probability is then NaN too, and the learner stops on it.
        return torch.searchsorted(running, uniform * running[:, -1:], right=True).clamp(max=weights.shape[-1] - 1)
    sums = weights[:, : blocks * BLOCK].unflatten(-1, (blocks, BLOCK)).sum(-1)
    rest = weights[:, blocks * BLOCK :]
    if rest.shape[-1]:
        sums = torch.cat([sums, rest.sum(-1, keepdim=True)], dim=-1)
    sums = sums.double()
    ends = sums.cumsum(-1)
    target = uniform * ends[:, -1:]
    block = torch.searchsorted(ends, target, right=True).clamp(max=ends.shape[-1] - 1)
    columns = block * BLOCK + torch.arange(BLOCK, device=weights.device)
    # Columns after the last repeat it, and a choice among them is one of it.
    running = weights.gather(-1, columns.clamp(max=weights.shape[-1] - 1)).double().cumsum(-1)
    left = (target - (ends - sums).gather(-1, block)).clamp(min=0)
    # The block's sum may round differently here: its last weight that is not 0 is the last that can be chosen.
    last = torch.searchsorted(running, running[:, -1:].contiguous())
    nth = torch.minimum(torch.searchsorted(running, left, right=True), last)
    return (block * BLOCK + nth).clamp(max=weights.shape[-1] - 1)
