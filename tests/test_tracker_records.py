"""What a tracker already has, which lines it is shown, and when it is given up."""

import json
import threading
from types import SimpleNamespace

import pytest

from humor_env.experiments.runs import trackers
from humor_env.experiments.runs.screen import MOST_FLIPS, Quiet, flips
from humor_env.experiments.runs.trackers import RunNames, Trackers, _one_line, _Record, _spread, _Tracked
from humor_env.experiments.specs.spec import parse_spec
from humor_env.experiments.specs.tracking import TrackingSpec
from humor_env.llm.ledger import Ledger
from humor_env.llm.protocol import Reply, Request
from humor_env.types import Usage


@pytest.mark.parametrize(
    ("count", "shown"),
    [(5, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4]), (4, [0, 1, 3, 4]), (3, [0, 2, 4]), (2, [0, 4]), (1, [0]), (0, [])],
)
def test_rows_are_spread_from_the_first_to_the_last(count, shown):
    assert _spread(list(range(5)), count) == shown


def test_a_problem_on_one_line():
    assert _one_line(ValueError("one\ntwo")) == "ValueError: one"
    assert _one_line(KeyError()) == "KeyError:"
    assert _one_line(ValueError("x" * 300)) == f"ValueError: {'x' * 188}"


def test_a_record_comes_back_and_leaves_others_alone(tmp_path):
    folder = tmp_path / "new"
    empty = _Record.read(folder, "wandb")
    assert empty == _Record(folder, "wandb", None, {}, [])
    one = _Record(folder, "wandb", "id", {"": 3, "imitation": 2}, ["base"])
    one.write()
    _Record(folder, "trackio", "7", {}, []).write()
    assert _Record.read(folder, "wandb") == one
    assert json.loads((folder / "tracking.json").read_text())["trackio"] == {"id": "7", "last": {}, "results": []}
    assert [path.name for path in folder.iterdir()] == ["tracking.json"]
    (folder / "tracking.json").write_text('{"wandb": {"id": 7, "last": {}, "results": []}}')
    assert _Record.read(folder, "wandb").id == "7"
    for damaged in ("{", "[]", '{"wandb": {"id": "x"}}', '{"wandb": 3}'):
        (folder / "tracking.json").write_text(damaged)
        assert _Record.read(folder, "wandb") == empty
    (folder / "tracking.json").write_text("{")
    one.write()
    assert _Record.read(folder, "wandb") == one


def spec(*overrides):
    return parse_spec('name = "mine"\n[[critic]]\ncritic = "rules"\n[learner]\nname = "ppo"', overrides)


