"""Decides whether two sympy expressions have the same value: exactly for rationals, to 60 digits for other numbers, and at
several points for formulas with letters.

sympy's own `equals` and math-verify's comparison take numbers for equal that agree in six decimals; none of that here.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import cast

import sympy
from sympy import Basic, Expr, Integer, Rational, Symbol

DIGITS = 80
"""Significant digits in numeric evaluation."""

AGREE = Rational(1, 10**60)
"""Relative difference up to which two computed numbers count as equal."""

NUM_POINTS = 6
MIN_SIGNIFICANT_DIGITS = 6
"""A decimal with fewer digits is no spelling of a number that no decimal spells (1/3, a root)."""


def equal(first: Expr, second: Expr) -> bool:
    """Return whether the two are the same number, or the same function of their letters wherever `first` is a real number.

    Example: sqrt(8) and 2 sqrt(2) are equal, and 3 ln x and ln x^3; sqrt(x^2) and x are not (x may be negative), nor are
    1 - 2^-99 and 1.
    """
    if first == second:
        return True
    if first.is_Rational and second.is_Rational:
        return False
    letters = _letters(first, second)
    if not letters:
        return _same_number(first, second)
    held = 0
    exponents = _exponents(first) | _exponents(second)
    for point in _points(letters):
        point = {letter: sympy.ceiling(3 * value) if letter in exponents else value for letter, value in point.items()}
        f = _at(first, point)
        if f is None or not (f.is_real or first.has(sympy.I)):
            continue  # `first` is not defined here
        s = _at(second, point)
        if s is None or not _near(f, s):
            return False
        held += 1
    return held >= 2


def _exponents(value: Expr) -> set[Basic]:
    """Return the letters in the powers that other letters are raised to: those of ``(pq)^{ab}`` are a and b. A negative p
    has only whole powers, so these stand for whole numbers."""
    powers = [power for power in value.atoms(sympy.Pow) if power.base.free_symbols]
    return {letter for power in powers for letter in power.exp.free_symbols}


def proportional(first: Expr, second: Expr, *, positive: bool = False) -> bool:
    """Return whether first = c * second for a number c other than 0 (greater than 0 when `positive`): two equations `first =
    0` and `second = 0` then say the same."""
    letters = _letters(first, second)
    if not letters or first.free_symbols != second.free_symbols:
        return False
    ratios: list[Expr] = []
    for point in _points(letters):
        f, s = _at(first, point), _at(second, point)
        if f is None or s is None or _is_nothing(f) or _is_nothing(s):
            continue
        ratios.append(f / s)
    if len(ratios) < 3 or not all(_near(ratios[0], ratio) for ratio in ratios[1:]):
        return False
    return not positive or bool(sympy.re(ratios[0]) > 0)


def within(gold: Expr, answer: Expr, tolerance: float) -> bool:
    """Return whether the answer lies within a share `tolerance` of the gold number."""
    g, a = _at(gold, {}), _at(answer, {})
    return g is not None and a is not None and bool(abs(a - g) <= tolerance * abs(g))


def agree_in_decimals(gold: Expr, answer: Expr, decimals: int) -> bool:
    """Return whether two numbers are the same when rounded to so many decimals."""
    g, a = _at(gold, {}), _at(answer, {})
    if g is None or a is None or not (g.is_real and a.is_real):
        return False
    scale = Rational(10) ** decimals
    return sympy.floor(g * scale + Rational(1, 2)) == sympy.floor(a * scale + Rational(1, 2))


def spells(decimal: Decimal, value: Expr) -> bool:
    """Return whether a decimal is the rounded or cut spelling of a number that no decimal spells exactly, in at least
    `MIN_SIGNIFICANT_DIGITS` digits.

    Example: 1.414214 spells the root of 2, 1.41 does not; 1.2676506e30 does not spell 2^100, which has an exact spelling.
    """
    if value.is_integer or (value.is_Rational and not (set(sympy.primefactors(value.q)) - {2, 5})):  # pyright: ignore
        return False
    number = _at(value, {})
    if number is None or not number.is_real or len(decimal.as_tuple().digits) < MIN_SIGNIFICANT_DIGITS:
        return False
    unit = Rational(10) ** int(decimal.as_tuple().exponent)
    error = Rational(str(decimal)) - number
    cut = bool(abs(error) < unit) and bool(number > 0) is bool(error <= 0)  # towards zero
    return bool(abs(error) <= unit / 2) or bool(cut)


def _letters(first: Expr, second: Expr) -> list[Symbol]:
    return sorted(cast(set[Symbol], first.free_symbols | second.free_symbols), key=str)


def _same_number(first: Expr, second: Expr) -> bool:
    f, s = _at(first, {}), _at(second, {})
    if f is None or s is None:
        return False
    if _is_nothing(f) or _is_nothing(s):  # is the difference zero, or only as small as the digits allow to see?
        difference = (first - second).evalf(4 * DIGITS, maxn=5 * DIGITS)
        return bool(abs(difference) < Rational(1, 10 ** (3 * DIGITS)))
    return _near(f, s)


def _is_nothing(value: Expr) -> bool:
    return bool(abs(value) < Rational(1, 10 ** (DIGITS - 10)))


def _near(first: Expr, second: Expr) -> bool:
    return bool(abs(first - second) <= AGREE * max(abs(first), abs(second), Rational(1, 10**40)))


def _at(value: Expr, point: dict[Symbol, Expr]) -> Expr | None:
    """Return the number at a point; None where it is not finite."""
    number = cast(Expr, value.evalf(DIGITS, subs=cast(dict[Basic, Basic | float], point)) if point else value.evalf(DIGITS))
    return number if number.is_number and number.is_finite and not number.free_symbols else None


def _points(letters: Sequence[Symbol]) -> Iterator[dict[Symbol, Expr]]:
    """Yield the same points each time, with every pattern of signs while the letters are few."""
    generator = random.Random(0)
    patterns = list(itertools.product((1, -1), repeat=min(len(letters), 3)))
    for pattern in itertools.islice(itertools.cycle(patterns), max(NUM_POINTS, 2 * len(patterns))):
        signs = [*pattern, *(generator.choice((1, -1)) for _ in letters[3:])]
        yield {
            letter: sign * Integer(generator.randint(1, 3000)) / 1009 for letter, sign in zip(letters, signs, strict=True)
        }
