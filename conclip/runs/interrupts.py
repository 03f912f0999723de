"""Handling of SIGINT, SIGTERM and SIGHUP: a run stops in a consistent state, and its exit code names the signal.

Outside `deferred` a signal raises Interrupted at once. Inside, the first one waits for the end of the block; any later one
takes effect at once.
"""

import ctypes
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that stop a run; its child processes ignore them."""


_LIBC = ctypes.CDLL(None)
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


class Interrupted(KeyboardInterrupt):
    """The signal `signal_number` stopped the run."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number

    @property
    def exit_code(self) -> int:
        """Return 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + self.signal_number


class _State:
    depth = 0
    """The number of open `deferred` blocks."""
    pending: int | None = None
    """The signal that waits for the end of these blocks."""
    raised = False
    """Whether a signal has taken effect, so that the run is stopping."""


def handle_signals() -> None:
    """Install the signal handlers, in the main thread; under nohup SIGHUP stays ignored."""
    _State.raised = False
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)


def _handle(number: int, _: FrameType | None) -> None:
    if _State.depth and _State.pending is None and not _State.raised:
        _State.pending = number
        return
    _State.raised = True
    raise Interrupted(number)


def ignore_signals() -> None:
    """Leave the signals, which are sent to all processes of a run, to the one that decides what follows."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Make the kernel send this child process a signal when its parent dies (Linux). Call it before the child runs its
    program."""
    _LIBC.prctl(_PARENT_DEATH_SIGNAL, number)


def strike() -> None:
    """Let a signal that waits for the end of a `deferred` block take effect now: for a long wait inside one that may remain
    incomplete."""
    number = _State.pending
    if number is not None:
        _State.pending, _State.raised = None, True
        raise Interrupted(number)


@contextmanager
def deferred() -> Iterator[None]:
    """Complete a block before a signal takes effect. Signals reach the main thread alone: in others it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _State.depth += 1
    try:
        yield
    finally:
        _State.depth -= 1
        if not _State.depth:
            strike()
