"""Every random number of a run derives from its one seed through a named stream."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(*parts: int | str) -> int:
    """Return a seed in [0, 2^31) that depends on every part and on nothing else (not on the order of work, nor on the
    process)."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def python_stream(*parts: int | str) -> random.Random:
    """Return one of Python's own generators for one purpose."""
    return random.Random(derive_seed(*parts))


def torch_stream(*parts: int | str) -> torch.Generator:
    """Return a CPU torch generator for one purpose; torch's global one belongs to the engine's sampler."""
    import torch  # noqa: PLC0415  this module also serves the parts that work without torch

    return torch.Generator().manual_seed(derive_seed(*parts))
