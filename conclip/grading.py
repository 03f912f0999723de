"""The one grader of probing, training and evaluation.

Extraction and comparison of equal texts happen here; everything symbolic happens in worker processes that are killed and
replaced when they overrun, so that no answer can hang a run. A killed or failed comparison is `grader_error`, never
"wrong".
"""

import json
import logging
import os
import re
import selectors
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field

from conclip.types import FinishReason, Grade, Outcome

LOG = logging.getLogger(__name__)

GRADER_VERSION = 1
"""Raised whenever a verdict may change."""

WALL_LIMIT_S = 20.0
"""Longest time a worker may spend on one answer."""

MAX_ANSWER_CHARS = 2000
"""A longer extracted answer is not an answer; it counts as wrong without being parsed."""

_BOX = re.compile(r"\\f?boxed\s*\{")


def extract_boxed(text: str) -> str | None:
    """The content of the last ``\\boxed{...}`` with balanced braces; None when there is none or it is blank."""
    for match in reversed(list(_BOX.finditer(text))):
        depth = 1
        for end in range(match.end(), len(text)):
            character = text[end]
            if character == "{":
                depth += 1
            elif character == "}":
                depth -= 1
                if depth == 0:
                    return text[match.end() : end].strip() or None
    return None


def normalise(answer: str) -> str:
    """A canonical spelling for the quick comparison: no spaces, dollar signs, thousands commas or final full stop."""
    answer = answer.strip().strip("$").rstrip(".")
    answer = re.sub(r"(?<=\d),(?=\d{3}(\D|$))", "", answer)
    return re.sub(r"\\[ ,;!]|\s+", "", answer)


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    pair: tuple[str, str] | None = None
    deadline: float = 0.0
    buffer: bytes = b""


@dataclass(slots=True)
class _Waiting:
    """Everyone who waits for the verdict on one (gold, answer) pair."""

    keys: list[str] = field(default_factory=list[str])


class Grader:
    """Grades responses in the background: `submit` them, `poll` for verdicts. Not shared between threads."""

    def __init__(self, *, num_workers: int = 2, wall_limit_s: float = WALL_LIMIT_S) -> None:
        self._num_workers = num_workers
        self._wall_limit_s = wall_limit_s
        self._workers: list[_Worker] = []
        self._queue: deque[tuple[str, str]] = deque()
        self._waiting: dict[tuple[str, str], _Waiting] = {}
        self._verdicts: dict[tuple[str, str], Outcome] = {}
        self._ready: list[tuple[str, Grade]] = []

    def submit(self, key: str, *, gold: str, text: str, finish_reason: FinishReason) -> None:
        """Grade one response. `key` comes back with the verdict."""
        answer = extract_boxed(text)
        if finish_reason != "stop":
            self._ready.append((key, Grade(outcome=Outcome.TRUNCATED, extracted=answer)))
        elif answer is None:
            self._ready.append((key, Grade(outcome=Outcome.NO_ANSWER, extracted=None)))
        elif normalise(answer) == normalise(gold):
            self._ready.append((key, Grade(outcome=Outcome.CORRECT, extracted=answer)))
        elif len(answer) > MAX_ANSWER_CHARS:
            self._ready.append((key, Grade(outcome=Outcome.WRONG, extracted=answer[:MAX_ANSWER_CHARS])))
        elif (pair := (gold, answer)) in self._verdicts:
            self._ready.append((key, Grade(outcome=self._verdicts[pair], extracted=answer)))
        elif pair in self._waiting:
            self._waiting[pair].keys.append(key)
        else:
            self._waiting[pair] = _Waiting(keys=[key])
            self._queue.append(pair)
            self._feed()

    @property
    def num_pending(self) -> int:
        """Responses submitted whose verdict has not been polled yet."""
        return len(self._ready) + sum(len(w.keys) for w in self._waiting.values())

    def poll(self, timeout_s: float = 0.0) -> list[tuple[str, Grade]]:
        """Verdicts that are ready; waits up to `timeout_s` when there are none but some are under way."""
        if self._waiting:
            self._read(0.0 if self._ready else timeout_s)
        ready, self._ready = self._ready, []
        return ready

    def grade(self, *, gold: str, text: str, finish_reason: FinishReason = "stop") -> Grade:
        """Grade one response and wait for it. Only when nothing else is pending."""
        self.submit("", gold=gold, text=text, finish_reason=finish_reason)
        while not (verdicts := self.poll(1.0)):
            pass
        return verdicts[0][1]

    def close(self) -> None:
        for worker in self._workers:
            _kill(worker)
        self._workers.clear()

    def _feed(self) -> None:
        """Give every idle worker a pair, starting workers up to the limit."""
        idle = [worker for worker in self._workers if worker.pair is None]
        while self._queue:
            if not idle:
                if len(self._workers) >= self._num_workers:
                    return
                worker = _start_worker()
                self._workers.append(worker)
                idle.append(worker)
            worker = idle.pop()
            worker.pair = self._queue.popleft()
            worker.deadline = time.monotonic() + self._wall_limit_s
            line = json.dumps(worker.pair).encode() + b"\n"
            try:
                assert worker.process.stdin is not None
                worker.process.stdin.write(line)
                worker.process.stdin.flush()
            except OSError:
                self._lose(worker, "died")

    def _read(self, timeout_s: float) -> None:
        with selectors.DefaultSelector() as selector:
            busy = [worker for worker in self._workers if worker.pair is not None]
            for worker in busy:
                assert worker.process.stdout is not None
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            first_deadline = min((worker.deadline for worker in busy), default=0.0)
            patience = max(0.0, min(timeout_s, first_deadline - time.monotonic()))
            for event, _ in selector.select(patience):
                worker = event.data
                data = os.read(event.fd, 65536)
                if not data:
                    self._lose(worker, "died")
                    continue
                worker.buffer += data
                if worker.buffer.endswith(b"\n"):
                    verdict = json.loads(worker.buffer)
                    worker.buffer = b""
                    pair, worker.pair = worker.pair, None
                    self._settle(pair, Outcome(verdict))
        for worker in list(self._workers):
            if worker.pair is not None and time.monotonic() > worker.deadline:
                self._lose(worker, f"took more than {self._wall_limit_s:g} s")
        self._feed()

    def _lose(self, worker: _Worker, why: str) -> None:
        """Replace a worker; the pair it was on becomes a grader error."""
        LOG.warning("grader worker %s on answer %.80r; replaced", why, worker.pair and worker.pair[1])
        _kill(worker)
        self._workers.remove(worker)
        self._settle(worker.pair, Outcome.GRADER_ERROR)

    def _settle(self, pair: tuple[str, str] | None, outcome: Outcome) -> None:
        assert pair is not None
        self._verdicts[pair] = outcome
        for key in self._waiting.pop(pair).keys:
            self._ready.append((key, Grade(outcome=outcome, extracted=pair[1])))


def _start_worker() -> _Worker:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "conclip.grading_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    return _Worker(process=process)


def _kill(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.wait()
    for stream in (worker.process.stdin, worker.process.stdout):
        if stream is not None:
            try:
                stream.close()
            except OSError:
                pass
