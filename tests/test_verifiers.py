"""verifiers: its real rollouts and its command over loopback, with our prompts, critics and their failures."""

# ruff: noqa: E402

import asyncio
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

pytest.importorskip("verifiers.v1", reason="verifiers is not installed: it pins mcp exactly, see docs/verifiers.md")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "integrations" / "verifiers"))

import verifiers.v1 as vf
from conftest import TapeCritic
from fake_messages_server import running
from humor_env_v1.taskset import HumorTaskset
from odd_server import answering
from odd_server import message as any_message
from pydantic import ValidationError
from verifiers.v1.cli.eval.main import main as vf_eval
from verifiers.v1.cli.eval.runner import run_eval
from verifiers.v1.configs.cli.eval import EvalConfig

from humor_env.errors import InvalidOption, UnknownName
from humor_env.experiments.sharing import INSTRUCTION
from humor_env.prompts import load_prompts
from humor_env.registry import critics
from humor_env.rewards.pocket import PocketCritic
from humor_env.teacher import pocket_lines
from humor_env.types import Joke

PROMPTS = load_prompts("pocket")
OTHER_TASKSET = """
import verifiers.v1 as vf


class Plain(vf.Taskset[vf.Task[vf.TaskData], vf.TasksetConfig]):
    def load(self):
        for name in ("one", "two", "three"):
            yield vf.Task(vf.TaskData(id=name, prompt=f"Thing {name} was slow."), self.config.task)


__all__ = ["Plain"]
"""


@pytest.fixture(autouse=True)
def tape(monkeypatch, tmp_path):
    """A critic that fails where a line says so, and a place for what verifiers writes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("verifiers.v1.runtimes.subprocess.CACHE_DIR", tmp_path / "cache")
    critics.register("tape-for-verifiers", TapeCritic, "scores by a hash, fails at will")
    yield
    del critics._entries["tape-for-verifiers"]


def message(body, text):
    """verifiers wants all three counts."""
    return any_message(body, {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}, text)


def taught(body):
    """Writes the teacher's line for the sentence it is shown."""
    prompt = next(p for p in PROMPTS.split("test") if p.text == body["messages"][-1]["content"])
    return message(body, text=f" {pocket_lines(1).lines_for(prompt.id)[0]}\n")


def evaluated(server, taskset, **more):
    """What `vf-eval` does with this taskset and this server as the student: all episodes, as they were."""
    client = {"base_url": f"{server.url}/v1", "api_key_var": "NO_KEY"}
    given = {"env": {"taskset": taskset}, "client": client, "model": "m", "push": False, "rich": None}
    return asyncio.run(run_eval(EvalConfig.model_validate(given | more)))


def on_pocket(critic="pocket", split="test", **options):
    return {
        "id": "humor-env-v1",
        "prompts": "pocket",
        "split": split,
        "task": {"critic": critic, "critic_options": options},
    }


def test_a_rollout_is_worth_what_the_critic_itself_says():
    """Two rollouts for each of six prompts: the reward is the critic's own number, its parts are metrics."""
    with answering(taught) as server:
        episodes = evaluated(server, on_pocket(), select={"limit": 6}, num_rollouts=2)
    assert server.calls == 12 and all(episode.ok for episode in episodes)
    chosen = PROMPTS.split("test")[:6]
    own = dict(
        zip(
            [prompt.id for prompt in chosen],
            PocketCritic()([Joke(p, pocket_lines(1).lines_for(p.id)[0]) for p in chosen]),
            strict=True,
        )
    )
    traces = [episode.traces[0] for episode in episodes]
    assert sorted(trace.task.data.id for trace in traces) == sorted([*own, *own])
    for trace in traces:
        said = own[trace.task.data.id]
        assert trace.reward == said.score and list(trace.rewards) == ["funny"]
        assert trace.metrics == {f"funny/{part}": value for part, value in said.parts.items()}
        assert trace.info["judgements"]["funny"]["reason"] == said.reason
        assert trace.task.key == f"pocket/{trace.task.data.id}" and trace.extra_usage == []


def test_the_student_reads_the_instruction_and_the_sentence_and_nothing_else():
    bodies = []
    with answering(lambda body: bodies.append(body) or message(body, text="x")) as server:
        evaluated(server, on_pocket(split="ood"), select={"limit": 1}, sampling={"temperature": 0.7, "max_tokens": 60})
    [body] = bodies
    assert body["messages"] == [
        {"role": "system", "content": INSTRUCTION},
        {"role": "user", "content": PROMPTS.split("ood")[0].text},
    ]
    assert body["temperature"] == 0.7 and "tools" not in body


