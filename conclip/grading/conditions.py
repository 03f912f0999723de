r"""Finds the condition after an answer, such as ``, k \in \mathbb{Z}`` or ``\text{ for all } x``."""

import re

from conclip.grading.spelling import in_words


def _words(pattern: str) -> str:
    return r",?\s*" + in_words(rf",?\s*(?:{pattern})")


_SET = r"\\mathbb\s*\{?\s*[NZQRC]\s*\}?(?:\s*[\^_]\s*(?:\{[^{}]*\}|[+*-]|\\ast))?"
_IN_SET = re.compile(r"\\in\s*\\mathbb(.*)$")
_LETTERS = r"[a-zA-Z](?:\s*,\s*[a-zA-Z])*"
_KIND = (
    r"(?:an?\s+|any\s+|some\s+|the\s+)?(?:arbitrary\s+|positive\s+|non-?negative\s+|real\s+|natural\s+)?"
    r"(?:integers?|numbers?|reals?|constants?)"
)
_WHERE = _words(r"(?:where|for|with|and|if)(?:\s+(?:all|any|every|each|some))?")
_FOR_ALL = _words(rf"for\s+(?:all|any|every|each)(?:\s+{_KIND}|\s+real|\s+positive|\s+natural)*(?:\s+[a-zA-Z])?")
_IS_A = _words("where|with|and") + rf"\s*{_LETTERS}\s*" + _words(r"(?:is|are)\s+" + _KIND)
_BEFORE = r"(?<=[^\s,;(])\s*"
_SEPARATED = r"(?:(?:,|;|\\q?quad(?![a-zA-Z])|\()\s*)+"
_CONDITION = re.compile(
    rf"{_BEFORE}(?:{_SEPARATED}(?:{_WHERE}\s*)?|{_WHERE}\s*){_LETTERS}\s*\\in\s*{_SET}\s*\)?$"
    rf"|{_BEFORE}(?:{_SEPARATED})?(?:\\forall\s*{_LETTERS}(?:\s*\\in\s*{_SET})?|{_IS_A})\s*\)?$"
    rf"|{_BEFORE}(?:{_SEPARATED})?{_FOR_ALL}\s*(?:(?<!\\){_LETTERS})?(?:\s*\\in\s*{_SET})?\s*\)?$"
)
_LETTER = re.compile(r"(?<![A-Za-z\\{])(?!a\s)[a-zA-Z](?![A-Za-z])")
MAX_CHARS = 300
"""Conditions are looked for in texts up to this length."""


def without_condition(text: str) -> tuple[str, str, str]:
    r"""Return (answer, letter, set) of a cleaned answer and the condition after it: ``2k\pi, k \in \mathbb{Z}`` gives
    (``2k\pi``, "k", "Z"). Letter and set are "" where none is named, the answer unchanged where there is no condition."""
    match = _CONDITION.search(text) if len(text) <= MAX_CHARS else None
    if match is None:
        return text, "", ""
    letter = _LETTER.search(match[0])
    return text[: match.start()].rstrip(" ,;"), letter[0] if letter else "", _kind(match[0])


def _kind(condition: str) -> str:
    """Return the set that a condition names, "Z", "Z+", "N", "R", ...; "" where it names none."""
    if named := _IN_SET.search(condition):
        return re.sub(r"[\s{})^_]", "", named[1])
    if natural := re.search(r"natural|(positive\s+)?integer|real", condition):
        return {"natural": "N", "integer": "Z", "real": "R"}.get(natural[0], "Z+")
    return ""


def renamed(text: str, letter: str, other: str) -> str:
    """Return a formula with one letter in place of another, unless that occurs in it."""
    alone = r"(?<![A-Za-z\\]){}(?![A-Za-z])"
    return text if re.search(alone.format(other), text) else re.sub(alone.format(letter), other, text)
