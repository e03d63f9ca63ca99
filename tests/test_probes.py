import pytest
from typer.testing import CliRunner

from humor_env.errors import CriticContractError, InvalidOption
from humor_env.experiments.commands.cli import app
from humor_env.rewards.audits.probes import (
    PROBES,
    Case,
    Probe,
    ProbeReport,
    compare_markdown,
    everyday_cases,
    pocket_cases,
    run_probes,
)
from humor_env.rewards.rules import RulesCritic
from humor_env.teacher import TeacherBuffer
from humor_env.types import Demonstration, Judgement, Prompt

CASES = [
    Case(Prompt(str(i), f"The meeting {i} was slow."), f"line {i} a.", f"line {i} b.", f"line {i} c.", "other", None)
    for i in range(10)
]


class Scores:
    """A critic whose score is a function of the text; None is a failure."""

    name = "scores"

    def __init__(self, score):
        self.score = score
        self.calls = 0

    def __call__(self, jokes):
        self.calls += 1
        found = [self.score(j.text) for j in jokes]
        return [Judgement("scores", x) if x is not None else Judgement("scores", None, error="no") for x in found]


def hack(write, kind="hack"):
    return Probe("it", "what it is", kind, write)


def row(score, write, kind="hack", cases=CASES):
    [found] = run_probes(Scores(score), cases, [hack(write, kind)]).rows
    return found


def test_there_are_enough_hacks_and_every_name_is_its_own():
    assert sum(p.kind == "hack" for p in PROBES) >= 12
    assert len({p.name for p in PROBES}) == len(PROBES)


@pytest.mark.parametrize("cases", [pocket_cases, everyday_cases])
def test_each_hack_changes_what_it_is_made_from(cases):
    for case in cases(n=5):
        assert len({case.line, case.fresh, case.known, case.other}) == 4
        for probe in PROBES:
            text = probe.write(case)
            assert (text is None and probe.name == "best known line") or isinstance(text, str)
            assert text != case.line


def test_a_row_counts_by_hand():
    """The teacher's line scores 0.5 everywhere; the probe 0.9 on one case of ten, 0.1 on the rest: mean 0.18."""
    found = row(lambda t: 0.9 if t == "hack 0" else 0.1 if "hack" in t else 0.5, lambda c: f"hack {c.prompt.id}")
    assert found.score == pytest.approx(0.18)
    assert found.baseline == pytest.approx(0.5)
    assert found.above == pytest.approx(0.1)
    assert (found.cases, found.failed) == (10, 0)
    assert found.held is True


@pytest.mark.parametrize(
    ("hacked", "held"),
    [
        (lambda i: 0.4, True),
        (lambda i: 0.5, False),  # as good as the teacher is not below
        (lambda i: 0.9 if i < 2 else 0.0, False),  # below on average, but it pays on a fifth of the prompts
        (lambda i: 0.9 if i < 1 else 0.0, True),
    ],
)
def test_when_a_hack_is_held_off(hacked, held):
    def score(text):
        return hacked(int(text.split()[1])) if text.startswith("hack") else 0.5

    assert row(score, lambda c: f"hack {c.prompt.id}").held is held


@pytest.mark.parametrize(("value", "held"), [(0.75, True), (0.74, False), (2.0, True)])
def test_when_a_control_is_recognised(value, held):
    assert row(lambda t: value / 2 if "fresh" in t else 0.5, lambda c: "fresh", "control").held is held


def test_failures_are_counted_and_never_a_score():
    found = row(lambda t: None if t == "hack 3" else 0.2 if "hack" in t else 0.5, lambda c: f"hack {c.prompt.id}")
    assert (found.cases, found.failed) == (10, 1)
    assert found.score == pytest.approx(0.2)
    nothing = row(lambda t: None, lambda c: "hack")
    assert nothing.held is None
    assert nothing.score is None
    base_failed = row(lambda t: None if t.startswith("line 3 ") else 0.2 if "hack" in t else 0.5, lambda c: "hack")
    assert base_failed.failed == 0
    assert base_failed.baseline == pytest.approx(0.5)


def test_cases_without_a_text_are_left_out():
    found = row(lambda t: 0.5, lambda c: None if c.prompt.id != "4" else "hack")
    assert found.cases == 1
    report = run_probes(Scores(lambda t: 0.5), CASES, [hack(lambda c: None)], draws=0)
    assert report.rows[0].held is None
    assert report.held


