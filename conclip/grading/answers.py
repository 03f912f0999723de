r"""Finds the final answer in a response and spells it canonically: text work only, in linear time.

Strict: the last ``\boxed{}``. Lenient: where there is none, agreed fall-backs in a fixed order; which of them found the
answer is recorded, so that a gain of format is not called reasoning.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from conclip.grading.spelling import clean, compact

Method = Literal["boxed", "hashes", "phrase", "math", "number", "whole"]
"""How an answer was found: in a box; after GSM8K's ``####``; by a phrase that states it ("answer is", an option that "is
correct", ``<answer>`` tags, the only sentence); in the last formula; the last number; the whole response."""

MAX_TAIL_CHARS = 200_000
"""Only this much of the end of a response is searched: a final answer comes at the end."""


@dataclass(frozen=True, slots=True)
class Extraction:
    """An answer as the response spells it, and how it was found."""

    answer: str
    method: Method


_BOX = re.compile(
    r"""\\{1,2}(?:f?boxed|fbox)(?![A-Za-z])\s*
        (?:\{ | (?P<token>[0-9] | [A-Za-z](?![A-Za-z]) | \\[A-Za-z]+(?=\s*(?:[$.,;!?)\]}]|\\[\])]|$))))
    | \\. | [{}]""",
    re.DOTALL | re.VERBOSE,
)


def extract_boxed(text: str) -> str | None:
    r"""Return the content of the last ``\boxed{...}`` or ``\fbox{...}`` with balanced braces (the innermost of nested ones);
    None when there is none or it is blank. Escaped braces (``\{``) are content.

    A box without braces holds what TeX puts into it, the next token: ``\boxed 2`` and ``\boxed 23`` are 2, ``\boxed\pi`` is
    ``\pi``. Where TeX finds none (``\boxed\frac12``), or it would cut a word (``a \boxed answer``), there is no box.

    Boxes side by side are one answer, a list: ``\boxed{1} \text{ and } \boxed{-2}`` gives ``1, -2``. Only a comma, "and" or
    "or" joins them, with the name of a value or the thing counted beside it.

    Example: ``so \boxed{1}, no: \boxed{\frac{1}{2}}`` gives ``\frac{1}{2}``.
    """
    text = text[-MAX_TAIL_CHARS:]
    open_braces: list[tuple[int, int] | None] = []  # (start of a box, start of its content); None for other braces
    boxes: list[tuple[int, int, int, int]] = []  # start of a box, start and end of its content, end of the box
    for match in _BOX.finditer(text):
        part = match.group()
        if match["token"] is not None:
            boxes.append((match.start(), *match.span("token"), match.end()))
        elif part == "}":
            begun = open_braces.pop() if open_braces else None
            if begun is not None:
                boxes.append((*begun, match.start(), match.end()))
        elif part[-1] == "{" and part != "\\{":
            open_braces.append((match.start(), match.end()) if len(part) > 1 else None)
    last = max(range(len(boxes)), key=lambda index: boxes[index][1], default=None)
    if last is None or not (content := text[slice(*boxes[last][1:3])].strip()):
        return None
    contents, begins = [content], [boxes[last][0]]
    while last > 0 and len(contents) < MAX_JOINED_BOXES:
        begin, before = boxes[last][0], boxes[last - 1]
        if not 0 < begin - before[3] <= MAX_BETWEEN_BOXES or not _joins(text[before[3] : begin]):
            break
        last -= 1
        contents.insert(0, text[slice(*boxes[last][1:3])].strip())
        begins.insert(0, boxes[last][0])
    names = [_NAMED_BOX.search(text, max(0, begin - MAX_NAME_CHARS), begin) for begin in begins]
    if len(set(contents)) == 1:
        return content
    if all(names):
        contents = [f"{name[1]} = {content}" for name, content in zip(names, contents, strict=True) if name]
    return ", ".join(filter(None, contents))


MAX_BETWEEN_BOXES = 60
MAX_JOINED_BOXES = 50
MAX_NAME_CHARS = 20
_NAMED_BOX = re.compile(r"(?<![A-Za-z\\])(\\?[A-Za-z]+(?:_\{?\w+\}?)?)\s*=\s*\$?$")
_LAYOUT = re.compile(r"\\(?:text|mbox|mathrm)\s*\{([^{}]*)\}|\\q?quad(?![a-zA-Z])|\\[()\[\],;:! ]|[$*&]|\s+")
_JOINS = re.compile(
    r"(?:\s*(?P<words>(?:[A-Za-z]+|\([a-z]\))(?:\s+(?:[A-Za-z]+|\([a-z]\))){0,3})\s+and|\s*[,;]\s*(?:and|or)?|\s*(?:and|or))"
    r"\s*(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?\s*=)?\s*"
)
_TURNS = re.compile(
    r"\b(?:no|not|wait|but|then|so|thus|hence|therefore|actually|instead|rather|check|wrong|correct|is|was|we|I|which|that|it)\b"
)


