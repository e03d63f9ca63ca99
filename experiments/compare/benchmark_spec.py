"""A benchmark as data: learners × feedback × seeds under one budget, judged by a critic that none of them learned from.

    bench = load_benchmark_spec("pocket-learners")        # bundled; or the path of a file
    bench.cells(Path("runs/bench"))                       # the work to do: see jobs.py
    bench.run_spec(bench.learners[0], bench.feedback[0], seed=0)    # one of its runs, as for `humor-env train`

`[shared]` is a run's spec (environment, student, teacher, evaluation) without critic and learner. Each `[[feedback]]`
is a source of feedback in two forms, so that all learners learn from the same source: a judge of pairs, and a critic,
by default the win-tie critic of that judge. Each `[[learners]]` entry names a registered learner and its settings that
differ from `[learner]`, which applies to every learner that has such a setting.

The budget is what one learner may use after the warm start, equal for all:

- `samples`: lines that the student writes to learn from;
- `judgements`: answers of the feedback source. A line scored by a critic is one (with a win-tie critic that has
  `max_lines = 1` that is one comparison with one line of the teacher); two lines compared in both orders are one;
- `seconds` (of the training loop, evaluations excluded) and `cost` (US dollars, all that the run asks of paid models
  included) end a run early: it is measured at that point.

Steps and prompts per round follow from the budget and cannot be set. Best-of-n learns nothing: the results give instead
how many lines it writes and has judged for each line that it returns.

`noise_floor = true` writes the imitation's lines for the held-out prompts twice, with other random numbers. A
difference between learners that is no larger than that between the two means nothing.
"""

from __future__ import annotations

import dataclasses
import inspect
import tomllib
import typing
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from humor_env import registry
from humor_env.errors import InvalidOption, did_you_mean
from humor_env.experiments.compare.identities import identities_of
from humor_env.experiments.compare.jobs import Cell
from humor_env.experiments.compare.learner_budget import BudgetTable, LearnerTable, Name, default_of, fit_budget
from humor_env.experiments.compare.trained_critics import (
    CRITIC,
    FOLDER,
    DataTable,
    TrainedTable,
    cells_of,
    file_names,
    fill_names,
    named_in,
    with_files,
)
from humor_env.experiments.options import read_override
from humor_env.experiments.specs.learner_settings import Table, check_table, config_class, plain, with_full_names
from humor_env.experiments.specs.spec import IMITATORS, Spec, parse_spec, read_spec_text
from humor_env.experiments.specs.toml_text import dumps

JOB = "humor_env.experiments.compare.benchmark_cell:train_and_measure"
IMITATION, BEST_OF_N = "imitation", "best-of-n"
AGAIN = "-again"  # suffix of a stage that is written a second time
WRITTEN_AGAIN = IMITATION + AGAIN  # the row of the same weights with other random numbers
ONE_ORDER = "humor_env.experiments.compare.bias_judges:OneOrder"
CRITIC_JUDGE = "humor_env.experiments.compare.bias_judges:make_critic_judge"


class HeldOutTable(Table):
    """The critic of single lines that measures, by name. With `others`, each line is also scored with that many other
    prompts, which gives its lift."""

    critic: str
    options: dict[str, Any] = {}
    others: Annotated[int, Field(ge=0)] = 0


class FeedbackTable(Table):
    """The source that trains. With only a `judge`, learners from scores get its win-tie critic; with only a `critic`,
    learners from pairs prefer the line with the higher score. `one_order` asks the judge in one order only, as a
    careless experiment would."""

    name: Name
    judge: str | None = None
    options: dict[str, Any] = {}
    one_order: bool = False
    critic: str | None = None
    critic_options: dict[str, Any] = {}


class CompareTable(Table):
    """A separate table of some of the rows, to answer one question."""

    name: Name
    title: str
    systems: Annotated[list[str], Field(min_length=1)]


