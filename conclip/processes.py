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
