"""A spec, run: what it leaves behind, that it repeats and resumes exactly, what is refused before any work is done."""

import gc
import json
import os
import signal
import subprocess
import sys
import weakref
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny import bart, llama, tokenizer

from humor_env import pocket, registry
from humor_env.agents import ppo
from humor_env.agents.session.log import RunLog
from humor_env.agents.update.on_policy import OnPolicySession as Session
from humor_env.errors import CheckpointError, InvalidOption, StudentError
from humor_env.experiments.runs import micro_batches, screen
from humor_env.experiments.runs import run as run_module
from humor_env.experiments.runs.ingredients import load_student
from humor_env.experiments.runs.measure_student import measure_student
from humor_env.experiments.runs.run import run
from humor_env.experiments.runs.run_folder import choose_folder, commit, prepare_folder, versions
from humor_env.experiments.specs.spec import load_spec, parse_spec
from humor_env.teacher import TeacherBuffer
from humor_env.types import Demonstration, Judgement, Prompt, Verdict

STOP_AT: list[int] = []  # the calls of the critic at which the user presses Ctrl-C
CALLS: list[int] = []


def share_of_e(jokes):
    """A critic that differs from line to line."""
    CALLS.append(len(jokes))
    if len(CALLS) in STOP_AT:
        os.kill(os.getpid(), signal.SIGINT)
    return [Judgement("share-of-e", min(1.0, 4 * j.text.count("e") / max(1, len(j.text)))) for j in jokes]


def share_of_o(jokes):
    return [Judgement("share-of-o", j.text.count("o") / max(1, len(j.text))) for j in jokes]


@pytest.fixture(autouse=True)
def a_fresh_critic():
    STOP_AT.clear()
    CALLS.clear()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with tiny students, prompts and a teacher's lines."""
    folder = tmp_path_factory.mktemp("world")
    for name, make in (("causal", llama), ("seq2seq", bart)):
        words = tokenizer()
        make(len(words)).save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    sizes = {"train": 8, "dev": 3, "test": 4}
    prompts = [
        Prompt(f"{split}-{i}", f"The {split} meeting {i} was slow.", split=split)
        for split, size in sizes.items()
        for i in range(size)
    ]
    rows = [{"id": p.id, "text": p.text, "split": p.split} for p in prompts]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    TeacherBuffer(folder / "lines.jsonl", [Demonstration(p, "Glaciers overtook it.", "t") for p in prompts])
    return folder


@pytest.fixture
def text(world):
    return f"""
name = "tiny"
[env]
prompts = {str(world / "prompts.jsonl")!r}
[student]
model = {str(world / "causal")!r}
lora = {{rank = 4, alpha = 8}}
[teacher]
lines = {str(world / "lines.jsonl")!r}
[teacher.imitation]
epochs = 2
batch_size = 4
[[critic]]
critic = "test_run:share_of_e"
[learner]
name = "ppo"
steps = 4
batch_size = 4
kl_limit = 1e9
checkpoint_every = 2
[learner.sampling]
max_new_tokens = 6
[[eval.critic]]
critic = "test_run:share_of_o"
"""


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_a_run_leaves_behind(text, tmp_path):
    spec = parse_spec(text, ["learner.evaluate_every=2", "eval.dev_limit=2", "eval.limit=3"])
    [result] = run(spec, tmp_path / "run")
    place = tmp_path / "run" / "seed-0"
    assert [row["step"] for row in lines(place / "metrics.jsonl")] == [1, 2, 3, 4]
    assert [("eval/score" in row) for row in lines(place / "metrics.jsonl")] == [False, True, False, True]
    assert not any(key.startswith("seconds/") for row in lines(place / "metrics.jsonl") for key in row)
    assert len(lines(place / "jokes.jsonl")) == 16
    assert {row["critic"] for row in lines(place / "jokes.jsonl")} == {"share-of-e"}
    assert [row["step"] for row in lines(place / "imitation" / "metrics.jsonl") if "sft/loss" in row] == [1, 2, 3, 4]
    for stage in ("base", "imitation", "ppo", "teacher"):
        rows = lines(place / f"evaluation-{stage}.jsonl")
        assert [row["prompt_id"] for row in rows] == ["test-0", "test-1", "test-2"]
        assert {row["critic"] for row in rows} == {"share-of-o"}
        assert result.stages[stage]["score"] == pytest.approx(sum(row["score"] for row in rows) / 3)
    assert result.stages["teacher"]["score"] == pytest.approx("Glaciers overtook it.".count("o") / 21)
    assert (result.steps, result.stopped) == (4, False)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["versions"] == versions()
    assert (record["seeds"], record["commit"]) == ([0], commit())
    assert record["repeat"] == f"humor-env train {tmp_path / 'run' / 'spec.toml'}"
    whole = json.loads((tmp_path / "run" / "results.json").read_text())
    assert whole["seeds"][0] == json.loads((place / "results.json").read_text()) == result.record()
    assert load_spec(tmp_path / "run" / "spec.toml") == spec
    # The saved student is the one that was measured, and its base is named, not copied.
    again = measure_student(
        str(tmp_path / "run"),
        critic="test_run:share_of_o",
        prompts=str(spec.env.prompts),
        limit=3,
        max_new_tokens=6,
        out=tmp_path / "again.jsonl",
    )
    assert again["score"] == result.stages["ppo"]["score"]
    assert [r["text"] for r in lines(tmp_path / "again.jsonl")] == [
        r["text"] for r in lines(place / "evaluation-ppo.jsonl")
    ]
    assert json.loads((place / "student" / "student.json").read_text())["base"] == spec.student.model
    assert not (place / "student" / "base").exists()


