"""Preferences in a file: whose prompt, which line, how certain, and what is refused."""

import hashlib
import json

import pytest

from humor_env.errors import InvalidOption
from humor_env.experiments.specs.preference_file import KEYS, read_preferences
from humor_env.types import Preference, Prompt

PROMPTS = [Prompt("a", "The meeting was slow.", split="dev"), Prompt("b", "The soup was cold.")]
WHOLE = {"prompt_id": "b", "chosen": "So cold.", "rejected": "Cold."}


def read(tmp_path, *rows):
    path = tmp_path / "choices.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return read_preferences(path, iter(PROMPTS))


def refusal(tmp_path, *rows):
    with pytest.raises(InvalidOption) as caught:
        read(tmp_path, *rows)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_a_choice_is_certain_and_from_a_file_unless_it_says_otherwise(tmp_path):
    sure = WHOLE | {"probability": 0.75, "source": "people"}
    assert read(tmp_path, WHOLE, sure) == [
        Preference(PROMPTS[1], "So cold.", "Cold.", 1.0, "file"),
        Preference(PROMPTS[1], "So cold.", "Cold.", 0.75, "people"),
    ]


def test_a_prompt_of_its_own_gets_an_id_from_its_text(tmp_path):
    [preference] = read(tmp_path, {"prompt": "It rained.", "chosen": "x", "rejected": "y"})
    assert preference.prompt == Prompt(hashlib.blake2b(b"It rained.", digest_size=6).hexdigest(), "It rained.")
    assert len(preference.prompt.id) == 12


def test_the_id_counts_before_the_text(tmp_path):
    [preference] = read(tmp_path, WHOLE | {"prompt_id": "a", "prompt": "It rained."})
    assert preference.prompt == PROMPTS[0]


def test_a_text_that_utf8_cannot_hold_has_an_id_too(tmp_path):
    [preference] = read(tmp_path, {"prompt": "odd \ud800", "chosen": "x", "rejected": "y"})
    assert preference.prompt.id == hashlib.blake2b(b"odd ?", digest_size=6).hexdigest()


@pytest.mark.parametrize("sure", [0.5, 1, 1.0, 0.51])
def test_certainty_is_from_one_half_to_one(tmp_path, sure):
    assert read(tmp_path, WHOLE | {"probability": sure})[0].probability == sure


def without(key):
    return {k: v for k, v in WHOLE.items() if k != key}


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("{", "choices.jsonl, line 3 is not JSON."),
        ([], f"choices.jsonl, line 3: expected an object with the keys {', '.join(KEYS)}; found []."),
        (
            WHOLE | {"z": 1},
            f"choices.jsonl, line 3: expected an object with the keys {', '.join(KEYS)}; found "
            '{"prompt_id": "b", "chosen": "So cold.", "rejected": "Cold.", "z": 1}.',
        ),
        ({"z": "y" * 100}, f'line 3: expected an object with the keys {", ".join(KEYS)}; found {{"z": "{"y" * 73}.'),
        (without("chosen"), "choices.jsonl, line 3: 'chosen' is the text of a line, found None."),
        (WHOLE | {"chosen": 3}, "choices.jsonl, line 3: 'chosen' is the text of a line, found 3."),
        (WHOLE | {"rejected": "  "}, "choices.jsonl, line 3: 'rejected' is the text of a line, found '  '."),
        (WHOLE | {"probability": 0.49}, "choices.jsonl, line 3: 'probability' must be between 0.5 and 1, found 0.49."),
        (WHOLE | {"probability": 1.01}, "choices.jsonl, line 3: 'probability' must be between 0.5 and 1, found 1.01."),
        (WHOLE | {"probability": True}, "choices.jsonl, line 3: 'probability' must be between 0.5 and 1, found True."),
        (WHOLE | {"probability": "1"}, "choices.jsonl, line 3: 'probability' must be between 0.5 and 1, found '1'."),
        (
            WHOLE | {"prompt_id": "c"},
            "choices.jsonl, line 3: the run's prompts have no 'c'. Give the prompt's text as 'prompt'.",
        ),
        (without("prompt_id"), "choices.jsonl, line 3: needs 'prompt_id' or 'prompt', found neither."),
        (
            without("prompt_id") | {"prompt": " "},
            "choices.jsonl, line 3: needs 'prompt_id' or 'prompt', found neither.",
        ),
        (without("prompt_id") | {"prompt": 3}, "choices.jsonl, line 3: needs 'prompt_id' or 'prompt', found neither."),
    ],
)
def test_a_wrong_line_is_told_with_its_number(tmp_path, row, sentence):
    # Empty lines count, so that the number is an editor's.
    assert refusal(tmp_path, WHOLE, "  ", row).endswith(sentence)


def test_a_file_that_is_not_there_or_has_no_choices_is_told(tmp_path):
    assert refusal(tmp_path, "", "") == "The preferences file 'choices.jsonl' is empty."
    with pytest.raises(InvalidOption, match=r"The preferences '.*none\.jsonl' cannot be read: "):
        read_preferences(tmp_path / "none.jsonl", PROMPTS)
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidOption, match="cannot be read: 'utf-8'"):
        read_preferences(tmp_path / "bytes.jsonl", PROMPTS)
