"""Intervals and tests: exact values, monotonicity, and error rates by enumeration and simulation."""

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmarks.coverage import not_monotone, outside, share_outside, simulate
from conclip.evaluation.metrics import Estimate
from conclip.evaluation.tables import verdict
from conclip.stats import (
    chance_differences,
    chance_not_positive,
    clustered_difference,
    clustered_interval,
    clustered_ratio,
    drop_p_values,
    problems_needed,
    sign_flip_p_value,
)

MARGIN = 0.03


def test_the_chance_is_a_binomial_tail_where_values_are_0_and_minus_1():
    """P(Beta(h + 1, n - h) > x) = P(Bin(n, x) <= h)."""
    for lost, number, rate in itertools.product((0, 1, 7), (8, 100, 1000), (0.002, 0.03, 0.2)):
        values, weights = np.array([[rate, rate - 1]]), np.array([[number - lost, lost + 1.0]])
        expected = stats.binom.cdf(lost, number, rate)
        assert chance_not_positive(values, weights)[0] == pytest.approx(expected, rel=1e-4, abs=1e-12)


def test_the_chance_is_what_sampling_finds():
    rng = np.random.default_rng(0)
    for number in (1, 2, 5, 40):
        values = rng.normal(0.3, 1, (1, number))
        drawn = (rng.exponential(size=(200_000, number)) @ values[0] <= 0).mean()
        assert chance_not_positive(values, np.ones_like(values))[0] == pytest.approx(drawn, abs=0.005)


def test_a_few_problems_that_agree_do_not_show_that_all_do():
    for number in (1, 8, 500):
        bound = 1 - 0.025 ** (1 / number)
        assert clustered_difference([0.0] * number) == pytest.approx((0, -bound, bound), abs=1e-5)
    mean, low, high = clustered_difference([1.0, 1.0])
    # The chance with a third problem that lost everything is x^2 where the bound is 1 - 2 (1 - x), and weighs 0.45.
    assert (mean, high) == (1, 1) and low == pytest.approx(1 - 2 * (1 - (0.025 / 0.45) ** (1 / 2)), abs=1e-5)


def test_bounds_lie_where_the_chance_is_a_fortieth():
    """From 2 problems to 1,000, of one response to 16."""
    rng = np.random.default_rng(4)
    for number, samples in ((2, 1), (8, 4), (30, 16), (100, 1), (1000, 4)):
        rates = rng.random(number)
        differences = (rng.binomial(samples, rates) - rng.binomial(samples, rates)) / samples
        _, low, high = clustered_difference(list(differences))
        values, counts = np.unique(differences, return_counts=True)
        for side, bound in ((1, low), (-1, -high)):
            if bound > -1:
                p_value = drop_p_values(side * values, counts[None].astype(np.float64), bound)
                assert p_value[0] == pytest.approx(0.025, rel=1e-5)


@settings(max_examples=25)
@given(st.integers(1, 16), st.integers(2, 8), st.data())
def test_rounding_never_takes_an_intervals_width(samples: int, number: int, data: st.DataObject):
    """Problems that all change by the same number of samples, from wherever they start."""
    step = data.draw(st.integers(-samples, samples))
    starts = [data.draw(st.integers(max(0, -step), min(samples, samples - step))) for _ in range(number)]
    mean, low, high = clustered_difference([(s + step) / samples - s / samples for s in starts])
    same = clustered_difference([step / samples] * number)
    assert (mean, low, high) == pytest.approx(same, abs=1e-6)
    assert high - low > 0.1
    assert low <= mean + 1e-12 and mean <= high + 1e-12


def test_ratios_keep_a_width_and_one_problem_tells_nothing():
    mean, low, high = clustered_ratio([0.1 + 0.2] * 3, [0.3] * 3)
    assert mean == pytest.approx(1) and low < 0.5 and high > 1.5
    assert clustered_ratio([80.0], [100.0]) == (0.8, -math.inf, math.inf)
    assert clustered_interval([0.1 + 0.2, 0.3, 0.3]) == (pytest.approx(0.3), -math.inf, math.inf)


