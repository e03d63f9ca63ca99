"""How many answers the arena's choice of pairs saves: five systems of known strengths and four raters who follow the
Bradley-Terry model, without delays. The table of docs/arena.md:

    python -m humor_env.experiments.upkeep.arena_trials
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np

from humor_env.experiments.arena.choice import Chooser, information
from humor_env.experiments.arena.sources import Line
from humor_env.experiments.arena.store import Answered, Ask, Settings
from humor_env.rewards.tournament import strengths

TASTES = ((0, 3, 4, 4.5, 5.5), (0, 2, 3, 3.5, 4), (0, 1.5, 3, 4.5, 6), (0, 1, 2, 3, 4), (0, 0.5, 1, 1.5, 2))
ANSWERS, SEEDS, RATERS, SENTENCES = 600, 10, 4, 400


def judged(
    taste: Mapping[str, float],
    choose: Literal["adaptive", "random"],
    answers: int,
    goal: float | None = None,
    seed: int = 0,
) -> tuple[int, float]:
    """The number of answers, and the uncertainty of the widest gap then; stops early when it is at most `goal`."""
    lines = [Line(f"p{n}", name, f"{name} {n}") for n in range(SENTENCES) for name in taste]
    settings = Settings(choose=choose, seed=seed, per_rater=10_000, repeats=0, questions=("humor",))
    chooser, chance = Chooser(lines, settings), random.Random(f"{seed} {choose}")
    for count in range(answers):
        rater = 1 + count % RATERS
        choice = chooser.next(rater)
        assert choice is not None and choice.b is not None
        ask = Ask(count, rater, "", choice.a, choice.b, choice.turned, None, 0.0)
        chooser.asked(ask)
        wins = chance.random() < 1 / (1 + math.exp(taste[lines[choice.b].system] - taste[lines[choice.a].system]))
        side = "first" if wins != choice.turned else "second"
        chooser.answered(Answered(ask, "answer", {"humor": side}, 0.0))
        if goal is not None and count % 10 == 9 and widest_gap(chooser) <= goal:
            return count + 1, widest_gap(chooser)
    return answers, widest_gap(chooser)


def widest_gap(chooser: Chooser) -> float:
    """Half the width of the 95 % interval of the least certain gap between neighbours."""
    wins = chooser.wins
    t = strengths(wins)
    _, covariance = information(wins + wins.T, t)
    gaps = [covariance[i, i] + covariance[j, j] - 2 * covariance[i, j] for i, j in pairwise(np.argsort(t))]
    return 1.96 * math.sqrt(max(gaps))


def shares(strengths_of: Sequence[float], answers: int = ANSWERS, seeds: int = SEEDS) -> list[float]:
    """For each seed, the adaptive choice's answers divided by those of random pairs, for the same interval."""
    taste = {f"system {place}": float(t) for place, t in enumerate(strengths_of)}
    fractions = []
    for seed in range(seeds):
        _, goal = judged(taste, "random", answers, seed=seed)
        fractions.append(judged(taste, "adaptive", 3 * answers, goal, seed)[0] / answers)
    return fractions


def main() -> None:
    for taste in TASTES:
        fractions = shares(taste)
        taste_text = ", ".join(f"{t:g}" for t in taste)
        print(
            f"| {taste_text} | {np.mean(fractions):.0%} | {min(fractions):.0%} to {max(fractions):.0%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
