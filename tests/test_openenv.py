"""OpenEnv: the real server and its generic client over loopback, with many sessions, odd texts and failing critics."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("openenv.core.generic_client")

import uvicorn
from openenv.core.generic_client import GenericEnvClient
from typer.testing import CliRunner

from humor_env.episodes.episode import Episode, Task
from humor_env.errors import InvalidOption
from humor_env.experiments.commands.cli import app
from humor_env.experiments.sharing import openenv
from humor_env.experiments.sharing.openenv import HumorEnvironment, JokeAction, JudgementFailed, make_app
from humor_env.experiments.sharing.shared_critic import SharedCritic
from humor_env.rewards.pocket import PocketCritic
from humor_env.teacher import pocket_lines

ROOT = Path(__file__).resolve().parent.parent
EPISODES = 5000


class Served:
    """A server on a free port of loopback."""

    def __init__(self, task, sessions=64):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(make_app(task, sessions=sessions), port=self.port, log_level="error")
        self.server = uvicorn.Server(config)

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        until = time.monotonic() + 60
        while not self.server.started and time.monotonic() < until:
            time.sleep(0.02)
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(30)


def task(critic="tape", prompts="pocket", **more):
    return Task(prompts, critic, **more)


def test_a_generic_client_plays_the_pocket_world():
    """The reward that comes back is the critic's own score, and the teacher's line is worth more than the sentence."""
    world = task("pocket")
    prompt = world.prompts.split("test")[3]
    line = pocket_lines(1).lines_for(prompt.id)[0]
    own = PocketCritic()([world.joke(Episode(prompt), line)])[0]
    with Served(world) as served, GenericEnvClient(base_url=served.url).sync() as env:
        shown = env.reset(split="test", index=3)
        assert shown.observation["prompt"] == prompt.text and not shown.done and shown.reward is None
        taught = env.step({"text": line})
        assert taught.done and taught.reward == pytest.approx(own.score) and taught.observation["reason"] == own.reason
        env.reset(split="test", index=3)
        assert env.step({"text": prompt.text}).reward < taught.reward


def test_a_seed_gives_the_same_prompt_and_an_index_the_one_of_the_split(critic, prompts):
    env = HumorEnvironment(SharedCritic(task(critic, prompts)))
    assert env.reset(seed=5).prompt_id == env.reset(seed=5).prompt_id
    assert len({env.reset(seed=i).prompt_id for i in range(20)}) > 5
    assert env.reset(split="ood", index=2).prompt_id == "ood-2"
    with pytest.raises(InvalidOption, match="has prompts 0 to 2, found index 3"):
        env.reset(split="ood", index=3)


def test_the_tasks_are_the_prompts_of_each_split_in_their_order(critic, prompts):
    """OpenEnv's TaskProvider."""
    environment = HumorEnvironment(SharedCritic(task(critic, prompts)))
    by_split = {name: environment.task.prompts.split(name) for name in ("train", "dev", "test", "ood")}
    assert environment.list_splits() == [
        {"name": name, "num_tasks": len(split)} for name, split in by_split.items() if split
    ]
    name, split = next((name, split) for name, split in by_split.items() if len(split) > 1)
    assert environment.num_tasks(name) == len(split)
    assert environment.get_task(name, 1) == {"index": 1, "prompt_id": split[1].id, "prompt": split[1].text}
    assert environment.list_tasks(name) == [environment.get_task(name, i) for i in range(len(split))]


def test_a_failed_judgement_is_an_error_and_never_a_number(critic, prompts):
    env = HumorEnvironment(SharedCritic(task(critic, prompts)))
    env.reset(seed=1)
    with pytest.raises(JudgementFailed, match=r"no score \(no answer\)"):
        env.step(JokeAction(text="please fail"))
    assert env.state.over
    with pytest.raises(InvalidOption, match="reset first"):
        env.step(JokeAction(text="again"))


@pytest.mark.parametrize(
    "text",
    ["<script>alert(1)</script>", "tab\tbell\x07 zero\x00 end", "‮right to left", "🦆" * 50, "x" * 10_000, "", "a\n\nb"],
)
def test_odd_texts_come_to_the_critic_whole(critic, prompts, text):
    with Served(task(critic, prompts, max_chars=20_000)) as served, GenericEnvClient(base_url=served.url).sync() as env:
        env.reset(seed=1)
        assert env.step({"text": text}).done
    assert critic.calls[-1][0].text == text


