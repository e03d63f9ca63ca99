"""The command line as people meet it: what is printed, what a mistake is told, exit codes."""

# ruff: noqa: F811

import json
import re
import resource
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import typer
from command_line import cli, spec, without_card_warning  # noqa: F401
from test_run import text, world  # noqa: F401 - fixtures
from typer.testing import CliRunner

import humor_env
from humor_env import registry
from humor_env.experiments.commands import doctor
from humor_env.experiments.commands.cli import app
from humor_env.experiments.pocket import demo, pretrain
from humor_env.teacher import TeacherBuffer

# Help


def test_help_is_quick_and_loads_nothing_heavy():
    """Compared with the least that such a help takes: Typer's, beside the libraries of environments. A busy machine
    slows both. Alone on two cores it takes 0.4 to 0.5 s of processor time."""
    ours = (
        "import sys\n"
        "from humor_env.experiments.commands.cli import main\n"
        "sys.argv = ['humor-env', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'pydantic', 'anthropic', 'scipy'} & set(sys.modules)))\n"
    )
    least = (
        "import sys, gymnasium, numpy, typer\n"
        "app = typer.Typer()\n"
        "@app.command()\n"
        "def one(): pass\n"
        "@app.command()\n"
        "def two(): pass\n"
        "sys.argv = ['least', '--help']\n"
        "try: app()\n"
        "except SystemExit: pass\n"
    )
    spent = {}
    for _ in range(4):
        for code in (ours, least):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            spent[code] = min(took, spent.get(code, took))
            if code is ours:
                assert done.stdout.strip().endswith("[]")
                assert "train" in done.stdout
    assert spent[ours] < 1.5 * spent[least], spent


@pytest.mark.parametrize(
    "command",
    [
        "train",
        "benchmark",
        "reproduce",
        "report",
        "gallery",
        "audit",
        "probes",
        "card",
        "train-critic",
        "evaluate",
        "judge",
        "rescore",
        "teach",
        "critics",
        "judges",
        "envs",
        "learners",
        "prompts",
        "specs",
        "play",
        "doctor",
    ],
)
def test_every_command_explains_itself(command):
    assert "--help" in cli(command, "--help")


def test_every_option_explains_itself():
    def options(command, name):
        inner = getattr(command, "commands", {})
        return [(name, o.name, o.help) for o in command.params if not inner] + [
            option for word, each in inner.items() for option in options(each, f"{name} {word}")
        ]

    found = options(typer.main.get_command(app), "humor-env")
    assert len(found) > 200
    assert not [(command, option) for command, option, words in found if not words]


def test_nothing_is_offered_that_is_not_there_and_nothing_is_hidden():
    said = cli("--help")
    names = {c.name or c.callback.__name__.replace("_", "-") for c in app.registered_commands}
    assert {"benchmark", "reproduce", "report", "gallery", "audit", "card", "train-critic"} <= names
    assert all(f" {name} " in said for name in names)


def test_the_version():
    assert cli("--version").strip() == humor_env.__version__


def test_a_misspelt_command():
    assert "No such command 'trian'" in cli("trian", code=2)


# Lists


def test_lists_name_everything_with_a_line():

    for command, kind in (
        ("critics", registry.critics),
        ("judges", registry.judges),
        ("learners", registry.learners),
        ("prompts", registry.prompts),
    ):
        rows = json.loads(cli(command, "--json"))
        assert [row["name"] for row in rows] == kind.names()
        assert all(row["summary"] and row["origin"] == "built in" for row in rows)
        assert len(cli(command).splitlines()) == len(rows)
    envs = json.loads(cli("envs", "--json"))
    assert {row["name"] for row in envs} >= set(humor_env.ENV_IDS)
    specs = json.loads(cli("specs", "--json"))
    assert all(row["summary"][0].isupper() and len(row["summary"]) > 30 for row in specs)
    assert "pocket-quickstart" in cli("specs")


# Training


