"""`--set KEY=VALUE`: what it reaches, what it refuses, and the place that an error names."""

import pytest

from humor_env.errors import InvalidOption
from humor_env.experiments.specs.overrides import Source, override

LINES = {
    ("learner",): 3,
    ("learner", "lr"): 5,
    ("teacher", "imitation", "lr"): 6,
    ("critic",): 7,
    ("critic", 0): 7,
    ("critic", 0, "gate"): 8,
}


def source():
    return Source("mine.toml", dict(LINES))


def refusal(data, pair, known=None):
    with pytest.raises(InvalidOption) as caught:
        override(data, pair, known or source())
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "place"),
    [
        (("learner",), "mine.toml, line 3"),
        (("learner", "steps"), "mine.toml, line 3"),  # the table, where the key has no line
        (("learner", "learning_rate"), "mine.toml, line 5"),  # written as lr
        (("learner", "lr"), "mine.toml, line 5"),
        (("learner", "learning_rate", "x"), "mine.toml, line 3"),  # only a path that ends in the name has two names
        (("teacher", "imitation", "learning_rate"), "mine.toml, line 6"),
        (("critic", 0, "gate"), "mine.toml, line 8"),
        (("critic", 0, "options", "a"), "mine.toml, line 7"),
        (("critic", 1, "gate"), "mine.toml, line 7"),
        (("eval", "limit"), "mine.toml"),
        ((), "mine.toml"),
    ],
)
def test_a_place_is_the_line_of_the_key_or_of_the_nearest_table(path, place):
    assert source().where(path) == place


def test_an_override_is_the_place_of_what_it_set_and_of_what_is_inside():
    known = source()
    override({"learner": {"steps": 1}}, "learner.sampling={top_k=5}", known)
    assert known.overrides == {("learner", "sampling"): "--set learner.sampling={top_k=5}"}
    assert known.where(("learner", "sampling", "top_k")) == "--set learner.sampling={top_k=5}"
    assert known.where(("learner", "steps")) == "mine.toml, line 3"
    # A parent that was overridden is named before the line of a key, which is no longer read.
    override({"critic": [{}]}, "critic=[]", known)
    assert known.where(("critic", 0, "gate")) == "--set critic=[]"


def test_two_sources_share_no_overrides():
    one, two = source(), source()
    override({}, "name=x", one)
    assert two.overrides == {}


@pytest.mark.parametrize(
    ("before", "pair", "after"),
    [
        ({}, "name=x", {"name": "x"}),
        ({}, "a.b.c=[1, 2]", {"a": {"b": {"c": [1, 2]}}}),
        ({"a": {"b": 1, "k": 2}}, "a.b=3", {"a": {"b": 3, "k": 2}}),
        ({"l": [{"x": 1}, {"x": 2}]}, "l.1.x=5", {"l": [{"x": 1}, {"x": 5}]}),
        ({"l": [{"x": 1}, {"x": 2}]}, "l.0={y=1}", {"l": [{"y": 1}, {"x": 2}]}),
        ({"l": [1, 2, 3]}, "l.2=9", {"l": [1, 2, 9]}),
        ({"l": [[1, 2], [3, 4]]}, "l.1.0=9", {"l": [[1, 2], [9, 4]]}),
    ],
)
def test_a_dotted_key_reaches_into_tables_and_lists(before, pair, after):
    known = source()
    override(before, pair, known)
    assert before == after
    assert list(known.overrides.values()) == [f"--set {pair}"]


def test_entries_of_lists_are_numbers_in_the_path():
    known = source()
    override({"l": [{"x": 1}, {"x": 2}]}, "l.1.x=5", known)
    override({"l": [1, 2]}, "l.1=5", known)
    assert list(known.overrides) == [("l", 1, "x"), ("l", 1)]


@pytest.mark.parametrize(
    ("data", "pair", "sentence"),
    [
        ({}, "a..b=1", "--set a..b=1: a part of the dotted key is empty."),
        ({}, ".a=1", "--set .a=1: a part of the dotted key is empty."),
        ({"a": 1}, "a.b=1", "--set a.b=1: 'a' is not a table, so it has no 'b'."),
        ({"a": 1}, "a.b.c=1", "--set a.b.c=1: 'a' is not a table, so it has no 'b'."),
        ({"x": {"a": "t"}}, "x.a.b=1", "--set x.a.b=1: 'x.a' is not a table, so it has no 'b'."),
        (
            {"l": [1, 2]},
            "l.2=1",
            "--set l.2=1: 'l' is a list, whose entries are numbered: 0, 1; found '2'.",
        ),
        ({"l": []}, "l.0.a=1", "--set l.0.a=1: 'l' is a list, whose entries are numbered: none; found '0'."),
        (
            {"x": {"l": [{}]}},
            "x.l.a.b=1",
            "--set x.l.a.b=1: 'x.l' is a list, whose entries are numbered: 0; found 'a'.",
        ),
    ],
)
def test_what_a_key_cannot_reach_is_a_sentence(data, pair, sentence):
    assert refusal(data, pair) == sentence


@pytest.mark.parametrize("at", [("learner",), ("teacher", "imitation")])
@pytest.mark.parametrize(("file", "given"), [("lr", "learning_rate"), ("learning_rate", "lr"), ("lr", "lr")])
def test_an_override_replaces_the_files_other_name_of_the_setting(at, file, given):
    table = {file: 1.0}
    data = {"learner": table} if len(at) == 1 else {"teacher": {"imitation": table}}
    override(data, f"{'.'.join(at)}.{given}=2.0", source())
    assert table == {given: 2.0}


def test_elsewhere_the_two_names_are_two_keys():
    data = {"critic": {"lr": 1.0}}
    override(data, "critic.learning_rate=2.0", source())
    assert data == {"critic": {"lr": 1.0, "learning_rate": 2.0}}


def test_both_names_in_overrides_are_refused():
    known, data = source(), {}
    override(data, "learner.lr=1.0", known)
    override(data, "learner.lr=3.0", known)  # the same name twice: the last counts
    assert data == {"learner": {"lr": 3.0}}
    assert refusal(data, "learner.learning_rate=2.0", known) == (
        "--set learner.learning_rate=2.0 and --set learner.lr=3.0 are one setting: give it once."
    )