def _joins(between: str) -> bool:
    """Return whether the text between two boxes makes a list of them."""
    words = _LAYOUT.sub(lambda m: f" {m[1] or ''} ", between)
    return "\n\n" not in between and _JOINS.fullmatch(words) is not None and not _TURNS.search(words)


_ANSWER_TAG = re.compile(r"<answer>([^<>]{1,500})</answer>")
_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_PHRASE = re.compile(
    r"(?<!wrong )(?<!incorrect )(?:answer|result|option|choice)\s{0,9}(?:\([^()\n]{0,20}\)\s{0,9})?\**\s{0,9}"
    r"(?:is(?!n't)|are(?!n't)|=|:)\s{0,9}:?\s{0,9}\**[ \t]{0,9}(?=\S)",
    re.IGNORECASE,
)
_DELIMITER = re.compile(r"\\.|\$\$?", re.DOTALL)
_CLOSED_BY = {"\\[": "\\]", "\\(": "\\)", "$$": "$$", "$": "$"}
_NUMBER = re.compile(
    r"(?<![\w.\\^_{])(?:-\\?\$|[-+\u2212\u2013])?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:\s?/\s?\d+)?"
    r"(?:\s?[\u00d7*x]\s?10\^-?\d+)?(?:\s(?:hundred|thousand|million|billion|trillion)(?![a-z]))?"
    r"(?:\s?\\?%|(?:[ckm]?m|k?g|mg|m?[lL]|s|h|ft|lbs?|oz)[²³]?(?!\w))?(?![\w^_{\\!]|\.\d)"
)
_AMOUNT, _UNFINISHED = re.compile(r"(?<=\$)\.?\d"), re.compile(r"[-+*/=<>\u00d7\u00f7]$")
_OPERATOR = re.compile(r"[-+*/^_\\({|\u2212\u221a\u221b\u221c]\s*$")
_COMPARED = re.compile(
    r"(?:[<>\u2260\u2264\u2265]|\b(?:than|not|log|ln|between|root|root\s+of|power\s+of|sum\s+of|half\s+of)"
    r"|\d\s+(?:to|by|in|out\s+of))[ \t]*\Z|[\d)](?::|[ \t]*[x\u00d7][ \t]*)\Z",
    re.IGNORECASE,
)
"""Words and signs before a number that make it a part of something else."""

MAX_FORMULA_CHARS = 2000
"""A longer formula is no final answer."""


def extract(text: str) -> Extraction | None:
    """Return the final answer of a response, that of a box or, without one, in another form; None when there is none."""
    boxed = extract_boxed(text)
    if boxed is not None:
        return Extraction(boxed, "boxed")
    tail = text[-MAX_TAIL_CHARS:].replace("**", "").rstrip()
    if tags := _ANSWER_TAG.findall(tail):
        return Extraction(tags[-1].strip(), "phrase")
    if hashes := _HASHES.findall(tail):
        return Extraction(hashes[-1].strip(), "hashes")
    if (option := _unhedged(_RIGHT_OPTION, tail)) is not None:
        return Extraction(option, "phrase")
    if phrases := [match for match in _PHRASE.finditer(tail) if not _is_hedged(tail, match.start())]:
        return Extraction(_after_phrase(tail[phrases[-1].end() :]), "phrase")
    if re.fullmatch(r"[A-Z][a-z]+\.?|(?:Yes|No|True|False)[,.][^\n]{0,100}", tail.strip()):
        return Extraction(tail.strip(), "phrase")
    if _is_bare(tail.strip()):
        return Extraction(tail.strip(), "math")
    found = _formulas(tail)
    formulas = _joined(tail, found)
    number = _last_number(tail)
    if formulas and number and _UNIT_ALONE.fullmatch(formulas[-1][0]):
        begin = tail.rfind(formulas[-1][0], number[1], formulas[-1][1])
        if begin >= 0 and not tail[number[1] : begin].strip(" $\\("):  # 100 $cm^2$
            return Extraction(f"{number[0]} {formulas[-1][0]}", "number")
    concludes = number is not None and bool(formulas) and _THEREFORE.search(tail, formulas[-1][1], number[1]) is not None
    if (
        formulas
        and not concludes
        and (number is None or number[1] <= formulas[-1][1] or not any(_SINGLE.fullmatch(f) for f, _ in found))
    ):
        last = formulas[-1][0]
        return None if _is_part(tail, tail.rfind(last, 0, formulas[-1][1])) else Extraction(last, "math")
    if number:
        return Extraction(number[0], "number")
    if (statement := stated(tail.strip())) is not None:
        return Extraction(statement, "phrase")
    letter = next((named for pattern in _LAST_LETTER if (named := _unhedged(pattern, tail)) is not None), None)
    return Extraction(letter, "phrase") if letter else None


