"""Values that stand in files of other people, in place of those that should."""

import copy
from collections.abc import Iterator
from typing import Any

JUNK: tuple[Any, ...] = (
    None,
    5,
    -1,
    2.5,
    "x",
    "",
    [],
    [1],
    {},
    {"a": 1},
    True,
    10**30,
    float("nan"),
    float("inf"),
    "[/x]\x1b",
    "\ud800",
)


def places(value: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value in nested ones; of a list, the first item only."""
    yield prefix
    for key, item in list(
        value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else []
    ):
        yield from places(item, (*prefix, key))


def changed(value: Any, place: tuple[Any, ...], junk: Any) -> Any:
    if not place:
        return junk
    value = copy.deepcopy(value)
    inner = value
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = junk
    return value
