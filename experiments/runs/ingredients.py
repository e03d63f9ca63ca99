"""Makes what a spec names: prompts, teacher, critics with the run's ledger and limits, environments, the student.

parts = Ingredients(spec, folder)
parts.check()                       # names, options, keys and files, before anything is computed
parts.train_critic, parts.prompts, parts.teacher, parts.make_envs(config)
load_student(spec.student, seed=0)
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium
import torch
from accelerate import PartialState
from gymnasium import spaces as gymnasium_spaces

from humor_env import registry
from humor_env.agents.session.limits import Limits
from humor_env.agents.session.monitor import Monitor, MonitorConfig
from humor_env.agents.session.processes import process_count
from humor_env.agents.student import Lora, Student
from humor_env.agents.student.sampling import Sampling
from humor_env.agents.student.server import Server
from humor_env.agents.student.writer import Backend
from humor_env.episodes.closing import close_all
from humor_env.episodes.critic_memory import with_memory
from humor_env.errors import CredentialError, InvalidOption, PromptError, StudentError
from humor_env.experiments.options import env_spec, fill, limits_of, parameters, taken_by_env, with_members
from humor_env.experiments.runs.trackers import check_installed
from humor_env.experiments.specs.preference_file import read_preferences
from humor_env.experiments.specs.spec import CriticSpec, Spec, StudentSpec
from humor_env.llm.clients import address
from humor_env.prompts import PromptSet, load_prompts
from humor_env.registry import Registry
from humor_env.shared.precision import device_for
from humor_env.shared.user_path import user_path
from humor_env.sources import human_pairs, students
from humor_env.spaces import UnicodeText
from humor_env.teacher import TeacherBuffer, open_lines, pocket_lines
from humor_env.types import Critic, Demonstration, Judge, Preference, Prompt

BUDGET_SCOPE = "run"
_FILES = (".jsonl", ".json", ".csv", ".tsv")


def check_named(spec: Spec) -> None:
    """Check that the files named in a spec exist."""
    values = {"env.prompts": spec.env.prompts, "learner.preferences": spec.preferences}
    values |= {"teacher.lines": spec.teacher.lines if spec.teacher else None}
    for key, value in values.items():
        file = human_pairs.file_of(value) if isinstance(value, str) else ""
        if file.endswith(_FILES) and not user_path(file).is_file():
            raise InvalidOption(f"There is no file '{file}', which {key} names.")


def check_student(spec: StudentSpec) -> None:
    """Check that the student's folder and device exist, without loading anything. A name on a hub is not checked."""
    place = students.find(spec.model)
    folder = user_path(place)
    is_path = place.startswith(("/", ".", "~")) or place.count("/") > 1 or folder.is_dir()
    if place.endswith(students.GGUF):
        if not folder.is_file():
            raise StudentError(f"The student '{spec.model}' does not exist: there is no such file.")
    elif is_path and not any((folder / file).is_file() for file in ("config.json", "student.json")):
        raise StudentError(
            f"The student '{spec.model}' does not exist: expected a folder with a config.json or a student.json."
        )
    if spec.device != "auto":
        try:
            torch.empty(0, device=spec.device)
        except (RuntimeError, AssertionError) as problem:
            raise StudentError(
                f"[student] device '{spec.device}' cannot be used here ({str(problem).splitlines()[0]}). Give 'cpu' or "
                "'auto'."
            ) from None


