"""Measures beyond accuracy and mean length: pure functions of evaluation rows.

Rows of one model, prompt, temperature and benchmark unless said otherwise. Grader errors are left out of everything that
asks whether a response is right. Lengths count generated token ids.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any, TypeVar

import numpy as np

from conclip.grading.answers import normalise
from conclip.stats import bootstrap_interval, pass_at_k
from conclip.types import EvalRow, Outcome

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)


Row = TypeVar("Row")


def grouped(rows: Iterable[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    """Group rows by a key; keys and rows keep their order."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def by_problem(rows: Iterable[EvalRow]) -> dict[str, list[EvalRow]]:
    """Group rows by problem, without grader errors, in sample order."""
    groups = grouped((row for row in rows if row.outcome is not Outcome.GRADER_ERROR), lambda row: row.problem_id)
    return {problem: sorted(group, key=lambda row: row.sample) for problem, group in groups.items()}


def is_correct(row: EvalRow) -> bool:
    return row.outcome is Outcome.CORRECT


def avg_at_k(rows: Sequence[EvalRow]) -> float:
    """Return mean over problems of the share of correct samples."""
    return fmean(fmean(map(is_correct, group)) for group in by_problem(rows).values())


def mean_pass_at_k(rows: Sequence[EvalRow], k: int) -> float:
    """Return mean over problems of the unbiased pass@k. Raises ValueError when a problem has fewer than k judged samples."""
    return fmean(pass_at_k(len(group), sum(map(is_correct, group)), k) for group in by_problem(rows).values())


def majority_share(group: Sequence[EvalRow]) -> float:
    """Return 1 when the most frequent answer to one problem is right; tied answers share it.

    Right answers count as one whatever their spelling; wrong ones by normalised text; responses without an answer, truncated
    ones among them, do not vote.

    Example: answers 3, 3, 4, 4 with gold 3: 0.5.
    """
    votes: Counter[str] = Counter()
    right = "\0right"
    for row in group:
        if is_correct(row):
            votes[right] += 1
        elif row.outcome is Outcome.WRONG and row.extracted is not None:
            votes[normalise(row.extracted)] += 1
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [answer for answer, count in votes.items() if count == most]
    return (right in winners) / len(winners)


NUM_SUBSETS = 100
"""Random subsets of a problem's samples that vote."""


