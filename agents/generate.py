"""How a student writes: sampling in batches, and (diverse) beam search.

    out = sample(student, ["The meeting was slow."] * 8, Sampling(max_new_tokens=40), uniforms=None)
    out.texts, out.stop_reasons
    beams(student, ["The meeting was slow."], width=6, groups=3, diversity=0.5)   # candidates per prompt

Written by hand, though `transformers` can generate, for four things it does not do: rows that have ended are dropped
from the batch instead of being carried along; the random numbers are handed in, one per row and position, so that a
row's text does not depend on its batch and a resumed run repeats itself; values come with the tokens, from the same
pass; and diverse beam search, which the library removed in its version 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from humor_env.agents.shared_prompts import unique_prompts
from humor_env.agents.student import POLICY, Student
from humor_env.errors import InvalidOption

COMPACT_BELOW = 0.8  # drop ended rows once fewer than this share of the batch is still writing


@dataclass(frozen=True)
class Sampling:
    """How to draw. Learners score under the same temperature; top_p < 1 and top_k > 0 cut the tail off."""

    max_new_tokens: int = 48
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise InvalidOption(
                f"Sampling needs max_new_tokens >= 1, temperature >= 0 (0 is greedy), 0 < top_p <= 1 and top_k >= 0; "
                f"found {self}."
            )


@dataclass(frozen=True)
class Generation:
    """What was written. `logprobs` and `values` are `[N, R]`, beside the response tokens; values where asked for."""

    prompts: list[list[int]]
    responses: list[list[int]]
    texts: list[str]
    stop_reasons: list[str]  # "end" or "length"
    logprobs: Tensor
    values: Tensor | None = None


def draw_uniforms(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """One number in [0, 1) for each row and position: all the chance that a batch of samples uses."""
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
    """One response per observation. Without `uniforms` they are drawn from torch's own generator."""
    if not observations:
        return Generation([], [], [], [], torch.zeros(0, 0), torch.zeros(0, 0) if values else None)
    encoded = {o: student.encode_prompt(o) for o in dict.fromkeys(observations)}
    prompts = [encoded[o] for o in observations]
    if uniforms is None:
        uniforms = torch.rand(len(prompts), sampling.max_new_tokens)
    with student.merged(adapter):
        writer = _Writer(student, prompts, sampling, uniforms.to(student.device), values)
        responses, stops, logprobs, all_values = writer.write()
    texts = [student.decode(r[:-1] if stop == "end" else r) for r, stop in zip(responses, stops, strict=True)]
    return Generation(prompts, responses, texts, stops, logprobs, all_values)


