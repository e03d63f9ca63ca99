"""The pocket world's jobs and pages with told parts: the main job, the demo's screen and report, and the gallery."""

import html
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from humor_env import pocket
from humor_env.experiments.pocket import demo, gallery, main_job
from humor_env.experiments.pocket.main_job import PocketRun, imitation_config, ppo_config, training_critic
from humor_env.experiments.runs.evaluate import Evaluation
from humor_env.shared.streams import generator
from humor_env.types import Joke, Judgement, Prompt

PROMPTS = [Prompt(f"p{n}", f"The soup [b]{n}[/b] was cold.") for n in range(12)]
LINE = "The soup was so cold that it froze."


def stage(name, scores, texts=None, **parts):
    jokes = tuple(Joke(p, t, name) for p, t in zip(PROMPTS, texts or [f"{LINE} {name}"] * 12, strict=False))
    judgements = tuple(Judgement("pocket", score, parts) for score in scores)
    return Evaluation(name, jokes[: len(judgements)], judgements, (min(scores), max(scores)))


def run():
    texts = ["My cat was so slow that we slept.", "The tea is as hot as lava, they say."] * 6
    return PocketRun(
        teacher=stage("teacher", [0.75, 0.25] * 6, texts, form=1.0, meaning=0.5),
        base=stage("base", [0.0, 0.125] * 6),
        imitation=stage("imitation", [0.25, 0.75] * 6, form=0.5, meaning=0.25),
        trained=stage("ppo", [1.0, 0.75] * 6, form=1.0, meaning=0.75),
        seconds={"imitation": 12.4, "ppo": 33.6},
    )


# The main job


def test_the_settings_of_the_main_job():
    assert (imitation_config("causal", 3).epochs, imitation_config("causal", 3).learning_rate) == (2, 3e-3)
    assert imitation_config("causal", 3).seed == 3
    for student, steps, entropy in (("causal", 240, 0.035), ("seq2seq", 200, 0.06), ("a/folder", 240, 0.035)):
        config = ppo_config(student, 4)
        assert (config.steps, config.entropy_weight, config.seed, config.decay) == (steps, entropy, 4, "linear")
        assert (config.kl_weight, config.value_learning_rate) == (0.01, 3e-3)
        assert config.sampling.max_new_tokens == 48
    assert main_job.LINES_PER_PROMPT == 3
    critic = training_critic()
    joke = Joke(pocket.load_world().prompts()[0], "Nothing.")
    judgement = critic([joke])[0]
    assert (judgement.parts["pocket"], judgement.parts["novelty"]) == (0.0, 1.0)
    assert judgement.score == pytest.approx(0.4 / 1.4)


def test_the_gap_is_what_is_left_to_a_perfect_score():
    """From 0.5 to 0.875: 0.375 of 0.5. The teacher has two sets of frames, the student one."""
    found = run()
    assert found.gap_closed == 0.75
    teachers = found.frames_kept
    same = PocketRun(found.teacher, found.base, found.imitation, found.teacher, found.seconds)
    assert same.frames_kept == 1.0 > teachers > 0
    numbers = found.numbers()
    assert list(numbers) == ["teacher", "base", "imitation", "ppo", "gap_closed", "frames_kept", "seconds"]
    assert (numbers["gap_closed"], numbers["ppo"]["score"], numbers["seconds"]["ppo"]) == (0.75, 0.875, 33.6)


def test_the_table_of_the_main_job():
    out = io.StringIO()
    main_job.show([run(), run()], Console(file=out, width=160))
    rows = [[cell.strip() for cell in row.split("│")[1:-1]] for row in out.getvalue().splitlines() if "│" in row]
    assert [row[0] for row in rows] == ["0", "1"]
    frames = f"{run().frames_kept:.0%}"
    teacher, ours = run().teacher.distinct_2, run().trained.distinct_2
    assert rows[0][1:] == [
        *("0.062 [0.000, 0.125]", "0.500 [0.250, 0.750]", "0.875 [0.750, 1.000]", "75%", "0.250 -> 0.750"),
        *(f"{ours:.3f} ({teacher:.3f})", frames, "12 + 34"),
    ]


