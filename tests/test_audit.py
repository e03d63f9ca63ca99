"""The audit: its arithmetic by hand, its numbers on critics whose faults are known, and that it prints no text."""

import json
import math
import os
from collections import Counter

import numpy as np
import pytest
from typer.testing import CliRunner

from humor_env.errors import CriticContractError, InvalidOption
from humor_env.experiments.commands.cli import app
from humor_env.rewards.audits import audit_stats as stats
from humor_env.rewards.audits.audit import audit
from humor_env.rewards.audits.report import AuditReport
from humor_env.rewards.rated.rated_sets import Published, RatedPair, RatedSet, RatedText, load_rated
from humor_env.shared.streams import generator
from humor_env.types import Judgement, Prompt, Verdict

# The arithmetic


def test_credit():
    assert list(stats.pair_credit([0.3, -0.1, 0.0], [1, 1, -1])) == [1.0, 0.0, 0.5]


def test_an_interval_draws_clusters_and_not_items():
    """Ten clusters of fifty equal items know as much as ten items: the interval must not shrink with the copies."""
    ten = [1.0, 0.0] * 5
    alone = stats.interval(ten, range(10))
    copied = stats.interval(np.repeat(ten, 50), np.repeat(np.arange(10), 50).tolist())
    assert alone == copied
    assert alone[1] - alone[0] > 0.4
    apart = stats.interval(np.repeat(ten, 50), range(500))
    assert apart[1] - apart[0] < 0.1
    assert stats.interval([1.0, 0.0], ["a", "a"]) is None


def test_few_items_get_no_tight_interval():
    """Four right answers of four, which a coin gives once in sixteen times, were "100.0 % [100.0, 100.0] … better than
    a coin": a bootstrap draws only what it has seen, so it has no tails where that is little or all alike."""
    assert stats.interval([1.0] * 4, range(4)) is None
    assert stats.interval([1.0, 0.0] * 450, [n % 9 for n in range(900)]) is None  # nine prompts, however many pairs
    assert stats.interval([1.0] * 30, range(30)) == pytest.approx((0.9, 1.0))  # 3 / n: the rule of three
    rounded = [0.7 - 0.5, 0.9 - 0.7] * 15  # equal, but for the last bit: the interval had no width
    assert stats.interval(rounded, range(30)) == pytest.approx((0.1, 0.3))
    assert stats.interval([0.0] * 30, range(30)) == pytest.approx((0.0, 0.1))
    assert stats.interval([0.5] * 30, range(30)) == pytest.approx((0.4, 0.6))
    assert stats.spearman_interval(range(9), range(9), range(9)) is None
    four = audit(Critic(lambda t: 0.9 if "funny" in t else 0.2), RatedSet("set", pairs=some_pairs(4), scale=(0.0, 3.0)))
    assert (four.pairs.accuracy, four.pairs.interval, four.beats_coin) == (1.0, None, None)
    assert four.summary() == (
        "mine on set: 100.0 % of 4 pairs; rank correlation +0.93, 8 texts (too few to tell whether it beats chance); "
        "prefers the line's own prompt in 50.0 %"
    )
    assert "[100.0, 100.0]" not in four.markdown()


def contests(folder, captions):
    """Twelve contests without scenes; a caption says its rank and contest."""
    files = []
    for contest in range(510, 522):
        rows = "".join(f"{rank},{2 - rank / 1000},100,caption {rank} of {contest}\n" for rank in range(1, captions + 1))
        files.append(folder / f"{contest}.csv")
        files[-1].write_text("rank,mean,votes,caption\n" + rows)
    return files


def knows_some_contests(text):
    """Right in every pair of the contests 510 to 514, wrong in every one of the others."""
    _, rank, _, contest = text.split()
    return int(rank) / 1000 if int(contest) > 514 else 1 - int(rank) / 1000


