"""One grader process: it reads JSON lines ``[golds, answer, choices, decimals, tolerance, is response, question]`` and
writes one outcome per line.

The kernel limits its memory, and its processor time for each answer. An answer that exceeds the limits ends the process,
which the parent notices. The end of its input ends it, too.
"""

import json
import logging
import math
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from conclip.grading.audit import same_by_math_verify
from conclip.grading.equivalence import is_readable, same_answer
from conclip.grading.quantities import Tolerance
from conclip.runs.interrupts import SIGNALS
from conclip.types import Outcome

MEMORY_LIMIT_BYTES = 2 << 30
"""Address space of a worker."""


def judge(
    golds: Sequence[str],
    answer: str,
    choices: list[str] | None = None,
    decimals: int | None = None,
    tolerance: float = 0.0,
    is_response: bool = False,
    question: str = "same",
) -> Outcome:
    """Return the verdict on one answer. An error that the libraries raise is an error of the grader, not of the answer."""
    if question == "readable":
        return Outcome.CORRECT if all(_holds(is_readable, gold, choices=choices) for gold in golds) else Outcome.WRONG
    if question == "math-verify":
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
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        allow_cpu_seconds(cpu_limit_s)
        sys.stdout.write(json.dumps(judge(*json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
