r"""Whether an answer is the gold one: conventions of the field about spelling, then math-verify about mathematics.

Only grader workers call this: symbolic algebra may run for ever or take all memory, and they have limits. Nothing here
raises on bad input but what the libraries raise.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, cast

from latex2sympy2_extended.latex2sympy2 import NormalizationConfig
from math_verify import parse, verify
from math_verify.parser import ExprExtractionConfig, LatexExtractionConfig
from sympy.parsing.latex import parse_latex

from conclip.answers import THOUSANDS, choice_letter, extract, normalise

# Units are this module's own: math-verify's list takes 2ab for 2.
_NORMALIZATION = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all", equations=False
)
_TARGETS = (
    LatexExtractionConfig(boxed_match_priority=0, normalization_config=_NORMALIZATION),
    ExprExtractionConfig(),
)

DECIMALS = 6
"""Numbers that agree when rounded to so many decimals are equal."""


def same_answer(gold: str, answer: str, *, choices: Sequence[str] | None = None, decimals: int = DECIMALS) -> bool:
    """Whether `answer` states the same as `gold`, gold first (the comparison is not symmetric: the gold one decides what
    kind of thing is asked for).

    Example: ``same_answer("1/2", "0.5")`` and ``same_answer("B", "(b) 12")`` hold, ``same_answer("(0,1)", "[0,1]")`` does
    not.
    """
    if _same(gold, answer, choices, decimals):
        return True
    if not _PROSE.search(_OR.sub(" ", answer)) or _UNIT.fullmatch(clean(answer)):
        return False
    found = extract(answer, lenient=True) or extract(_plain(answer), lenient=True)
    return found is not None and found.answer != answer and _same(gold, found.answer, choices, decimals)


_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}[\s:*]+\S|\n")


def _same(gold: str, answer: str, choices: Sequence[str] | None, decimals: int) -> bool:
    """`same_answer` for an answer that is no sentence."""
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
        return False  # times, ratios, other bases, minutes of arc, cases: only the same spelling is the same
    return _same_value(gold, answer, decimals)


_DELIMITERS = re.compile(r"^(?:\$\$(.*)\$\$|\$(.*)\$|\\\[(.*)\\\]|\\\((.*)\\\))$", re.DOTALL)
_STYLED = re.compile(r"\\(?:textbf|textit|mathbf|mathit|boldsymbol|mathrm|text|mbox|bf)\s*\{([^{}]*)\}")
_NOISE = re.compile(r"\\(?:displaystyle|textstyle|left|right|bigl?|bigr|Bigl?|Bigr|!)(?![a-zA-Z])")


_SIGNS = str.maketrans(
    {
        "−": "-", "–": "-", "×": "\\times ", "·": "\\cdot ", "÷": "/", "π": "\\pi ", "∞": "\\infty ", "≤": "\\le ",
        "≥": "\\ge ", "≠": "\\ne ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "²": "^2", "³": "^3", "°": "^\\circ",
        "∅": "\\emptyset ", "½": "\\frac{1}{2}", "¼": "\\frac{1}{4}", "¾": "\\frac{3}{4}", "±": "\\pm ", "θ": "\\theta ",
        "α": "\\alpha ", "β": "\\beta ", "\u00a0": " ",
    }
)  # fmt: skip
_ALIGNED = re.compile(
    r"\\begin\{(?:aligned|align\*?|gathered|array)\}(.*)\\end\{(?:aligned|align\*?|gathered|array)\}", re.DOTALL
)
_SET_BUILDER = re.compile(r"\\?\{\s*[a-zA-Z]\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?(?:\\mid|\\vert|:|\|)\s*(.*?)\s*\\?\}")
_BASES = {
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}


def clean(text: str) -> str:
    """The answer in LaTeX's signs, without formula delimiters, layout commands, a leading sign of (near) equality or a final
    full stop."""
    text = text.translate(_SIGNS).replace("**", " ").strip()
    while match := _DELIMITERS.match(text):
        text = next(part for part in match.groups() if part is not None).strip()
    text = _NOISE.sub("", text).replace("{,}", ",").replace("\\%", "%").replace("^{\\circ}", "^\\circ")
    if aligned := _ALIGNED.fullmatch(text):
        text = aligned.group(1).replace("&", "").replace("\\\\", ", ")
    if described := _SET_BUILDER.fullmatch(text):
        text = described.group(1)
    text = re.sub(r"(?<!\\)\\[;:, ]|~", " ", text)
    text = re.sub(r"\\varnothing|\\empty(?![a-z])", r"\\emptyset", text)
    text = re.sub(r"(?<!\\)√\s*(\d+|\([^()]*\))|(?<![\\a-zA-Z])sqrt\s*(\([^()]*\)|\d+)", _root, text)
    text = re.sub(r"(?<![\\a-zA-Z])(pi|infinity|infty)(?![a-zA-Z])", r"\\\1 ", text).replace(r"\infinity", r"\infty")
    text = re.sub(r"(?<=\d)[eE](?=[-+]?\d+$)", r" \\times 10^{", text) + "}" if _FLOAT.fullmatch(text.strip()) else text
    if based := _BASED.fullmatch(text):
        text = f"{based.group(1)}_{_BASES.get(based.group(2), based.group(2))}"
    text = re.sub(r"^(?:\\[\]\)]|\$)+|(?:\\[\[\]\(\)]|(?<!\\)\$)+$", "", text.strip()) if text.count("$") < 2 else text
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


_FLOAT = re.compile(r"[-+]?\d+(?:\.\d+)?[eE][-+]?\d+")
_BASED = re.compile(r"\s*([0-9A-Fa-f]+)\s*_\s*\{?(?:\\text\s*\{)?\s*(\w+)\s*\}?\}?\s*")


def _root(match: re.Match[str]) -> str:
    inside = (match.group(1) or match.group(2)).strip("()")
    return f"\\sqrt{{{inside}}}"


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


_LITERAL = re.compile(r"-?\d+(?::\d+)+|[0-9A-Fa-f]+_\{?\d+\}?|.*\\circ.*\d'.*|.*\\begin\{cases\}.*")


def _same_value(gold: str, answer: str, decimals: int) -> bool:
    """Equality up to a unit that one side leaves out, and between a percentage, its number of percent and its fraction."""
    gold_value, gold_unit = split_unit(gold)
    answer_value, answer_unit = split_unit(answer)
    if gold_unit and answer_unit and gold_unit != answer_unit:
        return False
    is_set = gold_value.lstrip("\\").startswith("{")
    if not is_set and _num_alternatives(gold_value) == 1 < _num_alternatives(_as_union(answer_value) or answer_value):
        return False  # one value asked for, several given
    gold_parts, answer_parts = _components(gold_value), _components(answer_value)
    if gold_parts and answer_parts:  # tuples and intervals, part by part: their grammar is slow to parse as a whole
        same_shape = gold_parts[0] == answer_parts[0] and len(gold_parts[1]) == len(answer_parts[1])
        return same_shape and all(_same_value(g, a, decimals) for g, a in zip(gold_parts[1], answer_parts[1], strict=True))
    gold_percent, answer_percent = gold_unit == "%", answer_unit == "%"
    if _verified(gold_value, answer_value, decimals):
        return True
    if gold_percent and not answer_percent:
        return _verified(f"\\frac{{{gold_value}}}{{100}}", answer_value, decimals)
    if answer_percent and not gold_percent:
        return _verified(gold_value, f"\\frac{{{answer_value}}}{{100}}", decimals)
    return (gold_value, answer_value) != (gold, answer) and _verified(gold, answer, decimals)


def _components(text: str) -> tuple[str, list[str]] | None:
    """(brackets, elements) of one tuple or interval, ``[0, 1)`` giving ("[)", ["0", "1"]); None for anything else."""
    if len(text) < 5 or text[0] not in "([" or text[-1] not in ")]":
        return None
    depth, begin, elements = 0, 1, []
    for position, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth == 0 and position < len(text) - 1:
                return None  # the first bracket closes before the end: several tuples, or a product
        elif character == "," and depth == 1:
            elements.append(text[begin:position].strip())
            begin = position + 1
    elements.append(text[begin:-1].strip())
    return (text[0] + text[-1], elements) if len(elements) > 1 and depth == 0 and all(elements) else None


def _num_alternatives(text: str) -> int:
    """How many values stand side by side, outside of brackets: 2 for ``x = 1, x = 2`` and for ``\\pm 3``."""
    flat, before = _OR.sub(", ", THOUSANDS.sub("", text)), None
    while flat != before:
        before, flat = flat, re.sub(r"[\[({][^\[\](){}]*[\])}]", "", flat)
    return len([part for part in flat.split(",") if part.strip()]) * (2 if "\\pm" in flat else 1)


_NUMERIC = (
    r"(?:[-+]?(?:\d[\d,]*\.?\d*|\.\d+|\d*\s*\\[dtc]?frac\s*\{?\d+\}?\s*\{?\d+\}?"
    r"|\d+\s*/\s*\d+|[\d.]*\s*\\sqrt\{\d+\}|\d*\\pi)(?:\s*(?:\\times|\\cdot)\s*10\s*\^\s*(?:\{-?\d+\}|-?\d))?)"
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
_KNOWN_UNITS = frozenset(_SAME_UNIT.values()) | {"mm", "mg", "ml"}


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
    unit, power, exponent = re.sub(r"[{}\s]", "", unit).replace("square", "").partition("^")
    unit = _SAME_UNIT.get(unit, unit)
    return value, unit + power + exponent if unit in _KNOWN_UNITS else None


_MIXED = re.compile(r"(-?)(\d+)\s+(\d+)\s*/\s*(\d+)")
_REPEATING = re.compile(r"(-?)(\d*)\.(\d*)\\overline\{(\d+)\}")
_OR = re.compile(r"\s*(?:\\text\s*\{\s*(?:or|and)\s*\}|\\(?:lor|land|quad|qquad)\b|\b(?:or|and)\b)\s*")


_IMAGINARY = re.compile(r"(?<![A-Za-z\\_])i(?![A-Za-z]|\s*=)")
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)")
_HALF_LINE = re.compile(r"\s*[a-zA-Z]\s*(<|>|\\leq?|\\geq?|\\leqslant|\\geqslant)\s*([^<>=]+)")


def _as_union(text: str) -> str | None:
    """``x < 2 or x > 5`` as a union of intervals, the alternatives in their order; None for anything else."""
    parts = [_HALF_LINE.fullmatch(part) for part in _OR.split(text)]
    if len(parts) < 2 or not all(parts):
        return None
    intervals: list[str] = []
    for part in parts:
        assert part is not None
        relation, bound = part.group(1), part.group(2).strip(" ,")
        closed = "e" in relation
        if relation in ("<", "\\le", "\\leq", "\\leqslant"):
            intervals.append(f"(-\\infty, {bound}{']' if closed else ')'}")
        else:
            intervals.append(f"{'[' if closed else '('}{bound}, \\infty)")
    return " \\cup ".join(intervals)


def _spellings(text: str, other: str) -> Iterator[str]:
    """The formula in ways math-verify reads: as it is; alternatives joined by commas; without names before "=" where they
    are all the same or the other side has none."""
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
    if imaginary := _IMAGINARY.sub("I", text) if _IMAGINARY.search(text) else None:
        yield imaginary
    if _TRIGONOMETRIC.search(text) and "\\circ" in text:
        yield re.sub(r"(\d+(?:\.\d+)?)\s*\^\s*\{?\s*\\circ\s*\}?", r"(\\frac{\1\\pi}{180})", text)
    if union := _as_union(text):
        yield union
    joined = re.sub(r"\s*,\s*,\s*", ", ", _OR.sub(", ", text)).strip(" ,")
    if joined != text:
        yield joined
    names = {name[0] for name in re.findall(r"(?:^|,)\s*([a-zA-Z](?:_\{?\w\}?)?)\s*=", joined)}
    if "," in joined and (len(names) == 1 or (names and "=" not in other)):
        yield re.sub(r"(^|,)\s*[a-zA-Z](?:_\{?\w\}?)?\s*=\s*", r"\1", joined)


def _verified(gold: str, answer: str, decimals: int) -> bool:
    """math-verify's verdict on any pair of spellings."""
    answers = [_parsed(spelling) for spelling in _spellings(answer, gold)]
    for spelling in _spellings(gold, answer):
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


def same_by_sympy(gold: str, answer: str, *, decimals: int = DECIMALS) -> bool:
    """The auditing comparison: sympy's own LaTeX grammar instead of math-verify's, and equality of values. Raises what the
    parser raises where it cannot read one side (intervals, sets, text)."""
    left, right = (parse_latex(THOUSANDS.sub("", _plain(clean(text))), backend="lark") for text in (gold, answer))
    if left == right:
        return True
    difference: Any = left - right  # pyright: ignore[reportOptionalOperand]
    if difference.is_number:
        return abs(difference.evalf()) < 0.5 * 10.0**-decimals
    return difference.equals(0) is True
