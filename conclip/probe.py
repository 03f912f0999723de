"""Pass rates of problems, measured, and the choice of training problems by them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, cast

from conclip.config import PhaseConfig, UserError
from conclip.seeding import python_stream
from conclip.stats import wilson_interval
from conclip.types import Outcome, Problem, RolloutGroup

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRate:
    """One line of `pass_rates.jsonl`."""

    problem_id: str
    source: str
    level: int | None
    num_samples: int
    """Responses the grader could judge."""
    num_correct: int
    num_truncated: int
    low: float
    """Wilson 95 % interval of the pass rate."""
    high: float
    mean_tokens: float
    correct_mean_tokens: float | None
    wrong_mean_tokens: float | None

    @property
    def pass_rate(self) -> float:
        return self.num_correct / self.num_samples if self.num_samples else 0.0


def pass_rates(groups: Sequence[RolloutGroup]) -> list[PassRate]:
    """The pass rate of every group, truncated responses counted as not passed."""
    rates: list[PassRate] = []
    for group in groups:
        judged = [r for r in group.rollouts if r.grade.outcome is not Outcome.GRADER_ERROR]
        correct = [r.completion.num_tokens for r in judged if r.grade.outcome is Outcome.CORRECT]
        wrong = [r.completion.num_tokens for r in judged if r.grade.outcome is Outcome.WRONG]
        low, high = wilson_interval(len(correct), len(judged))
        rates.append(
            PassRate(
                problem_id=group.problem.problem_id,
                source=group.problem.source,
                level=group.problem.level,
                num_samples=len(judged),
                num_correct=len(correct),
                num_truncated=sum(r.grade.outcome is Outcome.TRUNCATED for r in judged),
                low=low,
                high=high,
                mean_tokens=fmean(r.completion.num_tokens for r in group.rollouts),
                correct_mean_tokens=fmean(correct) if correct else None,
                wrong_mean_tokens=fmean(wrong) if wrong else None,
            )
        )
    return rates


def write_pass_rates(path: Path, rates: Sequence[PassRate]) -> None:
    with path.open("w", encoding="utf-8") as out:
        for rate in rates:
            out.write(json.dumps({"schema": SCHEMA_VERSION, **asdict(rate)}) + "\n")


def read_pass_rates(path: Path) -> list[PassRate]:
    """Raises UserError with the line number when the file is not a probe's."""
    if not path.is_file():
        raise UserError(f"pass_rates: no file '{path}'; give the pass_rates.jsonl of a probe, or null to probe first")
    rates: list[PassRate] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = cast(dict[str, Any], json.loads(line))
            if row.pop("schema") != SCHEMA_VERSION:
                raise ValueError("written by another version")
            rates.append(PassRate(**row))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}:{number}: not a line of pass_rates.jsonl ({error}); probe again") from error
    if not rates:
        raise UserError(f"pass_rates: '{path}' is empty; probe again")
    return rates


def select(key: str, problems: Sequence[Problem], rates: Sequence[PassRate], phase: PhaseConfig, seed: int) -> list[Problem]:
    """The phase's training problems: those named in the config, else `num_problems` with a pass rate in its band.

    From the band, the levels take turns (a spread over difficulties), in an order the seed decides. Raises UserError with
    the distribution of pass rates when the band holds too few.
    """
    by_id = {problem.problem_id: problem for problem in problems}
    if phase.problem_ids is not None:
        unknown = [problem_id for problem_id in phase.problem_ids if problem_id not in by_id]
        if unknown:
            raise UserError(f"{key}.problem_ids: '{unknown[0]}' is not in data.pool")
        return [by_id[problem_id] for problem_id in phase.problem_ids]
    band = [r for r in rates if r.problem_id in by_id and phase.pass_rate_low <= r.pass_rate <= phase.pass_rate_high]
    if len(band) < phase.num_problems:
        raise UserError(
            f"{key}: {len(band)} of {len(rates)} probed problems have a pass rate in "
            f"[{phase.pass_rate_low:g}, {phase.pass_rate_high:g}], {phase.num_problems} are needed ({describe(rates)}); "
            f"widen {key}.pass_rate_low/high, lower {key}.num_problems, or give data.pool easier or harder problems"
        )
    stream = python_stream(seed, key, "select")
    by_level: dict[int, list[PassRate]] = {}
    for rate in stream.sample(band, len(band)):
        by_level.setdefault(rate.level or 0, []).append(rate)
    chosen: list[Problem] = []
    while len(chosen) < phase.num_problems:
        for level in sorted(by_level):
            if by_level[level] and len(chosen) < phase.num_problems:
                chosen.append(by_id[by_level[level].pop().problem_id])
    return chosen


def describe(rates: Sequence[PassRate]) -> str:
    """Pass rates in five bins, in words."""
    bins = {"never": 0, "up to 0.2": 0, "0.2-0.8": 0, "above 0.8": 0, "always": 0}
    for rate in rates:
        p = rate.pass_rate
        name = (
            "never"
            if p == 0
            else "always"
            if p == 1
            else "up to 0.2"
            if p <= 0.2
            else "0.2-0.8"
            if p <= 0.8
            else "above 0.8"
        )
        bins[name] += 1
    return "solved " + ", ".join(f"{name}: {count}" for name, count in bins.items())
