"""Intervals and tests: pure functions of numbers."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache, lru_cache
from itertools import product
from math import fsum
from statistics import StatisticsError, correlation, fmean, stdev

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]

ALPHA = 0.025
"""Probability on each side of every interval."""
DIGITS = 9
"""Decimals kept of differences in accuracy, which are shares of whole numbers: further ones are rounding errors."""
DUST = 1e-9
"""Relative rounding error of numbers of any size, compared with the largest."""
NOISE, CAUTION, LEAST = 1 / 12, 1.25, 0.45
"""Constants of `drop_p_values`, chosen by simulation (docs/log.md)."""


def clustered_interval(cluster_means: Sequence[float], *, num_intervals: int = 1) -> tuple[float, float, float]:
    """Return (mean, low, high): the mean of a few similar quantities (seeds, runs) and its 95 % interval from the spread
    between them; 95 % for all of `num_intervals` together (Bonferroni).

    Student's t with n - 1 degrees of freedom. Infinite for one quantity and for equal ones: no spread seen is not no spread.
    """
    mean = fmean(cluster_means)
    spread = stdev(cluster_means) if len(cluster_means) > 1 else 0.0
    if spread <= DUST * max(map(abs, cluster_means)):
        return mean, -math.inf, math.inf
    half = t_quantile(len(cluster_means), num_intervals) * spread / math.sqrt(len(cluster_means))
    return mean, mean - half, mean + half


def t_quantile(num_clusters: int, num_intervals: int) -> float:
    """Return the critical value of `clustered_interval`: by how many standard errors its ends lie from the mean."""
    return float(special.stdtrit(num_clusters - 1, 1 - 0.025 / num_intervals))


def correlation_if_any(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Pearson's correlation; None for fewer than two pairs, or where either does not vary."""
    try:
        return correlation(first, second)
    except StatisticsError:
        return None


def chance_not_positive(values: Array, weights: Array) -> Array:
    """Return P(sum_j G_j values_j <= 0) for independent G_j ~ Gamma(weights_j), row by row; both are [R, J].

    With weights 1 it is the Bayesian bootstrap (Rubin 1981): the chance, under Dirichlet weights, of a mean at or below 0.
    The moment generating function is inverted along the line through its saddlepoint (Daniels 1954), where its size falls to
    both sides and nothing cancels; relative error below 1e-4. Deterministic; a value with weight 0 counts as absent.
    """
    values = np.where(weights > 0, values, 0.0)
    low, high = values.min(axis=1), values.max(axis=1)
    chance: Array = np.where(high <= 0, 1.0, 0.0)
    mixed = (low < 0) & (high > 0)
    if not mixed.any():
        return chance
    present = (values[mixed] != 0).any(axis=0)
    v, w = values[mixed][:, present], weights[mixed][:, present]
    # Saddlepoint: K'(s) = sum w v / (1 - s v) = 0 between the poles, by Newton inside a shrinking bracket.
    left, right = 1 / low[mixed], 1 / high[mixed]
    below, above, s = left.copy(), right.copy(), np.zeros(len(v))
    for _ in range(25):
        ratio = v / (1 - s[:, None] * v)
        slope = (w * ratio).sum(axis=1)
        below, above = np.where(slope < 0, s, below), np.where(slope < 0, above, s)
        step = s - slope / (w * ratio * ratio).sum(axis=1)
        last = s
        s = np.where((step >= below) & (step <= above) & (step > left) & (step < right), step, (below + above) / 2)
        if (
            np.abs(s - last) <= 1e-6 * np.abs(s)
        ).all():  # any point between the poles would do, the saddlepoint is only the best
            break
    # The integrand has a pole at 0: stay half a standard deviation away.
    away, negative = 0.5 / np.sqrt((w * v * v).sum(axis=1)), s < 0
    s = np.where(negative, np.minimum(s, -np.minimum(away, -left / 2)), np.maximum(s, np.minimum(away, right / 2)))
    # Trapezoids in arsinh of the height converge exponentially: two steps that agree to 1e-4 leave an error far smaller.
    step = 0.8
    integral = _line_integral(v, w, s, np.arange(0, 5.2, step, dtype=np.float64)) * step
    open_rows = np.arange(len(s))
    while len(open_rows) and step > 0.02:
        before = integral[open_rows]
        between = _line_integral(v[open_rows], w[open_rows], s[open_rows], np.arange(step / 2, 5.2, step, dtype=np.float64))
        step /= 2
        integral[open_rows] = before / 2 + between * step
        settled = np.abs(integral[open_rows] - before) <= 1e-4 * np.abs(integral[open_rows])
        open_rows = open_rows[~settled]
    chance[mixed] = np.clip(np.where(negative, -integral, 1 - integral), 0, 1)
    return chance


