"""What the answers say: ratings of systems, wins against the teacher, and how far raters and critics agree.

    votes = votes_of(store, "humor")
    rated = ratings(votes, store.systems)                 # Bradley and Terry, with intervals and tiers
    agreement(votes).same.value                            # two people on one pair

Units are chosen so that the numbers can be compared. Agreement is always with *single answers*: how often two people
who were shown the same pair prefer the same line, how often a critic prefers the line that a person does, and how often
the best possible critic could. All pairs have the same weight, however many people judged them. Intervals are 95 %,
from resampling sentences, since pairs of one sentence share lines; with enough raters, ratings resample raters too.
Repeats count only for a rater's own consistency.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from humor_env.experiments.arena.sources import TEACHER, Line
from humor_env.experiments.arena.store import Answered, Store
from humor_env.experiments.compare.stats import ELO, Interval, Rating, ranked
from humor_env.rewards.audits import audit_stats
from humor_env.rewards.tournament import strengths
from humor_env.shared.streams import generator

Array = NDArray[np.float64]
ENOUGH_RATERS = 5  # with fewer, an interval over raters would say more about chance than about people
RESAMPLES = 500


@dataclass(frozen=True)
class Vote:
    """One person's answer to a question on a pair: `share` is 1 if they prefer line a, 0 for b, 0.5 for a tie."""

    rater: int
    a: int
    b: int
    first: str  # the systems
    second: str
    prompt: str
    share: float
    answer: Answered

    @property
    def pair(self) -> tuple[int, int]:
        return self.a, self.b

    @property
    def decided(self) -> bool:
        return self.share != 0.5


def votes_of(store: Store, question: str, answers: Sequence[Answered] | None = None) -> list[Vote]:
    """First answers only, in the order in which they were given."""
    votes = []
    for answer in store.answers() if answers is None else answers:
        ask, share = answer.ask, answer.share(question)
        if ask.b is None or ask.again is not None or share is None:
            continue
        a, b = store.lines[ask.a], store.lines[ask.b]
        votes.append(Vote(ask.rater, ask.a, ask.b, a.system, b.system, a.prompt, share, answer))
    return votes


def games(votes: Sequence[Vote], systems: Sequence[str]) -> Array:
    """`wins[i, j]`: how often i beat j; a tie counts half for each."""
    place = {name: k for k, name in enumerate(systems)}
    wins = np.zeros((len(systems), len(systems)))
    for vote in votes:
        if vote.first != vote.second and vote.first in place and vote.second in place:
            i, j = place[vote.first], place[vote.second]
            wins[i, j] += vote.share
            wins[j, i] += 1 - vote.share
    return wins


def raters_drawn(votes: Sequence[Vote]) -> bool:
    """Whether the intervals of ratings resample raters too."""
    return len({vote.rater for vote in votes}) >= ENOUGH_RATERS


def ratings(
    votes: Sequence[Vote], systems: Sequence[str], *, seed: int = 0, resamples: int = RESAMPLES
) -> list[Rating]:
    """Best first; 0 is the average system. A system that nobody has judged yet is at 0 without bounds; one judged on
    fewer than `FEWEST` sentences has none either (NaN)."""
    n, place = len(systems), {name: k for k, name in enumerate(systems)}
    system_votes = [v for v in votes if v.first != v.second and v.first in place and v.second in place]
    if n < 2 or not system_votes:
        return []
    cells = np.zeros((n, n, len(system_votes)))
    for k, vote in enumerate(system_votes):
        i, j = place[vote.first], place[vote.second]
        cells[i, j, k], cells[j, i, k] = vote.share, 1 - vote.share
    weights = _resampled(system_votes, seed, resamples)
    wins = (weights @ cells.reshape(n * n, -1).T).reshape(resamples, n, n)
    number = {prompt: k for k, prompt in enumerate(dict.fromkeys(vote.prompt for vote in system_votes))}
    prompt_of = np.array([number[vote.prompt] for vote in system_votes])
    return ranked(cells, prompt_of, ELO * many_strengths(wins, strengths(cells.sum(-1))))


