"""The console for all output to a terminal, and the redirection of other output.

Names, questions and messages may come from other people: they are never interpreted as rich's markup, control characters
are escaped, and secrets of this process are replaced (`conclip.redact`).
"""

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from io import StringIO, TextIOWrapper
from typing import IO, Any, TextIO

from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from conclip.redact import terminal_safe

PIPED_WIDTH = 120
"""The number of columns for output to a file or a pipe; a terminal has its own."""


class OutputConsole(Console):
    """A console for text of any origin. When its reader goes away (`| head`) the run continues, and further output goes only
    to the log."""

    def __init__(self, *, file: IO[str] | None = None, width: int | None = None) -> None:
        super().__init__(file=file, width=width, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Make plain strings safe before their width is measured."""
        return super().render_str(terminal_safe(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Make everything else safe, such as `Text`."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(terminal_safe(segment.text), segment.style)

    @property
    def size(self) -> ConsoleDimensions:
        """Return the size of the terminal that is written to, wherever the standard descriptors point."""
        try:
            size = os.get_terminal_size(self.file.fileno())
        except (OSError, ValueError):
            return super().size
        return ConsoleDimensions(*size) if self._width is None and size.columns else super().size

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size

    def on_broken_pipe(self) -> None:
        self.quiet = True
        discard_output(self.file)


def discard_output(stream: IO[str] | None) -> None:
    """Discard what is still written to a stream without a reader; Python would report an error at exit otherwise. None
    stands for a standard stream that is closed."""
    if stream is None:
        return
    with open(os.devnull, "w") as nowhere, suppress(OSError, ValueError):
        os.dup2(nowhere.fileno(), stream.fileno())


def open_console(stream: TextIO | None = None) -> Console:
    """Return a console on standard output or on `stream`, without colouring of numbers."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an encoding that lacks a character must not end a run
    console = OutputConsole(file=stream)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    return console


def divert_output(log: IO[str]) -> tuple[TextIO, Callable[[], None]]:
    """Redirect what libraries and child processes print (C++ code included) to an open log file. Returns a stream that is
    still standard output, for people, and a function that restores everything; a traceback after that reaches the terminal
    again."""
    streams: dict[int, TextIO | None] = {1: sys.stdout, 2: sys.stderr}
    kept = {2: os.dup(2)} if sys.stderr is not None else {}
    screen = sys.stdout
    if _descriptor(sys.stdout) == 1:
        kept[1] = os.dup(1)
        screen = open(os.dup(1), "w", encoding=sys.stdout.encoding, errors="replace")  # noqa: SIM115  closed by restore
    elif sys.stdout is None:  # closed by the shell: nobody reads
        screen = open(os.devnull, "w")  # noqa: SIM115
    _flush(streams)
    for number in kept:
        os.dup2(log.fileno(), number)

    def restore() -> None:
        """Restore the descriptors, even if pending output cannot be written."""
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
    """Return a stream's descriptor; None for an object that has none, and for a closed stream."""
    try:
        return None if stream is None else stream.fileno()
    except (OSError, ValueError):
        return None


def as_text(renderable: RenderableType) -> str:
    """Return a table or page as plain text, with the width for pipes."""
    text = StringIO()
    OutputConsole(file=text, width=PIPED_WIDTH).print(renderable)
    return text.getvalue().rstrip("\n")
