"""From a paid judge to a cheap one: verdicts read back from a real ledger, and the gate between the two."""

import sqlite3
from collections import Counter

import pytest
from fake_messages_server import running

from humor_env.errors import BudgetExceeded, CriticContractError, InvalidOption, UnknownName
from humor_env.llm.budget import Budget
from humor_env.llm.clients.limited import LimitedClient
from humor_env.llm.ledger import Ledger
from humor_env.llm.protocol import Reply
from humor_env.registry import critics, judges
from humor_env.rewards.cheap_first import CheapFirstJudge, GateReport, gate_table, render
from humor_env.rewards.jury import Jury
from humor_env.rewards.multiple_choice import MultipleChoiceJudge
from humor_env.rewards.pocket import CrowdJudge, calibration_pairs
from humor_env.rewards.scorer import QUESTIONS, ScorerCritic
from humor_env.rewards.trained.distil import ask, from_ledger
from humor_env.types import Joke, Prompt, Usage, Verdict

P, Q = Prompt("p", "The meeting was slow."), Prompt("q", 'A "<b>" [INST] soup\u200b was cold.')
TEXTS = ["Glaciers overtook it.", "It was very slow.", "Moss grew on us.", 'It said "no" </joke>\n<|im_end|>']


def pairs_of(prompt):
    jokes = [Joke(prompt, text) for text in TEXTS]
    return [(a, b) for i, a in enumerate(jokes) for b in jokes[i + 1 :]]


class Speaker:
    """A model that gives the probability of each symbol, from the text of the request alone."""

    probabilities = True

    def __init__(self, decide, name="speaker"):
        self.decide, self.name = decide, name
        self.asked = 0

    def __call__(self, requests, on_reply=None):
        replies = []
        for index, request in enumerate(requests):
            self.asked += 1
            shares = self.decide(request)
            answer = max(shares, key=shares.get)
            replies.append(Reply("", {"answer": answer}, "end_turn", usage=Usage(1), probabilities=shares))
            if on_reply is not None:
                on_reply(index, replies[-1])
        return replies

    def close(self):
        pass


# The ledger as training material


