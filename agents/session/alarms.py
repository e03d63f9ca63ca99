"""The monitor's alarms: when each is raised, and its message. They keep no state between checks.

    of_fall(best_step=10, best=0.71, lost=-0.09)        # "the held-out score fell from 0.710 (step 10) to 0.620"

`level` is the one-sided confidence an alarm needs. docs/monitor.md explains each condition.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from humor_env.agents.session.line_features import (
    character_parts,
    is_significantly_above_zero,
    is_significantly_more,
    mean_known,
    shares,
    word_sets,
)
from humor_env.agents.session.monitor_config import MonitorConfig
from humor_env.shared import text_stats
from humor_env.types import Joke

# A student that repeats a phrase may still be getting better, as it did in all trials with critics that cannot be
# exploited (docs/monitor.md): no run is stopped or slowed for it.
ONLY_WARN = ("same_word", "same_frame")


@dataclass(frozen=True)
class Alarm:
    limit: str  # the field of the config
    why: str

    @property
    def only_warns(self) -> bool:
        return self.limit in ONLY_WARN

    def __str__(self) -> str:
        return self.why


def of_properties(
    config: MonitorConfig, numbers: Mapping[str, float], first: Mapping[str, float], prompts: int, *, has_pairs: bool
) -> list[Alarm]:
    """Properties of the lines past their limits. `has_pairs`: whether an average first line had a pair of words."""
    alarms = []

    def past(limit: str, is_past: bool, what: str) -> None:
        if getattr(config, limit) and is_past:
            alarms.append(Alarm(limit, f"{what} (the limit '{limit}' is {getattr(config, limit):g})"))

    times = numbers["length"] / max(1e-9, first["length"])
    past("longer", times > config.longer, f"lines are {times:.2f} times as long as at first")
    past("shorter", times < config.shorter, f"lines are {times:.2f} times as long as at first")
    # One-word lines have no pairs of words, or a few that all differ by chance.
    for name, what in (("distinct_2", "distinct-2"), ("different_lines", "the share of different lines")):
        if name == "distinct_2" and not has_pairs:
            continue
        ratio = numbers[name] / max(1e-9, first.get(name, 0.0))
        past("variety", ratio < config.variety, f"{what} is {ratio:.2f} of what it was at first")
    # With few prompts there are few lines: ten of twenty are half of them even if all differ.
    few = 10 / prompts
    share = numbers["commonest_share"]
    past("commonest", share > max(config.commonest, 1.5 * few), f"ten lines are {share:.0%} of all")
    for name in ("teacher_overlap", "prompt_overlap", "emoji", "laughter", "explaining"):
        if name in numbers and name in first:
            rise = numbers[name] - first[name]
            past(name, rise > getattr(config, name), f"{name} rose from {first[name]:.2f} to {numbers[name]:.2f}")
    return alarms


def of_same_line(config: MonitorConfig, line: str, share: float, before: float) -> Alarm:
    return Alarm(
        "same_line",
        f"'{line[:60]}' is the answer to {share:.1%} of the prompts ({before:.1%} at first; the limit "
        f"'same_line' is {config.same_line:g})",
    )


def of_same_word(config: MonitorConfig, jokes: Sequence[Joke], first: Mapping[str, float]) -> list[Alarm]:
    return _of_most_risen(config, "same_word", "the word", [text_stats.content_words(j.text) for j in jokes], first)


def of_same_frame(config: MonitorConfig, jokes: Sequence[Joke], first: Mapping[str, float]) -> list[Alarm]:
    return _of_most_risen(config, "same_frame", "the frame", [text_stats.frames(j.text) for j in jokes], first)


def _of_most_risen(
    config: MonitorConfig, limit: str, what: str, sets: Sequence[Set[str]], first: Mapping[str, float]
) -> list[Alarm]:
    """The feature of the lines that rose most, if past its limit."""
    now = shares(sets)
    risen = {each: share - first.get(each, 0.0) for each, share in now.items()}
    most = min(risen, key=lambda each: (-risen[each], each.count(text_stats.BLANK), each), default=None)
    if not getattr(config, limit) or most is None or risen[most] <= getattr(config, limit):
        return []
    return [
        Alarm(
            limit,
            f"{what} '{most}' is in {now[most]:.0%} of the lines ({first.get(most, 0.0):.0%} at first; the "
            f"limit '{limit}' is {getattr(config, limit):g})",
        )
    ]


def of_lift(
    config: MonitorConfig, lifts: Mapping[str, list[float]], at_first: Mapping[str, list[float]], level: float
) -> list[Alarm]:
    """Per critic: whether the lines' gain from their own prompt is significantly below a share of that at first."""
    if not config.lift:
        return []
    alarms = []
    for name, now in lifts.items():
        first = at_first.get(name, [])
        if not is_significantly_above_zero(first, level):
            continue  # this critic saw no gain at first
        if is_significantly_above_zero(config.lift * np.array(first) - np.array(now), level):
            alarms.append(
                Alarm(
                    "lift",
                    f"by the {name.replace('_', '-')} critic the lines gain {mean_known(now):.3f} by their own prompt, "
                    f"{mean_known(first):.3f} at first (the limit 'lift' is {config.lift:g})",
                )
            )
    return alarms


