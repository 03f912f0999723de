"""The mathematics of grading against arithmetic of its own: values that are known apart from the grader, and its parts."""

import itertools
import random
from decimal import Decimal
from fractions import Fraction

import mpmath
import pytest
import sympy

from conclip.grading.agreement import Tolerance
from conclip.grading.equality import equal, proportional, spells
from conclip.grading.equivalence import is_readable, same_answer
from conclip.grading.formulas import read_formula
from conclip.grading.functions import Unreadable
from conclip.grading.spelling import clean
from conclip.grading.units import read_unit, split_unit
from tests.known_values import known_values, one_digit_changed, spellings

KNOWN = list(known_values(130, seed=7))


@pytest.mark.whole
def test_a_number_is_itself_however_it_is_written():
    wrong = [
        (k.latex, s) for k in KNOWN for s in spellings(k.latex) if not same_answer(k.latex, s) or not same_answer(s, k.latex)
    ]
    assert wrong == []


def test_numbers_of_other_value_are_not_accepted():
    ordered = sorted(known_values(1300, seed=8), key=lambda k: k.value)
    wrong = []
    for first, second in itertools.pairwise(ordered):
        same = abs(first.value - second.value) <= mpmath.mpf(10) ** -50 * abs(first.value)
        wrong += [(first.latex, second.latex)] if same_answer(first.latex, second.latex) is not same else []
    assert wrong == []


def test_a_changed_digit_is_another_number():
    generator = random.Random(9)
    changed = [(k.latex, one_digit_changed(k.latex, generator)) for k in known_values(1000, seed=9)]
    accepted = [(g, a) for g, a in changed if a and _value(g) != _value(a) and same_answer(g, a)]
    assert accepted == []


def _value(latex: str) -> sympy.Expr | None:
    try:
        return read_formula(clean(latex))
    except Unreadable:
        return None


@pytest.mark.parametrize(
    ("latex", "value"),
    [
        (r"2\frac{1}{2}", sympy.Rational(5, 2)),
        (r"-2\frac{1}{2}", sympy.Rational(-5, 2)),
        ("2 1/2", sympy.Rational(5, 2)),
        (r"\frac12", sympy.Rational(1, 2)),
        (r"\frac1{72}", sympy.Rational(1, 72)),
        (r"\frac\pi6", sympy.pi / 6),
        ("3./4", sympy.Rational(3, 4)),
        (r"\frac{7}{12,500}", sympy.Rational(7, 12500)),
        ("1/2x", sympy.Symbol("x") / 2),
        ("a/bc", sympy.Symbol("a") / (sympy.Symbol("b") * sympy.Symbol("c"))),
        (r"4\sqrt(2)", 4 * sympy.sqrt(2)),
        (r"\sqrt[3]{-8}", sympy.Integer(-2)),
        ("10^-8", sympy.Rational(1, 10**8)),
        ("x^10", sympy.Symbol("x") ** 10),
        ("E_{1}+8", sympy.Symbol("E_1") + 8),
        (r"\mathrm{e}^2", sympy.exp(2)),
        (r"\sin 2x \cos x", sympy.sin(2 * sympy.Symbol("x")) * sympy.cos(sympy.Symbol("x"))),
        (r"\sin^{-1} 1", sympy.pi / 2),
        (r"\sin 30^\circ", sympy.Rational(1, 2)),
        (r"14 \bmod 8", sympy.Integer(6)),
        (r"0.1\overline{6}", sympy.Rational(1, 6)),
        (r"\sum_{i=1}^{10} i", sympy.Integer(55)),
        (r"\binom{5}{2}", sympy.Integer(10)),
        (r"|-3|", sympy.Integer(3)),
        (r"\log_2 8", sympy.Integer(3)),
    ],
)
def test_formulas(latex: str, value: sympy.Expr):
    assert read_formula(clean(latex)) == value


@pytest.mark.parametrize(
    "latex",
    [
        "1 2", "12_7", "8 +", r"\text{not }8", r"5 \pmod 9", r"\frac{1}{0}", r"0^{-1}", r"\infty^{\infty}", r"2^{\infty}",
        r"\log 0", "9^{9^{9^{9}}}", "((100!)!)!", r"\sum_{n=1}^{99999999} n", r"\frac", r"\sqrt{",
        "(" * 90 + "1" + ")" * 90, "", r"\input{x}",
    ],
)  # fmt: skip
def test_what_is_not_read_whole_is_not_read(latex: str):
    with pytest.raises(Unreadable):
        read_formula(latex)


