"""The console every page, table and line of progress goes through."""

from rich.console import Console

PIPED_WIDTH = 120
"""Columns where the output goes to a file or a pipe; a terminal says its own width."""


def open_console() -> Console:
    """Standard output, without colouring of numbers."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    return console
