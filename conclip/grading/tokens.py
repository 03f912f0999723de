"""The tokens of a LaTeX formula, and the place up to which they were read."""

import re

from conclip.grading.functions import Unreadable

_TOKEN = re.compile(
    r"\s*(?:(?P<number>[1-9]\d{0,2}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+\.?\d*|\.\d+)"
    r"|(?P<command>\\(?:[a-zA-Z]+|.))|(?P<other>.))",
    re.DOTALL,
)


class Tokens:
    """Numbers, commands and single characters, as (kind, text), from left to right."""

    def __init__(self, text: str) -> None:
        self.tokens = [(group, match[group]) for match in _TOKEN.finditer(text.strip()) if (group := match.lastgroup)]
        self.at = 0

    def here(self, ahead: int = 0) -> str:
        """Return the token to read next; "" at the end."""
        index = self.at + ahead
        return self.tokens[index][1] if index < len(self.tokens) else ""

    def is_number(self, ahead: int = 0) -> bool:
        index = self.at + ahead
        return index < len(self.tokens) and self.tokens[index][0] == "number"

    def take(self, expected: str | None = None) -> str:
        """Return the token to read next and pass it. Raises Unreadable at the end, and where it is not the expected one."""
        token = self.here()
        if not token or (expected is not None and token != expected):
            raise Unreadable(f"expected {expected or 'more'}, found '{token}'")
        self.at += 1
        return token
