"""TOML written, flattened and located, by hand: which line a key is on, and what a value looks like."""

import math
import tomllib

import pytest

from humor_env.experiments.specs.toml_text import dumps, flat, key_lines


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (False, "false"),
        (3, "3"),
        (-2.5, "-2.5"),
        (1e-05, "1e-05"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (math.nan, "nan"),
        ("x", '"x"'),
        ('a "b" \\ c', '"a \\"b\\" \\\\ c"'),
        ("one\ntwo\t", '"one\\ntwo\\t"'),
        ("é 日本 🐌", '"é 日本 🐌"'),
        ("\u202e", '"\\u202e"'),
        ("\x7f", '"\\u007f"'),
        ("\ue000", '"\\ue000"'),
        ("\U00010000", '"𐀀"'),
        ("\U000e0041", '"\\U000e0041"'),
        ([], "[]"),
        ((1, "a", [True]), '[1, "a", [true]]'),
        ([1, {"b": 2, "n": None, "c d": [3]}], '[1, {b = 2, "c d" = [3]}]'),
    ],
)
def test_a_value_is_written_so(value, text):
    written = dumps({"k": value})
    assert written == f"k = {text}\n"
    tomllib.loads(written)


@pytest.mark.parametrize(
    ("key", "text"), [("a-b_1", "a-b_1"), ("a.b", '"a.b"'), ("", '""'), ("a\n", '"a\\n"'), ("é", '"é"')]
)
def test_a_key_is_quoted_where_it_must_be(key, text):
    assert dumps({key: 1}) == f"{text} = 1\n"
    assert dumps({"t": {key: {"x": 1}}}) == f"[t]\n\n[t.{text}]\nx = 1\n"


def test_tables_come_after_values_and_nothing_that_is_none():
    table = {
        "inner": {"b": 1, "deep": {"c": 2}},
        "n": None,
        "first": 1,
        "each": [{"x": 1}, {"y": {"z": 2}}],
        "empty": {},
        "none": [],
        "also": ({"w": 3},),
    }
    assert dumps(table) == (
        "first = 1\nnone = []\n\n[inner]\nb = 1\n\n[inner.deep]\nc = 2\n\n[[each]]\nx = 1\n\n[[each]]\n\n[each.y]\n"
        "z = 2\n\n[empty]\n\n[[also]]\nw = 3\n"
    )


def test_an_empty_table_is_one_empty_line():
    assert dumps({}) == "\n"
    assert dumps({"a": {"b": 1}}) == "[a]\nb = 1\n"


def test_what_toml_has_not_is_named():
    with pytest.raises(TypeError, match=r"^TOML cannot represent NoneType: None$"):
        dumps({"a": [None]})
    with pytest.raises(TypeError, match=r"^TOML cannot represent set: \{1\}$"):
        dumps({"a": {1}})


def test_nested_tables_by_dotted_names():
    table = {"a": 1, "b": {"c": {"d": 2}, "e": {}}, "l": [{"x": 1}, {"y": {"z": 2}}], "m": [1, {"x": 1}], "n": []}
    assert flat(table) == {
        "a": 1,
        "b.c.d": 2,
        "b.e": {},
        "l.0.x": 1,
        "l.1.y.z": 2,
        "m": [1, {"x": 1}],
        "n": [],
    }
    assert flat({"a": 1, "b": {"c": 2}}, "p.") == {"p.a": 1, "p.b.c": 2}


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("", {}),
        ("# a = 1\n\na = 1\n", {("a",): 3}),
        ("  a.b  =  1\n", {("a", "b"): 1}),
        ("a . 'b.c' . \"d\" = 1\n", {("a", "b.c", "d"): 1}),
        ('a = "x" # b = "\nc = 1\n', {("a",): 1, ("c",): 2}),
        ("a = '''\nb = 1\n'''\nc = 1\n", {("a",): 1, ("c",): 4}),
        ('a = """\n\\"""\nb = 1\n"""\nc = 1\n', {("a",): 1, ("c",): 5}),
        ("a = [\n  {x = 1},\n  [2],\n]\nb = 1\n", {("a",): 1, ("b",): 5}),
        ("a = {b = 1, c = [2]}\nd = 1\n", {("a",): 1, ("d",): 2}),
        ("a = '\\'\nb = '['\nc = 1\n", {("a",): 1, ("b",): 2, ("c",): 3}),
        ("[a]\nb = 1\n[a.c]\nd = 2\n", {("a",): 1, ("a", "b"): 2, ("a", "c"): 3, ("a", "c", "d"): 4}),
        ("[ a . b ] # [x]\nc = 1\n", {("a", "b"): 1, ("a", "b", "c"): 2}),
        ("[[ a ]]\n[[a]]\nb = 1\n", {("a",): 1, ("a", 0): 1, ("a", 1): 2, ("a", 1, "b"): 3}),
        (
            "[[a]]\n[[a.b]]\nx = 1\n[[a.b]]\n[[a]]\n[[a.b]]\ny = 2\n[a.b.c]\nz = 3\n",
            {
                ("a",): 1,
                ("a", 0): 1,
                ("a", 0, "b"): 2,
                ("a", 0, "b", 0): 2,
                ("a", 0, "b", 0, "x"): 3,
                ("a", 0, "b", 1): 4,
                ("a", 1): 5,
                ("a", 1, "b"): 6,
                ("a", 1, "b", 0): 6,
                ("a", 1, "b", 0, "y"): 7,
                ("a", 1, "b", 0, "c"): 8,
                ("a", 1, "b", 0, "c", "z"): 9,
            },
        ),
    ],
)
def test_the_lines_of_headers_and_keys(text, places):
    tomllib.loads(text)
    assert key_lines(text) == places


def test_a_text_that_is_no_toml_ends_no_search():
    """The reader says what is wrong; the lines must not fail before it."""
    assert key_lines('a = "open\nb = ]\nc = 1\n') == {("a",): 1, ("b",): 2, ("c",): 3}
