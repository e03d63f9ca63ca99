"""Critics that a benchmark trains first, on the user's own files.

    [[data]]
    name = "humicroedit"                            # --data humicroedit=task-1_train.csv; "{data.humicroedit}" below
    what = "Humicroedit's task-1_train.csv"

    [[trained]]
    name = "judge"                                  # "{trained.judge}" is its folder
    data = ["humicroedit={data.humicroedit}"]
    settings = { model = "minilm", epochs = 1 }     # as train-critic takes them

Both names may be used in any string of the benchmark. A critic is a cell like any other: it is trained once, and a
stopped benchmark continues with what is missing.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from humor_env.errors import InvalidOption, did_you_mean
from humor_env.experiments.compare.jobs import Cell
from humor_env.experiments.specs.learner_settings import Table
from humor_env.shared.user_path import user_path

JOB = "humor_env.experiments.compare.trained_critics:train_for_benchmark"
FOLDER, CRITIC = "trained", "critic"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
_NAMED = re.compile(r"\{((?:data|trained)\.[^{}]*)\}")


class DataTable(Table):
    """A file that this project does not include. `what` says where it comes from."""

    name: Name
    what: str
    file: str = ""


class TrainedTable(Table):
    """`data` is what train-critic's --data takes, `settings` what its --set takes."""

    name: Name
    data: Annotated[list[str], Field(min_length=1)]
    settings: dict[str, Any] = {}


def with_files(tables: Sequence[DataTable], entries: Sequence[str]) -> list[DataTable]:
    """The tables with the files of NAME=FILE entries, as absolute paths."""
    names = {table.name for table in tables}
    files = {}
    for entry in entries:
        name, equals, file = entry.partition("=")
        if not (name and equals and file):
            raise InvalidOption(f"--data is NAME=FILE; found {entry!r}.")
        if name not in names:
            takes = f"It takes: {', '.join(sorted(names))}." if names else "It takes none."
            raise InvalidOption(f"This benchmark takes no file '{name}'.{did_you_mean(name, names)} {takes}")
        if not user_path(file).is_file():
            raise InvalidOption(f"--data {name}: there is no file '{file}'.")
        files[name] = str(user_path(file).resolve())
    return [table.model_copy(update={"file": files.get(table.name, table.file)}) for table in tables]


def file_names(tables: Sequence[DataTable]) -> dict[str, str]:
    """The paths that "{data.NAME}" stands for."""
    missing = [table for table in tables if not table.file]
    if missing:
        options = "; ".join(f"--data {table.name}=FILE ({table.what})" for table in missing)
        raise InvalidOption(f"This benchmark needs files that you download yourself: {options}.")
    return {f"data.{table.name}": table.file for table in tables}


def folder_names(trained: Mapping[str, str], cell_folder: Path) -> dict[str, str]:
    """The paths that "{trained.NAME}" stands for, from those that a cell was given."""
    return {f"trained.{name}": str((cell_folder / path).resolve()) for name, path in trained.items()}


def fill_names(value: Any, names: Mapping[str, str], *, others: bool = False) -> Any:
    """Plain data with each "{data.…}" and "{trained.…}" replaced by its path; with `others`, unknown names stay."""
    if isinstance(value, str):

        def stands_for(match: re.Match[str]) -> str:
            if match[1] in names:
                return names[match[1]]
            if others:
                return match[0]
            raise InvalidOption(f"'{match[0]}' is not a known name.{did_you_mean(match[1], names)}")

        return _NAMED.sub(stands_for, value)
    if isinstance(value, Mapping):
        return {key: fill_names(inner, names, others=others) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [fill_names(inner, names, others=others) for inner in value]
    return value


def named_in(value: Any) -> set[str]:
    """The names ("data.x", "trained.y") used in plain data."""
    if isinstance(value, str):
        return set(_NAMED.findall(value))
    if isinstance(value, Mapping):
        value = list(value.values())
    return set().union(*map(named_in, value)) if isinstance(value, (list, tuple)) else set()


def cells_of(tables: Sequence[TrainedTable], root: Path) -> list[Cell]:
    return [
        Cell(
            f"{FOLDER}/{table.name}",
            root / "cells" / FOLDER / table.name,
            JOB,
            {"data": list(table.data), "settings": dict(table.settings)},
        )
        for table in tables
    ]


def train_for_benchmark(spec: Mapping[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """The job of a cell: `humor-env train-critic` in the cell's folder."""
    from humor_env.rewards.trained.critic_data import sets_from_files
    from humor_env.rewards.trained.train_critic import config_of, train

    out = folder / CRITIC
    shutil.rmtree(out, ignore_errors=True)  # left by a killed process
    sets = sets_from_files(spec["data"])
    critic = train(config_of(spec["settings"]), sets, out)
    if critic.stopped:
        raise KeyboardInterrupt
    return {"dev": critic.dev, "steps": critic.steps, "sets": [critic_set.name for critic_set in sets]}
