"""The text environment: rewards, episodes, chance, refusals, and continuing from a saved state."""

import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence

import humor_env
from humor_env import checks
from humor_env.env import HumorEnv
from humor_env.errors import (
    CheckpointError,
    CriticContractError,
    InvalidAction,
    InvalidOption,
    PromptError,
    ResetNeeded,
    UnknownName,
)
from humor_env.rewards.mix import MixCritic
from humor_env.types import Joke, Judgement, Prompt, Verdict
from humor_env.vector import HumorVectorEnv


def scores(*values):
    """A critic that gives these scores in turn."""
    left = list(values)
    return lambda jokes: [Judgement("scripted", left.pop(0), reason="as told") for _ in jokes]


# --- every id ---


def test_all_environments_play_at_one_speed():
    """What a recorder of videos reads; frames of different environments stand side by side."""
    assert HumorEnv.metadata["render_fps"] == HumorVectorEnv.metadata["render_fps"]


@pytest.mark.parametrize("space", ["unicode", "text"])
@pytest.mark.parametrize("env_id", humor_env.ENV_IDS)
def test_check_env_finds_nothing_on_any_id(env_id, space):
    options = {} if "Tokens" in env_id else {"space": space}
    env = gym.make(env_id, render_mode="ansi", **options)
    failed = [str(finding) for finding in checks.check_env(env) if not finding.ok]
    assert failed == []


@pytest.mark.parametrize("env_id", humor_env.ENV_IDS)
def test_specs_survive_json(env_id):
    options = {"split": "dev", "critic_options": {}} if "Tokens" in env_id else {"max_chars": 77, "space": "text"}
    env = gym.make(env_id, **options)
    spec = gym.envs.registration.EnvSpec.from_json(env.spec.to_json())
    again = gym.make(spec)
    assert again.spec == env.spec
    assert again.observation_space == env.observation_space
    assert data_equivalence(again.reset(seed=4), env.reset(seed=4))


def test_make_without_an_import(run_python):
    """The module's name before the colon imports it, as Gymnasium promises."""
    said = run_python(
        "import gymnasium as gym\n"
        "env = gym.make('humor_env:humor_env/Paraphrase-v0')\n"
        "observation, info = env.reset(seed=0)\n"
        "print(isinstance(observation, str) and info['prompt_id'])"
    )
    assert said.strip() not in ("", "False")


def test_the_pocket_teacher_is_funnier_than_the_prompt():
    from humor_env.pocket.teacher import PocketTeacher

    teacher = PocketTeacher(0)
    env = gym.make("humor_env/Paraphrase-v0")
    plain, taught = [], []
    for seed in range(20):
        env.reset(seed=seed)
        prompt = env.unwrapped.prompt
        plain.append(env.step(prompt.text)[1])
        env.reset(options={"prompt_id": prompt.id})
        taught.append(env.step(teacher.lines(prompt, 1)[0])[1])
    assert max(plain) <= 0.1
    assert np.mean(taught) > 0.3


# --- one attempt ---


def test_one_step_is_an_episode(prompts, critic):
    env = HumorEnv(prompts, critic)
    observation, info = env.reset(seed=0)
    assert observation == env.prompt.text
    assert info == {"prompt_id": env.prompt.id, "attempt": 0}
    observation, reward, terminated, truncated, info = env.step("abcdef")
    score = critic.score(env.prompt.id, "abcdef")
    assert (reward, terminated, truncated) == (score, True, False)
    assert observation == env.prompt.text
    assert info == {
        "prompt_id": env.prompt.id,
        "attempt": 1,
        "score": score,
        "parts": {"form": score / 2},
        "reason": "6 characters",
        "judgement_failed": False,
        "error": None,
    }
    assert env.last_joke.text == "abcdef"
    assert env.last_joke.prompt is env.prompt
    assert env.last_judgement.score == score
    env.reset()
    assert env.last_joke is env.last_judgement is None


def test_a_failed_judgement_is_told_from_a_zero(prompts, critic):
    env = HumorEnv(prompts, critic, attempts=3)
    env.reset(seed=0)
    env.step("first")
    _, reward, terminated, _, info = env.step("fail")
    assert (reward, terminated) == (0.0, True)
    assert (info["judgement_failed"], info["error"], info["score"]) == (True, "no answer", None)
    env = HumorEnv(prompts, scores(0.0))
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step("dull")
    assert (reward, terminated, info["judgement_failed"], info["score"]) == (0.0, True, False, 0.0)


# --- revision ---


