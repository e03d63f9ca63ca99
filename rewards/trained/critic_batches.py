"""Training examples of a critic as token ids, in batches of similar length.

    examples = make_examples(model, sets, targets_of_each, noise_weights=True)
    for batch in batches(examples, 32, seed, epoch): ...

This reduces padding, and siblings stay in one batch, where their differences can be learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from humor_env.rewards.rated.other_prompt import under_prompt_of
from humor_env.rewards.trained.critic_data import CriticSet, Groups, Target
from humor_env.rewards.trained.scoring_head import MarkedRow, ScoringModel
from humor_env.shared.streams import generator
from humor_env.types import Joke


@dataclass(frozen=True, slots=True)
class Example:
    """A tokenized rating (one row) or comparison (two rows). `good` is the index in `rows` of a line that is better
    than average, which should score higher with its own prompt; None if there is none."""

    rows: tuple[MarkedRow, ...]
    value: float
    weight: float
    group: str
    set: int
    jokes: tuple[Joke, ...] = ()
    good: int | None = None

    @property
    def length(self) -> int:
        return max(len(row.ids) for row in self.rows)


def make_examples(
    model: ScoringModel, parts: Sequence[CriticSet], targets: Sequence[Sequence[Target]], noise_weights: bool
) -> list[Example]:
    examples: list[Example] = []
    groups = Groups(parts)
    for number, (part, items) in enumerate(zip(parts, targets, strict=True)):
        rows = model.rows([item.joke for item in items])
        for rating, item, row in zip(part.ratings, items, rows, strict=True):
            weight = item.weight if noise_weights else 1.0
            good = 0 if item.value > 0 else None
            examples.append(Example((row,), item.value, weight, groups.of(rating), number, (item.joke,), good))
        first = model.rows([pair.a for pair in part.comparisons])
        second = model.rows([pair.b for pair in part.comparisons])
        for pair, a, b in zip(part.comparisons, first, second, strict=True):
            winner = None if pair.probability == 0.5 else int(pair.probability < 0.5)
            examples.append(Example((a, b), pair.probability, 1.0, groups.of(pair), number, (pair.a, pair.b), winner))
    return examples


class OtherPrompts:
    """The good lines of a batch under other prompts, where a critic that reads the prompt should score them lower.

    Each line gets a random other prompt of its set, a new one each time. An edited headline is moved as an edit, as in
    the audit's row *context*.
    """

    def __init__(self, model: ScoringModel, examples: Sequence[Example], seed: int) -> None:
        self.model, self.seed = model, seed
        self.jokes: dict[
            int, list[tuple[str, Joke]]
        ] = {}  # for each set: the prompt's group, and a line that answers it
        for example in examples:
            self.jokes.setdefault(example.set, []).extend((example.group, joke) for joke in example.jokes)

    def rows(self, batch: Sequence[Example], step: int) -> tuple[list[int], list[MarkedRow]]:
        """Indices into the batch's flat list of rows, and for each the same line under another prompt."""
        draw = generator(self.seed, "other prompts", step)
        places, moved = [], []
        flat = 0
        for example in batch:
            if example.good is not None:
                others = self.jokes[example.set]
                group, other = others[int(draw.integers(len(others)))]
                elsewhere = under_prompt_of(example.jokes[example.good], other)
                if group != example.group and other.prompt.text.strip() and elsewhere is not None:
                    places.append(flat + example.good)
                    moved.append(elsewhere)
            flat += len(example.rows)
        return places, self.model.rows(moved)


def batches(examples: Sequence[Example], size: int, seed: int, epoch: int) -> list[list[Example]]:
    """One epoch's batches in random order: ratings and comparisons separate, siblings together, lengths similar."""
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
    count = 0
    for piece in pieces:
        if count >= size:
            chunks.append([])
            count = 0
        chunks[-1].append(piece)
        count += len(piece)
    return chunks
