"""Measures pass rates of problems sequentially, and reads and writes their file.

Responses are drawn in rounds. After each one, problems whose class (below, inside or above the wanted band) is clear stop;
the rest of the budget goes where it is expected to make a class clear. What is known of a problem is the posterior of its
own responses under a prior that all problems of its stratum share (`conclip.curriculum.pooling`). "Never solved" cannot be
proved by sampling: near the band's ends, within the indifference zone, either verdict will do.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError
from scipy.special import betainc, betaincinv, betaln

from conclip.config.groups import ProbeConfig
from conclip.curriculum.pooling import JEFFREYS, Numbers, priors
from conclip.errors import UserError
from conclip.runs.checked import first_fault
from conclip.runs.files import write_text
from conclip.runs.json_lines import DamagedLine, json_lines
from conclip.types import EvalRow, Outcome, Stratum

SCHEMA_VERSION = 3
READABLE = (2, 3)
"""In schema 2, verdict and probability are those of each problem's responses alone; the rest is the same."""

Verdict = Literal["below", "inside", "above"]
VERDICTS: tuple[Verdict, ...] = ("below", "inside", "above")

LOOK_AHEAD = 8
"""Number of further responses whose effect on the posterior is weighed before they are sampled."""

MIN_ROUND_PROBLEMS = 32
"""Fewer problems in a round would leave the engine idle."""

