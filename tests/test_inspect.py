"""Inspect AI: the real package, its mock model, our critics as scorers over loopback."""

import configparser
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("inspect_ai")

from fake_messages_server import running
from inspect_ai import eval as inspect_eval
from inspect_ai.model import ModelOutput, get_model
from inspect_ai.model._providers.mockllm import MockLLM
from inspect_ai.scorer import SampleScore, Score

from humor_env.errors import InvalidOption, UnknownName
from humor_env.experiments.sharing import INSTRUCTION
from humor_env.experiments.sharing.inspect_task import as_score, humor_paraphrase, judging_cost
from humor_env.prompts import load_prompts
from humor_env.registry import critics
from humor_env.rewards.pocket import PocketCritic
from humor_env.teacher import pocket_lines
from humor_env.types import Joke, Judgement, Usage

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = load_prompts("pocket")


# The mock model counts the tokens that it read with a table from the network.
UNCOUNTED = """
from inspect_ai.model import ModelUsage
from inspect_ai.model._providers.mockllm import MockLLM

async def uncounted(self, output, input, tools):
    output.usage = output.usage or ModelUsage()

MockLLM._ensure_default_usage = uncounted
"""


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INSPECT_DISPLAY", "none")
    monkeypatch.setattr(MockLLM, "_ensure_default_usage", MockLLM._ensure_default_usage)
    exec(UNCOUNTED, {})


def ran(task, outputs, limit):
    model = get_model("mockllm/model", custom_outputs=outputs, memoize=False)
    [log] = inspect_eval(task, model=model, limit=limit, log_dir="logs", display="none")
    assert log.status == "success", log.error
    return log


def metrics(log):
    return {name: found.value for name, found in log.results.scores[0].metrics.items()}


def taught(input, tools, choice, config):
    """Writes the teacher's line for the sentence it is shown."""
    prompt = next(p for p in PROMPTS.split("test") if p.text == input[-1].text)
    return ModelOutput.from_content("mockllm/model", f" {pocket_lines(1).lines_for(prompt.id)[0]}\n")


def test_a_mock_model_is_scored_by_the_critic_itself():
    """The score is the critic's own number, its mean has an interval, and the version names the prompts."""
    log = ran(humor_paraphrase(prompts="pocket", critic="pocket"), taught, 12)
    chosen = PROMPTS.split("test")[:12]
    own = PocketCritic()([Joke(p, pocket_lines(1).lines_for(p.id)[0]) for p in chosen])
    assert {s.id: s.scores["critic_scorer"].value for s in log.samples} == pytest.approx(
        {p.id: one.score for p, one in zip(chosen, own, strict=True)}
    )
    found = metrics(log)
    mean = sum(one.score for one in own) / 12
    assert found["mean"] == pytest.approx(mean) and found["judging_cost"] == 0.0
    assert found["low"] < mean < found["high"]
    assert log.eval.task_version == f"1-{PROMPTS.digest('test')}"
    assert log.samples[0].input[0].text == INSTRUCTION
    assert log.samples[0].scores["critic_scorer"].metadata["parts"] == own[0].parts


def test_a_failed_judgement_is_unscored_and_in_no_mean():
    """A 0 in its place would say that the model was not funny where nobody looked."""

    def moody(jokes):
        return [
            Judgement("moody", None, error="no answer") if "fail" in j.text else Judgement("moody", 0.8) for j in jokes
        ]

    critics.register("moody-for-inspect", moody, "fails at will")
    try:
        lines = ["fail", "fine", "fine", "fail"]
        outputs = [ModelOutput.from_content("mockllm/model", line) for line in lines]
        log = ran(humor_paraphrase(prompts="pocket", critic="moody-for-inspect"), outputs, 4)
        assert metrics(log)["mean"] == pytest.approx(0.8)
        assert log.results.scores[0].unscored_samples == 2
        failed = [s.scores["critic_scorer"] for s in log.samples if math.isnan(s.scores["critic_scorer"].as_float())]
        assert [(s.reason, s.explanation) for s in failed] == [("grader_failed", "no answer")] * 2
        outputs = [ModelOutput.from_content("mockllm/model", "fail")] * 2
        none = ran(humor_paraphrase(prompts="pocket", critic="moody-for-inspect"), outputs, 2)
        # Inspect's own mean says 0 here.
        assert math.isnan(metrics(none)["mean"])
    finally:
        del critics._entries["moody-for-inspect"]


