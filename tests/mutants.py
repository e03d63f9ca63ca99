"""Which lines could be wrong without a test noticing? Small mistakes are put into a copy, one at a time, and tests run.

    python tests/mutants.py agents/ppo.py --limit 40 --workers 2
    python tests/mutants.py agents rewards --per-file 8  # eight of each file
    python tests/mutants.py humor_env/llm --again        # survivors once more, after tests were added

A mutant is the source with one mistake: a comparison turned, + for -, a constant off by one, a condition negated, a
statement left out, arguments exchanged, and so on. It is imported from a folder of links in which the one file differs;
the tree itself is never written to. Each test file is run once as it is, and the lines that each of its quick tests
goes through are kept in `runs/lines.json`; a mutant then meets only the tests that go through its line, those of
`tests/test_NAME.py` first. Results are kept in `runs/mutants.json` as they come, so that a run that was cut goes on.
A survivor is either a missing test or an equal program: read it.
"""

from __future__ import annotations

import argparse
import ast
import configparser
import contextlib
import copy
import functools
import hashlib
import importlib
import inspect
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, FunctionType, MemberDescriptorType, ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any", "amin": "amax", "amax": "amin"}
WITHOUT = {"abs", "clamp", "clamp_", "clone", "cpu", "detach", "float", "round", "sorted", "strip"}  # x.f(…) or f(x): x


@dataclass(frozen=True)
class Mutant:
    file: str  # relative to the root
    line: int
    before: str  # the lines that differ
    after: str
    source: str  # of the whole file
    key: str


# -- making them ------------------------------------------------------------------------------------------------------


def make_mutants(file: str, source: str, limit: int | None = None, seed: int = 0) -> list[Mutant]:
    """All mutants of a file, or `limit` of them drawn at random, from top to bottom."""
    starts = [0]
    raw = source.encode()
    for line in raw.split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)
    made: dict[str, Mutant] = {}
    tree = ast.parse(source)
    unchanged = ast.dump(tree)
    changes = list(_changes(tree))
    if limit is not None:
        random.Random(f"{seed} {file}").shuffle(changes)
    for node, new in changes:
        if limit is not None and len(made) >= limit:
            break
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        changed = (raw[:begin] + new.encode() + raw[end:]).decode()
        try:
            if ast.dump(ast.parse(changed)) == unchanged:
                continue
        except SyntaxError:
            continue
        key = hashlib.sha256(f"{file}\n{changed}".encode()).hexdigest()[:16]
        before, after = _difference(source, changed)
        made.setdefault(key, Mutant(file, node.lineno, before, after, changed, key))
    return sorted(made.values(), key=lambda m: (m.line, m.after))


def _difference(old: str, new: str) -> tuple[str, str]:
    a, b = old.split("\n"), new.split("\n")
    while a and b and a[0] == b[0]:
        a, b = a[1:], b[1:]
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    return " ".join(x.strip() for x in a), " ".join(x.strip() for x in b)


def _changes(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Nodes, and the text to put in their place."""
    for node in _visited(tree):
        if isinstance(node, ast.If):
            yield node.test, f"({ast.unparse(_negated(node.test))})"
        for new in _expressions(node) if isinstance(node, ast.expr) else _statements(node):
            text = ast.unparse(new)
            yield node, f"({text})" if isinstance(node, ast.expr) else text


def _visited(node: ast.AST) -> Iterator[ast.AST]:
    """All that runs and means something: no annotations, no texts, no format strings."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, (ast.JoinedStr, ast.Import, ast.ImportFrom)):
                if hasattr(child, "lineno"):
                    yield child
                yield from _visited(child)


def _with(node: ast.AST, **fields: object) -> ast.AST:
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def _negated(test: ast.expr) -> ast.expr:
    return (
        test.operand if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not) else ast.UnaryOp(ast.Not(), test)
    )