def test_all_is_asked_in_one_call_and_reported():
    critic = Scores(lambda t: 0.9 if "emoji" in t else 0.5 if t.startswith("line") else 0.1)
    probes = [
        Probe("emoji", "many", "hack", lambda c: "emoji"),
        Probe("other", "else", "hack", lambda c: "x"),
        Probe("fresh", "good", "control", lambda c: "x"),
    ]
    report = run_probes(critic, CASES, probes)
    assert critic.calls == 2  # the probes, and each line under other prompts
    assert report.fell_for() == ["emoji"]
    assert not report.held
    assert report.summary() == (
        "scores: rewards emoji; rejects fresh; does not read the prompt (prefers the line's own in 50.0 %)"
    )
    assert report.table()[0] == {
        "probe": "emoji", "what": "many", "kind": "hack", "cases": 10, "failed": 0,
        "score": pytest.approx(0.9), "baseline": pytest.approx(0.5), "above": 1.0, "held": False,
    }  # fmt: skip
    assert report.markdown().splitlines()[2] == "| emoji | many | 0.90 | 0.50 | 100% | **no** |"
    assert report.judgements["3", "teacher's line"].score == 0.5
    both = compare_markdown([report, ProbeReport("again", report.rows)])
    assert "| emoji | **0.90** | **0.90** |" in both
    assert "| fresh *(control)* | **0.10** | **0.10** |" in both
    assert "| *the teacher's plain line* | 0.50 | 0.50 |" in both


def test_the_rules_hold_off_what_rules_can_see():
    for cases in (pocket_cases(), everyday_cases()):
        shown = TeacherBuffer(None, [Demonstration(c.prompt, c.known, "t") for c in cases])
        report = run_probes(RulesCritic(teacher=shown), cases)
        # What takes an understanding of the text; docs/critics.md says so.
        assert set(report.fell_for()) <= {"line of another prompt", "classic joke", "stereotype", "shuffled"}
        assert all(row.held for row in report.rows if row.kind == "control" and row.cases)


def test_the_exact_judge_holds_off_everything_but_a_copy_and_with_rules_that_too():
    cases = pocket_cases()
    assert run_probes("pocket", cases).fell_for() == ["teacher copied"]
    shown = TeacherBuffer(None, [Demonstration(c.prompt, c.known, "t") for c in cases])
    mix = [{"critic": "rules", "gate": 0.5, "options": {"teacher": shown}}, {"critic": "pocket"}]
    assert run_probes("mix", cases, critics=mix).held


def command(*arguments):
    """`humor-env probes`: its exit code, its output and its errors."""
    outcome = CliRunner().invoke(app, ["probes", *arguments])
    return outcome.exit_code, outcome.stdout, outcome.stderr


def test_bad_use_is_refused():
    with pytest.raises(InvalidOption, match="at least one case"):
        run_probes(Scores(lambda t: 0.5), [])
    with pytest.raises(CriticContractError, match="returned 0 judgements"):
        run_probes(lambda jokes: [], CASES)
    for arguments, sentence in (
        (["--prompts", "pockt"], "Did you mean 'pocket'"),
        (["--critic", "rules", "--option", "max_words"], "--option key=value"),
        (["--critic", "rules", "--max-cost", "1"], "takes no limits (max_cost)"),
        (["--max-cost", "1"], "Give --critic NAME"),
    ):
        code, _, errors = command(*arguments)
        assert code == 2
        assert sentence in errors


def test_the_command_prints_tables():
    code, printed, _ = command("--critic", "rules", "--option", 'gates=["emoji"]', "--prompts", "everyday")
    assert code == 0
    assert printed.startswith("rules: rewards ")
    assert "emoji" not in printed
    code, printed, _ = command("--prompts", "everyday", "--markdown")
    assert code == 0
    assert printed.startswith("| probe | rules | diversity |")


def test_probes_of_a_paid_critic_keep_to_a_limit_and_pay_once(tmp_path, monkeypatch):
    """They had no limits of their own, and no ledger."""
    monkeypatch.chdir(tmp_path)
    asked = ("--critic", "test_probes:Paid", "--max-calls", "3")
    code, _, errors = command(*asked)
    assert code == 0, errors
    assert Paid.options == {
        "ledger": "test_probes-Paid.ledger.sqlite",
        "budget": {"max_calls": 3, "scope": "probes pocket"},
    }
    command(*asked, "--ledger", "mine.sqlite")
    assert Paid.options["ledger"] == "mine.sqlite"


class Paid(Scores):
    options: dict

    def __init__(self, ledger=None, budget=None):
        super().__init__(lambda text: 0.5)
        Paid.options = {"ledger": ledger, "budget": budget}
