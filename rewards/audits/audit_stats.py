"""Statistics of an audit: agreement on pairs, on ranks, between people, and the ceiling set by raters' noise.

    credit = pair_credit(margins, truth)             # 1 right, 0 wrong, 1/2 if the critic ties
    interval(credit, headlines, seed=0)              # (low, high): resamples headlines, not pairs
    length_controlled(credit, longer)                # the accuracy if longer were funnier in half of the pairs
    one_against_others(grades_of_pairs, seed=0)      # a single person's accuracy on the same test

Pairs of one prompt share texts and raters, so intervals come from resampling prompts (clusters). All functions take
plain arrays.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from humor_env.shared.streams import generator

Floats = NDArray[np.float64]
Interval = tuple[float, float]

RESAMPLES = 2000
_ROUNDING = 1e-9  # a variance of ranks below this is rounding
ALIKE = 1e-9  # values that differ by less are equal
FEWEST = 10  # with fewer prompts, bootstrap intervals are too narrow


def rule_of_three(value: float, items: int, lowest: float = 0.0, highest: float = 1.0) -> Interval:
    """Bounds where resamples cannot differ, because all values between `lowest` and `highest` are equal: so large a
    share, 3 in `items`, may be otherwise."""
    return max(min(lowest, value), value - 3 / items), min(max(highest, value), value + 3 / items)


def percentile_bounds(means: Floats, values: Floats, items: int, lowest: float = 0.0) -> Interval:
    """The middle 95 % of resampled means of values between `lowest` and 1, or the rule of three if all values are
    equal. Differences that should be equal, such as 0.9 - 0.7 and 0.7 - 0.5, are so but for rounding."""
    if np.ptp(values) < ALIKE:
        return rule_of_three(float(values[0]), items, lowest)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def pair_credit(margins: ArrayLike, truth: ArrayLike) -> Floats:
    """1 if the margin has the sign of the truth, 0 if it has the opposite, 1/2 if it is 0."""
    return np.asarray((np.sign(np.asarray(margins, float)) * np.sign(np.asarray(truth, float)) + 1) / 2, dtype=float)


def _weights(clusters: Sequence[Hashable], seed: int, resamples: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each item's cluster index, and how often each resample draws each cluster."""
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(c, len(numbers)) for c in clusters], dtype=np.int64)
    n = len(numbers)
    drawn = generator(seed, "audit-bootstrap").multinomial(n, [1 / n] * n, size=resamples)
    return index, drawn


def interval(
    values: ArrayLike,
    clusters: Sequence[Hashable],
    seed: int = 0,
    resamples: int = RESAMPLES,
    lowest: float = 0.0,
) -> Interval | None:
    """A 95 % percentile interval of the mean of values between `lowest` and 1, resampling whole clusters. None with
    fewer than `FEWEST` clusters."""
    array = np.asarray(values, float)
    if len(set(clusters)) < FEWEST:
        return None
    index, drawn = _weights(clusters, seed, resamples)
    n = drawn.shape[1]
    sums = np.bincount(index, weights=array, minlength=n)
    counts = np.bincount(index, minlength=n)
    means = (drawn @ sums) / np.maximum(drawn @ counts, 1)
    return percentile_bounds(means, array, n, lowest)


def length_controlled(credit: ArrayLike, longer: ArrayLike) -> float | None:
    """The accuracy if people preferred the longer line in exactly half of the pairs.

    `longer` is how much longer the preferred text is (any unit, negative if shorter). Pairs whose longer line was
    preferred and pairs whose shorter line was get equal total weight, so a critic that only knows length gets 0.5.
    Pairs of equal length keep their weight. None if one of the two kinds is missing: then the preference cannot be
    separated from length.
    """
    y, raw = np.asarray(credit, float), np.asarray(longer, float)
    up, down, same = y[raw > 0], y[raw < 0], y[raw == 0]
    if len(same) == len(y):
        return float(y.mean()) if len(y) else None
    if not len(up) or not len(down):
        return None
    differing = (len(up) + len(down)) * (float(up.mean()) + float(down.mean())) / 2
    return (differing + float(same.sum())) / len(y)


def spearman(x: ArrayLike, y: ArrayLike) -> float | None:
    """Rank correlation; None below three items, or if x or y is constant."""
    a, b = np.asarray(x, float), np.asarray(y, float)
    if len(a) < 3 or np.all(a == a[0]) or np.all(b == b[0]):
        return None
    return _pearson(_ranks(a), _ranks(b))


