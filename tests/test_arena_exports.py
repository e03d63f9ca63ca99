"""What an arena's session leaves behind, by hand: two sentences, three systems, two raters and seven asks."""

import csv
import io
import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

import humor_env
from humor_env.experiments.arena import choice, exports, figures, pages, results
from humor_env.experiments.arena.sources import TEACHER, gather, sound, systems_of
from humor_env.experiments.arena.sources import Line as Written
from humor_env.experiments.arena.store import Answered, Ask, Settings, Store
from humor_env.experiments.compare.stats import ELO, Interval
from humor_env.rewards.tournament import strengths

NOON = 1_709_294_400  # 2024-03-01 12:00 in UTC
NAN = math.nan
CAFE, BUS = "The café was slow.", "The bus was late."
# Each with its author and the score of a critic.
LINES = [
    (CAFE, "mine", "Glaciers were röhrend quicker.", 0.9),  # line 0
    (CAFE, TEACHER, "=1+1", 0.5),  # 1
    (BUS, "mine", " ", 0.2),  # 2: nothing was written
    (BUS, TEACHER, "Snails passed it.", 0.4),  # 3
    (BUS, "other", "It had retired.", None),  # 4
]


def write(folder):
    rows = [
        {"prompt": prompt, "prompt_id": f"p{prompt[4]}", "author": author, "text": text}
        | ({} if score is None else {"score": score, "critic": "some"})
        for prompt, author, text, score in LINES
    ]
    (folder / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return gather([], [str(folder / "lines.jsonl")])


def made(folder, monkeypatch, asked, **settings):
    """A session in which each look at the clock is a quarter of a minute after the one before."""
    ticks = itertools.count(NOON, 15)
    monkeypatch.setattr("humor_env.experiments.arena.store.time", SimpleNamespace(time=lambda: next(ticks)))
    store = Store.create(folder / "arena.sqlite", write(folder), Settings(**settings), 2)
    for rater, a, b, turned, again, what, replies in asked:
        with store.writing():
            store.answer(store.add_ask(rater, a, b, turned, again), what, replies)
    return store


def said(humor, consistency):
    return {"humor": humor, "consistency": consistency}


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    """By the first question the teacher loses once, and wins twice against mine and once against the other."""
    asked = [
        (1, 0, 1, False, None, "answer", said("first", "tie")),  # 0 beats 1
        (1, 2, 3, True, None, "answer", said("first", "second")),  # turned: 3 beats 2; 2 keeps the meaning
        (1, 3, 4, False, None, "answer", said("tie", "first")),
        (1, 0, 1, True, 1, "answer", said("second", "first")),  # again, turned: 0 beats 1 as before
        (2, 0, 1, True, None, "answer", said("first", "tie")),  # turned: 1 beats 0
        (2, 2, 3, False, None, "skip", {}),
        (2, 3, 4, True, None, "offence", {}),
    ]
    store = made(tmp_path, monkeypatch, asked, title="A | B")
    yield store
    store.close()


@pytest.fixture
def graded(tmp_path, monkeypatch):
    asked = [
        (1, 0, None, False, None, "answer", said("4", "0")),
        (1, 1, None, False, None, "answer", said("1", "2")),
        (1, 0, None, False, 1, "answer", said("0", "0")),  # a repeat
        (2, 0, None, False, None, "answer", said("3", "1")),
        (2, 2, None, False, None, "answer", said("2", "2")),  # of an empty line
        (2, 4, None, False, None, "skip", {}),
    ]
    store = made(tmp_path, monkeypatch, asked, mode="ratings")
    yield store
    store.close()


def read(text):
    return [json.loads(line) for line in text.splitlines()]


def test_pairs_leave_out_repeats_skipped_and_empty_lines(pairs):
    names = ("id", "prompt", "a", "b", "label")
    cafe, bus = (LINES[0][2], LINES[1][2]), (LINES[3][2], LINES[4][2])
    assert [tuple(row[name] for name in names) for row in read(exports.pairs_file("humor")(pairs))] == [
        ("1", CAFE, *cafe, "a"),
        ("3", BUS, *bus, "tie"),
        ("5", CAFE, *cafe, "b"),
    ]
    assert [row["label"] for row in read(exports.pairs_file("consistency")(pairs))] == ["tie", "a", "tie"]
    assert exports.ratings_file(pairs) == ""


def test_letters_beyond_ascii_can_be_read_in_every_file_that_people_open(pairs):
    for name in ("pairs.jsonl", "people.jsonl", "answers.csv"):
        assert "café" in exports.FILES[name](pairs) and "röhrend" in exports.FILES[name](pairs), name


def test_people_see_each_pair_as_it_was_shown(pairs):
    texts = [text for _, _, text, _ in LINES]
    rows = read(exports.people_file(pairs))
    assert [(row["first"], row["second"], row["humor"], row["consistency"]) for row in rows] == [
        (texts[0], texts[1], "first", "tie"),
        (texts[3], texts[2], "first", "second"),
        (texts[3], texts[4], "tie", "first"),
        (texts[1], texts[0], "first", "tie"),
    ]
    assert [(row["prompt"], row["input"], row["rater"]) for row in rows] == [
        ("pc", CAFE, 1),
        ("pb", BUS, 1),
        ("pb", BUS, 1),
        ("pc", CAFE, 2),
    ]


def test_the_table_has_a_row_for_everything_that_was_done(pairs):
    """The first ask was at 12:00:15, and each answer came a quarter of a minute after its ask."""
    head, *rows = csv.reader(io.StringIO(exports.table(pairs)))
    assert head == [
        *("answer", "rater", "sentence_id", "sentence", "system_1", "system_2", "line_1", "line_2", "repeats", "what"),
        *("humor", "consistency", "overall", "seconds", "at"),
    ]
    mine, theirs = LINES[0][2], "'=1+1"  # no formula
    at = [f"2024-03-01T12:0{minute}:{second}+00:00" for minute in range(4) for second in ("00", "30")]
    assert rows[0] == [
        *("1", "1", "pc", CAFE, "mine", TEACHER, mine, theirs, "", "answer", "first", "tie", "", "15.0", at[1]),
    ]
    assert rows[3] == [
        *("4", "1", "pc", CAFE, TEACHER, "mine", theirs, mine, "1", "answer", "second", "first", "", "15.0", at[4]),
    ]
    assert [(row[1], row[4], row[5], row[9], row[10], row[14]) for row in rows[4:]] == [
        ("2", TEACHER, "mine", "answer", "first", at[5]),
        ("2", "mine", TEACHER, "skip", "", at[6]),
        ("2", "other", TEACHER, "offence", "", at[7]),
    ]


def test_the_table_and_the_file_of_grades(graded):
    rows = list(csv.DictReader(io.StringIO(exports.table(graded))))
    assert [(row["system_1"], row["system_2"], row["line_2"], row["repeats"], row["humor"]) for row in rows] == [
        ("mine", "", "", "", "4"),
        (TEACHER, "", "", "", "1"),
        ("mine", "", "", "1", "0"),
        ("mine", "", "", "", "3"),
        ("mine", "", "", "", "2"),
        ("other", "", "", "", ""),
    ]
    mine = {"id": "0", "prompt": CAFE, "text": LINES[0][2], "kind": ""}
    assert read(exports.ratings_file(graded)) == [
        mine | {"score": 4, "rater": "1"},
        {"id": "1", "prompt": CAFE, "text": "=1+1", "kind": "", "score": 1, "rater": "1"},
        mine | {"score": 3, "rater": "2"},
    ]
    assert exports.pairs_file("humor")(graded) == exports.people_file(graded) == ""
    assert "about" not in exports.card_data(graded)


def test_the_cards_numbers_by_hand(pairs):
    data = exports.card_data(pairs)
    about = data.pop("about")
    assert data == {
        "title": "A | B",
        "mode": "pairs",
        "questions": ["humor", "consistency"],
        "chosen": "adaptive",
        "begun": "2024-03-01",
        "first answer": "2024-03-01",
        "last answer": "2024-03-01",
        "closed": False,
        "systems": ["mine", "other", TEACHER],
        "sentences": 2,
        "raters": 2,
        "answers": 5,
        "skipped": 1,
        "reported": 1,
        "version": humor_env.__version__,
        "repeats": 1,
        "as before": 1.0,
    }
    assert list(about) == ["humor", "consistency"]
    humor = about["humor"]
    # mine beat the teacher once in three games, the other drew with it.
    wins = np.array([[0, 0, 1], [0, 0, 0.5], [2, 0.5, 0]])
    points = ELO * strengths(wins)
    order = np.argsort(-points)
    assert [row["system"] for row in humor["ratings"]] == [["mine", "other", TEACHER][k] for k in order]
    assert [row["value"] for row in humor["ratings"]] == pytest.approx(points[order], abs=1e-3)
    assert {row["tier"] for row in humor["ratings"]} == {1} and humor["ratings"][0]["low"] is None
    assert humor["wins or ties against the teacher"] == {
        "mine": {"answers": 3, "value": 0.3333, "low": None, "high": None},
        "other": {"answers": 1, "value": 1.0, "low": None, "high": None},
    }
    # The pair 0, 1 alone was judged by two, who differ.
    assert humor["two people agree"] == {"pairs": 1, "value": 0.0, "low": None, "high": None}
    assert humor["alpha"]["pairs"] == 1
    # The critic prefers 0 to 1, as one of the two does (1/2), and 3 to 2, as the only one does.
    assert humor["critics"] == {"some": {"pairs": 2, "value": 0.75, "low": None, "high": None}}
    pairs.set_closed(True)
    assert exports.card_data(pairs)["closed"] is True
    assert json.loads(exports.card_json(pairs)) == exports.card_data(pairs)


def test_the_card_as_a_page(pairs):
    page = exports.card(pairs).splitlines()
    assert page[:6] == ["# A | B", "", "A blind session of `humor-env arena`.", "", "| | |", "|---|---|"]
    assert page[6:9] == ["| mode | pairs |", "| questions | humor, consistency |", "| chosen | adaptive |"]
    assert {"| closed | False |", "| as before | 1.00 |", "| raters | 2 |", "| skipped | 1 |"} <= set(page)
    start = page.index("## humor")
    head = ["", "| system | tier | rating | wins or ties against the teacher |", "|---|---|---|---|"]
    assert page[start + 1 : start + 4] == head and page[page.index("## consistency") + 1 :][:3] == head
    rows = page[start:]
    assert any(row.startswith("| mine | 1 | ") and row.endswith(" | 0.33 |") for row in rows)
    assert any(row.startswith("| teacher | 1 | ") and row.endswith(" | – |") for row in rows)
    assert "| some | 0.75 | 2 |" in rows and "| one person with another | 0.00 | 1 |" in rows
    assert "| ceiling | 0.50 | 1 |" in rows


def test_the_card_of_a_session_without_answers(tmp_path, monkeypatch):
    store = made(tmp_path, monkeypatch, [])
    data = exports.card_data(store)
    assert (data["first answer"], data["last answer"], data["as before"], data["raters"]) == (None, None, None, 0)
    assert data["about"]["humor"]["ratings"] == [] and data["about"]["humor"]["critics"]["some"]["pairs"] == 0
    page = exports.card(store)
    assert "| first answer | – |" in page and "| answers | 0 |" in page and "| ceiling | – | 0 |" in page
    assert [path.name for path in exports.write(store, tmp_path / "new" / "out")] == [
        *("answers.csv", "card.md", "card.json"),
    ]
    store.close()


def test_figures_of_the_card_with_and_without_their_bounds():
    assert exports._numbers(None) == {"value": None, "low": None, "high": None}
    assert exports._numbers(Interval(1 / 3, NAN, math.inf)) == {"value": 0.3333, "low": None, "high": None}
    assert exports._numbers(Interval(0.5, 0.12345, 1)) == {"value": 0.5, "low": 0.1235, "high": 1}
    assert exports._with_bounds(None, 2) == exports._with_bounds({"value": None, "low": 0.1}, 2) == "–"
    assert exports._with_bounds({"value": 0.126, "low": None, "high": None}, 2) == "0.13"
    assert exports._with_bounds({"value": 12.6, "low": -3.4, "high": 20.5001}, 0) == "13 [-3, 21]"
    assert exports._day(NOON - 12 * 3600 - 1) == "2024-02-29"


# The page of results


def test_shares_and_numbers_of_the_page():
    assert [results.share(x) for x in (None, Interval(0.126, NAN, NAN), Interval(0.5, 0.124, 0.876))] == [
        *("–", "13 %", "50 % [12, 88]"),
    ]
    assert results.with_bounds(Interval(1.5, -2.0, 3.25), "+.1f") == "+1.5 [-2.0, +3.2]"
    assert results._points(Interval(12.4, -3.0, 20.0)) == "+12 [-3, +20]"


@pytest.mark.parametrize(
    ("raters", "closed", "told"),
    [
        ([], False, "0 answers from 0 raters."),
        ([], True, "0 answers from 0 raters. The session is closed."),
        ([3], False, "1 answer from 1 rater, the last 2024-03-01 12:00 UTC."),
        ([3, 3], True, "2 answers from 1 rater, the last 2024-03-01 12:01 UTC. The session is closed."),
        ([3, 4], False, "2 answers from 2 raters, the last 2024-03-01 12:01 UTC."),
    ],
)
def test_the_page_says_how_much_was_answered(raters, closed, told):
    answers = [
        Answered(Ask(n, rater, "", 0, 1, False, None, NOON), "skip", {}, NOON + 60 * n)
        for n, rater in enumerate(raters)
    ]
    assert results._facts(SimpleNamespace(closed=closed), answers) == told


def test_what_intervals_are_over_is_said():
    alone, together = results._ratings_note(False), results._ratings_note(True)
    # It said that such systems cannot be told apart; of pairs that differ at p < 0.01, a fifth share a tier.
    assert "overlap that of its first; two of them may still differ." in alone
    assert "over sentences. With fewer than 5 raters they do not say" in alone
    assert "over sentences and raters. A system judged on fewer than 10 sentences has none." in together


def test_the_page_of_pairs_by_hand(pairs):
    view = results.results_view(pairs)
    assert view["facts"] == "7 answers from 2 raters, the last 2024-03-01 12:03 UTC."
    humor, consistency = view["ratings"]["tables"]
    assert (humor.title, consistency.title) == ("Funnier", "Keeps the meaning")
    assert {row[0]: row[3:] for row in humor.rows} == {
        "mine": ("33 % of 3", "3"),
        "other": ("100 % of 1", "1"),
        TEACHER: ("–", "4"),
    }
    assert len(view["ratings"]["pictures"]) == 2
    agreement, raters = view["raters"]["tables"]
    assert agreement.rows[0][:5] == ("funnier", "0 %", "1", "0 %", "1")
    assert agreement.rows[1][:5] == ("keeps the meaning", "–", "0", "100 %", "1")
    # Of rater 1's sides, repeats too: first, first, second; the tie is none. Of rater 2's: first.
    assert raters.rows == [
        ("Rater 1", "4", "0", "0", "100 % of 1", "67 %", "15.0 s"),
        ("Rater 2", "1", "1", "1", "–", "100 %", "15.0 s"),
    ]
    [critics, _] = view["critics"]["tables"]
    assert critics.rows == [
        ("some", "75 %", "2", "50 %", "1"),
        ("one person with another", "", "", "0 %", "1"),
        ("ceiling: the best possible critic", "", "", "50 %", "1"),
    ]
    assert len(view["critics"]["pictures"]) == 1 and "single person" in view["critics"]["pictures"][0]
    assert view["critics"]["pictures"][0].count("<circle") >= 3
    assert view["reported"] == [["Snails passed it.", "It had retired."]]
    assert view["files"][0] == ("pairs.jsonl", exports.ABOUT["pairs.jsonl"]) and len(view["files"]) == 7
    assert [name.count("<svg") for name in view["course"]["pictures"]] == [1, 1]
    assert "no critics" not in view["critics_note"]


def test_the_page_of_grades_by_hand(graded):
    """Mine has 4, 3 and 2, the teacher 1; the repeat is left out, and the other has none."""
    view = results.results_view(graded)
    humor, consistency = view["ratings"]["tables"]
    assert humor.title == "Mean grade, 0 to 4: funnier"
    assert humor.rows == [("mine", "3.00", "3"), ("other", "–", "0"), (TEACHER, "1.00", "1")]
    assert consistency.rows == [("mine", "1.00", "3"), ("other", "–", "0"), (TEACHER, "2.00", "1")]
    for picture in view["ratings"]["pictures"]:
        assert ">mine<" in picture and f">{TEACHER}<" in picture and ">other<" not in picture
    assert len(view["ratings"]["pictures"]) == 2
    [raters] = view["raters"]["tables"]
    # A grade of 0 after a 4 is not as before; and grades have no first side.
    assert raters.rows == [
        ("Rater 1", "3", "0", "0", "0 % of 1", "–", "15.0 s"),
        ("Rater 2", "2", "1", "0", "–", "–", "15.0 s"),
    ]
    assert (view["notes"], view["ratings_note"], view["critics_note"], view["differ"]) == ([], "", "", [])
    assert view["critics"] == view["course"] == {"tables": [], "pictures": []}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\tc d", "a\nb\tc d"),
        ("\x00\x1f\x0b\r", "····"),
        ("!\x7e\x7f\x80\x9f\xa0", "!~···\xa0"),
        ("", "(nothing was written)"),
        (" \n", "(nothing was written)"),
        ("é 🐌", "é 🐌"),
    ],
)
def test_control_characters_are_dots_on_a_page(text, shown):
    assert pages.visible(text) == shown


