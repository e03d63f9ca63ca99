"""Clients that nobody here wrote run the environments unmodified: Stable-Baselines3, Gymnasium vectors and wrappers."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from gymnasium.wrappers import PassiveEnvChecker, RecordEpisodeStatistics, TimeLimit

import humor_env
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


def test_tokens_batch_into_arrays(tokenizer_folder):
    """What any vectorised learner does with the observations: one array per key."""
    envs = SyncVectorEnv([lambda: probe("humor_env/Tokens-v0", tokenizer_folder)] * 3)
    seen, _ = envs.reset(seed=0)
    assert seen["tokens"].shape == (3, envs.single_observation_space["tokens"].shape[0])
    assert seen["tokens"].dtype == np.int64
    assert seen["length"].shape == (3,)
