"""Small parts of upkeep and of the monitor's trials by hand: a release's sentences, an arena's shares, a chart."""

import hashlib
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from humor_env.experiments.drawing.charts import Line
from humor_env.experiments.pocket import monitor_trials
from humor_env.experiments.upkeep import arena_trials, release, site

SETUP = """[metadata]
version = 1.2.0
project_urls =
    Source = https://example.org/humor/
    Docs = https://example.org/docs
classifiers =
    Programming Language :: Python :: 3
    Programming Language :: Python :: 3.11
    Programming Language :: Python :: 3.12
"""


def project(folder, setup=SETUP, readme="# x\n"):
    folder.mkdir(exist_ok=True)
    (folder / "humor_env").mkdir(exist_ok=True)
    files = {"setup.cfg": setup, "README.md": readme, "humor_env/__init__.py": '__version__ = "1.2.0"\n'}
    files |= {"CITATION.cff": "version: 1.2.0\n", "CHANGELOG.md": "# x\n\n## Unreleased\n\n## 1.2.0\n\n- New.\n"}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


# A release


def test_versions_pythons_and_the_address_are_read(tmp_path):
    root = project(tmp_path / "a")
    assert release.versions(root) == dict.fromkeys(
        ("setup.cfg", "humor_env/__init__.py", "CITATION.cff", "CHANGELOG.md"), "1.2.0"
    )
    assert release.declared_pythons(root) == ["3.11", "3.12"]
    assert release.repository(root) == "https://example.org/humor/"
    bare = project(tmp_path / "b", "[metadata]\nname = x\n")
    (bare / "CITATION.cff").write_text('version: "1.3"\n')
    (bare / "CHANGELOG.md").write_text("## Unreleased\n")
    assert list(release.versions(bare).values()) == ["none", "1.2.0", "1.3", "none"]
    assert release.repository(bare) is None
    assert [release._count(["x"] * n, "file") for n in (0, 1, 2)] == ["0 files", "1 file", "2 files"]


def test_links_outside_of_code_lead_to_the_version():
    page = "[a](docs/a.md) ![b](b.svg) [c](https://x.org) [d](#here)\n```\n[e](e.md)\n```\n[f](f.md#why)"
    assert release.relative_links(page) == ["docs/a.md", "b.svg", "f.md#why"]
    put = release.with_absolute_links(page, "https://example.org/h/", "1.2.0")
    assert put == (
        "[a](https://example.org/h/blob/v1.2.0/docs/a.md) ![b](https://example.org/h/raw/v1.2.0/b.svg) "
        "[c](https://x.org) [d](#here)\n```\n[e](e.md)\n```\n[f](https://example.org/h/blob/v1.2.0/f.md#why)"
    )


def test_what_keeps_a_checkout_from_release(tmp_path, monkeypatch):
    root = project(tmp_path / "a")
    changed = []
    monkeypatch.setattr(release, "run", lambda command, *, cwd: "".join(f"{line}\n" for line in changed))
    assert release.unready(root) == []
    changed += [" M README.md", "?? new.txt"]
    (root / "CITATION.cff").write_text("version: 1.1.0\n")
    (root / "CHANGELOG.md").write_text("# x\n\n## Unreleased\n\n- One.\n- Two.\n\n## 1.2.0\n\n- Old.\n")
    assert release.unready(root) == [
        "2 files not committed, the first is README.md: commit or remove.",
        "The files name different versions: 1.2.0 in setup.cfg, 1.2.0 in humor_env/__init__.py, 1.1.0 in CITATION.cff, "
        "1.2.0 in CHANGELOG.md. Write the new version into each.",
        'CHANGELOG.md has 2 lines under "Unreleased": move them under the new version.',
    ]


def test_the_summary_of_a_release(tmp_path):
    root = project(tmp_path / "a", readme="[a](a.md)")
    file = tmp_path / "x.whl"
    file.write_bytes(b"1" * 1_250_000)
    said = list(release.summary(root, [file], ["3.11"], [], offline=False))
    assert said == [
        "",
        f"{file}  1.2 MB  SHA-256 {hashlib.sha256(file.read_bytes()).hexdigest()}",
        "Checked by twine; installed and used on Python 3.11 with the packages that pip installed.",
        "Not tried on Python 3.12: there is no python3.12 on the path.",
        "To upload: git tag v1.2.0, git push origin v1.2.0, and then",
        f"twine upload {file}",
    ]
    bare = project(tmp_path / "b", SETUP.replace("Source", "Home"), "[a](a.md) ![b](b.svg)")
    said = list(release.summary(bare, [], [], ["Not yet."], offline=True))
    assert said == [
        "",
        "Checked by twine; installed and used on Python (none) with the packages of this environment.",
        "Not tried on Python 3.11, 3.12: with --offline only this Python is used.",
        "2 links of README.md (images too) will not work on PyPI, the first is a.md. Add the repository to setup.cfg "
        "as `Source = https://…` under project_urls: the links will lead there.",
        "This was a trial. For a release:",
        "- Not yet.",
    ]
    said = list(release.summary(root, [], ["3.11", "3.12"], [], offline=False))
    assert not [line for line in said if line.startswith("Not tried")]


def test_a_python_that_does_not_start_is_none(tmp_path, monkeypatch):
    assert release.interpreter(f"{sys.version_info.major}.{sys.version_info.minor}") == sys.executable
    for name, code in (("python9.1", 0), ("python9.2", 1)):
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [release.interpreter(f"9.{n}") for n in (1, 2, 3)] == [str(tmp_path / "python9.1"), None, None]


