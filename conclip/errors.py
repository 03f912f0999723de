"""The errors that end in one line: bad input, and what a machine fails a run with."""

import errno
from collections.abc import Iterator
from pathlib import Path

EXIT_FAILED_RUN = 3
"""Exit code of a run that the machine failed."""

MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "std::bad_alloc")
MEMORY += ("cublas_status_alloc_failed", "cudnn_status_alloc_failed")
MEMORY += ("less than desired gpu memory utilization",)  # vLLM's, where others hold memory that its share counts on
OF_GPU = ("cuda", "cublas", "cudnn", "gpu memory")
"""What messages on a GPU's memory name."""
NO_MEMORY_FOR_CODE = "could not create a primitive"
"""The only message of oneDNN when it gets no memory for the code of a matrix product."""

FULL = ("no space left on device", "os error 28", "disk quota exceeded")
READ_ONLY = ("read-only file system", "os error 30")


LIMITS = {
    errno.EMFILE: "open files (ulimit -n)",
    errno.ENFILE: "open files",
    errno.EAGAIN: "processes or threads (ulimit -u)",
}
BROKEN_DISK = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EFBIG)

MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, *LIMITS, *BROKEN_DISK)
"""Error numbers of reading or writing a file that may itself be good."""


class UserError(Exception):
    """Bad input. The message is one line that says what is wrong, where, and what to do. It ends a command with exit code
    2."""


class MachineFailure(RuntimeError):
    """Something outside the run failed it; the message says what, and what to do."""


def explain(error: BaseException) -> str | None:
    """Return one line on what failed and what to do; None when the error, and all it was raised from, looks like a bug of
    ours."""
    for cause in _chain(error):
        if isinstance(cause, MachineFailure):
            return str(cause)
        text = " ".join(str(cause).split())
        lower = text.lower()
        where = f" ('{cause.filename}')" if isinstance(cause, OSError) and cause.filename else ""
        number = cause.errno if isinstance(cause, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT) or any(part in lower for part in FULL):
            return f"no space left on the disk{where}; free some, then run the same command again to resume"
        lacking = any(part in lower for part in MEMORY) or lower == NO_MEMORY_FOR_CODE
        if lacking and any(part in lower for part in OF_GPU):
            return (
                f"out of GPU memory ({text[:160]}); a lower rollout.gpu_memory_utilization or, where it trains, "
                "trainer.offload=true make room, and the same command with them resumes; a lower rollout.max_num_seqs or, "
                "where it trains, trainer.max_tokens_per_micro_batch help, too, but begin a new attempt"
            )
        if isinstance(cause, MemoryError) or number == errno.ENOMEM or lacking:
            return (
                f"out of memory ({text[:160] or type(cause).__name__}); with more of it, or with "
                "trainer.save_in_background=false where it trains, the same command resumes; lower rollout.kv_cache_gib, "
                "rollout.max_num_seqs or, there, trainer.max_tokens_per_micro_batch help, too, but begin a new attempt"
            )
        if number in (errno.EROFS, errno.EACCES, errno.EPERM) or any(part in lower for part in READ_ONLY):
            return f"no permission{where}; change that, or choose another place, then run the same command again"
        if number in LIMITS or "can't start new thread" in lower:
            what = LIMITS.get(number or errno.EAGAIN, "")
            return f"the machine allows no more {what}{where}; raise the limit, then run the same command again to resume"
        if number in BROKEN_DISK:
            return f"the disk failed{where} ({text[:160]}); the machine's log says more"
    return None


def check_folder(folder: Path) -> None:
    """Raise MachineFailure unless the folder of a run exists: open files would swallow what is written to a removed one."""
    if not folder.is_dir():
        raise MachineFailure(f"the run folder '{folder}' is gone; the same command begins it anew")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it was raised from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__
