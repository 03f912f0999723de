"""A worker process of the grader, as the grader sees it; `conclip.grading.worker` is what runs in it."""

import dataclasses
import json
import os
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from conclip.processes import PYTHON
from conclip.types import Verifier

COMMAND = (*PYTHON, "-m", "conclip.grading.worker")


@dataclass(frozen=True, slots=True)
class Question:
    """A question to a worker: does `answer` state the same as one of `golds`?"""

    golds: tuple[str, ...]
    answer: str
    choices: tuple[str, ...] | None = None
    decimals: int | None = None
    tolerance: float = 0.0
    is_response: bool = False
    kind: Literal["same", "readable", "math-verify"] = "same"
    """What to decide: `same`, whether the answer is a gold one; `readable`, whether the (only) gold one is understood;
    `math-verify`, whether they are the same to math-verify."""
    verifier: Verifier | None = None
    """What decides instead; the answer is a whole response then."""


@dataclass(slots=True)
class Worker:
    process: subprocess.Popen[bytes]
    ready: bool = False
    """Whether its libraries are loaded: the clock of an answer starts only then."""
    question: Question | None = None
    deadline: float = 0.0
    buffer: bytes = b""

    @staticmethod
    def start(cpu_limit_s: int) -> "Worker":
        """Start a worker in a process group of its own, which the programs that a verifier starts belong to."""
        process = subprocess.Popen(
            [*COMMAND, str(cpu_limit_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
            start_new_session=True,
        )
        return Worker(process=process)

    def ask(self, question: Question, deadline: float) -> None:
        """Give the worker a question. Raises OSError when it has ended."""
        self.question, self.deadline = question, deadline
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(dataclasses.asdict(question)).encode() + b"\n")
        self.process.stdin.flush()

    def end_code(self) -> int | None:
        """Return the exit code; None when the process has not ended shortly after its output did."""
        try:
            return self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """End the process and what it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
