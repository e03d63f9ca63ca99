import math

import numpy as np
import pytest

from humor_env.agents.feedback.pairs import verdicts_with_words
from humor_env.episodes.verdicts import checked_verdicts
from humor_env.errors import CriticContractError, InvalidOption
from humor_env.registry import judges
from humor_env.rewards.jury import Jury
from humor_env.rewards.shared.both_orders import both_orders
from humor_env.types import Joke, Prompt, Usage, Verdict

P = Prompt("p", "The meeting was slow.")
PAIR = (Joke(P, "first"), Joke(P, "second"))


def says(probability, tie=0.0, flipped=None, name="member"):
    def judge(pairs):
        usage = Usage(calls=1)
        if probability is None:
            return [Verdict(name, None, error="overloaded", usage=usage) for _ in pairs]
        return [Verdict(name, probability, tie=tie, flipped=flipped, usage=usage) for _ in pairs]

    judge.__name__ = name
    return judge


def one(judges, **options):
    [verdict] = Jury(judges, **options)([PAIR])
    return verdict


def test_mean_and_disagreement_by_hand():
    verdict = one([says(0.9, tie=0.3), says(0.6), says(0.3)])
    assert verdict.probability == pytest.approx(0.6)
    assert verdict.disagreement == pytest.approx(math.sqrt((0.3**2 + 0.0 + 0.3**2) / 3))
    assert verdict.tie == pytest.approx(0.1)
    assert verdict.votes == (0.9, 0.6, 0.3)
    assert verdict.usage.calls == 3
    assert verdict.judge == "jury"
    assert "2 of 3 judges prefer the first" in verdict.reason


def test_weights_count():
    verdict = one([{"judge": says(1.0), "weight": 3}, {"judge": says(0.0)}])
    assert verdict.probability == pytest.approx(0.75)
    assert verdict.disagreement == pytest.approx(math.sqrt(0.75 * 0.25**2 + 0.25 * 0.75**2))


def test_of_one_mind_there_is_no_disagreement_and_split_halves_have_the_most():
    assert one([says(0.7), says(0.7)]).disagreement == 0.0
    split = one([says(1.0), says(0.0), says(0.5)])
    assert "1 of 3 judges prefer the first" in split.reason
    assert one([says(1.0), says(0.0)]).disagreement == 0.5
    sure = one([says(1.0, tie=1.0), says(1.0, tie=1.0)])
    assert (sure.probability, sure.tie) == (1.0, 1.0)


def test_failed_judges_are_left_out_down_to_the_quorum():
    half = one([says(0.8), says(None, name="late")])
    assert half.probability == 0.8
    assert half.votes == (0.8, None)
    assert half.usage.calls == 2
    third = one([says(0.8), says(None, name="late"), says(None, name="ill")])
    assert third.failed
    assert third.error == "late: overloaded; ill: overloaded"
    assert third.usage.calls == 3
    assert one([says(0.8), says(None), says(None)], quorum=0.3).probability == 0.8
    assert one([says(0.8), {"judge": says(None), "weight": 3}]).failed
    assert one([says(None)]).failed


def test_a_jury_flips_where_half_of_its_judges_do_and_unknown_stays_unknown():
    """With a flip of any judge, five that flip on 15 % of pairs were a jury that flips on 56 %."""
    assert one([says(0.5, flipped=False), says(0.5, flipped=False), says(0.5, flipped=True)]).flipped is False
    assert one([says(0.5), says(0.5)]).flipped is None
    assert one([says(0.5, flipped=False), says(0.5)]).flipped is False
    assert one([says(0.5, flipped=False), says(0.5, flipped=True)]).flipped is True


def test_it_is_made_by_name_and_keeps_the_order_of_pairs():
    jury = judges.make("jury", judges=["pocket", {"judge": "pocket", "options": {}}])
    good, plain = Joke(P, "The meeting was so slow that glaciers overtook it."), Joke(P, "The meeting was slow.")
    assert [v.probability for v in jury([(good, plain), (plain, good), (good, good)])] == [1.0, 0.0, 0.5]
    assert jury([]) == []


@pytest.mark.parametrize(
    ("seats", "says_what"),
    [
        ([], "at least one"),
        ("pocket", "must be a list"),
        ([{"judge": "pocket", "wieght": 1}], "Did you mean 'weight'"),
        ([{"weight": 1}], "must name its judge"),
        *(([{"judge": "pocket", "weight": w}], "above 0") for w in (0, -1, True, "2", None, math.nan, math.inf)),
    ],
)
def test_bad_juries_are_refused(seats, says_what):
    with pytest.raises(InvalidOption, match=says_what):
        Jury(seats)


def test_judges_that_answer_in_numpy_and_one_odd_verdict():
    """`Verdict("m", np.float64(0.7))` ended `both_orders` with "numpy boolean subtract is not supported"."""

    def ask(pairs):
        return [Verdict("m", np.float64(0.7)) for _ in pairs]

    [verdict] = both_orders(ask, [PAIR], "m")
    assert (verdict.probability, verdict.flipped) == (0.5, True)

    def wobbly(pairs):
        return [Verdict("wobbly", 0.25), 0.7]

    with pytest.raises(CriticContractError, match=r"must return humor_env\.Verdict objects, found a float"):
        checked_verdicts(lambda pairs: [0.7], [PAIR])
    found = Jury([wobbly, lambda pairs: ask(pairs)])([PAIR, PAIR])
    assert found[0].probability == pytest.approx((0.25 + 0.7) / 2)
    assert found[1].probability == pytest.approx(0.7)
    with pytest.raises(CriticContractError, match="found a float"):
        Jury([lambda pairs: [0.7, 0.7]])([PAIR, PAIR])
    with pytest.raises(CriticContractError, match=r"The judge .m. must return .* found a float"):
        both_orders(lambda pairs: [0.7, 0.7], [PAIR], "m")


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        ([0.7, 0.6], "must return humor_env.Verdict objects, found a float"),
        ([Verdict("m", 0.5)], "was given 2 pairs and returned a list of 1"),
        (None, "must return a list of verdicts, found NoneType"),
    ],
)
def test_a_judge_that_breaks_its_contract_is_told_what_to_return(reply, complaint):
    """Learners from pairs ended in "'float' object has no attribute 'probability'"."""
    for ask in (checked_verdicts, verdicts_with_words):
        with pytest.raises(CriticContractError, match=complaint):
            ask(lambda pairs: reply, [PAIR, PAIR])
    with pytest.raises(CriticContractError, match="is a str, which is not callable"):
        checked_verdicts("pocket", [PAIR])
    assert checked_verdicts(lambda pairs: 1 / 0, []) == []


def test_bad_quorum_and_broken_judges():
    with pytest.raises(InvalidOption, match="quorum"):
        Jury(["pocket"], quorum=0)
    with pytest.raises(CriticContractError, match="1 pairs and returned a list of 0"):
        Jury([lambda pairs: []])([PAIR])
