"""Best of n: the critic's pick among the student's lines, counted, without a step of learning."""

import pytest
import torch
from tiny import letters_critic, prompts, stir, student

from humor_env.agents.best_of_n import BestOfN, BestOfNConfig, best_place, train
from humor_env.agents.feedback import rollout
from humor_env.agents.student import POLICY
from humor_env.agents.student.sampling import Sampling
from humor_env.errors import CriticContractError, InvalidOption, JudgingFailed
from humor_env.types import Judgement

SHORT = Sampling(max_new_tokens=8)


def moved_student():
    one = student()
    stir(one, POLICY)
    return one


def test_the_best_place_by_hand():
    said = [Judgement("c", s) if s is not None else Judgement("c", None, error="?") for s in (None, 0.0, 0.7, 0.7, 0.1)]
    assert best_place(said) == 2
    assert best_place(said[:2]) == 1, "a score of 0 beats no score"
    assert best_place(said[:1]) == 0


def test_one_line_at_a_time_is_the_least():
    assert BestOfNConfig(n=1, micro_batch=1).n == 1
    for wrong in ({"n": 0}, {"micro_batch": 0}):
        with pytest.raises(InvalidOption, match="n and micro_batch must be at least 1"):
            BestOfNConfig(**wrong)


def test_it_writes_the_critics_pick():
    one, seen = moved_student(), []

    def critic(jokes):
        seen.append(list(jokes))
        return letters_critic()(jokes)

    writer = BestOfN(one, critic, BestOfNConfig(n=5, sampling=SHORT, micro_batch=10))
    jokes = writer.write(prompts(4))
    assert [j.prompt.id for j in jokes] == [p.id for p in prompts(4)]
    assert len(seen) == 1, "one call for all lines"
    share = lambda j: j.text.count("e") / max(1, len(j.text))  # noqa: E731
    for i, joke in enumerate(jokes):
        mine = seen[0][5 * i : 5 * i + 5]
        assert {j.prompt.id for j in mine} == {joke.prompt.id}
        assert share(joke) == max(map(share, mine))
    assert (writer.samples, writer.judgements, writer.unjudged) == (20, 20, 0)
    assert jokes[0].author == "best-of-5"
    assert writer.write(prompts(4)) == jokes
    assert writer.write(prompts(4), seed=1) != jokes
    # More siblings contain the fewer: their best cannot be worse.
    more = BestOfN(one, letters_critic(), BestOfNConfig(n=9, sampling=SHORT)).write(prompts(4))
    assert all(share(b) >= share(a) for a, b in zip(jokes, more, strict=True))
    assert writer.write([]) == []


def test_failed_judgements():
    broken = lambda jokes: [Judgement("c", None, error="gone") for _ in jokes]  # noqa: E731
    writer = BestOfN(moved_student(), broken, BestOfNConfig(n=2, sampling=SHORT, max_failure_share=1.0))
    assert len(writer.write(prompts(3))) == 3
    assert writer.unjudged == 3
    with pytest.raises(JudgingFailed, match="gone"):
        BestOfN(moved_student(), broken, BestOfNConfig(n=2, sampling=SHORT)).write(prompts(3))
    with pytest.raises(CriticContractError):
        BestOfN(moved_student(), lambda jokes: [], BestOfNConfig(n=2, sampling=SHORT)).write(prompts(3))


def test_its_failures_are_counted_without_the_other_processes(monkeypatch):
    """A run measures it in the main process only, where an exchange would wait for the others for ever."""

    def nobody_answers(*_):
        raise AssertionError("an exchange that the other processes do not join")

    monkeypatch.setattr(rollout, "sum_over_processes", nobody_answers)

    def half(jokes):
        return [Judgement("c", None, error="gone") if i % 2 else Judgement("c", 0.5) for i in range(len(jokes))]

    writer = BestOfN(moved_student(), half, BestOfNConfig(n=2, sampling=SHORT, max_failure_share=0.5))
    assert len(writer.write(prompts(3))) == 3
    with pytest.raises(JudgingFailed, match="3 of 6 judgements failed, more than the allowed share of 49%"):
        BestOfN(moved_student(), half, BestOfNConfig(n=2, sampling=SHORT, max_failure_share=0.49)).write(prompts(3))


def test_training_it_takes_no_step():
    one = moved_student()
    before = {n: t.clone() for n, t in one.state().items()}
    result = train(BestOfNConfig(n=2, sampling=SHORT), letters_critic(), one)
    assert (result.steps, result.stopped, result.evaluations) == (0, False, [])
    assert len(result.writer.write(prompts(3))) == 3
    assert (result.writer.samples, result.writer.judgements) == (6, 6)
    assert all(torch.equal(t, before[n]) for n, t in one.state().items())
    with pytest.raises(InvalidOption):
        BestOfNConfig(n=0)
