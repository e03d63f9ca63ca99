"""The page about critics: its code runs, its tables are what the commands print, its numbers hold."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from humor_env import registry
from humor_env.experiments.commands.cli import app
from humor_env.rewards.rules import GATES
from humor_env.types import Joke, Prompt

PAGE = (Path(__file__).parent.parent / "docs" / "critics.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def clean_registry():
    before = dict(registry.critics._entries)
    yield
    registry.critics._entries.clear()
    registry.critics._entries.update(before)


def test_the_code_on_the_page_runs(clean_registry, capsys):
    names = {}
    for block in BLOCKS:
        exec(block, names)
    said = capsys.readouterr().out
    assert "FAIL" not in said
    assert "dry: rewards" in said
    joke = Joke(Prompt("p", "The meeting was slow."), "The meeting was so slow that glaciers overtook it.")
    [judgement] = registry.critics.make("dry")([joke])
    assert judgement.score == 1.0
    assert names["mix"]([joke])[0].score > 0.3


def test_a_custom_critic_takes_at_most_ten_lines():
    assert len(BLOCKS[0].strip().splitlines()) <= 10
    assert "register" in BLOCKS[0]


@pytest.mark.parametrize("prompts", ["pocket", "everyday"])
def test_the_tables_are_what_the_command_prints(prompts):
    printed = CliRunner().invoke(app, ["probes", "--markdown", "--prompts", prompts]).stdout.strip()
    shown = PAGE.split(f"<!-- probes {prompts} -->")[1].split("<!-- end -->")[0].strip()
    assert shown == printed, "docs/critics.md is out of date: paste in what the command printed"


def test_every_built_in_critic_judge_and_gate_is_described():
    for registered in (registry.critics, registry.judges):
        for name, entry in registered.entries().items():
            if entry.origin == "built in":
                assert f"\n| `{name}` |" in PAGE, name
    assert all(f"`{gate}`" in PAGE for gate in GATES)
