"""The critic `fit`: nats by a plain loop over a model, edits and pairs, context, cut and odd texts."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from humor_env import pocket
from humor_env.errors import InvalidOption
from humor_env.prompts import load_prompts
from humor_env.registry import critics
from humor_env.rewards.audits.context import measure_context
from humor_env.rewards.likelihood.fit import FitCritic
from humor_env.rewards.likelihood.language_model import LanguageModel
from humor_env.teacher import pocket_lines
from humor_env.types import Joke, Prompt


@pytest.fixture(scope="module")
def plain():
    """log p of the tokens of `text` that come after the first `before` characters, by one pass for each."""
    tokenizer = AutoTokenizer.from_pretrained(pocket.path("causal"))
    model = AutoModelForCausalLM.from_pretrained(pocket.path("causal")).eval()

    def logprob(text, start=0, end=None):
        read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = [tokenizer.bos_token_id, *read["input_ids"]]
        with torch.inference_mode():
            logps = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
        stop = len(text) if end is None else end
        return sum(
            float(logps[t, ids[t + 1]])
            for t, (low, high) in enumerate(read["offset_mapping"])
            if high > start and low < stop
        )

    return logprob


def made(**options):
    return FitCritic("pocket:causal", **options)


def test_the_nats_of_a_line_after_its_prompt_by_a_plain_loop(plain):
    prompt, line = "The meeting was slow.", "Glaciers overtook it."
    [found] = made(nats=5)([Joke(Prompt("p", prompt), line)])
    gain = plain(f"{prompt}\n{line}", start=len(prompt) + 1) - plain(line)
    assert found.parts == pytest.approx({"line": gain, "rest": 0.0}, abs=1e-3)
    assert found.score == pytest.approx(1 / (1 + math.exp(-gain / 5)), abs=1e-4)


@pytest.mark.parametrize(
    ("prompt", "line", "word"),
    [
        ("the long meeting was so slow that it ended", "the long emoji was so slow that it ended", (9, 14)),
        ("the meeting was slow", "glaciers meeting was slow", (0, 8)),
        ("the  meeting was slow", "the meeting was so cold", (16, 23)),
    ],
    ids=["in the middle", "at the start", "at the end"],
)
def test_the_nats_of_an_edit_by_a_plain_loop(plain, prompt, line, word):
    [found] = made(form="edit")([Joke(Prompt("p", prompt), line)])
    start, end = word
    own = plain(line, start, end) - plain((" " if start else "") + line[start:end])
    prompt = " ".join(prompt.split())
    behind = len(prompt) - (len(line) - end)
    rest = plain(line, end) - plain(prompt, behind) if line[end:] else 0.0
    assert found.parts == pytest.approx({"line": own, "rest": rest}, abs=1e-3)
    assert (rest == 0) == (not line[end:])


def test_a_prompt_makes_no_difference_to_no_words():
    """Nothing, nothing new, and words taken out: the middle, and no failure."""
    prompt = Prompt("p", "the meeting was very slow")
    for form, lines in (("edit", ["", prompt.text, "the meeting was slow"]), ("pair", [""])):
        for found in made(form=form)([Joke(prompt, line) for line in lines]):
            assert (found.score, found.parts) == (0.5, {"line": 0.0, "rest": 0.0})


def test_it_reads_the_prompt():
    """Without a grade from anybody it prefers a line's own prompt; its own score is what an audit calls context."""
    prompts = load_prompts("pocket").split("test")[:40]
    teacher = pocket_lines()
    jokes = [Joke(prompt, teacher.lines_for(prompt.id)[0]) for prompt in prompts]
    scores = measure_context(made(), jokes, draws=2)
    assert scores.interval[0] > 0.6 and scores.lift > 0


def test_hidden_characters_make_nothing_fit_better():
    prompt, line = Prompt("p", "The soup was cold."), "Penguins ordered it."
    jokes = [Joke(prompt, text) for text in (line, "Pen\u200bguins ordered it.", f"\u2066{line}\u2069")]
    plain, *others = (judgement.score for judgement in made()(jokes))
    assert others == pytest.approx([plain] * 2, abs=1e-6)


def test_what_is_asked_together_does_not_change_the_answer():
    prompt = Prompt("p", "The soup was cold.")
    lines = ["Penguins ordered it.", "It was so cold that penguins ordered it with a side of ice and stayed.", "x"]
    together = made(batch_size=3)([Joke(prompt, line) for line in lines])
    alone = [made(batch_size=1)([Joke(prompt, line)])[0] for line in lines]
    assert [j.score for j in together] == pytest.approx([j.score for j in alone], abs=1e-5)


def test_of_a_text_that_is_cut_only_what_was_read_in_both_counts(plain):
    """Of the line after its prompt fewer tokens are read than of the line alone: too long a line seemed to fit."""
    prompt, line = "The meeting was slow. " * 10, "Glaciers overtook it. " * 40
    text, start = f"{prompt}\n{line}", len(prompt) + 1
    [read] = LanguageModel("pocket:causal", max_length=120).read([text])
    end = read[-1].end
    assert start < end < len(text)
    [found] = made(max_length=120)([Joke(Prompt("p", prompt), line)])
    expected = plain(text[:end], start) - plain(line[: end - start])
    assert found.parts == pytest.approx({"line": expected, "rest": 0.0}, abs=1e-2)


def test_of_an_edit_that_is_cut_the_same_rest_counts(plain):
    rest = " meeting was slow." + " Glaciers overtook it." * 40
    before, after = f"The{rest}", f"That long and very slow{rest}"
    [read] = LanguageModel("pocket:causal", max_length=60).read([after])
    seen = read[-1].end - len("That long and very slow")
    assert 0 < seen < len(rest)
    [found] = made(form="edit", max_length=60)([Joke(Prompt("p", before), after)])
    expected = plain(f"That long and very slow{rest[:seen]}", 23) - plain(f"The{rest[:seen]}", 3)
    assert found.parts["rest"] == pytest.approx(expected, abs=1e-2)


def test_a_long_text_is_cut_and_the_tokens_keep_their_places():
    model = LanguageModel("pocket:causal", max_length=8)
    text = "the meeting was slow " * 400
    [tokens] = model.read([text])
    assert len(tokens) == 7
    assert "".join(text[t.start : t.end] for t in tokens).split()[:4] == ["the", "meeting", "was", "slow"]
    [short] = LanguageModel("pocket:causal").read(["the meeting was slow"])
    assert [t.logprob for t in short] == pytest.approx([t.logprob for t in tokens[: len(short)]], abs=1e-4)
    assert model.read([]) == [] and model.read([""]) == [[]]


def test_what_cannot_work_is_said():
    with pytest.raises(InvalidOption, match=r"'pair' or 'edit'.*'edit'"):
        made(form="edits")
    for nats in (0, -1, math.nan, math.inf, "8", True):
        with pytest.raises(InvalidOption, match="nats"):
            made(nats=nats)
    with pytest.raises(InvalidOption, match="could not be loaded"):
        critics.make("fit", model="/no/such/folder")([Joke(Prompt("p", "a"), "b")])
