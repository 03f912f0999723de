r"""Whether an answer is the gold one: what kind of thing each states, then part by part whether they are the same.

Only grader workers call this: algebra may run for ever or take all memory, and workers have limits.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

import sympy
from sympy import Expr, Integer, Rational

from conclip import equality
from conclip.answers import choice_letters, extract, without_label
from conclip.formulas import MAX_DEPTH, Unreadable, read_formula
from conclip.spelling import STYLED, clean, closing, compact, nesting, plain
from conclip.units import read_unit, split_unit


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
    return bool(choices) or len(choice_letters(gold)) > 0 or _is_text(gold) or _is_readable(read(gold, is_gold=True))


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
        return _words(gold) == _words(answer)
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
        return [index] if index < len(texts) and _words(texts[index]) == _words(text[lettered.end() :]) else []
    spelled = [index for index, option in enumerate(texts) if _words(option) == _words(text)]
    if len(spelled) == 1:
        return spelled
    same = [index for index, option in enumerate(texts) if _same(option, text, None, tolerance)]
    return same if len(same) == 1 else []


_LETTER_AND_TEXT = re.compile(r"([A-Z])(?:\s*-\s*|\s+)(?=\S)")


# Kinds of answers


@dataclass(frozen=True, slots=True)
class Number:
    """One value, a formula with letters included."""

    value: Expr
    decimal: Decimal | None
    """The value as it is spelled, where it is spelled as a decimal."""
    unit: str
    """As it stands; "%" for percent, "" for none."""


@dataclass(frozen=True, slots=True)
class Several:
    """Values side by side: ``(1, 2]``, ``\\{1, 2\\}``, or without brackets; a single one only in braces."""

    brackets: str
    items: tuple["Reading", ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """Sides with signs between them, such as ``y = 2x`` or ``0 < x \\le 1``."""

    signs: tuple[str, ...]
    sides: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Region:
    """A union of intervals: (left, right, left is in, right is in), from left to right."""

    intervals: tuple[tuple[Expr, Expr, bool, bool], ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    rows: tuple[tuple["Reading", ...], ...]


@dataclass(frozen=True, slots=True)
class Spelled:
    """What only its parts' spelling decides: times, ratios, other bases, remainders, dots, systems, words."""

    kind: str
    parts: tuple["Reading | str", ...]


Reading = Number | Several | Relation | Region | Matrix | Spelled

_SEPARATORS = re.compile(
    r"\\(?:text|mbox|textrm|mathrm)\s*\{\s*,?\s*(?:or|and)\s*,?\s*\}|(?<![A-Za-z\\])(?:or|and)(?![A-Za-z])"
    r"|\\(?:lor|land|vee|wedge|quad|qquad)(?![a-zA-Z])|\n"
)
_SIGNS = re.compile(
    r"\\(?:leqslant|leq?|geqslant|geq?|neq?|lt|gt)(?![a-zA-Z])|\\equiv(?![a-zA-Z])|\\(?:in|approx)(?![a-zA-Z])|!=|<=|>=|=|<|>"
)
_SIGN_OF = {
    "\\le": "<=", "\\leq": "<=", "\\leqslant": "<=", "\\ge": ">=", "\\geq": ">=", "\\geqslant": ">=", "\\ne": "!=", "\\neq": "!=",
    "\\lt": "<", "\\gt": ">", "\\in": "=", "\\approx": "=",
}  # fmt: skip
_MATRIX = re.compile(
    r"[(\[|]?\s*\\begin\{([pbBvV]?(?:small)?matrix|array)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}\s*[)\]|]?", re.DOTALL
)
_SYSTEM = re.compile(r"\\begin\{(aligned|align\*?|gathered|cases)\}(.*)\\end\{\1\}", re.DOTALL)
_BASED = re.compile(r"(-?)(?:\\text\s*\{\s*)?([0-9A-Z]+)\s*\}?\s*_\s*\{?\s*(?:\\text\s*\{\s*)?(\w+)\s*\}?\s*\}?")
_CLOCK = re.compile(r"(-?[^:]+(?:\s*:\s*[^:]+)+)")
_MODULO = re.compile(r"(?:(.*?)\\equiv)?\s*(.*?)\s*(?:\\pmod\s*\{?|\(\s*\\(?:mod|bmod)|\\mod)\s*([^{}()]+)[})]*")
_ANGLE = re.compile(r".*\\circ.*\d\s*'.*")
_SET_BUILDER = re.compile(r"\\?\{\s*[a-zA-Z]\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?(?:\||:)\s*(.*?)\s*\\?\}")
_BASES = {name: str(base) for base, name in enumerate("two three four five six seven eight nine ten".split(), start=2)}
_PLUS_MINUS = re.compile(r"\\(pm|mp)(?![a-zA-Z])")
_REPEATING = re.compile(r"(-?\d*\.\d*?)(\d{1,6}?)\2{2,}\s*\\ldots")
_ENDLESS = ("\\infty", "+\\infty", "-\\infty")
_UNREAD = Spelled("unread", ())


