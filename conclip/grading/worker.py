"""One grader process: it reads questions (`conclip.grading.worker_process.Question`) as lines of JSON, and writes a line
``[outcome, error]`` for each. The error is what a verifier raised, else null.

The kernel limits its memory, and its processor time for each answer. An answer that exceeds the limits ends the process,
which the parent notices. The end of its input ends it, too.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TextIO

import psutil

from conclip.grading.audit import same_by_math_verify
from conclip.grading.equivalence import is_readable, same_answer
from conclip.grading.limits import CPU_S, allow_cpu_seconds, limit_memory
from conclip.grading.quantities import Tolerance
from conclip.grading.verifier import describe_error, verify
from conclip.runs.interrupts import SIGNALS
from conclip.types import Outcome, Verifier


def judge(
    golds: Sequence[str],
    answer: str,
    choices: list[str] | None = None,
    decimals: int | None = None,
    tolerance: float = 0.0,
    is_response: bool = False,
    kind: str = "same",
) -> Outcome:
    """Return the verdict on one answer. An error that the libraries raise is an error of the grader, not of the answer."""
    if kind == "readable":
        return Outcome.CORRECT if all(_holds(is_readable, gold, choices=choices) for gold in golds) else Outcome.WRONG
    if kind == "math-verify":
        verdicts = [_holds(same_by_math_verify, gold, answer) for gold in golds]
    else:
        allowed = Tolerance(decimals=decimals, relative=tolerance)
        settings: dict[str, Any] = {"choices": choices, "tolerance": allowed, "is_response": is_response}
        verdicts = [_holds(same_answer, gold, answer, **settings) for gold in golds]
    if True in verdicts:
        return Outcome.CORRECT
    return Outcome.GRADER_ERROR if None in verdicts else Outcome.WRONG


def _holds(question: Callable[..., bool], *arguments: Any, **settings: Any) -> bool | None:
    """Return the answer to a question; None where it makes the libraries fail."""
    try:
        return question(*arguments, **settings)
    except Exception:
        return None


def _answer_to(question: dict[str, Any], cpu_limit_s: int) -> tuple[Outcome, str | None]:
    """Return the verdict, and what a verifier raised. Programs that it started end with it."""
    named = question.pop("verifier", None)
    if named is None:
        return judge(**question), None
    verifier = Verifier(**named)
    try:
        return verify(verifier, question["answer"], question["golds"][0], cpu_limit_s=cpu_limit_s), None
    except Exception as error:
        return Outcome.GRADER_ERROR, describe_error(error, verifier)
    finally:
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()


def main() -> None:
    cpu_limit_s = int(sys.argv[1]) if len(sys.argv) > 1 else CPU_S
    for number in SIGNALS:  # the parent handles them; a program that a verifier starts gets the defaults
        signal.signal(number, lambda *_: None)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    limit_memory()
    logging.disable(logging.CRITICAL)
    judge(["1/2"], "0.5")  # load now what loads on first use
    questions, answers = _own_pipes()
    answers.write("ready\n")
    answers.flush()
    for line in questions:
        allow_cpu_seconds(cpu_limit_s)
        answers.write(json.dumps(_answer_to(json.loads(line), cpu_limit_s)) + "\n")
        answers.flush()


def _end_with(parent: int) -> None:
    """End this process and what it has started when its parent is gone, which may be in the midst of a verifier's work."""
    while os.getppid() == parent:
        time.sleep(1.0)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _own_pipes() -> tuple[TextIO, TextIO]:
    """Return input and output of this process, and leave nothing in their place: what a verifier, or a program that it
    starts, reads and prints must not get into them."""
    questions, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(nothing, standard)
    return questions, answers


if __name__ == "__main__":
    main()