def test_a_line_that_is_too_long_and_an_unknown_field_are_told_and_the_session_goes_on(critic, prompts):
    with Served(task(critic, prompts)) as served, GenericEnvClient(base_url=served.url).sync() as env:
        env.reset(seed=1)
        with pytest.raises(Exception, match="10000 characters; at most 1000"):
            env.step({"text": "x" * 10_000})
        with pytest.raises(Exception, match="VALIDATION_ERROR"):
            env.step({"joke": "x"})
        assert env.step({"text": "So slow."}).done


@pytest.mark.slow
def test_64_sessions_at_once_of_which_one_is_killed(critic, prompts, monkeypatch):
    """Each gets the score of its own line; lines that wait are judged in one call. One is killed while all 64 wait for
    the critic, and its place is free afterwards."""
    sent, gate = [], threading.Event()

    class Noting(SharedCritic):
        def judge(self, joke):
            future = super().judge(joke)
            sent.append(joke.text)
            return future

    def patient(jokes):
        assert gate.wait(60), "not every session sent its first line"
        return critic(jokes)

    async def play(url, number):
        client = GenericEnvClient(base_url=url)
        async with client as env:
            got = []
            for turn in range(3):
                shown = await env.reset(seed=number * 10 + turn)
                text = f"line {turn} of {number}"
                telling = asyncio.ensure_future(env.step({"text": text}))
                if number == 13:
                    async with asyncio.timeout(60):
                        while len(sent) < 64:
                            await asyncio.sleep(0.01)
                    client._ws.transport.abort()  # as a killed process leaves it
                    gate.set()
                result = await telling
                got.append(result.reward == critic.score(shown.observation["prompt_id"], text))
            return got

    async def everybody(url):
        first = await asyncio.gather(*(play(url, number) for number in range(64)), return_exceptions=True)
        return first, await asyncio.gather(*(play(url, number) for number in range(100, 164)))

    monkeypatch.setattr("humor_env.experiments.sharing.openenv.SharedCritic", Noting)
    with Served(task(patient, prompts), sessions=64) as served:
        first, second = asyncio.run(everybody(served.url))
    assert [number for number, got in enumerate(first) if got != [True] * 3] == [13]
    assert second == [[True] * 3] * 64
    assert sum(map(len, critic.calls[:2])) >= 63


def test_serve_is_for_this_machine_alone_and_says_so(monkeypatch):
    ran = []
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: ran.append(options))
    monkeypatch.setenv("ENABLE_WEB_INTERFACE", "false")
    done = CliRunner().invoke(app, ["serve"])
    assert ran[0]["host"] == "127.0.0.1" and "for this machine only" in done.stderr
    done = CliRunner().invoke(app, ["serve", "--host", "0.0.0.0"])
    assert ran[1]["host"] == "0.0.0.0" and "EVERYBODY" in done.stderr


def test_what_is_served_and_to_whom(monkeypatch):
    served = []
    monkeypatch.setenv("ENABLE_WEB_INTERFACE", "")
    monkeypatch.setattr(openenv, "make_app", lambda what, **more: served.append((what, more)) or "the app")
    monkeypatch.setattr(uvicorn, "run", lambda what, **more: served.append((what, more)))
    said = CliRunner().invoke(app, ["serve"]).stderr
    assert said == (
        "Serving pocket judged by pocket on 127.0.0.1 port 8000, for this machine only. Stop with Ctrl-C.\n"
    )
    (task_served, more), where = served
    assert (task_served.split, task_served.attempts, task_served.max_chars, more) == (
        "train",
        1,
        1000,
        {"sessions": 64},
    )
    assert where == ("the app", {"host": "127.0.0.1", "port": 8000, "log_level": "warning"})
    served.clear()
    words = "serve --critic rules --prompts everyday --split dev --attempts 2 --max-chars 9 --sessions 3 --port 0 --web"
    said = CliRunner().invoke(app, [*words.split(), "--host", "0.0.0.0"]).stderr
    assert said.startswith("Serving everyday judged by rules on 0.0.0.0 port 0, for EVERYBODY who can reach this")
    (task_served, more), (_, where) = served
    assert (task_served.critic_name, task_served.split, task_served.attempts, task_served.max_chars, more) == (
        "rules",
        "dev",
        2,
        9,
        {"sessions": 3},
    )
    assert (where["host"], where["port"]) == ("0.0.0.0", 0)
    assert "machine only" in CliRunner().invoke(app, ["serve", "--host", "localhost"]).stderr
    assert "machine only" in CliRunner().invoke(app, ["serve", "--host", "::1"]).stderr


