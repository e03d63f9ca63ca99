"""Trackers: the real packages, read back with their own readers; none of them ever stops a run."""

import atexit
import json
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

import pytest
import tiny
from typer.testing import CliRunner

from humor_env.agents.session.log import RunLog
from humor_env.errors import InvalidOption, MissingExtra
from humor_env.experiments.commands.cli import app
from humor_env.experiments.compare.benchmark_spec import load_benchmark_spec
from humor_env.experiments.runs import trackers as tracking
from humor_env.experiments.runs.run import run
from humor_env.experiments.runs.screen import Quiet
from humor_env.experiments.runs.trackers import RunNames, Trackers
from humor_env.experiments.specs.spec import load_spec, parse_spec
from humor_env.experiments.specs.tracking import TrackingSpec
from humor_env.llm.ledger import Ledger
from humor_env.llm.protocol import Reply, Request
from humor_env.teacher import TeacherBuffer
from humor_env.types import Demonstration, Joke, Judgement, Prompt, Usage

# trackio reads it when it is imported.
os.environ["TRACKIO_DIR"] = tempfile.mkdtemp(prefix="trackio-")
atexit.register(shutil.rmtree, os.environ["TRACKIO_DIR"], ignore_errors=True)

JOKES = [
    Joke(Prompt(f"p{i}", "The meeting was slow."), f"So slow | that {i}\nglaciers overtook it.", "policy")
    for i in range(4)
]
VERDICTS = [Judgement("judge", s, error=None if s is not None else "no answer") for s in (0.1, None, 0.9, 0.5)]


@pytest.fixture(autouse=True)
def a_busy_machine(monkeypatch):
    """A tracker's first start, with its imports and its own process, took 40 s where six others computed."""
    monkeypatch.setattr(tracking, "PATIENCE", 300.0)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a tiny student, prompts and a teacher's lines."""
    folder = tmp_path_factory.mktemp("world")
    words = tiny.tokenizer()
    tiny.llama(len(words)).save_pretrained(folder / "student")
    words.save_pretrained(folder / "student")
    prompts = [
        Prompt(f"{s}-{i}", f"The {s} meeting {i} was slow.", split=s) for s in ("train", "test") for i in range(4)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(as_row(p)) + "\n" for p in prompts))
    taught = [Demonstration(p, "So slow that glaciers overtook it.", "teacher") for p in prompts]
    TeacherBuffer(folder / "lines.jsonl").add(taught)
    return folder


def as_row(prompt):
    return {"id": prompt.id, "text": prompt.text, "split": prompt.split}


def small(world):
    """What makes pocket-quickstart a matter of seconds."""
    return [
        f"student.model={world / 'student'}",
        f"env.prompts={world / 'prompts.jsonl'}",
        f"teacher.lines={world / 'lines.jsonl'}",
        'critic=[{critic="rules"}]',
        'eval.critic=[{critic="rules"}]',
        *("learner.steps=3", "learner.batch_size=4", "learner.sampling.max_new_tokens=4", "tracking.every=1"),
    ]


def small_spec(world, *more):
    return load_spec("pocket-quickstart", [*small(world), *more])


def metrics_of(folder, name="metrics"):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def tell(folder, steps, spec, say=pytest.fail, ledger=None, project="some-project"):
    """A short run by hand."""
    names = RunNames(project, "some-group", "some-run-seed-0", folder, {"name": "x"}, online=False)
    found = Trackers(names, spec, ledger, say)
    log = found.log(RunLog(folder), "")
    for step in steps:
        log.metrics(step, {"reward/mean": step / 10})
        log.jokes(step, JOKES, VERDICTS)
    return found


def logs_of(project):
    """What trackio's own reader has: name, group and entries of each run."""
    from trackio.sqlite_storage import SQLiteStorage

    runs = __import__("trackio").Api().runs(project)
    return [(r.name, r.config["_Group"], SQLiteStorage.get_logs(project, r.name, run_id=r.id)) for r in runs]


