"""Chooses the training problems of a phase, with a stated reason for each."""

import math
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

from conclip.config.groups import PhaseConfig
from conclip.curriculum.pass_rates import Band, PassRate, describe, graded, pooled_means, pooled_probabilities
from conclip.errors import UserError
from conclip.seeding import python_stream
from conclip.types import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A training problem and why it is one."""

    problem: Problem
    reason: str
    rate: PassRate | None
    """Its measured pass rate; None for a problem that the config names."""
    probability: float = 1.0
    """Posterior probability that its pass rate lies in the band, given the responses to all problems."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    chosen: tuple[Choice, ...]
    reserve: tuple[Choice, ...]
    """Further candidates in the order in which they would have been taken; none for problems that the config names."""

    @property
    def problems(self) -> list[Problem]:
        return [choice.problem for choice in self.chosen]

    @property
    def candidates(self) -> tuple[Choice, ...]:
        """Return all choices that the phase may train on."""
        return (*self.chosen, *self.reserve)

    @property
    def problems_by_id(self) -> dict[str, Problem]:
        """Return the problems of all candidates, in their order."""
        return {choice.problem.problem_id: choice.problem for choice in self.candidates}

    def confidence_note(self, phase: PhaseConfig) -> str | None:
        """Return a sentence when chosen problems lie in the band less probably than asked for, else None."""
        doubtful = [choice.probability for choice in self.chosen if choice.probability < phase.band_confidence]
        if not doubtful:
            return None
        band = f"[{phase.pass_rate_low:g}, {phase.pass_rate_high:g}]"
        lowest = math.floor(100 * min(doubtful)) / 100
        return (
            f"{len(doubtful)} of {len(self.chosen)} chosen problems lie in {band} with a probability below "
            f"{phase.band_confidence:g} (lowest {lowest:.2f}); more responses (probe=sequential) or more problems "
            "(data.pool) make surer ones"
        )


def select(key: str, problems: Sequence[Problem], rates: Sequence[PassRate], phase: PhaseConfig, seed: int) -> Selection:
    """Return the training problems of the phase whose settings are at `key` of the config: those it names by id or by
    answer, else `num_problems` whose measured pass rate lies in its band.

    First come those whose true rate lies there with at least probability `band_confidence`, subjects and levels in turn (a
    spread over difficulties), in an order the seed decides; then all others, the most probable first. `hardest` and
    `wrong_answers` make some unsolvable. Raises UserError with the distribution of pass rates when there are too few.
    """
    by_id = {problem.problem_id: problem for problem in problems}
    if phase.problem_ids is not None:
        unknown = [problem_id for problem_id in phase.problem_ids if problem_id not in by_id]
        if unknown:
            raise UserError(
                f"{key}.problem_ids: '{unknown[0]}' is not in data.pool; pass_rates.jsonl of a probe lists its ids"
            )
        return _by_hand([by_id[problem_id] for problem_id in phase.problem_ids], "named by problem_ids")
    if phase.answers is not None:
        return _by_hand([_by_answer(key, str(answer), problems) for answer in phase.answers], "named by answers")
    band = Band(low=phase.pass_rate_low, high=phase.pass_rate_high)
    known = [rate for rate in rates if rate.problem_id in by_id]
    candidates = [
        Choice(problem=by_id[rate.problem_id], reason=_reason(rate, band, probability), rate=rate, probability=probability)
        for rate, probability in zip(known, pooled_probabilities(known, band)[1].tolist(), strict=True)
        if rate.num_samples and band.contains(rate.pass_rate)
    ]
    if not known:
        raise UserError(
            f"{key}: no problem is left to choose from: an earlier stage trained on every one that was probed; give "
            "data.pool more problems"
        )
    if not graded(known):
        raise UserError(
            f"{key}: none of the responses to the {len(known)} probed problems could be graded; check the answers of "
            "data.pool"
        )
    if not any(rate.num_correct for rate in known):
        raise UserError(
            f"{key}: none of the {len(graded(known))} probed problems was ever solved. If the probe told of missing "
            "boxes or truncated responses, mend that first (rollout.extraction=lenient, recipe=warm_up, a larger "
            "rollout.max_tokens); else give data.pool easier problems, or take a stronger model"
        )
    num_hardest = round(phase.hardest * phase.num_problems)
    num_wanted = phase.num_problems - num_hardest
    if len(candidates) < num_wanted:
        raise UserError(
            f"{key}: {len(candidates)} of {len(known)} probed problems have a measured pass rate in "
            f"[{band.low:g}, {band.high:g}], {num_wanted} are needed ({describe(known)}); widen "
            f"{key}.pass_rate_low/high, lower {key}.num_problems, give data.pool easier, harder or more problems, or take "
            "more responses of each (probe=sequential)"
        )
    ordered = _spread([choice for choice in candidates if choice.probability >= phase.band_confidence], key, seed)
    doubtful = [choice for choice in candidates if choice.probability < phase.band_confidence]
    ordered += sorted(doubtful, key=lambda choice: (-choice.probability, choice.problem.problem_id))
    chosen = ordered[:num_wanted]
    chosen += _hardest(key, {choice.problem.problem_id for choice in chosen}, by_id, graded(known), num_hardest)
    return Selection(chosen=_with_wrong_answers(key, chosen, phase, seed), reserve=tuple(ordered[num_wanted:]))


