"""The folder of a run: where it is, what it records, and whether it may be resumed.

runs/pocket-quickstart/
    spec.toml                 the resolved spec: `humor-env train runs/pocket-quickstart/spec.toml` repeats the run
    run.json                  versions, commit, seeds, machine, times
    ledger.sqlite             every reply of a language model (only if one was called)
    results.json              all seeds: the held-out score of each stage
    seed-0/
        metrics.jsonl  timings.jsonl  jokes.jsonl        the learner's, step by step
        drift.jsonl                                       what the monitor saw, if the spec has [monitor]
        checkpoints/                                      from which `--resume` continues
        imitation/                                        the same for the warm start
        evaluation-base.jsonl  …-imitation.jsonl  …       each held-out line with its judgement, by stage
        results.json
        student/                                          for `Student.load` and `humor-env evaluate`
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import humor_env
from humor_env.errors import CheckpointError, InvalidOption
from humor_env.experiments.options import ledger_if_used
from humor_env.experiments.specs.spec import Spec, load_spec
from humor_env.experiments.specs.toml_text import flat
from humor_env.llm.factory import what_is_asked
from humor_env.shared.line_file import only_writer

SPEC, RECORD, RESULTS, LOCK = "spec.toml", "run.json", "results.json", ".lock"
ROOT = Path("runs")
PACKAGES = ("torch", "transformers", "peft", "accelerate", "gymnasium", "numpy", "tokenizers", "safetensors")
_MAY_CHANGE = ("budget", "monitor", "seeds", "learner.steps", "tracking", "student.backend.concurrency")


@contextmanager
def claimed_folder(spec: Spec, what: str | Path, out: Path | None, resume: bool) -> Iterator[Path]:
    """The folder of `choose_folder`, locked against other writers. A folder made for a run that never started is
    removed again."""
    others: list[Path] = []
    while True:
        folder = choose_folder(spec, what, out, resume, others)
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        refusal = f"'{folder}' is being written by another humor-env: wait for it, or give another --out."
        with contextlib.ExitStack() as stack:
            stack.callback(_leave, folder, is_new)
            try:
                stack.enter_context(only_writer(folder / LOCK, refusal))
            except InvalidOption:
                if out is not None or resume:
                    raise
                others.append(folder)
                continue
            # The last holder of the lock may have started a run here.
            if choose_folder(spec, what, out, resume, others) != folder:
                continue
            stack.enter_context(ledger_if_used(folder / "ledger.sqlite"))
            yield folder
            return


def _leave(folder: Path, is_new: bool) -> None:
    if is_new:
        with contextlib.suppress(OSError):  # it is not empty
            folder.rmdir()
            folder.parent.rmdir()


def choose_folder(spec: Spec, what: str | Path, out: Path | None, resume: bool, taken: Sequence[Path] = ()) -> Path:
    """The run's folder. A new run never gets a folder that has a run, that is `taken`, or that holds files which the
    run would overwrite; a resumed run must have started there."""
    if resume:
        folder = out or _own_folder(what) or _latest(spec.name)
        if not (folder / SPEC).is_file():
            raise InvalidOption(
                f"There is no run to resume in '{folder}' (no {SPEC} there). Give its folder with --out, or leave out "
                "--resume to start a run."
            )
        if not (folder / RECORD).is_file():
            raise InvalidOption(f"There is no run to resume in '{folder}': it has a {SPEC}, but no {RECORD}.")
        return folder
    if out is not None:
        if (out / RECORD).exists():
            raise InvalidOption(f"'{out}' already holds a run. Give --resume to continue it, or another --out.")
        names = [path.name for name in (SPEC, RESULTS, "seed-*") for path in sorted(out.glob(name))]
        if names:
            raise InvalidOption(
                f"'{out}' is not a run's folder and holds {', '.join(names[:3])}, which a run would overwrite. Give "
                "another folder with --out."
            )
        return out
    if Path(what).is_dir() and _own_folder(what) is not None:
        raise InvalidOption(
            f"'{what}' is the folder of a run. To continue it: humor-env train {what} --resume. To repeat it "
            f"in another folder: humor-env train {Path(what) / SPEC}."
        )
    number = 1
    while (_numbered(spec.name, number) / RECORD).exists() or _numbered(spec.name, number) in taken:
        number += 1
    return _numbered(spec.name, number)


def _numbered(name: str, number: int) -> Path:
    return ROOT / (name if number == 1 else f"{name}-{number}")


def _latest(name: str) -> Path:
    number = 1
    while (_numbered(name, number + 1) / RECORD).exists():
        number += 1
    return _numbered(name, number)


def _own_folder(what: str | Path) -> Path | None:
    """The run's folder, if the given spec is the one saved in it."""
    path = Path(what)
    folder = path if path.is_dir() else path.parent
    is_run_path = path.is_dir() or path.name == SPEC
    return folder if is_run_path and (folder / SPEC).is_file() and (folder / RECORD).is_file() else None


