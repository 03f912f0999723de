r"""Reads what an answer states: a number, several values, a relation, a region, a matrix, or words compared by spelling."""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from itertools import product

import sympy
from sympy import Integer

from conclip.grading.answer_types import Matrix, Number, Reading, Relation, Several, Spelled, UnitText
from conclip.grading.formulas import read_formula
from conclip.grading.functions import Unreadable
from conclip.grading.matrices import read_matrix
from conclip.grading.pieces import in_brackets, split
from conclip.grading.sets import joined_region, read_set
from conclip.grading.spelling import closing, compact, in_words, plain
from conclip.grading.units import read_compound, split_scale, split_unit
from conclip.grading.words import numeral

_SEPARATORS = re.compile(in_words(r",?\s*(?:or|and)\s*,?") + r"|\\(?:quad|qquad)(?![a-zA-Z])|\n")
_LOGIC = re.compile(r"\\(?:vee|wedge)(?![a-zA-Z])")
_AND = re.compile(in_words("and") + r"|\\wedge(?![a-zA-Z])")
_OR = re.compile(in_words(r",?\s*or") + r"|\\vee(?![a-zA-Z])")
_GROUPS = re.compile(f";|{_OR.pattern}")
_SIGNS = re.compile(r"\\(?:le|ge|ne|equiv|in|approx)(?![a-zA-Z])|!=|<=|>=|=|<|>")
_SIGN_OF = {"\\le": "<=", "\\ge": ">=", "\\ne": "!=", "\\in": "=", "\\approx": "=", "\\equiv": "="}
_SYSTEM = re.compile(
    r"(\\\{)?\s*\\begin\{(aligned|align\*?|gathered|cases|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\2\}", re.DOTALL
)
_IF = re.compile(in_words(r",?\s*(?:if|for|when)\s*,?") + r"|\\(?:text|mbox|mathrm)\s*\{\s*,?\s*\}|,?\s*(?=&)|(?<=&),?")
_BASED = re.compile(r"(-?)(?:\\text\s*\{\s*|\(\s*)?([0-9A-Za-z]+)\s*[})]?\s*_\s*\{?\s*(?:\\text\s*\{\s*)?(\w+)\s*\}?\s*\}?")
_TO = re.compile(r"(\d+)\s*(?:\\text\s*\{\s*to\s*\}|to)\s*(?=\d)")
_REAL = r"(?:the\s+)?(?:set\s+of\s+)?all\s+real(?:s|\s+(?:numbers?|values?)(?:\s+[a-z])?|\s+[a-z])?"
_PHRASES = tuple(
    (re.compile(phrase, re.IGNORECASE), formula)
    for phrase, formula in (
        (_REAL, r"\\mathbb{R}"),
        (rf"{_REAL}\s+except(?:\s+for)?\s+(?:[a-z]\s*=\s*)?(\S.*)", r"\\mathbb{R} \\setminus \\{\1\\}"),
        (rf"{_REAL}\s+(?:greater|more|larger)\s+than\s+(or\s+equal\s+to\s+)?(\S.*)", r"x > \2"),
        (r"(?:all\s+)?integers?(?:\s+[a-z])?", r"\\mathbb{Z}"),
        (r"(?:all\s+)?positive\s+integers?(?:\s+[a-z])?", r"\\mathbb{Z}^+"),
        (r"(?:all\s+)?(?:integers\s+)?([a-z]\s*\\[gl]e\s*\d+)", r"\1"),
        (r"(?:the\s+)?empty\s+set|(?:there\s+(?:is|are)\s+)?no\s+(?:real\s+)?solutions?", r"\\emptyset"),
    )
)
_INTEGERS = re.compile(
    r"(?:[a-zA-Z]\s*\\in\s*)?\\mathbb\s*\{?\s*Z\s*\}?\s*(?:[\^_]\s*\{?\s*(\+|(?:>|>=|\\ge)\s*[01])\s*\}?)?"
)
_COUNTED = re.compile(
    r"^(?:\\(?:text|mathrm|mbox)\s*\{\s*)?(?:year|exactly|only|page|day|room|step|a total of|(?:the\s+)?point)\b"
    r"\s*(?:\}\s*)?(?=-?[\d\\(]|[a-z]\s*=)",
    re.IGNORECASE,
)
"""Words before a number that matter no more than the name of a counted thing after it."""

