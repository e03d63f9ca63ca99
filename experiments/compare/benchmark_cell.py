"""One cell of a benchmark: train one learner from the seed's warm start, and measure the lines it then writes.

    train_and_measure(spec, seed=0, folder=Path("cells/ppo/crowd/seed-0"))     # called by cells.py, returns plain data

Training is that of `humor-env train` (its spec, metrics and jokes are in the cell's folder). Measuring is separate:
lines for held-out prompts, judged by the held-out critic and by the feedback source that was trained on (so that the
two can be compared), and each compared with the teacher's line for the same prompt.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from humor_env.agents.feedback.pairs import CriticAsJudge, verdicts_with_words
from humor_env.agents.session.limits import RunControl
from humor_env.agents.student import IMITATION, POLICY, Student
from humor_env.agents.student.sampling import Sampling
from humor_env.errors import BudgetExceeded, CheckpointError
from humor_env.experiments.compare.benchmark_spec import AGAIN, BEST_OF_N, WRITTEN_AGAIN, gives_win_rate
from humor_env.experiments.compare.benchmark_spec import IMITATION as IMITATION_ROW
from humor_env.experiments.compare.stats import best_of_n_kl
from humor_env.experiments.compare.trained_critics import fill_names, folder_names
from humor_env.experiments.runs.evaluate import evaluate, judge_apart, line_places
from humor_env.experiments.runs.ingredients import Ingredients, load_student, student_settings
from humor_env.experiments.runs.paired_line import paired_line
from humor_env.experiments.runs.run import SeedRun
from humor_env.experiments.runs.run_folder import RECORD, prepare_folder, read_json
from humor_env.experiments.runs.screen import Quiet
from humor_env.experiments.specs.spec import CriticSpec, JudgeSpec, Spec, parse_spec
from humor_env.experiments.specs.toml_text import dumps
from humor_env.rewards.audits.context import measure_context
from humor_env.rewards.shared.read_once import Readings, reading_once
from humor_env.shared import text_stats
from humor_env.shared.json_lines import read_lines
from humor_env.shared.precision import precision_of
from humor_env.shared.streams import stream_seed
from humor_env.teacher import TeacherBuffer
from humor_env.types import Critic, Joke, Judge


def train_and_measure(spec: Mapping[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """The job of a cell."""
    if "trained" in spec:
        names = folder_names(spec["trained"], folder)
        spec = {key: fill_names(value, names) if key in ("run", "sources") else value for key, value in spec.items()}
    data = dict(spec["run"])
    label = str(spec["label"])
    if "start" in spec:
        data["student"] = dict(data.get("student", {})) | {"model": str(start_of(spec, folder))}
    run_spec = parse_spec(dumps(data), file=label)
    parts = Ingredients(run_spec, folder)
    parts.check()
    start = folder / spec["start"] if "start" in spec else folder
    cell = CellRun(parts, seed, load_in_folder(run_spec, folder, seed, start))
    is_start = label == IMITATION_ROW
    try:
        jokes_by_system = cell.learn_and_write(is_start=is_start, twice=bool(spec.get("noise_floor")))
    finally:
        cell.trackers.close()
    systems = measure_all(spec, cell, jokes_by_system)
    parts.close()
    shutil.rmtree(cell.folder / "checkpoints", ignore_errors=True)
    return {"systems": systems, "curve": cell.curve(), "spent": cell.spent(), "ended": cell.why}


def measure_all(
    spec: Mapping[str, Any], cell: CellRun, jokes_by_system: Mapping[str, Sequence[Joke]]
) -> dict[str, Any]:
    """The measurements of every system, by its name in the benchmark."""
    parts, label = cell.parts, str(spec["label"])
    critics = {source: make_critic(parts, critic) for source, critic, _ in spec["sources"]}
    judges = {source: make_judge(parts, judge) for source, _, judge in spec["sources"]}
    systems: dict[str, Any] = {}
    with reading_once(cell.known):
        for name, jokes in jokes_by_system.items():
            numbers = measured(jokes, parts, others=int(spec.get("others", 0)))
            if name == cell.name:
                n = getattr(cell.config, "n", 0)  # for a choice among n the distance is known, otherwise it is measured
                numbers["kl"] = (
                    best_of_n_kl(n) if name == BEST_OF_N else kl_per_line(cell.student, jokes, cell.sampling)
                )
            numbers["exact"] = against_teacher(jokes, parts.teacher, CriticAsJudge(parts.eval_critic))
            numbers["feedback"] = {}
            for source, critic in critics.items():
                verdicts = against_teacher(jokes, parts.teacher, judges[source])
                scores = [j.score for j in judge_apart(critic, jokes) if j.score is not None]
                numbers["feedback"][source] = verdicts | {"score": float(np.mean(scores)) if scores else None}
            _line_by_line(numbers, jokes, cell.spec.eval.lines)
            systems[label if name == cell.name else name] = numbers
        if WRITTEN_AGAIN in jokes_by_system:
            pairs = list(zip(jokes_by_system[WRITTEN_AGAIN], jokes_by_system[cell.name], strict=True))
            against_itself(systems[WRITTEN_AGAIN], systems[label], pairs, judges)
    return systems


def _line_by_line(numbers: dict[str, Any], jokes: Sequence[Joke], lines: int) -> None:
    """Put the numbers of each line in the order of prompts, `lines` for each, so that line k of one system is compared
    with line k of another."""
    places_of: dict[str, list[int]] = {}
    for i, joke in enumerate(jokes):
        places_of.setdefault(joke.prompt.id, []).append(i)
    order = [paired_line(places, line) for places in places_of.values() for line in range(lines)]
    numbers["prompts"] = list(places_of)
    for table, keys in (
        (numbers, ("scores",)),
        *((verdicts, ("wins", "ties", "longer")) for verdicts in (numbers["exact"], *numbers["feedback"].values())),
    ):
        table |= {key: [table[key][i] for i in order] for key in keys}


def against_itself(
    again: dict[str, Any], first: Mapping[str, Any], pairs: Sequence[tuple[Joke, Joke]], judges: Mapping[str, Judge]
) -> None:
    """Add the comparison of a policy's lines with other lines of its own for the same prompts: by the scores that the
    held-out critic has given, and by each source of feedback."""
    verdicts: list[tuple[float | None, float]] = []
    for a, b in zip(again["scores"], first["scores"], strict=True):
        both_scored = a is not None and b is not None
        verdicts.append(((float(a > b) + float(a >= b)) / 2 if both_scored else None, float(a == b)))
    again["exact"] |= {"wins_itself": [win for win, _ in verdicts], "ties_itself": [tie for _, tie in verdicts]}
    different = [i for i, (a, b) in enumerate(pairs) if a.text.strip() != b.text.strip()]
    for source, judge in judges.items():
        # The same words are a draw by definition, as in `against_teacher`.
        wins: list[float | None] = [0.5] * len(pairs)
        ties = [1.0] * len(pairs)
        for i, verdict in zip(different, verdicts_with_words(judge, [pairs[i] for i in different]), strict=True):
            wins[i] = None if verdict.probability is None else round(verdict.probability, 3)
            ties[i] = round(verdict.tie, 3)
        again["feedback"][source] |= {"wins_itself": wins, "ties_itself": ties}


def load_in_folder(spec: Spec, folder: Path, seed: int, start: Path) -> Student:
    """The student, and the folder of its cell written: it continues from what a killed process has left, or starts over
    if a default has changed since. Its precision is that of the cell in `start`, from whose student it learns on."""
    place = folder if (folder / RECORD).is_file() else start
    record = read_json(place / RECORD) if (place / RECORD).is_file() else None
    student = load_student(student_settings(spec, record), seed)
    precision = {"precision": precision_of(student.base)}
    try:
        prepare_folder(spec, folder, resume=(folder / RECORD).is_file(), machine=precision)
    except CheckpointError as problem:
        print(f"Starting over: {problem}")
        shutil.rmtree(folder / f"seed-{seed}", ignore_errors=True)
        prepare_folder(spec, folder, resume=False, machine=precision)
    return student


def start_of(spec: Mapping[str, Any], folder: Path) -> Path:
    """The student that the warm start's cell has saved."""
    [student] = (folder / spec["start"]).resolve().glob("seed-*/student")
    return student


