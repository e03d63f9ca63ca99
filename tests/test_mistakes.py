"""The sentence for each mistake in a table: its place, what was expected, and the nearest right key."""

from typing import Annotated, Any

import pytest
from pydantic import Field

from humor_env.experiments.specs.learner_settings import Table
from humor_env.experiments.specs.mistakes import ELSEWHERE, _in_toml_words, _inside, _near, _table_at, checked
from humor_env.experiments.specs.overrides import Source


class Sampling(Table):
    max_new_tokens: int = 48
    top_k: int = 0


class Entry(Table):
    critic: str
    gate: Annotated[float, Field(ge=0, le=1)] | None = None


class Learner(Table):
    steps: int = 1
    learning_rate: float = 1e-5
    kl_weight: float = 0.1
    targets: str | tuple[str, ...] = "all"
    sampling: Sampling = Sampling()
    later: Sampling | None = None
    entries: list[Entry] = []
    options: dict[str, Any] = {}
    whiten: bool = True


LINES = {("learner",): 4, ("learner", "stesp"): 6, ("learner", "entries", 1): 9}


def sentences(data, at=("learner",), model=Learner):
    problems = ["told before"]
    read = checked(model, data, at, Source("mine.toml", LINES), problems)
    assert problems[0] == "told before"
    assert (read is None) == (len(problems) > 1)
    return problems[1:]


def test_a_table_without_mistakes_is_its_model():
    problems = []
    read = checked(Learner, {"steps": 3, "entries": [{"critic": "x"}]}, (), Source("mine.toml", {}), problems)
    assert read == Learner(steps=3, entries=[Entry(critic="x")])
    assert problems == []


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"stesp": 1}, "mine.toml, line 6: [learner] has no key 'stesp'. Did you mean 'steps'?"),
        ({"lr": 1}, "mine.toml, line 4: [learner] has no key 'lr'. Did you mean 'learning_rate'?"),
        ({"kw": 1}, "mine.toml, line 4: [learner] has no key 'kw'. Did you mean 'kl_weight'?"),
        ({"seed": 1}, "mine.toml, line 4: [learner] has no key 'seed'. 'seeds' at the top gives the seed."),
        ({"top_k": 1}, "mine.toml, line 4: [learner] has no key 'top_k'. Did you mean 'learner.sampling.top_k'?"),
        ({"beta": 1}, "mine.toml, line 4: [learner] has no key 'beta'. Did you mean 'learner.kl_weight'?"),
        (
            {"max_completion_length": 1},
            "mine.toml, line 4: [learner] has no key 'max_completion_length'. "
            "Did you mean 'learner.sampling.max_new_tokens'?",
        ),
        (
            {"sampling": {"tok_k": 1}},
            "mine.toml, line 4: [learner.sampling] has no key 'tok_k'. Did you mean 'top_k'?",
        ),
        (
            {"sampling": {"zzz": 1}},
            "mine.toml, line 4: [learner.sampling] has no key 'zzz'. Known: max_new_tokens, top_k.",
        ),
        ({"later": {"tok_k": 1}}, "mine.toml, line 4: [learner.later] has no key 'tok_k'. Did you mean 'top_k'?"),
        (
            {"entries": [{"critic": "a"}, {"critic": "b", "gaet": 1}]},
            "mine.toml, line 9: [learner.entries.1] has no key 'gaet'. Did you mean 'gate'?",
        ),
        ({"entries": [{}]}, "mine.toml, line 4: [learner.entries.0] needs the key 'critic'."),
        (
            {"entries": {"critic": "a"}},
            "mine.toml, line 4: 'learner.entries' may be given more than once, so its header is [[learner.entries]], "
            "with two brackets.",
        ),
        ({"entries": 3}, "mine.toml, line 4: 'learner.entries' should be a list, found 3."),
        ({"steps": "x"}, "mine.toml, line 4: 'learner.steps' should be a whole number, found 'x'."),
        ({"steps": 1.5}, "mine.toml, line 4: 'learner.steps' should be a whole number, found 1.5."),
        ({"steps": {"a": 1}}, "mine.toml, line 4: 'learner.steps' should be a whole number, found {'a': 1}."),
        ({"kl_weight": "x"}, "mine.toml, line 4: 'learner.kl_weight' should be a number, found 'x'."),
        ({"whiten": 1}, "mine.toml, line 4: 'learner.whiten' should be a valid boolean, found 1."),
        ({"targets": 3}, "mine.toml, line 4: 'learner.targets' should be a text or be a list, found 3."),
        ({"targets": ["a", 3]}, "mine.toml, line 4: 'learner.targets' should be a text, found ['a', 3]."),
        ({"later": 3}, "mine.toml, line 4: 'learner.later' should be a table, found 3."),
        ({"sampling": 3}, "mine.toml, line 4: 'learner.sampling' should be a table, found 3."),
        ({"options": 3}, "mine.toml, line 4: 'learner.options' should be a table, found 3."),
        (
            {"entries": [{"critic": "a"}, {"critic": "b", "gate": 2}]},
            "mine.toml, line 9: 'learner.entries.1.gate' should be less than or equal to 1, found 2.",
        ),
    ],
)
def test_a_mistake_is_told_with_its_place_and_the_way_out(table, sentence):
    assert sentences(table) == [sentence]


