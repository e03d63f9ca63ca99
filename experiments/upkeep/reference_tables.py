"""Tables of the documentation that are generated from the code: metrics, settings, spec files, curves and results.

    python -m humor_env.experiments.upkeep.reference_tables          # rewrites marked tables in docs/ and README
    python -m humor_env.experiments.upkeep.reference_tables --check    # says which are out of date

A table is between `<!-- metrics ppo -->` (or `settings ppo`, `spec env`, `results`, `curve ppo`, `trials`,
`learners`, `clients`) and `<!-- end -->`.
Names, types and defaults are read from the dataclasses and models; the numbers that a learner logs are found by running
it for a step; the meaning of each is one line in docs/meanings.toml, and a name without a line is an error.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import io
import json
import re
import sys
import tempfile
import tokenize
import tomllib
import typing
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any

from pydantic import BaseModel

import humor_env
from humor_env import registry
from humor_env.errors import InvalidOption, did_you_mean
from humor_env.experiments.specs.learner_settings import OURS, config_class
from humor_env.experiments.upkeep.pages.client_tables import clients_table

ROOT = Path(humor_env.__file__).resolve().parent.parent
END = "<!-- end -->"
_MARK = re.compile(
    r"(<!-- (learners|clients|metrics|settings|spec|costs|results|curve|trials)(?: ([\w+.-]+))? -->\n)"
    r"(.*?)(<!-- end -->)",
    re.DOTALL,
)

# The smallest run that uses all of each learner: one step on eight prompts. Learners not listed use _ON_POLICY.
_ON_POLICY = "steps = 1\nbatch_size = 8\nsiblings = 4\nevaluate_every = 1"
_PAIRS = "epochs = 1\nbatch_size = 4\nevaluate_every = 1"
_PEER = "steps = 1\nbatch_size = 8\nmicro_batch = 8\nsiblings = 4\nevaluate_every = 1"
SMALLEST = {
    "sft": "epochs = 1\nbatch_size = 12",
    "sd": _PAIRS,
    "brio": f"{_PAIRS}\nimitation_batch_size = 4",
    "dpo": _PAIRS,
    "brio-dpo": f"[learner.brio]\n{_PAIRS}\npairs_of = 'teacher'\n[learner.dpo]\n{_PAIRS}",
    "ppo": f"{_ON_POLICY}\nimitation_weight = 0.1",
    "best-of-n": "n = 2",
    "trl-sft": "steps = 1\nbatch_size = 4\nmicro_batch = 4",
    "trl-dpo": "steps = 1\nbatch_size = 4\nmicro_batch = 4\nevaluate_every = 1",
    "trl-grpo": _PEER,
    "trl-rloo": _PEER,
}


class Meanings:
    """docs/meanings.toml."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tables: Mapping[str, Mapping[str, str]] = tomllib.loads(path.read_text(encoding="utf-8"))

    def key(self, table: str, name: str) -> str:
        """The name as the tables show it: itself, or the longest `…` entry that is its prefix."""
        meanings = self.tables[table]
        if name in meanings:
            return name
        begins = [k for k in meanings if k.endswith("…") and name.startswith(k[:-1])]
        if not begins:
            raise InvalidOption(
                f"Nothing says what '{name}' means.{did_you_mean(name, meanings)} Write a line for it into the table "
                f"[{table}] of docs/{self.path.name}."
            )
        return max(begins, key=len)

    def of(self, table: str, name: str) -> str:
        return self.tables[table][self.key(table, name)]


def small_prompts(folder: Path) -> Path:
    """Eight pocket prompts of each split that a run needs, as a file."""
    from humor_env.prompts import load_prompts

    pocket = load_prompts("pocket")
    chosen = [p for split in ("train", "dev", "test") for p in pocket.split(split)[:8]]
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"id": p.id, "text": p.text, "split": p.split}) + "\n" for p in chosen))
    return path


def logged_by(learner: str, folder: Path) -> set[str]:
    """The names in the logs of a run of `learner` over one step."""
    from humor_env.experiments.runs.run import run
    from humor_env.experiments.specs.spec import parse_spec

    folder.mkdir(parents=True, exist_ok=True)
    text = f"""
        [env]
        prompts = {json.dumps(str(small_prompts(folder)))}
        [teacher]
        lines = "pocket"
        {"imitate = false" if "sft" not in learner else ""}
        [[critic]]
        critic = "pocket"
        [judge]
        judge = "pocket-crowd"
        [eval]
        limit = 2
        dev_limit = 2
        [learner]
        name = "{learner}"
        {SMALLEST.get(learner, _ON_POLICY)}
    """
    place = folder / "run"
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # notices of libraries, such as TRL
        run(parse_spec(text), place)
    logs = [f for name in ("metrics", "timings") for f in sorted(place.glob(f"seed-0/{name}.jsonl"))]
    return {name for f in logs for line in f.open(encoding="utf-8") for name in json.loads(line)} - {"step"}


