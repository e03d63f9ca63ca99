"""What each tracker's package is told: TensorBoard's own files, and stand-ins that record calls for the other two."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from humor_env.experiments.runs.tracker_packages import (
    CALL_COLUMNS,
    EXTRAS,
    TRACKERS,
    RunNames,
    TensorBoard,
    Trackio,
    WandB,
    _call_row,
    _replaced,
    _without,
)


def names(folder, online=False):
    return RunNames("jokes", "night", "run-seed-0", Path(folder), {"steps": 3}, online)


def call(**more):
    facts = {"stored_at": 86400.0 + 61, "purpose": "scorer/1", "client": "local:m", "instructions": "You judge."}
    facts |= {"asked": "joke 1", "answered": "funny", "error": None, "cost": 0.02, "input_tokens": 10}
    return SimpleNamespace(**facts | {"output_tokens": 5} | more)


ROW = {
    "at": "1970-01-02T00:01:01Z",
    "asks": "scorer/1",
    "model": "local:m",
    "asked": "joke 1",
    "answered": "funny",
    "error": None,
    "cost": 0.02,
    "input_tokens": 10,
    "output_tokens": 5,
}
LINES = [{"step": 1, "text": "a | b", "more": 0}, {"step": 1, "text": None, "more": 0}]


class Run:
    """A package's run: it keeps what it is told."""

    id = 77

    def __init__(self):
        self.told, self.summary, self.ended = [], {}, 0

    def log(self, *told, **more):
        self.told.append((*told, more))

    def define_metric(self, *told, **more):
        self.told.append((*told, more))

    def finish(self):
        self.ended += 1

    def _get_username(self):
        return "me"


def record(name, monkeypatch, **more):
    package = ModuleType(name)
    package.run, package.Run, package.seen = Run(), Run, SimpleNamespace(options=None, env=None, user=None)

    def init(**options):
        import os

        package.seen.options = options
        package.seen.env = {k: v for k, v in os.environ.items() if k.startswith("TRACKIO_") and k != "TRACKIO_DIR"}
        package.seen.user = package.run._get_username()
        return package.run

    package.init = init
    package.Table = lambda **table: ("table", table)
    package.Trace = lambda **trace: trace
    package.Settings = lambda **settings: settings
    monkeypatch.setitem(sys.modules, name, package)
    return package


def test_a_call_is_a_row():
    assert _call_row(call()) == ROW
    assert tuple(ROW) == CALL_COLUMNS


def test_the_trackers_and_what_installs_them():
    assert list(TRACKERS.items()) == [("trackio", Trackio), ("tensorboard", TensorBoard), ("wandb", WandB)]
    assert list(EXTRAS.items()) == [("trackio", "trackio"), ("tensorboard", "trackers"), ("wandb", "wandb")]


@pytest.fixture
def space(monkeypatch):
    kept = {"TRACKIO_SPACE_ID": "me/space", "TRACKIO_SERVER_URL": "http://h", "TRACKIO_BUCKET_ID": "b"}
    for name, value in kept.items():
        monkeypatch.setenv(name, value)
    return kept


def test_trackio_is_begun_without_the_hub_unless_the_run_is_online(tmp_path, monkeypatch, space):
    import os

    package = record("trackio", monkeypatch)
    tracker = Trackio()
    assert tracker.begin(names(tmp_path), None) == "77"
    assert package.seen.options == {
        "project": "jokes",
        "name": "run-seed-0",
        "group": "night",
        "config": {"steps": 3},
        "resume": "never",
        "embed": False,
        "auto_log_gpu": False,
        "auto_log_cpu": False,
    }
    assert package.seen.env == {} and package.seen.user is None
    assert {name: os.environ[name] for name in space} == space
    assert package.run._get_username() == "me"
    Trackio().begin(names(tmp_path, online=True), "77")
    assert package.seen.options["resume"] == "allow"
    assert package.seen.env == space and package.seen.user == "me"


def test_trackio_is_told_steps_tables_traces_and_results(tmp_path, monkeypatch):
    package = record("trackio", monkeypatch)
    tracker = Trackio()
    tracker.begin(names(tmp_path), None)
    tracker.results({"score": 0.25})
    tracker.metrics("", 7, {"loss": 0.5})
    tracker.table("lines", 8, ["step", "text"], LINES)
    tracker.calls(9, [call(), call(answered="", error="no answer")])
    tracker.results({"score": 0.5})
    tracker.end()
    *others, traces, results = package.run.told
    assert others == [
        ({"score": 0.25}, {"step": 0}),
        ({"loss": 0.5}, {"step": 7}),
        ({"lines": ("table", {"columns": ["step", "text"], "data": [[1, "a | b"], [1, None]]})}, {"step": 8}),
    ]
    assert results == ({"score": 0.5}, {"step": 7})
    assert traces[1] == {"step": 9}
    good, failed = traces[0]["judge_calls"]
    assert good == {
        "messages": [
            {"role": "system", "content": "You judge."},
            {"role": "user", "content": "joke 1"},
            {"role": "assistant", "content": "funny"},
        ],
        "metadata": {
            "asks": "scorer/1",
            "model": "local:m",
            "at": "1970-01-02T00:01:01Z",
            "cost_usd": 0.02,
            "input_tokens": 10,
            "output_tokens": 5,
            "status": "ok",
        },
    }
    assert failed["messages"][2]["content"] == "(no answer)" and failed["metadata"]["status"] == "error"
    assert package.run.ended == 1


