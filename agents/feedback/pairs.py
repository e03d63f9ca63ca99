"""From lines to preferences: for each prompt the two most different lines, judged in both orders.

    feedback = student_pairs(student, judge, prompts, PairConfig(), seed=0, round_index=0)
    feedback.preferences            # the input of DPO, BRIO and self-distillation
    feedback.counts["ties"]         # prompts without a preference are counted by reason

The student writes `candidates` lines per prompt. The two with the largest n-gram edit distance make a pair, which is
kept if their lengths are similar, so that a judge's preference for long lines is not learned. The judge itself compares
in both orders. Ties and failed verdicts are dropped. `teacher_pairs` does the same with a teacher's lines.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import torch

from humor_env.agents.feedback.metrics import gather_jokes
from humor_env.agents.feedback.rollout import check_failures, check_flip_share
from humor_env.agents.session.config import check_bounds
from humor_env.agents.session.processes import gather_records, local_share, sum_over_processes
from humor_env.agents.student import Student
from humor_env.agents.student.beams import beams
from humor_env.agents.student.sampling import Sampling, draw_uniforms
from humor_env.agents.student.writer import Backend, write_jokes
from humor_env.episodes.episode import CONSTRAINT, judged_with_words, lacking_words, must_contain
from humor_env.episodes.verdicts import checked_verdicts
from humor_env.errors import InvalidOption
from humor_env.shared import text_stats
from humor_env.shared.streams import stream_seed
from humor_env.types import Critic, Demonstration, Joke, Judge, Judgement, Preference, Prompt, Verdict, critic_name

COUNTS = ("samples", "alike", "uneven", "judged", "calls", "both_orders", "flipped", "ties", "failed", "preferences")


@dataclass(frozen=True)
class PairConfig:
    candidates: int = 6  # lines per prompt
    how: str = "sampling"  # or "beams": diverse beam search, one group per candidate
    sampling: Sampling = field(default_factory=Sampling)
    diversity: float = 0.5  # beams: penalty on a token that earlier groups chose
    ngram: int = 2
    length_filter: str = "after"  # "after" choosing the pair, as in the paper; "before" (among even pairs); "off"
    shortest_ratio: float = 0.8  # characters of one line over those of the other, in either order
    longest_ratio: float = 1.2
    least_edge: float = 0.0  # verdicts closer than this to one half are ties
    micro_batch: int = 96  # lines written at once
    max_failure_share: float = 0.5
    max_flip_share: float = 0.5  # most verdicts that may change with the order, as a share; 1 accepts any judge

    def __post_init__(self) -> None:
        if self.candidates < 2 or self.ngram < 1 or self.micro_batch < 1:
            raise InvalidOption(
                f"A pair needs at least 2 candidates, ngram and micro_batch at least 1; found {self.candidates}, "
                f"{self.ngram}, {self.micro_batch}."
            )
        if self.how not in ("sampling", "beams"):
            raise InvalidOption(f"how must be 'sampling' or 'beams', found '{self.how}'.")
        if self.length_filter not in ("after", "before", "off"):
            raise InvalidOption(f"length_filter must be 'after', 'before' or 'off', found '{self.length_filter}'.")
        if not 0 <= self.shortest_ratio <= 1 <= self.longest_ratio:
            raise InvalidOption(
                f"Lines of equal length must pass: shortest_ratio <= 1 <= longest_ratio; found {self.shortest_ratio} "
                f"and {self.longest_ratio}."
            )
        check_bounds(self)
        if not 0 <= self.least_edge < 0.5:
            raise InvalidOption(f"least_edge must be in [0, 0.5), found {self.least_edge}.")


@dataclass(frozen=True)
class Feedback:
    """One round's preferences over all processes, and for the log the pairs' `jokes` with their `judgements`.

    A joke's judgement is the probability that it beats the other line of its pair.
    """

    preferences: list[Preference]
    counts: dict[str, float]
    jokes: list[Joke] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)

    @property
    def samples(self) -> int:
        """Number of lines the student wrote for it."""
        return int(self.counts["samples"])

    @property
    def judged(self) -> int:
        """Number of pairs sent to the judge."""
        return int(self.counts["judged"])

    @classmethod
    def given(cls, preferences: Sequence[Preference]) -> Feedback:
        """Wrap existing preferences, made by people or in another run."""
        return cls(list(preferences), dict.fromkeys(COUNTS, 0.0) | {"preferences": float(len(preferences))})


class CriticAsJudge:
    """A pair judge made from a critic: the higher score wins; scores at most `gap` apart tie. A line without a required
    word of its prompt scores 0."""

    def __init__(self, critic: Critic, *, gap: float = 0.0) -> None:
        self.critic, self.gap = critic, gap
        self.name = critic_name(critic)

    def __call__(self, pairs: Sequence[tuple[Joke, Joke]], /) -> list[Verdict]:
        judgements = judged_with_words(self.critic, [joke for pair in pairs for joke in pair])
        return [self._verdict(a, b) for a, b in zip(judgements[::2], judgements[1::2], strict=True)]

    def _verdict(self, a: Judgement, b: Judgement) -> Verdict:
        usage = a.usage + b.usage
        if a.score is None or b.score is None:
            return Verdict(self.name, None, error=a.error or b.error, usage=usage)
        if abs(a.score - b.score) <= self.gap:
            return Verdict(self.name, 0.5, tie=1.0, usage=usage)
        return Verdict(self.name, float(a.score > b.score), usage=usage)


def verdicts_with_words(judge: Judge, pairs: Sequence[tuple[Joke, Joke]]) -> list[Verdict]:
    """The verdicts that count, in learning and in every measurement: one call of the judge for all pairs, except those
    in which only one line has the required words of its prompt, which wins without a call."""
    lacking = [[lacking_words(joke) for joke in pair] for pair in pairs]
    to_ask = [i for i, (a, b) in enumerate(lacking) if bool(a) == bool(b)]
    asked = [pairs[i] for i in to_ask]
    verdicts = dict(zip(to_ask, checked_verdicts(judge, asked), strict=True))
    return [
        verdicts[i] if i in verdicts else Verdict(CONSTRAINT, float(not a), reason=must_contain(a or b))
        for i, (a, b) in enumerate(lacking)
    ]


def student_pairs(
    student: Student,
    judge: Judge,
    prompts: Sequence[Prompt],
    config: PairConfig,
    *,
    seed: int,
    round_index: int = 0,
    backend: Backend | None = None,
) -> Feedback:
    """Generate lines with the student, pair them and have the pairs judged; each process handles its share of prompts.

    Random numbers depend only on (seed, round, prompt index), so a repeated round gives the same lines.
    """
    mine = local_share(len(prompts))
    candidates = write_candidates(
        student, prompts[mine], config, seed=seed, name=f"{round_index}", first=mine.start, backend=backend
    )
    return _judged_pairs(judge, candidates, config, critic_name(judge), samples=sum(map(len, candidates)))


def teacher_pairs(judge: Judge, demonstrations: Iterable[Demonstration], config: PairConfig) -> Feedback:
    """The same from a teacher's lines: one pair per prompt that has at least two distinct lines."""
    by_prompt: defaultdict[str, list[Joke]] = defaultdict(list)
    for d in demonstrations:
        by_prompt[d.prompt.id].append(Joke(d.prompt, d.text, d.source))
    groups = list(by_prompt.values())
    return _judged_pairs(judge, groups[local_share(len(groups))], config, f"{critic_name(judge)} on teacher lines")


