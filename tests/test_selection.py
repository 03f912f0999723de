"""The choice of training problems."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from conclip.config.compose import load_config
from conclip.config.groups import PhaseConfig
from conclip.config.schema import TrainRunConfig
from conclip.curriculum.pass_rates import Band, PassRate, pass_rates
from conclip.curriculum.selection import select
from conclip.errors import UserError
from conclip.types import Outcome, Problem
from tests.conftest import make_row

BAND = Band(low=0.2, high=0.8)


def rate(name: str, num_correct: int, *, of: int = 10, level: int | None = 1, subject: str | None = None) -> PassRate:
    found = [make_row(name, Outcome.CORRECT if n < num_correct else Outcome.WRONG, 5, n, level=level) for n in range(of)]
    (made,) = pass_rates(found, BAND, model_hash="m", sampling_hash="s")
    return replace(made, subject=subject)


@cache
def shipped() -> PhaseConfig:
    config = load_config("train-phase2", "phase.num_problems=2", "phase.problems_per_step=2", "phase.band_confidence=0")
    assert isinstance(config, TrainRunConfig)
    return config.phase


def phase(**changes: object) -> PhaseConfig:
    return replace(shipped(), **changes)  # type: ignore[arg-type]


def problem_of(rate: PassRate, answer: str = "1") -> Problem:
    name = rate.problem_id
    return Problem(problem_id=name, question=name, answer=answer, source="s", level=rate.level, subject=rate.subject)


RATES = [rate("never", 0), rate("rare", 1), rate("some", 5), rate("more", 8, level=2), rate("also", 6), rate("always", 10)]
PROBLEMS = [problem_of(rate, answer=str(n)) for n, rate in enumerate(RATES)]


def ids(*arguments: object, **changes: object) -> list[str]:
    return [problem.problem_id for problem in select("phase", PROBLEMS, RATES, phase(**changes), 0).problems]


def test_selection_stays_in_the_band_spreads_over_levels_and_repeats():
    assert "more" in ids() and set(ids()) < {"some", "more", "also"}
    assert ids() == ids()
    picks = {select("phase", PROBLEMS, RATES, phase(num_problems=1), seed).problems[0].problem_id for seed in range(20)}
    assert picks == {"some", "more", "also"}  # whatever their level


def test_selection_spreads_over_subjects():
    rates = [rate(f"{subject}-{n}", 5, subject=subject) for subject in ("algebra", "geometry", "logic") for n in range(4)]
    problems = [problem_of(rate) for rate in rates]
    chosen = select("phase", problems, rates, phase(num_problems=3), 0).problems
    assert {problem.problem_id.split("-")[0] for problem in chosen} == {"algebra", "geometry", "logic"}


def chosen_strata(number: int, seed: int) -> list[tuple[str, int]]:
    """Subject and level of what is chosen from three problems each of two subjects and four levels."""
    rates = [
        rate(f"{subject} {level} {n}", 5, subject=subject, level=level)
        for subject in "ab"
        for level in (1, 2, 3, 4)
        for n in range(3)
    ]
    problems = [problem_of(rate) for rate in rates]
    settings = phase(num_problems=number, problems_per_step=1)
    names = [problem.problem_id.split() for problem in select("phase", problems, rates, settings, seed).problems]
    return [(subject, int(level)) for subject, level, _ in names]


@pytest.mark.parametrize("seed", range(5))
def test_selection_spreads_over_subjects_and_levels_at_once(seed: int):
    chosen = chosen_strata(4, seed)
    assert sorted(subject for subject, _ in chosen) == ["a", "a", "b", "b"]
    assert sorted(level for _, level in chosen) == [1, 2, 3, 4]
    assert sorted(chosen_strata(24, seed)) == sorted(3 * [(s, level) for s in "ab" for level in (1, 2, 3, 4)])


def test_small_sets_favour_no_level_and_no_subject():
    first = [stratum for seed in range(60) for stratum in chosen_strata(2, seed)]
    assert {level for _, level in first} == {1, 2, 3, 4}
    assert 45 <= sum(level <= 2 for _, level in first) <= 75
    assert sum(subject == "a" for subject, _ in first) == 60  # of two, one is of each subject


def test_every_choice_has_its_reason_and_the_rest_waits_in_reserve():
    selection = select("phase", PROBLEMS, RATES, phase(), 0)
    more = next(choice for choice in selection.chosen if choice.problem.problem_id == "more")
    assert more.reason.startswith("solved 8 of 10 times, 95 % [0.50, 0.96]; by all") and more.reason.endswith("; level 2")
    assert len(selection.reserve) == 1
    everyone = {choice.problem.problem_id for choice in (*selection.chosen, *selection.reserve)}
    assert everyone == {"some", "more", "also"}


def test_doubtful_problems_come_last_and_are_said():
    assert set(ids(num_problems=2, band_confidence=0.9)) == {"some", "also"}  # 8 of 10 may well be above 0.8
    wanted = phase(num_problems=3, band_confidence=0.9)
    selection = select("phase", PROBLEMS, RATES, wanted, 0)
    assert selection.problems[2].problem_id == "more"
    note = selection.confidence_note(wanted)
    assert note is not None and note.startswith("1 of 3 chosen problems lie in [0.2, 0.8] with a probability below 0.9")
    assert selection.confidence_note(phase(num_problems=3)) is None


@pytest.mark.parametrize("seed", range(5))
def test_levels_without_true_candidates_give_none(seed: int):
    """Twelve responses to each of 100 easy and 100 middling problems: easy ones that seem to lie in the band are unlucky."""
    random = np.random.default_rng(seed)
    truth = {f"{level} {n}": p for level, p in ((1, 0.9), (2, 0.5)) for n in range(100)}
    rates = [rate(name, int(random.binomial(12, p)), of=12, level=int(name[0])) for name, p in truth.items()]
    problems = [problem_of(rate) for rate in rates]
    assert sum(0.2 <= rate.pass_rate <= 0.8 for rate in rates[:100]) >= 4
    chosen = select("phase", problems, rates, phase(num_problems=8, band_confidence=0.8), seed).problems
    assert {problem.problem_id[0] for problem in chosen} == {"2"}


def test_a_phase_finds_problems_in_a_pool_without_levels():
    """Rare successes, the probe as shipped: twelve responses can make no problem sure, but the candidates are found."""
    config = load_config("train-phase1", "phase.pass_rate_low=0.05", "phase.pass_rate_high=0.2")
    assert isinstance(config, TrainRunConfig)
    truth = np.random.default_rng(0).beta(0.3, 0.7, size=400)
    solved = np.random.default_rng(1).binomial(12, truth)
    rates = [rate(str(n), int(number), of=12, level=None) for n, number in enumerate(solved)]
    problems = [problem_of(rate) for rate in rates]
    selection = select("phase", problems, rates, config.phase, 0)
    assert len(selection.problems) == 24 and "24 of 24" in (selection.confidence_note(config.phase) or "")


def test_certainty_is_that_of_the_phases_band_whatever_it_was_probed_for():
    chosen = select("phase", PROBLEMS, RATES, phase(num_problems=1, pass_rate_low=0.05, pass_rate_high=0.15), 0).chosen
    assert [choice.problem.problem_id for choice in chosen] == ["rare"]
    assert "by all responses in [0.05, 0.15] with probability 0.4" in chosen[0].reason


def test_selection_by_hand():
    assert ids(problem_ids=["never"]) == ["never"]
    assert ids(answers=["5", "0"]) == ids(answers=[5, 0]) == ["always", "never"]
    with pytest.raises(UserError, match="named by answers twice"):
        ids(answers=["5", "05"])
    with pytest.raises(UserError, match="'nowhere'"):
        ids(problem_ids=["nowhere"])
    with pytest.raises(UserError, match=r"phase.answers: 0 problems .* '77'"):
        ids(answers=["77"])


def test_a_probe_of_which_nothing_was_graded_is_said():
    ungraded = [replace(one, num_samples=0, num_correct=0) for one in RATES]
    expected = rf"^phase: none of the responses to the {len(RATES)} probed problems could be graded"
    with pytest.raises(UserError, match=expected):
        select("phase", PROBLEMS, ungraded, phase(), 0)


def test_a_pool_that_earlier_stages_used_up_is_said():
    with pytest.raises(UserError, match=r"^phase: no problem is left to choose from: an earlier stage trained on every one"):
        select("phase", [], [], load_config("probe").phase_settings["phase"], 0)


def test_too_few_candidates_says_what_the_pass_rates_were_and_what_to_change():
    with pytest.raises(UserError) as caught:
        select("phase2", PROBLEMS, RATES[:1] + RATES[-1:], phase(), 0)
    said = str(caught.value)
    assert "0 of 2" in said and "never: 1" in said and "always: 1" in said
    assert all(remedy in said for remedy in ("phase2.pass_rate_low/high", "phase2.num_problems", "data.pool"))


def test_the_hardest_replace_a_part_of_the_band():
    settings = phase(num_problems=4, hardest=0.5)
    selection = select("phase", PROBLEMS, RATES, settings, 0)
    names = [problem.problem_id for problem in selection.problems]
    assert set(names[:2]) < {"some", "more", "also"} and names[2:] == ["never", "rare"]
    assert selection.chosen[2].reason.startswith("one of the hardest: solved 0 of 10 times")
    assert len(selection.reserve) == 1
    assert ids(hardest=1.0) == ["never", "rare"]
    with pytest.raises(UserError, match=r"phase.hardest: wants 7 more problems, 6 are left"):
        select("phase", PROBLEMS, RATES, phase(num_problems=7, hardest=1.0), 0)


def test_wrong_answers_replace_golds_of_the_same_problems():
    """Eight problems: the part of them that is 0, a quarter, a half, all; a larger part holds a smaller one."""
    rates = [rate(f"p{n}", 5) for n in range(8)]
    problems = [replace(problem_of(one), alternatives=("2",)) for one in rates]

    def chosen(share: float, seed: int = 0) -> list[Problem]:
        return select("phase", problems, rates, phase(num_problems=8, wrong_answers=share), seed).problems

    def changed(share: float, seed: int = 0) -> set[str]:
        return {problem.problem_id for problem in chosen(share, seed) if problem not in problems}

    assert [len(changed(share)) for share in (0, 0.25, 0.5, 1)] == [0, 2, 4, 8]
    assert changed(0.25) < changed(0.5) and chosen(0.5) == chosen(0.5)
    assert [p.problem_id for p in chosen(0.5)] == [p.problem_id for p in chosen(0)]
    assert len({frozenset(changed(0.25, seed)) for seed in range(8)}) > 1
    assert all(problem.golds == (problem.answer,) and len(problem.answer) == 15 for problem in chosen(1))
    with_options = [replace(problem, choices=("1", "2")) for problem in problems]
    with pytest.raises(UserError, match=r"phase.wrong_answers: 'p\d' has options"):
        select("phase", with_options, rates, phase(num_problems=8, wrong_answers=1), 0)
