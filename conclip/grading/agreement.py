"""Compares two readings part by part, gold first, since the gold answer decides what the question asks for."""

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import cast

from sympy import Expr, Symbol

from conclip.grading import equality
from conclip.grading.answer_types import MIRRORED, Matrix, Number, Reading, Relation, Several, Spelled, UnitText, number_of
from conclip.grading.formulas import read_formula
from conclip.grading.functions import Unreadable
from conclip.grading.quantities import EXACT, Tolerance, agree_numbers
from conclip.grading.readings import NAME, read, side
from conclip.grading.regions import Region, same_region
from conclip.grading.sets import letter_of, region_of
from conclip.grading.spelling import compact
from conclip.grading.units import read_unit


def agree(gold: Reading, answer: Reading, tolerance: Tolerance) -> bool:
    if isinstance(gold, Relation) or isinstance(answer, Relation):
        if isinstance(gold, Relation) and isinstance(answer, Relation):
            return _agree_relations(gold, answer, tolerance)
        return _agree_named(gold, answer, tolerance)
    if isinstance(gold, Number) and isinstance(answer, Spelled):
        return _agree_with_number(answer, gold, tolerance)
    if isinstance(gold, Spelled) and isinstance(answer, Number):
        return _agree_with_number(gold, answer, tolerance)
    if isinstance(gold, Spelled) or isinstance(answer, Spelled):
        return isinstance(gold, Spelled) and isinstance(answer, Spelled) and _agree_spelled(gold, answer)
    if isinstance(gold, Region) or isinstance(answer, Region):
        first, second = region_of(gold, read), region_of(answer, read)
        return first is not None and second is not None and same_region(first, second)
    if _is_one(gold) and isinstance(answer, Several) and answer.brackets == "{}" and len(answer.items) == 1:
        return agree(gold, answer.items[0], tolerance)  # the set of the one solution
    if _is_point(answer) and isinstance(gold, Several) and gold.brackets == "{}" and len(gold.items) == 1:
        return agree(gold.items[0], answer, tolerance)
    if isinstance(answer, Number) and isinstance(gold, Several) and gold.brackets in ("", "{}") and 0 < len(gold.items) < 4:
        return all(agree(item, answer, tolerance) for item in gold.items)  # 9/4 or 2.25
    if isinstance(answer, Several) and isinstance(gold, Number) and not answer.brackets:  # 1/2 or 0.5
        return 0 < len(answer.items) <= MAX_REPEATED and all(agree(gold, item, tolerance) for item in answer.items)
    if isinstance(gold, Several) or isinstance(answer, Several):
        return _agree_several(gold, answer, tolerance)
    if isinstance(gold, Matrix) or isinstance(answer, Matrix):
        return isinstance(gold, Matrix) and isinstance(answer, Matrix) and _agree_matrices(gold, answer, tolerance)
    return agree_numbers(gold, answer, tolerance)


def _is_point(reading: Reading) -> bool:
    return isinstance(reading, Several) and reading.brackets == "()"


def _is_one(reading: Reading) -> bool:
    """Return whether a reading is one number or one point."""
    return isinstance(reading, Number) or _is_point(reading)


def _agree_spelled(gold: Spelled, answer: Spelled) -> bool:
    """Compare ratios, times and the like, whose numbers must be equal: a tolerance is one of single numbers."""
    if gold.notation != answer.notation or gold.notation == "unread":
        return False
    if gold.notation == "remainder":
        return _agree_remainders(gold, answer)
    if len(gold.parts) != len(answer.parts):
        return False
    if gold.notation == "ratio" and not _may_be_time(gold) and not _may_be_time(answer):
        sides = [[number_of(part) for part in reading.parts[:-1]] for reading in (gold, answer)]
        pairs = list(zip(*sides, strict=True))
        if any(value is not None and value.is_zero for pair in pairs for value in pair):
            return all(map(_agree_parts, gold.parts, answer.parts))
        return _agree_parts(gold.parts[-1], answer.parts[-1]) and all(
            equality.equal(g * pairs[0][1], a * pairs[0][0])
            for g, a in pairs  # pyright: ignore
        )
    return all(map(_agree_parts, gold.parts, answer.parts))


