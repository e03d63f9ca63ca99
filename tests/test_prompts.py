"""Prompt sets: their checks, the order a seed gives, and the files and datasets they come from."""

import json
from collections import Counter

import datasets
import numpy as np
import pytest

from humor_env.errors import CheckpointError, InvalidOption, PromptError, UnknownName
from humor_env.prompts import PromptSet, PromptStream, load_prompts
from humor_env.types import SPLITS, Prompt


def write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


# --- sets ---


def test_splits_and_ids(prompts):
    assert len(prompts) == 23
    assert [p.id for p in prompts.split("dev")] == ["dev-0", "dev-1", "dev-2", "dev-3"]
    assert prompts.get("ood-2").split == "ood"
    assert prompts.longest == len("The train thing number 11 was slow.")
    with pytest.raises(PromptError, match="Did you mean 'dev-1'"):
        prompts.get("dev1")
    with pytest.raises(InvalidOption, match="Did you mean 'train'"):
        prompts.split("trian")


def test_an_empty_split_and_an_empty_set():
    one = PromptSet("one", [Prompt("a", "The bus was late.")])
    with pytest.raises(PromptError, match=r"no prompt in the split 'dev'\. It has train: 1"):
        one.split("dev")
    with pytest.raises(PromptError, match="'none' is empty"):
        PromptSet("none", [])


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (Prompt("a", "Another."), "two prompts with the id 'a'"),
        (Prompt("b", "the  BUS was late.", split="test"), "same text in two splits"),
        (Prompt("b", "Another.", split="exam"), "unknown split 'exam'"),
        (Prompt("b", " \n"), "no valid text"),
        (Prompt("b", "half \ud83d"), "no valid text"),
        (Prompt("b", "Another.", extra={"words": "walrus"}), "list of words"),
        ("Another.", "holds a str"),
    ],
)
def test_unsound_sets_are_refused(second, says):
    with pytest.raises(PromptError, match=says):
        PromptSet("pair", [Prompt("a", "The bus was late."), second])


def test_digest_tells_content_and_split_apart(prompts):
    other = PromptSet("other", [Prompt(p.id, p.text + ".", p.task, p.split) for p in prompts])
    assert prompts.digest("train") == PromptSet("again", prompts.prompts).digest("train")
    assert len({prompts.digest("train"), prompts.digest("dev"), other.digest("train")}) == 3


# --- order ---


