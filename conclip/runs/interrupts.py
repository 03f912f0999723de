"""SIGINT, SIGTERM and SIGHUP: a run stops where nothing is half-changed, and says by its exit code what stopped it.

Outside `deferred` a signal raises Interrupted at once. Inside, the first one waits for the end of the block; any later one
waits for nothing.
"""

import ctypes
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What stops a run; those of its child processes leave them to it."""


_LIBC = ctypes.CDLL(None)
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


class Interrupted(KeyboardInterrupt):
    """The run was told to stop by `signal_number`."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number

    @property
    def exit_code(self) -> int:
        """130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + self.signal_number


class _State:
    depth = 0
    """Blocks of `deferred` that are open."""
    waiting: int | None = None
    """The signal that waits for their end."""
    raised = False
    """Whether one has taken effect: the run is being stopped."""


def handle_signals() -> None:
    """Take over the signals of this process, from its main thread; SIGHUP not under nohup."""
    _State.raised = False
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _arrived)


def _arrived(number: int, _: FrameType | None) -> None:
    if _State.depth and _State.waiting is None and not _State.raised:
        _State.waiting = number
        return
    _State.raised = True
    raise Interrupted(number)


def end_with_parent() -> None:
    """In a child process, before it runs its program: a parent that dies, however it does, ends it by SIGTERM (Linux)."""
    _LIBC.prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)


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
            _State.waiting, _State.raised = None, True
            raise Interrupted(number)
