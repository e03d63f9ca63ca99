"""An experiment as data: one TOML file is one run, checked before anything is computed.

    spec = load_spec("pocket-quickstart")                              # bundled; or the path of a file
    spec = load_spec("mine.toml", ["learner.lr=1e-5", "seeds=[0, 1]"])
    spec.learner_config(seed=0)                                        # PPOConfig(...)
    spec.to_toml()                                                     # all settings, defaults included

The tables are those of the classes below; `[learner]` holds the name of a learner, the fields of its config dataclass,
and `preferences`, a file of them, for learners that use them. An unknown key is an error that names its line and the
nearest known key.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from humor_env import registry
from humor_env.agents.session.monitor_config import MonitorConfig
from humor_env.agents.student.settings import Count, Lora, Sampling, ServerSettings
from humor_env.errors import HumorEnvError, InvalidOption, did_you_mean
from humor_env.experiments.specs.learner_settings import (
    SHORT_FORMS,
    Table,
    config_class,
    make_config,
    plain,
    settings_model,
    table_of,
    with_full_names,
)
from humor_env.experiments.specs.mistakes import checked
from humor_env.experiments.specs.overrides import KeyPath, Source, override
from humor_env.experiments.specs.toml_text import dumps, key_lines
from humor_env.experiments.specs.tracking import TrackingSpec
from humor_env.shared.json_lines import read_text

Split = Literal["train", "dev", "test", "ood"]
# Tables that mirror a dataclass. (A type checker does not accept a call as a base class.)
_Lora: Any = table_of(Lora)
_ServerSettings: Any = table_of(ServerSettings)
_Sampling: Any = table_of(Sampling)
_MonitorConfig: Any = table_of(MonitorConfig)

IMITATION_LEARNER = "humor_env.agents.sft:train"
NOT_SETTINGS = ("name", "preferences")  # keys of [learner] that are not the learner's own settings
IMITATORS = ("sft", "trl-sft")  # learners that are a warm start themselves


class EnvSpec(Table):
    """`id` is a Gymnasium id. Prompts, attempts and max_chars default to those that the id is registered with.
    `groups` splits the batch: one group is judged while the next one's lines are being written."""

    id: str = "humor_env/Paraphrase-v0"
    prompts: str | None = None
    prompts_options: dict[str, Any] = {}
    split: Split = "train"
    attempts: Count | None = None
    max_chars: Count | None = None
    groups: Count = 1


class LoraSpec(_Lora):
    """The adapter's shape. "all-linear" means every linear layer except the output layer."""


class BackendSpec(_ServerSettings):
    """A server that writes the student's lines instead of this process (vLLM with `--enable-lora` and
    VLLM_ALLOW_RUNTIME_LORA_UPDATING=1). `base` is the name under which it serves the model, `key_env` the environment
    variable with its key. It loads adapters from the run's folder, which it must be able to read."""


class StudentSpec(Table):
    """`model` is a name such as "pocket:causal" or "smollm2", a Hugging Face name, a folder (one saved by a run too),
    or a GGUF file."""

    model: str = "pocket:causal"
    instruction: str | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    lora: LoraSpec | None = None
    backend: BackendSpec | None = None


class FilterSpec(Table):
    """Imitate only the teacher's lines that a critic scores `at_least` this high."""

    critic: str
    at_least: Annotated[float, Field(ge=0, le=1)] = 0.5
    options: dict[str, Any] = {}


class TeacherSpec(Table):
    """`lines` is "pocket", "everyday" or the path of a buffer (`humor-env teach` fills one). `[teacher.imitation]`
    holds the settings of the warm start, which is done unless `imitate = false` or the learner is imitation itself."""

    lines: str = "pocket"
    per_prompt: Count = 3
    dev_per_prompt: Count = 1
    limit: Count | None = None
    filter: FilterSpec | None = None
    imitate: bool | None = None
    imitation: dict[str, Any] = {}


class CriticSpec(Table):
    """One critic. Several are mixed: `weight`, `gate` (the least score that passes) and `required` as in a mix."""

    critic: str
    name: str | None = None
    weight: Annotated[float, Field(ge=0)] | None = None
    gate: Annotated[float, Field(ge=0, le=1)] | None = None
    required: bool = True
    options: dict[str, Any] = {}


class JudgeSpec(Table):
    """The judge that says which of two lines is better, for learners from preferences."""

    judge: str
    options: dict[str, Any] = {}


class SamplingSpec(_Sampling):
    """How lines are sampled for measuring, if not as for learning."""


class EvalSpec(Table):
    """Measures `lines` lines for each of `limit` prompts of `split` by `[[eval.critic]]` (default: the training
    critics), sampled as in learning or by `[eval.sampling]`. `evaluate_every` measures `dev_lines` lines for each of
    `dev_limit` dev prompts during learning."""

    split: Split = "test"
    limit: Count | None = None
    lines: Count = 1
    dev_limit: Count = 64
    dev_lines: Count = 1
    sampling: SamplingSpec | None = None
    critic: list[CriticSpec] = []


