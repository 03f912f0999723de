"""Finds where brackets open and close in an answer, and what is between its commas."""

import re

from conclip.grading.spelling import closing


def split(text: str, separators: str, *, thousands: bool = True) -> list[str]:
    """Split a text at separators outside of brackets. A comma between thousands separates nothing."""
    parts, begin, depth = [], 0, 0
    for position, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif depth == 0 and character in separators:
            if thousands and character == "," and _between_thousands(text, position):
                continue
            parts.append(text[begin:position].strip())
            begin = position + 1
    parts.append(text[begin:].strip())
    present = [part for part in parts if part]
    return present or [""]


def _between_thousands(text: str, comma: int) -> bool:
    return (
        re.match(r"\d{3}(?!\d)", text[comma + 1 :]) is not None
        and re.search(r"(?<![\d.])[1-9]\d{0,2}(?:,\d{3})*$", text[:comma]) is not None
    )


def in_brackets(text: str) -> tuple[str, str, str] | None:
    """Return (opening, content, closing) of a text that one pair of brackets holds; braces may be escaped."""
    for opening in ("\\{", "(", "[", "{"):
        if text.startswith(opening):
            end = closing(text, len(opening) - 1)
            if end is not None and end == len(text) - 1:
                escaped = len(opening) > 1 and text[end - 1] == "\\"
                return opening[-1], text[len(opening) : end - escaped], text[end]
    return None
