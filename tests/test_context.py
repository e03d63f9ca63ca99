"""Context: whether a critic reads the prompt. By hand, in the probes, in an audit, on a card."""

import pytest

from humor_env.errors import CriticContractError
from humor_env.rewards.audits.audit import audit
from humor_env.rewards.audits.context import measure_context
from humor_env.rewards.audits.probes import compare_markdown, pocket_cases, run_probes
from humor_env.rewards.audits.report import AuditReport, ContextScores
from humor_env.rewards.cards.card import Card, make_card
from humor_env.rewards.cards.page import card_markdown
from humor_env.rewards.rated.other_prompt import under_prompt_of
from humor_env.rewards.rated.rated_sets import RatedSet, RatedText
from humor_env.rewards.rated.semeval import HEADLINE_EDIT
from humor_env.types import Joke, Judgement, Prompt

JOKES = [Joke(Prompt(f"p{i}", f"Sentence number {i}."), f"line {i}") for i in range(30)]


def critic(score):
    def judge(jokes):
        found = [score(j) for j in jokes]
        return [Judgement("c", s) if s is not None else Judgement("c", None, error="no") for s in found]

    return judge


def is_own(joke):
    return joke.prompt.text.rstrip(".").split()[-1] == joke.text.split()[-1]


def test_a_critic_that_reads_only_the_line_is_a_coin_and_one_that_reads_the_prompt_is_not():
    blind = measure_context(critic(lambda j: int(j.text.split()[1]) / 100), JOKES)
    assert (blind.share, blind.lift, blind.count, blind.failed, blind.draws) == (0.5, 0.0, 30, 0, 4)
    assert blind.held is False
    assert ContextScores(20, 0, 4, share=0.7, interval=(0.45, 0.95)).held is False, "a coin may do that"
    assert ContextScores(20, 0, 4, share=0.6, interval=(0.51, 0.7)).held is True
    reads = measure_context(critic(lambda j: 0.9 if is_own(j) else 0.2), JOKES)
    assert reads.share == 1 and reads.lift == pytest.approx(0.7) and reads.held is True
    assert reads.interval == pytest.approx((0.9, 1.0))  # of 30 prompts: the rule of three
    worse = measure_context(critic(lambda j: 0.2 if is_own(j) else 0.9), JOKES)
    assert worse.share == 0 and worse.lift == pytest.approx(-0.7) and worse.held is False


def test_the_lift_and_the_share_count_by_hand():
    """Of thirty lines the first twelve gain 0.5 with their own prompt, the others lose 0.1: 40 % and 0.14."""

    def score(joke):
        gains = int(joke.text.split()[1]) < 12
        return 0.3 + (0.5 if gains else -0.1) * is_own(joke)

    found = measure_context(critic(score), JOKES)
    assert found.share == pytest.approx(0.4)
    assert found.lift == pytest.approx((12 * 0.5 - 18 * 0.1) / 30)
    assert found.lift_interval[0] < found.lift < found.lift_interval[1]


def test_lines_are_told_apart_by_their_grade():
    """The best lines are read with their prompt, the rest are not: a mean over all would hide it."""
    grades = [0.3] * 10 + [0.8] * 10 + [1.4] * 5 + [2.5] * 5
    found = measure_context(
        critic(lambda j: 0.5 + 0.2 * (is_own(j) and int(j.text.split()[1]) >= 20)), JOKES, grades=grades, scale=(0, 3)
    )
    told = [(row.low, row.high, row.count, row.share, round(row.lift, 6)) for row in found.by_grade]
    assert told == [
        (0, pytest.approx(0.6), 10, 0.5, 0),
        (pytest.approx(0.6), pytest.approx(1), 10, 0.5, 0),
        (pytest.approx(1.4), None, 10, 1.0, 0.2),
    ]


def test_every_line_meets_other_prompts_and_the_same_ones_again():
    asked = []
    measure_context(critic(lambda j: asked.append((j.prompt.id, j.text)) or 0.5), JOKES, draws=3)
    assert len(asked) == len(set(asked)) == 30 * 4
    own = [pair for pair in asked if pair[0][1:] == pair[1].split()[1]]
    assert len(own) == 30
    again = []
    measure_context(critic(lambda j: again.append((j.prompt.id, j.text)) or 0.5), JOKES, draws=3)
    assert again == asked


def test_nothing_to_compare_is_no_number():
    assert measure_context(critic(lambda j: 0.5), JOKES[:1]) is None
    assert measure_context(critic(lambda j: 0.5), [Joke(Prompt("a", ""), "x"), Joke(Prompt("b", ""), "y")]) is None
    assert measure_context(critic(lambda j: 0.5), JOKES, draws=0) is None
    failing = measure_context(critic(lambda j: None), JOKES, draws=2)
    assert (failing.share, failing.held, failing.failed) == (None, None, 60)
    some = measure_context(critic(lambda j: None if j.text == "line 3" else 0.5), JOKES, draws=2)
    assert (some.count, some.failed) == (29, 2)
    with pytest.raises(CriticContractError, match="returned 0 judgements"):
        measure_context(lambda jokes: [], JOKES)