def test_a_run_repeated_from_its_saved_spec_gives_the_same_metrics(text, tmp_path):
    run(parse_spec(text, ["seeds=[3]"]), tmp_path / "first")
    run(load_spec(tmp_path / "first" / "spec.toml"), tmp_path / "second")
    for name in ("metrics.jsonl", "jokes.jsonl", "imitation/metrics.jsonl", "evaluation-ppo.jsonl"):
        first, second = ((tmp_path / which / "seed-3" / name).read_bytes() for which in ("first", "second"))
        assert first == second
        assert first


def test_each_seed_is_a_run_of_its_own(text, tmp_path):
    results = run(parse_spec(text, ["seeds=[0, 1]", "learner.steps=1"]), tmp_path)
    assert [r.seed for r in results] == [0, 1]
    first, second = (lines(tmp_path / f"seed-{i}" / "jokes.jsonl") for i in (0, 1))
    assert [r["text"] for r in first] != [r["text"] for r in second]


def test_a_stopped_run_goes_on_as_if_nothing_had_happened(text, tmp_path):
    spec = parse_spec(text)
    run(spec, tmp_path / "whole")
    CALLS.clear()
    STOP_AT.append(3)
    [stopped] = run(spec, tmp_path / "stopped")
    assert (stopped.stopped, stopped.steps) == (True, 3)
    assert "ppo" not in stopped.stages
    assert json.loads((tmp_path / "stopped" / "results.json").read_text())["seeds"][0]["stopped"] is True
    [resumed] = run(spec, tmp_path / "stopped", resume=True)
    assert not resumed.stopped
    for name in ("metrics.jsonl", "jokes.jsonl", "imitation/metrics.jsonl", "evaluation-ppo.jsonl"):
        whole, other = ((tmp_path / which / "seed-0" / name).read_bytes() for which in ("whole", "stopped"))
        assert whole == other, name
    assert "resumed" in json.loads((tmp_path / "stopped" / "run.json").read_text())


def test_stopping_while_imitating_stops_the_run(text, tmp_path, monkeypatch):
    from humor_env.agents import sft

    update, done = sft.Minibatch.clip_and_step, []

    def and_stop(*arguments):
        done.append(1)
        if len(done) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return update(*arguments)

    monkeypatch.setattr(sft.Minibatch, "clip_and_step", and_stop)
    spec = parse_spec(text, ["seeds=[0, 1]"])
    [result] = run(spec, tmp_path)
    assert result.stopped
    assert not (tmp_path / "seed-1").exists()
    assert not (tmp_path / "seed-0" / "metrics.jsonl").exists()
    monkeypatch.undo()
    assert [r.stopped for r in run(spec, tmp_path, resume=True)] == [False, False]
    assert [r["step"] for r in lines(tmp_path / "seed-0/imitation/metrics.jsonl") if "sft/loss" in r] == [1, 2, 3, 4]


