"""Training data of a critic: texts with weighted grades, or pairs with the winner.

    [ratings] = [from_rated(load_rated("humicroedit", ["task-1_train.csv"]))]
    train, dev = split([ratings], dev_share=0.1, seed=0)      # by prompt: edits of one headline stay together
    standardise(train)                                         # each set on its own scale; weights by raters

A mean of five grades is noisy: people differ more than the texts do. So each grade gets a weight, 1 / (variance between
texts + variance of its mean), where the latter is its raters' variance, shrunk towards the set's typical one, over
their number.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from statistics import fmean, pvariance

from humor_env.errors import InvalidOption
from humor_env.rewards.rated.rated_sets import RatedSet, RatedText, load_rated, prompt_name
from humor_env.shared.streams import stream_seed
from humor_env.types import Joke

# The variance of few raters is uncertain: shrink it as if this many more raters had the typical one.
_TYPICAL_RATERS = 20
_PROBABILITY = {"a": 1.0, "b": 0.0, "tie": 0.5}


@dataclass(frozen=True, slots=True)
class Rating:
    """A joke and its mean grade; `spread` is the variance of its raters' grades, None if unknown."""

    joke: Joke
    score: float
    raters: int = 1
    spread: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two jokes, and the probability that the first is better: 1, 0, 0.5 for a tie, or a judge's."""

    a: Joke
    b: Joke
    probability: float


@dataclass(frozen=True, slots=True)
class CriticSet:
    """One source of ratings or comparisons (or both), on its own scale."""

    name: str
    ratings: tuple[Rating, ...] = ()
    comparisons: tuple[Comparison, ...] = ()

    def __len__(self) -> int:
        return len(self.ratings) + len(self.comparisons)

    @property
    def jokes(self) -> list[Joke]:
        return [item.joke for item in self.ratings] + [joke for item in self.comparisons for joke in (item.a, item.b)]

    def groups(self, groups: Groups | None = None) -> list[str]:
        """Each prompt once, in the order of the file; by default as this set alone tells them apart."""
        return list(dict.fromkeys(self.group_of_each(groups or Groups([self]))))

    def only(self, chosen: Iterable[str], groups: Groups | None = None) -> CriticSet:
        """The subset for these prompts."""
        names, groups = set(chosen), groups or Groups([self])
        return replace(
            self,
            ratings=tuple(item for item in self.ratings if groups.of(item) in names),
            comparisons=tuple(item for item in self.comparisons if groups.of(item) in names),
        )

    def group_of_each(self, groups: Groups) -> list[str]:
        return [groups.of(item) for item in self.ratings] + [groups.of(item) for item in self.comparisons]


class Groups:
    """Which prompt the ratings and comparisons of some sets belong to, so that siblings stay together.

    Without its words, a prompt is known by its id if several texts share that (a contest's captions). Texts that answer
    no prompt belong together if a comparison connects them, be it by way of other texts: otherwise the same text, or
    even the same pair with its sides swapped, would be in the train and the dev part.
    """

    def __init__(self, sets: Sequence[CriticSet]) -> None:
        self._texts_of_id: dict[str, set[str]] = {}
        self._next: dict[str, str] = {}  # of joined groups, the way to the one that names them all
        for critic_set in sets:
            for joke in critic_set.jokes:
                if (name := prompt_name(joke.prompt)) and not joke.prompt.text.strip():
                    self._texts_of_id.setdefault(name, set()).add(_words(joke.text))
        for texts in self._texts_of_id.values():
            if len(texts) == 2:
                self._join(*texts)
        for critic_set in sets:
            for item in critic_set.comparisons:
                self._join(self._own(item.a), self._own(item.b))

    def of(self, item: Rating | Comparison) -> str:
        return self._first(self._own(item.joke if isinstance(item, Rating) else item.a))

    def _own(self, joke: Joke) -> str:
        name = prompt_name(joke.prompt)
        # An id of only two texts may be that of a single pair, whose texts may also be in others.
        if joke.prompt.text.strip() or len(self._texts_of_id.get(name, ())) > 2:
            return _words(name)
        return _words(joke.text)

    def _join(self, a: str, b: str) -> None:
        first, second = sorted((self._first(a), self._first(b)))
        if first != second:
            self._next[second] = first

    def _first(self, group: str) -> str:
        """The name of all that is joined with this group: the first of its texts in alphabetical order."""
        end = group
        while end in self._next:
            end = self._next[end]
        while group != end:  # so that the way is short next time
            self._next[group], group = end, self._next[group]
        return end


