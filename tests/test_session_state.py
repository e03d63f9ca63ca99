"""What a session keeps, brings back, writes down and ends by: each piece of it by itself."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import prompts, stir, student, vector_env

from humor_env.agents import ppo
from humor_env.agents.ppo import PPOConfig
from humor_env.agents.session import limits
from humor_env.agents.session.checkpoint import CheckpointStore, load_optimizer, optimizer_tensors
from humor_env.agents.session.limits import Limits, RunControl
from humor_env.agents.session.log import RunLog, Silent, StopRequest, flush_log, is_timing, joke_record
from humor_env.agents.session.schedule import AdaptiveCoefficient, RunningScale
from humor_env.agents.session.session import Session
from humor_env.agents.student.sampling import Sampling
from humor_env.agents.update.on_policy import OnPolicySession
from humor_env.errors import CheckpointError, InvalidOption, TrainingStopped
from humor_env.types import Joke, Judgement, Prompt

SHORT = Sampling(max_new_tokens=4)
CONFIG = PPOConfig(
    steps=4,
    batch_size=4,
    sampling=SHORT,
    checkpoint_every=3,
    evaluate_every=1,
    kl_target=1e-3,
    kl_horizon=100.0,
    learning_rate=1e-3,
)


def session_of(config, one, store, *, log=None, control=None, weight=0.05, evaluate=None, value_rate=1e-2):
    pieces = {"kl_weight": AdaptiveCoefficient(weight, None, 1.0), "scale": RunningScale()}
    session = OnPolicySession(
        *(config, vector_env(4), one, log, prompts(), store, evaluate, None, control),
        value_learning_rate=value_rate,
        saved=pieces,
    )
    return session, pieces


@pytest.fixture(scope="module")
def cut_run(tmp_path_factory):
    """A PPO run of three steps, with evaluations, and its folder."""
    folder = tmp_path_factory.mktemp("cut")
    one = student()
    control = RunControl(Limits(samples=12))
    result = ppo.train(
        *(CONFIG, vector_env(4), one, RunLog(folder)),
        prompts=prompts(),
        checkpoints=CheckpointStore(folder / "c"),
        evaluate=lambda _: {"score": 0.5},
        control=control,
    )
    assert result.steps == 3
    return SimpleNamespace(folder=folder, student=one, result=result)


# -- resuming ---------------------------------------------------------------------------------------------------------


def test_what_is_saved_after_resuming_is_what_was_saved_before(cut_run, tmp_path):
    """Every piece that a checkpoint holds comes back: saved again, another student and other generators in between,
    the checkpoint is the same to the bit. A piece that is not restored differs."""
    before = CheckpointStore(cut_run.folder / "c").latest()
    other = student(seed=5)
    stir(other, "policy", seed=9)
    random.seed(77)
    np.random.seed(77)
    torch.manual_seed(77)
    control = RunControl()
    session, pieces = session_of(CONFIG, other, CheckpointStore(cut_run.folder / "c"), control=control, weight=9.0)
    assert session.step == before.step == 3
    assert session.last_saved == before.folder
    assert session.evaluations == [{"step": float(n), "score": 0.5} for n in (1, 2, 3)]
    assert (control.samples, control.judgements) == (12, 12)
    assert control.seconds == before.seconds > 0
    assert pieces["kl_weight"].value == before.state["kl_weight"] != 0.05
    assert pieces["scale"].get_state() == before.state["scale"]
    assert pieces["scale"].count == 12
    session.checkpoints = CheckpointStore(tmp_path)
    session.save()
    again = CheckpointStore(tmp_path).latest()
    assert again.state == before.state
    assert again.tensors.keys() == before.tensors.keys()
    for name, tensor in before.tensors.items():
        assert torch.equal(again.tensors[name], tensor), name
    kinds = {name.partition("/")[0] for name in before.tensors}
    assert kinds == {"student", "optimizer", "random"}
    assert {"stream", "watch", "evaluations", "random", "kl_weight", "scale"} == set(before.state)


def test_the_optimiser_of_a_value_head_is_saved_with_the_policys(cut_run):
    names = CheckpointStore(cut_run.folder / "c").latest().tensors
    for part in ("value_head.out.weight/exp_avg", "value_head.out.weight/exp_avg_sq", "value_head.out.weight/step"):
        assert f"optimizer/{part}" in names
    assert float(names["optimizer/value_head.out.weight/step"]) == 3.0


def test_an_optimisers_state_comes_back_by_name():
    """Two parameters whose names begin alike, in another order than they were saved in."""
    a, b = (torch.nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2))
    optimizer = torch.optim.AdamW([a, b], lr=0.1)
    (a.sum() + 3 * b.square().sum()).backward()
    optimizer.step()
    saved = optimizer_tensors(optimizer, {id(a): "w", id(b): "w/more"})
    c, d, unknown = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    other = torch.optim.AdamW([d, c, unknown], lr=0.1)
    load_optimizer(other, {id(c): "w", id(d): "w/more", id(unknown): "new"}, saved)
    assert torch.equal(other.state[c]["exp_avg"], optimizer.state[a]["exp_avg"])
    assert torch.equal(other.state[d]["exp_avg"], optimizer.state[b]["exp_avg"])
    assert float(other.state[d]["step"]) == 1.0
    assert unknown not in other.state
    # Copies: the next step must not write into what was read.
    other.state[d]["step"] += 1
    assert float(saved["optimizer/w/more/step"]) == 1.0


def test_a_new_run_empties_the_log_only_where_it_could_have_resumed(tmp_path):
    tape = []

    class Tape(Silent):
        def rewind(self, step):
            tape.append(step)

    one = student()
    session, _ = session_of(CONFIG, one, None, log=Tape())
    assert (session.step, tape) == (0, [])
    session, _ = session_of(CONFIG, one, CheckpointStore(tmp_path), log=Tape())
    assert (session.step, tape, session.last_saved) == (0, [0], None)


def test_a_resumed_run_rewinds_its_log_to_the_checkpoint(cut_run):
    tape = []

    class Tape(Silent):
        def rewind(self, step):
            tape.append(step)

    control = RunControl(Limits(samples=12))
    session_of(CONFIG, student(), CheckpointStore(cut_run.folder / "c"), log=Tape(), control=control)
    assert tape == [3]
    assert "limit of 12 samples" in control.ending, "a limit that was reached is reached still"


# -- a step's end -----------------------------------------------------------------------------------------------------


class Store:
    """Stands in for a disk: remembers what it was asked to save."""

    def __init__(self, tape):
        self.tape, self.saved = tape, []

    def resume(self):
        return None

    def save(self, step, tensors, state, score=None, seconds=0.0):
        self.tape.append(f"save {step}")
        self.saved.append((step, score, seconds))
        return Path(f"step-{step}")


class TapeLog(Silent):
    def __init__(self, tape):
        super().__init__()
        self.tape, self.rows = tape, []

    def metrics(self, step, numbers):
        self.tape.append(f"metrics {step}")
        self.rows.append(dict(numbers))

    def jokes(self, step, jokes, judgements):
        self.tape.append(f"jokes {step}")

    def flush(self):
        self.tape.append("flush")


def ended(steps=5, *, every=2, evaluate_every=0, control=None, **finish):
    """A session's steps that do nothing but end; what happened, in order."""
    tape = []
    log, store = TapeLog(tape), Store(tape)
    config = PPOConfig(steps=steps, batch_size=4, sampling=SHORT, checkpoint_every=every, evaluate_every=evaluate_every)

    def evaluate(_):
        tape.append("evaluate")
        return {"score": 0.25}

    session, _ = session_of(config, student(), store, log=log, evaluate=evaluate, control=control)
    with session:
        while not session.done and not session.control.ending:
            session.step += 1
            session.finish_step({"number": 7.0}, **finish)
    return tape, log, store, session


