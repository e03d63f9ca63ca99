"""What changes over a run, by hand."""

import math
import statistics

import pytest

from humor_env.agents.session.schedule import AdaptiveCoefficient, RunningScale, learning_rate_share


def test_the_learning_rate_rises_and_falls_by_hand():
    """Four steps of warm-up, then eight more: step 8 is half of them, step 12 the end."""
    constant, linear, cosine = (
        [learning_rate_share(step, 12, warmup=4, decay=decay) for step in (0, 3, 4, 8, 12)]
        for decay in ("constant", "linear", "cosine")
    )
    assert constant == [0.25, 1.0, 1.0, 1.0, 1.0]
    assert linear == pytest.approx([0.25, 1.0, 1.0, 0.55, 0.1])
    assert cosine == pytest.approx([0.25, 1.0, 1.0, 0.55, 0.1])
    quarter = 0.1 + 0.45 * (1 + math.sqrt(0.5))
    assert learning_rate_share(6, 12, warmup=4, decay="cosine") == pytest.approx(quarter)
    assert learning_rate_share(0, 12, warmup=0, decay="linear") == 1.0
    # A warm-up as long as the run: nothing is left to decay over, and nothing is divided by 0.
    assert learning_rate_share(4, 4, warmup=4, decay="linear") == 1.0
    # With one step after the warm-up, the step after it is the end.
    assert learning_rate_share(5, 5, warmup=4, decay="linear") == pytest.approx(0.1)


def test_the_kl_weight_follows_its_target_by_hand():
    """Target 2, horizon 10. A KL of 2.2 is 10 % over it: 5 samples of 10 make that 5 %. Errors stop at 20 %."""
    weight = AdaptiveCoefficient(1.0, 2.0, 10.0)
    weight.update(2.2, 5)
    assert weight.value == pytest.approx(1.05)
    weight.update(2.0, 5)
    assert weight.value == pytest.approx(1.05), "at the target it stays"
    weight.update(100.0, 5)
    assert weight.value == pytest.approx(1.05 * 1.1)
    weight.update(0.0, 10)
    assert weight.value == pytest.approx(1.05 * 1.1 * 0.8)
    without = AdaptiveCoefficient(1.0, None, 10.0)
    without.update(100.0, 5)
    assert without.value == 1.0


def test_a_running_deviation_is_that_of_all_values_at_once():
    batches = [[1.0, 4.0, 2.0], [7.0], [3.0, 3.0, 9.0, -2.0]]
    scale = RunningScale()
    assert scale.deviation == 1.0, "of nothing"
    for batch in batches:
        mean = statistics.fmean(batch)
        scale.add(len(batch), mean, sum((x - mean) ** 2 for x in batch))
    together = [x for batch in batches for x in batch]
    assert scale.mean == pytest.approx(statistics.fmean(together))
    assert scale.deviation == pytest.approx(statistics.stdev(together))
    before = scale.get_state()
    scale.add(0, 5.0, 5.0)
    assert scale.get_state() == before, "a batch without scores says nothing"
    assert RunningScale(*before).deviation == scale.deviation
    assert before[0] == len(together)


def test_one_value_and_equal_values_have_no_deviation_to_divide_by():
    one, equal, two = RunningScale(), RunningScale(), RunningScale()
    one.add(1, 5.0, 0.0)
    equal.add(3, 5.0, 0.0)
    two.add(2, 0.0, 0.5)  # -0.5 and 0.5
    assert one.deviation == equal.deviation == 1.0
    assert two.deviation == pytest.approx(math.sqrt(0.5))
    assert RunningScale(1, 5.0, 2.0).deviation == 1.0, "one value, whatever was saved beside it"
