import pytest

from humor_env.errors import CriticContractError, InvalidOption, PromptError
from humor_env.registry import critics
from humor_env.rewards.win_tie import WinTieCritic
from humor_env.teacher import TeacherBuffer
from humor_env.types import Demonstration, Joke, Prompt, Usage, Verdict

P, Q = Prompt("p", "The meeting was slow."), Prompt("q", "The soup was cold.")


class Table:
    """A judge that answers from a table of the teacher's lines: (probability, tie), or an error."""

    name = "table"

    def __init__(self, **answers):
        self.answers = answers
        self.asked = []

    def __call__(self, pairs):
        self.asked += [(mine.text, line.text, line.author, line.prompt.id) for mine, line in pairs]
        return [self.verdict(self.answers[line.text]) for _, line in pairs]

    def verdict(self, answer):
        usage = Usage(calls=2)
        if isinstance(answer, str):
            return Verdict("table", None, error=answer, usage=usage)
        probability, tie = answer
        return Verdict("table", probability, tie=tie, reason=f"said {probability}", usage=usage)


def buffer(*lines, prompt=P):
    return TeacherBuffer(None, [Demonstration(prompt, line, "t") for line in lines])


def one(judge, teacher, text="mine", **options):
    [judgement] = WinTieCritic(teacher, judge=judge, **options)([Joke(P, text)])
    return judgement


def test_flips_are_told():
    """Whoever learns from the score must be able to see that the judge goes by the place of a line."""

    def judge(pairs):
        return [Verdict("j", 0.6, flipped=line.text in "ab") for _, line in pairs]

    assert one(judge, buffer("a", "b", "c")).parts["flips"] == pytest.approx(2 / 3)
    assert "flips" not in one(Table(a=(0.9, 0.2)), buffer("a")).parts  # not asked in both orders


def test_the_score_is_the_mean_probability_over_the_teachers_lines():
    judge = Table(a=(0.9, 0.2), b=(0.4, 0.4), c=(0.5, 0.0))
    judgement = one(judge, buffer("a", "b", "c"))
    assert judgement.score == pytest.approx((0.9 + 0.4 + 0.5) / 3)
    # P(win) + P(tie) = probability + tie / 2: 1.0, 0.6, 0.5.
    assert judgement.parts["win_or_tie"] == pytest.approx((1.0 + 0.6 + 0.5) / 3)
    assert judgement.parts["tie"] == pytest.approx((0.2 + 0.4 + 0.0) / 3)
    assert judgement.parts["win"] == pytest.approx((0.8 + 0.2 + 0.5) / 3)
    assert judgement.usage.calls == 6
    assert judge.asked == [("mine", line, "teacher", "p") for line in "abc"]
    assert "3 of the teacher's lines: said 0.9" in judgement.reason


def test_ties_can_count_as_wins_as_in_the_papers_rate():
    assert one(Table(a=(0.4, 0.4)), buffer("a"), ties="win").score == pytest.approx(0.6)
    assert one(Table(a=(0.4, 0.4)), buffer("a")).score == pytest.approx(0.4)


def test_an_equal_line_is_a_draw_and_costs_nothing():
    judge = Table(a=(0.9, 0.0))
    judgement = one(judge, buffer("same", "a"), text=" same ")
    assert judgement.score == pytest.approx((0.5 + 0.9) / 2)
    assert judgement.parts["tie"] == pytest.approx(0.5)
    assert [line for _, line, _, _ in judge.asked] == ["a"]
    assert judgement.usage.calls == 2
    lone = one(Table(), buffer("same"), text="same")
    assert lone.score == 0.5


def test_only_the_first_lines_are_met():
    judge = Table(a=(1.0, 0.0), b=(0.0, 0.0))
    assert one(judge, buffer("a", "b"), max_lines=1).score == 1.0
    assert len(judge.asked) == 1


def test_a_prompt_without_a_teacher_line_fails_and_the_others_are_judged():
    critic = WinTieCritic(buffer("a"), judge=Table(a=(0.8, 0.0)))
    missing, found = critic([Joke(Q, "x"), Joke(P, "y")])
    assert missing.failed
    assert "no line for the prompt 'q'" in missing.error
    assert found.score == 0.8


def test_failed_verdicts_are_left_out_and_without_any_the_judgement_fails():
    judgement = one(Table(a=(0.8, 0.0), b="overloaded"), buffer("a", "b"))
    assert judgement.score == 0.8
    assert "1 not judged" in judgement.reason
    assert judgement.usage.calls == 4
    failed = one(Table(a="refusal", b="overloaded"), buffer("a", "b"))
    assert failed.score is None
    assert failed.error == "refusal; overloaded"
    assert failed.usage.calls == 4


def test_verdicts_reach_their_own_joke():
    critic = WinTieCritic(
        TeacherBuffer(None, [Demonstration(P, "a", "t"), Demonstration(P, "b", "t"), Demonstration(Q, "c", "t")]),
        judge=Table(a=(0.1, 0), b=(0.3, 0), c=(0.9, 0)),
    )
    scores = [j.score for j in critic([Joke(Q, "1"), Joke(P, "2"), Joke(P, "a"), Joke(Q, "3")])]
    assert scores == pytest.approx([0.9, 0.2, 0.4, 0.9])  # "a" is a draw with itself: (0.5 + 0.3) / 2
    assert critic([]) == []


def test_it_is_made_from_plain_data(tmp_path):
    path = tmp_path / "lines.jsonl"
    TeacherBuffer(path).add([Demonstration(P, "The meeting was so slow that glaciers overtook it.", "t")])
    critic = critics.make("win-tie", teacher=str(path), judge="pocket", max_lines=1)
    [judgement] = critic([Joke(P, "The meeting was slow.")])
    assert judgement.score == 0.0
    assert critics.make("win-tie", teacher="pocket").teacher.lines_for("nothing") == []


def test_bad_options_are_refused(tmp_path):
    with pytest.raises(InvalidOption, match="max_lines"):
        WinTieCritic(buffer("a"), judge=Table(), max_lines=0)
    with pytest.raises(InvalidOption, match="ties"):
        WinTieCritic(buffer("a"), judge=Table(), ties="loss")
    with pytest.raises(PromptError, match="no teacher buffer"):
        WinTieCritic(tmp_path / "missing.jsonl", judge=Table())
    with pytest.raises(CriticContractError, match="1 pairs and returned a list of 0"):
        WinTieCritic(buffer("a"), judge=lambda pairs: [])([Joke(P, "x")])