def test_wandb_is_begun_offline_unless_the_run_is_online(tmp_path, monkeypatch):
    package = record("wandb", monkeypatch)
    folder = tmp_path / "new" / "seed-0"
    id = WandB().begin(names(folder), None)
    assert len(id) == 8 and int(id, 16) >= 0 and folder.is_dir()
    assert package.seen.options == {
        "project": "jokes",
        "name": "run-seed-0",
        "group": "night",
        "config": {"steps": 3},
        "id": id,
        "resume": None,
        "mode": "offline",
        "dir": str(folder),
        "reinit": "create_new",
        "settings": {
            "silent": True,
            "console": "off",
            "save_code": False,
            "disable_git": True,
            "x_disable_stats": True,
        },
    }
    assert package.run.told == [("*", {"step_metric": "step"})]
    assert WandB().begin(names(folder, online=True), "abc") == "abc"
    assert {k: package.seen.options[k] for k in ("id", "resume", "mode")} == {
        "id": "abc",
        "resume": "allow",
        "mode": "online",
    }
    assert WandB().begin(names(folder), None) != id


def test_wandb_is_told_the_step_as_a_number_of_its_own(tmp_path, monkeypatch):
    package = record("wandb", monkeypatch)
    tracker = WandB()
    tracker.begin(names(tmp_path), "abc")
    package.run.told.clear()
    tracker.metrics("", 7, {"loss": 0.5})
    tracker.table("lines", 8, ["step", "text"], LINES)
    tracker.calls(9, [call()])
    tracker.results({"score": 0.5})
    tracker.end()
    assert package.run.told == [
        ({"step": 7, "loss": 0.5}, {}),
        (
            {"step": 8, "lines": ("table", {"columns": ["step", "text"], "data": [[1, "a | b"], [1, None]]})},
            {},
        ),
        (
            {"step": 9, "judge_calls": ("table", {"columns": list(CALL_COLUMNS), "data": [list(ROW.values())]})},
            {},
        ),
    ]
    assert package.run.summary == {"score": 0.5} and package.run.ended == 1


class Writer:
    def __init__(self, log_dir):
        self.log_dir, self.told = log_dir, []

    def add_scalar(self, *told):
        self.told.append(told)

    def add_text(self, *told):
        self.told.append(told)

    def close(self):
        self.told.append("closed")


def test_tensorboard_writes_scalars_and_markdown_tables(tmp_path, monkeypatch):
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    tracker = TensorBoard()
    assert tracker.begin(names(tmp_path), "tensorboard") == "tensorboard"
    assert tracker.writer.told == [], "a resumed run has its spec already"
    assert tracker.begin(names(tmp_path), None) == "tensorboard"
    assert tracker.writer.log_dir == str(tmp_path / "tensorboard")
    tracker.results({"early": 0.1})
    tracker.metrics("", 7, {"loss": 0.5, "reward": 1.0})
    tracker.table("lines", 8, ["step", "text"], LINES)
    tracker.calls(9, [call()])
    tracker.results({"score": 0.5})
    tracker.end()
    assert tracker.writer.told == [
        ("spec", '```\n{\n "steps": 3\n}\n```'),
        ("early", 0.1, 0),
        ("loss", 0.5, 7),
        ("reward", 1.0, 7),
        ("lines", "| step | text |\n| --- | --- |\n| 1 | a \\| b |\n| 1 |  |", 8),
        (
            "judge_calls",
            f"| {' | '.join(CALL_COLUMNS)} |\n| {' | '.join(['---'] * 9)} |\n| 1970-01-02T00:01:01Z | scorer/1 | "
            "local:m | joke 1 | funny |  | 0.02 | 10 | 5 |",
            9,
        ),
        ("score", 0.5, 7),
        "closed",
    ]


def test_what_is_taken_away_or_replaced_for_a_moment_is_put_back():
    table, owner = {"a": 1, "b": 2}, SimpleNamespace(x=1)
    seen = []

    def fail():
        with _without(table, "a", "c"), _replaced(owner, "x", 2):
            seen.append((dict(table), owner.x))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [({"b": 2}, 2)]
    assert table == {"a": 1, "b": 2} and owner.x == 1
    with _replaced(owner, "y", 2):  # a version without it
        assert not hasattr(owner, "y")
    assert not hasattr(owner, "y")
