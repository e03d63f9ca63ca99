"""What a run is made of: critics, teacher, prompts and student, and what is refused before any work."""

# ruff: noqa: F811

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_run import a_fresh_critic, share_of_e, text, world  # noqa: F401 - fixtures

from humor_env.agents.student import Student
from humor_env.agents.student.sampling import Sampling
from humor_env.errors import InvalidOption, PromptError, StudentError, UnknownName
from humor_env.experiments.runs.ingredients import Ingredients, device_of, evaluation_sampling, load_student
from humor_env.experiments.runs.run import run
from humor_env.experiments.runs.run_folder import student_folder
from humor_env.experiments.specs.spec import StudentSpec, parse_spec
from humor_env.rewards.likelihood.language_model import LanguageModel
from humor_env.rewards.trained.scoring_head import pretrained
from humor_env.sources import students
from humor_env.teacher import TeacherBuffer
from humor_env.types import Demonstration, Prompt


def parts(text, tmp_path, *overrides):
    return Ingredients(parse_spec(text, overrides), tmp_path)


def test_a_warm_start_can_be_made_small(text, tmp_path):
    for limit, count in (("2", (2, 2)), ("100", (8, 3))):
        parts = Ingredients(parse_spec(text, [f"teacher.limit={limit}"]), tmp_path)
        assert (len(parts.demonstrations), len(parts.dev)) == count


@pytest.mark.parametrize(("launcher", "student"), [("mps", "cpu"), ("cuda:1", "cuda:1"), ("cpu", "cpu")])
def test_the_students_device_is_the_launchers_but_no_apple_gpu(launcher, student, monkeypatch):
    """On a Mac every run ended in a TypeError: Accelerate chooses its GPU, which has no float64, and writing needs
    it."""
    state = SimpleNamespace(device=torch.device(launcher))
    monkeypatch.setattr("humor_env.experiments.runs.ingredients.PartialState", lambda: state)
    assert device_of(StudentSpec()) == torch.device(student)


def test_several_critics_are_a_mix_with_weights_and_gates(text, tmp_path):
    more = text.replace('"test_run:share_of_e"', '"rules"\ngate = 0.5\n[[critic]]\ncritic = "test_run:share_of_e"')
    mix = parts(more, tmp_path).train_critic
    assert [(m.name, m.weight, m.gate) for m in mix.members] == [("rules", 0.0, 0.5), ("share_of_e", 1.0, None)]
    assert parts(text, tmp_path).train_critic is share_of_e
    named = parts(text, tmp_path, "critic.0.name=e", "critic.0.weight=2").train_critic
    assert [(m.name, m.weight) for m in named.members] == [("e", 2.0)]


def test_the_training_critic_measures_where_no_other_is_named(text, tmp_path):
    found = parts(text.split("[[eval.critic]]")[0], tmp_path)
    assert found.eval_critic is found.train_critic is share_of_e


def test_critics_get_the_runs_ledger_limits_and_teacher(text, tmp_path):
    client = "openai:m@http://127.0.0.1:9/v1"
    found = parts(
        text,
        tmp_path,
        'critic.0={critic = "scorer", options = {client = "' + client + '"}}',
        'eval.critic.0={critic = "win-tie", options = {judge = "multiple-choice", judge_options = {client = "'
        + client
        + '"}}}',
        "budget.max_calls=7",
    )
    scorer, win_tie = found.train_critic, found.eval_critic
    assert Path(scorer.ledgered.ledger.path) == Path(win_tie.judge.ledgered.ledger.path) == tmp_path / "ledger.sqlite"
    assert scorer.ledgered.budget.max_calls == win_tie.judge.ledgered.budget.max_calls == 7
    assert win_tie.teacher is found.teacher
    # One account: what one critic reserves, the other no longer has.
    scorer.ledgered.budget.reserve(1, 0.0)
    assert win_tie.judge.ledgered.budget.calls_left == 6
    found.close()


