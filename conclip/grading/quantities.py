"""Compares two numbers with their units, percent signs and angles."""

import re
from dataclasses import dataclass

import sympy
from sympy import Rational

from conclip.grading import equality
from conclip.grading.answer_types import Number
from conclip.grading.spelling import plain
from conclip.grading.units import are_opposed, read_unit


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a number may lie from the gold one."""

    decimals: int | None = None
    """Numbers that agree when rounded to so many decimals are equal."""
    relative: float = 0.0
    """Numbers that differ by at most this share of the gold one are equal."""


EXACT = Tolerance()


def agree_numbers(gold: Number, answer: Number, tolerance: Tolerance) -> bool:
    """Compare two numbers. A unit may be missing on either side; a percentage is both its number of percent and its
    fraction."""
    if are_opposed(gold.unit, answer.unit):
        return False
    percents = (gold.unit.startswith("%"), answer.unit.startswith("%"))
    if any(percents):
        if any(n.unit and not is_percent for n, is_percent in zip((gold, answer), percents, strict=True)):
            return False
        is_share = not percents[0] and bool(gold.value.is_real and abs(gold.value) < 1)  # 0.6 is not meant as 0.6 %
        if not is_share and _same_value(gold, answer, tolerance):
            return True
        if all(percents):
            return False
        shares = [
            Number(n.value / 100, None if n.decimal is None else n.decimal / 100, "") if is_percent else n
            for n, is_percent in zip((gold, answer), percents, strict=True)
        ]
        return _same_value(shares[0], shares[1], tolerance)
    if _is_angle(gold.unit) and (_is_radian(answer.unit) or (not answer.unit and answer.value.has(sympy.pi))):
        gold, answer = _in_radians(gold), Number(answer.value, answer.decimal, "")
    elif _is_angle(answer.unit) and (_is_radian(gold.unit) or (not gold.unit and gold.value.has(sympy.pi))):
        gold, answer = Number(gold.value, gold.decimal, ""), _in_radians(answer)
    gold_unit, answer_unit = (read_unit(n.unit) if n.unit else None for n in (gold, answer))
    if gold_unit is None or answer_unit is None or gold_unit == answer_unit:
        return _same_value(gold, answer, tolerance)
    if gold_unit.powers != answer_unit.powers:
        return False
    factor = answer_unit.factor / gold_unit.factor
    return _same_value(gold, Number(answer.value * Rational(factor.numerator, factor.denominator), None, ""), tolerance)


def _is_angle(unit: str) -> bool:
    return re.fullmatch(r"\^\\circ|degrees?", plain(unit).strip()) is not None


def _is_radian(unit: str) -> bool:
    return re.fullmatch(r"rad(?:ian)?s?", plain(unit).strip()) is not None


def _in_radians(angle: Number) -> Number:
    return Number(angle.value * sympy.pi / 180, None, "")


def _same_value(gold: Number, answer: Number, tolerance: Tolerance) -> bool:
    if gold.value in (sympy.oo, -sympy.oo) or answer.value in (sympy.oo, -sympy.oo):
        return gold.value == answer.value
    if equality.equal(gold.value, answer.value):
        return True
    if gold.value.free_symbols or answer.value.free_symbols:
        return False
    if gold.decimal is None and answer.decimal is not None and equality.spells(answer.decimal, gold.value):
        return True
    if answer.decimal is None and gold.decimal is not None and equality.spells(gold.decimal, answer.value):
        return True
    if tolerance.decimals is not None and equality.agree_in_decimals(gold.value, answer.value, tolerance.decimals):
        return True
    return tolerance.relative > 0 and equality.within(gold.value, answer.value, tolerance.relative)
