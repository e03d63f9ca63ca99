"""The Hub: what is pushed is what was listed, loads elsewhere, and says what it is; against a server on loopback."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import tiny
import torch
from fake_hub import FakeHub
from typer.testing import CliRunner

from humor_env.errors import InvalidOption
from humor_env.experiments.commands.cli import app
from humor_env.experiments.runs.run import run
from humor_env.experiments.sharing import hub
from humor_env.experiments.specs.spec import load_spec, parse_spec
from humor_env.teacher import TeacherBuffer
from humor_env.types import Demonstration, Prompt

TOKEN = "hf_" + "nobodys0token" * 2


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small run, from a student in a folder of this machine."""
    folder = tmp_path_factory.mktemp("hub")
    words = tiny.tokenizer()
    tiny.llama(len(words)).save_pretrained(folder / "base")
    words.save_pretrained(folder / "base")
    settings = [
        f"student.model={folder / 'base'}",
        *("learner.steps=1", "learner.batch_size=4", "learner.sampling.max_new_tokens=4", "eval.limit=3"),
        "teacher.imitate=false",
    ]
    run(load_spec("pocket-quickstart", settings), folder / "run")
    return folder


def call(words, server):
    """The command in a process of its own: huggingface_hub reads its settings when it is imported."""
    env = os.environ | {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "humor_env.experiments.commands.cli", *map(str, words)],
        capture_output=True,
        text=True,
        env=env,
        timeout=300,
        check=False,
    )
    assert TOKEN not in done.stdout + done.stderr
    return done


def sizes(said):
    """The bytes of each file, as the command lists them for people."""
    return {name: int(s.replace(",", "")) for s, name in re.findall(r"^ *([\d,]+)  (\S+)$", said, re.M)}


def test_a_dry_run_lists_every_byte_and_asks_nobody(finished):
    done = CliRunner().invoke(app, ["push", str(finished / "run"), "owner/name", "--dry-run", "--json"])
    listed = json.loads(done.stdout)
    assert listed["address"] is None
    with hub.staged(finished / "run", "owner/name") as folder:
        there = {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
        texts = [p.read_text() for p in folder.rglob("*") if p.suffix in (".json", ".md", ".toml")]
    assert listed["files"] == there
    said = CliRunner().invoke(app, ["push", str(finished / "run"), "owner/name", "--dry-run"]).stdout
    assert sizes(said) == there and said.endswith("Nothing was uploaded.\n")
    assert {"README.md", "policy/adapter_model.safetensors", "base/model.safetensors", "run/spec.toml"} <= set(there)
    inside = [text for text in texts if str(finished) in text]
    assert not inside, "no file names a place on this machine"


def test_the_card_has_no_empty_field(finished):
    with hub.staged(finished / "run", "owner/name") as folder:
        text = (folder / "README.md").read_text()
    assert "More Information Needed" not in text and "None" not in text and "nan" not in text.split()
    assert not re.search(r"\|[ \t]*\|", text), "an empty cell"
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert [s.split("\n")[0] for s in sections] == [
        *("Use", "Base and data", "Critics", "Held-out results", "Sample lines", "Known hacks", "Commands"),
    ]
    assert all(s.split("\n", 1)[1].strip() for s in sections)
    results = json.loads((finished / "run" / "seed-0" / "results.json").read_text())["stages"]["ppo"]
    assert f"| ppo | {results['score']:.3f} | too few lines for one | 3 | 0 |" in text
    assert "CC-BY-4.0" in text and "`pocket` gave the reward" in text


def test_the_card_shows_lines_from_the_lowest_to_the_highest_score(finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "run")
    rows = [{"prompt": "It rained.", "text": f"line {i}", "score": i / 16} for i in reversed(range(17))]
    rows.append({"prompt": "It rained.", "text": "not judged", "score": None})
    path = tmp_path / "run" / "seed-0" / "evaluation-ppo.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with hub.staged(tmp_path / "run", "owner/name") as folder:
        samples = (folder / "README.md").read_text().split("## Sample lines")[1].split("## ")[0]
    assert re.findall(r"line (\d+) \|", samples) == [str(i) for i in range(0, 17, 2)]


PRIVATE_SPEC = """
name = "mine"
[env]
prompts = "HOME/secret-client/prompts.jsonl"
[student]
model = 'BASE'
[teacher]
lines = "HOME/secret-client/lines.jsonl"
[budget]
ledger = "HOME/budget.sqlite"
[[critic]]
critic = "scorer"
[critic.options]
client = "openai:judge@http://alice:hunter2@10.1.2.3:8000/v1"
ledger = "HOME/v.sqlite"
rubric = "HOME/my rubric.txt"
[[critic]]
critic = "mix"
[critic.options]
critics = [{ critic = "scorer", options = { client = "openai:m", options = { base_url = "http://10.1.2.3/v1" } } }]
[eval]
critic = [{ critic = "reward-model", options = { folder = "~/secret-client/critic" } }]
[learner]
name = "ppo"
steps = 1
"""


def private_run(folder, base):
    """The folder of a run whose spec, results and student name a server and places of somebody's machine."""
    folder.mkdir()
    home = "/home/alice/work"
    (folder / "spec.toml").write_text(parse_spec(PRIVATE_SPEC.replace("HOME", home).replace("BASE", base)).to_toml())
    (folder / "run.json").write_text(json.dumps({"started": "today", "repeat": f"humor-env train {home}/spec.toml"}))
    seed = folder / "seed-0"
    for part in ("student/policy", "student/imitation"):
        (seed / part).mkdir(parents=True)
    why = "http://10.1.2.3:8000/v1 answered 404; 10.1.2.3:8000 is written to '/home/alice/my own/v.sqlite'"
    (seed / "results.json").write_text(json.dumps({"stages": {}, "seconds": {}, "steps": 1, "why": why}))
    (seed / "student" / "student.json").write_text(json.dumps({"base": base, "instruction": "Say it and/or sing it."}))
    for config in ("policy/adapter_config.json", "imitation/adapter_config.json"):
        (seed / "student" / config).write_text(json.dumps({"base_model_name_or_path": base, "r": 8}))
    (seed / "student" / "tokenizer_config.json").write_text(
        json.dumps({"name_or_path": f"{home}/words", "chat_template": "see https://example.org/a/b"})
    )
    (seed / "student" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"://": 1, "/usr/bin/x": 2}}}))
    return folder


