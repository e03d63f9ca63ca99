"""The tool that puts mistakes into the source: on a toy project whose tests see some of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mutants import Lines, lay_out, make_mutants, seen_by

TOOL = Path(__file__).with_name("mutants.py")
SOURCE = '''"""A text with 1 < 2 in it."""

LIMIT = 3


def inside(x: int | None, low: int = 0) -> bool:
    if x is None:
        return False
    return low <= x < LIMIT
'''
TESTS = """from toy.parts.edge import inside


def test_inside():
    assert inside(1)
    assert not inside(3)
    assert inside(None) is False
"""


@pytest.fixture
def project(tmp_path):
    """`toy.parts` lies in a folder of another name, as our packages do."""
    (tmp_path / "setup.cfg").write_text("[options]\npackage_dir =\n    toy = toy\n    toy.parts = pieces\n")
    for folder in ("toy", "pieces", "tests"):
        (tmp_path / folder).mkdir()
    (tmp_path / "toy" / "__init__.py").write_text("")
    (tmp_path / "pieces" / "__init__.py").write_text("")
    (tmp_path / "pieces" / "edge.py").write_text(SOURCE)
    (tmp_path / "pieces" / "user.py").write_text("from toy.parts import quiet\n")
    (tmp_path / "pieces" / "quiet.py").write_text("A = 1\n")
    (tmp_path / "tests" / "test_much.py").write_text(TESTS)
    (tmp_path / "tests" / "test_edge.py").write_text(TESTS)
    (tmp_path / "tests" / "test_user.py").write_text("import toy.parts.user\n\n\ndef test_it():\n    pass\n")
    return tmp_path


def after(source):
    return [m.after for m in make_mutants("x.py", source)]


def test_mistakes_by_hand():
    assert after("a = b < 1\n") == ["a = (b <= 1)", "a = (b >= 1)", "a = b < (0)", "a = b < (2)"]
    assert after("a = b + c\n") == ["a = (b - c)"]
    assert after("a = f(b, c, d=e)\n") == ["a = (f(b, c))", "a = (f(c, b, d=e))"]
    assert after("a = b.detach()\n") == ["a = (b)"]
    assert after("a = min(b, c)\n") == ["a = (max(b, c))"]
    assert after("a = b[c:]\n") == ["a = (b[:])"]
    assert after("a = not b\n") == ["a = (b)"]
    assert after("if a:\n    b()\n") == ["if (not a):", "pass"]
    assert after("def f():\n    return a\n") == ["return None"]
    assert after("a = [b for b in c if b]\n") == ["a = ([b for b in c])"]
    assert after("a: int | None = b\n") == [], "an annotation does not run"
    assert after('"""1 < 2"""\nimport a\nb = "c"\nd = f"{e + 1}"\n') == []


def test_a_mutant_is_the_file_with_one_place_changed():
    for mutant in make_mutants("x.py", SOURCE):
        old, new = SOURCE.splitlines(), mutant.source.splitlines()
        assert sum(a != b for a, b in zip(old, new, strict=True)) == 1, mutant
        assert new[mutant.line - 1].strip() == mutant.after


def test_some_are_drawn_and_the_same_ones_again():
    every = {m.key for m in make_mutants("x.py", SOURCE)}
    some = [m.key for m in make_mutants("x.py", SOURCE, 5)]
    assert len(some) == 5 < len(every)
    assert set(some) < every
    assert some == [m.key for m in make_mutants("x.py", SOURCE, 5)]
    assert some != [m.key for m in make_mutants("x.py", SOURCE, 5, seed=1)]


def test_a_mutant_meets_the_quick_tests_that_go_through_its_statement(project):
    """The body of `if` is met by one test only; a default, which runs at import, by all that enter the function."""
    lines = Lines(project, project / "runs" / "lines.json")
    through = lambda seconds, *numbers: {"seconds": seconds, "lines": {"pieces/edge.py": list(numbers)}}  # noqa: E731
    tests = {
        "tests/test_much.py::a": through(0.1, 7, 8),
        "tests/test_edge.py::b": through(0.3, 7, 9),
        "tests/test_much.py::c": through(0.2, 7, 9),
        "tests/test_much.py::slow": through(9.0, 7, 8, 9),
        "tests/test_much.py::elsewhere": {"seconds": 0.1, "lines": {}},
    }
    lines.kept = {"tests/test_much.py": {"tests": tests}}
    chosen = {
        m.line: lines.tests_for(m, ["tests/test_much.py"], each=5.0, budget=5.0)
        for m in make_mutants("pieces/edge.py", SOURCE)
    }
    a, b, c = "tests/test_much.py::a", "tests/test_edge.py::b", "tests/test_much.py::c"
    assert chosen[9] == [b, c], "its own test file first, then the quickest"
    assert chosen[8] == [a]
    assert chosen[7] == [b, a, c]
    assert chosen[6] == [b, a, c]
    assert chosen[3] == [b, a, c]
    first = make_mutants("pieces/edge.py", SOURCE)[-1]
    assert lines.tests_for(first, ["tests/test_much.py"], each=5.0, budget=0.4) == [b]


def test_the_tests_that_see_a_file(project):
    assert seen_by(project, "pieces/edge.py") == ["tests/test_edge.py", "tests/test_much.py"]
    assert seen_by(project, "pieces/quiet.py") == ["tests/test_user.py"], "nothing imports it but user.py"


def test_the_overlay_differs_in_one_file(project, tmp_path):
    where = tmp_path / "overlay"
    place = lay_out(project, "pieces/edge.py", where)
    assert place == where / "toy" / "parts" / "edge.py"
    assert not place.exists()
    assert (where / "toy" / "parts" / "user.py").resolve() == project / "pieces" / "user.py"
    assert (where / "toy" / "__init__.py").resolve() == project / "toy" / "__init__.py"


def run(project, *options):
    command = [sys.executable, str(TOOL), "pieces/edge.py", "--root", str(project), *options]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env=os.environ | {"PYTHONPATH": str(project)}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_survivors_are_told_kept_and_run_again(project):
    """The tests say nothing of `low`: its default off by one is noticed by none, and so is < for <= at it."""
    told = run(project, "--workers", "2")
    survivors = told[told.index("pieces/edge.py:6") :]
    assert (
        "  - def inside(x: int | None, low: int = 0) -> bool:\n  + def inside(x: int | None, low: int = (1))"
        in survivors
    )
    assert "return (low < x < LIMIT)" in survivors
    kept = json.loads((project / "runs" / "mutants.json").read_text())
    outcomes = {one["after"]: one["outcome"] for one in kept.values()}
    assert outcomes["return (low <= x <= LIMIT)"] == "noticed"
    assert outcomes["if (x is not None):"] == "noticed"
    assert outcomes["return (low > x < LIMIT)"] == "noticed"
    assert told.splitlines()[-1].split()[:2] == ["pieces", str(len(kept))]
    assert (project / "pieces" / "edge.py").read_text() == SOURCE, "the file itself is never touched"
    # Nothing is run twice; after a test was added, only survivors are.
    assert "mutants," not in run(project)
    (project / "tests" / "test_edge.py").write_text(
        TESTS + "    assert inside(0) and inside(2)\n    assert not inside(-1)\n"
    )
    again = run(project, "--again")
    assert f"{sum(o == 'survived' for o in outcomes.values())} mutants" in again
    assert again.splitlines()[-1].split()[-1] == "100%"
    recorded = json.loads((project / "runs" / "lines.json").read_text())["tests/test_edge.py"]["tests"]
    assert recorded["tests/test_edge.py::test_inside"]["lines"] == {"pieces/edge.py": [7, 8, 9]}


def test_tests_that_fail_as_they_are_end_it(project):
    (project / "tests" / "test_edge.py").write_text("def test_it():\n    assert False\n")
    command = [sys.executable, str(TOOL), "pieces/edge.py", "--root", str(project)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert "its tests fail as they are" in done.stderr
