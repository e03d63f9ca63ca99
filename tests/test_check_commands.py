"""The commands that check, compare and share, as they are called: what is printed, what is passed on, exit codes."""

import json
from types import SimpleNamespace

import typer
from command_line import cli
from report_runs import make_run
from typer.testing import CliRunner

from humor_env.experiments.commands.cli import app
from humor_env.experiments.compare import benchmark as engine
from humor_env.experiments.compare.benchmark_spec import load_benchmark_spec
from humor_env.experiments.pocket import gallery
from humor_env.experiments.reproduction import reproduce as protocol
from humor_env.types import Judgement, Verdict

# Check


class Uneven:
    """Each call scores 0.01 less than the one before it."""

    name = "uneven"

    def __init__(self, start=0.9):
        self.left = start

    def __call__(self, jokes):
        self.left -= 1e-5
        return [Judgement("uneven", self.left) for _ in jokes]


class UnevenJudge:
    name = "uneven"

    def __init__(self):
        self.off = 1e-5

    def __call__(self, pairs):
        self.off = -self.off
        return [Verdict("uneven", 0.5 + self.off) for _ in pairs]


def by_name(said):
    return {finding["name"]: finding for finding in json.loads(said)}


def checked(*arguments):
    """The exit code, and all findings by name."""
    found = CliRunner().invoke(app, ["check", *map(str, arguments), "--json"])
    return found.exit_code, by_name(found.stdout)


def test_every_kind_of_thing_can_be_checked():
    [check] = [command for name, command in typer.main.get_command(app).commands.items() if name == "check"]
    assert list(check.commands) == ["critic", "judge", "prompts", "env", "learner"]
    said = CliRunner().invoke(app, ["check"]).output
    assert all(f" {name} " in said for name in check.commands)


def test_a_critic_is_checked_within_a_tolerance_with_its_options_on_some_prompts():
    code, found = checked("critic", "test_check_commands:Uneven", "--tolerance", 0.01)
    assert code == 0 and all(finding["ok"] for finding in found.values())
    code, found = checked("critic", "test_check_commands:Uneven")
    assert code == 1 and not found["determinism"]["ok"] and found["length"]["ok"]
    code, found = checked("critic", "test_check_commands:Uneven", "--tolerance", 0.01, "--option", "start=0.5")
    assert found["empty text"]["sentence"].startswith("judged, score 0.5"), found["empty text"]
    assert "Did you mean 'everyday'?" in cli("check", "critic", "rules", "--prompts", "everyda", code=2)
    assert cli("check", "critic", "rules", "--prompts", "everyday").startswith("ok    ")


def test_a_judge_is_checked_within_a_tolerance():
    code, found = checked("judge", "test_check_commands:UnevenJudge", "--tolerance", 0.01)
    assert code == 0 and all(finding["ok"] for finding in found.values())
    code, found = checked("judge", "test_check_commands:UnevenJudge")
    assert code == 1 and not all(finding["ok"] for finding in found.values())
    assert "Did you mean 'everyday'?" in cli("check", "judge", "pocket", "--prompts", "everyda", code=2)


