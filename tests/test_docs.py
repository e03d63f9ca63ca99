"""Every snippet of README, CONTRIBUTING and docs runs, page by page and in order, and every link leads somewhere."""

import os
import re
import shlex
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import gymnasium
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
# test_critics_page.py and test_tutorial.py run these, and look at what they said.
ELSEWHERE = {"docs/critics.md", "docs/tutorial.md"}
_BLOCK = re.compile(
    r"(?:^ *<!-- tests: (?P<tests>.*?) -->\n)?"
    r'^(?P<indent> *)```(?P<kind>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<code>.*?)^(?P=indent)```$',
    re.MULTILINE | re.DOTALL,
)
# Whoever runs these lines is a test of its own, or a reader with time.
_NOT_HERE = ("make ", "pip ", "git ", "cd ")


class Block(NamedTuple):
    """A fenced block. `tests` is what a comment above it says is different here, so that minutes become seconds."""

    line: int
    kind: str
    code: str
    title: str
    tests: str


def blocks(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("code")) + 1
        yield Block(line, found["kind"], textwrap.dedent(found["code"]), found["title"] or "", found["tests"] or "")


def shortened(block):
    """The code with one of its lines replaced: the one that begins like what the comment says."""
    if not block.tests:
        return block.code
    begin = re.match(r"[^=(]+[=(]", block.tests)[0]
    code, count = re.subn(rf"^{re.escape(begin)}.*$", lambda _: block.tests, block.code, flags=re.MULTILINE)
    assert count == 1, f"the comment above line {block.line} replaces {count} lines"
    return code


def run_commands(block, page):
    """Each line of a bash block in this process: starting Python anew for each would take minutes."""
    import runpy

    from typer.testing import CliRunner

    from humor_env.experiments.commands.cli import app

    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words or line.startswith(_NOT_HERE):
            continue
        if words[0] == "PYTHONPATH=.":
            words = words[1:]
        if words[:2] == ["python", "-m"]:
            sys.argv = words[2:]
            with pytest.raises(SystemExit) as ended:
                runpy.run_module(words[2], run_name="__main__")
            assert not ended.value.code, (page, line)
            continue
        assert words[0] == "humor-env", f"{page}, line {block.line}: {line}"
        if words[1] in ("train", "benchmark", "reproduce") and not block.tests:
            words.append("--dry-run")  # its shape; their own tests run them
        elif words[1] in ("train", "evaluate"):
            words += shlex.split(block.tests)
        done = CliRunner().invoke(app, words[1:])
        assert done.exit_code == 0, (page, line, done.output, done.exception)


def check_words(block, page):
    """Commands that only a reader runs: each names a command that there is, with options that it has."""
    import typer

    from humor_env.experiments.commands.cli import app

    commands = typer.main.get_command(app)
    for line in block.code.replace("\\\n", " ").splitlines():
        found = re.match(r"(?:\w+=\S+ )*humor-env (.*)", line)
        if found is None:
            continue
        words = shlex.split(found[1], comments=True)
        command = commands
        while words and words[0] != "--help" and hasattr(command, "commands"):
            assert words[0] in command.commands, (page, line)
            command = command.commands[words.pop(0)]
        known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
        wrong = [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]
        assert not wrong, (page, line, wrong)


def check_toml(block):
    """A whole experiment or benchmark is parsed and left where the page's commands find it."""
    import tomllib

    from humor_env.experiments.compare.benchmark_spec import load_benchmark_spec
    from humor_env.experiments.specs.spec import parse_spec

    data = tomllib.loads(block.code)
    if "learner" not in data and "learners" not in data:
        return
    path = Path(block.title or f"{data['name']}.toml")
    path.write_text(block.code, encoding="utf-8")
    if "learners" in data:
        load_benchmark_spec(str(path))
    else:
        parse_spec(block.code)


@pytest.fixture
def registries(monkeypatch):
    """What a page registers, imports and sets is gone after its test."""
    from humor_env import registry

    kinds = [registry.critics, registry.judges, registry.prompts, registry.learners]
    before = [dict(kind._entries) for kind in kinds], dict(gymnasium.registry)
    modules, environment = set(sys.modules), dict(os.environ)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    yield
    for kind, entries in zip(kinds, before[0], strict=True):
        kind._entries = entries
    gymnasium.registry.clear()
    gymnasium.registry.update(before[1])
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) and "/pytest-" in str(sys.modules[name].__file__):
            del sys.modules[name]
    os.environ.clear()
    os.environ.update(environment)


RUN = [page for page in PAGES if page not in ELSEWHERE and any(blocks(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_snippets_run(page, registries, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names: dict = {"__name__": "snippets"}
    for block in blocks(page):
        if block.title:
            Path(block.title).write_text(block.code, encoding="utf-8")
        if block.kind == "python":
            # Padded with line breaks, so that an error points to the page's own line.
            code = compile("\n" * block.line + shortened(block), page, "exec")
            try:
                exec(code, names)
            except ModuleNotFoundError as missing:
                # A package that the project does not bring, or not with all that the block needs of it.
                if not block.code.startswith("# needs:") or str(missing.name).startswith("humor_env"):
                    raise
        elif block.kind == "bash":
            run_commands(block, page)
        elif block.kind == "toml":
            check_toml(block)
        else:
            check_words(block, page)


def test_enough_is_found_to_run():
    kinds = [block.kind for page in RUN for block in blocks(page)]
    assert kinds.count("python") >= 25
    assert kinds.count("bash") >= 20
    assert kinds.count("toml") >= 15
    assert len(list(blocks("README.md"))) >= 5


def test_every_fence_is_a_block_that_is_understood():
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        fences = len(re.findall(r"^ *```", text, re.MULTILINE))
        assert fences == 2 * len(list(blocks(page))), page
        assert {block.kind for block in blocks(page)} <= {"python", "bash", "sh", "toml", "text"}, page


@pytest.mark.parametrize("page", PAGES)
def test_links_within_the_repository_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [t for t in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in t]
    assert [target for target in targets if not ((ROOT / page).parent / target).exists()] == []


def test_every_dependency_and_extra_is_explained():
    import configparser

    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("## Installing") :]
    needed = setup["options"]["install_requires"].split()
    names = [re.split(r"[<>=\[]", name)[0] for name in needed]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("|")]
    told = {name.strip(" `") for row in rows for name in row.split(",")}
    assert [name for name in names if name not in told] == []
    assert [name for name in setup["options.extras_require"] if name not in told] == []


def test_the_readme_opens_with_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = re.search(r"```bash\n(.*?)```", text, re.DOTALL)
    assert [line.split("#")[0].strip() for line in first[1].splitlines()] == ["make demo", "make test"]


@pytest.mark.slow
def test_the_benchmark_measures_every_row():
    """Only that it runs, and the rows whose verdict does not hang on a quiet machine."""
    from humor_env.experiments.upkeep.bench_env import measure

    rows = {what: (measured, holds) for what, measured, _, holds in measure(steps=1000, memory_steps=5000)}
    assert len(rows) == 13
    assert rows["Tokens-v0 / CartPole"][1] == "yes"
    assert rows["Paraphrase vector of 256: processor time per env-step"][1] == "yes"
