"""An experiment as data: one TOML file is one run, checked before anything is computed.

    spec = load_spec("pocket-quickstart")                              # bundled; or the path of a file
    spec = load_spec("mine.toml", ["learner.lr=1e-5", "seeds=[0, 1]"])
    spec.learner_config(seed=0)                                        # PPOConfig(...)
    spec.to_toml()                                                     # all that was decided, defaults included

The tables are those of the classes below; `[learner]` holds the name of a learner, the fields of its own config
dataclass, and `preferences`, a file of them, for learners that take them. A key that nothing reads is an error that
names its line and the nearest known key.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from humor_env import registry
from humor_env.errors import HumorEnvError, InvalidOption, did_you_mean
from humor_env.experiments.options import read_override
from humor_env.experiments.specs.learner_settings import (
    SHORT_FORMS,
    Table,
    check_table,
    config_class,
    make_config,
    plain,
    settings_model,
    with_full_names,
)
from humor_env.experiments.specs.toml_text import dumps, key_lines

Split = Literal["train", "dev", "test", "ood"]
Count = Annotated[int, Field(ge=1)]
IMITATION_LEARNER = "humor_env.agents.sft:train"
BESIDE_SETTINGS = ("name", "preferences")  # keys of [learner] that are not the learner's own settings
IMITATORS = ("sft", "trl-sft")  # they are the warm start, and need none
# What a setting is called elsewhere (TRL, Hugging Face), and what it is called here.
ELSEWHERE = {
    "beta": "kl_weight",
    "kl_coef": "kl_weight",
    "num_generations": "siblings",
    "max_completion_length": "max_new_tokens",
    "max_steps": "steps",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "epsilon": "clip",
}


class EnvSpec(Table):
    """`id` is a Gymnasium id. Prompts, attempts and max_chars are those the id is registered with, where not given.
    `groups` splits the batch: one group is judged while the next one's lines are being written."""

    id: str = "humor_env/Paraphrase-v0"
    prompts: str | None = None
    prompts_options: dict[str, Any] = {}
    split: Split = "train"
    attempts: Count | None = None
    max_chars: Count | None = None
    groups: Count = 1


class LoraSpec(Table):
    rank: Count = 16
    alpha: Count = 32
    dropout: float = 0.0
    targets: str | list[str] = "all-linear"


class BackendSpec(Table):
    """A server that writes the student's lines in this process's place (vLLM with `--enable-lora` and
    VLLM_ALLOW_RUNTIME_LORA_UPDATING=1). `base` is the name it serves the model under, `key_env` the environment
    variable with its key; adapters are handed over in the run's folder, which it must be able to read."""

    url: str
    base: str | None = None
    key_env: str | None = None
    timeout: Annotated[float, Field(gt=0)] = 120.0
    concurrency: Count = 16


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
    """Which of the teacher's lines are imitated: those that a critic scores `at_least` so much."""

    critic: str
    at_least: Annotated[float, Field(ge=0, le=1)] = 0.5
    options: dict[str, Any] = {}


class TeacherSpec(Table):
    """`lines` is "pocket", "everyday" or the path of a buffer (`humor-env teach` fills one). `[teacher.imitation]`
    holds the settings of the warm start, which is done unless `imitate = false` or the learner is imitation itself."""

    lines: str = "pocket"
    per_prompt: Count = 3
    dev_per_prompt: Count = 1
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
    """Who says which of two lines is better, for learners of preferences."""

    judge: str
    options: dict[str, Any] = {}


class SamplingSpec(Table):
    max_new_tokens: Count = 48
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0


class EvalSpec(Table):
    """Measured on `limit` prompts of `split` by `[[eval.critic]]` (the training critics, where none is given), written
    as the learner samples, or by `[eval.sampling]`. `evaluate_every` measures on `dev_limit` dev prompts on the way."""

    split: Split = "test"
    limit: Count | None = None
    dev_limit: Count = 64
    sampling: SamplingSpec | None = None
    critic: list[CriticSpec] = []


class BudgetSpec(Table):
    """`max_calls`, `max_tokens` and `max_cost` (dollars) bound the language models of the whole run, over all seeds and
    restarts; `ledger` is where their replies are kept: in the run's folder, unless a path is given.

    `max_samples` (lines the student writes to learn from), `max_judgements` (answers of the critic about a line, or of
    the judge about a pair) and `max_seconds` (of the training loop) bound the learner, each seed for itself, over
    restarts; the warm start and evaluations do not count. The step that reaches a limit is the last one."""

    max_calls: Annotated[int, Field(ge=0)] | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    max_cost: Annotated[float, Field(ge=0)] | None = None
    ledger: str | None = None
    max_samples: Count | None = None
    max_judgements: Count | None = None
    max_seconds: Annotated[float, Field(gt=0)] | None = None