def test_train_shows_the_scores_and_where_they_are(spec):
    said = cli("train", "mine.toml")
    for stage in ("base", "teacher", "imitation", "ppo"):
        assert stage in said
    assert "Written to runs/tiny" in said
    found = json.loads(cli("train", "mine.toml", "--json", "--set", "learner.steps=1", "--out", "other"))
    assert found["folder"] == "other"
    assert found["seeds"][0]["steps"] == 1
    assert found["seeds"][0]["stages"] == json.loads(Path("other/results.json").read_text())["seeds"][0]["stages"]
    # The spec saved with a run repeats it, in a folder of its own.
    assert "Written to runs/tiny-2" in cli("train", "runs/tiny/spec.toml")
    assert Path("runs/tiny/seed-0/metrics.jsonl").read_bytes() == Path("runs/tiny-2/seed-0/metrics.jsonl").read_bytes()
    assert "'other' already holds a run. Give --resume" in cli("train", "mine.toml", "--out", "other", code=2)
    assert "Written to other" in cli("train", "mine.toml", "--out", "other", "--resume", "--set", "learner.steps=1")


def test_a_dry_run_prints_the_resolved_spec_and_does_nothing(spec, tmp_path):
    said = cli("train", "mine.toml", "--dry-run", "--set", "learner.lr=1e-5")
    assert "learning_rate = 1e-05" in said
    assert "whiten_advantages = true" in said
    assert json.loads(cli("train", "mine.toml", "--dry-run", "--json"))["learner"]["steps"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.toml"]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("learner.steps=-1", "steps must be a number of at least 0, found -1"),
        ("learner.learning_rate=-1.0", "learning_rate must be a number of at least 0, found -1.0"),
        ("learner.learning_rate=nan", "learning_rate"),
        ("learner.batch_size=0", "batch_size must be at least 1, found 0"),
        ("learner.name=7", "the learner's 'name' is a text; found 7"),
        ("env.prompts='nosuch.csv'", "There is no file 'nosuch.csv', which env.prompts names"),
        ("critic.5.critic='pocket'", "a list, whose entries are numbered: 0; found '5'"),
        ("critic.0.critic=':'", "as package.module:name; found ':'"),
    ],
)
def test_a_dry_run_finds_what_would_stop_the_run(spec, override, told):
    assert told in cli("train", "mine.toml", "--dry-run", "--set", override, code=2)


def test_mistakes_in_a_spec_are_a_sentence_each(spec, tmp_path):
    said = cli("train", "mine.toml", "--set", "learner.stepz=5", code=2)
    assert said == "--set learner.stepz=5: [learner] has no key 'stepz'. Did you mean 'steps'?\n"
    said = cli("train", "nowhere.toml", code=2)
    assert said.startswith("There is no spec 'nowhere.toml'. Give the path of a TOML file")
    assert "could not be loaded" in cli("train", "mine.toml", "--set", f"student.model={str(tmp_path)!r}", code=2)
    assert "no run to resume" in cli("train", "mine.toml", "--resume", "--out", "nowhere", code=2)
    assert not list(tmp_path.glob("runs/*/run.json")), "a student that cannot be loaded is a run that was begun"


def test_no_key_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    said = cli("train", "one-gpu-anthropic", code=2)
    sentence = without_card_warning(said)
    assert sentence.startswith("There is no key for Anthropic's service. Set ANTHROPIC_API_KEY")
    assert len(sentence.splitlines()) == 1


def test_a_run_that_fails_is_code_1(spec):
    # A rate at which the first step throws the policy far off: what is measured at the second is no rounding error.
    said = cli("train", "mine.toml", "--set", "learner.learning_rate=10", "--set", "learner.kl_limit=1e-3", code=1)
    sentence = without_card_warning(said)
    assert sentence.startswith("Stopped at step 2: the KL is")
    assert len(sentence.splitlines()) == 1