def test_a_language_models_verdicts_in_both_orders_with_what_they_cost(tmp_path):
    """Against the teacher's lines, over loopback, inside Inspect's running loop; a second run pays nothing."""
    with running("--judge", "always-1") as server:
        judge = {"client": f"openai:m@{server.url}/v1", "ledger": str(tmp_path / "verdicts.sqlite")}
        judge["options"] = {"prices": {"m": {"input": 10.0, "output": 50.0}}}
        options = {"teacher": "pocket", "judge": "multiple-choice", "judge_options": judge, "max_lines": 1}
        made = [humor_paraphrase(prompts="pocket", critic="win-tie", critic_options=options) for _ in range(2)]
        outputs = [ModelOutput.from_content("mockllm/model", f"Line {n}.") for n in range(4)]
        first = ran(made[0], outputs, 4)
        assert server.stats()["calls"] == 8
        # Always the first: a judge that looks only at the place says "a draw" in both orders together.
        assert metrics(first)["mean"] == pytest.approx(0.5)
        score = first.samples[0].scores["critic_scorer"]
        assert score.metadata["calls"] == 2 and score.metadata["parts"]["flips"] == 1.0
        assert metrics(first)["judging_cost"] == pytest.approx(4 * 2 * (100 * 10 + 20 * 50) / 1e6)
        again = ran(made[1], outputs, 4)
        assert server.stats()["calls"] == 8 and metrics(again)["judging_cost"] == 0.0


def test_a_price_that_nobody_knows_is_no_price():
    assert as_score(Judgement("c", 0.5, usage=Usage(2, 10, 5, 0, None)), "x").metadata["cost"] is None
    assert as_score(Judgement("c", 0.5), "x").metadata["cost"] == 0.0


def test_a_judgement_is_a_score_with_all_that_it_says():
    score = as_score(Judgement("c", 0.5, {"funny": 0.25}, "dry", usage=Usage(2, 10, 5, 0, 0.75)), "So cold.")
    assert (score.value, score.answer, score.explanation) == (0.5, "So cold.", "dry")
    assert score.metadata == {"critic": "c", "cost": 0.75, "calls": 2, "tokens": 15, "parts": {"funny": 0.25}}
    assert as_score(Judgement("c", 0.5), "x").explanation is None


def test_what_judging_cost_is_a_sum_or_nothing_known():
    def sample(**metadata):
        return SampleScore(score=Score(value=0.5, metadata=metadata or None))

    cost = judging_cost()
    assert cost([sample(cost=0.5), sample(cost=0.25), sample()]) == 0.75
    assert math.isnan(cost([sample(cost=0.5), sample(cost=None)]))
    assert cost([]) == 0.0


def test_what_there_is_not_is_explained():
    with pytest.raises(UnknownName, match="Did you mean 'rules'"):
        humor_paraphrase(prompts="pocket", critic="rulse")
    with pytest.raises(InvalidOption, match="Did you mean 'test'"):
        humor_paraphrase(prompts="pocket", critic="pocket", split="tset")


@pytest.mark.slow
def test_inspect_finds_the_task_by_its_name(tmp_path, monkeypatch):
    """By the entry point of setup.cfg, in a process of its own, as whoever types the command."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    made = tmp_path / "installed" / "humor_env_entry-1.dist-info"
    made.mkdir(parents=True)
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: humor-env-entry\nVersion: 1\n")
    found = config["options.entry_points"]["inspect_ai"].strip()
    (made / "entry_points.txt").write_text(f"[inspect_ai]\n{found}\n")
    path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(made.parent)])
    monkeypatch.setenv("PYTHONPATH", path)
    command = "inspect eval humor_env/humor_paraphrase --model mockllm/model --limit 2 --display plain"
    command += " -T prompts=pocket -T critic=pocket"
    program = f"{UNCOUNTED}\nimport sys\nfrom inspect_ai._cli.main import main\nsys.argv = {command.split()!r}\nmain()"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=500)
    assert said.returncode == 0, said.stderr + said.stdout
    assert "humor_paraphrase" in said.stdout
    assert list(Path("logs").glob("*.eval"))


def test_the_example_of_the_page_runs(tmp_path, monkeypatch):
    """With the mock model and a judge on loopback in place of the services that the page names."""
    page = (ROOT / "docs" / "inspect.md").read_text(encoding="utf-8")
    [code] = [block for block in re.findall(r"```text\n(.*?)```", page, re.DOTALL) if "import eval" in block]
    monkeypatch.setenv("INSPECT_LOG_DIR", "logs")
    with running("--judge", "always-1") as server:
        for old, new in (
            ("anthropic:claude-haiku-4-5", f"openai:claude-haiku-4-5@{server.url}/v1"),
            ("openai/gpt-4o-mini", "mockllm/model"),
            ("limit=20", "limit=6"),
        ):
            assert code.count(old) == 1
            code = code.replace(old, new)
        names = {}
        exec(code, names)
        assert server.stats()["calls"] == 12
    log = names["log"]
    assert log.status == "success"
    assert {"mean", "low", "high", "stderr", "judging_cost"} <= set(metrics(log))
    assert metrics(log)["mean"] == pytest.approx(0.5)
    assert (tmp_path / "verdicts.sqlite").exists()
