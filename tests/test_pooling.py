"""Priors fitted to problems of the same kind."""

import numpy as np
import pytest

from conclip.curriculum.pooling import JEFFREYS, MIN_PROBLEMS, Stratum, fitted_prior, priors


def test_alike_problems_fit_a_strong_prior_at_their_mean():
    a, b = fitted_prior(np.full(50, 6), np.full(50, 12))
    assert a / (a + b) == pytest.approx(0.5, abs=0.02) and a + b > 60


def test_problems_all_solved_or_never_fit_a_weak_prior():
    a, b = fitted_prior(np.array([0, 8] * 50), np.full(100, 8))
    assert a == pytest.approx(b, rel=0.1) and a + b == 1.0


def test_the_prior_finds_what_the_rates_were_drawn_from():
    random = np.random.default_rng(0)
    rates = random.beta(2.0, 6.0, size=2000)
    a, b = fitted_prior(random.binomial(12, rates), np.full(2000, 12))
    assert a / (a + b) == pytest.approx(0.25, abs=0.02) and a + b == pytest.approx(8.0, rel=0.3)


def test_little_evidence_fits_a_weak_prior():
    three, hundred = (sum(fitted_prior(np.full(number, 2), np.full(number, 4))) for number in (3, 100))
    assert three < 4 and hundred > 60


def priors_of(*groups: tuple[Stratum, int, int]) -> list[float]:
    """Mean of the prior of the first problem of each group; groups are (kind, problems, correct of 10)."""
    kinds = [kind for kind, number, _ in groups for _ in range(number)]
    correct = np.array([solved for _, number, solved in groups for _ in range(number)])
    a, b = priors(kinds, correct, np.full(len(kinds), 10))
    first = np.cumsum([0, *(number for _, number, _ in groups)])[:-1]
    return [float(mean) for mean in (a / (a + b))[first]]


def test_kinds_are_pooled_as_finely_as_their_number_allows():
    many, few = MIN_PROBLEMS, MIN_PROBLEMS // 2
    means = priors_of(
        (("s", "x", 1), many, 9), (("s", "y", 1), few, 5), (("s", "z", 2), few, 1), (("t", None, None), few, 3)
    )
    by_level = (many * 9 + few * 5) / (many + few)
    by_source = (many * 9 + few * 5 + few * 1) / (many + 2 * few)
    everything = (many * 9 + few * 5 + few * 1 + few * 3) / (many + 3 * few)
    assert means == pytest.approx([0.9, by_level / 10, by_source / 10, everything / 10], abs=0.08)
    assert means[0] > means[1] > means[2] > means[3]


def test_few_problems_teach_nothing_about_each_other():
    a, b = priors([("s", None, None)] * (MIN_PROBLEMS - 1), np.zeros(19, dtype=int), np.full(19, 12))
    assert (a == JEFFREYS[0]).all() and (b == JEFFREYS[1]).all()


def test_one_problem_more_changes_only_its_own_kind():
    kinds: list[Stratum] = [("s", None, 1)] * 30 + [("s", None, 2)] * 30
    correct = np.array([9] * 30 + [1] * 30)
    before = priors(kinds, correct, np.full(60, 10))
    after = priors([*kinds, ("s", None, 2)], np.append(correct, 10), np.full(61, 10))
    assert (before[0][:30] == after[0][:30]).all() and before[0][30] != after[0][30]