def test_without_scenes_a_contest_is_one_cluster(tmp_path):
    """1,200 pairs of 12 contests were resampled as 240 first texts: an interval a quarter as wide as it should be."""
    rated = load_rated("newyorker", contests(tmp_path, 40), ranks="1-10:31-40")
    found = audit(Critic(knows_some_contests), rated, surprisal=None, context=0).pairs
    right = np.repeat([float(contest < 515) for contest in range(510, 522)], 100)
    assert (found.count, found.accuracy) == (1200, pytest.approx(5 / 12))
    assert found.interval == stats.interval(right, np.repeat(np.arange(12), 100).tolist())
    assert found.interval[1] - found.interval[0] > 0.4


def test_without_scenes_captions_are_compared_within_their_contest(tmp_path):
    """1,804 of 2,000 made pairs compared the captions of two different cartoons."""
    rated = load_rated("newyorker", contests(tmp_path, 250), ranks=None)
    compared = []

    def judge(pairs):
        compared.extend(pairs)
        return [Verdict("j", float(a.text < b.text)) for a, b in pairs]

    report = audit(judge, rated, kind="judge", surprisal=None, both_orders=False)
    # Of a contest's 31,125 pairs, 2,000 were drawn, and of the 24,000 in all 2,000: every contest has about 167.
    counts = Counter(a.prompt.id for a, _ in compared)
    assert len(compared) == report.pairs.count == 2000 and len(counts) == 12 and min(counts.values()) > 120
    assert all(a.text.split()[-1] == b.text.split()[-1] for a, b in compared)
    assert len({joke.text for pair in compared for joke in pair}) > 1800  # 0.736 of 3,000 would be met by chance
    # The rank correlation draws contests as well.
    texts = audit(Critic(knows_some_contests), rated, surprisal=None, context=0).texts
    wide = stats.spearman_interval(
        [knows_some_contests(t.text) for t in rated.texts],
        [t.score for t in rated.texts],
        [t.prompt.id for t in rated.texts],
    )
    assert texts.interval == pytest.approx(wide)


def test_without_a_prompt_a_text_is_one_cluster_however_many_pairs_it_opens(tmp_path):
    """The id of a text had the number of its pair: "the first texts" were single pairs, and none was met twice."""
    file = tmp_path / "pairs.csv"
    file.write_text("a,b,label\n" + "".join(f"joke {n % 12},line {n},{'ab'[n % 12 < 5]}\n" for n in range(240)))
    rated = load_rated("pairs", file)
    assert len(rated.every_text) == 252
    found = audit(Critic(lambda text: 0.5 + 0.4 * ("joke" in text)), rated, surprisal=None, context=0).pairs
    right = [float(n % 12 >= 5) for n in range(240)]
    assert found.interval == stats.interval(right, [n % 12 for n in range(240)])


def test_an_interval_of_pairs_covers_about_as_often_as_it_says():
    """300 coins of 0.6, 100 times: the 95 % interval misses in about a twentieth (at most a tenth here)."""
    random = generator(0, "coverage")
    missed = 0
    for k in range(100):
        low, high = stats.interval((random.random(300) < 0.6).astype(float), range(300), seed=k, resamples=300)
        missed += not low <= 0.6 <= high
    assert 1 <= missed <= 10


def test_length_control():
    """Of ten pairs, people preferred the longer line in six, the shorter in two; two are of one length.

    Right in 5 of the 6, 1 of the 2 and 2 of the 2: raw 0.8. Alike in weight: (8 · (5/6 + 1/2) / 2 + 2) / 10.
    """
    longer = [1, 2, 3, 1, 2, 3, -1, -2, 0, 0]
    credit = [1, 1, 1, 1, 1, 0, 1, 0, 1, 1]
    assert stats.length_controlled(credit, longer) == pytest.approx((8 * (5 / 6 + 1 / 2) / 2 + 2) / 10)
    # A ruler is right in all of the six and none of the two: half, and half of those of one length.
    assert stats.length_controlled([1] * 6 + [0] * 2 + [0.5] * 2, longer) == 0.5
    assert stats.length_controlled([1, 0, 1], [0, 0, 0]) == pytest.approx(2 / 3)
    assert stats.length_controlled([1.0, 1.0], [0.1, 0.3]) is None
    assert stats.length_controlled([], []) is None