@dataclass
class Ingredients:
    """What all seeds share, each part made on first use."""

    spec: Spec
    folder: Path
    _made: list[Critic | Judge] = field(default_factory=list)
    _fresh: dict[int, Any] = field(default_factory=dict)  # the initial memory of critics

    def check(self) -> None:
        """Make the parts that are cheap and may be wrong (names, options, keys, files), before anything is computed."""
        check_installed(self.spec.tracking)
        _ = self.eval_critic, self.judge, self.prompts, self.eval_prompts
        if self.spec.critic:
            _ = self.train_critic
        self.prompts.split(self.spec.env.split)
        its_parameters = inspect.signature(self.spec.train).parameters
        for option, name in ((self.spec.student.backend, "backend"), (self.spec.preferences, "preferences")):
            if option is not None and name not in its_parameters:
                where = "[student.backend]" if name == "backend" else "[learner] preferences"
                raise InvalidOption(f"The learner '{self.spec.learner_name}' takes no {name}: leave {where} out.")
        _ = self.env_options, self.preferences, self.backend_key
        watched = self.limits != Limits() or self.spec.monitor is not None
        if watched and "control" not in its_parameters:
            raise InvalidOption(
                f"The learner '{self.spec.learner_name}' supports no budget and no monitor: give its train function a "
                "parameter 'control', or leave [monitor] and max_samples, max_judgements and max_seconds out."
            )
        if self.spec.monitor is not None:
            _ = self.watching_critic, self.prompts.split(self.spec.monitor.split)
        if self.spec.imitates and not self.demonstrations:
            raise PromptError(
                f"The teacher '{self.spec.teacher and self.spec.teacher.lines}' has no line for the split "
                f"'{self.spec.env.split}' of the prompts '{self.prompts.name}', so there is nothing to imitate."
            )

    def digests(self) -> dict[str, str]:
        """Short hashes of the inputs that the spec only names."""
        splits = dict.fromkeys([self.spec.env.split, self.spec.eval.split])
        by_name = {f"prompts of '{split}'": self.prompts.digest(split) for split in splits}
        if self.demonstrations:
            texts = "\0".join(f"{d.prompt.id}\0{d.text}" for d in self.demonstrations)
            by_name["teacher's lines"] = hashlib.blake2b(texts.encode(), digest_size=8).hexdigest()
        return by_name

    @cached_property
    def env_options(self) -> dict[str, Any]:
        """The environment's settings: those it is registered with, overridden by the spec's."""
        spec = self.spec.env
        registered = env_spec(spec.id)
        its_parameters = taken_by_env(registered)
        if its_parameters is not None and not its_parameters.keys() >= {"prompts", "critic"}:
            raise InvalidOption(
                f"The environment '{spec.id}' takes no prompts and no critic, so no student can learn in it. Use "
                "humor_env/Paraphrase-v0, OneLiner-v0 or Revise-v0, or one like them."
            )
        options = dict(registered.kwargs)
        chosen = {"attempts": spec.attempts, "max_chars": spec.max_chars, "split": spec.split}
        return options | {k: v for k, v in chosen.items() if v is not None}

    @cached_property
    def prompts(self) -> PromptSet:
        what = self.spec.env.prompts or self.env_options.get("prompts", "pocket")
        return load_prompts(what, **self.spec.env.prompts_options)

    @cached_property
    def eval_prompts(self) -> tuple[Prompt, ...]:
        return self.prompts.split(self.spec.eval.split)[: self.spec.eval.limit]

    @cached_property
    def teacher(self) -> TeacherBuffer | None:
        """The teacher's lines."""
        spec = self.spec.teacher
        if spec is None:
            return None
        if spec.lines == "pocket":
            return pocket_lines(max(spec.per_prompt, spec.dev_per_prompt))
        buffer = open_lines(spec.lines)
        assert isinstance(buffer, TeacherBuffer)
        return buffer

    @cached_property
    def demonstrations(self) -> tuple[Demonstration, ...]:
        return self._demonstrations(self.spec.env.split, self.spec.teacher.per_prompt if self.spec.teacher else 0)

    @cached_property
    def dev(self) -> tuple[Demonstration, ...]:
        if not any(p.split == "dev" for p in self.prompts):
            return ()
        return self._demonstrations("dev", self.spec.teacher.dev_per_prompt if self.spec.teacher else 0)

    def _demonstrations(self, split: str, count: int) -> tuple[Demonstration, ...]:
        buffer = self.teacher
        if buffer is None or self.spec.teacher is None:
            return ()
        lessons = [
            prompt_lines for p in self.prompts.split(split) if (prompt_lines := buffer.demonstrations_for(p.id)[:count])
        ]
        chosen = [line for prompt_lines in lessons[: self.spec.teacher.limit] for line in prompt_lines]
        teacher_filter = self.spec.teacher.filter
        if teacher_filter is not None:
            critic = self.make_critic(CriticSpec(critic=teacher_filter.critic, options=teacher_filter.options))
            chosen = list(TeacherBuffer(None, chosen).filter(critic, teacher_filter.at_least))
        return tuple(chosen)

    @cached_property
    def train_critic(self) -> Critic:
        if not self.spec.critic:
            raise InvalidOption(
                f"The learner '{self.spec.learner_name}' learns from a critic: the spec needs [[critic]]."
            )
        return self._make_all(self.spec.critic)

    def forget(self) -> None:
        """Reset critics with a memory, so that one seed's lines do not affect the next."""
        for critic in with_memory(self._made):
            critic.set_state(self._fresh[id(critic)])

    @cached_property
    def eval_critic(self) -> Critic:
        return self._make_all(self.spec.eval.critic) if self.spec.eval.critic else self.train_critic

    @property
    def limits(self) -> Limits:
        """The limits of each seed's learner."""
        budget = self.spec.budget
        return Limits(budget.max_samples, budget.max_judgements, budget.max_seconds)

    @cached_property
    def preferences(self) -> tuple[Preference, ...]:
        """The preferences from a file."""
        path = self.spec.preferences
        return () if path is None else tuple(read_preferences(path, self.prompts))

    @property
    def backend_key(self) -> str | None:
        """The key of the server that writes the student's lines."""
        spec = self.spec.student.backend
        if spec is None or spec.key_env is None:
            return None
        if not os.environ.get(spec.key_env):
            raise CredentialError(f"[student.backend] reads its key from {spec.key_env}, which is not set.")
        if not address.may_have_key(spec.url):
            raise CredentialError(
                f"[student.backend]: the variable {spec.key_env} is sent only to hosts that you allow. If it is meant "
                f"for {address.shown(spec.url)}, set {address.ALLOW_KEY_HOSTS}={address.label(spec.url)} in the "
                "environment."
            )
        return os.environ[spec.key_env]

    def make_backend(self, student: Student, folder: Path) -> Backend | None:
        """The backend that writes the student's lines; None for this process."""
        spec = self.spec.student.backend
        if spec is None:
            return None
        return Server(
            spec.url,
            student,
            base=spec.base or self.spec.student.model,
            adapters=folder / "adapters",
            key=self.backend_key,
            timeout=spec.timeout,
            concurrency=spec.concurrency,
        )

    def make_monitor(self, folder: Path, sampling: Sampling, seed: int, say: Callable[[str], None]) -> Monitor | None:
        """The monitor that watches one seed's learner for drift, if the spec has one."""
        spec = self.spec.monitor
        if spec is None:
            return None
        settings = spec.model_dump(exclude={"critic", "split"})
        return Monitor(
            MonitorConfig(**settings),
            self.prompts.split(spec.split),
            training=self.train_critic if self.spec.critic else None,
            held_out=self.watching_critic,
            teacher=self.demonstrations,
            sampling=sampling,
            folder=folder,
            seed=seed,
            say=say,
        )

    @cached_property
    def watching_critic(self) -> Critic | None:
        """The held-out critic of the monitor. The training critic itself is never held out."""
        entries = self.spec.monitor.critic if self.spec.monitor is not None else []
        if entries and entries != self.spec.critic:
            return self._make_all(entries)
        return self.eval_critic if self.spec.eval.critic and self.spec.eval.critic != self.spec.critic else None

    @cached_property
    def judge(self) -> Judge | None:
        if self.spec.judge is None:
            return None
        options = self._filled(registry.judges, self.spec.judge.judge, self.spec.judge.options)
        judge: Judge = registry.judges.make(self.spec.judge.judge, **options)
        self._made.append(judge)
        return judge

    def _make_all(self, entries: Sequence[CriticSpec]) -> Critic:
        if len(entries) == 1 and entries[0].weight is None and entries[0].gate is None:
            return self.make_critic(entries[0])
        members = []
        for entry in entries:
            settings = {"name": entry.name, "weight": entry.weight, "gate": entry.gate, "required": entry.required}
            members.append({"critic": self.make_critic(entry), **{k: v for k, v in settings.items() if v is not None}})
        mixed: Critic = registry.critics.make("mix", critics=members)
        return mixed

    def make_critic(self, entry: CriticSpec) -> Critic:
        critic: Critic = registry.critics.make(
            entry.critic, **self._filled(registry.critics, entry.critic, entry.options)
        )
        self._made.append(critic)
        self._fresh |= {id(member): member.get_state() for member in with_memory([critic])}
        return critic

    def _filled(self, kind: Registry, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options, with the run's ledger, limits, teacher and prompts added if accepted and not given, also for
        every critic and judge that it asks."""
        budget = self.spec.budget
        ledger = budget.ledger or self.folder / "ledger.sqlite"
        limits = limits_of(budget.max_calls, budget.max_tokens, budget.max_cost)
        pace = {"requests_per_minute": budget.requests_per_minute, "tokens_per_minute": budget.tokens_per_minute}
        limits |= {key: value for key, value in pace.items() if value is not None}
        filled = fill(kind, name, options, ledger=ledger, limits=limits, scope=BUDGET_SCOPE, must_spend=False)
        return self._with_texts(kind, name, filled)

    def _with_texts(self, kind: Registry, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        filled, its_parameters = with_members(kind, name, options, self._with_texts), parameters(kind, name)
        prompts = its_parameters.get("prompts")
        if prompts is not None and prompts.default is prompts.empty and "prompts" not in filled:
            filled["prompts"] = self.prompts
            if "split" in its_parameters:
                filled.setdefault("split", self.spec.env.split)
        teacher = its_parameters.get("teacher")
        if teacher is not None and teacher.default is teacher.empty and "teacher" not in filled:
            if self.teacher is None:
                raise InvalidOption(f"The critic '{name}' compares with a teacher's lines: the spec needs [teacher].")
            filled["teacher"] = self.teacher
        return filled

    def make_envs(self, config: Any) -> list[Any]:
        """This process's share of the learner's batch, in `groups` environments."""
        batch, siblings, groups = getattr(config, "batch_size", 1), getattr(config, "siblings", 1), self.spec.env.groups
        share = batch // process_count()
        if share % (groups * siblings):
            raise InvalidOption(
                f"[env] groups = {groups}: a process's {share} lines do not divide into {groups} groups of whole "
                f"families of {siblings} siblings."
            )
        options = {k: v for k, v in self.env_options.items() if k not in ("prompts", "critic")}
        envs = []
        for _ in range(groups):
            vector = gymnasium.make_vec(
                self.spec.env.id,
                num_envs=share // groups,
                prompts=self.prompts,
                critic=self.train_critic,
                **options,
            )
            if not isinstance(vector.single_action_space, (UnicodeText, gymnasium_spaces.Text)):
                raise InvalidOption(
                    f"The environment '{self.spec.env.id}' takes {type(vector.single_action_space).__name__} actions; "
                    "a student writes text. Use humor_env/Paraphrase-v0, OneLiner-v0 or Revise-v0, or one like them."
                )
            envs.append(vector.unwrapped)
        return envs

    def close(self) -> None:
        close_all(self._made)


def evaluation_sampling(spec: Spec, config: Any) -> Sampling:
    """How the lines to measure are sampled: as the spec says, or as in training (in the last phase of BRIO-DPO)."""
    if spec.eval.sampling is not None:
        return Sampling(**spec.eval.sampling.model_dump())
    last_phase = getattr(config, "dpo", config)
    for holder in (last_phase, getattr(last_phase, "pairs", None)):
        sampling = getattr(holder, "sampling", None)
        if isinstance(sampling, Sampling):
            return sampling
    return Sampling()


def device_of(spec: StudentSpec) -> torch.device:
    """The student's device; "auto" is the launcher's, but the CPU instead of an Apple GPU, which has no float64."""
    if spec.device != "auto":
        return torch.device(device_for(spec.device))
    device = PartialState().device
    return torch.device("cpu") if device.type == "mps" else device


def student_settings(spec: Spec, record: Mapping[str, Any] | None = None) -> StudentSpec:
    """The student's settings, with `dtype = "auto"` decided where the machine must not decide it: a base that is
    trained itself needs 32 bits, and a resumed run keeps the precision in its `record`."""
    dtype = "float32" if spec.trains_base else (record or {}).get("precision")
    decided = spec.student.dtype == "auto" and dtype in ("float32", "bfloat16", "float16")
    return spec.student.model_copy(update={"dtype": dtype}) if decided else spec.student


def load_student(spec: StudentSpec, seed: int) -> Student:
    """The student on its device; if it cannot be loaded, the error names the model."""
    lora = None
    if spec.lora is not None:
        lora = Lora(**spec.lora.model_dump())
    try:
        return Student.load(
            spec.model, lora=lora, instruction=spec.instruction, device=device_of(spec), dtype=spec.dtype, seed=seed
        )
    except (OSError, ValueError, RuntimeError, AssertionError) as problem:  # the last: torch without CUDA
        if isinstance(problem, (StudentError, InvalidOption)):
            raise
        why = str(problem).strip().split("\n")[0]
        install = students.how_to_install(spec.model)
        if install:
            raise StudentError(
                f"The student '{spec.model}' is not installed and could not be downloaded from the Hub ({why}). "
                f"Install it: {install}"
            ) from problem
        raise StudentError(
            f"The student '{spec.model}' could not be loaded ({why}). Give a name that `humor-env students` lists, a "
            "Hugging Face model's name, a folder, or a GGUF file; set [student] device if the device is the reason."
        ) from problem