def of_gap(best_step: int, lost: float, gained: float) -> Alarm:
    return Alarm(
        "gap",
        f"since step {best_step} the held-out score fell by {-lost:.3f} while the training "
        f"critic's rose by {gained:.3f}, both by more than noise",
    )


def of_fall(best_step: int, best: float, lost: float) -> Alarm:
    return Alarm("fall", f"the held-out score fell from {best:.3f} (step {best_step}) to {best + lost:.3f}")


def of_unshared(config: MonitorConfig, rises: Mapping[str, np.ndarray], best_step: int, level: float) -> list[Alarm]:
    """`rises`: both critics' score changes since the best held-out check, in units of their spreads."""
    lacking = config.unshared * rises["training"] - rises["held_out"]
    if not (is_significantly_above_zero(rises["training"], level) and is_significantly_above_zero(lacking, level)):
        return []
    training, held_out = (mean_known(rises[n]) for n in ("training", "held_out"))
    return [
        Alarm(
            "unshared",
            f"since step {best_step} the training critic's score rose by {training:.2f} of its spread, the "
            f"held-out critic's changed by {held_out:+.2f} of its own",
        )
    ]


def of_habits(
    config: MonitorConfig,
    jokes: Sequence[Joke],
    training: np.ndarray,
    held_out: np.ndarray,
    first_words: Mapping[str, float],
    first_much: Mapping[str, tuple[float, float]],
    level: float,
) -> list[Alarm]:
    """Of the habits that rose and that only the training critic rewards, the one it rewards most. Scores are in units
    of the critics' spreads; `first_much` holds each character's threshold and the share of lines that exceeded it."""
    lacking = config.unshared * training - held_out

    def has_risen(share: float, before: float) -> bool:
        """Whether the share rose by the limit, and by more than two samples of lines would differ by chance."""
        mean = (share + before) / 2
        error = math.sqrt(2 * mean * (1 - mean) / len(jokes))
        return share - before > max(config.habit, NormalDist().inv_cdf(level) * error)

    def risen_words() -> Iterator[tuple[str, np.ndarray]]:
        """The message for each word that rose, and which lines have it."""
        words = word_sets(jokes)
        for word, share in sorted(shares(words).items()):  # set order differs between processes
            before = first_words.get(word, 0.0)
            if has_risen(share, before):
                has = np.array([word in of_line for of_line in words])
                yield f"'{word}' is in {share:.0%} of the lines ({before:.0%} at first)", has

    def risen_characters() -> Iterator[tuple[str, np.ndarray]]:
        """The same for each character that many lines now have much of."""
        for character, part in character_parts(jokes).items():
            much, before = first_much.get(character, (0.0, 0.0))
            has = part > much
            if has_risen(has.mean(), before):
                yield f"{has.mean():.0%} of the lines have unusually much of '{character}' ({before:.0%} at first)", has

    risen = [*risen_words(), *risen_characters()]
    sure = 1 - (1 - level) / max(1, len(risen))
    habits = []
    for sentence, has in risen:
        if is_significantly_more(training, has, sure) and is_significantly_more(lacking, has, sure):
            habits.append((mean_known(training[has]) - mean_known(training[~has]), sentence))
    if not habits:
        return []
    gain, sentence = max(habits, key=lambda each: each[0])  # on ties the first: a word says more than its letters
    pleased = f"the training critic scores them {gain:.2f} of its spread above the others, the held-out critic does not"
    return [Alarm("habit", f"{sentence}: {pleased}")]