def test_every_other_step_and_the_last_one_are_saved():
    tape, _, store, session = ended(score=0.5)
    assert [step for step, _, _ in store.saved] == [2, 4, 5]
    assert all(score == 0.5 for _, score, _ in store.saved)
    assert session.result().checkpoint == Path("step-5")
    assert tape[-3:] == ["metrics 5", "flush", "save 5"], "a checkpoint never outlives the log of its steps"
    assert [t for t in tape if t.startswith("metrics")] == [f"metrics {n}" for n in range(1, 6)]
    result = session.result()
    assert (result.steps, result.stopped, result.why) == (5, False, "")


def test_a_step_that_asks_to_be_saved_is():
    _, _, store, _ = ended(3, every=100, save=True)
    assert [step for step, _, _ in store.saved] == [1, 2, 3]


def test_a_run_that_a_limit_ends_is_saved_there_and_says_why():
    control = RunControl(Limits(samples=1))
    control.count(1, 1)
    _, _, store, session = ended(5, every=100, control=control)
    assert [step for step, _, _ in store.saved] == [1]
    result = session.result()
    assert (result.steps, result.stopped) == (1, False)
    assert result.why == "the limit of 1 samples is reached (1 taken)"


def test_evaluations_come_when_they_are_due_and_their_time_is_not_the_runs():
    tape, log, _, session = ended(5, every=100, evaluate_every=2)
    assert tape.count("evaluate") == 2
    assert [row.get("eval/score") for row in log.rows] == [None, 0.25, None, 0.25, None]
    assert session.evaluations == [{"step": 2.0, "score": 0.25}, {"step": 4.0, "score": 0.25}]
    assert tape.index("evaluate") < tape.index("metrics 2")
    assert all(row["number"] == 7.0 and row["learning_rate"] == 1e-3 for row in log.rows)