def test_a_set_of_prompts_is_checked(tmp_path):
    code, found = checked("prompts", "everyday")
    assert code == 0 and list(found) == ["loads", "repeatable", "splits", "plain extras", "readable"]
    rows = [{"id": str(n), "text": f"Thing {n} was slow.", "split": "train"} for n in range(3)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = CliRunner().invoke(app, ["check", "prompts", str(tmp_path / "mine.jsonl")])
    assert found.exit_code == 1
    lines = found.stdout.splitlines()
    assert [line[:6] for line in lines] == ["ok    ", "ok    ", "FAIL  ", "ok    ", "ok    "]
    assert lines[2].startswith("FAIL  splits: no prompt is in test or dev: a run learns from one")


def test_an_environment_and_a_learner_are_checked():
    code, found = checked("env", "humor_env/Paraphrase-v0", "--option", "critic=rules")
    assert code == 0 and all(finding["ok"] for finding in found.values()) and len(found) > 5
    code, found = checked("learner", "test_check_commands:by_name")
    assert code == 1 and list(found) == ["signature"]
    assert "Did you mean 'ppo'?" in cli("check", "learner", "ppoo", code=2)


# Compare


def test_a_paper_that_is_not_known_is_told_before_anything_is_estimated():
    said = cli("reproduce", "small-but-funy", "--dry-run", code=2)
    assert said == ("No paper is called 'small-but-funy'. Did you mean 'small-but-funny'? Known: small-but-funny.\n")


def test_what_a_reproduction_is_asked_for_and_what_it_prints(tmp_path, monkeypatch):
    asked = []

    def run(spec, out, *, seeds, launcher, say):
        asked.append((spec, out, seeds, launcher))
        say("on the way")
        return SimpleNamespace(tables={"table": [1]}, text="The tables.\n", failed=failed)

    failed = {}
    monkeypatch.setattr(protocol, "reproduce", run)
    monkeypatch.chdir(tmp_path)
    assert cli("reproduce", "small-but-funny") == "The tables.\nWritten to runs/small-but-funny-pocket\n"
    spec, out, seeds, launcher = asked[-1]
    assert (spec.name, str(out), seeds, launcher) == (
        "pocket",
        "runs/small-but-funny-pocket",
        range(spec.seeds),
        "local",
    )
    more = ("--seeds", 2, "--workers", 3, "--threads", 4, "--launcher", "ray", "--out", "mine", "--set", "seeds=9")
    assert json.loads(cli("reproduce", "small-but-funny", *more, "--json")) == {"table": [1]}
    spec, out, seeds, launcher = asked[-1]
    assert (spec.workers, spec.threads, spec.seeds) == (3, 4, 9)
    assert (str(out), seeds, launcher) == ("mine", range(2), "ray")
    failed |= {"a": "one", "b": "two", "c": "three", "d": "four"}
    found = CliRunner().invoke(app, ["reproduce", "small-but-funny"])
    assert found.exit_code == 1 and found.stdout.startswith("The tables.")
    assert found.stderr == (
        "on the way\n4 cells failed (a: one; b: two; c: three). Run the same command to try them again.\n"
    )


def test_what_a_benchmark_is_asked_for_and_what_it_prints(tmp_path, monkeypatch):
    asked = []

    def run(spec, folder, *, workers, threads, launcher, say):
        asked.append((spec.name, spec.seeds, str(folder), workers, threads, launcher))
        say("on the way")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / engine.PAGE).touch()
        return SimpleNamespace(folder=folder, rows=[], failures=failures, record={"cells": 5})

    failures = {}
    monkeypatch.setattr(engine, "run_benchmark", run)
    monkeypatch.chdir(tmp_path)
    assert cli("benchmark", "pocket-mini", "--publish", "docs") == "Written to runs/pocket-mini/RESULTS.md\n"
    seeds = load_benchmark_spec("pocket-mini").seeds
    assert asked[-1] == ("pocket-mini", seeds, "runs/pocket-mini", 2, 1, "local")
    failures |= {"ppo/crowd/seed-0": "it broke", "b": "c"}
    more = ("--out", "mine", "--workers", "3", "--threads", "4", "--launcher", "ray", "--set", "seeds=[4]")
    found = CliRunner().invoke(app, ["benchmark", "pocket-mini", *more])
    assert found.exit_code == 1 and asked[-1] == ("pocket-mini", [4], "mine", 3, 4, "ray")
    assert found.stdout == "Written to mine/RESULTS.md\n"
    assert found.stderr == (
        "on the way\n2 of 5 cells have no result, such as ppo/crowd/seed-0: it broke. The same command tries them "
        "again.\n"
    )


def test_mistakes_about_a_benchmark_are_a_sentence_each():
    assert cli("benchmark", code=2).startswith("Which benchmark? Give a TOML file")
    assert "leave out --set" in cli("benchmark", "pocket-mini", "--collect", "--set", "seeds=[1]", code=2)
    assert "leave out --data" in cli("benchmark", "pocket-mini", "--collect", "--data", "a=b", code=2)
    assert "Did you mean 'pocket-mini'?" in cli("benchmark", "pocket-mni", code=2)


def test_a_page_of_tables_is_filled_or_up_to_date(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- benchmark: missing/scores -->\nold\n<!-- end -->\n")
    assert cli("benchmark", "--tables", page, "--dry-run") == f"{page}: 1 tables would be written\n"
    assert cli("benchmark", "--tables", page) == f"{page}: 1 tables written\n"
    assert cli("benchmark", "--tables", page) == f"{page}: all tables are up to date\n"
    assert page.read_text() == "<!-- benchmark: missing/scores -->\n<!-- end -->\n"


def test_a_report_and_its_picture(tmp_path):
    run = make_run(tmp_path / "run", prompts=12, steps=10)
    assert cli("report", run) == f"report: {run / 'report.html'}\n"
    page, picture = tmp_path / "page.html", tmp_path / "one.svg"
    assert cli("report", run, "--out", page, "--picture", picture) == f"report: {page}\npicture: {picture}\n"
    assert page.is_file() and picture.read_text().startswith("<?xml")


def test_a_gallery_is_printed_or_written(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "gallery", lambda count, seed: f"# {count} of seed {seed}\n")
    assert cli("gallery") == "# 30 of seed 0\n\n"
    out = tmp_path / "new" / "a.md"
    assert cli("gallery", "--count", 2, "--seed", 1, "--out", out) == f"Written to {out}\n"
    assert out.read_text() == "# 2 of seed 1\n"


# Share


def test_lines_of_a_run_are_exported(tmp_path):
    run = make_run(tmp_path / "run", seeds=1, prompts=12, training=16)
    out = tmp_path / "lines.jsonl"
    assert cli("export", run, out, "--stage", "ppo") == f"12 lines written to {out}\n"
    assert len(out.read_text().splitlines()) == 12
    assert cli("export", run, tmp_path / "all.jsonl") == f"16 lines written to {tmp_path / 'all.jsonl'}\n"
    assert "pickle" in cli("export", run, tmp_path / "b", "--as", "pickle", code=2)
