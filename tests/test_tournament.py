import math
from itertools import permutations

import numpy as np
import pytest

from humor_env.errors import CriticContractError, InvalidOption
from humor_env.rewards.tournament import TournamentCritic, strengths
from humor_env.types import Joke, Prompt, Usage, Verdict

P, Q = Prompt("p", "The meeting was slow."), Prompt("q", "The soup was cold.")


class Scale:
    """A judge with a known truth: a text is a number w, and the first wins with probability w1 / (w1 + w2)."""

    name = "scale"

    def __init__(self, fail=()):
        self.fail = set(fail)
        self.calls = []

    def __call__(self, pairs):
        self.calls.append([(a.text, b.text) for a, b in pairs])
        return [self.verdict(float(a.text), float(b.text), {a.text, b.text}) for a, b in pairs]

    def verdict(self, a, b, texts):
        if self.fail & texts:
            return Verdict("scale", None, error="overloaded", usage=Usage(calls=2, cost=0.5))
        return Verdict("scale", a / (a + b), usage=Usage(calls=2, cost=0.5))


def jokes(*numbers, prompt=P):
    return [Joke(prompt, str(n)) for n in numbers]


def test_strengths_recover_three_items_by_hand():
    """With weights 4 : 2 : 1 the win shares are 4/6, 4/5 and 2/3; a vanishing prior leaves log 2 between neighbours."""
    wins = np.array([[0, 4 / 6, 4 / 5], [2 / 6, 0, 2 / 3], [1 / 5, 1 / 3, 0]])
    t = strengths(wins, prior=1e-7)
    assert t[0] - t[1] == pytest.approx(math.log(2), abs=1e-6)
    assert t[1] - t[2] == pytest.approx(math.log(2), abs=1e-6)


def test_the_prior_gives_a_clean_sweep_a_finite_strength_by_hand():
    """Two items, one game, a beats b, prior 1: by symmetry t_b = -t_a = -t, and the derivative
    1 - s(2t) + 1/2 - s(t) is zero where x = e^t solves x^3 - x^2 - x - 3 = 0: x = 2.1304."""
    t = strengths(np.array([[0.0, 1.0], [0.0, 0.0]]), prior=1.0)
    x = math.exp(t[0])
    assert x**3 - x**2 - x - 3 == pytest.approx(0, abs=1e-9)
    assert t[1] == pytest.approx(-t[0], abs=1e-12)


def test_newton_agrees_with_the_slow_mm_iteration():
    rng = np.random.default_rng(3)
    n, prior = 6, 0.7
    wins = rng.integers(0, 4, (n, n)) * rng.random((n, n))
    np.fill_diagonal(wins, 0)
    pi = [1.0] * n
    for _ in range(5000):  # minorise-maximise, with the average sibling (weight 1) as one more opponent
        pi = [
            (sum(wins[i]) + prior / 2)
            / (sum((wins[i][j] + wins[j][i]) / (pi[i] + pi[j]) for j in range(n) if j != i) + prior / (pi[i] + 1))
            for i in range(n)
        ]
    assert strengths(wins, prior) == pytest.approx(np.log(pi), abs=1e-8)


def test_extreme_tables_converge():
    wins = np.triu(np.full((40, 40), 50.0), 1)
    t = strengths(wins, prior=0.01)
    assert np.isfinite(t).all()
    assert (np.diff(t) < 0).all()
    assert strengths(np.zeros((3, 3))) == pytest.approx(np.zeros(3))


@pytest.mark.parametrize(
    ("wins", "prior"),
    [(np.zeros((2, 3)), 1.0), (-np.ones((2, 2)), 1.0), (np.full((2, 2), np.nan), 1.0), (np.zeros((2, 2)), 0.0)],
)
def test_bad_tables_are_refused(wins, prior):
    with pytest.raises(InvalidOption):
        strengths(wins, prior)


def test_round_robin_asks_each_pair_once_and_scores_by_strength():
    judge = Scale()
    judgements = TournamentCritic(judge=judge, prior=1e-7)(jokes(4, 1, 2))
    assert len(judge.calls) == 1
    assert sorted(tuple(sorted(pair)) for pair in judge.calls[0]) == [("1", "2"), ("1", "4"), ("2", "4")]
    four, one, two = judgements
    # A vanishing prior centres sum(s(t) - 1/2) on 0; by symmetry of 4:2:1 the middle one sits at exactly 1/2.
    assert two.score == pytest.approx(0.5, abs=1e-6)
    assert four.score == pytest.approx(2 / 3, abs=1e-6)
    assert one.score == pytest.approx(1 / 3, abs=1e-6)
    assert four.parts["won"] == pytest.approx((4 / 5 + 4 / 6) / 2)
    assert four.parts["games"] == 2