class MonitorSpec(Table):
    """Watches the run for drift: every `every` steps it measures `lines` lines for prompts of `split`. `critic` is who
    holds the score against the training critic's: `[[eval.critic]]`, where none is given. Past a limit it does what
    `action` says, "warn", "stop" or "slow" (the learning rate, by `slowdown`). The limits are explained in
    docs/monitor.md; 0 switches one off."""

    action: Literal["warn", "stop", "slow"] = "warn"
    split: Split = "dev"
    critic: list[CriticSpec] = []
    every: Count = 10
    lines: Annotated[int, Field(ge=2)] = 128
    window: Count = 3
    level: Annotated[float, Field(ge=0.5, lt=1)] = 0.99
    gap: bool = True
    unshared: Annotated[float, Field(ge=0)] = 0.25
    habit: Annotated[float, Field(ge=0)] = 0.05
    fall: Annotated[float, Field(ge=0)] = 0.05
    longer: Annotated[float, Field(ge=0)] = 1.5
    shorter: Annotated[float, Field(ge=0)] = 0.67
    variety: Annotated[float, Field(ge=0)] = 0.7
    commonest: Annotated[float, Field(ge=0)] = 0.5
    teacher_overlap: Annotated[float, Field(ge=0)] = 0.25
    prompt_overlap: Annotated[float, Field(ge=0)] = 0.25
    emoji: Annotated[float, Field(ge=0)] = 0.1
    laughter: Annotated[float, Field(ge=0)] = 0.1
    explaining: Annotated[float, Field(ge=0)] = 0.1
    slowdown: Annotated[float, Field(gt=0, lt=1)] = 0.5


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

    @property
    def learner_name(self) -> str:
        return str(self.learner["name"])

    @cached_property
    def train(self) -> Any:
        """The learner's function."""
        return registry.learners.resolve(self.learner_name)

    @property
    def imitates(self) -> bool:
        """Whether the run begins with a warm start."""
        if self.teacher is None:
            return False
        return self.learner_name not in IMITATORS if self.teacher.imitate is None else self.teacher.imitate

    @property
    def preferences(self) -> str | None:
        """The file with preferences that were made before."""
        return self.learner.get("preferences")

    def learner_config(self, seed: int) -> Any:
        table = {k: v for k, v in self.learner.items() if k not in BESIDE_SETTINGS}
        return make_config(config_class(self.train, self.learner_name), table, seed)

    def imitation_config(self, seed: int) -> Any:
        table = self.teacher.imitation if self.teacher else {}
        return make_config(config_class(registry.learners.resolve(IMITATION_LEARNER)), table, seed)

    def to_toml(self) -> str:
        """All that was decided, as a file that `load_spec` reads as this spec."""
        return dumps(_without_empty(self.model_dump(exclude_none=True)))


def _without_empty(table: Any) -> Any:
    if isinstance(table, Mapping):
        return {k: _without_empty(v) for k, v in table.items() if not (isinstance(v, Mapping) and not v)}
    return [_without_empty(v) for v in table] if isinstance(table, list) else table


@dataclass(frozen=True)
class _Source:
    """Where a value came from, for errors: a line of the file, or an override."""

    file: str
    lines: Mapping[tuple[str | int, ...], int]
    overrides: dict[tuple[str | int, ...], str] = field(default_factory=dict)

    def where(self, path: tuple[str | int, ...]) -> str:
        """The nearest place on the way to `path` that was written down."""
        written = [path, *((*path[:-1], short) for short, full in SHORT_FORMS.items() if path[-1:] == (full,))]
        ways = [way[:end] for end in range(len(path), 0, -1) for way in written]
        for way in ways:
            if way in self.overrides:
                return self.overrides[way]
        return next((f"{self.file}, line {self.lines[way]}" for way in ways if way in self.lines), self.file)


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
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise InvalidOption(f"The spec '{what}' cannot be read: {problem}.") from None


