"""The benchmark's arithmetic by hand, and one small run of it."""

import json
from types import SimpleNamespace

import pytest
import torch
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from typer.testing import CliRunner

from humor_env.experiments.upkeep import speed
from humor_env.experiments.upkeep.speed_shapes import COMMON, OWN, SHAPES, Load, Shape, floor, make_model, make_prompts

app = typer.Typer()
app.command()(speed.main)


def test_weights_are_those_of_the_models():
    assert SHAPES["135m"].block_weights + SHAPES["135m"].head_weights == pytest.approx(134.5e6, rel=0.001)
    assert SHAPES["0.5b"].block_weights + SHAPES["0.5b"].head_weights == pytest.approx(494e6, rel=0.001)
    assert SHAPES["1b"].block_weights + SHAPES["1b"].head_weights == pytest.approx(1236e6, rel=0.001)


def test_the_floor_by_hand():
    shape = Shape("llama", vocabulary=10, width=4, inner=8, layers=1, heads=2, key_heads=1)
    # Blocks: 2 x 16 + 2 x 8 + 3 x 32 = 144; output layer 40; an adapter of rank 1: 16 + 12 + 36 = 64.
    assert (shape.block_weights, shape.head_weights) == (144, 40)
    # One GFLOP a second, and copies that cost nothing: seconds are GFLOP. 8 lines of 3 tokens, one prompt each.
    found = floor(shape, "cpu", 8, 3, 1, {"gflops": 1.0, "gigabytes": 1e9})
    read, prompts = COMMON + 8 * OWN + 16, COMMON + 8 * OWN
    assert found["reference"] * 1e9 == pytest.approx(read * 288 + 24 * 80)
    assert found["generate"] * 1e9 == pytest.approx(prompts * 288 + 24 * 80 + 2 * 8 * 288)
    assert found["update"] * 1e9 == pytest.approx(2 * read * 288 + 3 * read * 2 * 16 * 64 + 2 * 24 * 80)
    # Products that cost nothing: each step reads all weights, 4 bytes each.
    found = floor(shape, "cpu", 8, 3, 8, {"gflops": 1e12, "gigabytes": 1.0})
    assert found["generate"] * 1e9 == pytest.approx(3 * 184 * 4, rel=1e-3)


def test_prompts_have_the_tokens_that_are_claimed():
    _, tokenizer = make_model(SHAPES["tiny"], "cpu")
    ids = [
        tokenizer(
            tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False), add_special_tokens=False
        )["input_ids"]
        for text in make_prompts(4, 400)
    ]
    assert {len(i) for i in ids} == {COMMON + OWN}
    assert len({tuple(i[:COMMON]) for i in ids}) == 1 and len({i[COMMON] for i in ids}) == 4


def test_a_small_run(monkeypatch, tmp_path):
    monkeypatch.setattr(
        speed,
        "in_own_process",
        lambda name, steps, *_: speed.speed_shapes.run_one(name, "tiny", "cpu", Load(32, 3, 16), steps),
    )
    options = ["--shape=tiny", "--lines=32", "--tokens=3", "--steps=1", "--rounds=1", "--only=ours-ppo,ours-grpo"]
    done = CliRunner().invoke(app, [*options, f"--out={tmp_path / 'found.json'}"])
    assert done.exit_code == 0, done.output
    assert "ours-ppo: generate" in done.output and "(floor " in done.output
    found = json.loads((tmp_path / "found.json").read_text())["found"]
    assert len(found["ours-grpo"][0]["steps"]) == 1


def test_a_contender_that_fails_is_said_and_the_others_are_compared(monkeypatch, tmp_path):
    """It ended the comparison, after all that had been measured before it."""
    asked = []

    def run(name, steps, *_):
        asked.append(name)
        if name.startswith("trl"):
            raise RuntimeError(
                f"{name} failed:\n  File somewhere\nValueError: no such model\n[W] a group was left open"
            )
        return {"steps": [1.0] * steps, "phases": [], "memory": 10.0}

    monkeypatch.setattr(speed, "in_own_process", run)
    monkeypatch.setattr(speed.speed_shapes, "device_peaks", lambda device: {"gflops": 1.0, "gigabytes": 1.0})
    options = ["--shape=tiny", "--lines=32", "--rounds=2", "--only=trl-grpo-vllm,ours-grpo"]
    done = CliRunner().invoke(app, [*options, f"--out={tmp_path / 'found.json'}"])
    assert done.exit_code == 0, done.output
    assert "trl-grpo-vllm failed: ValueError: no such model" in done.output
    assert "│ ours-grpo" in done.output and "│ trl" not in done.output
    assert asked == ["trl-grpo-vllm", "ours-grpo", "ours-grpo"]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["failed"] == {"trl-grpo-vllm": "ValueError: no such model"} and list(found["found"]) == ["ours-grpo"]


