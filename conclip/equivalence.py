r"""Whether an answer is the gold one: what kind of thing each states, then part by part whether they are the same.

Only grader workers call this: algebra may run for ever or take all memory, and workers have limits.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import sympy
from sympy import Expr, Rational

from conclip import equality
from conclip.answers import choice_letters, extract, without_label
from conclip.formulas import MAX_DEPTH, Unreadable, read_formula
from conclip.readings import (
    NAME,
    TURNED,
    Matrix,
    Number,
    Reading,
    Relation,
    Several,
    Spelled,
    UnitText,
    is_understood,
    number_of,
    read,
    region_of,
)
from conclip.regions import Region, same_region
from conclip.spelling import STYLED, clean, compact, nesting, plain
from conclip.units import read_unit


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a number may lie from the gold one."""

    decimals: int | None = None
    """Numbers that agree when rounded to so many decimals are equal."""
    relative: float = 0.0
    """Numbers that differ by at most this share of the gold one are equal."""


EXACT = Tolerance()


def same_answer(
    gold: str, answer: str, *, choices: Sequence[str] | None = None, tolerance: Tolerance = EXACT, is_response: bool = False
) -> bool:
    """Whether `answer` states the same as `gold`, gold first (the comparison is not symmetric: the gold one decides what
    kind of thing is asked for). `is_response`: it may be a whole response, in which the answer is yet to be found.

    Example: ``same_answer("1/2", "0.5")`` and ``same_answer("B", "(b) 12")`` hold, ``same_answer("(0,1)", "[0,1]")`` does
    not.
    """
    if _same(gold, answer, choices, tolerance):
        return True
    for text in (
        (answer, plain(answer))
        if _PROSE.search(plain(answer)) or (is_response and ("\n" in answer or "####" in answer))
        else ()
    ):
        found = extract(text, lenient=True)
        # A number out of a formula that was not understood is no answer; "the answer is 7" in a box is one.
        if found and (is_response or found.method == "phrase") and _same(gold, found.answer, choices, tolerance):
            return True
    return False


def is_readable(gold: str, *, choices: Sequence[str] | None = None) -> bool:
    """Whether answers can be compared with `gold` by more than its spelling."""
    gold = clean(gold)
    return bool(choices) or len(choice_letters(gold)) > 0 or _is_text(gold) or is_understood(read(gold, is_gold=True))


_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}[\s:*]+\S")


def _same(gold: str, answer: str, choices: Sequence[str] | None, tolerance: Tolerance) -> bool:
    """`same_answer` for an answer that is no sentence."""
    gold, answer = clean(gold), clean(answer)
    if not gold or not answer:
        return False
    if choices:
        return _same_choice(gold, answer, choices, tolerance)
    if compact(gold) == compact(answer):
        return True
    if letters := choice_letters(gold):
        chosen = choice_letters(answer, fold=len(letters) == 1 and letters[0].isupper())
        if chosen or len(letters) > 1:
            return sorted(chosen) == sorted(letters)
    if _is_text(gold):
        return _same_words(gold, answer)
    if max(nesting(gold), nesting(answer)) > MAX_DEPTH:
        return False
    first, second = read(gold, is_gold=True), read(answer)
    if _agree(first, second, tolerance):
        return True
    grouped = [read(text[1:-1]) if _GROUPED.fullmatch(text) else None for text in (gold, answer)]
    return any(g is not None for g in grouped) and _agree(grouped[0] or first, grouped[1] or second, tolerance)


_GROUPED = re.compile(r"\(\s*-?\d{1,3}(?:,\d{3})+(?:\.\d+)?\s*\)")
"""A number in parentheses that reads like a pair."""


def _same_choice(gold: str, answer: str, choices: Sequence[str], tolerance: Tolerance) -> bool:
    """Both name the same options, by letter or by what they say."""
    return bool(named := _options(gold, choices, tolerance)) and named == _options(answer, choices, tolerance)


