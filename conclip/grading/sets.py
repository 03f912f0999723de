r"""Reads sets of real numbers: intervals, inequalities in one letter, and what set signs make of them.

Functions take `read`, which reads the text of a part (`conclip.grading.readings.read`).
"""

import re
from collections.abc import Callable, Sequence
from typing import cast

import sympy
from sympy import Abs, Expr, Integer, Symbol

from conclip.grading.answer_types import MIRRORED, Reading, Relation, Several, number_of
from conclip.grading.regions import ALL, Region, complement, intersection, mapped, same_region, union_of
from conclip.grading.spelling import compact

Read = Callable[[str], Reading]

_REALS = re.compile(
    r"\\math(?:bb|bf|rm)\s*\{?\s*R\s*\}?\s*(?:[\^_]\s*\{?\s*(?P<part>[+*-]|(?:\\[gln]e|>=?|<=?|!=)\s*0)\s*\}?)?"
)
_HALVES = {
    "+": (Integer(0), sympy.oo, False, False), ">0": (Integer(0), sympy.oo, False, False),
    ">=0": (Integer(0), sympy.oo, True, False), "\\ge0": (Integer(0), sympy.oo, True, False),
    "-": (-sympy.oo, Integer(0), False, False), "<0": (-sympy.oo, Integer(0), False, False),
    "<=0": (-sympy.oo, Integer(0), False, True), "\\le0": (-sympy.oo, Integer(0), False, True),
}  # fmt: skip
_MEMBER = re.compile(r"^\\?[a-zA-Z]+\s*\\(in|notin)(?![a-zA-Z])")
_UNION, _COMMON, _WITHOUT = (re.compile(rf"\\(?:{names})(?![a-zA-Z])") for names in ("cup", "cap", "setminus|backslash"))
_MINUS_SET = re.compile(r"(?<=[R}])\s*-\s*(?=\\\{)|\\(?:text|mathrm)\s*\{\s*(?:except|without)\s*\}")
_LETTER = re.compile(r"(?!e$|i$|\\pi$|\\infty$)(?:[a-zA-Z](?:_\w|_\{\w+\})?|\\[a-z]+)(?P<call>\([a-zA-Z]\))?")


def read_set(text: str, read: Read) -> Region | None:
    r"""Read ``(-\infty, 2) \cup [3, 4)``, ``\mathbb{R}``, ``[1, 3] \setminus \{2\}`` or ``x \notin [1, 3]`` as a region.
    None for anything else, a single interval included."""
    member = _MEMBER.match(text)
    text = text[member.end() :].strip() if member else text
    text = _MINUS_SET.sub(r" \\setminus ", text)
    is_made = _REALS.fullmatch(text) or any(len(_split_at(text, sign)) > 1 for sign in (_UNION, _COMMON, _WITHOUT))
    region = _united(text, read) if is_made else None
    if member and member[1] == "notin":
        region = region or _atom(text, read)
        return complement(region) if region else None
    return region or (_atom(text, read) if member and text.startswith(("(", "[", "]")) else None)


def _united(text: str, read: Read) -> Region | None:
    parts = [_common(part, read) for part in _split_at(text, _UNION)]
    present = [part for part in parts if part is not None]
    return union_of([i for part in present for i in part.intervals]) if len(present) == len(parts) else None


def _common(text: str, read: Read) -> Region | None:
    parts = [_difference(part, read) for part in _split_at(text, _COMMON)]
    common = parts[0]
    for part in parts[1:]:
        common = intersection(common, part) if common is not None and part is not None else None
    return common


def _difference(text: str, read: Read) -> Region | None:
    parts = [_atom(part, read) for part in _split_at(text, _WITHOUT)]
    rest = parts[0]
    for part in parts[1:]:
        without = complement(part) if part is not None else None
        rest = intersection(rest, without) if rest is not None and without is not None else None
    return rest


def _atom(text: str, read: Read) -> Region | None:
    if reals := _REALS.fullmatch(text):
        part = re.sub(r"\s", "", reals["part"] or "")
        if part in ("*", "\\ne0", "!=0"):
            return complement(Region(((Integer(0), Integer(0), True, True),)))
        return Region((_HALVES[part],)) if part else ALL
    if text[:1] == "]" or text[-1:] == "[":  # ]0, 1] is half-open
        text = re.sub(r"^\]", "(", re.sub(r"\[$", ")", text))
    return region_of(read(text), read)


def _points(items: Sequence[Reading]) -> Region | None:
    """Return a set of numbers as a region, the empty one included."""
    points = [number_of(item) for item in items]
    return union_of([(p, p, True, True) for p in points if p is not None]) if None not in points else None


def _split_at(text: str, sign: re.Pattern[str]) -> list[str]:
    """Split a text at a sign outside of brackets."""
    parts, begin = [], 0
    for match in sign.finditer(text):
        before = re.sub(r"\\[{}]", lambda m: m[0][1], text[begin : match.start()]).strip()
        before = re.sub(r"^\]", "[", re.sub(r"\[$", "]", before))
        if sum(before.count(c) for c in "([{") == sum(before.count(c) for c in ")]}"):
            parts.append(text[begin : match.start()].strip())
            begin = match.end()
    return [*parts, text[begin:].strip()]