# What is read


def test_a_files_name_may_have_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = {"prompt": CAFE, "text": "x"}
    for name, text in (("a=b.jsonl", "of a=b"), ("b.jsonl", "of b")):
        (tmp_path / name).write_text(json.dumps(row | {"text": text}) + "\n")
    assert [(x.system, x.text) for x in gather([], ["a=b.jsonl"]).lines] == [("a=b", "of a=b")]
    assert [(x.system, x.text) for x in gather([], ["b.jsonl"]).lines] == [("b", "of b")]
    assert [(x.system, x.text) for x in gather([], ["c=b.jsonl"]).lines] == [("c", "of b")]
    assert [(x.system, x.text) for x in gather([], ["c=a=b.jsonl"]).lines] == [("c", "of a=b")]
    with pytest.raises(FileNotFoundError, match=r"c\.jsonl"):
        gather([], ["c.jsonl"])


def test_material_keeps_each_line_once_with_all_its_scores(tmp_path):
    material = write(tmp_path)
    key = material.prompt("other id", "the CAFÉ was slow.")
    assert material.prompts[key] == ("pc", CAFE)
    before = material.digest()
    assert material.add(key, "mine", LINES[0][2], {"more": 0.1, "odd": NAN, "some": 0.8}) == 0
    assert material.lines[0].scores == {"some": 0.8, "more": 0.1} and len(material.lines) == 5
    assert material.add(key, "mine", LINES[0][2]) == 0 and material.lines[0].scores == {"some": 0.8, "more": 0.1}
    assert material.digest() == before
    assert material.named(key, "=1+1") == 1 and material.named(key, "new") == 5 and material.lines[5].system == ""
    assert material.digest() != before
    assert systems_of([Written("p", name, "") for name in ("z", TEACHER, "", "a", "z")]) == ("z", "a", TEACHER)
    assert sound("a\ud800\udfffb\ue000") == "a\ufffd\ufffdb\ue000"


