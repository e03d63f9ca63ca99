"""The 95 % interval of a mean score over prompts: in a run's results.json, on the terminal and in its report.

    low, high = bootstrap_interval(scores, seed=0)

Prompts are resampled, because another test would have other prompts; a prompt with several lines is one value, their
mean. Intervals over seeds and prompts, for comparing learners, are in `compare/stats.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from humor_env.rewards.audits.audit_stats import FEWEST, percentile_bounds
from humor_env.shared.streams import generator


def bootstrap_interval(
    values: Sequence[float], *, seed: int = 0, resamples: int = 2000, lowest: float = 0.0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of values between `lowest` and 1; always the same for the same values
    and seed. NaN if there are too few values."""
    if len(values) < FEWEST:
        return (float("nan"), float("nan"))
    data = np.asarray(values)
    draws = generator(seed, "bootstrap").integers(len(data), size=(resamples, len(data)))
    return percentile_bounds(data[draws].mean(axis=1), data, len(data), lowest)
