r"""Decides whether an answer is the gold one: first what each states, then part by part whether they agree.

Only grader workers call this: algebra may run for ever or take all memory, and workers have limits.
"""

import re
from collections.abc import Sequence

from sympy import Integer

from conclip.grading.agreement import agree, named_value
from conclip.grading.answer_types import Number, Reading, Relation
from conclip.grading.answers import extract, stated
from conclip.grading.choices import choice_letters, glued_letters, label_and_text, without_label
from conclip.grading.conditions import renamed, without_condition
from conclip.grading.formulas import MAX_DEPTH
from conclip.grading.quantities import EXACT, Tolerance
from conclip.grading.readings import NAME, has_letters, is_understood, read, stands_for
from conclip.grading.spelling import clean, compact, nesting, plain
from conclip.grading.units import read_unit
from conclip.grading.words import are_words, is_text, numeral, same_words, verdict


def same_answer(
    gold: str, answer: str, *, choices: Sequence[str] | None = None, tolerance: Tolerance = EXACT, is_response: bool = False
) -> bool:
    """Return whether `answer` states the same as `gold`. The order matters: the gold answer decides what the question asks
    for. `is_response`: the text may be a whole response, in which the answer is yet to be found.

    Example: ``same_answer("1/2", "0.5")`` and ``same_answer("B", "(b) 12")`` hold, ``same_answer("(0,1)", "[0,1]")`` does
    not.
    """
    if _same(gold, answer, choices, tolerance):
        return True
    has_words = _PROSE.search(plain(answer)) is not None
    if not has_words and not (is_response and re.search(r"\n|####|<answer>", answer)):
        return False
    for text in (answer, plain(answer)):
        extraction = extract(text)
        # A number inside a formula that was not understood is no answer; "the answer is 7" in a box is one.
        if (
            extraction
            and (is_response or extraction.method == "phrase")
            and _same(gold, extraction.answer, choices, tolerance)
        ):
            return True
    statement = stated(plain(clean(answer))) if has_words and not choices else None
    return statement is not None and _same(gold, statement, None, tolerance)


def is_readable(gold: str, *, choices: Sequence[str] | None = None) -> bool:
    """Return whether answers can be compared with `gold` by more than its spelling."""
    gold = clean(gold)
    return (
        bool(choices)
        or len(choice_letters(gold)) > 0
        or is_text(gold)
        or is_understood(read(without_condition(gold)[0], letters=False))
    )


_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}[\s:*]+\S")


def _same(gold: str, answer: str, choices: Sequence[str] | None, tolerance: Tolerance) -> bool:
    """`same_answer` for an answer that is not a sentence."""
    gold, answer = clean(gold), clean(answer)
    if not gold or not answer:
        return False
    if choices:
        return _same_choice(gold, answer, choices, tolerance)
    if compact(gold) == compact(answer):
        return True
    if (exact := _exact_and_rounded(gold)) or (exact := _exact_and_rounded(answer)):
        pairs = [(part, answer) for part in exact] if _exact_and_rounded(gold) else [(gold, part) for part in exact]
        return any(_same(g, a, None, tolerance) for g, a in pairs)
    first, second = (label_and_text(text) for text in (gold, answer))
    if first and second and not _same(first[1], second[1], None, tolerance):
        return False  # A: 3 and A: 5
    if letters := choice_letters(gold):
        chosen = choice_letters(answer, fold=len(letters) == 1 and letters[0].isupper())
        if len(letters) > 1:
            chosen = chosen or glued_letters(answer)
        if chosen or len(letters) > 1:
            return sorted(chosen) == sorted(letters)
    if (letters := glued_letters(gold)) and len(chosen := choice_letters(answer.strip("\\{} "))) > 1:
        return chosen == letters
    gold, answer = stands_for(gold), stands_for(answer)
    if is_text(gold):
        spelled_out = numeral(gold)
        return (
            same_words(gold, answer)
            or (verdict(gold) is not None and verdict(gold) == verdict(answer))
            or (spelled_out is not None and agree(Number(Integer(spelled_out), None, ""), read(answer), tolerance))
        )
    if (are_words(gold) and same_words(gold, answer)) or compact(plain(gold)) == compact(plain(answer)):
        return True
    if max(nesting(gold), nesting(answer)) > MAX_DEPTH:
        return False
    gold, answer = _without_conditions(gold, answer)
    gold_reading, reading = read(gold, letters=False), read(answer, letters=False)
    if agree(gold_reading, reading, tolerance) or _agree_in_units(gold, answer, gold_reading, tolerance):
        return True
    if isinstance(gold_reading, Number) and not gold_reading.value.free_symbols and (glued := _GLUED_UNIT.fullmatch(answer)):
        return agree(gold_reading, read(f"{glued[1]} {glued[2]}"), tolerance)
    if _DECIMAL_COMMA.fullmatch(gold) and isinstance(reading, Number):  # the list 3, 5 or the decimal 3,5: a number decides
        return agree(read(gold.replace(",", ".", 1), letters=False), reading, tolerance)
    grouped = [read(text[1:-1]) if _GROUPED.fullmatch(text) else None for text in (gold, answer)]
    return any(g is not None for g in grouped) and agree(grouped[0] or gold_reading, grouped[1] or reading, tolerance)


