"""Imitation: it learns, stops in time, and touches only what it should."""

import json

import pytest
import torch
from tiny import llama, prompts, student, tokenizer

from humor_env.agents import sft
from humor_env.agents.session.log import RunLog
from humor_env.agents.student import IMITATION, Student
from humor_env.agents.student.token_rows import TokenRows
from humor_env.agents.update.imitation import ImitationLoss
from humor_env.errors import InvalidOption, PromptError, TrainingStopped
from humor_env.types import Demonstration


def test_the_loss_by_hand():
    # Three response tokens of a batch of four: -( -1 - 2 - 3) / 4
    logprobs = torch.tensor([[9.0, -1.0, -2.0], [9.0, 9.0, -3.0]])
    mask = torch.tensor([[0, 1, 1], [0, 0, 1]])
    assert float(sft.sft_loss(logprobs, mask, 4.0)) == 1.5


@pytest.mark.parametrize("full", [False, True])
def test_imitation_learns_the_lines(full):
    lines = [Demonstration(p, "Glaciers overtook it.", "t") for p in prompts(6)]
    one = student(rank=8)
    one.base.get_output_embeddings().weight.data *= 20  # a random output layer of the usual size cannot prefer
    first = sft.dev_nll(one, sft.encode(one, lines), 8)
    before = {n: p.clone() for n, p in one.model.named_parameters()}
    result = sft.train(sft.SFTConfig(epochs=15, batch_size=6, learning_rate=2e-2, full=full), one, lines, lines)
    assert result.dev_loss is not None
    assert result.dev_loss < first / 2
    moved = {n for n, p in one.model.named_parameters() if not torch.equal(before[n], p)}
    if full:
        base = {n for n in before if "lora_" not in n}
        assert base <= moved
        assert not any(f".{IMITATION}." in n for n in moved)
    else:
        assert moved == {n for n in before if f".{IMITATION}." in n or ".policy." in n}
    rows = sft.encode(one, lines)
    a = one.score_in_batches(rows, adapter="policy").logprobs
    assert torch.equal(a, one.score_in_batches(rows, adapter=IMITATION).logprobs)


def test_imitation_stops_early_and_keeps_the_best():
    lines = [Demonstration(p, "Glaciers overtook it.", "t") for p in prompts(4)]
    other = [Demonstration(p, "So cold that penguins asked.", "t") for p in prompts(4)]
    one = student(rank=8)
    # Learning one line makes the other ever less likely, once it has learned what a letter is.
    config = sft.SFTConfig(epochs=60, batch_size=4, learning_rate=3e-2, patience=2, warmup_steps=0)
    result = sft.train(config, one, lines, other)
    assert result.best_epoch < 50
    assert result.steps == result.best_epoch + 2
    with one.using(IMITATION):
        assert sft.dev_nll(one, sft.encode(one, other), 8) == pytest.approx(result.dev_loss, abs=1e-5)


def test_micro_batches_do_not_change_imitation():
    lines = [Demonstration(p, "Glaciers overtook it." * (i % 3 + 1), "t") for i, p in enumerate(prompts(8))]
    finals = []
    for micro_batch in (8, 3):
        one = student()
        sft.train(sft.SFTConfig(epochs=2, batch_size=8, micro_batch=micro_batch), one, lines)
        finals.append(one.state())
    assert all(torch.allclose(finals[0][n], finals[1][n], atol=1e-5) for n in finals[0])


def test_a_student_without_padding_learns_alike():
    lines = [Demonstration(p, "Glaciers overtook it.", "t") for p in prompts(4)]
    finals = []
    for pad in ("<pad>", None):
        words = tokenizer(pad)
        one = Student(llama(len(words)), words)
        sft.train(sft.SFTConfig(epochs=1, batch_size=4), one, lines)
        finals.append(one.state())
    assert all(torch.allclose(finals[0][n], finals[1][n], atol=1e-6) for n in finals[0])


