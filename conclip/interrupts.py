"""SIGINT and SIGTERM: a run stops where nothing is half-changed, and says by its exit code what stopped it.

Outside `deferred` a signal raises Interrupted at once. Inside, the first one waits for the end of the block; a second one
waits for nothing.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """The run was told to stop by `signal_number`."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number

    @property
    def exit_code(self) -> int:
        """130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signal_number


class _State:
    depth = 0
    """Blocks of `deferred` that are open."""
    waiting: int | None = None
    """The signal that waits for their end."""


def handle_signals() -> None:
    """Take over SIGINT and SIGTERM of this process, from its main thread."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _arrived)


def _arrived(number: int, _: FrameType | None) -> None:
    if _State.depth and _State.waiting is None:
        _State.waiting = number
        return
    raise Interrupted(number)


@contextmanager
def deferred() -> Iterator[None]:
    """Do a block to its end before a signal takes effect."""
    _State.depth += 1
    try:
        yield
    finally:
        _State.depth -= 1
        number = _State.waiting
        if number is not None and not _State.depth:
            _State.waiting = None
            raise Interrupted(number)