def test_lines_are_logged_where_there_are_some():
    joke = Joke(Prompt("p", "It was slow."), "So slow.")
    tape, _, _, _ = ended(1, jokes=[joke], judgements=[Judgement("c", 0.5)])
    assert tape[:2] == ["metrics 1", "jokes 1"]
    tape, _, _, _ = ended(1)
    assert "jokes 1" not in tape


@pytest.mark.parametrize(("kl", "limit", "stops"), [(0.5, 0.5, False), (0.51, 0.5, True), (float("inf"), 1e9, True)])
def test_a_kl_past_its_limit_ends_a_run_unsaved(kl, limit, stops):
    if not stops:
        assert ended(1, kl_per_token=kl, kl_limit=limit)[2].saved
        return
    with pytest.raises(TrainingStopped, match=r"Stopped at step 1: the KL is .*Nothing was saved yet"):
        ended(1, kl_per_token=kl, kl_limit=limit)


def test_a_weight_that_is_no_number_ends_a_run_before_it_is_saved():
    tape = []
    one = student()
    session, _ = session_of(PPOConfig(steps=3, batch_size=4, checkpoint_every=1), one, Store(tape))
    session.step = 1
    session.finish_step({})
    last = list(session.policy.values())[-1]
    with torch.no_grad():
        last[0, 0] = float("inf")
    session.step = 2
    with pytest.raises(
        TrainingStopped, match=r"Stopped at step 2: a weight is no longer finite. The last good .*step-1"
    ):
        session.finish_step({})
    assert tape == ["save 1"]