def test_so_do_those_that_a_mix_a_jury_and_a_cheap_first_judge_ask(text, tmp_path):
    """They had neither: a jury of paid judges asked beyond every limit of the run, and kept no verdict."""
    paid = '{client = "openai:m@http://127.0.0.1:9/v1"}'
    judge = '{judge = "multiple-choice", weight = 2, options = ' + paid + "}"
    gate = (
        '{judge = "cheap-first", options = {cheap = "pocket", paid = "multiple-choice", paid_options = ' + paid + "}}"
    )
    inside = '{critic = "mix", options = {critics = ["rules", {critic = "scorer", options = ' + paid + "}]}}"
    found = parts(
        text,
        tmp_path,
        'critic.0={critic = "mix", options = {critics = [{critic = "lift", options = {critic = "pocket"}}, '
        + inside
        + "]}}",
        f'judge={{judge = "jury", options = {{judges = ["pocket", {judge}, {gate}]}}}}',
        "budget.max_calls=7",
    )
    lift, inner = (member.critic for member in found.train_critic.members)
    assert {p.id for p in lift.prompts} == {p.id for p in found.prompts.split("train")}
    pocket, first, cheap_first = found.judge.judges
    asked = [inner.members[1].critic, first, cheap_first.paid]
    assert [Path(one.ledgered.ledger.path) for one in asked] == [tmp_path / "ledger.sqlite"] * 3
    asked[0].ledgered.budget.reserve(1, 0.0)
    assert [one.ledgered.budget.calls_left for one in asked] == [6, 6, 6], "one account"
    assert [m.name for m in inner.members] == ["rules", "scorer"] and not hasattr(pocket, "ledgered")
    found.close()


def test_a_teacher_is_wanted_by_critics_that_compare_with_one(text, tmp_path):
    alone = text[: text.index("[teacher]")] + text[text.index("[[critic]]") :]
    with pytest.raises(InvalidOption, match=r"'win-tie' compares with a teacher's lines: the spec needs \[teacher\]"):
        parts(alone.replace("test_run:share_of_e", "win-tie"), tmp_path).check()


def test_mistakes_are_found_before_anything_is_computed(text, tmp_path, monkeypatch):
    monkeypatch.setattr("humor_env.experiments.runs.run.load_student", lambda *_: pytest.fail("work was begun"))
    for override, error, sentence in (
        ("critic.0={critic='rules', options={gats=3}}", InvalidOption, "has no option 'gats'. Did you mean 'gates'"),
        ("env.prompts=nowhere.jsonl", PromptError, "nowhere.jsonl"),
        ("env.prompts=pokcet", UnknownName, "Did you mean 'pocket'"),
        ("eval.split=ood", PromptError, "no prompt in the split 'ood'"),
        ("teacher.lines=nowhere.jsonl", PromptError, "no teacher buffer at 'nowhere.jsonl'"),
        ("teacher.lines=everyday", PromptError, "nothing to imitate"),
        ("env.id=humor_env:humor_env/Paraphras-v0", InvalidOption, "no environment .*Did you mean: `Paraphrase`"),
        ("env.id=nowhere:X-v0", InvalidOption, "'nowhere', which Python cannot find"),
        ("env.id=antigravity:X-v0", InvalidOption, "part of Python's standard library"),
        ("env.id=CartPole-v1", InvalidOption, "takes no prompts and no critic"),
    ):
        with pytest.raises(error, match=sentence):
            run(parse_spec(text, [override]), tmp_path)


def test_an_environment_may_be_named_with_its_module(text, tmp_path, monkeypatch):
    """`module:id` in a spec, which the documents offer, ended in Gymnasium's traceback."""
    register = 'gymnasium.register("own/Jokes-v0", entry_point="humor_env.env:HumorEnv", kwargs={"max_chars": 77})'
    (tmp_path / "jokes_of_my_own.py").write_text(f"import gymnasium\n{register}\n")
    monkeypatch.syspath_prepend(tmp_path)
    made = parts(text.replace("[env]", '[env]\nid = "jokes_of_my_own:own/Jokes-v0"'), tmp_path)
    assert made.env_options["max_chars"] == 77


def test_the_teachers_lines_are_chosen_by_number_and_score(text, world, tmp_path):
    buffer = tmp_path / "lines.jsonl"
    train = [Prompt(f"train-{i}", f"The train meeting {i} was slow.") for i in range(8)]
    TeacherBuffer(buffer, [Demonstration(p, line, "t") for p in train for line in ("eeee", "xxxx", "exex")])
    two = parts(text, tmp_path, f"teacher.lines={str(buffer)!r}", "teacher.per_prompt=2")
    assert [d.text for d in two.demonstrations] == ["eeee", "xxxx"] * 8
    assert two.dev == ()
    good = parts(
        text,
        tmp_path,
        f"teacher.lines={str(buffer)!r}",
        'teacher.filter={critic = "test_run:share_of_e", at_least = 0.5}',
    )
    assert [d.text for d in good.demonstrations] == ["eeee", "exex"] * 8


