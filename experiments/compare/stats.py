"""Statistics for few seeds and many prompts: pure functions from arrays to numbers with intervals.

    interval([scores])                        # scores [seeds, prompts]: the mean with its 95 % bootstrap interval
    interval([scores])                        # or [seeds, prompts, lines]: lines of a prompt are averaged first
    interval([scores], interquartile_mean)
    probability_of_improvement(a, b)          # a, b [seeds, prompts]: how likely is a run of a to beat one of b?
    paired_difference(a, b)                   # same seeds, same prompts
    bradley_terry(scores)                     # [systems, seeds, prompts]: ratings, intervals, tiers
    length_controlled(wins, longer)           # the win rate if both lines had the same length
    length_controlled_interval(wins, longer)  # [seeds, prompts]: its mean over seeds, with an interval

Interquartile mean, stratified bootstrap, probability of improvement and performance profiles follow Agarwal et al. 2021
("Deep Reinforcement Learning at the Edge of the Statistical Precipice"). Their package rliable 1.2.0 is on PyPI, but
needs arch, pandas and seaborn (and so matplotlib) for a few dozen lines of NumPy. Ours differ in one point: prompts
are resampled as well as seeds, because a held-out set is a sample too.

Lines for one prompt are not independent: a prompt is resampled with all its lines.

Below `FEWEST` prompts, or below `FEWEST_RUNS` runs with a single number each, there are no bounds (NaN), because a
bootstrap draws only from what it has seen; if all scores are equal, the rule of three gives the bounds. So it does for
a system whose games with each opponent all end alike.

NaN is a missing score (a failed judgement) and is left out. All randomness comes from `seed`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from humor_env.errors import InvalidOption
from humor_env.rewards.audits.audit_stats import ALIKE, FEWEST, rule_of_three
from humor_env.rewards.tournament import strengths
from humor_env.shared.streams import generator

Array = NDArray[np.float64]
RESAMPLES, LEVEL = 2000, 0.95
FEWEST_RUNS = 2  # one run says nothing of another; with two an interval is narrow, and reaches from one to the other
ELO = 400 / np.log(10)  # points for each factor of e in the odds


@dataclass(frozen=True)
class Interval:
    """A number with the bounds of its interval over seeds and prompts."""

    value: float
    low: float
    high: float

    def overlaps(self, other: Interval) -> bool:
        """Whether nothing is known to lie between them: an unknown bound overlaps everything."""
        return not (self.low > other.high or other.low > self.high)


def mean(values: Array) -> Array:
    """The mean over the last axis, without missing values; NaN if all are missing."""
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(finite, values, 0.0).sum(-1) / finite.sum(-1))


def interquartile_mean(values: Array) -> Array:
    """The mean of the middle half over the last axis, without missing values; NaN if all are missing. Neither a lucky
    seed nor a failed one dominates it."""
    count = np.isfinite(values).sum(-1, keepdims=True)
    cut, place = count // 4, np.arange(np.shape(values)[-1])
    middle = (place >= cut) & (place < count - cut)
    return mean(np.where(middle, np.sort(values, axis=-1), np.nan))  # NaN is sorted to the end


def interval(
    strata: Sequence[ArrayLike],
    statistic: Callable[[Array], Array] = mean,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    lowest: float = 0.0,
) -> Interval:
    """A statistic of the scores of runs, with its bootstrap interval. Scores lie between `lowest` and 1, which matters
    only if all are equal.

    Each stratum (a task, a critic) is `[seeds]`, or `[seeds, prompts]`, whose rows are averaged, or `[seeds, prompts,
    lines]`, where the lines of a prompt are averaged first. Runs are resampled within their stratum, with the same
    prompts for all its runs: the two sources of variance are crossed, not nested.
    """
    arrays = [_matrix(stratum) for stratum in strata]
    source = generator(seed, "interval")
    runs = np.concatenate([_resampled_runs(array, source, resamples) for array in arrays], axis=1)
    value = float(statistic(np.concatenate([mean(array) for array in arrays])))
    if not all(map(_enough, strata)):
        return Interval(value, np.nan, np.nan)
    if all(np.nanmax(array) - np.nanmin(array) < ALIKE for array in arrays):
        return Interval(value, *rule_of_three(value, sum(map(_units, strata)), lowest))
    return _interval(value, statistic(runs), level)


def _units(scores: ArrayLike) -> int:
    """How many prompts have a score, or runs where one number of each is given."""
    finite = np.isfinite(np.asarray(scores, dtype=np.float64))
    return int(finite.sum() if finite.ndim == 1 else finite.any(axis=(0, *range(2, finite.ndim))).sum())


def _enough(scores: ArrayLike) -> bool:
    """Whether there are enough for an interval."""
    return _units(scores) >= (FEWEST_RUNS if np.ndim(scores) == 1 else FEWEST)


def _matrix(scores: ArrayLike) -> Array:
    array = np.asarray(scores, dtype=np.float64)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim not in (2, 3) or not array.size:
        raise InvalidOption(
            f"Scores are [seeds], [seeds, prompts] or [seeds, prompts, lines] and not empty; found the shape "
            f"{array.shape}."
        )
    return mean(array) if array.ndim == 3 else array


def _draws(source: np.random.Generator, resamples: int, count: int) -> NDArray[np.int64]:
    return source.integers(count, size=(resamples, count))


def _resampled_runs(array: Array, source: np.random.Generator, resamples: int, weights: Array | None = None) -> Array:
    """`[resamples, seeds]`: the mean score of each resampled run over resampled prompts, drawn here unless given."""
    seeds, prompts = array.shape
    rows = _draws(source, resamples, seeds)
    if prompts == 1:
        return array[:, 0][rows]
    weights = _weights(source, resamples, prompts) if weights is None else weights  # [R, P]
    finite = np.isfinite(array)
    sums = weights @ np.where(finite, array, 0.0).T  # [R, S]
    counts = weights @ finite.T.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.take_along_axis(sums / counts, rows, axis=1)


def _weights(source: np.random.Generator, resamples: int, count: int) -> Array:
    """How often each of `count` items is drawn in each resample."""
    return source.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)


def _interval(value: float, resampled: ArrayLike, level: float) -> Interval:
    drawn = np.asarray(resampled)
    if not np.isfinite(drawn).any():
        return Interval(value, float("nan"), float("nan"))
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def probability_of_improvement(
    a: ArrayLike, b: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval:
    """How likely a run of `a` scores higher than one of `b`; equal scores count half. If the whole interval is above
    one half, `a` is better. With as many prompts in both, they are the same ones, and are drawn together."""
    first, second = _matrix(a), _matrix(b)
    source = generator(seed, "improvement")
    count = first.shape[1]
    weights = _weights(source, resamples, count) if count == second.shape[1] else None
    runs = [_resampled_runs(array, source, resamples, weights) for array in (first, second)]
    value = float(_share_above(mean(first), mean(second)))
    several = all(np.isfinite(mean(array)).sum() >= FEWEST_RUNS for array in (first, second))
    if not (several and _enough(a) and _enough(b)):
        return Interval(value, np.nan, np.nan)
    return _interval(value, _share_above(*runs), level)


def _share_above(a: Array, b: Array) -> Array:
    """The Mann-Whitney U divided by the number of pairs, over the last axis; runs without a score do not count."""
    difference = a[..., :, None] - b[..., None, :]
    wins = np.where(np.isfinite(difference), (difference > 0) + 0.5 * (difference == 0), np.nan)
    return mean(wins.reshape(*wins.shape[:-2], -1))


def paired_difference(
    a: ArrayLike, b: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval:
    """The mean of a - b with the same seeds and prompts in both, so that what they share cancels out. For prompts with
    several lines, the means are compared."""
    first, second = _matrix(a), _matrix(b)
    if first.shape != second.shape:
        raise InvalidOption(f"Pairs need the same seeds and prompts; found {first.shape} and {second.shape}.")
    difference = (first - second)[:, 0] if np.ndim(a) == 1 else first - second
    return interval([difference], mean, seed=seed, resamples=resamples, level=level, lowest=-1.0)


def performance_profile(
    scores: ArrayLike, thresholds: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> list[Interval]:
    """For each threshold, the share of lines that score above it, over all seeds and prompts."""
    array = np.asarray(scores, dtype=np.float64)
    profile = []
    for threshold in np.asarray(thresholds, dtype=np.float64):
        above = np.where(np.isfinite(array), (array > threshold).astype(np.float64), np.nan)
        profile.append(interval([above], mean, seed=seed, resamples=resamples, level=level))
    return profile


@dataclass(frozen=True)
class Rating:
    """A system's strength in Elo points (0 is the average system, 400 points are ten times the odds) and its tier: 1 is
    the best, and a tier holds the systems whose intervals overlap that of its first. That is no test: two of one tier
    may still differ, since the interval of a difference is narrower than the two together."""

    system: int
    points: Interval
    tier: int


def bradley_terry(
    scores: ArrayLike, *, seed: int = 0, resamples: int = 500, level: float = LEVEL, prior: float = 1.0
) -> list[Rating]:
    """Ratings of systems, best first, from scores `[systems, seeds, prompts]`: on each prompt of each seed the higher
    score wins and equal scores draw. With `[systems, seeds, prompts, lines]`, line k plays line k, and all games of a
    prompt together count as one. `prior` games against an average system keep the strength of one that always wins
    finite. A system that played on fewer than `FEWEST` prompts has no bounds."""
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim not in (3, 4) or len(array) < 2:
        raise InvalidOption(f"Ratings need [systems, seeds, prompts] with two systems or more; found {array.shape}.")
    systems, seeds, prompts = array.shape[:3]
    games = _games(array)
    source = generator(seed, "bradley-terry")
    by_seed, by_prompt = _weights(source, resamples, seeds), _weights(source, resamples, prompts)
    weights = (by_seed[:, :, None] * by_prompt[:, None, :]).reshape(resamples, seeds * prompts)
    flat = games.reshape(systems * systems, seeds * prompts)
    resampled = (weights @ flat.T).reshape(resamples, systems, systems)
    drawn = ELO * np.stack([strengths(wins, prior) for wins in resampled])
    return ranked(games.reshape(systems, systems, -1), np.tile(np.arange(prompts), seeds), drawn, level, prior)


def ranked(
    games: Array, prompt_of: NDArray[np.int64], drawn: Array, level: float = LEVEL, prior: float = 1.0
) -> list[Rating]:
    """Best first, from the games `[systems, systems, games]`, 0 for both where two did not meet, the number of each
    game's prompt, and the points of each resample `[resamples, systems]`. A system that played on fewer than `FEWEST`
    prompts has no bounds (NaN); one that has not played yet is at 0, with no bounds at all."""
    wins = games.sum(-1)
    points = ELO * strengths(wins, prior)
    intervals = []
    for system, value in enumerate(map(float, points)):
        met = games[system] + games[:, system]  # [systems, games]
        prompts = len(set(prompt_of[met.any(0)].tolist()))
        if not prompts:
            bounds = Interval(0.0, -np.inf, np.inf)
        elif prompts < FEWEST:
            bounds = Interval(value, np.nan, np.nan)
        else:
            bounds = _interval(value, drawn[:, system], level)
            if _end_alike(games[system], met):
                # Resamples differ only in how often each game counts, or in how the others played.
                off = _if_otherwise(wins, system, prompts, prior)
                bounds = Interval(value, min(bounds.low, off.low), max(bounds.high, off.high))
        intervals.append(bounds)
    order = sorted(range(len(points)), key=lambda i: -intervals[i].value)
    return [Rating(i, intervals[i], tier) for i, tier in zip(order, tiers([intervals[i] for i in order]), strict=True)]


def _end_alike(won: Array, met: Array) -> bool:
    """Whether all games of a system with the same opponent end alike, with each: `[systems, games]`."""
    share = np.divide(won, met, out=np.zeros_like(met), where=met > 0)
    highest, lowest = np.where(met > 0, share, 0.0).max(1), np.where(met > 0, share, 1.0).min(1)
    return bool((highest - lowest < ALIKE).all())


def _if_otherwise(wins: Array, system: int, prompts: int, prior: float) -> Interval:
    """The rule of three for a system whose games all end alike: its points if so large a share of them did not."""
    met = wins[system] + wins[:, system]
    share = np.divide(wins[system], met, out=np.zeros_like(met), where=met > 0)
    points = []
    for off in (-3 / prompts, 0.0, 3 / prompts):
        changed = wins.copy()
        changed[system] = np.clip(share + off, 0, 1) * met
        changed[:, system] = met - changed[system]
        points.append(float(ELO * strengths(changed, prior)[system]))
    return Interval(points[1], points[0], points[2])


def _games(scores: Array) -> Array:
    """`[systems, systems, seeds, prompts]`: 1 if the first beats the second, 1/2 for a draw, 0 if either has no score
    or both are the same system."""
    difference = scores[:, None] - scores[None, :]
    wins = np.where(np.isfinite(difference), (difference > 0) + 0.5 * (difference == 0), 0.0)
    wins[np.arange(len(scores)), np.arange(len(scores))] = 0.0
    return wins if scores.ndim == 3 else np.asarray(wins.mean(-1))


def tiers(intervals: Sequence[Interval]) -> list[int]:
    """The tiers of intervals sorted by value, best first: a new tier starts with the first interval that does not
    overlap the first of the current tier. One without bounds is in the tier of its place, and is no tier's first."""
    numbers: list[int] = []
    tier = 1
    first: Interval | None = None
    for rating in intervals:
        if np.isfinite(rating.low) and (first is None or not rating.overlaps(first)):
            tier, first = tier if first is None else tier + 1, rating
        numbers.append(tier)
    return numbers


