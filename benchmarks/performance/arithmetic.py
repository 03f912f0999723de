"""How far a side is from what the processor's matrix products allow."""

import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.performance.comparisons import Numbers
from conclip.models.folder import head_shape, linear_shapes
from conclip.models.products import OneDnnLinear

SIDE = 2048
"""Rows and columns of the matrices whose product is timed."""


def matrix_rate(dtype: torch.dtype) -> float:
    """Return the operations per second (two for each multiplication) of large matrix products, the fastest of eight by
    torch's own choice of a library and eight by oneDNN."""
    left, right = (torch.randn(SIDE, SIDE).to(dtype) for _ in range(2))
    by_onednn = OneDnnLinear(SIDE, SIDE, bias=False, dtype=dtype)
    seconds: list[float] = []
    for product in (partial(torch.matmul, right), by_onednn):
        for _ in range(8):
            began = time.perf_counter()
            with torch.no_grad():
                product(left)
            seconds.append(time.perf_counter() - began)
    return 2 * SIDE**3 / min(seconds)


def operations(folder: Path, tokens: int, scored: int, *, recomputed: bool) -> float:
    """Return the matrix operations of a forward and a backward pass, attention left out (Kaplan et al. 2020, section 2.1): 2
    per weight and token forward and 4 backward, 2 more below the output head where activations are recomputed. `scored`:
    tokens that the head saw."""
    head = head_shape(folder)
    body = sum(rows * columns for rows, columns in linear_shapes(folder).values())
    of_head = 0 if head is None else head[0] * head[1]
    return (8 if recomputed else 6) * body * tokens + 6 * of_head * scored


def share_reached(numbers: Numbers, needed: float, tokens: int, dtype: torch.dtype) -> Numbers:
    """Return the share of the matrix rate, measured now, that `needed` operations on so many tokens reached."""
    seconds = numbers["s_per_1000"] * tokens / 1000
    return {"matrix_share": needed / seconds / matrix_rate(dtype)}
