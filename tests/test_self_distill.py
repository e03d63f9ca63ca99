"""Self-distillation and expert iteration: only lines that were preferred are imitated."""

import math
from dataclasses import replace

import pytest
import torch
from tiny import prompts, stir, student, vector_env

from humor_env.agents.expert_iteration import ExpertIterationConfig, best_of_groups
from humor_env.agents.expert_iteration import train as train_expert
from humor_env.agents.self_distill import SelfDistillConfig, train
from humor_env.agents.session.checkpoint import CheckpointStore
from humor_env.agents.session.log import RunLog
from humor_env.agents.sft import SFTConfig
from humor_env.agents.sft import train as train_sft
from humor_env.agents.student import IMITATION, POLICY
from humor_env.agents.student.sampling import Sampling
from humor_env.agents.update.on_policy import OnPolicyStep
from humor_env.errors import InvalidOption
from humor_env.types import Demonstration, Judgement, Preference

SHORT = Sampling(max_new_tokens=8)


def warm_student():
    one = student()
    stir(one, IMITATION)
    one.start_policy_from_imitation()
    return one


def test_it_is_imitation_of_the_chosen_lines():
    """One step from the same start is the very step that imitation takes on those lines; the rejected have no part."""
    chosen = ["Glaciers overtook it.", "So cold.", "My soup."]
    rejected = ["Penguins asked for blankets.", "It.", "x y z"]
    made = [Preference(p, c, r, 1.0, "t") for p, c, r in zip(prompts(3), chosen, rejected, strict=True)]
    one = student()
    train(SelfDistillConfig(epochs=1, batch_size=3, learning_rate=1e-2), None, one, preferences=made)
    other = student()
    with torch.no_grad():  # both adapters must start alike for the comparison
        for name, parameter in other.adapter_parameters(IMITATION).items():
            parameter.copy_(student().adapter_parameters(POLICY)[name])
    lines = [Demonstration(p, c, "t") for p, c in zip(prompts(3), chosen, strict=True)]
    train_sft(SFTConfig(epochs=1, batch_size=3, learning_rate=1e-2, warmup_steps=0), other, lines)
    for name, parameter in one.adapter_parameters(POLICY).items():
        assert torch.allclose(parameter, other.adapter_parameters(IMITATION)[name], atol=1e-6), name


def test_the_best_of_each_group_by_hand():
    rewards = torch.tensor([0.2, 0.9, 0.9, 0.5, 0.5, 0.1, 0.3, 0.8])
    group = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    valid = torch.tensor([True, True, True, True, True, True, True, False])
    # Group 0: two equals, the first is taken. Group 1: all alike. Group 2: the best is unscored, so 0.3 of 0.1 and 0.3.
    kept = best_of_groups(rewards, group, valid, keep=1, at_least=0.0)
    assert kept.tolist() == [0, 1, 0, 0, 0, 0, 1, 0]
    assert best_of_groups(rewards, group, valid, keep=1, at_least=0.4).tolist() == [0, 1, 0, 0, 0, 0, 0, 0]
    # With two kept, the second best counts only where it beats its group's mean.
    assert best_of_groups(rewards, group, valid, keep=2, at_least=0.0).tolist() == [0, 1, 1, 0, 0, 0, 1, 0]
    assert best_of_groups(rewards, group, valid & False, keep=1, at_least=0.0).sum() == 0


def test_a_group_of_equal_rewards_teaches_nothing_whatever_they_are():
    """The float32 mean of eight rewards of 0.3 is below 0.3: a quarter of such groups were imitated."""
    for count in (3, 5, 7, 8):
        for reward in torch.linspace(0, 1, 101).tolist():
            rewards, group = torch.full((count,), reward), torch.zeros(count, dtype=torch.long)
            assert best_of_groups(rewards, group, group == 0, keep=1, at_least=0.0).sum() == 0


EXPERT = ExpertIterationConfig(steps=3, batch_size=8, siblings=4, sampling=SHORT, learning_rate=1e-2)