def _options(text: str, choices: Sequence[str], tolerance: Tolerance) -> list[int]:
    if letters := choice_letters(text, num_choices=len(choices), fold=True):
        return sorted({ord(letter.upper()) - ord("A") for letter in letters})
    texts = [clean(without_label(choice, index)) for index, choice in enumerate(choices)]
    if lettered := _LETTER_AND_TEXT.match(text):
        index = ord(lettered[1]) - ord("A")
        return [index] if index < len(texts) and _same_words(texts[index], text[lettered.end() :]) else []
    spelled = [index for index, option in enumerate(texts) if _same_words(option, text)]
    if len(spelled) == 1:
        return spelled
    same = [index for index, option in enumerate(texts) if _same(option, text, None, tolerance)]
    return same if len(same) == 1 else []


_LETTER_AND_TEXT = re.compile(r"([A-Z])(?:\s*-\s*|\s+)(?=\S)")


# Words


_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9' ,.-]*")


def _is_text(gold: str) -> bool:
    r"""Whether the gold answer is words and no formula: whole in ``\text{}``, of four letters or more, or a name."""
    words = " ".join(plain(gold).split()).strip(" .")
    if not _TEXT.fullmatch(words) or not re.search(r"[A-Za-z]{2}", words):
        return False
    if STYLED.fullmatch(gold.strip()):
        return True
    if re.search(r"\d", words):
        return False
    return len(words) >= 4 or re.fullmatch(r"[A-Z][a-z]{2,}|yes|no|Yes|No|[A-Z]{2,}", words) is not None


def _same_words(gold: str, answer: str) -> bool:
    """Case folds, but for names in capitals (points, lines): ``AB`` is not ``ab``."""
    first, second = (" ".join(re.sub(r"\s*,\s*", ", ", plain(text)).split()).strip(" .") for text in (gold, answer))
    return first == second or (first.casefold() == second.casefold() and not re.fullmatch(r"[A-Z]{2,}", first))


# Agreement


def _agree(gold: Reading, answer: Reading, tolerance: Tolerance) -> bool:
    if isinstance(gold, Spelled) or isinstance(answer, Spelled):
        return isinstance(gold, Spelled) and isinstance(answer, Spelled) and _agree_spelled(gold, answer, tolerance)
    if isinstance(gold, Region) or isinstance(answer, Region):
        first, second = region_of(gold), region_of(answer)
        return first is not None and second is not None and same_region(first, second)
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        return _agree_relations(gold, answer, tolerance)
    if isinstance(gold, Relation) or isinstance(answer, Relation):
        return _agree_named(gold, answer, tolerance)
    if isinstance(gold, Several) or isinstance(answer, Several):
        return _agree_several(gold, answer, tolerance)
    if isinstance(gold, Matrix) or isinstance(answer, Matrix):
        return isinstance(gold, Matrix) and isinstance(answer, Matrix) and _agree_matrices(gold, answer, tolerance)
    return _agree_numbers(gold, answer, tolerance)


def _agree_numbers(gold: Number, answer: Number, tolerance: Tolerance) -> bool:
    """A unit may be missing on either side; a percentage is its number of percent and its fraction."""
    percents = (gold.unit == "%", answer.unit == "%")
    if any(percents):
        others = [n.unit for n in (gold, answer) if n.unit not in ("", "%")]
        if any(read_unit(unit) for unit in others):
            return False
        if _same_value(gold, answer, tolerance):
            return True
        if all(percents):
            return False
        shares = [
            Number(n.value / 100, None if n.decimal is None else n.decimal / 100, "") if n.unit == "%" else n
            for n in (gold, answer)
        ]
        return _same_value(shares[0], shares[1], tolerance)
    gold_unit, answer_unit = (read_unit(n.unit) if n.unit else None for n in (gold, answer))
    if gold_unit is None or answer_unit is None or gold_unit == answer_unit:
        return _same_value(gold, answer, tolerance)
    if gold_unit.powers != answer_unit.powers:
        return False
    factor = answer_unit.factor / gold_unit.factor
    return _same_value(gold, Number(answer.value * Rational(factor.numerator, factor.denominator), None, ""), tolerance)