def _without_conditions(gold: str, answer: str) -> tuple[str, str]:
    """Drop the conditions behind both, unless they name different sets, or only the answer restricts a region of reals
    (``x > 3, x \\in \\mathbb{Z}``). The answer's letter becomes that of the gold answer."""
    (bare, letter, kind), (other, others_letter, others_kind) = without_condition(gold), without_condition(answer)
    if kind and others_kind and kind != others_kind:
        return gold, answer
    only = {kind, others_kind} - {"", "R"} if "" in (kind, others_kind) else set[str]()
    if only and _REGION.search(bare) and (letter or others_letter) not in INTEGER_LETTERS:
        return gold, answer
    if letter and not others_letter and not re.search(rf"(?<![A-Za-z\\]){letter}(?![A-Za-z])", other):
        free = {x for x in re.findall(r"(?<![A-Za-z\\])[a-zA-Z](?![A-Za-z])", other) if x in INTEGER_LETTERS}
        others_letter = free.pop() if len(free) == 1 else ""
    return bare, renamed(other, others_letter, letter) if letter and others_letter not in ("", letter) else other


INTEGER_LETTERS = "ijklmnpq"
_REGION = re.compile(r"[<>]|\\(?:le|ge|ne)(?![a-zA-Z])|^[(\[][^()]*,[^()]*[)\]]$")


def _agree_in_units(gold: str, answer: str, gold_reading: Reading, tolerance: Tolerance) -> bool:
    """Compare where a single letter after a number may be a unit: that of an answer (``5 m``) where the gold answer has no
    letters, that of a gold answer where the answer has a unit."""
    if not _LETTER_AFTER.search(answer):
        return False
    reading = read(answer)
    if not has_letters(gold_reading):
        return agree(gold_reading, reading, tolerance)
    if not isinstance(reading, Number) or not reading.unit or read_unit(reading.unit) is None:
        return False
    return isinstance(measured := read(gold), Number) and bool(measured.unit) and agree(measured, reading, tolerance)


_LETTER_AFTER = re.compile(r"(?:[\d)}!]|\\pi|(?<![A-Za-z])[ei])\s*[A-Za-zΩμ]")
_APPROX = re.compile(r"\\(?:approx|simeq)(?![a-zA-Z])")


def _exact_and_rounded(text: str) -> list[str]:
    r"""Return the two values of ``\frac{1}{3} \approx 0.33``, the exact and the rounded one; none where no number comes
    before the sign (``x \approx 0.33``), or the second is no rounding of the first."""
    exact, sign, rounded = text.partition("\\approx") if _APPROX.search(text) else (text, "", "")
    exact, rounded = exact.strip(), rounded.strip()
    if not sign or not rounded or NAME.fullmatch(exact) or nesting(text) > MAX_DEPTH:
        return []
    value, near = read(exact), read(rounded)
    if isinstance(value, Relation):
        value = named_value(value) or value
    if not (isinstance(value, Number) and isinstance(near, Number)):
        return []
    if agree(value, near, EXACT):
        return [exact]
    places = -int(near.decimal.as_tuple().exponent) if near.decimal is not None else 0
    is_rounded = value.decimal is None and not value.value.is_integer and near.value.is_Rational
    return [exact, rounded] if is_rounded and agree(value, near, Tolerance(decimals=places)) else []