def test_a_share_with_one_response_a_problem_has_the_exact_interval():
    for right in (0, 3, 15, 30):
        exact = stats.binomtest(right, 30).proportion_ci(0.95, method="exact")
        found = clustered_ratio([1.0] * right + [0.0] * (30 - right), [1.0] * 30, ends=(0.0, 1.0))
        assert found == pytest.approx((right / 30, exact.low, exact.high), abs=1e-5)


def test_more_samples_of_the_same_problems_narrow_nothing():
    few = clustered_ratio([1.0, 0.0, 1.0, 0.0, 1.0], [1.0] * 5, ends=(0.0, 1.0))
    assert clustered_ratio([8.0, 0.0, 8.0, 0.0, 8.0], [8.0] * 5, ends=(0.0, 1.0)) == pytest.approx(few, abs=1e-6)


def test_the_order_of_problems_changes_nothing():
    stream = random.Random(2)
    before, after = ([stream.lognormvariate(5, 1) for _ in range(40)] for _ in range(2))
    order = stream.sample(range(40), 40)
    moved = clustered_ratio([after[i] for i in order], [before[i] for i in order])
    assert moved == clustered_ratio(after, before)


def verdict_of(differences: list[float]) -> str:
    mean, low, high = clustered_difference(differences)
    return verdict(Estimate(mean=mean, low=low, high=high), MARGIN)


def test_a_worse_model_never_gets_the_better_verdict():
    """From all of a problem lost to all won, one response at a time."""
    for number in (60, 122, 400):
        said = [verdict_of([change / 4, *[0.0] * (number - 1)]) for change in range(-4, 5)]
        good = ["kept (" in text or "rose" in text for text in said]
        assert good == sorted(good)
    assert "not shown" in verdict_of([0.0] * 121) and "kept (" in verdict_of([0.0] * 122)


def test_every_table_of_30_single_responses_is_monotone():
    tables = [(lost, 30 - lost - won, won) for lost in range(31) for won in range(31 - lost)]
    values = np.array([-1.0, 0.0, 1.0])
    p = dict(zip(tables, drop_p_values(values, np.array(tables, dtype=np.float64), -MARGIN), strict=True))
    better = [
        *(((a, b, c), (a - 1, b + 1, c)) for a, b, c in tables if a > 0),
        *(((a, b, c), (a, b - 1, c + 1)) for a, b, c in tables if b > 0),
    ]
    assert len(better) == 930
    assert not [pair for pair in better if p[pair[1]] > p[pair[0]] + 1e-6]


@pytest.mark.parametrize("samples", [2, 4, 16])
def test_random_tables_are_monotone(samples: int):
    """One wrong response of the second model turned right; `benchmarks/coverage.py` does it with 10,000 tables."""
    assert not_monotone(samples, num_tables=500, seed=samples) == 0


@pytest.mark.parametrize("number", [30, 100, 300])
def test_kept_is_said_in_error_at_most_as_often_as_promised(number: int):
    """Exactly, by enumeration: one response a problem, whose share of losses exceeds that of wins by the margin."""
    tables = np.array([(lost, number - lost - won, won) for won in range(number + 1) for lost in range(number + 1 - won)])
    tables = tables[tables[:, 0] + tables[:, 2] <= 0.6 * number]  # the others have no probability to speak of
    chances = [(won + MARGIN, 1 - 2 * won - MARGIN, won) for won in (0.0, 0.01, 0.03, 0.05, 0.1, 0.15)]
    likely = np.stack([stats.multinomial.pmf(tables, number, chance) for chance in chances])
    rows = likely.max(axis=0) > 1e-9
    kept = drop_p_values(np.array([-1.0, 0.0, 1.0]), tables[rows].astype(np.float64), -MARGIN) < 0.025
    assert (likely[:, rows] @ kept).max() <= 0.0251


