"""DPO: the loss by hand, log 2 at the reference, the same numbers as TRL, and what the student becomes."""

import math

import pytest
import torch
from datasets import Dataset
from tiny import llama, prompts, stir, student, tokenizer

from humor_env.agents.dpo import DPOConfig, dpo_loss, train
from humor_env.agents.student import IMITATION, POLICY, Student
from humor_env.agents.student.token_rows import TokenRows
from humor_env.agents.update.minibatch import encode_pairs
from humor_env.errors import InvalidOption
from humor_env.types import Preference


def logsigmoid(x):
    return -math.log1p(math.exp(-x))


def loss_of(**options):
    """Pair 1: gains 0.5 - 0.2 = 0.3 over 2 tokens and -0.4 over 1. Pair 2: gains -0.1 over 1 and 0.6 over 2."""
    logprobs = torch.tensor([[0.5, -0.2], [-0.4, 7.0], [-0.1, 7.0], [0.2, 0.4]]) - 1
    mask = torch.tensor([[1, 1], [1, 0], [1, 0], [1, 1]])
    return dpo_loss(logprobs, torch.full((4, 2), -1.0), mask, 2.0, **options)


def test_dpo_loss_by_hand():
    loss, sums = loss_of(beta=0.5)
    assert float(loss) == pytest.approx(-(logsigmoid(0.35) + logsigmoid(-0.35)) / 2, abs=1e-6)
    assert float(sums["margin"]) == pytest.approx(0.7 - 0.7, abs=1e-6)
    assert float(sums["ranked_right"]) == 1
    assert float(sums["chosen_gain"]) == pytest.approx(0.2, abs=1e-6)
    assert float(sums["rejected_gain"]) == pytest.approx(0.2, abs=1e-6)
    # The mean is over the whole step's pairs, of which this may be a part.
    whole = dpo_loss(torch.ones(2, 1), torch.zeros(2, 1), torch.ones(2, 1), 8.0, beta=1.0)[0]
    assert float(whole) == pytest.approx(math.log(2) / 8)


def test_equal_gains_are_not_ranked_right():
    """At the reference nothing is ranked yet: 0 is no lead. An empty line has a gain of 0, not of 0 / 0."""
    mask = torch.tensor([[1.0, 1], [0, 0]])
    for loss in ("sigmoid", "ipo"):
        value, sums = dpo_loss(torch.zeros(2, 2), torch.zeros(2, 2), mask, 1.0, beta=0.5, loss=loss)
        assert (float(sums["ranked_right"]), float(sums["margin"])) == (0, 0)
        assert float(value) == pytest.approx(math.log(2) if loss == "sigmoid" else 1.0)


def test_label_smoothing_by_hand():
    logprobs, mask = torch.tensor([[0.6], [-0.2]]), torch.ones(2, 1)
    smoothed = dpo_loss(logprobs, torch.zeros(2, 1), mask, 1.0, beta=0.5, label_smoothing=0.2)[0]
    assert float(smoothed) == pytest.approx(-0.8 * logsigmoid(0.4) - 0.2 * logsigmoid(-0.4), abs=1e-6)


def test_ipo_loss_by_hand():
    # Margins per token: 0.15 + 0.4 = 0.55 and -0.1 - 0.3 = -0.4; the target is 1 / (2 * 0.5) = 1.
    loss, sums = loss_of(beta=0.5, loss="ipo")
    assert float(loss) == pytest.approx((0.45**2 + 1.4**2) / 2, abs=1e-6)
    assert float(sums["margin"]) == pytest.approx(0.15, abs=1e-6)