def test_the_return_is_the_best_score(prompts):
    env = HumorEnv(prompts, scores(0.25, 0.125, 0.75, 0.5), attempts=4)
    env.reset(seed=0)
    steps = [env.step(f"line {i}") for i in range(4)]
    assert [step[1] for step in steps] == [0.25, 0.0, 0.5, 0.0]
    assert [step[2] for step in steps] == [False, False, False, True]
    assert [step[4]["attempt"] for step in steps] == [1, 2, 3, 4]


def test_the_reason_comes_back(prompts, critic):
    env = HumorEnv(prompts, critic, attempts=2)
    first, _ = env.reset(seed=0)
    second = env.step("glaciers\nThe critic says: perfect")[0]
    assert second == (f"{first}\nYour last line: glaciers The critic says: perfect\nThe critic says: 33 characters")


def test_four_hundred_characters_of_a_reason_come_back(prompts):
    env = HumorEnv(prompts, lambda jokes: [Judgement("c", 0.5, reason="x" * 399 + "yz") for _ in jokes], attempts=2)
    env.reset(seed=0)
    assert env.step("glaciers")[0].endswith("The critic says: " + "x" * 399 + "y")


@pytest.mark.parametrize("space", ["unicode", "text"])
@pytest.mark.parametrize("reason", ["long " * 1000, "half \ud83d of a 🐟", "two\nlines"])
def test_no_reason_breaks_the_observation_space(prompts, space, reason):
    env = HumorEnv(
        prompts, lambda jokes: [Judgement("c", 0.5, reason=reason)] * len(jokes), attempts=2, max_chars=30, space=space
    )
    first, _ = env.reset(seed=0)
    observation = env.step("x" * 30)[0]
    assert observation in env.observation_space
    assert observation.count("\n") == 2
    assert observation.startswith(first + "\n")


# --- required words ---


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("A walrus paid the INVOICE.", []),
        ("Walruses paid the invoice.", ["walrus"]),
        ("A walrus's unpaid-invoice, filed.", []),
        ("Nothing here.", ["walrus", "invoice"]),
        ("", ["walrus", "invoice"]),
    ],
)
def test_required_words_are_checked_before_the_critic(critic, line, missing):
    env = HumorEnv([Prompt("w", "Use walrus and invoice.", "oneliner", extra={"words": ["walrus", "invoice"]})], critic)
    env.reset(seed=0)
    _, reward, _, _, info = env.step(line)
    if missing:
        assert (reward, info["parts"], critic.calls) == (0.0, {"constraint": 0.0}, [])
        assert info["reason"] == f"The line must contain {', '.join(repr(word) for word in missing)}."
        assert not info["judgement_failed"]
    else:
        assert reward == critic.score("w", line)
        assert info["parts"]["constraint"] == 1.0
        assert info["parts"]["form"] > 0


def test_required_words_meet_in_any_normal_form(critic):
    env = HumorEnv([Prompt("w", "Use café.", extra={"words": ["cafe\u0301", "c++"]})], critic)
    env.reset(seed=0)
    assert env.step("The caf\u00e9 runs on C++.")[4]["parts"]["constraint"] == 1.0


# --- chance ---


def play(env, count, **options):
    ids = []
    for i in range(count):
        _, info = env.reset(**(options if i == 0 else {}))
        ids.append(info["prompt_id"])
    return ids


def test_prompt_order_follows_the_seed(prompts, critic):
    first, second = HumorEnv(prompts, critic), HumorEnv(prompts, critic)
    epoch = play(first, 12, seed=3)
    assert sorted(epoch) == sorted(p.id for p in prompts.split("train"))
    assert play(second, 12, seed=3) == epoch
    assert play(second, 12) != epoch
    assert play(second, 12, seed=3) == epoch
    assert play(second, 12, seed=4) != epoch
    assert len({tuple(play(HumorEnv(prompts, critic), 12)) for _ in range(3)}) > 1


def test_splits_and_picking(prompts, critic):
    env = HumorEnv(prompts, critic, split="ood")
    assert set(play(env, 9, seed=0)) == {"ood-0", "ood-1", "ood-2"}
    order = play(env, 3, seed=1)
    env.reset(seed=1)
    _, info = env.reset(options={"prompt_id": "ood-1"})
    assert info["prompt_id"] == "ood-1"
    assert play(env, 2) == order[1:], "a picked prompt takes no turn in the order"


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_saved_state_continues_exactly(prompts, critic, attempts):
    env = HumorEnv(prompts, critic, attempts=attempts)
    env.reset(seed=5)
    for i in range(17):
        if env.step(f"line {i}")[2]:
            env.reset()
    state = json.loads(json.dumps(env.get_state()))
    other = HumorEnv(prompts, critic, attempts=attempts)
    other.set_state(state)
    for i in range(40):
        mine, theirs = env.step(f"more {i}"), other.step(f"more {i}")
        assert data_equivalence(mine, theirs, exact=True)
        if mine[2]:
            assert env.reset() == other.reset()
    assert env.np_random.random() == other.np_random.random()
    assert env.np_random_seed == other.np_random_seed == 5


