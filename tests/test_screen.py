"""What a person at a terminal sees of a run, and that nobody else sees anything."""

import io
import sys

import pytest
from rich.console import Console

from humor_env.agents.session.log import RunLog
from humor_env.experiments.runs import screen
from humor_env.types import Joke, Judgement, Prompt

STEP = {"reward/mean": 0.512, "kl/per_line": 1.25, "critic/cost": 0.02}


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(screen, "time", found)
    return found


@pytest.fixture
def console():
    return Console(file=io.StringIO(), force_terminal=True, width=160, color_system=None)


def line(text, score=0.9):
    return Joke(Prompt("p", "It was slow."), text), Judgement("some", score) if score is not None else Judgement(
        "some", None, error="no answer"
    )


def test_the_bar_has_rate_time_left_reward_and_cost(console, clock, tmp_path):
    with screen.Terminal(console).stage("ppo", total=120) as bar:
        log = bar.log(RunLog(tmp_path))
        for step in range(1, 6):
            clock.now += 0.5
            log.metrics(step, STEP)
        bar.progress.refresh()
    said = console.file.getvalue()
    assert "ppo" in said and "5/120" in said
    assert "reward 0.512" in said and "KL 1.250" in said
    assert "$0.10" in said  # of all five steps
    assert "2 steps/s" in said
    assert ":" in said.rsplit("5/120", 1)[1]  # the time left
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5  # the log got everything


def test_a_sample_line_now_and_then_and_nothing_in_it_drives_the_terminal(console, clock, tmp_path):
    with screen.Terminal(console).stage("ppo", total=9) as bar:
        log = bar.log(RunLog(tmp_path))
        for step in range(1, 9):
            clock.now += screen.SAMPLE_EVERY / 3 + 0.1
            jokes, judgements = zip(line("\x1b[2J[bold]so slow\x07 that\n" + "x" * 300), line("?", None), strict=True)
            log.jokes(step, jokes, judgements)
    said = console.file.getvalue()
    assert said.count("[bold]so slow") == 2  # steps 3 and 6: not each one
    assert "step 3, 0.90: " in said
    assert "\x1b[2J" not in said and "\x07" not in said
    assert "x" * 150 in said.replace("\n", "") and "x" * 200 not in said.replace("\n", "")
    assert len((tmp_path / "jokes.jsonl").read_text().splitlines()) == 16


def test_a_judge_that_flips_on_most_pairs_is_told(console, clock, tmp_path):
    """Seven of seven pairs flipped, all were learned from, and the screen said nothing of it."""
    with screen.Terminal(console).stage("dpo", total=9) as bar:
        log = bar.log(RunLog(tmp_path))
        log.metrics(1, {"dpo/loss": 0.7, "feedback/judged": 7.0, "feedback/flipped": 7.0})
        bar.progress.refresh()
        assert "the judge flips on 100 % of pairs" in console.file.getvalue()
        clock.now += 1
        log.metrics(2, {"dpo/loss": 0.7, "feedback/judged": 20.0, "feedback/flipped": 3.0})
        assert "flips" not in bar.progress.tasks[0].fields["note"]  # 15 % is usual
    assert screen.flips({"feedback/judged": 20.0, "feedback/flipped": 3.0}) == 0.15
    assert screen.flips({"reward/part/win-tie.flips": 0.8, "reward/part/flips": 0.2}) == 0.8
    assert screen.flips({"part/flips": 0.6}) == 0.6
    assert screen.flips({"reward/mean": 0.5, "feedback/judged": 0.0, "feedback/flipped": 0.0}) is None


def test_a_resumed_run_starts_where_it_was(console, clock, tmp_path):
    with screen.Terminal(console).stage("ppo", total=100) as bar:
        log = bar.log(RunLog(tmp_path))
        log.rewind(40)
        assert bar.progress.tasks[0].completed == 40
        clock.now += 1
        log.metrics(41, STEP)
        clock.now += 1
        log.metrics(42, STEP)
        assert "1 steps/s" in bar.progress.tasks[0].fields["note"]  # not 42 in two seconds


def test_a_log_file_gets_a_line_for_each_step(monkeypatch, capsys, clock, tmp_path):
    """With standard error in a file (nohup, Slurm, CI) hours passed without a word."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    found = screen.make_screen()
    with found.stage("ppo", total=9) as bar:
        log = bar.log(RunLog(tmp_path))
        for step, seconds in ((1, 5.0), (2, 5.0), (3, 0.1), (4, 0.1), (5, 5.0), (9, 0.1)):
            clock.now += seconds
            log.metrics(step, STEP)
    found.say("imitation:\x1b[2J 0.46")
    said = sys.stderr.getvalue().splitlines()
    # Steps 3 and 4 come within a second of the line before; the last one is always told.
    assert [line.split("  ")[0] for line in said[:-1]] == ["ppo 1/9", "ppo 2/9", "ppo 5/9", "ppo 9/9"]
    assert "reward 0.512  KL 1.250  $0.04" in said[1]
    assert said[-1] == "imitation:·[2J 0.46"
    assert "\x1b" not in sys.stderr.getvalue() and capsys.readouterr().out == ""
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 6


def test_who_asks_for_quiet_is_told_nothing(capsys, tmp_path):
    log = RunLog(tmp_path)
    with screen.Quiet().stage("ppo", total=3) as bar:
        assert bar.log(log) is log
    screen.Quiet().say("imitation: 0.46")
    assert capsys.readouterr() == ("", "")


def test_progress_goes_to_standard_error_only(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    found = screen.make_screen()
    assert isinstance(found, screen.Terminal)
    found.say("imitation: [bold]0.46")
    assert "imitation: [bold]0.46" in sys.stderr.getvalue()
    assert sys.stdout.getvalue() == ""
