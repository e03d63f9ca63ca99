import json
from types import SimpleNamespace

import pytest

from humor_env.episodes.closing import close_all
from humor_env.errors import CriticContractError, InvalidOption, UnknownName
from humor_env.registry import critics
from humor_env.rewards.mix import MixCritic
from humor_env.rewards.tournament import TournamentCritic
from humor_env.types import Joke, Judgement, Prompt, Usage

P = Prompt("p", "The meeting was slow.")


class Fixed:
    """Gives each text the score of its own table; a text that is not in it fails."""

    def __init__(self, name, **scores):
        self.name = name
        self.scores = scores
        self.seen = []

    def __call__(self, jokes):
        self.seen += [joke.text for joke in jokes]
        return [self.judgement(joke.text) for joke in jokes]

    def judgement(self, text):
        usage = Usage(calls=1, cost=0.25)
        if text not in self.scores:
            return Judgement(self.name, None, error="no idea", usage=usage)
        score = self.scores[text]
        return Judgement(self.name, score, {"half": score / 2}, f"{self.name} says", usage=usage)


def mixed(entries, *texts):
    return MixCritic(entries)([Joke(P, t) for t in texts])


def test_the_score_is_the_mean_by_weight_with_every_part_named():
    [judgement] = mixed(
        [{"critic": Fixed("wit", a=0.9), "weight": 3}, {"critic": Fixed("form", a=0.1), "weight": 1}], "a"
    )
    assert judgement.score == pytest.approx((3 * 0.9 + 0.1) / 4)
    assert judgement.parts == {"wit": 0.9, "wit.half": 0.45, "form": 0.1, "form.half": 0.05}
    assert judgement.reason == "wit: wit says; form: form says"
    assert judgement.usage == Usage(calls=2, cost=0.5)
    assert judgement.critic == "mix"


def test_a_missed_gate_makes_zero_and_saves_the_critics_after_it():
    gate, wit = Fixed("gate", low=0.49, high=0.5), Fixed("wit", low=1.0, high=0.8)
    low, high = mixed([{"critic": gate, "gate": 0.5}, {"critic": wit}], "low", "high")
    assert low.score == 0.0
    assert low.reason == "stopped by gate (0.49 < 0.5): gate says"
    assert high.score == 0.8  # a gate has no weight of its own
    assert wit.seen == ["high"]
    assert low.usage.calls == 1


def test_a_gate_may_carry_weight_too():
    [judgement] = mixed([{"critic": Fixed("g", a=0.6), "gate": 0.5, "weight": 1}, {"critic": Fixed("w", a=1.0)}], "a")
    assert judgement.score == pytest.approx(0.8)


def test_a_failed_required_part_fails_the_mix():
    [judgement] = mixed([{"critic": Fixed("wit", a=0.9)}, {"critic": Fixed("form")}], "a")
    assert judgement.score is None
    assert judgement.error == "form: no idea"
    assert judgement.parts["wit"] == 0.9
    assert judgement.usage.calls == 2


def test_a_failed_gate_that_is_required_fails_the_mix_and_never_passes_as_zero():
    [judgement] = mixed([{"critic": Fixed("gate"), "gate": 0.5}, {"critic": Fixed("wit", a=0.9)}], "a")
    assert judgement.failed


def test_a_missed_gate_decides_before_a_failure():
    gate = {"critic": Fixed("gate", a=0.1), "gate": 0.5}
    [judgement] = mixed([{"critic": Fixed("wit")}, gate], "a")
    assert judgement.score == 0.0


def test_an_optional_part_that_failed_leaves_the_rest_to_decide():
    entries = [
        {"critic": Fixed("wit", a=0.9), "weight": 1},
        {"critic": Fixed("form", a=0.3), "weight": 1},
        {"critic": Fixed("new"), "weight": 8, "required": False},
    ]
    [judgement] = mixed(entries, "a")
    assert judgement.score == pytest.approx(0.6)
    assert "new could not judge (no idea)" in judgement.reason
    [alone] = mixed([{"critic": Fixed("new"), "required": False}], "a")
    assert alone.failed


