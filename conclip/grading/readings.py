r"""Reads what an answer states: a number, several values, a relation, a region, a matrix, or words compared by spelling."""

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import cast

import sympy
from sympy import Expr, Integer

from conclip.grading.answer_types import MIRRORED, Matrix, Number, Reading, Relation, Several, Spelled, UnitText, number_of
from conclip.grading.formulas import read_formula
from conclip.grading.functions import Unreadable
from conclip.grading.pieces import in_brackets, split
from conclip.grading.regions import Interval, Region, intersection, union_of, without_points
from conclip.grading.spelling import closing, compact, plain
from conclip.grading.units import read_compound, split_scale, split_unit

_SEPARATORS = re.compile(
    r"\\(?:text|mbox|textrm|mathrm)\s*\{\s*,?\s*(?:or|and)\s*,?\s*\}|(?<![A-Za-z\\])(?:or|and)(?![A-Za-z])"
    r"|\\(?:quad|qquad)(?![a-zA-Z])|\n"
)
_GROUPS = re.compile(r";|\\(?:text|mbox|textrm|mathrm)\s*\{\s*,?\s*or\s*\}|(?<![A-Za-z\\])or(?![A-Za-z])|\\vee(?![a-zA-Z])")
_LOGIC = re.compile(r"\\(?:vee|wedge)(?![a-zA-Z])")
_AND = re.compile(r"\\(?:text|mbox|textrm|mathrm)\s*\{\s*and\s*\}|(?<![A-Za-z\\])and(?![A-Za-z])|\\wedge(?![a-zA-Z])")
_SIGNS = re.compile(r"\\(?:le|ge|ne|equiv|in|approx)(?![a-zA-Z])|!=|<=|>=|=|<|>")
_SIGN_OF = {"\\le": "<=", "\\ge": ">=", "\\ne": "!=", "\\in": "=", "\\approx": "="}
_MATRIX = re.compile(
    r"[(\[|]?\s*\\begin\{([pbBvV]?(?:small)?matrix|array)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}\s*[)\]|]?", re.DOTALL
)
_SYSTEM = re.compile(r"\\begin\{(aligned|align\*?|gathered|cases)\}(.*)\\end\{\1\}", re.DOTALL)
_BASED = re.compile(r"(-?)(?:\\text\s*\{\s*|\(\s*)?([0-9A-Za-z]+)\s*[})]?\s*_\s*\{?\s*(?:\\text\s*\{\s*)?(\w+)\s*\}?\s*\}?")
_TO = re.compile(r"(\d+)\s*(?:\\text\s*\{\s*to\s*\}|to)\s*(?=\d)")
_PHRASES = (
    (re.compile(r"(?:the\s+)?(?:set\s+of\s+)?all\s+real(?:s|\s+(?:numbers?|values?|[a-z]))?", re.IGNORECASE), "\\mathbb{R}"),
    (re.compile(r"(?:the\s+)?empty\s+set|no\s+(?:real\s+)?solutions?", re.IGNORECASE), "\\emptyset"),
)
_COUNTED = re.compile(
    r"^(?:\\(?:text|mathrm|mbox)\s*\{\s*)?(?:year|exactly|page|day|room|step|a total of)\b\s*(?:\}\s*)?(?=-?[\d\\])",
    re.IGNORECASE,
)
"""Words before a number that matter no more than the name of a counted thing after it."""

