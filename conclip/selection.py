"""The choice of a phase's training problems, with a stated reason for each."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from conclip.config import PhaseConfig, UserError
from conclip.probe import Band, PassRate, describe, pooled
from conclip.seeding import python_stream
from conclip.types import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A training problem and why it is one."""

    problem: Problem
    reason: str
    rate: PassRate | None
    """None when it was named by hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    chosen: tuple[Choice, ...]
    reserve: tuple[Choice, ...]
    """Further candidates in the order they would have been taken; none for problems named by hand."""

    @property
    def problems(self) -> list[Problem]:
        return [choice.problem for choice in self.chosen]


def select(key: str, problems: Sequence[Problem], rates: Sequence[PassRate], phase: PhaseConfig, seed: int) -> Selection:
    """The phase's training problems: those named in the config by id or by answer, else `num_problems` whose measured pass
    rate lies in its band, and whose true one does with at least probability `band_confidence`.

    Of these, subjects and levels take turns (a spread over difficulties), in an order the seed decides; so do the ones in
    reserve. Raises UserError with the distribution of pass rates when there are too few.
    """
    by_id = {problem.problem_id: problem for problem in problems}
    if phase.problem_ids is not None:
        unknown = [problem_id for problem_id in phase.problem_ids if problem_id not in by_id]
        if unknown:
            raise UserError(f"{key}.problem_ids: '{unknown[0]}' is not in data.pool")
        return _by_hand([by_id[problem_id] for problem_id in phase.problem_ids], "named by problem_ids")
    if phase.answers is not None:
        return _by_hand([_by_answer(key, str(answer), problems) for answer in phase.answers], "named by answers")
    band = Band(low=phase.pass_rate_low, high=phase.pass_rate_high)
    known = [rate for rate in rates if rate.problem_id in by_id]
    probability = dict(zip([rate.problem_id for rate in rates], pooled(rates, band)[1], strict=True))
    inside = [rate for rate in known if rate.num_samples and band.holds(rate.pass_rate)]
    sure = [rate for rate in inside if probability[rate.problem_id] >= phase.band_confidence]
    if len(sure) < phase.num_problems:
        unsure = f", {len(inside)} without asking for probability {phase.band_confidence:g}" if sure != inside else ""
        raise UserError(
            f"{key}: {len(sure)} of {len(known)} probed problems have a pass rate in [{band.low:g}, {band.high:g}]{unsure}, "
            f"{phase.num_problems} are needed ({describe(known)}); widen {key}.pass_rate_low/high or lower "
            f"{key}.band_confidence, lower {key}.num_problems, or give data.pool easier, harder or more problems"
        )
    ordered = [
        Choice(problem=by_id[rate.problem_id], reason=_reason(rate, band, probability[rate.problem_id]), rate=rate)
        for rate in _spread(sure, key, seed)
    ]
    return Selection(chosen=tuple(ordered[: phase.num_problems]), reserve=tuple(ordered[phase.num_problems :]))


def _by_hand(problems: Sequence[Problem], reason: str) -> Selection:
    """Raises UserError when a problem is named twice."""
    ids = [problem.problem_id for problem in problems]
    if twice := [problem_id for problem_id in ids if ids.count(problem_id) > 1]:
        raise UserError(f"problem '{twice[0]}' is {reason} twice; name each training problem once")
    return Selection(chosen=tuple(Choice(problem=p, reason=reason, rate=None) for p in problems), reserve=())


def _by_answer(key: str, answer: str, problems: Sequence[Problem]) -> Problem:
    """The one problem with this gold answer (073 is 73). Raises UserError when there is none or more than one."""
    found = [problem for problem in problems if problem.answer.strip().lstrip("0") == answer.strip().lstrip("0")]
    if len(found) != 1:
        which = f" ({', '.join(problem.problem_id for problem in found)})" if found else ""
        raise UserError(
            f"{key}.answers: {len(found)} problems of data.pool have the answer '{answer}'{which}, one must; "
            f"name the problems by {key}.problem_ids instead"
        )
    return found[0]


def _spread(rates: Sequence[PassRate], key: str, seed: int) -> list[PassRate]:
    """Shuffled, then always one of the subject and level that were taken least so far; the shuffle decides between equals,
    so that a set smaller than the number of levels does not hold the lowest ones."""
    strata: dict[tuple[str | None, int | None], list[PassRate]] = {}
    for rate in python_stream(seed, key, "select").sample(list(rates), len(rates)):
        strata.setdefault((rate.subject, rate.level), []).append(rate)
    subjects: Counter[str | None] = Counter()
    levels: Counter[int | None] = Counter()
    ordered: list[PassRate] = []
    while strata:
        subject, level = least = min(strata, key=lambda name: subjects[name[0]] + levels[name[1]])
        ordered.append(strata[least].pop())
        subjects[subject] += 1
        levels[level] += 1
        if not strata[least]:
            del strata[least]
    return ordered


def _reason(rate: PassRate, band: Band, probability: float) -> str:
    where = ", ".join(
        [
            *([f"subject {rate.subject}"] if rate.subject else []),
            *([f"level {rate.level}"] if rate.level is not None else []),
        ]
    )
    return (
        f"solved {rate.num_correct} of {rate.num_samples} times [{rate.low:.2f}, {rate.high:.2f}], in "
        f"[{band.low:g}, {band.high:g}] with probability {probability:.2f}{f'; {where}' if where else ''}"
    )