_OPERATION = re.compile(r"\s*\w+\s*(\\cup|\\cap)\s+\w+\s*(?:\1\s+\w+\s*)*")
_MODULO = re.compile(r"(?:(.*?)\\equiv)?\s*(.*?)\s*(?:\\pmod\s*\{?|\(\s*\\(?:mod|bmod)|\\mod)\s*([^{}()]+)[})]*")
_ANGLE = re.compile(
    r"(?P<degrees>\d+)\s*\^\\circ\s*(?P<minutes>\d+)\s*'\s*(?:(?P<seconds>\d+)\s*(?:''|\"))?|.*\\circ.*\d\s*'.*"
)
_SET_BUILDER = re.compile(
    r"\\?\{\s*(?:[a-zA-Z]\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?|\([a-z](?:\s*,\s*[a-z])+\)\s*)(?:\||:)\s*(.*?)\s*\\?\}"
)
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
        return is_understood(side(reading, -1))
    return True


def side(relation: Relation, index: int) -> Reading:
    """Return what one side of a relation states."""
    return read(relation.sides[index], letters=relation.letters)


def has_letters(reading: Reading) -> bool:
    """Return whether a reading holds variables, names of what is asked for aside."""
    if isinstance(reading, Number):
        return bool(reading.value.free_symbols)
    if isinstance(reading, Several):
        return any(map(has_letters, reading.items))
    if isinstance(reading, Matrix):
        return any(has_letters(cell) for row in reading.rows for cell in row)
    if isinstance(reading, Relation):
        return any(not NAME.fullmatch(text) and has_letters(side(reading, at)) for at, text in enumerate(reading.sides))
    return isinstance(reading, Spelled) and any(has_letters(part) for part in reading.parts if not isinstance(part, str))


def read(text: str, *, letters: bool = True) -> Reading:
    """Return what a cleaned answer states; `Spelled("unread")` where that is not understood. `letters`: a single letter
    after a number is a unit (5 m); else a variable."""
    text = _COUNTED.sub("", stands_for(text.strip()))
    if (system := _SYSTEM.fullmatch(text)) and (system[1] or system[2] != "array"):
        rows = [row.strip() for row in system[3].split("\\\\") if row.strip()]
        is_list = all(re.match(r"(?:[a-zA-Z]|\\[a-z]+)(?:_\w)?\s*&?\s*=", row) for row in rows)
        if system[2] in ("cases", "array") and not is_list:
            return Spelled("cases", tuple(compact(_IF.sub(" ", row)) for row in rows))
        text = ", ".join(row.replace("&", "") for row in rows) if is_list else system[3].replace("&", "").strip()
    if (described := _SET_BUILDER.fullmatch(text)) and closing(text, text.index("{")) == len(text) - 1:
        text = described[1]
    if text == "\\emptyset":
        return Several("{}", ())
    if ("matrix}" in text or "{array}" in text) and (matrix := read_matrix(text, read)) is not None:
        return matrix
    if (literal := _read_literal(text)) is not None:
        return literal
    if (compound := read_compound(text)) is not None:
        return Number(Integer(compound[0].numerator) / compound[0].denominator, None, compound[1])
    parts = split(_separated(text), ",;")
    if len(parts) > 1:
        return _read_points(text) or _read_both(text) or _read_list(parts, letters)
    if (signed := _signed(text)) and not text.startswith("\\{"):
        return Several("", tuple(read(one, letters=letters) for one in signed))
    if (region := read_set(text, read)) is not None:
        return region
    if sets := _OPERATION.fullmatch(text):
        return Spelled(f"sets {sets[1]}", tuple(sorted(compact(part) for part in text.split(sets[1]))))
    if (inside := in_brackets(text)) is not None:
        opening, content, end = inside
        items = split(_separated(content), ",;", thousands=False)
        if len(items) > 1 or opening == "{":
            read_items = [read(item, letters=letters) for item in items if item] if any(items) else []
            flat = [i for r in read_items for i in (r.items if isinstance(r, Several) and not r.brackets else (r,))]
            return Several(opening + end, tuple(flat))
        if opening + end in ("()", "[]"):
            return read(content, letters=letters)
        return _UNREAD
    if (relation := _read_relation(text, letters)) is not None:
        return relation
    return _read_number(text, letters)


