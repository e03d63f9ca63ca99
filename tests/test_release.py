"""`make release`: what stands in the way of a release, and the whole way with a small project and no network."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import humor_env
from humor_env.errors import InvalidOption
from humor_env.experiments.upkeep import release

ROOT = Path(__file__).resolve().parent.parent

# All that the command asks of a checkout. Its `humor-env` reads a data file, as ours does.
PROJECT = {
    "pyproject.toml": '[build-system]\nrequires = ["setuptools>=77"]\nbuild-backend = "setuptools.build_meta"\n',
    "setup.cfg": f"""[metadata]
name = humor-env
version = 0.2.0
description = small
long_description = file: README.md
long_description_content_type = text/markdown
project_urls =
    Source = https://example.org/humor
classifiers =
    Programming Language :: Python :: 3
    Programming Language :: Python :: 3.{sys.version_info.minor}
    Programming Language :: Python :: 3.99

[options]
packages = humor_env

[options.package_data]
humor_env = *.jsonl

[options.entry_points]
console_scripts =
    humor-env = humor_env:main
""",
    "humor_env/__init__.py": """__version__ = "0.2.0"


def main():
    import pathlib
    import sys

    file = pathlib.Path(__file__).with_name("prompts.jsonl")
    print(__version__ if sys.argv[1] == "--version" else file.read_text())