def test_rank_correlations_by_hand():
    # Ranks 1 2 3 4 against 2 1 4 3: 1 - 6·4 / 60 = 0.6. Tied values share the mean of their ranks.
    assert stats.spearman([1, 2, 3, 4], [20, 10, 40, 30]) == pytest.approx(0.6)
    assert stats.spearman([1, 1, 2], [5, 5, 9]) == pytest.approx(1.0)
    assert stats.spearman([1, 2], [1, 2]) is None
    assert stats.spearman([1, 1, 1], [1, 2, 3]) is None
    assert stats.pearson([0, 1, 5], [0, 2, 10]) == pytest.approx(1.0)
    x, y, z = [1, 2, 3, 4, 5], [2, 1, 4, 3, 5], [1, 3, 2, 5, 4]
    xy, xz, yz = (stats.spearman(*p) for p in ((x, y), (x, z), (y, z)))
    expected = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert stats.partial_spearman(x, y, z) == pytest.approx(expected)
    assert stats.partial_spearman(x, y, [7] * 5) == pytest.approx(xy)
    low, high = stats.spearman_interval(
        range(50), np.arange(50) + generator(0, "noise").normal(size=50) * 20, range(50)
    )
    assert 0.2 < low < high < 1
    assert stats.spearman_interval([1, 1, 1], [1, 2, 3], range(3)) is None


def test_an_interval_of_ranks_lies_between_minus_one_and_one():
    """A critic that gives all lines but one the same score: a third of the resamples lack that line, and where it was
    missing the correlation was a number of 137 digits."""
    for k in range(40):
        random = np.random.default_rng(k)
        clusters = [n for n in range(12) for _ in range(random.integers(1, 5))]
        one = np.full(len(clusters), 0.5)
        one[random.integers(len(clusters))] = 1.0
        low, high = stats.spearman_interval(one, random.integers(0, 7, len(clusters)) / 3, clusters)
        assert -1 <= low <= high <= 1
    perfect = stats.spearman_interval(range(12), range(12), range(12))
    assert perfect == pytest.approx((1.0, 1.0)) and perfect[1] <= 1


def test_where_half_of_the_resamples_have_one_score_only_no_interval_of_ranks_is_given():
    """By hand: all twelve lines of one prompt of forty differ, and a resample lacks that prompt in 36 %. If all grades
    but one prompt's are equal too, and it is another prompt, only (1 - 0.36)² = 41 % have both."""
    clusters = np.repeat(np.arange(40), 12).tolist()
    first, second = np.zeros(480), np.zeros(480)
    first[:12], second[12:24] = range(12), range(12)
    assert stats.spearman_interval(first, np.arange(480), clusters) is not None
    assert stats.spearman_interval(first, second, clusters) is None


def test_krippendorffs_alpha_by_hand():
    """Items (0, 2) and (4, 4). Within: the pairs differ by 4 squared and by 0, 2 on average. All grades 0 2 4 4 have
    the variance 11/3, so any two differ by 22/3 squared on average. 1 - 2 / (22/3) = 8/11."""
    assert stats.krippendorff_alpha([[0, 2], [4, 4]]) == pytest.approx(8 / 11)
    assert stats.krippendorff_alpha([[0, 2], [4, 4], [3]]) == pytest.approx(8 / 11)
    assert stats.krippendorff_alpha([[1, 1], [1, 1]]) is None
    assert stats.krippendorff_alpha([[1, 2]]) is None
    # Spearman and Brown for two raters: 2α / (1 + α); a perfect critic shows its square root.
    assert stats.reliability([[0, 2], [4, 4]]) == pytest.approx(16 / 19)
    assert stats.correlation_ceiling([[0, 2], [4, 4]]) == pytest.approx(math.sqrt(16 / 19))
    assert stats.reliability([[0, 4], [4, 0]]) is None


