"""The gate for fluent English: a line's log-probability under a base model."""

from __future__ import annotations

import math

import pytest
import tiny

from humor_env import registry
from humor_env.errors import InvalidOption
from humor_env.rewards.fluency import FluencyCritic
from humor_env.types import Joke, Prompt

PROMPT = Prompt("p", "The meeting was slow.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    place = tmp_path_factory.mktemp("base")
    words = tiny.tokenizer()
    tiny.llama(len(words)).save_pretrained(place)
    words.save_pretrained(place)
    return str(place)


def jokes(*texts: str) -> list[Joke]:
    return [Joke(PROMPT, text) for text in texts]


def by_hand(folder: str, text: str) -> float:
    """One row, no padding, token by token."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    words, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = [words.bos_token_id, *words.encode(text, add_special_tokens=False)]
    with torch.no_grad():
        found = model(torch.tensor([ids])).logits.log_softmax(-1)[0]
    return sum(float(found[k - 1, ids[k]]) for k in range(1, len(ids))) / (len(ids) - 1)


def test_the_score_is_a_logistic_function_of_the_mean_log_probability(folder):
    """Padding of a shorter line beside a longer one must not count, and a line's place in the call neither."""
    lines = ["Glaciers overtook it.", "It was so slow that moss grew on all of us, and then on the moss."]
    critic = FluencyCritic(folder, middle=-6, width=0.5, device="cpu")
    for batch in (lines, lines[::-1]):
        for line, judgement in zip(batch, critic(jokes(*batch)), strict=True):
            mean = by_hand(folder, line)
            assert judgement.parts["log_probability"] == pytest.approx(mean, abs=1e-5)
            assert judgement.score == pytest.approx(1 / (1 + math.exp(-(mean + 6) / 0.5)), abs=1e-5)


def test_a_line_without_words_is_not_fluent_and_no_error(folder):
    empty, full = FluencyCritic(folder, device="cpu")(jokes("  ", "Glaciers overtook it."))
    assert empty.score == 0 and not empty.failed and full.score is not None


def test_a_long_line_is_read_as_far_as_the_limit(folder):
    critic = FluencyCritic(folder, device="cpu")
    assert critic(jokes("ha " * 5000))[0].score is not None


@pytest.mark.parametrize("options", [{"width": 0}, {"middle": math.nan}, {"batch_size": 0}])
def test_options_that_cannot_be_are_named(options):
    with pytest.raises(InvalidOption):
        FluencyCritic(**options)


def test_a_model_that_is_not_there_is_said_in_a_sentence(tmp_path):
    critic = registry.critics.make("fluency", model=str(tmp_path))
    with pytest.raises(InvalidOption, match="cannot be loaded as a language model"):
        critic(jokes("Hello."))