@dataclass(frozen=True, slots=True)
class Target:
    """The training target of a joke: a value on the common scale, and its weight (1 on average)."""

    joke: Joke
    value: float
    weight: float


def _words(text: str) -> str:
    return " ".join(text.split()).casefold()


def sets_from_files(entries: Sequence[str]) -> list[CriticSet]:
    """Sets from SET=FILE entries, as in --data; several files of one set are combined."""
    files: dict[str, list[str]] = {}
    for entry in entries:
        name, equals, file = entry.partition("=")
        if not (name and equals and file):
            raise InvalidOption(f"--data must be SET=FILE, such as humicroedit=task-1_train.csv; found {entry!r}.")
        files.setdefault(name, []).append(file)
    return [from_rated(load_rated(name, paths)) for name, paths in files.items()]


def from_rated(rated: RatedSet) -> CriticSet:
    """A loaded set as training data: only its main kind, if it mixes several; its pairs as comparisons."""
    if rated.main is not None:
        rated = rated.only(rated.main)
    return CriticSet(
        rated.name,
        tuple(_rating(text) for text in rated.texts),
        tuple(Comparison(*pair.jokes, _PROBABILITY[pair.label]) for pair in rated.pairs),
    )


def _rating(text: RatedText) -> Rating:
    count = len(text.raters)
    # The sample variance, with one less than the number of raters as divisor.
    spread = pvariance(text.raters) * count / (count - 1) if count > 1 else None
    return Rating(text.joke, text.score, max(1, count), spread)


def split(sets: Sequence[CriticSet], dev_share: float, seed: int) -> tuple[list[CriticSet], list[CriticSet]]:
    """Train and dev parts with no prompt in common, across all sets. About `dev_share` of each set's prompts go to dev,
    even of small sets."""
    # Prompts are ordered by hash, so that sets with the same prompts keep the same ones for dev.
    if not 0 < dev_share < 1:
        raise InvalidOption(
            f"dev_share (the share of prompts kept for stopping) must be above 0 and below 1, found {dev_share}."
        )
    groups = Groups(sets)
    dev: set[str] = set()
    for critic_set in sets:
        sizes = Counter(critic_set.group_of_each(groups))
        # Most of a set is too much for dev. Only texts that pairs connect, or a single prompt, make up so much.
        small = [group for group, size in sizes.items() if 2 * size <= len(critic_set)]
        if not small:
            raise InvalidOption(_inseparable(critic_set, len(sizes)))
        small.sort(key=lambda group: (stream_seed(seed, "critic dev", group), group))
        dev.update(small[: max(1, round(dev_share * len(sizes)))])
    train = [critic_set.only(set(critic_set.groups(groups)) - dev, groups) for critic_set in sets]
    for whole, part in zip(sets, train, strict=True):
        if not len(part):
            raise InvalidOption(_too_few(whole, len(whole.groups(groups))))
    return train, [critic_set.only(dev, groups) for critic_set in sets]


def _inseparable(critic_set: CriticSet, prompts: int) -> str:
    texts = {_words(joke.text) for joke in critic_set.jokes}
    if len(texts) < 3 or any(prompt_name(joke.prompt) for joke in critic_set.jokes):
        return _too_few(critic_set, prompts)
    return (
        f"The {len(critic_set.comparisons)} pairs of the set '{critic_set.name}' have no prompts, and connect all of "
        f"their {len(texts)} texts: training would know those of any pair that is kept for stopping. Add pairs of "
        "other texts."
    )


def _too_few(critic_set: CriticSet, prompts: int) -> str:
    return (
        f"The set '{critic_set.name}' has {prompts} prompts, too few to keep some of them for stopping. Give more data."
    )