def test_prompts_do_not_play_against_each_other_and_play_together():
    judge = Scale()
    mixed = [Joke(P, "4"), Joke(Q, "9"), Joke(P, "1"), Joke(Q, "3")]
    judgements = TournamentCritic(judge=judge)(mixed)
    assert [sorted(map(sorted, call)) for call in judge.calls] == [[["1", "4"], ["3", "9"]]]
    assert judgements[0].score > 0.5 > judgements[2].score
    assert judgements[1].score > 0.5 > judgements[3].score


def test_the_order_of_siblings_changes_nothing():
    critic = TournamentCritic(judge=Scale(), pairing="swiss", rounds=2)
    wanted = {j.text: s.score for j, s in zip(jokes(5, 3, 2, 1), critic(jokes(5, 3, 2, 1)), strict=True)}
    for order in permutations((5, 3, 2, 1)):
        found = {j.text: s.score for j, s in zip(jokes(*order), critic(jokes(*order)), strict=True)}
        assert found == wanted


def test_siblings_with_one_text_are_one_player_and_paid_once():
    judge = Scale()
    judgements = TournamentCritic(judge=judge)(jokes(4, 1, 4))
    assert len(judge.calls[0]) == 1
    assert judgements[0].score == judgements[2].score
    assert sum(j.usage.calls for j in judgements) == 2
    assert sum(j.usage.cost for j in judgements) == 0.5


def test_swiss_needs_few_games_never_repeats_one_and_still_finds_the_best():
    judge = Scale()
    numbers = [2**k for k in range(16)]
    judgements = TournamentCritic(judge=judge)(jokes(*numbers))  # more than `small`: Swiss
    played = [frozenset(pair) for call in judge.calls for pair in call]
    assert len(judge.calls) == 6  # log2(16) + 2 rounds
    assert all(len(call) >= 7 for call in judge.calls)  # two who have met already may have to sit out
    assert len(set(played)) == len(played) <= 48  # of 120
    scores = [j.score for j in judgements]
    assert int(np.argmax(scores)) == 15
    assert int(np.argmin(scores)) == 0
    assert np.corrcoef(np.argsort(np.argsort(scores)), range(16))[0, 1] > 0.9


def test_the_largest_small_group_still_plays_everybody():
    for small, calls in ((8, [28]), (7, [4, 4, 4, 4, 4])):
        judge = Scale()
        TournamentCritic(judge=judge, small=small)(jokes(*[2**k for k in range(8)]))
        assert [len(call) for call in judge.calls] == calls
    judge = Scale()
    TournamentCritic(judge=judge, small=2, rounds=1)(jokes(1, 2))
    assert judge.calls == [[("1", "2")]] or judge.calls == [[("2", "1")]]


def test_swiss_with_an_odd_number_and_more_rounds_than_opponents_ends():
    judge = Scale()
    judgements = TournamentCritic(judge=judge, pairing="swiss", rounds=9)(jokes(1, 2, 3))
    played = [frozenset(pair) for call in judge.calls for pair in call]
    assert len(set(played)) == len(played) == 3
    assert [j.score for j in judgements] == sorted(j.score for j in judgements)


def test_a_lone_joke_has_no_score():
    [judgement] = TournamentCritic(judge=Scale())(jokes(4))
    assert judgement.failed
    assert "at least two" in judgement.error
    assert all(j.failed for j in TournamentCritic(judge=Scale())(jokes(4, 4)))


def test_failed_verdicts_are_left_out_and_a_line_without_any_has_no_score():
    judgements = TournamentCritic(judge=Scale(fail={"1"}), prior=1e-7)(jokes(4, 1, 2))
    assert judgements[1].failed
    assert judgements[1].error == "overloaded"
    # 4 against 2 alone: log 2 between them, centred: s(log(2) / 2).
    assert judgements[0].score == pytest.approx(1 / (1 + 2**-0.5), abs=1e-6)
    assert sum(j.usage.calls for j in judgements) == 6


def test_options_for_the_judge_reach_it():
    one = TournamentCritic(judge="jury", judge_options={"judges": ["pocket", "pocket", "pocket-crowd"]})
    assert len(one.judge.judges) == 3


def test_bad_options_and_bad_judges_are_refused():
    for options in ({"pairing": "knockout"}, {"rounds": 0}, {"small": 1}, {"prior": 0}):
        with pytest.raises(InvalidOption):
            TournamentCritic(judge=Scale(), **options)
    with pytest.raises(CriticContractError, match="3 pairs and returned a list of 0"):
        TournamentCritic(judge=lambda pairs: [])(jokes(1, 2, 3))