def length_controlled(wins: ArrayLike, longer: ArrayLike, ridge: float = 1e-2) -> float:
    """The win rate that a judge would give if no line were longer than the one it is compared with.

    A logistic model of the verdict, s(a + b tanh(longer / deviation)), fitted by Newton's method to the judge's
    probabilities; the length term is then dropped: s(a). This is the length control of AlpacaEval 2 (Dubois et al.
    2024) without its term for a prompt's difficulty, which a single system cannot separate from its own strength.
    `ridge` keeps both numbers finite if the judge is always certain.
    """
    target, length = np.ravel(np.asarray(wins, dtype=np.float64)), np.ravel(np.asarray(longer, dtype=np.float64))
    return float(_length_controlled(target, length, np.ones((1, len(target))), ridge)[0])


def _length_controlled(target: Array, length: Array, weights: Array, ridge: float = 1e-2) -> Array:
    """The same for each row of `weights`, which says how often each line counts; NaN where none has a verdict."""
    finite = np.isfinite(target) & np.isfinite(length)
    target, length, weights = target[finite], length[finite], weights[:, finite]
    counts = weights.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        middle = (weights @ length / counts)[:, None]
        spread = np.sqrt((weights * (length - middle) ** 2).sum(1) / counts)[:, None]
        differ = spread > ALIKE * np.abs(length).max(initial=0.0)  # but for rounding
        pushed = np.where(differ, np.tanh(length / spread), 0.0)
        share = weights @ target / counts
    a, b = logit(np.clip(share, 0.01, 0.99)), np.zeros(len(weights))
    for _ in range(100):
        p = expit(a[:, None] + b[:, None] * pushed)
        missed, curved = weights * (p - target), weights * p * (1 - p)
        slope_a, slope_b = missed.sum(1) + ridge * a, (missed * pushed).sum(1) + ridge * b
        by_length = curved * pushed
        aa, ab = curved.sum(1) + ridge, by_length.sum(1)
        bb = (by_length * pushed).sum(1) + ridge
        determinant = aa * bb - ab**2
        step_a, step_b = (bb * slope_a - ab * slope_b) / determinant, (aa * slope_b - ab * slope_a) / determinant
        # A step that moves no line's log-odds by more than 1 always lowers the loss, so none has to be tried.
        size = np.abs(step_a) + np.abs(step_b)
        shorter = 1 / np.maximum(1.0, size)
        a, b = a - shorter * step_a, b - shorter * step_b
        if not (size > 1e-10).any():
            break
    return np.where(counts > 0, expit(a), np.nan)


