"""Loaders for human-rated sets, on small files in the published formats, written for these tests, traps included."""

import json
import math

import pytest

from humor_env.errors import HumorEnvError, InvalidOption, RatingsError, UnknownName
from humor_env.rewards.rated.other_sets import anonymous
from humor_env.rewards.rated.rated_sets import RatedPair, RatedSet, RatedText, load_rated, rated_sets
from humor_env.types import Prompt

ONE = "id,original,edit,grades,meanGrade\n"
TWO = "id,original1,edit1,grades1,meanGrade1,original2,edit2,grades2,meanGrade2,label\n"


@pytest.fixture
def write(tmp_path):
    def written(name, text, encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text.encode(encoding))
        return path

    return written


def test_ratings_of_headlines(write):
    """A quoted headline with commas; a marked word of two words; an all-zero item written 0; ten raters."""
    found = load_rated(
        "humicroedit",
        write(
            "task-1_train.csv",
            ONE
            + '7,"Mayor , 60 , opens <new bridge/> "" at last """,fridge,32110,1.4\n'
            + "8,Rain stops <play/> in Leeds,breathing,0,0.0\n"
            + "9,Rain stops <play/> in Leeds,opera,3333300000,1.5\n",
        ),
    )
    first, zero, ten = found.texts
    assert first.prompt.text == 'Mayor , 60 , opens new bridge " at last "'
    assert first.text == 'Mayor , 60 , opens fridge " at last "'
    assert (first.id, first.score, first.raters) == ("7", 1.4, (3.0, 2.0, 1.0, 1.0, 0.0))
    assert zero.raters == (0.0,) * 5
    assert len(ten.raters) == 10
    assert zero.prompt == ten.prompt
    assert first.joke.text == first.text
    assert found.notes == ("1 items rated 0 by everybody are written as a single 0: read as five zeros",)
    assert found.scale == (0.0, 3.0)
    assert found.unit(1.5) == 0.5


def test_a_stray_grade_is_left_out_as_the_mean_leaves_it_out(write):
    found = load_rated("funlines", write("f.csv", ONE + "1,Cat <sits/> down,sings,432221,2\n"))
    assert found.texts[0].raters == (3.0, 2.0, 2.0, 2.0, 1.0)
    assert found.notes == ("1 items hold a grade outside 0 to 3, which their mean leaves out: left out too",)


def test_pairs_of_headlines(write):
    """The marked word may be another on either side; grades stand in no order; label 0 is a tie and is dropped."""
    found = load_rated(
        "humicroedit",
        write(
            "task-2_dev.csv",
            TWO
            + "61-99,Rain <stops/> play  in Leeds,starts,01113,1.2,Rain stops <play/> in Leeds ,trains,30001,0.8,1\n"
            + "62-98,Rain <stops/> play,a,11000,0.4,Rain stops <play/>,b,11000,0.4,0\n"
            + "61-97,Rain <stops/> play in Leeds,starts,01113,1.2,Rain stops <play/> in Leeds,soup,33333,3.0,2\n",
        ),
    )
    assert [pair.label for pair in found.pairs] == ["a", "tie", "b"]
    assert len(found.decided()) == 2
    first = found.pairs[0]
    assert first.a.prompt.text == first.b.prompt.text == "Rain stops play in Leeds"
    assert (first.a.text, first.b.text) == ("Rain starts play in Leeds", "Rain stops trains in Leeds")
    assert first.a.raters == (0.0, 1.0, 1.0, 1.0, 3.0)
    assert first.gap == pytest.approx(0.4)
    assert [joke.text for joke in first.jokes] == [first.a.text, first.b.text]
    assert [text.id for text in found.every_text] == ["61", "99", "62", "98", "97"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("1,Cat sits down,sings,11000,0.4\n", "one word of the headline in marks"),
        ("1,Cat <sits/> down,sings,11000,0.9\n", "do not have the mean 0.9"),
        ("1,Cat <sits/> down,sings,1x000,0.4\n", "grades as digits"),
        ("1,Cat <sits/> down,sings,11000,much\n", "line 2: expected a number in 'meanGrade', found 'much'"),
        ("1,Cat <sits/> down,sings,11000,inf\n", "expected a number"),
        ("1,Cat <sits/> down,sings\n", "line 2: this row does not have the header's 5 columns"),
        ("1,C <s/> d,x,11000,0.4\n1,C <s/> d,y,11000,0.4\n", "the id 1 occurs twice in these files"),
        ("", "holds no rows; expected a table of 'humicroedit' with the columns id, original"),
    ],
)
def test_a_wrong_headline_file_says_what_was_expected(write, row, said):
    with pytest.raises(RatingsError, match=said):
        load_rated("humicroedit", write("x.csv", ONE + row))


