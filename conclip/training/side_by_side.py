"""Micro-batches side by side on a processor, each computed by one thread; one after another they share all threads.

Threads that share an operation wait for each other at its end; of a small model that takes a tenth of the time, and more
than half of it where other processes need the processor, too (docs/log.md). Each has the bits that it has with one thread.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from threading import Barrier
from typing import TypeVar

import torch

from conclip.cluster.threads import threads, use_threads
from conclip.config.groups import TrainerConfig

Result = TypeVar("Result")


def number_at_once(trainer: TrainerConfig, *, on_cpu: bool, num_ranks: int) -> int:
    """Return how many micro-batches are computed side by side: one on a GPU, and where several ranks share them."""
    if not on_cpu or num_ranks > 1:
        return 1
    return trainer.micro_batches_at_once or torch.get_num_threads()


class SideBySide:
    """Runs tasks, `number` at a time, each in a thread that computes alone. The threads stay: each keeps memory, and what
    libraries prepare for it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._pool: ThreadPoolExecutor | None = None
        if number > 1:
            self._pool, all_there = ThreadPoolExecutor(number, initializer=partial(use_threads, 1)), Barrier(number)
            with threads(torch.get_num_threads()):  # what the new threads set holds for this one, too
                list(self._pool.map(lambda _: all_there.wait(), range(number)))

    def run(self, tasks: Iterable[Callable[[], Result]]) -> Iterator[Result]:
        """Yield what tasks return, in their order."""
        if self._pool is None:
            yield from (task() for task in tasks)
            return
        begun: deque[Future[Result]] = deque()
        with threads(1):  # libraries take it for all threads
            try:
                for task in tasks:
                    if len(begun) > self.number:  # one waits, so that no thread does
                        yield begun.popleft().result()
                    begun.append(self._pool.submit(task))
                while begun:
                    yield begun.popleft().result()
            finally:
                wait([left for left in begun if not left.cancel()])  # none is left but after an error