def test_each_group_gets_its_share_of_its_own_rate():
    """Warm-up of four steps: a quarter of the rate in the first, and the monitor's rate on top of it."""
    config = PPOConfig(steps=8, batch_size=4, warmup_steps=4, decay="linear", learning_rate=0.5)
    control = RunControl()
    session, _ = session_of(config, student(), None, control=control, value_rate=0.25)
    rates = lambda: [group["lr"] for group in session.optimizer.param_groups]  # noqa: E731
    session.set_learning_rate(8)
    assert rates() == [0.125, 0.0625]
    session.step = 3
    session.set_learning_rate(8)
    assert rates() == [0.5, 0.25]
    session.step = 6
    session.set_learning_rate(8)
    assert rates() == pytest.approx([0.5 * 0.55, 0.25 * 0.55])
    control.monitor = SimpleNamespace(rate=0.5)
    session.set_learning_rate(8)
    assert rates() == pytest.approx([0.25 * 0.55, 0.125 * 0.55])
    assert session.optimizer.param_groups[0]["weight_decay"] == 0.0


def test_a_session_trains_policy_and_value_head_and_nothing_once_it_is_over():
    one = student()
    session, _ = session_of(CONFIG, one, None)
    trained = lambda: {n for n, p in one.model.named_parameters() if p.requires_grad}  # noqa: E731
    with session:
        assert trained() == {n for n, _ in one.model.named_parameters() if ".policy." in n}
        assert all(p.requires_grad for p in one.value_head.parameters())
    assert not trained()
    assert not any(p.requires_grad for p in one.value_head.parameters())
    without, _ = session_of(CONFIG, one, None, value_rate=None)
    with without:
        assert len(without.optimizer.param_groups) == 1
        assert not any(p.requires_grad for p in one.value_head.parameters())


def test_a_session_takes_the_policy_and_keeps_only_what_it_is_given():
    one = student()
    one.activate("imitation")
    stir(one, "policy")
    rows = one.rows_from_text(["The meeting was slow."], ["It was."])
    bare = OnPolicySession(CONFIG, vector_env(4), one, None, prompts())
    assert torch.equal(one.score(rows).logprobs, one.score_in_batches(rows, adapter="policy", merge=False).logprobs)
    tape = []
    bare.checkpoints = Store(tape)
    bare.save()
    assert tape == ["save 0"]


def test_a_session_without_an_end_of_its_own_asks_in_every_step():
    assert Session.asks.fget(None) is True


