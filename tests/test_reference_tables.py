"""The tables of the docs are those of the code: what a learner logs, its settings, the keys of an experiment file."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from humor_env import registry
from humor_env.errors import InvalidOption
from humor_env.experiments import reference_tables as tables

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
    assert len(logged) >= 4
    assert marked("metrics", learner) == tables.metrics_table(learner, logged, MEANINGS), (
        "out of date: python -m humor_env.experiments.reference_tables"
    )


def test_settings_and_spec_tables_are_up_to_date():
    stale = tables.rewrite(ROOT, check=True, kinds=("settings", "spec", "costs", "results", "curve"))
    assert stale == [], "python -m humor_env.experiments.reference_tables"


def test_every_table_of_an_experiment_file_is_on_its_page():
    page = PAGES[ROOT / "docs" / "spec.md"]
    for key in tables.spec_keys():
        home, _, name = key.rpartition(".")
        assert f"| `{name}` |" in marked("spec", home or "top"), key
    assert set(re.findall(r"<!-- spec (\S+) -->", page)) == {k.rpartition(".")[0] or "top" for k in tables.spec_keys()}


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
