"""REINFORCE++: the loss and the advantages by hand, one step's order of things, resuming to the bit."""

import math

import pytest
import torch
from tiny import prompts, stir, student, vector_env

from humor_env.agents import reinforce_pp
from humor_env.agents.reinforce_pp import ReinforcePPConfig, reinforce_pp_loss, train
from humor_env.agents.session.checkpoint import CheckpointStore
from humor_env.agents.session.log import RunLog
from humor_env.agents.student import IMITATION, POLICY
from humor_env.agents.student.sampling import Sampling
from humor_env.agents.student.token_rows import length_sorted
from humor_env.agents.update.on_policy import OnPolicyStep
from humor_env.errors import InvalidOption
from humor_env.types import Judgement

SHORT = Sampling(max_new_tokens=8)


def warm_student(move=False):
    one = student()
    stir(one, IMITATION)
    one.start_policy_from_imitation()
    if move:
        stir(one, POLICY, seed=2, size=0.1)
    return one


def test_loss_by_hand():
    # Tokens of line 1: ratio 1.5 and advantage 1 -> min(1.5, 1.2); ratio 0.5, advantage -2 -> min(-1, -1.6).
    # Line 2: ratio 1, advantage 3; the other token is masked. Over a step of 5 tokens.
    loss, sums = reinforce_pp_loss(
        torch.tensor([[math.log(1.5), math.log(0.5)], [0.0, 9.0]]),
        torch.zeros(2, 2),
        torch.tensor([[1.0, -2.0], [3.0, 5.0]]),
        torch.tensor([[1, 1], [1, 0]]),
        5.0,
        clip=0.2,
    )
    assert float(loss) == pytest.approx(-(1.2 - 1.6 + 3.0) / 5, abs=1e-6)
    assert float(sums["clip_share"]) == 2
    assert float(sums["ratio"]) == pytest.approx(3.0)


def advantages_of(monkeypatch, critic=None, **changes):
    """The advantages that one step learns from, with the rollout they came from."""
    caught = {}
    real_collect, real_loss = OnPolicyStep.collect, reinforce_pp.reinforce_pp_loss

    def collect(self, **options):
        caught["rollout"] = real_collect(self, **options)
        caught["advantages"] = torch.zeros(caught["rollout"].tokens.shape)
        return caught["rollout"]

    def loss(logprobs, old_logprobs, advantages, mask, token_count, **options):
        rows, width = advantages.shape
        assert rows == 8  # one micro-batch holds the whole step, in an order that the lengths decide
        order = torch.cat(length_sorted(caught["rollout"].rows, rows))
        assert torch.equal(caught["rollout"].mask[order, :width], mask)
        caught["advantages"][order, :width] = advantages
        return real_loss(logprobs, old_logprobs, advantages, mask, token_count, **options)

    monkeypatch.setattr(OnPolicyStep, "collect", collect)
    monkeypatch.setattr(reinforce_pp, "reinforce_pp_loss", loss)
    config = ReinforcePPConfig(**({"steps": 1, "batch_size": 8, "siblings": 4, "sampling": SHORT} | changes))
    train(config, vector_env(8, critic), warm_student(move=True), prompts=prompts())
    return caught["rollout"], caught["rollout"].mask.bool(), caught["advantages"]


def by_hand(rollout, mask, kl_weight, scores):
    """Plain sums from each token on, then mean 0 and variance 1 over all tokens of the batch."""
    kl = rollout.logprobs - rollout.ref_logprobs
    returns = torch.zeros(mask.shape)
    for b in range(len(mask)):
        columns = mask[b].nonzero().squeeze(1).tolist()
        for i, t in enumerate(columns):
            returns[b, t] = scores[b] - kl_weight * sum(float(kl[b, u]) for u in columns[i:])
    kept = returns[mask]
    return ((returns - kept.mean()) / kept.std(unbiased=False)) * mask


def test_advantages_by_hand(monkeypatch):
    rollout, mask, advantages = advantages_of(monkeypatch, kl_weight=0.3)
    assert float((rollout.logprobs - rollout.ref_logprobs)[mask].abs().mean()) > 1e-2
    expected = by_hand(rollout, mask, 0.3, rollout.rewards)
    assert torch.allclose(advantages, expected, atol=1e-4)
    assert float(advantages[mask].mean()) == pytest.approx(0, abs=1e-5)


def test_group_baseline_by_hand(monkeypatch):
    rollout, mask, advantages = advantages_of(monkeypatch, kl_weight=0.3, group_baseline=True)
    centred = rollout.rewards.clone()
    for group in rollout.group.unique():
        rows = rollout.group == group
        centred[rows] -= rollout.rewards[rows].mean()
    assert torch.allclose(advantages, by_hand(rollout, mask, 0.3, centred), atol=1e-4)


def test_unscored_lines_have_no_part(monkeypatch):
    def critic(jokes):
        return [
            Judgement("c", None, error="?") if i == 2 else Judgement("c", len(set(j.text)) / 300)
            for i, j in enumerate(jokes)
        ]

    rollout, mask, advantages = advantages_of(monkeypatch, critic)
    assert not mask[2].any()
    assert not advantages[2].any()
    assert torch.allclose(advantages, by_hand(rollout, mask, 0.05, rollout.rewards), atol=1e-4)


def test_only_the_policy_moves():
    one = warm_student()
    before = {n: p.clone() for n, p in one.model.named_parameters()}
    train(ReinforcePPConfig(steps=2, batch_size=8, sampling=SHORT), vector_env(8), one, prompts=prompts())
    moved = {n for n, p in one.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if f".{POLICY}." in n}


def test_it_resumes_to_the_bit(tmp_path):
    def run(folder, stop_at=None):
        class Fragile(RunLog):
            def metrics(self, step, numbers):
                super().metrics(step, numbers)
                if step == stop_at:
                    raise KeyboardInterrupt

        one = warm_student()
        config = ReinforcePPConfig(steps=4, batch_size=8, sampling=SHORT, checkpoint_every=2, minibatches=2)
        store = CheckpointStore(folder / "c")
        train(config, vector_env(8), one, Fragile(folder), prompts=prompts(), checkpoints=store)
        return one.state()

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop_at=3)
    resumed = run(tmp_path / "cut")
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (tmp_path / "cut" / "metrics.jsonl").read_bytes()


def test_impossible_settings_are_explained():
    with pytest.raises(InvalidOption, match="group_baseline"):
        ReinforcePPConfig(group_baseline=True)
    with pytest.raises(InvalidOption, match="multiple of siblings"):
        ReinforcePPConfig(batch_size=10, siblings=4)