def test_it_is_made_from_plain_data_and_nests():
    options = json.loads(
        '{"critics": [{"critic": "rules", "gate": 0.5, "options": {"max_words": 20}},'
        ' {"critic": "mix", "name": "inner", "options": {"critics": [{"critic": "pocket"}]}}]}'
    )
    critic = critics.make("mix", **options)
    joke, hack = critic(
        [Joke(P, "The meeting was so slow that glaciers overtook it."), Joke(P, "The meeting was so slow 😂.")]
    )
    assert joke.score == joke.parts["inner.pocket"] > 0.3
    assert hack.score == 0.0
    assert hack.reason.startswith("stopped by rules")


def test_what_it_is_made_of_by_default():
    rules, pocket = critics.make("mix").members
    assert (rules.name, rules.gate, rules.weight) == ("rules", 0.5, 0.0)
    assert (pocket.name, pocket.gate, pocket.weight) == ("pocket", None, 1.0)


def test_closing_reaches_what_it_asks():
    class Closes:
        name, closed = "closes", 0

        def __call__(self, asked):
            return []

        def close(self):
            self.closed += 1

    critic, judge = Closes(), Closes()
    inner = MixCritic([{"critic": critic}, {"critic": TournamentCritic(judge)}])
    inner.close()
    assert (critic.closed, judge.closed) == (1, 1)


def test_closing_reaches_judges_and_critics_of_what_cannot_be_closed():
    closed = []
    one, two, three = (SimpleNamespace(close=lambda name=name: closed.append(name)) for name in "abc")
    close_all([SimpleNamespace(inner_critics=[one, SimpleNamespace(inner_judges=[two])], inner_judges=[three]), len])
    assert closed == ["a", "b", "c"]


def test_two_of_a_kind_keep_their_parts_apart():
    [judgement] = mixed([{"critic": Fixed("wit", a=x)} for x in (0.2, 0.4, 0.6)], "a")
    assert {k: v for k, v in judgement.parts.items() if "." not in k} == {"wit": 0.2, "wit-2": 0.4, "wit-3": 0.6}
    assert judgement.score == pytest.approx(0.4)


def test_order_is_kept_when_some_are_stopped():
    gate = Fixed("gate", a=1.0, b=0.0, c=1.0, d=0.0)
    wit = Fixed("wit", a=0.1, c=0.3)
    found = mixed([{"critic": gate, "gate": 0.5}, {"critic": wit}], "a", "b", "c", "d")
    assert [j.score for j in found] == [0.1, 0.0, 0.3, 0.0]
    assert MixCritic([{"critic": wit}])([]) == []


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ("rules", "must be a list"),
        ([], "must be a list"),
        ([{"critic": "rules", "wieght": 2}], "Did you mean 'weight'"),
        ([{"weight": 2}], "must name its critic"),
        ([{"critic": "rules", "weight": -1}], "of at least 0"),
        ([{"critic": "rules", "weight": float("nan")}], "of at least 0"),
        ([{"critic": "rules", "gate": 1.5}], "at most 1"),
        ([{"critic": "rules", "gate": True}], "at most 1"),
        ([{"critic": "rules", "required": "no"}], "true or false"),
        ([{"critic": "rules", "gate": 0.5}], "at least one critic with a weight"),
        ([{"critic": "rules", "name": "x"}, {"critic": "rules", "name": "x"}], "its own name"),
    ],
)
def test_bad_descriptions_are_refused(entries, says):
    with pytest.raises(InvalidOption, match=says):
        MixCritic(entries)


def test_unknown_critics_and_broken_critics_are_named():
    with pytest.raises(UnknownName, match="Did you mean 'rules'"):
        MixCritic([{"critic": "ruels"}])

    def short(jokes):
        return []

    mix = MixCritic([{"critic": short}])
    with pytest.raises(CriticContractError, match="'short' was asked about 1 jokes and returned 0"):
        mix([Joke(P, "a")])
