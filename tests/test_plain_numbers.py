"""Options and scores may be numpy's numbers, as they come out of a sweep or an array; True is no number."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from humor_env import HumorEnv, HumorVectorEnv, Prompt
from humor_env.agents.session.config import rows_at_once
from humor_env.agents.sft import SFTConfig
from humor_env.errors import InvalidOption
from humor_env.llm.pace import Pace
from humor_env.rewards.fill_in import FillInCritic
from humor_env.rewards.jury import Jury
from humor_env.rewards.lift import LiftCritic
from humor_env.rewards.mix import MixCritic
from humor_env.rewards.novelty import NoveltyCritic
from humor_env.rewards.rules import RulesCritic
from humor_env.shared.plain_numbers import real_number, whole_number
from humor_env.spaces import UnicodeText
from humor_env.teacher import TeacherBuffer
from humor_env.tokens import TokensEnv
from humor_env.types import Demonstration

PROMPTS = [Prompt(f"p{n}", f"Sentence {n}.") for n in range(4)]

WHOLE: dict[str, Callable[[Any], Any]] = {
    "num_envs": lambda n: HumorVectorEnv(PROMPTS, "rules", num_envs=n),
    "attempts": lambda n: HumorEnv(PROMPTS, "rules", attempts=n),
    "max_chars": lambda n: HumorEnv(PROMPTS, "rules", max_chars=n),
    "max_tokens": lambda n: TokensEnv("pocket", "rules", max_tokens=n),
    "max_length": UnicodeText,
    "others": lambda n: LiftCritic(PROMPTS, RulesCritic(), others=n),
    "words": lambda n: FillInCritic(RulesCritic(), words=n),
    "lines": NoveltyCritic,
}
REAL: dict[str, Callable[[Any], Any]] = {
    "weight of a mix": lambda x: MixCritic([{"critic": RulesCritic(), "weight": x}]),
    "weight of a jury": lambda x: Jury([{"judge": "pocket", "weight": x}]),
    "requests_per_minute": Pace,
}


@pytest.mark.parametrize("option", WHOLE)
def test_a_whole_number_of_numpy_is_one(option: str) -> None:
    """`num_envs=np.int64(2)`: "is a whole number of at least 1, found np.int64(2)"."""
    for number in (2, np.int64(2), np.uint8(2), np.array(2)):
        made = WHOLE[option](number)
        if hasattr(made, "close"):
            made.close()
    for wrong in (True, np.True_, 2.0, np.float64(2), "2", None):
        with pytest.raises(InvalidOption, match=option):
            WHOLE[option](wrong)


@pytest.mark.parametrize("option", REAL)
def test_a_number_of_numpy_is_one(option: str) -> None:
    for number in (0.5, 1, np.float32(0.5), np.float64(0.5), np.int64(1)):
        REAL[option](number)
    for wrong in (True, np.True_, "0.5", np.float32("nan")):
        with pytest.raises(InvalidOption):
            REAL[option](wrong)


def test_what_is_kept_is_pythons_own() -> None:
    envs = HumorVectorEnv(PROMPTS, "rules", num_envs=np.int64(2), attempts=np.int64(3))
    envs.reset(seed=0)
    assert type(envs.num_envs) is int and type(envs.task.attempts) is int
    json.dumps(envs.task.fingerprint())
    envs.close()
    assert rows_at_once(SFTConfig(micro_batch=np.int64(8))) == 8  # type: ignore[arg-type]


def test_a_demonstrations_score_may_be_numpys(tmp_path: Path) -> None:
    """It could be made and not stored: "Object of type float32 is not JSON serializable"."""
    line = Demonstration(PROMPTS[0], "A line.", "me", score=np.float32(0.5))  # type: ignore[arg-type]
    TeacherBuffer(tmp_path / "lines.jsonl").add([line])
    [read] = TeacherBuffer(tmp_path / "lines.jsonl")
    assert read == line and type(read.score) is float


def test_numbers_by_hand() -> None:
    assert [whole_number(x) for x in (3, np.int8(3), torch.tensor(3), True, np.True_, 3.0, "3", None)] == [
        *(3, 3, 3),
        *(None, None, None, None, None),
    ]
    assert [real_number(x) for x in (3, np.float32(0.5), np.int8(3), True, np.True_, "3", None, 1j)] == [
        *(3.0, 0.5, 3.0),
        *(None, None, None, None, None),
    ]