def _is_readable(reading: Reading) -> bool:
    """Whether all of it was understood."""
    if isinstance(reading, Spelled):
        return reading.kind != "unread" and all(isinstance(part, str) or _is_readable(part) for part in reading.parts)
    if isinstance(reading, Several):
        return all(map(_is_readable, reading.items))
    if isinstance(reading, Matrix):
        return all(_is_readable(cell) for row in reading.rows for cell in row)
    if isinstance(reading, Relation):
        return _is_readable(read(reading.sides[-1]))
    return True


def read(text: str, *, is_gold: bool = False) -> Reading:
    """What a cleaned answer states; `Spelled("unread")` where that is not understood."""
    text = text.strip()
    if system := _SYSTEM.fullmatch(text):
        if system[1] == "cases":
            return Spelled("cases", (compact(text),))
        text = system[2].replace("&", "").strip()
    if described := _SET_BUILDER.fullmatch(text):
        text = described[1]
    if text == "\\emptyset":
        return Several("{}", ())
    if matrix := _MATRIX.fullmatch(text):
        return _read_matrix(matrix[1], matrix[2])
    if (literal := _read_literal(text)) is not None:
        return literal
    parts = _split(_separated(text), ",;")
    if len(parts) > 1:
        return _read_list(parts, is_gold)
    if _PLUS_MINUS.search(text) and not text.startswith(("\\{", "(")):
        return Several("", tuple(read(_signed(text, sign), is_gold=is_gold) for sign in "+-"))
    if (region := _read_region(text)) is not None:
        return region
    if (inside := _in_brackets(text)) is not None:
        opening, content, end = inside
        items = _split(_separated(content), ",;", thousands=False)
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


def _separated(text: str) -> str:
    """With commas for the words and signs between values; rows of a matrix are its own."""
    text = text if "\\begin" in text else text.replace("\\\\", " , ")
    return _SEPARATORS.sub(" , ", text)


def _split(text: str, separators: str, *, thousands: bool = True) -> list[str]:
    """The parts of a text between separators that stand outside of brackets; a comma between thousands separates nothing."""
    parts, begin, depth = [], 0, 0
    for position, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif depth == 0 and character in separators:
            if thousands and character == "," and _between_thousands(text, position):
                continue
            parts.append(text[begin:position].strip())
            begin = position + 1
    parts.append(text[begin:].strip())
    found = [part for part in parts if part]
    return found or [""]


def _between_thousands(text: str, comma: int) -> bool:
    return (
        re.match(r"\d{3}(?!\d)", text[comma + 1 :]) is not None
        and re.search(r"(?<![\d.])\d{1,3}(?:,\d{3})*$", text[:comma]) is not None
    )


def _signed(text: str, sign: str) -> str:
    """One of the two values that plus-minus signs stand for."""
    other = "-" if sign == "+" else "+"
    return _PLUS_MINUS.sub(lambda m: f" {sign if m[1] == 'pm' else other} ", text)


def _in_brackets(text: str) -> tuple[str, str, str] | None:
    """(opening, content, closing) of a text that one pair of brackets holds; braces may be escaped."""
    for opening in ("\\{", "(", "[", "{"):
        if text.startswith(opening):
            end = closing(text, len(opening) - 1)
            if end == len(text) - 1:
                escaped = len(opening) > 1 and text[end - 1] == "\\"
                return opening[-1], text[len(opening) : end - escaped], text[end]
    return None