def make_critic(parts: Ingredients, table: Mapping[str, Any]) -> Critic:
    """The feedback as a critic, with the run's ledger, limits and teacher."""
    critic = CriticSpec(critic=table["critic"], options=table["options"])
    return Ingredients(parts.spec.model_copy(update={"critic": [critic]}), parts.folder).train_critic


def make_judge(parts: Ingredients, table: Mapping[str, Any]) -> Judge:
    """The feedback as a judge of pairs."""
    judge = JudgeSpec(judge=table["judge"], options=table["options"])
    instance = Ingredients(parts.spec.model_copy(update={"judge": judge}), parts.folder).judge
    assert instance is not None
    return instance


class CellRun(SeedRun):
    """A run that starts from a given student, and measures more during training than a run does."""

    def __init__(self, parts: Ingredients, seed: int, student: Student) -> None:
        super().__init__(parts, seed, student, Quiet())
        self.name = self.spec.learner_name
        self.known: Readings = {}  # readings of local critics in the lines that the cell is measured by

    def _measure(self, name: str, adapter: str | None, seed: int | None = None) -> None:
        with reading_once(self.known):
            super()._measure(name, adapter, seed)

    def _measure_teacher(self) -> None:
        with reading_once(self.known):
            super()._measure_teacher()

    def learn_and_write(self, *, is_start: bool, twice: bool = False) -> dict[str, list[Joke]]:
        """Train, then return the lines for the held-out prompts, by name. The warm start also has those of base and
        teacher, and is saved; with `twice` it writes its own again, with other random numbers."""
        if is_start:
            self._measure("base", None)
            self._measure_teacher()
        try:
            result = self._learn(self.name, self.spec.train, self.config, self.folder, RunControl(self.parts.limits))
            if getattr(result, "stopped", False):
                raise KeyboardInterrupt
            self.why = getattr(result, "why", "")
        except BudgetExceeded as problem:
            self.why = str(problem)
        self._measure(self.name, POLICY)
        if twice:
            self._measure(self.name + AGAIN, POLICY, stream_seed(self.seed, "noise floor"))
        if is_start:
            self.student.save_pretrained(self.folder / "student")
        names = ["base", "teacher", self.name] if is_start else [self.name]
        lines = {name: self._lines(name) for name in names if (self.folder / f"evaluation-{name}.jsonl").is_file()}
        return lines | ({WRITTEN_AGAIN: self._lines(self.name + AGAIN)} if twice else {})

    def _lines(self, name: str) -> list[Joke]:
        prompts = {p.id: p for p in self.parts.eval_prompts}
        records = map(json.loads, read_lines(self.folder / f"evaluation-{name}.jsonl"))
        return [Joke(prompts[r["prompt_id"]], r["text"], r["author"], r["stop_reason"]) for r in records]

    def _evaluator(self, name: str, config: Any) -> Callable[[Any], Mapping[str, float]] | None:
        inner = super()._evaluator(name, config)
        if inner is None or name == BEST_OF_N:
            return inner

        def on_the_way(student: Student) -> dict[str, float]:
            """On dev prompts: the held-out critic and the training critic, their wins over the teacher (where the score
            is no win rate), and the distance to the imitation."""
            with reading_once({}):  # on its own, so that a resumed run measures as an uninterrupted one
                return numbers_of(student)

        def numbers_of(student: Student) -> dict[str, float]:
            prompts = self.parts.prompts.split("dev")[: self.spec.eval.dev_limit]
            evaluation = evaluate(
                student,
                prompts,
                self.parts.eval_critic,
                sampling=self.sampling,
                seed=self.seed,
                lines=self.spec.eval.dev_lines,
            )
            numbers = {
                "score": evaluation.mean,
                "length_ratio": evaluation.length_ratio,
                "distinct_2": evaluation.distinct_2,
            }
            numbers |= {"meaning": evaluation.parts["meaning"]} if "meaning" in evaluation.parts else {}
            teaching = [j.score for j in self._teaching(evaluation.jokes) if j.score is not None]
            numbers |= {"feedback_score": float(np.mean(teaching))} if teaching else {}
            judges: dict[str, Judge | None] = {"held_out_wins": CriticAsJudge(self.parts.eval_critic)}
            judges |= {"feedback_wins": self._teaching_judge}
            for measure, judge in judges.items():
                verdicts = against_teacher(evaluation.jokes, self.parts.teacher, judge)["wins"] if judge else []
                wins = [win for win in verdicts if win is not None]
                numbers |= {measure: float(np.mean(wins))} if wins else {}
            numbers["kl"] = kl_per_line(student, evaluation.jokes, self.sampling)
            return {n: v for n, v in numbers.items() if math.isfinite(v)}

        return on_the_way

    @cached_property
    def _teaching(self) -> Critic:
        """The training critic, as a new instance, so that measuring is not counted as learning."""
        return make_critic(self.parts, self.spec.critic[0].model_dump())

    @cached_property
    def _teaching_judge(self) -> Judge | None:
        """The feedback as a judge, to compare with the teacher as the held-out critic does. None where the training
        critic's score is a win rate already, so that no pair is paid for twice."""
        critic = self.spec.critic[0]
        if self.spec.judge is None or gives_win_rate(critic.critic, critic.options):
            return None
        return make_judge(self.parts, self.spec.judge.model_dump())

    def curve(self) -> list[dict[str, float]]:
        """The measurements during training: step, what was spent so far, score, the feedback's score, distance."""
        seconds = {r["step"]: r["seconds/spent"] for r in self._records("timings") if "seconds/spent" in r}
        points = []
        for record in self._records("metrics"):
            if "eval/score" in record:
                point = {"step": record["step"], "seconds": seconds.get(record["step"], 0.0)}
                point |= {n.partition("/")[2]: v for n, v in record.items() if n.startswith(("eval/", "spent/"))}
                points.append({n: round(v, 4) for n, v in point.items()})
        return points

    def spent(self) -> dict[str, float]:
        """What learning cost, including restarts."""
        metrics, timings = self._records("metrics"), self._records("timings")
        totals = {"steps": float(max((r["step"] for r in metrics), default=0))}
        for name, records, key in (
            ("samples", metrics, "spent/samples"),
            ("judgements", metrics, "spent/judgements"),
            ("seconds", timings, "seconds/spent"),
        ):
            counted = [r[key] for r in records if key in r]
            totals |= {name: round(counted[-1], 2)} if counted else {}
        costs = [r["critic/cost"] for r in metrics if "critic/cost" in r]
        return totals | ({"cost": round(sum(costs), 6)} if any(costs) else {})

    def _records(self, name: str) -> list[dict[str, float]]:
        path = self.folder / f"{name}.jsonl"
        return [json.loads(x) for x in read_lines(path)] if path.is_file() else []


