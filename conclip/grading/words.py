r"""Compares answers in words: names, days, yes and no, lists of them."""

import re

from conclip.grading.spelling import STYLED, plain

_TEXT = re.compile(r"\(?[A-Za-z][A-Za-z0-9' ,.()-]*")
_CAPITALS = re.compile(r"[A-Z]{2,}")
_FOLDED = frozenset({"yes", "no", "true", "false", "none", "dne", "odd", "even"})
_ARTICLE = re.compile(r"^(?:an?|the)\s+(?=\w{2})")
_SYNONYMS = {
    name: names[0]
    for names in (
        (
            "dne",
            "does not exist",
            "undefined",
            "not defined",
            "doesn't exist",
            "limit does not exist",
            "the limit does not exist",
            "d.n.e",
        ),
        ("infinitely many", "infinitely many solutions", "infinite", "infinitely many of them"),
        ("no solution", "no solutions", "no real solution", "no real solutions"),
    )
    for name in names
}
_VERDICT = re.compile(r"(yes|no|true|false)\s*(?:[,;.:!-]|because\b|since\b)", re.IGNORECASE)
_names = str.split
_DIGITS = _names(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = _names("twenty thirty forty fifty sixty seventy eighty ninety")
_NUMERALS = (
    {word: number for number, word in enumerate(_DIGITS)}
    | {ten: 10 * n for n, ten in enumerate(_TENS, start=2)}
    | {f"{ten}-{one}": 10 * n + d for n, ten in enumerate(_TENS, start=2) for d, one in enumerate(_DIGITS[:10]) if d}
    | {"a dozen": 12, "one hundred": 100, "a hundred": 100, "one thousand": 1000, "a thousand": 1000}
)
_SHORT_WORDS = frozenset(_names("odd red tie win yes dog cat boy one two six ten may sun mon tue wed thu fri sat"))
"""Words of three letters, which would otherwise be read as products."""

_LIST = re.compile(r"\s*(?:,\s*(?:and|or)\s|,|;|\band\b|\bor\b)\s*")


def is_text(gold: str) -> bool:
    r"""Return whether a cleaned gold answer is words and no formula: whole in ``\text{}``, of four letters or more, or a
    name."""
    words = _spaced(gold)
    if not _TEXT.fullmatch(words) or not re.search(r"[A-Za-z]{2}", words):
        return False
    if STYLED.fullmatch(gold.strip()):
        return True
    if re.search(r"\d", words):
        return False
    return (
        len(words) >= 4
        or re.fullmatch(r"[A-Z][a-z]{2,}|yes|no|Yes|No|[A-Z]{2,}", words) is not None
        or words.casefold() in _SHORT_WORDS
    )


def same_words(gold: str, answer: str) -> bool:
    """Return whether two answers are the same words, lists in any order. Case folds, but for names in capitals (points,
    lines): ``AB`` is not ``ab``."""
    first, second = _spaced(gold), _spaced(answer)
    if _CAPITALS.fullmatch(first) and first.casefold() not in _FOLDED:
        return first == second
    first, second = (_ARTICLE.sub("", _SYNONYMS.get(text.casefold(), text.casefold())) for text in (first, second))
    return first == second or sorted(_LIST.split(first)) == sorted(_LIST.split(second)) != [""]


def numeral(text: str) -> int | None:
    """Return the number that a text spells out (``twelve``, ``forty-two``); None for other texts."""
    words = _spaced(text).casefold()
    return _NUMERALS.get(words, _NUMERALS.get(words.replace(" ", "-")))


def verdict(text: str) -> str | None:
    """Return the yes or no that a sentence begins with; None where it begins otherwise."""
    match = _VERDICT.match(_spaced(text) + ".")
    opposite = {"yes": "no", "no": "yes", "true": "false", "false": "true"}
    is_clear = match is not None and opposite[match[1].casefold()] not in re.findall(r"[a-z]+", text.casefold())
    return match[1].casefold() if match and is_clear else None


def are_words(text: str) -> bool:
    """Return whether an answer has a word of four letters in it and nothing but words and numbers."""
    spaced = _spaced(text)
    return (
        re.fullmatch(r"[A-Za-z0-9' ,.:;()/-]*", spaced) is not None
        and re.search(r"[A-Za-z]{4}|[A-Z]\.[A-Z]", spaced) is not None
    )


def _spaced(text: str) -> str:
    words = " ".join(re.sub(r"\s*,\s*", ", ", plain(text)).split())
    return re.sub(r"\s*-\s*", "-", words).strip(" .\"'“”`")
