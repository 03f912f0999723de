"""The number of threads that a process computes with."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

AT_START = torch.get_num_threads()
"""What this process computes with before any of its parts takes a share."""


def use_threads(number: int) -> None:
    """Compute with so many threads from now on, also where an engine in this process has replaced torch's own function by
    one that does nothing (vLLM's on a CPU)."""
    torch._C.set_num_threads(number)  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Compute with so many threads inside, and with as many as before afterwards."""
    before = torch.get_num_threads()
    use_threads(number)
    try:
        yield
    finally:
        use_threads(before)