def _agree_with_number(spelled: Spelled, number: Number, tolerance: Tolerance) -> bool:
    """Compare a ratio or a remainder with a number. A ratio is its fraction, unless it may be a time; what is congruent to 3
    names 3."""
    if spelled.notation == "remainder":
        return isinstance(spelled.parts[0], Number) and agree(number, spelled.parts[0], tolerance)
    if spelled.notation != "ratio" or len(spelled.parts) != 3 or number.unit:
        return False
    first, second = (number_of(part) for part in spelled.parts[:2])
    if first is None or second is None or second.is_zero or _may_be_time(spelled) or number.value.is_integer:
        return False
    return agree(Number(first / second, None, ""), number, tolerance)


def _may_be_time(ratio: Spelled) -> bool:
    """Return whether a ratio can be read as hours and minutes."""
    numbers = [number_of(part) for part in ratio.parts[:-1]]
    return any(n is None for n in numbers) or (
        len(numbers) == 2 and all(n is not None and n.is_integer for n in numbers) and bool(10 <= numbers[1] < 60)  # pyright: ignore
    )


def _agree_parts(gold: "Reading | str", answer: "Reading | str") -> bool:
    if isinstance(gold, UnitText) and isinstance(answer, UnitText):
        return not gold or not answer or read_unit(gold) == read_unit(answer)
    if isinstance(gold, str) or isinstance(answer, str):
        return gold == answer
    return agree(gold, answer, EXACT)


def _agree_remainders(gold: Spelled, answer: Spelled) -> bool:
    if all(isinstance(reading.parts[0], Several) for reading in (gold, answer)):
        ones = [[Spelled("remainder", (item, r.parts[1])) for item in r.parts[0].items] for r in (gold, answer)]  # pyright: ignore
        return len(ones[0]) == len(ones[1]) and all(any(_agree_remainders(g, a) for a in ones[1]) for g in ones[0])
    (g, m), (a, n) = (tuple(number_of(part) for part in reading.parts) for reading in (gold, answer))
    if g is None or m is None or a is None or n is None or not equality.equal(m, n):
        return False
    return bool(m.is_Integer and (g - a).is_Integer and (g - a) % m == 0) or equality.equal(g, a)


def _agree_matrices(gold: Matrix, answer: Matrix, tolerance: Tolerance) -> bool:
    if [len(row) for row in gold.rows] != [len(row) for row in answer.rows]:
        return False
    return all(
        agree(g, a, tolerance) for gs, as_ in zip(gold.rows, answer.rows, strict=True) for g, a in zip(gs, as_, strict=True)
    )


def _same_shape(one: Reading, other: Reading) -> Reading:
    """Return a vector as a tuple where the other side is one, and ``[[1, 2], [3, 4]]`` as a matrix where the other side
    is."""
    if isinstance(one, Matrix) and isinstance(other, Several) and other.brackets == "()":
        is_vector = len(one.rows) == 1 or all(len(row) == 1 for row in one.rows)
        return Several("()", tuple(cell for row in one.rows for cell in row)) if is_vector else one
    if isinstance(one, Several) and isinstance(other, Matrix) and one.items:
        rows = [row.items for row in one.items if isinstance(row, Several) and row.brackets == one.brackets != ""]
        if len(rows) == len(one.items):
            return Matrix(tuple(rows))
    return one


def _agree_several(gold: Reading, answer: Reading, tolerance: Tolerance) -> bool:
    """Compare two lists, sets or tuples. Brackets decide: those of tuples and intervals keep the order, braces and bare
    lists do not."""
    gold, answer = _same_shape(gold, answer), _same_shape(answer, gold)
    if isinstance(gold, Matrix) and isinstance(answer, Matrix):
        return _agree_matrices(gold, answer, tolerance)
    if not (isinstance(gold, Several) and isinstance(answer, Several)):
        return False
    if bool(gold.brackets) != bool(answer.brackets) and any(isinstance(i, Relation) for i in (*gold.items, *answer.items)):
        regions = region_of(gold, read), region_of(answer, read)
        if regions[0] is not None and regions[1] is not None:  # (1, 3) and x > 1, x < 3
            return same_region(regions[0], regions[1])
    first, second = (
        _without_names(one.items, other.items, bracketed=other.brackets == "()")
        for one, other in ((gold, answer), (answer, gold))
    )
    ordered = any(name in ("()", "[]", "(]", "[)") for name in (gold.brackets, answer.brackets)) or first[1] or second[1]
    if (
        ordered
        and gold.brackets != answer.brackets
        and not ({gold.brackets, answer.brackets} == {"", "()"} and (first[1] or second[1]))
    ):
        return False
    if max(len(first[0]), len(second[0])) <= MAX_REPEATED and not ordered and len(first[0]) != len(second[0]):
        distinct = _distinct(first[0])
        is_set = gold.brackets == "{}" or len(distinct) == 1  # "9/4 or 2.25" is one value, 1, 1, 2 are three roots
        first, second = (distinct if is_set else first[0], first[1]), (_distinct(second[0]), second[1])
    if len(first[0]) != len(second[0]):
        return False
    if ordered:
        return all(agree(g, a, tolerance) for g, a in zip(first[0], second[0], strict=True))
    nouns = [{item.unit for item in side if isinstance(item, Number)} for side in (first[0], second[0])]
    counted = len(nouns[0]) > 1 and nouns[0] == nouns[1]  # 2 boys, 3 girls
    in_letters = len({letter_of(item) for item in first[0]} - {""}) > 1  # a > 0, b > 2
    left = list(second[0])
    for item in first[0]:
        fits = (
            index
            for index, other in enumerate(left)
            if agree(item, other, tolerance)
            and not (counted and _noun(item) != _noun(other))
            and not (in_letters and letter_of(item) != letter_of(other))
        )
        match = next(fits, None)
        if match is None:
            return False
        left.pop(match)
    return True


