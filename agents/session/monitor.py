"""Is the student still getting funnier, or is it exploiting its critic? A check every few steps.

    monitor = Monitor(MonitorConfig(action="stop"), prompts, training=critic, held_out=exact, folder=run)
    control = RunControl(monitor=monitor)                       # every learner checks its control after each step
    ppo.train(config, env, student, log, prompts=train_prompts, control=control)

At each check the student writes one line for each of the same prompts, with the same random numbers. So two checks are
compared prompt by prompt, and the remaining noise is estimated from the spread of the changes over prompts. Alarms:

- *gap*: the held-out critic's score is below its best, while the training critic's is above its value at that time,
  both by more than noise. This is the mark of exploiting a flawed critic.
- *unshared*: since the best held-out check the training critic's score rose by more than noise, and the held-out one
  shares less than `unshared` of that rise, by more than noise; both in units of their spread at the first check. It
  detects that a critic is being gamed before the jokes get worse.
- *habit*: a word, or lines full of one character, have become more frequent since the first check, the training critic
  rewards them, and the held-out critic shares less than `unshared` of that reward, all by more than noise. It detects a
  hack while few lines have it.
- *fall*: the held-out score is below its best by at least the share `fall`, and by more than the noise of all checks:
  the best of many checks is partly luck, so the more checks, the higher the required confidence.
- *same_line*, *same_word*, *same_frame*: one line answers more prompts than at first, or one content word or one
  frame ("was so _ that") is in many more lines. The first is also watched in the lines learned from, at every step, and
  triggers an extra check.
- *lift*: the score that the student's lines gain from their own prompt, over another prompt, is lower than at first.
- a property of the lines (length, variety, borrowing, emoji, laughter, explaining) is past its limit, measured from
  the first check, at the student before it learned anything.

Scores are means of the last `window` checks: one lucky check is not a best, and one unlucky check is no alarm.
docs/monitor.md explains each number, its default limit, and why. Critics are passed in: this file knows none.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from humor_env.agents.session import alarms
from humor_env.agents.session.alarms import Alarm
from humor_env.agents.session.line_features import (
    difference,
    is_significantly_above_zero,
    is_significantly_commoner,
    mean_known,
    shares,
    text_features,
    usual_parts,
    word_sets,
)
from humor_env.agents.session.monitor_config import MonitorConfig
from humor_env.agents.session.processes import gather_records, is_main_process
from humor_env.agents.student import Student
from humor_env.agents.student.sampling import Sampling, draw_uniforms
from humor_env.agents.student.writer import Backend, write_jokes
from humor_env.episodes.episode import checked_reply, judged_with_words, lacking_words
from humor_env.errors import InvalidOption
from humor_env.shared import text_stats
from humor_env.shared.streams import stream_seed
from humor_env.types import Critic, Demonstration, Joke, Prompt, critic_name

RECENT = 256  # prompts whose last learned line is watched: about one step's
FILE = "drift.jsonl"

# State that a checkpoint of an earlier version lacks is measured from the next check or step on.
_LATER: Mapping[str, Any] = {
    "first_frames": None,
    "first_lines": {},
    "first_lift": {},
    "recent": [],
    "steps": 0,
    "named": [],
    "out_of_turn": False,
}


class Monitor:
    """`ending` is why the run should end; `rate` is the factor for the learning rate."""

    def __init__(
        self,
        config: MonitorConfig,
        prompts: Sequence[Prompt],
        *,
        training: Critic | None = None,
        held_out: Critic | None = None,
        teacher: Sequence[Demonstration] = (),
        sampling: Sampling | None = None,
        folder: str | Path | None = None,
        seed: int = 0,
        say: Callable[[str], None] = logging.getLogger(__name__).warning,
    ) -> None:
        self.config, self.prompts = config, list(prompts)[: config.lines]
        if len(self.prompts) < 2:
            raise InvalidOption(f"A monitor needs at least 2 prompts, found {len(prompts)}.")
        self.critics = {n: c for n, c in (("training", training), ("held_out", held_out)) if c is not None}
        self.sampling, self.seed, self.say = sampling or Sampling(), seed, say
        self.path = None if folder is None else Path(folder) / FILE
        self.backend: Backend | None = None  # writes the lines instead of the student
        self.ending = ""
        self.rate = 1.0
        self._taught = text_stats.ngram_set(d.text for d in teacher)
        self._first: dict[str, float] = {}
        self._first_words: dict[str, float] = {}  # the share of the first check's lines with each word
        self._first_much: dict[str, tuple[float, float]] = {}  # each character's threshold, and the share above it
        self._first_has_pairs = False  # whether an average line of the first check had a pair of words
        self._first_frames: dict[str, float] | None = None  # and the share with each frame
        self._first_lines: dict[str, int] = {}  # number of prompts each line answered before anything was learned
        self._first_lift: dict[str, list[float]] = {}  # by critic and prompt
        self._recent: dict[str, str] = {}  # the last line learned for each prompt, newest prompts last
        self._steps = 0  # learner steps seen
        self._named: set[str] = set()  # lines that triggered an extra check, each once
        self._out_of_turn = False
        self._scores: dict[str, list[list[float]]] = {n: [] for n in self.critics}  # of the last checks, by prompt
        self._start: dict[str, list[float]] = {}  # at the first check, by critic and prompt
        self._best: dict[str, list[float]] = {}  # in the best held-out window, by critic and prompt
        self._best_step = 0
        self._seen = -1  # the step of the last check
        self._checks = 0

    def is_due(self, step: int) -> bool:
        return (step % self.config.every == 0 or self._out_of_turn) and step != self._seen

    def notice(self, jokes: Sequence[Joke]) -> None:
        """Watch the lines learned from in a step (the same in every process) for one line that answers more and more
        prompts. This is free, and may come long before the next check."""
        if not self.config.same_line or not jokes:
            return
        self._steps += 1
        for prompt, line in {joke.prompt.id: text_stats.line_key(joke.text) for joke in jokes}.items():
            self._recent.pop(prompt, None)
            self._recent[prompt] = line
            if self._steps == 1:  # written before anything was learned
                self._first_lines[line] = self._first_lines.get(line, 0) + 1
        self._recent = dict(list(self._recent.items())[-RECENT:])
        repeated = self._repeated([])
        if repeated is not None and repeated[0] not in self._named:
            self._named.add(repeated[0])
            self._out_of_turn = True

    def _repeated(self, lines: Sequence[str]) -> tuple[str, float, float] | None:
        """A line that answers more prompts than at first, by the limit and by more than chance, among these and the
        last lines learned from; with its share of the prompts now and at first."""
        last_lines = [*self._recent.values(), *lines]
        before = sum(self._first_lines.values())
        if not last_lines or not before:
            return None
        level = self._corrected_level()
        for line, count in sorted(Counter(last_lines).items(), key=lambda each: (-each[1], each[0])):
            share, first = count / len(last_lines), self._first_lines.get(line, 0)
            if share <= self.config.same_line:
                break
            if share - first / before > self.config.same_line and is_significantly_commoner(
                count, len(last_lines), first, before, level
            ):
                return line, share, first / before
        return None

    def measure(self, step: int, student: Student, adapter: str | None) -> dict[str, float]:
        """This check's metrics, `drift/…`. The main process checks and shares its decision with the others."""
        numbers: dict[str, float] = {}
        self._checks += 1
        if is_main_process():
            numbers = self._check(step, student, adapter)
        decided = {"n": numbers, "e": self.ending, "r": self.rate, "f": self._first_lines}
        decisions = gather_records([decided] if is_main_process() else [])
        if decisions is not None:
            numbers, self.ending, self.rate, self._first_lines = (decisions[0][k] for k in ("n", "e", "r", "f"))
        self._seen, self._out_of_turn = step, False
        return numbers

    def _check(self, step: int, student: Student, adapter: str | None) -> dict[str, float]:
        jokes = self._written(student, adapter)
        features = text_features(jokes, self._taught)
        numbers = dict(features)
        for name, critic in self.critics.items():
            judgements = judged_with_words(critic, jokes)
            scores = [math.nan if j.score is None else j.score for j in judgements]
            self._scores[name] = [*self._scores[name], scores][-self.config.window :]
            if any(map(math.isfinite, scores)):  # a critic that fails at the first check is measured from a later one
                self._start.setdefault(name, scores)
            numbers[name] = mean_known(self._now(name))
        lifts = {name: self._lift(critic, jokes, self._scores[name][-1]) for name, critic in self.critics.items()}
        numbers |= {f"lift_{name}": mean_known(lift) for name, lift in lifts.items()}
        new_alarms = []
        if self._first:  # drift is measured from the first check
            new_alarms = [*self._drifted(numbers), *self._alike(jokes)]
            new_alarms += alarms.of_lift(self.config, lifts, self._first_lift, self._corrected_level())
            new_alarms += [*self._habits(jokes), *self._fooled(numbers, step)]
        self._measure_from(jokes, features, lifts)
        if new_alarms:
            self._act(step, new_alarms)
        record = {f"drift/{n}": v for n, v in numbers.items() if math.isfinite(v)}
        record |= {"drift/alarms": float(len(new_alarms)), "drift/rate": self.rate}
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            marks = [{"limit": a.limit, "why": a.why} for a in new_alarms]
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **record, "marks": marks, "action": self.config.action}) + "\n")
        return record

    def _measure_from(
        self, jokes: Sequence[Joke], features: Mapping[str, float], lifts: Mapping[str, list[float]]
    ) -> None:
        """Keep this check's values as the reference for later ones, unless an earlier check is kept. Parts missing from
        an earlier version's checkpoint are measured from the next check on."""
        if not self._first or not self._first_lines:
            for line in (text_stats.line_key(j.text) for j in jokes):
                self._first_lines[line] = self._first_lines.get(line, 0) + 1
        if self._first_frames is None:
            self._first_frames = shares([text_stats.frames(j.text) for j in jokes])
        if not self._first:
            self._first_words = shares(word_sets(jokes))
            self._first_has_pairs = sum(len(text_stats.ngrams(j.text, 2)) for j in jokes) >= len(jokes)
            self._first_much = usual_parts(jokes)
        self._first = {**features, **self._first}
        for name, lift in lifts.items():
            if any(map(math.isfinite, lift)):
                self._first_lift.setdefault(name, lift)

    def _written(self, student: Student, adapter: str | None) -> list[Joke]:
        source = torch.Generator().manual_seed(stream_seed(self.seed, "monitor"))
        uniforms = draw_uniforms(len(self.prompts), self.sampling.max_new_tokens, source)
        if self.backend is not None:
            self.backend.refresh()
        return write_jokes(
            student,
            self.prompts,
            self.sampling,
            uniforms,
            author="student",
            adapter=adapter,
            backend=self.backend,
        )

    def _lift(self, critic: Critic, jokes: Sequence[Joke], scores_here: Sequence[float]) -> list[float]:
        """Each line's score with its own prompt minus the mean of its scores with others: near 0 if the prompt makes no
        difference to the critic or the student. NaN for a line without a required word of its prompt, whose 0 is not
        the critic's."""
        count = len(jokes)
        turns = range(1, min(self.config.others, count - 1) + 1)
        moved = [replace(jokes[i], prompt=jokes[(i + turn) % count].prompt) for turn in turns for i in range(count)]
        if not moved:
            return [math.nan] * count
        judgements = checked_reply(critic, critic_name(critic), moved)
        scores = np.array([math.nan if j.score is None else j.score for j in judgements]).reshape(len(turns), count)
        own = [math.nan if lacking_words(j) else s for j, s in zip(jokes, scores_here, strict=True)]
        return [score - mean_known(others) for score, others in zip(own, scores.T, strict=True)]

    def _now(self, name: str) -> list[float]:
        """Each prompt's mean score over the checks of the window that have one."""
        checks = np.array(self._scores[name])
        finite = np.isfinite(checks)
        sums, counts = np.where(finite, checks, 0.0).sum(axis=0), finite.sum(axis=0)
        return [float(s / n) if n else math.nan for s, n in zip(sums, counts, strict=True)]

    def _drifted(self, numbers: Mapping[str, float]) -> list[Alarm]:
        """Properties of the lines past their limits."""
        return alarms.of_properties(
            self.config, numbers, self._first, len(self.prompts), has_pairs=self._first_has_pairs
        )

    def _alike(self, jokes: Sequence[Joke]) -> list[Alarm]:
        """One line, word or frame in many more of the lines than at first."""
        new_alarms = []
        repeated = self._repeated([text_stats.line_key(j.text) for j in jokes]) if self.config.same_line else None
        if repeated is not None:
            new_alarms.append(alarms.of_same_line(self.config, *repeated))
        new_alarms += alarms.of_same_word(self.config, jokes, self._first_words)
        if self._first_frames is not None:
            new_alarms += alarms.of_same_frame(self.config, jokes, self._first_frames)
        return new_alarms

    def _fooled(self, numbers: dict[str, float], step: int) -> list[Alarm]:
        """The held-out score below its best by more than noise."""
        if len(self._scores.get("held_out", [])) < self.config.window:
            return []
        now = {n: self._now(n) for n in self.critics}
        if not math.isfinite(mean_known(now["held_out"])):
            return []  # failed for the whole window
        if not self._best or mean_known(now["held_out"]) > mean_known(self._best["held_out"]):
            self._best, self._best_step = now, step
            numbers["held_out_best"] = mean_known(now["held_out"])
            return []
        best = numbers["held_out_best"] = mean_known(self._best["held_out"])
        new_alarms = self._unshared(now)
        numbers["held_out_change"] = lost = mean_known(difference(now["held_out"], self._best["held_out"]))
        if "training" in now:
            numbers["training_change"] = gained = mean_known(difference(now["training"], self._best["training"]))
            fell = is_significantly_above_zero(difference(self._best["held_out"], now["held_out"]), self.config.level)
            rose = is_significantly_above_zero(difference(now["training"], self._best["training"]), self.config.level)
            if self.config.gap and fell and rose:
                new_alarms.append(alarms.of_gap(self._best_step, lost, gained))
        fell_by_more_than_luck = is_significantly_above_zero(
            difference(self._best["held_out"], now["held_out"]), self._corrected_level()
        )
        if self.config.fall and -lost > self.config.fall * best and fell_by_more_than_luck:
            new_alarms.append(alarms.of_fall(self._best_step, best, lost))
        return new_alarms

    def _unshared(self, now: Mapping[str, list[float]]) -> list[Alarm]:
        """Since the best held-out check the training critic's score rose and the held-out one's did not."""
        if "training" not in now or not self.config.unshared:
            return []
        rises = {}
        for name, scores in now.items():
            rise = self._in_spreads(name, difference(scores, self._best[name]))
            if rise is None:
                return []
            rises[name] = rise
        return alarms.of_unshared(self.config, rises, self._best_step, self._corrected_level())

    def _habits(self, jokes: Sequence[Joke]) -> list[Alarm]:
        """The habit that the training critic rewards most, of those that rose and that it alone rewards."""
        if "training" not in self.critics or "held_out" not in self.critics or not self.config.habit:
            return []
        training, held_out = (self._in_spreads(n, self._scores[n][-1]) for n in ("training", "held_out"))
        if training is None or held_out is None:
            return []
        level = self._corrected_level()
        return alarms.of_habits(self.config, jokes, training, held_out, self._first_words, self._first_much, level)

    def _in_spreads(self, name: str, scores: Sequence[float]) -> np.ndarray | None:
        """Scores in units of the critic's spread at the first check; None if all scores were equal."""
        spread = float(np.nanstd(np.array(self._start[name]))) if name in self._start else 0.0
        return np.array(scores) / spread if spread > 0 else None

    def _corrected_level(self) -> float:
        """The confidence level corrected for the number of checks: with more, one is likelier to look odd by luck."""
        return 1 - (1 - self.config.level) / self._checks

    def _act(self, step: int, new_alarms: Sequence[Alarm]) -> None:
        why = "; ".join(map(str, new_alarms))
        serious = [alarm for alarm in new_alarms if not alarm.only_warns]
        if serious and self.config.action == "stop":
            self.ending = f"the monitor saw the run drift: {'; '.join(map(str, serious))}"
        elif serious and self.config.action == "slow":
            self.rate *= self.config.slowdown
            why += f"; the learning rate is now {self.rate:g} of what was planned"
        self.say(f"step {step}: drift: {why}")

    def get_state(self) -> dict[str, Any]:
        """Plain data from which the monitor continues exactly."""
        return {
            "first": self._first,
            "first_words": self._first_words,
            "first_has_pairs": self._first_has_pairs,
            "first_frames": self._first_frames,
            "first_lines": self._first_lines,
            "first_lift": {n: [_none(v) for v in values] for n, values in self._first_lift.items()},
            "recent": list(self._recent.items()),
            "steps": self._steps,
            "named": sorted(self._named),
            "out_of_turn": self._out_of_turn,
            "first_much": self._first_much,
            "scores": {n: [[_none(v) for v in check] for check in checks] for n, checks in self._scores.items()},
            "start": {n: [_none(v) for v in values] for n, values in self._start.items()},
            "best": {n: [_none(v) for v in values] for n, values in self._best.items()},
            "best_step": self._best_step,
            "seen": self._seen,
            "checks": self._checks,
            "rate": self.rate,
            "ending": self.ending,
            "config": asdict(self.config),
            "prompts": [p.id for p in self.prompts],
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._seen, self.rate = state["seen"], state["rate"]
        self._checks = state["checks"] if "checks" in state else state["looks"]  # its name in earlier versions
        # An old alarm ends the run again, unless the user has changed the settings.
        as_before = {**asdict(MonitorConfig()), **state["config"]} == asdict(self.config)
        self.ending = state["ending"] if as_before else ""
        state = {**_LATER, **state}
        self._recent = dict(state["recent"])
        self._steps, self._named, self._out_of_turn = state["steps"], set(state["named"]), state["out_of_turn"]
        count = len(self.prompts)
        if state["prompts"][:count] != [p.id for p in self.prompts]:
            self.say("the monitor's prompts have changed: it measures drift from its next check on")
            return
        self._first, self._first_words = dict(state["first"]), dict(state["first_words"])
        has_pairs = state.get("first_has_pairs", state["first"].get("distinct_2", 0.0) > 0)
        self._first_has_pairs, self._first_lines = bool(has_pairs), dict(state["first_lines"])
        self._first_frames = None if state["first_frames"] is None else dict(state["first_frames"])
        first_lift = {n: values for n, values in state["first_lift"].items() if n in self.critics}
        self._first_lift = {n: [_nan(v) for v in values[:count]] for n, values in first_lift.items()}
        self._first_much = {c: (much, share) for c, (much, share) in state["first_much"].items()}
        # A new critic has no past; one that is gone needs none.
        checks = {n: state["scores"].get(n, []) for n in self.critics}
        self._scores = {n: [[_nan(v) for v in check[:count]] for check in history] for n, history in checks.items()}
        self._start = {n: [_nan(v) for v in state["start"][n][:count]] for n in self.critics if n in state["start"]}
        has_best = set(self.critics) <= set(state["best"])
        self._best = {n: [_nan(v) for v in state["best"][n][:count]] for n in self.critics} if has_best else {}
        self._best_step = state["best_step"]

    def rewind(self, step: int) -> None:
        """Drop everything recorded after `step`."""
        if self.path is None or not self.path.exists() or not is_main_process():
            return
        lines = [line for line in self.path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        kept_lines = [line for line in lines if int(json.loads(line)["step"]) <= step and self._seen >= 0]
        temporary = self.path.with_suffix(".rewinding")
        temporary.write_bytes(b"".join(kept_lines))
        os.replace(temporary, self.path)


def _none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