# The site


def test_new_pages_come_after_those_of_their_folder(tmp_path):
    for name, text in {
        "algorithms/b.md": "# B `b`\nmore",
        "algorithms/a.md": "# A",
        "cards/c.md": "## Critic card: c",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    config = '  { "I" = "algorithms/index.md" },\n  { "A" = "algorithms/a.md" },\nend\n'
    assert site.with_all_pages(config, tmp_path) == (
        '  { "I" = "algorithms/index.md" },\n  { "A" = "algorithms/a.md" },\n  { "B b" = "algorithms/b.md" },\nend\n'
    )
    assert site._title(tmp_path / "cards" / "c.md") == "c"


# The arena's trials


def test_shares_of_answers_are_told_for_each_seed(monkeypatch):
    asked = []

    def judged(taste, choose, answers, goal=None, seed=0):
        asked.append((dict(taste), choose, answers, goal, seed))
        return (600, 0.5 + seed) if choose == "random" else (150 * (seed + 1), 0.0)

    monkeypatch.setattr(arena_trials, "judged", judged)
    assert arena_trials.shares((0, 2), 200, 2) == [0.75, 1.5]
    taste = {"system 0": 0.0, "system 1": 2.0}
    assert asked == [
        (taste, "random", 200, None, 0),
        (taste, "adaptive", 600, 0.5, 0),
        (taste, "random", 200, None, 1),
        (taste, "adaptive", 600, 1.5, 1),
    ]


def test_the_widest_gap_is_between_neighbours():
    """Of three systems the first and the last met often, and neither met the middle one more than twice each way."""
    wins = np.array([[0.0, 2.0, 40.0], [2.0, 0.0, 2.0], [10.0, 2.0, 0.0]])
    t = arena_trials.strengths(wins)
    _, covariance = arena_trials.information(wins + wins.T, t)
    order = np.argsort(t)
    gaps = []
    for i, j in ((order[0], order[1]), (order[1], order[2])):
        gaps.append(covariance[i, i] + covariance[j, j] - 2 * covariance[i, j])
    assert arena_trials.widest_gap(SimpleNamespace(wins=wins)) == pytest.approx(1.96 * math.sqrt(max(gaps)))


def test_a_trial_stops_at_its_goal_after_ten_answers_or_at_the_last():
    taste = {"a": 0.0, "b": 3.0}
    count, gap = arena_trials.judged(taste, "random", 25)
    assert count == 25
    first, at_goal = arena_trials.judged(taste, "random", 100, goal=1e9)
    assert first == 10 and at_goal > gap
    assert arena_trials.judged(taste, "random", 15, goal=0.0)[0] == 15
    assert arena_trials.judged(taste, "random", 25) == (count, gap)
    assert arena_trials.judged(taste, "random", 25, seed=1)[1] != gap


# The monitor's trials


def test_the_cells_of_the_monitors_trials():
    made = monitor_trials.make_cells(Path("out"), [0, 3], ["a glacier", "a fair crowd"], 10)
    assert [(c.name, str(c.folder), c.seed, c.needs) for c in made] == [
        ("imitation/0", "out/seed-0/imitation", 0, ()),
        ("a glacier/0", "out/seed-0/a-glacier", 0, ("imitation/0",)),
        ("a fair crowd/0", "out/seed-0/a-fair-crowd", 0, ("imitation/0",)),
        ("imitation/3", "out/seed-3/imitation", 3, ()),
        ("a glacier/3", "out/seed-3/a-glacier", 3, ("imitation/3",)),
        ("a fair crowd/3", "out/seed-3/a-fair-crowd", 3, ("imitation/3",)),
    ]
    assert [c.job.partition(":")[2] for c in made[:2]] == ["imitate", "trial"]
    assert made[1].spec == {"critic": "a glacier", "steps": 10, "every": 2, "lines": 200}
    assert monitor_trials.make_cells(Path("out"), [0], ["a glacier"])[1].spec["steps"] == 80


@pytest.mark.parametrize(
    ("count", "of", "share"),
    [(5, 100, 0.0), (10, 100, 0.5), (15, 100, 1.0), (3, 100, 0.0), (40, 100, 1.0), (0, 0, 0.0)],
)
def test_a_share_between_none_and_full(count, of, share):
    assert monitor_trials._share_above(count, of, 0.05, 0.15) == pytest.approx(share)


def test_each_seed_is_bold_until_its_alarm(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        monitor_trials, "line_chart", lambda lines, **how: drawn.append((lines, how["title"])) or "<svg></svg>"
    )
    monkeypatch.setattr(monitor_trials, "standalone", lambda svg: svg)
    row = {"critic": "x", "seed": 1, "steps": [0, 2, 4], "exact": [0.0, 0.5, 1.0], "limits": [[], ["fall"], ["fall"]]}
    monitor_trials.chart([row, row | {"critic": "y"}, row | {"seed": 2, "limits": [[], [], []]}], "x")
    [(lines, title)] = drawn
    smooth = [0.25, 0.5, 0.75]
    assert lines == [
        Line("seed 1", [0.0, 2.0, 4.0], smooth, faint=True),
        Line("seed 1", [0.0, 2.0], smooth[:2]),
        Line("seed 2", [0.0, 2.0, 4.0], smooth, faint=True),
        Line("seed 2", [0.0, 2.0, 4.0], smooth),
    ]
    assert title == "Paid for x: exact score until the alarm"