_OPERATION = re.compile(r"\s*\w+\s*(\\cup|\\cap)\s+\w+\s*(?:\1\s+\w+\s*)*")
_MODULO = re.compile(r"(?:(.*?)\\equiv)?\s*(.*?)\s*(?:\\pmod\s*\{?|\(\s*\\(?:mod|bmod)|\\mod)\s*([^{}()]+)[})]*")
_ANGLE = re.compile(r".*\\circ.*\d\s*'.*")
_SET_BUILDER = re.compile(r"\\?\{\s*[a-zA-Z]\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?(?:\||:)\s*(.*?)\s*\\?\}")
_BASES = {
    name: str(base)
    for base, name in enumerate(["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], start=2)
}
_PLUS_MINUS = re.compile(r"\\(pm|mp)(?![a-zA-Z])")
_REPEATING = re.compile(r"(-?\d*\.\d*?)(\d{1,6}?)\2{2,}\s*\\ldots")
_ENDLESS = ("\\infty", "+\\infty", "-\\infty")
_UNREAD = Spelled("unread", ())


def is_understood(reading: Reading) -> bool:
    """Return whether every part of a reading was understood."""
    if isinstance(reading, Spelled):
        return reading.notation != "unread" and all(isinstance(part, str) or is_understood(part) for part in reading.parts)
    if isinstance(reading, Several):
        return all(map(is_understood, reading.items))
    if isinstance(reading, Matrix):
        return all(is_understood(cell) for row in reading.rows for cell in row)
    if isinstance(reading, Relation):
        return is_understood(read(reading.sides[-1]))
    return True


def read(text: str, *, is_gold: bool = False) -> Reading:
    """Return what a cleaned answer states; `Spelled("unread")` where that is not understood."""
    text = _COUNTED.sub("", stands_for(text.strip()))
    if system := _SYSTEM.fullmatch(text):
        if system[1] == "cases":
            return Spelled("cases", (compact(text),))
        text = system[2].replace("&", "").strip()
    if described := _SET_BUILDER.fullmatch(text):
        text = described[1]
    if text == "\\emptyset":
        return Several("{}", ())
    if "matrix}" in text or "{array}" in text:
        if (matrix := _MATRIX.fullmatch(text)) and "\\end{" not in matrix[2]:
            return _read_matrix(matrix[1], matrix[2])
        if (value := _read_matrix_formula(text)) is not None:
            return value
    if (literal := _read_literal(text)) is not None:
        return literal
    if (compound := read_compound(text)) is not None:
        return Number(Integer(compound[0].numerator) / compound[0].denominator, None, compound[1])
    parts = split(_separated(text), ",;")
    if len(parts) > 1:
        return _read_points(text) or _read_both(text) or _read_list(parts, is_gold)
    if _PLUS_MINUS.search(text) and not text.startswith(("\\{", "(")):
        return Several("", tuple(read(_signed(text, sign), is_gold=is_gold) for sign in "+-"))
    if (region := _read_region(text)) is not None:
        return region
    if sets := _OPERATION.fullmatch(text):
        return Spelled(f"sets {sets[1]}", tuple(sorted(compact(part) for part in text.split(sets[1]))))
    if (inside := in_brackets(text)) is not None:
        opening, content, end = inside
        items = split(_separated(content), ",;", thousands=False)
        if len(items) > 1 or opening == "{":
            read_items = [read(item, is_gold=is_gold) for item in items if item] if any(items) else []
            flat = [i for r in read_items for i in (r.items if isinstance(r, Several) and not r.brackets else (r,))]
            return Several(opening + end, tuple(flat))
        if opening + end in ("()", "[]"):
            return read(content, is_gold=is_gold)
        return _UNREAD
    if (relation := _read_relation(text)) is not None:
        return relation
    return _read_number(text, is_gold)


def stands_for(text: str) -> str:
    """Return a text, or the formula that its words stand for, such as "all real numbers"."""
    return next((formula for phrase, formula in _PHRASES if phrase.fullmatch(plain(text).strip())), text)


def _read_points(text: str) -> Reading | None:
    """Read ``p = 5, q = 2; p = 7, q = 2`` as a list of tuples, one for each group with the same names; None for anything
    else."""
    groups = [split(group, ",") for group in _GROUPS.split(text)]
    named = [[relation for part in group if (relation := _read_relation(part)) and _name_of(part)] for group in groups]
    names = [[compact(relation.sides[0]) for relation in group] for group in named]
    all_named = [len(group) for group in groups] == [len(some) for some in names]
    if len(groups) < 2 or len(names[0]) < 2 or not all_named or any(some != names[0] for some in names):
        return None
    return Several("", tuple(Several("()", tuple(read(r.sides[-1]) for r in group)) for group in named))


def _read_both(text: str) -> Reading | None:
    """Read ``x > 1 and x < 3`` as what holds for both; None for anything else."""
    if not _AND.search(text):
        return None
    regions = [region_of(read(part)) if _SIGNS.search(part) else None for part in _AND.split(text)]
    if len(regions) != 2 or regions[0] is None or regions[1] is None:
        return None
    return intersection(regions[0], regions[1]) or _UNREAD


def _separated(text: str) -> str:
    """Put commas in place of the words and signs between values; rows of a matrix keep theirs."""
    text = text if "\\begin" in text else text.replace("\\\\", " , ")
    text = _LOGIC.sub(" , ", text) if _SIGNS.search(text) else text
    return _SEPARATORS.sub(" , ", text)


def _signed(text: str, sign: str) -> str:
    """Return one of the two values that plus-minus signs stand for."""
    other = "-" if sign == "+" else "+"
    return _PLUS_MINUS.sub(lambda m: f" {sign if m[1] == 'pm' else other} ", text)


def _read_matrix(name: str, body: str) -> Reading:
    rows = tuple(tuple(read(cell) for cell in row.split("&")) for row in body.split("\\\\") if row.strip())
    if name == "vmatrix":
        try:
            return Number(cast(Expr, sympy.Matrix([[_value(cell) for cell in row] for row in rows]).det()), None, "")
        except (ValueError, TypeError):
            return _UNREAD
    return Matrix(rows)


_ONE_MATRIX = re.compile(
    r"\\begin\{([pbBvV]?(?:small)?matrix|array)\}(?:\{[lcr|]*\})?((?:(?!\\begin\{|\\end\{).)*)\\end\{\1\}", re.DOTALL
)
_BETWEEN_MATRICES = re.compile(r"\s*(?:(?P<sign>[-+])\s*(?P<scalar>.*?))?\s*(?:\\cdot|\\times|\*)?\s*")


def _read_matrix_formula(text: str) -> Reading | None:
    """Read sums and products of matrices, with numbers before them; None for anything else."""
    matrices = list(_ONE_MATRIX.finditer(text))
    if not matrices or text[matrices[-1].end() :].strip():
        return None
    terms: list[sympy.Matrix] = []
    try:
        for number, matrix in enumerate(matrices):
            before = text[matrices[number - 1].end() if number else 0 : matrix.start()]
            between = _BETWEEN_MATRICES.fullmatch(
                before if number else f"+ {before}".replace("+ -", "-").replace("+ +", "+")
            )
            rows = [[_value(read(cell)) for cell in row.split("&")] for row in matrix[2].split("\\\\") if row.strip()]
            if between is None or matrix[1] == "vmatrix":
                return None
            if between["sign"] is None:
                terms[-1] = terms[-1] * sympy.Matrix(rows)
            else:
                scalar = read_formula(between["scalar"]) if between["scalar"] else Integer(1)
                terms.append(sympy.Matrix(rows) * (scalar if between["sign"] == "+" else -scalar))
        total = sum(terms[1:], terms[0])
    except (Unreadable, ValueError, TypeError, sympy.ShapeError):
        return None
    return Matrix(tuple(tuple(Number(cast(Expr, cell), None, "") for cell in row) for row in total.tolist()))


def _value(reading: Reading) -> Expr:
    if not isinstance(reading, Number):
        raise Unreadable("no number")
    return reading.value


def _read_literal(text: str) -> Spelled | None:
    if "\\ldots" in text:
        pieces = [
            piece.strip() for piece in re.split(r"([,;+*<]|\\(?:cdot|times|cdots)(?![a-zA-Z]))", text.strip("\\{}() "))
        ]
        ends = text[:1] + text[-1:] if text[0] in "({[" else "\\{}" if text.startswith("\\{") else ""
        if _REPEATING.fullmatch(text):
            return None
        if re.fullmatch(r"-?\d*\.\d+ *\\ldots", text):
            return Spelled("dots", (compact(text),))
        return Spelled("dots", tuple([ends.strip("\\{}")] + [_or_text(piece) for piece in pieces if piece]))
    if based := _BASED.fullmatch(text):
        sign, digits, base = based.groups()
        base = _BASES.get(base, base)
        if base.isdecimal() and (digits[0].isdecimal() or "\\text" in text):
            return Spelled("base", (sign + digits.lstrip("0").upper(), base))
    if _ANGLE.fullmatch(text):
        return Spelled("angle", (compact(text),))
    ratio = _TO.sub(r"\1:", text[1:-1] if text[:1] == "(" and closing(text, 0) == len(text) - 1 else text)
    if ":" in ratio and "\\{" not in text and not _SIGNS.search(text):
        number, unit = split_unit(ratio)
        parts = [part.strip() for part in number.split(":")]
        if len(parts) > 1 and all(parts):
            is_clock = any(re.fullmatch(r"0\d", part) for part in parts)
            return Spelled("ratio", tuple(part if is_clock else _or_text(part) for part in parts) + (UnitText(unit),))
    if (modulo := _MODULO.fullmatch(text)) and "mod" in text:
        return Spelled("remainder", (read(modulo[2]), read(modulo[3])))
    return None


def _or_text(piece: str) -> "Reading | str":
    reading = _read_number(piece, is_gold=False)
    return reading if isinstance(reading, Number) else compact(piece)


def _read_list(parts: Sequence[str], is_gold: bool) -> Reading:
    """Read a list without brackets. A name before the first value only stands for all: ``n = 2, 3``."""
    named = [bool(_name_of(part)) for part in parts]
    if named[0] and not any(named[1:]) and "=" in parts[0]:
        parts = [parts[0].partition("=")[2], *parts[1:]]
    items: list[Reading] = []
    for part in parts:
        item = read(part, is_gold=is_gold)
        items += item.items if isinstance(item, Several) and not item.brackets else (item,)
    return Several("", tuple(items))


def _read_relation(text: str) -> Relation | None:
    signs, sides, begin, depth = [], [], 0, 0
    for match in re.finditer(rf"[(\[{{]|[)\]}}]|{_SIGNS.pattern}", text):
        if match[0] in "([{":
            depth += 1
        elif match[0] in ")]}":
            depth -= 1
        elif depth == 0:
            signs.append(_SIGN_OF.get(match[0], match[0]))
            sides.append(text[begin : match.start()].strip())
            begin = match.end()
    sides.append(text[begin:].strip())
    return Relation(tuple(signs), tuple(sides)) if signs and all(sides) else None


NAME = re.compile(
    r"\\frac\s*\{\s*(?:[A-Z]{2,3}|[a-zA-Z])\s*\}\s*\{\s*(?:[A-Z]{2,3}|[a-zA-Z])\s*\}|[A-Z]{2,3}\s*[/:]\s*[A-Z]{2,3}|"
    r"\\frac\s*\{\s*(?:d|\\partial)[^{}]*\}\s*\{\s*(?:d|\\partial)[^{}]*\}|\(\s*[a-zA-Z]\s*(?:,\s*[a-zA-Z]\s*)+\)"
    r"|(?!.*\b(?i:no|not|non|without|except|undefined)\b)(?:\^\{-1\}|\s*:\s*|\\(?!frac|sqrt|times|cdot|binom|pi\b|ln|log|lg|exp|sin|cos|tan|cot|sec|csc|arc)[a-zA-Z]+\s*|[A-Za-z]'*\s*|_\s*(?:\w|\{[^{}]*\})\s*|\{[^{}\d+*/^-]*\}\s*|\([a-zA-Z](?:,\s*[a-zA-Z])*\)\s*)+"
    r"|\|\s*[A-Za-z]+\s*\||[a-zA-Z]'*\([^()=]*\)"
)


def _name_of(text: str) -> str:
    """Return the text before the first equals sign, where it only names something; "" where there is none."""
    relation = _read_relation(text)
    if relation is None or relation.signs[0] not in ("=",) or not NAME.fullmatch(relation.sides[0]):
        return ""
    return compact(relation.sides[0])


def _read_number(text: str, is_gold: bool) -> Reading:
    number, unit = split_unit(text, spaced=is_gold)
    number = number.strip().rstrip(" .")
    if repeating := _REPEATING.fullmatch(number):
        number = f"{repeating[1]}\\overline{{{repeating[2]}}}"
    if (inside := in_brackets(number)) and inside[0] + inside[2] in ("()", "{}") and unit:
        number = inside[1]
    factor, unit = split_scale(unit)
    if number in _ENDLESS:
        return Number(-sympy.oo if number[0] == "-" else sympy.oo, None, unit)
    for formula, behind in ((number, unit), (text, "")):
        try:
            value = read_formula(formula)
            return (
                Number(value * factor, _as_decimal(formula) if factor == 1 else None, behind)
                if formula is number
                else Number(value, _as_decimal(formula), behind)
            )
        except Unreadable:
            pass
    if number != text:
        whole = read(number, is_gold=is_gold)
        if isinstance(whole, (Several, Matrix)):
            return whole
    return _UNREAD


_DECIMAL = re.compile(
    r"([-+]?)\s*(\d[\d,]*\.\d+|\.\d+|\d[\d,]*\.?)(?:\s*\\(?:times|cdot)\s*10\s*\^\s*\{?\s*([-+]?\d+)\s*\}?)?"
)


def _as_decimal(number: str) -> Decimal | None:
    match = _DECIMAL.fullmatch(number)
    if match is None or ("." not in match[2] and match[3] is None):
        return None
    try:
        return Decimal(f"{match[1]}{match[2].replace(',', '')}e{match[3] or 0}")
    except InvalidOperation:
        return None


def _read_region(text: str) -> Region | None:
    r"""Read ``(-\infty, 2) \cup [3, 4)``, ``\mathbb{R}`` or ``\mathbb{R} \setminus \{0\}`` as a region."""
    text = re.sub(r"^[a-zA-Z]\s*\\in(?![a-zA-Z])", "", text).strip()
    if re.fullmatch(r"\\mathbb\s*\{?\s*R\s*\}?", text):
        return Region(((-sympy.oo, sympy.oo, False, False),))
    if without := re.fullmatch(r"\\mathbb\s*\{?\s*R\s*\}?\s*(?:\\setminus|\\backslash|-)\s*\\?\{(.*?)\\?\}", text):
        points = [read(part) for part in split(without[1], ",")]
        return without_points([point.value for point in points if isinstance(point, Number)])
    if len(parts := re.split(r"\\cup(?![a-zA-Z])", text)) < 2:
        return None
    intervals: list[Interval] = []
    for part in parts:
        reading = read(part)
        region = region_of(reading)
        if region is None and isinstance(reading, Several) and reading.brackets == "{}":
            points = [number_of(item) for item in reading.items]
            region = union_of([(point, point, True, True) for point in points if point is not None and point.is_real])
        if region is None:
            return None
        intervals += region.intervals
    return union_of(intervals)


def region_of(reading: Reading) -> Region | None:
    """Return intervals, and inequalities in one letter, as a region; None for anything else."""
    if isinstance(reading, Region):
        return reading
    if isinstance(reading, Several) and len(reading.items) == 2 and reading.brackets in ("()", "[]", "(]", "[)"):
        left, right = (number_of(item) for item in reading.items)
        if left is None or right is None or left.free_symbols or right.free_symbols:
            return None
        is_ordered = left.is_extended_real and right.is_extended_real and bool(left < right)
        return union_of([(left, right, reading.brackets[0] == "[", reading.brackets[1] == "]")]) if is_ordered else None
    if isinstance(reading, Several) and not reading.brackets and reading.items:
        regions = [region_of(item) for item in reading.items]
        intervals = [i for region in regions if region is not None for i in region.intervals]
        return (
            union_of(intervals)
            if all(r is not None for r in regions) and all(isinstance(i, (Relation, Region)) for i in reading.items)
            else None
        )
    if isinstance(reading, Relation):
        if reading.signs == ("=",) and NAME.fullmatch(reading.sides[0]):
            inner = read(reading.sides[1])
            return region_of(inner) if isinstance(inner, (Region, Several)) else None
        return _region_of_inequality(reading)
    return None


def _region_of_inequality(relation: Relation) -> Region | None:
    """Read ``x > 2``, ``2 < x``, ``0 \\le x < 1``, ``x \\ne 3`` or ``|x| < 2`` as a region."""
    if size := next((side for side in relation.sides if re.fullmatch(r"\|\s*[a-zA-Z]\s*\|", side)), None):
        plain_sides = tuple("x" if side == size else side for side in relation.sides)
        inside = _region_of_inequality(Relation(relation.signs, plain_sides))
        right = inside and intersection(inside, Region(((Integer(0), sympy.oo, True, False),)))
        return right and union_of([(-b, -a, b_in, a_in) for a, b, a_in, b_in in right.intervals] + list(right.intervals))
    letter = [bool(re.fullmatch(r"[a-zA-Z](?:\([a-zA-Z]\))?|\\[a-z]+", side)) for side in relation.sides]
    if sum(letter) != 1 or "=" in relation.signs or "\\equiv" in relation.signs:
        return None
    at = letter.index(True)
    bounds = [number_of(read(side)) if index != at else Integer(0) for index, side in enumerate(relation.sides)]
    if any(bound is None or bound.free_symbols for bound in bounds):
        return None
    if relation.signs == ("!=",):
        return without_points([bounds[1 - at]])  # pyright: ignore
    left, right, left_in, right_in = -sympy.oo, sympy.oo, False, False
    if len(relation.signs) > 2 or "!=" in relation.signs or (len(relation.signs) == 2 and at != 1):
        return None
    for index, sign in enumerate(relation.signs):
        bound, other_first = (bounds[index], True) if index < at else (bounds[index + 1], False)
        sign = MIRRORED[sign] if other_first else sign  # as if the letter stood first
        assert bound is not None
        if sign in (">", ">="):
            left, left_in = bound, sign == ">="
        else:
            right, right_in = bound, sign == "<="
    return union_of([(left, right, left_in, right_in)])