def test_a_process_that_prints_no_numbers_has_failed(monkeypatch):
    for code, printed in ((1, '{"steps": []}\n'), (0, "bye\n")):
        done = SimpleNamespace(returncode=code, stdout=printed, stderr="KeyError: 'x'\n")
        monkeypatch.setattr(speed.subprocess, "run", lambda *_, done=done, **__: done)
        with pytest.raises(RuntimeError, match="ours-ppo failed:\nKeyError"):
            speed.in_own_process("ours-ppo", 1)
    done = SimpleNamespace(returncode=0, stdout='{"steps": [1.0]}\nbye\n', stderr="")
    monkeypatch.setattr(speed.subprocess, "run", lambda *_, **__: done)
    assert speed.in_own_process("ours-ppo", 1) == {"steps": [1.0]}


def test_trl_gets_a_model_that_vllm_can_load(monkeypatch):
    """TRL gives vLLM the model's `name_or_path`, which was empty."""
    shape, load, seen = SHAPES["tiny"], Load(32, 3, 16), []

    def seconds(classes, model_and_tokenizer, rows, **settings):
        model, tokenizer = model_and_tokenizer
        seen.append(settings["use_vllm"])
        there = AutoModelForCausalLM.from_pretrained(model.name_or_path).state_dict()
        known, expected = make_model(shape, "cpu")
        assert all(torch.equal(weight, there[name]) for name, weight in known.state_dict().items())
        for words in (tokenizer, AutoTokenizer.from_pretrained(model.name_or_path)):
            chats = [each.apply_chat_template(rows[0]["prompt"], tokenize=False) for each in (words, expected)]
            assert chats[0] == chats[1] and words(chats[0])["input_ids"] == expected(chats[1])["input_ids"]
            assert words.padding_side == "left" and words.pad_token == "<pad>"
        return [1.0, 2.0]

    monkeypatch.setattr(speed.speed_shapes, "seconds_by_trl", seconds)
    found = [speed.speed_shapes.run_one(name, "tiny", "cpu", load, 1) for name in ("trl-grpo", "trl-grpo-vllm")]
    assert seen == [False, True] and [each["steps"] for each in found] == [[2.0]] * 2


def test_a_gpus_memory_is_shown_as_allocated_and_as_reserved(monkeypatch, capsys):
    precisions = []

    def seconds(classes, model_and_tokenizer, rows, **_):
        saved = AutoModelForCausalLM.from_pretrained(model_and_tokenizer[0].name_or_path)
        precisions.extend([model_and_tokenizer[0].dtype, saved.config.dtype])
        return [1.0, 2.0]

    monkeypatch.setattr(speed.speed_shapes, "seconds_by_trl", seconds)
    peaks = iter([100, 30, 700, 530])
    for kind in ("reserved", "allocated"):
        monkeypatch.setattr(torch.cuda, f"max_memory_{kind}", lambda: next(peaks) * 2**20)
    monkeypatch.setattr(PreTrainedModel, "to", lambda self, *_, **__: self)
    load = Load(32, 3, 16)
    one = speed.speed_shapes.run_one("trl-grpo", "tiny", "cuda", load, 1)
    assert (one["memory"], one["allocated"]) == (600, 500) and precisions == [torch.bfloat16] * 2
    speed.speed_shapes.show("tiny", "cuda", load, {"trl-grpo": [one]}, {"gflops": 1.0, "gigabytes": 1.0})
    said = " ".join(capsys.readouterr().out.split())
    assert "500 allocated, 600 reserved" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--shape=7b"], "--shape must be one of"),
        (["--shape=135m", "--device=tpu"], "--device must be cpu or cuda"),
        (["--shape=135m", "--lines=33"], "multiple of 32"),
        (["--shape=135m", "--micro-batch=48"], "divide the 64 lines"),
    ],
)
def test_an_option_that_cannot_be_ends_in_a_sentence(options, said):
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 2 and said in done.output