# -- the disk ---------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Each file, then their folder, then the name, then the folder that holds it: a power cut at any moment leaves
    nothing that looks whole and is not."""
    tape = []
    honest_sync, honest_rename = os.fsync, Path.rename

    def sync(handle):
        place = Path(os.readlink(f"/proc/self/fd/{handle}"))
        tape.append(("sync", place.name, place.stat().st_size if place.is_file() else None))
        honest_sync(handle)

    def rename(self, target):
        tape.append(("rename", self.name, Path(target).name))
        return honest_rename(self, target)

    store = CheckpointStore(tmp_path / "c")
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", rename)
    folder = store.save(7, {"w": torch.ones(3)}, {"a": 1})
    sizes = {p.name: p.stat().st_size for p in folder.iterdir()}
    synced = [(name, size) for what, name, size in tape[:4] if what == "sync"]
    assert dict(synced) == sizes, "with all of their bytes"
    assert [name for name, _ in synced][-2:] == ["manifest.json", "manifest.sha256"]
    assert tape[4:] == [
        ("sync", "step-00000007.writing", None),
        ("rename", "step-00000007.writing", "step-00000007"),
        ("sync", "c", None),
    ]


def test_handles_are_given_back(tmp_path):
    store = CheckpointStore(tmp_path)
    log = RunLog(tmp_path)
    log.metrics(1, {"a": 1.0})
    store.save(1, {"w": torch.ones(3)}, {})
    before = len(os.listdir("/proc/self/fd"))
    for step in range(2, 6):
        store.save(step, {"w": torch.ones(3)}, {})
        log.flush()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_manifest_holds_step_score_time_and_both_hashes(tmp_path):
    folder = CheckpointStore(tmp_path).save(3, {"w": torch.ones(2)}, {"a": 1}, score=0.25, seconds=1.5)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["step"], manifest["score"], manifest["seconds"]) == (3, 0.25, 1.5)
    for name in ("tensors.safetensors", "state.json"):
        assert manifest["sha256"][name] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    seal = (folder / "manifest.sha256").read_text()
    assert seal == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert CheckpointStore(tmp_path).latest().seconds == 1.5


def test_a_checkpoint_of_the_first_version_without_a_seal_is_read(tmp_path):
    folder = CheckpointStore(tmp_path).save(3, {"w": torch.ones(2)}, {"a": 1})
    (folder / "manifest.sha256").unlink()
    assert CheckpointStore(tmp_path).latest().state == {"a": 1}


def test_a_step_saved_again_replaces_itself(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, {"w": torch.zeros(2)}, {"a": 1})
    assert store.save(1, {"w": torch.ones(2, requires_grad=True)}, {"a": 2}) == tmp_path / "step-00000001"
    assert store.latest().state == {"a": 2}
    assert torch.equal(store.latest().tensors["w"], torch.ones(2))
    (tmp_path / "step-00000002.writing").write_text("in the way")
    with pytest.raises(CheckpointError, match="The checkpoint of step 1 is intact"):
        store.save(2, {"w": torch.ones(2)}, {})
    assert store.damaged == []


def test_of_equal_scores_the_newest_stays_and_one_without_a_score_has_no_claim(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=0)  # at least one is always kept
    for step, score in enumerate([0.5, 0.5, None, 0.2], start=1):
        store.save(step, {"w": torch.ones(1)}, {}, score)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000004"]
    (tmp_path / "step-00000002" / "manifest.json").write_text("{")
    store.save(5, {"w": torch.ones(1)}, {}, 0.1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]
    none = CheckpointStore(tmp_path / "none", keep_last=2)
    for step in (1, 2, 3):
        none.save(step, {"w": torch.ones(1)}, {})
    assert sorted(p.name for p in none.folder.iterdir()) == ["step-00000002", "step-00000003"]


def test_a_damaged_one_is_listed_once_however_often_it_is_looked_for(tmp_path):
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        store.save(step, {"w": torch.ones(1)}, {})
    (tmp_path / "step-00000002" / "state.json").write_text("{")
    store.latest()
    store.latest()
    assert len(store.damaged) == 1


# -- the log ----------------------------------------------------------------------------------------------------------


def test_a_log_parts_clock_and_numbers_and_shows_both(tmp_path):
    shown = []
    log = RunLog(tmp_path / "a" / "b", echo=lambda step, numbers: shown.append((step, numbers)))
    numbers = {"reward": 0.5, "seconds/step": 2.0, "tokens_per_second": 9.0}
    log.metrics(1, numbers)
    log.metrics(2, {"reward": 0.25})
    read = lambda name: [json.loads(line) for line in (log.folder / name).read_text().splitlines()]  # noqa: E731
    assert read("metrics.jsonl") == [{"step": 1, "reward": 0.5}, {"step": 2, "reward": 0.25}]
    [timed] = read("timings.jsonl")
    assert 0.01 < timed.pop("memory/peak_gib") < 1000  # of this process, which has torch in it
    assert timed == {"step": 1, "seconds/step": 2.0, "tokens_per_second": 9.0}
    assert shown == [(1, numbers), (2, {"reward": 0.25})]
    assert [is_timing(n) for n in ("seconds/x", "a_per_second", "reward/seconds", "per_second_a")] == [
        *(True, True, False, False)
    ]


def test_the_peak_is_of_the_students_gpu(tmp_path, monkeypatch):
    """It was the current GPU's, which was another if the spec named one: 0 GiB in every line."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    reserved = {None: 0, torch.device("cuda:1"): 3 * 2**29}
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device=None: reserved[device])
    for device in ("cuda:1", "cpu"):
        RunLog(tmp_path, device=torch.device(device)).metrics(1, {"seconds/step": 2.0})
    peaks = [json.loads(line)["memory/peak_gib"] for line in (tmp_path / "timings.jsonl").read_text().splitlines()]
    assert peaks == [1.5, 0.0]


