"""The held-out prompts of a critic's training, used for early stopping, calibration and evaluation.

dev = DevPrompts(model, sets, batch_size=64, dev_share=0.1)
dev.ask(contextlib.nullcontext)                # {"loss": ..., "pair_accuracy": ...} of the current model
calibration = dev.calibrate()
dev.measure(calibration)["pair_accuracy"]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from humor_env.errors import InvalidOption
from humor_env.rewards.reward_model import Calibration
from humor_env.rewards.trained import critic_losses as losses
from humor_env.rewards.trained.critic_data import CriticSet, dev_pairs
from humor_env.rewards.trained.scoring_head import ScoringModel
from humor_env.types import Joke


class DevPrompts:
    """The held-out prompts, and the model's logits for them."""

    def __init__(self, model: ScoringModel, dev: Sequence[CriticSet], batch_size: int, dev_share: float) -> None:
        self.model, self.dev = model, dev
        self.batch_size = batch_size
        self.pairs = [(number, pair) for number, part in enumerate(dev) for pair in dev_pairs(part)]
        if not self.pairs:
            raise InvalidOption(
                "The prompts kept for stopping have no two texts with different grades: give more data, or a "
                f"larger dev_share than {dev_share}."
            )
        self.jokes: list[Joke] = [item.joke for part in dev for item in part.ratings]
        self.jokes += [joke for part in dev for pair in part.comparisons for joke in (pair.a, pair.b)]
        self.keys = [_key(joke) for joke in self.jokes]
        self.rows = model.rows(self.jokes)
        self.logits: dict[tuple[str, str], float] = {}
        self.members: list[dict[tuple[str, str], float]] = []

    def remember(self) -> None:
        """Add the finished member: from now on the logits are the mean over all finished members."""
        self.members.append(self.logits)
        self.logits = {key: fmean(each[key] for each in self.members) for key in self.logits}

    def ask(self, autocast: Callable[[], Any]) -> dict[str, float]:
        """The pairs' log loss at the best temperature (the mean over sets) and accuracy."""
        with autocast():
            self.logits = dict(zip(self.keys, self.model.score_rows(self.rows, self.batch_size), strict=True))
        loss_of_sets = []
        for number in sorted({number for number, _ in self.pairs}):
            differences, wins = self._differences(number)
            scale = losses.fit_temperature(differences, wins)
            loss_of_sets.append(losses.pair_log_loss(scale, differences, wins))
        return {"loss": fmean(loss_of_sets), "pair_accuracy": self._accuracy(*self._differences())}

    def _differences(self, number: int | None = None) -> tuple[list[float], list[float]]:
        chosen = [pair for which, pair in self.pairs if number is None or which == number]
        return (
            [self.logits[_key(pair.a)] - self.logits[_key(pair.b)] for pair in chosen],
            [pair.probability for pair in chosen],
        )

    @staticmethod
    def _accuracy(differences: Sequence[float], wins: Sequence[float]) -> float:
        return fmean((d > 0) == (p > 0.5) if d else 0.5 for d, p in zip(differences, wins, strict=True))

    def calibrate(self) -> Calibration:
        scale = losses.fit_temperature(*self._differences())
        return Calibration(scale, -scale * fmean(self.logits[key] for key in self.keys))

    def verdicts(self, calibration: Calibration) -> tuple[tuple[float, float], ...]:
        return tuple(
            (calibration.wins(self.logits[_key(pair.a)], self.logits[_key(pair.b)]), pair.probability)
            for part in self.dev
            for pair in part.comparisons
            if pair.probability != 0.5
        )

    def measure(self, calibration: Calibration) -> dict[str, float]:
        differences, wins = self._differences()
        scaled = [calibration.scale * d for d in differences]
        measured = {
            "pairs": float(len(wins)),
            "pair_accuracy": self._accuracy(differences, wins),
            "log_loss": losses.pair_log_loss(calibration.scale, differences, wins),
            "calibration_error_before": losses.pair_calibration_error(differences, wins),
            "calibration_error": losses.pair_calibration_error(scaled, wins),
        }
        for part in self.dev:
            if len(part.ratings) > 2:
                from scipy.stats import spearmanr

                logits = [self.logits[_key(item.joke)] for item in part.ratings]
                correlation = float(spearmanr(logits, [item.score for item in part.ratings]).statistic)
                if math.isfinite(correlation):
                    measured[f"spearman_{part.name}"] = correlation
        return measured


def _key(joke: Joke) -> tuple[str, str]:
    return joke.prompt.text, joke.text