def test_wrong_files_in_general(write, tmp_path):
    with pytest.raises(RatingsError, match=r"no column original, edit.*found the columns id, text"):
        load_rated("humicroedit", write("y.csv", "id,text\n1,a\n"))
    with pytest.raises(RatingsError, match=r"task 1 .* and task 2 .* separately"):
        load_rated(
            "humicroedit",
            [
                write("a.csv", ONE + "1,C <s/> d,x,11000,0.4\n"),
                write("b.csv", TWO + "1-2,C <s/> d,x,11000,0.4,C <s/> d,y,0,0,1\n"),
            ],
        )
    with pytest.raises(RatingsError, match=r"a label 0 .tie., 1 or 2; found '1-2' and '3'"):
        load_rated("humicroedit", write("c.csv", TWO + "1-2,C <s/> d,x,11000,0.4,C <s/> d,y,0,0,3\n"))
    with pytest.raises(RatingsError, match="of different headlines"):
        load_rated("humicroedit", write("d.csv", TWO + "1-2,C <s/> d,x,11000,0.4,D <s/> d,y,0,0,1\n"))
    with pytest.raises(RatingsError, match=r"'.*none\.csv' cannot be read: No such file"):
        load_rated("humicroedit", tmp_path / "none.csv")
    with pytest.raises(RatingsError, match=r"line 2: not UTF-8 \(byte 0xe9\)"):
        load_rated("humicroedit", write("e.csv", ONE + "1,Caf\u00e9 <s/>,x,11000,0.4\n", "latin-1"))
    with pytest.raises(RatingsError, match=r"suffix '\.xls'"):
        load_rated("hahackathon", write("f.xls", "x"))
    with pytest.raises(UnknownName, match="Did you mean 'humicroedit'"):
        load_rated("humicroedits", "x.csv")
    with pytest.raises(InvalidOption, match="It accepts: min_count, ranks, max_grades"):
        load_rated("newyorker", "x.csv", rank="1-2:3-4")


def test_hahackathon(write):
    """Texts that are no humor have no rating; the test file was published without ratings."""
    head = "id,text,is_humor,humor_rating,humor_controversy,offense_rating\n"
    found = load_rated(
        "hahackathon", write("train.csv", head + '1,"A, joke",1,2.42,1,0.2\n2,A fact,0,,,0.0\n3,Bad,1,1.5,0,\n')
    )
    assert [(t.id, t.score, t.offence) for t in found.texts] == [("1", 2.42, 0.2), ("3", 1.5, None)]
    assert found.texts[0].text == "A, joke"
    assert found.notes == ("1 texts that people did not call humorous have no rating: left out",)
    with pytest.raises(RatingsError, match="no column humor_rating"):
        load_rated("hahackathon", write("test.csv", "id,text\n1,a\n"))


CORPUS = """<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE corpus SYSTEM "puns.dtd">
<corpus lang="en"><text id="hom_1"><word id="hom_1_1" senses="2">I</word><word id="hom_1_2">used</word>
<word id="hom_1_3">AT&amp;T</word><word id="hom_1_4">.</word></text>
<text id="hom_2"><word id="hom_2_1">Is</word><word id="hom_2_2">n't</word><word id="hom_2_3">it</word></text></corpus>
"""


def test_semeval_puns(write):
    xml = write("subtask1-homographic-test.xml", CORPUS)
    gold = write("subtask1-homographic-test.gold", "hom_1\t1\nhom_2\t0\n")
    found = load_rated("semeval-puns", [xml, gold])
    assert [(t.id, t.text, t.score, t.kind) for t in found.texts] == [
        ("hom_1", "I used AT&T.", 1.0, "pun"),
        ("hom_2", "Isn't it", 0.0, "not a pun"),
    ]
    with pytest.raises(RatingsError, match="no gold file says whether it is a pun"):
        load_rated("semeval-puns", xml)
    with pytest.raises(RatingsError, match="line 1: expected an id, a tab and 0 or 1"):
        load_rated("semeval-puns", [xml, write("x.gold", "hom_1 1\n")])
    bomb = CORPUS.replace('SYSTEM "puns.dtd"', '[<!ENTITY a "ha"><!ENTITY b "&a;&a;">]')
    with pytest.raises(RatingsError, match="declares entities"):
        load_rated("semeval-puns", [write("bomb.xml", bomb), gold])
    with pytest.raises(RatingsError, match="is not the XML"):
        load_rated("semeval-puns", [write("cut.xml", CORPUS[:200]), gold])