def test_a_logged_line_holds_all_that_is_known_of_it(tmp_path):
    joke = Joke(Prompt("p1", "It was slow."), "Glaciers übertook it.", "me", stop_reason="end")
    verdict = Judgement("critic", None, {"form": 0.5}, "why", "away")
    log = RunLog(tmp_path)
    log.jokes(4, [joke], [verdict])
    RunLog(tmp_path, keep_jokes=False).jokes(5, [joke], [verdict])
    line = (tmp_path / "jokes.jsonl").read_text()
    assert line.isascii() and line.count("\n") == 1
    assert json.loads(line) == joke_record(4, joke, verdict)
    assert json.loads(line) == {
        **{"step": 4, "prompt_id": "p1", "prompt": "It was slow.", "text": "Glaciers übertook it.", "author": "me"},
        **{"stop_reason": "end", "critic": "critic", "score": None, "parts": {"form": 0.5}, "reason": "why"},
        "error": "away",
    }
    with pytest.raises(ValueError, match="zip"):
        log.jokes(5, [joke, joke], [verdict])


def test_rewinding_cuts_all_three_files_and_flushing_brings_them_to_the_disk(tmp_path, monkeypatch):
    log = RunLog(tmp_path)
    joke = Joke(Prompt("p", "x"), "y")
    for step in (1, 2, 3):
        log.metrics(step, {"a": 1.0, "seconds/step": 1.0})
        log.jokes(step, [joke], [Judgement("c", 1.0)])
    log.rewind(2)
    for name in ("metrics.jsonl", "timings.jsonl", "jokes.jsonl"):
        assert [json.loads(x)["step"] for x in (tmp_path / name).read_text().splitlines()] == [1, 2], name
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".jsonl"] * 3
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name))
    flush_log(log)
    assert sorted(synced) == ["jokes.jsonl", "metrics.jsonl", "timings.jsonl"]
    (tmp_path / "jokes.jsonl").unlink()
    flush_log(log)
    flush_log(Silent())
    assert len(synced) == 5