def test_a_finished_run_is_not_measured_again_but_a_longer_one_is(text, tmp_path):
    [before] = run(parse_spec(text), tmp_path)
    CALLS.clear()
    [same] = run(parse_spec(text), tmp_path, resume=True)
    assert not CALLS
    assert same.stages == before.stages
    evaluated = (tmp_path / "seed-0" / "evaluation-ppo.jsonl").stat().st_mtime_ns
    [longer] = run(parse_spec(text, ["learner.steps=6"]), tmp_path, resume=True)
    assert len(CALLS) == 2
    assert longer.steps == 6
    assert longer.stages["base"] == before.stages["base"]
    assert (tmp_path / "seed-0" / "evaluation-ppo.jsonl").stat().st_mtime_ns > evaluated


def test_a_run_is_only_gone_on_with_under_its_own_settings(text, tmp_path):
    run(parse_spec(text, ["learner.steps=1"]), tmp_path)
    with pytest.raises(CheckpointError, match=r"other settings \(learner.clip was 0.2, now 0.3\)"):
        run(parse_spec(text, ["learner.steps=1", "learner.clip=0.3"]), tmp_path, resume=True)
    assert run(parse_spec(text, ["learner.steps=1", "budget.max_calls=3"]), tmp_path, resume=True)


def test_a_resumed_run_may_ask_in_another_way(text, tmp_path):
    """The docs' remedy for a slow server, to lower `concurrency` and resume, was refused."""

    def spec(options, *settings, critic="scorer"):
        return parse_spec(text.replace('"test_run:share_of_e"', f'"{critic}"\noptions = {options}'), settings)

    server = 'client = "openai:m@http://h:9/v1"'
    prepare_folder(spec(f"{{ {server}, options = {{ concurrency = 2, temperature = 0.5 }} }}"), tmp_path, resume=False)
    asked = f"{{ {server}, ledger = 'x', options = {{ ask_again = ['invalid'], temperature = 0.5 }} }}"
    prepare_folder(spec(asked), tmp_path, resume=True)
    for changed, said in (
        (spec(asked.replace("0.5", "0.7")), r"options.temperature was 0.5, now 0.7"),
        (spec(asked, "learner.batch_size=8"), r"learner.batch_size was 4, now 8"),
        (spec(asked.replace("//h", "//other")), r"critic.0.options.client was"),
    ):
        with pytest.raises(CheckpointError, match=said):
            prepare_folder(changed, tmp_path, resume=True)
    # A table that becomes empty is none, and a name that is the user's own is no setting of a client.
    prepare_folder(spec("{ options = { concurrency = 2 } }"), tmp_path / "empty", resume=False)
    prepare_folder(spec("{}"), tmp_path / "empty", resume=True)
    for before, now in (("weights = { timeout = 1 }", "weights = { timeout = 2 }"), ("budget = 40", "budget = 10")):
        folder = tmp_path / before[:3]
        prepare_folder(spec(f"{{ {before} }}", critic="test_run:share_of_o"), folder, resume=False)
        with pytest.raises(CheckpointError, match="other settings"):
            prepare_folder(spec(f"{{ {now} }}", critic="test_run:share_of_o"), folder, resume=True)


@pytest.mark.parametrize("learner", registry.learners.names())
def test_every_learner_asks_for_nothing_that_a_run_does_not_offer(learner):
    """And every one's settings can be written down and read again."""
    import inspect

    from humor_env.experiments.runs.run import OFFERS

    spec = parse_spec(f"[[critic]]\ncritic = 'pocket'\n[learner]\nname = '{learner}'\n")
    assert parse_spec(spec.to_toml()) == spec
    _, *others = inspect.signature(spec.train).parameters.values()
    assert {p.name for p in others if p.default is p.empty} <= set(OFFERS)


def test_groups_of_environments_change_nothing(text, tmp_path):
    run(parse_spec(text, ["learner.steps=2"]), tmp_path / "one")
    run(parse_spec(text, ["learner.steps=2", "env.groups=2"]), tmp_path / "two")
    one, two = (lines(tmp_path / which / "seed-0" / "jokes.jsonl") for which in ("one", "two"))
    told = [[(r["prompt_id"], r["text"], r["score"]) for r in rows] for rows in (one, two)]
    assert told[0] == told[1]
    assert CALLS.count(4) == 2 and CALLS.count(2) == 4
    with pytest.raises(InvalidOption, match="a process's 4 lines do not divide into 3 groups"):
        run(parse_spec(text, ["env.groups=3"]), tmp_path / "three")
    with pytest.raises(InvalidOption, match="2 groups of whole families of 4 siblings"):
        run(parse_spec(text, ["env.groups=2", "learner.siblings=4"]), tmp_path / "four")


