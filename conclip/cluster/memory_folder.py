"""Folders in main memory by which processes give each other files, and which do not outlive their process."""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

MEMORY = Path("/dev/shm")
"""The file system in main memory, on machines that have one."""

PREFIX = "conclip-weights-"


class MemoryFolder(tempfile.TemporaryDirectory[str]):
    """A private temporary folder, locked while its process lives: runs in other containers see the folder but not the
    process."""

    def __init__(self, num_bytes: int) -> None:
        """Make it in main memory where that has room for twice so much, else where temporary files are."""
        fits = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2 * num_bytes
        super().__init__(prefix=f"{PREFIX}{os.getpid()}-", dir=MEMORY if fits else None)
        self._lock = os.open(self.name, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def cleanup(self) -> None:
        super().cleanup()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


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