class _Decoding:
    """The model's side of writing token by token: a cache, and states for the next position of each live row."""

    def __init__(self, student: Student, prompts: Sequence[Sequence[int]]) -> None:
        self.student = student
        self.base = student.base
        width = max(len(p) for p in prompts)
        pad, device = student.pad_token, student.device
        side_right = student.is_seq2seq
        tokens = torch.full((len(prompts), width), pad, dtype=torch.long)
        attention = torch.zeros_like(tokens)
        for i, prompt in enumerate(prompts):
            part = slice(0, len(prompt)) if side_right else slice(width - len(prompt), width)
            tokens[i, part] = torch.tensor(prompt)
            attention[i, part] = 1
        self.attention = attention.to(device)
        self.uneven = not bool(attention.all())
        self.first_input = tokens.to(device)
        self.encoded: Tensor | None = None
        self.cache: DynamicCache | EncoderDecoderCache
        if student.is_seq2seq:
            encoder = self.base.get_encoder()
            self.encoded = encoder(input_ids=self.first_input, attention_mask=self.attention).last_hidden_state
            prefix = torch.tensor(student.decoder_prefix, device=device)
            self.first_input = prefix.expand(len(prompts), -1)
            decoder_config = self.base.config.get_text_config(decoder=True)
            self.cache = EncoderDecoderCache(DynamicCache(config=decoder_config), DynamicCache(config=decoder_config))
            self.position = None
        else:
            self.cache = DynamicCache(config=self.base.config.get_text_config())
            self.position = (self.attention.cumsum(-1) - 1).clamp(min=0)

    def advance(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Feed `[n, k]` tokens; the last position's hidden state `[n, H]` and logits `[n, V]`."""
        inputs: dict[str, object] = {"past_key_values": self.cache, "use_cache": True}
        if self.student.is_seq2seq:
            inputs |= {
                "decoder_input_ids": tokens,
                "attention_mask": self.attention,
                "encoder_outputs": (self.encoded,),
            }
        else:
            inputs["input_ids"] = tokens
            if self.uneven:
                inputs |= {"attention_mask": self.attention, "position_ids": self.position}
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
        """Go on with these rows only, in this order (a row may be repeated)."""
        self.cache.batch_select_indices(rows)
        self.attention = self.attention[rows]
        if self.position is not None:
            self.position = self.position[rows]
        if self.encoded is not None:
            self.encoded = self.encoded[rows]


class _Writer:
    def __init__(
        self,
        student: Student,
        prompts: list[list[int]],
        sampling: Sampling,
        uniforms: Tensor,
        values: bool,
    ) -> None:
        if uniforms.shape[0] != len(prompts) or uniforms.shape[1] < sampling.max_new_tokens:
            raise ValueError(f"uniforms must be [{len(prompts)}, >= {sampling.max_new_tokens}], not {uniforms.shape}")
        self.student, self.sampling, self.uniforms = student, sampling, uniforms
        unique, self.prompt_of = unique_prompts(prompts)
        self.decoding = _Decoding(student, unique)
        self.limit = sampling.max_new_tokens
        self.wants_values = values
        used = len(student.decoder_prefix) - 1 if student.is_seq2seq else max(len(p) for p in prompts)
        self.limit = max(1, min(self.limit, student.context - used))

    def write(self) -> tuple[list[list[int]], list[str], Tensor, Tensor | None]:
        student = self.student
        count, device = len(self.uniforms), student.device
        written = torch.full((count, self.limit), student.pad_token, dtype=torch.long, device=device)
        lengths = torch.full((count,), self.limit, dtype=torch.long, device=device)
        all_logprobs = torch.zeros(count, self.limit, device=device)
        all_values = torch.zeros(count, self.limit, device=device) if self.wants_values else None
        ends = torch.tensor(student.end_tokens, device=device)
        ended = torch.zeros(count, dtype=torch.bool, device=device)
        live = torch.arange(count, device=device)  # which row each line of the running batch belongs to
        tokens = self.decoding.first_input
        for t in range(self.limit):
            hidden, logits = self.decoding.advance(tokens)
            if t == 0 and len(logits) < count:  # from here on each row goes its own way
                rows = torch.tensor(self.prompt_of, device=device)
                self.decoding.keep(rows)
                hidden, logits = hidden[rows], logits[rows]
            if all_values is not None:
                all_values[live, t] = student.value_head(hidden)
            chosen, logprobs = choose(logits, self.uniforms[live, t], self.sampling)
            all_logprobs[live, t] = logprobs
            still = ~ended[live]
            written[live[still], t] = chosen[still]
            just_ended = torch.isin(chosen, ends) & still
            lengths[live[just_ended]] = t + 1
            ended[live[just_ended]] = True
            still &= ~just_ended
            remaining = int(still.sum())
            if remaining == 0:
                break
            if remaining < COMPACT_BELOW * len(live):
                keep = still.nonzero().squeeze(1)
                self.decoding.keep(keep)
                live, chosen = live[keep], chosen[keep]
            tokens = chosen[:, None]
        responses = [row[:n] for row, n in zip(written.tolist(), lengths.tolist(), strict=True)]
        stops = ["end" if e else "length" for e in ended.tolist()]
        width = max(len(r) for r in responses)
        return responses, stops, all_logprobs[:, :width], None if all_values is None else all_values[:, :width]


def choose(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The token at which the running sum of probabilities passes `uniform`, row by row: `[n, V]`, `[n]` to `[n]`.

    Beside it its log-probability under the tempered but uncut distribution, which is what learners score.
    """
    if sampling.temperature == 0:
        best = logits.log_softmax(-1).max(-1)
        return best.indices, best.values
    whole = probabilities = torch.softmax(logits / sampling.temperature, dim=-1)
    if sampling.top_k:
        cut = probabilities.topk(min(sampling.top_k, probabilities.shape[-1]), dim=-1).values[:, -1:]
        probabilities = probabilities.where(probabilities >= cut, 0.0)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        ordered = ordered.where(before < sampling.top_p * ordered.sum(-1, keepdim=True), 0.0)
        probabilities = torch.zeros_like(probabilities).scatter_(-1, order, ordered)
    running = probabilities.double().cumsum(-1)
    # In double a number below 1 times the total stays below the total, so a token of probability 0 is never reached.
    target = uniform.double()[:, None] * running[:, -1:]
    # The clamp is for not-a-number only; its log-probability is then one too, and the learner stops on it.
    chosen = torch.searchsorted(running, target, right=True).clamp(max=logits.shape[-1] - 1)
    return chosen.squeeze(-1), whole.gather(-1, chosen).squeeze(-1).log()


@torch.no_grad()
def beams(
    student: Student,
    observations: Sequence[str],
    *,
    width: int = 5,
    groups: int = 1,
    diversity: float = 0.5,
    max_new_tokens: int = 48,
    length_penalty: float = 1.0,
    adapter: str | None = POLICY,
) -> list[list[str]]:
    """`width` candidates per observation, best first within a group. With `groups` > 1, diverse beam search.

    Each group searches `width / groups` beams; a token already chosen at this position by an earlier group costs
    `diversity` per choice. A finished line's score is its log-probability over length ** length_penalty.
    """
    if width % groups:
        raise InvalidOption(f"Beam search needs a width that the groups divide evenly; found {width} and {groups}.")
    per_group = width // groups
    count, device = len(observations), student.device
    prompts = [student.encode_prompt(o) for o in observations]
    ends = torch.tensor(student.end_tokens, device=device)
    finished: list[list[list[tuple[float, list[int]]]]] = [[[] for _ in range(groups)] for _ in range(count)]
    with student.merged(adapter):
        decoding = _Decoding(student, prompts)
        _, logits = decoding.advance(decoding.first_input)
        # From here a row is (prompt, group, beam). At first a group's beams are equal: only the first may be extended.
        decoding.keep(torch.arange(count, device=device).repeat_interleave(width))
        logits = logits.repeat_interleave(width, dim=0)
        scores = torch.full((count, groups, per_group), -torch.inf, device=device)
        scores[:, :, 0] = 0.0
        written = torch.zeros(count, groups, per_group, 0, dtype=torch.long, device=device)
        vocabulary = logits.shape[-1]
        limit = min(max_new_tokens, student.context - (0 if student.is_seq2seq else max(map(len, prompts))))
        for t in range(limit):
            logprobs = logits.log_softmax(-1).view(count, groups, per_group, vocabulary)
            used = torch.zeros(count, vocabulary, device=device)
            parents = torch.zeros(count, groups, per_group, dtype=torch.long, device=device)
            chosen = torch.zeros_like(parents)
            for g in range(groups):
                total = scores[:, g, :, None] + logprobs[:, g]
                ranked = (total - diversity * used[:, None, :]).view(count, -1)
                # Twice the beams: at most half of them can end here, so enough are left to go on.
                picks = ranked.topk(2 * per_group, dim=-1).indices
                values = total.reshape(count, -1).gather(-1, picks)
                beam, token = picks // vocabulary, picks % vocabulary
                is_end = torch.isin(token, ends)
                for i, k in (is_end & values.isfinite()).nonzero().tolist():
                    if k < per_group:
                        line = [*written[i, g, beam[i, k]].tolist(), int(token[i, k])]
                        finished[i][g].append((float(values[i, k]) / len(line) ** length_penalty, line))
                going = (~is_end).int().argsort(dim=-1, descending=True, stable=True)[:, :per_group]
                parents[:, g], chosen[:, g] = beam.gather(-1, going), token.gather(-1, going)
                scores[:, g] = values.gather(-1, going)
                used.scatter_add_(1, chosen[:, g], torch.ones_like(scores[:, g]))
            history = written.gather(2, parents[..., None].expand(-1, -1, -1, t))
            written = torch.cat([history, chosen[..., None]], dim=-1)
            if t + 1 == limit or _no_beam_can_win(finished, scores, t + 1, per_group, length_penalty):
                break
            base = torch.arange(count * groups, device=device).view(count, groups, 1) * per_group
            decoding.keep((base + parents).flatten())
            _, logits = decoding.advance(chosen.flatten()[:, None])
        for i in range(count):
            for g in range(groups):
                for b in range(per_group):
                    if len(finished[i][g]) < per_group:
                        line = written[i, g, b].tolist()
                        finished[i][g].append((float(scores[i, g, b]) / max(1, len(line)) ** length_penalty, line))
    return [
        [
            student.decode([t for t in line if t not in student.end_tokens])
            for group in lines
            for _, line in sorted(group, key=lambda found: -found[0])[:per_group]
        ]
        for lines in finished
    ]


def _no_beam_can_win(
    finished: list[list[list[tuple[float, list[int]]]]],
    scores: Tensor,
    length: int,
    per_group: int,
    length_penalty: float,
) -> bool:
    """True once every group holds enough finished lines, the worst of them better than its best unfinished one."""
    best = (scores.amax(-1) / length**length_penalty).tolist()
    for lines, limits in zip(finished, best, strict=True):
        for group, limit in zip(lines, limits, strict=True):
            if len(group) < per_group or sorted(group)[-per_group][0] < limit:
                return False
    return True
