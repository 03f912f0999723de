"""Divides the time of a step among what it was spent on."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

OTHER = "other"
"""What no part has claimed."""


class Stopwatch:
    """Every moment counts for one part, so that the parts add up to the time that has passed. What runs inside a part does
    not count for the one around it, unless that is a `whole` one. It is the time of the thread that made it: parts of
    others, which run meanwhile, count for nothing."""

    def __init__(self) -> None:
        self._seconds = defaultdict[str, float](float)
        self._open: list[str] = [OTHER]
        self._whole = False
        self._since = time.monotonic()
        self._thread = threading.current_thread()

    @contextmanager
    def part(self, name: str, *, whole: bool = False) -> Iterator[None]:
        """Count the time inside for the part `name`; with `whole`, that of the parts inside as well."""
        if self._whole or threading.current_thread() is not self._thread:
            yield
            return
        self._count()
        self._open.append(name)
        self._whole = whole
        try:
            yield
        finally:
            self._count()
            self._open.pop()
            self._whole = False

    def take(self) -> dict[str, float]:
        """Return the seconds of each part since the last call, or since the start."""
        self._count()
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds

    def _count(self) -> None:
        now = time.monotonic()
        self._seconds[self._open[-1]] += now - self._since
        self._since = now