def _read_matrix(name: str, body: str) -> Reading:
    rows = tuple(tuple(read(cell) for cell in row.split("&")) for row in body.split("\\\\") if row.strip())
    if name == "vmatrix":
        try:
            return Number(sympy.Matrix([[_value(cell) for cell in row] for row in rows]).det(), None, "")
        except (ValueError, TypeError):
            return _UNREAD
    return Matrix(rows)


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
            return Spelled("base", (sign + digits.lstrip("0"), base))
    if _ANGLE.fullmatch(text):
        return Spelled("angle", (compact(text),))
    if ":" in text and "\\{" not in text and not _SIGNS.search(text):
        number, unit = split_unit(text)
        parts = [part.strip() for part in number.split(":")]
        if len(parts) > 1 and all(parts):
            return Spelled("ratio", tuple(_or_text(part) for part in parts) + (_Unit(unit),))
    if (modulo := _MODULO.fullmatch(text)) and "mod" in text:
        return Spelled("remainder", (read(modulo[2]), read(modulo[3])))
    return None


class _Unit(str):
    """A unit as a part, which may be missing."""


def _or_text(piece: str) -> "Reading | str":
    reading = _read_number(piece, is_gold=False)
    return reading if isinstance(reading, Number) else compact(piece)


def _read_list(parts: Sequence[str], is_gold: bool) -> Reading:
    """A list without brackets. A name before the first value alone stands for all: ``n = 2, 3``."""
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


_NAME = re.compile(
    r"\\frac\s*\{\s*d[^{}]*\}\s*\{\s*d[^{}]*\}|\(\s*[a-zA-Z]\s*(?:,\s*[a-zA-Z]\s*)+\)"
    r"|(?:\^\{-1\}|\\(?!frac|sqrt|times|cdot|binom|pi\b)[a-zA-Z]+\s*|[A-Za-z]'*\s*|_\s*(?:\w|\{[^{}]*\})\s*|\{[^{}\d+*/^-]*\}\s*|\([a-zA-Z](?:,\s*[a-zA-Z])*\)\s*)+"
)


def _name_of(text: str) -> str:
    """What stands before the first equals sign, where it only names something; "" where there is none."""
    relation = _read_relation(text)
    if relation is None or relation.signs[0] not in ("=",) or not _NAME.fullmatch(relation.sides[0]):
        return ""
    return compact(relation.sides[0])


def _read_number(text: str, is_gold: bool) -> Reading:
    number, unit = split_unit(text, spaced=is_gold)
    number = number.strip().rstrip(" .")
    if repeating := _REPEATING.fullmatch(number):
        number = f"{repeating[1]}\\overline{{{repeating[2]}}}"
    if (inside := _in_brackets(number)) and inside[0] + inside[2] in ("()", "{}") and unit:
        number = inside[1]
    if number in _ENDLESS:
        return Number(-sympy.oo if number[0] == "-" else sympy.oo, None, unit)
    for formula, behind in ((number, unit), (text, "")):
        try:
            return Number(read_formula(formula), _as_decimal(formula), behind)
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


def _words(text: str) -> str:
    """Words as one compares them: case folds, but for names in capitals (points, lines)."""
    words = " ".join(re.sub(r"\s*,\s*", ", ", plain(text)).split()).strip(" .")
    return (
        words
        if re.fullmatch(r"[A-Z]{2,}", words)
        or re.fullmatch(r"[a-z]{2,3}", words)
        and words != "yes" != words
        and words not in ("yes", "no")
        else words.casefold()
    )


# Agreement


def _agree(gold: Reading, answer: Reading, tolerance: Tolerance) -> bool:
    if isinstance(gold, Spelled) or isinstance(answer, Spelled):
        return isinstance(gold, Spelled) and isinstance(answer, Spelled) and _agree_spelled(gold, answer, tolerance)
    if isinstance(gold, Region) or isinstance(answer, Region):
        first, second = _region(gold), _region(answer)
        return first is not None and second is not None and _same_region(first, second)
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
    if isinstance(gold, _Unit) and isinstance(answer, _Unit):
        return not gold or not answer or read_unit(gold) == read_unit(answer)
    if isinstance(gold, str) or isinstance(answer, str):
        return gold == answer
    return _agree(gold, answer, EXACT)


def _agree_remainders(gold: Spelled, answer: Spelled) -> bool:
    (g, m), (a, n) = (tuple(_number(part) for part in reading.parts) for reading in (gold, answer))
    if g is None or m is None or a is None or n is None or not equality.equal(m, n):
        return False
    return bool(m.is_Integer and (g - a).is_Integer and (g - a) % m == 0) or equality.equal(g, a)


