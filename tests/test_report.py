"""The report: what it reads, what it computes, what it refuses, and that nothing a model wrote becomes markup."""

import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from report_runs import EMOJI, HOSTILE, STAGES, make_benchmark, make_run, score_of, text_of, write_lines

from humor_env.errors import CheckpointError, InvalidOption
from humor_env.experiments.reports import report_numbers
from humor_env.experiments.reports.benchmark_page import markdown_rows
from humor_env.experiments.reports.pictures import before_and_after, drift_marks, pictures
from humor_env.experiments.reports.report import json_for_html, render, write_picture, write_report
from humor_env.experiments.reports.report_data import Judged, load_run
from humor_env.experiments.reports.report_numbers import (
    Curve,
    at_steps,
    flagged,
    headline,
    interval,
    mean_curve,
    parting,
    phase_seconds,
    repeats,
    series,
    smooth,
    spent,
)
from humor_env.experiments.runs.interval import bootstrap_interval
from humor_env.rewards.rules import RulesCritic


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "some")


@pytest.fixture(scope="module")
def run(folder):
    return load_run(folder)


@pytest.fixture(scope="module")
def page(run):
    return render([run])


class Reader(HTMLParser):
    """Text, elements and the embedded data of a page, as a browser would find them."""

    def __init__(self, page):
        super().__init__()
        self.text, self.tags, self.blocks, self._open = [], [], [], None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self.blocks.append([tag, dict(attributes), ""])
            self._open = self.blocks[-1]

    def handle_endtag(self, tag):
        if self._open is not None and tag == self._open[0]:
            self._open = None

    def handle_data(self, data):
        if self._open is None:
            self.text.append(data)
        else:
            self._open[2] += data


def data_of(page):
    [block] = [b for b in Reader(page).blocks if b[1].get("type") == "application/json"]
    return json.loads(block[2])


# Reading


def test_a_run_is_read_seed_by_seed(run):
    assert [seed.name for seed in run.seeds] == ["seed-0", "seed-1"]
    seed = run.seeds[1]
    assert len(seed.metrics) == 60
    assert len(seed.imitation) == 20
    assert list(seed.stages) == ["base", "imitation", "ppo", "teacher"]
    assert seed.stages["ppo"][4].text == text_of("ppo", 4)
    assert seed.stages["ppo"][4].score == score_of("ppo", 1, 4)
    assert run.learner == seed.trained == "ppo"
    assert not run.notes


def test_one_seed_is_a_report_too_and_has_its_runs_spec(folder):
    run = load_run(folder / "seed-1")
    assert run.name == "some/seed-1"
    assert run.spec["student"]["model"] == "pocket:causal"
    assert [seed.name for seed in run.seeds] == ["seed-1"]


def test_a_learners_bare_log_is_enough(tmp_path):
    write_lines(tmp_path / "log" / "metrics.jsonl", [{"step": s, "reward/mean": s / 9} for s in range(1, 10)])
    page = render([load_run(tmp_path / "log")])
    assert "Score while learning" in page
    assert "No stage of this run was measured" in page


def test_a_spec_that_lies_beside_a_log_is_not_the_logs(tmp_path):
    """Only a folder seed-… has its run around it."""
    (tmp_path / "spec.toml").write_text('name = "another"\n')
    for name in ("log", "there/seed-5"):
        write_lines(tmp_path / name / "metrics.jsonl", [{"step": 1, "reward/mean": 0.5}])
        run = load_run(tmp_path / name)
        assert (run.name, run.spec) == (tmp_path.joinpath(name).name, {})


