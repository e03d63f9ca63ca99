"""Tables from a learner's dataclass and back: which fields, in which types, at every depth, and what is left out."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import pytest
from annotated_types import Ge
from pydantic import ValidationError

from humor_env.errors import InvalidOption
from humor_env.experiments.specs.learner_settings import (
    check_table,
    config_class,
    make_config,
    plain,
    settings_model,
    table_of,
    with_full_names,
)


class Colour(Enum):
    RED = "red"


class Level(StrEnum):
    HIGH = "high"


@dataclass(frozen=True)
class Inner:
    width: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Outer:
    depth: int
    inner: Inner = field(default_factory=Inner)
    places: tuple[str, ...] = ("a",)
    limit: float | None = None
    callback: Callable[[], Any] | None = None
    made: int = field(default=0, init=False)
    seed: int = 0


def train(config: Outer, student): ...


def train_by_name(config: "Outer", student): ...


def train_by_a_lost_name(config: "Nowhere", student): ...  # noqa: F821


def train_by_a_class_that_is_none(config: int, student): ...


def train_nothing(): ...


def test_the_dataclass_is_that_of_the_first_parameter():
    assert config_class(train) is Outer
    assert config_class(train_by_name, "mine") is Outer


@pytest.mark.parametrize("wrong", [train_by_a_lost_name, train_by_a_class_that_is_none, train_nothing])
def test_a_function_without_a_dataclass_is_told_by_its_name(wrong):
    how = "annotate the first parameter of its train function with a dataclass, as in train(config: MyConfig, env, "
    for name, called in (("", wrong.__name__), ("mine", "mine")):
        with pytest.raises(InvalidOption) as caught:
            config_class(wrong, name)
        assert str(caught.value) == (f"The learner '{called}' does not say what its settings are: {how}student, log).")


def test_what_is_no_function_is_told():
    with pytest.raises(InvalidOption) as caught:
        config_class("abc")
    assert str(caught.value) == "The learner ''abc'' is a str; expected a function train(config, …)."


def test_a_table_has_the_fields_that_a_file_may_set():
    model = settings_model(Outer)
    assert list(model.model_fields) == ["depth", "inner", "places", "limit", "callback"]
    assert [name for name, info in model.model_fields.items() if info.is_required()] == ["depth"]
    assert list(model.model_fields["inner"].annotation.model_fields) == ["width"]
    assert model.__name__ == "Outer"


@pytest.mark.parametrize(
    ("table", "wrong"),
    [
        ({}, ("depth",)),
        ({"depth": 1, "zzz": 2}, ("zzz",)),
        ({"depth": 1, "seed": 2}, ("seed",)),
        ({"depth": 1, "made": 2}, ("made",)),
        ({"depth": "1"}, ("depth",)),
        ({"depth": 1.5}, ("depth",)),
        ({"depth": True}, ("depth",)),
        ({"depth": 1, "limit": "2"}, ("limit",)),
        ({"depth": 1, "inner": {"width": "1"}}, ("inner", "width")),
        ({"depth": 1, "places": ["a", 3]}, ("places", 1)),
    ],
)
def test_types_are_not_converted_and_unknown_keys_refused(table, wrong):
    with pytest.raises(ValidationError) as caught:
        check_table(settings_model(Outer), table)
    assert [error["loc"] for error in caught.value.errors()] == [wrong]


def test_a_whole_number_is_a_float_and_a_list_a_tuple():
    config = make_config(Outer, {"depth": 2, "limit": 3, "places": ["b", "c"], "inner": {"width": 4}})
    assert config == Outer(2, Inner(4.0), ("b", "c"), 3.0)
    assert isinstance(config.limit, float) and isinstance(config.places, tuple)


def test_only_what_is_given_is_passed_on_and_the_rest_is_the_dataclass_own():
    assert make_config(Outer, {"depth": 2}) == Outer(2)
    assert make_config(Outer, {"depth": 2, "inner": {}}) == Outer(2)


def test_the_seed_is_set_at_every_depth_and_only_if_there_is_one():
    assert make_config(Outer, {"depth": 2}, seed=7) == Outer(2, Inner(seed=7), seed=7)
    assert make_config(Outer, {"depth": 2}, seed=0) == Outer(2)

    @dataclass(frozen=True)
    class Seeded:
        inner: Inner = Inner(seed=3)
        kind: type = Inner
        seed: int = 5

    assert make_config(Seeded, {}) == Seeded()
    assert make_config(Seeded, {}, seed=0) == Seeded(Inner(seed=0), seed=0)


def test_a_table_that_mirrors_a_dataclass_has_its_limits_and_defaults():
    @dataclass
    class Server:
        url: str
        tries: Annotated[int, Ge(1)] = 3

    model = table_of(Server)
    assert model(url="x").model_dump() == {"url": "x", "tries": 3}
    assert model.__name__ == "Server"
    for wrong in ({}, {"url": "x", "tries": 0}, {"url": "x", "tries": "4"}, {"url": "x", "zzz": 1}):
        with pytest.raises(ValidationError):
            model(**wrong)
    with pytest.raises(ValidationError, match="frozen"):
        model(url="x").url = "y"


@dataclass
class Rate:
    learning_rate: float = 1.0


@dataclass
class Both:
    learning_rate: float = 1.0
    lr: float = 2.0


@dataclass
class Neither:
    steps: int = 1


@pytest.mark.parametrize(("config", "name"), [(Rate, "learning_rate"), (Both, "lr"), (Neither, "lr")])
def test_lr_is_the_learning_rate_where_only_that_is_a_setting(config, name):
    assert with_full_names(config, {"lr": 3.0, "steps": 2}) == {name: 3.0, "steps": 2}


def test_a_dataclass_as_data_for_a_file():
    @dataclass
    class Everything:
        whole: int = 1
        yes: bool = True
        text: str = "x"
        nothing: None = None
        colour: Colour = Colour.RED
        level: Level = Level.HIGH
        path: PurePosixPath = field(default_factory=lambda: PurePosixPath("a/b"))
        pair: tuple = (1, Colour.RED, Path("c"))
        holed: tuple = (1, None)
        odd: tuple = (1, len)
        table: dict = field(default_factory=lambda: {1: 2, "f": len, "n": None, "p": Path("d")})
        inner: Inner = Inner(2.0, 3)
        kind: type = Inner
        function: Any = len
        seed: int = 4

    found = plain(Everything())
    assert found == {
        "whole": 1,
        "yes": True,
        "text": "x",
        "colour": "red",
        "level": "high",
        "path": "a/b",
        "pair": [1, "red", "c"],
        "table": {"1": 2, "n": None, "p": "d"},
        "inner": {"width": 2.0},
    }
    assert type(found["level"]) is str


def test_what_is_plain_makes_the_same_config_again():
    """A field that the dataclass computes itself (`init=False`) was saved in the spec, which then refused the key."""
    config = Outer(3, Inner(2.5), ("x", "y"), 0.5)
    assert make_config(Outer, plain(config)) == config
    assert dataclasses.asdict(make_config(Outer, plain(config), seed=9))["inner"] == {"width": 2.5, "seed": 9}