Probabilities = Any
Prior = tuple[Numbers, Numbers]
"""Parameters a and b of Beta distributions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """The pass rates wanted, both ends included."""

    low: float
    high: float

    def contains(self, pass_rate: float) -> bool:
        return self.low <= pass_rate <= self.high


def probabilities(
    num_correct: Numbers, num_judged: Numbers, band: Band, zone: float = 0.0, prior: Prior = JEFFREYS
) -> Probabilities:
    """Return the posterior probabilities of below, inside and above the band, [3, ...]. The ends of each class are moved
    outwards by `zone`, so that they may add up to more than 1. A band that begins at 0 has nothing below it, one that ends
    at 1 nothing above.

    Example: 0 of 12 with band 0.2 to 0.8 is below it with probability 0.98.
    """
    a, b = _posterior(num_correct, num_judged, prior)
    below = betainc(a, b, min(1.0, band.low + zone)) * (band.low > 0)
    above = (1 - betainc(a, b, max(0.0, band.high - zone))) * (band.high < 1)
    inside = betainc(a, b, min(1.0, band.high + zone)) - betainc(a, b, max(0.0, band.low - zone))
    return np.stack([below, inside, above])


def expected_gain(
    num_correct: Numbers, num_judged: Numbers, band: Band, zone: float, prior: Prior = JEFFREYS
) -> Probabilities:
    """Return how much `LOOK_AHEAD` more responses are expected to add to the probability of the likeliest class: its mean
    over the beta-binomial prediction of their outcomes, minus its present value (the knowledge gradient, Frazier et al.
    2008)."""
    a, b = _posterior(num_correct, num_judged, prior)
    now = probabilities(num_correct, num_judged, band, zone, prior).max(0)
    outcomes = range(LOOK_AHEAD + 1)
    then = [probabilities(num_correct + k, num_judged + LOOK_AHEAD, band, zone, prior).max(0) for k in outcomes]
    return sum(_beta_binomial(k, LOOK_AHEAD, a, b) * value for k, value in enumerate(then)) - now


def _beta_binomial(k: int, n: int, a: Numbers, b: Numbers) -> Numbers:
    """Return the chance of k of n where the rate is Beta(a, b): C(n, k) B(k + a, n - k + b) / B(a, b). scipy.stats has it,
    which takes half a second to import."""
    chosen = -math.log(n + 1) - betaln(n - k + 1, k + 1)
    return np.exp(chosen + betaln(k + a, n - k + b) - betaln(a, b))


def _posterior(num_correct: Numbers, num_judged: Numbers, prior: Prior) -> tuple[Numbers, Numbers]:
    return prior[0] + num_correct, prior[1] + num_judged - num_correct


def max_responses(num_problems: int, settings: ProbeConfig) -> int:
    """Return the largest number of responses that probing `num_problems` problems takes."""
    mean = settings.max_samples if settings.mean_samples is None else settings.mean_samples
    return int(min(mean, settings.max_samples) * num_problems)


def next_round(
    counts: Mapping[str, tuple[int, int, int]], strata: Mapping[str, Stratum], band: Band, settings: ProbeConfig
) -> dict[str, int]:
    """Return how many more responses each problem gets, from its stratum and its (correct, judged, sampled) counts so far;
    empty when probing is over.

    First `first_samples` each. Then `more_samples` for those problems whose class is not yet clear and where they are
    expected to help most, an eighth of the pool in a round, while the budget lasts.
    """
    names = list(counts)
    correct, judged, sampled = np.array(list(counts.values())).T
    if (sampled == 0).any():
        return {name: settings.first_samples for name, number in zip(names, sampled, strict=True) if number == 0}
    left = max_responses(len(names), settings) - int(sampled.sum())
    a, b = priors([strata[name] for name in names], correct, judged)
    clearest = probabilities(correct, judged, band, settings.indifference, (a, b)).max(0)
    unclear = np.flatnonzero((clearest < settings.confidence) & (sampled < settings.max_samples))
    gain = expected_gain(correct[unclear], judged[unclear], band, settings.indifference, (a[unclear], b[unclear]))
    wanted: dict[str, int] = {}
    for index in unclear[np.argsort(-gain, kind="stable")][: max(MIN_ROUND_PROBLEMS, len(names) // 8)]:
        number = min(settings.more_samples, settings.max_samples - int(sampled[index]), left)
        if number > 0:
            wanted[names[index]] = number
            left -= number
    return wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRate:
    """One line of `pass_rates.jsonl`."""

    problem_id: str
    source: str
    level: int | None
    subject: str | None
    num_samples: int
    """Responses the grader could judge; without any, there is no pass rate."""
    num_correct: int
    num_truncated: int
    """Truncated responses; they count as not solved."""
    low: float
    """95 % interval of the pass rate from the problem's own responses: Jeffreys', equal tails."""
    high: float
    verdict: Verdict
    """Class in which the pass rate most probably lies, given the responses to all problems."""
    band_probability: float
    """Posterior probability that the pass rate lies in the band, given the responses to all problems."""
    mean_tokens: float
    correct_mean_tokens: float | None
    wrong_mean_tokens: float | None
    model_hash: str
    sampling_hash: str
    """Hash of everything else that changes a response: instruction, temperature, token limit."""
    grader_version: int

    @property
    def pass_rate(self) -> float:
        return self.num_correct / self.num_samples if self.num_samples else 0.0

    @property
    def stratum(self) -> Stratum:
        return (self.source, self.subject, self.level)


def pooled_probabilities(rates: Sequence[PassRate], band: Band) -> Probabilities:
    """Return posterior probabilities that each pass rate lies below, inside or above the band, [3, N]."""
    correct, judged, prior = _counts_and_prior(rates)
    return probabilities(correct, judged, band, prior=prior)


def pooled_means(rates: Sequence[PassRate]) -> list[float]:
    """Return the posterior mean of each pass rate."""
    correct, judged, (a, b) = _counts_and_prior(rates)
    return ((a + correct) / (a + b + judged)).tolist()


def _counts_and_prior(rates: Sequence[PassRate]) -> tuple[Any, Any, tuple[Any, Any]]:
    """Return correct and judged responses of each problem, and its prior's two parameters, [N] each."""
    correct, judged = np.array([(rate.num_correct, rate.num_samples) for rate in rates], dtype=int).reshape(-1, 2).T
    return correct, judged, priors([rate.stratum for rate in rates], correct, judged)