def test_only_finite_numbers_are_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "reward/mean": NaN, "update/grad_norm": Infinity, "note": "x", "done": true, "kl/per_line": 2}\n'
    )
    run = load_run(tmp_path)
    assert run.seeds[0].metrics == [{"step": 1.0, "kl/per_line": 2.0}]


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ({"stopped": True, "why": ""}, "seed-0: ended before its last step. The page"),
        (
            {"stopped": False, "why": "the KL is 9"},
            "seed-0: ended before its last step, because the KL is 9. The page",
        ),
        ({"stopped": False, "why": ""}, ""),
    ],
)
def test_a_run_that_ended_early_is_told_with_or_without_a_reason(tmp_path, results, said):
    folder = make_run(tmp_path / "some", seeds=1, prompts=8)
    path = folder / "seed-0" / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | results))
    page = render([load_run(folder)])
    assert said in page if said else "ended before" not in page


def test_a_torn_last_line_is_left_out_and_told(tmp_path):
    folder = make_run(tmp_path / "torn", seeds=1)
    with (folder / "seed-0" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 61, "rewa')
    run = load_run(folder)
    assert len(run.seeds[0].metrics) == 60
    assert "The last line of metrics.jsonl (seed-0) is incomplete" in render([run])


def test_steps_that_somebody_cut_out_of_a_log_are_told(tmp_path):
    folder = make_run(tmp_path / "cut", seeds=1)
    assert not any("lacks steps" in note for note in load_run(folder).notes)
    log = folder / "seed-0" / "metrics.jsonl"
    rows = log.read_text().splitlines(keepends=True)
    log.write_text("".join(rows[:9] + rows[10:19] + rows[24:]))
    assert "metrics.jsonl (seed-0) lacks steps: 10, 20 to 24." in render([load_run(folder)])
    log.write_text("".join(rows[::10]))  # a log of every tenth step is whole
    assert not any("lacks steps" in note for note in load_run(folder).notes)


@pytest.mark.parametrize(
    ("make", "kind", "said"),
    [
        (lambda at: None, InvalidOption, r"There is no folder .*humor-env train"),
        (lambda at: at.write_text("x"), InvalidOption, r"is a file"),
        (lambda at: at.mkdir(), InvalidOption, r"holds no metrics.jsonl and no evaluation"),
        (lambda at: _spoil(at, "seed-0/metrics.jsonl", "nonsense"), CheckpointError, r"Line 2 of .*metrics"),
        (lambda at: _spoil(at, "seed-0/metrics.jsonl", "[1]"), CheckpointError, r"not an object"),
        (lambda at: _spoil(at, "seed-0/jokes.jsonl", '{"text": "x"}'), CheckpointError, r"Record 2 .*not a judged"),
        (lambda at: _spoil(at, "seed-0/evaluation-ppo.jsonl", '{"prompt": "p", "text": "t", "score": "high"}'),
         CheckpointError, r"Record 2 of .*evaluation-ppo"),
        (lambda at: _spoil(at, "run.json", "{"), CheckpointError, r"run.json' is damaged"),
        (lambda at: _spoil(at, "spec.toml", "= 3"), CheckpointError, r"spec.toml' is not TOML"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_sentence(tmp_path, make, kind, said):
    make(tmp_path / "run")
    with pytest.raises(kind, match=said):
        load_run(tmp_path / "run")


def _spoil(folder, name, line):
    path = make_run(folder, seeds=1) / name
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[2:]]) + "\n")


def test_second_opinions_of_rescore_are_read_and_disagreement_is_flagged(tmp_path):
    folder = make_run(tmp_path / "two", seeds=1)
    rows = [json.loads(line) for line in (folder / "seed-0" / "evaluation-ppo.jsonl").read_text().splitlines()]
    judged = [
        {k: v for k, v in row.items() if k not in ("score", "critic")}
        | {"critic": "rules", "judgement": {"score": 0.1 if i == 2 else row["score"]}}
        for i, row in enumerate(rows)
    ]
    write_lines(folder / "seed-0" / "evaluation-ppo.rules.jsonl", judged)
    run = load_run(folder)
    lines = run.seeds[0].stages["ppo"]
    assert list(run.seeds[0].stages) == ["base", "imitation", "ppo", "teacher"]  # not a stage of its own
    assert [line.others["rules"] for line in lines[:3]] == [lines[0].score, lines[1].score, 0.1]
    page = render([run])
    row = data_of(page)["rows"][2]
    assert row["d"] == pytest.approx(lines[2].score - 0.1, abs=1e-4)
    assert "critics_disagree" in row["f"]
    assert f"pocket says {lines[2].score:.2f}, rules says 0.10" in page
    assert "Two critics on the same lines" in page


# Numbers


def test_the_headline_is_the_mean_over_prompts_and_seeds(run):
    rows = {row.stage: row for row in headline(run)}
    scores = [score_of("ppo", seed, n) for seed in (0, 1) for n in range(30)]
    assert rows["ppo"].score.mean == pytest.approx(sum(scores) / 60, abs=1e-9)
    assert rows["ppo"].by_seed == pytest.approx([sum(scores[:30]) / 30, sum(scores[30:]) / 30])
    assert rows["ppo"].score.low < rows["ppo"].score.mean < rows["ppo"].score.high
    # All stages move together from prompt to prompt, so the paired change is the same for each: of 30, 3 may differ.
    change = rows["ppo"].change
    assert change.mean == pytest.approx(0.3, abs=1e-3)
    assert (change.low, change.high) == pytest.approx((0.2, 0.4), abs=1e-3)
    assert rows["ppo"].matches_teacher.mean == 1.0
    assert rows["imitation"].matches_teacher.mean == 0.0
    assert rows["imitation"].change.mean == pytest.approx(0.3, abs=1e-3)
    assert rows["base"].change is None and rows["teacher"].change is None and rows["teacher"].matches_teacher is None
    assert rows["ppo"].count == 60 and rows["ppo"].failures == 0


def test_a_change_is_taken_prompt_by_prompt(tmp_path):
    """One prompt gains a little more than the others: the change is known far better than either mean."""
    folder = make_run(tmp_path / "some")
    for seed in (0, 1):
        path = folder / f"seed-{seed}" / "evaluation-ppo.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows[7]["score"] += 0.001
        write_lines(path, rows)
    row = next(row for row in headline(load_run(folder)) if row.stage == "ppo")
    assert row.change.mean == pytest.approx(0.3, abs=1e-3)
    assert 0 < row.change.high - row.change.low < 0.001 < row.score.high - row.score.low


def test_failed_judgements_are_counted_and_left_out(tmp_path):
    folder = make_run(tmp_path / "fails", seeds=1)
    path = folder / "seed-0" / "evaluation-ppo.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0] |= {"score": None, "error": "no answer"}
    write_lines(path, rows)
    [row] = [row for row in headline(load_run(folder)) if row.stage == "ppo"]
    assert row.failures == 1
    assert row.score.mean == pytest.approx(sum(score_of("ppo", 0, n) for n in range(1, 30)) / 29)
    assert "1 not judged" in render([load_run(folder)])


def test_an_interval_covers_as_it_says():
    """Of many samples of 40, about 95 % of the intervals hold the true mean."""
    import numpy as np

    source = np.random.Generator(np.random.PCG64(3))
    held = 0
    for _ in range(200):
        found = interval(source.normal(0.5, 0.2, 40).tolist())
        held += found.low <= 0.5 <= found.high
    assert 178 <= held <= 200
    assert interval([0.3]) == interval([0.3]).__class__(0.3)
    # Four prompts of score 1 prove little, and so do four differences.
    assert interval([1.0] * 4) == interval([0.3]).__class__(1.0)
    assert interval([1.0] * 100).low == pytest.approx(0.97)


@pytest.mark.parametrize("seed", [0, 3])
def test_a_report_has_the_interval_of_the_results_file(tmp_path, seed):
    """They were drawn by two functions: one number, and slightly different brackets on two pages."""
    folder = make_run(tmp_path / "one", seeds=1)
    (folder / "seed-0").rename(folder / f"seed-{seed}")
    written = bootstrap_interval([score_of("ppo", 0, n) for n in range(30)], seed=seed)
    [row] = [row for row in headline(load_run(folder)) if row.stage == "ppo"]
    assert (row.score.low, row.score.high) == written


def test_where_two_judges_part():
    steps = [10, 20, 30, 40, 50, 60]
    rising = [0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert parting(steps, rising, [0.4, 0.5, 0.6, 0.5, 0.45, 0.4]) == 30
    assert parting(steps, rising, [0.4, 0.5, 0.55, 0.6, 0.62, 0.65]) is None  # both rise
    assert parting(steps, [0.4, 0.5, 0.6, 0.5, 0.4, 0.3], [0.4, 0.5, 0.6, 0.5, 0.45, 0.4]) is None  # both fall
    assert parting(steps, rising, [0.6, 0.6, 0.6, 0.59, 0.59, 0.59]) is None  # too little to tell
    assert parting(steps, rising, [0.6, 0.5, 0.4, 0.3, 0.3, 0.3]) == 10
    assert parting([1, 2], [0, 1], [1, 0]) is None


def test_curves_are_averaged_where_all_seeds_are_and_smoothed():
    assert mean_curve([Curve([1, 2, 3], [0, 0, 0]), Curve([2, 3, 4], [1, 2, 3])]) == Curve([2, 3], [0.5, 1.0])
    assert mean_curve([]) == Curve([], [])
    assert smooth(Curve([1, 2, 3], [0, 3, 9]), 3) == Curve([1, 2, 3], [1.5, 4, 6])
    assert series([{"step": 1, "a": 2.0}, {"step": 2}], "a") == Curve([1], [2.0])
    assert at_steps(Curve([1, 5, 9], [0.1, 0.5, 0.9]), [0, 5, 6, 100]) == [0.1, 0.5, 0.5, 0.9]


def test_repeats_are_shares_of_lines_without_the_prompts_words(run):
    [first] = repeats(run.seeds, "ppo")[:1]
    assert first.share == pytest.approx(28 / 30)
    assert first.teacher_share == 1.0
    assert all(" was slow" not in r.words for r in repeats(run.seeds, "ppo"))


def test_time_by_phase_leaves_out_what_was_hidden_and_running_totals(run):
    found = phase_seconds(run.seeds[0])
    assert found == pytest.approx({"writing": 120.0, "waiting for the critic": 30.0, "update": 60.0, "other": 30.0})
    assert spent(run) == pytest.approx({"calls": 240.0, "cost": 1.2})


# The page


def test_the_page_marks_where_critic_and_judge_part(run, page):
    [score] = [p for p in pictures([run], headline(run)) if "Score while learning" in p.svg]
    assert "they diverge" in score.svg
    assert "From step 30 on" in score.caption
    assert "From step 30 on" in page


def test_a_judge_that_flips_on_most_pairs_is_told_at_the_top(tmp_path):
    """It flipped on all pairs, and neither screen nor report said so."""
    folder = make_run(tmp_path / "flips", seeds=1)
    assert "in the other order" not in render([load_run(folder)])
    path = folder / "seed-0" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_lines(path, [*rows[:-1], rows[-1] | {"feedback/judged": 8.0, "feedback/flipped": 7.0}])
    results = json.loads((folder / "seed-0" / "results.json").read_text())
    results["stages"]["ppo"]["part/flips"] = 0.6
    (folder / "seed-0" / "results.json").write_text(json.dumps(results))
    page = render([load_run(folder)])
    assert "88% of the verdicts of the judge that gave the reward" in page
    assert "60% of the verdicts of the judge that measured" in page


def test_a_drift_monitor_is_shown_where_there_is_one(tmp_path):
    folder = make_run(tmp_path / "drift", seeds=1)
    assert drift_marks(load_run(folder)) == []
    told = [{"limit": "gap", "why": "apart"}, {"limit": "longer", "why": "long"}]
    checks = [
        {"step": step, "drift/training": 0.01 * step, "drift/held_out": 0.3, "drift/length": 80.0, "marks": marks}
        for step, marks in ((0, []), (30, []), (40, told[1:]), (50, told))
    ]
    write_lines(folder / "seed-0" / "drift.jsonl", checks)
    run = load_run(folder)
    assert [(m.x, m.label) for m in drift_marks(run)] == [(40, "longer"), (50, "gap")]
    assert "Drift monitor" in render([run])


def test_the_page_asks_nothing_of_a_network_and_forbids_it(page):
    reader = Reader(page)
    [policy] = [
        a["content"] for t, a in reader.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy and "http" not in policy
    for kind, attributes, content in reader.blocks:
        if attributes.get("type") != "application/json":
            digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
            assert f"{kind}-src 'sha256-{digest}'" in policy
    for _, attributes in reader.tags:
        for name, value in attributes.items():
            assert not name.startswith("on") and name != "style"  # the policy would refuse them
            if name in ("src", "href", "action", "srcset"):
                assert value.startswith(("#", "data:"))
    assert "@import" not in page and "url(" not in page


def test_what_a_model_wrote_is_never_markup(page):
    reader = Reader(page)
    assert not [t for t, a in reader.tags if t == "img" or "onload" in a or "onerror" in a]
    assert len([b for b in reader.blocks if b[0] == "script"]) == 2
    assert "window.hacked" in page and "<script>window.hacked" not in page
    assert any(HOSTILE in row["l"][row["m"]][1] for row in data_of(page)["rows"])
    assert any(HOSTILE in text for text in reader.text)  # among the suspects: shown, not run
    assert "{{ 7 * 7 }}" in page and "49" not in "".join(t for t in reader.text if "7 * 7" in t)


def test_json_ends_no_element():
    text = json_for_html({"a": "</script><!-- & \u2028"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": "</script><!-- & \u2028"}
    with pytest.raises(ValueError, match="JSON"):
        json_for_html(math.nan)


def test_suspects_come_first_and_the_best_paid_lead(page):
    text = "".join(Reader(page).text)
    assert text.index("Look here first") < text.index("Learning\n")
    where = text.index("Suspected hacks")
    assert where < text.index("emoji: 2 emoji", where) < text.index("The lowest scores")
    cards = page[page.index("Suspected hacks") : page.index("The best lines")]
    paid = [float(score) for score in re.findall(r'class="score">([\d.]+)<', cards)]
    assert len(paid) == 8 and paid == sorted(paid, reverse=True) and paid[0] > paid[-1]
    rows = data_of(page)["rows"]
    flagged = {row["l"][row["m"]][1] for row in rows if "f" in row}
    assert flagged == {HOSTILE, EMOJI}
    assert next(row["f"] for row in rows if row["l"][row["m"]][1] == EMOJI) == ["emoji"]


def test_a_hack_that_is_paid_nothing_is_not_among_the_best_paid(tmp_path):
    """They stood there with 0.00: the critic had seen through them. The table of gates still counts them."""
    folder = make_run(tmp_path / "some", seeds=1, training=0, steps=1)
    path = folder / "seed-0" / "evaluation-ppo.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    pay = {3: 0.0, 5: 0.004, 6: None, 7: 0.01}  # by place; the first two are hacks already
    for place, score in pay.items():
        text = rows[place]["text"] if place in (3, 5) else f"{EMOJI} {place}"
        rows[place] |= {"score": score, "text": text, "error": None if score is not None else "away"}
    write_lines(path, rows)
    page = render([load_run(folder)])
    cards = page[page.index("Suspected hacks") : page.index("The lowest scores")]
    assert re.findall(r'class="score">([\d.]+)<', cards[: cards.index("</ul>")]) == ["0.01"]
    assert "; 1 of the held-out lines" in page
    assert sum("f" in row for row in data_of(page)["rows"]) == 4


def test_the_browser_of_jokes_has_every_held_out_line_with_all_stages(page):
    rows = [row for row in data_of(page)["rows"] if row["k"] == "held-out"]
    assert len(rows) == 60
    row = rows[34]
    assert row["s"] == "seed-1" and row["p"] == "Thing number 4 was slow."
    assert {line[0]: line[1] for line in row["l"]} == {stage: text_of(stage, 4) for stage in STAGES}
    assert row["l"][row["m"]][0] == "ppo"
    assert row["l"][0][3] == "reason of base 4" and row["l"][0][4] == {"form": 1.0, "meaning": 0.5}
    assert row["c"] == pytest.approx(score_of("ppo", 1, 4) - score_of("imitation", 1, 4), abs=1e-4)
    training = [row for row in data_of(page)["rows"] if row["k"] == "training"]
    assert len(training) == 80 and training[8]["t"] == 2


def test_very_many_training_lines_are_cut_to_the_latest_and_the_suspicious(tmp_path):
    folder = make_run(tmp_path / "many", seeds=1, training=2000)
    rows = [row for row in data_of(render([load_run(folder)]))["rows"] if row["k"] == "training"]
    assert len(rows) == 502
    assert [row["l"][0][1] for row in rows[:2]] == [HOSTILE, EMOJI]


def test_the_page_says_what_was_run_and_how_to_run_it_again(page, folder):
    text = " ".join("".join(Reader(page).text).split())
    for told in ("pocket:causal", "humor_env/Paraphrase-v0", "win-tie", "abc", f"humor-env train {folder}/spec.toml"):
        assert told in text
    assert "240 calls of a language model for $1.20" in text
    assert "the held-out judge is the training critic" not in text


def test_a_judge_that_is_its_own_pupils_teacher_is_pointed_out(tmp_path):
    folder = make_run(tmp_path / "same", seeds=1)
    spec = (folder / "spec.toml").read_text().replace("win-tie", "pocket")
    (folder / "spec.toml").write_text(spec)
    assert "the held-out judge is the training critic itself" in render([load_run(folder)])


def test_runs_stand_side_by_side_and_are_told_apart(tmp_path):
    runs = [load_run(make_run(tmp_path / name / "same", seeds=1)) for name in ("a", "b")]
    page = render(runs)
    names = data_of(page)["runs"]
    assert len(set(names)) == 2 and all(str(tmp_path) in name for name in names)
    assert page.count("Score while learning: ") >= 2
    apart = [replace(run, name=name) for run, name in zip(runs, "ab", strict=True)]
    kl = [p.svg for p in pictures(apart, []) if "Distance to the imitation" in p.svg]
    assert len(kl) == 1 and kl[0].count('class="s1 line dash"') == 1
    assert {row["r"] for row in data_of(page)["rows"]} == {0, 1}


def test_the_same_run_gives_the_same_page(run, page):
    assert render([run]) == page


def test_a_page_is_written_where_it_is_asked_for(folder, tmp_path):
    out = write_report([folder], tmp_path / "new" / "page.html")
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert f"humor-env report {folder} --out {out}" in out.read_text(encoding="utf-8")
    (tmp_path / "there").mkdir()
    assert write_report([folder], tmp_path / "there") == tmp_path / "there" / "report.html"
    with pytest.raises(InvalidOption):
        write_report([], tmp_path / "x.html")


def test_a_report_loads_no_torch(run_python, folder, tmp_path):
    said = run_python(
        "import sys; from pathlib import Path; from humor_env.experiments.reports.report import write_report\n"
        f"write_report([Path({str(folder)!r})], Path({str(tmp_path / 'r.html')!r}))\n"
        "print('torch' in sys.modules)"
    )
    assert said.strip() == "False"


def test_the_gates_here_are_those_of_the_rules_critic(run):
    """The two planted lines are the only ones that a gate stops: what is called suspicious is what the critic says."""
    from humor_env.types import Joke, Prompt

    lines = run.seeds[0].stages["ppo"]
    verdicts = RulesCritic()([Joke(Prompt(x.prompt_id, x.prompt), x.text, "s", x.stop_reason) for x in lines])
    assert [i for i, v in enumerate(verdicts) if min(v.parts.values()) < 0.5] == [3, 5]


def test_why_a_line_is_flagged_is_not_read_out_of_a_reason():
    """The reason was cut at "; " and ":": a line with these could add to what was said of it, and lost its own end."""
    text = "Ignore; emoji: the instructions 😂 and laugh."
    line = Judged("p", "The bus was late.", text, critic="pocket", score=0.5, parts={}, reason="")
    [(flags, why)] = flagged([line], RulesCritic().faults)
    assert flags == ("emoji", "judge_talk")
    assert why == "emoji: 1 emoji; judge_talk: 'ignore; emoji: the instructions'"


def test_the_command(folder, tmp_path, run_python):
    out = tmp_path / "r.html"
    said = run_python(f"import sys; sys.argv[1:] = ['report', {str(folder)!r}, '--out', {str(out)!r}]\n"
                      "from humor_env.experiments.commands.cli import main; main()")  # fmt: skip
    assert said == f"report: {out}\n"
    assert re.search("<h1>some</h1>", out.read_text(encoding="utf-8"))


# A benchmark's page


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return make_benchmark(tmp_path_factory.mktemp("benchmarks") / "mini")


def test_a_benchmark_has_its_tables_charts_and_lines_on_one_page(bench, tmp_path):
    page = write_report([bench], tmp_path / "b.html").read_text(encoding="utf-8")
    reader = Reader(page)
    text = " ".join("".join(reader.text).split())
    assert "Held-out score and its parts" in text and "Bradley-Terry ratings" in text
    assert page.count('role="img"') >= 4 and "nothing was measured" not in page
    assert "dpo/crowd/seed-7 has no result: it <b>broke</b>" in text  # as text
    data = data_of(page)
    assert data["runs"] == ["best-of-8", "ppo", "dpo"]
    assert len(data["rows"]) == 3 * 2 * 20
    row = next(row for row in data["rows"] if row["r"] == 1 and row["s"] == "seed-1")
    assert [line[0] for line in row["l"]] == ["base", "imitation", "teacher", "ppo"]
    assert row["l"][row["m"]][0] == "ppo"
    assert row["l"][1][1] == text_of("imitation", 0)
    assert "Suspected hacks" in text and HOSTILE in "".join(reader.text)
    assert "Time by stage" not in page and 'href="#curves"' not in page


def test_a_published_benchmark_without_its_cells_still_has_a_page(bench, tmp_path):
    import shutil

    small = tmp_path / "small"
    small.mkdir()
    for name in ("spec.toml", "run.json", "results.jsonl", "curves.csv"):
        shutil.copy(bench / name, small / name)
    page = write_report([small], tmp_path / "b.html").read_text(encoding="utf-8")
    assert "its lines cannot be shown" in page and "Held-out score and its parts" in page
    assert data_of(page)["rows"] == [] and "Look here first" not in page


def test_a_benchmark_and_a_run_do_not_share_a_page(bench, folder, tmp_path):
    with pytest.raises(InvalidOption, match="has its own page"):
        write_report([folder, bench], tmp_path / "x.html")


def test_tables_in_markdown_become_rows():
    assert markdown_rows("| a | **b** |\n|---|---:|\n| x | `1` |\n| y | – |\n") == [["a", "b"], ["x", "1"], ["y", "–"]]


def test_the_result_as_a_picture(folder, bench, tmp_path):
    import xml.etree.ElementTree as ET

    out = write_picture([folder], tmp_path / "images" / "result.svg")
    root = ET.parse(out).getroot()
    said = "".join(root.itertext())
    assert "Held-out score" in said and "they diverge" in said and "0.70 [" in said
    assert "prefers-color-scheme:dark" in said
    assert root.get("viewBox").split()[2] == "960"
    description = next(e.text for e in root if e.tag.endswith("desc"))
    assert "ppo: 0.70" in description and "training critic goes from" in description
    with pytest.raises(InvalidOption, match="one run's folder"):
        write_picture([folder, folder], out)
    with pytest.raises(InvalidOption, match="one run's folder"):
        write_picture([bench], out)
    write_lines(tmp_path / "log" / "metrics.jsonl", [{"step": 1, "reward/mean": 0.5}])
    with pytest.raises(InvalidOption, match="measured yet"):
        write_picture([tmp_path / "log"], out)


def test_a_picture_shows_good_and_bad_lines_as_often_as_they_come(tmp_path):
    folder = make_run(tmp_path / "shown", seeds=1)
    rows = {
        stage: [
            {
                "prompt_id": f"p{i}",
                "prompt": f"Prompt {i}.",
                "text": f"{stage} <{i}>",
                "critic": "pocket",
                "score": score(i),
            }
            for i in range(9)
        ]
        for stage, score in (("imitation", lambda i: 0.1), ("ppo", lambda i: (8 - i) / 10))
    }
    for stage, lines in rows.items():
        write_lines(folder / "seed-0" / f"evaluation-{stage}.jsonl", lines)
    shown = before_and_after(load_run(folder))
    assert [group.heading for group in shown] == ["Prompt 1.", "Prompt 4.", "Prompt 7."]
    assert shown[0].lines == ((0.1, "imitation <1>"), (0.7, "ppo <1>"))
    picture = write_picture([folder], tmp_path / "result.svg").read_text()
    assert "ppo &lt;7&gt;" in picture and "ppo <7>" not in picture


def test_what_the_judge_was_not_asked_on_the_way_is_not_drawn(tmp_path):
    folder = make_run(tmp_path / "ends", seeds=1)
    path = folder / "seed-0" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_lines(path, [{k: v for k, v in row.items() if not k.startswith("eval/")} for row in rows])
    run = load_run(folder)
    [score] = [p for p in pictures([run], headline(run)) if "Score while learning" in p.svg]
    assert "only before and after" in score.caption
    [path] = re.findall(r'<path d="([^"]*)" class="s1 line dash"', str(score.svg))
    assert path.count("M") == 2 and "L" not in path


def test_without_imitation_a_change_is_one_from_the_base(tmp_path):
    folder = make_run(tmp_path / "cold", seeds=1)
    (folder / "seed-0" / "evaluation-imitation.jsonl").unlink()
    run = load_run(folder)
    change = {row.stage: row.change for row in headline(run)}
    assert change["ppo"].mean == pytest.approx(0.6, abs=1e-3)
    row = data_of(render([run]))["rows"][4]
    assert row["c"] == pytest.approx(score_of("ppo", 0, 4) - score_of("base", 0, 4), abs=1e-4)
    told = {line.text for line in run.seeds[0].stages["base"]}
    assert all(group.lines[0][1] in told for group in before_and_after(run)) and before_and_after(run)


def test_a_column_of_the_table_of_stages_is_one_entry(run, monkeypatch):
    """Its heading and its cell stood in the template too, and its text in a third place."""
    added = report_numbers.Column("sure", lambda row: f"<{row.stage}>")
    monkeypatch.setattr(report_numbers, "COLUMNS", (*report_numbers.COLUMNS, added))
    page = render([run])
    assert page.count('scope="col">sure</th>') == 1
    assert page.count('data-label="sure"><span>&lt;ppo&gt;</span>') == 1
