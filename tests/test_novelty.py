"""The critic `novelty`: by hand, its memory and what a run does with it: kill -9, processes, seeds, evaluations."""

import dataclasses
import json
import os
import signal
import socket
import sys

import pytest
import torch
from accelerate import PartialState
from tiny import prompts, stir, student, vector_env

from humor_env.agents import ppo
from humor_env.agents.session.checkpoint import CheckpointStore
from humor_env.agents.session.limits import RunControl
from humor_env.agents.session.log import Silent
from humor_env.agents.session.monitor import Monitor, MonitorConfig
from humor_env.agents.student import IMITATION
from humor_env.agents.student.sampling import Sampling
from humor_env.checks import check_critic
from humor_env.episodes.critic_memory import show, with_memory
from humor_env.errors import CheckpointError, InvalidOption
from humor_env.registry import critics
from humor_env.rewards.lift import LiftCritic
from humor_env.rewards.mix import MixCritic
from humor_env.rewards.novelty import NoveltyCritic
from humor_env.types import Joke, Judgement, Prompt

P = Prompt("p", "The meeting was slow.")
SHORT = Sampling(max_new_tokens=8)


def told(*texts, prompt=P):
    return [Joke(prompt, text) for text in texts]


# What it pays


def test_an_exact_line_pays_less_each_time_by_hand():
    critic = NoveltyCritic(lines=15)
    paid = []
    for _ in range(4):
        paid.append(critic(told("Hair!"))[0].score)
        critic.remember(told("hair"))
    assert paid[0] == 1
    # One of 15 is 1 - log 2 / log 16 = 3/4; three of 15 are 1/2.
    assert paid[1] == pytest.approx(0.75) and paid[3] == pytest.approx(0.5)
    assert paid == sorted(paid, reverse=True)
    assert critic(told("hair"))[0].reason == "written 4 times before"
    assert critic(told("bald eagles"))[0].score == 1
    assert critic(told(""))[0].score == 0


def test_the_reason_counts_the_lines_that_are_remembered():
    """All lines so far have the pair, and the reason said 30 %: of the room for lines, most of it empty."""
    critic = NoveltyCritic(lines=10)
    critic.remember(told("so slow it hurts", "so slow that eagles left", "so slow my hair grew"))
    [found] = critic(told("so slow again"))
    assert found.reason == "'so slow' is in 100% of the last 3 lines" and found.score == pytest.approx(0.7)


def test_a_word_pair_and_a_frame_pay_less_by_their_share_of_the_memory():
    critic = NoveltyCritic(lines=10)
    critic.remember(told(*(f"The {w} was so {w}y that {w}s left {i}" for i, w in enumerate(["soup", "dog", "cat"]))))
    [found] = critic(told("The phone was so old that museums called."))
    assert found.parts == pytest.approx({"line": 1.0, "pairs": 0.7, "frame": 0.7})
    assert found.score == pytest.approx(0.7)
    assert critic(told("Someone found the end of the meeting on a map."))[0].score == 1
    # What the prompt dictates is nobody's habit.
    [free] = critic(
        told("The phone was so old that museums called.", prompt=Prompt("q", "The phone was so old that people left."))
    )
    assert free.parts["pairs"] == 1 and free.parts["frame"] == 1


def test_the_oldest_lines_are_forgotten_and_the_order_within_a_step_is_nothing():
    critic, other = NoveltyCritic(lines=4), NoveltyCritic(lines=4)
    critic.remember(told("a", "b", "c"))
    critic.remember(told("d", "e", "f"))
    other.remember(told("c", "a", "b"))
    other.remember(told("f", "e", "d"))
    assert critic.get_state() == other.get_state()
    kept = critic.get_state()["memory"]
    assert len(kept) == 4 and set(kept) > {"d", "e", "f"}
    forgotten = set("abc") - set(kept)
    assert len(forgotten) == 2 and all(critic(told(text))[0].score == 1 for text in forgotten)
    assert not critic._same.keys() - set(kept) and sum(critic._same.values()) == 4


