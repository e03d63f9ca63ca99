"""The snippets of README and CONTRIBUTING are run, file by file and in their order, and their links lead somewhere."""

import re
import textwrap
from pathlib import Path

import gymnasium
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", "CONTRIBUTING.md"]


def snippets(page):
    """(line, code) of each python block, those in list items too."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for block in re.finditer(r"^( *)```python\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, block.start()) + 2, textwrap.dedent(block[2])


@pytest.fixture
def registries():
    """What a recipe registers is gone after its test."""
    from humor_env import registry

    kinds = [registry.critics, registry.judges, registry.prompts, registry.learners]
    before = [dict(kind._entries) for kind in kinds], dict(gymnasium.registry)
    yield
    for kind, entries in zip(kinds, before[0], strict=True):
        kind._entries = entries
    gymnasium.registry.clear()
    gymnasium.registry.update(before[1])


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_snippets_run(page, registries, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = list(snippets(page))
    assert len(found) >= 4
    names: dict = {"__name__": "snippets"}
    for line, code in found:
        # Padded with line breaks, so that an error points to the page's own line.
        exec(compile("\n" * (line - 1) + code, page, "exec"), names)


@pytest.mark.parametrize("page", PAGES)
def test_links_within_the_repository_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in t]
    assert [target for target in targets if not (ROOT / target).exists()] == []


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
    from humor_env.experiments.bench_env import measure

    rows = {what: (measured, holds) for what, measured, _, holds in measure(steps=1000, memory_steps=5000)}
    assert len(rows) == 13
    assert rows["Tokens-v0 / CartPole"][1] == "yes"
    assert rows["Paraphrase vector of 256: overhead per env-step"][1] == "yes"