@pytest.mark.slow
def test_trackio_has_all_metrics_and_lines_of_a_run(world, tmp_path, monkeypatch):
    """The command, then trackio's own reader. A Space in the environment is not gone to: the run is not online."""
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_SPACE_ID", "somebody/space")
    monkeypatch.setenv("HF_TOKEN", "hf_nobodys")
    words = ["train", "pocket-quickstart", "--track", "trackio", "--out", str(tmp_path / "run"), "--json"]
    for setting in (*small(world), "tracking.project=jokes", "seeds=[0, 1]"):
        words += ["--set", setting]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["seeds"], "nothing but results goes to standard output"
    found = logs_of("jokes")
    assert sorted((name, group) for name, group, _ in found) == [
        ("run-seed-0", "pocket-quickstart"),
        ("run-seed-1", "pocket-quickstart"),
    ]
    for name, _, logs in found:
        folder = tmp_path / "run" / name[-6:]
        for kept in metrics_of(folder):
            told = [entry for entry in logs if "reward/mean" in entry and entry["step"] == kept["step"]]
            assert len(told) == 1 and kept.items() <= told[0].items()
        for kept in metrics_of(folder / "imitation"):
            named = {name if name == "step" else f"imitation/{name}": value for name, value in kept.items()}
            told = [entry for entry in logs if "imitation/sft/loss" in entry and entry["step"] == kept["step"]]
            assert len(told) == 1 and named.items() <= told[0].items()
        stages = json.loads((folder / "results.json").read_text())["stages"]
        held_out = {name: value for entry in logs for name, value in entry.items() if name.startswith("held_out/")}
        assert {stage: held_out[f"held_out/{stage}/score"] for stage in stages} == {
            stage: numbers["score"] for stage, numbers in stages.items()
        }
        shown = [(row["step"], row["text"]) for entry in logs if "lines" in entry for row in entry["lines"]["_value"]]
        assert sorted(shown) == sorted((record["step"], record["text"]) for record in metrics_of(folder, "jokes"))


def test_a_resumed_run_goes_on_in_the_same_trackio_run(tmp_path):
    """Steps that are repeated after a kill are told once."""
    pytest.importorskip("trackio")
    for steps in (range(1, 6), range(4, 9)):
        tell(tmp_path, steps, TrackingSpec(**{"with": ["trackio"]}), project="resumed").close()
    [(_, _, logs)] = logs_of("resumed")
    assert [entry["step"] for entry in logs if "reward/mean" in entry] == list(range(1, 9))
    # A new run of the same name is another one.
    tell(tmp_path / "new", [1], TrackingSpec(**{"with": ["trackio"]}), project="resumed").close()
    assert sorted(len([1 for e in logs if "reward/mean" in e]) for _, _, logs in logs_of("resumed")) == [1, 8]


def test_trackio_shows_calls_of_a_language_model_as_traces(tmp_path):
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        put_call(ledger, 0)  # before the run: not of it
        time.sleep(0.01)
        spec = TrackingSpec(**{"with": ["trackio"], "calls": 2})
        found = tell(tmp_path, [], spec, ledger=tmp_path / "ledger.sqlite", project="traced")
        for i in (1, 2):
            put_call(ledger, i)
        found.lines("", 1, JOKES, VERDICTS)
        found.close()
    traces = SQLiteStorage.get_traces("traced", "some-run-seed-0")
    text = json.dumps(traces)
    assert len(traces) == 2
    assert "You are a judge." in text and "joke 1" in text and "joke 2" in text and "joke 0" not in text
    assert [trace["metadata"]["cost_usd"] for trace in traces] == [0.02, 0.02]


def put_call(ledger, i):
    asked = Request("You are a judge.", {"joke": f"joke {i}"})
    ledger.put(f"key{i}", "scorer/1", "local:model", asked, Reply("funny", usage=Usage(1, 10, 5, 0, 0.02)))