def parse_spec(text: str, overrides: Sequence[str] = (), file: str = "spec") -> Spec:
    """A spec from TOML text. Every mistake in it is told at once, a sentence each."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise InvalidOption(f"'{file}' is not TOML: {problem}.") from None
    source = _Source(file, key_lines(text))
    for override in overrides:
        _override(data, override, source)
    problems: list[str] = []
    spec = _checked(Spec, data, (), source, problems)
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
    beside = {k: v for k, v in spec.learner.items() if k in BESIDE_SETTINGS}
    changes: dict[str, Any] = {"learner": {**beside, **learner}}
    if spec.teacher is not None:
        changes["teacher"] = spec.teacher.model_copy(
            update={"imitation": imitation if spec.imitates else {}, "imitate": spec.imitates}
        )
    return spec.model_copy(update=changes)


def _override(data: dict[str, Any], override: str, source: _Source) -> None:
    """Set one dotted key."""
    dotted, value = read_override(override, "--set")
    parts = dotted.split(".")
    if not all(parts):
        raise InvalidOption(f"--set {override}: a part of the dotted key is empty.")
    table: Any = data
    path: tuple[str | int, ...] = ()
    for part in parts[:-1]:
        table, path = _enter(table, part, path, override)
    key: str | int = parts[-1]
    if isinstance(table, list):
        _, (*_, key) = _enter(table, str(key), path, override)
    elif not isinstance(table, dict):
        raise InvalidOption(f"--set {override}: '{'.'.join(map(str, path))}' is no table, so it has no '{key}'.")
    other = {**SHORT_FORMS, **{full: short for short, full in SHORT_FORMS.items()}}.get(str(key))
    if other is not None and other in table and path in (("learner",), ("teacher", "imitation")):
        if (*path, other) in source.overrides:
            raise InvalidOption(
                f"--set {override} and {source.overrides[(*path, other)]} are one setting: give it once."
            )
        del table[other]  # the file's own spelling of what is overridden
    table[key] = value
    source.overrides[(*path, key)] = f"--set {override}"


def _enter(table: Any, part: str, path: tuple[str | int, ...], override: str) -> tuple[Any, tuple[str | int, ...]]:
    if isinstance(table, list):
        if not part.isdecimal() or int(part) >= len(table):
            known = ", ".join(map(str, range(len(table)))) or "none"
            raise InvalidOption(
                f"--set {override}: '{'.'.join(map(str, path))}' is a list, whose entries are numbered: {known}; found "
                f"'{part}'."
            )
        return table[int(part)], (*path, int(part))
    if not isinstance(table, dict):
        raise InvalidOption(f"--set {override}: '{'.'.join(map(str, path))}' is no table, so it has no '{part}'.")
    return table.setdefault(part, {}), (*path, part)


def _checked(
    model: type[BaseModel], data: Any, at: tuple[str | int, ...], source: _Source, problems: list[str]
) -> BaseModel | None:
    try:
        return check_table(model, data)
    except ValidationError as found:
        grouped: dict[tuple[str | int, ...], list[Any]] = {}
        for error in found.errors(include_url=False):
            # Inside a choice of types the location also names the choice: cut it back to keys that were written.
            missing = error["type"] in ("missing", "extra_forbidden")
            path = error["loc"] if missing else _written(data, error["loc"])
            grouped.setdefault(path, []).append(error)
        for path, errors in grouped.items():
            problems.append(_sentence(model, (*at, *path), path, errors, source))
        return None


def _written(data: Any, path: tuple[str | int, ...]) -> tuple[str | int, ...]:
    for place, part in enumerate(path):
        inside = isinstance(data, Mapping) and part in data
        if not inside and not (isinstance(data, list) and isinstance(part, int) and part < len(data)):
            return path[:place]
        data = data[part]
    return path


def _sentence(
    model: type[BaseModel],
    full: tuple[str | int, ...],
    path: tuple[str | int, ...],
    errors: Sequence[Any],
    source: _Source,
) -> str:
    kind = errors[0]["type"]
    where, name = source.where(full), ".".join(map(str, full))
    table = ".".join(map(str, full[:-1]))
    home = f"[{table}]" if table else "the top level"
    if kind == "extra_forbidden":
        table_model, key = _table_at(model, path[:-1]), str(full[-1])
        known = list(table_model.model_fields)
        inside = _inside(table_model, key) or _inside(table_model, ELSEWHERE.get(key, ""))
        if key == "seed":
            hint = "'seeds' at the top gives the seed."
        elif inside:
            hint = f"Did you mean '{'.'.join(map(str, (*full[:-1], inside)))}'?"
        else:
            hint = _near(key, known)
        return f"{where}: {home} has no key '{full[-1]}'. {hint or 'Known: ' + ', '.join(known) + '.'}"
    if kind == "missing":
        return f"{where}: {home} needs the key '{full[-1]}'."
    if kind == "list_type" and isinstance(errors[0]["input"], Mapping):
        return f"{where}: '{name}' may be given more than once, so its header is [[{name}]], with two brackets."
    said = " or ".join(dict.fromkeys(_in_toml_words(e["msg"]) for e in errors))
    return f"{where}: '{name}' should {said}, found {errors[0]['input']!r}."


def _in_toml_words(message: str) -> str:
    message = re.sub(r"^\w+ should ", "", message)
    message = re.sub(r" after validation, not \d+$", "", message)
    for theirs, ours in (("an object", "a table"), ("valid array", "list"), ("valid string", "text")):
        message = message.replace(theirs, ours)
    return message.replace("valid integer", "whole number").replace("valid number", "number")


def _near(key: str, known: Sequence[str]) -> str:
    """A misspelt key, or an abbreviation: the first letters of a key's words."""
    initials = {"".join(word[0] for word in name.split("_") if word): name for name in known}
    close = get_close_matches(key, known, n=1, cutoff=0.6)
    found = close[0] if close else initials.get(key) or SHORT_FORMS.get(key)
    return f"Did you mean '{found}'?" if found in known else ""


