"""What the responses to all problems say about each of them: Beta priors fitted to problems of the same kind.

A few responses leave a pass rate wide open, but problems of one source, subject and level may have much in common, and
how much can be measured. Where they have little, the prior is weak and the problem's own responses decide (partial pooling
by empirical Bayes: Efron & Morris 1975; Gelman et al., Bayesian Data Analysis, chapter 5).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import betaln

Kind = tuple[str, str | None, int | None]
"""Source, subject and level of a problem."""

JEFFREYS = (0.5, 0.5)
"""Beta prior of problems that are too few to learn from: few responses already speak."""

MIN_PROBLEMS = 20
"""Fewer problems fit no prior."""

VIEWS = ((0, 1, 2), (0, 2), (0,), ())
"""Parts of a kind that problems must share to be pooled, finest first."""

MEANS = (np.arange(40) + 0.5) / 40
STRENGTHS = np.geomspace(1, 128, 15)
"""a + b: as many responses as the prior counts for."""

Numbers = Any
"""One number, or an array of them."""


def priors(kinds: Sequence[Kind], num_correct: Numbers, num_judged: Numbers) -> tuple[Numbers, Numbers]:
    """Parameters a and b of each problem's Beta prior, [N] each: fitted to the problems that share its source, subject and
    level; where these are fewer than `MIN_PROBLEMS`, its source and level; its source; nothing. Jeffreys' when all problems
    together are fewer."""
    found = np.tile(np.array(JEFFREYS)[:, None], len(kinds))
    is_open = np.ones(len(kinds), dtype=bool)
    for view in VIEWS:
        shared = [tuple(kind[part] for part in view) for kind in kinds]
        for name in set(shared):
            members = np.array([other == name for other in shared])
            if members.sum() >= MIN_PROBLEMS and is_open[members].any():
                found[:, members & is_open] = np.array(fitted_prior(num_correct[members], num_judged[members]))[:, None]
                is_open &= ~members
    return found[0], found[1]


def fitted_prior(num_correct: Numbers, num_judged: Numbers) -> tuple[float, float]:
    """The Beta prior under which these counts are likeliest (beta-binomial likelihood), over a grid of means and strengths;
    a strength weighs by its inverse, so that little evidence fits a weak prior."""
    strengths, means = np.meshgrid(STRENGTHS, MEANS)
    a, b = (means * strengths).reshape(-1, 1), ((1 - means) * strengths).reshape(-1, 1)
    (correct, judged), times = np.unique(np.stack([num_correct, num_judged]), axis=1, return_counts=True)
    likelihood = (betaln(a + correct, b + judged - correct) - betaln(a, b)) @ times
    best = int((likelihood - np.log(strengths.reshape(-1))).argmax())
    return float(a[best, 0]), float(b[best, 0])
