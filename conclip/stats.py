"""Intervals and tests: pure functions of numbers."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Wilson 95 % interval of a proportion (Wilson 1927); (0, 1) without trials.

    Example: 0 of 10 gives (0.0, 0.278): never solved in ten tries is no proof of unsolvable.
    """
    if trials == 0:
        return 0.0, 1.0
    interval = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def clustered_interval(cluster_means: Sequence[float]) -> tuple[float, float, float]:
    """Mean of equally large clusters and its 95 % interval from the spread between them: (mean, low, high).

    Samples of one problem are not independent, so the problem is the unit (Miller 2024, arXiv 2411.00640, section 2.2).
    Student's t with n - 1 degrees of freedom; a single cluster gives an infinite interval.
    """
    mean = fmean(cluster_means)
    if len(cluster_means) < 2:
        return mean, -math.inf, math.inf
    half = float(stats.t.ppf(0.975, len(cluster_means) - 1)) * stdev(cluster_means) / math.sqrt(len(cluster_means))
    return mean, mean - half, mean + half


def clustered_difference(differences: Sequence[float]) -> tuple[float, float, float]:
    """`clustered_interval` of paired differences in [-1, 1]. Where all are equal it has no width, which a few problems do
    not show: then a share of problems unlike these, up to 1 - 0.025^(1/n), may have gone unseen (the exact binomial
    bound), each at the worst -1 or 1.

    Example: eight differences of 0: 1 - 0.025^(1/8) = 0.369, so [-0.369, 0.369]; five hundred: [-0.007, 0.007].
    """
    mean, low, high = clustered_interval(differences)
    if low < high:
        return mean, low, high
    unseen = 1 - 0.025 ** (1 / len(differences))
    return mean, mean - unseen * (1 + mean), mean + unseen * (1 - mean)


def clustered_proportion(cluster_means: Sequence[float]) -> tuple[float, float, float]:
    """`clustered_interval` of a share: Wilson's interval at the effective number of independent responses,
    mean (1 - mean) / SE^2, with Student's t (Kish 1965 for the design effect; Wilson 1927).

    Near 0 and 1, and with few problems, the plain interval holds the truth too seldom (0.90 at 30 problems and accuracy 0.1;
    this one 0.93 to 0.96: `benchmarks/coverage.py`), and has no width where all problems agree.
    """
    mean, _, high = clustered_interval(cluster_means)
    number = len(cluster_means)
    if number < 2:
        return mean, 0.0, 1.0
    t = float(stats.t.ppf(0.975, number - 1))
    squared_error = ((high - mean) / t) ** 2
    effective = mean * (1 - mean) / squared_error if squared_error > 0 and 0 < mean < 1 else float(number)
    scale = 1 + t * t / effective
    centre = (mean + t * t / (2 * effective)) / scale
    half = t * math.sqrt(max(0.0, mean * (1 - mean)) / effective + (t / (2 * effective)) ** 2) / scale
    return mean, max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_interval(num_clusters: int, statistic: Callable[[list[int]], float], *, seed: int) -> tuple[float, float]:
    """95 % percentile interval of any statistic of clusters: it is called with the indices of 1,000 resampled sets of
    clusters (Efron 1979). For what has no formula: medians, quantiles, efficiency scores, means over benchmarks.

    Resamples on which the statistic is undefined (NaN) are left out; (NaN, NaN) when all are.
    """
    generator = np.random.default_rng(seed)
    draws = [statistic(generator.integers(0, num_clusters, num_clusters).tolist()) for _ in range(1000)]
    known = [value for value in draws if not math.isnan(value)]
    if not known:
        return math.nan, math.nan
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


def sign_flip_p_value(differences: Sequence[float], *, seed: int, num_flips: int = 9999) -> float:
    """Two-sided paired permutation test of mean difference 0: under it each pair's difference may as well have the other
    sign (Fisher 1935). Monte Carlo with `num_flips` draws, (1 + extreme) / (1 + draws), so never 0.

    Example: no difference anywhere gives 1.
    """
    values: Array = np.asarray(differences, dtype=np.float64)
    observed = abs(values.sum())
    generator = np.random.default_rng(seed)
    extreme = 0
    for begin in range(0, num_flips, 500):
        signs = generator.choice(np.array([-1.0, 1.0]), size=(min(500, num_flips - begin), len(values)))
        extreme += int((np.abs(signs @ values) >= observed - 1e-12).sum())
    return (1 + extreme) / (1 + num_flips)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased chance that at least one of k draws without replacement is correct: 1 - C(n - c, k) / C(n, k) (Chen et al.
    2021, eq. 1). Raises ValueError for k > n.

    Example: 1 of 4 correct, k 2: 0.5.
    """
    if k > num_samples:
        raise ValueError(f"pass@{k} needs at least {k} samples a problem, there are {num_samples}")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)
