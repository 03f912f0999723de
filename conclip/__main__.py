"""`python -m conclip` is the console script, but for what `-m` does first.

It puts the current folder before all others, where anybody's `yaml.py` would be imported for the real one. That entry goes
again, unless conclip itself lies there (a checkout). In a folder of other people use `conclip`, or `python -P -m conclip`: a
folder `conclip` there would have been taken for this one before this line is reached.
"""

import os
import sys
from pathlib import Path

HOME = str(Path(__file__).resolve().parent.parent)

if not sys.flags.safe_path:
    if os.path.realpath(sys.path[0]) == HOME:  # processes it starts get no such entry, and must find it, too
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [HOME, os.environ.get("PYTHONPATH")]))
    else:
        del sys.path[0]

from conclip.cli.main import command  # noqa: E402  after the line above

command()