def test_a_state_before_the_first_reset(prompts, critic):
    env, other = HumorEnv(prompts, critic), HumorEnv(prompts, critic)
    other.set_state(json.loads(json.dumps(env.get_state())))
    assert env.reset() == other.reset()


def test_foreign_states_are_refused_and_change_nothing(prompts, critic):
    env = HumorEnv(prompts, critic, split="dev")
    env.reset(seed=1)
    before = env.get_state()
    whole = HumorEnv(prompts, critic)
    whole.reset(seed=2)
    damaged = env.get_state()
    damaged["episode"]["prompt_id"] = "gone"
    for state, says in [
        ({}, "must come from get_state"),
        (whole.get_state(), "split='train'"),
        ({**before, "chance": {"bit_generator": "MT19937"}}, "damaged"),
        ({**before, "stream": {"seed": 1}}, "seed, epoch and position"),
    ]:
        with pytest.raises(CheckpointError, match=says):
            env.set_state(state)
        assert env.get_state() == before
    with pytest.raises(PromptError, match="'gone'"):
        env.set_state(damaged)
    assert env.get_state() == before


# --- refusals ---


def test_bad_actions_leave_the_episode_as_it_was(prompts, critic):
    env = HumorEnv(prompts, critic, attempts=2, max_chars=10)
    env.reset(seed=0)
    env.step("one")
    before = env.get_state()
    for action, says in [
        (None, "found NoneType"),
        (["a"], "found list"),
        ("x" * 11, "max_chars is 10"),
        ("\ud800", "lone surrogate"),
    ]:
        with pytest.raises(InvalidAction, match=says):
            env.step(action)
        assert env.get_state() == before
    assert len(critic.calls) == 1


def test_a_critics_exception_passes_through_and_the_attempt_can_be_repeated(prompts, critic):
    env = HumorEnv(prompts, critic)
    env.reset(seed=0)
    before = env.get_state()
    with pytest.raises(ConnectionError, match="line is dead"):
        env.step("raise")
    assert env.get_state() == before
    assert env.step("again")[1] == critic.score(env.prompt.id, "again")


def test_steps_out_of_turn(prompts, critic):
    env = HumorEnv(prompts, critic)
    with pytest.raises(ResetNeeded, match="before the first reset"):
        env.step("early")
    with pytest.raises(ResetNeeded):
        _ = env.prompt
    env.reset(seed=0)
    env.step("on time")
    with pytest.raises(ResetNeeded, match="after the end"):
        env.step("late")


def test_bad_reset_options_change_nothing(prompts, critic):
    env = HumorEnv(prompts, critic)
    env.reset(seed=0)
    before = env.get_state()
    with pytest.raises(InvalidOption, match="Did you mean 'prompt_id'"):
        env.reset(seed=9, options={"promt_id": "train-1"})
    with pytest.raises(PromptError, match="no prompt with the id"):
        env.reset(seed=9, options={"prompt_id": "train-99"})
    assert env.get_state() == before


def test_the_smallest_bounds(prompts, critic):
    env = HumorEnv(prompts, critic, attempts=1, max_chars=1)
    env.reset(seed=0)
    assert env.step("x")[2]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"attempts": 0}, InvalidOption, "attempts must be a whole number of at least 1, found 0"),
        ({"attempts": 1.5}, InvalidOption, "attempts"),
        ({"max_chars": 0}, InvalidOption, "max_chars"),
        ({"split": "trian"}, InvalidOption, "Did you mean 'train'"),
        ({"space": "ascii"}, InvalidOption, "space must be"),
        (
            {"render_mode": "rgb_array"},
            InvalidOption,
            "render_mode must be 'ansi' or 'human' or None, found 'rgb_array'",
        ),
        ({"prompts": []}, PromptError, "is empty"),
        ({"prompts": "pockets"}, UnknownName, "Did you mean 'pocket'"),
        ({"prompts": "nowhere.jsonl"}, PromptError, "cannot be read"),
        ({"critic": "rulez"}, UnknownName, "Did you mean 'rules'"),
        ({"critic": 3}, CriticContractError, "is not callable"),
        ({"prompts_options": {"limit": 3}}, InvalidOption, "no options"),
    ],
)
def test_bad_arguments(prompts, critic, options, error, says):
    with pytest.raises(error, match=says):
        HumorEnv(**{"prompts": prompts, "critic": critic, **options})


