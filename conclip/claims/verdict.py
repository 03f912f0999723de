"""Whether a claim holds: the interval of a difference over seeds, against what the claim expects and what matters."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import special

from conclip.claims.config import Expectation
from conclip.stats import ALPHA, clustered_interval, t_quantile

Word = Literal["holds", "does not hold", "not separable", "underpowered"]

LEAST_POWER = 0.8
"""Below this power for the smallest effect that matters, a contrast that shows nothing counts as underpowered."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A difference over seeds and what it says."""

    word: Word
    mean: float
    low: float
    high: float
    """ends of the interval, at 95 % for all contrasts of the claim together"""
    power: float
    """chance that so many seeds show an effect of the smallest size that matters, by the spread that was seen"""
    num_seeds: int
    seeds_needed: int | None
    """seeds of the same spread that have LEAST_POWER; None: more than MOST_SEEDS, or no spread to tell by"""


MOST_SEEDS = 1000


def margin_of(expect: Expectation, relevant: float, at_least: float) -> tuple[float, float]:
    """Return the side on which a contrast holds (-1 below, 1 above), and what its whole interval must exceed, turned to that
    side."""
    sign = -1.0 if expect in ("less", "not more") else 1.0
    return sign, -relevant if expect in ("not less", "not more") else at_least


def judge(
    differences: Sequence[float],
    expect: Expectation,
    relevant: float,
    *,
    at_least: float = 0.0,
    num_contrasts: int = 1,
    num_problems: int | None = None,
) -> Verdict:
    """Return the verdict on one contrast. `differences`: one for each seed. `relevant`: the smallest that matters.
    `num_problems`: the different test problems of all seeds together, of a difference in accuracy [points]; None: of another
    measure, or not known.

    The interval is Student's t over seeds, Bonferroni-corrected for the contrasts of one claim. With `num_problems` it has
    at least the width of `least_half_width`, and that width where every difference is 0: near 0 and 100 % seeds differ by
    less than the problems that were not drawn. Other equal values have no interval. An expected sign holds if the interval
    lies on that side of 0, and does not hold if it excludes an effect of `relevant`. With `at_least`, an effect of that size
    takes the place of both. "Not less" holds if the interval excludes a drop of `relevant`, and does not hold
    if all of it is such a drop; "not more" is its mirror image.
    """
    sign, margin = margin_of(expect, relevant, at_least)
    is_bound = expect in ("not less", "not more")
    towards = [sign * value for value in differences]
    mean, low, high = clustered_interval(towards, num_intervals=num_contrasts)
    if num_problems is not None and (math.isfinite(high) or not any(differences)):
        half = least_half_width(num_problems, num_contrasts)
        half = max(half, high - mean) if math.isfinite(high) else half
        low, high = mean - half, mean + half
    power = _power(relevant, high - mean, len(towards), num_contrasts)
    needed = _seeds_needed(relevant, high - mean, len(towards), num_contrasts)
    if low > margin:
        word: Word = "holds"
    elif high < (margin if is_bound or at_least else relevant):
        word = "does not hold"
    else:
        word = "not separable" if power >= LEAST_POWER else "underpowered"
    ends = sorted((sign * low, sign * high))
    return Verdict(word, sign * mean, ends[0], ends[1], power, len(towards), needed)


def least_half_width(num_problems: int, num_contrasts: int = 1) -> float:
    """Return the least half width of an interval of accuracy differences [points]: problems that lose everything may have
    gone unseen at a rate of up to 1 - alpha^(1/n), the exact binomial bound, as in `clustered_difference`.

    Example: 36.9 points for eight problems, 0.7 for five hundred.
    """
    return 100 * (1 - (ALPHA / num_contrasts) ** (1 / num_problems))


def _power(effect: float, half_width: float, num_seeds: int, num_contrasts: int) -> float:
    """Return the chance that the lower end lies above 0 (or a margin, from which the truth is `effect` away): that of a
    noncentral t above the critical value."""
    if not math.isfinite(half_width):
        return 0.0
    critical = t_quantile(num_seeds, num_contrasts)
    shift = effect * critical / half_width
    below = float(special.nctdtr(num_seeds - 1, shift, critical))
    return 1.0 - below if math.isfinite(below) else float(shift > critical)


def _seeds_needed(effect: float, half_width: float, num_seeds: int, num_contrasts: int) -> int | None:
    if not math.isfinite(half_width):
        return None
    deviation = half_width / t_quantile(num_seeds, num_contrasts) * math.sqrt(num_seeds)

    def power(number: int) -> float:
        half = t_quantile(number, num_contrasts) * deviation / math.sqrt(number)
        return _power(effect, half, number, num_contrasts)

    return next((number for number in range(2, MOST_SEEDS + 1) if power(number) >= LEAST_POWER), None)


def overall(words: Sequence[str]) -> Word:
    """Return the verdict on a claim from those on its contrasts: it holds if all do, and does not if one does not."""
    for word in ("does not hold", "underpowered", "not separable"):
        if word in words:
            return word
    return "holds"