@pytest.mark.parametrize("learner", ["grpo", "rloo", "sft"])
def test_other_learners_run_from_the_same_spec(learner, text, tmp_path):
    settings = ["learner.steps=1", "learner.siblings=2", "learner.batch_size=4", "learner.sampling.max_new_tokens=6"]
    begin = text.split("[learner]")[0] + f'[learner]\nname = "{learner}"\n' + "[[eval.critic]]\ncritic = 'rules'\n"
    spec = parse_spec(begin, ["learner.epochs=1"] if learner == "sft" else settings)
    [result] = run(spec, tmp_path)
    assert set(result.stages) == {"base", "teacher", learner} | ({"imitation"} if learner != "sft" else set())
    assert lines(tmp_path / "seed-0" / "metrics.jsonl")


PAIRS = """
[[eval.critic]]
critic = "test_run:share_of_o"
[judge]
judge = "test_run:more_e"
[learner]
name = "dpo"
epochs = 1
batch_size = 4
[learner.pairs]
candidates = 3
length_filter = "off"
[learner.pairs.sampling]
max_new_tokens = 6
"""


def more_e(pairs):
    """A judge: the line with more of the letter e."""
    return [Verdict("more-e", 0.9 if a.text.count("e") > b.text.count("e") else 0.2) for a, b in pairs]


def test_learners_of_preferences_get_the_judge_and_need_no_critic(text, tmp_path):
    begin = text.split("[[critic]]")[0]
    [result] = run(parse_spec(begin + PAIRS), tmp_path / "dpo")
    assert set(result.stages) == {"base", "teacher", "imitation", "dpo"}
    assert result.steps == len(lines(tmp_path / "dpo" / "seed-0" / "metrics.jsonl")) > 0
    texts = [r["text"] for r in lines(tmp_path / "dpo" / "seed-0" / "evaluation-dpo.jsonl")]
    short = run(parse_spec(begin + PAIRS, ["eval.sampling={max_new_tokens=1}"]), tmp_path / "short")
    assert len(short) == 1
    other = [r["text"] for r in lines(tmp_path / "short" / "seed-0" / "evaluation-dpo.jsonl")]
    assert sum(map(len, other)) < sum(map(len, texts)) / 2
    with pytest.raises(InvalidOption, match=r"'grpo' learns from a critic: the spec needs \[\[critic\]\]"):
        run(parse_spec(begin + PAIRS[: PAIRS.index("[learner]")] + '[learner]\nname = "grpo"\n'), tmp_path / "grpo")


def test_a_limit_of_the_budget_ends_a_run_that_is_then_measured_and_can_go_on(text, tmp_path):
    settings = ["learner.learning_rate=0.1", "seeds=[0, 1]"]
    spec = parse_spec(text, ["budget.max_samples=9", *settings])
    results = run(spec, tmp_path)
    assert [(r.steps, r.stopped) for r in results] == [(3, False), (3, False)]
    assert {r.why for r in results} == {"the limit of 9 samples is reached (12 taken)"}
    assert json.loads((tmp_path / "seed-1" / "results.json").read_text())["why"] == results[1].why
    assert "ppo" in results[0].stages
    assert (tmp_path / "seed-0" / "student" / "student.json").is_file()
    CALLS.clear()
    assert [(r.stages, r.why) for r in run(spec, tmp_path, resume=True)] == [(r.stages, r.why) for r in results]
    assert not CALLS
    longer = run(parse_spec(text, ["budget.max_samples=90", *settings]), tmp_path, resume=True)
    assert [(r.steps, r.why) for r in longer] == [(4, ""), (4, "")]
    assert longer[0].stages["ppo"] != results[0].stages["ppo"]
    # Imitation is not what the budget is for.
    assert len(lines(tmp_path / "seed-0" / "imitation" / "metrics.jsonl")) > 4


def test_a_learner_that_hands_over_a_writer_is_measured_by_it(text, tmp_path):
    best = text.split("[learner]")[0] + '[learner]\nname = "best-of-n"\nn = 4\nsampling = {max_new_tokens = 6}\n'
    [result] = run(parse_spec(best), tmp_path)
    assert result.stages["best-of-n"]["score"] > result.stages["imitation"]["score"]
    assert {r["author"] for r in lines(tmp_path / "seed-0" / "evaluation-best-of-n.jsonl")} == {"best-of-4"}
    assert run(parse_spec(best), tmp_path, resume=True)[0].stages == result.stages


