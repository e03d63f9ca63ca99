"""Losses of a scoring model: noise-weighted regression, the Bradley-Terry model of pairs, a temperature.

    rating_loss(scores, values, weights)              # grades on the common scale
    sibling_loss(scores, values, groups)              # only differences between edits of one prompt
    bradley_terry_loss(first, second, probability)    # who won
    fit_temperature(differences, probabilities)       # so that 0.7 means 7 of 10, fitted on held-out pairs
    pair_calibration_error(differences, probabilities)

Pure functions from tensors or numbers to numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import softplus


def rating_loss(scores: torch.Tensor, values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted squared error: the mean of w (s - v)². All [B]."""
    return (weights * (scores - values).square()).mean()


def sibling_loss(scores: torch.Tensor, values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Half the mean squared error of *differences* between siblings (same number in `groups`); 0 without siblings.

    What all edits of a headline share cancels out, so the model learns the edit and not the headline.
    """
    same = groups[:, None] == groups[None, :]
    same.fill_diagonal_(False)
    if not bool(same.any()):
        return scores.sum() * 0.0
    misses = scores - values
    return (misses[:, None] - misses[None, :])[same].square().mean() / 2


def bradley_terry_loss(first: torch.Tensor, second: torch.Tensor, probability: torch.Tensor) -> torch.Tensor:
    """Mean of -p log s(d) - (1 - p) log s(-d), d the difference of the scores, s the logistic function; p may lie
    between 0 and 1 (a tie, an unsure judge)."""
    difference = first - second
    return (probability * softplus(-difference) + (1 - probability) * softplus(difference)).mean()


def pair_log_loss(scale: float, differences: Sequence[float], probabilities: Sequence[float]) -> float:
    """The Bradley-Terry loss of plain numbers at a scale, without overflow."""
    total = 0.0
    for difference, p in zip(differences, probabilities, strict=True):
        x = scale * difference
        total += max(x, 0.0) + math.log1p(math.exp(-abs(x))) - p * x
    return total / len(differences)


def fit_temperature(differences: Sequence[float], probabilities: Sequence[float]) -> float:
    """The maximum-likelihood factor k > 0 for win probabilities s(k d); 1 without pairs.

    Two ties at a typical difference are added, so that the factor stays finite if every held-out pair is right, by luck
    or because there are few. A model no better than chance gets a factor near 0: it should never be sure.
    """
    if not differences:
        return 1.0
    from scipy.optimize import minimize_scalar

    spread = math.sqrt(math.fsum(d * d for d in differences) / len(differences)) or 1.0
    all_differences, outcomes = [*differences, spread, spread], [*probabilities, 0.5, 0.5]
    # In units of the typical difference, from "never sure" to "always sure".
    fit = minimize_scalar(
        lambda x: pair_log_loss(math.exp(x) / spread, all_differences, outcomes),
        bounds=(math.log(0.01), math.log(100.0)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(math.exp(fit.x) / spread)


def pair_calibration_error(differences: Sequence[float], probabilities: Sequence[float], bins: int = 10) -> float:
    """Calibration error: the mean gap between confidence and accuracy over equal bins of confidence from 0.5 to 1,
    weighted by the share of pairs. Each pair is ordered with the model's favourite first."""
    sums = [[0.0, 0.0, 0.0] for _ in range(bins)]  # pairs, sureness, wins of the favourite
    for difference, p in zip(differences, probabilities, strict=True):
        sure = 1 / (1 + math.exp(-min(abs(difference), 700.0)))
        won = p if difference > 0 else 1 - p if difference < 0 else 0.5
        cell = sums[min(bins - 1, int((sure - 0.5) * 2 * bins))]
        cell[0] += 1
        cell[1] += sure
        cell[2] += won
    return sum(abs(sure - won) for _, sure, won in sums) / max(1, len(differences))
