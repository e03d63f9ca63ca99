"""Clients that nobody here wrote run the environments unmodified: Stable-Baselines3, Gymnasium vectors and wrappers."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import PassiveEnvChecker, RecordEpisodeStatistics, TimeLimit

import humor_env
from humor_env.errors import InvalidAction
from humor_env.types import Judgement, Prompt


@pytest.mark.parametrize(
    ("kind", "space", "options"),
    [
        (SyncVectorEnv, "unicode", {}),
        (SyncVectorEnv, "text", {}),
        (AsyncVectorEnv, "unicode", {}),
        (AsyncVectorEnv, "unicode", {"shared_memory": False}),
        # With shared memory AsyncVectorEnv shows stock texts as they were before the first reset, for ever.
        (AsyncVectorEnv, "text", {"shared_memory": False}),
    ],
)
def test_gymnasiums_vectors_run_the_text_env_by_name(kind, space, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs = kind([lambda: gym.make("humor_env:humor_env/Revise-v0", space=space)] * 3, **options)
        single = gym.make("humor_env/Revise-v0", space=space)
        first, infos = envs.reset(seed=4)
        assert first[0] == single.reset(seed=4)[0]
        lines = ["The tea was so late that glaciers overtook it.", "Café – “slow”!", ""]
        seen, rewards, terminations, _, infos = envs.step(lines)
        observation, reward, *_ = single.step(lines[0])
        assert (seen[0], rewards[0]) == (observation, reward)
        assert first[0] != seen[0]
        assert lines[1] in seen[1]
        assert not terminations.any()
        assert infos["attempt"].tolist() == [1, 1, 1]
        envs.close()


def test_make_vec_in_every_mode():
    seen = {}
    for mode in ("sync", "async", "vector_entry_point"):
        envs = gym.make_vec("humor_env/Paraphrase-v0", num_envs=2, vectorization_mode=mode)
        seen[mode] = envs.reset(seed=1)[0]
        envs.close()
    assert seen["sync"] == seen["async"] == seen["vector_entry_point"]


@pytest.mark.parametrize("env_id", humor_env.ENV_IDS)
def test_wrappers(env_id):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        raw = gym.make(env_id, disable_env_checker=True).unwrapped
        env = RecordEpisodeStatistics(PassiveEnvChecker(TimeLimit(raw, 1000)))
        env.action_space.seed(0)
        for episode in range(3):
            env.reset(seed=episode)
            total, over = 0.0, False
            while not over:
                _, reward, terminated, truncated, info = env.step(env.action_space.sample())
                total += float(reward)
                over = terminated or truncated
            assert info["episode"]["r"] == pytest.approx(total)


def test_a_time_limit_truncates():
    env = gym.make("humor_env/Revise-v0", max_episode_steps=2)
    env.reset(seed=0)
    assert env.step("one")[2:4] == (False, False)
    assert env.step("two")[2:4] == (False, True)


def probe(name, tokenizer_folder):
    """Two prompts, a handful of words, and a critic that wants one of them: small enough to learn in seconds."""

    def wants_glaciers(jokes):
        return [Judgement("glaciers", joke.text.split().count("glaciers") / 4) for joke in jokes]

    prompts = [Prompt("a", "thing was slow"), Prompt("b", "train was slow")]
    return gym.make(name, prompts=prompts, critic=wants_glaciers, tokenizer=tokenizer_folder, max_tokens=4)


@pytest.mark.slow
def test_stable_baselines3_learns_on_tokens(tokenizer_folder):
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_checker import check_env
    from stable_baselines3.common.evaluation import evaluate_policy

    env = probe("humor_env/Tokens-v0", tokenizer_folder)
    check_env(env)
    learner = PPO(
        "MultiInputPolicy", env, n_steps=512, batch_size=128, learning_rate=3e-3, ent_coef=0.01, seed=0, device="cpu"
    )
    before, _ = evaluate_policy(learner, env, n_eval_episodes=100, deterministic=False)
    learner.learn(10_000)
    after, _ = evaluate_policy(learner, env, n_eval_episodes=100, deterministic=False)
    print(f"mean return {before:.3f} before, {after:.3f} after")
    assert before < 0.15
    assert after > 0.6


def some_actions(env_id, envs, chance):
    if env_id == "humor_env/Tokens-v0":
        return chance.integers(0, 20, size=envs.num_envs)  # the end token is among them
    return tuple(f"It was so slow that {chance.integers(9)} glaciers overtook it." for _ in range(envs.num_envs))


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("env_id", humor_env.ENV_IDS)
def test_our_vectors_equal_gymnasiums_in_every_autoreset_mode(env_id, mode):
    """NEXT_STEP was refused, although Gymnasium's own vector wrappers ask for it."""
    ours = gym.make_vec(env_id, num_envs=3, autoreset_mode=mode)
    theirs = gym.make_vec(env_id, num_envs=3, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode})
    assert data_equivalence(ours.reset(seed=3), theirs.reset(seed=3), exact=True)
    chance = np.random.default_rng(0)
    ends = 0
    for turn in range(60):
        actions = some_actions(env_id, ours, chance)
        mine, reference = ours.step(actions), theirs.step(actions)
        assert data_equivalence(mine, reference, exact=True), turn
        ends += int(mine[2].sum())
        if mode is AutoresetMode.DISABLED and mine[2].any():
            mask = {"reset_mask": mine[2]}
            assert data_equivalence(ours.reset(options=dict(mask)), theirs.reset(options=dict(mask)), exact=True)
    assert ends > 5


