"""The functions that occur in answers, applied to exact numbers, with limits on what may grow without end."""

from collections.abc import Callable
from typing import cast

import sympy
from sympy import Expr, Rational

MAX_BITS = 1_000_000
"""Largest integer that a power may become; a larger one is not read."""

MAX_FACTORIAL = 5_000


class Unreadable(ValueError):
    """A formula outside of the grammar, or one without a finite value."""


ONE_ARGUMENT: dict[str, Callable[..., Expr]] = {
    "sin": sympy.sin, "cos": sympy.cos, "tan": sympy.tan, "cot": sympy.cot, "sec": sympy.sec, "csc": sympy.csc,
    "arcsin": sympy.asin, "arccos": sympy.acos, "arctan": sympy.atan, "arccot": sympy.acot, "arcsec": sympy.asec,
    "arccsc": sympy.acsc, "sinh": sympy.sinh, "cosh": sympy.cosh, "tanh": sympy.tanh, "coth": sympy.coth,
    "arsinh": sympy.asinh, "arcosh": sympy.acosh, "artanh": sympy.atanh, "ln": sympy.log, "exp": sympy.exp,
    "log": lambda x: sympy.log(x, 10), "lg": lambda x: sympy.log(x, 10),
}  # fmt: skip
INVERSE = {
    "sin": sympy.asin,
    "cos": sympy.acos,
    "tan": sympy.atan,
    "sinh": sympy.asinh,
    "cosh": sympy.acosh,
    "tanh": sympy.atanh,
}
SEVERAL_ARGUMENTS = cast(
    dict[str, Callable[..., Expr]], {"max": sympy.Max, "min": sympy.Min, "gcd": sympy.gcd, "lcm": sympy.lcm}
)


def bounded_power(base: Expr, exponent: Expr) -> Expr:
    if base.is_zero and exponent.is_negative:
        raise Unreadable("division by zero")
    if isinstance(base, Rational) and isinstance(exponent, Rational):
        if max(abs(base.p), base.q).bit_length() * abs(exponent) > MAX_BITS:
            raise Unreadable("too large a number")
    elif exponent.is_number and abs(exponent.evalf(3)) > MAX_BITS:
        raise Unreadable("too large a power")
    return cast(Expr, sympy.Pow(base, exponent))


def bounded_factorial(value: Expr) -> Expr:
    if not (value.is_Integer and 0 <= int(value) <= MAX_FACTORIAL) and value.is_number:
        raise Unreadable("too large a factorial, or none")
    return sympy.factorial(value)


def bounded_binomial(top: Expr, bottom: Expr) -> Expr:
    if any(part.is_number and not (part.is_Integer and 0 <= int(part) <= MAX_FACTORIAL) for part in (top, bottom)):
        raise Unreadable("too large a binomial coefficient, or none")
    return sympy.binomial(top, bottom)