def _inside(model: type[BaseModel], key: str) -> str | None:
    """The way from a table to a key of that name, in it or in a table within it."""
    if key in model.model_fields:
        return key
    for name, info in model.model_fields.items():
        inner = _model_in(info.annotation)
        if inner is not None and key in inner.model_fields:
            return f"{name}.{key}"
    return None


def _table_at(model: type[BaseModel], path: tuple[str | int, ...]) -> type[BaseModel]:
    for part in path:
        if isinstance(part, str) and part in model.model_fields:
            inner = _model_in(model.model_fields[part].annotation)
            if inner is not None:
                model = inner
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for a in getattr(annotation, "__args__", ()) if (m := _model_in(a)) is not None), None)


def _settings(
    data: Mapping[str, Any], at: tuple[str, ...], what: str, source: _Source, problems: list[str]
) -> dict[str, Any]:
    """The table of a learner's settings, checked against its own dataclass; all fields, defaults included."""
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
    given = {k: v for k, v in table.items() if not (at == ("learner",) and k in BESIDE_SETTINGS)}
    if at == ("learner",) and not isinstance(table.get("preferences", ""), str):
        problems.append(f"{source.where((*at, 'preferences'))}: 'learner.preferences' should be the path of a file.")
    for short, full in SHORT_FORMS.items():
        if short in given and full in given and short not in {f.name for f in dataclasses.fields(config)}:
            problems.append(
                f"{source.where((*at, short))}: '{short}' and '{full}' are one setting: found {given[short]!r} and "
                f"{given[full]!r}. Give one of them."
            )
    named = with_full_names(config, given)
    before = len(problems)
    checked = _checked(settings_model(config), named, at, source, problems)
    if checked is None or len(problems) > before:
        return {}
    try:
        return plain(make_config(config, named))
    except HumorEnvError as problem:
        problems.append(f"{source.where(at)}: the {what}'s settings do not fit together: {problem}")
    return {}


def _check_names(spec: Spec, source: _Source, problems: list[str]) -> None:
    """Names that a registry must know. Nothing is imported for it."""
    import gymnasium

    named: list[tuple[tuple[str | int, ...], registry.Registry, str]] = []
    watching = spec.monitor.critic if spec.monitor is not None else []
    lists = ((("critic",), spec.critic), (("eval", "critic"), spec.eval.critic), (("monitor", "critic"), watching))
    for at, entries in lists:
        named += [((*at, i, "critic"), registry.critics, entry.critic) for i, entry in enumerate(entries)]
    if spec.teacher is not None and spec.teacher.filter is not None:
        named.append((("teacher", "filter", "critic"), registry.critics, spec.teacher.filter.critic))
    if spec.judge is not None:
        named.append((("judge", "judge"), registry.judges, spec.judge.judge))
    for path, kind, name in named:
        if ":" not in name and name not in kind.names():
            near = did_you_mean(name, kind.names())
            problems.append(
                f"{source.where(path)}: no {kind.kind} is called '{name}'.{near} Known: {', '.join(kind.names())}. "
                "For your own, give package.module:name."
            )
    if ":" not in spec.env.id and spec.env.id not in gymnasium.registry:
        known = sorted(name for name in gymnasium.registry if name.startswith("humor_env/"))
        near = did_you_mean(spec.env.id, known)
        problems.append(
            f"{source.where(('env', 'id'))}: no environment is called '{spec.env.id}'.{near} Known here: "
            f"{', '.join(known)}. For another package's, write module:id."
        )