def test_asking_changes_nothing():
    critic = NoveltyCritic(lines=9)
    critic.remember(told("hair", "a hat"))
    before = json.dumps(critic.get_state())
    critic(told("hair", "a hat", "a cat"))
    assert json.dumps(critic.get_state()) == before


def test_its_state_goes_through_json_and_odd_ones_are_refused():
    critic, again = NoveltyCritic(lines=5), NoveltyCritic(lines=5)
    critic.remember(told("hair", "hair", "The soup was so cold that it shivered.", "\ud83d lone", ""))
    again.remember(told("something of before"))
    again.set_state(json.loads(json.dumps(critic.get_state())))
    asked = told("hair", "The dog was so old that it left.", "lone", "something of before")
    assert again(asked) == critic(asked) and again.get_state() == critic.get_state()
    smaller = NoveltyCritic(lines=2)
    smaller.set_state(critic.get_state())
    assert len(smaller.get_state()["memory"]) == 2
    for odd in ({}, {"memory": [1]}, None, []):
        with pytest.raises(CheckpointError, match="has no list of lines"):
            again.set_state(odd)
    for bad in (0, True, 1.5):
        with pytest.raises(InvalidOption, match=f"found {bad}"):
            NoveltyCritic(bad)


def test_inside_a_mix_and_a_lift_it_is_found_and_shown():
    mix = critics.make(
        "mix", critics=[{"critic": "rules", "gate": 0.5}, {"critic": "novelty", "options": {"lines": 15}}]
    )
    around = LiftCritic(prompts(9), mix)
    [memory] = with_memory([around, mix, mix])
    assert memory is mix.members[1].critic and with_memory([critics.make("rules")]) == []
    line = "The meeting was so slow that glaciers overtook it."
    assert mix(told(line))[0].score == 1
    show([memory], told(line))
    assert mix(told(line))[0].score == pytest.approx(0.75)
    assert isinstance(mix, MixCritic) and with_memory([lambda jokes: [], None]) == []


# What `check_critic` says


def findings(critic):
    return {found.name: found for found in check_critic(critic)}


def test_check_critic_knows_critics_with_a_memory():
    critic = NoveltyCritic()
    critic.remember(told("hair"))
    before = critic.get_state()
    found = findings(critic)
    assert all(one.ok for one in found.values())
    assert "its scores late in a run are not checked" in found["memory"].sentence
    assert critic.get_state() == before, "the critic is left as it came"
    assert "memory" not in findings(critics.make("rules"))


class Own:
    """A user's critic with a memory, which may have a fault."""

    name = "own"

    def __init__(self, fault=""):
        self.seen, self.fault = [], fault

    def __call__(self, jokes):
        scores = [1 / (1 + self.seen.count(joke.text)) for joke in jokes]
        if self.fault == "asks":
            self.remember(jokes)
        return [Judgement("own", score) for score in scores]

    def remember(self, jokes):
        self.seen += [joke.text for joke in jokes]

    def get_state(self):
        return set(self.seen) if self.fault == "no JSON" else list(self.seen)

    def set_state(self, state):
        self.seen = list(state)[:1] if self.fault == "loses" else list(state)


@pytest.mark.parametrize(
    ("fault", "name", "said"),
    [
        ("asks", "asking", "evaluations call it too: change the memory in remember"),
        ("no JSON", "saved state", "TypeError"),
        ("loses", "saved state", "a resumed run would differ"),
    ],
)
def test_check_critic_finds_a_memory_that_a_run_could_not_keep(fault, name, said):
    assert all(found.ok for found in findings(Own()).values())
    found = findings(Own(fault))
    assert not found[name].ok and said in found[name].sentence


# What a run does with it


def trained(folder=None, steps=4, critic=None, store=CheckpointStore):
    one = student()
    stir(one, IMITATION)
    one.start_policy_from_imitation()
    critic = critic or MixCritic([{"critic": Own(), "name": "own"}, {"critic": "novelty", "options": {"lines": 20}}])
    config = ppo.PPOConfig(steps=steps, batch_size=8, sampling=SHORT, checkpoint_every=2)
    kept = None if folder is None else store(folder / "checkpoints")
    result = ppo.train(config, vector_env(8, critic), one, Silent(), prompts=prompts(), checkpoints=kept)
    return one, critic, result