def prepare_folder(
    spec: Spec,
    folder: Path,
    *,
    resume: bool,
    machine: Mapping[str, Any] | None = None,
    inputs: Mapping[str, str] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Write the spec and the record, or check that they are those of the resumed run. `inputs` are digests of what the
    spec only names; if they or the versions have changed since the run started, `say` gets a warning."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    part = {"from": now, "versions": versions(), "commit": commit(), "inputs": dict(inputs or {})}
    record: dict[str, Any] = {"started": now, "parts": []}
    if resume:
        _check_same(spec, folder)
        record = read_json(folder / RECORD)
        record["resumed"] = [*record.get("resumed", []), now]
        for sentence in _changes(record, part):
            say(f"warning: {sentence}")
    folder.mkdir(parents=True, exist_ok=True)
    record |= {
        "repeat": f"humor-env train {folder / SPEC}",
        "seeds": list(spec.seeds),
        "versions": part["versions"],
        "commit": part["commit"],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "parts": [*record.get("parts", []), part],
        **(machine or {}),
    }
    write_text(folder / SPEC, spec.to_toml())
    write_json(folder / RECORD, record)


def _changes(record: Mapping[str, Any], part: Mapping[str, Any]) -> list[str]:
    """The inputs and versions of a resumed run that have changed."""
    before = (record.get("parts") or [{}])[-1]
    changes = [
        f"the {name} changed since the run started: from now on it learns from different ones."
        for name, digest in part["inputs"].items()
        if before.get("inputs", {}).get(name, digest) != digest
    ]
    old, new = record.get("versions", {}), part["versions"]
    other = [f"{name} was {old[name]}, is {new[name]}" for name in new if name in old and old[name] != new[name]]
    if record.get("commit") != part["commit"]:
        other.append(f"the commit was {record.get('commit')}, is {part['commit']}")
    return changes + ([f"the run continues with other versions: {'; '.join(other)}."] if other else [])


def _check_same(spec: Spec, folder: Path) -> None:
    before, now = (flat(what_is_asked(each.model_dump(), "")) for each in (load_spec(folder / SPEC), spec))
    changed = [
        key
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key) and not any(key == k or key.startswith(f"{k}.") for k in _MAY_CHANGE)
    ]
    if changed:
        differences = "; ".join(f"{k} was {before.get(k)!r}, now {now.get(k)!r}" for k in changed[:5])
        raise CheckpointError(
            f"The run in '{folder}' was started with other settings ({differences}). Resume it with its own "
            f"({folder / SPEC}; {', '.join(_MAY_CHANGE)}, and options that only say how a model is asked, such as "
            "concurrency, may change), or start another one with --out."
        )


def versions() -> dict[str, str]:
    """The versions that affect what a run computes."""
    installed = {"humor-env": humor_env.__version__}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return installed


def commit() -> str | None:
    """The commit of the checkout that runs, with "+changes" if files differ; None for an installed package."""
    package = Path(humor_env.__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            process = subprocess.run(
                ["git", "-C", str(package), *arguments], capture_output=True, text=True, timeout=20, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return process.stdout.strip() if process.returncode == 0 else None

    # A package installed into somebody's project must not claim that project's commit.
    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    head = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return head if head is None or not changed else f"{head} +changes"


def write_text(path: Path, text: str) -> None:
    """Write a file in full or not at all."""
    temporary = path.with_name(path.name + ".writing")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, data: Any) -> None:
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record, dict):
            return record
        problem: Exception | str = f"it holds a {type(record).__name__}"
    except (OSError, ValueError, RecursionError) as why:
        problem = why
    raise CheckpointError(f"'{path}' cannot be read ({problem}). Start the run again with another --out.")


def run_of(path: Path) -> Path | None:
    """The run that a folder belongs to: itself, or that of a seed's or a saved student's folder."""
    places = (path, path.parent, path.parent.parent)
    return next((p for p in places if (p / SPEC).is_file() and (p / RECORD).is_file()), None)


def read_results(path: Path) -> Any:
    """The results of one seed."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        stages = results["stages"] if all(key in results for key in ("stages", "seconds", "steps")) else None
        if isinstance(stages, dict) and all(isinstance(numbers, dict) for numbers in stages.values()):
            return results
        problem: Exception | str = "it lacks stages, seconds or steps"
    except (OSError, ValueError, TypeError, RecursionError) as why:
        problem = why
    raise CheckpointError(
        f"'{path}' is damaged ({problem}). Remove it and resume: the stages are measured again, and the rest of the "
        "run may be intact."
    )


def student_folder(path: Path) -> Path:
    """The saved student in a run's folder, a seed's folder, or a student's own."""
    seeds = sorted(path.glob("seed-*/student/student.json"))
    for folder in (path, path / "student", *(s.parent for s in seeds[:1])):
        if (folder / "student.json").is_file():
            if len(seeds) > 1 and folder.parent.parent == path:
                print(f"{path} has {len(seeds)} students; this is {folder}.", file=sys.stderr)
            return folder
    return path


def jokes_folder(path: Path) -> Path:
    """The folder with a run's jokes.jsonl: the path itself, or its only seed's."""
    seeds = sorted(lines_file.parent for lines_file in path.glob("seed-*/jokes.jsonl"))
    if len(seeds) > 1:
        raise InvalidOption(f"'{path}' has {len(seeds)} seeds; give one of them, such as {seeds[0]}.")
    return seeds[0] if seeds else path
