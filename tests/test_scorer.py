"""The pointwise critic: parts, weights, the mean of a distribution, and failures that are never scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from test_injection import Recorder

from humor_env.errors import InvalidOption, UnknownName
from humor_env.llm import Ledger, Reply, Request
from humor_env.llm.protocol import OnReply
from humor_env.llm.template import fill, load
from humor_env.registry import critics
from humor_env.rewards.scorer import QUESTIONS, ScorerCritic
from humor_env.types import Joke, Prompt, Usage

JOKE = Joke(Prompt("p", "The meeting was slow.", task="paraphrase"), "Glaciers overtook it.")
ANSWER = '{"reason": "dry", "wit": 4, "meaning": 5, "originality": 2, "kindness": 0}'


def test_parts_and_their_weighted_mean() -> None:
    [judgement] = ScorerCritic(Recorder(ANSWER))([JOKE])
    assert judgement.parts == {"wit": 0.8, "meaning": 1.0, "originality": 0.4, "kindness": 0.0}
    # 0.5 * 0.8 + 0.2 * 1 + 0.2 * 0.4 + 0.1 * 0
    assert judgement.score == pytest.approx(0.68, abs=1e-12)
    assert judgement.reason == "dry"
    assert judgement.usage.calls == 1
    [judgement] = ScorerCritic(Recorder(ANSWER), weights={"wit": 3, "originality": 1})([JOKE])
    assert judgement.parts == {"wit": 0.8, "originality": 0.4}
    assert judgement.score == pytest.approx(0.7, abs=1e-12)


def test_a_perfect_line_scores_exactly_one_whatever_the_rounding() -> None:
    full = '{"reason": "", "wit": 5, "meaning": 5, "originality": 5, "kindness": 5}'
    for weights in (None, {"wit": 0.1, "meaning": 0.2, "originality": 0.3, "kindness": 0.7}, {"wit": 1e-9}):
        [judgement] = ScorerCritic(Recorder(full), weights=weights)([JOKE])
        assert judgement.score == pytest.approx(1.0, abs=1e-12)
        assert judgement.score <= 1.0


@pytest.mark.parametrize("answer", ["", "5", ANSWER.replace("4", "9"), ANSWER[:-1], ANSWER.replace("4", '"4"')])
def test_an_invalid_reply_is_never_a_score(answer: str) -> None:
    [judgement] = ScorerCritic(Recorder(answer))([JOKE])
    assert judgement.score is None
    assert judgement.error is not None
    assert judgement.error.startswith("invalid")
    assert judgement.parts == {}


class Sure(Recorder):
    """Gives a distribution: for wit half 1 and half 4, elsewhere 5."""

    def __call__(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        replies = []
        for index, request in enumerate(requests):
            self.asked.append(request)
            wit = QUESTIONS["wit"] in request.system
            shares = {"1": 0.5, "4": 0.5} if wit else {"5": 1.0}
            replies.append(Reply("", {"answer": "1"}, "end_turn", usage=Usage(1, 10), probabilities=shares))
            if on_reply is not None:
                on_reply(index, replies[-1])
        return replies


def test_with_probabilities_each_part_is_the_mean_of_its_distribution() -> None:
    client = Sure(probabilities=True)
    [judgement] = ScorerCritic(client)([JOKE])
    assert judgement.parts == {"wit": 0.5, "meaning": 1.0, "originality": 1.0, "kindness": 1.0}
    assert judgement.score == pytest.approx(0.75)
    assert judgement.usage.calls == 4
    assert [r.choices for r in client.asked] == [("0", "1", "2", "3", "4", "5")] * 4
    for request, question in zip(client.asked, QUESTIONS.values(), strict=True):
        assert question in request.system


def test_one_failed_question_fails_the_judgement() -> None:
    class Half(Recorder):
        def __call__(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
            self.answer = '{"answer": "5"}'
            replies = super().__call__(requests)
            replies[2] = Reply(error="refusal", detail="the model declined")
            for index, reply in enumerate(replies):
                assert on_reply is not None
                on_reply(index, reply)
            return replies

    [judgement] = ScorerCritic(Half(probabilities=True))([JOKE])
    assert judgement.error == "refusal: the model declined"


def test_a_text_that_is_too_long_is_not_sent() -> None:
    client = Recorder(ANSWER)
    judgements = ScorerCritic(client, longest=100)([Joke(JOKE.prompt, "x" * 101), JOKE, Joke(JOKE.prompt, "y" * 100)])
    assert [j.failed for j in judgements] == [True, False, False]
    assert "101 characters" in (judgements[0].error or "")
    assert len(client.asked) == 2


def test_it_is_made_by_its_name_from_plain_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-secret-0123456789")
    critic = critics.make("scorer", client="anthropic:claude-haiku-4-5", options={"effort": "low", "concurrency": 4})
    assert critic.desk.client.name == "anthropic:claude-haiku-4-5 effort=low"
    with pytest.raises(InvalidOption, match="Did you mean 'concurrency'"):
        critics.make("scorer", options={"concurency": 4})
    with pytest.raises(InvalidOption, match="no option 'api_key'"):
        critics.make("scorer", options={"api_key": "never in a configuration"})
    with pytest.raises(UnknownName, match="anthropic:MODEL"):
        critics.make("scorer", client="antropic")


@pytest.mark.parametrize("weights", [{"wti": 1}, {"wit": -1}, {"wit": 0}, {"wit": float("nan")}])
def test_weights_out_of_range_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(InvalidOption):
        ScorerCritic(Recorder(), weights=weights)


def test_a_rubric_of_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("Rate it. At most {{words}} words. {not a slot}")
    client = Recorder(ANSWER)
    ScorerCritic(client, rubric=str(mine), words=7)([JOKE])
    assert client.asked[0].system == "Rate it. At most 7 words. {not a slot}"
    mine.write_text("{{wrods}}")
    with pytest.raises(InvalidOption, match="wrods"):
        ScorerCritic(client, rubric=str(mine))
    with pytest.raises(InvalidOption, match="no prompt file"):
        ScorerCritic(client, rubric=str(tmp_path / "none.txt"))
    with pytest.raises(UnknownName, match="Did you mean 'scorer'"):
        ScorerCritic(client, rubric="scorre")


def test_filling_is_one_pass() -> None:
    assert fill("{{a}} {{b}}", a="{{b}}", b="{{a}}") == "{{b}} {{a}}"
    assert fill("{{a}}", a="\\1 \\g<0>", unused=1) == "\\1 \\g<0>"


def test_the_rubrics_name_the_fields_that_are_sent() -> None:
    for name in ("scorer", "scorer_symbol"):
        for field in ScorerCritic(Recorder(ANSWER)).requests(JOKE)[0].data:
            assert f'"{field}"' in load("humor_env.rewards", name)


def test_every_setting_about_asking_reaches_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget that is lost on the way is no limit, and nobody sees it before the bill."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-secret-0123456789")
    ledger, told = Ledger(), []
    critic = ScorerCritic(
        "anthropic:claude-haiku-4-5",
        ledger=ledger,
        budget={"max_calls": 2},
        over_budget="unscored",
        options={"ask_again": ["invalid"]},
        on_progress=told.append,
    )
    desk = critic.desk
    assert (desk.purpose, desk.over_budget) == ("scorer 1", "unscored")
    assert desk.budget.calls_left == 2
    assert desk.ledger is ledger
    assert desk.ask_again == frozenset({"invalid"})
    assert desk.on_progress == told.append


class Answering(Recorder):
    """A client that gives these replies, whatever it is asked."""

    def __init__(self, *replies: Reply, probabilities: bool = False) -> None:
        super().__init__(probabilities=probabilities)
        self.replies = replies

    def __call__(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        replies = [self.replies[i % len(self.replies)] for i in range(len(requests))]
        for index, reply in enumerate(replies):
            if on_reply is not None:
                on_reply(index, reply)
        return replies


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(data=json.loads(ANSWER), error="refusal", detail="on second thoughts"), "refusal: on second thoughts"),
        (Reply(data=None), "invalid"),
    ],
)
def test_a_reply_needs_its_data_and_no_error(reply: Reply, error: str) -> None:
    """A client of somebody else's may leave the numbers beside its refusal: they are not a score."""
    [judgement] = ScorerCritic(Answering(reply))([JOKE])
    assert (judgement.score, judgement.error) == (None, error)


def test_a_reply_without_probabilities_counts_as_its_answer() -> None:
    """0.5 * 0.2 + 0.2 * 0.4 + 0.2 * 0.6 + 0.1 * 0.8: the answers are 1 to 4 of 5."""
    client = Answering(*(Reply(data={"answer": str(n)}) for n in (1, 2, 3, 4)), probabilities=True)
    [judgement] = ScorerCritic(client)([JOKE])
    assert judgement.parts == {"wit": 0.2, "meaning": 0.4, "originality": 0.6, "kindness": 0.8}
    assert judgement.score == pytest.approx(0.38, abs=1e-12)
