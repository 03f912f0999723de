"""Unions of intervals of real numbers: what intervals, inequalities and sets of reals have in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import sympy
from sympy import Expr

from conclip.grading import equality

Interval = tuple[Expr, Expr, bool, bool]
"""Left end, right end, and whether each belongs to it."""


@dataclass(frozen=True, slots=True)
class Region:
    """Disjoint intervals from left to right."""

    intervals: tuple[Interval, ...]


ALL = Region(((-sympy.oo, sympy.oo, False, False),))
"""All real numbers."""


def complement(region: Region) -> Region | None:
    """Return the real numbers outside of a region; None where an end is no real number."""
    if any(end.free_symbols or not end.is_extended_real for interval in region.intervals for end in interval[:2]):
        return None
    rest: list[Interval] = []
    end, end_in = cast(Expr, -sympy.oo), False
    for left, right, left_in, right_in in region.intervals:
        if left > end or (left == end and end_in and not left_in):
            rest.append((end, left, end_in, not left_in and left != -sympy.oo))
        end, end_in = right, not right_in
    if end != sympy.oo:
        rest.append((end, sympy.oo, end_in, False))
    return Region(tuple(rest))


def mapped(region: Region, slope: Expr, shift: Expr) -> Region:
    """Return the numbers x for which slope x + shift lies in a region."""
    ends = [((a - shift) / slope, (b - shift) / slope, a_in, b_in) for a, b, a_in, b_in in region.intervals]
    if slope.is_negative:
        ends = [(b, a, b_in, a_in) for a, b, a_in, b_in in reversed(ends)]
    return Region(tuple(ends))


def union_of(intervals: Sequence[Interval]) -> Region | None:
    """Return the intervals sorted, and joined where they touch; None where an end is no real number."""
    if any(end.free_symbols or not end.is_extended_real for interval in intervals for end in interval[:2]):
        return None
    joined: list[Interval] = []
    for left, right, left_in, right_in in sorted(intervals, key=lambda i: (sympy.N(i[0], 30), not i[2])):
        if joined and (left < joined[-1][1] or (equality.equal(left, joined[-1][1]) and (left_in or joined[-1][3]))):
            before = joined[-1]
            if right > before[1]:
                joined[-1] = (before[0], right, before[2], right_in)
            elif right == before[1]:
                joined[-1] = (*before[:3], before[3] or right_in)
        else:
            joined.append((left, right, left_in, right_in))
    return Region(tuple(joined))


def same_region(first: Region, second: Region) -> bool:
    """Return whether both hold the same numbers."""
    return len(first.intervals) == len(second.intervals) and all(
        _same_end(a[0], b[0]) and _same_end(a[1], b[1]) and a[2:] == b[2:]
        for a, b in zip(first.intervals, second.intervals, strict=True)
    )


def _same_end(first: Expr, second: Expr) -> bool:
    if sympy.oo in (first, second) or -sympy.oo in (first, second):
        return first == second
    return equality.equal(first, second)


def intersection(first: Region, second: Region) -> Region | None:
    """Return what belongs to both regions; None where an end is no real number."""
    common: list[Interval] = []
    for a in first.intervals:
        for b in second.intervals:
            left, left_in = (a[0], a[2] and (b[2] or b[0] < a[0])) if a[0] >= b[0] else (b[0], b[2])
            right, right_in = (a[1], a[3] and (b[3] or b[1] > a[1])) if a[1] <= b[1] else (b[1], b[3])
            if left < right or (left == right and left_in and right_in):
                common.append((left, right, bool(left_in), bool(right_in)))
    return union_of(common)
