"""The tables of the docs are those of the code: what a learner logs, its settings, the keys of an experiment file."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from humor_env import registry
from humor_env.errors import InvalidOption
from humor_env.experiments.upkeep import reference_tables as tables
from humor_env.experiments.upkeep.pages import client_tables
from humor_env.llm.factory import SERVICES, make_client

ROOT = Path(__file__).resolve().parent.parent
PAGES = {page: page.read_text(encoding="utf-8") for page in tables.pages(ROOT)}
MEANINGS = tables.Meanings(ROOT / "docs" / "meanings.toml")
BUILT_IN = sorted(name for name, entry in registry.learners.entries().items() if entry.origin == "built in")


def marked(kind, name):
    """What stands on the pages under a mark; it stands exactly once."""
    opening = f"<!-- {kind} {name} -->\n"
    [text] = [text for text in PAGES.values() if opening in text]
    assert text.count(opening) == 1
    return text.split(opening)[1].split(tables.END)[0].strip()


@pytest.mark.slow
@pytest.mark.parametrize("learner", BUILT_IN)
def test_the_page_explains_every_number_that_the_learner_logs(learner, tmp_path):
    logged = tables.logged_by(learner, tmp_path)
    assert len(logged) >= 4 or learner == "best-of-n"  # which takes no step
    assert marked("metrics", learner) == tables.metrics_table(learner, logged, MEANINGS), (
        "out of date: python -m humor_env.experiments.upkeep.reference_tables"
    )


@pytest.mark.parametrize("kind", ["learners", "clients", "settings", "spec", "costs", "results", "curve", "trials"])
def test_settings_and_spec_tables_are_up_to_date(kind):
    stale = tables.rewrite(ROOT, check=True, kinds=(kind,))
    assert stale == [], "python -m humor_env.experiments.upkeep.reference_tables"


def test_every_table_of_an_experiment_file_is_on_its_page():
    page = PAGES[ROOT / "docs" / "spec.md"]
    for key in tables.spec_keys():
        home, _, name = key.rpartition(".")
        assert f"| `{name}` |" in marked("spec", home or "top"), key
    assert set(re.findall(r"<!-- spec (\S+) -->", page)) == {k.rpartition(".")[0] or "top" for k in tables.spec_keys()}


def test_every_client_string_stands_in_the_table_with_all_its_options():
    """`client` was an option worth knowing, and explained nowhere: not the strings, not what each takes."""
    text = tables.clients_table(MEANINGS)
    for service in SERVICES:
        assert f'| `"{service}:' in text
        for name in client_tables.options_of(service):
            [row] = [row for row in text.splitlines() if row.startswith(f"| `{name}` |")]
            assert "| all |" in row or f"`{service}`" in row
    named = {name for service in SERVICES for name in client_tables.options_of(service)}
    assert set(MEANINGS.tables["clients"]) == named
    assert "ledger" not in named


@pytest.mark.parametrize("service", ["anthropic", "openai"])
def test_the_factory_takes_every_option_of_the_table(service):
    """With its default, which is what a user changes; the client is made without a key and sends nothing."""
    make_client(f"{service}:some-model", must_have_key=False, **client_tables.options_of(service)).close()


def test_a_page_says_what_its_learner_learns_from(tmp_path):
    (tmp_path / "ppo.md").write_text("# P (`ppo`)\n\nLearns from: a. Compares: b.\n<!-- metrics ppo -->\n")
    (tmp_path / "dpo.md").write_text("# D\n\nLearns from: c: d. Compares: e.\n<!-- metrics dpo -->\n")
    assert tables.learners_table(tmp_path).splitlines()[2:] == [
        "| `dpo` | c: d | e | [D](dpo.md) |",
        "| `ppo` | a | b | [P](ppo.md) |",
    ]
    (tmp_path / "sft.md").write_text("# S\n<!-- metrics sft -->\n")
    with pytest.raises(InvalidOption, match=r"sft\.md does not say what its learner learns from"):
        tables.learners_table(tmp_path)


def test_every_meaning_is_of_something():
    shown = "\n".join(PAGES.values())
    for name in MEANINGS.tables["metrics"]:
        assert f"| `{name}` |" in shown, f"{name} is logged by nobody any more"
    known = {*tables.spec_keys(), "learner.name", "learner.…"}
    assert set(MEANINGS.tables["spec"]) - known == set()


def test_a_name_without_a_meaning_is_an_error():
    with pytest.raises(InvalidOption, match=r"'reward/maen'.*'reward/mean'.*docs/meanings.toml"):
        tables.metrics_table("ppo", ["reward/maen"], MEANINGS)


def test_the_longest_beginning_counts():
    assert MEANINGS.key("metrics", "trl/rewards/chosen") == "trl/rewards/chosen"
    assert MEANINGS.key("metrics", "trl/rewards/pocket/std") == "trl/rewards/…"


@dataclass(frozen=True)
class Commented:
    plain: int = 1
    told: int = 2  # what it is
    wrapped: float | None = None  # on the second line
    after: int = 3

    def method(self):
        return 0  # not a field's


def test_comments_beside_fields_are_read():
    assert tables.comments_of(Commented) == {"told": "what it is", "wrapped": "on the second line"}


def test_a_mark_is_filled_and_filled_again():
    page = "a\n<!-- spec env -->\nold\n<!-- end -->\nb\n<!-- curve ppo -->\n<!-- end -->\n"
    made = {"spec": "| new |", "curve": ""}
    once = tables.fill_page(page, lambda kind, name: made[kind])
    assert once == "a\n<!-- spec env -->\n\n| new |\n\n<!-- end -->\nb\n<!-- curve ppo -->\n<!-- end -->\n"
    assert tables.fill_page(once, lambda kind, name: made[kind]) == once


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A checkout whose docs/results hold a benchmark of two seeds, its numbers chosen to be told apart."""
    from humor_env.experiments.compare import benchmark
    from humor_env.experiments.compare.benchmark_spec import load_benchmark_spec

    rows, curves = [], []
    for system, base in (("imitation", 0.3), ("ppo", 0.7), ("dpo", 0.5)):
        for seed in (0, 1):
            scores = [base + 0.01 * seed + 0.02 * i for i in range(6)]
            rows.append({"system": system, "feedback": "crowd", "seed": seed, "score": base, "scores": scores})
            curves += [
                {"system": system, "feedback": "crowd", "seed": seed, "samples": float(n), "score": base + n / 9999}
                for n in (0, 320, 640)
                if system == "ppo"
            ]
    record = {"prompts": list("abcdef")}
    made = benchmark.Benchmark(tmp_path, load_benchmark_spec("pocket-mini"), record, rows, curves)
    (tmp_path / "docs" / "results" / "pocket-learners").mkdir(parents=True)
    monkeypatch.setattr(benchmark, "load_benchmark", lambda folder: made)
    return tmp_path