def test_equality_is_exact():
    x, a, b = sympy.symbols("x a b")
    assert equal(sympy.sqrt(8), 2 * sympy.sqrt(2)) and equal((x + 1) ** 2, x**2 + 2 * x + 1)
    assert equal(sympy.sqrt(5 + 2 * sympy.sqrt(6)) - sympy.sqrt(2) - sympy.sqrt(3), sympy.Integer(0))
    assert not equal(1 - sympy.Rational(1, 2**99), sympy.Integer(1)) and not equal(sympy.exp(-200), sympy.Integer(0))
    assert not equal(sympy.sqrt(a**2 * b), a * sympy.sqrt(b))  # a may be negative
    assert not equal(sympy.Symbol("R") - sympy.Symbol("r"), sympy.Integer(0))


def test_equations_are_the_same_up_to_a_factor():
    x, y = sympy.symbols("x y")
    assert proportional(x + 2 * y - 3, -2 * x - 4 * y + 6) and not proportional(
        x + 2 * y - 3, -2 * x - 4 * y + 6, positive=True
    )
    assert not proportional(x + y - 3, x + y - 4) and not proportional(x - 3, y - 3)


@pytest.mark.parametrize(
    ("decimal", "value", "expected"),
    [
        ("1.414214", sympy.sqrt(2), True),
        ("1.414213", sympy.sqrt(2), True),  # cut
        ("1.414215", sympy.sqrt(2), False),
        ("1.41", sympy.sqrt(2), False),
        ("0.333334", sympy.Rational(1, 3), False),
        ("0.166667", sympy.Rational(1, 6), True),
        ("0.125001", sympy.Rational(1, 8), False),  # has an exact spelling
        ("1.2676506e30", sympy.Integer(2) ** 100, False),
        ("-1.414214", -sympy.sqrt(2), True),
        ("-1.414213", -sympy.sqrt(2), True),
    ],
)
def test_decimals_that_spell_other_numbers(decimal: str, value: sympy.Expr, expected: bool):
    assert spells(Decimal(decimal), value) is expected


@pytest.mark.parametrize(
    ("text", "powers", "factor"),
    [
        ("cm", {"m": 1}, Fraction(1, 100)),
        ("km/h", {"m": 1, "s": -1}, Fraction(5, 18)),
        (r"\text{ miles per hour}", {"inch": 1, "s": -1}, Fraction(63360, 3600)),
        (r"\mathrm{m\,s^{-2}}", {"m": 1, "s": -2}, Fraction(1)),
        (r"\text{ m/s}^2", {"m": 1, "s": -2}, Fraction(1)),
        (r"\text{ square inches}", {"inch": 2}, Fraction(1)),
        (r"\text{ N}\cdot\text{m}", {"m": 2, "g": 1, "s": -2}, Fraction(1000)),  # a joule
        (r"^\circ\text{C}", {"celsius": 1}, Fraction(1)),
        ("kJ", {"m": 2, "g": 1, "s": -2}, Fraction(10**6)),
        (r"\mu\text{m}", {"m": 1}, Fraction(1, 10**6)),
        ("dm^3", {"m": 3}, Fraction(1, 1000)),
        ("L", {"m": 3}, Fraction(1, 1000)),
        ("Zz", {"symbol Zz": 1}, Fraction(1)),  # in no list, and a unit of its own
    ],
)
def test_units(text: str, powers: dict[str, int], factor: Fraction):
    unit = read_unit(text)
    assert unit is not None and unit.powers == powers and unit.factor == factor


@pytest.mark.parametrize("text", [r"\text{ ways}", "apples", r"\text{ square units}", r"\text{ distinct integers}"])
def test_counted_things_are_no_units(text: str):
    assert read_unit(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\frac{\sqrt{3}}{2}\text{ cm}", (r"\frac{\sqrt{3}}{2}", r"\text{ cm}")),
        (r"6!\text{ ways}", ("6!", r"\text{ ways}")),
        (r"\$5", ("5", "dollar")),
        ("2x", ("2x", "")),
        ("2m", ("2m", "")),  # twice m
        ("5 m", ("5", "m")),
        (r"\sin 30^\circ ", (r"\sin 30^\circ ", "")),
    ],
)
def test_numbers_and_their_units(text: str, expected: tuple[str, str]):
    assert tuple(part.strip() for part in split_unit(text)) == tuple(part.strip() for part in expected)


def test_tolerances_are_asked_for():
    assert not same_answer("0.333", "0.3334") and same_answer("0.333", "0.3334", tolerance=Tolerance(decimals=3))
    assert not same_answer("2.0", "2.01") and same_answer("2.0", "2.01", tolerance=Tolerance(relative=0.01))
    assert not same_answer("2.0", "2.03", tolerance=Tolerance(relative=0.01))


def test_golds_that_nothing_can_match_are_known():
    assert all(map(is_readable, ["1/2", r"\text{even}", "B", "(0,1]", "x=3", "101_2", r"2 \pmod 9", r"\{1,2\}"]))
    assert not any(map(is_readable, [r"\int_0^1 f", r"2^{\infty}", r"\frac{1}{0}", r"3 + \foo"]))