class BudgetSpec(Table):
    """`max_calls`, `max_tokens` and `max_cost` (dollars) limit the language models of the whole run, over all seeds and
    restarts; `ledger` is the file with their replies, by default in the run's folder.

    `max_samples` (lines the student writes to learn from), `max_judgements` (answers of the critic about a line, or of
    the judge about a pair) and `max_seconds` (of the training loop) limit the learner of each seed separately, over
    restarts; the warm start and evaluations do not count. The step that reaches a limit is the last one.

    `requests_per_minute` and `tokens_per_minute` limit all language models of one process together."""

    max_calls: Annotated[int, Field(ge=0)] | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    max_cost: Annotated[float, Field(ge=0)] | None = None
    ledger: str | None = None
    max_samples: Count | None = None
    max_judgements: Count | None = None
    max_seconds: Annotated[float, Field(gt=0)] | None = None
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    tokens_per_minute: Annotated[float, Field(gt=0)] | None = None


class MonitorSpec(_MonitorConfig):
    """Watches the run for drift: every `every` steps it measures `lines` lines for prompts of `split`. `critic` is the
    critic that the training critic is compared with (default: `[[eval.critic]]`). Past a limit it takes the `action`:
    "warn", "stop" or "slow" (multiply the learning rate by `slowdown`). The limits are explained in docs/monitor.md;
    0 switches one off."""

    split: Split = "dev"
    critic: list[CriticSpec] = []


class Spec(Table):
    """One run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0]
    env: EnvSpec = EnvSpec()
    student: StudentSpec = StudentSpec()
    teacher: TeacherSpec | None = None
    critic: list[CriticSpec] = []
    judge: JudgeSpec | None = None
    learner: dict[str, Any]
    eval: EvalSpec = EvalSpec()
    budget: BudgetSpec = BudgetSpec()
    monitor: MonitorSpec | None = None
    tracking: TrackingSpec = TrackingSpec()

    @property
    def learner_name(self) -> str:
        return str(self.learner["name"])

    @cached_property
    def train(self) -> Any:
        """The learner's function."""
        return registry.learners.resolve(self.learner_name)

    @property
    def imitates(self) -> bool:
        """Whether the run starts with a warm start."""
        if self.teacher is None:
            return False
        return self.learner_name not in IMITATORS if self.teacher.imitate is None else self.teacher.imitate

    @property
    def trains_base(self) -> bool:
        """Whether the warm start or the learner trains the base's own weights and not an adapter."""
        configs = [self.learner_config(self.seeds[0])] + (
            [self.imitation_config(self.seeds[0])] if self.imitates else []
        )
        return any(getattr(config, "full", False) for config in configs)

    @property
    def preferences(self) -> str | None:
        """The file with existing preferences."""
        return self.learner.get("preferences")

    def learner_config(self, seed: int) -> Any:
        table = {k: v for k, v in self.learner.items() if k not in NOT_SETTINGS}
        return make_config(config_class(self.train, self.learner_name), table, seed)

    def imitation_config(self, seed: int) -> Any:
        table = self.teacher.imitation if self.teacher else {}
        return make_config(config_class(registry.learners.resolve(IMITATION_LEARNER)), table, seed)

    def to_toml(self) -> str:
        """All settings, as a file that `load_spec` reads as this spec."""
        return dumps(_without_empty(self.model_dump(exclude_none=True)))


def _without_empty(table: Any) -> Any:
    if isinstance(table, Mapping):
        return {k: _without_empty(v) for k, v in table.items() if not (isinstance(v, Mapping) and not v)}
    return [_without_empty(v) for v in table] if isinstance(table, list) else table


def load_spec(what: str | Path, overrides: Sequence[str] = ()) -> Spec:
    """A spec from a file or a bundled name, with dotted overrides (`learner.steps=5`, `critic.0.options.words=10`)."""
    return parse_spec(_read(what), overrides, str(what))


def bundled() -> list[str]:
    """The names of the specs that come with the package."""
    folder = resources.files("humor_env.experiments") / "configs"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def bundled_text(name: str) -> str:
    return (resources.files("humor_env.experiments") / "configs" / f"{name}.toml").read_text(encoding="utf-8")


def _read(what: str | Path) -> str:
    path = Path(what)
    if str(what) in bundled() and not path.exists():
        return bundled_text(str(what))
    if path.is_dir() and (path / "spec.toml").is_file():
        path = path / "spec.toml"
    if not path.is_file():
        near = did_you_mean(path.stem, bundled())
        raise InvalidOption(
            f"There is no spec '{what}'.{near} Give the path of a TOML file, or one of those that come with the "
            f"package: {', '.join(bundled())}."
        )
    return read_spec_text(path, what)


def read_spec_text(path: Path, what: str | Path) -> str:
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError) as problem:
        raise InvalidOption(f"The spec '{what}' cannot be read: {problem}.") from None


