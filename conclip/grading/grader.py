"""The one grader of probing, training and evaluation.

Extraction and the comparison of equal spellings happen here (`conclip.grading.answers`); everything symbolic happens in
worker processes (`conclip.grading.worker`) with a limit on processor time and memory for each answer, so that no answer can
hang or swell a run and a loaded machine changes no verdict. An answer that ends its worker is `grader_error`, never "wrong".
"""

import json
import logging
import os
import re
import selectors
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from conclip.errors import MachineFailure
from conclip.grading.answers import Extraction, Method, extract
from conclip.grading.limits import CPU_S
from conclip.grading.verifier import check_unchanged
from conclip.grading.worker_process import COMMAND, Question, Worker
from conclip.types import FinishReason, Grade, Outcome, Verifier

LOG = logging.getLogger(__name__)

GRADER_VERSION = 6
"""Raised whenever a verdict may change."""

WALL_LIMIT_S = 60.0
"""Guard for a worker that neither computes nor answers; generous, as a loaded machine must not change verdicts."""

LONGEST_GAP_S = 10.0
"""Longest normal time between two reads of the workers; a longer gap prolongs their deadlines by its length."""

MAX_FAILED_STARTS = 3
"""Workers in a row that may end before they are ready; after that something is wrong with all of them."""

MAX_ANSWER_CHARS = 2000
"""A longer extracted answer is not an answer; it counts as wrong without being parsed."""


MAX_TOLD_ERRORS = 5
"""Different errors of verifiers that are told."""


@dataclass(frozen=True, slots=True)
class _Request:
    """A response that waits for a verdict."""

    key: str
    extraction: Extraction


_NO_EXTRACTION = Extraction("", "whole")


@dataclass(slots=True)
class _State:
    """Everything that the lock guards."""

    workers: list[Worker] = field(default_factory=list[Worker])
    queue: deque[Question] = field(default_factory=deque[Question])
    waiting: dict[Question, list[_Request]] = field(default_factory=dict[Question, list[_Request]])
    last_read: float = 0.0
    """Time of the last read of the workers."""
    killed: set[Question] = field(default_factory=set[Question])
    """Those whose worker was killed from outside; each gets one more."""
    failed_starts: int = 0
    """Workers in a row that ended before they were ready."""
    verdicts: dict[Question, Outcome] = field(default_factory=dict[Question, Outcome])
    errors: set[str] = field(default_factory=set[str])
    """What verifiers raised, each said once."""
    done: list[tuple[str, Grade]] = field(default_factory=list[tuple[str, Grade]])
    closed: bool = False


class GraderBroken(MachineFailure):
    """Workers cannot start at all. Grading every answer as an error would hide that."""