def _resampled(votes: Sequence[Vote], seed: int, resamples: int) -> Array:
    """`[resamples, votes]`: how often each vote counts, with sentences resampled, and raters too if there are
    enough."""
    source = generator(seed, "arena-ratings")
    weights = np.ones((resamples, len(votes)))
    keys = [[vote.prompt for vote in votes]]
    if raters_drawn(votes):
        keys.append([str(vote.rater) for vote in votes])
    for key in keys:
        number = {name: k for k, name in enumerate(dict.fromkeys(key))}
        count = len(number)
        drawn = source.multinomial(count, np.full(count, 1 / count), size=resamples)
        weights *= drawn[:, [number[name] for name in key]]
    return weights


def many_strengths(wins: Array, start: Array, prior: float = 1.0) -> Array:
    """`strengths` of many matrices `[resamples, systems, systems]` at once, so that a page of results does not wait for
    a thousand fits. Newton's method, starting from the fit of all answers, with no step longer than 1."""
    games = wins + wins.transpose(0, 2, 1)
    t = np.broadcast_to(start, wins.shape[:2]).copy()
    diagonal = np.arange(wins.shape[1])
    for _ in range(200):
        p = expit(t[:, :, None] - t[:, None, :])
        own = expit(t)
        slope = wins.sum(2) - (games * p).sum(2) + prior * (0.5 - own)
        weight = games * p * (1 - p)
        curvature = -weight
        curvature[:, diagonal, diagonal] += weight.sum(2) + prior * own * (1 - own)
        step = np.linalg.solve(curvature, slope[:, :, None])[:, :, 0]
        longest = np.abs(step).max(1, keepdims=True)
        t += step / np.maximum(1.0, longest)
        if longest.max() < 1e-9:
            break
    return t


def against_teacher(votes: Sequence[Vote], system: str, teacher: str = TEACHER) -> tuple[int, Interval | None]:
    """The number of answers, and the share in which the system's line won or tied."""
    values, prompts = [], []
    for vote in votes:
        if {vote.first, vote.second} == {system, teacher}:
            share = vote.share if vote.first == system else 1 - vote.share
            values.append(float(share >= 0.5))
            prompts.append(vote.prompt)
    return len(values), mean_interval(values, prompts)


def mean_interval(values: Sequence[float], prompts: Sequence[str], highest: float = 1.0) -> Interval | None:
    """The mean of values from 0 to `highest`, with bounds from resampling sentences; no bounds for fewer than `FEWEST`
    sentences."""
    if not values:
        return None
    bounds = audit_stats.interval(np.asarray(values) / highest, list(prompts)) or (math.nan, math.nan)
    return Interval(float(np.mean(values)), *(highest * bound for bound in bounds))


# Raters


@dataclass(frozen=True)
class Agreement:
    """Of the pairs that two or more people judged (`pairs`): how often two of them gave the same answer, ties included
    (`equal`); how often two who both preferred a line preferred the same one (`same`, over `decided` pairs);
    Krippendorff's alpha of wins, ties and losses; and how often any critic could agree with a single answer at most
    (`ceiling`)."""

    pairs: int
    decided: int
    equal: Interval | None
    same: Interval | None
    alpha: Interval | None
    ceiling: Interval | None


def by_pair(votes: Sequence[Vote]) -> dict[tuple[int, int], list[Vote]]:
    by_both: dict[tuple[int, int], list[Vote]] = defaultdict(list)
    for vote in votes:
        by_both[vote.pair].append(vote)
    return dict(by_both)


def agreement(votes: Sequence[Vote], *, seed: int = 0) -> Agreement:
    several = [group for group in by_pair(votes).values() if len(group) > 1]
    equal = [_share_equal([v.share for v in group]) for group in several]
    prompts = [group[0].prompt for group in several]
    firm = [[v for v in group if v.decided] for group in several]
    firm = [group for group in firm if len(group) > 1]
    same = mean_interval(
        [_share_equal([v.share for v in group]) for group in firm], [group[0].prompt for group in firm]
    )
    return Agreement(
        len(several),
        len(firm),
        mean_interval(equal, prompts),
        same,
        _alpha(several, seed),
        None if same is None else Interval(*(ceiling(x) for x in (same.value, same.low, same.high))),
    )