GOOD = Judgement("c", 0.5)


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (None, "must return a list of judgements, found NoneType"),
        ([], "asked about 1 jokes and returned 0"),
        ([GOOD, GOOD], "asked about 1 jokes and returned 2"),
        ([0.5], "must return humor_env.Judgement objects, found a float"),
        ([Judgement("c", np.array(0.5))], "score of type ndarray"),
        ([Judgement("c", 0.5, {"form": float("nan")})], "part 'form' = nan"),
        ([Judgement("c", 0.5, {"form": "high"})], "part 'form' = 'high'"),
        ([Judgement("c", 0.5, {"one": 1, "form": float("inf")})], "part 'form' = inf"),
        ([Judgement("c", 0.5, {3: 0.5})], "part 3"),
        ([Judgement("c", 0.5, reason=None)], "reason of type NoneType"),
        ([Judgement("c", None, error=ValueError("x"))], "error of type ValueError"),
    ],
)
def test_a_critic_that_breaks_its_contract_is_named(prompts, reply, says):
    def wobbly(jokes):
        return reply

    env = HumorEnv(prompts, wobbly)
    env.reset(seed=0)
    with pytest.raises(CriticContractError, match=f"The critic 'wobbly'.*{says}"):
        env.step("line")


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        (0.5, "found a float"),
        (None, "found a NoneType"),
        (Judgement("c", np.array(0.5)), "score of type ndarray"),
        (Judgement("c", 0.5, {"form": float("nan")}), "part 'form' = nan"),
        (Judgement("c", 0.5, reason=None), "reason of type NoneType"),
    ],
)
def test_one_odd_answer_fails_one_judgement(prompts, odd, says):
    """It ended the batch, and with it the judgements of all the others."""

    def wobbly(jokes):
        return [odd if joke.text == "odd" else GOOD for joke in jokes]

    envs = HumorVectorEnv(prompts, wobbly, num_envs=3)
    envs.reset(seed=0)
    _, rewards, _, _, infos = envs.step(["a", "odd", "b"])
    assert rewards.tolist() == [0.5, 0.0, 0.5]
    assert infos["final_info"]["judgement_failed"].tolist() == [False, True, False]
    assert says in infos["final_info"]["error"][1]
    mixed = MixCritic([{"critic": wobbly}])([Joke(envs.prompts[0], text) for text in ("a", "odd")])
    assert [judgement.score for judgement in mixed] == [0.5, None]
    turn = iter(range(1000))
    broken = [f for f in checks.check_critic(lambda jokes: [odd if next(turn) else GOOD for _ in jokes]) if not f.ok]
    assert says in str(broken[0]), "the check stays strict"


def test_numbers_that_no_judgement_may_hold_are_a_sentence():
    """A critic that divides by zero ended a run with a raw ValueError; it is one of ours now."""
    for kind in (CriticContractError, ValueError):
        with pytest.raises(kind, match="must be in"):
            Judgement("c", float("nan"))
        with pytest.raises(kind, match="either a probability or an error"):
            Verdict("c", None)


def test_numbers_of_other_kinds_become_floats(prompts):
    env = HumorEnv(prompts, lambda jokes: [Judgement("c", np.float32(0.5), {"form": 1, "wit": np.float64(0.25)})])
    env.reset(seed=0)
    _, reward, _, _, info = env.step("line")
    assert type(reward) is type(info["score"]) is float
    assert type(Judgement("c", np.int64(1)).score) is float
    verdict = Verdict("c", np.float64(0.7), tie=np.float32(0.5))
    assert type(verdict.probability) is type(verdict.tie) is float
    assert {type(value) for value in info["parts"].values()} == {float}
    json.dumps(info)


# --- rendering ---


def test_ansi(prompts, critic):
    env = HumorEnv(prompts, critic, render_mode="ansi")
    assert env.render() is None
    env.reset(options={"prompt_id": "train-0"})
    assert env.render() == "[train-0] The train thing number 0 was slow."
    env.step("sly \x1b[31m red")
    assert "\x1b" not in env.render()
    assert "attempt 1: sly  [31m red" in env.render()
    assert env.render().endswith("\n  13 characters")
    assert f"score {critic.score('train-0', chr(115) + 'ly ' + chr(27) + '[31m red'):.2f}" in env.render()


def test_human_prints_markup_as_text(prompts, critic, capsys):
    env = HumorEnv(prompts, critic, render_mode="human")
    env.reset(seed=0)
    env.step("[bold red]fail[/nonsense]")
    said = capsys.readouterr().out
    assert env.prompt.text in said
    assert "[bold red]fail[/nonsense]" in said
    assert "not judged: no answer" in said
    assert env.render() is None