def stands_for(text: str) -> str:
    """Return a text, or the formula that its words stand for, such as "all real numbers"."""
    words = " ".join(plain(text).split())
    for phrase, formula in _PHRASES if len(words) <= MAX_PHRASE_CHARS else ():
        if match := phrase.fullmatch(words):
            sign = formula.replace(">", "\\\\ge") if match.lastindex == 2 and match[1] else formula
            return match.expand(sign)
    return text


MAX_PHRASE_CHARS = 100


def _read_points(text: str) -> Reading | None:
    """Read ``p = 5, q = 2; p = 7, q = 2`` as a list of tuples, one for each group with the same names; None for anything
    else."""
    groups = [split(group, ",") for group in _GROUPS.split(text)]
    named = [[relation for part in group if (relation := _read_relation(part)) and _name_of(relation)] for group in groups]
    names = [[compact(relation.sides[0]) for relation in group] for group in named]
    all_named = [len(group) for group in groups] == [len(some) for some in names]
    if len(groups) < 2 or len(names[0]) < 2 or not all_named or any(some != names[0] for some in names):
        return None
    return Several("", tuple(Several("()", tuple(read(r.sides[-1]) for r in group)) for group in named))


def _read_both(text: str) -> Reading | None:
    """Read ``x > 1 and x < 3`` as what holds for both, ``x < 1 or x > 3`` as what holds for one; None for anything else."""
    joint = next((sign for sign in (_OR, _AND) if sign.search(text)), None)
    if joint is None:
        return None
    readings = [read(part) for part in joint.split(text)]
    return joined_region(readings, read, both=joint is _AND)


def _separated(text: str) -> str:
    """Put commas in place of the words and signs between values; rows of a matrix keep theirs."""
    text = text if "\\begin" in text else text.replace("\\\\", " , ")
    text = _LOGIC.sub(" , ", text) if _SIGNS.search(text) else text
    return _SEPARATORS.sub(" , ", text)


def _signed(text: str) -> list[str]:
    """Return the values that plus-minus signs stand for: all together in an equation and beside a minus-plus, else each by
    itself. In brackets only a single sign is read; none are where there is nothing to be read."""
    signs = list(_PLUS_MINUS.finditer(text))
    is_joint = len(signs) == 1 or "\\mp" in text or _SIGNS.search(text) is not None
    if (
        not signs
        or len(signs) > MAX_SIGNS
        or (len(signs) > 1 and text.startswith("(") and closing(text, 0) == len(text) - 1)
    ):
        return []
    chosen = ["+" * len(signs), "-" * len(signs)] if is_joint else product("+-", repeat=len(signs))
    return [_with_signs(text, iter(one)) for one in chosen]


def _with_signs(text: str, signs: Iterator[str]) -> str:
    return _PLUS_MINUS.sub(lambda m: f" {_OTHER[next(signs)] if m[1] == 'mp' else next(signs)} ", text)


MAX_SIGNS = 3
_OTHER = {"+": "-", "-": "+"}


def _read_literal(text: str) -> Spelled | Number | None:
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
    if integers := _INTEGERS.fullmatch(text):
        return Spelled("integers", (re.sub(r">=?1|\\ge1|>0", "+", re.sub(r"\s", "", integers[1] or "")),))
    if angle := _ANGLE.fullmatch(text):
        return _degrees(angle) or Spelled("angle", (compact(text),))
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


def _degrees(angle: re.Match[str]) -> Number | None:
    """Return an angle in degrees, minutes and seconds; None where it is spelled otherwise."""
    if angle["degrees"] is None:
        return None
    whole, minutes, seconds = (Integer(int(angle[name] or 0)) for name in ("degrees", "minutes", "seconds"))
    return Number(whole + minutes / 60 + seconds / 3600, None, "^\\circ")


def _or_text(piece: str) -> "Reading | str":
    reading = _read_number(piece, letters=True)
    return reading if isinstance(reading, Number) else compact(piece)


def _read_list(parts: Sequence[str], letters: bool) -> Reading:
    """Read a list without brackets. A name before the first value only stands for all: ``n = 2, 3``."""
    if unequal := re.match(r"[a-zA-Z]\s*(?:\\ne(?![a-zA-Z])|!=)", parts[0]):  # x is neither 1 nor 2
        parts = [parts[0], *(part if _SIGNS.search(part) else unequal[0] + part for part in parts[1:])]
    named = [bool(_name_of(_read_relation(part))) for part in parts]
    if named[0] and not any(named[1:]) and "=" in parts[0]:
        parts = [parts[0].partition("=")[2], *parts[1:]]
    items: list[Reading] = []
    for part in parts:
        item = read(part, letters=letters)
        items += item.items if isinstance(item, Several) and not item.brackets else (item,)
    return Several("", tuple(items))