def write_candidates(
    student: Student,
    prompts: Sequence[Prompt],
    config: PairConfig,
    *,
    seed: int,
    name: str,
    first: int = 0,
    backend: Backend | None = None,
) -> list[list[Joke]]:
    """Generate `candidates` lines per prompt; `first` is the index of the first prompt in the whole round."""
    at_once = max(1, config.micro_batch // config.candidates)
    if config.how == "beams":
        if backend is not None:
            raise InvalidOption(
                'Beam search writes its lines in this process: leave student.backend out, or set how = "sampling" in '
                "the learner's pairs."
            )
        return [
            [Joke(prompt, line.text, "student", line.stop_reason) for line in lines]
            for start in range(0, len(prompts), at_once)
            for prompt, lines in zip(
                prompts[start : start + at_once],
                beams(
                    student,
                    [p.text for p in prompts[start : start + at_once]],
                    width=config.candidates,
                    groups=config.candidates,
                    diversity=config.diversity,
                    max_new_tokens=config.sampling.max_new_tokens,
                ),
                strict=True,
            )
        ]
    if not prompts:
        return []
    jokes = write_jokes(
        student,
        [p for p in prompts for _ in range(config.candidates)],
        config.sampling,
        torch.cat([_chance(seed, f"{name}/{first + i}", config) for i in range(len(prompts))]),
        author="student",
        at_once=at_once * config.candidates,
        backend=backend,
    )
    return [jokes[i : i + config.candidates] for i in range(0, len(jokes), config.candidates)]


def _chance(seed: int, name: str, config: PairConfig) -> torch.Tensor:
    source = torch.Generator().manual_seed(stream_seed(seed, "candidates", name))
    return draw_uniforms(config.candidates, config.sampling.max_new_tokens, source)


def ngram_distance(a: str, b: str, n: int) -> float:
    """Edit distance between two lines' sequences of word n-grams, over the longer's length: 0 equal, 1 nothing in
    common. A line of w words has w n-grams, the first ones padded on the left."""
    first, second = _padded_ngrams(a, n), _padded_ngrams(b, n)
    longest = max(len(first), len(second))
    if not longest:
        return 0.0
    above = list(range(len(second) + 1))
    for i, gram in enumerate(first, start=1):
        row = [i]
        for j, other in enumerate(second, start=1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (gram != other)))
        above = row
    return above[-1] / longest


