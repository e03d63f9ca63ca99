"""A run's lines by stage, by hand: which prompts are shown, the ends of scores, parts with their change, and frames."""

from dataclasses import replace
from pathlib import Path

import pytest

from humor_env.experiments.reports.lines_by_stage import (
    MOST_FRAMES,
    SamePrompt,
    Version,
    floor_table,
    frame_table,
    last_stage,
    lines_of_stage,
    part_table,
    same_prompts,
    same_prompts_while_learning,
    scores,
    sections_of_same_prompts,
    spread,
    stage_names,
    thirds_of_training,
    with_interval,
)
from humor_env.experiments.reports.report_data import Judged, RunData, SeedData
from humor_env.experiments.reports.report_numbers import Estimate


def judged(prompt, score, text="So cold.", step=0, **parts):
    return Judged(prompt, f"{prompt}?", text, "judge", score, parts, "", step)


def seed(name="seed-0", stages=None, **changes):
    return replace(SeedData(name, Path("x"), (), (), (), stages or {}, (), {}, {}), **changes)


def run(*seeds, name="some"):
    return RunData(name, Path("x"), {}, {}, seeds, ())


# The same prompts


@pytest.mark.parametrize(
    ("length", "count", "chosen"),
    [
        (3, 3, [0, 1, 2]),
        (2, 3, [0, 1]),
        (4, 3, [0, 2, 3]),
        (9, 3, [1, 4, 7]),
        (10, 1, [5]),
        (12, 6, [1, 3, 5, 7, 9, 11]),
    ],
)
def test_items_are_spread_over_a_list(length, count, chosen):
    assert spread(range(length), count) == chosen


def test_prompts_of_every_stage_are_shown_from_the_best_and_those_without_a_score_last():
    """b was written twice, its first line counts; d is not in every stage; c and e have the same score."""
    ppo = [judged("a", None, "a now"), judged("b", 0.5, "b now"), judged("b", 1.0, "again"), judged("e", 0.75, "e now")]
    ppo += [judged("c", 0.75, "c now"), judged("d", 1.0, "d now"), judged("f", 0.0, "f now")]
    base = [judged(i, 0.25, f"{i} first") for i in "abcef"]
    shown = same_prompts(run(seed(stages={}), seed("seed-1", {"base": base, "ppo": ppo, "teacher": base})))
    assert [each.prompt for each in shown] == ["c?", "e?", "b?", "f?", "a?"]
    assert shown[2] == SamePrompt(
        "b?",
        [Version("base", 0.25, "b first"), Version("ppo", 0.5, "b now"), Version("teacher", 0.25, "b first")],
    )
    assert shown[-1].versions[1].score is None
    assert [each.prompt for each in same_prompts(run(seed(stages={"base": base, "ppo": ppo})), 2)] == ["e?", "f?"]


def test_a_stage_and_its_teacher_are_no_change():
    lines = [judged("a", 0.5)]
    assert same_prompts(run(seed(stages={"ppo": lines, "teacher": lines}))) == []
    assert same_prompts(run()) == same_prompts(run(seed())) == []
    assert len(same_prompts(run(seed(stages={"base": lines, "imitation": lines})))) == 1


def test_training_prompts_must_come_again_after_half_of_the_run():
    lines = [judged("once", 0.5, step=8)]
    lines += [judged("half", 0.25, f"half {step}", step) for step in (1, 5)]  # 4 of 8 steps
    lines += [judged("near", 0.5, "near", step) for step in (5, 8)]  # 3 of 8
    lines += [judged("wide", 0.5, "wide", step) for step in (8, 3, 5, 0, 1)]  # step 0 is not counted
    lines += [judged("alike", 0.75, "alike", step) for step in (2, 6)]
    shown = same_prompts_while_learning(run(seed(), seed("seed-1", training=lines)))
    assert [each.prompt for each in shown] == ["wide?", "alike?", "half?"]  # the widest first, then by name
    assert [v.when for v in shown[0].versions] == ["step 1", "step 3", "step 8"]  # 3 is as near to 4 as 5, and earlier
    assert shown[2].versions == [Version("step 1", 0.25, "half 1"), Version("step 5", 0.25, "half 5")]
    assert [each.prompt for each in same_prompts_while_learning(run(seed(training=lines)), 1)] == ["wide?"]
    assert same_prompts_while_learning(run(seed())) == []
    early = [judged("first", 0.5, step=step) for step in (1, 2)] + [judged("other", 0.5, step=9)]
    assert same_prompts_while_learning(run(seed(training=early))) == []
    step_zero = [judged("first", 0.5, step=step) for step in (0, 4)]
    assert same_prompts_while_learning(run(seed(training=step_zero))) == []


