"""A small head on the states of a language model that reads a sentence and a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch

from humor_env.errors import InvalidOption
from humor_env.rewards.trained.state_reader import GradeHead, HeadConfig, StateReader, load_head
from humor_env.types import Joke, Prompt

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<line>{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("body")
    words = tiny.tokenizer()
    words.chat_template = TEMPLATE
    tiny.llama(len(words), context=512).save_pretrained(place)
    words.save_pretrained(place)
    return str(place)


def jokes(*pairs: tuple[str, str]) -> list[Joke]:
    return [Joke(Prompt(sentence, sentence), line) for sentence, line in pairs]


SOME = jokes(
    ("The meeting was slow.", "Glaciers overtook it."),
    ("The meeting was slow.", "It was so slow that moss grew on all of us."),
    ("My cat sleeps.", "My cat sleeps as if it were paid by the hour."),
)


def by_hand(folder: str, joke: Joke, layers: int) -> torch.Tensor:
    """One row in one pass, by the states that transformers gives of every layer."""
    from transformers import AutoModel, AutoTokenizer

    words, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    before = words.encode(f"<system>Be funny.<user>{joke.prompt.text}<line>", add_special_tokens=False)
    line = words.encode(joke.text, add_special_tokens=False)
    with torch.no_grad():
        out = model(torch.tensor([[*before, *line, words.eos_token_id]]), output_hidden_states=True)
    states = out.hidden_states[layers][0, len(before) :]
    return torch.cat([states[:-1].mean(0), states[-2], states[-1]])


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_states_are_those_of_a_row_read_alone(folder: str, batch_size: int) -> None:
    """Whatever it is padded and batched with, and though what all rows begin with is read once."""
    states = StateReader(folder, layers=1, instruction="Be funny.", batch_size=batch_size, device="cpu").states(SOME)
    for joke, found in zip(SOME, states, strict=True):
        torch.testing.assert_close(found, by_hand(folder, joke, layers=1), atol=1e-5, rtol=1e-5)


def test_lines_of_one_sentence_that_begin_alike_are_read_whole(folder: str) -> None:
    """What they share was counted with the prompt, and the line's mean left it out: in `play`, and for a lone pair."""
    alike = jokes(*[("The meeting was slow.", f"It was so slow that {end}.") for end in ("moss grew", "it snowed", "")])
    states = StateReader(folder, layers=1, instruction="Be funny.", device="cpu").states(alike)
    for joke, found in zip(alike, states, strict=True):
        torch.testing.assert_close(found, by_hand(folder, joke, layers=1), atol=1e-5, rtol=1e-5)


def test_an_empty_line_and_a_long_one_have_states(folder: str) -> None:
    reader = StateReader(folder, layers=1, instruction="Be funny.", device="cpu")
    states = reader.states(jokes(("The meeting was slow.", " "), ("It rained. " * 300, "ha " * 3000)))
    assert states.shape == (2, 3 * 32) and bool(states.isfinite().all())


def test_what_nobody_sees_is_not_read(folder: str) -> None:
    """Zero-width spaces between the letters raised the score of `everyday` from 0.20 to 0.48."""
    reader = StateReader(folder, layers=1, instruction="Be funny.", device="cpu")
    line = "It was so slow that moss grew."
    hidden = ("\u200b".join(line), f"\u202e{line}\u202c", f"{line}\x1b", "\ud800" + line)
    plain, *others = reader.states(jokes(*(("The meeting was slow.", text) for text in (line, *hidden))))
    for other in others:
        torch.testing.assert_close(other, plain)


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    words = tiny.tokenizer()
    tiny.llama(len(words)).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    with pytest.raises(InvalidOption, match="not a chat model"):
        StateReader(str(tmp_path), layers=1, instruction="Be funny.", device="cpu").states(SOME)


def test_a_head_learns_and_is_the_same_after_saving(tmp_path: Path) -> None:
    torch.manual_seed(0)
    states = torch.randn(400, 10) * 5 + 2
    shares = torch.stack([(states[:, 0] > 2).float(), states[:, 1].sigmoid()], 1)
    head = GradeHead.fit(
        states,
        shares,
        ["funny", "meaning"],
        HeadConfig(hidden=16, epochs=30, members=2, learning_rate=1e-2, dropout=0.1),
    )
    assert float((head(states) - shares).abs().mean()) < 0.2
    again = GradeHead.fit(
        states,
        shares,
        ["funny", "meaning"],
        HeadConfig(hidden=16, epochs=30, members=2, learning_rate=1e-2, dropout=0.1),
    )
    assert torch.equal(head(states), again(states)), "the seed decides"
    head.save(tmp_path, {"model": "smollm2", "layers": 3, "instruction": "Be funny."})
    loaded, reading = load_head(tmp_path)
    torch.testing.assert_close(loaded(states), head(states), atol=5e-3, rtol=0)
    assert reading == {"model": "smollm2", "layers": 3, "instruction": "Be funny."}


def test_a_damaged_head_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "head.json").write_text(json.dumps({"questions": []}))
    with pytest.raises(InvalidOption, match="has no grade head"):
        load_head(tmp_path)