def _share_equal(values: Sequence[float]) -> float:
    """The share of pairs of raters who gave the same answer."""
    couples = list(combinations(values, 2))
    return sum(a == b for a, b in couples) / len(couples)


def ceiling(same: float) -> float:
    """How often a critic that knew what most people prefer could agree with a single person, at most.

    With p the share of people who prefer the first line, two people agree with E[p² + q²] = 1/2 + 2 E[(p - 1/2)²], and
    the best critic agrees with one with probability 1/2 + E|p - 1/2|, which is at most 1/2 + √E[(p - 1/2)²]; the two
    are equal if all pairs are equally hard.
    """
    return 0.5 + math.sqrt(max(0.0, same - 0.5) / 2) if math.isfinite(same) else math.nan


def _alpha(several: Sequence[Sequence[Vote]], seed: int) -> Interval | None:
    grades = [[v.share for v in group] for group in several]
    alpha = audit_stats.krippendorff_alpha(grades)
    if alpha is None:
        return None
    # Alpha is made of sums over answers, so a resample is a weighted sum over sentences.
    number: dict[str, int] = {}
    sums = np.zeros((len(several), 4))
    place = [number.setdefault(group[0].prompt, len(number)) for group in several]
    for row, values in enumerate(grades):
        shares = np.asarray(values)
        sums[row] = len(shares), shares.sum(), (shares**2).sum(), len(shares) * 2 * shares.var(ddof=1)
    by_prompt = np.zeros((len(number), 4))
    np.add.at(by_prompt, place, sums)
    drawn = generator(seed, "arena-alpha").multinomial(len(number), np.full(len(number), 1 / len(number)), RESAMPLES)
    count, total, squares, within = (drawn @ by_prompt).T
    with np.errstate(invalid="ignore", divide="ignore"):
        values = 1 - (within / count) / (2 * (squares - total**2 / count) / (count - 1))
    values = values[np.isfinite(values)]
    if len(number) < audit_stats.FEWEST or 2 * len(values) < RESAMPLES:
        return Interval(alpha, math.nan, math.nan)
    low, high = np.quantile(values, [0.025, 0.975])
    if np.ptp(values) < audit_stats.ALIKE:  # all agree: by the rule of three, so many sentences may be otherwise
        off = 3 / len(number) / (2 * float(np.concatenate([np.asarray(shares) for shares in grades]).var(ddof=1)))
        low, high = alpha - off, min(1.0, alpha + off)
    return Interval(alpha, float(low), float(high))


@dataclass(frozen=True)
class RaterFigures:
    """One rater: what they did, how often they answered a repeated pair as before, and how often they prefer the line
    shown first (of the pairs on which they prefer one)."""

    rater: int
    answers: int
    skipped: int
    reported: int
    repeated: int
    consistent: float | None
    first: float | None
    seconds: float | None  # the median


def rater_figures(store: Store, question: str, answers: Sequence[Answered]) -> list[RaterFigures]:
    by_ask = {answer.ask.id: answer for answer in answers}
    of: dict[int, list[Answered]] = defaultdict(list)
    for answer in answers:
        of[answer.ask.rater].append(answer)
    figures = []
    for rater, replies in sorted(of.items()):
        again = [
            (_plain(by_ask[x.ask.again], question), _plain(x, question))
            for x in replies
            if x.what == "answer" and x.ask.again is not None and x.ask.again in by_ask
        ]
        sides = [x.replies[question] for x in replies if x.replies.get(question) in ("first", "second")]
        seconds = [x.at - x.ask.at for x in replies]
        figures.append(
            RaterFigures(
                rater,
                sum(x.what == "answer" for x in replies),
                sum(x.what == "skip" for x in replies),
                sum(x.what == "offence" for x in replies),
                len(again),
                float(np.mean([a == b for a, b in again])) if again else None,
                sides.count("first") / len(sides) if sides else None,
                float(np.median(seconds)) if seconds else None,
            )
        )
    return figures