class BenchmarkSpec(Table):
    name: Name
    title: str = ""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    data: list[DataTable] = []
    trained: list[TrainedTable] = []
    shared: dict[str, Any] = {}
    budget: BudgetTable
    held_out: HeldOutTable
    noise_floor: bool = False
    feedback: Annotated[list[FeedbackTable], Field(min_length=1)]
    learner: dict[str, Any] = {}
    learners: Annotated[list[LearnerTable], Field(min_length=1)]
    compare: list[CompareTable] = []

    def to_toml(self) -> str:
        return dumps(self.model_dump(exclude_none=True))

    def with_files(self, entries: Sequence[str]) -> BenchmarkSpec:
        """The spec with the files of NAME=FILE entries for its [[data]]."""
        return self.model_copy(update={"data": with_files(self.data, entries)})

    def filled(self) -> BenchmarkSpec:
        """The spec with its files' names replaced by paths; those of trained critics are replaced in each cell."""
        names = file_names(self.data)
        return BenchmarkSpec(**fill_names(self.model_dump(exclude_none=True), names, others=True)) if names else self

    def pairs(self) -> list[tuple[LearnerTable, FeedbackTable]]:
        """The runs to compare: each learner with each of its feedback sources."""
        return [
            (learner, feedback)
            for learner in self.learners
            if learner.registered not in IMITATORS
            for feedback in self.feedback
            if learner.feedback is None or feedback.name in learner.feedback
        ]

    def imitation_run(self, seed: int) -> dict[str, Any]:
        """The warm start of all runs of a seed, as a run's spec in plain data."""
        teacher = dict(self.shared.get("teacher", {}))
        settings = teacher.pop("imitation", {})
        return self._data(IMITATION, seed) | {"teacher": teacher, "learner": {"name": "sft", **settings}}

    def run_spec(self, learner: LearnerTable, feedback: FeedbackTable, seed: int) -> Spec:
        """One run, complete except for its student: the cell uses the imitation's."""
        return self.parsed(self.learner_run(learner, feedback, seed), f"learner '{learner.name}'")

    def learner_run(self, learner: LearnerTable, feedback: FeedbackTable, seed: int) -> dict[str, Any]:
        """`run_spec` as plain data, with only what differs from the defaults."""
        data = self._data(f"{learner.name}-{feedback.name}", seed, learner.budget)
        data["teacher"] = {k: v for k, v in data.get("teacher", {}).items() if k != "imitation"} | {"imitate": False}
        data["critic"], data["judge"] = [critic_table(feedback)], judge_table(feedback)
        data["learner"] = {"name": learner.registered, **self.settings_of(learner)}
        if "control" in inspect.signature(registry.learners.resolve(learner.registered)).parameters:
            data["budget"] = dict(data.get("budget", {})) | self.limits_of(learner)
        return data

    def settings_of(self, learner: LearnerTable) -> dict[str, Any]:
        """A learner's settings: the shared ones that it has, its own, and those that follow from the budget."""
        config = config_class(registry.learners.resolve(learner.registered), learner.registered)
        settings = _merged(_known(config, self.learner), with_full_names(config, learner.settings))
        return fit_budget(config, settings, self.budget, learner)

    def _data(self, name: str, seed: int, share: float = 1.0) -> dict[str, Any]:
        """What all runs have in common; `share` is of the budget."""
        data = dict(self.shared)
        held_out = {"critic": self.held_out.critic, "options": self.held_out.options}
        data |= {"name": f"{self.name}-{name}".replace("+", "p"), "seeds": [seed]}
        # Base and imitation are sampled as the learners' students are: another temperature is another system.
        alike = {"sampling": self.learner["sampling"]} if "sampling" in self.learner else {}
        data["eval"] = alike | dict(data.get("eval", {})) | {"critic": [held_out]}
        if "tracking" in data:
            data["tracking"] = {"group": self.name, "name": data["name"]} | dict(data["tracking"])
        if self.budget.cost is not None:
            data["budget"] = dict(data.get("budget", {})) | {"max_cost": self.budget.cost * share}
        return data

    def parsed(self, data: Mapping[str, Any], what: str) -> Spec:
        return parse_spec(dumps(data), file=f"benchmark '{self.name}', {what}")

    def cells(self, root: Path) -> list[Cell]:
        """One warm start per seed, then its learners; seed by seed, so that a stopped benchmark has complete seeds."""
        return self.filled()._cells(root)

    def _cells(self, root: Path) -> list[Cell]:
        cells = cells_of(self.trained, root)
        trained = tuple(cell.name for cell in cells)
        for seed in self.seeds:
            start = f"{IMITATION}/seed-{seed}"
            sources = [[f.name, critic_table(f), judge_table(f)] for f in self.feedback]
            spec: dict[str, Any] = {"run": self.imitation_run(seed), "label": IMITATION, "sources": sources}
            spec |= {"noise_floor": True} if self.noise_floor else {}
            spec |= self._for_all_cells("../..")
            cells.append(Cell(start, root / "cells" / start, JOB, spec, seed, needs=trained))
            for learner, feedback in self.pairs():
                name = f"{learner.name}/{feedback.name}/seed-{seed}"
                spec = {
                    "run": self.learner_run(learner, feedback, seed),
                    "label": learner.name,
                    "sources": [[feedback.name, critic_table(feedback), judge_table(feedback)]],
                    "start": f"../../../{start}",
                    **self._for_all_cells("../../.."),
                }
                cells.append(Cell(name, root / "cells" / name, JOB, spec, seed, needs=(*trained, start)))
        return cells

    def _for_all_cells(self, up: str) -> dict[str, Any]:
        """The optional part of every cell's spec. `up` leads from its folder to that of all cells."""
        optional: dict[str, Any] = {"others": self.held_out.others} if self.held_out.others else {}
        if self.trained:
            optional["trained"] = {table.name: f"{up}/{FOLDER}/{table.name}/{CRITIC}" for table in self.trained}
        return optional

    def limits_of(self, learner: LearnerTable) -> dict[str, float]:
        """The budget as hard limits, which also bind learners whose steps do not follow from it."""
        budget, share = self.budget, learner.budget
        limits: dict[str, float] = {}
        for name, most in (("max_samples", budget.samples), ("max_judgements", budget.judgements)):
            limits |= {} if most is None else {name: max(1, int(most * share))}
        return limits | ({} if budget.seconds is None else {"max_seconds": budget.seconds * share})


