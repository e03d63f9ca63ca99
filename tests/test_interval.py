"""The interval of a mean, against the same bootstrap written as a loop."""

import math

import numpy as np
import pytest

from humor_env.experiments.runs.interval import bootstrap_interval
from humor_env.shared.streams import generator

SCORES = [0.0, 0.1, 0.2, 0.9, 1.0, 0.4, 0.3, 0.35, 0.8, 0.05]


@pytest.mark.parametrize(("options", "seed", "resamples"), [({}, 0, 2000), ({"seed": 3, "resamples": 50}, 3, 50)])
def test_it_holds_the_middle_95_percent_of_resampled_means(options, seed, resamples):
    draws = generator(seed, "bootstrap").integers(10, size=(resamples, 10))
    means = sorted(math.fsum(SCORES[i] for i in row) / 10 for row in draws)
    expected = np.quantile(means, [0.025, 0.975])
    assert bootstrap_interval(SCORES, **options) == pytest.approx(tuple(expected), abs=1e-12)


def test_ten_values_are_enough_and_nine_are_not():
    assert all(math.isnan(bound) for bound in bootstrap_interval(SCORES[:9]))
    low, high = bootstrap_interval(SCORES)
    assert 0 < low < sum(SCORES) / 10 < high < 1


def test_equal_values_have_the_rule_of_three():
    assert bootstrap_interval([0.5] * 12) == (0.25, 0.75)
    assert bootstrap_interval([0.0] * 12) == (0.0, 0.25)
    assert bootstrap_interval([0.0] * 12, lowest=-1.0) == (-0.25, 0.25)
