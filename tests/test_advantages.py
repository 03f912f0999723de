"""Advantages: numbers worked out by hand, and what must hold for any input."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conclip.algo.advantages import gae, group_relative


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


@settings(max_examples=50, deadline=None)
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
    scaled = group_relative(rewards, groups, scale=True, eps=0.0)
    torch.testing.assert_close(scaled, torch.tensor([1.5, -0.5, -0.5, -0.5, 0.70711, -0.70711]), atol=1e-5, rtol=0)
    plain = group_relative(rewards, groups, scale=False)
    torch.testing.assert_close(plain, torch.tensor([0.75, -0.25, -0.25, -0.25, 1.0, -1.0]))


def test_group_relative_of_equal_rewards_is_zero():
    assert not group_relative(torch.ones(4), torch.tensor([0, 0, 1, 1]), scale=True).any()
    assert not group_relative(torch.ones(1), torch.tensor([0]), scale=True).any()
