"""The vector environment: equal to single ones, one critic call per step, and exact in its refusals."""

import json
import time

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from humor_env.env import HumorEnv
from humor_env.errors import CheckpointError, InvalidAction, InvalidOption, PromptError, ResetNeeded
from humor_env.types import Judgement, Prompt
from humor_env.vector import HumorVectorEnv

LINES = ["dull", "a funnier one", "glaciers overtook it", "", "éclair 🐟", "nul\0", "longer and longer and longer"]


def lines(count, turn):
    return tuple(LINES[(3 * i + 5 * turn + i * turn) % len(LINES)] for i in range(count))


@pytest.mark.parametrize("attempts", [1, 3])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_equals_gymnasiums_own_vector_of_single_envs(prompts, critic, attempts, mode):
    """Observations, rewards, ends and infos, to the bit and to the layout of the info arrays."""
    ours = HumorVectorEnv(prompts, critic, num_envs=5, attempts=attempts, autoreset_mode=mode)
    theirs = SyncVectorEnv([lambda: HumorEnv(prompts, critic, attempts=attempts)] * 5, autoreset_mode=mode)
    assert data_equivalence(ours.reset(seed=3), theirs.reset(seed=3), exact=True)
    for turn in range(40):
        mine, reference = ours.step(lines(5, turn)), theirs.step(lines(5, turn))
        assert data_equivalence(mine, reference, exact=True), turn
        if mode is AutoresetMode.DISABLED and mine[2].any():
            mask = mine[2]
            assert data_equivalence(
                ours.reset(options={"reset_mask": mask}),
                theirs.reset(options={"reset_mask": mask.copy()}),
                exact=True,
            )
    assert ours.np_random_seed == theirs.np_random_seed
    assert [g.random() for g in ours.np_random] == [g.random() for g in theirs.np_random]


def test_autoreset_modes_by_value_and_by_name(prompts, critic):
    """Only the values ("SameStep") were known, not the names that Gymnasium's documentation writes."""
    for mode in AutoresetMode:
        for spelling in (mode, mode.name, mode.value):
            envs = HumorVectorEnv(prompts, critic, num_envs=1, autoreset_mode=spelling)
            assert envs.metadata["autoreset_mode"] is envs.autoreset_mode is mode


def test_next_step_asks_the_critic_about_those_that_act_only(prompts, critic):
    envs = HumorVectorEnv(prompts, critic, num_envs=3, attempts=2, autoreset_mode="NEXT_STEP", render_mode="ansi")
    envs.reset(seed=0)
    envs.step(["a", "fail", "c"])  # the second episode ends early
    before = envs.prompts[1]
    with pytest.raises(ConnectionError):
        envs.step(["raise", "b", "c"])
    assert envs.prompts[1] is before, "an exception leaves the waiting one as it was"
    critic.calls.clear()
    _, rewards, terminations, _, infos = envs.step(["a2", "raise", "c2"])
    assert [[joke.text for joke in call] for call in critic.calls] == [["a2", "c2"]]
    assert (rewards[1], terminations.tolist()) == (0.0, [True, False, True])
    assert infos["_score"].tolist() == [True, False, True]
    assert envs.prompts[1] is not before
    assert "attempt" not in envs.render()[1]


def test_failures_end_single_episodes_early(prompts, critic):
    """One sub-environment's failure must not move the others: episodes of different lengths run side by side."""
    ours = HumorVectorEnv(prompts, critic, num_envs=3, attempts=3)
    singles = [HumorEnv(prompts, critic, attempts=3) for _ in range(3)]
    ours.reset(seed=7)
    seen = [env.reset(seed=7 + i)[0] for i, env in enumerate(singles)]
    failures = 0
    for turn in range(30):
        texts = ["fail" if (turn + 2 * i) % 5 == 0 else LINES[turn % 7] for i in range(3)]
        observations, rewards, terminations, truncations, infos = ours.step(texts)
        for i, env in enumerate(singles):
            seen[i], reward, terminated, _, info = env.step(texts[i])
            assert (rewards[i], terminations[i], truncations[i]) == (reward, terminated, False)
            found = infos
            if terminated:
                assert infos["final_obs"][i] == seen[i]
                found = infos["final_info"]
                seen[i] = env.reset()[0]
            assert (found["error"][i], found["judgement_failed"][i]) == (info["error"], info["judgement_failed"])
            if info["judgement_failed"]:
                failures += 1
                assert np.isnan(found["score"][i])
            else:
                assert found["score"][i] == info["score"]
        assert observations == tuple(seen)
    assert failures > 10


