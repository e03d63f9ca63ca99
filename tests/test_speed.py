"""The benchmark's arithmetic by hand, and one small run of it."""

import json

import pytest
import typer
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