def _padded_ngrams(line: str, n: int) -> list[tuple[str, ...]]:
    padded = [""] * (n - 1) + text_stats.words(line)
    return [tuple(padded[i : i + n]) for i in range(len(padded) - n + 1)]


def is_even(a: str, b: str, config: PairConfig) -> bool:
    """Whether the lengths are similar, in either order."""
    if not a or not b:
        return False
    ratios = (len(a) / len(b), len(b) / len(a))
    return config.shortest_ratio <= min(ratios) and max(ratios) <= config.longest_ratio


def most_different(lines: Sequence[Joke], config: PairConfig) -> tuple[Joke, Joke] | str:
    """The pair to judge, or why there is none: "alike" or "uneven"."""
    distances = {(a, b): ngram_distance(lines[a].text, lines[b].text, config.ngram) for a, b in _places(lines)}
    distances = {pair: far for pair, far in distances.items() if far > 0}
    if not distances:
        return "alike"
    even = {pair for pair in distances if is_even(lines[pair[0]].text, lines[pair[1]].text, config)}
    if config.length_filter == "before":
        distances = {pair: far for pair, far in distances.items() if pair in even}
    if not distances:
        return "uneven"
    best = max(distances, key=lambda pair: distances[pair])
    if config.length_filter == "after" and best not in even:
        return "uneven"
    return lines[best[0]], lines[best[1]]


def _places(lines: Sequence[Joke]) -> Iterable[tuple[int, int]]:
    return combinations(range(len(lines)), 2)


def _judged_pairs(
    judge: Judge, groups: Sequence[Sequence[Joke]], config: PairConfig, source: str, samples: int = 0
) -> Feedback:
    counts = dict.fromkeys(COUNTS, 0.0) | {"samples": float(samples)}
    pairs: list[tuple[Joke, Joke]] = []
    for lines in groups:
        pair_or_reason = most_different(lines, config)
        if isinstance(pair_or_reason, str):
            counts[pair_or_reason] += 1
        else:
            pairs.append(pair_or_reason)
    verdicts = verdicts_with_words(judge, pairs)
    counts["judged"] = float(len(pairs))
    preferences, jokes, judgements = [], [], []
    for (a, b), verdict in zip(pairs, verdicts, strict=True):
        jokes += [a, b]
        judgements += _as_judgements(verdict)
        counts["calls"] += verdict.usage.calls
        counts["both_orders"] += verdict.flipped is not None
        counts["flipped"] += bool(verdict.flipped)
        if verdict.probability is None:
            counts["failed"] += 1
        elif abs(verdict.probability - 0.5) <= config.least_edge:
            counts["ties"] += 1
        else:
            better, worse = (a, b) if verdict.probability > 0.5 else (b, a)
            sure = max(verdict.probability, 1 - verdict.probability)
            ended = [line.stop_reason != "length" for line in (better, worse)]
            preferences.append(Preference(a.prompt, better.text, worse.text, sure, source, *ended))
    check_failures(judgements, config.max_failure_share)
    flips = [v.flipped for v in verdicts if v.flipped is not None]
    check_flip_share(critic_name(judge), sum(flips), len(flips), config.max_flip_share)
    records = gather_records([preference_record(p) for p in preferences])
    rows = gather_jokes([{"joke": j, "judgement": v} for j, v in zip(jokes, judgements, strict=True)])
    counts["preferences"] = float(len(preferences))
    totals = sum_over_processes(torch.tensor([counts[n] for n in COUNTS], dtype=torch.float64)).tolist()
    return Feedback(
        preferences if records is None else [read_preference(r) for r in records],
        dict(zip(COUNTS, totals, strict=True)),
        [row["joke"] for row in rows],
        [row["judgement"] for row in rows],
    )


def _as_judgements(verdict: Verdict) -> list[Judgement]:
    """The verdict as one judgement per line of the pair. Only the first carries its usage."""
    if verdict.probability is None:
        return [
            Judgement(verdict.judge, None, error=verdict.error, usage=verdict.usage),
            Judgement(verdict.judge, None, error=verdict.error),
        ]
    return [
        Judgement(verdict.judge, verdict.probability, reason=verdict.reason, usage=verdict.usage),
        Judgement(verdict.judge, 1 - verdict.probability, reason=verdict.reason),
    ]


def preference_record(preference: Preference) -> dict[str, Any]:
    """Plain data, for checkpoints."""
    return asdict(preference)


def read_preference(record: Mapping[str, Any]) -> Preference:
    return Preference(**{**record, "prompt": Prompt(**record["prompt"])})