def test_one_critic_call_per_step_and_it_is_kept(prompts, critic):
    envs = HumorVectorEnv(prompts, critic, num_envs=4)
    envs.reset(seed=0)
    judged = envs.prompts
    envs.step(LINES[:4])
    assert [len(call) for call in critic.calls] == [4]
    assert [joke.text for joke in envs.last_jokes] == LINES[:4]
    assert [joke.prompt for joke in envs.last_jokes] == judged
    assert [j.score for j in envs.last_judgements] == [
        critic.score(p.id, text) for p, text in zip(judged, LINES[:4], strict=True)
    ]


def test_required_words_leave_the_order_of_judgements_intact(critic):
    asked = [Prompt("w", "Use walrus.", extra={"words": ["walrus"]}), Prompt("p", "The bus was late.")]
    envs = HumorVectorEnv(asked, critic, num_envs=4)
    envs.reset(seed=0, options={"prompt_ids": ["w", "p", "w", "p"]})
    _, rewards, _, _, infos = envs.step(["no", "a bus", "a walrus", "b bus"])
    assert rewards.tolist() == [0.0] + [
        critic.score(i, t) for i, t in (("p", "a bus"), ("w", "a walrus"), ("p", "b bus"))
    ]
    assert [[joke.text for joke in call] for call in critic.calls] == [["a bus", "a walrus", "b bus"]]
    parts = infos["final_info"]["parts"]
    assert parts["constraint"].tolist() == [0.0, 0.0, 1.0, 0.0]
    assert parts["_constraint"].tolist() == [True, False, True, False]
    critic.calls.clear()
    envs.reset(options={"prompt_ids": ["w"] * 4})
    envs.step(["no"] * 4)
    assert critic.calls == []


def test_a_slow_critic_costs_one_wait(prompts):
    """64 sub-environments with a critic of 50 ms per call: about 50 ms a step, not 3.2 s."""

    def slow(jokes):
        time.sleep(0.05)
        return [Judgement("slow", 0.5) for _ in jokes]

    envs = HumorVectorEnv(prompts, slow, num_envs=64)
    envs.reset(seed=0)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        envs.step(["line"] * 64)
        seconds.append(time.perf_counter() - began)
    assert 0.05 <= min(seconds) < 1.6  # one wait for each of the 64 would be 3.2 s


def test_overhead_beside_the_critic_is_small(prompts, slowness):
    judgement = Judgement("free", 0.5, {"form": 0.5, "meaning": 1.0}, "fine")
    envs = HumorVectorEnv(prompts, lambda jokes: [judgement] * len(jokes), num_envs=256)
    envs.reset(seed=0)
    texts = ["The meeting was so slow that glaciers overtook it."] * 256
    seconds = []
    for _ in range(30):
        began = time.process_time()
        envs.step(texts)
        seconds.append(time.process_time() - began)
    assert min(seconds) / 256 < 20e-6 * slowness()


def test_made_by_name():
    envs = gym.make_vec("humor_env/Paraphrase-v0", num_envs=3, split="dev")
    assert type(envs) is HumorVectorEnv
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    observations, _ = envs.reset(seed=0)
    assert observations in envs.observation_space
    assert isinstance(envs.action_space.sample(), tuple)
    envs.step(envs.action_space.sample())
    assert {p.split for p in envs.prompts} == {"dev"}
    json.loads(envs.spec.to_json())
    wrapped = gym.wrappers.vector.RecordEpisodeStatistics(gym.make_vec("humor_env/Revise-v0", num_envs=2))
    wrapped.reset(seed=0)
    for _ in range(3):
        infos = wrapped.step(("line", "line"))[4]
    assert infos["episode"]["l"].tolist() == [3, 3]
    assert wrapped.episode_count == 2


