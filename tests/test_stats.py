"""Statistics against sums done by hand, and against what they must not depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest

from humor_env.errors import InvalidOption
from humor_env.experiments.compare import stats
from humor_env.experiments.compare.stats import (
    ELO,
    Interval,
    area_under,
    best_of_n_kl,
    bradley_terry,
    interquartile_mean,
    interval,
    length_controlled,
    length_controlled_interval,
    mean_curve,
    overoptimisation,
    paired_difference,
    performance_profile,
    probability_of_improvement,
    tiers,
)


def test_interquartile_mean_by_hand():
    # A quarter is cut at each end: of eight, 2 and 2, and the middle four have the mean 4.5 (the plain mean is 16).
    assert interquartile_mean(np.array([1, 2, 3, 4, 5, 6, 7, 100.0])) == 4.5
    # Of five one at each end, as rliable (scipy's trim_mean) cuts: (2 + 3 + 10) / 3.
    assert interquartile_mean(np.array([10, 1, 3, 2, 50.0])) == 5.0
    assert interquartile_mean(np.array([[1, 2, 3, 4.0], [0, 0, 10, 90.0]])).tolist() == [2.5, 5.0]


def test_a_seed_without_any_score_is_left_out_of_the_interquartile_mean():
    """It was NaN for all seeds, where the mean leaves the missing one out as the file promises."""
    assert interquartile_mean(np.array([math.nan, 1, 2, 3, 4.0])) == 2.5
    assert interquartile_mean(np.array([[50, math.nan, 1, 3, 10, 2], [math.nan] * 5 + [7]])).tolist() == [5.0, 7.0]
    assert np.isnan(interquartile_mean(np.array([math.nan, math.nan])))
    scores = np.random.default_rng(0).random((5, 20))
    scores[2] = math.nan
    found, without = interval([scores], interquartile_mean), interval([scores[[0, 1, 3, 4]]], interquartile_mean)
    assert found.value == without.value
    assert found.low <= found.value <= found.high


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    """200 made-up benchmarks of five seeds and forty prompts; both kinds of luck are as large as can be told apart."""
    source = np.random.default_rng(0)
    covered = 0
    for number in range(200):
        runs = source.normal(0, 0.5, (20, 1)) + source.normal(0, 1, (1, 40)) + source.normal(0, 1, (20, 40))
        found = interval([runs], seed=number, resamples=400)
        covered += found.low <= 0 <= found.high
    assert 0.91 <= covered / 200 <= 1.0


def test_an_interval_knows_of_seeds_and_of_prompts():
    only_seeds = np.array([[0.0] * 50, [1.0] * 50])
    only_prompts = np.array([[0.0, 1.0] * 25] * 2)
    assert (interval([only_seeds]).low, interval([only_seeds]).high) == (0.0, 1.0)
    # Fifty prompts of deviation 1/2: 1.96 x 0.5 / sqrt(50) = 0.139 to each side.
    found = interval([only_prompts], resamples=20_000)
    assert found.value == 0.5
    assert found.low == pytest.approx(0.361, abs=0.02) and found.high == pytest.approx(0.639, abs=0.02)


def test_strata_are_resampled_each_for_itself():
    # Each task's runs nearly agree, so resamples within a task hardly differ; mixed together they would.
    found = interval([np.array([0.2, 0.22]), np.array([0.78, 0.8])])
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.49, 0.51))


def test_what_is_missing_is_left_out_and_never_a_zero():
    scores = np.array([[1.0, np.nan, 3.0], [2.0, 2.0, np.nan]])
    assert interval([scores]).value == 2.0
    assert interval([np.tile(scores, 4)]).low >= 1.0
    assert performance_profile(scores, [1.5])[0].value == pytest.approx((0.5 + 1.0) / 2)


def test_the_same_seed_gives_the_same_interval_and_another_one_another():
    scores = np.random.default_rng(1).normal(size=(5, 30))
    assert interval([scores], seed=3) == interval([scores], seed=3)
    assert interval([scores], seed=3) != interval([scores], seed=4)


def test_prompts_that_both_share_do_not_widen_the_probability_of_improvement():
    """They were drawn apart, so that a run better on every prompt by 0.05 was better with 0.00 to 1.00."""
    hard = np.random.default_rng(0).random(40)
    b = np.stack([hard + 0.001 * seed for seed in range(4)])
    found = probability_of_improvement(b + 0.05, b)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


def test_probability_of_improvement_by_hand():
    # Of the nine pairs, 5 > 1, 5 > 2, 5 > 4, 3 > 1, 3 > 2 and 1 = 1 at a half: 5.5 / 9.
    found = probability_of_improvement([5, 3, 1.0], [1, 2, 4.0])
    assert found.value == pytest.approx(5.5 / 9)
    assert probability_of_improvement([1, 2, 4.0], [5, 3, 1.0]).value == pytest.approx(3.5 / 9)
    sure = probability_of_improvement([5, 6.0], [1, 2.0])
    assert (sure.low, sure.high) == (1.0, 1.0)


def test_a_run_without_scores_is_no_defeat():
    """It lost against every other run, on either side: P(better) was 2/3 for runs that always score higher."""
    some, none = [[math.nan] * 12, [0.9] * 12, [0.8] * 12], [[0.1] * 12, [0.2] * 12]
    assert probability_of_improvement(some, none).value == 1.0
    assert probability_of_improvement(none, some).value == 0.0
    assert probability_of_improvement([math.nan, 2.0, 0.0], [1.0, 1.0]).value == 0.5
    nothing = probability_of_improvement([math.nan, math.nan], [1.0, 2.0])
    assert math.isnan(nothing.value) and math.isnan(nothing.low) and math.isnan(nothing.high)


def test_a_paired_difference_is_surer_than_two_intervals():
    source = np.random.default_rng(2)
    shared = source.normal(0, 1, (5, 100))
    better = shared + 0.1 + source.normal(0, 0.01, (5, 100))
    assert interval([shared]).overlaps(interval([better]))
    found = paired_difference(better, shared)
    assert 0.08 < found.low < found.value < found.high < 0.12
    with pytest.raises(InvalidOption, match="same seeds and prompts"):
        paired_difference(better, shared[:3])


def test_performance_profile_by_hand():
    found = performance_profile([[0.1, 0.5, 0.9], [0.5, 0.5, 0.9]], [0.0, 0.5, 0.9])
    # Strictly above: of six lines, 6, 2 and 0.
    assert [f.value for f in found] == pytest.approx([1.0, 1 / 3, 0.0])


def test_two_systems_are_rated_by_the_odds():
    # a beats b on three of four prompts. With prior w half-games the maximum has no closed form; with a tiny one it
    # is the log-odds, log 3, half of it to each side of the average.
    scores = np.array([[[1, 1, 1, 0.0]], [[0, 0, 0, 1.0]]])
    best, worst = bradley_terry(scores, prior=1e-9, resamples=20)
    assert (best.system, worst.system) == (0, 1)
    assert best.points.value == pytest.approx(ELO * math.log(3) / 2, abs=0.01)
    assert best.points.value - worst.points.value == pytest.approx(190.85, abs=0.01)


def test_ratings_do_not_depend_on_the_order_of_systems_and_make_tiers():
    source = np.random.default_rng(3)
    quality = np.array([0.0, 2.0, 0.02, -3.0])
    scores = quality[:, None, None] + source.normal(0, 1, (4, 3, 60))
    ratings = bradley_terry(scores, resamples=200)
    assert (ratings[0].system, ratings[-1].system) == (1, 3)
    assert [r.tier for r in ratings] == [1, 2, 2, 3]
    turned = bradley_terry(scores[::-1], resamples=200)
    assert {3 - r.system: round(r.points.value, 6) for r in turned} == {
        r.system: round(r.points.value, 6) for r in ratings
    }


def test_a_game_that_was_not_scored_is_not_played():
    half = np.array([[[1, 1, np.nan, np.nan]], [[0, 0, 5.0, 5.0]]])
    assert bradley_terry(half)[0].system == 0


def test_tiers_compare_with_the_first_of_the_tier():
    chain = [Interval(9, 8, 10), Interval(7, 6, 8.5), Interval(5, 4, 6.5)]
    # The third overlaps the second but not the first, with whom the tier began.
    assert tiers(chain) == [1, 1, 2]
    assert tiers([]) == []


def test_length_control_recovers_what_the_judge_thinks_of_the_jokes():
    source = np.random.default_rng(4)
    longer = source.normal(10, 20, 4000)
    pushed = np.tanh(longer / longer.std())
    wins = 1 / (1 + np.exp(-(-0.4 + 1.5 * pushed)))
    truth = 1 / (1 + math.exp(0.4))
    assert length_controlled(wins, longer) == pytest.approx(truth, abs=0.002)
    assert wins.mean() > truth + 0.05  # raw, the longer lines look better than they are
    assert length_controlled(np.full(50, 0.7), np.zeros(50)) == pytest.approx(0.7, abs=0.001)
    assert 0.9 < length_controlled(np.ones(50), np.arange(50.0)) < 1.0
    assert math.isnan(length_controlled([], []))


def test_the_interval_at_equal_length_is_that_of_a_plain_win_where_lengths_are_equal():
    """It resampled seeds only: seeds that agree had an interval of no width, however few the prompts."""
    wins = np.random.default_rng(5).random((1, 60, 2)) > 0.4
    same = np.repeat(wins.astype(float), 3, axis=0)  # three seeds that agree
    plain, found = interval([same]), length_controlled_interval(same, np.full(same.shape, 7.0))
    assert found.value == pytest.approx(plain.value, abs=1e-4)
    assert found.low == pytest.approx(plain.low, abs=0.02) and found.high == pytest.approx(plain.high, abs=0.02)
    assert plain.high - plain.low > 0.1


def test_the_interval_at_equal_length_has_the_mean_of_the_seeds_and_their_lines():
    source = np.random.default_rng(6)
    wins, longer = (source.random((2, 12, 3)) > 0.3).astype(float), source.normal(3, 5, (2, 12, 3))
    wins[0, 0, 0] = math.nan
    each = [length_controlled(w.ravel(), x.ravel()) for w, x in zip(wins, longer, strict=True)]
    assert length_controlled_interval(wins, longer).value == pytest.approx(sum(each) / 2)
    few = length_controlled_interval(wins[:, :9], longer[:, :9])
    assert math.isfinite(few.value) and math.isnan(few.low) and math.isnan(few.high)
    always = length_controlled_interval(np.ones((2, 12)), np.zeros((2, 12)))  # the rule of three: 3 of 12 otherwise
    assert always.value - always.low == pytest.approx(3 / 12) and always.high == 1.0
    none = length_controlled_interval(np.full((2, 12), math.nan), np.zeros((2, 12)))
    assert all(map(math.isnan, (none.value, none.low, none.high)))


def test_a_prompt_drawn_twice_counts_twice_at_equal_length():
    """The fits of the resamples are those of the lines written out as often as they were drawn."""
    source = np.random.default_rng(7)
    wins, longer = (source.random(20) > 0.3).astype(float), source.normal(3, 5, 20)
    wins[3] = math.nan
    weights = source.multinomial(20, np.full(20, 1 / 20), size=5)
    weights[4] = 0
    found = stats._length_controlled(wins, longer, weights.astype(float))
    written_out = [length_controlled(np.repeat(wins, w), np.repeat(longer, w)) for w in weights]
    np.testing.assert_allclose(found, written_out, atol=1e-9)


def test_the_interval_at_equal_length_holds_the_truth():
    """With 3 seeds of 60 shared prompts it held it in 65 %."""
    source = np.random.default_rng(0)
    drawn = 1 / (1 + np.exp(-(0.4 + source.normal(0, math.hypot(0.2, 1.2), 400_000))))
    held = []
    for _ in range(60):
        odds = 0.4 + source.normal(0, 0.2, (3, 1)) + source.normal(0, 1.2, (1, 60))
        wins = source.random((3, 60)) < 1 / (1 + np.exp(-odds))
        found = length_controlled_interval(wins, source.normal(0, 20, (3, 60)), resamples=200)
        held.append(found.low <= drawn.mean() <= found.high)
    assert np.mean(held) >= 0.9


def test_curves_are_averaged_where_they_have_been():
    found = mean_curve([([0, 10], [0.0, 1.0]), ([0, 5], [0.0, 0.0])], [0, 5, 10, 11])
    assert [f.value for f in found[:3]] == [0.0, 0.25, 1.0]
    assert math.isnan(found[3].value)


def test_area_under_by_hand():
    # From 0 to 10 it rises to 1 (mean 1/2), from 10 to 20 it stays: (5 + 10) / 20.
    assert area_under([10, 0], [1.0, 0.0], until=20) == pytest.approx(0.75)
    assert area_under([0, 10], [0.0, 1.0], until=5) == pytest.approx(0.25)


def test_overoptimisation_by_hand():
    distance, gap = overoptimisation([4.0, -0.01, 9.0], [0.5, 0.5, 0.9], [0.5, 0.4, 0.3])
    assert distance.tolist() == [2.0, 0.0, 3.0]
    assert gap == pytest.approx([0.0, 0.1, 0.6])
    assert best_of_n_kl(1) == 0.0
    assert best_of_n_kl(8) == pytest.approx(math.log(8) - 7 / 8)


def test_scores_of_a_wrong_shape_are_refused():
    with pytest.raises(InvalidOption, match=r"\[seeds, prompts\]"):
        interval([np.zeros((2, 2, 2, 2))])
    with pytest.raises(InvalidOption, match="two systems"):
        bradley_terry(np.zeros((1, 2, 3)))


def test_the_bounds_of_an_interval_by_hand():
    """Two runs of 0 and 1, drawn twice: 0, 1/2 and 1 with chances 1/4, 1/2, 1/4. The middle 60 % reach from 0 to 1, the
    middle 40 % are the 1/2 alone. The same for two runs that two others are compared with, for a pair, for curves."""
    bounds = lambda found: (found.low, found.high)  # noqa: E731
    scores = [0.0, 1.0]
    curves = [([0, 1], [0.0, 0.0]), ([0, 1], [1.0, 1.0])]
    for level, expected in ((0.6, (0.0, 1.0)), (0.4, (0.5, 0.5))):
        assert bounds(interval([scores], level=level)) == expected
        assert bounds(paired_difference(scores, np.zeros(2), level=level)) == expected
        assert bounds(probability_of_improvement([1.0, 1.0], [0.0, 2.0], level=level)) == expected
        assert bounds(probability_of_improvement([0.0, 2.0], [1.0, 1.0], level=level)) == expected
        assert bounds(mean_curve(curves, [0.5], level=level)[0]) == expected


def test_the_bounds_over_prompts_by_hand():
    """Ten prompts, five of 0 and five of 1: a resample has k ones with the chances of ten coins. Up to 1 one 1.1 %, up
    to 2 5.5 %, up to 3 17.2 %, up to 4 37.7 %: the middle 95 % reach from 0.2 to 0.8, the middle 60 % from 0.4."""
    scores = [[0.0, 1.0] * 5]
    for level, expected in ((0.95, (0.2, 0.8)), (0.6, (0.4, 0.6))):
        for found in (
            interval([scores], level=level),
            paired_difference(scores, np.zeros((1, 10)), level=level),
            performance_profile(scores, [0.5], level=level)[0],
        ):
            assert (found.low, found.high) == pytest.approx(expected)


def test_ratings_are_resampled_over_seeds_and_over_prompts():
    """Each of two systems wins five of ten prompts, in one seed: as above, the middle 95 % go from two wins to eight.
    With two seeds of which each system wins one, the middle 70 % reach from none to all."""

    def points(won, lost):
        return bradley_terry([[[1.0] * won + [0.0] * lost], [[0.0] * won + [1.0] * lost]], resamples=2)[0].points.value

    first = bradley_terry([[[1.0, 0.0] * 5], [[0.0, 1.0] * 5]], resamples=4000)[0].points
    assert (first.low, first.value, first.high) == pytest.approx((-points(8, 2), 0.0, points(8, 2)), abs=1e-6)
    scores = [[[1.0] * 10, [0.0] * 10], [[0.0] * 10, [1.0] * 10]]
    for level, bound in ((0.7, points(20, 0)), (0.4, 0.0)):
        first = bradley_terry(scores, level=level, resamples=100)[0].points
        assert (first.low, first.value, first.high) == pytest.approx((-bound, 0.0, bound), abs=1e-6)


def unknown(found):
    return math.isfinite(found.value) and math.isnan(found.low) and math.isnan(found.high)


def test_few_prompts_and_a_single_run_have_no_interval():
    """One prompt of one seed had the interval [0.1, 0.1] and a star for a difference, and a tier of its own."""
    for few in ([[0.6]], [[0.6], [0.7], [0.8]], [[0.6, 0.7, 0.8] * 3], [[0.6] * 9 + [math.nan] * 9], [0.6]):
        few = np.array(few)
        assert unknown(interval([few])) and unknown(paired_difference(few, few - 0.1))
        assert unknown(performance_profile(few.reshape(len(few), -1), [0.65])[0])
        assert unknown(probability_of_improvement(few, few + 0.1)) and unknown(probability_of_improvement([1, 2], few))
    # Lines of one prompt are not prompts; ten prompts of one run suffice for its score, and say nothing of other runs.
    assert unknown(interval([np.random.default_rng(0).random((3, 2, 10))]))
    one = np.arange(10)[None] / 10
    assert not unknown(interval([one])) and unknown(probability_of_improvement(one, one + 1))
    assert unknown(interval([[0.1, 0.2], [0.6]]))
    assert unknown(mean_curve([([0, 1], [0.0, 1.0])], [0.5])[0])


def test_systems_that_met_on_few_prompts_share_one_tier():
    for seeds, prompts in ((1, 1), (3, 1), (1, 9)):
        rated = bradley_terry([np.full((seeds, prompts), 0.6), np.full((seeds, prompts), 0.5)])
        assert [(one.system, one.tier) for one in rated] == [(0, 1), (1, 1)]
        assert all(unknown(one.points) for one in rated)
    assert [one.tier for one in bradley_terry([[[0.6] * 20], [[0.5] * 20]])] == [1, 2]


def test_where_all_scores_are_alike_the_rule_of_three_gives_the_bounds():
    """30 ones of 30 are compatible with 3 in 30 that are not; resamples of them are all alike."""
    found = interval([np.ones((3, 30))])
    assert (found.low, found.high) == pytest.approx((0.9, 1.0))
    found = interval([np.full((1, 30), 0.5)])
    assert (found.low, found.high) == pytest.approx((0.4, 0.6))
    # 0.1 at each prompt, with what rounding leaves: a bootstrap would be sure of it.
    scores = np.random.default_rng(0).random((3, 30))
    found = paired_difference(scores + 0.1, scores)
    assert (found.low, found.value, found.high) == pytest.approx((0.0, 0.1, 0.2))
    assert paired_difference(scores, scores).low == pytest.approx(-0.1)
    found = interval([[0.5, 0.5, 0.5, 0.5, 0.5, 0.5]])  # six runs
    assert (found.low, found.high) == pytest.approx((0.0, 1.0))
    found = interval([np.full((1, 30), 2.0)])  # of another scale
    assert found.low <= 2.0 <= found.high


def test_a_system_that_wins_every_game_may_have_lost_three():
    """By hand, of 20 prompts: as one that wins 17. It wins more than all of them at no resample."""
    [best, worst] = bradley_terry([[[0.6] * 20], [[0.5] * 20]])
    lost = bradley_terry([[[0.6] * 17 + [0.5] * 3], [[0.5] * 17 + [0.6] * 3]])[0].points.value
    assert (best.points.low, best.points.high) == pytest.approx((lost, best.points.value))
    assert (worst.points.low, worst.points.high) == pytest.approx((worst.points.value, -lost))


def won_of(won, lost):
    """The points of one that wins `won` games and loses `lost`, on as many prompts."""
    return bradley_terry([[[0.6] * won + [0.5] * lost], [[0.5] * won + [0.6] * lost]])[0].points.value


def test_one_failed_judgement_does_not_make_a_winner_certain():
    """40 of 40 won had [210, 397]; with one judgement missing, [391, 397]: resamples differed in the number of games.
    By hand, of 39 prompts three may be lost."""
    [best, worst] = bradley_terry([[[0.6] * 40], [[0.5] * 39 + [math.nan]]])
    assert best.points.value == pytest.approx(won_of(39, 0))
    assert best.points.low == pytest.approx(won_of(36, 3))
    assert won_of(39, 0) < best.points.high <= won_of(40, 0) + 1e-6  # a resample without the gap
    assert (worst.points.low, worst.points.high) == pytest.approx((-best.points.high, -best.points.low))


def test_one_that_always_wins_and_always_loses_may_not_either():
    """A middle system that wins every game with the last and loses every one with the first. On one prompt the last
    has no score, so that resamples differ by a little."""
    first, middle, last = ([[0.9] * 20], [[0.5] * 20], [[0.1] * 19 + [math.nan]])
    points = {one.system: one.points for one in bradley_terry([first, middle, last])}
    assert points[1].low < -30 and points[1].high > 30  # 17 of 20 lost or 17 of 19 won instead of all
    # Five won and five lost are no games that end alike: 2,000 prompts say much more than 3 in ten.
    half = bradley_terry([[[0.6, 0.4] * 1000], [[0.5] * 2000]])[0].points
    assert half.low == pytest.approx(-won_of(1044, 956), abs=3) and half.high == pytest.approx(won_of(1044, 956), abs=3)


def test_a_system_that_played_on_few_prompts_has_no_bounds_and_starts_no_tier():
    """All systems had an interval as soon as all together had played on ten prompts."""
    new = [[0.9] * 2 + [math.nan] * 28]
    rated = bradley_terry([new, [[0.6] * 30], [[0.5] * 30]])
    assert [(one.system, one.tier) for one in rated] == [(0, 1), (1, 1), (2, 2)]
    points = {one.system: one.points for one in rated}
    assert unknown(points[0]) and points[1].low < points[1].value and points[2].high > points[2].value
    nothing, high, low = Interval(3, math.nan, math.nan), Interval(2, 2, 2), Interval(1, 1, 1)
    assert tiers([nothing, high, nothing, low, nothing]) == [1, 1, 1, 2, 2]


def test_a_system_that_has_not_played_has_no_bounds():
    nothing = np.full((1, 20), math.nan)
    rated = bradley_terry([[[0.6] * 20], [[0.5] * 20], nothing])
    assert next(one.points for one in rated if one.system == 2) == Interval(0.0, -math.inf, math.inf)


def test_without_a_word_intervals_are_of_95_percent_and_2000_resamples():
    source = np.random.default_rng(5)
    a, b = source.normal(size=(2, 4, 12))
    said = {"seed": 0, "resamples": 2000, "level": 0.95}
    assert interval([a]) == interval([a], **said)
    assert probability_of_improvement(a, b) == probability_of_improvement(a, b, **said)
    assert paired_difference(a, b) == paired_difference(a, b, **said) == interval([a - b], **said)
    assert performance_profile(a, [0.1]) == performance_profile(a, [0.1], **said)
    curve = [(range(12), row) for row in a]
    assert mean_curve(curve, [1, 2]) == mean_curve(curve, [1, 2], **said)
    scores = np.stack([a, b + 0.5])
    assert bradley_terry(scores) == bradley_terry(scores, seed=0, resamples=500, level=0.95, prior=1.0)
    # The seed, the number and the level are those that were given.
    for other in ({"seed": 1}, {"resamples": 7}, {"level": 0.5}):
        for measure in (
            *(lambda **o: interval([a], **o), lambda **o: paired_difference(a, b, **o)),
            *(lambda **o: probability_of_improvement(a, b, **({"resamples": 9} | o)),),
            lambda **o: mean_curve(curve, [1.5], **({"resamples": 9} | o)),
            lambda **o: [r.points for r in bradley_terry(scores, **({"resamples": 30} | o))],
        ):
            assert measure(**other) != measure()
    assert performance_profile(a, [0.1], resamples=2) != performance_profile(a, [0.1])
    assert performance_profile(a, [0.1], seed=1, resamples=3) != performance_profile(a, [0.1], resamples=3)


def test_a_missing_score_takes_no_part_in_a_resample():
    """Of 0, nothing, 1, a resample of nothing alone has no mean and is left out; others lie in [0, 1]."""
    found = interval([[0.0, math.nan, 1.0]], resamples=5000)
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)
    half = [[0.0] * 5 + [math.nan] * 40 + [1.0] * 5]
    found = interval([half], resamples=5000)
    assert found.value == 0.5 and 0 <= found.low < 0.3 and 0.7 < found.high <= 1


def test_intervals_that_touch_overlap():
    left, right, far = Interval(0.5, 0, 1), Interval(1.5, 1, 2), Interval(3, 2.5, 3.5)
    assert left.overlaps(right) and right.overlaps(left)
    assert not left.overlaps(far) and not far.overlaps(left)
    nothing = Interval(0.5, math.nan, math.nan)
    assert nothing.overlaps(far) and far.overlaps(nothing)  # what is not known cannot tell two apart
    assert tiers([Interval(3, 3, 3), Interval(2, 2, 2), Interval(1, 1, 1)]) == [1, 2, 3]


def test_length_control_by_hand():
    """Lines of one length: only `a` is left, and at the maximum the sum of (1 - s(a)) is ridge x a. A judge who never
    doubts: 4 (1 - s(a)) = 0.01 a. What is missing on either side is left out."""
    for ridge, found in ((0.01, length_controlled([1, 1, 1, 1], [7, 7, 7, 7])), (0.5, None)):
        share = length_controlled([1, 1, 1, 1], [7, 7, 7, 7], ridge) if found is None else found
        assert 4 * (1 - share) == pytest.approx(ridge * math.log(share / (1 - share)), rel=1e-6)
    with_holes = length_controlled([1, 1, math.nan, 1, 1, 0], [7, 7, 7, 7, 7, math.nan])
    assert with_holes == pytest.approx(length_controlled([1, 1, 1, 1], [7, 7, 7, 7]))
    # Longer by as much as shorter, and judged by length alone: without it nothing is left to tell them apart.
    assert length_controlled([1, 0, 1, 0], [3, -3, 3, -3]) == pytest.approx(0.5, abs=1e-9)
    # Always the longer one, and it mostly wins: less is left than one half more.
    assert length_controlled([0.9, 0.6, 0.5], [9, 3, 1]) < 0.6


def test_a_curve_has_no_say_before_it_began():
    found = mean_curve([([4, 2], [4.0, 2.0]), ([0, 4], [0.0, 0.0])], [1, 3])
    assert [f.value for f in found] == [0.0, 1.5]
    assert area_under([2, 4], [3.0, 5.0], until=1) == 3.0
    assert area_under([2, 4], [3.0, 5.0], until=2) == 3.0
    assert area_under([2, 4], [3.0, 5.0], until=3) == 3.5
    with pytest.raises(InvalidOption, match="not empty"):
        interval([[]])


def test_two_draws_weigh_as_a_win_and_a_defeat():
    drawn = bradley_terry([[[1, 0.5, 0.5]], [[0, 0.5, 0.5]]], resamples=20)
    played = bradley_terry([[[1, 1, 0]], [[0, 0, 1]]], resamples=20)
    assert [r.system for r in drawn] == [r.system for r in played] == [0, 1]
    assert drawn[0].points.value == pytest.approx(played[0].points.value, rel=1e-12)
    assert drawn[0].points.value > 0


def test_a_missing_score_is_no_game():
    def points(first, second):
        return [rating.points.value for rating in bradley_terry([[first], [second]], resamples=2)]

    assert points([1, 0.5, math.nan, 1], [0, 0.5, 0, math.nan]) == pytest.approx(points([1, 0.5], [0, 0.5]))
    assert points([0.5, 0.5], [0.5, 0.5]) == pytest.approx([0, 0])