""",
    "humor_env/prompts.jsonl": "{}\n",
    "README.md": "# Humor\n\n[How](docs/how.md#why), [who](https://example.org), ![what](docs/a.svg)\n",
    "CITATION.cff": "cff-version: 1.2.0\nversion: 0.2.0\n",
    "CHANGELOG.md": "# Changelog\n\n## Unreleased\n\n## 0.2.0\n\n- New.\n\n## 0.1.0\n\n- Old.\n",
}


@pytest.fixture
def project(tmp_path):
    root = tmp_path / "project"
    for name, text in PROJECT.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git(root, "init", "--quiet")
    commit(root)
    return root


def git(root, *words):
    settings = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *settings, *words], cwd=root, check=True)


def commit(root):
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "All")


def rewrite(file, old, new):
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def test_all_files_name_one_version():
    """CITATION.cff was compared with nothing."""
    named = release.versions(ROOT)
    assert named == dict.fromkeys(named, humor_env.__version__)
    assert set(named) == {"setup.cfg", "humor_env/__init__.py", "CITATION.cff", "CHANGELOG.md"}


def test_nothing_stands_in_the_way_of_a_sound_checkout(project):
    assert release.unready(project) == []


def test_a_checkout_with_changes_is_refused(project):
    (project / "note.txt").write_text("")
    assert release.unready(project) == ["1 file not committed, the first is note.txt: commit or remove."]


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("setup.cfg", "version = 0.2.0", "version = 0.2.1"),
        ("humor_env/__init__.py", '"0.2.0"', '"0.2.1"'),
        ("CITATION.cff", "\nversion: 0.2.0", "\nversion: 0.2.1"),
        ("CHANGELOG.md", "## 0.2.0", "## 0.2.1"),
    ],
)
def test_versions_that_differ_are_refused(project, file, old, new):
    rewrite(project / file, old, new)
    commit(project)
    [sentence] = release.unready(project)
    assert sentence.startswith("The files name different versions: ")
    assert f"0.2.1 in {file}" in sentence and sentence.count("0.2.0 in ") == 3


def test_a_version_that_is_missing_is_said(project):
    rewrite(project / "CITATION.cff", "\nversion: 0.2.0", "")
    commit(project)
    assert "none in CITATION.cff" in release.unready(project)[0]


def test_changes_that_are_still_unreleased_are_refused(project):
    rewrite(project / "CHANGELOG.md", "## Unreleased\n", "## Unreleased\n\n- One\n  thing.\n- More.\n")
    commit(project)
    assert release.unready(project) == ['CHANGELOG.md has 3 lines under "Unreleased": move them under the new version.']


def test_a_refused_release_builds_nothing(project, tmp_path):
    rewrite(project / "CITATION.cff", "\nversion: 0.2.0", "\nversion: 0.2.1")
    with pytest.raises(InvalidOption, match=r"(?s)not committed.*different versions"):
        list(release.release(project, tmp_path / "dist", trial=False, offline=True))
    assert not (tmp_path / "dist").exists()


def test_links_of_the_page_lead_to_the_files_of_the_version():
    page = (
        "[a](docs/a.md#b) ![p](docs/p.svg) [c](https://example.org/c) [d](#d) [e](mailto:e@example.org)\n"
        "```python\nx[0](y)\n```\n[f](f.md)\n"
    )
    assert release.relative_links(page) == ["docs/a.md#b", "docs/p.svg", "f.md"]
    assert release.with_absolute_links(page, "https://example.org/r/", "1.2") == (
        "[a](https://example.org/r/blob/v1.2/docs/a.md#b) ![p](https://example.org/r/raw/v1.2/docs/p.svg) "
        "[c](https://example.org/c) [d](#d) [e](mailto:e@example.org)\n"
        "```python\nx[0](y)\n```\n[f](https://example.org/r/blob/v1.2/f.md)\n"
    )


def test_every_declared_python_is_looked_for(monkeypatch, tmp_path):
    setup = release.read_setup(ROOT)
    pythons = release.declared_pythons(ROOT)
    assert pythons == ["3.11", "3.12", "3.13"]
    assert setup["options"]["python_requires"] == f">={pythons[0]}"
    for version, code in {
        "3.98": 0,
        "3.99": 127,
    }.items():  # the second as pyenv's, for a Python that is not switched on
        (tmp_path / f"python{version}").write_text(f"#!/bin/sh\nexit {code}\n")
        (tmp_path / f"python{version}").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert release.interpreter(f"3.{sys.version_info.minor}") == sys.executable
    assert release.interpreter("3.98") == str(tmp_path / "python3.98")
    assert release.interpreter("3.99") is release.interpreter("3.97") is None


@pytest.mark.slow
def test_a_release_is_built_checked_installed_and_said(project, tmp_path):
    (project / "humor_env" / "left.jsonl").write_text("not tracked")
    (project / ".gitignore").write_text("left.jsonl\n")
    commit(project)
    lines = list(release.release(project, tmp_path / "dist", trial=False, offline=True))
    wheel, source = sorted((tmp_path / "dist").iterdir())
    assert (wheel.name, source.name) == ("humor_env-0.2.0-py3-none-any.whl", "humor_env-0.2.0.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        assert "humor_env/prompts.jsonl" in archive.namelist()
        assert "humor_env/left.jsonl" not in archive.namelist()
        page = archive.read("humor_env-0.2.0.dist-info/METADATA").decode()
    assert "[How](https://example.org/humor/blob/v0.2.0/docs/how.md#why)" in page
    with tarfile.open(source) as archive:
        assert "humor_env-0.2.0/humor_env/left.jsonl" not in archive.getnames()
    said = "\n".join(lines)
    this = f"3.{sys.version_info.minor}"
    assert f"Python {this}: pip install {wheel.name}" in said and f"Python {this}: pip install {source.name}" in said
    assert len(set(re.findall(r"SHA-256 ([0-9a-f]{64})$", said, re.MULTILINE))) == 2
    assert "Not tried on Python 3.99: with --offline only this Python is used." in lines
    assert lines[-1] == f"twine upload {wheel} {source}"
    assert "trial" not in said and "PyPI" not in said


@pytest.mark.slow
def test_what_does_not_run_where_it_is_installed_is_no_release(project, tmp_path):
    """The data file is not in the package: in the checkout it is found all the same. A trial says what is missing."""
    rewrite(project / "setup.cfg", "humor_env = *.jsonl", "humor_env = *.toml")
    with pytest.raises(InvalidOption, match=r"(?s)humor-env prompts` failed:.*prompts\.jsonl"):
        list(release.release(project, tmp_path / "dist", trial=True, offline=True))
    assert not (tmp_path / "dist").exists()