def critic_table(feedback: FeedbackTable) -> dict[str, Any]:
    """The feedback as a critic of single lines."""
    if feedback.critic not in (None, "win-tie"):
        return {"critic": feedback.critic, "options": feedback.critic_options}
    judge = judge_table(feedback)
    return {
        "critic": "win-tie",
        "options": {"judge": judge["judge"], "judge_options": judge["options"], **feedback.critic_options},
    }


def gives_win_rate(critic: str, options: Mapping[str, Any]) -> bool:
    """Whether the mean of a critic's scores is a win rate against the teacher, in which a tie is half a win."""
    return critic == "win-tie" and options.get("ties", "half") == "half"


def judge_table(feedback: FeedbackTable) -> dict[str, Any]:
    """The feedback as a judge of pairs."""
    if feedback.judge is None:
        options = {"critic": feedback.critic, "critic_options": feedback.critic_options}
        return {"judge": CRITIC_JUDGE, "options": options}
    if feedback.one_order:
        return {"judge": ONE_ORDER, "options": {"judge": feedback.judge, "judge_options": feedback.options}}
    return {"judge": feedback.judge, "options": feedback.options}


def _known(config: type, table: Mapping[str, Any]) -> dict[str, Any]:
    """The shared settings that this learner has, in nested tables too."""
    hints = typing.get_type_hints(config)
    fields = {f.name for f in dataclasses.fields(config)}
    values: dict[str, Any] = {}
    for name, value in with_full_names(config, table).items():
        if name not in fields:
            continue
        inner = isinstance(value, Mapping) and dataclasses.is_dataclass(hints[name])
        values[name] = _known(hints[name], value) if inner else value
    for name, hint in hints.items():
        # A learner in phases (BRIO, then DPO) takes them in each.
        if dataclasses.is_dataclass(hint) and name not in table and name not in ("sampling", "pairs"):
            values[name] = _changed(hint, config, name) | _known(hint, table)  # type: ignore[arg-type]
    return values


def _changed(inner: Any, config: type, name: str) -> dict[str, Any]:
    """The settings in which a config's own default for a nested config differs: setting another must keep them."""
    [field] = [f for f in dataclasses.fields(config) if f.name == name]
    here, plainly = plain(default_of(field)), plain(inner())
    return {key: value for key, value in here.items() if plainly.get(key) != value}


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for name, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merged(merged[name], value) if both else value
    return merged


def bundled_benchmarks() -> list[str]:
    folder = resources.files("humor_env.experiments") / "configs" / "benchmarks"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_benchmark_spec(what: str | Path, overrides: Sequence[str] = ()) -> BenchmarkSpec:
    """Load a file, a benchmark's folder, or a bundled name, with dotted overrides (`budget.samples=640`)."""
    path = Path(what)
    if path.is_dir() and (path / "spec.toml").is_file():
        path = path / "spec.toml"
    if not path.is_file():
        if str(what) not in bundled_benchmarks():
            raise InvalidOption(
                f"There is no benchmark '{what}'.{did_you_mean(str(what), bundled_benchmarks())} Give the path of a "
                f"TOML file, or one of those that come with the package: {', '.join(bundled_benchmarks())}."
            )
        text = (resources.files("humor_env.experiments") / "configs" / "benchmarks" / f"{what}.toml").read_text("utf-8")
    else:
        text = read_spec_text(path, what)
    return parse_benchmark(text, str(what), overrides)