# --- prompts and seeds ---


def test_siblings_of_one_prompt(prompts, critic):
    envs = HumorVectorEnv(prompts, critic, num_envs=4)
    plain = envs.reset(seed=0)[1]["prompt_id"].tolist()
    envs.reset(seed=0)
    infos = envs.reset(options={"prompt_ids": ["train-3", "train-3", None, "dev-0"]})[1]
    assert infos["prompt_id"].tolist()[:2] == ["train-3", "train-3"]
    assert infos["prompt_id"][3] == "dev-0"
    assert infos["prompt_id"][2] != plain[2], "None goes on in the order"
    assert envs.reset(options={"prompt_id": "ood-0"})[1]["prompt_id"].tolist() == ["ood-0"] * 4


def test_seeds_one_by_one(prompts, critic):
    envs = HumorVectorEnv(prompts, critic, num_envs=3)
    by_int = envs.reset(seed=np.int64(5))[0]
    assert envs.reset(seed=[5, 6, 7])[0] == by_int
    again = envs.reset(seed=[5, None, 7])[0]
    assert (again[0], again[2]) == (by_int[0], by_int[2])
    assert again[1] != by_int[1], "without a seed the order goes on"
    with pytest.raises(InvalidOption, match="3 sub-environments, found 2 seeds"):
        envs.reset(seed=[1, 2])


def test_epochs_per_sub_environment(prompts, critic):
    envs = HumorVectorEnv(prompts, critic, num_envs=2, split="dev")
    seen = [envs.reset(seed=0)[1]["prompt_id"]] + [envs.step(["a", "b"])[4]["prompt_id"] for _ in range(7)]
    for column in np.array(seen).T:
        assert sorted(column[:4]) == sorted(column[4:]) == ["dev-0", "dev-1", "dev-2", "dev-3"]


# --- saved states ---


@pytest.mark.parametrize("mode", ["SameStep", "Disabled", "NEXT_STEP"])
def test_a_saved_state_continues_exactly(prompts, critic, mode):
    def made():
        return HumorVectorEnv(prompts, critic, num_envs=3, attempts=2, autoreset_mode=mode)

    def turn(envs, i):
        step = envs.step(lines(3, i))
        if mode == "Disabled" and step[2].any():
            return step, envs.reset(options={"reset_mask": step[2]})
        return step

    envs, other = made(), made()
    other.set_state(json.loads(json.dumps(envs.get_state())))
    envs.reset(seed=1)
    for i in range(9):
        turn(envs, i)
    state = json.loads(json.dumps(envs.get_state()))
    other.set_state(state)
    for i in range(30):
        assert data_equivalence(turn(envs, i), turn(other, i), exact=True)


def test_foreign_states_are_refused(prompts, critic):
    envs = HumorVectorEnv(prompts, critic, num_envs=3)
    envs.reset(seed=0)
    before = envs.get_state()
    two = HumorVectorEnv(prompts, critic, num_envs=2)
    two.reset(seed=0)
    lacking = envs.get_state()
    lacking["envs"][1]["episode"] = None
    for state, says in [
        (two.get_state(), "has 2 sub-environments, but this environment has 3"),
        ({"rules": {**before["rules"], "digest": "0"}}, "digest"),
        (lacking, "lacks"),
        ({"envs": []}, "must come from get_state"),
    ]:
        with pytest.raises(CheckpointError, match=says):
            envs.set_state(state)
        assert envs.get_state() == before


# --- refusals ---


