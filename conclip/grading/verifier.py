"""Verifiers: functions of the user's own that judge responses where comparing a final answer with a gold one cannot, as with
code that must pass tests.

`FILE.py:FUNCTION` names one. It is called as ``function(response, answer)``, both texts: the response without its thinking
part, and the answer column of the problem's row. It returns True for a right response, False for a wrong one, and None for
one without an answer. Only the grader's workers run it, within their limits.
"""

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Any

from conclip.errors import MachineFailure, UserError
from conclip.grading.limits import CPU_S, LOAD_CPU_S, allow_cpu_seconds, limit_memory
from conclip.processes import PYTHON
from conclip.redact import one_line
from conclip.runs.files import expanded
from conclip.types import Outcome, Verifier

CHECK_LIMIT_S = 60.0
"""Time a verifier may take to load and to judge the two responses of a check."""

NO_ANSWER = "I do not know."
"""A response that no verifier should fail on."""


def find_verifier(key: str, name: str) -> Verifier:
    """Return the verifier that a user names, unchecked. Raises UserError, which begins with `key`, where there is no such
    file."""
    file, separator, function = name.rpartition(":")
    path = expanded(file).absolute()
    if not separator or path.suffix != ".py" or not function.isidentifier():
        raise UserError(f"{key}: '{name}' names no function; write it as FILE.py:FUNCTION")
    if not path.is_file():
        raise UserError(f"{key}: no file '{path}'")
    return Verifier(file=str(path), function=function, sha256=_digest(path.read_bytes()))


def check_unchanged(verifier: Verifier) -> None:
    """Raise MachineFailure unless the file of a verifier is the one that the run began with."""
    try:
        is_same = _digest(Path(verifier.file).read_bytes()) == verifier.sha256
    except OSError:
        is_same = False
    if not is_same:
        raise MachineFailure(
            f"verifier {verifier.function}: '{verifier.file}' is gone, or has changed since the command began; put it back "
            "and give the same command again, or begin anew with another"
        )


def check_verifier(key: str, verifier: Verifier, answer: str) -> None:
    """Try a verifier on two responses, one without an answer and one that repeats a problem's `answer`, in a process with a
    worker's limits. Raises UserError, which begins with `key`, where it fails or returns what is no verdict."""
    asked = json.dumps([asdict(verifier), answer])
    command = [*PYTHON, "-m", "conclip.grading.verifier"]
    try:
        tried = subprocess.run(command, input=asked, capture_output=True, text=True, errors="replace", timeout=CHECK_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{key}: {verifier.function} did not judge '{NO_ANSWER}', and a response that repeats the answer, in "
            f"{CHECK_LIMIT_S:g} s"
        ) from None
    if tried.returncode == -signal.SIGXCPU:
        raise UserError(
            f"{key}: {verifier.function} takes more processor time than it has: {LOAD_CPU_S} s to load, {CPU_S} s a response"
        )
    if tried.returncode != 0:
        reason = (tried.stderr.strip().splitlines() or [f"its process ended with {tried.returncode}"])[-1]
        raise UserError(f"{key}: {verifier.function} cannot be used: {reason}")


def verify(verifier: Verifier, response: str, answer: str, *, cpu_limit_s: int) -> Outcome:
    """Return a verifier's verdict on a response. Raises what it raises, an exit as RuntimeError, and TypeError where it
    returns no verdict."""
    content = Path(verifier.file).read_bytes()
    if _digest(content) != verifier.sha256:
        raise ValueError("the file has changed")  # the grader ends the run
    try:
        allow_cpu_seconds(LOAD_CPU_S)
        function = _load(verifier, content)
        allow_cpu_seconds(cpu_limit_s)
        verdict = function(response, answer)
    except SystemExit as exit_:
        raise RuntimeError("it ends the process (sys.exit)") from exit_
    if verdict is None:
        return Outcome.NO_ANSWER
    if hasattr(verdict, "__float__") and float(verdict) in (0.0, 1.0):  # of numpy and torch, too
        return Outcome.CORRECT if verdict else Outcome.WRONG
    raise TypeError(f"{verifier.function} returned {verdict!r:.60}, not True (right), False (wrong) or None (no answer)")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@cache
def _load(verifier: Verifier, content: bytes) -> Callable[[str, str], Any]:
    """Return the function from the content of the file. Modules beside the file can be imported."""
    folder = str(Path(verifier.file).parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = ModuleType(f"verifier_{verifier.sha256}")
    module.__file__ = verifier.file
    sys.modules[module.__name__] = module
    exec(compile(content, verifier.file, "exec"), module.__dict__)
    if not callable(function := getattr(module, verifier.function, None)):
        raise AttributeError(f"{Path(verifier.file).name} has no function '{verifier.function}'")
    return function


def describe_error(error: Exception, verifier: Verifier) -> str:
    """Return what a verifier raised, and in which line of its file."""
    raised = error.__cause__ if isinstance(error.__cause__, SystemExit) else error
    lines = [frame.lineno for frame in extract_tb(raised.__traceback__) if frame.filename == verifier.file]
    if isinstance(error, SyntaxError) and error.filename == verifier.file:
        lines.append(error.lineno)
    where = f" ({Path(verifier.file).name}, line {lines[-1]})" if lines else ""
    return one_line(f"{type(error).__name__}: {error}") + where


def main() -> None:
    limit_memory()
    named, answer = json.load(sys.stdin)
    verifier = Verifier(**named)
    try:
        for response in (NO_ANSWER, answer):
            verify(verifier, response, answer, cpu_limit_s=CPU_S)
    except Exception as error:
        sys.exit(describe_error(error, verifier))


if __name__ == "__main__":
    main()
