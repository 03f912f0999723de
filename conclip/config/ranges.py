"""Ranges of config keys, written beside their types in the schema: `Annotated[float, above(0)]`."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, cast, get_args, get_origin

from conclip.errors import UserError


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`; an open end is no part of it."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False
    why: str = ""
    """Text after the range in the error: a reason, or an example."""
    wording: str = ""
    """Other wording of the range; empty for the default."""

    def contains(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        return above and (value < self.high if self.high_open else value <= self.high)

    def __str__(self) -> str:
        if self.wording:
            return self.wording
        if math.isinf(self.high):
            return f"{'above' if self.low_open else 'at least'} {self.low:g}"
        return f"in {'(' if self.low_open else '['}{self.low:g}, {self.high:g}{')' if self.high_open else ']'}"

    @property
    def requirement(self) -> str:
        """The requirement as an error states it: "must be at least 1"."""
        verb = "lie" if str(self).startswith("in ") else "be"
        return f"must {verb} {self}{self.why}"


MAX_COUNT = 2**53
"""The whole numbers of a config are smaller, so that a float holds each."""


def at_least(low: float) -> Range:
    return Range(low=low)


def above(low: float) -> Range:
    return Range(low=low, low_open=True)


NON_NEGATIVE = Range(low=0, wording="0 or more")
SHARE = Range(low=0, high=1)
"""[0, 1]"""
POSITIVE_SHARE = replace(SHARE, low_open=True)
"""(0, 1]"""
SHARE_BELOW_ONE = replace(SHARE, high_open=True)
"""[0, 1)"""

TEMPERATURE = Range(low=0.01, high=2, why=": vLLM samples at no other, and greedy responses do not vary")
"""[0.01, 2]: vLLM refuses higher ones, and takes 0.01 for lower ones without an error."""


def range_of(annotation: Any) -> Range | None:
    """Return the range of an annotated type; None where it has none."""
    ranges = (
        (part for part in get_args(annotation) if isinstance(part, Range)) if get_origin(annotation) is Annotated else ()
    )
    return next(iter(ranges), None)


def check_ranges(config: Any) -> None:
    """Raise UserError naming the first key of a config, or of its groups, that is out of its range. null lies in every
    range: where a key cannot be null, its type refuses it."""
    for key, annotation, value in _values(config):
        limits = range_of(annotation)
        if limits is not None and value is not None and not limits.contains(value):
            null = ", or null" if type(None) in get_args(get_args(annotation)[0]) else ""
            raise UserError(f"config key '{key}' {limits.requirement}{null}, got {value}")


def require(condition: bool, key: str, message: str) -> None:
    """Raise UserError, which names the key, unless the condition holds."""
    if not condition:
        raise UserError(f"config key '{key}' {message}")


def _values(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted key, type, value) of every field, in the order of the schema."""
    for item in dataclasses.fields(config):
        key, value = f"{prefix}{item.name}", getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            yield from _values(value, f"{key}.")
        elif isinstance(value, dict):
            for name, entry in cast(dict[str, Any], value).items():
                if dataclasses.is_dataclass(entry):
                    yield from _values(entry, f"{key}.{name}.")
        else:
            yield key, item.type, value