def test_what_one_person_scores():
    """Raters of a all say 2, of b all 1: anyone is right. Where raters throw coins, one is right in half."""
    assert stats.one_against_others([((2, 2, 2), (1, 1, 1))] * 3) == 1.0
    assert stats.one_against_others([((1,), (2, 2))]) is None
    random = generator(1, "coins")
    coins = [(random.integers(0, 4, 5).tolist(), random.integers(0, 4, 5).tolist()) for _ in range(2000)]
    assert stats.one_against_others(coins) == pytest.approx(0.5, abs=0.02)
    assert stats.one_against_rest([a for a, _ in coins]) == pytest.approx(0.0, abs=0.03)
    # A rater with no preference earns half: a's three raters give 1 1 1, b's 1 1 0. The others of b average below 1
    # unless the 0 was drawn, and then there is a tie, which is left out: always half.
    assert stats.one_against_others([((1, 1, 1), (1, 1, 0))] * 5) == 0.5


def test_agreement_with_single_people():
    """a: 2 and 0, b: 1 and 1. Of four ways, two prefer a and two b: half, whatever the critic says. Ties are out."""
    assert stats.agreement_with_one([0.3], [((2, 0), (1, 1))]) == 0.5
    assert stats.agreement_with_one([0.3, -1.0], [((2, 2), (1, 2)), ((0,), (3,))]) == 1.0
    assert stats.agreement_with_one([-0.3], [((2, 2), (1, 2))]) == 0.0
    assert stats.agreement_with_one([1.0], [((1,), (1,))]) is None


def test_the_ceiling_on_pairs_is_what_a_perfect_critic_gets():
    """True means of a normal spread, five noisy raters each: the truth itself agrees with the labels that often."""
    random = generator(2, "ceiling")
    true = random.normal(size=(20000, 2))
    grades = true[:, :, None] + random.normal(size=(20000, 2, 5)) * 1.5
    means = grades.mean(axis=2)
    perfect = float(np.mean(np.sign(true[:, 0] - true[:, 1]) == np.sign(means[:, 0] - means[:, 1])))
    found = stats.pair_ceiling([(a, b) for a, b in grades[:4000]])
    assert found == pytest.approx(perfect, abs=0.01)
    assert stats.pair_ceiling([((1, 2), (1, 2))]) is None


def test_calibration_bins_keep_equal_values_together():
    bins = stats.calibration_bins([0.6] * 6 + [0.9] * 4, [1, 0, 1, 0, 1, 0, 1, 1, 1, 0], bins=4)
    assert [(b.count, b.said, b.seen) for b in bins] == [(6, pytest.approx(0.6), 0.5), (4, pytest.approx(0.9), 0.75)]
    assert stats.calibration_error(bins) == pytest.approx(0.6 * 0.1 + 0.4 * 0.15)
    assert stats.calibration_bins([], []) == ()
    assert stats.calibration_error(()) is None


# The audit


def text(id, line, score, asked="Say it.", **more):
    return RatedText(id, Prompt(asked, asked), line, score, **more)


def pair(n, good, bad, gap=1.0, asked=None):
    """By turns the better text stands first and second."""
    asked = asked or f"prompt {n}"
    a = text(f"{n}g", good, 1.0 + gap, asked, raters=(1.0 + gap, 2.0 + gap, gap))
    b = text(f"{n}b", bad, 1.0, asked, raters=(1.0, 2.0, 0.0))
    return RatedPair(f"{n}", a, b, "a") if n % 2 == 0 else RatedPair(f"{n}", b, a, "b")


def some_pairs(count=40):
    """In every fourth pair the longer line is the worse one."""
    return tuple(
        pair(n, f"funny {n}" + " indeed" * (n % 4 > 0), f"dull {n}" + " really so" * (n % 4 == 0), 0.2 + 0.3 * (n % 8))
        for n in range(count)
    )


SET = RatedSet(
    "set", pairs=some_pairs(), scale=(0.0, 3.0), published=(Published("them", "pair accuracy", 0.6, "a paper"),)
)


class Critic:
    name = "mine"

    def __init__(self, score):
        self.score, self.asked = score, []

    def __call__(self, jokes):
        self.asked.append([j.text for j in jokes])
        found = [self.score(j.text) for j in jokes]
        return [
            Judgement("mine", s, error=None if s is not None else f"cannot read {j.text!r}")
            for s, j in zip(found, jokes, strict=True)
        ]


