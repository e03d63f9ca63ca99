"""A path that begins with ~ is in the user's home, wherever a user may write one: no shell reads options and specs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from humor_env.errors import InvalidOption
from humor_env.experiments.compare.benchmark_spec import DataTable
from humor_env.experiments.compare.trained_critics import with_files
from humor_env.experiments.options import ledger_if_used, nothing_written
from humor_env.experiments.specs.preference_file import read_preferences
from humor_env.llm import Ledger, Reply, Request, make_client
from humor_env.llm.template import load
from humor_env.prompts import load_prompts
from humor_env.registry import critics
from humor_env.rewards.diversity import DiversityCritic
from humor_env.rewards.rated.rated_sets import load_rated
from humor_env.rewards.reward_model import RewardModelCritic
from humor_env.rewards.trained.distil import from_ledger
from humor_env.shared.user_path import user_path
from humor_env.teacher import TeacherBuffer, open_lines
from humor_env.types import Demonstration, Prompt


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(elsewhere)
    yield home
    assert not list(elsewhere.iterdir()), "nothing called ~ is made"


def test_a_name_without_a_home_stays_as_it_is(home: Path) -> None:
    assert user_path("~/a/b") == home / "a" / "b"
    for plain in ("a/~/b", "~no-such-user-here/x", "~backup.jsonl", "/x", "b.txt"):
        assert user_path(plain) == Path(plain)


def test_a_ledger(home: Path) -> None:
    """It made a folder that was literally called ~."""
    with Ledger("~/new/v.sqlite") as ledger:
        assert ledger.path == str(home / "new" / "v.sqlite")
    with pytest.raises(InvalidOption, match="no verdicts of"):
        from_ledger("~/new/v.sqlite")
    with nothing_written(critics, "scorer", {}, Path("~/new/v.sqlite")) as options:
        assert options["ledger"].path == str(home / "new" / "v.sqlite")
    kept, blank = Path("~/kept.sqlite"), Path("~/blank.sqlite")
    for path in (kept, blank):
        with pytest.raises(KeyboardInterrupt), ledger_if_used(path):
            _stopped(path, paid=path is kept)
    assert [p.name for p in sorted(home.iterdir())] == ["kept.sqlite", "new"]


def _stopped(path: Path, paid: bool) -> None:
    with Ledger(path) as ledger:
        if paid:
            ledger.put("k", "p", "m", Request("s", {}), Reply("x"))
    raise KeyboardInterrupt


def test_files_of_prompts_lines_and_templates(home: Path) -> None:
    (home / "p.jsonl").write_text('{"text": "The meeting was slow."}\n')
    (home / "p.csv").write_text("text\nThe meeting was slow.\n")
    assert len(load_prompts("~/p.jsonl")) == len(load_prompts("~/p.csv")) == 1
    line = Demonstration(Prompt("p", "The meeting was slow."), "Glaciers passed.", "me")
    assert len(TeacherBuffer("~/lines.jsonl", [line])) == 1
    assert (home / "lines.jsonl").is_file()
    assert len(open_lines("~/lines.jsonl")) == 1
    (home / "t.txt").write_text("Rate it.")
    assert load("humor_env.rewards", "~/t.txt") == "Rate it."
    row = {"prompt": "The meeting was slow.", "chosen": "So slow.", "rejected": "x y"}
    (home / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    assert len(read_preferences("~/pairs.jsonl", [])) == 1


def test_files_of_critics(home: Path) -> None:
    (home / "old.txt").write_text("an old joke of mine\n")
    assert len(DiversityCritic("~/old.txt")._archive) == 1
    with pytest.raises(InvalidOption, match=f"{home}/none"):
        RewardModelCritic("~/none")
    with pytest.raises(InvalidOption, match=f"local:{home}/none.*cannot be loaded"):
        make_client("local:~/none")
    (home / "r.jsonl").write_text('{"id": "1", "text": "A line.", "score": 1}\n{"id": "2", "text": "B.", "score": 0}\n')
    assert len(load_rated("ratings", "~/r.jsonl").texts) == 2
    table = DataTable(name="ratings", what="a set")
    assert with_files([table], ["ratings=~/r.jsonl"])[0].file == str(home / "r.jsonl")