# What is asked


def test_the_covariance_of_two_equal_systems_by_hand():
    """Three games of weight 1/4, and a prior of 1/4 each: H = [[1, -3/4], [-3/4, 1]], whose determinant is 7/16. The
    difference has the variance 2 / (7/4) = 8/7 = v, and another game lowers it by v² / 4 / (1 + v / 4)."""
    each, covariance = choice.information(np.array([[0.0, 3], [3, 0]]), np.zeros(2))
    np.testing.assert_allclose(each, np.full((2, 2), 0.25), atol=1e-12)
    np.testing.assert_allclose(covariance, np.array([[16, 12], [12, 16]]) / 7, atol=1e-12)
    v = 8 / 7
    gains = choice.expected_gains(np.array([[0.0, 1], [1, 0]]), np.array([[0.0, 1], [1, 0]]))
    assert gains[0, 1] == pytest.approx(v**2 / 4 / (1 + v / 4) / math.sqrt(v), abs=1e-9) == gains[1, 0]
    assert gains[0, 0] == gains[1, 1] == 0
    assert (
        choice.expected_gains(np.zeros((1, 1))).tolist() == [[0.0]]
        and choice.expected_gains(np.zeros((0, 0))).size == 0
    )


def test_expected_gains_equal_what_another_game_does_to_the_covariance():
    """Each game put in, and the gaps' variances measured again; the widest gap counts most, by its fourth power."""
    random = np.random.default_rng(3)
    wins = random.poisson(4.0, (4, 4)) * (1 - np.eye(4))
    waiting = np.ones((4, 4)) - np.eye(4)
    t = strengths(wins)
    games = wins + wins.T + waiting
    covariance = choice.information(games, t)[1]
    order = np.argsort(t)
    gaps = np.array([np.eye(4)[b] - np.eye(4)[a] for a, b in itertools.pairwise(order)])
    before = np.diag(gaps @ covariance @ gaps.T)
    weight = (before / before.max()) ** 4 / np.sqrt(before)
    found = choice.expected_gains(wins, waiting)
    for i, j in itertools.combinations(range(4), 2):
        more = games.copy()
        more[[i, j], [j, i]] += 1
        after = np.diag(gaps @ choice.information(more, t)[1] @ gaps.T)
        assert found[i, j] == pytest.approx(weight @ (before - after), rel=1e-9)