class Writer:
    def __init__(self):
        self.saved = []

    def save_pretrained(self, folder):
        self.saved.append(folder)


@pytest.fixture
def told(monkeypatch):
    """The main job with a student, imitation and PPO that only note what they are given."""
    made = SimpleNamespace(writer=Writer(), loads=[], sft=[], ppo=[], evaluated=[], now=0.0, stop="")

    def clock():
        made.now += 5.0
        return made.now

    def imitate(config, student, train, dev, log, *, checkpoints):
        made.sft.append((config, student, train, dev, log, checkpoints))
        return SimpleNamespace(stopped=made.stop == "sft")

    def learn(config, env, student, log, *, prompts, checkpoints):
        made.ppo.append((config, env, student, log, prompts, checkpoints))
        return SimpleNamespace(stopped=made.stop == "ppo")

    def evaluate(student, prompts, critic, *, adapter="policy", sampling, seed, name):
        made.evaluated.append((student, len(prompts), adapter, sampling, seed, name))
        return stage(name, [0.25, 0.75])

    monkeypatch.setattr(main_job.Student, "load", lambda path, seed: made.loads.append((path, seed)) or made.writer)
    monkeypatch.setattr(main_job.sft, "train", imitate)
    monkeypatch.setattr(main_job.ppo, "train", learn)
    monkeypatch.setattr(main_job, "evaluate", evaluate)
    monkeypatch.setattr(main_job, "time", SimpleNamespace(perf_counter=clock))
    return made


def test_the_main_job_imitates_then_learns_and_measures_three_times(told, tmp_path):
    said = []
    found = main_job.pocket_run("seq2seq", 2, folder=tmp_path, say=said.append)
    world = main_job.load_prompts("pocket")
    sizes = {split: len(world.split(split)) for split in ("train", "dev", "test")}
    assert told.loads == [(pocket.path("seq2seq"), 2)]
    [(config, writer, train, dev, log, checkpoints)] = told.sft
    assert (config, writer) == (imitation_config("seq2seq", 2), told.writer)
    assert (len(train), len(dev)) == (3 * sizes["train"], sizes["dev"])
    assert checkpoints.folder == tmp_path / "imitation"
    [(config, env, writer, second_log, prompts, checkpoints)] = told.ppo
    assert (config, writer, len(prompts)) == (ppo_config("seq2seq", 2), told.writer, sizes["train"])
    assert env.num_envs == config.batch_size
    assert checkpoints.folder == tmp_path / "ppo"
    assert log is not second_log
    sampling = main_job.SAMPLING
    assert told.evaluated == [
        (told.writer, sizes["test"], None, sampling, 2, "base"),
        (told.writer, sizes["test"], "imitation", sampling, 2, "imitation"),
        (told.writer, sizes["test"], "policy", sampling, 2, "ppo"),
    ]
    assert said == ["base: 0.500", "imitation: 0.500 after 5 s", "ppo: 0.500 after 5 s"]
    assert found.seconds == {"imitation": 5.0, "ppo": 5.0}
    assert [e.name for e in (found.teacher, found.base, found.imitation, found.trained)] == [
        *("teacher", "base", "imitation", "ppo"),
    ]
    assert len(found.teacher.jokes) == sizes["test"] and found.teacher.mean > 0.3
    assert told.writer.saved == [tmp_path / "student"]


def test_without_a_folder_nothing_is_saved_and_a_folder_is_a_student_too(told):
    settings = ppo_config("causal", 0)
    main_job.pocket_run("my/model", settings=settings)
    assert told.loads == [("my/model", 0)]
    assert told.ppo[0][0] is settings
    assert (told.sft[0][5], told.ppo[0][5], told.writer.saved) == (None, None, [])
    assert told.sft[0][4] is told.ppo[0][3]  # one log, of both


@pytest.mark.parametrize(("stop", "learned"), [("sft", 0), ("ppo", 1)])
def test_a_job_that_is_stopped_ends_there(told, stop, learned):
    told.stop = stop
    with pytest.raises(KeyboardInterrupt):
        main_job.pocket_run()
    assert len(told.ppo) == learned