def _same_value(gold: Number, answer: Number, tolerance: Tolerance) -> bool:
    if gold.value in (sympy.oo, -sympy.oo) or answer.value in (sympy.oo, -sympy.oo):
        return gold.value == answer.value
    if equality.equal(gold.value, answer.value):
        return True
    if gold.value.free_symbols or answer.value.free_symbols:
        return False
    if gold.decimal is None and answer.decimal is not None and equality.spells(answer.decimal, gold.value):
        return True
    if answer.decimal is None and gold.decimal is not None and equality.spells(gold.decimal, answer.value):
        return True
    if tolerance.decimals is not None and equality.agree_in_decimals(gold.value, answer.value, tolerance.decimals):
        return True
    return tolerance.relative > 0 and equality.within(gold.value, answer.value, tolerance.relative)


def _agree_spelled(gold: Spelled, answer: Spelled, tolerance: Tolerance) -> bool:
    if gold.kind != answer.kind or gold.kind == "unread":
        return False
    if gold.kind == "remainder":
        return _agree_remainders(gold, answer)
    if len(gold.parts) != len(answer.parts):
        return False
    return all(_agree_parts(g, a, tolerance) for g, a in zip(gold.parts, answer.parts, strict=True))


def _agree_parts(gold: "Reading | str", answer: "Reading | str", tolerance: Tolerance) -> bool:
    if isinstance(gold, UnitText) and isinstance(answer, UnitText):
        return not gold or not answer or read_unit(gold) == read_unit(answer)
    if isinstance(gold, str) or isinstance(answer, str):
        return gold == answer
    return _agree(gold, answer, EXACT)


def _agree_remainders(gold: Spelled, answer: Spelled) -> bool:
    (g, m), (a, n) = (tuple(number_of(part) for part in reading.parts) for reading in (gold, answer))
    if g is None or m is None or a is None or n is None or not equality.equal(m, n):
        return False
    return bool(m.is_Integer and (g - a).is_Integer and (g - a) % m == 0) or equality.equal(g, a)


def _agree_matrices(gold: Matrix, answer: Matrix, tolerance: Tolerance) -> bool:
    if [len(row) for row in gold.rows] != [len(row) for row in answer.rows]:
        return False
    return all(
        _agree(g, a, tolerance) for gs, as_ in zip(gold.rows, answer.rows, strict=True) for g, a in zip(gs, as_, strict=True)
    )


def _agree_several(gold: Reading, answer: Reading, tolerance: Tolerance) -> bool:
    """Brackets decide: those of tuples and intervals keep the order, braces and bare lists do not."""
    if isinstance(gold, Matrix) and isinstance(answer, Several) and len(gold.rows[0]) == 1:
        gold = Several("()", tuple(row[0] for row in gold.rows))
    if not (isinstance(gold, Several) and isinstance(answer, Several)):
        return False
    first, second = (_without_names(one.items, other.items) for one, other in ((gold, answer), (answer, gold)))
    ordered = any(name in ("()", "[]", "(]", "[)") for name in (gold.brackets, answer.brackets)) or first[1] or second[1]
    if ordered and {gold.brackets, answer.brackets} != {gold.brackets}:
        return False
    if len(first[0]) != len(second[0]):
        return False
    if ordered:
        return all(_agree(g, a, tolerance) for g, a in zip(first[0], second[0], strict=True))
    left = list(second[0])
    for item in first[0]:
        match = next((index for index, other in enumerate(left) if _agree(item, other, tolerance)), None)
        if match is None:
            return False
        left.pop(match)
    return True


