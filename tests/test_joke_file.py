"""A file of jokes, by the field names that people and other commands use."""

import json

import pytest

from humor_env.errors import PromptError
from humor_env.experiments.runs.joke_file import joke_of, read_jokes, score_of
from humor_env.experiments.runs.paired_line import paired_line

PLAIN = {"prompt": "The meeting was slow.", "text": "Glaciers overtook it."}


def test_a_record_of_two_texts_is_a_joke():
    line = joke_of("here", 7, PLAIN)
    assert (line.number, line.record, line.score) == (7, PLAIN, None)
    prompt = line.joke.prompt
    assert (prompt.id, prompt.text) == (PLAIN["prompt"], PLAIN["prompt"])
    assert (prompt.task, prompt.split, prompt.extra) == ("paraphrase", "train", {})
    assert (line.joke.text, line.joke.author, line.joke.stop_reason) == (PLAIN["text"], "student", None)


def test_what_stands_in_the_prompt_wins_over_what_stands_beside_it():
    beside = {"prompt_id": "b", "task": "one-liner", "split": "dev", "author": "ppo", "stop_reason": "length"}
    inside = {"id": "i", "text": "The soup was cold.", "task": "revise", "split": "test", "extra": {"kind": "x"}}
    line = joke_of("here", 1, {**beside, "prompt": inside, "joke": "So cold."})
    prompt = line.joke.prompt
    assert (prompt.id, prompt.task, prompt.split, prompt.extra) == ("i", "revise", "test", {"kind": "x"})
    assert (line.joke.author, line.joke.stop_reason) == ("ppo", "length")
    prompt = joke_of("here", 1, {**beside, "prompt": {"text": "The soup was cold."}, "joke": "So cold."}).joke.prompt
    assert (prompt.id, prompt.task, prompt.split) == ("b", "one-liner", "dev")


@pytest.mark.parametrize("name", ["text", "joke", "line", "completion"])
def test_the_line_may_have_four_names(name):
    assert joke_of("here", 1, {"prompt": "x", name: "y"}).joke.text == "y"


def test_of_two_names_the_first_counts():
    assert joke_of("here", 1, {"prompt": "x", "completion": "c", "line": "l", "joke": "j"}).joke.text == "j"


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"prompt": "x"}, "expected an object with 'prompt'"),
        ({"text": "x"}, "expected an object with 'prompt'"),
        ({"prompt": "x", "text": 3}, "expected an object with 'prompt'"),
        ({"prompt": 3, "text": "x"}, "expected an object with 'prompt'"),
        ("x", "expected an object with 'prompt'"),
        ({"prompt": {"id": "x"}, "text": "x"}, "the prompt has no 'text'"),
        ({"prompt": {"text": "x", "extra": ["a"]}, "text": "x"}, "the prompt's 'extra' is an object"),
    ],
)
def test_what_is_no_joke_is_told_with_its_place(record, why):
    with pytest.raises(PromptError, match=f"^over here: {why}"):
        joke_of("over here", 1, record)


def test_an_older_score_is_the_records_or_its_judgements():
    older = {"judgement": {"score": 0.25}}
    assert joke_of("here", 1, PLAIN | older).score == 0.25
    assert joke_of("here", 1, PLAIN | older | {"score": 0.5}).score == 0.5
    assert joke_of("here", 1, PLAIN | {"judgement": "good", "score": "0.75"}).score == 0.75


@pytest.mark.parametrize(
    ("value", "score"),
    [("0.5", 0.5), (1, 1.0), ("", None), ("good", None), (None, None), ([0.5], None), ("nan", None), ("inf", None)],
)
def test_a_score_is_a_finite_number(value, score):
    assert score_of(value) == score


def test_lines_keep_their_numbers_where_some_are_empty(tmp_path):
    path = tmp_path / "jokes.jsonl"
    path.write_text("\n" + json.dumps(PLAIN) + "\n\n" + json.dumps(PLAIN | {"text": "So slow."}) + "\n")
    assert [(line.number, line.joke.text) for line in read_jokes(path)] == [
        (2, "Glaciers overtook it."),
        (4, "So slow."),
    ]
    assert [line.joke.text for line in read_jokes(tmp_path)] == ["Glaciers overtook it.", "So slow."]


def test_a_table_is_numbered_by_its_rows(tmp_path):
    path = tmp_path / "jokes.csv"
    path.write_text("prompt,text,score\nThe soup was cold.,So cold.,0.5\nThe meeting was slow.,Glaciers.,\n")
    assert [(line.number, line.joke.text, line.score) for line in read_jokes(path)] == [
        (1, "So cold.", 0.5),
        (2, "Glaciers.", None),
    ]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "holds no jokes"),
        (b"\n\n", "holds no jokes"),
        (b"{", "line 1: not JSON"),
        (b'{"prompt": "x", "text": "\xff"}', r"is not UTF-8 \(byte 0xff\)"),
    ],
)
def test_a_file_that_cannot_be_read_is_told(tmp_path, content, why):
    path = tmp_path / "jokes.jsonl"
    path.write_bytes(content)
    with pytest.raises(PromptError, match=why):
        read_jokes(path)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(PromptError, match="There is no file"):
        read_jokes(tmp_path / "none.jsonl")


def test_fewer_lines_repeat_from_the_first():
    assert [paired_line(["a", "b"], place) for place in range(5)] == ["a", "b", "a", "b", "a"]
    assert paired_line([], 0) is None