def test_an_edit_is_moved_as_an_edit():
    """The whole edited headline would give away whose it is: any critic that counts shared words would seem to read."""

    def edit(before, after):
        return Joke(Prompt(f"headline:{before}", before, HEADLINE_EDIT), after)

    trump = edit("Trump signs the bill on trade", "Trump signs the hair on trade")
    snow = edit("Snow closes many schools in Ohio", "Snow closes many bald eagles in Ohio")
    assert under_prompt_of(trump, snow).text == "Snow closes many hair in Ohio"
    assert under_prompt_of(snow, trump).text == "Trump signs the bald eagles on trade"
    assert under_prompt_of(trump, edit("Snow closes schools", "Snow closes hair")) is None  # that line is its own
    assert under_prompt_of(trump, edit("Snow closes schools", "Snow closes schools")) is None
    assert under_prompt_of(trump, edit("Snow closes schools", "Something else altogether")) is None
    added = edit("Trump signs the bill", "Trump signs the bill again")
    assert under_prompt_of(added, snow).text == "Snow closes many again in Ohio"
    asked = []
    measure_context(critic(lambda j: asked.append(j.text) or 0.5), [trump, snow])
    assert "Snow closes many hair in Ohio" in asked and asked.count(trump.text) == 1


def test_a_line_that_is_moved_stays_as_it_was_cut():
    cut, other = (Joke(j.prompt, j.text, "me", "length") for j in JOKES[:2])
    assert under_prompt_of(cut, other) == Joke(other.prompt, cut.text, "me", "length")


def test_the_probes_and_their_tables_have_a_row_of_it():
    cases = pocket_cases(n=10)
    blind = run_probes(critic(lambda j: 0.5), cases, [])
    assert blind.context.share == 0.5 and not blind.held
    assert "does not read the prompt (prefers the line's own in 50.0 %)" in blind.summary()
    assert "| *context* | the teacher's line scores higher with its own prompt: 50.0 % [20.0, 80.0]" in blind.markdown()
    exact = run_probes("pocket", cases, [])
    assert exact.context.held is True and exact.held
    both = compare_markdown([blind, exact])
    assert "| *context: own prompt scored higher* | **50%** | 100% |" in both
    assert f"| *lift over other prompts* | +0.00 | {exact.context.lift:+.2f} |" in both
    assert run_probes("pocket", cases, [], draws=0).context is None


def test_an_audit_has_it_with_grades_and_it_survives_a_file():
    texts = tuple(RatedText(str(i), Prompt(f"p{i}", f"Sentence number {i}."), f"line {i}", i / 10) for i in range(30))
    report = audit(critic(lambda j: 0.9 if is_own(j) else 0.1), RatedSet("mine", texts, scale=(0, 3)))
    assert report.context.share == 1 and len(report.context.by_grade) == 4
    assert report.context.by_grade[-1].low == pytest.approx(1.4) and report.context.by_grade[-1].count == 16
    assert AuditReport.load(report.data()).context == report.context
    page = report.markdown()
    assert "prefers the line's own prompt in 100.0 % [90.0, 100.0]" in page.splitlines()[0]
    assert "| graded 1.4 or more | 16 | 100.0 % [81.2, 100.0] | +0.80 |" in page
    old = report.data()
    del old["context"]  # of version 0.1
    assert AuditReport.load(old).context is None
    assert audit(critic(lambda j: 0.5), RatedSet("mine", texts, scale=(0, 3)), context=0).context is None


def test_a_card_says_what_will_happen_to_a_student(tmp_path):
    made = make_card(critic(lambda j: 0.5), name="blind", prompts=["pocket"])
    [said] = [sentence for sentence in made.failing if "its own prompt" in sentence]
    assert "in 50 % of cases (chance: 50 %)" in said
    assert "A student that learns from it long enough will answer every prompt with the same line" in said
    assert "| pocket | 40 | 50.0 % [42.5, 57.5] | +0.00 [-0.07, +0.07] | NO |" in card_markdown(made)
    made.save(tmp_path)
    assert Card.load(tmp_path / "blind.json").failing == made.failing
    report = AuditReport("mine", "critic", "votes", {}, None, None, (), None, context=ContextScores(9, 0, 4, 0.52))
    assert "On votes it hardly reads the prompt" in Card("mine", "critic", audits=(report,)).failing[0]