def test_expun(write):
    """Texts join by id; 0 is "not a joke"; puns apart from the rest; each rater's scale is taken out.

    Rater r grades 4 and 0 (mean 2, spread 2), rater s 2 and 1 (mean 1.5, spread 0.5): z of hom_1 is 1 and 1.
    """
    rows = [
        {"ID": "hom_1", "Funniness (1-5)": [4, 2], "Is a joke": [1, 1], "Offensive/Inappropriate": [0, 1],
         "Annotator ID": [11, 12]},
        {"ID": "hom_2", "Funniness (1-5)": [0, 1], "Is a joke": [0, 1], "Offensive/Inappropriate": [0, 0],
         "Annotator ID": [11, 12]},
    ]  # fmt: skip
    data, xml = write("expun.json", json.dumps(rows)), write("hom.xml", CORPUS)
    gold = write("hom.gold", "hom_1\t1\nhom_2\t0\n")
    found = load_rated("expun", [data, xml, gold])
    first, second = found.texts
    assert (first.text, first.kind, second.kind) == ("I used AT&T.", "pun", "not a pun")
    assert first.raters == (1.0, 1.0)
    assert second.raters == (-1.0, -1.0)
    assert first.rater_ids == ("11", "12")
    assert first.offence == 0.5
    assert found.main == "pun"
    assert [t.id for t in found.only("pun").texts] == ["hom_1"]
    plain = load_rated("expun", [data, xml, gold], z_score=False)
    assert [t.score for t in plain.texts] == [3.0, 0.5]
    assert plain.scale == (0.0, 5.0)
    # Without gold: one of two raters is no majority. JSON lines and objects by id are read as well.
    lines = write("expun.jsonl", "\n".join(json.dumps(row) for row in rows))
    assert [t.kind for t in load_rated("expun", [lines, xml]).texts] == ["pun", "not a pun"]
    by_id = write("byid.json", json.dumps({row["ID"]: {k: v for k, v in row.items() if k != "ID"} for row in rows}))
    assert [t.id for t in load_rated("expun", [by_id, xml]).texts] == ["hom_1", "hom_2"]
    with pytest.raises(RatingsError, match="no text for hom_1"):
        load_rated("expun", data)


def test_expun_leaves_out_items_without_names_where_others_are_z_scored(write):
    """Their raw grades stood among z-scores: 1 and 2 counted as 1.5 standard deviations above the mean."""
    rows = [
        {
            "ID": f"hom_{i}",
            "Funniness (1-5)": grades,
            "Is a joke": [1, 1],
            "Raw text": f"pun {i}",
            "Annotator ID": names,
        }
        for i, (grades, names) in enumerate([([1, 2], ""), ([1, 2], ["x", "y"]), ([3, 4], ["x", "y"])])
    ]
    found = load_rated("expun", write("e.json", json.dumps(rows)))
    assert [(t.id, t.score) for t in found.texts] == [("hom_1", -1.0), ("hom_2", 1.0)]
    assert "1 items without raters' names left out: their grades cannot be z-scored" in found.notes
    plain = load_rated("expun", write("e.json", json.dumps(rows)), z_score=False)
    assert [t.score for t in plain.texts] == [1.5, 1.5, 3.5]
    for row in rows:
        row["Annotator ID"] = ""
    none = load_rated("expun", write("e.json", json.dumps(rows)))
    assert [t.score for t in none.texts] == [1.5, 1.5, 3.5] and none.scale == (0.0, 5.0)


def test_kao(write):
    """Bare carriage returns, Latin-1, the ambiguous word marked with #."""
    head = (
        ",punType,sentenceID,sentenceType,entropy,m1KL,m2KL,KL,m1Focus,m2Focus,funniness,homophoneID,version,sentence"
    )
    rows = [
        "1,near,5,pun,.1,1,2,3,,,1.25,9,a,The caf\u00e9 was #brewed awakening",
        "2,near,5,nonpun,0,1,2,3,,,-0.5,9,b,He sat; up",
    ]
    found = load_rated("kao", write("data-agg.csv", "\r".join([head, *rows]), "latin-1"))
    assert [(t.text, t.kind, t.score) for t in found.texts] == [
        ("The caf\u00e9 was brewed awakening", "pun", 1.25),
        ("He sat; up", "control", -0.5),
    ]
    assert found.main == "pun"


