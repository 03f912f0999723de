"""Starts the processes that a run is divided among, here or, by another `Launcher`, on other hosts."""

import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from conclip.errors import UserError, explain
from conclip.processes import end_at_once, protect_children
from conclip.runs.interrupts import ignore_signals

SHARED_S = 30.0
"""The longest that a network's file system takes to show what another host has made [s]."""


class Process(Protocol):
    """A process that a launcher has started, as `multiprocessing` has it."""

    @property
    def pid(self) -> int | None: ...

    @property
    def exitcode(self) -> int | None: ...

    def is_alive(self) -> bool: ...

    def join(self, timeout: float | None = None) -> None: ...

    def kill(self) -> None: ...


class Launcher(Protocol):
    """Starts processes somewhere."""

    host: str
    """The address at which they reach this one."""

    def start(
        self, work: Callable[..., None], arguments: tuple[Any, ...], *, num_gpus: int, daemon: bool = True
    ) -> tuple[Process, Connection]:
        """Start a process that runs `work(connection, *arguments)`, a module-level function. Returns it and the other end of
        the connection. `daemon=False`: it may start processes itself."""
        ...

    def carried(self, process: Process, folder: Path) -> Path:
        """Return the folder, or a copy of it, where the process can read it. A copy replaces the one before."""
        ...

    def release(self, process: Process) -> None:
        """Give back what a process that has ended held where it ran."""
        ...

    def close(self) -> None:
        """End all that is left."""
        ...


class Local:
    """Starts processes on this host. Which GPU each takes is its own matter."""

    host = "127.0.0.1"

    def start(
        self, work: Callable[..., None], arguments: tuple[Any, ...], *, num_gpus: int, daemon: bool = True
    ) -> tuple[Process, Connection]:
        protect_children()
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(work, there, *arguments), daemon=daemon)
        process.start()
        there.close()
        return process, here

    def carried(self, process: Process, folder: Path) -> Path:
        return folder

    def release(self, process: Process) -> None: ...

    def close(self) -> None: ...


def _work(work: Callable[..., None], *arguments: Any) -> None:
    """Run the process that `Local` starts."""
    work(*arguments)
    end_at_once()


class Worker:
    """A process that runs a function until it returns, or the run ends."""

    def __init__(self, name: str, launcher: Launcher, work: Callable[..., None], *arguments: Any, num_gpus: int = 0) -> None:
        """Start it. `work`: a module-level function. `name`: what error messages call it."""
        self.name, self._launcher = name, launcher
        self._process, self._pipe = launcher.start(_report, (work, arguments), num_gpus=num_gpus)
        self._told = "", ""

    def failure(self) -> str | None:
        """Return how the process ended, in one line; None while it runs. Raises UserError for bad input that it met, and
        RuntimeError for a bug."""
        is_alive = self._process.is_alive()  # first: what it said before it ended is in the pipe by then
        with suppress(EOFError, OSError):
            if self._pipe.poll():  # it may take long to end after that
                self._told = self._pipe.recv()
        kind, text = self._told
        raise_if_ours(kind, text, self.name)
        if text:
            return f"{self.name} failed: {text}"
        return None if is_alive else f"{self.name} is gone ({ending(self._process)})"

    def end(self, wait_s: float = 0.0) -> None:
        """Wait so long for the process to end by itself, then kill it."""
        self._process.join(wait_s)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()
        self._launcher.release(self._process)


def _report(pipe: Connection, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Run a worker's process. An error that ends it is sent as `told` returns it."""
    detach()
    try:
        work(*arguments)
    except Exception as error:
        pipe.send(told(error))


def told(error: Exception) -> tuple[str, str]:
    """Return an error as one process tells another: ("refused", text) for bad input, ("failed", text) for a machine failure,
    or ("bug", traceback)."""
    if isinstance(error, UserError):
        return "refused", str(error)
    message = explain(error)
    return ("failed", message) if message is not None else ("bug", "".join(traceback.format_exception(error)))


def raise_if_ours(kind: str, text: str, where: str) -> None:
    """Raise what `told` has told if it is bad input, as a UserError, or a bug, as a RuntimeError."""
    if kind == "refused":
        raise UserError(text)
    if kind == "bug":
        raise RuntimeError(f"in {where}: {text}")


def ending(process: Process) -> str:
    """Return how a process has ended, in a few words."""
    code = process.exitcode
    return "its host is lost" if code is None else f"exit code {code}"


def was_killed(exitcode: int | None) -> bool:
    """Return whether a process that has ended was killed, or its host lost: started again, it may do better. One that has
    ended by itself would end so again."""
    return exitcode in (None, -signal.SIGKILL)


def check_there(model: Path) -> None:
    """Raise UserError where this host does not see the folder of a model."""
    if not model.is_dir():
        raise UserError(
            f"'{model}' is not there on host '{socket.gethostname()}': each host of a cluster needs the model in the same "
            "place, and those of the learner share the folder of the run (paths.outputs)"
        )


def check_shared(folder: Path) -> None:
    """Raise UserError where this host does not see a folder that the first rank has made in that of the run."""
    deadline = time.monotonic() + SHARED_S
    while not folder.is_dir():
        if time.monotonic() > deadline:
            raise UserError(
                f"'{folder}' is not there on host '{socket.gethostname()}': the hosts of a learner must share the folder of "
                "the run (paths.outputs)"
            )
        time.sleep(0.1)


def detach() -> None:
    """Leave signals and the terminal to the process that started this one."""
    ignore_signals()
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  open for the process's whole life