def test_a_critic_that_is_always_right_and_one_that_measures_length():
    right = audit(Critic(lambda t: 0.9 if "funny" in t else 0.2), SET)
    assert right.pairs.accuracy == 1.0
    assert right.pairs.interval == pytest.approx((1 - 3 / 40, 1.0))
    assert right.pairs.length_errors == 0
    assert right.beats_coin is True
    assert right.pairs.flips == 0
    assert (right.pairs.forward, right.pairs.back) == (1.0, 1.0)
    assert right.pairs.count == 40
    ruler = audit(Critic(lambda t: len(t) / 100), SET)
    assert ruler.pairs.accuracy == pytest.approx(0.75)
    assert ruler.pairs.length_errors == pytest.approx(0.25)
    assert ruler.pairs.controlled == 0.5
    assert right.pairs.controlled == 1.0
    rows = {row.name: row for row in ruler.references}
    assert rows["chance"].accuracy == 0.5
    assert rows["the longer line"].accuracy == ruler.pairs.accuracy
    assert rows["the longer line"].interval == ruler.pairs.interval
    assert rows["the shorter line"].accuracy == pytest.approx(0.25)
    assert rows["them"].source == "published: a paper"
    assert rows["them"].accuracy == 0.6
    assert rows["ceiling: a perfect critic"].accuracy > 0.6
    assert rows["one person against the others"].accuracy > 0.5
    assert rows["surprisal (unigrams of this set)"].accuracy is not None


def test_wrong_and_undecided_critics_are_not_told_from_a_coin():
    wrong = audit(Critic(lambda t: 0.1 if "funny" in t else 0.2), SET)
    assert (wrong.pairs.accuracy, wrong.beats_coin) == (0.0, False)
    level = audit(Critic(lambda t: 0.5), SET)
    assert (level.pairs.accuracy, level.beats_coin) == (0.5, False)
    assert level.texts.spearman is None


def test_each_joke_is_asked_once_in_each_order():
    critic = Critic(lambda t: 0.5)
    audit(critic, SET, context=0)
    first, second = critic.asked
    assert len(first) == len(set(first)) == 80
    assert second == first[::-1]
    once = Critic(lambda t: 0.5)
    report = audit(once, SET, both_orders=False, context=0)
    assert len(once.asked) == 1
    assert (report.pairs.flips, report.pairs.back) == (None, None)


def test_a_critic_that_looks_at_the_order_flips():
    """It scores by the place in the call: the second call, the other way round, says the opposite."""

    def by_place(jokes):
        return [Judgement("place", i / len(jokes)) for i in range(len(jokes))]

    report = audit(by_place, SET)
    assert report.pairs.flips == 1.0
    # Averaged over both orders there is nothing left but rounding: no pair decided the same way twice.
    assert report.pairs.forward == pytest.approx(1 - report.pairs.back)
    assert report.pairs.forward == 0.5


def test_by_gap():
    """On a scale of 3: gaps 0.2 (8 %), 0.5 (17 %), 0.8 (27 %), then from 1.1. The critic is right from 0.8 up."""
    good = {p.a.text if p.label == "a" else p.b.text: p.gap for p in SET.pairs}
    report = audit(Critic(lambda t: (0.9 if good[t] > 0.7 else 0.1) if t in good else 0.5), SET)
    assert [(r.count, r.accuracy) for r in report.pairs.by_gap] == [(5, 0.0), (5, 0.0), (5, 1.0), (25, 1.0)]
    assert [(round(r.low, 3), r.high and round(r.high, 3)) for r in report.pairs.by_gap] == [
        (0.0, 0.3), (0.3, 0.6), (0.6, 1.0), (1.0, None),
    ]  # fmt: skip


