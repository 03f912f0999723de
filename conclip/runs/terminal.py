"""The console every page, table and line of progress goes through, and what else reaches a terminal.

Names, questions and messages may come from other people: nothing in them is taken for rich's markup, control characters are
written out, and secrets of this process are replaced (`conclip.redact`).
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
"""Columns where the output goes to a file or a pipe; a terminal says its own width."""


class OutputConsole(Console):
    """A console for text of any origin. A reader that went away (`| head`) ends no run: what is said from then on goes to
    the log only."""

    def __init__(self, *, file: IO[str] | None = None, width: int | None = None) -> None:
        super().__init__(file=file, width=width, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Before its width is taken."""
        return super().render_str(terminal_safe(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Whatever did not come as a plain string, `Text` say."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(terminal_safe(segment.text), segment.style)

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
    console = OutputConsole(file=stream)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    return console


def divert_output(log: IO[str]) -> tuple[TextIO, Callable[[], None]]:
    """Send what libraries and child processes print (C++ code included) to an open log file. Returns the stream that still
    is standard output, for people, and what puts everything back; a traceback after that reaches the terminal again."""
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
    OutputConsole(file=written, width=PIPED_WIDTH).print(renderable)
    return written.getvalue().rstrip("\n")