def test_a_torn_line_goes_in_silence_and_so_do_empty_ones(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\n{"step": 2}\n{"step": 3}')  # the last one has no end of line: torn
    RunLog(tmp_path).rewind(3)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    assert not caplog.text
    path.write_bytes(b'{"step": 1}\nnoise\n{"step": 2}\nmore\n{"st')
    RunLog(tmp_path).rewind(3)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    assert "dropped 3 damaged lines, the first is line 2" in caplog.text


def test_a_second_ctrl_c_ends_at_once():
    stop = StopRequest()
    assert not stop
    stop._ask(2, None)
    assert stop
    with pytest.raises(KeyboardInterrupt):
        stop._ask(2, None)


# -- limits -----------------------------------------------------------------------------------------------------------


def test_limits_by_hand():
    control = RunControl(Limits(samples=10, judgements=20))
    assert (control.ending, control.by_user, control.steps_before) == ("", False, 0)
    assert (control.samples, control.judgements, control.seconds) == (0, 0, 0.0)
    control.count(9, 19)
    control.check()
    assert control.ending == ""
    control.count(1, 0)
    control.check(asks=False)
    assert control.ending == "", "what was paid for is learned"
    control.check()
    assert control.ending == "the limit of 10 samples is reached (10 taken)"
    control.count(5, 1)
    control.check()
    assert control.ending == (
        "the limit of 10 samples is reached (15 taken); the limit of 20 judgements is reached (20 taken)"
    )
    numbers = control.numbers()
    assert (numbers["spent/samples"], numbers["spent/judgements"]) == (15.0, 20.0)
    other = RunControl()
    other.set_state(control.get_state(), 4.5)
    assert (other.samples, other.judgements, other.seconds) == (15, 20, 4.5)
    other.check()
    assert other.ending == ""
    assert other.rate == 1.0
    assert other.measure_drift(1, None) == {}


@pytest.mark.parametrize("wrong", [0, -1, float("nan")])
@pytest.mark.parametrize("name", ["samples", "judgements", "seconds"])
def test_a_limit_is_above_zero(name, wrong):
    with pytest.raises(InvalidOption, match=f"The limit of {name} must be above 0"):
        Limits(**{name: wrong})


def test_the_clock_of_a_run_stands_still_outside_and_while_paused(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    control = RunControl(Limits(seconds=7.0))
    now[0] += 50
    assert control.seconds == 0.0
    with control:
        now[0] += 3
        assert control.seconds == 3.0
        with control.paused():
            now[0] += 40
            assert control.seconds == 3.0
        now[0] += 2
        assert control.seconds == 5.0
        control.check(asks=False)
        assert control.ending == ""
        now[0] += 2
        control.check(asks=False)
        assert control.ending == "the limit of 7 seconds is reached"
    now[0] += 100
    assert control.seconds == 7.0
    with control.paused():  # outside a run there is nothing to pause, and nothing goes on after it
        now[0] += 5
    now[0] += 5
    assert control.seconds == 7.0
    with control:
        now[0] += 1
    assert control.numbers()["seconds/spent"] == 8.0


def test_the_clock_stands_still_until_every_process_has_evaluated(monkeypatch):
    """Only the main process evaluates: the others waited for it with a running clock, and one late process ends the
    run, so that evaluations used up the budget."""
    now = [100.0]

    def wait_for_the_main_process(flag):
        now[0] += 40
        return flag

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(limits, "any_process", wait_for_the_main_process)
    with RunControl() as control:
        now[0] += 3
        with control.paused():
            pass
        assert now == [143.0]
        assert control.seconds == 3.0


def test_a_wish_to_stop_comes_before_every_limit():
    control = RunControl(Limits(samples=1))
    control.count(1, 0)
    control._stop.requested = True
    control.check()
    assert (control.ending, control.by_user) == ("the user asked it to stop", True)


def test_a_monitor_is_asked_when_it_is_due_counts_through_phases_and_may_end_a_run():
    tape = []

    class Monitor:
        ending, rate = "", 0.5

        def is_due(self, step):
            return step % 5 == 0

        def measure(self, step, student, adapter):
            tape.append(("measure", step, student, adapter))
            return {"drift": 1.0}

        def rewind(self, step):
            tape.append(("rewind", step))

        def get_state(self):
            return {"seen": 3}

        def set_state(self, state):
            tape.append(("state", state))

    control = RunControl(monitor=Monitor())
    assert control.measure_drift(5, "s") == {"drift": 1.0}
    assert control.measure_drift(6, "s", None) == {}
    control.steps_before = 4
    assert control.measure_drift(6, "s", None) == {"drift": 1.0}
    assert tape == [("measure", 5, "s", "policy"), ("measure", 10, "s", None)]
    tape.clear()
    control.start(0, "s")
    assert tape == [("rewind", 4)], "a second phase is no beginning"
    control.steps_before = 0
    control.start(0, "s", None)
    assert tape[1:] == [("rewind", 0), ("measure", 0, "s", None)]
    control.start(5, "s")
    assert tape[3:] == [("rewind", 5)]
    assert control.rate == 0.5
    tape.clear()
    control.set_state(control.get_state(), 0.0)
    assert tape == [("state", {"seen": 3})]
    control.set_state({"samples": 0, "judgements": 0, "monitor": None}, 0.0)
    assert len(tape) == 1
    RunControl().set_state({"samples": 0, "judgements": 0, "monitor": {"seen": 3}}, 0.0)  # it is watched no longer
    control.monitor.ending = "it drifted"
    control.check()
    assert control.ending == "it drifted"
