"""Transfer of weights to an engine in another process: a folder of tensors, in main memory where that has a file system."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file

MEMORY = Path("/dev/shm")
"""The file system in main memory, on machines that have one."""

PREFIX = "conclip-weights-"


class WeightsFolder(tempfile.TemporaryDirectory[str]):
    """A private temporary folder, locked while its process lives: runs in other containers see the folder but not the
    process."""

    def __init__(self, place: Path | None) -> None:
        super().__init__(prefix=f"{PREFIX}{os.getpid()}-", dir=place)
        self._lock = os.open(self.name, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def cleanup(self) -> None:
        super().cleanup()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def as_folder(tensors: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype) -> WeightsFolder:
    """Write the named tensors, in the engine's precision, to `model.safetensors` in a temporary folder, which the caller
    cleans up."""
    copies = {
        name: (tensor.detach().to(dtype) if tensor.is_floating_point() else tensor).cpu().clone() for name, tensor in tensors
    }
    num_bytes = sum(tensor.nbytes for tensor in copies.values())
    fits = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2 * num_bytes
    folder = WeightsFolder(MEMORY if fits else None)
    save_file(copies, Path(folder.name) / "model.safetensors")
    return folder


def remove_orphans() -> None:
    """Remove the folders of runs that were killed."""
    for folder in (path for place in (MEMORY, Path(tempfile.gettempdir())) for path in place.glob(f"{PREFIX}*")):
        number = folder.name.removeprefix(PREFIX).partition("-")[0]
        if number.isdecimal() and not Path(f"/proc/{number}").exists() and _is_orphan(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_orphan(folder: Path) -> bool:
    """Return whether it is a folder of this user that no living process has locked."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(descriptor).st_uid == os.getuid()
    except OSError:
        return False
    finally:
        os.close(descriptor)
