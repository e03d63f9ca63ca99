"""The Hub: upload a run's student or a file of lines with a card, and download it again.

    with staged(Path("runs/first"), "owner/name") as folder:
        listing(folder)              # every file and its bytes: what `--dry-run` prints, and all that is uploaded
        push(folder, "owner/name")

The folder to push is first assembled separately from the run, so that exactly the listed files leave the machine.
Tokens are left to huggingface_hub: it takes them from its own login or HF_TOKEN, and nothing here reads one.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

from humor_env.errors import HumorEnvError, InvalidOption
from humor_env.experiments.runs.run_folder import run_of, student_folder
from humor_env.experiments.sharing.model_card import dataset_card, model_card
from humor_env.experiments.sharing.publishable import hosts_in, publishable
from humor_env.experiments.specs.spec import load_spec
from humor_env.experiments.specs.toml_text import dumps
from humor_env.shared.json_lines import NOT_JSON, read_lines
from humor_env.shared.user_path import user_path
from humor_env.sources import students

TEXTS = ("prompt", "text", "joke", "line", "completion", "chosen", "rejected", "id", "prompt_id")
"""The keys under which people and models have written something: nothing is taken out of it."""


class HubError(HumorEnvError):
    """The Hub refused, or cannot be reached."""


@contextmanager
def staged(what: Path, repo: str, *, merged: bool = False) -> Iterator[Path]:
    """A folder with all that goes to `repo`, from a run's, seed's or student's folder or a JSONL file of lines."""
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise InvalidOption(f"'{repo}' is not a name on the Hub: expected owner/name.")
    with tempfile.TemporaryDirectory(prefix="humor-env-push-") as scratch:
        folder = Path(scratch)
        if what.is_file():
            _stage_lines(what, repo, folder)
        else:
            _stage_student(what, repo, folder, merged)
        yield folder


def _stage_lines(file: Path, repo: str, folder: Path) -> None:
    rows = []
    for number, line in enumerate(read_lines(file), 1):
        try:
            row = json.loads(line)
        except NOT_JSON:
            row = None
        if not isinstance(row, dict):
            raise InvalidOption(f"'{file}', line {number} is not a JSON object: expected a file of lines (JSONL).")
        rows.append(row)
    if not rows:
        raise InvalidOption(f"'{file}' is empty: there is nothing to push.")
    public_rows = [publishable({k: v for k, v in row.items() if k != "asked"}, keep=TEXTS) for row in rows]
    if public_rows == rows:
        shutil.copy(file, folder / "data.jsonl")
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in public_rows)
        (folder / "data.jsonl").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(dataset_card(file, repo, public_rows), encoding="utf-8")


def _stage_student(what: Path, repo: str, folder: Path, merged: bool) -> None:
    source = student_folder(what)
    run = run_of(source.parent)
    if not (source / "student.json").is_file() or run is None:
        raise InvalidOption(
            f"There is no run with a finished student in '{what}': expected the folder of a run, of a seed, or the "
            "student in one, or a JSONL file of lines."
        )
    for part in sorted(source.iterdir()):
        (shutil.copytree if part.is_dir() else shutil.copy)(part, folder / part.name)
    described = json.loads((folder / "student.json").read_text(encoding="utf-8"))
    place, base = _base(described["base"])
    if place is not None:
        shutil.copytree(place, folder / "base", dirs_exist_ok=True)
        described["base"] = None
        _write_json(folder / "student.json", described)
    for page in folder.glob("**/README.md"):  # PEFT's, full of "more information needed"
        page.unlink()
    if merged:
        from humor_env.agents.student import Student

        student = Student.load(source)
        student.merge().save_pretrained(folder / "merged")
        student.tokenizer.save_pretrained(folder / "merged")
    for config in sorted(folder.glob("*/adapter_config.json")):
        adapter_config = json.loads(config.read_text(encoding="utf-8"))
        adapter_config["base_model_name_or_path"] = base or repo  # not the path that it had here
        _write_json(config, adapter_config)
    for config in sorted(folder.glob("**/*config.json")):
        _without_places(config)
    spec = load_spec(run / "spec.toml").model_dump(exclude_none=True)
    hosts = hosts_in(spec)
    (folder / "run").mkdir()
    (folder / "run" / "spec.toml").write_text(_public_spec(spec), encoding="utf-8")
    results = json.loads((source.parent / "results.json").read_text(encoding="utf-8"))
    _write_json(folder / "run" / "results.json", publishable(results, hosts=hosts))
    card = model_card(run, source.parent, repo=repo, base=base, merged=merged)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _base(base: str | None) -> tuple[Path | None, str | None]:
    """The folder of a base model that only this machine has, or its name on the Hub; neither if the adapters' folder
    already contains it."""
    if base is None:
        return None, None
    place = user_path(students.find(base))
    if place.is_dir():
        return place, None
    if base in students.NAMED and students.NAMED[base].hub:
        return None, students.hub_name(base)
    if place.is_file() and place.suffix == students.GGUF:
        return Path(students.source(str(place))), None
    local = Path(base).is_absolute() or PureWindowsPath(base).drive or base.startswith((".", "~"))
    if place.exists() or local or base.count("/") > 1 or base.endswith(students.GGUF):
        raise InvalidOption(
            f"The student's base model is '{base}', which others cannot load: it is neither an existing folder or GGUF "
            "file nor a name on the Hub. Restore it, or train from one of these."
        )
    return None, base


