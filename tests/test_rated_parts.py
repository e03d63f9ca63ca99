"""Parts of the rated sets and of the cheap-first judge's account, by hand."""

import pytest

from humor_env.rewards.cheap_first import GateReport
from humor_env.rewards.rated.rated_sets import RatedPair, RatedSet, RatedText, load_rated
from humor_env.rewards.rated.tables import Column, read_table
from humor_env.types import Prompt

NONE = Prompt("", "")


def text(id, kind="", score=0.5):
    return RatedText(id, NONE, f"Text {id}.", score, kind=kind)


def test_only_one_kind_leaves_pairs_within_it():
    puns, others = [text(i, "pun") for i in "ab"], [text(i, "other") for i in "cd"]
    pairs = (
        RatedPair("1", puns[0], puns[1], "a"),
        RatedPair("2", puns[0], others[0], "a"),
        RatedPair("3", others[0], puns[0], "b"),
        RatedPair("4", others[0], others[1], "tie"),
    )
    whole = RatedSet("x", (*puns, *others), pairs, scale=(1.0, 5.0))
    assert [p.id for p in whole.only("pun").pairs] == ["1"]
    assert [t.id for t in whole.only("pun").texts] == ["a", "b"]
    assert [p.id for p in whole.only("other").pairs] == ["4"]
    assert whole.kinds() == ("pun", "other")
    assert [p.id for p in whole.decided()] == ["1", "2", "3"]
    assert [whole.unit(score) for score in (1.0, 2.0, 5.0)] == [0.0, 0.25, 1.0]


def test_empty_lines_of_gold_labels_are_no_labels(tmp_path):
    corpus = tmp_path / "x.xml"
    corpus.write_text('<corpus><text id="hom_1"><word id="hom_1_1">They</word></text></corpus>')
    gold = tmp_path / "x.gold"
    gold.write_text("\nhom_1\t1\n  \n")
    [one] = load_rated("semeval-puns", [corpus, gold]).texts
    assert (one.id, one.text, one.score, one.kind) == ("hom_1", "They", 1.0, "pun")


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("x.json", '[{"text": "a"}, {"text": "b"}]', ["entry 1", "entry 2"]),
        ("x.json", '{"p": {"text": "a"}, "q": {"text": "b"}}', ["entry 'p'", "entry 'q'"]),
        ("x.jsonl", '{"text": "a"}\n\n{"text": "b"}\n', ["line 1", "line 3"]),
    ],
)
def test_records_are_told_by_their_place_in_the_file(tmp_path, name, content, place):
    path = tmp_path / name
    path.write_text(content)
    rows = read_table(path, "some", [Column("text", ("text",))])
    assert [row["text"] for row in rows] == ["a", "b"]
    assert [str(row.place) for row in rows] == [f"{path}, {each}" for each in place]


def test_what_a_cheap_first_judge_reports():
    assert str(GateReport()) == "no pairs yet"
    assert GateReport().saved is None and GateReport().agreement is None
    some = GateReport(pairs=100, unsure=30, paid=40)
    assert some.saved == 0.6
    assert str(some) == (
        "100 pairs: 40 asked of the paid judge, 60.0% saved; agreement not known (no sure pair was checked)"
    )
    # 70 sure pairs, of which 10 were checked and 8 agreed; 5 unsure ones went to the cheap judge after all. The paid
    # judge's line is preferred in its own 35, and in 80 % of the other 60: 83 of 95.
    checked = GateReport(pairs=100, unsure=30, short=5, checked=10, agreed=8, paid=40)
    middle, low, high = checked.agreement
    assert middle == pytest.approx(83 / 95)
    assert low == pytest.approx((35 + 60 * 0.4902) / 95, abs=1e-3)  # Wilson's interval of 8 of 10: 0.4902 to 0.9433
    assert high == pytest.approx((35 + 60 * 0.9433) / 95, abs=1e-3)
    assert str(checked) == (
        "100 pairs: 40 asked of the paid judge, 60.0% saved; 5 unsure ones were left to the cheap judge; agrees with "
        "the paid judge on about 87.4% [67.8%, 96.4%]"
    )
