r"""Reads one LaTeX formula as a sympy expression with exact numbers.

The grammar is the one of final answers: arithmetic, roots, powers, fractions and mixed numbers, the elementary functions,
factorials, binomials, absolute values, finite sums. A formula is read whole or not at all, letters keep their case and
subscripts, decimals are exact fractions. math-verify's parser (latex2sympy) folds case, drops subscripts and primes, reads
``1 2`` as 3, rounds decimals to binary, and answers for a part of what it was given.
"""

import re
from typing import cast

import sympy
from sympy import Expr, Integer, Rational, Symbol

from conclip.grading.functions import (
    FUNCTION_LETTERS,
    INVERSE,
    ONE_ARGUMENT,
    SEVERAL_ARGUMENTS,
    Unreadable,
    bounded_binomial,
    bounded_double_factorial,
    bounded_factorial,
    bounded_power,
    factors,
)
from conclip.grading.spelling import plain
from conclip.grading.tex import DECORATIONS, FONTS, LETTERS, SYNONYMS
from conclip.grading.tokens import Tokens

MAX_TERMS = 10_000
MAX_NUMBER_CHARS = 1000
MAX_DEPTH = 60
"""Largest depth of nested brackets."""

_FACTORS = frozenset(["frac", "sqrt", "binom", "pi", "sum", "prod", "lfloor", "lceil", "max", "min", "gcd", "lcm", "imath"])
"""Commands that begin a factor, beside letters, fonts and functions of one argument."""

_CLOSING = {"(": ")", "[": "]", "{": "}", "\\{": "\\}", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}


def read_formula(text: str) -> Expr:
    r"""Return the value of a formula in plain LaTeX (`conclip.grading.spelling.clean`). Raises Unreadable.

    Example: ``2\frac{1}{2}`` is 5/2, ``\sqrt[3]{-8}`` is -2, ``E_1 + 8`` is a sum with the symbol ``E_1``.
    """
    parser = _Parser(text)
    try:
        value = parser.sum()
    except RecursionError as error:
        raise Unreadable("nested too deeply") from error
    if parser.here():
        raise Unreadable(f"cannot read '{parser.here()}' in {text!r}")
    if value.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo):
        raise Unreadable(f"{text!r} has no finite value")
    return value


