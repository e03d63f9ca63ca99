"""GRPO and RLOO: losses by hand, and the same numbers as TRL's trainers on the same batch."""

import math

import pytest
import torch
from datasets import Dataset
from tiny import llama, prompts, stir, student, tokenizer, vector_env

from humor_env.agents import grpo, rloo
from humor_env.agents.grpo import GRPOConfig, grpo_loss
from humor_env.agents.grpo import train as train_grpo
from humor_env.agents.rloo import RLOOConfig, rloo_loss
from humor_env.agents.rloo import train as train_rloo
from humor_env.agents.student import IMITATION, POLICY, Student
from humor_env.agents.student.sampling import Sampling
from humor_env.agents.student.token_rows import TokenRows
from humor_env.errors import InvalidOption
from humor_env.types import Judgement

SHORT = Sampling(max_new_tokens=8)


def grpo_by(loss: str, **changes):
    given = {
        "logprobs": torch.tensor([[math.log(1.5), 0.0], [math.log(0.5), 0.0]]),
        "old_logprobs": torch.zeros(2, 2),
        "advantages": torch.tensor([1.0, -1.0]),
        "ref_logprobs": None,
        "mask": torch.tensor([[1, 0], [1, 1]]),
        "token_count": 3.0,
        "line_count": 2.0,
        "clip": 0.2,
        "clip_high": 0.3,
        "kl_weight": 0.0,
        "unbiased_kl": False,
        "longest": 10,
    }
    return float(grpo_loss(**(given | changes), loss=loss)[0])


def test_grpo_loss_by_hand():
    # Line 1: min(1.5, 1.3) = 1.3 (clip_high). Line 2: min(-0.5, -0.8) = -0.8 and -1. Losses: -1.3; 0.8, 1.
    assert grpo_by("dapo") == pytest.approx((-1.3 + 0.8 + 1.0) / 3)
    assert grpo_by("grpo") == pytest.approx((-1.3 + (0.8 + 1.0) / 2) / 2)
    assert grpo_by("dr_grpo") == pytest.approx((-1.3 + 0.8 + 1.0) / (2 * 10))
    # k3 against ref = log 2 everywhere: line 1: r = 2 / 1.5; line 2: 2 / 0.5 and 2.
    k3 = [r - 1 - math.log(r) for r in (2 / 1.5, 4.0, 2.0)]
    with_kl = grpo_by("dapo", ref_logprobs=torch.full((2, 2), math.log(2)), kl_weight=0.1)
    assert with_kl == pytest.approx((-1.3 + 0.8 + 1.0 + 0.1 * sum(k3)) / 3, abs=1e-6)
    unbiased = grpo_by("dapo", ref_logprobs=torch.full((2, 2), math.log(2)), kl_weight=0.1, unbiased_kl=True)
    weighted = 1.5 * k3[0] + 0.5 * k3[1] + k3[2]
    assert unbiased == pytest.approx((-1.3 + 0.8 + 1.0 + 0.1 * weighted) / 3, abs=1e-6)


@pytest.mark.parametrize("name", ["group_advantages", "leave_one_out"])
def test_a_revision_is_not_compared_with_first_lines(name, monkeypatch):
    """Its reward is an improvement. All first lines are worth 0.5 and all revisions 0.9: there is nothing to learn."""
    calls, seen = [], []

    def critic(jokes):
        calls.append(len(jokes))
        return [Judgement("c", 0.9 if len(calls) == 2 else 0.5) for _ in jokes]

    module, config, train = {
        "group_advantages": (grpo, GRPOConfig, train_grpo),
        "leave_one_out": (rloo, RLOOConfig, train_rloo),
    }[name]
    whole = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *a, **k: seen.append(whole(*a, **k)) or seen[-1])
    settings = config(steps=1, batch_size=8, siblings=4, sampling=SHORT, missing_end_penalty=0.0)
    train(settings, vector_env(8, critic, attempts=2), student(), prompts=prompts())
    assert calls == [8, 8]
    assert seen[0].tolist() == pytest.approx([0.0] * 16, abs=1e-6)


def test_rloo_loss_by_hand():
    # Whole-line ratios: 1.5 * 0.5 = 0.75 and 2. Advantages 1 and -1: min(0.75, 0.8) = 0.75; min(-2, -1.2) = -2.
    loss, _ = rloo_loss(
        torch.tensor([[math.log(1.5), math.log(0.5)], [math.log(2.0), 9.0]]),
        torch.zeros(2, 2),
        torch.tensor([1.0, -1.0]),
        torch.tensor([[1, 1], [1, 0]]),
        2.0,
        clip=0.2,
    )
    assert float(loss) == pytest.approx(-(0.75 - 2.0) / 2, abs=1e-6)