def maj_at_k(rows: Sequence[EvalRow], k: int) -> float:
    """Return the mean over problems of the majority vote of k samples: exact where a problem has k samples, else the mean
    over NUM_SUBSETS random subsets, seeded by k. Raises ValueError for k above the number of samples."""
    generator = np.random.default_rng(k)
    shares: list[float] = []
    for problem, group in by_problem(rows).items():
        if k > len(group):
            raise ValueError(f"maj@{k} needs at least {k} samples, problem '{problem}' has {len(group)}")
        if k == len(group):
            shares.append(majority_share(group))
        else:
            chosen: list[list[int]] = [generator.permutation(len(group))[:k].tolist() for _ in range(NUM_SUBSETS)]
            shares.append(fmean(majority_share([group[index] for index in subset]) for subset in chosen))
    return fmean(shares)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Length of some responses [tokens]."""

    num_responses: int
    mean: float
    median: float
    quantiles: Mapping[float, float]


def lengths(rows: Iterable[EvalRow]) -> Lengths | None:
    """Return the lengths of responses; None without rows."""
    tokens = [row.num_tokens for row in rows]
    if not tokens:
        return None
    quantiles = dict(zip(QUANTILES, map(float, np.quantile(tokens, QUANTILES)), strict=True))
    return Lengths(num_responses=len(tokens), mean=fmean(tokens), median=float(median(tokens)), quantiles=quantiles)


def lengths_by_outcome(rows: Sequence[EvalRow]) -> dict[str, Lengths | None]:
    """Return the lengths of all responses, and of the correct, wrong, unanswered and truncated ones."""
    outcomes = (Outcome.CORRECT, Outcome.WRONG, Outcome.NO_ANSWER, Outcome.TRUNCATED)
    return {"all": lengths(rows)} | {o.value: lengths(r for r in rows if r.outcome is o) for o in outcomes}


def accuracy_at_budgets(rows: Sequence[EvalRow], budgets: Sequence[int]) -> dict[int, float]:
    """Return the share of responses that are right within each budget [tokens]: the accuracy under a lower cap, if the cap
    changed nothing else."""
    judged = [row for group in by_problem(rows).values() for row in group]
    return {budget: fmean(is_correct(row) and row.num_tokens <= budget for row in judged) for budget in budgets}


def token_complexity(group: Sequence[EvalRow]) -> int | None:
    """Return length [tokens] of the shortest correct response to one problem; None when none is correct.

    Example: lengths 10 (wrong), 20 (wrong), 30 (right), 25 (wrong): 30.
    """
    return min((row.num_tokens for row in group if is_correct(row)), default=None)


def efficiency_score(
    accuracy: float, tokens: float, base_accuracy: float, base_tokens: float, *, alpha: float, beta: float, gamma: float
) -> float:
    """Return the Accuracy-Efficiency Score (O1-Pruner, Luo et al. 2025): alpha * dL + beta * dA where accuracy rose or held,
    alpha * dL - gamma * |dA| where it fell, with relative changes dL = (L_base - L) / L_base and dA = (A - A_base) / A_base.
    Its weights differ between papers, so they are always stated with it.

    Example: 40 % shorter, accuracy 0.5 to 0.45, weights 1, 3, 5: 0.4 - 5 * 0.1 = -0.1.
    """
    shorter = (base_tokens - tokens) / base_tokens
    gained = (accuracy - base_accuracy) / base_accuracy
    return alpha * shorter + (beta * gained if gained >= 0 else -gamma * abs(gained))


def transitions(first: Sequence[EvalRow], second: Sequence[EvalRow]) -> dict[tuple[Outcome, Outcome], int]:
    """Count the (problem, sample) pairs that went from one outcome to another, so that gains of format or truncation are not
    called reasoning. Samples that only one side has are left out."""
    before = {(row.problem_id, row.sample): row.outcome for row in first}
    after = {(row.problem_id, row.sample): row.outcome for row in second}
    return dict(Counter((before[key], after[key]) for key in before if key in after))


def details(rows: Sequence[EvalRow]) -> dict[str, Any]:
    """Return these measures, but for those of pairs of models, for one model on one benchmark, as plain data; intervals are
    bootstrapped over problems."""
    groups = by_problem(rows)
    if not groups:
        return {}
    size = min(map(len, groups.values()))
    cap = max(row.max_tokens for row in rows)
    per_problem = [[row.num_tokens for row in group] for group in grouped(rows, lambda row: row.problem_id).values()]
    complexities = [tokens for group in groups.values() if (tokens := token_complexity(group)) is not None]

    def median_tokens(chosen: Sequence[int]) -> float:
        return float(median(tokens for index in chosen for tokens in per_problem[index]))

    powers = [2**power for power in range(size.bit_length()) if 2**power <= size]
    return {
        "avg_at_k": avg_at_k(rows),
        "pass_at_k": {k: mean_pass_at_k(rows, k) for k in powers},
        # a verifier does not say which answers are equal
        "maj_at_k": None if any(row.verifier is not None for row in rows) else {size: maj_at_k(rows, size)},
        "lengths": {
            name: None if summary is None else asdict(summary) for name, summary in lengths_by_outcome(rows).items()
        },
        "median_tokens_interval": bootstrap_interval(len(per_problem), median_tokens, seed=0),
        "accuracy_at_budgets": accuracy_at_budgets(rows, [max(1, cap * share // 8) for share in (1, 2, 3, 4, 6, 8)]),
        "token_complexity": {
            "num_problems": len(complexities),
            "median_tokens": float(median(complexities)) if complexities else None,
        },
    }
