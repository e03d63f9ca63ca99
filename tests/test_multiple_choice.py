"""The pairwise judge and both orders: place must not matter, and how often it would have is counted."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import tiny
from fake_messages_server import running
from test_injection import Recorder

from humor_env.errors import BudgetExceeded, CriticContractError, InvalidOption
from humor_env.llm import Reply, Request
from humor_env.llm.budget import Budget
from humor_env.llm.clients.limited import LimitedClient
from humor_env.llm.protocol import OnReply
from humor_env.llm.replies import read
from humor_env.registry import judges
from humor_env.rewards.multiple_choice import MultipleChoiceJudge
from humor_env.rewards.shared.both_orders import both_orders, flip_rate
from humor_env.types import Joke, Prompt, Usage, Verdict

PROMPT = Prompt("p", "The meeting was slow.")
A, B, C = (Joke(PROMPT, text) for text in ("Glaciers overtook it.", "It was very slow.", "Moss grew on us."))


class Opinion(Recorder):
    """Answers by a function of the two lines as shown (and of the vote)."""

    def __init__(self, decide: Callable[[str, str, int], str | dict[str, float]], probabilities: bool = False) -> None:
        super().__init__(probabilities=probabilities)
        self.decide = decide

    def __call__(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        self.asked.extend(requests)
        replies = []
        for index, request in enumerate(requests):
            answer = self.decide(request.data["1"], request.data["2"], request.sample)
            if isinstance(answer, dict):
                replies.append(Reply("", {"answer": "1"}, "end_turn", usage=Usage(1), probabilities=answer))
            else:
                replies.append(read(answer, "end_turn", request, Usage(1, 10)))
            if on_reply is not None:
                on_reply(index, replies[-1])
        return replies


def said(answer: str) -> str:
    return json.dumps({"reason": "because", "answer": answer})


def longer(first: str, second: str, vote: int) -> str:
    return said("1" if len(first) > len(second) else "2")


def test_a_judge_that_always_says_1_gives_exactly_a_half_and_flips_always() -> None:
    for client in (Opinion(lambda *_: said("1")), Opinion(lambda *_: {"1": 0.9, "2": 0.1}, probabilities=True)):
        judge = MultipleChoiceJudge(client)
        assert judge.flip_rate is None
        verdicts = judge([(A, B), (B, A), (A, C), (C, B)])
        assert [v.probability for v in verdicts] == [0.5] * 4
        assert [v.flipped for v in verdicts] == [True] * 4
        assert judge.flip_rate == 1.0


def test_the_same_through_a_real_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-secret-0123456789")
    with running("--judge", "always-1") as server:
        judge = judges.make("multiple-choice", client=f"anthropic:claude-haiku-4-5@{server.url}")
        assert [v.probability for v in judge([(A, B), (C, B)])] == [0.5, 0.5]
        assert judge.flip_rate == 1.0
    with running("--judge", "content") as server:
        judge = judges.make("multiple-choice", client=f"anthropic:claude-haiku-4-5@{server.url}")
        forth, back = judge([(A, B), (B, A)])
        assert {forth.probability, back.probability} == {0.0, 1.0}
        assert judge.flip_rate == 0.0


def test_a_consistent_judge_is_sure_and_never_flips() -> None:
    judge = MultipleChoiceJudge(Opinion(longer))
    verdicts = judge([(A, B), (B, A)])
    assert [(v.probability, v.flipped, v.reason) for v in verdicts] == [
        (1.0, False, "because"),
        (0.0, False, "because"),
    ]
    # The two pairs are the same two questions: asked and billed once.
    assert verdicts[0].usage + verdicts[1].usage == Usage(2, 20)


def test_probabilities_are_averaged_before_deciding() -> None:
    """0.9 shown first, 0.4 shown second: the mean is 0.65, and the raw answer flipped."""

    def unsure(first: str, second: str, vote: int) -> dict[str, float]:
        return {"1": 0.9, "2": 0.1} if first == A.text else {"1": 0.6, "2": 0.4}

    [verdict] = MultipleChoiceJudge(Opinion(unsure, probabilities=True))([(A, B)])
    assert verdict.probability == pytest.approx(0.65, abs=1e-12)
    assert verdict.flipped is True


def test_ties_count_half() -> None:
    def undecided(first: str, second: str, vote: int) -> dict[str, float]:
        return {"1": 0.5, "2": 0.1, "0": 0.4} if first == A.text else {"1": 0.1, "2": 0.3, "0": 0.6}

    client = Opinion(undecided, probabilities=True)
    [verdict] = MultipleChoiceJudge(client, tie=True)([(A, B)])
    # Shown first: 0.5 + 0.2; shown second the other has 0.1 + 0.3, so 0.6.
    assert verdict.probability == pytest.approx(0.65, abs=1e-12)
    assert verdict.tie == pytest.approx(0.5, abs=1e-12)
    assert client.asked[0].choices == ("1", "2", "0")
    always = MultipleChoiceJudge(Opinion(lambda *_: said("0")), tie=True)
    [verdict] = always([(A, B)])
    assert (verdict.probability, verdict.tie, verdict.flipped) == (0.5, 1.0, False)


def test_a_tie_that_was_not_offered_is_no_answer() -> None:
    [verdict] = MultipleChoiceJudge(Opinion(lambda *_: said("0")))([(A, B)])
    assert verdict.probability is None
    assert "invalid" in (verdict.error or "")


def test_votes() -> None:
    client = Opinion(lambda first, second, vote: said("1" if (vote == 0) == (first == A.text) else "2"))
    [verdict] = MultipleChoiceJudge(client, votes=3)([(A, B)])
    # Each order: one vote for A, two for B.
    assert verdict.probability == pytest.approx(1 / 3, abs=1e-12)
    assert len(client.asked) == 6
    assert len({(r.data["1"], r.sample) for r in client.asked}) == 6


def test_a_failed_vote_is_left_out_and_a_failed_order_fails_the_pair() -> None:
    client = Opinion(lambda first, second, vote: "?" if vote == 0 else said("1" if first == A.text else "2"))
    [verdict] = MultipleChoiceJudge(client, votes=2)([(A, B)])
    assert verdict.probability == 1.0
    judge = MultipleChoiceJudge(Opinion(lambda first, second, vote: said("1") if first == A.text else "?"))
    [verdict] = judge([(A, B)])
    assert verdict.probability is None
    assert verdict.flipped is None
    assert judge.flip_rate is None
    assert verdict.usage.calls == 2


def test_equal_lines_tie_without_being_asked() -> None:
    client = Opinion(longer)
    same, other = MultipleChoiceJudge(client)([(A, Joke(PROMPT, A.text, author="teacher")), (A, B)])
    assert (same.probability, same.tie, same.flipped) == (0.5, 1.0, None)
    assert other.probability == 1.0
    assert len(client.asked) == 2


def test_lines_for_different_prompts_are_refused() -> None:
    with pytest.raises(InvalidOption, match="same prompt"):
        MultipleChoiceJudge(Opinion(longer))([(A, Joke(Prompt("q", "Another."), "B"))])


def test_a_line_that_is_too_long_fails_its_pair_only() -> None:
    client = Opinion(longer)
    verdicts = MultipleChoiceJudge(client, longest=30)([(A, Joke(PROMPT, "x" * 31)), (A, B)])
    assert [v.failed for v in verdicts] == [True, False]
    assert len(client.asked) == 2


def test_the_estimate_counts_both_orders() -> None:
    judge = MultipleChoiceJudge(Opinion(longer), votes=2)
    assert judge.estimate([(A, B), (A, A)]).calls == 4


def test_the_instructions_name_what_is_sent_and_what_may_be_answered() -> None:
    for probabilities in (False, True):
        for tie in (False, True):
            judge = MultipleChoiceJudge(Recorder(probabilities=probabilities), tie=tie)
            [request, *_] = judge.requests((A, B))
            for field in request.data:
                assert f'"{field}"' in request.system
            assert ('"0"' in request.system) == tie
            assert "{{" not in request.system
            assert ("reason" in request.system) == (not probabilities)


def test_both_orders_asks_everything_at_once_and_checks_the_length() -> None:
    asked: list[int] = []

    def ask(pairs: Sequence[tuple[Joke, Joke]]) -> list[Verdict]:
        asked.append(len(pairs))
        return [Verdict("x", 1.0) for _ in pairs]

    assert [v.probability for v in both_orders(ask, [(A, B), (C, B)], "x")] == [0.5, 0.5]
    assert both_orders(ask, [], "x") == []
    assert asked == [4]
    with pytest.raises(CriticContractError, match="given 4 pairs and returned a list of 3"):
        both_orders(lambda pairs: [Verdict("x", 1.0)] * 3, [(A, B), (C, B)], "x")


def test_a_budget_that_ends_half_way_leaves_whole_pairs(tmp_path: Path) -> None:
    """All forward orders were asked before any backward one: half of the calls bought no verdict at all."""
    pairs = [(Joke(PROMPT, f"line {i}"), Joke(PROMPT, f"other {i}")) for i in range(6)]
    for most, judged in ((6, 3), (7, 3), (11, 5), (12, 6)):
        judge = MultipleChoiceJudge(LimitedClient(Opinion(longer), Budget(max_calls=most)), over_budget="unscored")
        verdicts = judge(pairs)
        assert [v.probability for v in verdicts] == [0.0] * judged + [None] * (6 - judged)
        assert judge.ledgered.usage.calls == most
    # Stopped and continued with a larger budget, nothing is paid twice.
    ledger = tmp_path / "v.sqlite"
    stopped = MultipleChoiceJudge(LimitedClient(Opinion(longer), Budget(max_calls=7)), ledger=ledger)
    with pytest.raises(BudgetExceeded):
        stopped(pairs)
    stopped.close()
    client = Opinion(longer)
    assert [v.probability for v in MultipleChoiceJudge(client, ledger=ledger)(pairs)] == [0.0] * 6
    assert [r.data["1"] for r in client.asked] == ["other 3", "line 4", "other 4", "line 5", "other 5"]


def test_a_budget_of_a_local_judge_leaves_whole_pairs(tmp_path: Path) -> None:
    """It reads the longest requests first: both orders of a pair are equally long, and stay together."""
    model = tiny.llama(context=512)
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    pairs = [(Joke(PROMPT, a), Joke(PROMPT, b)) for a, b in (("a", "b"), ("aaa", "bbb"), ("aa", "bb"), ("ccc", "ddd"))]
    judge = MultipleChoiceJudge(f"local:{tmp_path}", budget={"max_calls": 2}, over_budget="unscored")
    assert [v.failed for v in judge(pairs)] == [True, False, True, True]


@pytest.mark.parametrize(
    ("forward", "back", "flipped"),
    [(0.9, 0.1, False), (0.9, 0.9, True), (0.5, 0.5, False), (0.5, 0.4, True), (0.2, 0.4, True), (0.2, 0.7, False)],
)
def test_what_counts_as_a_flip(forward: float, back: float, flipped: bool) -> None:
    [verdict] = both_orders(lambda pairs: [Verdict("x", forward), Verdict("x", back)], [(A, B)], "x")
    assert verdict.flipped is flipped
    assert verdict.probability == pytest.approx((forward + 1 - back) / 2, abs=1e-12)


def test_the_flip_rate_leaves_out_what_was_not_asked_twice() -> None:
    verdicts = [Verdict("x", 0.5, flipped=f) for f in (True, False, None, False)]
    assert flip_rate(verdicts) == pytest.approx(1 / 3)
    assert flip_rate([Verdict("x", 0.5)]) is None