def _without_names(items: Sequence[Reading], others: Sequence[Reading]) -> tuple[Sequence[Reading], bool]:
    """The values of ``x = 1, x = 2`` where all names are the same, or where the other side has none; and whether different
    names were dropped, so that the order of values tells them apart."""
    names = {
        compact(item.sides[0])
        for item in items
        if isinstance(item, Relation) and item.signs == ("=",) and NAME.fullmatch(item.sides[0])
    }
    all_named = all(isinstance(item, Relation) and item.signs == ("=",) and NAME.fullmatch(item.sides[0]) for item in items)
    others_named = any(isinstance(item, Relation) for item in others)
    if not items or not all_named or (len(names) > 1 and others_named):
        return items, False
    return [read(item.sides[1]) for item in items if isinstance(item, Relation)], len(names) > 1


def _agree_named(gold: Reading, answer: Reading, tolerance: Tolerance) -> bool:
    """``x = 5`` and 5: what is named is asked for. An answer may name it by a formula (``a + b = 5``); a gold formula
    is an equation."""
    if isinstance(gold, Relation):
        value = _named_value(gold)
        if value is not None:
            return _agree(value, answer, tolerance)
    elif isinstance(answer, Relation):
        value = _named_value(answer, by_formula=True)
        if value is not None:
            return _agree(gold, value, tolerance)
    first, second = region_of(gold), region_of(answer)
    return first is not None and second is not None and same_region(first, second)


def _named_value(relation: Relation, *, by_formula: bool = False) -> Reading | None:
    """The value of ``x = 2 + 3 = 5``: the last side, where the sides before it that are numbers agree with it."""
    if set(relation.signs) != {"="}:
        return None
    named = NAME.fullmatch(relation.sides[0]) is not None
    values = [read(side) for side in relation.sides[named:]]
    numbers = [v for v in values if isinstance(v, Number) and not v.value.free_symbols]
    if not named and not by_formula and len(numbers) < len(values):
        return None
    return values[-1] if all(_agree(number, values[-1], EXACT) for number in numbers) else None


def _agree_relations(gold: Relation, answer: Relation, tolerance: Tolerance) -> bool:
    first, second = region_of(gold), region_of(answer)
    if first is not None and second is not None:
        return same_region(first, second)
    if set(gold.signs) == set(answer.signs) == {"="}:
        names = [compact(r.sides[0]) if NAME.fullmatch(r.sides[0]) else "" for r in (gold, answer)]
        if names[0] and names[0] == names[1]:
            g, a = _named_value(gold), _named_value(answer)
            return g is not None and a is not None and _agree(g, a, tolerance)
        values = [_named_value(r) for r, name in zip((gold, answer), names, strict=True) if not name]
        if len(values) == 2 and all(isinstance(v, Number) for v in values):
            return _agree(values[0], values[1], tolerance)  # pyright: ignore
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
    return gold.signs[0] == TURNED[answer.signs[0]] and equality.proportional(g, -a, positive=True)


def _difference(relation: Relation) -> Expr:
    left, right = (read_formula(_as_product(side)) for side in relation.sides)
    return left - right


def _as_product(side: str) -> str:
    """``f(x)`` and derivatives as one letter: they are not what is compared."""
    return re.sub(r"\\frac\s*\{\s*(d[^{}]*)\}\s*\{\s*(d[^{}]*)\}", lambda m: f"D_{{{compact(m[1] + '/' + m[2])}}}", side)


def _same_sides(gold: Relation, answer: Relation) -> bool:
    for turned in (False, True):
        signs = tuple(TURNED[sign] for sign in reversed(answer.signs)) if turned else answer.signs
        sides = tuple(reversed(answer.sides)) if turned else answer.sides
        if signs == gold.signs and all(
            g == a or _agree(read(g), read(a), EXACT) for g, a in zip(gold.sides, sides, strict=True)
        ):
            return True
    return False