def private_words(folder, *more):
    """What each staged file says that nobody else is to read."""
    secret = ["hunter2", "alice", "10.1.2.3", "/home", "secret-client", "my own", *more]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [(path.name, word) for path in files for word in secret if word.encode() in path.read_bytes()]


def test_nothing_that_is_pushed_names_a_server_a_password_or_a_place_on_this_machine(tmp_path):
    """The spec went up with `openai:judge@http://alice:hunter2@10.1.2.3:8000/v1` and the paths of the ledger and of
    others, and so did error messages in the results."""
    run_folder = private_run(tmp_path / "run", "owner/base")
    with hub.staged(run_folder, "owner/name") as folder:
        assert private_words(folder, str(tmp_path)) == []
        spec = load_spec(folder / "run" / "spec.toml")
        assert "ledger" not in (folder / "run" / "spec.toml").read_text()
        results = json.loads((folder / "run" / "results.json").read_text())
        words = json.loads((folder / "tokenizer_config.json").read_text())
        described = json.loads((folder / "student.json").read_text())
        assert "/usr/bin/x" in (folder / "tokenizer.json").read_text(), "a vocabulary is left as it is"
    assert spec.critic[0].options == {"client": "openai:judge", "rubric": "my rubric.txt"}
    assert spec.critic[1].options["critics"] == [{"critic": "scorer", "options": {"client": "openai:m", "options": {}}}]
    assert spec.eval.critic[0].options == {"folder": "critic"}
    assert (spec.env.prompts, spec.teacher.lines) == ("prompts.jsonl", "lines.jsonl")
    assert "answered 404" in results["why"]
    assert words == {"name_or_path": "words", "chat_template": "see https://example.org/a/b"}
    assert described == {"base": "owner/base", "instruction": "Say it and/or sing it."}


def test_a_base_from_a_gguf_file_goes_along_as_a_folder_that_loads_elsewhere(tmp_path, monkeypatch):
    """The card, the adapters and student.json named the file on this machine, so that nobody else could load it."""
    pytest.importorskip("gguf")
    from test_gguf import write_gguf

    from humor_env.agents.student import Student

    monkeypatch.setenv("HUMOR_ENV_CACHE", str(tmp_path / "cache"))
    file = write_gguf(tmp_path / "model.gguf", tiny.llama())
    run_folder = private_run(tmp_path / "run", str(file))
    saved = run_folder / "seed-0" / "student"
    shutil.rmtree(saved)
    Student.load(file).save_pretrained(saved, base=str(file))
    with hub.staged(run_folder, "owner/name") as folder:
        assert private_words(folder, str(tmp_path)) == []
        assert json.loads((folder / "student.json").read_text())["base"] is None
        assert json.loads((folder / "policy" / "adapter_config.json").read_text())["base_model_name_or_path"] == (
            "owner/name"
        )
        assert "base_model:" not in (folder / "README.md").read_text()
        file.unlink()
        shutil.rmtree(tmp_path / "cache")
        there, original = Student.load(folder), tiny.llama()
        tokens = torch.tensor([[5, 7, 9, 11]])
        with torch.no_grad(), there.using(None):
            assert torch.allclose(there.base(tokens).logits, original(tokens).logits, atol=1e-5)


@pytest.mark.parametrize("base", ["/home/alice/gone", "C:\\models\\mine", "./gone.gguf", "FOLDER/weights.bin"])
def test_a_base_that_nobody_else_can_load_is_refused(tmp_path, base):
    (tmp_path / "weights.bin").write_bytes(b"x")
    run_folder = private_run(tmp_path / "run", base.replace("FOLDER", str(tmp_path)))
    with pytest.raises(InvalidOption, match="others cannot load"), hub.staged(run_folder, "owner/name"):
        pass


