"""Protects processes that the project starts: none of them imports modules from the current folder.

`python -m` and `python -c` put that folder first, where a `math_verify.py` or `pickle.py` that came with somebody's data
would be taken for the real one. `-P` (Python 3.11) leaves it out; PYTHONPATH counts as ever. The console script `conclip` is
safe by itself; for `python -m conclip` see `conclip.__main__`.
"""

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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
