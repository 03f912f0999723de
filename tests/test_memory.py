"""Memory and chunking on a real small model, in a process of its own so that its peak is this step's and nothing else's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MODEL = Path(os.environ.get("SMALL_MODELS", Path.home() / ".cache/small-models")) / "smollm2-135m"
SCRIPT = Path(__file__).parent.parent / "benchmarks" / "memory.py"


def test_a_ppo_step_of_a_135m_model_stays_under_6_gib_and_chunks_change_nothing():
    if not MODEL.is_dir():
        pytest.skip(f"'{MODEL}' is not there (SMALL_MODELS names the folder it is in)")
    command = [sys.executable, str(SCRIPT), "--model", str(MODEL), "--responses", "16", "--tokens", "256"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["peak_resident_gib"] < 6
    assert result["policy_loss"] == pytest.approx(result["whole_policy_loss"], abs=1e-5)