def parse_spec(text: str, overrides: Sequence[str] = (), file: str = "spec") -> Spec:
    """A spec from TOML text. The error lists all mistakes, a sentence each."""
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as problem:  # the second: very deeply nested tables or lists
        raise InvalidOption(f"'{file}' is not TOML: {problem}.") from None
    source = Source(file, key_lines(text))
    for each in overrides:
        override(data, each, source)
    problems: list[str] = []
    spec = checked(Spec, data, (), source, problems)
    learner = _settings(data, ("learner",), "learner", source, problems)
    imitation = _settings(data, ("teacher", "imitation"), "warm start", source, problems)
    if isinstance(spec, Spec):
        if len(set(spec.seeds)) < len(spec.seeds):
            problems.append(f"{source.where(('seeds',))}: 'seeds' names a seed twice, found {spec.seeds}.")
        if not spec.critic and not spec.eval.critic:
            problems.append(f"{file}: the spec needs a [[critic]] to learn from, or at least an [[eval.critic]].")
        _check_names(spec, source, problems)
    if problems:
        raise InvalidOption("\n".join(dict.fromkeys(problems)))
    assert isinstance(spec, Spec)
    other = {k: v for k, v in spec.learner.items() if k in NOT_SETTINGS}
    changes: dict[str, Any] = {"learner": {**other, **learner}}
    if spec.teacher is not None:
        changes["teacher"] = spec.teacher.model_copy(
            update={"imitation": imitation if spec.imitates else {}, "imitate": spec.imitates}
        )
    return spec.model_copy(update=changes)


def _settings(
    data: Mapping[str, Any], at: tuple[str, ...], what: str, source: Source, problems: list[str]
) -> dict[str, Any]:
    """The table of a learner's settings, checked against its dataclass, with all fields and defaults."""
    table: Any = data
    for part in at:
        table = table.get(part, {}) if isinstance(table, Mapping) else {}
    if not isinstance(table, Mapping):
        return {}
    name = table.get("name", "") if at == ("learner",) else IMITATION_LEARNER
    if not isinstance(name, str):
        problems.append(f"{source.where((*at, 'name'))}: the learner's 'name' is a text; found {name!r}.")
        return {}
    if not name:
        problems.append(f"{source.where(at)}: [learner] needs the key 'name', such as name = \"ppo\".")
        return {}
    try:
        config = config_class(registry.learners.resolve(name), name)
    except HumorEnvError as problem:
        problems.append(f"{source.where((*at, 'name'))}: {problem}")
        return {}
    settings = {k: v for k, v in table.items() if not (at == ("learner",) and k in NOT_SETTINGS)}
    if at == ("learner",) and not isinstance(table.get("preferences", ""), str):
        problems.append(f"{source.where((*at, 'preferences'))}: 'learner.preferences' should be the path of a file.")
    for short, full in SHORT_FORMS.items():
        if short in settings and full in settings and short not in {f.name for f in dataclasses.fields(config)}:
            problems.append(
                f"{source.where((*at, short))}: '{short}' and '{full}' are one setting: found {settings[short]!r} and "
                f"{settings[full]!r}. Give one of them."
            )
    full_settings = with_full_names(config, settings)
    before = len(problems)
    table_read = checked(settings_model(config), full_settings, at, source, problems)
    if table_read is None or len(problems) > before:
        return {}
    try:
        return plain(make_config(config, full_settings))
    except HumorEnvError as problem:
        problems.append(f"{source.where(at)}: the {what}'s settings do not fit together: {problem}")
    return {}


def _check_names(spec: Spec, source: Source, problems: list[str]) -> None:
    """Check names that a registry must know, without importing anything."""
    import gymnasium

    references: list[tuple[KeyPath, registry.Registry, str]] = []
    watching = spec.monitor.critic if spec.monitor is not None else []
    lists = ((("critic",), spec.critic), (("eval", "critic"), spec.eval.critic), (("monitor", "critic"), watching))
    for at, entries in lists:
        references += [((*at, i, "critic"), registry.critics, entry.critic) for i, entry in enumerate(entries)]
    if spec.teacher is not None and spec.teacher.filter is not None:
        references.append((("teacher", "filter", "critic"), registry.critics, spec.teacher.filter.critic))
    if spec.judge is not None:
        references.append((("judge", "judge"), registry.judges, spec.judge.judge))
    for path, kind, name in references:
        if ":" not in name and name not in kind.names():
            near = did_you_mean(name, kind.names())
            problems.append(
                f"{source.where(path)}: no {kind.kind} is called '{name}'.{near} Known: {', '.join(kind.names())}. "
                "For your own, give package.module:name."
            )
    if ":" not in spec.env.id and spec.env.id not in gymnasium.registry:
        env_ids = sorted(name for name in gymnasium.registry if name.startswith("humor_env/"))
        near = did_you_mean(spec.env.id, env_ids)
        problems.append(
            f"{source.where(('env', 'id'))}: no environment is called '{spec.env.id}'.{near} Known here: "
            f"{', '.join(env_ids)}. For another package's, write module:id."
        )
