"""The types of values that an answer may state."""

from dataclasses import dataclass
from decimal import Decimal

from sympy import Expr

from conclip.grading.regions import Region


@dataclass(frozen=True, slots=True)
class Number:
    """One value, a formula with letters included."""

    value: Expr
    decimal: Decimal | None
    """The value as it is spelled, where it is spelled as a decimal."""
    unit: str
    """The unit as the answer spells it; "%" and what follows it for percent, "" for none."""


@dataclass(frozen=True, slots=True)
class Several:
    """Values side by side: ``(1, 2]``, ``\\{1, 2\\}``, or without brackets; a single one only in braces."""

    brackets: str
    items: tuple["Reading", ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """Sides with signs between them, such as ``y = 2x`` or ``0 < x \\le 1``."""

    signs: tuple[str, ...]
    sides: tuple[str, ...]
    letters: bool = True
    """Whether single letters after numbers may be units."""


@dataclass(frozen=True, slots=True)
class Matrix:
    rows: tuple[tuple["Reading", ...], ...]


@dataclass(frozen=True, slots=True)
class Spelled:
    """An answer whose parts are compared by spelling: times, ratios, other bases, remainders, dots, systems, words."""

    notation: str
    """ratio, remainder, ...; "unread" where the answer was not understood."""
    parts: tuple["Reading | str", ...]


Reading = Number | Several | Relation | Region | Matrix | Spelled

MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
"""The same relation from the other side."""


class UnitText(str):
    """A unit as a part of an answer, which may be missing."""


def number_of(part: "Reading | str") -> Expr | None:
    """Return the value of a number; None for anything else."""
    return part.value if isinstance(part, Number) else None
