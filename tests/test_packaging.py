"""What is installed: the wheel holds every package and all data, and another distribution adds a critic by its name."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"humor_env": "humor_env", "rewards": "humor_env/rewards", "agents": "humor_env/agents"} | {
    "experiments": "humor_env/experiments"
}
pytestmark = pytest.mark.slow


def pip(*arguments):
    """pip without a network: the build tools are those of this environment."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def build(source, target):
    pip("wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(target), str(source))
    [wheel] = target.glob("*.whl")
    return wheel


def tracked():
    """The repository's files, as git knows them: what a clone has."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in listed.split("\0") if name and (ROOT / name).exists()]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy, so that no build folder is left in the checkout."""
    copy = tmp_path_factory.mktemp("source")
    for path in tracked():
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        (copy / path).write_bytes((ROOT / path).read_bytes())
    return copy


@pytest.fixture(scope="module")
def archive(source, tmp_path_factory):
    """The source archive."""
    folder = tmp_path_factory.mktemp("archive")
    code = f"from setuptools import build_meta; print(build_meta.build_sdist({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    [archive] = folder.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(archive, tmp_path_factory):
    """From the source archive, as `pip install` does with it: a file that is missing there is missing here."""
    return build(archive, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_all_packages_and_data(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        "/".join([FOLDERS[path.parts[0]], *path.parts[1:]])
        for path in tracked()
        if path.parts[0] in FOLDERS and path.suffix not in {".md", ".pyc"} and path.name != ".gitignore"
    }
    assert sorted(expected - inside) == []
    assert any(name.endswith("humor_env/data/LICENSE") for name in inside)
    assert {name.split("/")[0] for name in inside if ".dist-info" not in name} == {"humor_env"}


def test_the_wheel_names_its_licence_as_an_expression(wheel):
    """It stood in the old field `License`, which services read as free text."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        lines = archive.read(name).decode().splitlines()
    assert "License-Expression: Apache-2.0 AND CC-BY-4.0" in lines
    assert not [line for line in lines if line.startswith("License:")]


def test_the_source_archive_holds_no_tests_that_cannot_run(archive):
    """It held tests/test_*.py, and neither conftest.py nor what they import."""
    with tarfile.open(archive) as opened:
        inside = {name.partition("/")[2] for name in opened.getnames()}
    assert {"setup.cfg", "README.md", "humor_env/env.py", "rewards/rules.py"} <= inside
    assert not [name for name in inside if name.startswith("tests")]


def test_the_wheel_works_away_from_the_checkout(wheel, tmp_path, run_python):
    pip("install", "--quiet", "--no-deps", "--no-index", "--target", str(tmp_path / "site"), str(wheel))
    said = run_python(
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import gymnasium as gym, humor_env\n"
        "from humor_env.experiments.pocket import demo\n"
        "from humor_env.rewards import rules\n"
        "for module in (humor_env, rules, demo): print(module.__file__)\n"
        "for name in ('Paraphrase-v0', 'OneLiner-v0', 'Tokens-v0'):\n"
        "    env = gym.make('humor_env/' + name); env.reset(seed=0); env.step(env.action_space.sample())\n"
        "print(len(humor_env.load_prompts('everyday')))\n",
        PYTHONSAFEPATH="1",
    )
    *files, count = said.split()
    assert all(name.startswith(str(tmp_path / "site")) for name in files)
    assert int(count) >= 400


TINY = {
    "pyproject.toml": """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "dry-humor"
version = "1.0"

[project.entry-points."humor_env.critics"]
dry = "dry_humor:DryCritic"

[project.entry-points."humor_env.prompts"]
deserts = "dry_humor:make_deserts"

[tool.setuptools]
py-modules = ["dry_humor"]
""",
    "dry_humor.py": '''
from humor_env import Judgement, Prompt


class DryCritic:
    """Fewer exclamation marks are funnier."""

    name = "dry"

    def __init__(self, patience=1.0):
        self.patience = patience

    def __call__(self, jokes):
        return [Judgement("dry", self.patience / (1 + joke.text.count("!"))) for joke in jokes]


def make_deserts():
    return [Prompt("sand", "The desert was dry.")]
''',
}


def test_another_distribution_adds_a_critic_by_its_name(tmp_path, run_python):
    source = tmp_path / "dry-humor"
    source.mkdir()
    for name, text in TINY.items():
        (source / name).write_text(text)
    site = tmp_path / "site"
    pip("install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(site), str(source))
    said = run_python(
        "import gymnasium as gym, humor_env\n"
        "env = gym.make('humor_env/Paraphrase-v0', prompts='deserts', critic='dry', critic_options={'patience': 0.5})\n"
        "print(env.reset(seed=0)[0])\n"
        "print(env.step('Wow!')[1])\n"
        "entry = humor_env.registry.critics.entries()['dry']\n"
        "print(entry.origin)\n"
        "again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))\n"
        "again.reset(seed=0); print(again.step('Quite.')[1])\n"
        "try: gym.make('humor_env/Paraphrase-v0', critic='dri')\n"
        "except LookupError as problem: print(problem)\n",
        PYTHONPATH=str(site),
    )
    lines = said.splitlines()
    assert lines[:4] == ["The desert was dry.", "0.25", "dry-humor", "0.5"]
    assert "No critic is called 'dri'. Did you mean 'dry'?" in lines[4]
