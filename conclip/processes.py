"""Protects processes that the project starts: none of them imports modules from the current folder.

`python -m` and `python -c` put that folder first, where a `math_verify.py` or `pickle.py` that came with somebody's data
would be taken for the real one. `-P` (Python 3.11) leaves it out; PYTHONPATH counts as ever. The console script `conclip` is
safe by itself; for `python -m conclip` see `conclip.__main__`.
"""

import os
import sys

PYTHON = (sys.executable, "-P")
"""Start of the command line of every Python process of ours."""


def protect_children() -> None:
    """Protect the processes that libraries start, too (multiprocessing, vLLM, compilers, trackers): they inherit it."""
    os.environ["PYTHONSAFEPATH"] = "1"
