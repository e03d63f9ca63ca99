"""Builds a release, installs it in empty environments, and says what to upload. It uploads nothing.

    make release             # refuses a checkout that is not ready, and says why
    make release TRIAL=1     # builds and installs it anyway, and lists what is not ready

The wheel is built from the source archive, so both have the same content. Each is installed by `pip install FILE` with
its requirements, on every declared Python that this machine has. `--offline` uses this environment's packages instead.
"""

from __future__ import annotations

import argparse
import configparser
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import humor_env
from humor_env.errors import InvalidOption

ROOT = Path(humor_env.__file__).resolve().parent.parent
# The commands to try after installing. The first prints the version, the second reads data files.
TRIED = (("--version",), ("prompts",))
_LINK = re.compile(r"(!?\[[^\]]*\]\()(?![a-z]+:|#)([^)\s]+)(?=\))")


def run(command: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """The output of a command. If it fails, the error has its last lines."""
    words = [str(word) for word in command]
    process = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if process.returncode:
        output = (process.stdout + process.stderr).strip()[-3000:]
        raise InvalidOption(f"`{' '.join(words)}` failed:\n{output}")
    return process.stdout


def read_setup(root: Path) -> configparser.ConfigParser:
    setup = configparser.ConfigParser()
    setup.read(root / "setup.cfg", encoding="utf-8")
    return setup


def versions(root: Path) -> dict[str, str]:
    """The version in each file, or "none"."""

    def first(name: str, pattern: str) -> str:
        match = re.search(pattern, (root / name).read_text(encoding="utf-8"), re.MULTILINE)
        return match[1] if match else "none"

    return {
        "setup.cfg": read_setup(root).get("metadata", "version", fallback="none"),
        "humor_env/__init__.py": first("humor_env/__init__.py", r'^__version__ = "(.+)"'),
        "CITATION.cff": first("CITATION.cff", r'^version: *"?([^"\s]+)'),
        "CHANGELOG.md": first("CHANGELOG.md", r"^## (?!Unreleased)(\S+)"),
    }


def unready(root: Path) -> list[str]:
    """What prevents a release of this checkout, a sentence each."""
    problems = []
    if changed := run(["git", "status", "--porcelain"], cwd=root).splitlines():
        problems.append(f"{_count(changed, 'file')} not committed, the first is {changed[0][3:]}: commit or remove.")
    by_file = versions(root)
    if len(set(by_file.values())) > 1:
        listed = ", ".join(f"{version} in {name}" for name, version in by_file.items())
        problems.append(f"The files name different versions: {listed}. Write the new version into each.")
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    unreleased = re.search(r"^## Unreleased\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if unreleased and (lines := [line for line in unreleased[1].splitlines() if line.strip()]):
        problems.append(
            f'CHANGELOG.md has {_count(lines, "line")} under "Unreleased": move them under the new version.'
        )
    return problems


def _count(things: Sequence[str], noun: str) -> str:
    return f"{len(things)} {noun}{'s' if len(things) != 1 else ''}"


def declared_pythons(root: Path) -> list[str]:
    """The Python versions in the classifiers, such as "3.12"."""
    classifiers = read_setup(root)["metadata"]["classifiers"]
    return re.findall(r"^Programming Language :: Python :: (3\.\d+)$", classifiers, re.MULTILINE)


def interpreter(version: str) -> str | None:
    """This Python or one on the path; None if none starts."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    path = shutil.which(f"python{version}")
    # pyenv puts a name on the path for every Python that any project uses; it fails unless that Python is active.
    if path and subprocess.run([path, "--version"], capture_output=True, check=False).returncode == 0:
        return path
    return None


def copy_tracked(root: Path, target: Path) -> None:
    """Copy the files that git tracks: other files of a checkout must not get into an archive."""
    for name in run(["git", "ls-files", "-z"], cwd=root).split("\0"):
        if name and (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)


def relative_links(page: str) -> list[str]:
    """Links and images that lead to files of the checkout. PyPI shows the page without these files."""
    return [
        target for number, part in enumerate(page.split("```")) if number % 2 == 0 for _, target in _LINK.findall(part)
    ]


def with_absolute_links(page: str, address: str, version: str) -> str:
    """The page with each such link to the file of this version in the repository at `address`."""

    def absolute(match: re.Match[str]) -> str:
        kind = "raw" if match[1].startswith("!") else "blob"
        return f"{match[1]}{address.rstrip('/')}/{kind}/v{version}/{match[2]}"

    parts = page.split("```")
    parts[::2] = [_LINK.sub(absolute, part) for part in parts[::2]]
    return "```".join(parts)


def repository(root: Path) -> str | None:
    """The address called `Source` under project_urls in setup.cfg."""
    urls = read_setup(root).get("metadata", "project_urls", fallback="")
    match = re.search(r"^Source *= *(\S+)$", urls, re.MULTILINE)
    return match[1] if match else None


def build(root: Path, scratch: Path, *, offline: bool) -> list[Path]:
    """The source archive and the wheel, built from a copy of the checkout."""
    source, built = scratch / "source", scratch / "built"
    copy_tracked(root, source)
    page, address = source / "README.md", repository(root)
    if address:
        text = page.read_text(encoding="utf-8")
        page.write_text(with_absolute_links(text, address, versions(root)["setup.cfg"]), encoding="utf-8")
    isolation = ["--no-isolation"] if offline else []
    run([sys.executable, "-m", "build", *isolation, "--outdir", built, source], cwd=scratch)
    return sorted(built.iterdir())


def install_and_try(file: Path, python: str, place: Path, version: str, *, offline: bool) -> None:
    """Install a file in a new environment at `place` and use it there, away from the checkout."""
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
    environment |= {"PYTHONNOUSERSITE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    run([python, "-m", "venv", *(["--without-pip"] if offline else []), place], env=environment)
    options = []
    if offline:
        [site] = place.glob("lib/python*/site-packages")
        # Listed in a .pth, they come after what is installed here, and their own .pth files (such as our editable
        # install) are not read. Without --ignore-installed, pip would mistake that install for this one.
        (site / "beside.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
        options = ["--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed"]
    run([place / "bin" / "python", "-m", "pip", "install", "--quiet", *options, file], env=environment, cwd=place)
    outputs = [run([place / "bin" / "humor-env", *words], env=environment, cwd=place) for words in TRIED]
    if outputs[0].strip() != version:
        raise InvalidOption(
            f"{file.name} was installed, and `humor-env --version` says {outputs[0].strip()}, not {version}."
        )


def release(root: Path, out: Path, *, trial: bool, offline: bool) -> Iterator[str]:
    """Build, check and install; yield the lines to show. The files are put in `out` only if all of it succeeds."""
    missing = unready(root)
    if missing and not trial:
        raise InvalidOption("\n".join(missing))
    version = versions(root)["setup.cfg"]
    pythons = {name: interpreter(name) for name in declared_pythons(root)}
    if offline:
        pythons = {name: path for name, path in pythons.items() if path == sys.executable}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        yield f"Building {version} …"
        files = build(root, scratch, offline=offline)
        run([sys.executable, "-m", "twine", "check", "--strict", *files])
        for name, python in pythons.items():
            for file in files if python else ():
                yield f"Python {name}: pip install {file.name} …"
                place = scratch / f"{name}-{file.suffix[1:]}"
                install_and_try(file, str(python), place, version, offline=offline)
                shutil.rmtree(place)  # torch for CUDA is gigabytes
        out.mkdir(parents=True, exist_ok=True)
        files = [Path(shutil.copy2(file, out / file.name)) for file in files]
    tried = [name for name, python in pythons.items() if python]
    yield from summary(root, files, tried, missing, offline=offline)


def summary(
    root: Path, files: Sequence[Path], tried: Sequence[str], missing: Sequence[str], *, offline: bool
) -> Iterator[str]:
    """What was built, what was not tried, and the command that uploads it, if it is a release."""
    yield ""
    for file in files:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        yield f"{file}  {file.stat().st_size / 1e6:.1f} MB  SHA-256 {digest}"
    packages = " with the packages of this environment" if offline else " with the packages that pip installed"
    yield f"Checked by twine; installed and used on Python {', '.join(tried) or '(none)'}{packages}."
    if untried := [name for name in declared_pythons(root) if name not in tried]:
        why = "with --offline only this Python is used" if offline else f"there is no python{untried[0]} on the path"
        yield f"Not tried on Python {', '.join(untried)}: {why}."
    links = relative_links((root / "README.md").read_text(encoding="utf-8"))
    if links and not repository(root):
        yield (
            f"{_count(links, 'link')} of README.md (images too) will not work on PyPI, the first is {links[0]}. "
            "Add the repository to setup.cfg as `Source = https://…` under project_urls: the links will lead there."
        )
    if missing:
        yield from ("This was a trial. For a release:", *(f"- {sentence}" for sentence in missing))
    else:
        version = versions(root)["setup.cfg"]
        yield from (
            f"To upload: git tag v{version}, git push origin v{version}, and then",
            f"twine upload {' '.join(map(str, files))}",
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m humor_env.experiments.upkeep.release", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--trial", action="store_true", help="build and install even what is not ready for a release")
    parser.add_argument("--offline", action="store_true", help="use this environment's packages; only on its Python")
    parser.add_argument("--out", type=Path, default=Path("dist"), help="where to put the files (default: dist)")
    options = parser.parse_args(arguments)
    try:
        for line in release(ROOT, options.out, trial=options.trial, offline=options.offline):
            print(line, flush=True)
    except InvalidOption as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
