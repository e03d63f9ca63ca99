"""The critic `lift`: by hand, what one line for all prompts earns, what is asked and paid, specs and dry runs."""

import pytest
from test_costs import CHEAP, spec
from test_critic_contract import Reader

from humor_env.errors import InvalidOption
from humor_env.experiments.options import fill
from humor_env.experiments.runs import costs
from humor_env.experiments.runs.ingredients import Ingredients
from humor_env.registry import critics
from humor_env.rewards.cards.built_in import find_card
from humor_env.rewards.lift import LiftCritic
from humor_env.types import Joke, Judgement, Prompt, Usage

PROMPTS = [Prompt(f"p{i}", f"Sentence number {i}.") for i in range(9)]


class Counting:
    """A critic that writes down what it is asked; `score` is of a joke."""

    name = "counting"

    def __init__(self, score):
        self.score, self.calls = score, []

    def __call__(self, jokes):
        self.calls.append(list(jokes))
        found = [self.score(j) for j in jokes]
        return [
            Judgement("counting", None, error="lost") if s is None else Judgement("counting", s, usage=Usage(1, 10, 1))
            for s in found
        ]


def test_the_score_counts_by_hand():
    """0.9 with its own prompt; the others pay 0.1 × their number: with all eight others their mean is known."""
    inner = Counting(lambda j: 0.9 if j.prompt.id == "p0" else int(j.prompt.id[1:]) / 10)
    [found] = LiftCritic(PROMPTS, inner, others=8)([Joke(PROMPTS[0], "a line")])
    assert found.parts == pytest.approx({"own": 0.9, "others": 0.45, "lift": 0.45})
    assert found.score == pytest.approx((1 + 0.45) / 2)
    assert found.reason == "0.90 with its own prompt, 0.45 with 8 others"


def test_one_line_for_all_prompts_earns_the_middle_and_a_fitting_one_more():
    """The critic without context: it likes "hair" whatever was asked. Nothing is to be won by it."""
    likes = Counting(lambda j: 0.8 if j.text == "hair" else 0.6 if j.text[-1] == j.prompt.text[-2] else 0.3)
    lift = LiftCritic(PROMPTS, likes)
    assert [j.score for j in lift([Joke(p, "hair") for p in PROMPTS])] == [0.5] * 9
    assert [j.score for j in lift([Joke(p, f"fits {p.id[1]}") for p in PROMPTS])] == pytest.approx([0.65] * 9)


def test_all_is_asked_at_once_each_question_once_and_siblings_meet_the_same_others():
    inner = Counting(lambda j: 0.5)
    lift = LiftCritic(PROMPTS, inner, others=3)
    jokes = [Joke(PROMPTS[0], "a"), Joke(PROMPTS[0], "b"), Joke(PROMPTS[1], "a"), Joke(PROMPTS[0], "a")]
    found = lift(jokes)
    [asked] = inner.calls
    assert len(asked) == len({(j.prompt.id, j.text) for j in asked})
    others = {t: {j.prompt.id for j in asked if j.text == t} for t in "ab"}
    assert others["b"] <= others["a"] and len(others["b"]) == 4
    # What was asked once is paid once, and none of it is lost.
    assert sum(j.usage.calls for j in found) == len(asked) and found[3].usage.calls == 0
    lift(jokes[:1])
    assert {j.prompt.id for j in inner.calls[1]} == others["b"], "a verdict repeats"
    assert LiftCritic(PROMPTS, inner, others=3, seed=1)._others(PROMPTS[0]) != lift._others(PROMPTS[0])
    assert lift([]) == []


def test_a_cut_line_is_a_cut_line_under_every_prompt():
    """The others were asked about the line as if it were whole: around `rules` a cut line got 0 and 1. And of two lines
    of one text, one of them cut, both got the verdict of the first."""
    cut, whole = Joke(PROMPTS[0], "a line", stop_reason="length"), Joke(PROMPTS[0], "a line", stop_reason="end")
    inner = Counting(lambda j: 0.0 if j.stop_reason == "length" else 0.9 if j.prompt.id == "p0" else 0.5)
    lift = LiftCritic(PROMPTS, inner, others=2)
    assert [j.parts for j in lift([cut])] == [{"own": 0.0, "others": 0.0, "lift": 0.0}]
    for jokes in ([cut, whole], [whole, cut]):
        scores = dict(zip((j.stop_reason for j in jokes), (found.score for found in lift(jokes)), strict=True))
        assert scores == pytest.approx({"length": 0.5, "end": 0.7})