@pytest.mark.parametrize("beta", [0.01, 0.1, 5.0])
def test_at_the_reference_the_loss_is_log_2(beta):
    logprobs = torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.ones(8, 5)
    loss, _ = dpo_loss(logprobs, logprobs.clone(), mask, 4.0, beta=beta, label_smoothing=0.1)
    assert float(loss) == pytest.approx(math.log(2), abs=1e-15)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_the_loss_equals_trls(loss, tmp_path):
    """On TRL's own batch (chosen lines first, then the rejected), with two different models."""
    import trl

    words = tokenizer()
    pairs = [
        {"prompt": "The meeting was slow.", "chosen": "Glaciers overtook it.", "rejected": "It was."},
        {"prompt": "My soup", "chosen": "So cold.", "rejected": "Penguins asked for blankets."},
        {"prompt": "So cold", "chosen": "that penguins asked.", "rejected": "cold"},
    ]
    config = trl.DPOConfig(
        output_dir=str(tmp_path),
        report_to="none",
        use_cpu=True,
        bf16=False,
        beta=0.3,
        loss_type=[loss],
        per_device_train_batch_size=3,
        gradient_checkpointing=False,
    )
    trainer = trl.DPOTrainer(
        model=llama(len(words), seed=0),
        ref_model=llama(len(words), seed=1),
        args=config,
        train_dataset=Dataset.from_list(pairs),
        processing_class=words,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    half = len(batch["input_ids"]) // 2
    side_by_side = torch.stack([torch.arange(half), torch.arange(half) + half], 1).flatten()
    rows = TokenRows(
        *(batch[n][side_by_side] for n in ("input_ids", "attention_mask", "completion_mask")),
    )
    ours = [Student(llama(len(words), seed=s), words) for s in (0, 1)]
    with torch.no_grad():
        expected = trainer.compute_loss(trainer.model, dict(batch))
        found = []
        for one in ours:
            with one.using(None):
                found.append(one.score(rows).logprobs)
    mine, _ = dpo_loss(found[0], found[1], rows.action_mask, float(half), beta=0.3, loss=loss)
    assert abs(float(mine) - math.log(2)) > 1e-3, "the two models must differ for the comparison to mean anything"
    assert float(mine) == pytest.approx(float(expected), abs=1e-5)


def some_preferences(count=6):
    return [
        Preference(p, "Glaciers overtook it.", "So cold that penguins asked.", 0.9, "people") for p in prompts(count)
    ]


class Kept:
    """A log that remembers."""

    def __init__(self):
        self.numbers, self.written = {}, {}

    def metrics(self, step, numbers):
        self.numbers[step] = dict(numbers)

    def jokes(self, step, jokes, judgements):
        self.written[step] = list(zip(jokes, judgements, strict=True))

    def rewind(self, step):
        pass


def warm_student():
    one = student()
    stir(one, IMITATION)
    one.start_policy_from_imitation()
    return one


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_what_is_preferred_becomes_likelier(loss):
    log, one = Kept(), warm_student()
    config = DPOConfig(epochs=8, batch_size=4, learning_rate=1e-2, beta=0.5, loss=loss, decay="linear")
    result = train(config, None, one, log, preferences=some_preferences())
    assert (result.steps, result.stopped) == (16, False)
    first, last = log.numbers[1], log.numbers[16]
    if loss == "sigmoid":
        assert first["update/policy_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["update/margin"] == pytest.approx(0, abs=1e-6)
    assert last["update/ranked_right"] == 1
    assert last["update/policy_loss"] < first["update/policy_loss"]
    rows = encode_pairs(one, some_preferences())
    gains = (
        one.score_in_batches(rows, adapter=POLICY).logprobs - one.score_in_batches(rows, adapter=IMITATION).logprobs
    ).sum(-1)
    assert bool((gains[::2] > gains[1::2]).all())
    # Linear decay reaches its end with the last of 8 x 2 steps.
    assert log.numbers[16]["learning_rate"] == pytest.approx(1e-2 * (1 - 0.9 * 15 / 16))


def test_seq2seq_learns_alike():
    one = student("seq2seq")
    log = Kept()
    train(DPOConfig(epochs=6, batch_size=6, learning_rate=1e-2), None, one, log, preferences=some_preferences())
    assert log.numbers[6]["update/margin"] > 0.01


@pytest.mark.parametrize(
    "wrong",
    [
        {"beta": 0},
        {"label_smoothing": 0.5},
        {"label_smoothing": -0.1},
        {"loss": "hinge"},
        {"rounds": 11},
        {"batch_size": 0},
    ],
)
def test_impossible_settings_are_explained(wrong):
    with pytest.raises(InvalidOption):
        DPOConfig(**wrong)
    with pytest.raises(InvalidOption, match="IPO"):
        DPOConfig(loss="ipo", label_smoothing=0.1)


def test_somebody_must_be_asked():
    with pytest.raises(InvalidOption, match="judge"):
        train(DPOConfig(), None, student(), prompts=prompts())
