"""What a GPU must show is one script. Without a GPU it rehearses on the processor, so that it runs when there is one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu_check.py"


def table(*arguments: str) -> list[str]:
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.whole
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the check itself runs")
def test_the_check_rehearses_without_a_gpu():
    """Every part of it, so that none is found broken on the day that a GPU is there."""
    rows = table()
    assert rows[0].startswith("no GPU: a rehearsal on the processor")
    parts = [row.removeprefix("| ").split(":")[0] for row in rows[4:]]
    assert {part: parts.count(part) for part in parts} == {
        "learner": 9,
        "repeat": 2,
        "optimiser": 2,
        "memory": 5,
        "engine": 9,
    }


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_what_must_hold_on_a_gpu_holds():
    assert len(table()) > 15