def test_at_the_top_there_is_no_table_to_name():
    assert sentences({"zzz": 1}, (), Sampling) == [
        "mine.toml: the top level has no key 'zzz'. Known: max_new_tokens, top_k."
    ]
    assert sentences({}, (), Entry) == ["mine.toml: the top level needs the key 'critic'."]
    assert sentences({"top": 1}, (), Learner)[0].startswith("mine.toml: the top level has no key 'top'.")


def test_each_mistake_has_a_sentence():
    assert sentences({"steps": "x", "stesp": 1, "sampling": {"top_k": "y"}}) == [
        "mine.toml, line 4: 'learner.steps' should be a whole number, found 'x'.",
        "mine.toml, line 4: 'learner.sampling.top_k' should be a whole number, found 'y'.",
        "mine.toml, line 6: [learner] has no key 'stesp'. Did you mean 'steps'?",
    ]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("Input should be a valid integer", "be a whole number"),
        ("Input should be a valid number", "be a number"),
        ("Input should be a valid string", "be a text"),
        ("Input should be a valid array", "be a list"),
        ("Input should be an object", "be a table"),
        ("List should have at least 1 item after validation, not 0", "have at least 1 item"),
    ],
)
def test_pydantics_words_become_tomls(theirs, ours):
    assert _in_toml_words(theirs) == ours


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("stepz", "Did you mean 'steps'?"),
        ("bs", "Did you mean 'batch_size'?"),
        ("lr", "Did you mean 'learning_rate'?"),
        ("zzz", ""),
    ],
)
def test_the_nearest_key_is_one_that_looks_alike_or_begins_alike(key, hint):
    assert _near(key, ["steps", "batch_size", "learning_rate"]) == hint


def test_a_short_form_is_no_hint_where_there_is_no_such_setting():
    assert _near("lr", ["steps"]) == ""


def test_a_key_is_looked_for_in_the_table_and_one_deeper():
    assert _inside(Learner, "steps") == "steps"
    assert _inside(Learner, "top_k") == "sampling.top_k"
    assert _inside(Learner, "gate") == "entries.gate"
    assert _inside(Learner, "nothing") is None
    assert _inside(Learner, "") is None


def test_the_table_at_a_path():
    assert _table_at(Learner, ()) is Learner
    assert _table_at(Learner, ("later",)) is Sampling
    assert _table_at(Learner, ("entries", 1)) is Entry
    assert _table_at(Learner, ("steps", "x")) is Learner


def test_names_from_elsewhere_are_settings_here():
    assert ELSEWHERE == {
        "beta": "kl_weight",
        "kl_coef": "kl_weight",
        "num_generations": "siblings",
        "max_completion_length": "max_new_tokens",
        "max_steps": "steps",
        "num_train_epochs": "epochs",
        "per_device_train_batch_size": "batch_size",
        "epsilon": "clip",
    }
