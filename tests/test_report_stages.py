"""What the report shows stage by stage: the same prompts, histograms with their ends, parts, frames, the best lines."""

import json
import re
from pathlib import Path

import pytest
from report_runs import HOSTILE, STAGES, make_run, score_of, text_of, write_lines

from humor_env.experiments.drawing.charts import Values, histogram
from humor_env.experiments.reports.differences import compare
from humor_env.experiments.reports.lines_by_stage import (
    floor_table,
    frame_table,
    part_table,
    same_prompts,
    same_prompts_while_learning,
    thirds_of_training,
)
from humor_env.experiments.reports.pictures import before_and_after, pictures
from humor_env.experiments.reports.report import render
from humor_env.experiments.reports.report_data import Judged, RunData, SeedData, load_run
from humor_env.experiments.reports.report_numbers import headline, repeats


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return load_run(make_run(tmp_path_factory.mktemp("runs") / "some"))


def held_out(folder, stage, change):
    path = folder / "seed-0" / f"evaluation-{stage}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_lines(path, [row | change(place) for place, row in enumerate(rows)])


def section(page, name):
    return page[page.index(f'<section id="{name}"') :].partition("</section>")[0]


# The same prompts


def test_held_out_prompts_are_shown_at_every_stage_from_the_best_to_the_worst(run):
    shown = same_prompts(run, 5)
    assert [[v.when for v in each.versions] for each in shown] == [list(STAGES)] * 5
    late = [each.versions[2].score for each in shown]
    ranked = sorted((score_of("ppo", 0, n) for n in range(30)), reverse=True)
    assert late == [ranked[3], ranked[9], ranked[15], ranked[21], ranked[27]]  # the middle of each fifth
    number = next(n for n in range(30) if score_of("ppo", 0, n) == late[0])
    assert shown[0].versions[0].text == text_of("base", number)


def test_one_stage_alone_is_not_shown_as_a_change(tmp_path):
    folder = make_run(tmp_path / "some", seeds=1, training=0)
    for stage in ("base", "imitation", "teacher"):
        (folder / "seed-0" / f"evaluation-{stage}.jsonl").unlink()
    page = render([load_run(folder)])
    assert same_prompts(load_run(folder)) == []
    assert "Same prompts" not in page and '<section id="same"' not in page


def test_training_prompts_that_came_again_are_shown_early_in_the_middle_and_late(tmp_path):
    folder = make_run(tmp_path / "some", seeds=1)
    path = folder / "seed-0" / "jokes.jsonl"
    first = json.loads(path.read_text().splitlines()[0])
    seen = {"often": (1, 4, 6, 9, 9, 10), "late": (8, 10), "once": (5,), "twice": (2, 8)}
    rows = [
        first | {"prompt_id": prompt, "prompt": f"{prompt}?", "step": step, "text": f"{prompt} {step} {place}"}
        for prompt, steps in seen.items()
        for place, step in enumerate(steps)
    ]
    write_lines(path, rows)
    shown = same_prompts_while_learning(load_run(folder))
    assert [each.prompt for each in shown] == ["often?", "twice?"]  # the widest first; 8 to 10 is no half of the run
    assert [(v.when, v.text) for v in shown[0].versions] == [
        *(("step 1", "often 1 0"), ("step 4", "often 4 1"), ("step 10", "often 10 5")),
    ]
    assert [v.when for v in shown[1].versions] == ["step 2", "step 8"]
    assert "Training prompts, early and late" in render([load_run(folder)])


def test_what_a_model_wrote_for_the_same_prompts_is_text(tmp_path):
    folder = make_run(tmp_path / "some", seeds=1, prompts=6, training=0)
    page = section(render([load_run(folder)]), "same")
    assert "<script>window" not in page and "<img" not in page
    assert HOSTILE.partition("'")[0].replace("<", "&lt;").replace(">", "&gt;") in page


# Scores


def test_a_histogram_has_each_share_where_it_belongs():
    svg = histogram([Values("a", [0.0, 0.05, 0.3, 1.0]), Values("b", [0.999, 1.0])], title="Scores")
    hints = re.findall(r"<title>([ab]: [^<]*)</title>", svg)
    assert hints == [
        *("a: 50% from 0 to 0.1", "a: 25% from 0.3 to 0.4", "a: 25% from 0.9 to 1", "b: 100% from 0.9 to 1"),
    ]
    heights = [float(h) for h in re.findall(r'<rect [^>]*height="([\d.]+)"[^>]*class="bar">', svg)][-4:]
    assert heights[0] / heights[1] == pytest.approx(2, rel=1e-2) and heights[3] > heights[2]
    assert "50% in the lowest part and 25% in the highest" in svg
    assert "nothing was measured" in histogram([Values("a", [])], title="Scores")
    assert "from 1.8 to 2" in histogram([Values("a", [2.0])], title="Scores")  # outside of [0, 1]