_HEDGE = re.compile(
    r"\b(?:not|no|never|nor|neither|either|cannot|wrong|incorrect|false|suppose|assume|assuming|if|whether|unless|claims?|"
    r"claimed|guess|or)\b|n't\b",
    re.IGNORECASE,
)
"""Words in a clause that make its statement no answer."""


def _is_hedged(text: str, at: int) -> bool:
    """Return whether the clause before a place holds words that make its statement no answer."""
    return _HEDGE.search(_clause(text[max(0, at - MAX_CLAUSE_CHARS) : at])) is not None


MAX_CLAUSE_CHARS = 80


def _clause(text: str) -> str:
    """Return the clause that a text ends with."""
    return re.split(r"[.,;:!?\n]", text)[-1]


def _unhedged(pattern: re.Pattern[str], text: str) -> str | None:
    """Return what a pattern finds at the end of a text, unless the clause around it says that it is wrong."""
    tail = text[-MAX_SENTENCE_CHARS:]
    match = pattern.search(tail)
    if match is None or _is_hedged(tail, match.start()) or _HEDGE.search(match[0]):
        return None
    after = re.split(r"[.,;:!?\n]", tail[match.end() :])[0]
    return None if _HEDGE.search(after) else match[1]


MAX_BARE_CHARS = 300
_WORDS = re.compile(r"(?<![\\A-Za-z])[A-Za-zÀ-ɏ]{2,}|[\u0400-\u1fff\u3040-\ud7ff]")
_CALCULATOR = re.compile(r"(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|sqrt|log|ln|exp|pi|infinity|infty")
_RIGHT_OPTION = re.compile(
    r"(?<![A-Za-z])\(?([A-J])\)?\s+is\s+(?:the\s+)?(?:correct|right|best|true)(?:\s+(?:answer|option|choice|one))?[.!\s]*$"
)
_LAST_LETTER = (
    re.compile(r"(?:^|\n)\s*\(?([A-J])\)?[.\s]*$"),
    re.compile(r"(?:\b(?:is|it's|be|choose|pick|select|with)\s+)\(?([A-J])\)?[.\s]*$"),
    re.compile(r"\b(?:[Hh]ence|[Tt]hus|[Ss]o|[Tt]herefore),?\s+\(?([A-J])\)?[.\s]*$"),
    re.compile(r"^(\(?[A-J][).:]\s+[A-Z][^\n]*)$"),
    re.compile(r"\(([A-J])\)(?!.*\([A-J]\))", re.DOTALL),
)
"""Patterns of an option's letter where nothing else is stated: on a line of its own, at the end, in parentheses."""


def _is_bare(text: str) -> bool:
    """Return whether a response is nothing but a formula or a number, on one line and without words, whatever is around
    it."""
    if not 0 < len(text) <= MAX_BARE_CHARS or "\n" in text or "####" in text:
        return False
    formula = re.sub(r"\\(?:text|mathrm|mbox|textbf|mathbf|operatorname|begin|end)\s*\{[^{}]*\}", "", text)
    return re.search(r"\w", text) is not None and all(_CALCULATOR.fullmatch(word) for word in _WORDS.findall(formula))


_UNIT_ALONE = re.compile(
    r"(?:\\(?:text|mathrm)\s*\{)?\s*[a-zA-Z]{1,3}\s*\}?(?:\s*\^\s*\{?[23]\}?)?|\^\s*\{?\s*\\circ\s*\}?(?:\s*\\text\{[CF]\}|[CF])?|\\%"
)
_THEREFORE = re.compile(r"\b(?:Therefore|Thus|Hence|So|Finally|Altogether)\b")
"""Words that open a last sentence, whose number counts for more than the formulas before it."""


