"""The console every page, table and line of progress goes through."""

import os
import sys
from collections.abc import Callable
from io import StringIO, TextIOWrapper
from pathlib import Path
from typing import IO, TextIO

from rich.console import Console, RenderableType

PIPED_WIDTH = 120
"""Columns where the output goes to a file or a pipe; a terminal says its own width."""


class OutputConsole(Console):
    """A reader that went away (`| head`) ends no run: what is said from then on goes to the log only."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        leave(self.file)


def leave(stream: IO[str]) -> None:
    """Send what is still written to a stream without a reader nowhere, or Python would complain of it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


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
    sys.stderr.flush()
    kept, screen = {2: os.dup(2)}, sys.stdout
    if _descriptor(sys.stdout) == 1:
        sys.stdout.flush()
        kept[1] = os.dup(1)
        screen = open(os.dup(1), "w", encoding=sys.stdout.encoding, errors="replace")  # noqa: SIM115  closed by restore
    with log.open("ab") as file:
        for number in kept:
            os.dup2(file.fileno(), number)

    def restore() -> None:
        if screen is not sys.stdout:
            screen.close()
        for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
            if number in kept:
                stream.flush()
                os.dup2(kept[number], number)
                os.close(kept[number])

    return screen, restore


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
