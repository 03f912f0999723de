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

NUM_POINTS, NUM_FURTHER = 6, 4
"""Points at the first size of the letters (at least), and at each further one."""
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
    whole = _integers(first) | _integers(second) | _rounded(first, second)
    sizes, steps = _sizes(first), first.has(sympy.floor, sympy.ceiling) or second.has(sympy.floor, sympy.ceiling)
    roots, others_roots, is_complex = _radicands(first), _radicands(second), first.has(sympy.I)
    held = 0
    for number, values in enumerate(_points(letters, _scales(first, second))):
        at_integers = steps and number % 2 == 1
        point = {
            x: _integer_near(v, number) if x in whole or at_integers else abs(v) if x in sizes else v
            for x, v in values.items()
        }
        f = _at(first, point)
        if f is None or not (f.is_real or is_complex) or not _have_real_roots(roots, point):
            continue  # `first` is not defined here
        if any(value.is_negative for value in point.values()) and not _have_real_roots(others_roots, point):
            continue  # a root of a letter is meant to be that of a positive number
        s = _at(second, point)
        if s is None or not _near(f, s):
            return False
        held += 1
    return held >= 2


def _integer_near(value: Expr, number: int) -> Expr:
    """Return an integer near three times the value, other than 0: even ones at every second point."""
    nearest = sympy.ceiling(3 * value)
    nearest += (nearest - number) % 2
    return nearest if nearest != 0 else Integer(2)


def _integers(value: Expr) -> set[Basic]:
    """Return the letters that stand for whole numbers: those in the powers of letters and of negative numbers, since these
    have no other powers, such as a and b in ``(pq)^{ab}`` and n in ``(-1)^n``."""
    powers = [p for p in value.atoms(sympy.Pow) if p.base.free_symbols or p.base.is_negative]
    return {letter for power in powers for letter in power.exp.free_symbols}


def _rounded(first: Expr, second: Expr) -> set[Basic]:
    """Return the letters that both formulas round up or down: these, too, stand for whole numbers."""
    atoms = [value.atoms(sympy.floor, sympy.ceiling) for value in (first, second)]
    arguments = [cast(Expr, atom.args[0]) for side in atoms for atom in side]
    if not all(atoms) or any(sympy.denom(sympy.together(argument)) == 1 for argument in arguments):  # the floor of x itself
        return set()
    return {letter for argument in arguments for letter in argument.free_symbols}


def _sizes(value: Expr) -> set[Basic]:
    """Return the letters that stand for positive quantities: several that make the sign of one radicand, as in
    ``\\sqrt{2h/g}``."""
    sizes: set[Basic] = set()
    for base in [power.base for power in value.atoms(sympy.Pow) if _is_root(power)]:
        signed = {x for x in base.free_symbols if base.subs(x, -cast(Expr, x)) != base}
        sizes |= signed if len(signed) > 1 else set()
    return sizes


def _is_root(power: Basic) -> bool:
    exponent = power.args[1]
    return isinstance(exponent, Rational) and exponent.q % 2 == 0


def _radicands(value: Expr) -> list[Expr]:
    """Return what stands under the square roots of a formula that is meant to be real; none for a complex one."""
    if value.has(sympy.I):
        return []
    return [power.base for power in value.atoms(sympy.Pow) if _is_root(power) and power.base.free_symbols]


def _have_real_roots(radicands: Sequence[Expr], point: dict[Symbol, Expr]) -> bool:
    values = [_at(radicand, point) for radicand in radicands]
    return all(value is not None and (not value.is_real or bool(value >= 0)) for value in values)


def proportional(first: Expr, second: Expr, *, positive: bool = False) -> bool:
    """Return whether first = c * second for a number c other than 0 (greater than 0 when `positive`): two equations `first =
    0` and `second = 0` then say the same."""
    letters = _letters(first, second)
    if not letters or first.free_symbols != second.free_symbols:
        return False
    ratios: list[Expr] = []
    for point in _points(letters, _scales(first, second)):
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
    try:
        number = cast(Expr, value.evalf(DIGITS, subs=cast(dict[Basic, Basic | float], point) if point else None))
    except (ValueError, ArithmeticError):  # sympy cannot round what is not finite, nor divide by what it takes for 0
        return None
    return number if number.is_number and number.is_finite and not number.free_symbols else None


SCALES = cast(Sequence[Rational], (Rational(1), Rational(1, 6), Rational(8), Rational(60), Rational(400)))
"""Sizes of the letters. Some formulas differ, or are defined, only where letters are large: ``|x - 10|``, ``\\ln(x-8)``."""


def _scales(first: Expr, second: Expr) -> Sequence[Rational]:
    """Return the sizes of letters to try: small ones where powers are stacked, whose numbers no memory holds otherwise."""
    growing = [p for value in (first, second) for p in value.atoms(sympy.Pow, sympy.exp, sympy.factorial, sympy.gamma)]
    stacked = any(
        argument.free_symbols
        and any(q.free_symbols and _grows(q) for q in argument.atoms(sympy.Pow, sympy.exp, sympy.factorial))
        for p in growing
        for argument in [p.args[-1]]
    )
    return SCALES[:2] if stacked else SCALES


def _grows(value: Basic) -> bool:
    """Return whether a power, exponential or factorial has letters where it grows fast: not x^2."""
    return not isinstance(value, sympy.Pow) or bool(value.args[1].free_symbols)


def _points(letters: Sequence[Symbol], scales: Sequence[Rational]) -> Iterator[dict[Symbol, Expr]]:
    """Yield the same points each time: at the first scale with every pattern of signs while the letters are few, at the
    others with four."""
    generator = random.Random(0)
    patterns = list(itertools.product((1, -1), repeat=min(len(letters), 3)))
    for scale in scales:
        count = max(NUM_POINTS, 2 * len(patterns)) if scale == scales[0] else NUM_FURTHER
        for pattern in itertools.islice(itertools.cycle(patterns), count):
            signs = [*pattern, *(generator.choice((1, -1)) for _ in letters[3:])]
            yield {
                letter: sign * scale * Integer(generator.randint(1, 3000)) / 1009
                for letter, sign in zip(letters, signs, strict=True)
            }
