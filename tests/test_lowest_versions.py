"""The lowest versions of dependencies that setup.cfg declares, installed and tried. They were not true: typer 0.15
broke the command line, and transformers 5.23 wants tokenizers and safetensors that are newer than those that we named.

    HUMOR_ENV_LOWEST=1 pytest -n0 tests/test_lowest_versions.py        # three minutes

torch alone is left at the version that is installed: its wheels are gigabytes.
"""

import configparser
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LEFT_AS_IT_IS = {"torch"}
TRIED = ("test_env", "test_spaces", "test_registry", "test_student", "test_sft", "test_spec")


def declared() -> list[Requirement]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return [Requirement(line) for line in setup["options"]["install_requires"].split("\n") if line]


def lowest(requirement: Requirement) -> str:
    [bound] = [s for s in requirement.specifier if s.operator == ">="]
    return f"{requirement.name}=={bound.version}"


def pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def install(target: Path, wanted: list[str]) -> None:
    done = pip("install", "--quiet", "--no-deps", "--upgrade", "--target", str(target), *wanted)
    assert done.returncode == 0, done.stderr[-2000:]


def unmet(target: Path) -> list[str]:
    """What the packages in the folder ask for, and neither it nor this environment has."""
    here = {canonicalize_name(d.metadata["Name"]): d for d in metadata.distributions(path=[str(target)])}
    asked: dict[str, Requirement] = {}
    for distribution in here.values():
        for line in distribution.requires or []:
            found = Requirement(line)
            if found.marker is None or found.marker.evaluate({"extra": ""}):
                name = canonicalize_name(found.name)
                if name in asked:
                    found.specifier &= asked[name].specifier
                asked[name] = found
    missing = []
    for name, found in asked.items():
        try:
            version = here[name].version if name in here else metadata.version(name)
        except metadata.PackageNotFoundError:
            version = None
        if name not in LEFT_AS_IT_IS and (version is None or not found.specifier.contains(version, prereleases=True)):
            missing.append(f"{found.name}{found.specifier}")
    return missing


def test_what_is_declared_has_a_lowest_version():
    assert all(lowest(found) for found in declared())


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif("HUMOR_ENV_LOWEST" not in os.environ, reason="HUMOR_ENV_LOWEST=1 installs and tries them")
def test_the_lowest_versions_work_together(tmp_path):
    if pip("download", "--quiet", "--no-deps", "--retries", "0", "-d", str(tmp_path), "sniffio").returncode:
        pytest.skip("no package index can be reached")
    target = Path(os.environ.get("HUMOR_ENV_LOWEST_FOLDER", tmp_path / "lowest"))  # an existing one is reused
    ours = [lowest(found) for found in declared() if found.name not in LEFT_AS_IT_IS]
    install(target, ours)
    for _ in range(4):  # what these ask for asks for more
        missing = unmet(target)
        clashes = [
            line for line in missing if canonicalize_name(Requirement(line).name) in {f.name for f in declared()}
        ]
        assert not clashes, f"declared too low: others of the lowest versions want {', '.join(clashes)}"
        if not missing:
            break
        install(target, missing)
    environment = {**os.environ, "PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}
    files = [str(ROOT / "tests" / f"{name}.py") for name in TRIED]
    tried = subprocess.run(
        [sys.executable, "-m", "pytest", "-n0", "-q", "-m", "not slow and not gpu", *files],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert tried.returncode == 0, tried.stdout[-4000:]
    helped = subprocess.run(
        [sys.executable, "-m", "humor_env.experiments.commands.cli", "train", "--help"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "--dry-run" in helped.stdout, helped.stderr[-2000:]