def metrics_table(learner: str, names: Collection[str], meanings: Meanings) -> str:
    if not names:
        return (
            "None: no step is taken. In Python the writer counts `samples`, `judgements` and `unjudged`; so does a "
            "benchmark."
        )
    order = list(meanings.tables["metrics"])
    keys = {meanings.key("metrics", name) for name in names}
    rows = [f"| `{key}` | {meanings.tables['metrics'][key]} |" for key in sorted(keys, key=order.index)]
    return "\n".join(["| metric | meaning |", "|---|---|", *rows])


def comments_of(holder: type) -> dict[str, str]:
    """The comment next to each field of a class and of its base classes, from their source."""
    bases = [base for base in reversed(holder.__mro__) if dataclasses.is_dataclass(base)]
    return {name: comment for base in bases for name, comment in _own_comments(base).items()}


def _own_comments(holder: type) -> dict[str, str]:
    lines: dict[int, str] = {}
    source = inspect.getsource(holder)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0]] = token.string.lstrip("# ").strip()
    comments: dict[str, str] = {}
    field = ""
    for number, line in enumerate(source.splitlines(), start=1):
        begun = re.match(r"    (\w+): ", line)
        field = begun[1] if begun else "" if re.match(r"    \S", line) and not line.startswith("    )") else field
        if field and number in lines and field not in comments:
            comments[field] = lines[number]
    return comments


def settings_table(learner: str, meanings: Meanings) -> str:
    """Every key of `[learner]` and of its nested tables."""
    if learner == "pairs":
        from humor_env.agents.feedback.pairs import PairConfig

        holder: type = PairConfig
    else:
        holder = config_class(registry.learners.resolve(learner), learner)
    comments = comments_of(holder)
    hints = typing.get_type_hints(holder)
    rows = []
    for field in dataclasses.fields(holder):
        if field.name in OURS or field.name == "seed":
            continue
        has_factory = field.default_factory is not dataclasses.MISSING
        default = "" if has_factory else _shown(field.default)
        meaning = comments.get(field.name) or meanings.of("settings", field.name)
        rows.append(f"| `{field.name}` | {_type_name(hints[field.name])} | {default} | {_cell(meaning)} |")
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])


def learners_table(folder: Path) -> str:
    """The learners by page, in the registry's order; each page says below its heading what they learn from."""
    order = list(registry.learners.entries())
    rows: dict[int, str] = {}
    for page in folder.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        names = sorted(set(re.findall(r"<!-- metrics (\S+) -->", text)), key=order.index)
        if names:
            about = re.search(r"^Learns from: (.*)\. Compares: (.*)\.$", text, re.MULTILINE)
            if about is None:
                raise InvalidOption(
                    f"docs/algorithms/{page.name} does not say what its learner learns from. Write below its heading: "
                    "Learns from: a score per line. Compares: siblings."
                )
            title = re.sub(r" \(`.*", "", text.partition("\n")[0].lstrip("# "))
            cells = (", ".join(f"`{name}`" for name in names), about[1], about[2], f"[{title}]({page.name})")
            rows[order.index(names[0])] = f"| {' | '.join(cells)} |"
    head = ["| name in a spec | learns from | compares | page |", "|---|---|---|---|"]
    return "\n".join([*head, *(rows[place] for place in sorted(rows))])


def spec_table(part: str, meanings: Meanings) -> str:
    """The keys of one table of an experiment file; `top` is the top level."""
    from humor_env.agents.student.settings import Sampling
    from humor_env.experiments.specs.spec import Spec

    comments = comments_of(Sampling) if part == "eval.sampling" else {}
    rows = []
    for path, field in _spec_fields(Spec, ""):
        home, _, name = path.rpartition(".")
        if (home or "top") != part:
            continue
        default = "required" if field.is_required() else _shown(field.get_default(call_default_factory=True))
        meaning = comments.get(name) or meanings.of("spec", path)
        rows.append(f"| `{name}` | {_type_name(field.annotation)} | {default} | {_cell(meaning)} |")
    if not rows:
        parts = sorted({p.rpartition(".")[0] or "top" for p, _ in _spec_fields(Spec, "")})
        raise InvalidOption(f"An experiment file has no table '{part}'. It has: {', '.join(parts)}.")
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])


def spec_keys() -> list[str]:
    """Every dotted key that an experiment file may have, except those of learners."""
    from humor_env.experiments.specs.spec import Spec

    return [path for path, _ in _spec_fields(Spec, "")]