def _line_integral(v: Array, w: Array, s: Array, nodes: Array) -> Array:
    """Return the sum over `nodes`, with half of that at 0, of 1 / (2 pi i) exp(K(z)) / z dz along Re z = s, at heights
    sinh(node). [R]"""
    ratio = v / (1 - s[:, None] * v)
    scale = 1 / np.sqrt((w * ratio * ratio).sum(axis=1))[:, None]
    height = np.sinh(nodes) * scale
    z = height[:, :, None] * ratio[:, None, :]
    size = -0.5 * np.einsum("rnj,rj->rn", np.log1p(z * z), w) - (w * np.log1p(-s[:, None] * v)).sum(axis=1)[:, None]
    angle = np.einsum("rnj,rj->rn", np.arctan(z), w)
    wave = (s[:, None] * np.cos(angle) + height * np.sin(angle)) / (s[:, None] ** 2 + height**2)
    return (np.exp(size) * wave * np.cosh(nodes) * scale) @ np.where(nodes == 0, 0.5, 1) / math.pi


def drop_p_values(values: Array, counts: Array, mean: float, leaning: Array | None = None) -> Array:
    """Return the one-sided p-value of "the true mean of these paired differences is at most `mean`", for each of R tables of
    `counts` [R, J] of problems by difference, with `values` [J] in [-1, 1]. [R]

    Gaffke's bound (Gaffke 2005; Learned-Miller and Thomas 2020, arXiv 1905.06208) adds to the Bayesian bootstrap one problem
    that lost everything; for losses of 0 or 1 it is the exact binomial bound. It is sharpened in three ways. Each leaves it
    monotone in every difference, since it mixes, or takes the larger of, chances that are:

    - like mid-p (Lancaster 1961), it mixes the chance with that problem and the one without it, here raised by a quarter
      (`CAUTION`): the one with it weighs `LEAST` unless the differences lean to losses, and up to 1 where they do, or all
      are 0 (`lean`);
    - beside that problem the responses' noise would count a second time, so there differences lose up to `NOISE` of their
      size to their common mean;
    - where noise outweighs what may have gone unseen, the raised chance without that problem stands in for it.

    How often it errs and what it can show: `benchmarks/coverage.py`.
    """
    if leaning is None:
        leaning = lean(values, counts)
    noise = np.clip(values, -NOISE, NOISE)
    calm = values - noise + (counts @ noise / counts.sum(axis=1))[:, None]
    lost, one = np.full((len(counts), 1), -1.0), np.ones((len(counts), 1))
    both = np.vstack([np.hstack([np.broadcast_to(values, calm.shape), lost]), np.hstack([calm, lost])])
    weights = np.vstack([np.hstack([counts, 0 * one]), np.hstack([counts, one])])
    seen, unseen = np.split(chance_not_positive(both - mean, weights), 2)
    raised = CAUTION * seen
    return np.minimum(1.0, raised + leaning * np.maximum(0.0, unseen - raised))


def lean(values: Array, counts: Array) -> Array:
    """Return the weight of the problem that lost everything in `drop_p_values`, for the same tables: `LEAST` to 1. [R]"""
    return np.maximum(LEAST, chance_not_positive(np.broadcast_to(values, counts.shape), counts))


def clustered_difference(differences: Sequence[float]) -> tuple[float, float, float]:
    """Return (mean, low, high): the mean of paired differences in [-1, 1], one per problem, and its 95 % interval by
    `drop_p_values`.

    Samples of one problem are not independent, so the problem is the unit (Miller 2024, arXiv 2411.00640, section 2.2).

    Example: eight differences of 0: problems that lose everything may have gone unseen at a rate of up to 1 - 0.025^(1/8) =
    0.369 (the exact binomial bound), so [-0.369, 0.369]; five hundred: [-0.007, 0.007].
    """
    table, numbers = np.unique(np.round(np.asarray(differences, dtype=np.float64), DIGITS), return_counts=True)
    counts, number = numbers[None].astype(np.float64), len(differences)
    likely = 2 * float(np.std(differences)) / math.sqrt(number) + 4 / number

    def low(values: Array) -> float:
        leaning = lean(values, counts)
        centre = float(values @ counts[0]) / number
        return _crossing(lambda at: float(drop_p_values(values, counts, at, leaning)[0]), -1.0, centre, likely)

    return fmean(differences), low(table), -low(-table)


