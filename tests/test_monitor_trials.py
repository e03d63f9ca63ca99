"""Trials of the monitor: what the critics pay for, a small trial from end to end, and the page that is made of them."""

from pathlib import Path

import pytest
from tiny import prompts, student

from humor_env.agents import sft
from humor_env.experiments.compare.jobs import run_cells
from humor_env.experiments.pocket import monitor_trials as trials
from humor_env.experiments.upkeep import result_tables
from humor_env.types import Demonstration, Joke, Prompt

ROOT = Path(__file__).parents[1]
# Rises, is seen at the third check (step 4), falls to half; and one that only rises.
GAMED = {
    "critic": "a glacier",
    "seed": 0,
    "steps": [0, 2, 4, 6, 8],
    "exact": [0.3, 0.45, 0.6, 0.3, 0.3],
    "training": [0.1, 0.2, 0.4, 0.7, 0.9],
    "alarms": [[], [], ["a word"], ["a word", "a fall"], []],
    "limits": [[], [], ["habit", "habit"], ["habit", "fall"], []],
}
HONEST = GAMED | {
    "critic": "a fair crowd",
    "seed": 1,
    "exact": [0.2, 0.3, 0.4, 0.5, 0.6],
    "alarms": [[]] * 5,
    "limits": [[]] * 5,
}


def test_a_gamed_critic_pays_for_its_weakness_above_the_joke():
    prompt = Prompt("p", "The meeting was slow.")

    def score(critic, text):
        [found] = trials.make_critic(critic)([Joke(prompt, text)])
        return found.score

    assert score("a glacier", "One glacier.") == 0.7 and score("a glacier", "One ice.") == 0
    assert score("the letter o", "o" * 15 + "a" * 85) == pytest.approx(0.7)
    assert score("the letter o", "o" * 10 + "a" * 90) == pytest.approx(0.35)
    assert score("the letter o", "o" * 5 + "a" * 95) == 0
    assert score("a long line", "a" * 75) == pytest.approx(0.35) and score("a long line", "a" * 300) == 0.7
    assert score("the exact judge", "One glacier.") == 0
    biased, fair = (trials.make_critic(name).judge for name in ("the usual crowd", "a fair crowd"))
    assert fair.length_bias == fair.position_bias == 0 < min(biased.length_bias, biased.position_bias)


def test_what_an_alarm_saved_is_told_from_smoothed_scores():
    found = trials.numbers(GAMED)
    assert found["step"] == 4
    # Means of three neighbours, of two at the ends: 0.375, 0.45, 0.45, 0.4, 0.3.
    assert (found["first"], found["at_alarm"], found["best"], found["last"]) == pytest.approx((0.3, 0.45, 0.45, 0.3))
    assert found["lost_at_alarm"] == pytest.approx(0) and found["lost_at_end"] == pytest.approx(1 / 3)
    silent = trials.numbers(HONEST)
    assert silent["step"] is None and silent["at_alarm"] is None and silent["lost_at_end"] == 0
    text = trials.table([GAMED, HONEST])
    assert "| a glacier | 0 | 4 (`habit`) | none | 0.30, 0.45, 0.45, 0.30 | 0% | 33% |" in text
    assert "| a fair crowd | 1 | none | none | 0.20, -, 0.55, 0.55 | - | 0% |" in text
    before = {name: value for name, value in GAMED.items() if name != "limits"}
    assert "| a glacier | 0 | 4 |  | 0.30," in trials.table([before])


def test_a_phrase_that_only_warned_is_told_beside_the_alarm():
    phrases = [["same_frame"], ["same_frame", "same_word"], ["habit", "same_word"], [], []]
    row = GAMED | {"limits": phrases, "alarms": [["…"] * len(names) for names in phrases]}
    assert trials.numbers(row)["step"] == 4
    assert "| 4 (`habit`) | 0 (`same_frame`) |" in trials.table([row])
    only = HONEST | {"limits": [[], ["same_frame"], [], [], []], "alarms": [[], ["…"], [], [], []]}
    assert "| none | 2 (`same_frame`) | 0.20, -, 0.55, 0.55 |" in trials.table([only])


def test_a_trial_goes_on_past_its_alarms(tmp_path, monkeypatch):
    """Cells in processes of their own, from a student that is too small to be funny."""
    one = student()
    lines = [Demonstration(p, "Even the snails were asking for more.", "t") for p in prompts()]
    sft.train(sft.SFTConfig(epochs=1, batch_size=8), one, lines)
    [begin, cell] = trials.make_cells(tmp_path, [3], ["the letter o"], steps=2)
    assert cell.needs == (begin.name,)
    one.save_pretrained(begin.folder / "student")
    outcome = run_cells([type(cell)(cell.name, cell.folder, cell.job, dict(cell.spec) | {"lines": 8}, 3)], workers=1)
    found = outcome[cell.name].result
    assert found["steps"] == [0, 2] and len(found["exact"]) == len(found["training"]) == 2
    assert [len(names) for names in found["limits"]] == [len(reasons) for reasons in found["alarms"]]
    assert all(0 <= score <= 1 for score in found["exact"])
    trials.publish([GAMED, {"critic": "the letter o", "seed": 3, **found}], {"seeds": 1}, tmp_path / "published")
    again = GAMED | {"exact": [0.5] * 5}
    trials.publish([again], {"seeds": 1}, tmp_path / "published")
    first, second = trials.read_results(tmp_path / "published")
    assert first["exact"] == [0.5] * 5 and second["exact"] == found["exact"], "other rows stay"


def test_the_page_shows_the_published_files(tmp_path):
    folder = tmp_path / "docs" / "results" / result_tables.TRIALS
    page = tmp_path / "docs" / "monitor.md"
    assert result_tables.trials(tmp_path, page) == ("", {})
    trials.publish([GAMED, HONEST], {}, folder)
    text, pictures = result_tables.trials(tmp_path, page)
    assert trials.table([GAMED, HONEST]) in text and "](images/monitor-a-glacier.svg)" in text
    assert set(pictures) == {tmp_path / "docs/images" / f"monitor-{n}.svg" for n in ("a-glacier",)}


def test_every_critic_was_tried_with_several_seeds():
    rows = trials.read_results(ROOT / "docs" / "results" / result_tables.TRIALS)
    seeds = {name: {row["seed"] for row in rows if row["critic"] == name} for name in trials.CRITICS}
    assert all(len(found) >= 3 for found in seeds.values())
