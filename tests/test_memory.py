"""Memory and chunking on a real small model, in a process of its own so that its peak is this step's and nothing else's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "memory.py"


def test_a_ppo_step_of_a_135m_model_stays_under_6_gib_and_chunks_change_nothing():
    folder = os.environ.get("CONCLIP_SMOLLM2")
    if not folder:
        pytest.skip("CONCLIP_SMOLLM2 does not name a folder with SmolLM2-135M-Instruct")
    command = [sys.executable, str(SCRIPT), "--model", folder, "--responses", "16", "--tokens", "256"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["peak_resident_gib"] < 6
    assert result["policy_loss"] == pytest.approx(result["whole_policy_loss"], abs=1e-5)