def test_expert_iteration_imitates_the_best():
    """After a step the kept lines are likelier; nothing but the policy moved; all alike teaches nothing."""
    one = warm_student()
    before = {n: p.clone() for n, p in one.model.named_parameters()}
    seen = []

    class Log(RunLog):
        def __init__(self):
            pass

        def rewind(self, step):
            pass

        def metrics(self, step, numbers):
            self.numbers = dict(numbers)

        def jokes(self, step, jokes, judgements):
            seen.append((list(jokes), list(judgements)))

    log = Log()
    train_expert(
        ExpertIterationConfig(steps=1, batch_size=8, siblings=4, sampling=SHORT, learning_rate=1e-3, epochs=3),
        vector_env(8),
        one,
        log,
        prompts=prompts(),
    )
    moved = {n for n, p in one.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if f".{POLICY}." in n}
    assert log.numbers["update/kept_lines"] == 2
    jokes, judgements = seen[0]
    best = [max(range(i, i + 4), key=lambda k: judgements[k].score) for i in (0, 4)]
    rows = one.rows_from_text([jokes[k].prompt.text for k in best], [jokes[k].text for k in best])
    rows.action_mask[torch.arange(2), rows.attention.sum(-1) - 1] = 0  # they were cut off: no end was written
    now = one.score_in_batches(rows, adapter=POLICY).logprobs.sum()
    was = one.score_in_batches(rows, adapter=IMITATION).logprobs.sum()
    assert float(now) > float(was)
    assert math.isfinite(log.numbers["update/policy_loss"])

    one = warm_student()
    same = lambda jokes: [Judgement("same", 0.5) for _ in jokes]  # noqa: E731
    train_expert(EXPERT, vector_env(8, same), one, log, prompts=prompts())
    assert log.numbers["update/kept_lines"] == 0
    assert all(torch.equal(p, before[n]) for n, p in one.model.named_parameters())


def test_a_line_without_an_end_is_worth_less_to_expert_iteration(monkeypatch):
    """All are scored alike: only the penalty tells the lines apart."""
    one, seen, own = student(), [], OnPolicyStep.collect

    def keep_best(rewards, *rest, **options):
        seen.append(rewards)
        return best_of_groups(rewards, *rest, **options)

    def collect(step, **options):
        seen.append(own(step, **options))
        return seen[-1]

    monkeypatch.setattr("humor_env.agents.expert_iteration.best_of_groups", keep_best)
    monkeypatch.setattr(OnPolicyStep, "collect", collect)
    alike = lambda jokes: [Judgement("same", 0.5) for _ in jokes]  # noqa: E731
    settings = replace(EXPERT, steps=1, seed=3, missing_end_penalty=0.25, sampling=Sampling(max_new_tokens=96))
    train_expert(settings, vector_env(8, alike), one, None, prompts=prompts())
    rollout, rewards = seen
    assert rollout.finished.any() and not rollout.finished.all()
    assert rewards.tolist() == [0.5 if finished else 0.25 for finished in rollout.finished]


def test_expert_iteration_resumes_to_the_bit(tmp_path):
    def run(folder, stop_at=None):
        class Fragile(RunLog):
            def metrics(self, step, numbers):
                super().metrics(step, numbers)
                if step == stop_at:
                    raise KeyboardInterrupt

        one = warm_student()
        config = ExpertIterationConfig(steps=4, batch_size=8, siblings=4, sampling=SHORT, checkpoint_every=2)
        store = CheckpointStore(folder / "c")
        train_expert(config, vector_env(8), one, Fragile(folder), prompts=prompts(), checkpoints=store)
        return one.state()

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop_at=3)
    resumed = run(tmp_path / "cut")
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (tmp_path / "cut" / "metrics.jsonl").read_bytes()


def test_choosing_needs_a_choice():
    with pytest.raises(InvalidOption, match="siblings must be above keep"):
        ExpertIterationConfig(siblings=1)
    with pytest.raises(InvalidOption, match="multiple of siblings"):
        ExpertIterationConfig(batch_size=10, siblings=4)
