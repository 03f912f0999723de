"""The functions that occur in answers, applied to exact numbers, with limits on what may grow without end."""

import re
from collections.abc import Callable
from typing import cast

import sympy
from sympy import Expr, Rational

from conclip.grading.tex import LETTERS

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


def _of_integers(name: str, function: Callable[..., object]) -> Callable[..., Expr]:
    """Return a function of integers that is a letter of its own for other arguments: sympy takes m and n for polynomials."""
    return lambda *values: (
        cast(Expr, function(*values))
        if all(value.is_Integer for value in values)
        else sympy.Symbol(f"{name}({', '.join(sorted(map(str, values)))})")
    )


SEVERAL_ARGUMENTS = cast(
    dict[str, Callable[..., Expr]],
    {"max": sympy.Max, "min": sympy.Min, "gcd": _of_integers("gcd", sympy.gcd), "lcm": _of_integers("lcm", sympy.lcm)},
)


def bounded_power(base: Expr, exponent: Expr) -> Expr:
    if base.is_zero and exponent.is_negative:
        raise Unreadable("division by zero")
    if isinstance(base, Rational) and isinstance(exponent, Rational):
        if max(abs(base.p), base.q).bit_length() * abs(exponent) > MAX_BITS:
            raise Unreadable("too large a number")
    elif exponent.is_number and abs(exponent.evalf(3)) > MAX_BITS:
        raise Unreadable("too large a power")
    if isinstance(exponent, Rational) and exponent.q % 2 and exponent.q > 1 and not (base.is_positive or base.has(sympy.I)):
        size = sympy.Pow(sympy.Abs(base), exponent)  # the real root, of negative numbers, too
        return size if exponent.p % 2 == 0 else sympy.sign(base) * size
    return cast(Expr, sympy.Pow(base, exponent))


def bounded_factorial(value: Expr) -> Expr:
    if not (value.is_Integer and 0 <= int(value) <= MAX_FACTORIAL) and value.is_number:
        raise Unreadable("too large a factorial, or none")
    return sympy.factorial(value)


def bounded_double_factorial(value: Expr) -> Expr:
    if not (value.is_Integer and -1 <= int(value) <= MAX_FACTORIAL) and value.is_number:
        raise Unreadable("too large a double factorial, or none")
    return sympy.factorial2(value)


def bounded_binomial(top: Expr, bottom: Expr) -> Expr:
    if any(part.is_number and not (part.is_Integer and 0 <= int(part) <= MAX_FACTORIAL) for part in (top, bottom)):
        raise Unreadable("too large a binomial coefficient, or none")
    return sympy.binomial(top, bottom)


FUNCTION_LETTERS = frozenset(["f", "g", "h", "F", "G", "H", "O", "P", "Gamma", "zeta", "phi", "psi"])
"""Letters that name functions when a bracket follows, unless a formula shows that they are factors; others are factors."""

_BEFORE_BRACKET = re.compile(r"\\?([A-Za-z]+)'{0,2}\s*\(([^()]*)\)")


def factors(text: str) -> set[str]:
    """Return the letters that name no functions, though they might: each bracket after them holds a sum of several letters,
    or one with the letter itself, as in ``g(m + M)`` and ``h(2R - h)``."""
    arguments: dict[str, list[str]] = {}
    for name, inside in _BEFORE_BRACKET.findall(text):
        arguments.setdefault(name[-1] if name not in LETTERS else name, []).append(inside)
    return {name for name, all_inside in arguments.items() if all(_is_sum_of_letters(i, name) for i in all_inside)}


def _is_sum_of_letters(inside: str, name: str) -> bool:
    letters = set(re.findall(r"\\[a-z]+|[A-Za-z](?:_\{?\w+)?", inside))
    is_greek = any(letter.startswith("\\") and letter != "\\pi" for letter in letters)
    return re.search(r"\S\s*[-+]", inside) is not None and (
        len(letters) > 1 or is_greek or bool({name, "\\" + name} & letters)
    )
