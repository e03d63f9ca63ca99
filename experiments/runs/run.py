"""Run a spec: environment, student, teacher, critic and learner by name; warm start; learning; held-out evaluation.

    results = run(load_spec("pocket-quickstart"), Path("runs/first"))
    results[0].stages["ppo"]["score"]           # the held-out critic's mean on held-out prompts
    run(spec, Path("runs/first"), resume=True)  # continues a run that was stopped

The names of a learner's parameters decide which arguments it gets, so that a new learner needs no change here: OFFERS
lists them.
"""

from __future__ import annotations

import inspect
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from humor_env import registry
from humor_env.agents.session.checkpoint import CheckpointStore
from humor_env.agents.session.limits import RunControl
from humor_env.agents.session.log import Log, RunLog, Silent
from humor_env.agents.session.processes import is_main_process, process_count
from humor_env.agents.session.session import Writer
from humor_env.agents.sft import SFTConfig
from humor_env.agents.student import IMITATION, POLICY, Student
from humor_env.agents.student.writer import Backend
from humor_env.errors import InvalidOption
from humor_env.experiments.runs.evaluate import Evaluation, evaluate, judged, save_lines, written_by
from humor_env.experiments.runs.ingredients import Ingredients, evaluation_sampling, load_student, student_settings
from humor_env.experiments.runs.micro_batches import choose, with_numbers
from humor_env.experiments.runs.run_folder import (
    RECORD,
    RESULTS,
    prepare_folder,
    read_json,
    read_results,
    write_json,
)
from humor_env.experiments.runs.screen import MOST_FLIPS, Quiet, Screen, flips
from humor_env.experiments.runs.trackers import Trackers
from humor_env.experiments.specs.spec import IMITATION_LEARNER, Spec
from humor_env.shared.precision import precision_of
from humor_env.shared.user_path import user_path
from humor_env.types import Joke, critic_name

WRITERS = ("best-of-n",)  # learners that leave the student's weights alone
OFFERS = (
    *("config", "env", "student", "log", "prompts", "demonstrations", "dev", "checkpoints", "evaluate"),
    *("critic", "judge", "teacher", "control", "backend", "preferences"),
)


@dataclass(frozen=True)
class SeedResult:
    """One seed's outcome: the numbers of each stage ("base", "imitation", the learner's name, and "teacher"). `stopped`
    means by the user; `why` is any other reason for ending before the last step, such as a limit of the budget."""

    seed: int
    folder: Path
    stages: Mapping[str, Mapping[str, float | None]]
    steps: int | None
    stopped: bool
    seconds: Mapping[str, float]
    why: str = ""

    def record(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "steps": self.steps,
            "stopped": self.stopped,
            "why": self.why,
            "stages": {name: dict(numbers) for name, numbers in self.stages.items()},
            "seconds": dict(self.seconds),
        }


def run(spec: Spec, folder: Path, *, resume: bool = False, screen: Screen | None = None) -> list[SeedResult]:
    """Run all seeds, one after the other; stop after a seed in which the user asked to stop."""
    parts = Ingredients(spec, folder)
    # Before the run's folder is written, so that a mistake leaves no files behind.
    parts.check()
    before = read_json(folder / RECORD) if resume else {}
    settings = student_settings(spec, before)
    first = load_student(settings, spec.seeds[0])
    if spec.imitates or spec.learner_name not in WRITERS:
        first.check_trainable()
    # As chosen when the run started, whatever memory is free now.
    at_once = before.get("micro_batch", {}) if resume else choose(parts, first)
    parts.spec = with_numbers(spec, at_once)
    if is_main_process():
        say = screen.say if screen else Quiet().say
        machine = (
            _machine(first.device)
            | {"precision": precision_of(first.base)}
            | ({"micro_batch": at_once} if at_once else {})
        )
        prepare_folder(spec, folder, resume=resume, machine=machine, inputs=parts.digests(), say=say)
        if resume and "precision" not in before and settings.dtype == "auto":
            say(f"warning: the run does not say its precision; it continues in {machine['precision']}.")
        for key, number in at_once.items():
            say(f"{key} is {number}")
    PartialState().wait_for_everyone()
    results: list[SeedResult] = []
    student: Student | None = first
    del first
    for seed in spec.seeds:
        student = student or load_student(settings, seed)
        results.append(SeedRun(parts, seed, student, screen if screen and is_main_process() else Quiet()).run())
        if is_main_process():
            write_json(folder / RESULTS, {"name": spec.name, "seeds": [r.record() for r in results]})
        student.close()
        student = None  # freed before the next is loaded: two would need twice the memory
        if results[-1].stopped:
            break
    parts.close()
    return results