def test_error_and_coverage_by_simulation():
    """A small part of docs/evaluation.md's table, three Monte-Carlo errors of 2,000 evaluations of grace."""
    for family, number, samples, accuracy in (
        ("logistic", 100, 4, 0.8),
        ("mixture 0.1", 100, 16, 0.5),
        ("beta 8", 300, 4, 0.5),
        ("rare", 100, 16, 0.1),  # what loses everything may not have been seen, though all that was seen is hard
    ):
        cell = simulate(family, number, samples, accuracy, num_evaluations=2000, seed=3)
        assert max(value for way, value in cell.kept.items() if way != "none") <= 0.025 + 0.0105
        assert min(*cell.covered.values(), cell.accuracy_covered) >= 0.94 - 0.016


def test_the_coverage_that_is_measured_is_that_of_the_intervals():
    """benchmarks/coverage.py asks of many tables at once on which side of a ratio the interval lies."""
    rng = np.random.default_rng(0)
    for number in (6, 40):
        before = np.exp(rng.standard_normal(number))
        after = before * np.exp(0.5 * rng.standard_normal(number) - 0.7)
        ratio, low, high = clustered_ratio(after.tolist(), before.tolist())
        seen, least = after - ratio * before, after.mean()
        for at in (0.99 * low, 1.01 * low, ratio, 0.99 * high, 1.01 * high):
            residuals = (after - at * before)[None]
            assert outside(residuals, -np.maximum(least, 1.5 * (-seen).max())[None])[0] == (at < low)
            assert outside(-residuals, -np.maximum(least, 1.5 * seen.max())[None])[0] == (at > high)
        values = np.arange(5) / 4
        counts = rng.multinomial(number, [0.1, 0.1, 0.2, 0.3, 0.3])
        right = np.repeat(values, counts).tolist()
        _, low, high = clustered_ratio(right, [1.0] * number, (0.0, 1.0))
        for at in (0.99 * low, 1.01 * low):
            assert share_outside(counts[None], values, at)[0] == (at < low)


def test_sign_flips_by_hand():
    assert sign_flip_p_value([0.0] * 5) == 1
    assert sign_flip_p_value([1.0] * 8) == 2 / 256  # all plus and all minus
    assert sign_flip_p_value([1.0, -1.0] * 10) == 1
    assert sign_flip_p_value([1.0] * 20) == 1 / 10_000  # by Monte Carlo: never 0


@given(st.lists(st.integers(-30_000, 30_000), min_size=1, max_size=9), st.sampled_from([1, 3, 7, 1e6, 1e-6]))
def test_sign_flips_of_few_pairs_are_exact_whatever_the_rounding(whole: list[int], scale: float):
    sums = [
        abs(sum(s * x for s, x in zip(signs, whole, strict=True))) for signs in itertools.product((-1, 1), repeat=len(whole))
    ]
    exact = sum(total >= abs(sum(whole)) for total in sums) / len(sums)
    assert sign_flip_p_value([x / scale for x in whole]) == exact


def test_what_chance_does_to_a_comparison():
    steps, shares = chance_differences(1)
    assert steps == [-1, 0, 1] and shares == pytest.approx([1 / 6, 2 / 3, 1 / 6], abs=1e-15)
    steps, shares = chance_differences(4)
    variance = sum(share * step**2 for step, share in zip(steps, shares, strict=True))
    assert sum(shares) == pytest.approx(1) and variance == pytest.approx(2 / 6 / 4, rel=1e-12)  # E[2 p (1 - p)] / 4


def test_problems_needed():
    assert problems_needed([0.0], [1.0], MARGIN) == math.ceil(math.log(0.025) / math.log(1 - MARGIN)) == 122
    spread = 0.4  # so much noise that the normal formula holds: ((1.96 + 0.84) 0.4 / 0.03)^2 = 1394
    assert problems_needed([-spread, spread], [0.5, 0.5], MARGIN) == pytest.approx(1394, rel=0.1)
