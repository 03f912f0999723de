"""When a phase stops: by its validations alone."""

import dataclasses
from typing import Any

import pytest

from conclip.training.progress import Progress, Validation
from conclip.training.stopping import accuracy_fall_low, fell_by_more, stop_reason
from conclip.training.trainer import _length_correlation
from conclip.types import Outcome, RolloutGroup
from tests.conftest import make_group, make_rollout, train_config

PHASE = train_config().phase


def at(step: int, accuracy: float, tokens: float, **more: Any) -> Validation:
    return Validation(step=step, accuracy=accuracy, mean_tokens=tokens, **more)


def reason(history: list[Validation], **changes: Any) -> str | None:
    stop = stop_reason(history, dataclasses.replace(PHASE, **changes))
    return None if stop is None else f"{'failure' if stop.is_failure else 'done'}: {stop.text}"


def test_nothing_stops_a_phase_by_default_but_lost_accuracy():
    history = [at(0, 0.5, 100), at(5, 0.3, 100, length_correlation=0.9, length_correlation_low=0.8, accuracy_fall_low=0.1)]
    assert reason(history) is None  # that much may be chance
    assert reason([*history, at(10, 0.3, 100)]) is None  # not known
    assert str(reason([*history, at(15, 0.39, 50, accuracy_fall_low=0.101)])).startswith(
        "failure: validation accuracy 0.390 is surely more than 0.1 below the 0.500 it began with (at least 0.101"
    )


def test_a_fall_is_sure_where_problems_agree_and_are_enough():
    def low(lost: int, gained: int, same: int) -> float:
        after = [0.0] * lost + [1.0] * gained + [0.5] * same
        before = [1.0] * lost + [0.0] * gained + [0.5] * same
        first, now = ({str(n): value for n, value in enumerate(values)} for values in (before, after))
        found = accuracy_fall_low(first, now)
        assert found is not None
        return found

    assert low(4, 0, 28) < 0.1  # four of 32 problems are an eighth, and chance
    assert low(8, 4, 20) < 0
    assert low(40, 4, 156) > 0.1  # 18 points of 200 problems are not
    assert 0.47 < low(12, 0, 0) < 0.74  # all is lost; the bounds: as many gained what the others lost, or nothing
    assert accuracy_fall_low({"a": 1.0}, {"b": 0.0}) is None  # no problem could be graded both times


@pytest.mark.parametrize(
    ("before", "after", "drop", "more"), [(0.34, 0.24, 0.1, False), (0.34, 0.23875, 0.1, True), (0.07, 0.06, 0.01, False)]
)
def test_a_fall_of_exactly_the_drop_is_not_more(before: float, after: float, drop: float, more: bool):
    """0.34 - 0.24 and 0.07 - 0.06 are above 0.1 and 0.01 in binary fractions; 0.00125 is one response of 800."""
    assert fell_by_more(at(0, before, 100), at(5, after, 100), drop) is more
    history = [at(0, before, 100), at(5, after, 100, accuracy_fall_low=before - after)]
    assert (reason(history, stop_accuracy_drop=drop) is not None) is more


@pytest.mark.parametrize(("low", "stops"), [(0.01, True), (0.0, False), (-0.2, False), (None, False)])
def test_it_stops_where_longer_responses_are_surely_the_correct_ones(low: float | None, stops: bool):
    history = [at(0, 0.5, 100), at(5, 0.5, 50, length_correlation=0.2, length_correlation_low=low)]
    assert (reason(history, stop_length_correlation=0.0) is not None) is stops
    assert reason(history[1:], stop_length_correlation=0.0) is None  # as the model came


def groups_of(*lengths: list[tuple[Outcome, int]]) -> list[RolloutGroup]:
    return [
        make_group(*(make_rollout([7] * n, problem_id=str(p), sample=i, outcome=o) for i, (o, n) in enumerate(one)))
        for p, one in enumerate(lengths)
    ]


def test_responses_that_were_cut_are_no_long_wrong_ones():
    """Correct ones are longer than wrong ones; two that were cut would turn the sign."""
    right, wrong, cut = Outcome.CORRECT, Outcome.WRONG, Outcome.TRUNCATED
    ended = [(right, 100), (right, 110), (wrong, 60), (wrong, 61)]
    found = _length_correlation(groups_of(*[ended] * 8))
    assert found["length_correlation"] > 0.9
    assert _length_correlation(groups_of(*[[*ended, (cut, 400), (cut, 400)]] * 8)) == found


def test_a_correlation_is_never_beyond_1():
    """Two responses a problem: each correlation is -1 but for its last digit."""
    lengths = (20, 23, 25, 29, 32, 34, 37, 41, 43, 47, 53)
    pairs = [[(Outcome.CORRECT, n), (Outcome.WRONG, 384), (Outcome.WRONG, 384)] for n in lengths]
    for number in range(5, len(pairs) + 1):
        found = _length_correlation(groups_of(*pairs[:number]))
        assert -1 <= found["length_correlation"] < -0.999
        Progress.from_json(
            Progress(step=0, kl_coef=0.0, history=[at(0, 0.5, 10, **found)], first_accuracies={"a": 0.5}).to_json()
        )


def test_it_stops_where_length_has_not_fallen_for_a_while():
    falling = [at(5 * i, 0.5, tokens) for i, tokens in enumerate((100, 80, 70, 69.5, 69))]
    assert reason(falling, stop_flat_validations=2) == "done: validation length has not fallen by 2 % in 2 validations"
    assert reason(falling[:4], stop_flat_validations=2) is None  # 70 is well below 80
    assert reason([*falling, at(25, 0.5, 60)], stop_flat_validations=2) is None
    assert reason(falling[:2], stop_flat_validations=2) is None