def test_a_run_shows_it_the_lines_of_each_step_and_nothing_else():
    """Evaluations and the monitor ask the same critic, and leave no trace."""
    asked = []

    class Novelty(NoveltyCritic):
        def __call__(self, jokes):
            asked.append(len(jokes))
            return super().__call__(jokes)

    critic = Novelty(lines=100)
    monitor = Monitor(MonitorConfig(every=1), prompts(8), training=critic)
    config = dataclasses.replace(ppo.PPOConfig(steps=3, batch_size=8, sampling=SHORT), evaluate_every=1)
    one = student()
    ppo.train(
        config, vector_env(8, critic), one, Silent(), prompts=prompts(), control=RunControl(monitor=monitor),
        evaluate=lambda s: {"x": critic(told("an evaluation"))[0].score},
    )  # fmt: skip
    assert len(critic.get_state()["memory"]) == 3 * 8
    assert "an evaluation" not in critic.get_state()["memory"]
    assert sum(asked) >= 3 * 8 + 4 * 8 + 3, "it was asked at each step, each check and each evaluation"


def test_a_resumed_run_remembers_and_goes_on_bit_for_bit(tmp_path):
    whole, remembered, _ = trained(steps=4)
    trained(tmp_path, steps=2)
    resumed, again, result = trained(tmp_path, steps=4)
    assert result.steps == 4
    assert [m.get_state() for m in with_memory([again])] == [m.get_state() for m in with_memory([remembered])]
    mine, theirs = resumed.state(), whole.state()
    assert all(mine[n].equal(theirs[n]) for n in theirs)


def test_a_memory_that_is_not_there_is_no_beginning(tmp_path):
    trained(tmp_path, steps=2)
    with pytest.raises(CheckpointError, match="holds the memory of 2 critics, but this run has 1 with a memory"):
        trained(tmp_path, steps=4, critic=NoveltyCritic())


def test_killed_runs_end_like_one_that_was_not(tmp_path):
    """A run in a process of its own is killed by signal 9 after each of its first checkpoints."""

    def run(folder, kill_at=None):
        class Killed(CheckpointStore):
            def save(self, step, *rest, **more):
                super().save(step, *rest, **more)
                if step == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        return forked(lambda: trained(folder, steps=6, store=Killed))

    assert ended(run(tmp_path / "whole")) == 0
    for kill_at in (2, 4):
        assert ended(run(tmp_path / "killed", kill_at)) == -signal.SIGKILL
    assert ended(run(tmp_path / "killed")) == 0
    whole, killed = (CheckpointStore(tmp_path / name / "checkpoints").latest() for name in ("whole", "killed"))
    assert whole.step == killed.step == 6
    assert whole.state["critics"] == killed.state["critics"] and len(whole.state["critics"][1]["memory"]) == 20
    assert all(killed.tensors[n].equal(t) for n, t in whole.tensors.items() if n.startswith("student/"))


def test_two_processes_remember_what_one_would(tmp_path):
    """With two attempts an episode, the lines of two processes come in another order than those of one."""

    def run(share, out):
        critic = NoveltyCritic(lines=100)
        config = ppo.PPOConfig(steps=2, batch_size=8, sampling=SHORT)
        ppo.train(config, vector_env(share, critic, attempts=2), student(), prompts=prompts())
        out.write_text(json.dumps(critic.get_state()))

    def run_of_two(rank, port):
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "1"}
        os.environ.update(place | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"})
        PartialState._reset_state()
        assert PartialState(cpu=True).num_processes == 2
        run(4, tmp_path / f"of-two-{rank}.json")

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [forked(lambda rank=rank: run_of_two(rank, port)) for rank in (0, 1)]
    assert [ended(child) for child in children] == [0, 0]
    run(8, tmp_path / "one.json")
    one, *two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "of-two-0", "of-two-1"))
    assert one == two[0] == two[1] and len(one["memory"]) == 2 * 8 * 2


def forked(run):
    """A process of its own that has done the imports already."""
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)
        run()
    except BaseException as problem:  # a fork of pytest must not go on as pytest
        print(repr(problem), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
