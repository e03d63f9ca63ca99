"""Siblings of one prompt compete with each other; each is scored by its Bradley-Terry strength.

    critic = TournamentCritic(judge="multiple-choice", judge_options={...})
    judgements = critic([first, second, third])      # three attempts at one prompt; other prompts may be mixed in
    judgements[0].score                              # 0.5: an average sibling; higher wins more

Small groups play round-robin; large ones play Swiss rounds (each round pairs lines with equally many wins), which needs
G log G verdicts instead of G². Strengths follow P(i beats j) = s(t_i - t_j) with s the logistic function. Every line
also plays `prior` games, half won and half lost, against an average sibling (t = 0), so that a line that won every game
has a finite strength. The score is s(t), the probability of beating that average sibling.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal, cast

import numpy as np

from humor_env.episodes.closing import close_all
from humor_env.episodes.verdicts import checked_verdicts
from humor_env.errors import InvalidOption
from humor_env.registry import judges
from humor_env.rewards.shared.both_orders import flip_rate
from humor_env.types import NO_USAGE, Joke, Judge, Judgement, Usage, Verdict

Pairing = Literal["auto", "round-robin", "swiss"]


def strengths(wins: np.ndarray, prior: float = 1.0) -> np.ndarray:
    """Bradley-Terry strengths t (log scale) that maximise the posterior; `wins[i, j]` is how often i beat j, in
    fractions of games if the judge was unsure. Newton's method with step halving on a strictly concave function."""
    n = len(wins)
    if wins.shape != (n, n) or (wins < 0).any() or not np.isfinite(wins).all() or prior <= 0:
        raise InvalidOption(
            f"wins must be a square matrix of finite numbers of at least 0, and prior above 0; found shape "
            f"{wins.shape} and prior {prior}."
        )
    games = wins + wins.T
    t = np.zeros(n)
    value = _log_posterior(t, wins, prior)
    for _ in range(100):
        p = 1 / (1 + np.exp(t[None, :] - t[:, None]))  # [G, G], P(i beats j)
        own = 1 / (1 + np.exp(-t))
        gradient = wins.sum(1) - (games * p).sum(1) + prior * (0.5 - own)
        weight = games * p * (1 - p)
        hessian = np.diag(weight.sum(1) + prior * own * (1 - own)) - weight
        step = np.linalg.solve(hessian, gradient)
        # Far from the maximum a full step can overshoot; repeated halving prevents that.
        for _ in range(60):
            next_value = _log_posterior(t + step, wins, prior)
            if next_value >= value:
                break
            step = step / 2
        t, value = t + step, next_value
        if np.abs(step).max(initial=0.0) < 1e-12:
            break
    return t


def _log_posterior(t: np.ndarray, wins: np.ndarray, prior: float) -> float:
    against = np.logaddexp(0.0, t[None, :] - t[:, None])  # -log P(i beats j)
    average = np.logaddexp(0.0, t) + np.logaddexp(0.0, -t)
    return float(-(wins * against).sum() - prior / 2 * average.sum())


@dataclass
class _Group:
    """The lines that compete for one prompt. Siblings with the same text are one player."""

    players: list[Joke]
    wins: np.ndarray
    usage: dict[int, Usage] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    verdicts: dict[int, list[Verdict]] = field(default_factory=dict)
    met: set[frozenset[int]] = field(default_factory=set)

    def games(self) -> np.ndarray:
        return (self.wins + self.wins.T).sum(1)