def _hardest(
    key: str, taken: Container[str], by_id: Mapping[str, Problem], rates: Sequence[PassRate], number: int
) -> list[Choice]:
    """Return the problems of the lowest pass rates, given the responses to all. Raises UserError when there are too few."""
    left = [(mean, rate) for rate, mean in zip(rates, pooled_means(rates), strict=True) if rate.problem_id not in taken]
    if len(left) < number:
        raise UserError(f"{key}.hardest: wants {number} more problems, {len(left)} are left; give data.pool more problems")
    left.sort(key=lambda pair: (pair[0], pair[1].problem_id))
    return [
        Choice(
            problem=by_id[rate.problem_id],
            reason=f"one of the hardest: solved {rate.num_correct} of {rate.num_samples} times, by all responses {mean:.2f}",
            rate=rate,
        )
        for mean, rate in left[:number]
    ]


def _with_wrong_answers(key: str, chosen: Sequence[Choice], phase: PhaseConfig, seed: int) -> tuple[Choice, ...]:
    """Replace the gold answers of a seeded part of the choices by numbers of fifteen digits; a larger part holds a smaller
    one. Raises UserError for a problem with options or a verifier, whose answer cannot be a number."""
    stream = python_stream(seed, key.rpartition(".")[2], "wrong answers")
    order = stream.sample(range(len(chosen)), len(chosen))
    numbers = [str(stream.randrange(10**14, 10**15)) for _ in chosen]
    changed = list(chosen)
    for index in order[: round(phase.wrong_answers * len(chosen))]:
        choice = chosen[index]
        problem = choice.problem
        if problem.choices is not None or problem.verifier is not None:
            what = "has options" if problem.verifier is None else "has a verifier"
            raise UserError(f"{key}.wrong_answers: '{problem.problem_id}' {what}; it is for open answers only")
        problem = replace(problem, answer=numbers[index], alternatives=())
        changed[index] = replace(choice, problem=problem, reason=f"{choice.reason}; its answer replaced by {numbers[index]}")
    return tuple(changed)


def _by_hand(problems: Sequence[Problem], reason: str) -> Selection:
    """Return the selection of problems that the config names. Raises UserError when a problem is named twice."""
    ids = [problem.problem_id for problem in problems]
    if twice := [problem_id for problem_id in ids if ids.count(problem_id) > 1]:
        raise UserError(f"problem '{twice[0]}' is {reason} twice; name each training problem once")
    return Selection(chosen=tuple(Choice(problem=p, reason=reason, rate=None) for p in problems), reserve=())


def _by_answer(key: str, answer: str, problems: Sequence[Problem]) -> Problem:
    """Return the one problem with this gold answer (073 is 73). Raises UserError when there is none or more than one."""
    wanted = answer.strip().lstrip("0")
    matching = [problem for problem in problems if wanted in {gold.strip().lstrip("0") for gold in problem.golds}]
    if len(matching) != 1:
        which = f" ({', '.join(problem.problem_id for problem in matching)})" if matching else ""
        raise UserError(
            f"{key}.answers: {len(matching)} problems of data.pool have the answer '{answer}'{which}, one must; "
            f"name the problems by {key}.problem_ids instead"
        )
    return matching[0]


def _spread(choices: Sequence[Choice], key: str, seed: int) -> list[Choice]:
    """Order choices so that each next one has the subject and level taken least so far. Ties are broken by a seeded shuffle,
    so that a set smaller than the number of levels does not hold the lowest ones only."""
    strata: dict[tuple[str | None, int | None], list[Choice]] = {}
    for choice in python_stream(seed, key.rpartition(".")[2], "select").sample(list(choices), len(choices)):
        strata.setdefault((choice.problem.subject, choice.problem.level), []).append(choice)
    subjects: Counter[str | None] = Counter()
    levels: Counter[int | None] = Counter()
    ordered: list[Choice] = []
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
        f"solved {rate.num_correct} of {rate.num_samples} times, 95 % [{rate.low:.2f}, {rate.high:.2f}]; by all responses "
        f"in [{band.low:g}, {band.high:g}] with probability {probability:.2f}{f'; {where}' if where else ''}"
    )
