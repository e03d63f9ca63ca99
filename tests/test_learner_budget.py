"""What a benchmark derives from its spec, by hand: the steps of each learner, and who judges in the end."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from humor_env import registry
from humor_env.agents.student.sampling import Sampling
from humor_env.errors import InvalidOption
from humor_env.experiments.compare.bias_judges import OneOrder, make_critic_judge
from humor_env.experiments.compare.identities import identities_of
from humor_env.experiments.compare.learner_budget import BudgetTable, LearnerTable, fit_budget
from humor_env.prompts import load_prompts
from humor_env.types import Joke, Judgement, Prompt


@dataclass(frozen=True)
class Steps:
    steps: int = 100
    batch_size: int = 8
    evaluate_every: int = 0


@dataclass(frozen=True)
class NoEvaluations:
    steps: int = 100
    batch_size: int = 8


@dataclass(frozen=True)
class Candidates:
    candidates: int = 6


@dataclass(frozen=True)
class Rounds:
    rounds: int = 2
    prompts_per_round: int = 50
    pairs: Candidates = field(default_factory=Candidates)
    epochs: int = 3
    batch_size: int = 4
    evaluate_every: int = 0


@dataclass(frozen=True)
class OfTeacher(Rounds):
    pairs_of: str = "teacher"


@dataclass(frozen=True)
class Both:
    first: Steps = field(default_factory=Steps)
    sampling: Sampling = field(default_factory=Sampling)
    second: Rounds = field(default_factory=Rounds)
    rate: float = 0.1


WRITES = LearnerTable(name="mine")
HALF = LearnerTable(name="mine", budget=0.5)


@pytest.mark.parametrize(
    ("config", "given", "budget", "learner", "fitted"),
    [
        # 100 lines are 12 steps of 8, measured every sixth.
        (Steps, {}, {"samples": 100, "evaluations": 2}, WRITES, {"steps": 12, "evaluate_every": 6}),
        (Steps, {}, {"samples": 100, "evaluations": 5}, WRITES, {"steps": 12, "evaluate_every": 2}),
        (Steps, {}, {"samples": 100, "evaluations": 50}, WRITES, {"steps": 12, "evaluate_every": 1}),
        (Steps, {}, {"samples": 640}, WRITES, {"steps": 80, "evaluate_every": 10}),
        (Steps, {"batch_size": 50}, {"samples": 100}, WRITES, {"batch_size": 50, "steps": 2, "evaluate_every": 1}),
        (Steps, {"evaluate_every": 5}, {"samples": 100}, WRITES, {"evaluate_every": 5, "steps": 12}),
        (Steps, {}, {"samples": 100, "evaluations": 3}, HALF, {"steps": 6, "evaluate_every": 2}),
        (Steps, {}, {"samples": 100, "judgements": 40, "evaluations": 5}, WRITES, {"steps": 5, "evaluate_every": 1}),
        (Steps, {}, {"judgements": 16, "samples": 999}, WRITES, {"steps": 2, "evaluate_every": 1}),
        (Steps, {}, {"seconds": 9.0}, WRITES, {}),
        (NoEvaluations, {}, {"samples": 8}, WRITES, {"steps": 1}),
        # 120 lines are ten prompts for each of two rounds of six lines. Three passes over 2/3 of ten are 5 steps of 4.
        (Rounds, {}, {"samples": 120, "evaluations": 2}, WRITES, {"prompts_per_round": 10, "evaluate_every": 2}),
        (Rounds, {}, {"samples": 120, "evaluations": 9}, WRITES, {"prompts_per_round": 10, "evaluate_every": 1}),
        (Rounds, {}, {"samples": 1200, "evaluations": 5}, HALF, {"prompts_per_round": 50, "evaluate_every": 5}),
        # A pair is a judgement for each prompt and round.
        (Rounds, {}, {"samples": 120, "judgements": 8}, WRITES, {"prompts_per_round": 4, "evaluate_every": 1}),
        (Rounds, {}, {"judgements": 8}, HALF, {"prompts_per_round": 2, "evaluate_every": 1}),
        (Rounds, {}, {}, WRITES, {}),
        (
            Rounds,
            {"pairs": {"candidates": 2}, "rounds": 5, "epochs": 30, "batch_size": 1},
            {"samples": 20, "evaluations": 4},
            WRITES,
            {"prompts_per_round": 2, "evaluate_every": 10},
        ),
        (OfTeacher, {"epochs": 2}, {"samples": 120}, WRITES, {"epochs": 2}),
        (OfTeacher, {"pairs_of": "student"}, {"samples": 12}, WRITES, {"prompts_per_round": 1, "evaluate_every": 1}),
        (
            Both,
            {"second": {"rounds": 1}},
            {"samples": 120, "evaluations": 3},
            WRITES,
            {
                "first": {"steps": 15, "evaluate_every": 5},
                "second": {"rounds": 1, "prompts_per_round": 20, "evaluate_every": 3},
            },
        ),
        (Both, {}, {}, WRITES, {}),
    ],
)
def test_what_a_budget_allows(config, given, budget, learner, fitted):
    before = dict(given)
    assert fit_budget(config, given, BudgetTable(**budget), learner) == given | fitted
    assert given == before, "the spec's own table stays as it is"


@pytest.mark.parametrize(
    ("config", "given", "budget", "said"),
    [
        (Steps, {"steps": 5}, {"samples": 9}, "The learner 'mine' sets steps = 5, which follows from"),
        (Rounds, {"prompts_per_round": 5}, {"samples": 90}, "sets prompts_per_round = 5"),
        (Steps, {}, {"samples": 7}, "The budget of the learner 'mine' is too small for a step of 8"),
        (Rounds, {}, {"samples": 11}, "too small for 2 rounds of 6 lines"),
        (Rounds, {"rounds": 9}, {"judgements": 8}, "too small for 9 rounds of 6 lines"),
    ],
)
def test_a_budget_that_does_not_fit(config, given, budget, said):
    with pytest.raises(InvalidOption, match=said):
        fit_budget(config, given, BudgetTable(**budget), WRITES)


def test_tables_of_a_benchmark_and_what_they_are_by_default():
    assert BudgetTable().model_dump() == {
        "samples": None,
        "judgements": None,
        "seconds": None,
        "cost": None,
        "evaluations": 8,
    }
    assert (WRITES.registered, LearnerTable(name="a", learner="ppo").registered) == ("mine", "ppo")
    assert (WRITES.budget, WRITES.settings, WRITES.feedback) == (1.0, {}, None)
    for wrong in ({"samples": 0}, {"evaluations": 0}, {"seconds": 0}, {"cost": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            BudgetTable(**wrong)
    for wrong in ({"name": "a/b"}, {"name": ""}, {"name": "a", "budget": 0}, {"name": "a", "budget": 1.1}):
        with pytest.raises(ValueError, match="validation error"):
            LearnerTable(**wrong)


# Who judges in the end


@pytest.mark.parametrize(
    ("name", "options", "found"),
    [
        ("rules", {}, {("rules", "")}),
        ("win-tie", {"judge": "pocket-crowd", "teacher": "x"}, {("pocket-crowd", "")}),
        ("lift", {}, {("pocket", "")}),
        ("lift", {"critic": "rules"}, {("rules", "")}),
        ("mix", {"critics": ["rules", {"critic": "lift", "options": {"critic": "novelty"}}]}, {"rules", "novelty"}),
        ("humor_env.rewards.pocket:PocketCritic", {}, {("pocket", "")}),
        ("cheap-first", {"cheap": "pocket", "paid": "pocket-crowd"}, {"pocket", "pocket-crowd"}),
        ("scorer", {"client": "anthropic:a"}, {("scorer", "anthropic:a")}),
        ("scorer", {"client": "anthropic-batch:a"}, {("scorer", "anthropic:a")}),
        ("scorer", {"client": "openai:m@http://a/v1//"}, {("scorer", "openai:m@http://a/v1")}),
        ("scorer", {"client": "openai:m"}, {("scorer", "openai:m")}),
        ("scorer", {"client": "odd"}, {("scorer", "odd")}),
        ("scorer", {"client": "local:./x/../model/"}, {("scorer", "local:model")}),
        ("reward-model", {"folder": "no/such//../folder/"}, {("reward-model", "no/folder")}),
        ("win-tie", {"judge": "reward-model", "judge_options": {"folder": "one"}}, {("reward-model", "one")}),
    ],
)
def test_the_models_that_judge_in_the_end(name, options, found):
    named = {each if isinstance(each, tuple) else (each, "") for each in found}
    assert identities_of(name, options) == named


def test_a_judge_and_a_critic_of_one_name_are_told_apart_by_their_kind():
    assert identities_of("tournament", {"judge": "pocket-crowd"}, registry.critics) == {("pocket-crowd", "")}
    assert identities_of("pocket", {}, registry.judges) == identities_of("pocket", {}, registry.critics)
    assert identities_of("jury", {"judges": ["pocket-crowd", "pocket"]}) == {("pocket-crowd", ""), ("pocket", "")}


JOKES = [Joke(Prompt("p", "The bus was late."), text) for text in ("Glaciers overtook it.", "x", "x")]


def test_a_critic_judges_by_its_scores():
    """Of a line that keeps the rules and one that does not, of two that are the same, and of one turned round."""
    pairs = [(JOKES[0], JOKES[1]), (JOKES[1], JOKES[2]), (JOKES[1], JOKES[0])]
    assert [v.probability for v in make_critic_judge("test_learner_budget:by_length")(pairs)] == [1.0, 0.5, 0.0]


class ByLength:
    """Longer lines score higher; with a sign of -1 shorter ones do."""

    def __init__(self, sign: int = 1) -> None:
        self.name, self.sign = "by-length", sign

    def __call__(self, jokes):
        return [Judgement("by-length", 0.5 + self.sign * len(j.text) / 1000) for j in jokes]


by_length = ByLength()


def test_a_critic_judge_has_the_options_that_it_is_given():
    [verdict] = make_critic_judge("test_learner_budget:ByLength", {"sign": -1})([(JOKES[0], JOKES[1])])
    assert verdict.probability == 0.0
    [verdict] = make_critic_judge("test_learner_budget:ByLength")([(JOKES[0], JOKES[1])])
    assert verdict.probability == 1.0


def test_a_judge_in_one_order_keeps_its_preference_for_a_place():
    """Asked in both orders the preference for the first place cancels; it has the options that it is given."""
    options = {"noise": 0.0, "length_bias": 0.0, "position_bias": 50.0}
    once = OneOrder("pocket-crowd", options)
    assert once.name == f"{registry.judges.make('pocket-crowd', **options).name}, one order"
    a, b = (Joke(load_prompts("pocket").split("test")[0], text) for text in ("A walrus.", "An otter."))
    pair, turned = (a, b), (b, a)
    assert [v.probability for v in once([pair, turned])] == [1.0, 1.0]
    back = OneOrder("pocket-crowd", options | {"position_bias": -50.0})
    assert [v.probability for v in back([pair, turned])] == [0.0, 0.0]
    with pytest.raises(InvalidOption, match="The judge 'pocket' has no method `ask` for one order"):
        OneOrder("pocket")
