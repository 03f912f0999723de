"""How processes of the project begin and end: what they import, their threads, allocator, garbage and GPU settings.

None of them imports modules from the current folder. `python -m` and `python -c` put that folder first, where a
`math_verify.py` or `pickle.py` that came with somebody's data would be taken for the real one. `-P` (Python 3.11) leaves it
out; PYTHONPATH counts as ever. The console script `conclip` is safe by itself; for `python -m conclip` see
`conclip.__main__`.
"""

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

PYTHON = (sys.executable, "-P")
"""Start of the command line of every Python process of ours."""


def protect_children() -> None:
    """Protect the processes that libraries start, too (multiprocessing, vLLM, compilers, trackers): they inherit it."""
    os.environ["PYTHONSAFEPATH"] = "1"


def let_threads_sleep() -> None:
    """Let threads that wait for each other sleep soon, in this process and those that it starts, unless the environment says
    otherwise. By default they spin a hundred times as long, at every operator of a model; on a processor that other
    processes use, too, they then hold up the thread they wait for (docs/log.md). It must come before torch is imported,
    and changes no digit."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def prepare_gpu(*, repeatable: bool, frees_pages: bool = False) -> None:
    """Set what torch reads once, when it first uses a GPU, in this process and those that it starts, unless the environment
    says otherwise. `repeatable`: give cuBLAS the workspace with which its products repeat. `frees_pages`: what is freed goes
    back to the device page by page, so that an engine that wakes up finds room. No other process can then read a tensor on
    the GPU in place, as vLLM's workers do that share a model."""
    if repeatable:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if frees_pages and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def ask_for_gpus_without_using_one() -> None:
    """Let torch ask the driver's library whether there is a GPU. By default it starts CUDA to find out, which processes
    that are forked later, as vLLM's workers may be, cannot do again."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")


def tcmalloc() -> str | None:
    """Return the name of the allocator's library; None where it is not installed."""
    from ctypes.util import find_library  # noqa: PLC0415  `conclip --help` should not wait for it

    return find_library("tcmalloc_minimal") or find_library("tcmalloc")


def preload_allocator() -> bool:
    """Let processes that start from now on have tcmalloc, where it is installed. Returns whether this changed anything.

    Unlike the C library's allocator it keeps the large blocks that training asks for again and again: updates of a model of
    0.5 billion parameters take two thirds of the time, and no digit changes (docs/real-models.md). An LD_PRELOAD in the
    environment, empty or not, is left alone, and so is a machine with a GPU, where this was not tried."""
    with_gpu = any(map(os.path.exists, ("/dev/nvidiactl", "/dev/kfd")))
    if sys.platform != "linux" or with_gpu or "LD_PRELOAD" in os.environ or (library := tcmalloc()) is None:
        return False
    os.environ["LD_PRELOAD"] = library
    return True


def end_at_once() -> NoReturn:
    """End this process, whose work is done: run what libraries have registered for its end, then tear nothing down. Python's
    own end first looks for garbage among the million objects of torch and vLLM, which takes seconds. Where output cannot be
    written, Python ends the process in its own way and says so, with exit code 120."""
    try:
        _flush()
    except (OSError, ValueError):
        sys.exit()
    atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]
    with suppress(OSError, ValueError):
        _flush()  # what those functions wrote
    os._exit(0)


def _flush() -> None:
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()


def start_again() -> NoReturn:
    """Replace this process by one of the same command line, with the environment of now."""
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


@contextmanager
def lasting() -> Iterator[None]:
    """Tell Python's garbage collector that what is made inside lasts as long as the process. It neither looks for garbage
    meanwhile nor looks at these objects later. Importing vLLM is a tenth faster for it, and so is sampling with it."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # some libraries print what they still hold when the process ends
        if was_on:
            gc.enable()