def kl_per_line(student: Student, jokes: Sequence[Joke], sampling: Sampling) -> float:
    """The policy's distance from the imitation, both at the temperature of writing: the mean log-ratio of the lines it
    wrote. The end of a line that was cut off is not counted, because the policy did not write it."""
    ended = [j.stop_reason != "length" for j in jokes]
    rows = student.rows_from_text([j.prompt.text for j in jokes], [j.text for j in jokes], ended)
    temperature = sampling.scoring_temperature
    policy, imitation = (
        student.score_in_batches(rows, adapter=a, temperature=temperature).logprobs for a in (POLICY, IMITATION)
    )
    return float(((policy - imitation) * rows.action_mask).sum(-1).mean())


def measured(jokes: Sequence[Joke], parts: Ingredients, others: int = 0) -> dict[str, Any]:
    """The held-out critic's scores, by part and with `others` other prompts, and what needs no critic."""
    judgements = judge_apart(parts.eval_critic, jokes)
    context = measure_context(parts.eval_critic, jokes, draws=others) if others else None
    texts = [j.text for j in jokes]
    names = dict.fromkeys(n for j in judgements for n in j.parts)
    return {
        "scores": [None if j.score is None else round(j.score, 4) for j in judgements],
        "parts": {n: float(np.mean([j.parts[n] for j in judgements if n in j.parts])) for n in names},
        "distinct_2": text_stats.distinct_n(texts, 2),
        "commonest_line": text_stats.commonest_line(texts)[1],
        "different_lines": len(set(map(text_stats.line_key, texts))) / max(1, len(texts)),
        "self_overlap": text_stats.self_overlap(texts),
        "teacher_copies": float(np.mean([j.text.strip() in _taught(parts.teacher, j) for j in jokes])),
        "length_ratio": sum(map(len, texts)) / max(1, sum(len(j.prompt.text) for j in jokes)),
        "failures": sum(j.failed for j in judgements),
        **({} if context is None else {"lift": context.lift}),
    }


