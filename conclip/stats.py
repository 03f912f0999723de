"""Intervals: pure functions of numbers."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from scipy import stats


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
