"""The 95 % interval of a mean score over prompts: in a run's results.json, on the terminal and in its report.

    low, high = bootstrap_interval(scores, seed=0)

Prompts are what is resampled, for they are what another test would change. Intervals over seeds and prompts, for
comparing learners, are those of `compare/stats.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from humor_env.streams import generator


def bootstrap_interval(
    values: Sequence[float], *, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; always the same for the same values and seed. NaN for fewer than 2."""
    if len(values) < 2:
        return (float("nan"), float("nan"))
    data = np.asarray(values)
    draws = generator(seed, "bootstrap").integers(len(data), size=(resamples, len(data)))
    low, high = np.quantile(data[draws].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