def parse_benchmark(text: str, file: str = "benchmark", overrides: Sequence[str] = ()) -> BenchmarkSpec:
    """Parse and check every run: names, settings, budget, and that the held-out judge is held out."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise InvalidOption(f"'{file}' is not TOML: {problem}.") from None
    for override in overrides:
        _override(data, override)
    try:
        spec = check_table(BenchmarkSpec, data)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
        raise InvalidOption(f"The benchmark '{file}' cannot be read: {problems}.") from None
    assert isinstance(spec, BenchmarkSpec)
    _check_benchmark(spec, file)
    return spec


def _override(data: dict[str, Any], override: str) -> None:
    """Set one dotted key; items of a list are given by number from 0, or by name (`learners.ppo.budget=0.5`)."""
    dotted, value = read_override(override, "--set")
    *path, last = dotted.split(".")
    table: Any = data
    try:
        for part in path:
            if isinstance(table, list):
                matches = [x for x in table if x.get("name") == part]
                table = matches[0] if matches else table[int(part)]
            else:
                table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise KeyError
        table[last] = value
    except (KeyError, IndexError, ValueError, AttributeError):
        raise InvalidOption(f"--set {override}: there is no table '{'.'.join(path)}' to set '{last}' in.") from None


def _check_benchmark(spec: BenchmarkSpec, file: str) -> None:
    for what, names in (
        ("learners", [x.name for x in spec.learners]),
        ("feedback sources", [x.name for x in spec.feedback]),
        ("seeds", [str(x) for x in spec.seeds]),
        ("files", [x.name for x in spec.data]),
        ("trained critics", [x.name for x in spec.trained]),
    ):
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise InvalidOption(f"'{file}': two {what} are called '{twice[0]}'.")
    reserved_names = (IMITATION, WRITTEN_AGAIN, FOLDER, "base", "teacher", "cells")
    reserved = [x.name for x in spec.learners if x.name in reserved_names]
    if reserved:
        raise InvalidOption(
            f"'{file}': '{reserved[0]}' is a name that the benchmark uses itself. Give the learner another name."
        )
    table_names = {f"data.{x.name}" for x in spec.data} | {f"trained.{x.name}" for x in spec.trained}
    for name in sorted(named_in(spec.model_dump()) - table_names):
        raise InvalidOption(
            f"'{file}' uses '{{{name}}}', but has no such table.{did_you_mean(name, table_names)} "
            f"Known: {', '.join(sorted(table_names)) or 'none'}."
        )
    feedback_names = {f.name for f in spec.feedback}
    for learner in spec.learners:
        for name in learner.feedback or ():
            if name not in feedback_names:
                raise InvalidOption(
                    f"'{file}': the learner '{learner.name}' uses an unknown feedback '{name}'."
                    f"{did_you_mean(name, feedback_names)} Known: {', '.join(sorted(feedback_names))}."
                )
    if spec.budget.samples is None and spec.budget.judgements is None:
        raise InvalidOption(f"'{file}': [budget] needs samples or judgements, which determine the steps.")
    rows = {IMITATION, "base", "teacher", *(x.name for x in spec.learners)}
    rows |= {WRITTEN_AGAIN} if spec.noise_floor else set()
    for table in spec.compare:
        for name in table.systems:
            if name not in rows:
                raise InvalidOption(
                    f"'{file}': the table '{table.name}' has no row '{name}'.{did_you_mean(name, rows)}"
                )
    for feedback in spec.feedback:
        if feedback.judge is None and feedback.critic in (None, "win-tie"):
            raise InvalidOption(f"'{file}': the feedback '{feedback.name}' needs a judge, or a critic of its own.")
        if feedback.one_order and feedback.judge is None:
            raise InvalidOption(f"'{file}': the feedback '{feedback.name}' has no judge to ask in one order.")
        refuse_training_critic(spec.held_out, feedback)
    spec.parsed(spec.imitation_run(spec.seeds[0]), IMITATION)
    for learner, feedback in spec.pairs():
        spec.run_spec(learner, feedback, spec.seeds[0])


def refuse_training_critic(held_out: HeldOutTable, feedback: FeedbackTable) -> None:
    """Raise an error if a critic would measure what was trained to please it: its score would be no measurement."""
    measuring = identities_of(held_out.critic, held_out.options, registry.critics)
    critic, judge = critic_table(feedback), judge_table(feedback)
    teaching = identities_of(critic["critic"], critic["options"], registry.critics)
    teaching |= identities_of(judge["judge"], judge["options"], registry.judges)
    both = sorted(measuring & teaching)
    if both:
        who = " with ".join(part for part in both[0] if part)
        raise InvalidOption(
            f"'{who}' is used for training (feedback '{feedback.name}'), so it cannot be called held out. Give "
            "[held_out] a critic that no learner was trained on."
        )
