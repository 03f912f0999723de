"""When a phase stops before its last step: pure functions of its validations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from conclip.config.groups import PhaseConfig
from conclip.stats import DIGITS, clustered_difference
from conclip.training.progress import Validation

MIN_MIXED_PROBLEMS = 5
"""Fewer problems with correct and other responses do not show a correlation."""

FLAT = 0.02
"""The share by which the mean length must fall below its lowest so far to count as falling."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """A reason to stop."""

    text: str
    is_failure: bool
    """Whether the phase went wrong; else it has done what it can."""


def fell_by_more(first: Validation, last: Validation, drop: float) -> bool:
    """Return whether accuracy fell by more than `drop`; 0.07 to 0.06 is a fall of 0.01, whatever binary fractions say."""
    return round(first.accuracy - last.accuracy, DIGITS) > drop


def accuracy_fall_low(first: Mapping[str, float], now: Mapping[str, float]) -> float | None:
    """Return the lower end of the 95 % interval of the mean fall of accuracy, paired by problem (`clustered_difference`);
    None where no problem is in both."""
    falls = [first[problem_id] - accuracy for problem_id, accuracy in now.items() if problem_id in first]
    return clustered_difference(falls)[1] if falls else None


def stop_reason(history: Sequence[Validation], phase: PhaseConfig) -> Stop | None:
    """Return why the phase stops after its newest validation, or None.

    Accuracy has surely fallen by more than `stop_accuracy_drop`: on few problems chance alone takes it that far. Responses
    have become too short to be right: among those to one problem, the longer ones are the correct ones
    (`stop_length_correlation`; ICR, arXiv 2605.07316, watches the same sign). Length has not fallen by 2 % in
    `stop_flat_validations` validations.
    """
    first, last = history[0], history[-1]
    if last.accuracy_fall_low is not None and round(last.accuracy_fall_low, DIGITS) > phase.stop_accuracy_drop:
        text = (
            f"validation accuracy {last.accuracy:.3f} is surely more than {phase.stop_accuracy_drop:g} below the "
            f"{first.accuracy:.3f} it began with (at least {last.accuracy_fall_low:.3f}, at 95 %)"
        )
        return Stop(text=text, is_failure=True)
    limit, low = phase.stop_length_correlation, last.length_correlation_low
    if limit is not None and low is not None and low > limit and len(history) > 1:
        text = (
            f"among the responses to one problem the longer ones are the correct ones (correlation "
            f"{last.length_correlation:+.2f}, at least {low:+.2f}, above {limit:+.2f}); shorter ones would be wrong"
        )
        return Stop(text=text, is_failure=False)
    number = phase.stop_flat_validations
    if number is not None and len(history) > number:
        earlier = min(validation.mean_tokens for validation in history[:-number])
        if min(validation.mean_tokens for validation in history[-number:]) > (1 - FLAT) * earlier:
            return Stop(text=f"validation length has not fallen by 2 % in {number} validations", is_failure=False)
    return None
