"""Diverse beam search: the most likely lines, in groups that avoid each other's words.

    beams(student, ["The meeting was slow."], width=6, groups=3, diversity=0.5)   # candidates per prompt

Implemented here because `transformers` 5 removed it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from humor_env.agents.student.sampling import Decoding
from humor_env.agents.student.student import POLICY, Student
from humor_env.errors import InvalidOption


class BeamLine(NamedTuple):
    text: str
    stop_reason: str  # "end" or "length"


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
) -> list[list[BeamLine]]:
    """`width` candidates per observation, best first within a group. With `groups` > 1, diverse beam search.

    Each group searches `width / groups` beams; a token that an earlier group already chose at this position costs
    `diversity` per choice. A finished line's score is its log-probability over length ** length_penalty.
    """
    if width % groups:
        raise InvalidOption(f"Beam search needs a width divisible by groups; found {width} and {groups}.")
    per_group = width // groups
    count, device = len(observations), student.device
    prompts = [student.encode_prompt(o) for o in observations]
    ends = torch.tensor(student.end_tokens, device=device)
    finished: list[list[list[tuple[float, list[int]]]]] = [[[] for _ in range(groups)] for _ in range(count)]
    with student.merged(adapter):
        decoding = Decoding(student, prompts)
        _, logits = decoding.advance(decoding.first_input)
        # From here on a row is (prompt, group, beam). A group's beams start equal: only the first may be extended.
        decoding.keep(torch.arange(count, device=device).repeat_interleave(width))
        logits = logits.repeat_interleave(width, dim=0)
        scores = torch.full((count, groups, per_group), -torch.inf, device=device)
        scores[:, :, 0] = 0.0
        tokens = torch.zeros(count, groups, per_group, 0, dtype=torch.long, device=device)
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
                # Twice the beams: at most half of them can end here, so enough remain.
                picks = ranked.topk(2 * per_group, dim=-1).indices
                values = total.reshape(count, -1).gather(-1, picks)
                beam, token = picks // vocabulary, picks % vocabulary
                is_end = torch.isin(token, ends)
                for i, k in (is_end & values.isfinite()).nonzero().tolist():
                    if k < per_group:
                        line = [*tokens[i, g, beam[i, k]].tolist(), int(token[i, k])]
                        finished[i][g].append((float(values[i, k]) / len(line) ** length_penalty, line))
                going = (~is_end).int().argsort(dim=-1, descending=True, stable=True)[:, :per_group]
                parents[:, g], chosen[:, g] = beam.gather(-1, going), token.gather(-1, going)
                scores[:, g] = values.gather(-1, going)
                used.scatter_add_(1, chosen[:, g], torch.ones_like(scores[:, g]))
            history = tokens.gather(2, parents[..., None].expand(-1, -1, -1, t))
            tokens = torch.cat([history, chosen[..., None]], dim=-1)
            if t + 1 == limit or _no_beam_can_win(finished, scores, t + 1, per_group, length_penalty):
                break
            base = torch.arange(count * groups, device=device).view(count, groups, 1) * per_group
            decoding.keep((base + parents).flatten())
            _, logits = decoding.advance(chosen.flatten()[:, None])
        for i in range(count):
            for g in range(groups):
                for b in range(per_group):
                    if len(finished[i][g]) < per_group:
                        line = tokens[i, g, b].tolist()
                        finished[i][g].append((float(scores[i, g, b]) / max(1, len(line)) ** length_penalty, line))
    return [
        [
            BeamLine(
                student.decode([t for t in line if t not in student.end_tokens]),
                "end" if line and line[-1] in student.end_tokens else "length",
            )
            for group in lines
            for _, line in sorted(group, key=lambda scored: -scored[0])[:per_group]
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
    """True once every group has enough finished lines, the worst of them better than its best unfinished one."""
    best = (scores.amax(-1) / length**length_penalty).tolist()
    for lines, limits in zip(finished, best, strict=True):
        for group, limit in zip(lines, limits, strict=True):
            if len(group) < per_group or sorted(group)[-per_group][0] < limit:
                return False
    return True
