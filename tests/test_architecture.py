"""The picture in docs/architecture.md is the one that the imports give, and the page names files that are there."""

import re
import shutil
from pathlib import Path

import pytest

from humor_env.errors import InvalidOption
from humor_env.experiments.upkeep import architecture

ROOT = Path(__file__).resolve().parent.parent


def test_the_picture_is_up_to_date():
    stale = architecture.rewrite(ROOT, check=True)
    assert not stale, "out of date: python -m humor_env.experiments.upkeep.architecture"


def test_every_file_that_the_page_names_is_there():
    page = (ROOT / architecture.PAGE).read_text(encoding="utf-8")
    named = re.findall(r"`((?:agents|rewards|experiments|humor_env|docs|tests)/[\w./-]*)`", page)
    assert len(named) > 30
    assert [name for name in named if "NAME" not in name and not (ROOT / name).exists()] == []


@pytest.fixture
def house(tmp_path):
    """Critics that use shared parts; training that uses the critics; one critic that loads late what was trained."""
    files = {
        "rewards/critic.py": (
            "import humor_env.rewards.shared.words\ndef load():\n    import humor_env.rewards.trained.head\n"
        ),
        "rewards/shared/words.py": "from humor_env import types\n",
        "rewards/trained/head.py": "from humor_env.rewards.critic import Critic\n",
        "humor_env/types.py": "",
        "docs/architecture.md": "before\n<!-- floors -->\nold\n<!-- end -->\nafter\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    return tmp_path


def test_floors_are_what_stands_below_by_hand(house):
    files = architecture.rooms(house)
    floors = architecture.floors(architecture.arrows(files))
    assert floors == {
        ("rewards", "shared"): 0,
        ("rewards", ""): 1,
        ("rewards", "trained"): 2,
        ("humor_env", ""): 0,
    }
    assert "1  rewards/*.py       (trained/), shared/" in architecture.picture(house)


def test_a_page_is_rewritten_between_its_marks_and_only_where_it_is_stale(house):
    page = house / architecture.PAGE
    before = page.read_text()
    assert architecture.rewrite(house, check=True) and page.read_text() == before
    assert architecture.rewrite(house, check=False)
    after = page.read_text()
    assert after.startswith("before\n<!-- floors -->\n\n```text\n") and after.endswith("\n<!-- end -->\nafter\n")
    assert not architecture.rewrite(house, check=True)
    shutil.rmtree(house / "rewards" / "trained")
    assert architecture.rewrite(house, check=True)


def test_a_page_without_marks_is_told(house):
    (house / architecture.PAGE).write_text("nothing to fill\n")
    with pytest.raises(InvalidOption, match="<!-- floors -->"):
        architecture.rewrite(house, check=False)
