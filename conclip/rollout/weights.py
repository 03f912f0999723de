"""Weights on their way to an engine in another process: a folder of tensors in main memory, where that has a file system."""

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file

MEMORY = Path("/dev/shm")
"""A file system in main memory, where there is one."""

PREFIX = "conclip-weights-"

WeightsFolder = tempfile.TemporaryDirectory[str]


def as_folder(tensors: Iterable[tuple[str, torch.Tensor]]) -> WeightsFolder:
    """A temporary folder with the named tensors in `model.safetensors`; the caller cleans it up."""
    copies = {name: tensor.detach().cpu().clone() for name, tensor in tensors}
    num_bytes = sum(tensor.nbytes for tensor in copies.values())
    fits = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2 * num_bytes
    folder = WeightsFolder(prefix=f"{PREFIX}{os.getpid()}-", dir=MEMORY if fits else None)
    save_file(copies, Path(folder.name) / "model.safetensors")
    return folder


def remove_orphans() -> None:
    """Folders that runs which were killed have left."""
    for folder in (path for place in (MEMORY, Path(tempfile.gettempdir())) for path in place.glob(f"{PREFIX}*")):
        number = folder.name.removeprefix(PREFIX).partition("-")[0]
        if number.isdigit() and not Path(f"/proc/{number}").exists():
            shutil.rmtree(folder, ignore_errors=True)
