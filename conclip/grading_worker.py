"""One grader process: reads ``[gold, answer, choices, decimals, second method]`` JSON lines, writes one outcome a line.

Limits of its own, kept by the kernel: processor time for each answer, and memory. An answer that exceeds them ends the
process, which the parent sees. The end of its input ends it, too.
"""

import json
import logging
import math
import resource
import signal
import sys

from conclip.equivalence import DECIMALS, same_answer, same_by_sympy
from conclip.interrupts import SIGNALS
from conclip.types import Outcome

MEMORY_LIMIT_BYTES = 2 << 30
"""Address space of a worker."""


def judge(
    gold: str, answer: str, choices: list[str] | None = None, decimals: int | None = None, second_method: bool = False
) -> Outcome:
    """The verdict on one answer; what makes the libraries fail is an error of the grader, not of the answer."""
    try:
        places = DECIMALS if decimals is None else decimals
        if second_method:
            same = same_by_sympy(gold, answer, decimals=places)
        else:
            same = same_answer(gold, answer, choices=choices, decimals=places)
        return Outcome.CORRECT if same else Outcome.WRONG
    except Exception:
        return Outcome.GRADER_ERROR


def allow_cpu_seconds(seconds: int) -> None:
    """From now on so much processor time (rounded up to the next whole second), then SIGXCPU ends the process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = math.ceil(usage.ru_utime + usage.ru_stime)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds, hard))


def main() -> None:
    cpu_limit_s = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    for number in SIGNALS:  # the parent's to handle, which the whole process group may get
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    logging.disable(logging.CRITICAL)
    judge("1/2", "0.5")  # what loads on first use loads now
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        allow_cpu_seconds(cpu_limit_s)
        sys.stdout.write(json.dumps(judge(*json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