def noise_weights(ratings: Sequence[Rating]) -> list[float]:
    """Each grade's weight, 1 on average: 1 / (variance between texts + variance of its mean)."""
    spreads = [(item.spread, item.raters) for item in ratings if item.spread is not None]
    if not spreads:
        # Only the numbers of raters are known: take the variance of all grades as the typical spread.
        typical = pvariance([item.score for item in ratings])
    else:
        typical = math.fsum(s * (n - 1) for s, n in spreads) / sum(n - 1 for _, n in spreads)
    noise = []
    for item in ratings:
        spread, degrees = (item.spread, item.raters - 1) if item.spread is not None else (typical, 0)
        noise.append((_TYPICAL_RATERS * typical + degrees * spread) / (_TYPICAL_RATERS + degrees) / item.raters)
    between = max(pvariance([item.score for item in ratings]) - fmean(noise), 0.1 * fmean(noise), 1e-12)
    raw = [1 / (between + each) for each in noise]
    mean = fmean(raw)
    return [each / mean for each in raw]


@dataclass(frozen=True, slots=True)
class Scale:
    """Standardises a set's grades to the common scale."""

    mean: float
    deviation: float

    def standard(self, score: float) -> float:
        return (score - self.mean) / self.deviation


def scale_of(critic_set: CriticSet) -> Scale | None:
    """Mean and standard deviation of a set's grades; None if it has none."""
    if not critic_set.ratings:
        return None
    scores = [item.score for item in critic_set.ratings]
    if not all(math.isfinite(score) for score in scores):
        raise InvalidOption(f"The set '{critic_set.name}' has grades that are not numbers.")
    if max(scores) == min(scores):
        raise InvalidOption(
            f"All {len(scores)} grades of the set '{critic_set.name}' are {scores[0]:g}: there is nothing to learn. "
            "Give texts that people rated differently."
        )
    return Scale(fmean(scores), math.sqrt(pvariance(scores)))


def targets(critic_set: CriticSet, scale: Scale | None) -> list[Target]:
    """The ratings of a set on the common scale, with their weights."""
    if scale is None:
        return []
    weights = noise_weights(critic_set.ratings)
    return [
        Target(item.joke, scale.standard(item.score), weight)
        for item, weight in zip(critic_set.ratings, weights, strict=True)
    ]


def check_comparisons(critic_set: CriticSet) -> None:
    """Refuse comparisons that are all ties, or with an invalid probability."""
    if not critic_set.comparisons:
        return
    for item in critic_set.comparisons:
        if not 0 <= item.probability <= 1:
            raise InvalidOption(
                f"The set '{critic_set.name}' has a comparison with the probability {item.probability}."
            )
    if all(item.probability == 0.5 for item in critic_set.comparisons):
        raise InvalidOption(
            f"All {len(critic_set.comparisons)} pairs of the set '{critic_set.name}' are ties: nothing to learn."
        )


def dev_pairs(critic_set: CriticSet, most: int = 20_000) -> list[Comparison]:
    """The evaluation pairs of a dev part: its comparisons without ties, and siblings with different grades. If no
    prompt has two texts, each text is paired with the next in the file."""
    pairs = [item for item in critic_set.comparisons if item.probability != 0.5]
    groups, siblings = Groups([critic_set]), dict[str, list[Rating]]()
    for item in critic_set.ratings:
        siblings.setdefault(groups.of(item), []).append(item)
    families = [family for family in siblings.values() if len(family) > 1]
    met = _by_distance(families) if families else zip(critic_set.ratings, critic_set.ratings[1:], strict=False)
    unlike = (Comparison(a.joke, b.joke, float(a.score > b.score)) for a, b in met if a.score != b.score)
    return [*pairs[:most], *islice(unlike, max(0, most - len(pairs)))]


def _by_distance(families: Sequence[Sequence[Rating]]) -> Iterator[tuple[Rating, Rating]]:
    """All pairs of siblings, neighbours first, so that the first few of very many have every text in them."""
    for distance in range(1, max(map(len, families))):
        for family in families:
            yield from zip(family, family[distance:], strict=False)
