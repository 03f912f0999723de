r"""Answers whose value is known apart from the grader: made with their value, to 50 digits, by mpmath.

Each number is spelled in LaTeX by the rule that also computes it, so that the grader can be held against arithmetic of its
own.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import mpmath

mpmath.mp.dps = 60


@dataclass(frozen=True, slots=True)
class Known:
    """A number as it is written, and its value."""

    latex: str
    value: mpmath.mpf


def known_values(count: int, seed: int) -> Iterator[Known]:
    """`count` numbers of the kinds that final answers have, each drawn anew."""
    generator = random.Random(seed)
    kinds = (
        _integer,
        _fraction,
        _mixed,
        _decimal,
        _scientific,
        _root,
        _pi,
        _surd,
        _power,
        _factorial,
        _binomial,
        _tiny,
        _logarithm,
    )
    for number in range(count):
        yield kinds[number % len(kinds)](generator)


def _sign(generator: random.Random, latex: str, value: mpmath.mpf) -> Known:
    return Known(f"-{latex}", -value) if generator.random() < 0.25 else Known(latex, value)


def _integer(generator: random.Random) -> Known:
    n = generator.randint(0, 10 ** generator.randint(1, 12))
    return _sign(generator, str(n), mpmath.mpf(n))


def _fraction(generator: random.Random) -> Known:
    top, bottom = generator.randint(1, 999), generator.randint(2, 999)
    latex = generator.choice((f"\\frac{{{top}}}{{{bottom}}}", f"{top}/{bottom}"))
    return _sign(generator, latex, mpmath.mpf(top) / bottom)


def _mixed(generator: random.Random) -> Known:
    bottom = generator.randint(2, 20)
    whole, top = generator.randint(1, 99), generator.randint(1, bottom - 1)
    return Known(f"{whole}\\frac{{{top}}}{{{bottom}}}", whole + mpmath.mpf(top) / bottom)


def _decimal(generator: random.Random) -> Known:
    places = generator.randint(1, 9)
    digits = generator.randint(1, 10 ** (places + 3))
    text = f"{digits // 10**places}.{digits % 10**places:0{places}d}"
    return _sign(generator, text, mpmath.mpf(text))


def _scientific(generator: random.Random) -> Known:
    mantissa, exponent = f"{generator.randint(100, 999) / 100:.2f}", generator.randint(-30, 30)
    latex = generator.choice(
        (f"{mantissa} \\times 10^{{{exponent}}}", f"{mantissa}e{exponent}", f"{mantissa} \\cdot 10^{{{exponent}}}")
    )
    return Known(latex, mpmath.mpf(mantissa) * mpmath.mpf(10) ** exponent)


def _root(generator: random.Random) -> Known:
    factor, inside, degree = generator.randint(2, 30), generator.randint(2, 400), generator.choice((2, 2, 2, 3, 4))
    sign = "\\sqrt" if degree == 2 else f"\\sqrt[{degree}]"
    return _sign(generator, f"{factor}{sign}{{{inside}}}", factor * mpmath.root(inside, degree))


def _pi(generator: random.Random) -> Known:
    top, bottom = generator.randint(1, 99), generator.randint(2, 60)
    latex = generator.choice((f"\\frac{{{top}\\pi}}{{{bottom}}}", f"\\frac{{{top}}}{{{bottom}}}\\pi"))
    return _sign(generator, latex, top * mpmath.pi / bottom)


def _surd(generator: random.Random) -> Known:
    a, b, c, d = (generator.randint(1, 40) for _ in range(4))
    sign = generator.choice("+-")
    value = (a + (1 if sign == "+" else -1) * b * mpmath.sqrt(c)) / d
    return Known(f"\\frac{{{a} {sign} {b}\\sqrt{{{c}}}}}{{{d}}}", value)


def _power(generator: random.Random) -> Known:
    base, exponent = generator.randint(2, 12), generator.randint(2, 60)
    return Known(f"{base}^{{{exponent}}}", mpmath.mpf(base) ** exponent)


def _factorial(generator: random.Random) -> Known:
    n, k = generator.randint(2, 25), generator.randint(1, 9)
    return Known(f"{k} \\cdot {n}!", k * mpmath.factorial(n))


def _binomial(generator: random.Random) -> Known:
    n = generator.randint(2, 40)
    k = generator.randint(0, n)
    return Known(f"\\binom{{{n}}}{{{k}}}", mpmath.binomial(n, k))


def _tiny(generator: random.Random) -> Known:
    base, exponent = generator.randint(2, 9), generator.randint(2, 90)
    latex = generator.choice((f"\\frac{{1}}{{{base}^{{{exponent}}}}}", f"{base}^{{-{exponent}}}"))
    if generator.random() < 0.3 and base**exponent < 10**40:  # else it is 1 in the digits that are computed
        return Known(f"1 - {latex}", 1 - mpmath.mpf(base) ** -exponent)
    return Known(latex, mpmath.mpf(base) ** -exponent)


def _logarithm(generator: random.Random) -> Known:
    n, k = generator.randint(2, 90), generator.randint(1, 9)
    return Known(f"{k}\\ln {n}", k * mpmath.log(n))


def spellings(latex: str) -> Iterator[str]:
    """The same answer as other people write it."""
    yield from (f"{latex}.", f"${latex}$", f"\\[{latex}\\]", f"\\left( {latex} \\right)", latex.replace("\\frac", "\\dfrac"))
    yield from (
        f"{latex}\\text{{ cm}}",
        f"{latex} \\, \\mathrm{{kg}}",
        f"{latex}\\text{{ ways}}",
        f"\\${latex}",
        f"x = {latex}",
    )


def one_digit_changed(latex: str, generator: random.Random) -> str | None:
    """Another answer of the same shape; None where there is no digit."""
    places = [place for place, character in enumerate(latex) if character.isdecimal()]
    if not places:
        return None
    place = generator.choice(places)
    digit = generator.choice([digit for digit in "0123456789" if digit != latex[place]])
    return latex[:place] + digit + latex[place + 1 :]