def _read_relation(text: str, letters: bool = True) -> Relation | None:
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
    return Relation(tuple(signs), tuple(sides), letters) if signs and all(sides) else None


_LETTER = r"\s*(?:\\[a-z]+|[a-zA-Z])(?:_\w|_\{\w+\})?\s*"
_SEGMENT = r"\s*(?:[A-Z]{2,3}|[a-zA-Z])\s*"
_NO_NAME = r"\\(?!frac|sqrt|times|cdot|binom|pi\b|ln|log|lg|exp|sin|cos|tan|cot|sec|csc|arc)"
NAME = re.compile(
    rf"\\frac\s*\{{{_SEGMENT}\}}\s*\{{{_SEGMENT}\}}|[A-Z]{{2,3}}\s*[/:]\s*[A-Z]{{2,3}}"
    r"|\\frac\s*\{\s*(?:d|\\partial)[^{}]*\}\s*\{\s*(?:d|\\partial)[^{}]*\}"
    rf"|\({_LETTER}(?:,{_LETTER})+\)"
    rf"|(?!.*\b(?i:no|not|non|without|except|undefined)\b)(?:\^\{{-1\}}|\s*:\s*|{_NO_NAME}[a-zA-Z]+\s*|[A-Za-z]'*\s*"
    r"|_\s*(?:\w|\{[^{}]*\})\s*|\{[^{}\d+*/^-]*\}\s*|\([a-zA-Z](?:,\s*[a-zA-Z])*\)\s*)+"
    r"|\|\s*[A-Za-z]+\s*(?:\\(?:cap|cup)\s*[A-Za-z]+\s*)*\||\\\|\s*\w+\s*\\\||\\int(?![a-z]).*d\s*[a-zA-Z]"
    r"|[a-zA-Z]'*(?:\^\{-1\})?\((?:[^()=]|\([^()=]*\))*\)"
)
"""Matches what only names a value: letters with their decorations, ratios of segments, derivatives, values of functions."""


def _name_of(relation: Relation | None) -> str:
    """Return the text before the first equals sign, where it only names something; "" where there is none."""
    if relation is None or relation.signs[0] != "=" or not NAME.fullmatch(relation.sides[0]):
        return ""
    return compact(relation.sides[0])


def _read_number(text: str, letters: bool) -> Reading:
    if (spelled_out := _spelled_out(text)) is not None:
        return spelled_out
    number, unit = split_unit(text, letters=letters)
    number = number.strip().rstrip(" .")
    if repeating := _REPEATING.fullmatch(number):
        number = f"{repeating[1]}\\overline{{{repeating[2]}}}"
    if (inside := in_brackets(number)) and inside[0] + inside[2] in ("()", "{}") and unit:
        number = inside[1]
    factor, unit = split_scale(unit)
    if number in _ENDLESS:
        return Number(-sympy.oo if number[0] == "-" else sympy.oo, None, unit)
    with suppress(Unreadable):
        return Number(read_formula(number) * factor, _as_decimal(number) if factor == 1 else None, unit)
    if number == text:
        return _UNREAD
    with suppress(Unreadable):
        return Number(read_formula(text), _as_decimal(text), "")
    whole = read(number, letters=letters)
    return whole if isinstance(whole, (Several, Matrix)) else _UNREAD


_COUNTED_NOUN = re.compile(r"(?!(?:and|of|quarters|\w+(?:th|rd|lve)s)\b)(?:[a-z]+(?:\s(?!and\b|of\b)[a-z]+)?)?")


def _spelled_out(text: str) -> Number | None:
    """Read ``\\text{eight days}`` as 8 with its noun."""
    words = plain(text).split()
    if not words or not re.fullmatch(r"[A-Za-z]{3,}(?:-[a-z]+)?", words[0]):
        return None
    for size in range(min(len(words), 2), 0, -1):
        value, noun = numeral(" ".join(words[:size])), " ".join(words[size:])
        if value is not None and _COUNTED_NOUN.fullmatch(noun):
            factor, noun = split_scale(noun)
            return Number(Integer(value * factor), None, noun)
    return None


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