def pair_of_models() -> tuple[Student, TokenRows, dict]:
    """A batch as TRL lays it out (prompts padded left, responses right) and as we do, of the same tokens."""
    words = tokenizer()
    one = Student(llama(len(words)), words)
    texts = ["The meeting was slow.", "My soup", "So cold that penguins"]
    lines = ["Glaciers overtook it.", "So cold.", "x"]
    sources = [one.encode_prompt(t) for t in texts]
    responses = [one.encode_response(t) for t in lines]
    ours = one.rows(sources, responses)
    left, right = max(map(len, sources)), max(map(len, responses))
    theirs = {
        "prompt_ids": torch.tensor([[0] * (left - len(s)) + s for s in sources]),
        "prompt_mask": torch.tensor([[0] * (left - len(s)) + [1] * len(s) for s in sources]),
        "completion_ids": torch.tensor([r + [0] * (right - len(r)) for r in responses]),
        "completion_mask": torch.tensor([[1] * len(r) + [0] * (right - len(r)) for r in responses]),
    }
    return one, ours, theirs


def beside(values: torch.Tensor, rows: TokenRows, theirs: dict) -> torch.Tensor:
    """Our `[B, T]` in TRL's `[B, R]` layout."""
    found = torch.zeros(theirs["completion_mask"].shape)
    found[theirs["completion_mask"].bool()] = values[rows.action_mask.bool()]
    return found


def trl_trainer(kind: str, tmp_path, **options):
    import trl

    config_class = getattr(trl, f"{kind}Config")
    config = config_class(
        output_dir=str(tmp_path),
        report_to="none",
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=2,
        num_generations=2,
        gradient_checkpointing=False,
        max_completion_length=10,
        **options,
    )
    words = tokenizer()
    llama(len(words)).save_pretrained(tmp_path / "model")  # the reference is loaded again from where the model came
    trainer = getattr(trl, f"{kind}Trainer")(
        model=str(tmp_path / "model"),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "x"}] * 4),
        processing_class=words,
    )
    trainer.model.eval()
    return trainer


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo"])
def test_grpo_equals_trl(loss, unbiased, tmp_path):
    one, rows, theirs = pair_of_models()
    generator = torch.Generator().manual_seed(0)
    mask = rows.action_mask
    with torch.no_grad(), one.using(None):
        scored = one.score(rows, entropy=True)
    old = (scored.logprobs + 0.3 * torch.randn(mask.shape, generator=generator)) * mask
    ref = (scored.logprobs + 0.3 * torch.randn(mask.shape, generator=generator)) * mask
    advantages = torch.tensor([1.0, -0.5, 0.3])
    trainer = trl_trainer(
        "GRPO",
        tmp_path,
        beta=0.07,
        loss_type=loss,
        epsilon=0.2,
        epsilon_high=0.28,
        use_bias_correction_kl=unbiased,
    )
    with torch.no_grad():
        per_token, entropies, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            torch.cat([theirs["prompt_ids"], theirs["completion_ids"]], 1),
            torch.cat([theirs["prompt_mask"], theirs["completion_mask"]], 1),
            theirs["completion_ids"].shape[1],
            compute_entropy=True,
        )
        here = theirs["completion_mask"].bool()
        assert torch.allclose(per_token[here], scored.logprobs[mask.bool()], atol=1e-5)
        assert torch.allclose(entropies[here], scored.entropy[mask.bool()], atol=1e-5)
        expected = trainer._compute_loss(
            trainer.model,
            theirs
            | {
                "advantages": advantages,
                "old_per_token_logps": beside(old, rows, theirs),
                "ref_per_token_logps": beside(ref, rows, theirs),
                "num_items_in_batch": mask.sum(),
            },
        )
    ours, _ = grpo_loss(
        scored.logprobs,
        old,
        advantages,
        ref,
        mask,
        float(mask.sum()),
        3.0,
        clip=0.2,
        clip_high=0.28,
        kl_weight=0.07,
        unbiased_kl=unbiased,
        loss=loss,
        longest=10,
    )
    assert float(ours) == pytest.approx(float(expected), abs=1e-5)


def test_rloo_equals_trl(tmp_path):
    one, rows, theirs = pair_of_models()
    generator = torch.Generator().manual_seed(0)
    mask = rows.action_mask
    with torch.no_grad(), one.using(None):
        scored = one.score(rows)
    old = (scored.logprobs + 0.1 * torch.randn(mask.shape, generator=generator)) * mask
    advantages = torch.tensor([1.0, -0.5, 0.3])
    trainer = trl_trainer("RLOO", tmp_path, beta=0.07, epsilon=0.2)
    with torch.no_grad():
        expected = trainer._compute_loss(trainer.model, theirs | {"advantages": advantages, "old_logps": old.sum(-1)})
    ours, _ = rloo_loss(scored.logprobs, old, advantages, mask, 3.0, clip=0.2)
    assert float(ours) == pytest.approx(float(expected), abs=1e-5)


