r"""Finding the final answer in a response, and spelling it canonically: text work only, in linear time.

Strict: the last ``\boxed{}``. Lenient: where there is none, agreed fall-backs in a fixed order; which of them found the
answer is recorded, so that a gain of format is not called reasoning.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Method = Literal["boxed", "hashes", "phrase", "math", "number", "whole"]
"""How an answer was found: in a box; after GSM8K's ``####``; after "answer is" or "answer:"; in the last formula; the last
number; the whole response."""

MAX_TAIL_CHARS = 200_000
"""Only so much of a response's end is searched: a final answer stands at the end."""


@dataclass(frozen=True, slots=True)
class Extraction:
    """An answer as it stands in the response, and how it was found."""

    answer: str
    method: Method


_BOX = re.compile(
    r"""\\(?:f?boxed|fbox)(?![A-Za-z])\s*
        (?:\{ | (?P<token>[0-9] | [A-Za-z](?![A-Za-z]) | \\[A-Za-z]+(?=\s*(?:[$.,;!?)\]}]|\\[\])]|$))))
    | \\. | [{}]""",
    re.DOTALL | re.VERBOSE,
)


def extract_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}`` or ``\fbox{...}`` with balanced braces (the innermost of nested ones); None
    when there is none or it is blank. Escaped braces (``\{``) are content.

    A box without braces holds what TeX puts into it, the next token: ``\boxed 2`` and ``\boxed 23`` are 2, ``\boxed\pi`` is
    ``\pi``. Where TeX finds none (``\boxed\frac12``), or it would cut a word (``a \boxed answer``), there is no box.

    Example: ``so \boxed{1}, no: \boxed{\frac{1}{2}}`` gives ``\frac{1}{2}``.
    """
    text = text[-MAX_TAIL_CHARS:]
    open_braces: list[int | None] = []  # where the content of a box begins; None for other braces
    found: tuple[int, int] | None = None
    for match in _BOX.finditer(text):
        part = match.group()
        if match["token"] is not None:
            found = match.span("token")
        elif part == "}":
            begin = open_braces.pop() if open_braces else None
            if begin is not None and (found is None or begin > found[0]):
                found = (begin, match.start())
        elif part[-1] == "{" and part != "\\{":
            open_braces.append(match.end() if len(part) > 1 else None)
    return (text[found[0] : found[1]].strip() or None) if found else None


_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_PHRASE = re.compile(
    r"(?:answer|result|option|choice)\s*(?:\([^()\n]{0,20}\)\s*)?(?:is|are|=|:)\s*:?\s*\**[ \t]*(?=\S)", re.IGNORECASE
)
_MATH = re.compile(r"\$\$(.{1,2000}?)\$\$|\$([^$\n]{1,500})\$|\\\[(.{1,2000}?)\\\]|\\\((.{1,500}?)\\\)", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s*/\s*\d+)?\s*(?:\\?%)?")


def extract(text: str, *, lenient: bool) -> Extraction | None:
    """The final answer of a response; None when there is none. Strict looks at boxes only."""
    boxed = extract_boxed(text)
    if boxed is not None:
        return Extraction(boxed, "boxed")
    if not lenient:
        return None
    tail = text[-MAX_TAIL_CHARS:].rstrip()
    if hashes := _HASHES.findall(tail):
        return Extraction(hashes[-1].strip(), "hashes")
    if phrases := list(_PHRASE.finditer(tail)):
        return Extraction(_sentence(tail[phrases[-1].end() :].partition("\n")[0][:300]), "phrase")
    if formulas := _MATH.findall(tail):
        return Extraction("".join(formulas[-1]).strip(), "math")
    if numbers := _NUMBER.findall(tail):
        return Extraction(numbers[-1].strip(), "number")
    return None


def _sentence(rest: str) -> str:
    """What follows "answer is", up to the end of its sentence, formula delimiters taken off."""
    rest = rest.strip().strip("*").strip()
    if formula := _MATH.match(rest):
        return "".join(part or "" for part in formula.groups()).strip()
    end = re.search(r"\.(?:\s|$)", rest)
    return (rest[: end.start()] if end else rest).strip().strip("*").strip()


_SPACES = re.compile(r"\\[ ,;:!]|~|\s+")
_EUROPEAN = re.compile(r"-?\d{1,3}(?:\.\d{3}){2,}(?:,\d+)?|-?\d{1,3}(?:\.\d{3})+,\d+")
THOUSANDS = re.compile(r"(?<=\d)(?:,|\{,\})(?=\d{3}(?:\D|$))")


def normalise(answer: str) -> str:
    """A canonical spelling for the quick comparison: no spaces, dollar signs, thousands separators or final full stop.

    1.234.567 and 1.234,5 are read as Europeans write them; 1.234 and 1,234 as Americans do.
    """
    answer = answer.strip().strip("$")
    if _EUROPEAN.fullmatch(answer):
        answer = answer.replace(".", "").replace(",", ".")
    answer = THOUSANDS.sub("", answer)
    return _SPACES.sub("", answer.removesuffix("."))


_CHOICE = re.compile(r"\s*\(?\s*([A-Ja-j])\s*(?:[).:]|$)")
_STYLE = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|boldsymbol|bf|rm)\s*\{([^{}]*)\}")


def choice_letter(answer: str, choices: Sequence[str] | None = None) -> str | None:
    """The letter a multiple-choice answer names: ``C``, ``(c)``, ``C. 12``, or the text of one of the choices; else None."""
    plain = _STYLE.sub(r"\1", answer).strip().strip("$").strip()
    if match := _CHOICE.match(plain):
        return match.group(1).upper()
    if choices:
        same = [index for index, choice in enumerate(choices) if normalise(choice).casefold() == normalise(plain).casefold()]
        if len(same) == 1:
            return chr(ord("A") + same[0])
    return None