def _expressions(node: ast.expr) -> Iterator[ast.AST]:
    match node:
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                for other in COMPARISONS[type(op)]:
                    yield _with(node, ops=[*ops[:i], other(), *ops[i + 1 :]])
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            yield _with(node, op=OPERATORS[type(op)]())
        case ast.BoolOp(op=op, values=values):
            yield _with(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())
            for i in range(len(values)):
                rest = values[:i] + values[i + 1 :]
                yield rest[0] if len(rest) == 1 else _with(node, values=rest)
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert(), operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
            if value:
                yield ast.Constant(value - 1)
        case ast.Constant(value=float(value)):
            yield ast.Constant(value * 2 if value else 1.0)
        case ast.IfExp(test=test):
            yield _with(node, test=_negated(test))
        case ast.Subscript(slice=ast.Slice() as cut):
            for bound in ("lower", "upper", "step"):
                if getattr(cut, bound) is not None:
                    yield _with(node, slice=_with(cut, **{bound: None}))
        case ast.ListComp(generators=parts) | ast.SetComp(generators=parts) | ast.GeneratorExp(generators=parts):
            for i, part in enumerate(parts):
                for condition in part.ifs:
                    rest = [c for c in part.ifs if c is not condition]
                    yield _with(node, generators=[*parts[:i], _with(part, ifs=rest), *parts[i + 1 :]])
        case ast.Call():
            yield from _calls(node)


def _calls(node: ast.Call) -> Iterator[ast.AST]:
    function, args = node.func, node.args
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name in FUNCTIONS:
        field = "attr" if isinstance(function, ast.Attribute) else "id"
        yield _with(node, func=_with(function, **{field: FUNCTIONS[name]}))
    if name in WITHOUT and isinstance(function, ast.Attribute):
        yield function.value
    elif name in WITHOUT and args:
        yield args[0]
    if (
        len(args) >= 2
        and not any(isinstance(a, ast.Starred) for a in args[:2])
        and name not in ("isinstance", *FUNCTIONS)
    ):
        yield _with(node, args=[args[1], args[0], *args[2:]])
    for i in range(len(node.keywords)):
        yield _with(node, keywords=node.keywords[:i] + node.keywords[i + 1 :])


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield ast.Return(ast.Constant(None))
        case ast.AugAssign(op=op):
            yield ast.Pass()
            if type(op) in OPERATORS:
                yield _with(node, op=OPERATORS[type(op)]())
        case ast.Expr(value=value) if not isinstance(value, (ast.Constant, ast.Yield, ast.YieldFrom)):
            yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield ast.Pass()
        case ast.Raise() | ast.Continue() | ast.Break() | ast.Delete():
            yield ast.Pass()


# -- the tree they are imported from, and the tests that see them -----------------------------------------------------


@functools.cache
def packages(root: Path) -> dict[str, Path]:
    """Package names and their folders, as `setup.cfg` maps them."""
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg")
    lines = config.get("options", "package_dir").split("\n")
    return {name.strip(): root / folder.strip() for name, _, folder in (x.partition("=") for x in lines if x.strip())}


def module_name(root: Path, file: str) -> str:
    found = [(name, folder) for name, folder in packages(root).items() if (root / file).is_relative_to(folder)]
    name, folder = max(found, key=lambda pair: len(pair[1].parts))
    parts = (root / file).relative_to(folder).with_suffix("").parts
    return ".".join((name, *(p for p in parts if p != "__init__")))


def lay_out(root: Path, file: str, where: Path) -> Path:
    """Links to all packages, and real folders on the way to `file`; returns where the mutated file belongs."""
    for name, folder in sorted(packages(root).items()):
        place = where.joinpath(*name.split("."))
        place.mkdir(parents=True, exist_ok=True)
        target = root / file
        on_the_way = target.relative_to(folder).parts if target.is_relative_to(folder) else ()
        for i in range(max(1, len(on_the_way))):
            inner = place.joinpath(*on_the_way[:i])
            inner.mkdir(exist_ok=True)
            for child in folder.joinpath(*on_the_way[:i]).iterdir():
                if child.name != "__pycache__" and child.name not in on_the_way[i : i + 1]:
                    (inner / child.name).symlink_to(child)
        if on_the_way:
            found = place.joinpath(*on_the_way)
    return found