_SINGLE = re.compile(r"[a-zA-Z]|\\[a-z]+")


def _joined(text: str, formulas: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return (content, end) of the formulas but single letters; those with only a comma, "and" or "or" between them are one
    list."""
    joined: list[tuple[str, int]] = []
    for content, end in formulas:
        if _SINGLE.fullmatch(content):
            continue
        begin = text.rfind(content, 0, end)
        between = text[joined[-1][1] : begin] if joined else ""
        is_listed = joined and len(between) < MAX_NAME_CHARS and _LISTED.fullmatch(re.sub(r"\\[(\[]|\$", "", between))
        joined[-1:] = [(f"{joined[-1][0]}, {content}", end)] if is_listed else [*joined[-1:], (content, end)]
    return joined


def _formulas(text: str) -> list[tuple[str, int]]:
    """Return (content, end) of the formulas between ``$``, ``$$``, ``\\(`` and ``\\[``; each character is read once."""
    formulas: list[tuple[str, int]] = []
    opened: tuple[str, int] | None = None
    for match in _DELIMITER.finditer(text):
        sign = match.group()
        if opened is not None and (sign == _CLOSED_BY[opened[0]] or (sign == "$$" and opened[0] == "$")):
            content = text[opened[1] : match.start()].strip()
            if _UNFINISHED.search(content):  # "$5 + $7 = $12": dollars; "$x =$ 5": half of a formula
                opened = (sign, match.end()) if _AMOUNT.match(text, match.end()) else None
                continue
            is_prose = len(re.findall(r"(?<![\\A-Za-z{])[A-Za-z]{2,}\s+[A-Za-z]{2,}", content)) > 0  # dollars, not formulas
            if content and not is_prose and len(content) <= MAX_FORMULA_CHARS and not (opened[0] == "$" and "\n" in content):
                formulas.append((content, match.end()))
            opened = None
        elif sign in _CLOSED_BY and (opened is None or sign[0] == "\\" or opened[0] == "$"):
            opened = (sign, match.end())
    return formulas


def _last_number(text: str) -> tuple[str, int] | None:
    """Return the last number that is not part of a formula (the right side of an equation excepted), and where it ends; a
    list where it is the last of several ("1, 2 and 3"), None where it is a part of something else ("less than 3")."""
    numbers = [
        match for match in _NUMBER.finditer(text) if not _OPERATOR.search(text[max(0, match.start() - 9) : match.start()])
    ]
    tuples = list(_TUPLE.finditer(text, max(0, len(text) - MAX_SENTENCE_CHARS)))
    if tuples and (not numbers or numbers[-1].end() <= tuples[-1].end()):
        return tuples[-1].group(), tuples[-1].end()
    if not numbers:
        return None
    first = len(numbers) - 1
    while first > 0 and _LISTED.fullmatch(text, numbers[first - 1].end(), numbers[first].start()):
        first -= 1
    if _is_part(text, numbers[first].start()):
        return None
    return ", ".join(number.group().strip() for number in numbers[first:]), numbers[-1].end()


def _is_part(text: str, at: int) -> bool:
    """Return whether the words before a number or formula make it a part of something else, or of what is not said."""
    before = re.sub(r"(?:\$+|\\[(\[])\s*$", "", text[max(0, at - MAX_CLAUSE_CHARS) : at])
    return _COMPARED.search(before[-MAX_NAME_CHARS:]) is not None or _UNSAID.search(_clause(before)) is not None


_UNSAID = re.compile(
    r"\b(?:false\s+that|suppose|assume|claims?\s+that|claimed|know\s+(?:if|whether)|n't)\b|n't\s*$", re.IGNORECASE
)
_ITEM = r"[-\u2212]?(?:[\d./]*\u221a[\d.]+|[\d./]+|\u221e)"
_TUPLE = re.compile(rf"(?:[(\[]|\\\{{|(?<![\\_^A-Za-z])\{{)\s*{_ITEM}(?:\s*,\s*{_ITEM})+\s*(?:[)\]]|\\?\}})")
_LISTED = re.compile(r"\s*(?:,|,?\s*\b(?:and|or)\b)\s*(?:[a-zA-Z]\s*=\s*)?")


_LIST_OF_FORMULAS = re.compile(r"\$[^$]+\$(?:(?:\s|,|or\b|and\b)+\$[^$]+\$)+")
_FILLER = re.compile(r"(?:[A-Za-z']+\s+)+(?=[-+$\\\d\u2212])")
_COMPUTES = re.compile(
    r"\b(?:half|third|quarter|twice|double|triple|thrice|square|cube|root|log|ln|negative|minus|plus|times|over|sum|difference|"
    r"product|quotient|squared|cubed|factorial|percent)\b",
    re.IGNORECASE,
)
"""Words that make another number of the one after them."""
_CHOSEN = re.compile(
    r"(?:for sure|definitely|clearly|certainly|option|choice)?\s*\(?([A-J])\)?"
    r"(?:\s+\((?=[A-Z][a-z])|\s*[,;:](?!\s*(?:and\b|or\b|[A-Za-z]\b(?!')))|\s+(?:because|since|as|but|and not|not|rather)\b)"
)
"""Matches an option's letter and the reason after it."""

_STATED = re.compile(
    r"[A-Za-z].*\b(?:is|are|was|equals?|be)\s+(?:(?:just|exactly|only|also|then|simply|equal to)\s+)?(?=[-+$\\\d(\[.])"
)
_BECAUSE = re.compile(r"(?<=[\d$})a-z]),?\s+(?:because|since|as|which|where|when)\b.*$")
_CIRCUMSTANCE = re.compile(
    r"\s+(?:in|on|at|for|from|during|by|after|before|each|every|altogether|total|left|because|since|so|when|if)\b\s+[A-Za-z][^\d$\\]*$"
)
"""Words after a number that say when or where."""
_NEGATED = re.compile(
    r"\b(?:not|no|never|nor|neither|cannot|except|unless|than|least|most|about|around|\w*n't)\b", re.IGNORECASE
)


def _after_phrase(rest: str) -> str:
    """Return what "answer is" is followed by: a formula that is set on lines of its own, or a sentence."""
    opening = rest[:2]
    if opening in ("\\[", "$$") and (end := rest.find(_CLOSED_BY[opening], 2)) > 0 and end < MAX_FORMULA_CHARS:
        return rest[2:end].strip()
    return _sentence(rest.partition("\n")[0][:300])


def _sentence(rest: str) -> str:
    """Return what follows "answer is", up to the end of its sentence, without formula delimiters and without words before
    its only number."""
    rest = rest.strip().strip("*").strip()
    end = re.search(r"\.(?:\s|$)", rest)
    sentence = (rest[: end.start()] if end else rest).strip().strip("*").strip()
    if chosen := _CHOSEN.match(sentence):
        return chosen[1]
    sentence = _BECAUSE.sub("", re.sub(r"(?<=[2-9]\d)!$|(?<=\d\d\d)!$", "", sentence))
    if (statement := stated(sentence)) is not None:
        return statement
    if rest.startswith(("$", "\\(", "\\[")) and (formulas := _formulas(rest)):
        return sentence if _LIST_OF_FORMULAS.fullmatch(sentence) else formulas[0][0]
    words = _FILLER.match(sentence)
    if (
        words
        and not _NEGATED.search(sentence)
        and not _COMPUTES.search(words[0])
        and len(numbers := _NUMBER.findall(sentence)) == 1
        and len(_formulas(sentence)) <= 1
    ):
        return (
            _CIRCUMSTANCE.sub("", sentence[sentence.index(numbers[0]) :].strip())
            if "$" not in sentence
            else (_formulas(sentence) or [(numbers[0], 0)])[0][0]
        )
    return _CIRCUMSTANCE.sub("", sentence) if sentence[:1].isdigit() else sentence


_SENTENCE = re.compile(r"[A-Z][^.;:!?]{0,80}?\b(?:is|are|was)\s+(?:an?\s+|the\s+)?([A-Za-z]+)")


MAX_SENTENCE_CHARS = 300


def stated(sentence: str) -> str | None:
    """Return what a sentence says that something is: "24 square units" for "The area is 24 square units"; None for
    others."""
    sentence = sentence.strip().rstrip(".")
    if len(sentence) > MAX_SENTENCE_CHARS or _NEGATED.search(sentence) or _HEDGE.search(sentence.rpartition(" ")[0]):
        return None
    if match := _STATED.match(sentence):
        return _CIRCUMSTANCE.sub("", sentence[match.end() :])
    word = _SENTENCE.fullmatch(sentence)
    return word[1] if word else None


@lru_cache(maxsize=1 << 16)
def normalise(answer: str) -> str:
    """Return a canonical spelling, by which wrong answers of one problem are counted as the same."""
    return compact(clean(answer))
