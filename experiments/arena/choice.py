"""Chooses the pair a rater sees next, and which of its lines comes first.

    chooser = Chooser(store.lines, store.settings, store.plan)
    chooser.asked(ask); chooser.answered(answer)        # what happened so far
    chooser.next(rater)                                 # a Next(a, b, turned, again), or None: nothing is left

By default, the two systems are those whose comparison says most about the ranking: the one expected to reduce the
variance of the gaps between neighbours most, with the widest gap weighted highest. This is a greedy optimal design for
the Bradley-Terry model: with H the information about strengths so far, S its inverse and C the rows of the gaps,
another game of i and j lowers the variance of gap k by w (C S (e_i - e_j))_k² / (1 + w v), where w = p (1 - p) and v is
the variance of t_i - t_j. Games asked but not yet answered count as if they were answered, so that raters who judge at
the same time do not all get the same comparison. Prompts take turns, and a share of the pairs goes to the systems that
have met least, those with the teacher first, so that every system meets every other, whatever the model says.

All random draws are by hash, so a server that is killed and restarted continues as it would have.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from humor_env.experiments.arena.sources import TEACHER, Line
from humor_env.experiments.arena.store import Answered, Ask, Settings
from humor_env.rewards.tournament import strengths
from humor_env.shared.streams import generator, stream_seed

_LOOKED_AT = 24  # prompts (or pairs) drawn to choose the least used from
_BEFORE_AGAIN = 5  # asks between a pair and its repeat
_EVERYBODY = 0.15  # the share of pairs for whichever systems met least
_WIDEST_FIRST = 4  # how much more the widest gap counts than the others
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Next:
    a: int
    b: int | None
    turned: bool
    again: int | None = None


class _Seen:
    """What one rater was asked."""

    def __init__(self) -> None:
        self.items: set[tuple[int, int | None]] = set()
        self.prompts: Counter[str] = Counter()
        self.fresh: list[Ask] = []  # without repeats
        self.repeated: set[int] = set()
        self.answered: set[int] = set()
        self.count = 0


class Chooser:
    def __init__(self, lines: Sequence[Line], settings: Settings, plan: Sequence[tuple[int, int]] = ()) -> None:
        self.lines, self.settings = lines, settings
        self.plan = [(min(pair), max(pair)) for pair in plan]
        self.systems = list(dict.fromkeys(line.system for line in lines))
        self._system = [self.systems.index(line.system) for line in lines]
        self._of: dict[tuple[int, str], list[int]] = defaultdict(list)
        for place, line in enumerate(lines):
            self._of[self._system[place], line.prompt].append(place)
        self._shared = self._common_prompts()
        n = len(self.systems)
        self.wins: Array = np.zeros((n, n))  # by the first question, repeats left out
        self.open: Array = np.zeros((n, n))  # asked and not answered
        self._used: Counter[tuple[int, int, str]] = Counter()
        self._raters: dict[tuple[int, int | None], set[int]] = defaultdict(set)
        self._asked: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        self._seen: dict[int, _Seen] = defaultdict(_Seen)
        self._gains: Array | None = None

    def _common_prompts(self) -> dict[tuple[int, int], list[str]]:
        """For each pair of systems, the prompts that both wrote for."""
        wrote: dict[int, dict[str, None]] = defaultdict(dict)
        for system, prompt in self._of:
            wrote[system][prompt] = None
        shared = {
            (i, j): [prompt for prompt in wrote[i] if prompt in wrote[j]]
            for i, j in combinations(range(len(self.systems)), 2)
        }
        return {pair: prompts for pair, prompts in shared.items() if prompts}

    # What happened

    def asked(self, ask: Ask) -> None:
        seen = self._seen[ask.rater]
        seen.count += 1
        if ask.again is not None:
            seen.repeated.add(ask.again)
            return
        seen.items.add((ask.a, ask.b))
        seen.prompts[self.lines[ask.a].prompt] += 1
        seen.fresh.append(ask)
        self._raters[ask.a, ask.b].add(ask.rater)
        if ask.b is not None:
            i, j = sorted((self._system[ask.a], self._system[ask.b]))
            self._used[i, j, self.lines[ask.a].prompt] += 1
            if len(self._raters[ask.a, ask.b]) == 1:
                self._asked[i, j].append((ask.a, ask.b))
            self._open(i, j, 1)

    def answered(self, answer: Answered) -> None:
        ask = answer.ask
        if ask.again is not None:
            return
        if answer.what == "answer":
            self._seen[ask.rater].answered.add(ask.id)
        if ask.b is None:
            return
        i, j = self._system[ask.a], self._system[ask.b]
        self._open(i, j, -1)
        share = answer.share(self.settings.questions[0])
        if share is not None and i != j:
            self.wins[i, j] += share
            self.wins[j, i] += 1 - share

    def _open(self, i: int, j: int, by: int) -> None:
        self.open[i, j] += by
        self.open[j, i] += by
        self._gains = None

    def count(self, rater: int) -> int:
        """How many pairs or lines a rater was asked about, repeats included."""
        return self._seen[rater].count

    # What comes next

    def next(self, rater: int) -> Next | None:
        """None if the rater has reached the limit or nothing is left."""
        seen = self._seen[rater]
        if seen.count >= self.settings.per_rater:
            return None
        return self._repeat(rater, seen) or self._fresh(rater, seen)

    def _repeat(self, rater: int, seen: _Seen) -> Next | None:
        every = round(1 / self.settings.repeats) if self.settings.repeats else 0
        if not every or (seen.count + 1) % every:
            return None
        old = [a for a in seen.fresh[:-_BEFORE_AGAIN] if a.id in seen.answered and a.id not in seen.repeated]
        if not old:
            return None
        chosen = min(old, key=lambda ask: self._draw("repeat", rater, ask.id))
        return Next(chosen.a, chosen.b, not chosen.turned if chosen.b is not None else False, chosen.id)

    def _fresh(self, rater: int, seen: _Seen) -> Next | None:
        if self.settings.mode == "ratings":
            choice: tuple[int, int | None] | None = self._line(rater, seen)
        elif self.settings.choose == "plan":
            pairs = [pair for pair in self.plan if pair not in seen.items]
            choice = min(pairs, key=lambda pair: self._draw("plan", rater, pair), default=None)
        else:
            share = self._draw("overlap", rater, seen.count) % 1000 / 1000
            choice = self._others(rater, seen) if share < self.settings.overlap else None
            choice = choice or self._new(rater, seen)
        if choice is None:
            return None
        turned = choice[1] is not None and bool(self._draw("side", rater, choice) % 2)
        return Next(*choice, turned)

    def _draw(self, what: str, *where: object) -> int:
        return stream_seed(self.settings.seed, f"arena-{what}", "/".join(map(str, where)))

    def _line(self, rater: int, seen: _Seen) -> tuple[int, None] | None:
        """The line with the fewest grades; in a share `overlap` of the draws, only among lines that somebody graded."""
        places = [place for place in range(len(self.lines)) if (place, None) not in seen.items]
        begun = [place for place in places if self._raters[place, None]]
        if begun and self._draw("overlap", rater, seen.count) % 1000 / 1000 < self.settings.overlap:
            places = begun
        if not places:
            return None

        def rank(place: int) -> tuple[int, int, int]:
            graded = len(self._raters[place, None])
            return graded, seen.prompts[self.lines[place].prompt], self._draw("line", rater, place)

        return min(places, key=rank), None

    def _others(self, rater: int, seen: _Seen) -> tuple[int, int] | None:
        """A pair of the two most informative systems that another rater was asked and this one was not, since
        agreement needs such pairs. Pairs that the fewest raters were asked come first."""
        systems = next(self._order(rater, seen), None)
        pairs = self._asked[systems] if systems else []
        if not pairs:
            return None
        random = generator(self.settings.seed, "arena-others", f"{rater}/{seen.count}")
        drawn = [pairs[k] for k in random.integers(len(pairs), size=2 * _LOOKED_AT)]
        fit = [pair for pair in drawn if pair not in seen.items]
        return min(
            fit, key=lambda pair: (len(self._raters[pair]), seen.prompts[self.lines[pair[0]].prompt]), default=None
        )

    def _new(self, rater: int, seen: _Seen) -> tuple[int, int] | None:
        for i, j in self._order(rater, seen):
            prompts = self._shared[i, j]
            random = generator(self.settings.seed, "arena-prompts", f"{rater}/{seen.count}/{i}/{j}")
            some = [prompts[k] for k in random.integers(len(prompts), size=_LOOKED_AT)]
            for candidates in (some, prompts):
                pairs = [(p, pair) for p in candidates if (pair := self._pair(i, j, p)) and pair not in seen.items]
                if pairs:
                    return min(pairs, key=lambda each: (self._used[i, j, each[0]], seen.prompts[each[0]]))[1]
        return None

    def _pair(self, i: int, j: int, prompt: str) -> tuple[int, int] | None:
        """A line of each system, chosen by hash if there are several (seeds). None if both lines are the same."""
        a, b = (
            lines[self._draw("seed", i, j, prompt) % len(lines)] for lines in (self._of[i, prompt], self._of[j, prompt])
        )
        return None if self.lines[a].text == self.lines[b].text else (min(a, b), max(a, b))

    def _order(self, rater: int, seen: _Seen) -> Iterator[tuple[int, int]]:
        """Pairs of systems, the most informative first."""
        pairs = list(self._shared)
        if self.settings.choose == "random":
            yield from sorted(pairs, key=lambda pair: self._draw("systems", rater, seen.count, pair))
            return
        if self._draw("everybody", rater, seen.count) % 1000 < 1000 * _EVERYBODY:
            yield from sorted(pairs, key=lambda pair: (self._met(*pair), self._draw("met", rater, seen.count, pair)))
            return
        gains = self._current_gains()
        yield from sorted(pairs, key=lambda pair: (-gains[pair], self._draw("systems", rater, seen.count, pair)))

    def _met(self, i: int, j: int) -> float:
        """How often two systems met; games with the teacher, which all systems are compared with, count half."""
        return len(self._asked[i, j]) * (0.5 if TEACHER in (self.systems[i], self.systems[j]) else 1.0)

    def _current_gains(self) -> Array:
        if self._gains is None:
            self._gains = expected_gains(self.wins, self.open)
        return self._gains


def expected_gains(wins: Array, open_games: Array | None = None) -> Array:
    """`[systems, systems]`: how much another game of two systems is expected to say about the whole ranking."""
    n = len(wins)
    if n < 2:
        return np.zeros((n, n))
    t = strengths(wins)
    games = wins + wins.T + (0 if open_games is None else open_games)
    np.fill_diagonal(games, 0.0)
    each, covariance = information(games, t)
    order = np.argsort(t, kind="stable")
    gaps = np.zeros((n - 1, n))
    gaps[np.arange(n - 1), order[1:]], gaps[np.arange(n - 1), order[:-1]] = 1.0, -1.0
    gap_covariance = gaps @ covariance  # [n - 1, n]
    variances = np.einsum("kn,kn->k", gap_covariance, gaps)
    weight = (variances / variances.max()) ** _WIDEST_FIRST / np.sqrt(variances)
    spread = np.diag(covariance)
    between = spread[:, None] + spread[None, :] - 2 * covariance
    moved = (gap_covariance[:, :, None] - gap_covariance[:, None, :]) ** 2  # [n - 1, n, n]
    gains: Array = each * np.einsum("k,kij->ij", weight, moved) / (1 + each * between)
    return gains


def information(games: Array, t: Array, prior: float = 1.0) -> tuple[Array, Array]:
    """p (1 - p) of each game, and the covariance of strengths at the mode of the posterior of `strengths`."""
    p = 1 / (1 + np.exp(t[None, :] - t[:, None]))
    each: Array = p * (1 - p)
    own = 1 / (1 + np.exp(-t))
    weight = games * each
    covariance: Array = np.asarray(
        np.linalg.inv(np.diag(weight.sum(1) + prior * own * (1 - own)) - weight), dtype=np.float64
    )
    return each, covariance


def rebuilt(
    lines: Sequence[Line],
    settings: Settings,
    plan: Sequence[tuple[int, int]],
    asks: Sequence[Ask],
    answers: Mapping[int, Answered],
) -> Chooser:
    """A chooser in the state that a store's asks and answers lead to."""
    chooser = Chooser(lines, settings, plan)
    for ask in asks:
        chooser.asked(ask)
        if ask.id in answers:
            chooser.answered(answers[ask.id])
    return chooser
