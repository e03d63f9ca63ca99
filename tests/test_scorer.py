"""The pointwise critic: parts, weights, the mean of a distribution, and failures that are never scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from test_injection import Recorder

from humor_env.errors import InvalidOption, UnknownName
from humor_env.experiments.specs.spec import parse_spec
from humor_env.llm import Ledger, Reply, Request
from humor_env.llm.protocol import OnReply
from humor_env.llm.template import fill, load
from humor_env.registry import critics
from humor_env.rewards.audits.injection import shape_problems
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
    assert critic.ledgered.client.name == "anthropic:claude-haiku-4-5 effort=low"
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
    with pytest.raises(InvalidOption, match=r"nothing fills: b, c, d, e, f, g, h\. Known: a, z\."):
        fill("{{h}} {{c}} {{b}} {{a}} {{g}} {{e}} {{f}} {{d}}", a=1, z=2)


def test_the_rubrics_name_the_fields_that_are_sent() -> None:
    for name in ("scorer", "scorer_symbol"):
        for field in ScorerCritic(Recorder(ANSWER)).requests(JOKE)[0].data:
            assert f'"{field}"' in load("humor_env.rewards", name)


OWN = {"turn": "how well does the end turn on the beginning?", "short": "how free is it of words that do nothing?"}
TURNING = '{"reason": "dry", "wit": 4, "turn": 1, "short": 5}'


def test_questions_of_ones_own_are_asked_and_weighed() -> None:
    """Exactly the parts with a weight are asked for, and the form of the reply names them and no other."""
    client = Recorder(TURNING)
    critic = ScorerCritic(client, questions=OWN, weights={"wit": 2, "turn": 2, "short": 0})
    [judgement] = critic([JOKE])
    assert judgement.parts == {"wit": 0.8, "turn": 0.2, "short": 1.0}
    assert judgement.score == pytest.approx(0.5, abs=1e-12)  # (0.8 + 0.2) / 2; a weight of 0 does not count
    [request] = client.asked
    assert request.schema is not None and request.schema["required"] == ["reason", "wit", "turn", "short"]
    assert '- "turn": how well does the end turn on the beginning?' in request.system
    assert "originality" not in request.system and 'then "wit", "turn", "short"' in request.system
    for reply in (TURNING.replace("short", "shrt"), ANSWER, TURNING.replace("1,", "6,")):
        [judgement] = ScorerCritic(Recorder(reply), questions=OWN, weights=critic.weights)([JOKE])
        assert judgement.failed and (judgement.error or "").startswith("invalid")


def test_with_probabilities_a_question_of_ones_own_is_one_request() -> None:
    client = Sure(probabilities=True)
    critic = ScorerCritic(client, questions={"turn": OWN["turn"]}, weights={"wit": 1, "turn": 3})
    [judgement] = critic([JOKE])
    assert judgement.parts == {"wit": 0.5, "turn": 1.0}
    assert judgement.score == pytest.approx(0.875, abs=1e-12)  # 0.5 / 4 + 1.0 * 3 / 4
    assert [question in r.system for r, question in zip(client.asked, (QUESTIONS["wit"], OWN["turn"]), strict=True)]
    assert critic.estimate([Joke(JOKE.prompt, "Another line.")]).calls == 2


def test_a_built_in_question_may_be_put_otherwise_and_is_another_question_to_the_ledger() -> None:
    plain, other = ScorerCritic(Recorder(ANSWER)), ScorerCritic(Recorder(ANSWER), questions={"wit": "is it dry?"})
    assert other.weights == plain.weights
    assert '- "wit": is it dry?' in other.requests(JOKE)[0].system
    assert '- "meaning": how well does the line keep' in other.requests(JOKE)[0].system
    assert plain.ledgered.key(plain.requests(JOKE)[0]) != other.ledgered.key(other.requests(JOKE)[0])


def test_a_dry_run_counts_own_questions() -> None:
    """More questions, more tokens to read; the same number of calls, since all are asked at once."""
    plain = ScorerCritic(Recorder(ANSWER)).estimate([JOKE])
    many = {f"q{n}": "is this a long question about the line that nobody would ask in earnest?" for n in range(20)}
    more = ScorerCritic(Recorder(ANSWER), questions=many, weights=dict.fromkeys(many, 1)).estimate([JOKE])
    assert more.calls == plain.calls == 1
    assert more.input_tokens > plain.input_tokens + 20 * 10


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"questions": {"turn": "?"}}, "'turn' has no weight"),
        ({"questions": {"turn": "?"}, "weights": {"trun": 1}}, "Did you mean 'turn'"),
        ({"questions": {"turn": " "}, "weights": {"turn": 1}}, "expected a sentence"),
        ({"questions": {"Turn it": "?"}, "weights": {"Turn it": 1}}, "lower-case letters"),
        ({"questions": {"reason": "why?"}, "weights": {"reason": 1}}, "not reason or answer"),
        ({"questions": "turn", "weights": {"turn": 1}}, "expected a table"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidOption, match=said):
        ScorerCritic(Recorder(), **options)


def test_a_rubric_of_ones_own_needs_a_place_for_questions_of_ones_own(tmp_path: Path) -> None:
    """The questions would be weighed without having been asked."""
    mine = tmp_path / "mine.txt"
    mine.write_text("Rate it in {{words}} words.")
    with pytest.raises(InvalidOption, match=r"write \{\{questions\}\} where"):
        ScorerCritic(Recorder(), rubric=str(mine), questions=OWN, weights={"turn": 1, "short": 1})
    mine.write_text("Rate:\n{{questions}}\nThen {{parts}}.")
    critic = ScorerCritic(Recorder(), rubric=str(mine), questions={"turn": "a\n turn?"}, weights={"turn": 1})
    assert critic.requests(JOKE)[0].system == 'Rate:\n- "turn": a turn?\nThen "turn".'


def test_no_joke_changes_what_is_asked_by_questions_of_ones_own() -> None:
    assert shape_problems(lambda client: ScorerCritic(client, questions=OWN, weights={"turn": 1, "short": 1})) == []


def test_a_spec_names_questions_and_weights() -> None:
    spec = parse_spec(
        """
        name = "own"
        [teacher]
        lines = "pocket"
        [learner]
        name = "grpo"
        [[critic]]
        critic = "scorer"
        [critic.options]
        client = "test_injection:Recorder"
        questions = { turn = "how well does it turn?" }
        weights = { turn = 1 }
        """
    )
    [critic] = spec.critic
    made = critics.make(critic.critic, **critic.options)
    assert made.weights == {"turn": 1.0}
    assert '"turn": how well does it turn?' in made.requests(JOKE)[0].system


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
    ledgered = critic.ledgered
    assert (ledgered.purpose, ledgered.over_budget) == ("scorer 1", "unscored")
    assert ledgered.budget.calls_left == 2
    assert ledgered.ledger is ledger
    assert ledgered.ask_again == frozenset({"invalid"})
    assert ledgered.on_progress == told.append


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