def test_pun_surprise_hides_who_rated(write):
    path = write(
        "ratings.csv",
        "sentence,pair,type,score,WorkerId\nA pun,a/b,pun,4,A1XYZ\nA pun,a/b,pun,2,B2XYZ\nNo,a/b,swap,1,A1XYZ\n",
    )
    found = load_rated("pun-surprise", path)
    assert [(t.score, t.kind) for t in found.texts] == [(3.0, "pun"), (1.0, "swap")]
    assert found.texts[0].rater_ids == (anonymous("A1XYZ"), anonymous("B2XYZ"))
    assert "A1XYZ" not in repr(found)
    assert found.texts[0].prompt.text == ""
    scored = load_rated("pun-surprise", write("z.csv", "sentence,pair,type,score\nA,a/b,pun,-1.2\n"))
    assert scored.texts[0].score == -1.2


def test_one_line_under_two_prompts_is_two_texts(write):
    """Rows of raters without an id were put together by the line alone: 4 and 0 became 2 under the first prompt."""
    head, grades = "prompt,text,score,rater\n", (("Slow.", 4), ("Fat.", 0))
    rows = "".join(f"{prompt},Even the clock left.,{score},{rater}\n" for prompt, score in grades for rater in "ab")
    found = load_rated("ratings", write("rows.csv", head + rows))
    assert [(t.prompt.text, t.score, t.raters) for t in found.texts] == [
        ("Slow.", 4.0, (4.0, 4.0)),
        ("Fat.", 0.0, (0.0, 0.0)),
    ]
    assert len({t.id for t in found.texts}) == 2


NEWYORKER = "rank,funny,somewhat_funny,unfunny,count,score,precision,contest,caption\n"


def test_newyorker_pairs_by_rank_and_seldom_rated_captions(write):
    rows = [(1, 60, 30, 10, "Best"), (2, 40, 30, 30, "Good"), (3, 1, 0, 0, "Lucky"), (4, 0, 100, 100, "Dull")]
    text = NEWYORKER + "".join(f"{r},{f},{s},{u},{f + s + u},{2 - r / 10},0.1,510,{c}\n" for r, f, s, u, c in rows)
    scenes = write("scenes.csv", "contest,description\n510,A cat at a desk\n")
    found = load_rated("newyorker", [write("510.csv", text), scenes], ranks="1-3:4-4")
    assert [(p.a.text, p.b.text, p.label) for p in found.pairs] == [("Best", "Dull", "a"), ("Dull", "Good", "b")]
    assert found.pairs[0].a.prompt.text == "A cat at a desk"
    assert sorted(set(found.pairs[0].a.raters)) == [1.0, 2.0, 3.0]
    assert found.pairs[0].a.raters.count(3.0) == 60
    assert len(load_rated("newyorker", write("x.csv", text), ranks="1-1:4-4").pairs[0].b.raters) == 100
    assert found.notes == ("1 captions with fewer than 50 votes left out",)
    rated = load_rated("newyorker", write("511.csv", text), ranks=None, min_count=1)
    assert len(rated.texts) == 4
    assert "handicapped" in rated.notes[0]
    with pytest.raises(InvalidOption, match="have the form 1-10:1000-1009"):
        load_rated("newyorker", [write("512.csv", text)], ranks="top")
    with pytest.raises(RatingsError, match="No contest has captions of the ranks"):
        load_rated("newyorker", [write("513.csv", text)])


def test_newyorker_ranks_count_from_1_whichever_way_the_file_does(write):
    """The published files number the ranks from 0, and those without the column were counted from 1: "1-10" left out
    the winner."""
    rows = [("Won", 1.9), ("Second", 1.8), ("Third", 1.7), ("Fourth", 1.6)]
    published = "rank,caption,mean,votes\n" + "".join(f"{r},{c},{m},100\n" for r, (c, m) in enumerate(rows))
    by_place = "caption,mean,votes\n" + "".join(f"{c},{m},100\n" for c, m in rows)
    from_one = "rank,caption,mean,votes\n" + "".join(f"{r},{c},{m},100\n" for r, (c, m) in enumerate(rows, 1))
    # Each file counts in its own way, and a winner of too few votes is still the first.
    files = [write("510.csv", published), write("511.csv", by_place), write("512.csv", from_one)]
    files.append(write("513.csv", published.replace("1.9,100", "1.9,9")))
    found = load_rated("newyorker", files, ranks="1-2:4-4")
    met = [{p.a.text, p.b.text} for p in found.pairs]
    assert met == [{"Won", "Fourth"}, {"Second", "Fourth"}] * 3 + [{"Second", "Fourth"}]
    assert [p.id for p in found.pairs[:2]] == ["510-1/510-4", "510-2/510-4"]


