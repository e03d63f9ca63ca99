"""The reproduction's grid, its choice of sentences, its forecast and its page, each by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import ROOT

from humor_env.experiments.reproduction import reproduce, sentences, spec
from humor_env.experiments.reproduction.estimate import estimate
from humor_env.experiments.reproduction.spec import DataSpec, SourceSpec, load_scale
from humor_env.experiments.reproduction.systems import SYSTEMS, System, by_name

PUBLISHED = ROOT / "docs" / "results" / "reproduction-pocket"


def test_each_system_has_a_title_in_words():
    assert {s.name: s.title for s in SYSTEMS} == {
        "warm-3": "WARM",
        "warm-2": "WARM, 2/3 of the data",
        "warm-1": "WARM, 1/3 of the data",
        "ft": "FT",
        "ft-2": "FT, 2/3 of the data",
        "ft-1": "FT, 1/3 of the data",
        "sd": "SD",
        "dpo": "DPO",
        "dpo-unfiltered": "DPO, no length filter",
        "brio": "BRIO",
        "brio-2": "BRIO, 2/3 of the data",
        "brio-1": "BRIO, 1/3 of the data",
        "brio-1-rounds-2": "BRIO, 1/3 of the data, 2 rounds",
        "brio-1-rounds-10": "BRIO, 1/3 of the data, 10 rounds",
        "brio-unfiltered": "BRIO, no length filter",
        "brio-dpo": "BRIO-DPO",
    }


def test_what_each_system_is_used_for():
    assert {s.name for s in SYSTEMS if s.people} == {"ft", "brio", "dpo"}  # Table 1
    assert {s.name for s in SYSTEMS if s.splits == ("test", "ood")} == {
        "ft",
        "brio-dpo",
        "brio",
        "dpo",
        "sd",
    }  # Table 3
    assert [s.name for s in SYSTEMS if not s.splits] == ["warm-3", "warm-1", "warm-2"]
    assert [s.kind for s in SYSTEMS if s.starts_from is None] == ["warm"] * 3
    assert by_name("brio-1").starts_from == by_name("ft-1").starts_from == "warm-1"
    assert by_name("brio-2").starts_from == "warm-2"
    assert by_name("brio").starts_from == by_name("brio-unfiltered").starts_from == "warm-3"
    assert System("x", "dpo").splits == ("test",)


def source(path: Path, count: int, **changes) -> SourceSpec:
    return SourceSpec(
        **{"source": str(path), "column": "text", "count": count, "least_words": 2, "most_words": 3} | changes
    )


def lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_a_sentence_of_the_bounds_themselves_counts(tmp_path):
    texts = ["One", "Just two", "Now three words", "These are four words"]
    data = DataSpec(test=source(lines(tmp_path / "test.jsonl", texts), 2))
    chosen = sentences.read_sentences(data)["test"]
    assert sorted(p.text for p in chosen) == ["Just two", "Now three words"]
    assert {(p.split, p.task, p.id.partition("/")[0]) for p in chosen} == {("test", "paraphrase", "test")}


def test_a_sentence_belongs_to_the_split_that_chooses_first(tmp_path):
    """test, ood, dev, train: what the first took is not there for the others, whatever its letters' case."""
    shared = ["The soup", "the meeting", "A bus"]
    data = DataSpec(
        test=source(lines(tmp_path / "a.jsonl", shared[:1]), 1),
        ood=source(lines(tmp_path / "b.jsonl", ["the SOUP", *shared[1:2]]), 1),
        dev=source(lines(tmp_path / "c.jsonl", shared), 1),
        train=source(lines(tmp_path / "d.jsonl", [*shared, "My cat", "my CAT"]), 1),
    )
    chosen = {split: [p.text for p in prompts] for split, prompts in sentences.read_sentences(data).items()}
    assert list(chosen) == ["train", "dev", "test", "ood"]
    assert chosen["test"] == ["The soup"]
    assert chosen["ood"] == ["the meeting"]
    assert chosen["dev"] == ["A bus"]
    assert [text.casefold() for text in chosen["train"]] == ["my cat"]


def test_one_turn_of_a_conversation_is_taken(tmp_path):
    path = tmp_path / "talk.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"Amanda: Turn {i}\nJerry: Answer {i}\nAmanda: Oh!"}) + "\n" for i in range(8))
    )
    data = DataSpec(test=source(path, 8, turns=True))
    chosen = [p.text for p in sentences.read_sentences(data)["test"]]
    assert sorted(text.split()[1] for text in chosen) == [str(i) for i in range(8)]
    assert len({text.split()[0] for text in chosen}) == 2  # not always the first turn


def test_a_forecast_says_who_is_left_out():
    forecast = estimate(load_scale("pocket"), 1)
    scale = load_scale("paper")
    without = estimate(scale.model_copy(update={"cloze": spec.ClozeTable(), "people": spec.PeopleTable()}), 1)
    assert without["models"]["cloze critic"] == "none: its rows of Table 1 are left out"
    assert without["models"]["people"].startswith("nobody yet: Tables 1 and 6 are left out")
    named = estimate(scale.model_copy(update={"cloze": spec.ClozeTable(model="some/model")}), 1)
    assert named["models"]["cloze critic"] == "some/model"
    assert forecast["models"]["student"] == "pocket:causal"
    assert forecast["cells"] == len(SYSTEMS) + 1  # and one for the substitutes of people; the pocket teacher needs none
    assert without["cells"] == len(SYSTEMS) + 1  # and one for the teacher's lines; nobody rates
    assert forecast["data"]["test"] == "300 of the pocket world's test prompts"


def test_tables_are_remade_from_a_folder(tmp_path, capsys):
    shutil.copy(PUBLISHED / "results.jsonl", tmp_path)
    assert reproduce.main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / reproduce.TEXT).read_text(encoding="utf-8")
    assert json.loads((tmp_path / reproduce.TABLES).read_text()) == json.loads((PUBLISHED / "tables.json").read_text())
    page = tmp_path / "page.md"
    page.write_text(f"Before\n{reproduce.BEGIN}\nold\n{reproduce.END}\nAfter\n")
    assert reproduce.main([str(tmp_path), str(page)]) == 0
    assert page.read_text(encoding="utf-8") == reproduce.with_tables(page.read_text(encoding="utf-8"), printed)
    assert "old" not in page.read_text(encoding="utf-8")
    assert reproduce.main([]) == 2
    assert "Usage: " in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["a", "b", "c"], []])
def test_a_wrong_number_of_arguments_is_told(arguments, capsys):
    assert reproduce.main(arguments) == 2
    assert "OUT [PAGE.md]" in capsys.readouterr().err