def test_a_seed_is_a_run_of_the_specs_group_or_of_its_own(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(Trackers, "__init__", lambda self, *told: made.append(told))
    folder = tmp_path / "first"
    Trackers.of(spec(), folder, seed=3, say=print)
    named = spec('tracking.with=["wandb"]', "tracking.project=p", "tracking.group=g", "tracking.name=n")
    named = named.model_copy(update={"budget": named.budget.model_copy(update={"ledger": "own.sqlite"})})
    Trackers.of(named, folder, seed=4, say=print)
    [(names, tracking, ledger, say), (names_2, tracking_2, ledger_2, _)] = made
    config = spec().model_dump(mode="json", exclude_none=True)
    assert names == RunNames("humor_env", "mine", "first-seed-3", folder / "seed-3", config, False)
    assert (tracking.trackers, ledger, say) == ((), folder / "ledger.sqlite", print)
    assert (names_2.project, names_2.group, names_2.name) == ("p", "g", "n-seed-4")
    assert (tracking_2.trackers, str(ledger_2)) == (("wandb",), "own.sqlite")
    monkeypatch.setattr(trackers, "is_main_process", lambda: False)
    Trackers.of(named, folder, seed=4, say=print)
    assert made[-1][1] == TrackingSpec()


def test_the_table_of_a_spec_has_these_defaults():
    found = TrackingSpec()
    assert found.model_dump() == {
        "project": "humor_env",
        "name": None,
        "group": None,
        "every": 10,
        "lines": 8,
        "calls": 8,
        "online": False,
        "with": [],
    }
    assert TrackingSpec(**{"with": ["wandb", "trackio", "wandb"]}).trackers == ("wandb", "trackio")


def test_without_trackers_a_log_stays_what_it_is(tmp_path):
    none = Trackers(RunNames("p", "g", "n", tmp_path, {}, False), TrackingSpec(), None, pytest.fail)
    log = object()
    assert none.log(log, "ppo") is log
    none.close()


def test_a_tracked_log_passes_everything_on():
    told = []

    def keep(name):
        return lambda *a: told.append((name, *a))

    inner = SimpleNamespace(metrics=keep("metrics"), jokes=keep("jokes"), rewind=keep("rewind"), flush=keep("flush"))
    log = _Tracked(inner, SimpleNamespace(metrics=keep("told"), lines=keep("lines")), "ppo")
    log.metrics(1, {"x": 2})
    log.jokes(1, ("j",), ("v",))
    log.rewind(3)
    log.flush()
    assert told == [
        ("metrics", 1, {"x": 2}),
        ("told", "ppo", 1, {"x": 2}),
        ("jokes", 1, ("j",), ("v",)),
        ("lines", "ppo", 1, ["j"], ["v"]),
        ("rewind", 3),
        ("flush",),
    ]


class Fails:
    """A tracker that fails at every call but `begin` and `end`."""

    def begin(self, names, id):
        return "id"

    def end(self):
        pass

    def __getattr__(self, name):
        def fail(*_):
            raise ConnectionError(name)

        return fail


def test_three_failures_in_a_row_are_enough(tmp_path, monkeypatch):
    said = []
    monkeypatch.setitem(trackers.TRACKERS, "wandb", Fails)
    found = Trackers(
        RunNames("p", "g", "n", tmp_path, {}, False), TrackingSpec(**{"with": ["wandb"]}), None, said.append
    )
    [thread] = found.threads
    for step in (1, 2, 3, 4):
        thread._do(lambda t, step=step: t.metrics(step), ("", step))
        assert thread.given_up == (step >= 3)
    assert said == [
        "warning: the tracker wandb failed 3 times (ConnectionError: metrics) and is no longer used; the run continues."
    ]
    assert not (tmp_path / "tracking.json").exists()
    found.close()


def test_metrics_are_marked_by_their_last_step_and_results_by_their_stage(tmp_path, monkeypatch):
    got = []
    tracker = SimpleNamespace(
        begin=lambda names, id: "one",
        end=lambda: got.append("end"),
        metrics=lambda *a: got.append(a),
        results=lambda numbers: got.append(numbers),
    )
    monkeypatch.setitem(trackers.TRACKERS, "wandb", lambda: tracker)

    def begun():
        names = RunNames("p", "g", "n", tmp_path, {}, False)
        return Trackers(names, TrackingSpec(**{"with": ["wandb"]}), None, pytest.fail)

    first = begun()
    first.metrics("", 0, {"x": 1})
    first.metrics("imitation", 2, {"x": 2})
    first.results("base", {"score": 1, "low": None, "note": "x"})
    first.close()
    assert got == [
        ("", 0, {"x": 1}),
        ("imitation", 2, {"imitation/x": 2}),
        {"held_out/base/score": 1.0},
        "end",
    ]
    assert json.loads((tmp_path / "tracking.json").read_text()) == {
        "wandb": {"id": "one", "last": {"": 0, "imitation": 2}, "results": ["base"]}
    }
    got.clear()
    second = begun()
    for step in (0, 1):
        second.metrics("", step, {"x": step})
    second.results("base", {"score": 1})
    second.results("ppo", {"score": 2})
    second.close()
    assert got == [("", 1, {"x": 1}), {"held_out/ppo/score": 2.0}, "end"]


def test_calls_are_those_since_the_last_time(tmp_path):
    path = tmp_path / "ledger.sqlite"
    names = RunNames("p", "g", "n", tmp_path, {}, False)
    found = Trackers(names, TrackingSpec(calls=2), path, pytest.fail)
    assert found._new_calls() == []
    before = found.since
    with Ledger(path) as ledger:
        for i in range(3):
            ledger.put(f"k{i}", "p", "local:m", Request("Judge.", {"joke": f"{i}"}), Reply("x", usage=Usage(1)))
    assert found.since == before
    assert len(found._new_calls()) == 2
    assert found.since > before
    found.since += 60
    assert found._new_calls() == []
    assert Trackers(names, TrackingSpec(calls=0), path, pytest.fail)._new_calls() == []
    assert Trackers(names, TrackingSpec(), None, pytest.fail)._new_calls() == []
    path.write_text("no ledger")
    assert found._new_calls() == []


def test_a_tracker_that_does_not_start_is_left(tmp_path, monkeypatch):
    never, said = threading.Event(), []
    tracker = SimpleNamespace(begin=lambda *_: never.wait(30) and "id", end=lambda: None)
    monkeypatch.setattr(trackers, "PATIENCE", 0.05)
    monkeypatch.setitem(trackers.TRACKERS, "wandb", lambda: tracker)
    found = Trackers(
        RunNames("p", "g", "n", tmp_path, {}, False), TrackingSpec(**{"with": ["wandb"]}), None, said.append
    )
    never.set()
    found.metrics("", 1, {"x": 1})
    assert found.threads[0].work.empty()
    found.close()
    assert said == ["warning: the tracker wandb did not start within 0.05 s and is no longer used; the run continues."]


# The judge's flips, which a screen warns of


@pytest.mark.parametrize(
    ("numbers", "share"),
    [
        ({}, None),
        ({"feedback/judged": 4, "feedback/flipped": 3}, 0.75),
        ({"feedback/judged": 4, "feedback/flipped": 0}, 0.0),
        ({"feedback/judged": 0, "feedback/flipped": 0}, None),
        ({"feedback/judged": 4}, None),
        ({"feedback/flipped": 4}, None),
        ({"feedback/judged": 8, "feedback/failed": 4, "feedback/flipped": 3}, 0.75),
        ({"feedback/judged": 8, "feedback/failed": 4, "feedback/both_orders": 3, "feedback/flipped": 3}, 1.0),
        ({"feedback/judged": 4, "feedback/both_orders": 0, "feedback/flipped": 0}, None),
        ({"reward/part/flips": 0.25, "part/win.flips": 0.5, "part/x/flips": None, "part/flipsy": 1.0}, 0.5),
        ({"flips": 0.9, "x/flips": 0.9}, None),
        ({"feedback/judged": 4, "feedback/flipped": 1, "part/win.flips": 0.5}, 0.25),
    ],
)
def test_the_share_of_flipped_verdicts(numbers, share):
    assert flips(numbers) == share
    assert MOST_FLIPS == 0.5


def test_quiet_is_its_own_bar():
    quiet, log = Quiet(), object()
    with quiet.stage("ppo", 3) as bar:
        assert bar is quiet and bar.log(log) is log
    assert quiet.say("x") is None