def test_the_results_table_is_that_of_the_files(published, tmp_path):
    from humor_env.experiments.upkeep.result_tables import results_table

    table = results_table(published)
    names = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")][2:]
    assert names == ["ppo", "dpo", "imitation"], "best first"
    # Mean over seeds and prompts of the first row: 0.7 + 0.005 + 0.05.
    assert "| ppo | 0.755 | – |" in table, "six prompts are too few for an interval"
    assert "6 held-out prompts, seeds 0, 1" in table
    assert results_table(tmp_path / "elsewhere") == ""


def test_a_learner_that_was_measured_has_its_curve_and_the_others_none(published):
    from humor_env.experiments.upkeep.result_tables import curve

    page = published / "docs" / "algorithms" / "ppo.md"
    told, files = curve(published, "ppo", page)
    assert "](../images/curve-ppo.svg)" in told
    [(path, svg)] = files.items()
    assert path == published / "docs" / "images" / "curve-ppo.svg"
    assert "Held-out score of ppo" in svg
    assert curve(published, "grpo", page) == ("", {})


def test_a_picture_that_is_out_of_date_is_told_and_redrawn(published):
    (published / "docs" / "meanings.toml").write_text((ROOT / "docs" / "meanings.toml").read_text())
    (published / "README.md").write_text("<!-- curve ppo -->\n<!-- end -->\n")
    assert tables.rewrite(published, check=False) == ["README.md", "docs/images/curve-ppo.svg"]
    assert tables.rewrite(published, check=True) == []
    (published / "docs" / "images" / "curve-ppo.svg").write_text("old")
    assert tables.rewrite(published, check=True) == ["docs/images/curve-ppo.svg"]