def test_tensorboard_has_metrics_lines_and_results(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    spec = TrackingSpec(**{"with": ["tensorboard"], "every": 2, "lines": 2})
    tell(tmp_path, range(1, 5), spec).close()
    found = tell(tmp_path, range(3, 7), spec)  # resumed
    found.results("ppo", {"score": 0.5, "low": None})
    found.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    assert [(e.step, round(e.value, 3)) for e in events.Scalars("reward/mean")] == [(i, i / 10) for i in range(1, 7)]
    assert [(e.step, e.value) for e in events.Scalars("held_out/ppo/score")] == [(6, 0.5)]
    tables = events.Tensors("lines/text_summary")
    assert [table.step for table in tables] == [1, 2, 4, 6]
    rows = tables[0].tensor_proto.string_val[0].decode().splitlines()
    assert len(rows) == 4 and r"So slow \| that 2 glaciers" in rows[-1], "the failed one and the best, in one line each"


def records(path):
    """W&B's file of an offline run. Its reader is a program; the form is LevelDB's log: blocks of 32 KiB with
    pieces, each with a checksum (4 bytes), its length (2) and whether it is whole (1), first, middle or last (4)."""
    from wandb.proto import wandb_internal_pb2

    data, at, piece = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        piece += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(piece)
            yield record
            piece = b""


@pytest.mark.slow
def test_wandb_keeps_an_offline_run_that_goes_on_under_one_id(tmp_path):
    pytest.importorskip("wandb")
    spec = TrackingSpec(**{"with": ["wandb"]})
    tell(tmp_path, range(1, 4), spec).close()
    time.sleep(1.1)  # its folders are named by the second
    tell(tmp_path, range(2, 5), spec).close()
    kept = []
    until = time.monotonic() + 120
    # Its own process may still be writing what was handed to it.
    while sum(record.HasField("exit") for record in kept) < 2 and time.monotonic() < until:
        kept = [record for path in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb")) for record in records(path)]
    told = [{"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in r.history.item} for r in kept]
    assert [entry["step"] for entry in told if "reward/mean" in entry] == [1, 2, 3, 4]
    runs = [record.run for record in kept if record.HasField("run")]
    assert len({run.run_id for run in runs}) == 1 and {run.run_group for run in runs} == {"some-group"}


class Broken:
    """A tracker that raises where it is told to."""

    def __init__(self, where):
        self.where, self.done = where, []

    def __getattr__(self, name):
        def do(*args):
            if name == self.where:
                raise SystemExit(3) if name == "end" else ConnectionError("nobody there")
            self.done.append(name)
            return "id"

        return do


class Recording:
    """A tracker that keeps what it is given."""

    def __init__(self):
        self.seen = []

    def begin(self, names, id):
        self.seen.append(("begin", names.name, id))
        return "one-id"

    def metrics(self, stage, step, numbers):
        self.seen.append(("metrics", stage, step, dict(numbers)))

    def table(self, name, step, columns, rows):
        self.seen.append(("table", name, step, [row["score"] for row in rows]))

    def calls(self, step, calls):
        self.seen.append(("calls", step, len(calls)))

    def results(self, numbers):
        self.seen.append(("results", dict(numbers)))

    def end(self):
        self.seen.append(("end",))


def scored(*scores):
    prompt = Prompt("p", "The meeting was slow.")
    return [Joke(prompt, f"Line {i}.") for i in range(len(scores))], [
        Judgement("c", s, error=None if s is not None else "no answer") for s in scores
    ]


def test_lines_are_told_at_the_first_step_and_every_few_steps_then(tmp_path, monkeypatch):
    recording = Recording()
    monkeypatch.setitem(tracking.TRACKERS, "wandb", lambda: recording)
    spec = TrackingSpec(**{"with": ["wandb"], "every": 3, "lines": 2})
    found = Trackers(RunNames("p", "g", "n", tmp_path, {}, online=False), spec, None, pytest.fail)
    for stage in ("imitation", ""):
        log = found.log(RunLog(tmp_path / (stage or "ppo")), stage)
        for step in range(1, 8):
            log.metrics(step, {"x": step})
            log.jokes(step, *scored(0.5, None, 0.9, 0.1, 0.7))
    found.results("ppo", {"score": 0.5, "low": None})
    found.close()
    kinds = [entry[:3] for entry in recording.seen if entry[0] == "table"]
    assert kinds == [("table", f"{stage}lines", step) for stage in ("imitation/", "") for step in (1, 3, 6)]
    # The worst and the best; a line without a score counts as the worst.
    assert all(entry[3] == [None, 0.9] for entry in recording.seen if entry[0] == "table")
    assert [entry[3] for entry in recording.seen if entry[0] == "metrics" and entry[2] == 2] == [
        {"imitation/x": 2},
        {"x": 2},
    ]
    assert [entry for entry in recording.seen if entry[0] == "results"] == [("results", {"held_out/ppo/score": 0.5})]
    assert recording.seen[0] == ("begin", "n", None) and recording.seen[-1] == ("end",)


@pytest.mark.parametrize("where", ["begin", "metrics", "results", "end"])
def test_a_tracker_that_raises_never_stops_a_run(world, tmp_path, monkeypatch, where):
    said = []
    broken = Broken(where)
    monkeypatch.setattr(tracking, "check_installed", lambda spec: None)
    monkeypatch.setattr("humor_env.experiments.runs.ingredients.check_installed", lambda spec: None)
    monkeypatch.setitem(tracking.TRACKERS, "wandb", lambda: broken)

    class Screen(Quiet):
        def say(self, text):
            said.append(text)

    [result] = run(
        small_spec(world, 'tracking.with=["wandb"]', "teacher.imitate=false"), tmp_path / "run", screen=Screen()
    )
    assert result.steps == 3 and result.stages["ppo"]["score"] is not None
    warnings = [text for text in said if text.startswith("warning")]
    assert len(warnings) == (1 if where != "results" else len(warnings))
    assert all("wandb" in text and "the run continues" in text for text in warnings)


def test_a_tracker_that_hangs_is_left_behind(tmp_path, monkeypatch):
    """One that never comes back held up neither the steps nor the end of the run."""
    never = threading.Event()

    class Hanging(Broken):
        def metrics(self, *_):
            never.wait(60)

    said = []
    monkeypatch.setattr(tracking, "PATIENCE", 0.2)
    monkeypatch.setitem(tracking.TRACKERS, "wandb", lambda: Hanging("nothing"))
    found = tell(tmp_path, range(1, 4), TrackingSpec(**{"with": ["wandb"]}), said.append)
    assert len(metrics_of(tmp_path)) == 3
    found.close()
    never.set()
    assert said == [
        "warning: the tracker wandb was still busy 0.2 s after the run ended and is no longer used; the run continues."
    ]


def test_a_passing_failure_costs_no_more_than_what_failed(tmp_path, monkeypatch):
    got, said = [], []

    class Wavering(Broken):
        def metrics(self, stage, step, numbers):
            if step in (2, 3):
                raise ConnectionError
            got.append(step)

    monkeypatch.setitem(tracking.TRACKERS, "wandb", lambda: Wavering("nothing"))
    tell(tmp_path, range(1, 6), TrackingSpec(**{"with": ["wandb"]}), said.append).close()
    assert (got, said) == ([1, 4, 5], [])


def test_a_tracker_that_is_not_installed_is_told_before_anything_runs(world, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'humor-env\[trackio\]'"):
        run(small_spec(world, 'tracking.with=["trackio"]'), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_told_in_a_sentence(world):
    with pytest.raises(InvalidOption, match="'trackio', 'tensorboard' or 'wandb'"):
        small_spec(world, 'tracking.with=["mlflow"]')


def test_a_spec_with_trackers_survives_its_own_toml(world):
    spec = small_spec(world, 'tracking.with=["wandb", "wandb"]', "tracking.group=night")
    again = parse_spec(spec.to_toml())
    assert again == spec and again.tracking.trackers == ("wandb",) and again.tracking.group == "night"


def test_cells_of_a_benchmark_are_one_group():
    spec = load_benchmark_spec("pocket-mini", ['shared.tracking.with=["trackio"]'])
    runs = [cell.spec["run"] for cell in spec.cells(Path("x"))]
    assert {run["tracking"]["group"] for run in runs} == {spec.name}
    assert len({run["tracking"]["name"] for run in runs}) == len({run["name"] for run in runs}) > 1
