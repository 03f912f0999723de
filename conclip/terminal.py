"""The console every page, table and line of progress goes through."""

import os
import sys
from io import StringIO, TextIOWrapper

from rich.console import Console, RenderableType

PIPED_WIDTH = 120
"""Columns where the output goes to a file or a pipe; a terminal says its own width."""


class OutputConsole(Console):
    """A reader that went away (`| head`) ends no run: what is said from then on goes to the log only."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def open_console() -> Console:
    """Standard output, without colouring of numbers."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an encoding without some sign must not end a run
    console = OutputConsole(highlight=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    return console


def as_text(renderable: RenderableType) -> str:
    """A table or page as plain text, as wide as in a pipe."""
    written = StringIO()
    Console(file=written, width=PIPED_WIDTH, highlight=False).print(renderable)
    return written.getvalue().rstrip("\n")