def test_failures_are_left_out_and_counted_and_their_texts_are_not_repeated():
    report = audit(Critic(lambda t: None if t.startswith("funny 3") else 0.9 if "funny" in t else 0.1), SET)
    assert report.pairs.failed == 11  # 3 and 30 to 39
    assert (report.pairs.count, report.pairs.accuracy) == (29, 1.0)
    assert any(note == "could not judge: cannot read '…'" for note in report.notes)
    assert "funny" not in report.markdown()
    nothing = audit(Critic(lambda t: None), SET)
    assert nothing.pairs.accuracy is None
    assert nothing.beats_coin is None
    assert nothing.summary() == "mine on set: nothing could be judged"

    def quoting(jokes):
        return [Judgement("q", None, error=f"refused: '{' '.join(j.text.split()[:3])} and more of it'") for j in jokes]

    long = RatedSet("set", pairs=(pair(0, "a very rude joke here", "a tame one", 1.0),), scale=(0, 3))
    assert "rude" not in audit(quoting, long).markdown()
    with pytest.raises(CriticContractError, match="returned 0 judgements"):
        audit(lambda jokes: [], SET)


def test_a_judge_is_asked_in_both_orders():
    """It likes the place it is shown first: sure of 0.9 there, 0.7 where the better line is second. Averaged, the
    better line has 0.6 either way, so accuracy is 1 though a fifth of the single answers are wrong."""

    class Placed:
        name = "placed"

        def ask(self, pairs):
            return [Verdict("placed", 0.9 if "funny" in a.text else 0.7) for a, _ in pairs]

        def __call__(self, pairs):
            raise AssertionError("one order at a time says more")

    report = audit(Placed(), SET, kind="judge")
    assert report.pairs.accuracy == 1.0
    assert report.pairs.flips == 1.0
    assert report.pairs.first == 1.0
    assert (report.pairs.forward, report.pairs.back) == (0.5, 0.5)
    assert report.texts is None
    # It says 0.6 and is always right.
    assert report.pairs.calibration_error == pytest.approx(0.4)