class _Parser(Tokens):
    """Recursive descent over tokens; each method reads one level of precedence."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._in_bars = 0
        self._words_end = -1  # where the last words of the formula end
        self._letters: set[str] = set()  # the letters that a series runs over
        self._factors = factors(text)

    def sum(self) -> Expr:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")
        value = self._product()
        while self.here() in ("+", "-"):
            value = value + self._product() if self.take() == "+" else value - self._product()
        self._depth -= 1
        return value

    def _product(self) -> Expr:
        """Read factors, signs between them or not. ``1/2x`` is x/2, ``a/bc`` is a/(bc): after a number the division ends."""
        value = self._signed()
        while True:
            token = self.here()
            if token in ("*", "\\cdot", "\\times", "\\ast"):
                self.take()
                value = value * self._signed()
            elif token in ("/", "\\div", ":"):
                self.take()
                divisor = self._divisor()
                if divisor.is_zero:
                    raise Unreadable("division by zero")
                value = value / divisor
            elif token == "\\bmod":
                self.take()
                value = sympy.Mod(value, self._signed())
            elif self._begins_factor():
                value = value * self._power()
            else:
                return value

    def _divisor(self) -> Expr:
        ends = self.is_number() or self.here() in ("-", "(", "{", "\\frac")
        value = self._signed()
        while not ends and self._begins_factor():
            value = value * self._power()
        return value

    def _signed(self) -> Expr:
        if self.here() in ("-", "+"):
            return -self._signed() if self.take() == "-" else self._signed()
        return self._power()

    def _begins_factor(self) -> bool:
        token = self.here()
        if not token or self.is_number():
            return bool(token) and self._follows_factor()
        if token[0] == "\\":
            name = token[1:]
            return name in _FACTORS or any(name in names for names in (LETTERS, DECORATIONS, FONTS, ONE_ARGUMENT))
        return token.isascii() and (token.isalpha() or token in "([{" or (token == "|" and not self._in_bars))

    def _follows_factor(self) -> bool:
        """Return whether a number here is a factor, as in ``3!7!``, ``(n-1)2^n``, ``2^3 5^2`` and ``n 2^n``; ``1 2`` and
        ``x2`` are no products."""
        if self.at == self._words_end:
            return False
        before, kind = self.tokens[self.at - 1][1], self.tokens[self.at - 1][0]
        if before in ("!", "i", ")", "}", "]"):
            return True
        is_exponent = kind == "number" and self.at > 1 and self.tokens[self.at - 2][1] == "^"
        is_letter = before.isalpha() or before[1:] in LETTERS or before == "\\pi"
        return self.here(1) == "^" and (is_exponent or (is_letter and self.here(2) != "\\circ"))

    def _power(self) -> Expr:
        """Read an atom and what follows it: factorials, powers, degrees."""
        value = self._atom()
        while True:
            if self.here() == "!":
                self.take()
                if self.here() == "!":
                    self.take()
                    value = bounded_double_factorial(value)
                else:
                    value = bounded_factorial(value)
            elif self.here() == "^":
                self.take()
                if self.here() == "\\circ":
                    self.take()
                    value = value * sympy.pi / 180
                else:
                    value = bounded_power(value, self._exponent())
            elif self.here() == "%":
                self.take()
                value = value / 100
            else:
                return value

    def _exponent(self) -> Expr:
        """Read an exponent. ``x^10`` and ``10^-8`` are read as they are meant, not as TeX sets them."""
        if self.here() in ("-", "+"):
            return -self._exponent() if self.take() == "-" else self._exponent()
        return self._number() if self.is_number() else self._atom()

    def _number(self) -> Expr:
        digits = self.take().replace(",", "")
        if len(digits) > MAX_NUMBER_CHARS:
            raise Unreadable("too long a number")
        if self.here() == "\\overline" and "." in digits:  # 0.1\overline{6}
            self.take()
            self.take("{")
            period = self.take()
            self.take("}")
            if not period.isdecimal():
                raise Unreadable("a period is made of digits")
            places = len(digits.partition(".")[2])
            return Rational(digits.rstrip(".") or "0") + Rational(int(period), (10 ** len(period) - 1) * 10**places)
        return Rational(digits)

    def _mixed(self) -> Expr | None:
        r"""Read ``2\frac{1}{2}`` or ``2 1/2``, a proper fraction after a whole number; None where there is none."""
        whole, begin = self.here(), self.at
        if not whole.isdecimal():
            return None
        try:
            self.take()
            if self.here() == "\\frac":
                self.take()
                top, bottom = self._argument(), self._argument()
            elif self.is_number() and self.here(1) == "/" and self.is_number(2):
                top, bottom = self._number(), (self.take("/"), self._number())[1]
            else:
                top = bottom = sympy.nan
        except Unreadable:
            top = bottom = sympy.nan
        if isinstance(top, Integer) and isinstance(bottom, Integer) and 0 < top < bottom:
            return Integer(int(whole)) + top / bottom
        self.at = begin
        return None

    def _atom(self) -> Expr:
        token = self.here()
        if self.is_number():
            mixed = self._mixed()
            return self._number() if mixed is None else mixed
        if token in ("(", "[", "{", "\\{", "\\lfloor", "\\lceil"):
            value = self._group()
            return {"\\lfloor": sympy.floor, "\\lceil": sympy.ceiling}.get(token, lambda x: x)(value)
        if token == "|":
            self.take()
            self._in_bars += 1
            value = self.sum()
            self._in_bars -= 1
            self.take("|")
            return sympy.Abs(value)
        if token[:1] == "\\":
            return self._command()
        if token.isascii() and token.isalpha():
            return self._symbol(self.take())
        raise Unreadable(f"cannot read '{token}'")

    def _group(self) -> Expr:
        opening = self.take()
        value = self.sum()
        self.take(_CLOSING[opening])
        return value

    def _argument(self) -> Expr:
        r"""Read the argument of a TeX command: a group, or one digit or sign (``\frac12``)."""
        if self.here() == "{":
            return self._group()
        if self.is_number():
            token = self.here()
            if not token.isdecimal():
                return self._number()
            if len(token) == 1:
                self.at += 1
            else:
                self.tokens[self.at] = ("number", token[1:])
            return Integer(int(token[0]))
        return self._atom()

    def _symbol(self, name: str) -> Expr:
        """Read a letter with its subscript and primes. e and i are the numbers, unless something is attached."""
        tail = ""
        while self.here() in ("_", "'"):
            if self.take() == "'":
                tail += "'"
            else:
                tail += "_" + self._subscript()
        if not tail and name == "C" and self.here() == "(" and self.is_number(1) and self.here(2) == ",":
            return bounded_binomial(*self._arguments())
        is_at_number = self.here() == "(" and self.is_number(1) and self.here(2) == ")"  # I(0) is no product
        is_call = name in FUNCTION_LETTERS and tail in ("", "'", "''") and self.here() == "(" and name not in self._factors
        if is_call or (is_at_number and (tail or name not in ("e", "i"))):
            return Symbol(f"{name}{tail}({', '.join(map(str, self._arguments()))})")
        if not tail and name in ("e", "i") and name not in self._letters:
            return sympy.E if name == "e" else sympy.I
        return Symbol(name + tail)

    def _subscript(self) -> str:
        """Read a subscript; fonts make no difference: ``k_{\\mathrm{B}}`` is ``k_B``."""
        text = plain(self._raw() if self.here() == "{" else self.take() + (self._raw() if self._follows_font() else ""))
        return re.sub(r"\\(?=[a-z]{3})|[\s{}]", "", re.sub(r"\\(?:text|math)[a-z]+", "", text))

    def _follows_font(self) -> bool:
        return self.tokens[self.at - 1][1][1:] in FONTS and self.here() == "{"

    def _raw(self) -> str:
        """Read the text of a group in braces, unchanged."""
        depth, text = 0, ""
        while True:
            token = self.take()
            depth += (token == "{") - (token == "}")
            if depth == 0:
                return text
            if not (token == "{" and depth == 1):
                text += token

    def _command(self) -> Expr:
        name = self.take()[1:]
        if name in ONE_ARGUMENT:
            return self._function(name)
        if name in SEVERAL_ARGUMENTS:
            return SEVERAL_ARGUMENTS[name](*self._arguments())
        if name == "frac":
            top, bottom = self._argument(), self._argument()
            if bottom.is_zero:
                raise Unreadable("division by zero")
            return top / bottom
        if name == "sqrt":
            return self._root()
        if name == "binom":
            return bounded_binomial(self._argument(), self._argument())
        if name in ("sum", "prod"):
            return self._series(sympy.Sum if name == "sum" else sympy.Product)
        if name == "pi":
            return sympy.pi if self.here() not in ("_", "'") else self._symbol("pi")
        if name == "imath":
            return sympy.I
        if name in ("angle", "triangle"):
            corners = ""
            while len(self.here()) == 1 and self.here().isupper():
                corners += self.take()
            return Symbol(f"{name} {corners}")
        if name in LETTERS:
            return self._symbol(name)
        if name in DECORATIONS:
            inside = self._raw() if self.here() == "{" else self.take()
            return self._symbol(f"{name} {inside}")
        if name in FONTS and self.here().isalpha():
            return self._symbol(self.take())
        if name in FONTS and self.here() == "{":
            inside = self._raw().strip()
            inside = SYNONYMS.get(inside, inside)
            if inside in ONE_ARGUMENT:
                return self._function(inside)
            if inside in SEVERAL_ARGUMENTS and self.here() == "(":
                return SEVERAL_ARGUMENTS[inside](*self._arguments())
            if inside.isascii() and inside.isalpha():
                self._words_end = self.at
                return self._symbol(inside) if len(inside) == 1 or self.here() == "_" else Symbol(f"text {inside}")
            if re.search(r"(?<![\\A-Za-z])[A-Za-z]{2}", inside):
                raise Unreadable(f"words in a formula: {inside!r}")
            return read_formula(inside)
        raise Unreadable(f"cannot read '\\{name}'")

    def _root(self) -> Expr:
        degree: Expr = Integer(2)
        if self.here() == "[":
            degree = self._group()
        radicand = self._group() if self.here() in ("(", "[") else self._argument()
        if degree.is_zero:
            raise Unreadable("a root of degree 0")
        return bounded_power(radicand, 1 / degree)

    def _series(self, operator: type[sympy.Sum] | type[sympy.Product]) -> Expr:
        """Read a finite sum or product over one letter."""
        self.take("_")
        self.take("{")
        name = self.take()
        self.take("=")
        first = self.sum()
        self.take("}")
        self.take("^")
        last = self._exponent()
        if (last - first).is_number and not ((last - first).is_Integer and 0 <= last - first <= MAX_TERMS):
            raise Unreadable("a series that is not finite, or too long")
        self._letters.add(name)
        term = self._product()
        self._letters.discard(name)
        value = cast(Expr, operator(term, (Symbol(name), first, last)).doit())
        if value.has(sympy.Sum, sympy.Product, sympy.Piecewise):
            raise Unreadable("a series without a closed form")
        return value

    def _function(self, name: str) -> Expr:
        function, power, base = ONE_ARGUMENT[name], None, None
        while self.here() in ("^", "_"):
            if self.take() == "^":
                power = self._exponent()
            else:
                base = self._argument()
        if power == -1 and name in INVERSE:
            function, power = INVERSE[name], None
        argument = self._function_argument()
        if base is not None:
            if name != "log":
                raise Unreadable(f"\\{name} takes no base")
            function = lambda x: sympy.log(x, base)  # noqa: E731
        if name in ("log", "lg", "ln") and argument.is_zero:
            raise Unreadable("logarithm of zero")
        value = function(argument)
        return value if power is None else bounded_power(value, power)

    def _function_argument(self) -> Expr:
        r"""Read a group, or the factors up to the next sign or function: ``\sin 2x \cos x`` is sin(2x) cos(x)."""
        if self.here() in ("(", "{", "["):
            value = self._group()
            return value * sympy.pi / 180 if self._degrees() else value
        value = self._signed()
        while self._begins_factor() and self.here()[1:] not in ONE_ARGUMENT:
            value = value * self._power()
        return value

    def _degrees(self) -> bool:
        if self.here() == "^" and self.here(1) == "\\circ":
            self.at += 2
            return True
        return False

    def _arguments(self) -> list[Expr]:
        closing = _CLOSING.get(self.take(), "")
        values = [self.sum()]
        while self.here() == ",":
            self.take()
            values.append(self.sum())
        self.take(closing)
        return values
