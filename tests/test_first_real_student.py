"""The page "Your first real student": its settings are settings, and the memory of big students is worked out rightly
from small ones with the same widths. (The tables of clients and of costs: test_reference_tables.py.)"""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import torch

from humor_env.experiments.specs.spec import load_spec
from humor_env.experiments.upkeep.pages import student_memory
from humor_env.experiments.upkeep.pages.student_memory import Size, memory_of, with_layers

PAGE = Path(__file__).resolve().parent.parent / "docs" / "first-real-student.md"
TINY = Size("tiny", "llama", 5, 32, 64, 4, 2, 2000, True)


def test_every_setting_that_the_page_changes_is_one() -> None:
    """`critic.2` for the second critic, whose number is 1, would have passed a test of the options' names."""
    text = PAGE.read_text(encoding="utf-8")
    commands = re.findall(r"humor-env (?:train|doctor) .*", text)
    settings = [
        list(re.findall(r"--set (\S+)", shlex.join(shlex.split(command, comments=True)))) for command in commands
    ]
    settings.append(re.findall(r"--set ([\w.]+=[^\s`]+)", text.split("On the command line:")[1].split("\n")[0]))
    assert sum(map(len, settings)) >= 6
    for overrides in settings:
        load_spec("first-real-student", overrides)


def test_each_layer_takes_as_much_as_the_second() -> None:
    assert dataclasses.asdict(memory_of(TINY)) == dataclasses.asdict(with_layers(TINY, 5))


def test_weights_are_those_of_the_model_by_hand() -> None:
    """A layer of TINY: queries and outputs 2 x 32 x 32, keys and values 2 x 32 x 16, three MLP matrices of 32 x 64, and
    two norms of 32. Adapters of rank 16, of both names: 16 x (inputs + outputs) of the seven, in float32. The value
    head: a normalisation of 2 x 32, 32 weights and a bias, in float32."""
    base = 2000 * 32 + 32 + 5 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32)
    adapters = 2 * 5 * 16 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
    assert memory_of(TINY).weights == 4 * base + 4 * adapters + 4 * 97
    assert memory_of(TINY, torch.bfloat16).weights == 2 * base + 4 * adapters + 4 * 97


@pytest.mark.slow
def test_the_pages_table_is_what_the_command_prints() -> None:
    shown = PAGE.read_text(encoding="utf-8").split("<!-- memory -->")[1].split("<!-- end -->")[0].strip()
    assert [row.split(" |")[0].lstrip("| ") for row in shown.splitlines()[2:]] == [s.name for s in student_memory.SIZES]
    printed = student_memory.table(student_memory.SIZES[:2]).splitlines()
    assert shown.splitlines()[: len(printed)] == printed, (
        "out of date: python -m humor_env.experiments.upkeep.pages.student_memory"
    )