def test_what_was_logged_before_the_first_checkpoint_is_not_logged_twice(text, tmp_path):
    """A run killed in its first epoch of imitation had its steps in the metrics twice after it was resumed."""
    spec = parse_spec(text)
    run(spec, tmp_path / "whole")
    place = tmp_path / "killed" / "seed-0" / "imitation"
    place.mkdir(parents=True)
    for name in ("spec.toml", "run.json"):
        (tmp_path / "killed" / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    metrics = (tmp_path / "whole" / "seed-0" / "imitation" / "metrics.jsonl").read_bytes()
    (place / "metrics.jsonl").write_bytes(metrics.splitlines(keepends=True)[0])
    run(spec, tmp_path / "killed", resume=True)
    assert (place / "metrics.jsonl").read_bytes() == metrics


def test_an_encoder_decoder_runs(text, world, tmp_path):
    spec = parse_spec(text, [f"student.model={str(world / 'seq2seq')!r}", "learner.steps=1"])
    assert run(spec, tmp_path)[0].steps == 1


def test_the_revise_environment_keeps_its_registered_attempts(text, tmp_path):
    spec = parse_spec(text, ["env.id=humor_env/Revise-v0", "learner.steps=1"])
    run(spec, tmp_path / "three")
    assert len(lines(tmp_path / "three" / "seed-0" / "jokes.jsonl")) == 3 * 4
    run(parse_spec(text, ["env.id=humor_env/Revise-v0", "env.attempts=2", "learner.steps=1"]), tmp_path / "two")
    assert len(lines(tmp_path / "two" / "seed-0" / "jokes.jsonl")) == 2 * 4


# A learner of one's own


@dataclass(frozen=True)
class EchoConfig:
    seed: int = 0
    batch_size: int = 4  # and no micro_batch: such a learner decides for itself


GIVEN: dict = {}


def forgetful_train(config: EchoConfig, student, log):
    raise AssertionError("not reached")


def test_a_learner_that_keeps_no_budget_is_refused_before_any_work(text, tmp_path):
    table = text.split("[learner]")[0] + '[learner]\nname = "test_run:forgetful_train"\n'
    with pytest.raises(
        InvalidOption, match=r"supports no budget and no monitor: give its train function a parameter 'control'"
    ):
        run(parse_spec(table, ["budget.max_seconds=9"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def train_echo(config: EchoConfig, student, *, critic, teacher, demonstrations, dev, prompts, nothing=None):
    GIVEN.update(locals())


def train_broken(config: EchoConfig, student):
    raise RuntimeError("it broke")


def test_what_was_measured_before_a_learner_breaks_is_in_its_results(text, tmp_path):
    begin = text.split("[learner]")[0]
    with pytest.raises(RuntimeError, match="it broke"):
        run(parse_spec(begin + '[learner]\nname = "test_run:train_broken"\n', ["eval.limit=2"]), tmp_path)
    kept = json.loads((tmp_path / "seed-0" / "results.json").read_text())
    assert kept["stopped"] is True
    for stage in ("base", "imitation"):
        scores = [row["score"] for row in lines(tmp_path / "seed-0" / f"evaluation-{stage}.jsonl")]
        assert kept["stages"][stage]["score"] == pytest.approx(sum(scores) / 2)


def train_greedy(config: EchoConfig, student, telescope): ...


def test_a_learner_is_given_what_it_has_parameters_for(text, tmp_path):
    begin = text.split("[learner]")[0]
    run(parse_spec(begin + '[learner]\nname = "test_run:train_echo"\n', ["seeds=[5]", "name=echo"]), tmp_path / "a")
    assert GIVEN["config"] == EchoConfig(seed=5)
    assert GIVEN["critic"] is share_of_e
    assert len(GIVEN["teacher"]) == 15
    assert (len(GIVEN["demonstrations"]), len(GIVEN["dev"]), len(GIVEN["prompts"])) == (8, 3, 8)
    assert GIVEN["nothing"] is None
    with pytest.raises(InvalidOption, match="wants 'telescope', which a run does not have"):
        run(parse_spec(begin + '[learner]\nname = "test_run:train_greedy"\n'), tmp_path / "b")


# Folders


def test_a_new_run_never_lands_in_a_folder_that_has_one(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = parse_spec(text)

    def folder(what="mine.toml", out=None, resume=False):
        return choose_folder(spec, what, out, resume)

    assert folder() == Path("runs/tiny")
    for name in ("runs/tiny", "runs/tiny-2"):
        Path(name).mkdir(parents=True)
        for file in ("spec.toml", "run.json"):
            Path(name, file).write_text("{}")
    assert folder() == Path("runs/tiny-3")
    assert folder(resume=True) == Path("runs/tiny-2")
    assert folder("runs/tiny/spec.toml", resume=True) == folder("runs/tiny", resume=True) == Path("runs/tiny")
    assert folder("runs/tiny/spec.toml") == Path("runs/tiny-3")
    with pytest.raises(InvalidOption, match="'runs/tiny' already holds a run"):
        folder(out=Path("runs/tiny"))
    with pytest.raises(InvalidOption, match="no run to resume in 'elsewhere'"):
        folder(out=Path("elsewhere"), resume=True)
    assert folder(out=Path("elsewhere")) == Path("elsewhere")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pocket-quickstart", "pocket-seq2seq", "pocket-revise", "two-processes"])
def test_bundled_pocket_specs_run(name, tmp_path):
    """A few steps of each, with the bundled students, on a few prompts."""
    student = load_spec(name).student.model.removeprefix("pocket:")
    if not (pocket.FOLDER / "weights" / student / "config.json").is_file():
        pytest.skip(f"the bundled student '{student}' is not here")
    overrides = ["learner.steps=2", "learner.batch_size=8", "eval.limit=8", "teacher.per_prompt=1"]
    spec = load_spec(name, [*overrides, "teacher.imitation.epochs=1", "teacher.dev_per_prompt=1"])
    [result] = run(spec, tmp_path)
    assert result.steps == 2
    assert set(result.stages) == {"base", "teacher", "imitation", "ppo"}
    first, *_, dev = (json.loads(x) for x in (tmp_path / "seed-0/imitation/metrics.jsonl").read_text().splitlines())
    assert dev["sft/dev_loss"] < 0.5 * first["sft/loss"]
    assert registry.learners.resolve("ppo") is spec.train


@pytest.mark.slow
def test_two_processes_take_the_same_steps_as_one(text, tmp_path):
    """Through a real launcher: the losses are the same, and one of them reports what both wrote."""
    (tmp_path / "mine.toml").write_text(text)
    run(load_spec(tmp_path / "mine.toml"), tmp_path / "one")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "humor_env.experiments.commands.cli", "train", "mine.toml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[:2000]
    assert done.stdout.count("Written to runs/tiny") == 1
    assert json.loads((tmp_path / "runs/tiny/run.json").read_text())["processes"] == 2
    one, two = (tmp_path / which / "seed-0" for which in ("one", "runs/tiny"))
    losses = [[r["sft/loss"] for r in lines(p / "imitation/metrics.jsonl") if "sft/loss" in r] for p in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert len(losses[0]) == 4
    alone, together = ([(r["step"], r["text"]) for r in lines(p / "jokes.jsonl")] for p in (one, two))
    assert len(alone) == 16 and together[:4] == alone[:4]  # all that both wrote stands in the one's log
    assert [step for step, _ in together] == [step for step, _ in alone]
    updates = [lines(p / "metrics.jsonl")[0]["update/grad_norm"] for p in (one, two)]
    assert updates[0] == pytest.approx(updates[1], rel=1e-3)


def test_a_resume_says_that_prompts_teacher_or_versions_changed(text, tmp_path, world):
    """The prompts were rewritten between kill and resume: one run learned from both, and run.json knew only the last
    versions."""
    import shutil

    own = tmp_path / "world"
    shutil.copytree(world, own)
    spec = parse_spec(text.replace(str(world), str(own)), ["learner.steps=1"])
    said = []

    class Told(screen.Quiet):
        def say(self, line):
            said.append(line)

    run(spec, tmp_path / "run", screen=Told())
    run(spec, tmp_path / "run", resume=True, screen=Told())
    assert not [line for line in said if line.startswith("warning")]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["versions"]["torch"] = "1.0"
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    prompts = own / "prompts.jsonl"
    prompts.write_text(prompts.read_text().replace("meeting", "cheese"))
    run(spec, tmp_path / "run", resume=True, screen=Told())
    told = [line for line in said if line.startswith("warning")]
    assert any("the prompts of 'train' changed since the run started" in line for line in told)
    assert any("torch was 1.0" in line for line in told)
    parts = json.loads((tmp_path / "run" / "run.json").read_text())["parts"]
    assert len(parts) == 3 and all(part["versions"]["torch"] == versions()["torch"] for part in parts)


@pytest.mark.parametrize(
    "content",
    ['{"stages": {"base"', "{}", "[]", "null", '{"stages": {"base": 7}, "seconds": 1, "steps": 1}', "[" * 100_000],
)
def test_damaged_results_of_a_seed_are_told_with_the_way_out(text, tmp_path, content):
    """It said to begin the run anew, though everything else was whole, or ended in a KeyError."""
    spec = parse_spec(text, ["learner.steps=1"])
    (tmp_path / "run" / "seed-0").mkdir(parents=True)
    (tmp_path / "run" / "seed-0" / "results.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"results.json' is damaged .* Remove it and resume"):
        run(spec, tmp_path / "run")


@pytest.mark.parametrize("content", ["[]", "null", "{", "[" * 100_000])
def test_a_damaged_record_of_a_run_is_a_sentence(text, tmp_path, content):
    spec = parse_spec(text, ["learner.steps=1"])
    (tmp_path / "spec.toml").write_text(spec.to_toml())
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"run.json' cannot be read"):
        run(spec, tmp_path, resume=True)


def test_auto_is_chosen_once_for_a_run(text, tmp_path, monkeypatch):
    """What is free on another day may be less: a resumed run goes on with the micro-batch that it began with."""
    auto = ["learner.micro_batch='auto'", "teacher.imitation.micro_batch='auto'"]
    spec, folder = parse_spec(text, auto), tmp_path / "run"
    STOP_AT.append(3)
    assert run(spec, folder)[0].stopped
    record = json.loads((folder / "run.json").read_text())
    assert record["micro_batch"] == {"learner.micro_batch": 4, "teacher.imitation.micro_batch": 4}
    assert 'micro_batch = "auto"' in (folder / "spec.toml").read_text()
    seen = []
    monkeypatch.setattr(micro_batches, "free_memory_of", lambda device: 0)
    monkeypatch.setattr(ppo, "OnPolicySession", lambda config, *a, **k: seen.append(config) or Session(config, *a, **k))
    STOP_AT.clear()
    [resumed] = run(load_spec(folder), folder, resume=True)
    assert (resumed.steps, seen[0].micro_batch) == (4, 4)
    [small] = run(spec, tmp_path / "small")
    assert json.loads((tmp_path / "small" / "run.json").read_text())["micro_batch"]["learner.micro_batch"] == 1
    assert (small.steps, seen[1].micro_batch) == (4, 1)


def test_a_base_in_float16_is_refused_before_anything_is_measured(text, tmp_path):
    """It was measured first, and refused when the warm start began."""
    with pytest.raises(StudentError, match=r"float16.*bfloat16"):
        run(parse_spec(text, ["student.dtype='float16'"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not CALLS


def test_a_runs_record_and_log_are_about_the_students_gpu(text, tmp_path, monkeypatch):
    """They were about the current one, also for a student on another GPU or on the CPU."""
    seen = []
    monkeypatch.setattr(run_module, "RunLog", lambda folder, device: seen.append(device) or RunLog(folder))
    run(parse_spec(text, ["learner.steps=1", "teacher.imitate=false", "eval.limit=1"]), tmp_path / "run")
    assert seen == [torch.device("cpu")]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"GPU {torch.device(device).index}")
    assert run_module._machine(torch.device("cuda:1"))["device"] == "GPU 1"
    assert run_module._machine(torch.device("cpu"))["device"] == "cpu"


def test_one_student_is_in_memory_at_a_time(text, tmp_path, monkeypatch):
    """The first seed's student stayed to the end, and each one until after the next was loaded: three of them."""
    alive, before_each = weakref.WeakSet(), []

    def load(spec, seed):
        gc.collect()
        before_each.append(len(alive))
        one = load_student(spec, seed)
        alive.add(one)
        return one

    monkeypatch.setattr("humor_env.experiments.runs.run.load_student", load)
    short = ["seeds=[0, 1, 2]", "learner.steps=1", "teacher.imitate=false", "eval.limit=1"]
    run(parse_spec(text, short), tmp_path / "run")
    assert before_each == [0, 0, 0]