def test_the_share_of_lines_at_the_ends_is_of_all_stages_ends(tmp_path):
    folder = make_run(tmp_path / "some", seeds=1, prompts=10)
    held_out(folder, "base", lambda place: {"score": 0.0 if place < 6 else 0.25})
    held_out(folder, "ppo", lambda place: {"score": None if place == 9 else 0.95 if place < 3 else 0.5})
    table = floor_table(load_run(folder), "Floor and ceiling")
    assert table.columns == ("stage", "at the lowest, 0.00", "median", "at the highest, 0.95", "lines")
    rows = {row.cells[0]: row for row in table.rows}
    assert rows["base"].cells[1:] == ("60%", "0.000", "0%", "10") and rows["base"].worth_a_look
    assert rows["ppo"].cells[1:] == ("0%", "0.500", "33%", "9") and not rows["ppo"].worth_a_look
    drawn = [p for p in pictures([load_run(folder)], []) if p.section == "scores"]
    assert [re.search(r"<title[^>]*>(.*?)<", p.svg)[1] for p in drawn] == ["Held-out scores", "Scores while learning"]
    assert "ppo: 67% at its lowest, 0.50, and 33% at its highest, 0.95" in drawn[0].caption


def test_parts_are_told_by_stage_with_what_learning_changed(tmp_path):
    folder = make_run(tmp_path / "some", seeds=1)
    held_out(folder, "ppo", lambda place: {"parts": {"form": 0.8, "meaning": 0.5 + 0.01 * place}})
    table = part_table(load_run(folder), "Parts")
    assert list(table.columns) == ["part", *STAGES, "change from imitation"]
    form, meaning = (row.cells for row in table.rows)
    assert form[:5] == ["form", "1.000", "1.000", "0.800", "1.000"] and form[5].startswith("-0.200 [")
    assert meaning[3] == "0.645" and meaning[5].startswith("+0.145 [+0.1")


def test_frames_are_counted_by_stage(tmp_path):
    folder = make_run(tmp_path / "some", seeds=1, prompts=10, training=0)
    held_out(folder, "imitation", lambda place: {"text": f"Cats{place} sleep."})
    held_out(
        folder, "ppo", lambda place: {"text": "The tea was so hot that I cried." if place < 4 else f"Tea {place}."}
    )
    table = frame_table(load_run(folder), "Frames")
    assert list(table.columns) == ["four words", *STAGES]
    assert [row.cells[3] for row in table.rows] == ["40%"] * len(table.rows)
    assert {"the _ was so", "so _ that i"} & {row.cells[0] for row in table.rows}
    assert len(table.rows) == 2  # of the five in that line; the others are one of these moved by a word
    assert all(row.cells[2] == "0%" for row in table.rows)
    assert "Frames" in section(render([load_run(folder)]), "first")


# The best beside the worst, and what is left out


def test_the_best_lines_stand_beside_the_worst_each_text_once(tmp_path):
    folder = make_run(tmp_path / "some", seeds=1, prompts=9, training=0)
    held_out(folder, "ppo", lambda n: {"text": f"Line {n}." if n else "Line 1.", "score": None if n == 8 else n / 10})
    page = section(render([load_run(folder)]), "first")
    best, worst = page.split("The best lines")[1].split("The lowest scores")
    assert re.findall(r"Line \d", best) == ["Line 7", "Line 6", "Line 5"]
    assert re.findall(r"Line \d", worst.split("</ul>")[0]) == ["Line 1", "Line 2", "Line 3"]
    # Of the text that was written twice, 0.0 and 0.1, the worst.
    assert re.findall(r'class="score">([\d.]+)<', worst.split("</ul>")[0]) == ["0.00", "0.20", "0.30"]


def test_lines_of_one_score_have_no_best_and_no_worst(tmp_path):
    """A student whose every line scored 0 had best and worst lines, and "100% at its lowest"."""
    folder = make_run(tmp_path / "some", seeds=1, prompts=8, training=0)
    held_out(folder, "ppo", lambda place: {"score": 0.25})
    page = render([load_run(folder)])
    assert "The best lines" not in page and "The lowest scores" not in page
    assert "ppo: all at 0.25." in page


def test_sections_with_nothing_in_them_are_left_out(tmp_path):
    """A bare log showed "No times were kept." and an empty browser of jokes."""
    write_lines(tmp_path / "log" / "metrics.jsonl", [{"step": s, "reward/mean": s / 9} for s in range(1, 10)])
    page = render([load_run(tmp_path / "log")])
    assert re.findall(r'<section id="(\w+)"', page) == ["result", "curves", "made"]
    assert re.findall(r'href="#(\w+)"', page) == ["main", "result", "curves", "made"]