MAX_REPEATED = 50


def _distinct(items: Sequence[Reading]) -> list[Reading]:
    """Return each value once: a set stays the same when an element is named twice."""
    distinct: list[Reading] = []
    for item in items:
        if not any(agree(other, item, EXACT) for other in distinct):
            distinct.append(item)
    return distinct


def _noun(item: Reading) -> str:
    return item.unit if isinstance(item, Number) else ""


def _without_names(
    items: Sequence[Reading], others: Sequence[Reading], *, bracketed: bool
) -> tuple[Sequence[Reading], bool]:
    """Return the values of ``x = 1, x = 2`` where all names are the same, or where the other side has none, and whether
    names that differ were dropped. The order of the values then tells them apart: that of the names for a tuple, else the
    order in the text. Names that differ in their numbers only (``x_1``, ``x_2``) are one name, but for a tuple."""
    relations = [
        item for item in items if isinstance(item, Relation) and item.signs == ("=",) and NAME.fullmatch(item.sides[0])
    ]
    names = {compact(relation.sides[0]) for relation in relations}
    others_named = any(isinstance(item, Relation) for item in others)
    if not items or len(relations) < len(items) or (len(names) > 1 and others_named):
        return items, False
    if bracketed and _follow(names):  # (2, 3) for y = 3, x = 2
        relations.sort(key=lambda r: compact(r.sides[0]))
    is_numbered = not bracketed and len({re.sub(r"_\{?\d+\}?$", "", name) for name in names}) == 1
    return [side(relation, 1) for relation in relations], len(names) > 1 and not is_numbered


def _follow(names: Iterable[str]) -> bool:
    """Return whether names are letters that follow each other in the alphabet, or one letter with numbers."""
    ordered = sorted(names)
    if len({re.sub(r"\d", "", name) for name in ordered}) == 1:
        return True
    return all(len(name) == 1 for name in ordered) and all(ord(b) - ord(a) == 1 for a, b in pairwise(ordered))


def _agree_named(gold: Reading, answer: Reading, tolerance: Tolerance) -> bool:
    """Compare ``x = 5`` with 5: the question asks for what is named. An answer may name it by a formula (``a + b = 5``); a
    gold formula is an equation."""
    if isinstance(gold, Relation):
        value = named_value(gold)
        if value is not None:
            return agree(value, answer, tolerance)
    elif isinstance(answer, Relation):
        value = named_value(answer, by_formula=number_of(gold) != 0)  # what is 0 is an equation
        if value is not None:
            return agree(gold, value, tolerance)
    first, second = region_of(gold, read), region_of(answer, read)
    return first is not None and second is not None and same_region(first, second)


def named_value(relation: Relation, *, by_formula: bool = False) -> Reading | None:
    """Return the value of ``x = 2 + 3 = 5``: the last side, provided that the numbers before it agree with it."""
    if set(relation.signs) != {"="}:
        return None
    named = NAME.fullmatch(relation.sides[0]) is not None
    values = [side(relation, at) for at in range(named, len(relation.sides))]
    numbers = [v for v in values if isinstance(v, Number) and not v.value.free_symbols]
    if not named and len(numbers) < len(values) and not (by_formula and (len(values) > 2 or _num_letters(values[0]) > 1)):
        return None
    return values[-1] if all(agree(number, values[-1], EXACT) for number in numbers) else None


