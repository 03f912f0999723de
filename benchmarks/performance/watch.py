"""Watches the memory that a process takes with all of its children."""

import json
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

import psutil

EVERY_S = 0.5


def resident_gib(process: psutil.Process) -> float:
    """The resident memory of a process and its children, shared pages divided among those that share them."""
    found = 0
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.Error):  # it has ended
            found += one.memory_full_info().pss
    return found / 2**30


def peak_gib(command: Sequence[str], output: IO[Any] | int | None, environment: Mapping[str, str] | None = None) -> float:
    """Run a command. Returns the peak of its memory. Raises CalledProcessError where it failed."""
    peak = 0.0
    with subprocess.Popen(command, stdout=output, env=environment) as process:
        try:
            seen = psutil.Process(process.pid)
            while process.poll() is None:
                with suppress(psutil.Error):
                    peak = max(peak, resident_gib(seen))
                time.sleep(EVERY_S)
        finally:
            process.kill()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return peak


def watched(command: Sequence[str], key: str, environment: Mapping[str, str] | None = None) -> tuple[dict[str, Any], float]:
    """Run a command. Returns the JSON object that it printed on a line of its own, beginning with this key, and the peak of
    its memory [GiB]. Raises CalledProcessError where it failed, ValueError where it printed no such line."""
    with tempfile.TemporaryFile("w+") as output:
        peak = peak_gib(command, output, environment)
        output.seek(0)
        for line in output:
            if line.startswith(f'{{"{key}"'):
                return json.loads(line), peak
    raise ValueError(f"{command} printed no line with {key}")
