"""One run minus another by hand: the rows, what is marked, the prompts of both, and what differs in how they began."""

from dataclasses import replace
from pathlib import Path

import pytest

from humor_env.experiments.compare.stats import paired_difference
from humor_env.experiments.reports.differences import (
    LONGEST,
    Side,
    compare,
    difference,
    only_in_one,
    prompts_of_both,
    side,
    what_differs,
)
from humor_env.experiments.reports.lines_by_stage import SamePrompt, Version, with_interval
from humor_env.experiments.reports.report_data import Judged, RunData, SeedData
from humor_env.experiments.reports.report_numbers import Estimate, interval


def judged(prompt, score, text="So cold.", critic="judge", **parts):
    return Judged(prompt, f"{prompt}?", text, critic, score, parts, "")


def seed(name="seed-0", stages=None, **changes):
    return replace(SeedData(name, Path("x"), (), (), (), stages or {}, (), {}, {}), **changes)


def run(name, *seeds, spec=(), **record):
    return RunData(name, Path("x"), dict(spec), record, seeds, ())


def of(name, lines, **others):
    return run(name, seed(stages={"ppo": lines, **others}))


def rows_of(table):
    return {row.cells[0]: row for row in table.rows}


def test_a_side_is_the_last_stage_of_the_seeds_that_have_it():
    one = run("new", seed(stages={"base": [judged("a", 0.5, critic="b")]}), seed("seed-1", {"ppo": [judged("b", 0.5)]}))
    assert side(one) == Side("new", "base", {"seed-0": [judged("a", 0.5, critic="b")]})
    found = side(one, "ppo")
    assert (list(found.seeds), found.prompts, found.critics, len(found.lines)) == (["seed-1"], {"b"}, "judge", 1)
    both = Side(
        "new", "ppo", {"x": [judged("a", 0.5, critic="")], "y": [judged("a", 0.5, critic="b"), judged("c", None)]}
    )
    assert (both.critics, both.prompts, len(both.lines)) == ("an unnamed critic, b, judge", {"a", "c"}, 3)
    assert side(run("new", seed())) == Side("new", "", {})
    assert side(one, "dpo").seeds == {}


def test_rows_are_of_the_prompts_that_both_have():
    """By prompt: a 0.75 - 0.5, b 0.5 - 0.25; c and d have one side only. Of form only a has both."""
    mine = [judged("a", 1.0, form=0.5), judged("a", 0.5, form=0.25), judged("b", 0.5, new=1.0), judged("c", 0.125)]
    theirs = [judged("a", 0.5, form=0.75, old=1.0), judged("b", 0.25), judged("d", 1.0), judged("c", None)]
    table = difference(of("new", mine), of("old", theirs))
    assert table.columns == ("number", "new", "old", "difference", "prompts")
    assert [row.cells for row in table.rows] == [
        ["score", "0.625", "0.375", "+0.250", "2"],
        ["form", "0.375", "0.750", "-0.375", "1"],
        ["distinct-2", "0.250", "0.250", "+0.000", "–"],
        ["characters a line", "8.0", "8.0", "+0.0", "–"],
    ]
    assert not any(row.worth_a_look for row in table.rows)
    assert table.title == "Held-out lines"
    assert table.caption == (
        "new (ppo) minus old (ppo), prompt by prompt. Intervals are 95 %, over prompts alone: they do not include the "
        "variation between seeds. A row is marked if its interval excludes 0."
    )


def test_words_and_letters_are_of_all_lines():
    mine = [judged("a", 0.5, "one two one two"), judged("b", 0.5, "four")]  # 2 of 3 pairs; 15 and 4 letters
    theirs = [judged("a", 0.5, "one two three")]
    rows = rows_of(difference(of("new", mine), of("old", theirs)))
    assert rows["distinct-2"].cells == ["distinct-2", "0.667", "1.000", "-0.333", "–"]
    assert rows["characters a line"].cells == ["characters a line", "9.5", "13.0", "-3.5", "–"]


