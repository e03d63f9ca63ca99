"""What the monitor watches and when it warns: the settings of `monitor.py`, and of a spec's table `[monitor]`.

    MonitorConfig(action="stop", every=20)
    MonitorConfig(level=0.2)            # InvalidOption: level must be at least 0.5 and below 1; found 0.2.

The spec's table is made from this class, so nothing here loads torch. docs/monitor.md explains the
defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from humor_env.agents.student.settings import Count, check_limits

Action = Literal["warn", "stop", "slow"]
FromZero = Annotated[float, Ge(0)]


@dataclass(frozen=True)
class MonitorConfig:
    """A limit of 0 switches its alarm off."""

    action: Action = "warn"  # "stop" ends the run; "slow" lowers the learning rate; both also warn
    every: Count = 10  # steps between checks
    lines: Annotated[int, Ge(2)] = 128  # prompts, one line each
    window: Count = 3  # checks over which a score is averaged
    level: Annotated[float, Ge(0.5), Lt(1)] = 0.99  # confidence that a score difference must reach, one-sided
    gap: bool = True
    unshared: FromZero = 0.25  # least share of the training critic's rise that the held-out critic must share
    habit: FromZero = 0.05  # rise in the share of lines with a word or character that only the training critic rewards
    fall: FromZero = 0.05  # share of the best held-out score
    longer: FromZero = 1.5  # times the characters of the first check
    shorter: FromZero = 0.67
    variety: FromZero = 0.7  # times the first check's distinct-2, and its share of different lines
    same_line: FromZero = 0.03  # rise in the share of prompts that one line answers
    same_word: FromZero = 0.3  # rise in the share of lines with one content word
    same_frame: FromZero = 0.3  # rise in the share of lines with one frame
    lift: FromZero = 0.5  # times the first check's lift
    others: Annotated[int, Ge(0)] = 1  # other prompts that each line is scored with, for its lift; 0 for none
    commonest: FromZero = 0.5  # share of the lines that are among the ten commonest
    teacher_overlap: FromZero = 0.25  # rise over the first check
    prompt_overlap: FromZero = 0.25  # rise over the first check
    emoji: FromZero = 0.1  # rise in the share of lines over the first check; likewise the next two
    laughter: FromZero = 0.1
    explaining: FromZero = 0.1
    slowdown: Annotated[float, Gt(0), Lt(1)] = 0.5  # what "slow" multiplies the learning rate by

    def __post_init__(self) -> None:
        check_limits(self)
