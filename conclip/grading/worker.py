"""One grader process: it reads questions (`conclip.grading.worker_process.Question`) as lines of JSON, and writes a line
``[outcome, error]`` for each. The error is what a verifier raised, else null.

The kernel limits its memory, and its processor time for each answer. An answer that exceeds the limits ends the process,
which the parent notices. The end of its input ends it, too.
"""

import json
import logging
import math
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from conclip.grading.audit import same_by_math_verify
from conclip.grading.equivalence import is_readable, same_answer
from conclip.grading.quantities import Tolerance
from conclip.grading.verifier import describe_error, verify
from conclip.runs.interrupts import SIGNALS
from conclip.types import Outcome, Verifier

MEMORY_LIMIT_BYTES = 2 << 30
"""Address space of a worker."""


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


def _answer_to(question: dict[str, Any]) -> tuple[Outcome, str | None]:
    """Return the verdict, and what a verifier raised."""
    named = question.pop("verifier", None)
    if named is None:
        return judge(**question), None
    verifier = Verifier(**named)
    try:
        return verify(verifier, question["answer"], question["golds"][0]), None
    except Exception as error:
        return Outcome.GRADER_ERROR, describe_error(error, verifier)


def allow_cpu_seconds(seconds: int) -> None:
    """Allow this process `seconds` more of processor time, rounded up to the next whole second; then SIGXCPU ends it."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = math.ceil(usage.ru_utime + usage.ru_stime)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds, hard))


def main() -> None:
    cpu_limit_s = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    for number in SIGNALS:  # the whole process group may get them; the parent handles them
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    logging.disable(logging.CRITICAL)
    judge(["1/2"], "0.5")  # load now what loads on first use
    questions, answers = _own_pipes()
    answers.write("ready\n")
    answers.flush()
    for line in questions:
        allow_cpu_seconds(cpu_limit_s)
        answers.write(json.dumps(_answer_to(json.loads(line))) + "\n")
        answers.flush()


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