def test_a_ledger_filled_through_a_server_gives_back_the_judges_verdicts(tmp_path, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-secret-0123456789")
    ledger = tmp_path / "verdicts.sqlite"
    pairs = pairs_of(P) + pairs_of(Q)
    with running("--judge", "content") as server:
        client = f"anthropic:claude-haiku-4-5@{server.url}"
        judge = judges.make("multiple-choice", client=client, ledger=str(ledger))
        told = {
            frozenset((a.text, b.text, a.prompt.text)): (a.text, v)
            for (a, b), v in zip(pairs, judge(pairs), strict=True)
        }
        critic = critics.make("scorer", client=client, ledger=str(ledger))
        jokes = [Joke(prompt, text) for prompt in (P, Q) for text in TEXTS]
        scores = {(j.prompt.text, j.text): s.score for j, s in zip(jokes, critic(jokes), strict=True)}
    comparisons, ratings = from_ledger(ledger)
    assert len(comparisons.comparisons) == len(pairs)
    for item in comparisons.comparisons:
        first, verdict = told[frozenset((item.a.text, item.b.text, item.a.prompt.text))]
        wanted = verdict.probability if item.a.text == first else 1 - verdict.probability
        assert item.probability == pytest.approx(wanted, abs=1e-12)
        assert item.a.prompt == item.b.prompt
        assert item.a.prompt.task == "paraphrase"
    assert {(r.joke.prompt.text, r.joke.text): r.score for r in ratings.ratings} == pytest.approx(scores)


def test_probabilities_of_both_orders_are_averaged_with_half_the_ties(tmp_path):
    """Shown first 0.7 + 0.2/2 = 0.8; the other, shown first, 0.5: 0.5 + (0.8 - 0.5)/2 = 0.65."""

    def lean(request):
        first = request.data["1"] == TEXTS[0]
        return {"1": 0.7, "2": 0.1, "0": 0.2} if first else {"1": 0.5, "2": 0.5, "0": 0.0}

    ledger = Ledger(tmp_path / "v.sqlite")
    judge = MultipleChoiceJudge(Speaker(lean), tie=True, ledger=ledger)
    [verdict] = judge([(Joke(P, TEXTS[0]), Joke(P, TEXTS[1]))])
    [found] = from_ledger(ledger)
    [item] = found.comparisons
    assert (item.a.text, item.b.text) == (TEXTS[0], TEXTS[1])
    assert item.probability == pytest.approx(0.65, abs=1e-12) == verdict.probability
    # Half of a pair is no verdict.
    ledger._db.execute("DELETE FROM replies WHERE key = (SELECT min(key) FROM replies)")
    assert from_ledger(ledger) == []


def test_a_scorer_that_is_asked_part_by_part_is_put_together_again(tmp_path):
    def grade(request):
        part = next(part for part, question in QUESTIONS.items() if question in request.system)
        return {"wit": {"5": 0.5, "3": 0.5}, "meaning": {"1": 1.0}}.get(part, {"0": 1.0})

    ledger = Ledger(tmp_path / "v.sqlite")
    critic = ScorerCritic(Speaker(grade), ledger=ledger)
    [judgement] = critic([Joke(P, TEXTS[0])])
    [found] = from_ledger(ledger)
    # 0.5 x 4/5 + 0.2 x 1/5.
    assert [r.score for r in found.ratings] == pytest.approx([0.44]) == [judgement.score]
    only_wit = from_ledger(ledger, weights={"wit": 2.0})[0]
    assert [r.score for r in only_wit.ratings] == pytest.approx([0.8])


def test_a_scorers_own_questions_teach_as_well(tmp_path):
    """Only the four built-in parts of a reply were read: a ledger of own questions gave nothing."""

    class Writer(Speaker):
        probabilities = False

        def __call__(self, requests, on_reply=None):
            replies = [Reply("", {"reason": "dry", "turn": 4, "short": 1}, "end_turn") for _ in requests]
            for index, reply in enumerate(replies):
                on_reply(index, reply)
            return replies

    ledger, weights = Ledger(tmp_path / "v.sqlite"), {"turn": 3, "short": 1}
    critic = ScorerCritic(Writer(None), questions={"turn": "?", "short": "?"}, weights=weights, ledger=ledger)
    [judgement] = critic([Joke(P, TEXTS[0])])
    [found] = from_ledger(ledger, weights=weights)
    assert [r.score for r in found.ratings] == pytest.approx([0.65]) == [judgement.score]  # (3 x 4/5 + 1/5) / 4


def test_ledgers_without_verdicts_and_of_several_models_are_explained(tmp_path):
    with pytest.raises(InvalidOption, match="There is no ledger"):
        from_ledger(tmp_path / "none.sqlite")
    assert not (tmp_path / "none.sqlite").exists()
    Ledger(tmp_path / "empty.sqlite").close()
    with pytest.raises(InvalidOption, match="has no verdicts"):
        from_ledger(tmp_path / "empty.sqlite")
    (tmp_path / "text").write_text("not a database, but long enough to be looked at as one" * 10)
    with pytest.raises(InvalidOption, match="cannot be used as a ledger"):
        from_ledger(tmp_path / "text")
    ledger = Ledger(tmp_path / "two.sqlite")
    for name, first in (("a", 0.9), ("b", 0.2)):
        client = Speaker(
            lambda request, first=first: (
                {"1": first, "2": 1 - first} if request.data["1"] == TEXTS[0] else {"1": 0.5, "2": 0.5}
            ),
            name,
        )
        MultipleChoiceJudge(client, ledger=ledger)([(Joke(P, TEXTS[0]), Joke(P, TEXTS[1]))])
    with pytest.raises(InvalidOption, match="verdicts of a, b"):
        from_ledger(ledger)
    assert from_ledger(ledger, "a")[0].comparisons[0].probability == pytest.approx(0.7)
    assert from_ledger(ledger, "b")[0].comparisons[0].probability == pytest.approx(0.35)
    with pytest.raises(UnknownName, match="Known: a, b"):
        from_ledger(ledger, "c")


def test_verdicts_by_two_templates_or_rubrics_are_not_mixed(tmp_path):
    """Judge "funny" gave 1 to each pair and "kind" 0: all comparisons were 0.5. Of two rubrics' scores, 1 and 0, the
    one whose hash came last was taken."""

    def write(name, text):
        (tmp_path / f"{name}.txt").write_text(text)
        return str(tmp_path / f"{name}.txt")

    class Writer(Speaker):
        probabilities = False

        def __call__(self, requests, on_reply=None):
            replies = [Reply("", self.decide(request), "end_turn") for request in requests]
            for index, reply in enumerate(replies):
                on_reply(index, reply)
            return replies

    def prefers(request):
        word = "glaciers" if "FUNNIER" in request.system else "slow"
        return {"1": 1.0, "2": 0.0} if word in request.data["1"].lower() else {"1": 0.0, "2": 1.0}

    one = (Joke(P, TEXTS[0]), Joke(P, TEXTS[1]))
    ledger = Ledger(tmp_path / "v.sqlite")
    for name in ("FUNNIER", "KINDER"):
        template = write(name, f"You compare two lines.\nWhich is {name}? {{{{answers}}}}")
        MultipleChoiceJudge(Speaker(prefers), template=template, ledger=ledger)([one])
    with pytest.raises(
        InvalidOption, match=r"multiple-choice by speaker follow 2 .*“Which is FUNNIER.*“Which is KINDER"
    ):
        from_ledger(ledger)
    for words, wanted in (("FUNNIER", 1.0), ("Which is KINDER", 0.0)):
        [found] = from_ledger(ledger, instructions=words)
        assert [item.probability for item in found.comparisons] == [wanted]
    with pytest.raises(InvalidOption, match="follow 2 different"):
        from_ledger(ledger, instructions="You compare")
    with pytest.raises(InvalidOption, match=r"have 'SADDER' in .*There are: “Which is"):
        from_ledger(ledger, instructions="SADDER")

    for name, score in (("warm", 5), ("strict", 0)):
        parts = dict.fromkeys(("wit", "meaning", "originality", "kindness"), score)
        rubric = write(name, f"A {name} rubric of {{{{words}}}} words")
        critic = ScorerCritic(Writer(lambda r, parts=parts: {"reason": "", **parts}), rubric=rubric, ledger=ledger)
        critic([one[0]])
    with pytest.raises(InvalidOption, match=r"scorer by speaker follow 2 .*“A warm rubric of 20 words” \(1\)"):
        from_ledger(ledger, instructions="rubric")
    assert [[r.score for r in s.ratings] for s in from_ledger(ledger, instructions="warm")] == [[1.0]]
    assert [[r.score for r in s.ratings] for s in from_ledger(ledger, instructions="strict")] == [[0.0]]


def test_lines_without_a_prompt_in_a_ledger_are_not_all_siblings():
    """What the ledger keeps of a prompt is its text: without one, two pairs have nothing in common but their texts."""
    ledger = Ledger()
    empty = Prompt("mine", "")
    pairs = [(Joke(empty, f"{x}{i}"), Joke(empty, f"y{i}")) for i in range(4) for x in "xz"]
    MultipleChoiceJudge(Speaker(lambda request: {"1": 0.9, "2": 0.1}), ledger=ledger)(pairs)
    [found] = from_ledger(ledger)
    assert (len(found), len(found.groups())) == (8, 4)


def test_reading_a_ledger_changes_nothing_in_it(tmp_path):
    path = tmp_path / "v.sqlite"
    ledger = Ledger(path)
    MultipleChoiceJudge(Speaker(lambda request: {"1": 0.5, "2": 0.5}), ledger=ledger)(pairs_of(P))
    ledger.close()
    rows = sqlite3.connect(path).execute("SELECT * FROM replies ORDER BY key").fetchall()
    from_ledger(path)
    assert sqlite3.connect(path).execute("SELECT * FROM replies ORDER BY key").fetchall() == rows


# The gate


class Fixed:
    """A judge by a table of texts; what is not in it fails. Counts what it is asked."""

    def __init__(self, name, table):
        self.name, self.table, self.asked = name, table, []

    def __call__(self, pairs):
        self.asked += [a.text for a, _ in pairs]
        found = [self.table.get(a.text) for a, _ in pairs]
        return [
            Verdict(self.name, None, error="no idea", usage=Usage(1))
            if p is None
            else Verdict(self.name, p, usage=Usage(1))
            for p in found
        ]


def numbered(count):
    return [(Joke(P, f"a{i}"), Joke(P, f"b{i}")) for i in range(count)]


def test_only_unsure_pairs_cost():
    cheap = Fixed("cheap", {"a0": 0.95, "a1": 0.6, "a2": 0.1, "a3": 0.8})
    paid = Fixed("paid", {"a1": 0.2})
    gate = CheapFirstJudge(cheap, paid, sure=0.8, check=0.0)
    verdicts = gate(numbered(4))
    assert paid.asked == ["a1"]
    assert [v.probability for v in verdicts] == [0.95, 0.2, 0.1, 0.8]
    assert [v.reason for v in verdicts] == ["cheap", "paid", "cheap", "cheap"]
    assert [v.usage.calls for v in verdicts] == [1, 2, 1, 1]
    assert gate.report == GateReport(pairs=4, unsure=1, paid=1)
    assert (gate.report.saved, gate.report.agreement) == (0.75, None)
    assert "75.0% saved" in str(gate.report)


def test_the_least_sure_come_first_where_the_limit_is_short_and_it_holds_across_calls():
    cheap = Fixed("cheap", {"a0": 0.7, "a1": 0.55, "a2": 0.5, "a3": 0.35})
    paid = Fixed("paid", {f"a{i}": 1.0 for i in range(4)})
    gate = CheapFirstJudge(cheap, paid, sure=0.9, check=0.0, max_paid=3)
    assert [v.probability for v in gate(numbered(4)[:3])] == [1.0, 1.0, 1.0]
    gate = CheapFirstJudge(cheap, paid, sure=0.9, check=0.0, max_paid=2)
    assert [v.probability for v in gate(numbered(4))] == [0.7, 1.0, 1.0, 0.35]
    assert [v.probability for v in gate(numbered(4)[:1])] == [0.7]
    assert gate.report == GateReport(pairs=5, unsure=5, short=3, paid=2)


def test_answers_that_fail_were_asked_for_all_the_same():
    """A paid judge that only fails is not asked without end: the limit counts pairs, not good answers."""
    asked = []

    def failing(pairs):
        asked.append(len(pairs))
        return [Verdict("paid", None, error="invalid", usage=Usage(calls=2)) for _ in pairs]

    gate = CheapFirstJudge(Fixed("cheap", {f"a{i}": 0.6 for i in range(4)}), failing, sure=0.9, check=0.0, max_paid=3)
    for _ in range(3):
        gate(numbered(4))
    assert asked == [3]
    assert gate.report == GateReport(pairs=12, unsure=12, short=12, paid=3)
    assert gate.report.saved == 0.75


def test_failures_and_an_empty_purse_leave_the_cheap_verdict():
    cheap = Fixed("cheap", {"a0": 0.6, "a1": 0.6})
    gate = CheapFirstJudge(cheap, Fixed("paid", {"a1": 0.9, "a2": 0.3}), sure=0.8, check=0.0)
    verdicts = gate([*numbered(3), (Joke(P, "a3"), Joke(P, "b3"))])
    assert [v.probability for v in verdicts] == [0.6, 0.9, 0.3, None]
    assert verdicts[3].error == "no idea"
    assert (gate.report.short, gate.report.paid) == (2, 4)

    def broke(pairs):
        raise BudgetExceeded("The limit is reached.")

    gate = CheapFirstJudge(cheap, broke, sure=0.8, check=0.0)
    assert [v.probability for v in gate(numbered(2))] == [0.6, 0.6]
    assert gate.over_budget
    with pytest.raises(CriticContractError, match="was given 2 pairs"):
        CheapFirstJudge(cheap, lambda pairs: [], sure=0.8)(numbered(2))


@pytest.mark.parametrize("over_budget", ["stop", "unscored"])
@pytest.mark.parametrize("wrap", [lambda judge: judge, lambda judge: Jury([judge])], ids=["alone", "in a jury"])
def test_what_was_paid_before_a_limit_is_used_and_counted(over_budget, wrap):
    """At the limit the whole batch's paid answers were dropped: "0 asked of the paid judge, 100.0% saved"."""
    client = Speaker(lambda request: {"1": 0.9, "2": 0.1} if request.data["1"] < request.data["2"] else {"2": 1.0})
    paid = MultipleChoiceJudge(LimitedClient(client, Budget(max_calls=7)), over_budget=over_budget)
    # The least sure first: pairs 3, 2 and 1 get both orders, pair 0 one of them, and the sure one no check.
    cheap = Fixed("cheap", {"a0": 0.59, "a1": 0.58, "a2": 0.57, "a3": 0.56, "a4": 0.95})
    gate = CheapFirstJudge(cheap, wrap(paid), sure=0.8, check=1.0)
    verdicts = gate(numbered(5))
    assert [v.probability for v in verdicts] == pytest.approx([0.59, 0.95, 0.95, 0.95, 0.95])
    assert [v.reason.split()[0] for v in verdicts] == ["cheap", *[verdicts[1].reason.split()[0]] * 3, "cheap"]
    assert [v.usage.calls for v in verdicts] == [2, 3, 3, 3, 1]
    assert client.asked == paid.ledgered.usage.calls == 7
    assert gate.report == GateReport(pairs=5, unsure=4, short=1, paid=4)
    assert str(gate.report).startswith("5 pairs: 4 asked of the paid judge, 20.0% saved; 1 unsure ones were left")
    assert gate.over_budget
    assert [v.probability for v in gate(numbered(6)[1:])] == pytest.approx([0.58, 0.57, 0.56, 0.95, None])
    assert (client.asked, gate.report.paid) == (7, 4)


def test_sure_pairs_are_checked_by_a_share_that_neither_order_nor_side_changes():
    count = 2000
    cheap = Fixed("cheap", {f"{side}{i}": p for i in range(count) for side, p in (("a", 0.9), ("b", 0.1))})
    # The paid judge disagrees on every fourth pair.
    paid = Fixed("paid", {f"{s}{i}": p if i % 4 else 1 - p for i in range(count) for s, p in (("a", 1.0), ("b", 0.0))})
    gate = CheapFirstJudge(cheap, paid, sure=0.8, check=0.2)
    pairs = numbered(count)
    verdicts = gate(pairs)
    report = gate.report
    assert (report.unsure, report.pairs) == (0, count)
    assert 0.17 < report.checked / count < 0.23
    middle, low, high = report.agreement
    # Those that were checked have the paid verdict, so they agree; the others do as often as the checked ones did.
    share = report.agreed / report.checked
    assert middle == pytest.approx((report.checked + (count - report.checked) * share) / count)
    assert low < 0.8 < high
    assert low < middle < high
    once = [v.probability for v in verdicts]
    assert [v.probability for v in gate([(b, a) for a, b in pairs])] == pytest.approx([1 - p for p in once])
    assert [v.probability for v in gate(pairs[::-1])] == once[::-1]
    assert Counter(CheapFirstJudge(cheap, paid, sure=0.8, check=0.2, seed=1)(pairs)) != Counter(verdicts)


@pytest.mark.parametrize("options", [{"sure": 0.4}, {"sure": 1.2}, {"check": -0.1}, {"check": 2}, {"max_paid": -1}])
def test_gate_options_outside_their_range_are_refused(options):
    with pytest.raises(InvalidOption, match=next(iter(options))):
        CheapFirstJudge("pocket", "pocket-crowd", **options)


def test_the_gate_is_a_judge_by_name_and_serves_a_critic():
    critic = critics.make(
        "win-tie",
        teacher="pocket",
        judge="cheap-first",
        judge_options={"cheap": "pocket", "paid": "pocket-crowd", "paid_options": {"seed": 3}},
    )
    pairs = calibration_pairs(4)
    assert all(not j.failed for j in critic([joke for joke, _ in pairs]))
    assert critic.judge.report.pairs > 0


def test_the_table_by_hand():
    """At 0.8 two of four are kept, one of them as the paid judge says; the third judge decides three of the four."""
    cheap, paid, truth = [0.9, 0.2, 0.6, 0.5], [1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.5]
    rows = {row.sure: row for row in gate_table(cheap, paid, truth, (0.5, 0.8, 1.01))}
    assert (rows[0.8].saved, rows[0.8].agreement, rows[0.8].kept_agreement) == (0.5, 0.75, 0.5)
    assert rows[0.8].truth == pytest.approx(1.0)
    assert (rows[0.5].saved, rows[0.5].agreement) == (1.0, (1 + 0 + 0 + 0.5) / 4)
    assert rows[0.5].truth == pytest.approx(2 / 3)
    assert (rows[1.01].saved, rows[1.01].agreement, rows[1.01].kept_agreement) == (0.0, 1.0, None)
    assert "| never | 0.0% | 100.0% | – | 66.7% |" in render(list(rows.values()))
    with pytest.raises(InvalidOption, match="the same pairs"):
        gate_table([0.5], [])


def test_a_cheap_model_learns_the_crowd_and_saves_most_where_it_is_sure(tmp_path):
    """In the pocket world: what it keeps agrees with the crowd more often than what it would have guessed overall."""
    pytest.importorskip("torch")
    from humor_env import pocket
    from humor_env.rewards.reward_model import RewardModelJudge
    from humor_env.rewards.trained.critic_data import split
    from humor_env.rewards.trained.train_critic import TrainCriticConfig, train

    asked = ask(CrowdJudge(), calibration_pairs(400))
    [learned], [kept] = split([asked], 0.25, 0)
    config = TrainCriticConfig(
        pocket.path("causal"), form="pair", epochs=3, lr=1e-3, max_length=64, precision="float32"
    )
    train(config, [learned], tmp_path / "cheap")
    pairs = [(item.a, item.b) for item in kept.comparisons]
    cheap = [v.probability for v in RewardModelJudge(tmp_path / "cheap")(pairs)]
    always, *_, never = rows = gate_table(cheap, [item.probability for item in kept.comparisons])
    assert always.agreement > 0.58
    assert never.agreement == 1.0
    assert [row.saved for row in rows] == sorted((row.saved for row in rows), reverse=True)
    half = min(rows, key=lambda row: abs(row.saved - 0.4))
    assert half.kept_agreement > always.kept_agreement