def _number(part: "Reading | str") -> Expr | None:
    return part.value if isinstance(part, Number) else None


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
        if isinstance(item, Relation) and item.signs == ("=",) and _NAME.fullmatch(item.sides[0])
    }
    all_named = all(isinstance(item, Relation) and item.signs == ("=",) and _NAME.fullmatch(item.sides[0]) for item in items)
    others_named = any(isinstance(item, Relation) for item in others)
    if not items or not all_named or (len(names) > 1 and others_named):
        return items, False
    return [read(item.sides[1]) for item in items if isinstance(item, Relation)], len(names) > 1


def _agree_named(gold: Reading, answer: Reading, tolerance: Tolerance) -> bool:
    """``x = 5`` and 5: what is named is asked for. An answer may name it by a formula (``a + b = 5``), a gold equation is one."""
    if isinstance(gold, Relation):
        value = _named_value(gold)
        if value is not None:
            return _agree(value, answer, tolerance)
    elif isinstance(answer, Relation):
        value = _named_value(answer, by_formula=True)
        if value is not None:
            return _agree(gold, value, tolerance)
    first, second = _region(gold), _region(answer)
    return first is not None and second is not None and _same_region(first, second)


def _named_value(relation: Relation, *, by_formula: bool = False) -> Reading | None:
    """The value of ``x = 2 + 3 = 5``: the last side, where the sides before it that are numbers agree with it."""
    if set(relation.signs) != {"="}:
        return None
    named = _NAME.fullmatch(relation.sides[0]) is not None
    values = [read(side) for side in relation.sides[named:]]
    numbers = [v for v in values if isinstance(v, Number) and not v.value.free_symbols]
    if not named and not by_formula and len(numbers) < len(values):
        return None
    return values[-1] if all(_agree(number, values[-1], EXACT) for number in numbers) else None


_TURNED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}


def _agree_relations(gold: Relation, answer: Relation, tolerance: Tolerance) -> bool:
    first, second = _region(gold), _region(answer)
    if first is not None and second is not None:
        return _same_region(first, second)
    if set(gold.signs) == set(answer.signs) == {"="}:
        names = [compact(r.sides[0]) if _NAME.fullmatch(r.sides[0]) else "" for r in (gold, answer)]
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
    return gold.signs[0] == _TURNED[answer.signs[0]] and equality.proportional(g, -a, positive=True)


def _difference(relation: Relation) -> Expr:
    left, right = (read_formula(_as_product(side)) for side in relation.sides)
    return left - right


def _as_product(side: str) -> str:
    """``f(x)`` and derivatives as one letter: they are not what is compared."""
    return re.sub(r"\\frac\s*\{\s*(d[^{}]*)\}\s*\{\s*(d[^{}]*)\}", lambda m: f"D_{{{compact(m[1] + '/' + m[2])}}}", side)


def _same_sides(gold: Relation, answer: Relation) -> bool:
    for turned in (False, True):
        signs = tuple(_TURNED[sign] for sign in reversed(answer.signs)) if turned else answer.signs
        sides = tuple(reversed(answer.sides)) if turned else answer.sides
        if signs == gold.signs and all(
            g == a or _agree(read(g), read(a), EXACT) for g, a in zip(gold.sides, sides, strict=True)
        ):
            return True
    return False


# Intervals


def _read_region(text: str) -> Region | None:
    r"""``(-\infty, 2) \cup [3, 4)``, ``\mathbb{R}``, ``\mathbb{R} \setminus \{0\}``."""
    text = re.sub(r"^[a-zA-Z]\s*\\in(?![a-zA-Z])", "", text).strip()
    if re.fullmatch(r"\\mathbb\s*\{?\s*R\s*\}?", text):
        return Region(((-sympy.oo, sympy.oo, False, False),))
    if without := re.fullmatch(r"\\mathbb\s*\{?\s*R\s*\}?\s*(?:\\setminus|\\backslash|-)\s*\\?\{(.*?)\\?\}", text):
        points = [read(part) for part in _split(without[1], ",")]
        return _without_points([point.value for point in points if isinstance(point, Number)], len(points))
    if "\\cup" not in text:
        return None
    intervals: list[tuple[Expr, Expr, bool, bool]] = []
    for part in re.split(r"\\cup(?![a-zA-Z])", text):
        region = _region(read(part))
        if region is None:
            return None
        intervals += region.intervals
    return _region_of(intervals)