def clustered_ratio(
    numerators: Sequence[float], denominators: Sequence[float], ends: tuple[float, float] | None = None
) -> tuple[float, float, float]:
    """Return (ratio, low, high): the ratio of two sums over problems and its 95 % interval. Means over responses (sum,
    number), shares (right, number) and the ratio of two lengths are all such ratios.

    The Bayesian bootstrap of problems (Rubin 1981) and one more, of mean denominator, at the worst end (Gaffke 2005). `ends`
    are the ratio's bounds where it has some; for a share with one response a problem this is Clopper and Pearson's exact
    interval. Without `ends` the worst is 1.5 times the largest deviation seen, and at least the ratio itself: a problem that
    takes nothing, or twice as much; and one problem tells nothing: an infinite interval.
    """
    return _ratio_interval(tuple(numerators), tuple(denominators), ends)


@lru_cache(maxsize=4096)  # a report's tables, verdicts and pictures ask for the same figures
def _ratio_interval(
    numerators: tuple[float, ...], denominators: tuple[float, ...], ends: tuple[float, float] | None
) -> tuple[float, float, float]:
    number, ratio, size = len(numerators), fsum(numerators) / fsum(denominators), fmean(denominators)
    if ends is None and number < 2:
        return ratio, -math.inf, math.inf
    if ends is None and ratio == 0:
        return 0.0, 0.0, math.inf
    pairs, counts = np.unique(np.column_stack([numerators, denominators]), axis=0, return_counts=True)
    above, below, weights = pairs[:, 0], pairs[:, 1], np.append(counts, 1.0)[None]
    residuals = above - ratio * below
    likely = (2 * math.sqrt(float(counts @ residuals**2)) + 4 * ratio * size) / (number * size) or 1 / number

    def bound(side: float) -> float:
        """Return the lower bound for side 1, the upper for -1."""

        def chance(at: float) -> float:
            worst = ends[side < 0] * size - at * size if ends else -side * spare
            return float(chance_not_positive(side * np.append(above - at * below, worst)[None], weights)[0])

        spare = max(ratio * size, 1.5 * float((-side * residuals).max()))
        end = ends[side < 0] if ends else 0.0 if side > 0 else 2 * ratio
        while ends is None and side < 0 and chance(end) >= ALPHA:
            end *= 2
        return _crossing(chance, end, ratio, likely)

    return ratio, bound(1.0), bound(-1.0)


def _crossing(chance: Callable[[float], float], end: float, centre: float, likely: float) -> float:
    """Return where a chance that rises from `end` to `centre` passes ALPHA, probably about `likely` from the centre; `end`
    where it lies above throughout."""
    z = float(special.ndtri(ALPHA))

    @cache
    def excess(at: float) -> float:
        # On the normal scale a chance is nearly linear, so that few steps find the root.
        return float(special.ndtri(min(max(chance(at), 1e-9), 1 - 1e-9))) - z

    def point(distance: float) -> float:
        return end if distance >= abs(end - centre) else centre + math.copysign(distance, end - centre)

    def towards(distance: float, beyond: float) -> float:
        """Return a distance at which the chance is ALPHA if it is linear, and a little beyond that."""
        seen = (excess(point(distance)) + z) / z
        return distance * min(max(beyond / seen, 0.5), 2) if seen > 0 else 2 * distance

    far = likely
    while excess(point(far)) >= 0:
        if point(far) == end:
            return end
        far = towards(far, 1.05)
    near = min(far, abs(end - centre))
    while excess(point(near)) < 0:
        far, near = near, towards(near, 1 / 1.05)
        if near < 1e-9 * abs(end - centre):
            return point(near)
    from scipy.optimize import root_scalar  # noqa: PLC0415  a fifth of a second, which most commands need not wait for

    return root_scalar(excess, bracket=(point(far), point(near)), method="brentq", xtol=1e-7 * likely).root


