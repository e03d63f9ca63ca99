"""Which lines a run has, from which seeds, and what a format keeps of them."""

import json

import pytest

from humor_env.errors import InvalidOption
from humor_env.experiments.sharing.export import COLUMNS, _number, _storable, export, rows_of
from humor_env.exports import _text_space


def write(folder, name, *rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def test_lines_of_all_seeds_by_number_and_of_a_stage(tmp_path):
    for seed in (10, 2):
        write(tmp_path / f"seed-{seed}", "jokes.jsonl", {"text": f"a{seed}"}, '{"te', {"text": f"b{seed}"})
        write(tmp_path / f"seed-{seed}", "evaluation-ppo.jsonl", {"text": f"e{seed}", "seed": 9})
    (tmp_path / "seed-3").mkdir()
    assert [(row["seed"], row["text"]) for row in rows_of(tmp_path)] == [(2, "a2"), (2, "b2"), (10, "a10"), (10, "b10")]
    assert [(row["seed"], row["text"]) for row in rows_of(tmp_path, "ppo")] == [(9, "e2"), (9, "e10")]
    assert [row["seed"] for row in rows_of(tmp_path / "seed-10")] == [10, 10]


def test_a_folder_that_is_no_seed_has_number_0(tmp_path):
    assert [_number(tmp_path / name) for name in ("seed-7", "seed-x", "run", "7")] == [7, 0, 0, 7]


def test_a_stage_that_was_not_measured_is_told_with_those_that_were(tmp_path):
    nothing = f"'{tmp_path}' has no jokes.jsonl with lines: expected the folder of a run or of a seed."
    with pytest.raises(InvalidOption) as caught:
        rows_of(tmp_path)
    assert str(caught.value) == nothing
    for seed in (0, 1):
        write(tmp_path / f"seed-{seed}", "evaluation-base.jsonl", {"text": "x"})
    write(tmp_path / "seed-1", "evaluation-ppo.jsonl", {"text": "x"})
    with pytest.raises(InvalidOption) as caught:
        rows_of(tmp_path)
    assert str(caught.value) == f"{nothing} It was measured at the stages base, ppo: give --stage."


def test_rows_are_written_whole_and_never_over_a_file(tmp_path):
    write(tmp_path / "run" / "seed-1", "jokes.jsonl", {"text": "é", "more": [1]}, {"text": "b"})
    out = tmp_path / "new" / "deep" / "out.jsonl"
    assert export(tmp_path / "run", out, form="jsonl") == 2
    assert out.read_text() == '{"seed": 1, "text": "\\u00e9", "more": [1]}\n{"seed": 1, "text": "b"}\n'
    with pytest.raises(InvalidOption, match="already exists: give another path, or remove it"):
        export(tmp_path / "run", out, form="jsonl")
    with pytest.raises(InvalidOption, match=r"^There is no format 'csv'. Known: jsonl, dataset, minari.$"):
        export(tmp_path / "run", out, form="csv")


def test_a_dataset_has_the_known_columns_in_their_types(tmp_path):
    from datasets import load_from_disk

    row = {"step": 3, "prompt_id": "p", "prompt": "P", "text": "odd \ud800", "author": "policy", "score": 0.5}
    write(tmp_path / "run" / "seed-1", "jokes.jsonl", row | {"more": 1}, row | {"score": None, "error": "no"})
    assert export(tmp_path / "run", tmp_path / "set", form="dataset") == 2
    found = load_from_disk(str(tmp_path / "set"))
    assert tuple(found.column_names) == COLUMNS
    kinds = {name: feature.dtype for name, feature in found.features.items()}
    assert {name: kind for name, kind in kinds.items() if kind != "string"} == {
        "seed": "int64",
        "step": "int64",
        "score": "float64",
    }
    assert found[0] == dict.fromkeys(COLUMNS) | row | {"seed": 1, "text": "odd \ufffd"}
    assert (found[1]["score"], found[1]["error"]) == (None, "no")


def test_minari_gets_the_lines_with_a_score(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(
        "humor_env.experiments.sharing.export.to_minari", lambda lines, name: told.append((lines, name))
    )
    row = {"prompt_id": "p", "prompt": "P", "text": "x", "author": "policy", "score": 0.0}
    write(tmp_path / "run" / "seed-1", "jokes.jsonl", row, row | {"score": None})
    assert export(tmp_path / "run", tmp_path, form="minari") == 1, "a name, which may look like a folder that is there"
    [([line], name)] = told
    assert (line.prompt.id, line.prompt.text, line.text, line.source, line.score) == ("p", "P", "x", "policy", 0.0)
    assert name == str(tmp_path)


def test_half_a_character_is_replaced_and_whole_ones_stay():
    assert _storable("a\ud800b") == "a\ufffdb"
    assert _storable("🐌 é") == "🐌 é"
    assert _storable(3) == 3 and _storable(None) is None


def test_a_text_space_holds_all_lines_of_any_length():
    texts = ["a", "abcd", "ba", ""]
    space = _text_space(texts)
    assert all(space.contains(text) for text in texts)
    assert (space.max_length, space.min_length, space.character_list) == (5, 0, ("a", "b", "c", "d"))