def _spec_fields(model: type[BaseModel], before: str) -> Iterable[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        path = before + name
        inner = _model_in(field.annotation)
        if inner is not None and path not in ("eval.critic", "monitor.critic"):  # the keys of [[critic]]
            yield from _spec_fields(inner, f"{path}.")
        elif inner is None and path != "learner":
            yield path, field


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for a in typing.get_args(annotation) if (m := _model_in(a)) is not None), None)


def _type_name(hint: Any) -> str:
    """The name of a type in TOML terms."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _type_name(inside[0])
    if origin in (UnionType, typing.Union):
        return " or ".join(dict.fromkeys(_type_name(a) for a in inside if a is not NoneType))
    if origin is typing.Literal:
        return ", ".join(f'"{a}"' for a in inside)
    if origin in (list, tuple):
        return f"list of {_type_name(inside[0])}"
    if origin in (dict, Mapping) or hint is Mapping or dataclasses.is_dataclass(hint):
        return "table"
    if origin is not None:
        return _type_name(origin)
    names = {str: "text", int: "whole number", float: "number", bool: "true, false", dict: "table", Any: "anything"}
    return names.get(hint) or ("table" if inspect.isclass(hint) and "Mapping" in str(hint) else str(hint))


def _shown(default: Any) -> str:
    if default is None:
        return "none"
    if isinstance(default, BaseModel) or default in ({}, []):
        return ""
    if isinstance(default, Enum):
        default = default.value
    return f"`{json.dumps(default)}`"


def _cell(text: str) -> str:
    """A cell with our own text, whose `code` and [links] are kept; `shared.markdown` is for untrusted text."""
    return text.replace("|", "\\|")


def fill_page(text: str, make: Callable[[str, str], str], mark: re.Pattern[str] = _MARK) -> str:
    """The page with the text from `make(kind, name)` in each marked place. The groups of `mark` are the opening
    comment, kind, name, the current text, and the closing comment."""

    def filled(match: re.Match[str]) -> str:
        table = make(match[2], match[3] or "").strip()
        return f"{match[1]}{chr(10) if table else ''}{table}{chr(10) * 2 if table else ''}{match[5]}"

    return mark.sub(filled, text)


class Tables:
    """Makes the table of any mark; learners that must run for it run once."""

    def __init__(self, root: Path, scratch: Path) -> None:
        from humor_env.experiments.upkeep import result_tables

        self.root, self.scratch = root, scratch
        self.meanings = Meanings(root / "docs" / "meanings.toml")
        self.results = result_tables
        self.files: dict[Path, str] = {}  # pictures that belong to the pages

    def make(self, kind: str, name: str, *, page: Path) -> str:
        if kind == "learners":
            return learners_table(page.parent)
        if kind == "clients":
            return clients_table(self.meanings)
        if kind == "metrics":
            return metrics_table(name, logged_by(name, self.scratch / name), self.meanings)
        if kind == "settings":
            return settings_table(name, self.meanings)
        if kind == "spec":
            return spec_table(name, self.meanings)
        if kind == "costs":
            from humor_env.experiments.runs import costs
            from humor_env.experiments.specs.spec import load_spec

            spec = load_spec(name)
            return costs.show(spec, costs.estimate_spec(spec))
        if kind == "results":
            return self.results.results_table(self.root)
        table_and_files = (
            self.results.curve(self.root, name, page) if kind == "curve" else self.results.trials(self.root, page)
        )
        table, files = table_and_files
        self.files |= files
        return table


def pages(root: Path) -> list[Path]:
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def rewrite(root: Path, *, check: bool, kinds: Sequence[str] = ()) -> list[str]:
    """The pages whose tables were out of date; with `check` nothing is written. `kinds` limits which tables."""
    stale = []
    with tempfile.TemporaryDirectory() as scratch:
        tables = Tables(root, Path(scratch))
        for page in pages(root):
            before = page.read_text(encoding="utf-8")

            def made(kind: str, name: str, page: Path = page, before: str = before) -> str:
                if kinds and kind not in kinds:
                    opening = f"<!-- {kind}{' ' + name if name else ''} -->\n"
                    return before.split(opening, 1)[1].split(END, 1)[0]
                return tables.make(kind, name, page=page)

            after = fill_page(before, made)
            if after != before:
                stale.append(str(page.relative_to(root)))
                if not check:
                    page.write_text(after, encoding="utf-8")
        for path, content in tables.files.items():
            if not path.is_file() or path.read_text(encoding="utf-8") != content:
                stale.append(str(path.relative_to(root)))
                if not check:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(content, encoding="utf-8")
    return stale


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m humor_env.experiments.upkeep.reference_tables", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a table is out of date")
    options = parser.parse_args(arguments)
    try:
        stale = rewrite(ROOT, check=options.check)
    except InvalidOption as problem:
        print(problem, file=sys.stderr)
        return 2
    print(
        "\n".join(f"{'out of date' if options.check else 'rewritten'}: {page}" for page in stale) or "All up to date."
    )
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