def bootstrap_interval(num_clusters: int, statistic: Callable[[list[int]], float], *, seed: int) -> tuple[float, float]:
    """Return the 95 % percentile interval of any statistic of clusters: it is called with the indices of 1,000 resampled
    sets of clusters (Efron 1979). It serves what has no formula: medians, quantiles, efficiency scores, means over
    benchmarks.

    Resamples on which the statistic is undefined (NaN) are left out; (NaN, NaN) when all are. Infinite below six clusters:
    all of five lie on one side of the true median more often than in 5 % of cases (2 * 0.5^5), so nothing they show is sure.
    """
    generator = np.random.default_rng(seed)
    draws = [statistic(generator.integers(0, num_clusters, num_clusters).tolist()) for _ in range(1000)]
    known = [value for value in draws if not math.isnan(value)]
    if not known:
        return math.nan, math.nan
    if num_clusters < 6:
        return -math.inf, math.inf
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


NUM_FLIPS = 9999
"""Patterns of signs that a permutation test draws."""


def sign_flip_p_value(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of a paired permutation test of mean difference 0: under it each pair's difference may as
    well have the other sign (Fisher 1935). It is exact while there are at most NUM_FLIPS patterns of signs (13 pairs),
    else Monte Carlo of one seed, (1 + extreme) / (1 + draws), so never 0. Sums that differ by rounding only, relative to the
    differences, are ties.

    Example: no difference anywhere gives 1, three equal ones 2/8.
    """
    values: Array = np.asarray(differences, dtype=np.float64)
    least = abs(values.sum()) - DUST * np.abs(values).sum()
    if 2 ** len(values) <= NUM_FLIPS:
        patterns = np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1
        return float((np.abs((1 - 2 * patterns) @ values) >= least).mean())
    generator = np.random.default_rng(0)
    extreme = 0
    for begin in range(0, NUM_FLIPS, 500):
        signs = generator.choice(np.array([-1.0, 1.0]), size=(min(500, NUM_FLIPS - begin), len(values)))
        extreme += int((np.abs(signs @ values) >= least).sum())
    return (1 + extreme) / (1 + NUM_FLIPS)


def problems_needed(values: Sequence[float], shares: Sequence[float], margin: float) -> int:
    """Return how many problems it takes to show, in four of five evaluations, that accuracy fell by less than `margin` when
    in truth it did not change: the differences take `values` with probabilities `shares`, of mean 0.

    By `drop_p_values` of such a table whose mean lies as low as in one evaluation of five. At least log(0.025) / log(1 -
    margin): fewer problems miss too often a change that loses all of a few (docs/evaluation.md).
    """
    table, chance = np.round(np.asarray(values, dtype=np.float64), DIGITS), np.asarray(shares, dtype=np.float64)
    spread = math.sqrt(float(chance @ table**2))

    def shown(number: int) -> bool:
        unlucky = table - float(special.ndtri(0.8)) * spread / math.sqrt(number)
        return float(drop_p_values(unlucky, number * chance[None], -margin)[0]) < ALPHA

    enough = 1
    while not shown(enough):
        enough *= 2
    short = enough // 2
    while enough - short > 1:
        middle = (short + enough) // 2
        short, enough = (short, middle) if shown(middle) else (middle, enough)
    return enough


def chance_differences(num_samples: int) -> tuple[list[float], list[float]]:
    """Return the differences between two shares of `num_samples` responses each to one problem, and their probabilities,
    when both have the same solve rate, drawn evenly from [0, 1]: what chance alone does to a comparison.

    Example: one response each: -1, 0 and 1 with probabilities 1/6, 2/3 and 1/6.
    """
    ways, shares = [math.comb(num_samples, right) for right in range(num_samples + 1)], defaultdict[int, Fraction](Fraction)
    for first, second in product(range(num_samples + 1), repeat=2):
        # the integral over p of C(n, i) p^i (1 - p)^(n - i) C(n, j) p^j (1 - p)^(n - j)
        all_ways = (2 * num_samples + 1) * math.comb(2 * num_samples, first + second)
        shares[second - first] += Fraction(ways[first] * ways[second], all_ways)
    steps = range(-num_samples, num_samples + 1)
    return [step / num_samples for step in steps], [float(shares[step]) for step in steps]


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Return the unbiased chance that at least one of k draws without replacement is correct: 1 - C(n - c, k) / C(n, k)
    (Chen et al. 2021, eq. 1). Raises ValueError for k > n.

    Example: 1 of 4 correct, k 2: 0.5.
    """
    if k > num_samples:
        raise ValueError(f"pass@{k} needs at least {k} samples a problem, there are {num_samples}")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)