def test_the_command_of_the_main_job_does_seed_after_seed(monkeypatch, tmp_path):
    asked = []

    def one(student, seed, *, settings, say):
        asked.append((student, seed, settings.steps, settings.seed))
        return run()

    monkeypatch.setattr(main_job, "pocket_run", one)
    monkeypatch.setattr(main_job.torch, "set_num_threads", lambda count: asked.append(count))
    main_job.main("causal", 2, 3, 7, tmp_path / "all.json")
    assert asked == [3, ("causal", 0, 7, 0), ("causal", 1, 7, 1)]
    assert json.loads((tmp_path / "all.json").read_text()) == [json.loads(json.dumps(run().numbers()))] * 2
    main_job.main("seq2seq", 1, 1, None, None)
    assert asked[3:] == [1, ("seq2seq", 0, 200, 0)]


# The demo


def test_the_demos_folder_has_a_number_if_it_was_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [demo.free_folder() for _ in range(3)] == [Path("runs/demo"), Path("runs/demo-2"), Path("runs/demo-3")]
    assert Path("runs/demo-3").is_dir()
    monkeypatch.chdir(tmp_path / "runs" / "demo")
    Path("runs").write_text("a file")
    assert demo.free_folder().name.startswith("humor-env-demo-")


def test_what_the_demo_shows(monkeypatch, tmp_path):
    asked = []

    def told(student, seed, *, folder, settings, say, echo):
        asked.append((student, seed, folder, settings.steps, settings.seed))
        say("base: [b]0.1[/b]")
        echo(25, {"sft/loss": 1.5})
        for step in (24, 25, 50):
            echo(step, {"reward/mean": 0.5, "kl/per_line": 2.25})
        return run()

    monkeypatch.setattr(main_job, "pocket_run", told)
    monkeypatch.setattr(demo, "save_report", lambda run, out, student, seed: f"{out}/{student}-{seed}.html")
    out = io.StringIO()
    threads = []
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    demo.run_demo(Console(file=out, width=120), "causal", 3, tmp_path, 2)
    shown = out.getvalue()
    assert asked == [("causal", 3, tmp_path, 160, 3)] and threads == [2]
    assert "base: [b]0.1[/b]" in shown
    assert shown.count("  step ") == 2 and "  step 25: reward 0.50, KL 2.2\n" in shown and "  step 50: " in shown
    rows = [[cell.strip() for cell in row.split("│")[1:-1]] for row in shown.splitlines() if "│" in row]
    words = {name: f"{getattr(run(), name).distinct_2:.2f}" for name in ("base", "imitation", "trained", "teacher")}
    assert rows == [
        ["base", "0.062", "0.000 to 0.125", words["base"]],
        ["imitation", "0.500", "0.250 to 0.750", words["imitation"]],
        ["ppo", "0.875", "0.750 to 1.000", words["trained"]],
        ["teacher", "0.500", "0.250 to 0.750", words["teacher"]],
        *(["base", "nan", "nan"], ["imitation", "0.50", "0.25"], ["ppo", "1.00", "0.75"], ["teacher", "1.00", "0.50"]),
    ]
    assert (
        f"PPO closed 75% of the gap between imitation and a perfect 1.0. The lines have {run().frames_kept:.0%}"
        in shown
    )
    assert [n for n in range(12) if f"The soup [b]{n}[/b] was cold." in shown] == list(range(10))
    assert f"  0.25  {LINE} imitation\n  1.00  {LINE} ppo\n" in shown
    assert f"report: {tmp_path}/causal-3.html" in shown