def test_newyorker_pairs_with_scenes(write):
    found = load_rated(
        "newyorker-pairs",
        write(
            "fold.csv",
            "caption_a,caption_b,expected,winner_source,image_description,uncanny\n"
            "X,Y,B,crowd_winner,A cat.,It types.\n",
        ),
    )
    [pair] = found.pairs
    assert (pair.label, pair.a.prompt.text, pair.a.kind) == ("b", "A cat. It types.", "crowd_winner")
    assert pair.gap is None


def test_turing_jest_is_split_by_type_and_not_by_is_joke(write):
    rows = "Participant,Is_Joke,Funny,Sentence,Type\n"
    rows += "p1,1,4,Ha,joke\np2,1,5,Ha,joke\np1,0,1,Well,straight\np1,0,2,Ah,expected\n"
    found = load_rated("turing-jest", write("t.csv", rows))
    assert [(t.text, t.kind, t.score, t.raters) for t in found.texts] == [
        ("Ha", "joke", 4.5, (4.0, 5.0)),
        ("Well", "straight", 1.0, ()),
        ("Ah", "expected", 2.0, ()),
    ]
    assert found.main == "joke"
    with pytest.raises(RatingsError, match="line 2: a grade must be in 1 to 5, found 9"):
        load_rated("turing-jest", write("u.csv", "participant,funny,sentence,type\np,9,Ha,joke\n"))


def test_humor_arena_calls_neither_a_tie(write):
    rows = [("left", "a"), ("right", "b"), ("both", "tie"), ("neither", "tie")]
    lines = [
        json.dumps({"session": i, "winner": w, "theme": "cats", "left_joke": "L", "right_joke": "R"})
        for i, (w, _) in enumerate(rows)
    ]
    found = load_rated("humor-arena", write("votes.jsonl", "\n".join(lines)))
    assert [p.label for p in found.pairs] == [label for _, label in rows]
    assert found.notes == ("1 votes say that neither is funny",)
    assert len(found.decided()) == 2
    with pytest.raises(RatingsError, match="expected a label a, b or tie"):
        load_rated("humor-arena", write("w.csv", "winner,left_joke,right_joke\nme,L,R\n"))


def test_the_remaining_public_sets(write):
    unfun = load_rated("unfun", write("unfun.csv", "id,title,rating\n1,Moon sold,0.25\n1,Moon sold,0.75\n2,Tax up,1\n"))
    assert [(t.score, t.raters) for t in unfun.texts] == [(0.5, (0.75, 0.25)), (0.0, ())]
    serious = load_rated(
        "getting-serious",
        write("gs.csv", "headline,source,funniness,annotator\nH,onion,2,x\nH,onion,1,y\nG,real,0,x\n"),
    )
    assert [(t.kind, t.score) for t in serious.texts] == [("onion", 1.5), ("real", 0.0)]
    mechanics = load_rated(
        "humor-mechanics",
        [write("reddit.csv", "text,funniness,offensive\nA,3.2,0.5\n"), write("gpt4.csv", "text,funniness\nB,2.1\n")],
    )
    assert [(t.kind, t.score, t.offence) for t in mechanics.texts] == [("reddit", 3.2, 0.5), ("gpt4", 2.1, None)]
    jokes = load_rated("rjokes", write("dev.tsv", "3\tA joke, with a comma\n0\tNone\n"))
    assert [(t.score, t.text) for t in jokes.texts] == [(3.0, "A joke, with a comma"), (0.0, "None")]
    with pytest.raises(RatingsError, match="line 1: expected a bin 0 to 11"):
        load_rated("rjokes", write("bad.tsv", "12\tA\n"))


def test_jester_leaves_out_99(write):
    jokes = write("jokes.csv", "id,text\n1,A\n2,B\n")
    grades = write("grades.csv", "2,-10,99\n1,5.5,3\n")
    found = load_rated("jester", [jokes, grades], min_raters=1)
    assert [(t.text, t.raters) for t in found.texts] == [("A", (-10.0, 5.5)), ("B", (3.0,))]
    assert [t.text for t in load_rated("jester", [jokes, grades], min_raters=2).texts] == ["A"]
    with pytest.raises(RatingsError, match="-10 to 10, or 99; found 11"):
        load_rated("jester", [jokes, write("g.csv", "1,11,99\n")])
    with pytest.raises(RatingsError, match=r"saved as \.csv"):
        load_rated("jester", [jokes, write("g.xls", "")])