def test_every_prompt_once_per_epoch_each_epoch_another_order(prompts):
    train = prompts.split("train")
    stream = PromptStream(train, seed=5)
    epochs = [[p.id for p in stream.take(len(train))] for _ in range(3)]
    assert all(Counter(epoch) == Counter(p.id for p in train) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert stream.epoch == 3
    assert [p.id for p in PromptStream(train, seed=5).take(12)] == epochs[0]
    assert [p.id for p in PromptStream(train, seed=6).take(12)] != epochs[0]


def test_the_order_is_the_same_on_every_machine():
    stream = PromptStream([Prompt(str(i), f"Prompt {i}.") for i in range(6)], seed=0)
    assert "".join(p.id for p in stream.take(12)) == "102534023514"


@pytest.mark.parametrize("taken", [0, 5, 11, 12, 30])
def test_a_stream_continues_exactly(prompts, taken):
    train = prompts.split("train")
    stream = PromptStream(train, seed=1)
    stream.take(taken)
    state = json.loads(json.dumps(stream.get_state()))
    other = PromptStream(train, seed=99)
    other.set_state(state)
    assert other.take(30) == stream.take(30)


@pytest.mark.parametrize(
    "state", [{}, {"seed": 1, "epoch": 0, "position": 12}, {"seed": 1, "epoch": -1, "position": 0}]
)
def test_a_foreign_state_is_refused(prompts, state):
    with pytest.raises(CheckpointError):
        PromptStream(prompts.split("train"), seed=1).set_state(state)


# --- names and live objects ---


def test_live_texts_prompts_and_sets(prompts):
    assert load_prompts(prompts) is prompts
    texts = load_prompts(["The bus was late.", Prompt("x", "The tea was cold.", split="dev")])
    assert [p.text for p in texts.split("train")] == ["The bus was late."]
    assert texts.get("x").split == "dev"
    for bad in (3, [3], {"text": "a"}):
        with pytest.raises(PromptError):
            load_prompts(bad)
    with pytest.raises(InvalidOption, match="limit"):
        load_prompts(["a"], limit=3)


def make_three():
    return ["One.", "Two.", "Three."]


def test_names(tmp_path):
    assert len(load_prompts(f"{__name__}:make_three")) == 3
    with pytest.raises(UnknownName, match="Did you mean 'everyday'"):
        load_prompts("evryday")


@pytest.mark.parametrize("name", ["pocket", "pocket-oneliner", "everyday", "everyday-oneliner"])
def test_bundled_sets_are_sound(name):
    found = load_prompts(name)
    task = "oneliner" if "oneliner" in name else "paraphrase"
    assert {p.task for p in found} == {task}
    assert {p.split for p in found} >= {"train", "dev", "test"}
    assert load_prompts(name) is found


@pytest.mark.parametrize("name", ["pocket-oneliner", "everyday-oneliner"])
def test_bundled_one_liners_have_required_words(name):
    with_words = [p for p in load_prompts(name) if p.extra.get("words")]
    assert with_words
    assert all(word in p.text for p in with_words for word in p.extra["words"])


# --- files ---


def test_jsonl_with_everything(tmp_path):
    path = write(
        tmp_path / "mine.jsonl",
        {"id": 7, "text": "The bus was late.", "split": "test", "task": "oneliner", "words": ["bus"], "mood": "sad"},
        "",
        {"text": "Müde 🐟", "split": "validation"},
    )
    found = load_prompts(path)
    assert found.get("7") == Prompt("7", "The bus was late.", "oneliner", "test", {"words": ["bus"], "mood": "sad"})
    assert found.split("dev")[0].text == "Müde 🐟"


def test_ids_and_splits_do_not_move_when_a_file_grows(tmp_path):
    rows = [{"text": f"Thing {i} was slow."} for i in range(400)]
    small = load_prompts(write(tmp_path / "a.jsonl", *rows[:100]))
    large = load_prompts(write(tmp_path / "b.jsonl", *reversed(rows)))
    assert all(large.get(p.id).split == p.split and large.get(p.id).text == p.text for p in small)
    sizes = Counter(p.split for p in large)
    # Written down, so that an older run's test prompts stay test prompts in every later version.
    held_out = {
        11: "test",
        16: "dev",
        17: "dev",
        20: "dev",
        30: "dev",
        39: "test",
        52: "dev",
        56: "dev",
        57: "test",
        60: "dev",
        61: "test",
        65: "test",
        67: "dev",
        69: "test",
        71: "test",
        83: "test",
        85: "test",
        86: "test",
        98: "test",
    }
    assert {int(p.text.split()[1]): p.split for p in small if p.split != "train"} == held_out
    assert 280 < sizes["train"] < 360
    assert sizes["dev"] > 15
    assert sizes["test"] > 15


def test_options_of_files(tmp_path):
    path = write(tmp_path / "mine.jsonl", *({"q": f"Thing {i}.", "a": "no"} for i in range(9)))
    found = load_prompts(path, text="q", split="ood", task="oneliner", limit=4)
    assert [p.text for p in found.split("ood")] == [f"Thing {i}." for i in range(4)]
    assert {p.task for p in found} == {"oneliner"}
    for wrong in ({"limit": 0}, {"split": "exam"}, {"text": "q", "colour": "red"}):
        with pytest.raises(InvalidOption):
            load_prompts(path, **wrong)


def test_repeated_texts_are_left_out_with_a_warning(tmp_path):
    path = write(tmp_path / "twice.jsonl", {"text": "The bus was late."}, {"text": "the bus  was late."})
    with pytest.warns(UserWarning, match="1 rows repeat"):
        assert len(load_prompts(path, split="train")) == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "open', r"line 3: not valid JSON \(Unterminated string"),
        ('["a list"]', "line 3: expected one JSON object per line"),
        ('{"txet": "The bus."}', "line 3: no column called text or literal or prompt. It has: txet"),
        ('{"text": "  "}', "line 3: the column 'text' must hold a non-empty text"),
        ('{"text": 5}', "line 3: .*found 5"),
        ('{"text": "a \\ud800"}', "line 3: .*lone surrogate"),
        ('{"text": "The bus.", "split": ["train"]}', "line 3: no split is called .*train"),
        ('{"text": "The bus.", "n": ' + "1" * 5000 + "}", "line 3: cannot be read as JSON"),
        ("[" * 100_000, "line 3: cannot be read as JSON"),
        ('{"text": "The bus.", "split": "trian"}', "line 3: no split is called 'trian'. Did you mean 'train'"),
        ('{"text": "The bus.", "words": [1]}', "line 3: 'words' must be a list of words"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, says):
    path = write(tmp_path / "bad.jsonl", {"text": "One."}, {"text": "Two."}, line)
    with pytest.raises(PromptError, match=says):
        load_prompts(path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(PromptError, match=r"cannot be read: No such file"):
        load_prompts(str(tmp_path / "none.jsonl"))
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "One."}\n{"text": "caf\xe9"}\n')
    with pytest.raises(PromptError, match=r"line 2: not UTF-8 \(byte 0xe9"):
        load_prompts(str(tmp_path / "latin.jsonl"))
    with pytest.raises(PromptError, match="is empty"):
        load_prompts(write(tmp_path / "empty.jsonl", ""))


def test_csv(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_bytes(b'\xef\xbb\xbftext,split,words\r\n"Slow, late.",train,bus; tea\r\n"Two\r\nlines.",dev,\r\n')
    found = load_prompts(str(path))
    assert found.split("train")[0].text == "Slow, late."
    assert found.split("train")[0].extra == {"words": ["bus", "tea"]}
    assert found.split("dev")[0].text == "Two\nlines."
    with pytest.raises(PromptError, match="line 3: the header names 1 columns"):
        load_prompts(write(tmp_path / "bad.csv", "text", "One.", "Slow, late."))
    with pytest.raises(PromptError, match="line 2: the column 'text' must hold"):
        load_prompts(write(tmp_path / "gap.csv", "text,split", ",train"))
    with pytest.raises(PromptError, match="not valid CSV"):
        load_prompts(write(tmp_path / "quote.csv", "text", '"One'))


# --- datasets ---


def test_a_saved_dataset_with_splits(tmp_path):
    made = datasets.DatasetDict(
        train=datasets.Dataset.from_dict({"text": ["One.", "Two."]}),
        validation=datasets.Dataset.from_dict({"text": ["Three."]}),
    )
    made.save_to_disk(str(tmp_path / "saved"))
    for name in (f"hf:{tmp_path / 'saved'}", str(tmp_path / "saved")):
        found = load_prompts(name)
        assert {p.text: p.split for p in found} == {"One.": "train", "Two.": "train", "Three.": "dev"}


def test_a_saved_table_is_divided_by_hash(tmp_path):
    table = datasets.Dataset.from_dict({"sentence": [f"Thing {i} was slow." for i in range(60)]})
    table.save_to_disk(str(tmp_path / "saved"))
    found = load_prompts(f"hf:{tmp_path / 'saved'}", text="sentence")
    assert {p.split for p in found} == {"train", "dev", "test"}
    with pytest.raises(PromptError, match=r"row 0: no column called text or literal or prompt\. It has: sentence"):
        load_prompts(f"hf:{tmp_path / 'saved'}")


def test_the_hub_path_on_a_folder_of_data_files(tmp_path, monkeypatch):
    """`load_dataset` is the code that a hub name runs through; a folder of files stands for the repository."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    repository = tmp_path / "repository"
    repository.mkdir()
    write(repository / "train.jsonl", {"text": "One."}, {"text": "Two."})
    write(repository / "test.jsonl", {"text": "Three."})
    found = load_prompts(f"hf:{repository}")
    assert {p.text: p.split for p in found} == {"One.": "train", "Two.": "train", "Three.": "test"}
    write(repository / "train.jsonl", {"text": "One."}, {"text": ""})
    with pytest.raises(PromptError, match="row 1 of train: the column 'text' must hold"):
        load_prompts(f"hf:{repository}")


def test_a_dataset_that_is_not_there():
    with pytest.raises(PromptError, match="'nobody/nothing' cannot be loaded"):
        load_prompts("hf:nobody/nothing")


def test_no_bundled_split_shares_a_prompt():
    for name in ("pocket", "everyday"):
        found = load_prompts(name)
        texts = [{p.text.casefold() for p in found if p.split == split} for split in SPLITS]
        for i, one in enumerate(texts):
            for other in texts[i + 1 :]:
                assert not one & other


def test_orders_of_a_vector_are_small():
    assert PromptStream([Prompt("a", "One."), Prompt("b", "Two.")], 0)._order.dtype == np.int32