def test_an_interrupted_demo_says_how_to_go_on(monkeypatch, tmp_path, capsys):
    def stop(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run_demo", stop)
    folder = tmp_path / "a folder"
    with pytest.raises(SystemExit) as ended:
        demo.main(["--seed", "3", "--student", "seq2seq", "--out", str(folder)])
    assert ended.value.code == 130
    said = capsys.readouterr().out
    assert f"To continue: humor-env demo --student seq2seq --seed 3 --out '{folder}'" in said


def test_the_demos_files_are_a_runs(tmp_path):
    page = demo.save_report(run(), tmp_path, "causal", 3)
    assert page == tmp_path / "report.html" and "humor-env demo --student causal --seed 3" in page.read_text()
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["seed"], results["seconds"], list(results["stages"])) == (
        *(3, {"imitation": 12.4, "ppo": 33.6}, ["base", "teacher", "imitation", "ppo"]),
    )
    assert results["stages"]["ppo"]["score"] == 0.875
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["facts"] == {
        **{"learner": "ppo", "student": "pocket:causal", "environment": "humor_env/Paraphrase-v0", "teacher": "pocket"},
        **{"training critic": "pocket and novelty", "held-out judge": "pocket"},
    }
    assert (record["repeat"], record["device"]) == ("humor-env demo --student causal --seed 3", "cpu")
    assert len((tmp_path / "evaluation-ppo.jsonl").read_text().splitlines()) == 12


# The gallery


def test_a_models_text_is_no_markup():
    """The # and & of an escaped mark were escaped again: readers saw "&&#35;124;" for a bar."""
    marks = "\\`*_{}[]<>|#&"
    assert gallery._plain(marks) == "".join(f"&#{ord(mark)};" for mark in marks)
    assert html.unescape(gallery._plain(f"a {marks} b")) == f"a {marks} b"
    assert gallery._plain("a\n\n b\tc ") == "a b c"


def test_an_entry_has_a_row_for_each_writer():
    world = pocket.load_world()
    prompt = next(p for p in world.prompts() if p.split == "test")
    best = world.best(prompt)
    entry = gallery._entry(4, prompt, [("base", "Nothing | here."), ("best", best)])
    assert entry[:4] == [
        f"## 4. {prompt.text}",
        "",
        "| who | line | score | form | meaning | resolution | incongruity | freshness | why |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    [judged] = world.judge_many([Joke(prompt, best, "best")])
    parts = [f"{judged.parts[name]:.2f}" for name in gallery.PARTS]
    cells = [cell.strip() for cell in entry[5].split("|")[1:-1]]
    assert cells == ["best", gallery._plain(best), f"**{judged.score:.2f}**", *parts, gallery._plain(judged.reason)]
    assert entry[4].startswith("| base | Nothing &") and entry[4].count("|") == 10
    assert entry[6] == "" and len(entry) == 7


def test_the_gallery_is_of_held_out_sentences_drawn_by_the_seed(monkeypatch, tmp_path):
    asked = []

    class Fixed:
        def generate(self, texts, *, seed, adapter):
            asked.append((texts, seed, adapter))
            return SimpleNamespace(texts=[f"Plain {n}." for n in range(len(texts))])

    monkeypatch.setattr("humor_env.agents.student.Student.load", lambda path: Fixed())
    gallery.main(tmp_path / "g.md", 3, 5)
    page = (tmp_path / "g.md").read_text(encoding="utf-8")
    candidates = [p for p in pocket.load_world().prompts() if p.split in ("test", "ood")]
    prompts = [candidates[i] for i in generator(5, "gallery").permutation(len(candidates))[:3]]
    assert asked == [([p.text for p in prompts], 5, None)]
    assert page.startswith(
        "# Gallery of the pocket world\n\n3 sentences that no student trained on, drawn with seed 5,"
    )
    heads = [line for line in page.splitlines() if line.startswith("## ")]
    assert heads == [f"## {n}. {gallery._plain(p.text)}" for n, p in enumerate(prompts, 1)]
    assert [line.split(" | ")[1] for line in page.splitlines() if line.startswith("| base |")] == [
        *("Plain 0.", "Plain 1.", "Plain 2."),
    ]
    teacher = gallery.PocketTeacher(seed=5)
    for prompt in prompts:
        assert f"| teacher | {gallery._plain(teacher.lines(prompt, 1)[0])} |" in page
        assert f"| best | {gallery._plain(pocket.load_world().best(prompt))} | **1.00** |" in page