def join_processes() -> None:
    """Join the other processes of a launcher, before anything asks how many there are. Without an accelerator they
    communicate over the CPU, which Accelerate does only on request."""
    together = int(os.environ.get("WORLD_SIZE", "1")) > 1
    PartialState(cpu=together and not torch.accelerator.is_available())


def same_folder(choose: Callable[[], Path]) -> Path:
    """The folder that the main process chooses, in every process; others might already find it taken."""
    chosen = [choose() if is_main_process() else Path()]
    if process_count() > 1:
        broadcast_object_list(chosen)
    return chosen[0]


def _machine(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "processes": process_count(), "threads": torch.get_num_threads()}


class SeedRun:
    """One seed of a run; a benchmark's cell is one with other measurements."""

    def __init__(self, parts: Ingredients, seed: int, student: Student, screen: Screen) -> None:
        self.parts, self.spec, self.seed, self.student, self.screen = parts, parts.spec, seed, student, screen
        self.folder = parts.folder / f"seed-{seed}"
        self.config = self.spec.learner_config(seed)
        self.sampling = evaluation_sampling(self.spec, self.config)
        self.stages: dict[str, dict[str, float | None]] = {}
        self.seconds: dict[str, float] = {}
        self.steps: int | None = None
        self.why = ""
        self.writer: Writer | None = None  # measured instead of the student
        self.backend: Backend | None = None  # writes lines instead of this process
        parts.forget()
        self.trackers = Trackers.of(self.spec, parts.folder, seed=seed, say=screen.say)
        if (self.folder / RESULTS).is_file():
            before = read_results(self.folder / RESULTS)
            self.stages, self.seconds, self.steps = before["stages"], before["seconds"], before["steps"]
            self.why = before.get("why", "")

    def run(self) -> SeedResult:
        try:
            return self._run()
        finally:
            self.trackers.close()

    def _run(self) -> SeedResult:
        spec = self.spec
        self._measure("base", None)
        self._measure_teacher()
        if spec.imitates:
            config = spec.imitation_config(self.seed)
            result = self._learn(
                "imitation",
                registry.learners.resolve(IMITATION_LEARNER),
                config,
                self.folder / "imitation",
                RunControl(),
            )
            if result is not None and result.stopped:
                return self._result(stopped=True)
            self._measure("imitation", IMITATION)
        try:
            return self._learn_and_measure(spec.learner_name)
        finally:
            if self.backend is not None:
                self.backend.close()

    def _learn_and_measure(self, name: str) -> SeedResult:
        result = self._learn(name, self.spec.train, self.config, self.folder, self._control())
        steps = getattr(result, "steps", None)
        if self.steps not in (None, steps):
            self.stages.pop(name, None)  # the student has learned more since this was measured
        self.steps = steps
        self.why = getattr(result, "why", "")
        if getattr(result, "stopped", False):
            return self._result(stopped=True)
        if self.why:
            self.screen.say(f"seed {self.seed}, {name}: ended after step {steps}, because {self.why}")
        self._measure(name, POLICY)
        if is_main_process():
            self.student.save_pretrained(self.folder / "student", base=self._base())
        return self._result(stopped=False)

    def _control(self) -> RunControl:
        """The limits and the monitor that may end the learner before its last step."""
        monitor = self.parts.make_monitor(self.folder, self.sampling, self.seed, self.screen.say)
        return RunControl(self.parts.limits, monitor)

    def _learn(self, name: str, train: Callable[..., Any], config: Any, folder: Path, control: RunControl) -> Any:
        parts = self.parts
        began = time.perf_counter()
        total = getattr(config, "steps", None)
        if isinstance(config, SFTConfig):
            total = config.epochs * -(-len(parts.demonstrations) // config.batch_size)
        with self.screen.stage(name, total) as bar:
            stage = "" if folder == self.folder else name
            log: Log = (
                bar.log(self.trackers.log(RunLog(folder, device=self.student.device), stage))
                if is_main_process()
                else Silent()
            )
            offers: dict[str, Callable[[], Any]] = {
                "config": lambda: config,
                "env": lambda: parts.make_envs(config),
                "student": lambda: self.student,
                "log": lambda: log,
                "prompts": lambda: parts.prompts.split(self.spec.env.split),
                "demonstrations": lambda: parts.demonstrations,
                "dev": lambda: parts.dev,
                "checkpoints": lambda: CheckpointStore(folder / "checkpoints"),
                "evaluate": lambda: self._evaluator(name, config),
                "critic": lambda: parts.train_critic,
                "judge": lambda: parts.judge,
                "teacher": lambda: parts.teacher,
                "control": lambda: control,
                "backend": lambda: self._make_backend(folder, control),
                "preferences": lambda: parts.preferences,
            }
            assert tuple(offers) == OFFERS
            result = train(config, **chosen_arguments(train, name, offers))
            self.writer = getattr(result, "writer", None)
        self.seconds[name] = self.seconds.get(name, 0.0) + round(time.perf_counter() - began, 3)
        PartialState().wait_for_everyone()
        return result

    def _make_backend(self, folder: Path, control: RunControl) -> Backend | None:
        """The backend that writes lines from now on: those to learn from, the monitor's, and those of evaluations."""
        self.backend = self.parts.make_backend(self.student, folder)
        if control.monitor is not None:
            control.monitor.backend = self.backend
        return self.backend

    def _evaluator(self, name: str, config: Any) -> Callable[[Any], Mapping[str, float]] | None:
        """The function with which a learner is measured during training, on dev prompts."""
        if getattr(config, "evaluate_every", None) == 0:
            return None

        def measured(student: Student) -> dict[str, float]:
            if not is_main_process():
                return {}
            prompts, critic = self.parts.prompts.split("dev")[: self.spec.eval.dev_limit], self.parts.eval_critic
            if self.backend is not None:
                self.backend.refresh()
            evaluation = evaluate(
                student,
                prompts,
                critic,
                sampling=self.sampling,
                seed=self.seed,
                backend=self.backend,
                lines=self.spec.eval.dev_lines,
            )
            return {k: v for k, v in evaluation.numbers().items() if math.isfinite(v)}

        return measured

    def _measure(self, name: str, adapter: str | None, seed: int | None = None) -> None:
        """Write, judge and save the lines of a stage; with the run's random numbers, unless a seed is given."""
        if name not in self.stages and is_main_process():
            began = time.perf_counter()
            prompts, critic, lines = self.parts.eval_prompts, self.parts.eval_critic, self.spec.eval.lines
            if self.writer is not None:
                jokes = written_by(self.writer, prompts, lines=lines, seed=self.seed)
                evaluation = judged(jokes, critic, name=name, seed=self.seed)
            else:
                evaluation = evaluate(
                    self.student,
                    prompts,
                    critic,
                    adapter=adapter,
                    sampling=self.sampling,
                    seed=self.seed if seed is None else seed,
                    name=name,
                    backend=self.backend,
                    lines=lines,
                )
            self.seconds[f"evaluate {name}"] = round(time.perf_counter() - began, 3)
            self._keep(evaluation)
        PartialState().wait_for_everyone()

    def _measure_teacher(self) -> None:
        """Measure as many of the teacher's lines as others write, or fewer if it has fewer: none is judged twice."""
        teacher, most = self.parts.teacher, self.spec.eval.lines
        if teacher is None or "teacher" in self.stages or not is_main_process():
            return
        jokes = [Joke(p, line, "teacher") for p in self.parts.eval_prompts for line in teacher.lines_for(p.id)[:most]]
        if jokes:
            self._keep(judged(jokes, self.parts.eval_critic, name="teacher", seed=self.seed))

    def _keep(self, evaluation: Evaluation) -> None:
        self.stages[evaluation.name] = save_lines(evaluation, self.folder)
        self.trackers.results(evaluation.name, self.stages[evaluation.name])
        self._result(stopped=True)  # so far
        judge = critic_name(self.parts.eval_critic)
        self.screen.say(f"seed {self.seed}, {evaluation.name}: {evaluation.mean:.3f} by {judge}")
        share = flips(evaluation.numbers())
        if share is not None and share > MOST_FLIPS:
            self.screen.say(
                f"warning: {share:.0%} of the verdicts behind '{judge}' change with the order of the two lines: this "
                "score means little."
            )

    def _result(self, *, stopped: bool) -> SeedResult:
        result = SeedResult(self.seed, self.folder, self.stages, self.steps, stopped, self.seconds, self.why)
        if is_main_process():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / RESULTS, result.record())
        return result

    def _base(self) -> str | None:
        """The base that the saved student names. A base from a hub or a folder is named and not copied, unless the warm
        start has changed its weights."""
        model = self.spec.student.model
        if model.startswith("pocket:") or self.spec.trains_base:
            return None
        folder = user_path(model)
        if folder.is_file():
            return str(folder.resolve())
        if not folder.is_dir():
            return model
        if (folder / "student.json").is_file():
            base = read_json(folder / "student.json")["base"]
            return base or str((folder / "base").resolve())
        return str(folder.resolve())


def chosen_arguments(train: Callable[..., Any], name: str, offers: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """The arguments on offer that the learner has parameters for."""
    _, *others = inspect.signature(train).parameters.values()
    for parameter in others:
        needed = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        if needed and parameter.name not in offers:
            raise InvalidOption(
                f"The learner '{name}' wants '{parameter.name}', which a run does not have. It offers: "
                f"{', '.join(offers)}."
            )
    return {p.name: offers[p.name]() for p in others if p.name in offers}