@pytest.mark.parametrize(
    ("actions", "says"),
    [
        (["a", "b"], "3 sub-environments, found 2 actions"),
        (["a", "b", "c", "d"], "found 4 actions"),
        ("abc", "list of 3 texts, found str"),
        (None, "found NoneType"),
        (["a", None, "c"], "Action 1: An action must be the text of a joke"),
        (["a", "b", "x" * 31], "Action 2: The text has 31 characters"),
        (["\ud800", "b", "c"], "Action 0: .*lone surrogate"),
    ],
)
def test_bad_actions_change_nothing(prompts, critic, actions, says):
    envs = HumorVectorEnv(prompts, critic, num_envs=3, attempts=2, max_chars=30)
    envs.reset(seed=0)
    envs.step(["a", "b", "c"])
    before = envs.get_state()
    with pytest.raises(InvalidAction, match=says):
        envs.step(actions)
    assert envs.get_state() == before


def test_a_critics_exception_changes_nothing(prompts, critic):
    envs = HumorVectorEnv(prompts, critic, num_envs=2, attempts=2)
    envs.reset(seed=0)
    before = envs.get_state()
    with pytest.raises(ConnectionError):
        envs.step(["fine", "raise"])
    assert envs.get_state() == before


def test_steps_out_of_turn(prompts, critic):
    envs = HumorVectorEnv(prompts, critic, num_envs=3, autoreset_mode="Disabled")
    with pytest.raises(ResetNeeded, match="before the first reset"):
        envs.step(["a"] * 3)
    with pytest.raises(ResetNeeded, match="reset_mask before"):
        envs.reset(options={"reset_mask": np.array([True, False, False])})
    envs.reset(seed=0)
    envs.step(["a"] * 3)
    assert envs.over.tolist() == [True] * 3
    envs.reset(options={"reset_mask": np.array([True, False, True])})
    assert envs.over.tolist() == [False, True, False]
    calls = len(critic.calls)
    with pytest.raises(ResetNeeded, match="sub-environments 1 have ended"):
        envs.step(["a"] * 3)
    assert len(critic.calls) == calls


def test_bad_reset_options_change_nothing(prompts, critic):
    envs = HumorVectorEnv(prompts, critic, num_envs=2)
    envs.reset(seed=0)
    before = envs.get_state()
    for options, error in [
        ({"prompt_ids": ["train-0"]}, InvalidOption),
        ({"prompt_ids": "ab"}, InvalidOption),
        ({"prompt_ids": ["train-0", "nobody"]}, PromptError),
        ({"prompt_ids": [None, None], "prompt_id": "train-0"}, InvalidOption),
        ({"prompt_idz": []}, InvalidOption),
        ({"reset_mask": [True, False]}, InvalidOption),
        ({"reset_mask": np.array([1, 0])}, InvalidOption),
        ({"reset_mask": np.array([True])}, InvalidOption),
        ({"reset_mask": np.array([False, False])}, InvalidOption),
    ]:
        with pytest.raises(error):
            envs.reset(seed=4, options=options)
        assert envs.get_state() == before
    mask = {"reset_mask": np.array([True, False])}
    envs.reset(options=mask)
    assert "reset_mask" in mask, "wrappers look at the options after us"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_envs": 0}, "num_envs must be a whole number of at least 1, found 0"),
        ({"num_envs": True}, "num_envs"),
        ({"autoreset_mode": "never"}, "autoreset_mode must be one of Gymnasium's \"NEXT_STEP\", .*found 'never'"),
        ({"autoreset_mode": None}, "found None"),
        ({"attempts": 0}, "attempts"),
        ({"render_mode": "human"}, "render_mode must be 'ansi' or None"),
    ],
)
def test_bad_arguments(prompts, critic, options, says):
    with pytest.raises(InvalidOption, match=says):
        HumorVectorEnv(prompts, critic, **options)


def test_rendering_shows_the_lines_just_judged(prompts, critic):
    envs = HumorVectorEnv(prompts, critic, num_envs=2, render_mode="ansi")
    assert envs.render() is None
    envs.reset(options={"prompt_ids": ["train-0", "train-1"]})
    assert envs.render() == (
        "[train-0] The train thing number 0 was slow.",
        "[train-1] The train thing number 1 was slow.",
    )
    envs.step(["first line", "second line"])
    shown = envs.render()
    assert shown[0].startswith("[train-0]")
    assert "attempt 1: first line" in shown[0]
    assert f"score {critic.score('train-1', 'second line'):.2f}" in shown[1]
