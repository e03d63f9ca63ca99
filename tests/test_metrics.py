"""What a step's log says, from a rollout made by hand: two prompts, four lines, one of them not judged."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from humor_env.agents.feedback.metrics import (
    clock_numbers,
    example_numbers,
    gather_lines,
    kl_numbers,
    learning_numbers,
    text_numbers,
    value_numbers,
)
from humor_env.agents.feedback.rollout import Rollout, SteppedEnv, check_failures, check_flips, group_envs
from humor_env.errors import JudgingFailed
from humor_env.shared.text_stats import ngram_set
from humor_env.types import Joke, Judgement, Prompt, Usage

A, B = Prompt("a", "The meeting was slow."), Prompt("b", "My soup was cold.")


def rollout(**changes):
    """Lines of 2, 3, 1 and 2 tokens, the third of which nobody could judge."""
    mask = torch.tensor([[0, 1, 1, 0], [0, 1, 1, 1], [0, 1, 0, 0], [0, 0, 1, 1]])
    texts = ["so slow so slow", "so slow that it slept", "the soup was cold", "my soup was cold"]
    parts = [{"form": 1.0, "wit": 0.5}, {"form": 0.5}, {}, {"form": 0.0}]
    made = {
        "tokens": torch.zeros(4, 4, dtype=torch.long),
        "attention": torch.ones(4, 4, dtype=torch.long),
        "action_mask": mask,
        "logprobs": torch.tensor([[9.0, -1, -2, 9], [9, -1, -1, -1], [9, -5, 9, 9], [9, 9, -3, -1]]),
        "asked": {
            "ref_logprobs": torch.tensor([[9.0, -2, -2, 9], [9, -1, -2, -3], [9, -9, 9, 9], [9, 9, -2, -1]]),
            "values": torch.tensor([[9.0, 0.5, 0.5, 9], [9, 0, 0, 1], [9, 7, 9, 9], [9, 9, 0, 0]]),
        },
        "rewards": torch.tensor([0.25, 0.75, 0.0, 0.5]),
        "group": torch.tensor([0, 0, 1, 1]),
        "valid": torch.tensor([True, True, False, True]),
        "following": torch.full((4,), -1),
        "jokes": tuple(
            Joke(p, t, "student", stop)
            for p, t, stop in zip((A, A, B, B), texts, ("end", "length", "end", "end"), strict=True)
        ),
        "judgements": tuple(
            Judgement(
                "c", None if i == 2 else 0.5, part, error="away" if i == 2 else None, usage=Usage(2, 1, 1, 0, 0.25)
            )
            for i, part in enumerate(parts)
        ),
        "seconds": {"generate": 2.0, "judge": 3.0},
    }
    return Rollout(**(made | changes))


def test_numbers_of_a_kl_by_hand():
    """1 + 0, 0 + 1 + 2 and -1 + 0 over seven tokens of three lines; the line that was not judged has no say."""
    assert kl_numbers(rollout()) == {"kl/per_token": pytest.approx(3 / 7), "kl/per_line": pytest.approx(1.0)}
    without = rollout(asked={})
    assert kl_numbers(without) == {"kl/per_token": 0.0, "kl/per_line": 0.0}
    nobody = rollout(valid=torch.zeros(4, dtype=torch.bool))
    assert kl_numbers(nobody) == {"kl/per_token": 0.0, "kl/per_line": 0.0}


def test_numbers_of_texts_by_hand():
    numbers = text_numbers(gather_lines(rollout()), ngram_set(["the soup was cold again"]))
    assert numbers["reward/mean"] == pytest.approx(0.5)
    assert numbers["reward/deviation"] == pytest.approx(math.sqrt(0.125 / 3))
    assert numbers["failures/share"] == 0.25
    assert numbers["length/tokens"] == 2.0
    assert numbers["length/ended_share"] == 0.75
    assert (numbers["reward/part/form"], numbers["reward/part/wit"]) == (0.5, 0.5)
    # 3 + 4 + 3 + 3 bigrams; "so slow" three times and "soup was", "was cold" twice each: nine different ones.
    assert numbers["text/distinct_2"] == pytest.approx(9 / 13)
    # Fourgrams of the lines: 1 + 2 + 1 + 1, of which one stands with the teacher; none is shared by two lines.
    assert numbers["text/teacher_overlap"] == pytest.approx(1 / 5)
    assert numbers["text/self_overlap"] == 0.0
    assert numbers["text/commonest_share"] == 1.0
    assert numbers["text/commonest_line"] == 1 / 4
    # "so _ so _"; "so _ that it" and "_ that it _"; "the _ was _"; "my _ was _": each once.
    assert (numbers["text/commonest_frame"], numbers["text/frame_variety"]) == (1 / 4, 1.0)
    # Trigrams that the prompt holds too: none; none; "soup was cold" of two; both of two.
    assert numbers["text/prompt_overlap"] == pytest.approx((0 + 0 + 1 / 2 + 1) / 4)
    # One judged line alone has no spread; the other two differ.
    assert numbers["groups/no_spread_share"] == 0.5
    assert (numbers["critic/calls"], numbers["critic/cost"]) == (8.0, 1.0)
    plain = text_numbers(gather_lines(rollout()))
    assert "text/teacher_overlap" not in plain


def test_numbers_that_are_not_known_are_left_out():
    free = tuple(Judgement("c", 0.5, usage=Usage(1, 1, 1, 0, None if i else 0.1)) for i in range(4))
    apart = tuple(Joke(Prompt(f"p{i}", "x"), "y", "student", "end") for i in range(4))
    numbers = text_numbers(gather_lines(rollout(judgements=free, jokes=apart)))
    assert "critic/cost" not in numbers, "one price is unknown"
    assert "groups/no_spread_share" not in numbers, "no prompt has two lines"
    away = tuple(Judgement("c", None, error="away") for _ in range(4))
    numbers = text_numbers(gather_lines(rollout(judgements=away)))
    assert (numbers["reward/mean"], numbers["reward/deviation"], numbers["failures/share"]) == (0.0, 0.0, 1.0)
    assert numbers["groups/no_spread_share"] == 1.0


def test_lines_stand_by_attempt():
    """Rows 2 and 3 go on where rows 1 and 0 ended: first attempts first, each in the order of the batch."""
    lines = gather_lines(rollout(following=torch.tensor([1, -1, 3, -1])))
    assert [j.text[:6] for j in lines.jokes] == ["so slo", "the so", "so slo", "my sou"]
    assert lines.lengths.tolist() == [2, 1, 3, 2]
    assert lines.rewards.tolist() == [0.25, 0.0, 0.75, 0.5]
    assert lines.valid.tolist() == [True, False, True, True]
    assert lines.families == [[0], [1], [2], [3]], "a second attempt is no sibling of the first"
    assert gather_lines(rollout()).families == [[0, 1], [2, 3]]
    assert len(lines) == 4
    chain = gather_lines(rollout(following=torch.tensor([1, 2, 3, -1])))
    assert [j.text for j in chain.jokes] == [j.text for j in rollout().jokes]


def test_numbers_of_values_by_hand():
    """Returns 1, 0; 1, 0, 1; 0, 1 beside values 0.5, 0.5; 0, 0, 1; 0, 0: what is left is 0.25 x 2 + 1 + 1."""
    returns = torch.tensor([[9.0, 1, 0, 9], [9, 1, 0, 1], [9, 5, 9, 9], [9, 9, 0, 1]])
    token_rewards = torch.tensor([[0.0, 0, 0.5, 0], [0, 0, 0, 0.25], [0, 0, 0, 0], [0, 0, 0, 0.75]])
    numbers = value_numbers(rollout(), returns, token_rewards)
    left = [0.5, -0.5, 1, 0, 0, 0, 1]
    mean = sum(left) / 7
    unexplained = sum((x - mean) ** 2 for x in left)
    spread = 4 - 16 / 7  # four ones of seven
    assert numbers["value/explained_variance"] == pytest.approx(1 - unexplained / spread)
    assert numbers["value/mean"] == pytest.approx(2 / 7)
    assert numbers["reward/per_line_after_kl"] == pytest.approx(1.5 / 3)
    flat = value_numbers(rollout(), torch.ones(4, 4), token_rewards)
    assert flat["value/explained_variance"] == 0.0
    one = rollout(valid=torch.tensor([False, False, True, False]))
    assert value_numbers(one, returns, token_rewards) == {"reward/per_line_after_kl": 1.5}, "one value has no spread"
    nobody = value_numbers(rollout(valid=torch.zeros(4, dtype=torch.bool)), returns, torch.zeros(4, 4))
    assert nobody == {"reward/per_line_after_kl": 0.0}


def test_numbers_of_an_update_are_means():
    sums = {"policy_loss": 6.0, "ratio": 12.0, "tokens": 12.0, "lines": 4.0, "mismatch": 1.0}
    assert learning_numbers(sums, [1.0, 3.0]) == {
        "update/policy_loss": 0.5,
        "update/ratio": 1.0,
        "update/grad_norm": 2.0,
    }
    assert learning_numbers(sums, []) == {}
    assert learning_numbers({"ratio": 3.0, "tokens": 0.0}, [1.0])["update/ratio"] == 3.0
    assert example_numbers({"margin": 6.0}, 4.0, 0.25) == {"update/margin": 1.5, "update/grad_norm": 0.25}
    assert example_numbers({"margin": 6.0}, 0.0, 0.25)["update/margin"] == 6.0


def test_numbers_of_the_clock():
    """Eight tokens and four lines in four seconds."""
    assert clock_numbers(rollout(), 1.5, 4.0) == {
        **{"seconds/generate": 2.0, "seconds/judge": 3.0, "seconds/update": 1.5, "seconds/step": 4.0},
        **{"tokens_per_second": 2.0, "samples_per_second": 1.0},
    }


def test_what_a_rollout_says_of_itself():
    one = rollout()
    assert one.lengths.tolist() == [2, 3, 1, 2]
    assert one.finished.tolist() == [True, False, True, True]
    assert one.mask.sum(-1).tolist() == [2, 3, 0, 2]
    assert one.has_reference and not rollout(asked={}).has_reference
    with pytest.raises(ValueError, match=r"without values: request them with values=True"):
        _ = rollout(asked={}).values
    with pytest.raises(ValueError, match=r"without ref_logprobs: request them with reference=True"):
        _ = rollout(asked={}).ref_logprobs


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"logprobs": torch.zeros(4, 3)}, r"logprobs must be \[4, 4\], found \(4, 3\)"),
        ({"asked": {"values": torch.zeros(3, 4)}}, r"values must be \[4, 4\]"),
        ({"attention": torch.zeros(4, 5)}, r"attention must be \[4, 4\]"),
        ({"rewards": torch.zeros(3)}, r"rewards must be \[4\], found \(3,\)"),
        ({"following": torch.zeros(5)}, r"following must be \[4\]"),
        ({"jokes": ()}, "4 rows need 4 jokes and judgements"),
        ({"judgements": ()}, "4 rows need 4 jokes and judgements"),
        ({"attention": torch.zeros(4, 4, dtype=torch.long)}, "covers padding"),
        ({"action_mask": torch.ones(4, 4, dtype=torch.long)}, "column 0 cannot be an action"),
    ],
)
def test_a_rollout_of_another_shape_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        rollout(**changes)


def test_as_many_failures_as_are_allowed_are_allowed():
    away = [Judgement("c", None, error=f"e{i}") for i in range(7)]
    sound = [Judgement("c", 0.5) for _ in range(7)]
    check_failures([], 0.0)
    check_failures(sound, 0.0)
    check_failures(away[:1] + sound[:1], 0.5)
    with pytest.raises(
        JudgingFailed, match=r"2 of 3 judgements failed, more than the allowed share of 50%\. .*e0; c: e1"
    ):
        check_failures(away[:2] + sound[:1], 0.5)
    with pytest.raises(JudgingFailed, match="e4; and 2 more kinds"):
        check_failures(away, 0.5)
    with pytest.raises(JudgingFailed) as five:
        check_failures(away[:5], 0.5)
    assert "more kinds" not in str(five.value)
    with pytest.raises(JudgingFailed) as alike:
        check_failures([away[0]] * 3, 0.5)
    assert str(alike.value).count("e0") == 1


def test_one_environment_or_several():
    class Plain:
        num_envs, single_action_space = 1, None

    class Playing(Plain):
        def play(self):
            pass

    playing = Playing()
    assert group_envs(playing) == [playing]
    found = group_envs((playing, Plain()))
    assert found[0] is playing
    assert isinstance(found[1], SteppedEnv)


def test_flips_of_a_mix_are_those_of_its_worst_judge():
    """Six verdicts that flip on the whole of one judge's pairs and on none of the other's."""

    def told(*parts):
        return [Judgement("mix", 0.5, {"wit": 1.0, **part}) for part in parts]

    worst = {"a.flips": 1.0, "b.flips": 0.0}
    with pytest.raises(JudgingFailed, match=r"'mix' has a position bias: 6 of 6 of its verdicts"):
        check_flips(told(*[worst] * 6), 0.9)
    check_flips(told(*[worst] * 6), 1.0)
    check_flips(told(*[worst] * 5), 0.5)
    check_flips(told(*[worst] * 5, {}, {"noflips": 1.0}), 0.5)
    check_flips(told(*[worst] * 3, *[{"flips": 0.0}] * 3), 0.5)
    # Shares of several lines of the teacher: 5 x 1 + 0.5 of six.
    with pytest.raises(JudgingFailed, match=r"92% of 6 of its verdicts .* share of 50%"):
        check_flips(told(*[{"flips": 1.0}] * 5, {"flips": 0.5}), 0.5)


class Stepped:
    """A vector environment of three, whose step ends the first by its own rules and the last by a limit."""

    num_envs, single_action_space = 3, None

    def reset(self, *, seed=None, options=None):
        self.seed = seed
        return ("a", "b", "c"), {"options": options}

    def step(self, texts):
        self.seen = list(texts)
        self.last_jokes = [Joke(A, text) for text in texts]
        self.last_judgements = [Judgement("c", 0.1 * (i + 1)) for i in range(3)]
        return ("a2", "b2", "c2"), np.array([0.1, 0.2, 0.3]), [True, False, False], [False, False, True], {}


def test_an_environment_of_gymnasium_is_played_in_part():
    """Only some sub-environments are asked about; the others are stepped with what they said last."""
    inner = Stepped()
    env = SteppedEnv(inner)
    assert env.reset(seed=7, options={"x": 1}) == (("a", "b", "c"), {"options": {"x": 1}})
    assert inner.seed == 7
    rewards, ended = env.play([0, 1, 2], ["one", "two", "three"], ["end", "length", "end"])
    assert (rewards.tolist(), ended, env.observations) == ([0.1, 0.2, 0.3], [0, 2], ("a2", "b2", "c2"))
    rewards, ended = env.play([2, 1], ["new three", "new two"], ["length", None])
    assert inner.seen == ["one", "new two", "new three"]
    assert (rewards.tolist(), ended) == ([0.3, 0.2], [2])
    assert [(j.text, j.stop_reason) for j in env.last_jokes] == [("new three", "length"), ("new two", None)]
    assert [j.score for j in env.last_judgements] == pytest.approx([0.3, 0.2])
    env.play([1], ["x"])
    assert env.last_jokes[0].stop_reason is None
    env.reset()
    env.play([0], ["y"])
    assert inner.seen == ["y", "", ""]