class TournamentCritic:
    """`judge` by name or live, with `judge_options`; `pairing` "auto" is round-robin up to `small` lines and Swiss
    beyond, with `rounds` rounds (None: enough to find the best, plus two)."""

    name = "tournament"

    def __init__(
        self,
        judge: str | Judge = "pocket",
        judge_options: Mapping[str, Any] | None = None,
        pairing: Pairing = "auto",
        rounds: int | None = None,
        small: int = 8,
        prior: float = 1.0,
    ) -> None:
        if pairing not in ("auto", "round-robin", "swiss"):
            raise InvalidOption(f"pairing must be 'auto', 'round-robin' or 'swiss', found {pairing!r}.")
        if (rounds is not None and rounds < 1) or small < 2 or not prior > 0:
            raise InvalidOption(
                f"rounds must be at least 1, small at least 2 and prior above 0; found {rounds}, {small} and {prior}."
            )
        self.judge = cast(Judge, judges.make(judge, **(judge_options or {})))
        self.pairing, self.rounds, self.small, self.prior = pairing, rounds, small, prior

    @property
    def inner_judges(self) -> list[Judge]:
        return [self.judge]

    def close(self) -> None:
        close_all(self.inner_judges)

    def __call__(self, jokes: Sequence[Joke]) -> list[Judgement]:
        by_prompt: dict[tuple[str, str], dict[str, Joke]] = {}
        for joke in jokes:
            by_prompt.setdefault((joke.prompt.id, joke.prompt.text), {}).setdefault(joke.text, joke)
        groups: dict[tuple[str, str], _Group] = {}
        for key, siblings in by_prompt.items():
            # Positions come from a hash, so the order of siblings does not matter.
            players = sorted(siblings.values(), key=lambda joke: _draw(joke.text))
            groups[key] = _Group(players, np.zeros((len(players), len(players))))
        self._play(list(groups.values()))
        scored = {key: self._judgements(group) for key, group in groups.items()}
        seen: set[tuple[str, str, str]] = set()
        judgements = []
        for joke in jokes:
            judgement = scored[joke.prompt.id, joke.prompt.text][joke.text]
            place = (joke.prompt.id, joke.prompt.text, joke.text)
            judgements.append(_without_usage(judgement) if place in seen else judgement)
            seen.add(place)
        return judgements

    def most_games(self, siblings: int) -> int:
        """The most games that `siblings` lines for one prompt play."""
        if siblings < 2:
            return 0
        if self._all_meet(siblings):
            return siblings * (siblings - 1) // 2
        return self._rounds(siblings) * (siblings // 2)

    def _all_meet(self, siblings: int) -> bool:
        return self.pairing == "round-robin" or (self.pairing == "auto" and siblings <= self.small)

    def _rounds(self, siblings: int) -> int:
        return self.rounds or (siblings - 1).bit_length() + 2

    def _play(self, groups: Sequence[_Group]) -> None:
        """Play each round for all groups together, so that a slow judge gets as few calls as possible."""
        playing = [(group, self._schedule(group)) for group in groups]
        while playing:
            rounds = [(group, next(schedule, None), schedule) for group, schedule in playing]
            playing = [(group, schedule) for group, pairs, schedule in rounds if pairs is not None]
            games = [(group, i, j) for group, pairs, _ in rounds if pairs for i, j in pairs]
            if games:
                self._ask(games)

    def _schedule(self, group: _Group) -> Iterator[list[tuple[int, int]]]:
        n = len(group.players)
        if n < 2:
            return
        if self._all_meet(n):
            yield list(combinations(range(n), 2))
            return
        for _ in range(self._rounds(n)):
            yield _swiss_round(group)

    def _ask(self, games: Sequence[tuple[_Group, int, int]]) -> None:
        verdicts = checked_verdicts(self.judge, [(group.players[i], group.players[j]) for group, i, j in games])
        for (group, i, j), verdict in zip(games, verdicts, strict=True):
            group.met.add(frozenset((i, j)))
            # The whole cost goes to one of the two, so that the sum over judgements is the total.
            group.usage[i] = group.usage.get(i, NO_USAGE) + verdict.usage
            for player in (i, j):
                group.verdicts.setdefault(player, []).append(verdict)
            if verdict.probability is None:
                group.errors[i] = group.errors[j] = verdict.error or "no verdict"
            else:
                group.wins[i, j] += verdict.probability
                group.wins[j, i] += 1 - verdict.probability

    def _judgements(self, group: _Group) -> dict[str, Judgement]:
        if len(group.players) < 2:
            error = "a tournament needs at least two different lines for the same prompt in one call"
            return {joke.text: Judgement(self.name, None, error=error) for joke in group.players}
        strength = strengths(group.wins, self.prior)
        games = group.games()
        judgements = {}
        for i, joke in enumerate(group.players):
            usage = group.usage.get(i, NO_USAGE)
            if games[i] == 0:
                error = group.errors.get(i, "no game was played")
                judgements[joke.text] = Judgement(self.name, None, error=error, usage=usage)
                continue
            won = float(group.wins[i].sum())
            parts = {"won": min(1.0, won / float(games[i])), "games": float(games[i]), "strength": float(strength[i])}
            flips = flip_rate(group.verdicts[i])
            if flips is not None:
                parts["flips"] = flips
            score = float(1 / (1 + np.exp(-strength[i])))
            judgements[joke.text] = Judgement(
                self.name, score, parts, f"won {won:.1f} of {games[i]:.0f} games", usage=usage
            )
        return judgements


def _swiss_round(group: _Group) -> list[tuple[int, int]]:
    """Pair lines with equally many wins that have not met; those without such an opponent sit the round out."""
    points = group.wins.sum(1)
    waiting = sorted(range(len(points)), key=lambda i: (-points[i], i))
    pairs = []
    while waiting:
        i = waiting.pop(0)
        j = next((k for k in waiting if frozenset((i, k)) not in group.met), None)
        if j is not None:
            waiting.remove(j)
            pairs.append((min(i, j), max(i, j)))
    return pairs


def _draw(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _without_usage(judgement: Judgement) -> Judgement:
    return Judgement(judgement.critic, judgement.score, judgement.parts, judgement.reason, judgement.error)
