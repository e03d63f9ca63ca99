"""The Hub: what is pushed is what was listed, loads elsewhere, and says what it is; against a server on loopback."""

import json
import os
import re
import subprocess
import sys

import pytest
import tiny
from fake_hub import FakeHub
from typer.testing import CliRunner

from humor_env.experiments.commands.cli import app
from humor_env.experiments.runs.run import run
from humor_env.experiments.sharing import hub
from humor_env.experiments.specs.spec import load_spec
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


def test_a_dry_run_lists_every_byte_and_asks_nobody(finished):
    done = CliRunner().invoke(app, ["push", str(finished / "run"), "owner/name", "--dry-run", "--json"])
    listed = json.loads(done.stdout)
    assert listed["address"] is None
    with hub.staged(finished / "run", "owner/name") as folder:
        there = {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
        texts = [p.read_text() for p in folder.rglob("*") if p.suffix in (".json", ".md", ".toml")]
    assert listed["files"] == there
    assert {"README.md", "policy/adapter_model.safetensors", "base/model.safetensors", "run/spec.toml"} <= set(there)
    inside = [text for text in texts if str(finished) in text]
    assert len(inside) <= 1, "only the spec names the folder that the student came from"


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


@pytest.mark.slow
def test_a_pushed_folder_comes_back_whole_and_loads_with_plain_transformers_and_peft(finished, tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from humor_env.agents.student import Student

    with FakeHub() as server:
        pushed = call(["push", finished / "run", "owner/name", "--merged"], server)
        assert pushed.returncode == 0, pushed.stderr
        kept = server.files["model", "owner/name"]
        assert server.private["owner/name"]
        sizes = {name: int(s.replace(",", "")) for s, name in re.findall(r"^ *([\d,]+)  (\S+)$", pushed.stdout, re.M)}
        assert sizes == {name: len(data) for name, data in kept.items()}, "what was listed, and nothing else"
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