class Grader:
    """Grades responses in the background: `submit` them, `poll` for verdicts. Usable from any thread."""

    def __init__(
        self,
        *,
        num_workers: int = 2,
        cpu_limit_s: int = CPU_S,
        wall_limit_s: float = WALL_LIMIT_S,
        warn: Callable[[str], None] = LOG.warning,
    ) -> None:
        """`warn` tells people of errors that verifiers raise."""
        self._warn = warn
        self._num_workers, self._cpu_limit_s, self._wall_limit_s = num_workers, cpu_limit_s, wall_limit_s
        self._lock = threading.RLock()
        self._state = _State()

    def submit(
        self,
        key: str,
        *,
        gold: str | Sequence[str],
        text: str,
        finish_reason: FinishReason,
        choices: Sequence[str] | None = None,
        decimals: int | None = None,
        tolerance: float = 0.0,
        verifier: Verifier | None = None,
    ) -> None:
        """Grade one response; `key` comes back with the verdict. Any of several `gold` answers is right. `choices` are the
        texts of options A, B, ... of a multiple-choice question. Numbers are compared exactly. They also count as equal when
        they agree in `decimals` decimals, or differ by at most the share `tolerance` of the gold one. A `verifier` gets the
        whole text and the gold answer, and decides alone."""
        with self._lock:
            extraction = extract(text) if verifier is None else None
            if finish_reason != "stop":
                self._done(_Request(key, extraction or _NO_EXTRACTION), Outcome.TRUNCATED)
            elif verifier is not None:
                self._compare(_Request(key, _NO_EXTRACTION), Question(_golds(gold), text, verifier=verifier))
            elif extraction is None:
                self._done(_Request(key, _NO_EXTRACTION), Outcome.NO_ANSWER)
            else:
                question = Question(
                    _golds(gold), extraction.answer, tuple(choices) if choices else None, decimals, tolerance
                )
                self._compare(_Request(key, extraction), question)

    def submit_answer(
        self,
        key: str,
        *,
        gold: str | Sequence[str],
        answer: str,
        method: Method = "whole",
        choices: Sequence[str] | None = None,
        decimals: int | None = None,
        tolerance: float = 0.0,
        second_method: bool = False,
    ) -> None:
        """Grade an answer that was extracted already. With `method` "whole" it may be a response without a box, in which the
        answer is yet to be found. `second_method` asks math-verify instead, another parser and another comparison:
        `grader_error` where it cannot read one side."""
        with self._lock:
            is_response = method == "whole"
            if is_response and len(answer) > MAX_ANSWER_CHARS:
                extraction = extract(answer)
                answer = extraction.answer if extraction else ""
            options = tuple(choices) if choices else None
            question = Question(
                _golds(gold), answer, options, decimals, tolerance, is_response, "math-verify" if second_method else "same"
            )
            self._compare(_Request(key, Extraction(answer, method)), question)

    def unreadable(self, golds: Sequence[tuple[Sequence[str], Sequence[str] | None]]) -> list[int]:
        """Return the indices of problems with a gold answer (one of several, given with the choices) that is understood
        neither as mathematics nor as words or letters, so that only the same spelling counts as right. Waits for the
        verdicts; plain numbers need none."""
        with self._lock:
            pending = [
                (n, some, choices)
                for n, (some, choices) in enumerate(golds)
                if not all(_PLAIN_NUMBER.fullmatch(gold.strip()) for gold in some)
            ]
            for number, some, choices in pending:
                question = Question(tuple(some), some[0], tuple(choices) if choices else None, kind="readable")
                self._compare(_Request(str(number), Extraction(some[0], "whole")), question)
            unreadable: list[int] = []
            for _ in range(len(pending)):
                while not self._state.done:
                    self._read(1.0)
                key, grade = self._state.done.pop()
                unreadable += [] if grade.outcome is Outcome.CORRECT else [int(key)]
            return sorted(unreadable)

    def poll(self, timeout_s: float = 0.0) -> list[tuple[str, Grade]]:
        """Return the verdicts that are ready. Waits up to `timeout_s` when there are none but some are pending. Raises
        GraderBroken when several workers in a row end before they are ready, and when another thread has closed it."""
        with self._lock:
            state = self._state
            if state.closed:
                raise GraderBroken("the grader is closed")
            if state.waiting:
                self._read(0.0 if state.done else timeout_s)
            done, state.done = state.done, []
            return done

    def grade(self, *, gold: str, text: str, finish_reason: FinishReason = "stop") -> Grade:
        """Grade one response and wait for it."""
        with self._lock:
            key = f"grade {id(self)} {time.monotonic_ns()}"
            self.submit(key, gold=gold, text=text, finish_reason=finish_reason)
            others: list[tuple[str, Grade]] = []
            mine: Grade | None = None
            while mine is None:
                for other, verdict in self.poll(1.0):
                    if other == key:
                        mine = verdict
                    else:
                        others.append((other, verdict))
            self._state.done.extend(others)
            return mine

    def close(self) -> None:
        with self._lock:
            self._state.closed = True
            for worker in self._state.workers:
                worker.kill()
            self._state.workers.clear()

    def _compare(self, request: _Request, question: Question) -> None:
        state = self._state
        verdict = self._at_once(question)
        if verdict is not None:
            self._done(request, verdict)
            return
        if not state.waiting:
            state.last_read = time.monotonic()  # the workers had nothing to do before
        if question in state.waiting:
            state.waiting[question].append(request)
        else:
            state.waiting[question] = [request]
            state.queue.append(question)
            self._feed()

    def _at_once(self, question: Question) -> Outcome | None:
        """Return the verdict that needs no worker; None where there is none."""
        if not question.answer.strip():
            return Outcome.NO_ANSWER
        if question.verifier is not None:
            return None
        if len(question.answer) > MAX_ANSWER_CHARS:
            return Outcome.WRONG
        if question.choices is None and question.kind == "same" and _bare(question.answer) in map(_bare, question.golds):
            return Outcome.CORRECT
        return self._state.verdicts.get(question)

    def _done(self, request: _Request, verdict: Outcome) -> None:
        """Record `verdict` for an answer, wherever it was found."""
        extracted = request.extraction.answer[:MAX_ANSWER_CHARS] or None
        grade = Grade(
            outcome=verdict,
            extracted=extracted,
            lenient_outcome=verdict,
            lenient_extracted=extracted,
            method=request.extraction.method if extracted else None,
        )
        self._state.done.append((request.key, grade.by("strict")))

    def _feed(self) -> None:
        """Give every idle worker a question, starting workers up to the limit."""
        state = self._state
        idle = [worker for worker in state.workers if worker.question is None]
        while state.queue:
            if not idle:
                if len(state.workers) >= self._num_workers:
                    return
                worker = Worker.start(self._cpu_limit_s)
                state.workers.append(worker)
                idle.append(worker)
            worker = idle.pop()
            try:
                worker.ask(state.queue.popleft(), time.monotonic() + self._wall_limit_s)
            except OSError:
                self._lose(worker, "died", begun=False)

    def _read(self, timeout_s: float) -> None:
        # Time in which nobody read, because this process was stopped for example, does not count against the workers.
        gap = time.monotonic() - self._state.last_read
        for worker in self._state.workers if gap > LONGEST_GAP_S else ():
            worker.deadline += gap
        with selectors.DefaultSelector() as selector:
            busy = [worker for worker in self._state.workers if worker.question is not None]
            for worker in busy:
                assert worker.process.stdout is not None
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            first_deadline = min((worker.deadline for worker in busy), default=0.0)
            patience = max(0.0, min(timeout_s, first_deadline - time.monotonic()))
            for event, _ in selector.select(patience):
                worker = event.data
                data = os.read(event.fd, 65536)
                if not data:
                    self._lose(worker, "died", begun=worker.ready)
                    continue
                worker.buffer += data
                while (end := worker.buffer.find(b"\n")) >= 0:
                    self._answered(worker, worker.buffer[:end])
                    worker.buffer = worker.buffer[end + 1 :]
        for worker in list(self._state.workers):
            if worker.question is not None and time.monotonic() > worker.deadline:
                self._lose(worker, f"gave no answer in {self._wall_limit_s:g} s", begun=worker.ready)
        self._state.last_read = time.monotonic()
        self._feed()

    def _answered(self, worker: Worker, line: bytes) -> None:
        if not worker.ready:
            worker.ready, self._state.failed_starts = True, 0
            worker.deadline = time.monotonic() + self._wall_limit_s
            return
        question, worker.question = worker.question, None
        outcome, error = json.loads(line)
        if error is not None and question is not None and question.verifier is not None:
            self._tell_error(question.verifier, error)
        self._settle(question, Outcome(outcome))

    def _tell_error(self, verifier: Verifier, error: str) -> None:
        """Tell what a verifier raised, each error once. Raises MachineFailure where its file has changed: nothing more can
        be judged."""
        check_unchanged(verifier)
        errors = self._state.errors
        if error in errors or len(errors) == MAX_TOLD_ERRORS:
            return
        errors.add(error)
        last = "; further errors are not shown" if len(errors) == MAX_TOLD_ERRORS else ""
        self._warn(f"verifier {verifier.function}: {error}; the response counts as a grader error{last}")

    def _lose(self, worker: Worker, why: str, *, begun: bool) -> None:
        """Replace a worker. Its question gets another one where this one had not `begun` with it and, once, where somebody
        killed it (its own limits end it by other signals); else it becomes a grader error."""
        state, question = self._state, worker.question
        LOG.warning("grader worker %s on answer %.80r; replaced", why, question and question.answer)
        end_code = worker.end_code() if why == "died" else None
        was_killed = end_code == -signal.SIGKILL
        worker.kill()
        state.workers.remove(worker)
        if not worker.ready:
            state.failed_starts += 1
            if state.failed_starts >= MAX_FAILED_STARTS:
                raise GraderBroken(
                    f"{MAX_FAILED_STARTS} grader workers in a row {why} before they were ready; try: "
                    f"{' '.join(COMMAND)} < /dev/null"
                )
        if question is not None and (not begun or (was_killed and question not in state.killed)):
            if begun:
                state.killed.add(question)
            state.queue.appendleft(question)
            return
        if question is not None and question.verifier is not None:
            out_of_time = end_code == -signal.SIGXCPU
            how = f"it took more than {self._cpu_limit_s} s of processor time" if out_of_time else f"its worker {why}"
            self._tell_error(question.verifier, how)
        self._settle(question, Outcome.GRADER_ERROR)

    def _settle(self, question: Question | None, outcome: Outcome) -> None:
        assert question is not None
        if question.verifier is None:  # whole responses seldom come twice, and are long
            self._state.verdicts[question] = outcome
        for request in self._state.waiting.pop(question):
            self._done(request, outcome)


def _golds(gold: str | Sequence[str]) -> tuple[str, ...]:
    return (gold,) if isinstance(gold, str) else tuple(gold)


_PLAIN_NUMBER = re.compile(r"-?[\d,]+(?:\.\d+)?")
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+")


def _bare(answer: str) -> str:
    """Strip what may stand around any answer; answers that are then equal need no worker."""
    answer = answer.strip().strip("$").removesuffix(".").strip()
    return answer.replace(",", "") if _THOUSANDS.fullmatch(answer) else answer
