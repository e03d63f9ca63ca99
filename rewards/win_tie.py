"""A critic made from a judge and a teacher: does the student's line beat the teacher's for the same prompt?

    critic = WinTieCritic(judge="multiple-choice", judge_options={"client": "anthropic"}, teacher="lines.jsonl")
    [judgement] = critic([joke])
    judgement.score                    # 0.5: as good as the teacher's lines; 1: certainly better
    judgement.parts["win_or_tie"]      # the paper's metric, P(win) + P(tie), averaged over the teacher's lines
    judgement.parts["flips"]           # share of its verdicts that changed with the order, if tested

The score counts a tie as half a win, so that 0.5 is a draw and copying the teacher earns no more than a draw. With
`ties="win"` a tie counts as a win and the score is the win-tie rate itself: suitable for a report, but as a reward it
gives full credit for copying. A prompt without a teacher line gives a failed judgement, never a zero.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from humor_env.episodes.closing import close_all
from humor_env.episodes.verdicts import checked_verdicts
from humor_env.errors import InvalidOption
from humor_env.registry import judges
from humor_env.rewards.shared.both_orders import flip_rate
from humor_env.teacher import HasLines, open_lines
from humor_env.types import NO_USAGE, Joke, Judge, Judgement, Verdict

_DRAW = Verdict("same text", 0.5, tie=1.0)


class WinTieCritic:
    """`judge` by name or live, with `judge_options`; `teacher` is a buffer, its path or "everyday"; each joke
    is compared with the teacher's first `max_lines` lines (every line costs a verdict)."""

    name = "win-tie"

    def __init__(
        self,
        teacher: str | os.PathLike[str] | HasLines,
        judge: str | Judge = "pocket",
        judge_options: Mapping[str, Any] | None = None,
        max_lines: int = 3,
        ties: Literal["half", "win"] = "half",
    ) -> None:
        if ties not in ("half", "win"):
            raise InvalidOption(f"ties must be 'half' (0.5 is a draw) or 'win' (the win-tie rate), found {ties!r}.")
        if max_lines < 1:
            raise InvalidOption(f"max_lines must be at least 1, found {max_lines}.")
        self.judge = cast(Judge, judges.make(judge, **(judge_options or {})))
        self.teacher = open_lines(teacher)
        self.max_lines = max_lines
        self.ties = ties

    @property
    def inner_judges(self) -> list[Judge]:
        return [self.judge]

    def close(self) -> None:
        close_all(self.inner_judges)

    def __call__(self, jokes: Sequence[Joke]) -> list[Judgement]:
        opponents = [self.teacher.lines_for(joke.prompt.id)[: self.max_lines] for joke in jokes]
        # Equal texts are a draw by definition, without a call.
        pairs = [
            (joke, Joke(joke.prompt, line, author="teacher"))
            for joke, lines in zip(jokes, opponents, strict=True)
            for line in lines
            if line.strip() != joke.text.strip()
        ]
        verdicts = checked_verdicts(self.judge, pairs)
        answers = iter(verdicts)
        return [
            self._judgement(joke, [_DRAW if line.strip() == joke.text.strip() else next(answers) for line in lines])
            for joke, lines in zip(jokes, opponents, strict=True)
        ]

    def _judgement(self, joke: Joke, verdicts: Sequence[Verdict]) -> Judgement:
        usage = sum((v.usage for v in verdicts), NO_USAGE)
        answered = [(v.probability, v.tie, v) for v in verdicts if v.probability is not None]
        if not verdicts:
            error = f"the teacher has no line for the prompt '{joke.prompt.id}'"
            return Judgement(self.name, None, error=error)
        if not answered:
            errors = dict.fromkeys(v.error for v in verdicts if v.error)
            return Judgement(self.name, None, error="; ".join(errors), usage=usage)
        # The teacher's lines are samples from one teacher, so the judged ones represent the rest.
        n = len(answered)
        half = _unit(sum(p for p, _, _ in answered) / n)
        # A verdict holds P(win) + P(tie) / 2, so adding the other half of the tie gives win-or-tie.
        rate = _unit(sum(min(1.0, p + tie / 2) for p, tie, _ in answered) / n)
        parts = {"win_or_tie": rate, "win": _unit(2 * half - rate), "tie": _unit(2 * (rate - half))}
        flips = flip_rate(verdicts)
        if flips is not None:
            parts["flips"] = flips
        explanation = next((v.reason for _, _, v in answered if v.reason), "")
        reason = f"against {n} of the teacher's lines" + (
            f" ({len(verdicts) - n} not judged)" if n < len(verdicts) else ""
        )
        score = half if self.ties == "half" else rate
        return Judgement(self.name, score, parts, f"{reason}: {explanation}" if explanation else reason, usage=usage)


def _unit(value: float) -> float:
    """Clip to [0, 1], which rounding can exceed in the last digit."""
    return min(1.0, max(0.0, value))