def pass_rates(rows: Iterable[EvalRow], band: Band, *, model_hash: str, sampling_hash: str) -> list[PassRate]:
    """Return the pass rate of every problem of a probe, in the order of its rows; the rows of one problem must be
    adjacent."""
    rates: list[PassRate] = []
    for problem_id, group in groupby(rows, key=lambda row: row.problem_id):
        members = list(group)
        judged = [row for row in members if row.outcome is not Outcome.GRADER_ERROR]
        correct = [row.num_tokens for row in judged if row.outcome is Outcome.CORRECT]
        wrong = [row.num_tokens for row in judged if row.outcome is Outcome.WRONG]
        a, b = _posterior(len(correct), len(judged), JEFFREYS)
        rates.append(
            PassRate(
                problem_id=problem_id,
                source=members[0].benchmark,
                level=members[0].level,
                subject=members[0].subject,
                num_samples=len(judged),
                num_correct=len(correct),
                num_truncated=sum(row.outcome is Outcome.TRUNCATED for row in judged),
                low=float(betaincinv(a, b, 0.025)),
                high=float(betaincinv(a, b, 0.975)),
                verdict="inside",  # replaced below, once all problems are counted
                band_probability=math.nan,
                mean_tokens=fmean(row.num_tokens for row in members),
                correct_mean_tokens=fmean(correct) if correct else None,
                wrong_mean_tokens=fmean(wrong) if wrong else None,
                model_hash=model_hash,
                sampling_hash=sampling_hash,
                grader_version=members[0].grader_version,
            )
        )
    return [
        replace(rate, verdict=VERDICTS[classes.argmax()], band_probability=float(classes[1]))
        for rate, classes in zip(rates, pooled_probabilities(rates, band).T, strict=True)
    ]


def write_pass_rates(path: Path, rates: Sequence[PassRate]) -> None:
    lines = [json.dumps({"schema": SCHEMA_VERSION, **asdict(rate)}) for rate in rates]
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_pass_rates(path: Path) -> list[PassRate]:
    """Return the pass rates of a probe's file. Raises UserError with the line number when it is another file."""
    if not path.is_file():
        raise UserError(f"pass_rates: no file '{path}'; give a probe's run or its pass_rates.jsonl, or null to probe first")
    rates: dict[str, PassRate] = {}
    schema = TypeAdapter(PassRate)
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, row in json_lines(lines, cut_line="read"):  # noqa: B007  errors name it
                if row.pop("schema") not in READABLE:
                    raise ValueError("written by another version")
                rate = schema.validate_python(row)
                if not 0 <= rate.num_correct <= rate.num_samples < 2**53 or not 0 <= rate.num_truncated < 2**53:
                    raise ValueError(f"{rate.num_correct} of {rate.num_samples} responses correct")
                if rate.problem_id in rates:
                    raise ValueError(f"problem '{rate.problem_id}' appears twice")
                rates[rate.problem_id] = rate
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = first_fault(error) if isinstance(error, ValidationError) else " ".join(str(error).split())[:120]
        place = error.number if isinstance(error, DamagedLine) else max(1, number)
        raise UserError(f"{path}:{place}: not a line of pass_rates.jsonl ({reason}); probe again") from error
    if not rates:
        raise UserError(f"pass_rates: '{path}' is empty; probe again")
    return list(rates.values())


BINS = {"never": 0.0, "up to 0.2": 0.2, "0.2-0.5": 0.5, "0.5-0.8": 0.8, "above 0.8": 1.0, "always": None}
"""Name -> upper end of the bins in the display; "always" means never failed."""


def graded(rates: Sequence[PassRate]) -> list[PassRate]:
    """Return the pass rates of which something is known: those of problems with a response that could be graded."""
    return [rate for rate in rates if rate.num_samples]


def histogram(rates: Sequence[PassRate]) -> dict[str, int]:
    """Return the number of problems in each of `BINS`, of those that have a response that could be graded."""
    counts = dict.fromkeys(BINS, 0)
    for rate in graded(rates):
        p = rate.pass_rate
        name = "always" if p == 1 else next(name for name, end in BINS.items() if end is not None and p <= end)
        counts[name] += 1
    return counts


def describe(rates: Sequence[PassRate]) -> str:
    """Return the histogram in words."""
    ungraded = len(rates) - len(graded(rates))
    bins = ", ".join(f"{name}: {count}" for name, count in histogram(rates).items())
    return f"solved {bins}{f'; not graded: {ungraded}' if ungraded else ''}"