def test_your_own_ratings(write):
    found = load_rated(
        "ratings", write("r.csv", "id,text,score,prompt,raters,kind,offence\nx,A,,Say so,3;1,k,0.5\ny,B,2,,,,\n")
    )
    assert [(t.score, t.raters, t.prompt.text, t.offence) for t in found.texts] == [
        (2.0, (3.0, 1.0), "Say so", 0.5),
        (2.0, (), "", None),
    ]
    assert found.scale == (1.0, 3.0)
    wide = load_rated("ratings", write("j.jsonl", '{"text": "A", "score": 0, "raters": [0, 0]}\n'), low=0, high=5)
    assert (wide.texts[0].id, wide.texts[0].raters, wide.scale) == ("1", (0.0, 0.0), (0, 5))
    tall = load_rated("ratings", write("t.csv", "id,text,score,rater\n1,A,3,ann\n1,A,1,bob\n2,B,2,ann\n"))
    assert [(t.score, t.rater_ids) for t in tall.texts] == [(2.0, (anonymous("ann"), anonymous("bob"))), (2.0, ())]
    for rows, said in (
        ("id,text,score\n1,A,3\n1,B,2\n", "a row per rater needs a column 'rater'"),
        ("id,text,score\n1,A,\n", "neither a score nor raters"),
        ("id,text,score\n1,,3\n", "'text' is empty"),
        ("id,text,score,rater\n1,A,3,a\n1,B,2,b\n", "belongs to two texts"),
        ("id,prompt,text,score,rater\n1,X,A,3,a\n1,Y,A,2,b\n", "belongs to two prompts"),
        ("id,text,raters\n1,A,3;x\n", "no column score"),
        ("id,text,score,raters\n1,A,,3;x\n", "expected numbers in 'raters'"),
    ):
        with pytest.raises(RatingsError, match=said):
            load_rated("ratings", write("bad.csv", rows))
    with pytest.raises(RatingsError, match="outside low=0 to high=1"):
        load_rated("ratings", write("o.csv", "text,score\nA,3\n"), low=0, high=1)


def test_your_own_pairs(write):
    found = load_rated("pairs", write("p.csv", "a,b,label,prompt\nA,B,a,Q\nA,C,2,Q\nD,E,both,\n"))
    assert [p.label for p in found.pairs] == ["a", "b", "tie"]
    # One text of one prompt is one text, in however many pairs it stands.
    assert found.pairs[0].a == found.pairs[1].a or found.pairs[0].a.id == found.pairs[1].a.id
    assert math.isnan(found.pairs[0].a.score)
    assert len(found.every_text) == 5


def test_a_set_of_ones_own_by_name(write):
    def load_mine(paths, shout=False):
        found = load_rated("ratings", paths)
        return RatedSet("mine", found.texts if not shout else found.texts[:1])

    before = dict(rated_sets._entries)
    try:
        rated_sets.register("mine", load_mine, "our office's votes")
        path = write("m.csv", "text,score\nA,1\nB,2\n")
        assert len(load_rated("mine", path).texts) == 2
        assert len(load_rated("mine", path, shout=True).texts) == 1
    finally:
        rated_sets._entries.clear()
        rated_sets._entries.update(before)


def test_every_registered_loader_resolves_and_refuses_a_wrong_file(write):
    wrong = write("wrong.csv", "colour,shape\nred,round\n")
    for name in rated_sets.names():
        with pytest.raises(HumorEnvError, match=r"wrong\.csv|expects|takes no file"):
            load_rated(name, wrong)


def test_a_set_without_a_scale_is_graded_from_0_to_1_and_has_each_text_once():
    one, other = (RatedText(i, Prompt("p", "Q"), f"line {i}", 0.5) for i in "ab")
    rated = RatedSet("mine", (one,))
    assert rated.every_text == (one,)
    assert (rated.unit(0.0), rated.unit(0.5), rated.unit(1.0)) == (0.0, 0.5, 1.0)
    pairs = (RatedPair("1", one, other, "a"), RatedPair("2", other, one, "b"))
    assert RatedSet("votes", pairs=pairs).every_text == (one, other)