def _plain(answer: Answered, question: str) -> float | str | None:
    """The answer, independent of which side each line was on."""
    return answer.replies.get(question) if answer.ask.b is None else answer.share(question)


# Critics


@dataclass(frozen=True)
class CriticFigures:
    """A critic compared with people: how often it prefers the line that a person prefers (equal scores count half), on
    all pairs that it scored and on those that several people judged."""

    critic: str
    pairs: int
    agrees: Interval | None
    shared: int
    agrees_shared: Interval | None


def critics_of(lines: Sequence[Line]) -> list[str]:
    return sorted({critic for line in lines for critic in line.scores})


def critic_figures(votes: Sequence[Vote], lines: Sequence[Line]) -> list[CriticFigures]:
    pairs = by_pair([vote for vote in votes if vote.decided])
    figures = []
    for critic in critics_of(lines):
        credits = [(group, credit) for group in pairs.values() if (credit := _credit(critic, group, lines)) is not None]
        several = [(group, credit) for group, credit in credits if len(group) > 1]
        both = [
            mean_interval([credit for _, credit in some], [group[0].prompt for group, _ in some])
            for some in (credits, several)
        ]
        figures.append(CriticFigures(critic, len(credits), both[0], len(several), both[1]))
    return figures


def agreement_of_critics(votes: Sequence[Vote], lines: Sequence[Line]) -> dict[str, float]:
    """`agrees` of `critic_figures` for each critic, without its interval."""
    pairs = by_pair([vote for vote in votes if vote.decided]).values()
    shares = {}
    for critic in critics_of(lines):
        credits = [credit for group in pairs if (credit := _credit(critic, group, lines)) is not None]
        if credits:
            shares[critic] = sum(credits) / len(credits)
    return shares


def _margin(critic: str, vote: Vote, lines: Sequence[Line]) -> float | None:
    a, b = (lines[place].scores.get(critic) for place in vote.pair)
    return a - b if a is not None and b is not None and math.isfinite(a - b) else None


def _credit(critic: str, group: Sequence[Vote], lines: Sequence[Line]) -> float | None:
    """How often the critic agrees with these decided answers to one pair."""
    margin = _margin(critic, group[0], lines)
    if margin is None:
        return None
    if margin == 0:
        return 0.5
    return sum((vote.share > 0.5) == (margin > 0) for vote in group) / len(group)


@dataclass(frozen=True)
class Difference:
    """A pair on which a critic and most people preferred different lines."""

    critic: str
    prompt: str
    preferred: int
    named: int
    people: str
    margin: float


def differences(votes: Sequence[Vote], lines: Sequence[Line], most: int = 6) -> list[Difference]:
    """The pairs with the largest majority against the critic first; among equals, the largest margin first."""
    ranked, critics = [], critics_of(lines)
    for group in by_pair(votes).values():
        lead = sum(vote.share - 0.5 for vote in group)
        for critic in critics:
            margin = _margin(critic, group[0], lines)
            if margin is None or margin * lead >= 0:
                continue
            a, b = group[0].pair
            best, named = (a, b) if lead > 0 else (b, a)
            ahead = sum((vote.share > 0.5) == (lead > 0) and vote.decided for vote in group)
            people = f"{ahead} of {len(group)}"
            ranked.append((abs(lead), Difference(critic, group[0].prompt, best, named, people, abs(margin))))
    ranked.sort(key=lambda each: (-each[0], -each[1].margin, each[1].preferred))
    return [each for _, each in ranked[:most]]


# Over time


def places(count: int, points: int = 20) -> list[int]:
    """The numbers of answers at which a curve is measured."""
    return sorted({max(1, round(count * k / points)) for k in range(1, points + 1)}) if count else []