# Several lines for each prompt


def two_lines(folder, stage, first, second):
    """Lines of these scores, two for each prompt; nobody judged the second one of the last prompt."""
    path = folder / "seed-0" / f"evaluation-{stage}.jsonl"
    rows = []
    for row in map(json.loads, path.read_text().splitlines()):
        parts = {"form": 0.0 if stage == "ppo" else 1.0, "meaning": 0.9 if stage == "ppo" else 0.5}
        rows.append(row | {"score": first})
        rows.append(row | {"score": second, "text": f"Another {len(rows)}.", "parts": parts})
    rows[-1] |= {"score": None, "parts": {}, "error": "away"}
    write_lines(path, rows)


def test_a_report_on_two_lines_for_each_prompt(tmp_path):
    """A prompt counts by the mean of its lines. By hand, twelve prompts: 0.6 eleven times and once 0.5 minus 0.3 is
    0.292 (over lines it would be 0.296, of the last lines 0.4); line by line from the imitation 0.45 and once 0.4."""
    new, old = (make_run(tmp_path / name, seeds=1, prompts=12) for name in ("new", "old"))
    two_lines(new, "ppo", 0.5, 0.7)
    two_lines(new, "imitation", 0.1, 0.2)
    held_out(old, "ppo", lambda place: {"score": 0.3})
    run, other = load_run(new), load_run(old)

    found = compare(run, other)
    rows = {row.cells[0]: row.cells for row in found.differences.rows}
    assert rows["score"][1:3] == ["0.592", "0.300"] and rows["score"][4] == "12"
    assert rows["score"][3].startswith("+0.292 [+0.27")
    assert rows["form"][3].startswith("-0.458 [") and rows["meaning"][3].startswith("+0.183 [")
    assert next(row for row in headline(run) if row.stage == "ppo").change.mean == pytest.approx(5.35 / 12)
    form, meaning = (row.cells for row in part_table(run, "Parts").rows)
    assert form[5].startswith("-0.458 [") and meaning[5].startswith("+0.183 [")

    # A prompt is shown once, by its first line; shares and the browser of jokes have every line.
    once = [each.text for shown in [*same_prompts(run, 12), *found.prompts] for each in shown.versions]
    once += [text for sample in before_and_after(run) for _, text in sample.lines]
    assert len(once) == 12 * 4 + 6 * 2 + 3 * 2 and not any(text.startswith("Another") for text in once)
    histograms = "".join(p.svg for p in pictures([run], []) if p.section == "scores")
    assert "ppo: 52.2% from 0.5 to 0.6" in histograms and "ppo: 47.8% from 0.7 to 0.8" in histograms
    assert next(row for row in floor_table(run, "Ends").rows if row.cells[0] == "ppo").cells[4] == "23"
    page = render([run, other])
    names = ("result", "difference", "first", "same", "scores", "curves", "trainer", "judge", "cost", "jokes", "made")
    assert re.findall(r'<section id="(\w+)"', page) == list(names)
    assert page.count('"k":"held-out","r":0') == 24 and page.count('"k":"held-out","r":1') == 12


def seed_of(stages=None, training=()):
    return SeedData("seed-0", Path(), (), (), (), stages or {}, training, {}, {})


def line_of(text, step=0):
    return Judged("p", "It rained.", text, "c", 0.5, {}, "", step)


def test_runs_of_words_that_come_again_are_the_commonest_few():
    words = "abcdefghijklmnopqrstuvwxyz"
    often = [line_of(f"so{c} wet{c} that{c} fish{c}") for i, c in enumerate(words[:8]) for _ in range(10 - i)]
    rare = [line_of("two of these lines")] * 2 + [line_of(f"line {i} is alone {i}") for i in range(150)]
    seeds = [seed_of({"ppo": [*often, *rare], "teacher": [line_of("soa weta thata fisha")] * 2})]
    found = repeats(seeds, "ppo")
    assert [r.words for r in found] == [f"so{c} wet{c} that{c} fish{c}" for c in words[:5]]
    assert (found[0].share, found[0].teacher_share) == (10 / len([*often, *rare]), 1.0)
    assert [r.words for r in repeats(seeds, "ppo", least=0.045)] == ["soa weta thata fisha"]


def test_the_thirds_of_training_are_of_steps_and_want_three():
    lines = [line_of(f"line {step} {i}", step) for step in (1, 2, 5, 7, 8, 9, 11) for i in range(2)]
    run = RunData("run", Path(), {}, {}, [seed_of(training=lines), seed_of(training=lines[:4])], ())
    thirds = thirds_of_training(run)
    assert [line.step for line in thirds["first third"]] == [1, 1, 2, 2]
    assert [line.step for line in thirds["last third"]] == [9, 9, 11, 11]
