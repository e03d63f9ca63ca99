"""BRIO: margins by hand, what the ranking moves, and imitation beside it."""

import math

import pytest
import torch
from tiny import prompts, stir, student

from humor_env.agents.brio import BRIOConfig, brio_loss, train
from humor_env.agents.feedback.pairs import CriticAsJudge, PairConfig
from humor_env.agents.sft import encode
from humor_env.agents.student import IMITATION, POLICY
from humor_env.errors import InvalidOption
from humor_env.types import Demonstration, Judgement, Preference

LOG2 = math.log(2)


def scores_of(*lines, ranked=2, **options):
    """Lines of log-probabilities, each of its own length."""
    width = max(map(len, lines))
    logprobs = torch.tensor([[*line, *[9.0] * (width - len(line))] for line in lines])
    mask = torch.tensor([[1] * len(line) + [0] * (width - len(line)) for line in lines])
    return brio_loss(logprobs, mask, options.pop("pair_count", 1.0), ranked=ranked, **options)


def test_the_margin_by_hand():
    # Per token: -1.0 (two tokens) and -1.1 (three). The margin is log 2 / 5 = 0.1386, the lead only 0.1.
    loss, sums = scores_of([-0.5, -1.5], [-1.0, -1.0, -1.3], average_length=5.0)
    assert float(loss) == pytest.approx(LOG2 / 5 - 0.1, abs=1e-6)
    assert float(sums["margin"]) == pytest.approx(0.1, abs=1e-6)
    assert float(sums["ranked_right"]) == 1
    assert float(sums["chosen_score"]) == pytest.approx(-1.0)
    # The sums would say -2.0 against -3.3, a lead of 1.3: lengths must be divided out.
    assert float(scores_of([-0.5, -1.5], [-1.0, -1.0, -1.3], average_length=10.0)[0]) == 0
    # Turned round the lead is lost and owed: 0.1 + margin.
    turned, _ = scores_of([-1.0, -1.0, -1.3], [-0.5, -1.5], average_length=5.0, pair_count=4.0)
    assert float(turned) == pytest.approx((LOG2 / 5 + 0.1) / 4, abs=1e-6)


def test_at_the_average_length_the_better_line_must_be_twice_as_likely():
    """Lines of 4 tokens, lambda 4: the loss is 0 just where the likelihood ratio is 2."""
    for ratio, free in ((2.001, True), (1.999, False)):
        better = [math.log(ratio) / 4 - 2] * 4
        loss, _ = scores_of(better, [-2.0] * 4, average_length=4.0)
        assert (float(loss) == 0) is free


def test_ranked_lines_by_hand():
    # Scores -1, -1.2, -1.1; lambda 2. Margins: log 2 / 2 between neighbours, log 4 / 2 between first and third.
    loss, sums = scores_of([-1.0], [-1.2], [-1.1], ranked=3, average_length=2.0)
    assert float(sums["chosen_score"]) == pytest.approx(-1.0)
    assert float(sums["rejected_score"]) == pytest.approx(-1.1)  # of the last line
    assert float(sums["margin"]) == pytest.approx(0.1, abs=1e-6)
    expected = (-0.2 + LOG2 / 2) + (-0.1 + 2 * LOG2 / 2) + (0.1 + LOG2 / 2)
    assert float(loss) == pytest.approx(expected, abs=1e-6)
    # Three places apart the margin is log(2 x 3), not three times log 2: all alike, each pair owes its whole margin.
    loss, _ = scores_of(*[[-1.0]] * 4, ranked=4, average_length=2.0)
    assert float(loss) == pytest.approx((3 * LOG2 + 2 * math.log(4) + math.log(6)) / 2, abs=1e-6)


def some_preferences():
    return [Preference(p, "Glaciers overtook it.", "So cold that penguins.", 0.9, "people") for p in prompts(6)]


class Kept:
    def __init__(self):
        self.numbers = {}

    def metrics(self, step, numbers):
        self.numbers[step] = dict(numbers)

    def jokes(self, step, jokes, judgements):
        pass

    def rewind(self, step):
        pass


def test_ranking_and_imitation_both_move_the_student():
    """Each weight alone moves what it is about; the length is measured in tokens of the round's lines."""
    taught = [Demonstration(p, "My soup was slow.", "t") for p in prompts(6)]

    def after(ranking, imitation):
        one, log = student(), Kept()
        stir(one, IMITATION)
        one.start_policy_from_imitation()
        config = BRIOConfig(
            epochs=10, batch_size=6, learning_rate=1e-2, ranking_weight=ranking, imitation_weight=imitation
        )
        train(config, None, one, log, preferences=some_preferences(), demonstrations=taught)
        rows = encode(one, taught)
        liking = one.score_in_batches(rows, adapter=POLICY).logprobs.sum()
        was = one.score_in_batches(rows, adapter=IMITATION).logprobs.sum()
        return log.numbers, float(liking - was)

    numbers, untaught = after(10.0, 0.0)
    one = student()
    lengths = [len(one.encode_response(t)) for t in ("Glaciers overtook it.", "So cold that penguins.")]
    assert numbers[1]["update/average_length"] == sum(lengths) / 2
    assert numbers[10]["update/margin"] > numbers[1]["update/margin"] + 1e-3
    assert numbers[10]["update/ranking_loss"] < numbers[1]["update/ranking_loss"]
    unranked, taught_gain = after(0.0, 1.0)
    assert taught_gain > max(1, 2 * untaught)
    assert unranked[10]["update/ranking_loss"] > 2 * numbers[10]["update/ranking_loss"]


def test_the_average_length_may_be_given_and_a_step_imitates_so_many_lines():
    """Six lines a step and one line a step are different steps; all of a step's pairs are the same."""
    taught = [Demonstration(p, f"My soup was slow {i}.", "t") for i, p in enumerate(prompts(6))]

    def after(count):
        one, log = student(), Kept()
        config = BRIOConfig(epochs=1, batch_size=6, learning_rate=1e-2, average_length=7.5, imitation_batch_size=count)
        train(config, None, one, log, preferences=some_preferences(), demonstrations=taught)
        assert log.numbers[1]["update/average_length"] == 7.5
        return log.numbers[1]["update/grad_norm"]

    assert after(6) == after(7) != after(1)


def test_teacher_pairs_rank_the_teachers_lines():
    """No line is asked of the student, and only lines of the teacher are ranked."""
    taught = [Demonstration(p, text, "t") for p in prompts(4) for text in ("aa aa", "bb bb")]
    seen = []

    def critic(jokes):
        seen.extend(j.text for j in jokes)
        return [Judgement("c", 1.0 if j.text == "bb bb" else 0.0) for j in jokes]

    log = Kept()
    config = BRIOConfig(epochs=1, pairs_of="teacher", pairs=PairConfig())
    train(config, CriticAsJudge(critic), student(), log, prompts=prompts(4), demonstrations=taught)
    assert set(seen) == {"aa aa", "bb bb"}
    assert log.numbers[1]["feedback/samples"] == 0
    assert log.numbers[1]["feedback/preferences"] == 4


@pytest.mark.parametrize(
    "wrong",
    [
        {"pairs_of": "nobody"},
        {"pairs_of": "teacher", "rounds": 2},
        {"average_length": 0},
        {"epochs": 0},
        {"imitation_batch_size": 0},
    ],
)
def test_impossible_settings_are_explained(wrong):
    with pytest.raises(InvalidOption):
        BRIOConfig(**wrong)


def test_imitating_nothing_is_refused():
    with pytest.raises(InvalidOption, match="demonstrations"):
        train(BRIOConfig(), None, student(), preferences=some_preferences())
