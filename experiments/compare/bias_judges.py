"""Two judges that a benchmark compares with the usual one: a judge asked in one order only, and a critic as a judge.

OneOrder(judge="pocket-crowd")(pairs)              # the pair as given: a preference for the first place remains
make_critic_judge(critic="pocket")(pairs)          # prefers the line with the higher score
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from humor_env import registry
from humor_env.agents.feedback.pairs import CriticAsJudge
from humor_env.errors import InvalidOption
from humor_env.types import Joke, Verdict, critic_name


class OneOrder:
    """A judge asked in one order, as in a careless experiment, to measure the effect. It must have the method `ask`."""

    def __init__(self, judge: str = "pocket-crowd", judge_options: Mapping[str, Any] | None = None) -> None:
        self.judge: Any = registry.judges.make(judge, **(judge_options or {}))
        self.name = f"{critic_name(self.judge)}, one order"
        if not callable(getattr(self.judge, "ask", None)):
            raise InvalidOption(f"The judge '{judge}' has no method `ask` for one order, so it cannot be asked once.")

    def __call__(self, pairs: Sequence[tuple[Joke, Joke]], /) -> list[Verdict]:
        return list(self.judge.ask(pairs))


def make_critic_judge(critic: str, critic_options: Mapping[str, Any] | None = None) -> CriticAsJudge:
    """A critic as a judge, by name, so that a file can give it."""
    return CriticAsJudge(registry.critics.make(critic, **(critic_options or {})))
