"""The scale of a reproduction as data: the teacher, the judges, the learners, the sentences, and the epochs.

    spec = load_scale("pocket")                     # pocket, small, paper, or the path of a TOML file
    spec = load_scale("small", ["critic.options.client=local:Qwen/Qwen2.5-7B-Instruct"])

The protocol itself (which systems, compared on what) is the paper's; it is in `systems.py` and the same for every
scale. `[learners.NAME]` holds fields of that learner's config dataclass.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from humor_env import registry
from humor_env.errors import HumorEnvError, InvalidOption, did_you_mean
from humor_env.experiments.options import read_override
from humor_env.experiments.specs.learner_settings import Table, check_table, config_class, make_config
from humor_env.experiments.specs.spec import BudgetSpec, Count, StudentSpec
from humor_env.shared.json_lines import read_text

SCALES = ("pocket", "small", "paper")
LEARNERS = ("sd", "brio", "dpo", "brio-dpo")
SFT = "humor_env.agents.sft:train"


class SourceSpec(Table):
    """Sentences from a prompt set, a JSONL or CSV file, or `hf:owner/dataset`, in their published columns.

    `splits` are the source's own names (empty: all rows). `turns` reads the column as a conversation, one turn a line
    with the speaker's name before a colon, and takes one turn of each. `replace` undoes a publisher's replacements.
    """

    source: str
    column: str = "text"
    splits: list[str] = []
    count: Count
    turns: bool = False
    least_words: Count = 4
    most_words: Count = 40
    replace: dict[str, str] = {}
    config: str | None = None
    revision: str | None = None


class DataSpec(Table):
    """The sources of the inputs. Without any, they are the pocket world's own splits, and `pocket_...` say how many of
    each are used. `seed` draws the sample, which is the same for every seed of the run."""

    train: SourceSpec | None = None
    dev: SourceSpec | None = None
    test: SourceSpec | None = None
    ood: SourceSpec | None = None
    pocket_train: Count = 2400
    pocket_dev: Count = 200
    pocket_test: Count = 300
    pocket_ood: Count = 300
    seed: int = 0


class TeacherTable(Table):
    """`teacher` is "pocket", or a language model's client, whose lines are kept in the run's folder."""

    teacher: str = "pocket"
    lines: Count = 3
    licence: str = "unknown"
    options: dict[str, Any] = {}


class JudgeTable(Table):
    """A judge by name. `humor` and `consistency` change its options to ask about that alone; without them, those rows
    of Table 1 are left out."""

    judge: str
    options: dict[str, Any] = {}
    humor: dict[str, Any] = {}
    consistency: dict[str, Any] = {}


class PeopleTable(Table):
    """`who` is "exact" (the pocket world's exact judge replaces people) or the path of a file of ratings; without it,
    the tables that need people are left out. `prompts` is the number of test prompts shown to them; 0 is all."""

    who: str | None = None
    prompts: Annotated[int, Field(ge=0)] = 100


class ClozeTable(Table):
    """The language model whose perplexity is the paper's weaker critic: "pocket:causal", a hub name or a folder."""

    model: str | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"


class FeedbackTable(Table):
    """The critic judges a `share` of a system's training inputs, for `epochs` epochs (ten in the paper)."""

    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    epochs: Count = 10


class WritingTable(Table):
    """How the lines to measure are written: by beam search, as in the paper, and with `sampled` also by sampling, as in
    training."""

    beams: Count = 5
    sampled: bool = True
    max_new_tokens: Count = 48
    batch: Count = 64


class ScaleSpec(Table):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    about: str = ""
    seeds: Count = 3
    workers: Count = 1
    threads: Count = 1
    student: StudentSpec = StudentSpec()
    data: DataSpec = DataSpec()
    teacher: TeacherTable = TeacherTable()
    critic: JudgeTable
    outside: JudgeTable
    people: PeopleTable = PeopleTable()
    cloze: ClozeTable = ClozeTable()
    warm_start: dict[str, Any] = {}
    more_imitation: dict[str, Any] = {}
    feedback: FeedbackTable = FeedbackTable()
    learners: dict[str, dict[str, Any]] = {}
    writing: WritingTable = WritingTable()
    budget: BudgetSpec = BudgetSpec()

    def imitation_config(self, stage: Literal["warm_start", "more_imitation"], seed: int) -> Any:
        return make_config(config_class(registry.learners.resolve(SFT)), getattr(self, stage), seed)

    def learner_config(self, name: str, seed: int, **changes: Any) -> Any:
        """The learner's settings, with the protocol's number of epochs and then `changes`."""
        table = {**self.learners.get(name, {}), **changes}
        return make_config(config_class(registry.learners.resolve(name)), table, seed)

    def record(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_none=True)


def load_scale(what: str, overrides: Sequence[str] = ()) -> ScaleSpec:
    """A scale by name or by the path of a TOML file, with dotted overrides; mistakes raise InvalidOption."""
    data = tomllib.loads(_text(what))
    for override in overrides:
        _set(data, override)
    try:
        spec = check_table(ScaleSpec, data)
    except ValidationError as error:
        problems = [f"'{'.'.join(map(str, e['loc']))}': {e['msg']}" for e in error.errors(include_url=False)]
        raise InvalidOption(f"The scale '{what}' has mistakes. " + "; ".join(problems) + ".") from None
    assert isinstance(spec, ScaleSpec)
    _check(spec)
    return spec


def scale_text(name: str) -> str:
    return (resources.files("humor_env.experiments.reproduction") / f"{name}.toml").read_text(encoding="utf-8")


def _text(what: str) -> str:
    if what in SCALES:
        return scale_text(what)
    path = Path(what)
    if path.suffix != ".toml" or not path.is_file():
        raise InvalidOption(
            f"No scale is called '{what}'.{did_you_mean(what, SCALES)} Known: {', '.join(SCALES)}; or give the path of "
            "a TOML file in the same format."
        )
    try:
        text = read_text(path)
        tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise InvalidOption(f"'{what}' is not TOML: {problem}.") from None
    return text


def _set(data: dict[str, Any], override: str) -> None:
    dotted, value = read_override(override, "--set")
    *path, last = dotted.split(".")
    table = data
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise InvalidOption(f"--set {override}: '{part}' is not a table.")
    table[last] = value


def _check(spec: ScaleSpec) -> None:
    """Check what only the parts know: the learners' settings, the judges' names, and settings that belong together."""
    unknown = sorted(set(spec.learners) - set(LEARNERS))
    if unknown:
        near = did_you_mean(unknown[0], LEARNERS)
        raise InvalidOption(f"[learners] has no '{unknown[0]}'.{near} Known: {', '.join(LEARNERS)}.")
    sources = [part for part in (spec.data.train, spec.data.test, spec.data.ood) if part is not None]
    if sources and len(sources) < 3:
        raise InvalidOption("[data] names some sources and not others: give train, test and ood, or none of them.")
    if spec.teacher.teacher == "pocket" and sources:
        raise InvalidOption("The pocket teacher writes only for the pocket world: leave [data] out, or name a model.")
    for judge in (spec.critic, spec.outside):
        registry.judges.resolve(judge.judge)
    if spec.critic.model_dump() == spec.outside.model_dump():
        raise InvalidOption("The outside judge is the training critic: it must be a different one.")
    places = [("warm_start", None), ("more_imitation", None), *(("learners", name) for name in LEARNERS)]
    for table, name in places:
        try:
            if name is None:
                spec.imitation_config(table, 0)  # type: ignore[arg-type]
            else:
                spec.learner_config(name, 0)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join([table, *([name] if name else []), *map(str, problem["loc"])])
            raise InvalidOption(f"[{where}]: {problem['msg']}.") from None
        except HumorEnvError as problem:
            raise InvalidOption(f"[{table}{'.' + name if name else ''}]: {problem}") from None
