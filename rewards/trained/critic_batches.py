"""The texts that a critic learns from, as token ids, in batches of about one length.

    examples = make_examples(model, sets, targets_of_each, noise_weights=True)
    for batch in batches(examples, 32, seed, epoch): ...

Little is spent on padding that way, and siblings stay in one batch, where their differences can be learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from humor_env.rewards.trained.critic_data import CriticSet, Target
from humor_env.rewards.trained.scoring_head import MarkedRow, ScoringModel
from humor_env.shared.streams import generator


@dataclass(frozen=True, slots=True)
class Example:
    """A rating (one row) or a comparison (two rows), read already."""

    rows: tuple[MarkedRow, ...]
    value: float
    weight: float
    group: str
    set: int

    @property
    def length(self) -> int:
        return max(len(row.ids) for row in self.rows)


def make_examples(
    model: ScoringModel, parts: Sequence[CriticSet], wanted: Sequence[Sequence[Target]], noise_weights: bool
) -> list[Example]:
    found: list[Example] = []
    for number, (one, items) in enumerate(zip(parts, wanted, strict=True)):
        rows = model.rows([item.joke for item in items])
        for rating, item, row in zip(one.ratings, items, rows, strict=True):
            weight = item.weight if noise_weights else 1.0
            found.append(Example((row,), item.value, weight, rating.group, number))
        first = model.rows([pair.a for pair in one.comparisons])
        second = model.rows([pair.b for pair in one.comparisons])
        for pair, a, b in zip(one.comparisons, first, second, strict=True):
            found.append(Example((a, b), pair.probability, 1.0, pair.group, number))
    return found


def batches(examples: Sequence[Example], size: int, seed: int, epoch: int) -> list[list[Example]]:
    """One epoch's batches in random order: ratings and comparisons apart, siblings together, lengths alike."""
    source = generator(seed, "critic batches", epoch)
    out: list[list[Example]] = []
    for rows in (1, 2):
        groups: dict[tuple[int, str], list[Example]] = {}
        for example in examples:
            if len(example.rows) == rows:
                groups.setdefault((example.set, example.group), []).append(example)
        most = max(1, size // rows)
        pieces = []
        for group in groups.values():
            # A prompt with many answers fills several batches.
            mixed = [group[i] for i in source.permutation(len(group))] if len(group) > most else group
            pieces += [mixed[i : i + most] for i in range(0, len(mixed), most)]
        order = [pieces[i] for i in source.permutation(len(pieces))]
        for chunk in _chunks(order, 60 * most):
            chunk.sort(key=lambda piece: max(example.length for example in piece))
            flat = [example for piece in chunk for example in piece]
            out += [flat[i : i + most] for i in range(0, len(flat), most)]
    return [out[i] for i in source.permutation(len(out))]


def _chunks(pieces: Sequence[list[Example]], size: int) -> list[list[list[Example]]]:
    chunks: list[list[list[Example]]] = [[]]
    held = 0
    for piece in pieces:
        if held >= size:
            chunks.append([])
            held = 0
        chunks[-1].append(piece)
        held += len(piece)
    return chunks
