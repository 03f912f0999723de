"""docs/theory.md, run: the identity, the closed form, and the exact pressure on length of an enumerable policy."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.theory_table import StopPolicy, Surrogate, length_pressure
from conclip.algo.advantages import gae

LAMBDAS = (0.9, 0.95, 0.99, 1.0)
AGGREGATIONS = ("sequence_mean", "token_mean", "constant")


def geometric(gae_lambda: float, n: int) -> float:
    """1 + lambda + ... + lambda^(n-1), term by term."""
    return sum(gae_lambda**i for i in range(n))


@settings(max_examples=60)
@given(st.integers(0, 2**31 - 1), st.integers(1, 40), st.sampled_from(LAMBDAS))
def test_the_sum_of_advantages_is_a_weighted_sum_of_deltas(seed: int, length: int, gae_lambda: float):
    generator = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(1, length, generator=generator, dtype=torch.float64) for _ in range(2))
    mask, end = torch.ones(1, length).bool(), torch.zeros(1, dtype=torch.float64)
    advantages, _ = gae(rewards, values, mask, gamma=1.0, gae_lambda=gae_lambda, bootstrap=end)
    following = torch.cat([values[:, 1:], end[None]], -1)
    deltas = (rewards + following - values)[0].tolist()
    expected = sum(delta * geometric(gae_lambda, k + 1) for k, delta in enumerate(deltas))
    assert float(advantages.sum()) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("gae_lambda", LAMBDAS)
@pytest.mark.parametrize("reward", [1.0, -0.5])
def test_the_closed_form_of_the_mean_loss(gae_lambda: float, reward: float):
    """No value error before the end (V = 0.25 throughout), ratio 1, no KL, no whitening."""
    value, losses = 0.25, []
    for length in (1, 10, 100, 1000):
        rewards = torch.zeros(1, length, dtype=torch.float64)
        rewards[0, -1] = reward
        values = torch.full_like(rewards, value)
        mask = torch.ones(1, length).bool()
        advantages, _ = gae(rewards, values, mask, gamma=1.0, gae_lambda=gae_lambda, bootstrap=torch.zeros(1))
        loss = -float(advantages.mean())
        share = 1.0 if gae_lambda == 1 else (1 - gae_lambda**length) / (length * (1 - gae_lambda))
        assert loss == pytest.approx(-(reward - value) * share, rel=1e-9)
        losses.append(loss)
    if gae_lambda == 1:
        assert losses == pytest.approx([value - reward] * 4)  # length does not matter
    elif reward > value:
        assert losses == sorted(losses)  # negative, lowest for the shortest
    else:
        assert losses == sorted(losses, reverse=True)  # positive, lowest for the longest


def world(p_correct: list[float], logit: float = -2.0) -> StopPolicy:
    return StopPolicy(logit=logit, p_correct=torch.tensor(p_correct))


FLAT = [0.5] * 30
"""Being right has nothing to do with length."""
FALLING = [0.9 - 0.02 * n for n in range(30)]
"""Shorter responses are right more often."""


def test_a_case_small_enough_for_paper_and_pencil():
    # N = 2, stop at the first decision with p = 0.25, always wrong (-0.5), V = 0, lambda 0.5, sequence mean.
    # T = 1 (0.25): A = -0.5, d log pi = 1 - p = 0.75.  T = 2 (0.75): A_0 = -0.25, d log pi = -p = -0.25, weight 1/2.
    # -d loss = 0.25 * -0.5 * 0.75 + 0.75 * 0.5 * -0.25 * -0.25 = -0.09375 + 0.0234375 = -0.0703125
    # E[T] = 2 - p, d E[T] = -p (1 - p) = -0.1875; the product is 0.013183594: longer
    policy = StopPolicy(logit=math.log(1 / 3), p_correct=torch.zeros(2))
    assert length_pressure(policy, Surrogate(gae_lambda=0.5, value=0.0)) == pytest.approx(0.013183594, abs=1e-8)


@pytest.mark.parametrize("gae_lambda", LAMBDAS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_an_exact_critic_exerts_no_pressure_where_length_does_not_matter(gae_lambda: float, aggregation: str):
    surrogate = Surrogate(gae_lambda=gae_lambda, aggregation=aggregation)
    assert length_pressure(world(FLAT), surrogate) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("value", [-0.5, 1.0])
def test_a_critic_that_is_off_presses_on_length_through_lambda_and_through_the_mean(value: float):
    """Mean reward 0.25. A value below it makes advantages positive on average: shorter. Above it: longer."""
    sign = -1 if value < 0.25 else 1

    def pressure(gae_lambda: float, aggregation: str) -> float:
        surrogate = Surrogate(gae_lambda=gae_lambda, aggregation=aggregation, value=value)
        return sign * length_pressure(world(FLAT), surrogate)

    for aggregation in AGGREGATIONS:
        assert pressure(0.9, aggregation) > pressure(0.95, aggregation) > pressure(0.99, aggregation) > 0
    assert pressure(1.0, "sequence_mean") > 0  # what is left is the 1/T of the mean
    for aggregation in ("token_mean", "constant"):
        assert pressure(1.0, aggregation) == pytest.approx(0, abs=1e-12)  # a constant baseline, no bias


def test_all_wrong_lengthens_and_all_right_shortens_until_the_critic_knows():
    wrong, right = world([0.0] * 30), world([1.0] * 30)
    assert length_pressure(wrong, Surrogate(value=0.0)) > 0 > length_pressure(right, Surrogate(value=0.0))
    assert length_pressure(wrong, Surrogate()) == pytest.approx(0, abs=1e-12)
    assert length_pressure(right, Surrogate()) == pytest.approx(0, abs=1e-12)


def test_whitening_takes_the_mean_out():
    """lambda 1, all wrong: every advantage is the same, and whitened away; the plain loss lengthens."""
    wrong = world([0.0] * 30)
    assert length_pressure(wrong, Surrogate(gae_lambda=1.0, value=0.0)) > 1e-4
    assert length_pressure(wrong, Surrogate(gae_lambda=1.0, value=0.0, whiten=True)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("gae_lambda", LAMBDAS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("whiten", [False, True])
def test_correct_responses_that_are_shorter_shorten_under_every_choice(gae_lambda: float, aggregation: str, whiten: bool):
    surrogate = Surrogate(gae_lambda=gae_lambda, aggregation=aggregation, whiten=whiten)
    assert length_pressure(world(FALLING), surrogate) < 0


def test_kl_in_the_reward_pulls_towards_the_references_length():
    """Nothing but KL: rewards are equal. The policy stops with probability 0.12 at each decision."""
    indifferent = StopPolicy(logit=-2.0, p_correct=torch.ones(30) / 2, reward_correct=0.0, reward_wrong=0.0)
    assert length_pressure(indifferent, Surrogate(kl_coef=0.1, ref_logit=-3.0)) > 0  # it stops more rarely
    assert length_pressure(indifferent, Surrogate(kl_coef=0.1, ref_logit=-1.0)) < 0
    assert length_pressure(indifferent, Surrogate(kl_coef=0.1, ref_logit=-2.0)) == pytest.approx(0, abs=1e-12)
