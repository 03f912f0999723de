"""The console every page, table and line of progress goes through."""

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import StringIO, TextIOWrapper
from pathlib import Path
from typing import IO, TextIO

from rich.console import Console, ConsoleDimensions, RenderableType

PIPED_WIDTH = 120
"""Columns where the output goes to a file or a pipe; a terminal says its own width."""


class OutputConsole(Console):
    """A reader that went away (`| head`) ends no run: what is said from then on goes to the log only."""

    @property
    def size(self) -> ConsoleDimensions:
        """Of the terminal that is written to, wherever the standard descriptors point."""
        try:
            found = os.get_terminal_size(self.file.fileno())
        except (OSError, ValueError):
            return super().size
        return ConsoleDimensions(*found) if self._width is None and found.columns else super().size

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size

    def on_broken_pipe(self) -> None:
        self.quiet = True
        leave(self.file)


def leave(stream: IO[str]) -> None:
    """Send what is still written to a stream without a reader nowhere, or Python would complain of it at its end."""
    with open(os.devnull, "w") as nowhere, suppress(OSError, ValueError):
        os.dup2(nowhere.fileno(), stream.fileno())


def open_console(stream: TextIO | None = None) -> Console:
    """Standard output, or another stream of it, without colouring of numbers."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an encoding without some sign must not end a run
    console = OutputConsole(file=stream, highlight=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    return console


def divert_output(log: Path) -> tuple[TextIO, Callable[[], None]]:
    """Send what libraries and child processes print (C++ code included) to a log file. Returns the stream that still is
    standard output, for people, and what puts everything back; a traceback after that reaches the terminal again."""
    streams: dict[int, TextIO | None] = {1: sys.stdout, 2: sys.stderr}
    kept = {2: os.dup(2)} if sys.stderr is not None else {}
    screen = sys.stdout
    if _descriptor(sys.stdout) == 1:
        kept[1] = os.dup(1)
        screen = open(os.dup(1), "w", encoding=sys.stdout.encoding, errors="replace")  # noqa: SIM115  closed by restore
    elif sys.stdout is None:  # closed by the shell: nobody reads
        screen = open(os.devnull, "w")  # noqa: SIM115
    _flush(streams)
    with log.open("ab") as file:
        for number in kept:
            os.dup2(file.fileno(), number)

    def restore() -> None:
        """Whatever becomes of what was not written yet."""
        with suppress(OSError, ValueError):
            if screen is not sys.stdout:
                screen.close()
        _flush(streams)
        for number, copy in kept.items():
            os.dup2(copy, number)
            os.close(copy)

    return screen, restore


def _flush(streams: Mapping[int, TextIO | None]) -> None:
    for stream in streams.values():
        with suppress(OSError, ValueError):
            if stream is not None:
                stream.flush()


def _descriptor(stream: TextIO | None) -> int | None:
    """None for what only stands in for a file, and for a stream that is closed."""
    try:
        return None if stream is None else stream.fileno()
    except (OSError, ValueError):
        return None


def as_text(renderable: RenderableType) -> str:
    """A table or page as plain text, as wide as in a pipe."""
    written = StringIO()
    Console(file=written, width=PIPED_WIDTH, highlight=False).print(renderable)
    return written.getvalue().rstrip("\n")