def _without_points(points: Sequence[Expr], number: int) -> Region | None:
    if len(points) != number or not points or any(point.free_symbols or not point.is_real for point in points):
        return None
    ends = [-sympy.oo, *sorted(points), sympy.oo]
    return Region(tuple((left, right, False, False) for left, right in zip(ends, ends[1:], strict=False)))


def _region_of(intervals: Sequence[tuple[Expr, Expr, bool, bool]]) -> Region | None:
    """Sorted, and joined where they touch; None where ends are no real numbers."""
    if any(end.free_symbols or not end.is_extended_real for interval in intervals for end in interval[:2]):
        return None
    joined: list[tuple[Expr, Expr, bool, bool]] = []
    for left, right, left_in, right_in in sorted(intervals, key=lambda i: (sympy.N(i[0], 30), not i[2])):
        if joined and (left < joined[-1][1] or (equality.equal(left, joined[-1][1]) and (left_in or joined[-1][3]))):
            before = joined[-1]
            if right > before[1]:
                joined[-1] = (before[0], right, before[2], right_in)
            elif right == before[1]:
                joined[-1] = (*before[:3], before[3] or right_in)
        else:
            joined.append((left, right, left_in, right_in))
    return Region(tuple(joined))


def _region(reading: Reading) -> Region | None:
    """Intervals and inequalities in one letter as a region; None for anything else."""
    if isinstance(reading, Region):
        return reading
    if isinstance(reading, Several) and len(reading.items) == 2 and reading.brackets in ("()", "[]", "(]", "[)"):
        left, right = (_number(item) for item in reading.items)
        if left is None or right is None or left.free_symbols or right.free_symbols:
            return None
        is_ordered = left.is_extended_real and right.is_extended_real and bool(left < right)
        return _region_of([(left, right, reading.brackets[0] == "[", reading.brackets[1] == "]")]) if is_ordered else None
    if isinstance(reading, Several) and not reading.brackets and reading.items:
        regions = [_region(item) for item in reading.items]
        found = [i for region in regions if region is not None for i in region.intervals]
        return (
            _region_of(found)
            if all(r is not None for r in regions) and all(isinstance(i, (Relation, Region)) for i in reading.items)
            else None
        )
    if isinstance(reading, Relation):
        if reading.signs == ("=",) and _NAME.fullmatch(reading.sides[0]):
            inner = read(reading.sides[1])
            return _region(inner) if isinstance(inner, (Region, Several)) else None
        return _region_of_inequality(reading)
    return None


def _region_of_inequality(relation: Relation) -> Region | None:
    """``x > 2``, ``2 < x``, ``0 \\le x < 1``, ``x \\ne 3``."""
    letter = [bool(re.fullmatch(r"[a-zA-Z](?:\([a-zA-Z]\))?|\\[a-z]+", side)) for side in relation.sides]
    if sum(letter) != 1 or "=" in relation.signs or "\\equiv" in relation.signs:
        return None
    at = letter.index(True)
    bounds = [_number(read(side)) if index != at else Integer(0) for index, side in enumerate(relation.sides)]
    if any(bound is None or bound.free_symbols for bound in bounds):
        return None
    if relation.signs == ("!=",):
        return _without_points([bounds[1 - at]], 1)  # pyright: ignore
    left, right, left_in, right_in = -sympy.oo, sympy.oo, False, False
    if len(relation.signs) > 2 or "!=" in relation.signs or (len(relation.signs) == 2 and at != 1):
        return None
    for index, sign in enumerate(relation.signs):
        bound, other_first = (bounds[index], True) if index < at else (bounds[index + 1], False)
        sign = _TURNED[sign] if other_first else sign  # as if the letter stood first
        assert bound is not None
        if sign in (">", ">="):
            left, left_in = bound, sign == ">="
        else:
            right, right_in = bound, sign == "<="
    return _region_of([(left, right, left_in, right_in)])


def _same_region(first: Region, second: Region) -> bool:
    return len(first.intervals) == len(second.intervals) and all(
        _same_end(a[0], b[0]) and _same_end(a[1], b[1]) and a[2:] == b[2:]
        for a, b in zip(first.intervals, second.intervals, strict=True)
    )


def _same_end(first: Expr, second: Expr) -> bool:
    if sympy.oo in (first, second) or -sympy.oo in (first, second):
        return first == second
    return equality.equal(first, second)