def region_of(reading: Reading, read: Read) -> Region | None:
    """Return intervals, and inequalities in one letter, as a region; None for anything else.

    Inequalities side by side hold one or the other (``x < 1, x > 3``), unless that says nothing: ``x > 1, x < 3`` are both
    to hold.
    """
    if isinstance(reading, Region):
        return reading
    if isinstance(reading, Several) and len(reading.items) == 2 and reading.brackets in ("()", "[]", "(]", "[)"):
        left, right = (number_of(item) for item in reading.items)
        if left is None or right is None or left.free_symbols or right.free_symbols:
            return None
        is_ordered = left.is_extended_real and right.is_extended_real and bool(left < right)
        return union_of([(left, right, reading.brackets[0] == "[", reading.brackets[1] == "]")]) if is_ordered else None
    if isinstance(reading, Several) and reading.brackets == "{}":
        return _points(reading.items)
    if isinstance(reading, Several) and not reading.brackets and reading.items:
        return joined_region(reading.items, read)
    if isinstance(reading, Relation):
        if reading.signs == ("=",) and _LETTER.fullmatch(reading.sides[0]):
            inner = read(reading.sides[1])
            return region_of(inner, read) if isinstance(inner, (Region, Several)) else None
        return _region_of_inequality(reading, read)
    return None


def joined_region(items: Sequence[Reading], read: Read, *, both: bool | None = None) -> Region | None:
    """Return the region of several inequalities in one letter: what holds for all of them (`both`), for one of them, or, by
    default, for one unless every number does. None for anything else."""
    if not all(isinstance(item, (Relation, Region)) or _is_interval(item) for item in items):
        return None
    stated = [region_of(item, read) for item in items]
    regions = [region or _point(item, read) for region, item in zip(stated, items, strict=True)]
    present = [region for region in regions if region is not None]
    letters = {letter for item in items if (letter := letter_of(item))}
    if len(present) < len(items) or len(letters) > 1 or not any(stated):
        return None
    union = union_of([i for region in present for i in region.intervals])
    if union is None or both is False or (both is None and not same_region(union, ALL)):
        return union
    common: Region | None = present[0]
    for region in present[1:]:
        common = common and intersection(common, region)
    return common


def _is_interval(item: Reading) -> bool:
    """Return whether two values in brackets are an interval and no point: an end is infinite, or belongs to it."""
    if not isinstance(item, Several) or len(item.items) != 2:
        return False
    endless = any(number_of(part) in (sympy.oo, -sympy.oo) for part in item.items)
    return item.brackets in ("[]", "(]", "[)") or (item.brackets == "()" and endless)


def _point(reading: Reading, read: Read) -> Region | None:
    """Read ``x = 2`` as a region."""
    if not (isinstance(reading, Relation) and reading.signs == ("=",) and _LETTER.fullmatch(reading.sides[0])):
        return None
    value = number_of(read(reading.sides[1]))
    return union_of([(value, value, True, True)]) if value is not None else None


def letter_of(reading: Reading) -> str:
    """Return the letter that an inequality is about, "y" for a function's value; "" where that is none."""
    if not isinstance(reading, Relation):
        return ""
    letters = [match for side in reading.sides if (match := _LETTER.fullmatch(side))]
    return "" if len(letters) != 1 else "y" if letters[0]["call"] else compact(letters[0][0])


def _region_of_inequality(relation: Relation, read: Read) -> Region | None:
    r"""Read ``x > 2``, ``2 < x``, ``0 \le x < 1``, ``x \ne 3`` or ``|2x - 1| < 2`` as a region."""
    if {"=", "\\equiv"} & set(relation.signs):
        return None
    values = [Symbol("x") if _LETTER.fullmatch(side) else number_of(read(side)) for side in relation.sides]
    of_letter = [index for index, value in enumerate(values) if value is None or value.free_symbols]
    if len(of_letter) != 1 or (value := values[at := of_letter[0]]) is None or len(value.free_symbols) != 1:
        return None
    if relation.signs == ("!=",):
        point = values[1 - at]
        inside = complement(Region(((point, point, True, True),))) if point is not None and point.is_real else None
    elif len(relation.signs) > 2 or "!=" in relation.signs or (len(relation.signs) == 2 and at != 1):
        return None
    else:
        inside = _between(relation.signs, values, at)
    return _solved(inside, value) if inside else None


def _between(signs: Sequence[str], values: Sequence[Expr | None], at: int) -> Region | None:
    left, right, left_in, right_in = -sympy.oo, sympy.oo, False, False
    for index, sign in enumerate(signs):
        bound, other_first = (values[index], True) if index < at else (values[index + 1], False)
        sign = MIRRORED[sign] if other_first else sign  # as if the letter stood first
        assert bound is not None
        if sign in (">", ">="):
            left, left_in = bound, sign == ">=" and bound.is_finite is not False
        else:
            right, right_in = bound, sign == "<=" and bound.is_finite is not False
    return union_of([(left, right, left_in, right_in)])


def _solved(region: Region, value: Expr) -> Region | None:
    """Return the numbers x for which `value`, a x + b or a |c x + d| + b, lies in a region; None for other formulas."""
    if sizes := value.atoms(Abs):
        size = Symbol("size", real=True)
        outer = _linear(value.subs(inner := sizes.pop(), size), size)
        positive = outer and intersection(mapped(region, *outer), Region(((Integer(0), sympy.oo, True, False),)))
        if sizes or not positive:
            return None
        both = [(-b, -a, b_in, a_in) for a, b, a_in, b_in in positive.intervals] + list(positive.intervals)
        united = union_of(both)
        return united and _solved(united, inner.args[0])  # pyright: ignore[reportArgumentType]
    letter = cast(Expr, next(iter(value.free_symbols)))
    line = _linear(value, letter)
    return mapped(region, *line) if line else None


def _linear(value: Expr, letter: Expr) -> tuple[Expr, Expr] | None:
    slope = sympy.diff(value, letter)
    shift = cast(Expr, value.subs(letter, 0))
    return (slope, shift) if slope.is_number and not slope.is_zero and shift.is_number else None