def test_a_failed_judgement_is_no_number():
    """verifiers' own sum over rewards says 0 for it: the trace says that it is not ok, and its reward is unset."""
    lines = iter(["fine", "this will fail", "fine too", "this will fail"])
    with answering(lambda body: message(body, text=next(lines))) as server:
        episodes = evaluated(server, on_pocket("tape-for-verifiers"), select={"limit": 4}, max_concurrent=1)
    for episode in episodes:
        [trace] = episode.traces
        failed = "fail" in trace.last_reply
        assert episode.ok is trace.ok is not failed
        if failed:
            assert trace.rewards == {"funny": None} and trace.metrics == {}
            assert trace.last_error.type == "TaskError"
            assert "The critic 'tape' gave no score: no answer" in trace.last_error.message
        else:
            assert trace.reward == TapeCritic.score(trace.task.data.id, trace.last_reply)
    assert sum(not episode.ok for episode in episodes) == 2
    [saved] = Path("outputs").glob("*/traces.jsonl")
    written = [trace for line in saved.read_text().splitlines() for trace in json.loads(line)["traces"]]
    assert [trace["rewards"]["funny"] for trace in written].count(None) == 2


def test_a_judgement_that_failed_may_be_asked_for_again():
    """By verifiers' own retries: the second line of the same rollout is judged."""
    lines = iter(["this will fail", "fine"])
    agent = {"retries": {"max_retries": 1}}
    with answering(lambda body: message(body, text=next(lines))) as server:
        given = on_pocket("tape-for-verifiers")
        [episode] = evaluated(server, given, select={"limit": 1}, env={"taskset": given, "agent": agent})
    [trace] = episode.traces
    assert server.calls == 2 and trace.ok and trace.reward == TapeCritic.score(trace.task.data.id, "fine")


def test_a_critic_is_a_judge_of_another_taskset(tmp_path, monkeypatch):
    """Beside others, with a weight; one that fails leaves the rollout without a number."""
    (tmp_path / "plain_v1.py").write_text(OTHER_TASKSET)
    monkeypatch.syspath_prepend(str(tmp_path))
    judges = [
        {"id": "humor-env-v1", "critic": "tape-for-verifiers", "weight": 0.5},
        {"id": "humor-env-v1", "critic": "rules", "name": "form"},
    ]
    other = {"id": "plain-v1", "task": {"judges": judges}}
    lines = {"one": "Glaciers overtook it.", "two": "this will fail", "three": "Snails overtook it."}

    def answer(body):
        return message(body, text=lines[body["messages"][-1]["content"].split()[1]])

    with answering(answer) as server:
        chat = {"harness": {"id": "humor-env-v1"}, "runtime": {"type": "subprocess"}}
        episodes = evaluated(server, other, env={"taskset": other, "agent": chat})
    traces = {episode.traces[0].task.data.id: episode.traces[0] for episode in episodes}
    assert traces["one"].rewards["tape-for-verifiers"].value == 0.5 * TapeCritic.score("one", lines["one"])
    assert traces["three"].rewards["tape-for-verifiers"].score == TapeCritic.score("three", lines["three"])
    assert traces["one"].rewards["form"].score == 1.0 and "form/words" in traces["one"].metrics
    assert not traces["two"].ok and traces["two"].rewards["tape-for-verifiers"] is None


def test_a_language_models_verdicts_in_both_orders_with_what_they_cost(tmp_path):
    """Against the teacher's lines, over loopback, inside verifiers' running loop; a second run pays nothing."""
    with running("--judge", "always-1") as judge_server:
        client = {"prices": {"m": {"input": 10.0, "output": 50.0}}}
        judge = {"client": f"openai:m@{judge_server.url}/v1", "ledger": str(tmp_path / "v.sqlite"), "options": client}
        options = {"teacher": "pocket", "judge": "multiple-choice", "judge_options": judge, "max_lines": 1}
        lines = iter([f"Line {n}." for n in range(8)])
        with answering(lambda body: message(body, text=next(lines))) as server:
            first = evaluated(server, on_pocket("win-tie", **options), select={"limit": 4}, max_concurrent=1)
        assert judge_server.stats()["calls"] == 8
    for episode in first:
        [trace] = episode.traces
        # Always the first: a judge that looks only at the place says "a draw" in both orders together.
        assert trace.ok and trace.reward == pytest.approx(0.5) and trace.metrics["funny/flips"] == 1.0
        [usage] = trace.extra_usage
        assert (usage.prompt_tokens, usage.completion_tokens) == (200, 40)
        assert usage.cost == pytest.approx(2 * (100 * 10 + 20 * 50) / 1e6)