def length_controlled_interval(
    wins: ArrayLike, longer: ArrayLike, *, seed: int = 0, resamples: int = 300, level: float = LEVEL
) -> Interval:
    """The mean over seeds of `length_controlled`, from `[seeds, prompts]` or `[seeds, prompts, lines]`. As in
    `interval`, seeds and prompts are resampled, and the model is fitted again to each resample."""
    target, length = np.asarray(wins, dtype=np.float64), np.asarray(longer, dtype=np.float64)
    seeds, prompts = target.shape[:2]
    source = generator(seed, "length controlled")
    rows, weights = _draws(source, resamples, seeds), _weights(source, resamples, prompts)
    by_line = np.repeat(weights, target[0].size // prompts, axis=1)
    pairs = [(w.ravel(), x.ravel()) for w, x in zip(target, length, strict=True)]
    value = float(mean(np.array([length_controlled(w, x) for w, x in pairs])))
    if not _enough(target):
        return Interval(value, np.nan, np.nan)
    if np.nanmax(target) - np.nanmin(target) < ALIKE:
        return Interval(value, *rule_of_three(value, _units(target)))
    fits = np.stack([_length_controlled(w, x, by_line) for w, x in pairs], axis=1)  # [R, S]
    return _interval(value, mean(np.take_along_axis(fits, rows, axis=1)), level)


def mean_curve(
    curves: Sequence[tuple[ArrayLike, ArrayLike]],
    at: ArrayLike,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> list[Interval]:
    """The mean of several runs' curves (x, y) at the points `at`, with intervals over runs. Curves are interpolated
    linearly; a run counts only between its first and last point."""
    places = np.asarray(at, dtype=np.float64)
    rows = np.stack([np.interp(places, *_sorted(x, y), left=np.nan, right=np.nan) for x, y in curves])  # [S, X]
    intervals = []
    for column in rows.T:
        finite = column[np.isfinite(column)]
        nothing = Interval(float("nan"), float("nan"), float("nan"))
        intervals.append(interval([finite], seed=seed, resamples=resamples, level=level) if len(finite) else nothing)
    return intervals


def area_under(x: ArrayLike, y: ArrayLike, until: float) -> float:
    """The mean height of a curve from its first point to `until`: how good a learner was during training, not only at
    the end. After its last point a curve is constant."""
    places, heights = _sorted(x, y)
    if until <= places[0]:
        return float(heights[0])
    inside = places < until
    places_in = np.append(places[inside], until)
    heights_in = np.append(heights[inside], np.interp(until, places, heights))
    return float(np.trapezoid(heights_in, places_in) / (until - places[0]))


def _sorted(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    places, heights = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    order = np.argsort(places, kind="stable")
    return places[order], heights[order]


def overoptimisation(kl: ArrayLike, feedback: ArrayLike, held_out: ArrayLike) -> tuple[Array, Array]:
    """The distance from the start as √KL, and how much higher the training critic scores the lines than the held-out
    one. Both must measure the same, such as a win rate against the teacher. A gap that grows with the distance is
    overoptimisation. A KL estimated below 0 counts as 0."""
    distance = np.sqrt(np.clip(np.asarray(kl, dtype=np.float64), 0.0, None))
    return distance, np.asarray(feedback, dtype=np.float64) - np.asarray(held_out, dtype=np.float64)


def best_of_n_kl(n: int) -> float:
    """The KL of best-of-n from the policy it samples from: log n - (n - 1) / n, exact if no two lines tie."""
    return float(np.log(n) - (n - 1) / n)