def test_a_student_writes_text_not_tokens(text, tmp_path, tokenizer_folder):
    found = parts(text, tmp_path, "env.id=humor_env/Tokens-v0")
    found.env_options["tokenizer"] = tokenizer_folder
    with pytest.raises(InvalidOption, match="actions; a student writes text"):
        found.make_envs(found.spec.learner_config(0))


def test_a_student_that_cannot_be_loaded_is_named(tmp_path):
    for model in (str(tmp_path), "no-such-owner/no-such-model"):
        with pytest.raises(StudentError, match="could not be loaded") as caught:
            load_student(StudentSpec(model=model), 0)
        assert model in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UnknownName, match=r"No pocket student is called 'casual'\. Did you mean 'causal'"):
        load_student(StudentSpec(model="pocket:casual"), 0)


@pytest.mark.parametrize("answers", [False, True])
def test_a_hub_that_does_not_answer_is_told_in_seconds(tmp_path, answers):
    """It was asked six times in half a minute, with twelve lines on the screen. `answers`: it takes the connection."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if answers:
            silent.listen()
        hub = f"http://127.0.0.1:{silent.getsockname()[1]}"
        online = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_HUB_CACHE")}
        code = (
            "from humor_env.experiments.runs.ingredients import load_student\n"
            "from humor_env.experiments.specs.spec import StudentSpec\n"
            "try: load_student(StudentSpec(model='an-owner/a-model'), 0)\n"
            "except Exception as problem: print(problem)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**online, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert len(list(waiting(silent))) == answers, "one question, of five seconds"
    assert (
        f"'an-owner/a-model' could not be loaded (it is not on this machine, and {hub} does not answer" in done.stdout
    )
    assert "Retrying" not in done.stderr


def test_so_do_critics_that_need_a_model_of_the_hub(monkeypatch):
    """They ended in a traceback: they asked for it before the place where errors become sentences."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(students.NAMED, "smollm2", replace(students.NAMED["smollm2"], here=lambda: None))
    for load in (lambda: LanguageModel("smollm2").load(), lambda: pretrained("smollm2")):
        with pytest.raises(InvalidOption, match=r"does not answer.*Install it: pip install"):
            load()


def waiting(listening):
    """The connections that nobody has taken yet."""
    listening.settimeout(0)
    while True:
        try:
            yield listening.accept()[0].close()
        except OSError:
            return


@pytest.mark.parametrize(
    "described", ["{}", "[]", "null", '{"base": 7}', '{"base": "x"}', '{"base": "x", "lora": 3}', "{", "[" * 100_000]
)
def test_a_damaged_description_of_a_student_is_a_sentence(tmp_path, described):
    (tmp_path / "student.json").write_text(described)
    with pytest.raises(StudentError, match=r"student\.json' is damaged"):
        load_student(StudentSpec(model=str(tmp_path)), 0)


def test_cut_weights_of_a_student_are_a_sentence(tmp_path, world):
    student = load_student(StudentSpec(model=str(world / "causal")), 0)
    student.save_pretrained(tmp_path)
    whole = (tmp_path / "student.safetensors").read_bytes()
    (tmp_path / "student.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StudentError, match=r"student\.safetensors' is damaged"):
        load_student(StudentSpec(model=str(tmp_path)), 0)


def test_a_device_that_is_not_there_is_told(world):
    with pytest.raises(InvalidOption, match="'no-such-device' is no torch device"):
        load_student(StudentSpec(model=str(world / "causal"), device="no-such-device"), 0)


def test_a_fully_tuned_student_is_saved_with_its_weights(text, tmp_path):
    run(parse_spec(text, ["teacher.imitation.full=true", "learner.steps=1"]), tmp_path)
    folder = tmp_path / "seed-0" / "student"
    assert json.loads((folder / "student.json").read_text())["base"] is None
    assert student_folder(tmp_path) == folder
    assert Student.load(folder).lora.rank == 4


@pytest.mark.parametrize(
    ("learner", "key"), [("grpo", "sampling"), ("dpo", "pairs.sampling"), ("brio-dpo", "dpo.pairs.sampling")]
)
def test_lines_are_measured_as_the_learner_writes_them(learner, key):
    """BRIO-DPO was evaluated and watched with the default sampling, whatever its own was."""
    spec = parse_spec(f"""
        [learner]
        name = "{learner}"
        [learner.{key}]
        max_new_tokens = 12
        temperature = 0.7
        [teacher]
        lines = "pocket"
        [judge]
        judge = "pocket"
        [[critic]]
        critic = "pocket"
        [[eval.critic]]
        critic = "pocket"
    """)
    assert evaluation_sampling(spec, spec.learner_config(0)) == Sampling(max_new_tokens=12, temperature=0.7)
