"""Each built-in critic, judge and learner is in the reference, and the README counts the learners rightly."""

import re

import pytest
from conftest import ROOT

from humor_env import registry

WORDS = {14: "fourteen", 15: "fifteen", 16: "sixteen", 17: "seventeen", 18: "eighteen"}


def modules(kind) -> set[str]:
    return {str(entry.target).partition(":")[0] for entry in kind.entries().values()}


@pytest.mark.parametrize(("page", "kinds"), [("rewards", ("critics", "judges")), ("agents", ("learners",))])
def test_every_built_in_module_is_in_the_reference(page, kinds):
    listed = set(re.findall(r"^::: (\S+)", (ROOT / "docs" / "reference" / f"{page}.md").read_text(), re.MULTILINE))
    built_in = {name for kind in kinds for name in modules(getattr(registry, kind)) if name.startswith("humor_env.")}
    assert built_in - listed == set()


def test_the_readme_counts_the_learners():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    built_in = [n for n, e in registry.learners.entries().items() if str(e.target).startswith("humor_env.")]
    counted = re.findall(r"(\w+) (?:training algorithms|learners\]\(docs)", text)
    assert [word.lower() for word in counted] == [WORDS[len(built_in)]] * 2