def pearson(x: ArrayLike, y: ArrayLike) -> float | None:
    """Pearson correlation; None below three items, or if x or y is constant."""
    a, b = np.asarray(x, float), np.asarray(y, float)
    if len(a) < 3 or np.all(a == a[0]) or np.all(b == b[0]):
        return None
    return _pearson(a, b)


def partial_spearman(x: ArrayLike, y: ArrayLike, given: ArrayLike) -> float | None:
    """The partial rank correlation of x and y, given a third quantity."""
    xy, xz, yz = spearman(x, y), spearman(x, given), spearman(y, given)
    if xy is None:
        return None
    if xz is None or yz is None:
        return xy  # constant, so it explains nothing
    unexplained = (1 - xz**2) * (1 - yz**2)
    return (xy - xz * yz) / math.sqrt(unexplained) if unexplained > 1e-12 else None


def spearman_interval(
    x: ArrayLike, y: ArrayLike, clusters: Sequence[Hashable], seed: int = 0, resamples: int = 500
) -> Interval | None:
    """A 95 % percentile interval of the rank correlation, resampling whole clusters; ranks are over all items. None
    with fewer than `FEWEST` clusters, or if one of the two is constant in half of the resamples."""
    a, b = np.asarray(x, float), np.asarray(y, float)
    if spearman(a, b) is None or len(set(clusters)) < FEWEST:
        return None
    ra, rb = _ranks(a), _ranks(b)
    ra, rb = ra - ra.mean(), rb - rb.mean()  # else a constant resample has a little variance, by rounding
    index, drawn = _weights(clusters, seed, resamples)
    n = drawn.shape[1]
    # Moments per cluster: a resample's correlation is computed from their weighted sums.
    parts = [np.bincount(index, weights=v, minlength=n) for v in (np.ones(len(ra)), ra, rb, ra * ra, rb * rb, ra * rb)]
    total, sa, sb, saa, sbb, sab = (drawn @ part for part in parts)
    of_a, of_b = saa / total - (sa / total) ** 2, sbb / total - (sb / total) ** 2
    # Two ranks differ by at least 1/2, so a variance is 0 or far above this.
    varied = (of_a > _ROUNDING) & (of_b > _ROUNDING)
    if 2 * varied.sum() < len(varied):
        return None
    covariance = (sab / total - (sa / total) * (sb / total))[varied]
    correlations = np.clip(covariance / np.sqrt(of_a * of_b)[varied], -1, 1)
    low, high = np.quantile(correlations, [0.025, 0.975])
    return float(low), float(high)


def _ranks(values: Floats) -> Floats:
    from scipy.stats import rankdata

    return np.asarray(rankdata(values), dtype=float)


def _pearson(a: Floats, b: Floats) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip((a @ b) / math.sqrt(float(a @ a) * float(b @ b)), -1, 1))


def krippendorff_alpha(raters: Sequence[Sequence[float]]) -> float | None:
    """Agreement of raters on items, interval scale: 1 minus the disagreement within items over that between all."""
    items = [np.asarray(grades, float) for grades in raters if len(grades) > 1]
    if len(items) < 2:
        return None
    every = np.concatenate(items)
    total = len(every)
    # Mean squared difference of two grades is twice the variance: within items, weighted by their number of grades.
    within = sum(len(g) * 2 * float(g.var(ddof=1)) for g in items) / total
    between = 2 * float(every.var(ddof=1))
    return 1 - within / between if between > 0 else None


def reliability(raters: Sequence[Sequence[float]]) -> float | None:
    """The expected correlation of an item's mean grade with the mean of other such raters (Spearman-Brown)."""
    alpha = krippendorff_alpha(raters)
    if alpha is None or alpha <= 0:
        return None
    k = float(np.mean([len(grades) for grades in raters if len(grades) > 1]))
    return k * alpha / (1 + (k - 1) * alpha)


def correlation_ceiling(raters: Sequence[Sequence[float]]) -> float | None:
    """The correlation that a perfect critic would show with these means of noisy raters."""
    share = reliability(raters)
    return None if share is None else math.sqrt(share)