def test_the_middle_version_is_the_one_nearest_to_the_middle_of_the_run():
    lines = [judged("a", 0.5, f"{step}", step) for step in (1, 2, 6, 9, 10)]
    [shown] = same_prompts_while_learning(run(seed(training=lines)))
    assert [v.when for v in shown.versions] == ["step 1", "step 6", "step 10"]


def test_both_sections_name_their_run_if_there_are_several():
    lines = [judged("a", 0.5, step=step) for step in (1, 4)]
    one = run(seed(stages={"base": lines, "ppo": lines}, training=lines))
    titles = [[section.title for section in sections_of_same_prompts(one, several)] for several in (False, True)]
    assert titles == [
        ["Held-out prompts, stage by stage", "Training prompts, early and late"],
        ["Held-out prompts, stage by stage: some", "Training prompts, early and late: some"],
    ]
    [alone] = sections_of_same_prompts(run(seed(training=lines)), False)
    assert alone.caption == "Prompts that occurred repeatedly. Scores are the training critic’s."
    assert alone.prompts == same_prompts_while_learning(one)
    [held_out] = sections_of_same_prompts(run(seed(stages={"base": lines, "ppo": lines})), False)
    assert held_out.caption.startswith("Not picked: evenly spread") and held_out.prompts == same_prompts(one)


def test_the_last_stage_is_the_learners_or_where_it_started():
    lines = [judged("a", 0.5)]
    for names, last in (
        (("base", "imitation", "ppo"), "ppo"),
        (("base", "imitation"), "imitation"),
        (("base",), "base"),
    ):
        assert last_stage(seed(stages=dict.fromkeys(names, lines))) == last
    assert last_stage(seed(numbers={"dpo": {}})) == "dpo"
    assert last_stage(seed(stages={"teacher": lines})) == ""
    two = run(seed(stages={"base": lines}), seed("seed-1", {"ppo": lines, "base": lines * 2}))
    assert (stage_names(two), len(lines_of_stage(two, "base"))) == (["base", "ppo"], 3)
    assert run(seed(stages={"base": lines}), seed(numbers={"brio": {}})).learner == "brio"
    assert run(seed()).learner == "student"


# Tables


def test_the_ends_are_those_of_all_stages_and_nearly_equal_scores_are_equal():
    stages = {
        "base": [judged("a", s) for s in (0.1, 0.1000004, 0.3, 0.9)],
        "imitation": [judged("a", None)],
        "ppo": [judged("a", s) for s in (0.1, 0.3, 0.3, 0.9, 0.9, 0.9, 0.9)] + [judged("a", None)],
    }
    table = floor_table(run(seed(stages=stages)), "Ends")
    assert (table.title, table.columns) == (
        *("Ends", ("stage", "at the lowest, 0.10", "median", "at the highest, 0.90", "lines")),
    )
    assert [(row.cells, row.worth_a_look) for row in table.rows] == [
        (("base", "50%", "0.200", "25%", "4"), False),  # half is not most
        (("ppo", "14%", "0.900", "57%", "7"), True),
    ]
    same = run(seed(stages={"base": [judged("a", 0.5), judged("b", 0.5000004)]}))
    assert (list(floor_table(same, "").rows), list(floor_table(run(seed()), "").rows)) == ([], [])
    assert scores(stages["ppo"][-2:]) == [0.9]