@pytest.mark.parametrize("mode", ["NEXT_STEP", "DISABLED"])
def test_gymnasiums_vector_wrappers_that_ask_for_a_mode(mode):
    """TransformObservation and FlattenObservation refuse SAME_STEP and could not be used with our vector form."""
    envs = gym.make_vec("humor_env/Tokens-v0", num_envs=2, autoreset_mode=mode)
    flat = gym.wrappers.vector.FlattenObservation(gym.wrappers.vector.RecordEpisodeStatistics(envs))
    observations, _ = flat.reset(seed=0)
    assert observations.shape == flat.observation_space.shape
    observations, *_ = flat.step(np.array([5, 6]))
    assert observations.shape == flat.observation_space.shape
    texts = gym.make_vec("humor_env/Paraphrase-v0", num_envs=2, autoreset_mode=mode)
    counted = gym.wrappers.vector.TransformObservation(texts, lambda texts: tuple(text.upper() for text in texts))
    assert counted.reset(seed=0)[0][0].isupper()


def test_stable_baselines3_by_name_and_its_own_loop(tokenizer_folder):
    """PPO("MultiInputPolicy", "humor_env/Tokens-v0") and `env.step(model.predict(observation)[0])` both failed."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    small = {"n_steps": 4, "batch_size": 4, "seed": 0, "device": "cpu"}
    learner = PPO("MultiInputPolicy", "humor_env/Tokens-v0", **small)
    learner.learn(4)
    assert make_vec_env("humor_env/Tokens-v0", n_envs=2).reset()["tokens"].shape[0] == 2
    env = probe("humor_env/Tokens-v0", tokenizer_folder)
    learner = PPO("MultiInputPolicy", env, **small)
    observation, _ = env.reset(seed=0)
    over = False
    while not over:
        action, _ = learner.predict(observation)
        assert isinstance(action, np.ndarray)
        observation, reward, over, _, info = env.step(action)
    assert info["score"] == reward


def test_maskable_ppo_writes_no_special_token(tokenizer_folder):
    """It found no `action_masks`, though some ids never help: a special token vanishes from the text."""
    from sb3_contrib import MaskablePPO
    from sb3_contrib.common.maskable.utils import get_action_masks

    env = probe("humor_env/Tokens-v0", tokenizer_folder)
    agent = MaskablePPO("MultiInputPolicy", env, n_steps=8, batch_size=8, seed=0, device="cpu")
    agent.learn(16)
    table = env.unwrapped.table
    written = set()
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        over = False
        while not over:
            masks = get_action_masks(env)
            assert masks.shape == (table.size,)
            action, _ = agent.predict(observation, action_masks=masks)
            written.add(int(action))
            observation, _, over, _, _ = env.step(action)
    assert len(written) > 3 and not written & set(table.tokenizer.all_special_ids) - {table.end}


@pytest.mark.parametrize("bad", [np.array([3]), np.array(3.0), np.array(True), np.bool_(True), "3", None])
def test_what_is_no_token_id_stays_refused(tokenizer_folder, bad):
    env = probe("humor_env/Tokens-v0", tokenizer_folder).unwrapped
    env.reset(seed=0)
    with pytest.raises(InvalidAction, match="An action must be a token id"):
        env.step(bad)


@pytest.mark.parametrize("env_id", humor_env.ENV_IDS)
def test_info_as_the_same_numbers_at_every_step(env_id):
    """Tianshou: "Encountered NaNs in buffer" (of a None); TorchRL: "KeyError: prompt_id" (in some infos only)."""
    env = humor_env.NumbersOnlyInfo(
        gym.make(env_id, critic=lambda jokes: [Judgement("c", None, error="no")] * len(jokes))
    )
    env.action_space.seed(0)
    seen = [env.reset(seed=0)[1]]
    over = False
    while not over:
        _, _, over, _, info = env.step(env.action_space.sample())
        seen.append(info)
    assert {tuple(info) for info in seen} == {("attempt", "judgement_failed")}
    assert {type(value) for info in seen for value in info.values()} == {int, bool}
    assert (seen[0], seen[-1]) == (
        {"attempt": 0, "judgement_failed": False},
        {"attempt": 1, "judgement_failed": True},
    )
    assert env.unwrapped.last_judgement.error == "no"
    env = humor_env.NumbersOnlyInfo(gym.make(env_id, critic=lambda jokes: [Judgement("c", 0.5)] * len(jokes)))
    env.action_space.seed(0)
    env.reset(seed=0)
    over = False
    while not over:
        _, _, over, _, info = env.step(env.action_space.sample())
        assert info["judgement_failed"] is False
    assert env.spec.additional_wrappers[-1].name == "NumbersOnlyInfo"


def test_tokens_batch_into_arrays(tokenizer_folder):
    """What any vectorised learner does with the observations: one array per key."""
    envs = SyncVectorEnv([lambda: probe("humor_env/Tokens-v0", tokenizer_folder)] * 3)
    seen, _ = envs.reset(seed=0)
    assert seen["tokens"].shape == (3, envs.single_observation_space["tokens"].shape[0])
    assert seen["tokens"].dtype == np.int64
    assert seen["length"].shape == (3,)
