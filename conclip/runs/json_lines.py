"""The one reader of JSON lines: data sets, pass rates, evaluation rows, metrics and questions all go through it."""

import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from conclip.runs.files import read_plain

CutLine = Literal["read", "drop"]
"""The policy for a last line without a line end. `drop` is for files that conclip appends to: a killed writer may have left
part of a line. `read` is for files of other programs, which often omit the last line end."""

Damaged = Literal["raise", "skip"]


class DamagedLine(ValueError):
    """A line is not JSON, or is nested too deeply; the cause is the parser's error."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.number = number
        """The line's number, counted from 1."""


def json_lines(
    lines: Iterable[str],
    *,
    cut_line: CutLine,
    damaged: Damaged = "raise",
    parse: Callable[[str], Any] = json.loads,
) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of each line that is not blank; numbers count all lines from 1.

    `lines` keep their line ends, as those of an open file do. Raises DamagedLine unless `damaged` is "skip".
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (cut_line == "drop" and not line.endswith("\n")):
            continue
        try:
            value = parse(line)
        except (ValueError, RecursionError) as error:
            if damaged == "skip":
                continue
            raise DamagedLine(number, str(error)) from error
        yield number, value


def run_lines(path: Path, *, errors: Literal["surrogateescape", "replace"] = "surrogateescape") -> Iterable[str]:
    """Return the lines of a UTF-8 file in a run folder, with their line ends; none where there is no file. `errors` is the
    decoder's policy for invalid bytes. Only a newline ends a line: responses may contain other line ends (such as
    U+2028)."""
    return io.StringIO((read_plain(path) or b"").decode("utf-8", errors=errors), newline="\n")