@pytest.mark.parametrize(("more", "value"), [((), "false"), (("--web",), "true")])
def test_the_page_for_trying_by_hand_is_served_where_it_is_asked_for(monkeypatch, more, value):
    monkeypatch.setenv("ENABLE_WEB_INTERFACE", "odd")
    monkeypatch.setattr(openenv, "make_app", lambda _, **more: os.environ["ENABLE_WEB_INTERFACE"])
    seen = []
    monkeypatch.setattr(uvicorn, "run", lambda what, **_: seen.append(what))
    CliRunner().invoke(app, ["serve", *more])
    assert seen == [value]


def test_without_the_extra_it_is_told():
    code = (
        "import sys; sys.modules['openenv'] = None\n"
        "from typer.testing import CliRunner\n"
        "from humor_env.experiments.commands.cli import app\n"
        "done = CliRunner().invoke(app, ['serve'])\n"
        "import json; print(json.dumps([done.exit_code, done.output]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    code, said = json.loads(done.stdout)
    assert code == 2 and "pip install 'humor-env[openenv]'" in said


def test_the_validator_passes_what_it_grades(prompts, critic):
    """The manifest of integrations/openenv, and a running server."""
    from openenv.cli._validation import validate_running_environment
    from openenv.validation.runner import run_validation
    from openenv.validation.types import Level

    report = run_validation(ROOT / "integrations" / "openenv", max_level=Level.STATIC, skip_build=True)
    assert [found.status.value.lower() for found in report.results] == ["pass"], report
    with Served(task(critic, prompts)) as served:
        found = validate_running_environment(served.url, timeout_s=30)
    assert found["passed"], found


@pytest.mark.slow
def test_the_manifest_says_what_is_there():
    import yaml

    folder = ROOT / "integrations" / "openenv"
    told = yaml.safe_load((folder / "openenv.yaml").read_text())["validation"]["capabilities"]
    world = task("pocket").prompts
    assert told["declared_task_count"] == {s: len(world.split(s)) for s in ("train", "dev", "test", "ood")}
    assert (folder / told["canaries"]).read_bytes() == (ROOT / "rewards" / "hostile_jokes.jsonl").read_bytes()
    prompt = world.split("test")[0]
    python = Path(sys.executable).parent
    done = subprocess.run(
        [folder / told["oracle"]["location"], prompt.id],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PATH": f"{python}:{os.environ['PATH']}"},
        check=True,
    )
    assert done.stdout.strip() == pocket_lines(1).lines_for(prompt.id)[0]


def test_the_web_page_is_there_when_it_is_asked_for(critic, prompts, monkeypatch):
    import urllib.request

    monkeypatch.setenv("ENABLE_WEB_INTERFACE", "true")
    with Served(task(critic, prompts)) as served, urllib.request.urlopen(f"{served.url}/web/", timeout=60) as page:
        assert page.status == 200 and b"gradio" in page.read().lower()


@pytest.mark.slow
def test_memory_stays_flat_over_many_episodes(critic, prompts):
    """What an episode leaves behind would show: the last two thirds of 5,000 cost under 8 MB."""
    psutil = pytest.importorskip("psutil")
    critic.calls = type("Forgetful", (list,), {"append": lambda self, item: None})()
    with Served(task(critic, prompts)) as served, GenericEnvClient(base_url=served.url).sync() as env:
        for episode in range(EPISODES):
            if episode == EPISODES // 3:
                before = psutil.Process().memory_info().rss
            env.reset(seed=episode)
            env.step({"text": f"line {episode} " + "x" * 500})
    grown = (psutil.Process().memory_info().rss - before) / 2**20
    print(f"{grown:.1f} MB over the last {EPISODES - EPISODES // 3} of {EPISODES} episodes")
    assert grown < 8
