"""Advantages: numbers worked out by hand, and what must hold for any input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conclip.algo.advantages import (
    distillation,
    gae,
    group_relative,
    leave_one_out,
    length_adaptive_lambda,
    monte_carlo,
    shortest_correct,
)


def row(*values: float) -> torch.Tensor:
    return torch.tensor([list(values)])


def test_gae_by_hand():
    # deltas: 0 + 0.6 - 0.2 = 0.4; 0 + 0.5 - 0.6 = -0.1; 1 + 0 - 0.5 = 0.5
    # A_2 = 0.5; A_1 = -0.1 + 0.5 * 0.5 = 0.15; A_0 = 0.4 + 0.5 * 0.15 = 0.475
    advantages, returns = gae(
        row(0, 0, 1), row(0.2, 0.6, 0.5), torch.ones(1, 3).bool(), gamma=1.0, gae_lambda=0.5, bootstrap=torch.zeros(1)
    )
    torch.testing.assert_close(advantages, row(0.475, 0.15, 0.5))
    torch.testing.assert_close(returns, row(0.675, 0.75, 1.0))


def test_gae_discounts_and_bootstraps():
    # gamma 0.5, bootstrap 2: delta_1 = 1 + 0.5 * 2 - 0.4 = 1.6; delta_0 = 0 + 0.5 * 0.4 - 0.1 = 0.1
    # A_1 = 1.6; A_0 = 0.1 + 0.5 * 0.8 * 1.6 = 0.74
    advantages, _ = gae(
        row(0, 1), row(0.1, 0.4), torch.ones(1, 2).bool(), gamma=0.5, gae_lambda=0.8, bootstrap=torch.tensor([2.0])
    )
    torch.testing.assert_close(advantages, row(0.74, 1.6))


def test_lambda_one_is_monte_carlo():
    rewards, values = torch.randn(3, 6), torch.randn(3, 6)
    mask = torch.ones(3, 6).bool()
    advantages, returns = gae(rewards, values, mask, gamma=1.0, gae_lambda=1.0, bootstrap=torch.zeros(3))
    to_go = rewards.flip(-1).cumsum(-1).flip(-1)
    torch.testing.assert_close(returns, to_go)
    torch.testing.assert_close(advantages, to_go - values)


@settings(max_examples=50)
@given(st.integers(0, 2**31 - 1), st.integers(1, 6), st.integers(0, 4), st.integers(0, 4))
def test_gae_reads_nothing_off_the_mask(seed: int, length: int, before: int, after: int):
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int) -> torch.Tensor:
        return torch.randn(1, size, generator=generator)

    rewards, values, bootstrap = draw(length), draw(length), draw(1)[0]
    tight = gae(rewards, values, torch.ones(1, length).bool(), gamma=0.9, gae_lambda=0.7, bootstrap=bootstrap)
    mask = torch.cat([torch.zeros(1, before), torch.ones(1, length), torch.zeros(1, after)], -1).bool()

    def pad(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([draw(before), x, draw(after)], -1)

    padded = gae(pad(rewards), pad(values), mask, gamma=0.9, gae_lambda=0.7, bootstrap=bootstrap)
    for tight_part, padded_part in zip(tight, padded, strict=True):
        torch.testing.assert_close(padded_part[mask], tight_part[0])
        assert not padded_part[~mask].any()


def test_group_relative_by_hand():
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 3.0, 1.0])
    groups = torch.tensor([0, 0, 0, 0, 1, 1])
    # group 1: mean 2, deviation sqrt(2): +-1 / 1.41421
    scaled = group_relative(rewards, groups, scale="group", eps=0.0)
    torch.testing.assert_close(scaled, torch.tensor([1.5, -0.5, -0.5, -0.5, 0.70711, -0.70711]), atol=1e-5, rtol=0)
    plain = group_relative(rewards, groups, scale="none")
    torch.testing.assert_close(plain, torch.tensor([0.75, -0.25, -0.25, -0.25, 1.0, -1.0]))


@settings(max_examples=100)
@given(st.floats(-20, 20, width=32), st.integers(1, 64), st.sampled_from([torch.float32, torch.float64]))
def test_equal_rewards_give_exactly_nothing(reward: float, size: int, dtype: torch.dtype):
    """No binary fraction, no size and no other group beside them makes a signal of rounding."""
    rewards = torch.tensor([1.0, -0.5, 1.0] + [reward] * size, dtype=dtype)
    groups = torch.tensor([4] * 3 + [2] * size)
    for scale in ("group", "batch", "none"):
        assert group_relative(rewards, groups, scale=scale)[:3].all()
        assert not group_relative(rewards, groups, scale=scale)[3:].any()
        assert not group_relative(rewards[3:], groups[3:], scale=scale, eps=0.0).any()
    assert leave_one_out(rewards, groups)[:3].all() and not leave_one_out(rewards, groups)[3:].any()


def test_rewards_that_differ_by_rounding_are_equal():
    rewards, groups = torch.tensor([0.3, 0.1 + 0.2, 0.3], dtype=torch.float64), torch.zeros(3).long()
    assert rewards[0] != rewards[1] and not leave_one_out(rewards, groups).any()
    neighbour = torch.nextafter(torch.tensor(-9.7), torch.tensor(0.0))
    assert not group_relative(
        torch.stack([torch.tensor(-9.7)] * 7 + [neighbour]), torch.zeros(8).long(), scale="group"
    ).any()


def test_rewards_that_lie_close_together_keep_their_differences():
    # one of 64 lower by d: the others' advantage is d / 64 over a deviation of d / 8, less than 1 % from 1 / 8 for eps
    rewards = torch.tensor([-9.7] * 63 + [-9.701])
    advantages = group_relative(rewards, torch.zeros(64).long(), scale="group")
    assert advantages[:63].tolist() == pytest.approx([0.125] * 63, rel=0.01)
    assert float(advantages[63]) == pytest.approx(-63 / 8, rel=0.01)
    assert abs(float(advantages.double().sum())) < 1e-5


def test_groups_of_which_no_row_trains_may_be_missing():
    rewards, groups = torch.tensor([1.0, 0.0, 3.0]), torch.tensor([7, 7, 9])
    assert group_relative(rewards, groups, scale="none").tolist() == [0.5, -0.5, 0.0]
    assert leave_one_out(rewards, groups).tolist() == [1.0, -1.0, 0.0]
    nothing = torch.zeros(0)
    assert len(leave_one_out(nothing, nothing.long())) == len(group_relative(nothing, nothing.long(), scale="batch")) == 0


def test_gae_takes_a_lambda_for_each_row():
    rewards, values, mask = row(0, 0, 1).repeat(2, 1), row(0.2, 0.6, 0.5).repeat(2, 1), torch.ones(2, 3).bool()
    both, _ = gae(rewards, values, mask, gamma=1.0, gae_lambda=torch.tensor([0.5, 1.0]), bootstrap=torch.zeros(2))
    # lambda 0.5 as above; lambda 1: the reward to go, 1, minus the values
    torch.testing.assert_close(both, torch.tensor([[0.475, 0.15, 0.5], [0.8, 0.4, 0.5]]))


def test_length_adaptive_lambda_by_hand():
    mask = torch.arange(40).unsqueeze(0) < torch.tensor([[40], [10], [5]])
    # alpha 0.2: 1 - 1 / 8, 1 - 1 / 2, and 1 - 1 / 1
    torch.testing.assert_close(length_adaptive_lambda(mask, 0.2), torch.tensor([0.875, 0.5, 0.0]))
    assert length_adaptive_lambda(mask, 0.01).tolist() == [0.0, 0.0, 0.0]  # never below 0


def test_monte_carlo_by_hand():
    mask = torch.tensor([[1, 1, 1, 0]]).bool()
    # gamma 0.5 and a bootstrap of 4 after the last: 1 + 0.5 * 4 = 3; 0 + 0.5 * 3; 2 + 0.5 * 1.5
    returns = monte_carlo(row(2.0, 0.0, 1.0, 9.0), mask, gamma=0.5, bootstrap=torch.tensor([4.0]))
    torch.testing.assert_close(returns, row(2.75, 1.5, 3.0, 0.0))


def test_batch_scale_by_hand():
    rewards, groups = torch.tensor([1.0, 0.0, 3.0, 1.0]), torch.tensor([0, 0, 1, 1])
    # centred 0.5, -0.5, 1, -1; mean 1.25, the rewards' deviation is sqrt(4.75 / 3) = 1.258306
    expected = torch.tensor([0.397360, -0.397360, 0.794719, -0.794719])
    torch.testing.assert_close(group_relative(rewards, groups, scale="batch", eps=0.0), expected, atol=1e-5, rtol=0)


def test_leave_one_out_by_hand():
    rewards, groups = torch.tensor([1.0, 0.0, 0.0, 0.0, 5.0]), torch.tensor([0, 0, 0, 0, 1])
    expected = torch.tensor([1.0, -1 / 3, -1 / 3, -1 / 3, 0.0])  # the last one is alone: no baseline, no signal
    torch.testing.assert_close(leave_one_out(rewards, groups), expected)


@settings(max_examples=50)
@given(st.lists(st.floats(-2, 2), min_size=2, max_size=8), st.integers(2, 4))
def test_rloo_is_the_unscaled_group_advantage_times_n_over_n_minus_one(rewards: list[float], num_groups: int):
    size = len(rewards)
    tensor = torch.tensor(rewards * num_groups, dtype=torch.float64)
    groups = torch.arange(num_groups).repeat_interleave(size)
    expected = group_relative(tensor, groups, scale="none") * size / (size - 1)
    torch.testing.assert_close(leave_one_out(tensor, groups), expected)


def test_shortest_correct_by_hand():
    correct = torch.tensor([True, True, True, False, False, True])
    lengths, groups = torch.tensor([9, 5, 5, 1, 2, 7]), torch.tensor([0, 0, 0, 0, 1, 2])
    assert shortest_correct(correct, lengths, groups).tolist() == [0, 1, 0, 0, 0, 1]
    assert shortest_correct(torch.tensor([False]), torch.tensor([3]), torch.tensor([0])).tolist() == [0]


def test_distillation_by_hand():
    """Probabilities 0.5 and 0.2 of the policy, 0.25 and 0.4 of the teacher: -log 2 and +log 2."""
    policy, teacher = (row(0.0, *(math.log(p) for p in values)) for values in ((0.5, 0.2), (0.25, 0.4)))
    mask = torch.tensor([[False, True, True]])
    assert distillation(policy, teacher + 3 * ~mask, mask).tolist()[0] == pytest.approx([0, -math.log(2), math.log(2)])


def test_distillation_is_the_gradient_of_the_reverse_kl():
    """One decision among five tokens, each weighed by its probability, against autograd through the whole distribution."""
    random = torch.Generator().manual_seed(0)
    logits, teacher = (torch.randn(5, generator=random, dtype=torch.double) for _ in range(2))
    logits.requires_grad_()
    logprobs, goal = logits.log_softmax(-1), teacher.log_softmax(-1)
    advantages = distillation(logprobs.detach(), goal, torch.ones(5, dtype=torch.bool))
    (policy_gradient,) = torch.autograd.grad(
        (logprobs.exp().detach() * advantages * logprobs).sum(), logits, retain_graph=True
    )
    (kl_gradient,) = torch.autograd.grad((logprobs.exp() * (logprobs - goal)).sum(), logits)
    assert torch.allclose(policy_gradient, -kl_gradient, atol=1e-12) and kl_gradient.abs().max() > 0.1