def _without_places(config: Path) -> None:
    """Remove the local paths of a model and its tokenizer, which transformers writes into its settings."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    places = {key: settings[key] for key in settings if key.endswith(("name_or_path", "_file"))}
    cleaned = publishable(places)
    if cleaned != places:
        others = {key: value for key, value in settings.items() if key not in places}
        _write_json(config, others | cleaned)


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _public_spec(spec: dict[str, Any]) -> str:
    """The run's spec without settings specific to this machine: servers, ledgers, trackers and paths of files."""
    spec = {name: table for name, table in spec.items() if name != "tracking"}
    spec["student"] = {key: value for key, value in spec["student"].items() if key != "backend"}
    spec = publishable(spec, hosts=hosts_in(spec))
    return dumps({k: v for k, v in spec.items() if v != {}})


def listing(folder: Path) -> list[tuple[str, int]]:
    """Every file with its size in bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files]


def push(folder: Path, repo: str, *, public: bool = False) -> str:
    """Upload a staged folder as one commit; return its URL. A missing repository is created, private by default."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalTokenNotFoundError

    kind = "dataset" if (folder / "data.jsonl").is_file() else "model"
    api = HfApi()
    try:
        api.create_repo(repo, repo_type=kind, private=not public, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, repo_type=kind, folder_path=folder, commit_message="Pushed by humor-env", ignore_patterns=[]
        )
    except LocalTokenNotFoundError:
        raise HubError("You are not logged in to the Hub: run `hf auth login`, or set HF_TOKEN.") from None
    except Exception as problem:
        if not _is_the_hubs(problem):
            raise
        raise HubError(f"The Hub did not accept '{repo}' ({_first_line(problem)}). Nothing was changed here.") from None
    return str(commit.repo_url)


def pull(repo: str, folder: Path, *, dataset: bool = False) -> list[tuple[str, int]]:
    """Download a repository into an empty or new folder; return the files."""
    from huggingface_hub import snapshot_download

    if folder.exists() and any(folder.iterdir()):
        raise InvalidOption(f"'{folder}' is not empty: give another folder.")
    try:
        # Weights and texts, but no code.
        allowed = ["*.json", "*.jsonl", "*.safetensors", "*.md", "*.toml", "*.jinja", "*.txt", "*.model"]
        snapshot_download(repo, repo_type="dataset" if dataset else "model", local_dir=folder, allow_patterns=allowed)
    except Exception as problem:
        if not _is_the_hubs(problem):
            raise
        raise HubError(f"'{repo}' could not be pulled ({_first_line(problem)}).") from None
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return listing(folder)


def _is_the_hubs(problem: Exception) -> bool:
    """Whether the error is about the Hub or the connection. The client of huggingface_hub (requests, httpx or httpx2,
    depending on the version) has its own errors, which are recognised by their module."""
    package = type(problem).__module__.partition(".")[0]
    return isinstance(problem, OSError) or package in ("huggingface_hub", "requests") or package.startswith("http")


def _first_line(problem: Exception) -> str:
    return f"{type(problem).__name__}: {problem}".strip().split("\n")[0][:200]
