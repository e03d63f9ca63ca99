"""Critics and judges of the pocket world: an exact one, and one that errs like a large language model.

    PocketCritic()(jokes)                    # the exact score of each joke, its parts, and the reason
    PocketJudge()(pairs)                     # which of two is better, exactly
    CrowdJudge()(pairs)                      # asked in both orders, with noise, position bias and length bias
    CrowdJudge().ask(pairs)                  # one order only, as in a careless experiment

The crowd judge's defaults reproduce a 70B language model as a judge of humor: it agreed with people on 76 % of pairs,
changed its answer with the order on 15 %, and preferred the longer line where people preferred the shorter on 20 %.

    python -m humor_env.rewards.pocket --pairs 4000 --seeds 5      # measures the three rates
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev

from humor_env.errors import InvalidOption, PromptError
from humor_env.pocket import load_world
from humor_env.pocket.judge import PocketScore, combine
from humor_env.rewards.shared.both_orders import both_orders
from humor_env.types import Joke, Judgement, Verdict

Pair = tuple[Joke, Joke]
PARTS_ASKED = ("score", "humor", "meaning")
_NORMAL = NormalDist()


class PocketCritic:
    """The exact judge as a critic: 0.1 is a plain paraphrase, 0.5 a right but stale punchline, 1 the best."""

    name = "pocket"

    def __call__(self, jokes: Sequence[Joke]) -> list[Judgement]:
        world = load_world()
        judgements = []
        for joke in jokes:
            try:
                score = world.judge(joke.prompt, joke.text)
            except PromptError as problem:
                judgements.append(Judgement(self.name, None, error=str(problem)))
            else:
                judgements.append(Judgement(self.name, score.score, score.parts, score.reason))
        return judgements


def _checked_part(part: str) -> str:
    if part not in PARTS_ASKED:
        raise InvalidOption(f"part must be one of {', '.join(map(repr, PARTS_ASKED))}; found {part!r}.")
    return part


class PocketJudge:
    """The exact judge on pairs: the higher score wins, equal scores tie. It judges one order only, since order cannot
    matter.

    `part` selects an aspect: "humor" is the score that a line would have if it had kept the meaning, "meaning" is how
    much of the meaning it kept.
    """

    name = "pocket"

    def __init__(self, part: str = "score") -> None:
        self.part = _checked_part(part)

    def __call__(self, pairs: Sequence[Pair]) -> list[Verdict]:
        return [_exact_verdict(self.name, pair, self.part) for pair in pairs]


class CrowdJudge:
    """The exact judge with the errors of a fallible reader.

    Its preference for the first line shown, in units of score:

        difference of exact scores + noise × z + length_bias × tanh(log(length ratio) / log 1.2) + position_bias

    z is a standard normal number fixed per pair that changes sign with the order: a persistent error of taste, not a
    new draw per question. A line longer by a fifth gets three quarters of the length bias, and no line more than all of
    it. The answer's probability is that of a normal with standard deviation `blur`. `part` is as in PocketJudge, judged
    with the same errors.
    """

    name = "pocket-crowd"

    def __init__(
        self,
        noise: float = 0.39,
        position_bias: float = 0.145,
        length_bias: float = 0.54,
        seed: int = 0,
        blur: float = 0.15,
        part: str = "score",
    ) -> None:
        for option, value in (("noise", noise), ("position_bias", position_bias), ("length_bias", length_bias)):
            if not math.isfinite(value):
                raise InvalidOption(f"{option} must be a number; found {value!r}.")
        if noise < 0 or not blur > 0:
            raise InvalidOption(f"noise must be at least 0 and blur above 0; found noise={noise!r} and blur={blur!r}.")
        self.noise = noise
        self.position_bias = position_bias
        self.length_bias = length_bias
        self.seed = seed
        self.blur = blur
        self.part = _checked_part(part)

    def __call__(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Judge each pair in both orders, averaged before deciding: position bias cancels, other biases stay."""
        return both_orders(self.ask, list(pairs), self.name)

    def ask(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """One order only: the probability that the first line, as shown, wins."""
        return [self._ask(pair) for pair in pairs]

    def _ask(self, pair: Pair) -> Verdict:
        first, second = pair
        scores = _scores(pair)
        if isinstance(scores, str):
            return Verdict(self.name, None, error=scores)
        margin = self.position_bias + _value(scores[0], self.part) - _value(scores[1], self.part)
        longer = math.log((len(first.text) + 1) / (len(second.text) + 1)) / math.log(1.2)
        margin += self.length_bias * math.tanh(longer)
        margin += self.noise * self._taste(first.text, second.text)
        return Verdict(self.name, _NORMAL.cdf(margin / self.blur), reason=scores[0 if margin > 0 else 1].reason)

    def _taste(self, first: str, second: str) -> float:
        """The persistent error of taste on this pair: a standard normal number, antisymmetric in the texts."""
        if first == second:
            return 0.0
        low, high = sorted((first, second))
        digest = hashlib.blake2b(
            f"{self.seed}\x1f{low}\x1f{high}".encode("utf-8", "surrogatepass"), digest_size=8, person=b"pocket-crowd"
        ).digest()
        # The middle of one of 2**52 equal steps, so never exactly 0 or 1.
        uniform = ((int.from_bytes(digest, "big") >> 12) + 0.5) / 2**52
        value = _NORMAL.inv_cdf(uniform)
        return value if first == low else -value


def _scores(pair: Pair) -> tuple[PocketScore, PocketScore] | str:
    """The exact scores of both, or the error about the prompt."""
    world = load_world()
    try:
        return world.judge(pair[0].prompt, pair[0].text), world.judge(pair[1].prompt, pair[1].text)
    except PromptError as problem:
        return str(problem)


def _value(score: PocketScore, part: str) -> float:
    """The number by which two lines are compared."""
    if part == "humor":
        return combine(**{**score.parts, "meaning": 1.0})
    return score.parts["meaning"] if part == "meaning" else score.score


def _exact_verdict(name: str, pair: Pair, part: str) -> Verdict:
    scores = _scores(pair)
    if isinstance(scores, str):
        return Verdict(name, None, error=scores)
    first, second = (_value(score, part) for score in scores)
    if first == second:
        return Verdict(name, 0.5, tie=1.0, reason="as good as each other")
    return Verdict(name, float(first > second), reason=scores[0 if first > second else 1].reason)


def measure(judge: CrowdJudge, pairs: Sequence[Pair]) -> dict[str, float]:
    """The crowd judge's error rates, over the pairs that the exact judge can decide.

    agreement: the both-orders verdict prefers the better line. flips: the raw answer changes with the order.
    length_errors: the longer line is preferred although the shorter is better. All three are shares of all decided
    pairs, as in the paper.
    """
    exact = PocketJudge()(pairs)
    decided = [(pair, truth) for pair, truth in zip(pairs, exact, strict=True) if truth.probability not in (None, 0.5)]
    if not decided:
        raise InvalidOption("None of the pairs has a better line, so the judge cannot be measured.")
    verdicts = judge([pair for pair, _ in decided])
    agree = flips = length_errors = 0
    for (pair, truth), verdict in zip(decided, verdicts, strict=True):
        assert truth.probability is not None
        assert verdict.probability is not None
        right = (verdict.probability > 0.5) == (truth.probability > 0.5)
        choice = pair[0] if verdict.probability > 0.5 else pair[1]
        other = pair[1] if verdict.probability > 0.5 else pair[0]
        agree += right
        flips += bool(verdict.flipped)
        length_errors += not right and len(choice.text) > len(other.text)
    count = len(decided)
    return {
        "agreement": agree / count,
        "flips": flips / count,
        "length_errors": length_errors / count,
        "decided_pairs": count,
    }


def calibration_pairs(count: int, seed: int = 0) -> list[Pair]:
    """Pairs as in an evaluation: a student-like line and the teacher's, for the same training prompt.

    The student-like line is from a teacher with a beginner's faults (half of its punchlines wrong, a quarter of its
    meanings lost). Half of the pairs show the student first.
    """
    from humor_env.pocket.teacher import PocketTeacher

    teacher = PocketTeacher(seed=2 * seed)
    student = PocketTeacher(seed=2 * seed + 1, wrong_complaint_rate=0.5, lost_meaning_rate=0.25)
    prompts = [p for p in load_world().prompts() if p.split == "train"]
    pairs = []
    for number in range(count):
        prompt = prompts[number % len(prompts)]
        turn = number // len(prompts)
        mine = Joke(prompt, student.lines(prompt, turn + 1)[turn], "student")
        theirs = Joke(prompt, teacher.lines(prompt, turn + 1)[turn], "teacher")
        pairs.append((mine, theirs) if number % 2 else (theirs, mine))
    return pairs


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the three rates of the default crowd judge, over several seeds of judge, teacher and student."""
    parser = argparse.ArgumentParser(prog="python -m humor_env.rewards.pocket", description=main.__doc__)
    parser.add_argument("--pairs", type=int, default=4000, help="pairs per seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--noise", type=float)
    parser.add_argument("--position-bias", type=float)
    parser.add_argument("--length-bias", type=float)
    parsed = parser.parse_args(arguments)
    options = {
        name: value
        for name in ("noise", "position_bias", "length_bias")
        if (value := getattr(parsed, name)) is not None
    }
    rows = [
        measure(CrowdJudge(seed=seed, **options), calibration_pairs(parsed.pairs, seed)) for seed in range(parsed.seeds)
    ]
    paper = {"agreement": 0.76, "flips": 0.15, "length_errors": 0.20}
    print(f"{'rate':<15}{'measured':>9}{'± sd':>8}{'paper':>8}")
    for name, target in paper.items():
        values = [row[name] for row in rows]
        spread = stdev(values) if len(values) > 1 else 0.0
        print(f"{name:<15}{fmean(values):>9.3f}{spread:>8.3f}{target:>8.2f}")
    print(f"{sum(row['decided_pairs'] for row in rows):.0f} decided pairs of {parsed.pairs * parsed.seeds}")


if __name__ == "__main__":
    main()
