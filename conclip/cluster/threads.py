"""The number of threads that a process computes with."""

import torch


def use_threads(number: int) -> None:
    """Compute with so many threads from now on, also where an engine in this process has replaced torch's own function by
    one that does nothing (vLLM's on a CPU)."""
    torch._C.set_num_threads(number)  # pyright: ignore[reportAttributeAccessIssue]