def test_a_judge_that_ends_half_way_has_judged_whole_pairs():
    """All first orders came before all second ones: a judge whose limit ended half-way had judged nothing."""

    class Limited:
        name = "limited"

        def ask(self, pairs):
            known = [Verdict("limited", 0.8 if "funny" in a.text else 0.2) for a, _ in pairs[: len(pairs) // 2]]
            return known + [Verdict("limited", None, error="budget")] * (len(pairs) - len(known))

    report = audit(Limited(), SET, kind="judge")
    assert (report.pairs.count, report.pairs.failed) == (20, 20)
    assert (report.pairs.accuracy, report.pairs.flips) == (1.0, 0.0)


def test_a_judge_that_gives_only_the_average():
    def averaged(pairs):
        return [Verdict("j", 0.8 if "funny" in a.text else 0.2, flipped=i % 4 == 0) for i, (a, _) in enumerate(pairs)]

    report = audit(averaged, SET, kind="judge")
    assert (report.pairs.accuracy, report.pairs.flips) == (1.0, 0.25)
    assert (report.pairs.forward, report.pairs.back, report.pairs.first) == (None, None, None)


def test_single_texts_their_kinds_their_offence_and_their_length():
    """Scores follow people within puns and offence against them; controls are far lower and kept apart."""
    texts = [text(f"p{i}", "x" * (i + 1), float(i), asked="", kind="pun", offence=float(-i)) for i in range(6)] + [
        text(f"c{i}", "y" * 9, -9.0 - i, asked="", kind="control", offence=0.0) for i in range(4)
    ]
    rated = RatedSet("kinds", tuple(texts), scale=(-12.0, 6.0), main="pun")
    order = {t.text: s for t, s in zip(texts, [0.2, 0.1, 0.4, 0.3, 0.6, 0.5], strict=False)}
    report = audit(Critic(lambda t: order.get(t, 0.0)), rated)
    assert report.texts.count == 6
    assert report.texts.spearman == pytest.approx(stats.spearman([0.2, 0.1, 0.4, 0.3, 0.6, 0.5], range(6)))
    assert report.texts.offence == pytest.approx(-report.texts.spearman)
    assert report.texts.people_offence == pytest.approx(-1)
    # Length is the truth here: nothing is left when it is taken out.
    assert report.texts.partial is None or abs(report.texts.partial) < 1e-9
    assert set(report.texts.by_kind) == {"pun", "control"}
    assert report.pairs.count == 15  # every pair of six puns, none with a control
    assert any("for the kind 'pun'" in note for note in report.notes)


def test_pairs_are_made_within_prompts_where_there_are_any():
    asked = [text(f"{p}{i}", f"{p}{i}", float(i), asked=p) for p in ("one", "two") for i in range(3)]
    report = audit(Critic(lambda t: int(t[-1]) / 10), RatedSet("r", tuple(asked), scale=(0, 3)))
    assert report.pairs.count == 6
    assert report.pairs.accuracy == 1.0
    assert any("pairs were made" in note for note in report.notes)


def test_a_limit_draws_the_same_pairs_and_a_larger_one_keeps_them():
    few, more = Critic(lambda t: 0.5), Critic(lambda t: 0.5)
    assert audit(few, SET, limit=5).pairs.count == 5
    assert audit(more, SET, limit=9).pairs.count == 9
    assert set(few.asked[0]) < set(more.asked[0])
    assert few.asked[0][:2] != [SET.pairs[0].a.text, SET.pairs[0].b.text] or audit(few, SET, limit=5, seed=1)
    with pytest.raises(InvalidOption, match="at least 1"):
        audit(few, SET, limit=0)


def test_examples_only_where_they_are_asked_for():
    critic = Critic(lambda t: (0.1 if t.startswith("funny 7") else 0.9) if "funny" in t else 0.5)
    assert audit(critic, SET).examples == ()
    report = audit(critic, SET, examples=5)
    [example] = report.examples
    assert (example.preferred, example.named) == ("funny 7 indeed", "dull 7")
    assert example.margin == pytest.approx(0.4)
    assert "funny" not in json.dumps(report.data())
    assert "funny" not in report.markdown()


def test_a_report_survives_a_file():
    report = audit("rules", SET)
    again = AuditReport.load(json.loads(json.dumps(report.data())))
    assert again == report
    assert again.markdown() == report.markdown()


def test_a_name_may_be_a_critic_or_a_judge():
    assert audit("pocket", SET).kind == "critic"
    assert audit("pocket-crowd", SET).kind == "judge"
    assert audit("pocket", SET, kind="judge").kind == "judge"


# The command


@pytest.fixture
def headlines(tmp_path):
    path = tmp_path / "task-2.csv"
    rows = ["id,original1,edit1,grades1,meanGrade1,original2,edit2,grades2,meanGrade2,label"]
    rows += [
        f"{2 * n}-{2 * n + 1},City <opens/> bridge {n},hides,33222,2.4,City opens <bridge/> {n},tunnelling,10000,0.2,1"
        for n in range(30)
    ]
    path.write_text("\n".join(rows) + "\n")
    return path


def run(*arguments):
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    return done.exit_code, done.stdout, done.stderr


def test_the_command_prints_figures_and_no_text(headlines, tmp_path):
    code, out, _ = run("audit", "--critic", "rules", "--data", "humicroedit", "--file", headlines)
    assert code == 0
    assert out.startswith("rules on humicroedit: ")
    assert "| ceiling: a perfect critic |" in out
    assert "tunnelling" not in out
    code, out, _ = run(
        "audit", "--critic", "diversity", "--data", "humicroedit", "--file", headlines, "--examples", 1, "--limit", 20,
        "--json", "--out", tmp_path / "figures.json",
    )  # fmt: skip
    assert code == 0
    assert json.loads(out)["pairs"]["count"] == 20
    kept = json.loads((tmp_path / "figures.json").read_text())
    assert kept["critic"] == "diversity"
    assert "tunnelling" not in json.dumps(kept)
    code, out, _ = run(
        "audit", "--critic", "diversity", "--data", "humicroedit", "--file", headlines, "--out", tmp_path / "page.md"
    )
    assert (code, (tmp_path / "page.md").read_text()) == (0, out)


def test_the_command_shows_texts_only_when_told(tmp_path):
    """`rules` takes two words for no joke; people preferred them."""
    path = tmp_path / "p.csv"
    path.write_text("a,b,label,prompt\nwet\x1b[31m moon,The moon was so dull that the tide stayed home.,a,A moon\n")
    command = ("audit", "--critic", "rules", "--data", "pairs", "--file", path)
    code, out, _ = run(*command)
    assert code == 0
    assert "tide" not in out
    code, out, _ = run(*command, "--examples", "2")
    assert code == 0
    assert "1. asked      A moon\n   people     wet·[31m moon" in out
    assert "critic     The moon was so dull that the tide stayed home." in out
    assert "\x1b" not in out


@pytest.mark.parametrize("place", ["new/folder/x.json", "new/folder/x.md", "new/cards"])
def test_the_command_writes_into_a_folder_that_is_not_there_yet(headlines, tmp_path, place):
    """It measured everything, then ended with "There is no file or folder" and nothing printed."""
    words = ["audit", "--critic", "rules", "--data", "humicroedit", "--file", headlines, "--context", 0]
    code, out, err = run(*words, "--limit", 4, "--out", tmp_path / place)
    assert code == 0 and "pair accuracy" in out, err
    assert (tmp_path / place).exists()


@pytest.mark.parametrize("command", ["audit", "card"])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_measured(command, headlines, tmp_path, monkeypatch):
    def measured(*rest, **more):
        raise AssertionError("it was measured")

    monkeypatch.setattr("humor_env.rewards.audits.audit.audit", measured)
    monkeypatch.setattr("humor_env.rewards.cards.card.make_card", measured)
    words = {
        "audit": ["audit", "--critic", "rules", "--data", "humicroedit", "--file", headlines],
        "card": ["card", "rules"],
    }[command]
    (tmp_path / "x.json").mkdir()
    places = [headlines / "x.json", headlines] + ([tmp_path / "x.json"] if command == "audit" else [])
    for place in places:
        code, _, err = run(*words, "--out", place)
        assert code == 2 and str(place if place.is_dir() else headlines) in err, err


def test_the_command_says_what_it_needs(headlines, tmp_path):
    code, _, err = run("audit", "--critic", "rules")
    assert (code, "needs --critic NAME, --data SET and --file PATH" in err) == (2, True)
    code, _, err = run("audit", "--critic", "rules", "--data", "hahackathon", "--file", headlines)
    assert (code, "no column text" in err) == (2, True)
    code, _, err = run("audit", "--critic", "rules", "--data", "humicroedit", "--file", headlines, "--max-cost", 1)
    assert (code, "spends nothing itself" in err) == (2, True)
    code, _, err = run("audit", "--critic", "rules", "--data", "humicroedit")
    assert (code, "Bundled, without --file: everyday-grades." in err) == (2, True)
    code, _, err = run("audit", "--critic", "rules", "--data", "everyday-grades", "--file", headlines)
    assert (code, "is part of this package and takes no file" in err) == (2, True)
    code, out, _ = run("audit", "--list")
    assert code == 0
    assert "humicroedit" in out
    code, _, err = run(
        "audit", "--critic", "rules", "--data", "humicroedit", "--file", headlines, "--surprisal", "/no/x"
    )
    assert (code, "could not be loaded" in err) == (2, True)


@pytest.mark.skipif("HUMOR_ENV_HUMICROEDIT" not in os.environ, reason="HUMOR_ENV_HUMICROEDIT names no folder")
def test_the_published_floors_and_ceilings_on_humicroedit():
    """Against the figures in the literature's and our own notes: one person about 62, a perfect critic about 75."""
    folder = os.environ["HUMOR_ENV_HUMICROEDIT"]
    report = audit("rules", load_rated("humicroedit", f"{folder}/task-2_dev.csv"))
    rows = {row.name: row for row in report.references}
    assert report.pairs.count == 2099
    assert rows["one person against the others"].accuracy == pytest.approx(0.62, abs=0.01)
    assert rows["ceiling: a perfect critic"].accuracy == pytest.approx(0.75, abs=0.01)
    assert rows["the longer line"].accuracy == pytest.approx(0.493, abs=0.001)
    rated = load_rated("humicroedit", f"{folder}/task-1_dev.csv")
    assert stats.krippendorff_alpha([t.raters for t in rated.texts]) == pytest.approx(0.192, abs=5e-4)
    assert stats.one_against_rest([t.raters for t in rated.texts]) == pytest.approx(0.30, abs=0.01)