def test_a_named_base_is_named_as_the_hub_does(tmp_path):
    """The card said `base_model: smollm2`, which is no name on the Hub, and the adapters lost their right one."""
    with hub.staged(private_run(tmp_path / "run", "smollm2"), "owner/name") as folder:
        hub_name = "HuggingFaceTB/SmolLM2-135M-Instruct"
        assert f"base_model: {hub_name}\n" in (folder / "README.md").read_text()
        config = json.loads((folder / "policy" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == hub_name


def test_judged_lines_are_pushed_without_servers_and_paths(tmp_path):
    verdict = {
        "score": None,
        "error": "http://alice:hunter2@10.1.2.3:8000/v1 answered 500",
        "info": {"ledger": "/home/a"},
    }
    rows = [
        {
            "prompt": "Write to http://example.org/a/b.",
            "text": "See /usr/bin/x.",
            "source": "openai:m@10.1.2.3:8000 t=1",
        },
        {"prompt": "A.", "text": "B.", "critic": "scorer", "asked": {"client": "ab12"}, "judgement": verdict},
        {"prompt": {"id": "1", "text": "C."}, "text": "D\u2028d.", "critic": "local:/home/alice/critic"},
    ]
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    with hub.staged(lines, "owner/lines") as folder:
        assert private_words(folder, str(tmp_path), "asked") == []
        pushed = [json.loads(line) for line in (folder / "data.jsonl").read_text("utf-8").split("\n") if line]
        card = (folder / "README.md").read_text("utf-8")
    assert pushed[0] == {**rows[0], "source": "openai:m t=1"}
    assert pushed[1]["judgement"]["error"] == "answered 500"
    assert pushed[2] == {**rows[2], "critic": "local:critic"}
    assert "| written by | openai:m t=1 |" in card


@pytest.mark.slow
def test_a_pushed_folder_comes_back_whole_and_loads_with_plain_transformers_and_peft(finished, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from humor_env.agents.student import Student

    with FakeHub() as server:
        pushed = call(["push", finished / "run", "owner/name", "--merged"], server)
        assert pushed.returncode == 0, pushed.stderr
        kept = server.files["model", "owner/name"]
        assert server.private["owner/name"]
        assert sizes(pushed.stdout) == {name: len(data) for name, data in kept.items()}, "what was listed, and no more"
        assert not any(TOKEN.encode() in data for data in kept.values())
        pulled = call(["pull", "owner/name", tmp_path / "student"], server)
        assert pulled.returncode == 0, pulled.stderr
    for name, data in kept.items():
        assert (tmp_path / "student" / name).read_bytes() == data
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "student" / "base")
    plain = PeftModel.from_pretrained(base, tmp_path / "student", subfolder="policy").eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "student" / "merged").eval()
    ours = Student.load(tmp_path / "student").merge().eval()
    tokens = torch.tensor([[5, 7, 9, 11]])
    with torch.no_grad():
        want = ours(tokens).logits
        assert torch.allclose(plain(tokens).logits, want, atol=1e-5)
        assert torch.allclose(merged(tokens).logits, want, atol=1e-5)


def test_a_teachers_buffer_goes_as_a_dataset_with_a_card(tmp_path):
    prompt = Prompt("p", "The meeting was slow.")
    TeacherBuffer(tmp_path / "lines.jsonl").add([Demonstration(prompt, "Glaciers overtook it.", "me", "CC0-1.0")])
    with FakeHub() as server:
        done = call(["push", tmp_path / "lines.jsonl", "owner/lines"], server)
        assert done.returncode == 0, done.stderr
        kept = server.files["dataset", "owner/lines"]
    assert kept["data.jsonl"] == (tmp_path / "lines.jsonl").read_bytes()
    card = kept["README.md"].decode()
    assert "| licence | CC0-1.0 |" in card and "| rows | 1 |" in card and "| written by | me |" in card


def test_a_hub_that_is_not_there_is_told_in_a_sentence(tmp_path):
    (tmp_path / "lines.jsonl").write_text('{"text": "x"}\n')
    with FakeHub() as server:
        pass  # it has gone again
    done = call(["push", tmp_path / "lines.jsonl", "owner/lines"], server)
    assert done.returncode == 1 and "The Hub did not accept 'owner/lines'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["push", "FOLDER", "name"], "expected owner/name"),
        (["push", "FOLDER", "owner/name"], "no run with a finished student"),
        (["push", "FOLDER/odd.jsonl", "owner/name"], "line 1 is not a JSON object"),
        (["pull", "owner/name", "FOLDER"], "is not empty"),
    ],
)
def test_what_cannot_be_pushed_or_pulled_is_told(tmp_path, words, told):
    (tmp_path / "odd.jsonl").write_text("[]\n")
    done = CliRunner().invoke(app, [word.replace("FOLDER", str(tmp_path)) for word in words])
    assert done.exit_code == 2 and told in done.output