def test_a_part_is_named_in_words_and_one_that_nobody_shares_is_a_dash():
    mine = [judged("a", 0.5, not_shared=0.5), judged("b", 0.5)]
    theirs = [judged("a", 0.5), judged("b", 0.5, not_shared=0.5)]
    rows = rows_of(difference(of("new", mine), of("old", theirs)))
    assert rows["not shared"].cells == ["not shared", "–", "–", "–", "0"]
    assert list(rows) == ["score", "not shared", "distinct-2", "characters a line"]


def test_the_stages_before_have_rows_if_both_have_them_and_are_not_the_result():
    lines, lower = [judged("a", 0.5)], [judged("a", 0.25)]
    whole = {"ppo": lines, "imitation": lower, "base": lower}
    rows = rows_of(difference(run("new", seed(stages=whole)), of("old", lines, base=lines)))
    assert rows["score of the base"].cells[1:] == ["0.250", "0.500", "-0.250", "1"]
    assert "score of the imitation" not in rows
    begun = run("old", seed(stages={"imitation": lower, "base": lower}))
    rows = rows_of(difference(run("new", seed(stages=whole)), begun))
    assert rows["score"].cells[1:3] == ["0.500", "0.250"]
    assert "score of the imitation" not in rows and "score of the base" in rows


@pytest.mark.parametrize(
    ("by", "marked"), [(lambda n: 0.25 + 0.001 * n, True), (lambda n: 0.1 * (-1) ** n, False), (lambda n: -0.1, True)]
)
def test_a_row_is_marked_if_its_interval_has_no_zero(by, marked):
    mine = [judged(f"p{n:02}", 0.5 + by(n)) for n in range(40)]
    theirs = [judged(f"p{n:02}", 0.5) for n in range(40)]
    row = difference(of("new", mine), of("old", theirs)).rows[0]
    expected = interval([a.score - b.score for a, b in zip(mine, theirs, strict=True)], lowest=-1.0)
    assert (row.cells[3], row.worth_a_look) == (with_interval(expected), marked)


def test_seeds_that_both_have_are_in_the_interval():
    """Seed s gains s / 4, and s / 2 on every third prompt; seed 1 has no score for the first."""

    def lines(s, gain):
        every = [judged(f"p{n:02}", 0.25 + gain * (1 + (n % 3 == 0)) * s / 4 + n / 100) for n in range(30)]
        return [judged("p00", None), *every[1:]] if s == 1 and gain else every

    def made(name, gain):
        return run(name, *(seed(f"seed-{s}", {"ppo": lines(s, gain)}) for s in (0, 1, 2)))

    table = difference(made("new", 1), made("old", 0))
    scores = [[[None if x.score is None else x.score for x in lines(s, gain)] for s in (0, 1, 2)] for gain in (1, 0)]
    scores = [[[float("nan") if v is None else v for v in row] for row in side] for side in scores]
    expected = paired_difference(*scores)
    assert table.rows[0].cells[3] == with_interval(Estimate(expected.value, expected.low, expected.high))
    assert "over prompts and the seeds that both have" in table.caption
    apart = run("old", *(seed(f"seed-{s}", {"ppo": lines(s, 0)}) for s in (0, 1, 3)))
    assert "over prompts alone" in difference(made("new", 1), apart).caption
    alike = difference(made("new", 0), made("old", 0)).rows[0]
    assert alike.cells[3] == "+0.000 [-0.100, +0.100]"  # all equal: 3 in 30
    few = [
        run(name, *(seed(f"seed-{s}", {"ppo": lines(s, g)[:4]}) for s in (0, 2))) for name, g in (("a", 1), ("b", 0))
    ]
    assert difference(*few).rows[0].cells[3] == "+0.375"  # prompts 0 and 3 gain 0.5, the others 0.25


def test_seeds_that_differ_widen_an_interval_though_every_prompt_gains_the_same():
    """By prompts alone there was no spread: [0.25, 0.25]. The seeds gained 0, 0.25 and 0.5."""
    prompts = [f"p{n}" for n in range(12)]
    gains = (0.0, 0.25, 0.5)
    mine = run(
        "new", *(seed(f"seed-{i}", {"ppo": [judged(p, 0.25 + g) for p in prompts]}) for i, g in enumerate(gains))
    )
    theirs = run("old", *(seed(f"seed-{i}", {"ppo": [judged(p, 0.25) for p in prompts]}) for i in range(3)))
    row = rows_of(difference(mine, theirs))["score"]
    assert row.cells[3] == "+0.250 [+0.000, +0.500]" and not row.worth_a_look
    same = run("new", *(seed(f"seed-{i}", {"ppo": [judged(p, 0.5) for p in prompts]}) for i in range(3)))
    row = rows_of(difference(same, theirs))["score"]
    assert row.cells[3] == "+0.250 [+0.000, +0.500]"  # by the rule of three: 3 of 12 may differ