def test_log_probabilities_equal_trls_dpo(tmp_path):
    """DPO's loss at beta 0.1 from our log-probabilities of both models is TRL's loss on its own batch."""
    import trl

    words = tokenizer()
    pairs = [
        {"prompt": "The meeting was slow.", "chosen": "Glaciers overtook it.", "rejected": "It was."},
        {"prompt": "My soup", "chosen": "So cold.", "rejected": "Penguins asked for blankets."},
    ]
    config = trl.DPOConfig(
        output_dir=str(tmp_path),
        report_to="none",
        use_cpu=True,
        bf16=False,
        beta=0.1,
        per_device_train_batch_size=2,
        gradient_checkpointing=False,
    )
    policy, reference = llama(len(words), seed=0), llama(len(words), seed=1)
    ours = [Student(llama(len(words), seed=s), words) for s in (0, 1)]
    trainer = trl.DPOTrainer(
        model=policy, ref_model=reference, args=config, train_dataset=Dataset.from_list(pairs), processing_class=words
    )
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    with torch.no_grad():
        expected = trainer.compute_loss(trainer.model, dict(batch))
        rows = TokenRows(batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
        totals = []
        for one in ours:
            with one.using(None):
                totals.append(one.score(rows).logprobs.sum(-1))
        margin = totals[0] - totals[1]
        half = len(margin) // 2
        loss = -torch.nn.functional.logsigmoid(0.1 * (margin[:half] - margin[half:])).mean()
    assert float(loss) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize(("train", "config_class"), [(train_grpo, GRPOConfig), (train_rloo, RLOOConfig)])
def test_only_the_policy_moves_and_all_alike_teaches_nothing(train, config_class):
    config = config_class(steps=2, batch_size=8, siblings=4, sampling=SHORT, kl_weight=0.0)
    one = student()
    stir(one, IMITATION)
    one.start_policy_from_imitation()
    before = {n: p.clone() for n, p in one.model.named_parameters()}
    train(config, vector_env(8), one, prompts=prompts())
    moved = {n for n, p in one.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if f".{POLICY}." in n}

    same = lambda jokes: [Judgement("same", 0.5) for _ in jokes]  # noqa: E731
    one = student()
    stir(one, POLICY)
    before_state = {n: t.clone() for n, t in one.state().items()}
    train(config, vector_env(8, same), one, prompts=prompts())
    assert all(torch.allclose(before_state[n], t, atol=1e-7) for n, t in one.state().items())


@pytest.mark.parametrize(("train", "settings"), [(train_rloo, {}), (train_grpo, {"loss": "grpo"}), (train_grpo, {})])
def test_a_batch_that_nobody_could_judge_teaches_nothing(train, settings):
    """Allowed where an outage is to be sat out: the weights stay, and stay numbers."""
    out = lambda jokes: [Judgement("out", None, error="gone") for _ in jokes]  # noqa: E731
    config = (RLOOConfig if train is train_rloo else GRPOConfig)(
        steps=2, batch_size=8, siblings=4, sampling=SHORT, max_failure_share=1.0, **settings
    )
    one = student()
    before = {n: t.clone() for n, t in one.state().items()}
    train(config, vector_env(8, out), one, prompts=prompts())
    assert all(torch.allclose(before[n], t, atol=1e-7) for n, t in one.state().items())


@pytest.mark.parametrize(("train", "config_class"), [(train_grpo, GRPOConfig), (train_rloo, RLOOConfig)])
def test_micro_batches_change_nothing(train, config_class):
    finals = []
    for micro_batch in (8, 3):
        one = student()
        stir(one, IMITATION)
        one.start_policy_from_imitation()
        config = config_class(steps=2, batch_size=8, siblings=4, sampling=SHORT, micro_batch=micro_batch)
        train(config, vector_env(8), one, prompts=prompts())
        finals.append(one.state())
    assert all(torch.allclose(finals[0][n], finals[1][n], atol=1e-5) for n in finals[0])


@pytest.mark.parametrize("config_class", [GRPOConfig, RLOOConfig])
def test_impossible_settings_are_explained(config_class):
    with pytest.raises(InvalidOption, match="siblings"):
        config_class(siblings=1)
    with pytest.raises(InvalidOption, match="multiple of siblings"):
        config_class(batch_size=10, siblings=4)