def _num_letters(reading: Reading) -> int:
    """Return the number of letters of a formula; 0 where it holds words."""
    letters = reading.value.free_symbols if isinstance(reading, Number) else set()
    return 0 if any(str(letter).startswith("text ") for letter in letters) else len(letters)


_OF_X = re.compile(r"[a-zA-Z](?:\^\{?-1\}?)?\(([a-z])\)|y")


def _name(relation: Relation) -> str:
    """Return what a relation names; "" for a formula. Derivatives get one spelling, and y stands for any function of x."""
    if not NAME.fullmatch(relation.sides[0]):
        return ""
    name = re.sub(r"\\frac\{?d(\w)\}?\{?d\w\}?", r"\1'", compact(relation.sides[0]))
    return "y" if _OF_X.fullmatch(name) else name


def _same_names(gold: Relation, answer: Relation) -> bool:
    """Return whether chains of names (``a = b = 0``) name the same, and functions with names are the same ones."""
    named = [{compact(text) for text in r.sides[:-1] if NAME.fullmatch(text)} for r in (gold, answer)]
    if max(map(len, named)) > 1:
        return named[0] == named[1]
    functions = [
        (match := _OF_X.fullmatch(compact(r.sides[0]))) and match[1] and match[0].partition("(")[0] for r in (gold, answer)
    ]
    return None in functions or "" in functions or functions[0].casefold() == functions[1].casefold()  # pyright: ignore


def _in_letter_of(gold: Relation, answer: Relation, value: Reading) -> Reading:
    """Return the value of ``f(t) = t + 1`` in the letter of ``f(x) = x + 1``."""
    names = [_OF_X.fullmatch(compact(relation.sides[0])) for relation in (gold, answer)]
    if names[0] is None or names[1] is None or not isinstance(value, Number):
        return value
    of_gold, of_answer = (Symbol(name[1] or "x") for name in names if name)
    if of_gold == of_answer:
        return value
    if value.value.has(of_gold):
        return Spelled("unread", ())
    return Number(cast(Expr, value.value.subs(of_answer, of_gold)), value.decimal, value.unit)


def _agree_relations(gold: Relation, answer: Relation, tolerance: Tolerance) -> bool:
    first, second = region_of(gold, read), region_of(answer, read)
    if first is not None and second is not None:
        return same_region(first, second)
    if set(gold.signs) == set(answer.signs) == {"="}:
        names = [_name(relation) for relation in (gold, answer)]
        if not _same_names(gold, answer):
            return False
        if names[0] and names[0] == names[1]:
            g, a = named_value(gold), named_value(answer)
            return g is not None and a is not None and agree(g, _in_letter_of(gold, answer, a), tolerance)
        values = [named_value(r) for r, name in zip((gold, answer), names, strict=True) if not name]
        if len(values) == 2 and all(isinstance(v, Number) for v in values):
            return agree(values[0], values[1], tolerance)  # pyright: ignore
    if len(gold.signs) != 1 or len(answer.signs) != 1:
        return _same_sides(gold, answer)
    try:
        g, a = (_difference(relation) for relation in (gold, answer))
    except Unreadable:
        return _same_sides(gold, answer)
    if gold.signs[0] in ("=", "!="):
        return gold.signs == answer.signs and equality.proportional(g, a)
    if gold.signs == answer.signs:
        return equality.proportional(g, a, positive=True)
    return gold.signs[0] == MIRRORED.get(answer.signs[0]) and equality.proportional(g, -a, positive=True)


def _difference(relation: Relation) -> Expr:
    left, right = (read_formula(_as_product(side)) for side in relation.sides)
    return left - right


def _as_product(side: str) -> str:
    """Replace ``f(x)`` and derivatives by one letter: they are not what is compared."""
    return re.sub(r"\\frac\s*\{\s*(d[^{}]*)\}\s*\{\s*(d[^{}]*)\}", lambda m: f"D_{{{compact(m[1] + '/' + m[2])}}}", side)


def _same_sides(gold: Relation, answer: Relation) -> bool:
    for turned in (False, True):
        signs = tuple(MIRRORED.get(sign, sign) for sign in reversed(answer.signs)) if turned else answer.signs
        sides = tuple(reversed(answer.sides)) if turned else answer.sides
        if signs == gold.signs and all(
            g == a or agree(read(g), read(a), EXACT) for g, a in zip(gold.sides, sides, strict=True)
        ):
            return True
    return False
