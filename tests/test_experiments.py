"""Every shipped experiment runs two steps of everything; one command does so with the real engine in a child process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from conclip.cli.main import main
from conclip.config.compose import config_folder
from conclip.report.escape import markdown
from conclip.runs.manifest import read_stages

pytestmark = pytest.mark.whole

EXPERIMENTS = sorted(path.stem for path in (config_folder() / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_runs(experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripted: None):
    monkeypatch.chdir(tmp_path)
    overrides = [f"experiment={experiment}", "debug=two_phase", "name=t"]
    monkeypatch.setattr(sys, "argv", ["conclip", "two-phase", *overrides])
    main()
    check_run(tmp_path, overrides)


def test_the_command_runs_with_an_engine_in_a_child_process(tmp_path: Path):
    overrides = ["rollout.engine=child_process", "debug=two_phase", "name=t"]
    command = [sys.executable, "-m", "conclip", "two-phase", *overrides]
    outcome = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert outcome.returncode == 0, outcome.stderr
    check_run(tmp_path, overrides)


def check_run(tmp_path: Path, overrides: list[str]) -> None:
    """The run folder of two steps a phase."""
    folder = tmp_path / "outputs/two-phase/t/attempt-001"
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in steps] == [("phase1", 1), ("phase1", 2), ("phase2", 1), ("phase2", 2)]
    assert all(row["policy/sampler_drift_max"] < 1e-4 for row in steps)
    models = json.loads((folder / "results.json").read_text())["benchmarks"]["chain"]["models"]
    assert list(models) == ["base", "phase1", "phase2"]
    assert (folder / "curve.png").stat().st_size > 10_000
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    trained = {
        stage: set(json.loads((folder / f"checkpoints/{stage}-best/trained_on.json").read_text())["questions"])
        for stage in ("phase1", "phase2")
    }
    assert set() != trained["phase1"] < trained["phase2"]
    card = (folder / "checkpoints/phase2-best/README.md").read_text()
    chosen = json.loads((folder / "problems-phase2.json").read_text())
    assert all(f"- `{choice['problem_id']}`: {markdown(choice['reason'])}" in card for choice in chosen["chosen"])
    assert chosen["hash"] in card and "Base model: conclip-lab" in card
    assert "## Before and after" in card and "phase2 against" not in card and "## Limits" in card
    assert f"conclip two-phase {overrides[0]} debug=two_phase" in card and "vllm" in card
    assert str(tmp_path) not in card
    assert set(read_stages(folder)) >= {"probe-base", "phase1", "probe-phase1", "phase2", "eval-base", "eval-phase2"}
    model = AutoModelForCausalLM.from_pretrained(folder / "checkpoints/phase2-best")
    assert model.config.architectures == ["Qwen2ForCausalLM"]