def test_prompts_of_both_are_spread_from_the_largest_gain():
    scores = {"a": 0.5, "b": 0.25, "c": 1.0, "d": None, "e": 1.0}
    mine = Side("new", "ppo", {"s": [judged(i, s, f"new {i}") for i, s in scores.items()], "t": [judged("f", 1.0)]})
    theirs = Side("old", "ppo", {"s": [judged(i, 0.25, f"old {i}") for i in "abcdefg"] + [judged("a", 1.0, "again")]})
    shown = prompts_of_both(mine, theirs)
    assert [each.prompt for each in shown] == ["c?", "e?", "a?", "b?"]
    assert shown[2] == SamePrompt("a?", [Version("new", 0.5, "new a"), Version("old", 0.25, "old a")])
    assert [each.prompt for each in prompts_of_both(mine, theirs, 2)] == ["e?", "b?"]


def test_why_there_is_no_difference():
    lines = [judged("a", 0.5)]
    none = run("none", seed())
    assert compare(of("new", lines), none).why_none == (
        "No stage of none was measured on held-out prompts, so there is no difference to give."
    )
    assert compare(none, of("new", lines)).why_none.startswith("No stage of none ")
    other = compare(of("new", lines), of("old", [judged("a", 0.5, critic="rules")]))
    assert other.why_none == (
        "new was measured by judge and old by rules: scores of different critics cannot be subtracted. Repeat one of "
        "them with the other's [[eval.critic]]."
    )
    apart = compare(of("new", lines), of("old", [judged("b", 0.5)]))
    assert apart.why_none == "new and old have no held-out prompt in common, so there is no difference to give."
    assert (apart.differences.title, list(apart.differences.rows), apart.prompts) == ("Held-out lines", [], ())
    found = compare(of("new", lines), of("old", lines))
    assert (found.run, found.other, found.why_none, len(found.prompts)) == ("new", "old", "", 1)
    assert found.differences.rows[0].cells[0] == "score"


def test_what_differs_is_in_both_specs_or_in_the_record():
    spec = {"name": "x", "learner": {"steps": 1, "on": True, "same": 1}, "mine": 1}
    other = {"name": "y", "learner": {"steps": 2, "on": [1, "é"], "same": 1}, "theirs": "z"}
    first, second = {"torch": "2", "numpy": "1"}, {"torch": "3", "numpy": "1", "peft": "1"}
    mine = run("new", spec=spec, commit="abc", device="cpu", precision="float32", versions=first)
    theirs = run("old", spec=other, commit="def", device="cpu", platform="linux", versions=second)
    table = what_differs(mine, theirs)
    assert (table.title, table.columns) == ("What differs", ("setting", "new", "old"))
    assert [row.cells for row in table.rows] == [
        ["learner.on", "true", '[1, "é"]'],
        ["learner.steps", "1", "2"],
        ["commit", "abc", "def"],
        ["precision", "float32", "not set"],
        ["platform", "not set", "linux"],
        ["version of torch", "2", "3"],
        ["version of peft", "not set", "1"],
    ]
    assert [row.cells for row in only_in_one(mine, theirs).rows] == [
        ["mine", "1", "not set"],
        ["theirs", "not set", "z"],
    ]
    assert list(what_differs(mine, replace(mine, record=mine.record | {"versions": None})).rows[0].cells) == [
        *("version of torch", "2", "not set"),
    ]


@pytest.mark.parametrize(("length", "end"), [(LONGEST, "x"), (LONGEST + 1, "…")])
def test_a_long_setting_is_cut(length, end):
    [row] = only_in_one(run("a", spec={"key": "x" * length}), run("b")).rows
    assert len(row.cells[1]) == LONGEST == 120
    assert row.cells[1] == "x" * 119 + end
