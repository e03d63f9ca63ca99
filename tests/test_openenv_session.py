"""One session of the environment that a trainer meets over OpenEnv, called without a server."""

import asyncio

import pytest

pytest.importorskip("openenv")

from humor_env import __version__
from humor_env.episodes.episode import Task
from humor_env.errors import InvalidOption
from humor_env.experiments.sharing import openenv
from humor_env.experiments.sharing.openenv import HumorEnvironment, JokeAction, JudgementFailed
from humor_env.experiments.sharing.shared_critic import SharedCritic
from humor_env.prompts import PromptSet
from humor_env.shared.streams import generator
from humor_env.types import Judgement, Prompt

PROMPTS = PromptSet(
    "some",
    [Prompt(f"{s}{i}", f"The {s} {i}.", split=s) for s, n in (("test", 2), ("train", 5), ("dev", 3)) for i in range(n)],
)


def critic(jokes):
    failed = Judgement("mine", None, error="no answer")
    return [failed if j.text == "fail" else Judgement("mine", 0.25, {"p": 0.5}, "because") for j in jokes]


def session(**options):
    return HumorEnvironment(SharedCritic(Task(PROMPTS, critic, **options)))


def act(text):
    return JokeAction(text=text)


def test_a_line_gets_its_score():
    env = session()
    assert (env.state.split, env.state.prompt_id, env.state.over) == ("train", "", True)
    first = env.reset(index=2, episode_id="mine")
    assert (first.prompt, first.prompt_id, first.done, first.reward, first.score) == (
        *("The train 2.", "train2", False, None, None),
    )
    state = env.state
    assert (state.episode_id, state.split, state.prompt_id, state.over, state.step_count) == (
        *("mine", "train", "train2", False, 0),
    )
    seen = env.step(act("x"), 30)
    assert (seen.done, seen.reward, seen.score, seen.parts, seen.reason) == (True, 0.25, 0.25, {"p": 0.5}, "because")
    assert seen.prompt_id == "train2"
    assert (env.state.step_count, env.state.over, env.state.episode_id) == (1, True, "mine")


def test_steps_may_be_waited_for():
    env = session(attempts=2)
    env.reset(index=0)
    seen = asyncio.run(env.step_async(act("x"), 30))
    assert (seen.done, seen.score, env.state.step_count, env.state.over) == (False, 0.25, 1, False)
    assert asyncio.run(env.step_async(act("y"), 30)).done
    assert env.state.step_count == 2


def test_which_prompt_is_given():
    env = session()
    for i in range(5):
        assert env.reset(index=i).prompt_id == f"train{i}"
    assert env.reset(split="dev", index=1).prompt_id == "dev1"
    assert env.state.split == "dev"
    assert env.reset(prompt_id="test1", split="dev").prompt_id == "test1"
    assert session(split="test").reset(index=1).prompt_id == "test1"
    for seed in range(6):
        expected = int(generator(seed, "openenv").integers(5))
        assert env.reset(seed=seed).prompt_id == env.reset(seed=seed).prompt_id == f"train{expected}"
    assert len({env.reset().prompt_id for _ in range(60)}) > 1
    assert len({env.reset(index=0) and env.state.episode_id for _ in range(3)}) == 3


@pytest.mark.parametrize("index", [-1, 5])
def test_an_index_beyond_the_split_is_told(index):
    with pytest.raises(InvalidOption) as caught:
        session().reset(index=index)
    assert str(caught.value) == f"The split 'train' has prompts 0 to 4, found index {index}."


def test_no_step_without_an_episode_and_none_after_it():
    env = session()
    for _ in range(2):
        with pytest.raises(InvalidOption, match=r"^There is no episode in progress: reset first\.$"):
            env.step(act("x"))
        env.reset(index=0)
        env.step(act("x"), 30)


def test_a_line_is_judged_up_to_its_most_characters():
    env = session(max_chars=3)
    env.reset(index=0)
    with pytest.raises(InvalidOption, match=r"^The line has 4 characters; at most 3 are judged\.$"):
        env.step(act("xxxx"))
    assert env.step(act("xxx"), 30).score == 0.25


def test_a_failed_judgement_ends_the_episode_and_is_no_number():
    env = session()
    env.reset(index=0)
    with pytest.raises(JudgementFailed) as caught:
        env.step(act("fail"), 30)
    assert str(caught.value) == "The critic gave no score (no answer): leave this episode out and reset."
    assert (env.state.over, env.state.step_count) == (True, 1)


def test_the_tasks_of_each_split():
    env = session()
    assert env.list_splits() == [
        {"name": "train", "num_tasks": 5},
        {"name": "dev", "num_tasks": 3},
        {"name": "test", "num_tasks": 2},
    ]
    assert env.num_tasks("dev") == 3
    assert env.get_task("dev", 1) == {"index": 1, "prompt_id": "dev1", "prompt": "The dev 1."}
    assert env.list_tasks("test") == [env.get_task("test", 0), env.get_task("test", 1)]


def test_it_says_what_it_is():
    found = session().get_metadata()
    assert (found.name, found.version) == ("humor_env", __version__)
    assert found.description == ("Make a literal sentence humorous; the critic 'critic' scores the line from 0 to 1.")
    assert HumorEnvironment.SUPPORTS_CONCURRENT_SESSIONS


def test_the_app_has_one_critic_for_all_sessions(monkeypatch):
    made = []
    monkeypatch.setattr(openenv, "create_app", lambda *a, **o: made.append((a, o)) or "app")
    assert openenv.make_app(Task(PROMPTS, critic)) == openenv.make_app(Task(PROMPTS, critic), sessions=3) == "app"
    ((make, *kinds), options), (_, few) = made
    assert kinds == [JokeAction, openenv.JokeObservation]
    assert options == {"env_name": "humor_env", "max_concurrent_envs": 64, "state_cls": openenv.JokeState}
    assert few["max_concurrent_envs"] == 3
    one, two = make(), make()
    assert one is not two and one.critic is two.critic
