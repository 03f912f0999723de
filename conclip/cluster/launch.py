"""Starts the processes that a run is divided among, and finds out which of them have ended."""

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from conclip.errors import UserError, explain
from conclip.processes import protect_children
from conclip.runs.interrupts import SIGNALS


class Worker:
    """A process that runs a function until it returns, or the run ends."""

    def __init__(self, name: str, work: Callable[..., None], *arguments: Any) -> None:
        """Start it. `work`: a module-level function. `name`: what error messages call it."""
        protect_children()
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, child_end = context.Pipe(duplex=False)
        self._process = context.Process(target=_work, args=(child_end, work, arguments), daemon=True)
        self._process.start()
        child_end.close()

    def failure(self, wait_s: float = 0.0) -> str | None:
        """Return how the process ended, in one line; None while it runs. Raises UserError for bad input that it met, and
        RuntimeError for a bug."""
        self._process.join(wait_s)
        if self._process.is_alive():
            return None
        kind, text = "", ""
        try:
            if self._pipe.poll():
                kind, text = self._pipe.recv()
        except (EOFError, OSError):
            pass
        if kind == "refused":
            raise UserError(text)
        if kind == "bug":
            raise RuntimeError(f"in {self.name}: {text}")
        return f"{self.name} failed: {text}" if text else f"{self.name} is gone (exit code {self._process.exitcode})"

    def end(self, wait_s: float = 0.0) -> None:
        """Wait so long for the process to end by itself, then kill it."""
        self._process.join(wait_s)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()


def _work(pipe: Connection, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Run the process. An error that ends it is sent as ("refused" | "failed" | "bug", text)."""
    for number in SIGNALS:  # sent to the whole process group; the run handles them
        signal.signal(number, signal.SIG_IGN)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  open for the process's whole life
    try:
        work(*arguments)
    except UserError as error:
        pipe.send(("refused", str(error)))
    except Exception as error:
        message = explain(error)
        pipe.send(("failed", message) if message is not None else ("bug", traceback.format_exc()))
