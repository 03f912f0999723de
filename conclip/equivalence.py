r"""Whether an answer is the gold one: conventions of the field about spelling, then math-verify about mathematics.

Only grader workers call this: symbolic algebra may run for ever or take all memory, and they have limits. Nothing here
raises on bad input but what the libraries raise.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, cast

from math_verify import parse, verify
from math_verify.parser import ExprExtractionConfig, LatexExtractionConfig

from conclip.answers import choice_letter, extract, normalise

_TARGETS = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())

DECIMALS = 6
"""Numbers that agree when rounded to so many decimals are equal."""


def same_answer(gold: str, answer: str, *, choices: Sequence[str] | None = None, decimals: int = DECIMALS) -> bool:
    """Whether `answer` states the same as `gold`, gold first (the comparison is not symmetric: the gold one decides what
    kind of thing is asked for).

    Example: ``same_answer("1/2", "0.5")`` and ``same_answer("B", "(b) 12")`` hold, ``same_answer("(0,1)", "[0,1]")`` does not.
    """
    gold, answer = clean(gold), clean(answer)
    if not answer or not gold:
        return False
    if normalise(gold) == normalise(answer):
        return True
    if (letter := choice_letter(gold, choices)) is not None and (choices or len(gold.strip("()")) == 1):
        chosen = choice_letter(answer, choices)
        if chosen is not None or choices:
            return chosen == letter
    if _is_text(gold):
        return _words(gold) == _words(answer)
    if _LITERAL.fullmatch(normalise(gold)):
        return False  # a time, a ratio, a number in another base: only the same spelling is the same
    if _same_value(gold, answer, decimals):
        return True
    if len(answer.split()) > 1 and re.search(r"[A-Za-z]{2}", answer):  # a sentence in the box
        found = extract(_plain(answer), lenient=True)
        return found is not None and found.answer != answer and _same_value(gold, clean(found.answer), decimals)
    return False


_DELIMITERS = re.compile(r"^(?:\$\$(.*)\$\$|\$(.*)\$|\\\[(.*)\\\]|\\\((.*)\\\))$", re.DOTALL)
_STYLED = re.compile(r"\\(?:textbf|textit|mathbf|mathit|boldsymbol|mathrm|text|mbox|bf)\s*\{([^{}]*)\}")
_NOISE = re.compile(r"\\(?:displaystyle|textstyle|left|right|bigl?|bigr|Bigl?|Bigr|!)(?![a-zA-Z])")


def clean(text: str) -> str:
    """The answer without formula delimiters, layout commands, a leading sign of (near) equality or a final full stop."""
    text = text.strip()
    while match := _DELIMITERS.match(text):
        text = next(part for part in match.groups() if part is not None).strip()
    text = _NOISE.sub("", text).replace("{,}", ",").replace("\\%", "%")
    text = re.sub(r"(?<!\\)\\[;:, ]|~", " ", text)
    text = re.sub(r"\\varnothing|\\empty(?![a-z])|∅", r"\\emptyset", text)
    text = re.sub(r"_\s*\{(\w+)\}", r"_\1", text) if re.fullmatch(r"\s*\w+\s*_\s*\{\w+\}\s*", text) else text
    if text.endswith((")", "]")) and not re.search(r"[(\[]", text):
        text = text[:-1]
    text = re.sub(r"(?<!\\)\$", "", text) if text.count("$") == 1 and "\\$" not in text else text
    text = re.sub(r"^(?:\\approx|\\therefore|\\implies|\\Rightarrow|\\simeq|=)\s*", "", text.strip())
    text = re.sub(r"(?:\\\\|[.,;]|\s)+$", "", text)
    whole = _STYLED.fullmatch(text)
    if whole and not re.search(r"[A-Za-z]", whole.group(1)):
        text = whole.group(1).strip()
    if text.startswith("{") and text.endswith("}") and "{" not in text[1:] and "," not in text:
        text = text[1:-1].strip()
    return text.strip()


def _plain(text: str) -> str:
    return _STYLED.sub(r" \1 ", text)


_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*")


def _words(text: str) -> str:
    return " ".join(_plain(text).split()).strip(" .").casefold()


def _is_text(gold: str) -> bool:
    r"""Whether the gold answer is words and no formula: in ``\text{}``, of four letters or more, or capitalised."""
    plain = " ".join(_plain(gold).split()).strip(" .")
    if not _WORDS.fullmatch(plain):
        return False
    styled = re.fullmatch(r"\\(?:text|textbf|mbox|mathrm)\s*\{.*\}", gold.strip()) is not None
    return styled or len(plain) >= 4 or (len(plain) >= 2 and plain[0].isupper())


_LITERAL = re.compile(r"-?\d+(?::\d+)+|[0-9A-Fa-f]+_\{?\d+\}?")


def _same_value(gold: str, answer: str, decimals: int) -> bool:
    """Equality up to a unit that one side leaves out, and between a percentage, its number of percent and its fraction."""
    gold_value, gold_unit = split_unit(gold)
    answer_value, answer_unit = split_unit(answer)
    if gold_unit and answer_unit and gold_unit != answer_unit:
        return _verified(gold, answer, decimals)
    gold_percent, answer_percent = gold_unit == "%", answer_unit == "%"
    if _verified(gold_value, answer_value, decimals):
        return True
    if gold_percent and not answer_percent:
        return _verified(f"\\frac{{{gold_value}}}{{100}}", answer_value, decimals)
    if answer_percent and not gold_percent:
        return _verified(gold_value, f"\\frac{{{answer_value}}}{{100}}", decimals)
    return (gold_value, answer_value) != (gold, answer) and _verified(gold, answer, decimals)


_NUMERIC = (
    r"(?:[-+]?(?:\d[\d,]*\.?\d*|\.\d+|\d*\s*\\[dtc]?frac\s*\{?\d+\}?\s*\{?\d+\}?"
    r"|\d+\s*/\s*\d+|[\d.]*\s*\\sqrt\{\d+\}|\d*\\pi))"
)
_UNIT = re.compile(
    rf"({_NUMERIC})\s*(?:"
    r"(?P<percent>%|\\?\s*(?:\\text\{{)?\s*percent\}?)"
    r"|(?P<degrees>\^\s*\{?\s*\\circ\s*\}?|°|\\degree)"
    r"|(?P<styled>(?:\\(?:text|mathrm|mbox|textrm|rm)\s*\{[^{}]*\}\s*)+(?:\^\{?-?\d\}?)?)"
    r"|(?P<plain>\s[A-Za-z][A-Za-z /.]+(?:\^\{?-?\d\}?)?)"
    r")\s*".replace("{{", "{")
)
_MONEY = re.compile(r"^(?:\\?\$|USD|€|£|\\text\{\\?\$\})\s*")
_SAME_UNIT = {
    "degrees": "degree", "deg": "degree", "centimeters": "cm", "centimeter": "cm", "meters": "m", "meter": "m",
    "kilometers": "km", "kilometer": "km", "hours": "hour", "hr": "hour", "hrs": "hour", "h": "hour", "minutes": "minute",
    "min": "minute", "seconds": "second", "sec": "second", "s": "second", "inches": "inch", "in": "inch", "feet": "foot",
    "ft": "foot", "miles": "mile", "mi": "mile", "dollars": "dollar", "cents": "cent", "kilograms": "kg", "kilogram": "kg",
    "grams": "g", "gram": "g", "liters": "liter", "days": "day", "years": "year", "weeks": "week",
}  # fmt: skip
_KNOWN_UNITS = frozenset(_SAME_UNIT.values()) | {"mm", "mg", "kg"}


def split_unit(text: str) -> tuple[str, str | None]:
    """(value, unit): the unit of a number, in one spelling, ``%`` for percent; None where there is none or none that is
    known, which any other may replace.

    Example: ``5\\text{ cm}`` gives ("5", "cm"), ``30^\\circ`` ("30", "degree"), ``2x`` ("2x", None).
    """
    without_money = _MONEY.sub("", text)
    if without_money != text:
        return without_money.strip(), "dollar"
    match = _UNIT.fullmatch(text)
    if match is None:
        return text, None
    value = match.group(1)
    if match.group("percent"):
        return value, "%"
    if match.group("degrees"):
        return value, "degree"
    unit = _plain(match.group("styled") or match.group("plain") or "").strip(" .").casefold()
    unit = _SAME_UNIT.get(unit, unit)
    return value, unit if unit in _KNOWN_UNITS else None


_MIXED = re.compile(r"(-?)(\d+)\s+(\d+)\s*/\s*(\d+)")
_REPEATING = re.compile(r"(-?)(\d*)\.(\d*)\\overline\{(\d+)\}")
_OR = re.compile(r"\s*(?:\\text\s*\{\s*(?:or|and)\s*\}|\\(?:lor|land|quad|qquad)\b|\b(?:or|and)\b)\s*")


def _spellings(text: str) -> Iterator[str]:
    """The formula in ways math-verify reads: as it is; alternatives joined by commas; without the name before "="."""
    if mixed := _MIXED.fullmatch(text):
        sign, whole, top, bottom = mixed.groups()
        yield f"{sign}\\frac{{{int(whole) * int(bottom) + int(top)}}}{{{bottom}}}"
        return
    if repeating := _REPEATING.fullmatch(text.replace(" ", "")):
        sign, whole, fixed, period = repeating.groups()
        top = int((whole or "0") + fixed + period) - int((whole or "0") + fixed)
        yield f"{sign}\\frac{{{top}}}{{{'9' * len(period)}{'0' * len(fixed)}}}"
        return
    yield text
    joined = re.sub(r"\s*,\s*,\s*", ", ", _OR.sub(", ", text)).strip(" ,")
    if joined != text:
        yield joined
    if "," in joined and re.search(r"(?:^|,)\s*[a-zA-Z](?:_\{?\w\}?)?\s*=", joined):
        yield re.sub(r"(^|,)\s*[a-zA-Z](?:_\{?\w\}?)?\s*=\s*", r"\1", joined)


def _verified(gold: str, answer: str, decimals: int) -> bool:
    """math-verify's verdict on any pair of spellings."""
    answers = [_parsed(spelling) for spelling in _spellings(answer)]
    for spelling in _spellings(gold):
        parsed_gold = _parsed(spelling)
        for parsed_answer in answers:
            if parsed_gold and parsed_answer and _equal(parsed_gold, parsed_answer, decimals):
                return True
    return False


def _parsed(formula: str) -> list[Any]:
    # The parent process holds the clock: math-verify's own alarms are off.
    return cast(list[Any], parse(f"\\boxed{{{formula}}}", _TARGETS, parsing_timeout=cast(int, None)))


def _equal(gold: list[Any], answer: list[Any], decimals: int) -> bool:
    return verify(
        gold,
        answer,
        float_rounding=decimals,
        allow_set_relation_comp=True,
        timeout_seconds=None,
        raise_on_error=True,
    )