def test_a_failure_is_no_score():
    own = LiftCritic(PROMPTS, Counting(lambda j: None if j.prompt.id == "p0" else 0.5))
    [found] = own([Joke(PROMPTS[0], "a")])
    assert found.failed and found.error == "counting: lost"
    others = LiftCritic(PROMPTS, Counting(lambda j: 0.5 if j.prompt.id == "p0" else None))
    assert others([Joke(PROMPTS[0], "a")])[0].failed
    some = LiftCritic(PROMPTS, Counting(lambda j: None if j.prompt.id > "p4" else 0.5), others=8)
    assert some([Joke(PROMPTS[0], "a")])[0].reason == "0.50 with its own prompt, 0.50 with 4 others"


def test_bad_options_are_refused():
    with pytest.raises(InvalidOption, match="needs 9 other prompts; found 9 prompts in all"):
        LiftCritic(PROMPTS, others=9)
    with pytest.raises(InvalidOption, match="at least 1; found 0"):
        LiftCritic(PROMPTS, others=0)
    with pytest.raises(InvalidOption, match="found True"):
        LiftCritic(PROMPTS, others=True)
    twins = [Prompt(f"q{i}", "One and the same.") for i in range(9)]
    with pytest.raises(InvalidOption, match="found 1 prompts in all"):
        LiftCritic(twins)


AROUND = f"""
    [[critic]]
    critic = "lift"
    options = {{ critic = "scorer", critic_options = {CHEAP}, others = 3 }}
"""


def test_a_run_gives_it_its_prompts_ledger_and_limits_and_a_dry_run_prices_it(tmp_path, monkeypatch):
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    made = spec('name = "grpo"\nsteps = 3\nbatch_size = 16', AROUND + "\n[budget]\nmax_calls = 50\n")
    [item] = costs.estimate_spec(made)
    assert (item.who, item.lines) == ("lift, scorer", 2 * 3 * 16 * 4)
    assert item.calls == pytest.approx(item.lines) and item.cost > 0
    assert costs.check_without_paying(made) == []
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-none")
    parts = Ingredients(made, tmp_path)
    lift = parts.train_critic
    assert {p.split for p in lift.prompts} == {"train"} and len(lift.prompts) == len(parts.prompts.split("train"))
    assert lift.critic.ledgered.budget.max_calls == 50
    parts.close()
    assert (tmp_path / "ledger.sqlite").exists()


def test_the_ledger_answers_what_comes_again(tmp_path):
    class Asked(Reader):
        asked = 0

        def __call__(self, requests, on_reply=None):
            Asked.asked += len(requests)
            return super().__call__(requests, on_reply)

    options = {"client": Asked(), "ledger": str(tmp_path / "l.sqlite")}
    filled = fill(
        critics, "lift", {"critic": "scorer", "critic_options": options}, ledger="x", limits={"max_calls": 9}, scope="s"
    )
    assert filled["critic_options"] == options | {"budget": {"max_calls": 9, "scope": "s"}}
    lift = critics.make("lift", prompts=PROMPTS, critic="scorer", critic_options=options)
    first = lift([Joke(p, "hair") for p in PROMPTS])
    count = Asked.asked
    assert count == 9, "one line under nine prompts"
    assert [j.score for j in lift([Joke(p, "hair") for p in PROMPTS])] == [j.score for j in first]
    assert Asked.asked == count
    lift.close()


def test_the_card_of_one_is_not_that_of_another():
    mine = find_card("lift", {"critic": "pocket"})
    assert mine is None or mine.options["critic"] == "pocket"
    assert find_card("lift", {"critic": "rules"}) is None
