"""Transfer of weights to an engine in another process: a folder of tensors, in main memory where that has a file system."""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file

from conclip.cluster.memory_folder import MemoryFolder


def as_folder(tensors: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype) -> MemoryFolder:
    """Write the named tensors, in the engine's precision, to `model.safetensors` in a temporary folder, which the caller
    cleans up."""
    copies = {
        name: (tensor.detach().to(dtype) if tensor.is_floating_point() else tensor).cpu().clone() for name, tensor in tensors
    }
    folder = MemoryFolder(sum(tensor.nbytes for tensor in copies.values()))
    try:
        save_file(copies, Path(folder.name) / "model.safetensors")
    except BaseException:
        folder.cleanup()
        raise
    return folder