def test_imitation_beside_a_learner_fades_and_adds_to_its_gradients():
    """With all lines in each batch the gradient of step 2 is weight x decay^2 times that of the whole loss."""
    lines = [Demonstration(p, "Glaciers overtook it." * (i + 1), "t") for i, p in enumerate(prompts(3))]
    one = student()
    rows = sft.encode(one, lines)
    one.activate("policy")
    parameters = list(one.adapter_parameters("policy").values())
    one.train_only(parameters)

    def gradients(backward):
        for parameter in parameters:
            parameter.grad = None
        backward()
        return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])

    whole = gradients(
        lambda: sft.sft_loss(one.score(rows).logprobs, rows.action_mask, rows.action_mask.sum()).backward()
    )
    config = sft.SFTConfig(batch_size=3, micro_batch=2)
    beside = ImitationLoss(one, lines, config, weight=0.8, decay=0.5)
    assert torch.allclose(gradients(lambda: beside.backward(0)), 0.8 * whole, atol=1e-6)
    assert torch.allclose(gradients(lambda: beside.backward(2)), 0.2 * whole, atol=1e-6)
    assert torch.allclose(gradients(lambda: [beside.backward(0), beside.backward(1)]), 1.2 * whole, atol=1e-6)
    fewer = ImitationLoss(one, lines, config, weight=1.0, decay=1.0, batch_size=2)
    found = [gradients(lambda at=at: fewer.backward(at)) for at in range(4)]
    assert not torch.allclose(found[0], whole, atol=1e-6)
    assert any(not torch.equal(found[0], other) for other in found[1:]), "each step draws its own lines"
    nothing = ImitationLoss(one, lines, config, weight=0.0, decay=0.5)
    assert nothing.rows is None
    nothing.backward(0)


def test_imitation_leaves_its_timings_as_learners_do(tmp_path):
    """`sft` left no timings.jsonl. Speed times seconds gives back what each step read: three lines, then the fourth."""
    lines = [Demonstration(p, "Glaciers overtook it." * (i + 1), "t") for i, p in enumerate(prompts(4))]
    one = student()
    sft.train(sft.SFTConfig(epochs=1, batch_size=3), one, lines, log=RunLog(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "timings.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    seconds = [row["seconds/step"] for row in rows]
    assert [row["samples_per_second"] * s for row, s in zip(rows, seconds, strict=True)] == pytest.approx([3, 1])
    read = sum(row["tokens_per_second"] * s for row, s in zip(rows, seconds, strict=True))
    assert read == pytest.approx(float(sft.encode(one, lines).action_mask.sum()))
    assert 0 < rows[0]["seconds/update"] <= rows[0]["seconds/spent"] < rows[1]["seconds/spent"]
    metrics = (tmp_path / "metrics.jsonl").read_text()
    assert "sft/loss" in metrics and "second" not in metrics


def test_nothing_to_imitate_is_explained():
    with pytest.raises(PromptError, match="holds no line"):
        sft.train(sft.SFTConfig(), student(), [])
    with pytest.raises(InvalidOption, match="epochs"):
        sft.SFTConfig(epochs=0)


def test_a_loss_that_is_not_a_number_stops_the_run():
    one = student()
    with torch.no_grad():
        one.base.get_output_embeddings().weight[0, 0] = float("nan")
    with pytest.raises(TrainingStopped, match="became nan at step 1"):
        sft.train(sft.SFTConfig(epochs=1), one, [Demonstration(p, "x", "t") for p in prompts(4)])


def test_the_prompt_is_not_imitated():
    """The loss must not depend on how well the prompt itself is predicted: only response tokens count."""
    one = student()
    rows = one.rows_from_text(["The meeting was slow."], ["Glaciers."])
    assert int(rows.action_mask.sum()) == len(one.encode_response("Glaciers."))
    assert rows.tokens[rows.action_mask.bool()].tolist() == one.encode_response("Glaciers.")
    assert isinstance(rows, TokenRows)
