"""Numbers of the result tables: pure functions of evaluation rows."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from conclip.evaluation.advice import is_loop
from conclip.stats import clustered_difference, clustered_ratio
from conclip.types import EvalRow, ExtractionRule, Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean with its 95 % interval, clustered by problem."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The numbers of one model on one benchmark."""

    num_problems: int
    num_responses: int
    accuracy: Estimate
    """Share of correct responses; truncated and unanswered ones are not correct, grader errors are left out."""
    strict_accuracy: Estimate
    """Accuracy when only an answer in a box counts."""
    lenient_accuracy: Estimate
    """Accuracy when an answer outside a box counts, too: it shows how much of a difference is format."""
    extraction: ExtractionRule
    """Which of the two is `accuracy`."""
    mean_tokens: Estimate
    correct_mean_tokens: Estimate | None
    """None when no response is correct."""
    wrong_mean_tokens: Estimate | None
    no_answer_rate: Estimate
    """Share of responses that ended without an answer that counts: by strict extraction, without one in a box."""
    truncation_rate: Estimate
    looping_rate: float
    """Share of responses that were cut while they repeated themselves."""
    grader_errors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One model compared with another on the same problems; differences are paired by problem."""

    accuracy_difference: Estimate
    tokens_ratio: Estimate
    """Mean tokens of the second over the first, of all responses, graded or not; problems are paired and have equal
    weight."""
    num_problems: int
    """Problems with judged responses of both models."""
    accuracy_spread: float
    """Standard deviation of the problems' differences in accuracy; it decides how many problems are needed to show
    something."""


UNKNOWN_DIFFERENCE = Estimate(mean=0.0, low=-1.0, high=1.0)
"""Difference in accuracy where no problem has a judged response of both models."""

UNKNOWN_RATIO = Estimate(mean=1.0, low=0.0, high=math.inf)
"""Ratio of tokens where the first model's responses have none, as those that a server withholds."""


def summarise(rows: Sequence[EvalRow]) -> Summary:
    """Return accuracy, lengths and truncation of one model's rows on one benchmark. Raises ValueError without rows."""
    if not rows:
        raise ValueError("no rows to summarise")
    judged = [row for row in rows if row.outcome is not Outcome.GRADER_ERROR]
    return Summary(
        num_problems=len({row.problem_id for row in rows}),
        num_responses=len(rows),
        accuracy=_share(_accuracy_pairs(rows)),
        strict_accuracy=_share(_accuracy_pairs(row.by("strict") for row in rows)),
        lenient_accuracy=_share(_accuracy_pairs(row.by("lenient") for row in rows)),
        extraction=rows[0].extraction,
        mean_tokens=_estimate((r.problem_id, float(r.num_tokens)) for r in rows),
        correct_mean_tokens=_tokens_of(rows, Outcome.CORRECT),
        wrong_mean_tokens=_tokens_of(rows, Outcome.WRONG),
        no_answer_rate=_share((r.problem_id, float(r.outcome is Outcome.NO_ANSWER)) for r in rows),
        looping_rate=fmean(map(is_loop, rows)),
        truncation_rate=_share((r.problem_id, float(r.outcome is Outcome.TRUNCATED)) for r in rows),
        grader_errors=len(rows) - len(judged),
    )


def compare(first: Sequence[EvalRow], second: Sequence[EvalRow]) -> Comparison:
    """Compare `second` with `first`. Raises ValueError unless both cover the same problems."""
    accuracy = [_by_problem(_accuracy_pairs(rows)) for rows in (first, second)]
    tokens = [_by_problem((r.problem_id, float(r.num_tokens)) for r in rows) for rows in (first, second)]
    if tokens[0].keys() != tokens[1].keys():
        raise ValueError("the two evaluations cover different problems")
    shared = [key for key in accuracy[0] if key in accuracy[1]]
    differences = [fmean(accuracy[1][key]) - fmean(accuracy[0][key]) for key in shared]
    before = [fmean(values) for values in tokens[0].values()]
    after = [fmean(tokens[1][key]) for key in tokens[0]]
    return Comparison(
        accuracy_difference=to_estimate(clustered_difference(differences)) if differences else UNKNOWN_DIFFERENCE,
        tokens_ratio=to_estimate(clustered_ratio(after, before)) if any(before) else UNKNOWN_RATIO,
        num_problems=len(differences),
        accuracy_spread=pstdev(differences) if differences else 1.0,
    )


def _accuracy_pairs(rows: Iterable[EvalRow]) -> Iterable[tuple[str, float]]:
    return ((r.problem_id, float(r.outcome is Outcome.CORRECT)) for r in rows if r.outcome is not Outcome.GRADER_ERROR)


def _tokens_of(rows: Sequence[EvalRow], outcome: Outcome) -> Estimate | None:
    pairs = [(row.problem_id, float(row.num_tokens)) for row in rows if row.outcome is outcome]
    return _estimate(pairs) if pairs else None


def _estimate(pairs: Iterable[tuple[str, float]]) -> Estimate:
    """Return the mean over responses with an interval clustered by problem."""
    return to_estimate(clustered_ratio(*_sums(pairs)))


def _share(pairs: Iterable[tuple[str, float]]) -> Estimate:
    """Return the share of responses with an interval clustered by problem; [0, 1] without responses."""
    sums, numbers = _sums(pairs)
    return to_estimate(clustered_ratio(sums, numbers, ends=(0.0, 1.0)) if sums else (0.0, 0.0, 1.0))


def _sums(pairs: Iterable[tuple[str, float]]) -> tuple[list[float], list[float]]:
    """Return the sum and the number of each problem's values."""
    clusters = _by_problem(pairs).values()
    return [sum(cluster) for cluster in clusters], [float(len(cluster)) for cluster in clusters]


def _by_problem(pairs: Iterable[tuple[str, float]]) -> dict[str, list[float]]:
    clusters: dict[str, list[float]] = {}
    for problem_id, value in pairs:
        clusters.setdefault(problem_id, []).append(value)
    return clusters


def to_estimate(interval: tuple[float, float, float]) -> Estimate:
    """Return (mean, low, high) as an estimate."""
    return Estimate(mean=interval[0], low=interval[1], high=interval[2])