def _taught(teacher: TeacherBuffer | None, joke: Joke) -> set[str]:
    return {line.strip() for line in teacher.lines_for(joke.prompt.id)} if teacher else set()


def against_teacher(jokes: Sequence[Joke], teacher: TeacherBuffer | None, judge: Judge) -> dict[str, Any]:
    """Each line compared with one of the teacher's for its prompt, the first with the first: the probability that it
    wins (a tie is half a win), that of a tie, and how much longer it is, in characters. None if there is no teacher's
    line or no verdict."""
    lines = [
        None if teacher is None else paired_line(teacher.lines_for(joke.prompt.id), place)
        for joke, place in zip(jokes, line_places(jokes), strict=True)
    ]
    # The same words are a draw by definition, so the judge is not asked.
    pairs = {
        i: (joke, Joke(joke.prompt, line, "teacher"))
        for i, (joke, line) in enumerate(zip(jokes, lines, strict=True))
        if line is not None and line.strip() != joke.text.strip()
    }
    verdicts = verdicts_with_words(judge, list(pairs.values()))
    wins: list[float | None] = [None if line is None else 0.5 for line in lines]
    ties = [1.0] * len(jokes)
    for i, verdict in zip(pairs, verdicts, strict=True):
        wins[i], ties[i] = verdict.probability, verdict.tie
    return {
        "wins": [None if p is None else round(p, 3) for p in wins],
        "ties": [round(t, 3) for t in ties],
        "longer": [0 if line is None else len(j.text) - len(line) for j, line in zip(jokes, lines, strict=True)],
    }
