r"""Answers in words: names, days, yes and no, lists of them."""

import re

from conclip.grading.spelling import STYLED, plain

_TEXT = re.compile(r"\(?[A-Za-z][A-Za-z0-9' ,.()-]*")
_CAPITALS = re.compile(r"[A-Z]{2,}")
_FOLDED = frozenset({"yes", "no", "true", "false", "none", "dne", "odd", "even"})
_LIST = re.compile(r"\s*(?:,\s*(?:and|or)\s|,|;|\band\b|\bor\b)\s*")


def is_text(gold: str) -> bool:
    r"""Whether a cleaned gold answer is words and no formula: whole in ``\text{}``, of four letters or more, or a name."""
    words = _spaced(gold)
    if not _TEXT.fullmatch(words) or not re.search(r"[A-Za-z]{2}", words):
        return False
    if STYLED.fullmatch(gold.strip()):
        return True
    if re.search(r"\d", words):
        return False
    return len(words) >= 4 or re.fullmatch(r"[A-Z][a-z]{2,}|yes|no|Yes|No|[A-Z]{2,}", words) is not None


def same_words(gold: str, answer: str) -> bool:
    """Whether two answers are the same words, lists in any order. Case folds, but for names in capitals (points, lines):
    ``AB`` is not ``ab``."""
    first, second = _spaced(gold), _spaced(answer)
    if _CAPITALS.fullmatch(first) and first.casefold() not in _FOLDED:
        return first == second
    first, second = first.casefold(), second.casefold()
    return first == second or sorted(_LIST.split(first)) == sorted(_LIST.split(second)) != [""]


def are_words(text: str) -> bool:
    """Whether an answer has a word of four letters in it and nothing but words and numbers."""
    spaced = _spaced(text)
    return (
        re.fullmatch(r"[A-Za-z0-9' ,.:;()/-]*", spaced) is not None
        and re.search(r"[A-Za-z]{4}|[A-Z]\.[A-Z]", spaced) is not None
    )


def _spaced(text: str) -> str:
    words = " ".join(re.sub(r"\s*,\s*", ", ", plain(text)).split())
    return re.sub(r"\s*-\s*", "-", words).strip(" .\"'“”`")