def test_games_with_the_teacher_count_half_as_meetings():
    lines = [Written("p", name, name) for name in ("a", "b", TEACHER)]
    chooser = choice.Chooser(lines, Settings())
    for number, (a, b) in enumerate([(0, 1), (0, 2), (1, 2), (0, 1)]):
        chooser.asked(Ask(number, number % 2 + 1, "", a, b, False, None, 0.0))
    # The second rater of 0, 1 makes it no other pair: one meeting. Each was asked once but that.
    assert [chooser._met(0, 1), chooser._met(0, 2), chooser._met(1, 2)] == [1.0, 0.5, 0.5]
    assert chooser.open.tolist() == [[0, 2, 1], [2, 0, 1], [1, 1, 0]]
    assert (chooser.count(1), chooser.count(2), chooser.count(3)) == (2, 2, 0)
    chooser.answered(Answered(Ask(0, 1, "", 0, 1, True, None, 0.0), "answer", {"humor": "first"}, 1.0))
    assert chooser.wins.tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]] and chooser.open[0, 1] == 1
    chooser.answered(Answered(Ask(1, 2, "", 0, 2, False, None, 0.0), "skip", {}, 1.0))
    assert chooser.wins.sum() == 1 and chooser.open[0, 2] == 0


def test_curves_are_measured_at_twenty_places_at_most():
    assert figures.places(0) == [] and figures.places(3) == [1, 2, 3] and figures.places(40) == list(range(2, 41, 2))