def test_parts_have_their_means_and_the_change_from_where_learning_started():
    stages = {
        "base": [judged("a", 0.5, form=0.0)],
        "imitation": [judged("a", 0.5, form=0.25, other_part=0.5), judged("b", 0.5, form=0.75)],
        "ppo": [judged("a", 0.5, form=1.0), judged("b", 0.5, form=0.5, new=0.125)],
    }
    table = part_table(run(seed(stages=stages)), "Parts")
    assert table.columns == ["part", "base", "imitation", "ppo", "change from imitation"]
    assert [row.cells for row in table.rows] == [
        ["form", "0.000", "0.500", "0.750", "+0.250"],  # (0.75 - 0.25) / 2
        ["other part", "–", "0.500", "–", "–"],
        ["new", "–", "–", "0.125", "–"],
    ]
    del stages["imitation"]
    table = part_table(run(seed(stages=stages)), "Parts")
    assert table.columns[-1] == "change from base" and table.rows[0].cells[-1] == "+1.000"
    for names in (("base",), ("ppo",)):  # nothing before it
        table = part_table(run(seed(stages={name: stages[name] for name in names})), "Parts")
        assert table.columns == ["part", *names]
        assert all(len(row.cells) == 2 for row in table.rows)
    assert list(part_table(run(seed()), "").rows) == []


@pytest.mark.parametrize(
    ("estimate", "written"),
    [
        (Estimate(0.1234), "+0.123"),
        (Estimate(-0.5, -0.75, 0.25), "-0.500 [-0.750, +0.250]"),
        (Estimate(0.0, None, 1.0), "+0.000"),
        (Estimate(0.0, -1.0, None), "+0.000"),
    ],
)
def test_a_change_is_written_with_its_sign(estimate, written):
    assert with_interval(estimate) == written


LINES = ("the soup is so cold that we froze", "my cat was so slow that we slept")


def test_frames_are_shares_of_lines_and_one_that_moved_by_a_word_is_left_out():
    """Half of the last student's lines are of one frame; alone in a stage, a line has none."""
    alone = [f"word{n}" for n in range(6)]
    stages = {
        "base": [judged("a", 0.5, text) for text in (LINES[0], *alone)],
        "ppo": [judged("a", 0.5, text) for text in (LINES[0], LINES[0], LINES[0], *alone[:3])],
        "teacher": [judged("a", 0.5, text) for text in (LINES[0], LINES[0], *alone[:2])],
    }
    table = frame_table(run(seed(stages=stages)), "Frames")
    assert table.columns == ("four words", "base", "ppo", "teacher")
    shares = ["0%", "50%", "50%"]
    # Left out: "so _ that we" and "_ is so _", which are the first moved by a word.
    assert [row.cells for row in table.rows] == [
        *(["is so _ that", *shares], ["the _ is so", *shares], ["_ that we _", *shares]),
    ]
    assert list(frame_table(run(seed(stages={"ppo": stages["base"]})), "").rows) == []


def test_frames_are_of_the_last_third_of_training_where_no_stage_was_measured():
    training = [judged("a", 0.5, f"word{step}" if step < 3 else LINES[1], step) for step in (1, 2, 3) for _ in range(2)]
    table = frame_table(run(seed(training=training)), "")
    assert table.columns == ("four words", "training, first third", "training, last third")
    assert table.rows and all(row.cells[1:] == ["0%", "100%"] for row in table.rows)


def test_a_rare_frame_and_those_beyond_the_most_are_left_out():
    pairs = ("so", "very", "too", "much", "not", "now", "then", "here", "there", "all", "both", "each")
    texts = [f"{word} the the {word}" for word in pairs for _ in range(2)]
    assert (
        len(frame_table(run(seed(stages={"ppo": [judged("a", 0.5, t) for t in texts]})), "").rows) == MOST_FRAMES == 8
    )
    for others, rows in ((98, 1), (99, 0)):  # 2 of 100, 2 of 101
        lines = texts[:2] + [f"word{n}" for n in range(others)]
        table = frame_table(run(seed(stages={"ppo": [judged("a", 0.5, t) for t in lines]})), "")
        assert len(table.rows) == rows


def test_a_third_is_of_the_steps_of_each_seed():
    lines = [judged("a", 0.5, f"{step}", step) for step in (1, 2, 3, 4, 5, 6)]
    thirds = thirds_of_training(run(seed(training=lines), seed("seed-1", training=[*lines[:2], *lines[3:5]])))
    assert {part: [line.step for line in of] for part, of in thirds.items()} == {
        "first third": [1, 2, 1],
        "last third": [5, 6, 5],
    }
    assert thirds_of_training(run(seed(training=lines[:2]))) == {}
    assert len(thirds_of_training(run(seed(training=lines[:3])))) == 2
