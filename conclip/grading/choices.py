"""Finds the options of a multiple choice that an answer names: by their letters, alone or before the option's text."""

import re
from itertools import pairwise

from conclip.grading.spelling import plain

MAX_CHOICES = 26
_WITHOUT_CHOICES = 10
"""Letters that may name an option where the options are not given: A to J."""

_LETTER = r"[\[({]*\s*([A-Za-z])\s*[\])}]*"
_CHOICE_WORD = re.compile(r"^(?:the\s+)?(?:option|choice|answer)s?\s*:?\s*", re.IGNORECASE)
_ALONE = re.compile(rf"{_LETTER}\s*[.:,;]?")
_WITH_TEXT = re.compile(
    r"(?:[\[(]\s*([A-Za-z])\s*[\])][.:]?(?!\s*[-+*/^_=<>])|([A-Za-z])\s*(?:[):\]]|\.(?=\s)))\s*(\S.*)", re.DOTALL
)
_FURTHER_LABEL = re.compile(r"(?<![A-Za-z])[A-Za-z]{1,3}\s*[):](?!\s*\d+\s*$)|\([A-Za-z]{1,3}\)")
_SEVERAL = re.compile(rf"{_LETTER}(?:(?:\s*(?:,|;|&|\bor\b|\band\b))+\s*{_LETTER})+", re.IGNORECASE)


def choice_letters(answer: str, *, num_choices: int | None = None, fold: bool = False) -> list[str]:
    r"""Return the letters that a cleaned multiple-choice answer names; empty where it names none. `fold`: small letters name
    options, too (alone, ``b`` may be a variable).

    Example: ``\text{Option B}``, ``(B) 12`` and ``[B]`` give ["B"], ``A, B`` gives ["A", "B"], ``C_1`` gives [].
    """
    text = without_choice_word(" ".join(plain(answer).replace("\\ ", " ").split()))
    last = chr(ord("A") + min(num_choices or _WITHOUT_CHOICES, MAX_CHOICES) - 1)
    letters: list[str] = []
    if match := _ALONE.fullmatch(text):
        letters = [match[1]]
    elif _SEVERAL.fullmatch(text):
        letters = re.findall(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])", text)
    elif (match := _WITH_TEXT.fullmatch(text)) and not _FURTHER_LABEL.search(match[3]):
        letters = [match[1] or match[2]]
    if fold:
        letters = [letter.upper() for letter in letters]
    return letters if all("A" <= letter <= last for letter in letters) else []


def without_choice_word(text: str) -> str:
    """Return ``B`` of ``Option B`` or ``Answer: B``."""
    return _CHOICE_WORD.sub("", text.strip())


def glued_letters(answer: str) -> list[str]:
    """Return the letters of several options without anything between them, in their order: ``ABD`` or ``\\{A, C\\}``."""
    letters = re.sub(r"[\\{}\s,]", "", plain(answer))
    is_list = re.fullmatch(r"[A-J]{2,5}", letters) is not None and all(a < b for a, b in pairwise(letters))
    return list(letters) if is_list else []


def label_and_text(answer: str) -> tuple[str, str] | None:
    """Return ("B", "12") of a cleaned ``B: 12``; None without both."""
    match = _WITH_TEXT.fullmatch(" ".join(plain(answer).replace("\\ ", " ").split()))
    return ((match[1] or match[2]).upper(), match[3]) if match else None


def without_label(choice: str, index: int) -> str:
    """Return the text of an option that may carry its own letter: ``B) 2`` at index 1 gives ``2``."""
    letter = chr(ord("A") + index)
    return re.sub(rf"^\s*\(?\s*(?:{letter}|{letter.lower()})\s*[).:]\s*(?=\S)", "", choice).strip()
