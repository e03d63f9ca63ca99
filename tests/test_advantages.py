import pytest
import torch

from humor_env.agents.update.advantages import (
    gae,
    group_advantages,
    last_token,
    leave_one_out,
    place_on_last_token,
    whiten,
)


def test_score_sits_on_the_last_real_token():
    mask = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]])
    assert last_token(mask).tolist() == [2, 3, 0]
    placed = place_on_last_token(torch.tensor([5.0, 7.0, 9.0]), mask)
    assert placed.tolist() == [[0, 0, 5, 0], [0, 0, 0, 7], [0, 0, 0, 0]]  # a row without tokens gets nothing


def test_gae_by_hand():
    # One line of three tokens; gamma 0.5, lambda 0.5; values 1, 2, 3; reward 4 at the end.
    # delta_3 = 4 - 3 = 1;              A_3 = 1
    # delta_2 = 0 + 0.5*3 - 2 = -0.5;   A_2 = -0.5 + 0.25*1 = -0.25
    # delta_1 = 0 + 0.5*2 - 1 = 0;      A_1 = 0 + 0.25*(-0.25) = -0.0625
    mask = torch.tensor([[0, 1, 1, 1, 0]])
    rewards = torch.tensor([[0.0, 0, 0, 4, 0]])
    values = torch.tensor([[9.0, 1, 2, 3, 9]])  # outside the mask: must not leak in
    advantages, returns = gae(rewards, values, mask, gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[0, -0.0625, -0.25, 1.0, 0]]
    assert returns.tolist() == [[0, 0.9375, 1.75, 4.0, 0]]


def test_gae_ignores_where_padding_is():
    rewards, values = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.3, 0.6]])
    plain, _ = gae(rewards, values, torch.ones(1, 2), gamma=0.9, lam=0.8)
    padded = lambda row: torch.tensor([[7.0, *row[0].tolist(), 7.0, 7.0]])  # noqa: E731
    padded_advantages, _ = gae(padded(rewards), padded(values), torch.tensor([[0, 1, 1, 0, 0]]), gamma=0.9, lam=0.8)
    assert torch.allclose(padded_advantages[:, 1:3], plain, atol=1e-7)
    assert padded_advantages[0, [0, 3, 4]].tolist() == [0, 0, 0]


def test_gae_flows_across_attempts_of_an_episode():
    """Two attempts in two rows must give what one row with the tokens in sequence gives."""
    rewards = torch.tensor([[0.0, 0.2], [0.0, 0.5], [0.0, 9.0]])
    values = torch.tensor([[0.1, 0.3], [0.4, 0.2], [1.0, 1.0]])
    mask = torch.ones(3, 2)
    following = torch.tensor([1, -1, -1])
    two_rows, _ = gae(rewards, values, mask, gamma=0.9, lam=0.8, following=following)
    one_row, _ = gae(
        torch.tensor([[0.0, 0.2, 0.0, 0.5]]), torch.tensor([[0.1, 0.3, 0.4, 0.2]]), torch.ones(1, 4), gamma=0.9, lam=0.8
    )
    assert torch.allclose(two_rows[:2].reshape(1, 4), one_row, atol=1e-7)
    apart, _ = gae(rewards, values, mask, gamma=0.9, lam=0.8)
    assert not torch.allclose(apart[0], two_rows[0])  # the link is what made the difference
    assert torch.equal(apart[2], two_rows[2])


def test_gae_refuses_a_circle():
    with pytest.raises(ValueError, match="cycle"):
        gae(torch.zeros(2, 2), torch.zeros(2, 2), torch.ones(2, 2), gamma=1, lam=1, following=torch.tensor([1, 0]))


def test_whiten_by_hand():
    values = torch.tensor([[1.0, 3.0, 50.0]])
    mask = torch.tensor([[1, 1, 0]])
    assert whiten(values, mask).tolist()[0] == pytest.approx([-1.0, 1.0, 0.0], abs=1e-6)


def test_whiten_keeps_the_variance_of_close_large_values():
    values = torch.tensor([[10_000.0, 10_000.25]])
    assert whiten(values, torch.ones(1, 2)).tolist()[0] == pytest.approx([-1.0, 1.0], abs=1e-4)


def test_group_baselines_by_hand():
    rewards = torch.tensor([1.0, 3.0, 5.0, 2.0, 0.0, 8.0])
    group = torch.tensor([0, 0, 0, 1, 1, 2])
    valid = torch.tensor([True, True, True, True, False, True])
    # group 0: mean 3; leave-one-out means 4, 3, 2. Group 1 has one scored row, group 2 one row: nothing to compare.
    assert leave_one_out(rewards, group, valid).tolist() == pytest.approx([-3.0, 0.0, 3.0, 0, 0, 0], abs=1e-6)
    assert group_advantages(rewards, group, valid, scale=False).tolist() == [-2.0, 0.0, 2.0, 0.0, 0.0, 0.0]
    deviation = (8 / 2) ** 0.5  # with n - 1, as in the reference implementation
    assert group_advantages(rewards, group, valid, scale=True)[:3].tolist() == pytest.approx(
        [-2 / deviation, 0.0, 2 / deviation], abs=1e-3
    )


def test_gae_flows_into_the_first_row():
    """An episode may go on in row 0, above the attempt before it. Gamma 1, lambda 1: a token is worth the sum of the
    rewards from it on, less its value."""
    rewards, values = torch.tensor([[0.5, 1.0], [0.25, 0.0]]), torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    advantages, returns = gae(rewards, values, torch.ones(2, 2), gamma=1.0, lam=1.0, following=torch.tensor([-1, 0]))
    to_come = torch.tensor([[1.5, 1.0], [1.75, 1.5]])
    assert torch.allclose(advantages, to_come - values, atol=1e-6)
    assert torch.allclose(returns, to_come, atol=1e-6)


def test_two_siblings_are_a_group():
    """Rewards 1 and 3: mean 2, distances -1 and 1, deviation sqrt 2; from the other one: -2 and 2."""
    rewards, group, valid = torch.tensor([1.0, 3.0]), torch.zeros(2, dtype=torch.long), torch.ones(2, dtype=torch.bool)
    assert group_advantages(rewards, group, valid, scale=False).tolist() == [-1.0, 1.0]
    one = 1 / (2**0.5 + 1e-4)
    assert group_advantages(rewards, group, valid, scale=True).tolist() == pytest.approx([-one, one], abs=1e-6)
    assert leave_one_out(rewards, group, valid).tolist() == [-2.0, 2.0]


def test_whiten_where_there_is_little_or_nothing():
    """Distances of 1e-4 are a variance of 1e-8, as much as is added to it: 1e-4 / sqrt(2e-8) = 1 / sqrt 2."""
    close = torch.tensor([[1e-4, -1e-4]], dtype=torch.float64)
    assert whiten(close, torch.ones(1, 2)).tolist() == [pytest.approx([2**-0.5, -(2**-0.5)], abs=1e-6)]
    assert whiten(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)).tolist() == [[0.0, 0.0]], "no token: no 0 / 0"