def one_against_rest(raters: Sequence[Sequence[float]], seed: int = 0, draws: int = 20) -> float | None:
    """Spearman between one random rater and the mean of the item's others, averaged over draws."""
    items = [np.asarray(grades, float) for grades in raters if len(grades) > 1]
    random = generator(seed, "audit-one-rater")
    correlations = []
    for _ in range(draws):
        mine, rest = np.empty(len(items)), np.empty(len(items))
        for i, grades in enumerate(items):
            drawn = int(random.integers(len(grades)))
            mine[i], rest[i] = grades[drawn], (grades.sum() - grades[drawn]) / (len(grades) - 1)
        rho = spearman(mine, rest)
        if rho is not None:
            correlations.append(rho)
    return float(np.mean(correlations)) if correlations else None


PairGrades = tuple[Sequence[float], Sequence[float]]


def one_against_others(pairs: Sequence[PairGrades], seed: int = 0, draws: int = 20) -> float | None:
    """Pair accuracy of one random rater of each text against the means of the others. Equal grades count half; a pair
    that the others tie is left out of that draw."""
    usable = [(np.asarray(a, float), np.asarray(b, float)) for a, b in pairs if len(a) > 1 and len(b) > 1]
    random = generator(seed, "audit-one-person")
    accuracies = []
    for _ in range(draws):
        mine, others = np.empty(len(usable)), np.empty(len(usable))
        for n, (a, b) in enumerate(usable):
            i, j = int(random.integers(len(a))), int(random.integers(len(b)))
            mine[n] = a[i] - b[j]
            others[n] = (a.sum() - a[i]) / (len(a) - 1) - (b.sum() - b[j]) / (len(b) - 1)
        decided = np.abs(others) > 1e-9
        if decided.any():
            accuracies.append(float(pair_credit(mine, others)[decided].mean()))
    return float(np.mean(accuracies)) if accuracies else None


def agreement_with_one(margins: ArrayLike, pairs: Sequence[PairGrades]) -> float | None:
    """How often the critic agrees with single people, over all choices of one rater per text. Choices with equal
    grades are left out."""
    right = total = 0.0
    for margin, (a, b) in zip(np.asarray(margins, float), pairs, strict=True):
        if not len(a) or not len(b):
            continue
        signs = np.sign(np.subtract.outer(np.asarray(a, float), np.asarray(b, float)))
        decided = float(np.abs(signs).sum())
        if decided:
            # Each pair counts once, however many raters it has.
            right += float(pair_credit(margin, signs)[signs != 0].mean())
            total += 1
    return right / total if total else None


def pair_ceiling(pairs: Sequence[PairGrades]) -> float | None:
    """The accuracy of a perfect critic on labels from these noisy means: how often the true and observed differences
    have the same sign, if both are normal with the raters' within-item noise."""
    usable = [(np.asarray(a, float), np.asarray(b, float)) for a, b in pairs if len(a) > 1 and len(b) > 1]
    differences = np.array([a.mean() - b.mean() for a, b in usable])
    if len(differences) < 2 or not differences.any():
        return None
    noise = float(np.mean([a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b) for a, b in usable]))
    observed = float(np.mean(differences**2))
    true_share = max(0.0, 1 - noise / observed)
    return 0.5 + math.asin(math.sqrt(true_share)) / math.pi


@dataclass(frozen=True, slots=True)
class Bin:
    """One point of a calibration curve: `said` is the critic's confidence, `seen` how often people agreed."""

    low: float
    high: float
    count: int
    said: float
    seen: float


def calibration_bins(probabilities: ArrayLike, agreed: ArrayLike, bins: int = 5) -> tuple[Bin, ...]:
    """Verdicts sorted by confidence (0.5 to 1), in bins of equal count; equal values stay together."""
    p, y = np.asarray(probabilities, float), np.asarray(agreed, float)
    if len(p) == 0:
        return ()
    upper = np.unique(np.quantile(p, np.linspace(0, 1, bins + 1)[1:], method="higher"))
    place = np.searchsorted(upper, p, side="left")
    rows = []
    for k in range(int(place.max()) + 1):
        in_bin = place == k
        if in_bin.any():
            rows.append(
                Bin(
                    float(p[in_bin].min()),
                    float(p[in_bin].max()),
                    int(in_bin.sum()),
                    float(p[in_bin].mean()),
                    float(y[in_bin].mean()),
                )
            )
    return tuple(rows)


def calibration_error(bins: Sequence[Bin]) -> float | None:
    """The mean gap between `said` and `seen`, weighted by count."""
    total = sum(b.count for b in bins)
    return sum(b.count * abs(b.said - b.seen) for b in bins) / total if total else None
