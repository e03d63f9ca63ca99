"""The drift monitor in a run: what each action does, resuming, imitation and phases."""

import json
import re

import pytest
from tiny import letters_critic, prompts, student, vector_env

from humor_env.agents import brio_dpo, ppo, sft
from humor_env.agents.feedback.pairs import CriticAsJudge, PairConfig
from humor_env.agents.session.checkpoint import CheckpointStore
from humor_env.agents.session.limits import RunControl
from humor_env.agents.session.log import RunLog
from humor_env.agents.session.monitor import Monitor, MonitorConfig
from humor_env.agents.student.sampling import Sampling
from humor_env.types import Demonstration, Judgement

SHORT = Sampling(max_new_tokens=8)


def falling(jokes):
    """The exact judge of these tests: the more of the letter e, the worse."""
    return [Judgement("exact", 1 - j.text.count("e") / max(1, len(j.text))) for j in jokes]


def run(folder, monitor, *, steps=6, log_class=RunLog):
    one = student()
    config = ppo.PPOConfig(steps=steps, batch_size=8, sampling=SHORT, checkpoint_every=2, kl_limit=1e9)
    return ppo.train(
        config,
        vector_env(8),
        one,
        log_class(folder),
        prompts=prompts(),
        checkpoints=CheckpointStore(folder / "c"),
        control=RunControl(monitor=monitor),
    )


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def make(folder, action, **settings):
    """A monitor that is alarmed at its third check, and always from then on: any line is too long."""
    monitor = Monitor(
        MonitorConfig(**({"action": action, "every": 2, "lines": 8, "commonest": 0, "variety": 0} | settings)),
        prompts(),
        training=letters_critic(),
        held_out=falling,
        sampling=SHORT,
        folder=folder,
        say=lambda _: None,
    )
    drifted, looked = monitor._drifted, []

    def from_the_third_on(numbers):
        looked.append(numbers)
        first = dict(monitor._first)
        if monitor._seen >= 2:
            monitor._first["length"] = 0.01
        found = drifted(numbers)
        monitor._first = first
        return found

    monitor._drifted = from_the_third_on
    return monitor


def test_stop_ends_the_run_saved_and_told_and_it_stays_ended(tmp_path):
    result = run(tmp_path, make(tmp_path, "stop"))
    assert (result.steps, result.stopped) == (4, False)
    assert re.match(r"the monitor saw the run drift: lines are \d+\.\d+ times as long as at first", result.why)
    assert CheckpointStore(tmp_path / "c").latest().step == 4
    seen = rows(tmp_path / "drift.jsonl")
    assert [r["step"] for r in seen] == [0, 2, 4]
    assert [[m["limit"] for m in r["marks"]] for r in seen] == [[], [], ["longer"]]
    assert seen[-1]["marks"][0]["why"] in result.why
    assert [("drift/held_out" in r) for r in rows(tmp_path / "metrics.jsonl")] == [False, True, False, True]
    again = run(tmp_path, make(tmp_path, "stop"))
    assert (again.steps, again.why) == (4, result.why)
    # Whoever examines it and finds it harmless continues.
    assert run(tmp_path, make(tmp_path, "warn")).steps == 6


def test_warn_goes_on_and_slow_learns_slower(tmp_path):
    assert run(tmp_path / "warn", make(tmp_path / "warn", "warn")).why == ""
    assert run(tmp_path / "slow", make(tmp_path / "slow", "slow", slowdown=0.25)).steps == 6
    rate = [[r["learning_rate"] for r in rows(tmp_path / name / "metrics.jsonl")] for name in ("warn", "slow")]
    assert rate[0] == [1e-3] * 6
    assert rate[1] == pytest.approx([1e-3] * 4 + [2.5e-4] * 2)
    assert [r["drift/rate"] for r in rows(tmp_path / "slow" / "drift.jsonl")] == [1, 1, 0.25, 0.0625]


def test_a_resumed_run_sees_what_the_whole_one_saw(tmp_path):
    class PullThePlug(Exception):
        pass

    class Fragile(RunLog):
        def metrics(self, step, numbers):
            super().metrics(step, numbers)
            if step == 5:
                raise PullThePlug

    def plain(folder):
        return Monitor(
            MonitorConfig(every=1, lines=8), prompts(), training=letters_critic(), held_out=falling, folder=folder
        )

    run(tmp_path / "whole", plain(tmp_path / "whole"))
    with pytest.raises(PullThePlug):
        run(tmp_path / "cut", plain(tmp_path / "cut"), log_class=Fragile)
    run(tmp_path / "cut", plain(tmp_path / "cut"))
    for name in ("drift.jsonl", "metrics.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    assert [r["step"] for r in rows(tmp_path / "cut" / "drift.jsonl")] == [0, 1, 2, 3, 4, 5, 6]


def test_imitation_and_phases_are_watched_too(tmp_path):
    def plain(folder):
        return RunControl(
            monitor=Monitor(MonitorConfig(every=2, lines=8, same_line=0), prompts(), held_out=falling, folder=folder)
        )

    lines = [Demonstration(p, text, "t") for p in prompts() for text in ("Glaciers overtook it.", "Even we slept.")]
    sft.train(sft.SFTConfig(epochs=2, batch_size=4), student(), lines, control=plain(tmp_path / "sft"))
    assert [r["step"] for r in rows(tmp_path / "sft" / "drift.jsonl")] == [0, 2, 4, 6, 8]
    pairs = PairConfig(candidates=3, sampling=SHORT, length_filter="off")
    config = brio_dpo.BRIODPOConfig(
        brio=brio_dpo.BRIOConfig(epochs=1, pairs=pairs, pairs_of="teacher", batch_size=4),
        dpo=brio_dpo.DPOConfig(epochs=2, pairs=pairs, batch_size=4),
    )
    judge = CriticAsJudge(letters_critic())
    result = brio_dpo.train(
        config, judge, student(), prompts=prompts(), demonstrations=lines, control=plain(tmp_path / "both")
    )
    steps = [r["step"] for r in rows(tmp_path / "both" / "drift.jsonl")]
    assert steps == list(range(0, result.steps + 1, 2))
