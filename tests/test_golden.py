"""Small runs give the numbers they gave when they were recorded: to the digit where the arithmetic is the same.

A change that is meant to change numbers records the runs it changes anew: `python tests/golden.py --record NAME ...`.
"""

from __future__ import annotations

import golden
import pytest

from humor_env import registry

RECORDED = golden.read_recorded()
LEFT_OUT = {"trl-sft", "trl-dpo", "trl-grpo", "trl-rloo"}  # another library's learners: its numbers, and slow

SLOW = {
    "sft",
    "ppo-minibatches",
    "brio",
    "brio-teacher",
    "brio-dpo",
    "quickstart",
    "benchmark-cell",
    "reproduction-cell",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden-world")
    golden.make_world(folder)
    return folder


@pytest.fixture(scope="module")
def exact():
    return RECORDED["fingerprint"] == golden.fingerprint()


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in golden.RUNS])
def test_a_run_gives_the_recorded_numbers(name, world, exact):
    wrong = golden.difference(RECORDED["runs"][name], golden.compute(golden.RUNS[name], world), exact=exact)
    assert not wrong, f"{name}: {wrong}"


def test_every_run_is_recorded_and_every_learner_has_one():
    assert list(RECORDED["runs"]) == list(golden.RUNS)
    learners = {run.learner for run in golden.RUNS.values() if isinstance(run, golden.SpecRun)}
    assert learners == set(registry.learners.names()) - LEFT_OUT


def test_a_slightly_different_setting_is_noticed(world, exact):
    """A weight of the KL larger by 0.2 percent, which no metric shows by itself; the first step is still close."""
    run, recorded = golden.RUNS["grpo"], RECORDED["runs"]["grpo"]
    changed = golden.SpecRun(run.learner, run.table, ("learner.kl_weight=0.0501",))
    found = golden.compute(changed, world)
    assert golden.difference(recorded, found, exact=False) == ""
    wrong = golden.difference(recorded, found, exact=True)
    assert wrong and ("in row 1" not in wrong or not exact)


@pytest.mark.parametrize(
    ("change", "exactly", "closely"),
    [
        ({}, "", ""),
        ({"new": [1.0]}, "", ""),
        ({"loss": [0.5, 0.25 + 1e-15]}, "'loss' was 0.25 in row 2, now 0.2500", ""),
        ({"loss": [0.5004, 0.25]}, "'loss' was 0.5 in row 1", ""),
        ({"loss": [0.51, 0.25]}, "'loss' was 0.5 in row 1", "'loss' began with 0.5, now with [0.51]"),
        ({"loss": [0.5]}, "'loss' had 2 values, now 1", ""),
        ({"loss": []}, "'loss' had 2 values, now 0", "'loss' began with 0.5, now with"),
        ({"lines": ["ab", "ce"]}, "'lines' was 'cd' in row 2, now 'ce'", ""),
        ({"steps": 3}, "'steps' was 2, now 3", ""),
    ],
)
def test_what_differs_is_named(change, exactly, closely):
    recorded = {"loss": [0.5, 0.25], "kl": [None, 1e-7], "lines": ["ab", "cd"], "steps": 2}
    found = recorded | change
    for exact, said in ((True, exactly), (False, closely)):
        wrong = golden.difference(recorded, found, exact=exact)
        assert wrong.startswith(said) if said else not wrong


def test_a_missing_metric_is_named_and_a_renamed_one_found(monkeypatch):
    recorded, found = {"loss": [0.5], "kl": [0.0]}, {"loss": [0.5], "divergence": [0.0]}
    assert golden.difference(recorded, found, exact=True) == "'kl' is missing"
    monkeypatch.setitem(golden.RENAMED, "kl", "divergence")
    assert golden.difference(recorded, found, exact=True) == ""