def test_what_there_is_not_is_explained_before_a_model_is_asked():
    with answering(lambda body: message(body, "x")) as server:
        with pytest.raises(UnknownName, match="Did you mean 'rules'"):
            evaluated(server, on_pocket("rulse"))
        with pytest.raises(InvalidOption, match="Did you mean 'test'"):
            evaluated(server, on_pocket(split="tset"))
        with pytest.raises(ValidationError, match="promts"):
            evaluated(server, {"id": "humor-env-v1", "promts": "pocket"})
    assert server.calls == 0


def test_the_parts_are_found_by_the_packages_name():
    assert vf.taskset_config_type("humor-env-v1")().task.critic == "rules"
    assert vf.default_harness_id("humor-env-v1") == "humor-env-v1"
    assert isinstance(vf.load_taskset(vf.taskset_config_type("humor-env-v1")(id="humor-env-v1")), HumorTaskset)
    assert vf.environment_class("humor-env-v1").__name__ == "ChatEnv"


def code_of(page, holding, kind):
    """The one block of this kind that holds this text."""
    text = (ROOT / page).read_text(encoding="utf-8")
    [code] = [block for block in re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL) if holding in block]
    return code


def commands(page):
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("vf-eval ")]


def saved_rewards():
    """The rewards of the traces that each of the runs so far has saved, in order."""
    files = sorted(Path("outputs").glob("*/traces.jsonl"), key=lambda file: file.stat().st_mtime)
    return [
        [trace["rewards"] for line in file.read_text().splitlines() for trace in json.loads(line)["traces"]]
        for file in files
    ]


def test_the_commands_of_the_pages_run(tmp_path, monkeypatch):
    """With a server on loopback in place of the services, a small number of prompts and without the dashboard."""
    (tmp_path / "plain_v1.py").write_text(OTHER_TASKSET)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("verifiers.v1.cli.eval.main.install_interrupt", lambda: None)
    asked = commands("integrations/verifiers/README.md") + commands("docs/verifiers.md")
    assert len(asked) == 4
    here = {"your-taskset": "plain-v1", "20": "2", "5": "2"}
    with answering(lambda body: message(body, "Glaciers overtook it, or so they say.")) as server:
        for words in asked:
            words = [here.get(word, word) for word in words]
            words += ["--no-rich", "--no-push", "--client.base-url", f"{server.url}/v1"]
            if "plain-v1" in words:
                words += ["--env.agent.harness.id", "humor-env-v1", "--env.agent.runtime.type", "subprocess"]
            monkeypatch.setattr(sys, "argv", ["vf-eval"])
            vf_eval(words)
    runs = saved_rewards()
    assert [len(run) for run in runs] == [2, 2, 8, 3]
    assert all(rewards["funny"]["score"] is not None for run in runs[:3] for rewards in run)
    assert all(rewards["form"] == {"score": 1.0, "weight": 0.1} for rewards in runs[3])


def test_the_example_of_the_readme_runs(capsys):
    with answering(taught) as server:
        code = code_of("integrations/verifiers/README.md", "play()", "python")
        assert code.count("http://127.0.0.1:8000") == 1
        exec(code.replace("http://127.0.0.1:8000", server.url), {})
    said = capsys.readouterr().out.splitlines()
    own = PocketCritic()([Joke(p, pocket_lines(1).lines_for(p.id)[0]) for p in PROMPTS.split("test")[:5]])
    assert [line.split()[:2] for line in said] == [["True", f"score={one.score}"] for one in own]


def test_the_judges_of_the_page_are_built(tmp_path, monkeypatch):
    """With a language model on loopback in place of the service that the page names."""
    (tmp_path / "plain_v1.py").write_text(OTHER_TASKSET)
    monkeypatch.syspath_prepend(str(tmp_path))
    code = code_of("docs/verifiers.md", "load_environment", "text").replace("your-taskset", "plain-v1")
    with running() as judge, answering(lambda body: message(body, "Glaciers overtook it.")) as server:
        names = {"vf": vf}
        exec(code.replace("anthropic:claude-haiku-4-5", f"openai:claude-haiku-4-5@{judge.url}/v1"), names)
        chat = {"harness": {"id": "humor-env-v1"}, "runtime": {"type": "subprocess"}}
        taskset = names["taskset"]
        episodes = evaluated(server, taskset, env={"taskset": taskset, "agent": chat})
        assert judge.stats()["calls"] == 3
    for episode in episodes:
        [trace] = episode.traces
        assert {name: reward.weight for name, reward in trace.rewards.items()} == {"scorer": 0.5, "form": 0.1}
        assert 0 <= trace.rewards["scorer"].score <= 1
