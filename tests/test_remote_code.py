"""Code in a model's folder never runs, even where somebody answers "y" to everything."""

import io
import json
import pickle
import shutil
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file

from humor_env import pocket
from humor_env.episodes.token_table import load_tokenizer
from humor_env.errors import InvalidOption, StudentError
from humor_env.experiments.runs.ingredients import load_student
from humor_env.experiments.specs.spec import StudentSpec
from humor_env.llm import make_client
from humor_env.rewards.likelihood.surprisal import ModelSurprisal
from humor_env.rewards.reward_model import RewardModelCritic
from humor_env.rewards.trained.scoring_head import SCORING_FILE, Reading, load_model, new_model
from humor_env.types import Joke, Prompt

JOKE = Joke(Prompt("p", "The meeting was slow."), "Glaciers overtook it.")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model that brings its own code; the code leaves a mark where it runs."""
    source = tmp_path / "brings_code"
    shutil.copytree(pocket.path("causal"), source)
    classes = "AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification"
    config = {"model_type": "brings_code", "auto_map": {name: f"own_code.{name}" for name in classes}}
    (source / "config.json").write_text(json.dumps(config))
    (source / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own_code.AutoTokenizer", None]}})
    )
    (source / "own_code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass AutoTokenizer: pass\n")
    (source / SCORING_FILE).write_text(json.dumps({"format": 1, "members": 1, **asdict(Reading())}))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return source


@pytest.mark.parametrize(
    "load",
    [
        lambda folder: ModelSurprisal(str(folder))(["a line"]),
        lambda folder: new_model(str(folder), Reading()),
        lambda folder: load_model(folder),
        lambda folder: RewardModelCritic(str(_classifier(folder)))([JOKE]),
        lambda folder: load_tokenizer(str(folder)),
        lambda folder: make_client(f"local:{folder}"),
        lambda folder: load_student(StudentSpec(model=str(folder)), 0),
    ],
    ids=["surprisal", "scoring head", "scoring model", "reward model", "tokens", "local client", "student"],
)
def test_code_in_a_folder_does_not_run(folder, load, tmp_path, monkeypatch):
    """Unsaid, transformers asks on the terminal, and `yes |` or a tired user lets the code run."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))
    with pytest.raises((InvalidOption, StudentError)):
        load(folder)
    assert not (tmp_path / "ran").exists()


class Evil:
    """What a pickle does when it is read."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


@pytest.mark.parametrize("whole", [True, False], ids=["weights", "a command"])
@pytest.mark.parametrize(
    "load",
    [lambda folder: make_client(f"local:{folder}"), lambda folder: load_student(StudentSpec(model=str(folder)), 0)],
    ids=["local client", "student"],
)
def test_no_pickle_is_read(load, whole, tmp_path):
    """pytorch_model.bin went through torch's unpickler, and a malicious one ended in its traceback."""
    source = tmp_path / "pickled"
    shutil.copytree(pocket.path("causal"), source)
    weights = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    if whole:
        torch.save(weights, source / "pytorch_model.bin")
    else:
        (source / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises((InvalidOption, StudentError), match="safetensors"):
        load(source)
    assert not (tmp_path / "ran").exists()


def _classifier(folder):
    (folder / SCORING_FILE).unlink()
    return folder