FULL = [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "The GPU's memory is full. "),
    (torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be …"), "The GPU's memory is full. "),
    (
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(h)`"),
        "The GPU's memory is full. ",
    ),
    (None, "The memory is full. "),  # what this machine raises itself
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
    (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), None),
]


@pytest.mark.parametrize(("problem", "said"), FULL)
def test_a_full_memory_is_a_sentence_that_names_the_settings_to_change(problem, said, spec, monkeypatch):
    """Only one of the names under which torch raises it was known: the others ended in a traceback."""

    def fill(*_, **__):
        raise problem or torch.empty(1 << 60, dtype=torch.uint8)

    monkeypatch.setattr("humor_env.experiments.runs.run.run", fill)
    if said is None:  # our own bugs keep their traceback
        with pytest.raises(RuntimeError):
            cli("train", "mine.toml")
        return
    sentence = without_card_warning(cli("train", "mine.toml", code=1))
    assert sentence.startswith(said) and len(sentence.splitlines()) == 1
    changes = {
        *("learner.micro_batch=1", "learner.batch_size=4", "teacher.imitation.micro_batch=1", "env.groups=2"),
        'student.dtype="bfloat16"',
    }
    named = set(re.findall(r"\b(?:learner|teacher|env|student)(?:\.\w+)+", sentence))
    assert named == {change.split("=")[0] for change in changes}
    cli("train", "mine.toml", "--dry-run", *[word for change in changes for word in ("--set", change)])


# Measuring


def test_evaluate_any_student(spec, world, tmp_path):
    prompts = ("--prompts", world / "prompts.jsonl", "--critic", "test_run:share_of_o", "--max-new-tokens", 6)
    cli("train", "mine.toml")
    trained = json.loads(cli("evaluate", "runs/tiny", *prompts, "--json", "--out", "lines.jsonl"))
    results = json.loads(Path("runs/tiny/results.json").read_text())
    assert trained["score"] == results["seeds"][0]["stages"]["ppo"]["score"]
    assert trained["count"] == 4 == len(Path("lines.jsonl").read_text().splitlines())
    assert "score" in cli("evaluate", "runs/tiny", *prompts, "--limit", 1, "--out", "new/folder/lines.jsonl")
    base = json.loads(cli("evaluate", "runs/tiny", *prompts, "--adapter", "base", "--json"))
    assert base["score"] == results["seeds"][0]["stages"]["base"]["score"]
    plain = json.loads(cli("evaluate", world / "causal", *prompts, "--json"))
    assert plain["score"] == base["score"]
    assert "score" in cli("evaluate", world / "causal", *prompts, "--limit", 2)
    assert "No adapter is called 'polcy'. Did you mean 'policy'?" in cli(
        "evaluate", "runs/tiny", *prompts, "--adapter", "polcy", code=2
    )


def write_jokes(path, *extra):
    jokes = [{"prompt": {"id": "a", "text": "The bus was late."}, "text": line, "score": 0.5} for line in extra]
    path.write_text("".join(json.dumps(joke) + "\n" for joke in jokes))


def test_judge_and_rescore(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jokes(tmp_path / "jokes.jsonl", "The bus was so late that moss caught it.", "lol 😂😂😂")
    said = cli("judge", "jokes.jsonl", "--critic", "rules", "--option", "gates=['emoji']")
    assert "2 jokes (0 from before), 0 failed, mean score 0.500" in said
    assert len(Path("jokes.rules.jsonl").read_text().splitlines()) == 2
    assert "2 from before" in cli("judge", "jokes.jsonl", "--critic", "rules", "--option", "gates=['emoji']")
    assert "2 jokes with both scores" in cli("rescore", "jokes.jsonl", "--critic", "diversity")
    assert "costs nothing" in cli("judge", "jokes.jsonl", "--critic", "rules", "--dry-run")
    assert "spends nothing" in cli("judge", "jokes.jsonl", "--critic", "rules", "--max-cost", 1, code=2)
    assert "No critic is called 'ruls'. Did you mean 'rules'?" in cli(
        "judge", "jokes.jsonl", "--critic", "ruls", code=2
    )
    assert "There is no file 'nowhere.jsonl'" in cli("judge", "nowhere.jsonl", "--critic", "rules", code=2)
    write_jokes(tmp_path / "-odd.jsonl", "x")
    assert "1 jokes" in cli("judge", "--critic", "rules", "--output", "odd.jsonl", "--", "-odd.jsonl")


# Teaching


def test_teach_fills_a_buffer_and_asks_only_for_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ("teach", "lines.jsonl", "--split", "test", "--limit", 3, "--lines", 2)
    said = cli(*arguments, "--dry-run")
    assert said.startswith("3 of 3 prompts have fewer than 2 lines in lines.jsonl; the teacher 'pocket' costs nothing")
    assert not list(tmp_path.iterdir())
    assert json.loads(cli(*arguments, "--json")) == {
        "asked": 3,
        "added": 6,
        "short": 0,
        "lines": 6,
        "buffer": "lines.jsonl",
    }
    assert TeacherBuffer("lines.jsonl").splits() == {"test": 6}
    Path("notes.txt").write_text("my only copy")
    for dry in (("--dry-run",), ()):
        assert "Line 1 of the teacher buffer" in cli("teach", "notes.txt", "--limit", 1, *dry, code=2)
    assert Path("notes.txt").read_text() == "my only copy"
    assert "0 lines added for 0 prompts; lines.jsonl now has 6." in cli(*arguments)
    assert "3 lines added" in cli(*arguments[:-1], 3)
    assert "takes no limits (max_cost)" in cli(*arguments, "--max-cost", 1, code=2)
    assert "No teacher is called 'pockt'. Did you mean 'pocket'?" in cli(*arguments, "--teacher", "pockt", code=2)
    faultless = [f"--option={rate}=0.0" for rate in ("cliche_rate", "wrong_complaint_rate", "lost_meaning_rate")]
    cli("teach", "new/folder/good.jsonl", "--split", "test", "--limit", 20, "--lines", 1, *faultless)
    assert len(TeacherBuffer("new/folder/good.jsonl").filter("pocket", 0.5)) == 20


class Writer(BaseHTTPRequestHandler):
    """The Messages service as a teacher that always writes the same list."""

    calls = 0

    def do_POST(self):
        Writer.calls += 1
        self.rfile.read(int(self.headers["content-length"]))
        written = "1. The bus was so late that moss caught it.\n2. Late? It had a birthday on the way."
        message = {"id": "m", "type": "message", "role": "assistant", "model": "x", "stop_reason": "end_turn"}
        message |= {"content": [{"type": "text", "text": written}], "usage": {"input_tokens": 10, "output_tokens": 20}}
        body = json.dumps(message).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_a_language_model_teaches_within_a_budget(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "test-key")
    monkeypatch.setattr(Writer, "calls", 0)
    arguments = ("teach", "lines.jsonl", "--prompts", "everyday", "--split", "test", "--limit", 3, "--lines", 2)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Writer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        teacher = ("--teacher", f"anthropic:claude-haiku-4-5@http://127.0.0.1:{server.server_port}")
        foretold = json.loads(cli(*arguments, *teacher, "--dry-run", "--json"))
        assert (foretold["lacking"], foretold["calls"], Writer.calls) == (3, 3, 0)
        assert foretold["cost"] > 0
        assert not list(tmp_path.iterdir())
        assert "higher limit to continue" in cli(*arguments, *teacher, "--max-calls", 1, code=3)
        done = json.loads(cli(*arguments, *teacher, "--max-calls", 3, "--json"))
        # The first call's reply came from the ledger.
        assert (done["lines"], Writer.calls, done["calls"]) == (6, 3, 2)
        assert done["counts"]["lines"] == 6
        assert done["cost"] == pytest.approx(2 * (10 * 1 + 20 * 5) / 1e6)
    finally:
        server.shutdown()
        server.server_close()
    assert "test-key" not in "".join(p.read_text(errors="replace") for p in tmp_path.iterdir())


# Checks


def test_check_critic_judge_and_env():
    said = cli("check", "critic", "rules")
    assert "FAIL" not in said
    assert said.count("ok ") > 8
    broken = json.loads(CliRunner().invoke(app, ["check", "critic", "test_cli:backwards", "--json"]).stdout)
    assert not {f["name"]: f["ok"] for f in broken}["order"]
    assert cli("check", "critic", "test_cli:backwards", code=1) == ""
    assert "Did you mean 'rules'?" in cli("check", "critic", "ruls", code=2)
    said = cli("check", "judge", "pocket")
    assert "FAIL" not in said
    assert said.count("ok ") > 8
    assert "FAIL" not in cli("check", "env", "humor_env:humor_env/OneLiner-v0")
    found = json.loads(cli("check", "env", "humor_env/Revise-v0", "--option", "attempts=2", "--json"))
    assert all(finding["ok"] for finding in found)


def test_check_learner():
    said = cli("check", "learner", "best-of-n", "--option", "n=2")
    assert "FAIL" not in said
    assert said.count("ok ") == 21
    assert "[learner] has no key 'samplin'. Did you mean 'sampling'?" in cli(
        "check", "learner", "best-of-n", "--option", "samplin=2", code=2
    )
    assert "Did you mean 'best-of-n'?" in cli("check", "learner", "best-of-m", code=2)
    broken = json.loads(CliRunner().invoke(app, ["check", "learner", "test_cli:backwards", "--json"]).stdout)
    assert [(finding["name"], finding["ok"]) for finding in broken] == [("signature", False)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["humor_env/Oneliner-v0"], "No environment is called 'humor_env/Oneliner-v0'. Did you mean"),
        (["humor_env/Revise-v0", "--option", "attemps=2"], "has no option 'attemps'. Did you mean 'attempts'?"),
        (["nosuch:Env-v0"], "names the module 'nosuch', which Python cannot find"),
        (["humor_env:humor_env/Revise-v9"], "There is no environment 'humor_env:humor_env/Revise-v9'"),
    ],
)
def test_mistakes_about_an_environment_are_a_sentence_each(arguments, told):
    assert told in cli("check", "env", *arguments, code=2)


def too_few(jokes):
    return [humor_env.Judgement("too few", 0.5)]


def numbers_only(jokes):
    return [0.5 for _ in jokes]


NOT_CALLABLE = 3


@pytest.mark.parametrize(
    ("critic", "told"),
    [
        ("too_few", "was asked about 2 jokes and returned 1 judgements"),
        ("numbers_only", "must return humor_env.Judgement objects, found a float"),
        ("NOT_CALLABLE", "is a int, which is not callable"),
    ],
)
def test_critics_are_held_to_their_contract_wherever_they_are_asked(critic, told, world, tmp_path):
    write_jokes(tmp_path / "jokes.jsonl", "Moss.", "More moss.")
    assert told in cli("judge", tmp_path / "jokes.jsonl", "--critic", f"test_cli:{critic}", code=1)
    few = ("--prompts", world / "prompts.jsonl", "--limit", 2, "--max-new-tokens", 4)
    assert told in cli("evaluate", world / "causal", *few, "--critic", f"test_cli:{critic}", code=1)


def backwards(jokes):
    return [humor_env.Judgement("backwards", min(1.0, len(j.text) / 100)) for j in reversed(jokes)]


# The machine


def test_doctor_says_what_is_there_without_saying_a_key(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    found = json.loads(cli("doctor", "--json"))
    assert found["keys"]["ANTHROPIC_API_KEY"] is True
    assert found["keys"]["OPENAI_API_KEY"] is False
    assert found["versions"]["humor-env"] == humor_env.__version__
    assert found["precision"]["pays"] in ("float32", "bfloat16")
    assert found["pocket_students"] == {"causal": True, "seq2seq": True}  # all that come with the package
    said = cli("doctor")
    assert "ANTHROPIC_API_KEY set, OPENAI_API_KEY not set" in said
    assert "sk-secret" not in said + json.dumps(found)


def test_doctor_says_how_much_memory_a_step_takes():
    said = json.loads(cli("doctor", "--spec", "pocket-quickstart", "--set", "learner.micro_batch=auto", "--json"))
    warm_start, learner = said["a_step_takes"]
    assert re.fullmatch(r"teacher\.imitation: about [\d.]+ [MG]B with micro_batch 64; [\d.]+ GB are free", warm_start)
    assert re.fullmatch(r"learner: about [\d.]+ [MG]B with micro_batch (64|32); [\d.]+ GB are free", learner)


def test_doctors_notes_follow_what_was_found():
    fine = {
        "devices": [{"kind": "cuda", "name": "x", "memory_gb": 80}, {"kind": "cpu", "name": "y", "memory_gb": None}],
        "torch_threads": 2,
        "cores": 2,
        "keys": {"ANTHROPIC_API_KEY": True, "OPENAI_API_KEY": False, "HF_TOKEN": False},
        "pocket_students": {"causal": True},
        "disk_free_gb": {"here": 50.0, "model cache": 50.0},
        "memory_gb": 16.0,
    }
    just_enough = {"disk_free_gb": {"here": 2.0, "model cache": 10.0}, "memory_gb": 2.0}
    assert doctor.notes(fine) == doctor.notes(fine | just_enough) == []
    for change, part in (
        ({"devices": fine["devices"][1:]}, "No GPU"),
        ({"torch_threads": 3}, "OMP_NUM_THREADS=2"),
        ({"keys": dict.fromkeys(fine["keys"], False)}, "No key"),
        ({"pocket_students": {"causal": False}}, "pretrain-pocket --student causal"),
        ({"disk_free_gb": {"here": 1.0, "model cache": 50.0}}, "Only 1.0 GB are free here"),
        ({"disk_free_gb": {"here": 50.0, "model cache": 5.0}}, "downloaded models"),
        ({"memory_gb": 1.0}, "of memory are free"),
    ):
        [note] = doctor.notes(fine | change)
        assert part in note


# Commands with options of their own


def test_their_options_are_passed_on(capfd, monkeypatch):
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    for command, option in (("demo", "--seed"), ("pretrain-pocket", "--student")):
        said = cli(command, "--help") + capfd.readouterr().out
        assert option in said
        assert command in said.splitlines()[0]


def test_one_thread_is_enough_and_none_is_refused(monkeypatch, capsys, tmp_path):
    asked = []
    monkeypatch.setattr(demo, "run_demo", lambda *arguments: asked.append(arguments[-1]))
    monkeypatch.setattr(pretrain, "pretrain", lambda recipe, *_: asked.append((recipe.threads, recipe.steps)) or {})
    demo.main(["--threads", "1", "--out", str(tmp_path)])
    pretrain.main(["--threads", "1", "--steps", "1", "--out", str(tmp_path)])
    assert asked == [1, (1, 1)]
    for main in (demo.main, pretrain.main):
        with pytest.raises(SystemExit):
            main(["--threads", "0", "--out", str(tmp_path)])
        assert "must be at least 1" in capsys.readouterr().err
    assert len(asked) == 2


def test_a_run_is_measured_on_its_own_prompts_by_its_own_critic(spec, world, tmp_path):
    """A run on everyday prompts was measured on pocket prompts by the pocket judge, without a word."""
    cli("train", "mine.toml")
    stages = json.loads(Path("runs/tiny/results.json").read_text())["seeds"][0]["stages"]
    for place in ("runs/tiny", "runs/tiny/seed-0", "runs/tiny/seed-0/student"):
        found = json.loads(cli("evaluate", place, "--json"))
        assert (found["score"], found["count"]) == (stages["ppo"]["score"], 4)
    assert json.loads(cli("evaluate", "runs/tiny", "--adapter", "base", "--json"))["score"] == stages["base"]["score"]
    # What is said counts.
    assert json.loads(cli("evaluate", "runs/tiny", "--json", "--limit", 2))["count"] == 2
    assert json.loads(cli("evaluate", "runs/tiny", "--json", "--split", "dev"))["split"] == "dev"
    assert json.loads(cli("evaluate", "runs/tiny", "--json", "--critic", "rules"))["critic"] == "rules"
    assert "--option needs --critic" in cli("evaluate", "runs/tiny", "--option", "a=1", code=2)


def test_a_run_that_was_interrupted_is_not_taken_for_a_model(spec):
    """The sentence was transformers': "Unrecognized model … should have a model_type key"."""
    cli("train", "mine.toml")
    for file in Path("runs/tiny/seed-0/student").iterdir():
        if file.is_file():
            file.unlink()
    said = cli("evaluate", "runs/tiny", code=1)
    assert said == (
        "The run in 'runs/tiny' has saved no student yet: it was stopped. To finish it: humor-env train runs/tiny "
        "--resume\n"
    )


def test_a_name_with_brackets_is_no_markup_and_no_escape_sequence_is_printed(spec, world, tmp_path):
    """`evaluate 'a[/b]'` ended in rich's MarkupError; a service's error text set the window's title."""
    odd = tmp_path / "a[/b]"
    odd.parent.mkdir(exist_ok=True)
    odd.symlink_to(world / "causal")
    cli("evaluate", "a[/b]", "--limit", 1)
    said = cli("evaluate", "a\x1b]0;owned\x07\u202eb", "--limit", 1, code=2)
    assert "\x1b" not in said and "\x07" not in said and "\u202e" not in said


def test_an_option_that_is_a_setting_is_pointed_to_set(spec):
    assert "--set learner.learning_rate=" in cli("train", "mine.toml", "--learning-rate", "1", code=2)


def test_a_judge_is_not_a_critic(tmp_path):
    write_jokes(tmp_path / "jokes.jsonl", "Moss.")
    said = cli("judge", tmp_path / "jokes.jsonl", "--critic", "multiple-choice", code=2)
    assert said.startswith("'multiple-choice' is a judge") and "win-tie" in said and "audit" in said


def test_a_gallery_is_written_into_a_folder_that_is_not_there_yet(tmp_path):
    cli("gallery", "--count", 1, "--out", tmp_path / "new" / "gallery.md")
    assert (tmp_path / "new" / "gallery.md").read_text(encoding="utf-8").startswith("#")
    assert "is a folder" in cli("gallery", "--count", 1, "--out", tmp_path, code=2)