_GLUED_UNIT = re.compile(
    r"(-?\d[\d,]*\.\d+|-?\d[\d,]*(?=[a-zA-Z]+(?:\^|/)))([a-zA-Z]{1,3}(?:\^\{?\d\}?)?(?:/[a-zA-Z]+(?:\^\{?\d\}?)?)?)"
)
"""A unit without a space before it, where the gold answer has no letters: 9.8m/s^2."""

_DECIMAL_COMMA = re.compile(r"-?(?:0,|\d+,(?!\d{3}(?!\d)))\d+(?:\s*(?:\\text|\\mathrm|%|\^\\circ).*)?")
_GROUPED = re.compile(r"\(\s*-?\d{1,3}(?:,\d{3})+(?:\.\d+)?\s*\)")
"""A number in parentheses that reads like a pair."""


def _same_choice(gold: str, answer: str, choices: Sequence[str], tolerance: Tolerance) -> bool:
    """Return whether both name the same options, by letter or by text."""
    return bool(named := _options(gold, choices, tolerance)) and named == _options(answer, choices, tolerance)


def _options(text: str, choices: Sequence[str], tolerance: Tolerance) -> list[int]:
    texts = [_MEASURED.sub(r"\1\\text{ \2}", clean(without_label(choice, i))) for i, choice in enumerate(choices)]
    spelled = [index for index, option in enumerate(texts) if _folded(option) == _folded(text)]
    if len(spelled) == 1 and not choice_letters(text, num_choices=len(choices)):
        return spelled
    lettered = _LETTER_AND_TEXT.match(plain(text))
    if letters := choice_letters(text, num_choices=len(choices), fold=True):
        named = sorted({ord(letter) - ord("A") for letter in letters})
        if lettered and len(named) == 1 and not _may_be(texts, named[0], plain(text)[lettered.end() :], tolerance):
            return []  # the letter names one option, the text another
        return named
    if lettered:
        index, rest = ord(lettered[1]) - ord("A"), plain(text)[lettered.end() :].strip(" (),")
        if index < len(texts) and _is_option(texts[index], rest, tolerance):
            return [index]
    spelled = [index for index, option in enumerate(texts) if same_words(option, text)]
    if len(spelled) == 1:
        return spelled
    if lettered and lettered[1] != "A":  # which may be an article
        return []
    same = [index for index, option in enumerate(texts) if _same(option, text, None, tolerance)]
    return same if len(same) == 1 else []


def _is_option(option: str, text: str, tolerance: Tolerance) -> bool:
    return same_words(option, text) or _same(option, text, None, tolerance)


_DENIED = re.compile(r"\s*(?:is\s+)?(?:not|never|wrong|false|incorrect)\b")
_MEASURED = re.compile(r"^(-?[\d.,]+) ([A-Za-z])$")
"""A number and a letter, which is a unit in an option."""


def _folded(option: str) -> str:
    return compact(plain(option)).casefold()


def _may_be(options: Sequence[str], index: int, text: str, tolerance: Tolerance) -> bool:
    """Return whether a text beside the letter of an option may be that option: it is, or no other one is."""
    if _folded(text) in [_folded(option) for option in options]:
        return _folded(text) == _folded(options[index])
    if _DENIED.match(text):
        return False
    by_text = [i for i, option in enumerate(options) if _is_option(option, text, tolerance)]
    return not by_text or index in by_text


_LETTER_AND_TEXT = re.compile(r"\s*[\[(]?([A-Z])\s*(?:[-=).:,\]]\s*|\s)(?=\S)")
