"""Fits Beta priors to the problems of a stratum: what the responses to all problems tell about each of them.

A few responses leave a pass rate wide open, but problems of one source, subject and level may have much in common, and
how much can be measured. Where they have little, the prior is weak and the problem's own responses decide (partial pooling
by empirical Bayes: Efron & Morris 1975; Gelman et al., Bayesian Data Analysis, chapter 5). The fitted prior is taken as if
it were known: of strata hardly larger than `MIN_PROBLEMS`, probabilities near 0 and 1 are somewhat too sure.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import betaln

from conclip.types import Stratum

JEFFREYS = (0.5, 0.5)
"""Beta prior of problems that are too few to fit one: a few responses already outweigh it."""

MIN_PROBLEMS = 20
"""Fewest problems to which a prior is fitted."""

POOLING_LEVELS = ((0, 1, 2), (0, 2), (0,), ())
"""Parts of a stratum that problems must share to be pooled, finest first."""

MEANS = (np.arange(40) + 0.5) / 40
STRENGTHS = np.geomspace(1, 128, 15)
"""Values of a + b: the number of responses for which the prior counts."""

Numbers = Any
"""One number, or an array of them."""


def priors(strata: Sequence[Stratum], num_correct: Numbers, num_judged: Numbers) -> tuple[Numbers, Numbers]:
    """Return the parameters a and b of each problem's Beta prior, [N] each. A prior is fitted to the problems that share
    source, subject and level; where fewer than `MIN_PROBLEMS` of these have judged responses, to those that share source and
    level; then source; then to all. It is Jeffreys' when all problems together are fewer."""
    parameters = np.tile(np.array(JEFFREYS)[:, None], len(strata))
    is_open = np.ones(len(strata), dtype=bool)
    for level in POOLING_LEVELS:
        members: dict[tuple[str | int | None, ...], list[int]] = {}
        for index, stratum in enumerate(strata):
            members.setdefault(tuple(stratum[part] for part in level), []).append(index)
        for indices in map(np.array, members.values()):
            judged, left = indices[num_judged[indices] > 0], indices[is_open[indices]]
            if len(judged) >= MIN_PROBLEMS and len(left):
                parameters[:, left] = np.array(fitted_prior(num_correct[judged], num_judged[judged]))[:, None]
                is_open[left] = False
    return parameters[0], parameters[1]


def fitted_prior(num_correct: Numbers, num_judged: Numbers) -> tuple[float, float]:
    """Return the Beta prior under which these counts are likeliest (beta-binomial likelihood), over a grid of means and
    strengths. A strength is weighted by its inverse, so that little evidence fits a weak prior."""
    strengths, means = np.meshgrid(STRENGTHS, MEANS)
    a, b = (means * strengths).reshape(-1, 1), ((1 - means) * strengths).reshape(-1, 1)
    (correct, judged), times = np.unique(np.stack([num_correct, num_judged]), axis=1, return_counts=True)
    likelihood = (betaln(a + correct, b + judged - correct) - betaln(a, b)) @ times
    best = int((likelihood - np.log(strengths.reshape(-1))).argmax())
    return float(a[best, 0]), float(b[best, 0])