@functools.cache
def imported(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it (and names taken from them, which may be modules)."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def seen_by(root: Path, file: str) -> list[str]:
    """The test files that can see `file`: its own, then those that import it; else those that import its importers."""
    name, stem = module_name(root, file), Path(file).stem
    tests = sorted((root / "tests").glob("test_*.py"))
    seen = {path: imported(path) for path in tests}
    own = [path for path in tests if path.stem == f"test_{stem}"]
    others = [path for path in tests if name in seen[path] and path not in own]
    if not own and not others:
        sources = [path for folder in packages(root).values() for path in folder.rglob("*.py")]
        users = {module_name(root, str(p.relative_to(root))) for p in sources if name in imported(p)}
        others = [path for path in tests if seen[path] & users]
    return [str(path.relative_to(root)) for path in own + others]


# -- the lines that each test goes through ----------------------------------------------------------------------------


class Recorder:
    """A pytest plugin: for each test that passed its seconds, and the lines of our files that it went through.

    What a fixture that is made once does is counted for every test that asks for it. Lines in other processes are not
    seen; neither are lines that ran at import.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lines: dict[str, set[tuple[str, int]]] = {}
        self.fixtures: dict[str, set[tuple[str, int]]] = {}
        self.seconds: dict[str, float] = {}
        self.began = 0.0
        self.now: set[tuple[str, int]] = set()
        self.names: dict[str, str | None] = {}
        self.folders = [str(folder) for folder in packages(root).values()]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.now = self.lines[nodeid] = set()
        self.began = time.process_time()
        threading.settrace(self._enter)
        sys.settrace(self._enter)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef) -> Iterator[None]:
        before = self.now
        if fixturedef.scope != "function":
            self.now = self.fixtures.setdefault(fixturedef.argname, set())
        yield
        self.now = before

    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        for name in item.fixturenames:
            self.now |= self.fixtures.get(name, set())

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = time.process_time() - self.began  # others may be busy on this machine
        if not report.passed:
            self.lines.pop(report.nodeid, None)

    def _enter(self, frame: FrameType, event: str, arg: object) -> Callable | None:
        path = frame.f_code.co_filename
        if path not in self.names:
            real = os.path.realpath(path)
            ours = any(real.startswith(folder + os.sep) for folder in self.folders)
            self.names[path] = os.path.relpath(real, self.root) if ours else None
        return self._line if self.names[path] else None

    def _line(self, frame: FrameType, event: str, arg: object) -> Callable:
        self.now.add((self.names[frame.f_code.co_filename], frame.f_lineno))
        return self._line

    def write(self, path: Path) -> None:
        found = {}
        for test, lines in self.lines.items():
            by_file: dict[str, list[int]] = {}
            for file, line in sorted(lines):
                by_file.setdefault(file, []).append(line)
            found[test] = {"seconds": round(self.seconds[test], 2), "lines": by_file}
        folders = tuple(os.path.realpath(p.parent) + os.sep for p in (Path(pytest.__file__).parent, Path(os.__file__)))
        modules = [
            name
            for name, module in list(sys.modules.items())
            if os.path.realpath(getattr(module, "__file__", None) or "").startswith(folders)
        ]
        path.write_text(json.dumps({"tests": found, "modules": modules}))


class Lines:
    """What was recorded, test file by test file; a test file that changed is recorded again."""

    def __init__(self, root: Path, path: Path) -> None:
        self.root, self.path = root, path
        self.kept: dict[str, dict] = json.loads(path.read_text()) if path.is_file() else {}

    def record(self, test: str, file: str) -> None:
        text = (self.root / test).read_text(encoding="utf-8")
        state = hashlib.sha256(text.encode()).hexdigest()[:16]
        if self.kept.get(test, {}).get("state") == state:
            return
        preload(self.root, [test])
        with tempfile.TemporaryDirectory(prefix="lines-") as folder:
            found, log = Path(folder, "lines"), Path(folder, "log")
            lay_out(self.root, file, Path(folder, "as-it-is")).symlink_to(self.root / file)
            wait({start(self.root, Path(folder, "as-it-is"), [test], log, record=found): time.monotonic() + 1200})
            seen = json.loads(found.read_text()) if found.is_file() else {"tests": {}, "modules": []}
            tests, told = seen["tests"], log.read_text()
            if not tests and " deselected" not in told:
                raise SystemExit(f"{test}: its tests fail as they are:\n{told[-2000:]}")
            self.kept[test] = {"state": state} | seen
        print(f"{test}: {len(tests)} tests, {sum(t['seconds'] for t in tests.values()):.0f} s", flush=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.kept))

    def tests_for(self, mutant: Mutant, files: Sequence[str], each: float, budget: float) -> list[str]:
        """Quick tests that go through the changed statement: those of its own test file first, then the quickest."""
        tests = {name: t for file in files for name, t in self.kept[file]["tests"].items() if t["seconds"] <= each}
        source = (self.root / mutant.file).read_text(encoding="utf-8")
        for wanted in _lines_about(ast.parse(source), mutant.line):
            through = [n for n, t in tests.items() if wanted & set(t["lines"].get(mutant.file, ()))]
            if through:
                break
        else:
            through = list(tests)
        own = f"tests/test_{Path(mutant.file).stem}.py::"
        through.sort(key=lambda name: (not name.startswith(own), tests[name]["seconds"], name))
        chosen, total = [], 0.0
        for name in through:
            total += tests[name]["seconds"]
            if total > budget and chosen:
                break
            chosen.append(name)
        return chosen


def _lines_about(tree: ast.Module, line: int) -> list[set[int]]:
    """Lines that a test goes through when it meets `line`: the statement's, else its function's, else the file's."""
    around = [n for n in ast.walk(tree) if isinstance(n, ast.stmt) and n.lineno <= line <= n.end_lineno]
    found = []
    functions = [n for n in around if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    if functions:
        body = set(range(functions[-1].body[0].lineno, functions[-1].end_lineno + 1))
        inner = around[-1]
        if inner is not functions[-1]:
            last = inner.body[0].lineno - 1 if getattr(inner, "body", None) else inner.end_lineno
            found.append(set(range(inner.lineno, max(last, inner.lineno) + 1)))
        found.append(body)
    return [*found, set(range(1, 100_000))]


# -- running ----------------------------------------------------------------------------------------------------------


def preload(root: Path, tests: Sequence[str]) -> None:
    """Import what the tests, and our modules behind them, take from other projects: once, so that no run need."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ.setdefault(name, "1")
    folders = packages(root)
    sources = {module_name(root, str(p.relative_to(root))): p for f in folders.values() for p in f.rglob("*.py")}
    sources |= {p.stem: p for p in (root / "tests").glob("*.py") if p != Path(__file__)}
    waiting, seen = ["conftest", *(Path(test).stem for test in tests)], set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in sources:
            continue
        seen.add(name)
        for node in ast.parse(sources[name].read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            ours = [n for n in names if n in sources or n.partition(".")[0] in folders]
            waiting += ours
            if not ours and "__future__" not in names:
                with contextlib.suppress(Exception):
                    exec(compile(ast.Module([node], []), str(sources[name]), "exec"), {})


def start(root: Path, where: Path, tests: Sequence[str], log: Path, record: Path | None = None) -> int:
    """The tests in a child process that imports from `where`; returns its id."""
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, 1)
        os.dup2(target, 2)
        os.chdir(root)
        os.environ["PYTHONPATH"] = str(where)
        sys.path[:] = [str(where), *(p for p in sys.path if Path(p or ".").resolve() not in (root, root / "tests"))]
        sys.path_importer_cache.clear()
        options = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--tb=line", "-m", "not slow and not gpu"]
        recorder = Recorder(root)
        code = int(pytest.main([*options, *([] if record else ["-x"]), *tests], plugins=[recorder] if record else []))
        if record:
            sys.settrace(None)
            recorder.write(record)
        os._exit(code)
    except BaseException:
        os._exit(70)


def wait(children: dict[int, float]) -> tuple[int, str]:
    """The next child to end, and how: "survived", "noticed" or "timeout". `children` maps ids to deadlines."""
    while True:
        for child, deadline in children.items():
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                with contextlib.suppress(ProcessLookupError):  # what a test left running
                    os.killpg(child, signal.SIGKILL)
                return child, "survived" if os.waitstatus_to_exitcode(status) == 0 else "noticed"
            if time.monotonic() > deadline:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return child, "timeout"
        time.sleep(0.05)


def try_out(root: Path, mutants: Sequence[Mutant], results: Results, lines: Lines, options: argparse.Namespace) -> None:
    """Run the tests on every mutant of one file, and note what came of it."""
    file = mutants[0].file
    seen = options.tests or [test for test in seen_by(root, file) if Path(test).name not in options.without]
    for test in seen:
        lines.record(test, file)
    chosen = {m.key: lines.tests_for(m, seen, options.each, options.budget) for m in mutants}
    preload(root, sorted({name.partition("::")[0] for names in chosen.values() for name in names}))
    for name in dict.fromkeys(name for test in seen for name in lines.kept[test].get("modules", ())):
        with contextlib.suppress(Exception):  # what is imported late, by the first pass of a model: seconds in each run
            importlib.import_module(name)
    print(f"{file}: {len(mutants)} mutants, {', '.join(seen)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        places = [Path(folder, str(i)) for i in range(options.workers)]
        targets = [lay_out(root, file, place) for place in places]
        waiting, free, running = list(mutants), list(range(options.workers)), {}
        while waiting or running:
            while waiting and free:
                place, mutant = free.pop(), waiting.pop(0)
                target, tests = targets[place], chosen[mutant.key]
                if not tests:
                    results.note(mutant, "survived")
                    print(f"  no test   {file}:{mutant.line}: {mutant.after}", flush=True)
                    free.append(place)
                    continue
                # Compiled files are told apart by size and second only: the last mutant's must not be taken for this.
                for stale in target.parent.glob(f"__pycache__/{target.stem}.*"):
                    stale.unlink()
                target.unlink(missing_ok=True)
                target.write_text(mutant.source, encoding="utf-8")
                child = start(root, places[place], tests, Path(folder, f"log-{place}"))
                running[child] = (place, mutant, time.monotonic() + 60 + 6 * options.budget)
            if not running:
                break
            child, outcome = wait({c: deadline for c, (_, _, deadline) in running.items()})
            place, mutant, _ = running.pop(child)
            free.append(place)
            results.note(mutant, outcome)
            print(f"  {outcome:9} {file}:{mutant.line}: {mutant.after}", flush=True)


# -- without importing anew -------------------------------------------------------------------------------------------


CONTROL = "control"


class Quick:
    """A pytest plugin: runs the tests as they are, then again for each mutant, in a fork that the mutant is put into.

    Nothing is imported or collected twice, so that a mutant costs what its tests cost. What runs at import is changed
    as far as it left a value: functions and methods get the mutant's code and defaults, other names its values, also
    where another module took them by `from ... import`.
    """

    def __init__(
        self, root: Path, mutants: Sequence[Mutant], results: Results, recorder: Recorder, options: argparse.Namespace
    ) -> None:
        self.root, self.mutants, self.results, self.recorder, self.options = root, mutants, results, recorder, options

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Iterator[None]:
        began = time.process_time()
        with contextlib.suppress(session.Failed):
            yield
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        session.config.pluginmanager.unregister(self.recorder)
        lines = Lines(self.root, self.root / "no-such-file")
        by_file: dict[str, list[int]]
        tests = {}
        for test, met in self.recorder.lines.items():
            by_file = {}
            for file, line in met:
                by_file.setdefault(file, []).append(line)
            tests[test] = {"seconds": self.recorder.seconds[test], "lines": by_file}
        lines.kept = {"all": {"tests": tests}}
        print(f"\n{len(tests)} tests pass as they are, {time.process_time() - began:.0f} s", flush=True)
        items = {item.nodeid: item for item in session.items}
        session.testsfailed, session.shouldfail, session.shouldstop = 0, False, False
        sound: dict[str, bool] = {}
        for mutant in self._with_controls():
            if not sound.get(mutant.file, True):
                continue
            chosen = lines.tests_for(mutant, ["all"], self.options.each, self.options.budget)
            child = os.fork() if chosen else 0
            if chosen and not child:
                self._run_in_child(session, mutant, [items[name] for name in chosen])
            limit = time.monotonic() + 120 + 10 * self.options.budget
            outcome = wait({child: limit})[1] if child else "survived"
            if mutant.key == CONTROL:
                sound[mutant.file] = outcome == "survived"
                if not sound[mutant.file]:
                    print(f"  {mutant.file}: put in anew, unchanged, it fails its tests; try it without --quick")
                continue
            self.results.note(mutant, outcome)
            print(f"  {outcome:9} {mutant.file}:{mutant.line}: {mutant.after}", flush=True)
        return True

    def _with_controls(self) -> Iterator[Mutant]:
        """Before the first mutant of a file, the file as it is: what tests notice must not be that it was put in."""
        tried = set()
        for mutant in self.mutants:
            if mutant.file not in tried:
                tried.add(mutant.file)
                source = (self.root / mutant.file).read_text(encoding="utf-8")
                yield Mutant(mutant.file, 100_000, "", "", source, CONTROL)
            yield mutant

    def _run_in_child(self, session: pytest.Session, mutant: Mutant, items: list[pytest.Item]) -> None:
        try:
            os.setsid()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            put_in(self.root, mutant)
            for at, item in enumerate(items):
                following = items[at + 1] if at + 1 < len(items) else None
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if session.testsfailed:
                    os._exit(1)
            os._exit(0)
        except BaseException:
            os._exit(70)


def put_in(root: Path, mutant: Mutant) -> None:
    """Change the module of a mutant where it is loaded."""
    module = sys.modules[module_name(root, mutant.file)]
    fresh = ModuleType(module.__name__)
    fresh.__dict__.update({n: module.__dict__.get(n) for n in ("__file__", "__package__", "__spec__", "__path__")})
    sys.modules[module.__name__] = fresh  # dataclasses look there for their module's names
    try:
        exec(compile(mutant.source, str(root / mutant.file), "exec"), fresh.__dict__)
    finally:
        sys.modules[module.__name__] = module
    # Code that was compiled anew looks names up in the old module, since its functions stay the old ones.
    for name, new in list(vars(fresh).items()):
        old = vars(module).get(name)
        if name.startswith("__") or _same_thing(old, new):
            continue
        if not _renewed(old, new, module.__name__):
            for user in list(sys.modules.values()):
                if getattr(user, "__dict__", {}).get(name) is old and (user is module or old is not None):
                    setattr(user, name, new)


def _same_thing(old: object, new: object) -> bool:
    return old is new or (type(old) is type(new) and isinstance(old, (int, float, str)) and old == new)


def _renewed(old: object, new: object, module: str) -> bool:
    """Whether the mutant's function or class could be put into the old one."""
    old, new = inspect.unwrap(old) if callable(old) else old, inspect.unwrap(new) if callable(new) else new
    if isinstance(old, FunctionType) and isinstance(new, FunctionType):
        if old.__code__.co_freevars != new.__code__.co_freevars:
            return False
        old.__code__, old.__defaults__, old.__kwdefaults__ = new.__code__, new.__defaults__, new.__kwdefaults__
        return True
    if isinstance(old, type) and isinstance(new, type):
        if old.__module__ != module:
            return True  # imported here: it is another module's
        for name, value in list(vars(new).items()):
            had = vars(old).get(name)
            if name in ("__dict__", "__weakref__", "__doc__", "__dataclass_fields__") or name.startswith("_abc_"):
                continue
            if isinstance(value, MemberDescriptorType):  # a slot, which belongs to its own class
                continue
            if isinstance(value, property) and isinstance(had, property):
                _renewed(had.fget, value.fget, module)
                if had.fset and value.fset:
                    _renewed(had.fset, value.fset, module)
            elif isinstance(value, (classmethod, staticmethod)) and isinstance(had, (classmethod, staticmethod)):
                _renewed(had.__func__, value.__func__, module)
            elif not _same_thing(had, value) and not _renewed(had, value, module):
                with contextlib.suppress(AttributeError, TypeError):
                    setattr(old, name, value)
        return True
    return False


def try_quickly(root: Path, mutants: Sequence[Mutant], results: Results, options: argparse.Namespace) -> None:
    """All mutants of all files in one run of pytest."""
    recorder = Recorder(root)
    tests = options.tests or sorted(
        {t for m in mutants for t in seen_by(root, m.file) if Path(t).name not in options.without}
    )
    os.chdir(root)
    flags = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-p", "no:xdist", "-s", "-m", "not slow and not gpu"]
    plugins = [recorder, Quick(root, mutants, results, recorder, options)]
    pytest.main([*flags, "-o", "addopts=", *tests], plugins=plugins)


class Results:
    """What became of each mutant, kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, dict[str, object]] = json.loads(path.read_text()) if path.is_file() else {}

    def note(self, mutant: Mutant, outcome: str) -> None:
        kept = {n: getattr(mutant, n) for n in ("file", "line", "before", "after")}
        self.found[mutant.key] = kept | {"outcome": outcome}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        half = self.path.with_suffix(".part")
        half.write_text(json.dumps(self.found, indent=1) + "\n")
        half.replace(self.path)

    def report(self, mutants: Sequence[Mutant]) -> str:
        """The survivors by file and line, and shares by folder, of those mutants that were tried."""
        tried = [(m, str(self.found[m.key]["outcome"])) for m in mutants if m.key in self.found]
        lines = []
        for mutant in sorted((m for m, outcome in tried if outcome == "survived"), key=lambda m: (m.file, m.line)):
            lines += [f"{mutant.file}:{mutant.line}", f"  - {mutant.before}", f"  + {mutant.after}"]
        for title, group in (("file", lambda m: m.file), ("package", lambda m: m.file.partition("/")[0])):
            total = Counter(group(m) for m, _ in tried)
            noticed = Counter(group(m) for m, outcome in tried if outcome != "survived")
            lines += ["", f"{title:40}{'mutants':>8}{'noticed':>8}{'share':>8}"]
            lines += [f"{p:40}{total[p]:8}{noticed[p]:8}{noticed[p] / total[p]:8.0%}" for p in sorted(total)]
        return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", help="files or folders of the packages, relative to the root")
    parser.add_argument("--limit", type=int, help="at most so many, drawn at random")
    parser.add_argument("--per-file", type=int, help="at most so many of each file, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of that draw")
    parser.add_argument("--each", type=float, default=5.0, help="no test that takes more seconds (default: 5)")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds of tests for one mutant (default: 20)")
    parser.add_argument("--without", nargs="*", default=["test_golden.py"], help="test files that do not count")
    parser.add_argument("--tests", nargs="*", help="only these test files")
    parser.add_argument("--quick", action="store_true", help="change what is loaded, instead of importing it anew")
    parser.add_argument("--shuffle", action="store_true", help="with --quick: in any order, for a sample if it is cut")
    parser.add_argument("--report", action="store_true", help="run nothing, only tell what is known")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="run the survivors once more")
    parser.add_argument("--results", type=Path, help="default: runs/mutants.json")
    parser.add_argument("--root", type=Path, default=ROOT)
    options = parser.parse_args(given)
    root = options.root.resolve()
    results = Results(options.results or root / "runs" / "mutants.json")
    mutants: list[Mutant] = []
    for path in options.paths:
        found = sorted((root / path).rglob("*.py")) if (root / path).is_dir() else [root / path]
        for file in found:
            name = str(file.relative_to(root))
            mutants += make_mutants(name, file.read_text(encoding="utf-8"), options.per_file, options.seed)
    if options.limit is not None and options.limit < len(mutants):
        mutants = random.Random(options.seed).sample(mutants, options.limit)
        mutants.sort(key=lambda m: (m.file, m.line))
    fresh = [
        m
        for m in mutants
        if m.key not in results.found or (options.again and results.found[m.key]["outcome"] == "survived")
    ]
    lines = Lines(root, results.path.with_name("lines.json"))
    if options.quick and not options.report:
        if options.shuffle:
            random.Random(options.seed).shuffle(fresh)
        try_quickly(root, fresh, results, options)
        fresh = []
    for file in dict.fromkeys(m.file for m in fresh if not options.report):
        try_out(root, [m for m in fresh if m.file == file], results, lines, options)
    print(results.report(mutants))


if __name__ == "__main__":
    main()
