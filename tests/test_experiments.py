"""Every shipped experiment runs two steps of everything; one command does so with the real engine in a child process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from conclip.cli.main import main
from conclip.config.compose import config_folder
from conclip.lab.arithmetic import generate
from conclip.models.folder import LAB_MODEL
from conclip.report.escape import markdown
from conclip.runs.manifest import read_stages
from tests.families import make_model

pytestmark = pytest.mark.whole

FOLDER = config_folder() / "experiment"
NAMES = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml"))
OF_LARGE_MODELS = [name for name in NAMES if name.startswith("paper/") or name.endswith(("gb", "gpu", "gsm8k_cpu"))]
OF_OWN_MODELS = ["real", "smoke", "smollm2_cpu"]
EXPERIMENTS = [name for name in NAMES if name not in OF_LARGE_MODELS and name not in OF_OWN_MODELS]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_runs(experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripted: None):
    monkeypatch.chdir(tmp_path)
    overrides = [f"experiment={experiment}", "debug=two_phase", "name=t"]
    monkeypatch.setattr(sys, "argv", ["conclip", "two-phase", *overrides])
    main()
    check_run(tmp_path, overrides)


@pytest.mark.parametrize("experiment", OF_OWN_MODELS)
def test_an_experiment_with_a_model_of_ones_own_begins_with_evidence(
    experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripted: None, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    pool = generate("chain", levels=(3, 4), split="train", num_problems=40, seed=0, source="chain")
    rows = [{"question": problem.question, "answer": problem.answer} for problem in pool]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = [f"experiment={experiment}", f"model.path={LAB_MODEL}"]
    own += ["data.test.chain.num_problems=9"] if experiment == "smollm2_cpu" else ["paths.problems=problems.jsonl"]
    small = ["rollout.max_tokens=192", "phase2={num_problems: 2, problems_per_step: 2, group_size: 4, num_steps: 2}"]
    small += ["phase2={pass_rate_low: 0.05, pass_rate_high: 0.95}", "eval.samples_per_problem=1", "trainer.validate_every=1"]
    monkeypatch.setattr(sys, "argv", ["conclip", "two-phase", *own, *small, "model.dtype=float32", "name=own"])
    main()
    folder = tmp_path / "outputs/two-phase/own/attempt-001"
    assert list(read_stages(folder)) == ["eval-base", "probe-base", "phase2", "eval-phase2"]
    ways = [f"base, {way}" for way in ("plain", "concise", "draft", "budget")]
    ((benchmark, results),) = json.loads((folder / "results.json").read_text())["benchmarks"].items()
    assert list(results["models"]) == [*ways, "phase2, plain"]
    said = capfd.readouterr().out
    assert said.index("what may be had without training") < said.index("picture: ") < said.index("phase2 step   1")
    assert (folder / "evidence.png").stat().st_size > 10_000
    assert f"<summary>{benchmark}: where the tokens go</summary>" in (folder / "report.html").read_text()


@pytest.mark.parametrize("experiment", OF_LARGE_MODELS)
def test_an_experiment_with_a_large_model_takes_two_steps_with_a_small_model_of_its_kind(
    experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripted: None
):
    monkeypatch.chdir(tmp_path)
    model = make_model("Qwen3", tmp_path / "model") if experiment.startswith("qwen3") else LAB_MODEL
    pool = generate("chain", levels=(3, 4), split="train", num_problems=12, seed=0, source="chain")
    rows = [{"question": problem.question, "answer": problem.answer} for problem in pool]
    own = [f"experiment={experiment}", f"model.path={model}"]
    if experiment == "gsm8k_cpu":  # the data set's own form, and fewer rows
        rows = [row | {"answer": f"So it is.\n#### {row['answer']}"} for row in rows]
        for part, offset, number in (("pool", 0, 6), ("validation", 6, 2), ("test", 8, 4)):
            values = {"path": "problems.jsonl", "expected_problems": "null", "seed": 0, "offset": offset}
            own += [f"data.{part}.gsm8k.{key}={value}" for key, value in (values | {"num_problems": number}).items()]
    else:
        own += ["data=one_file", "paths.problems=problems.jsonl"]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = ["model.prompt='{question}'", "model.system=null", "rollout.max_tokens=128", "eval.max_tokens=128"]
    small += ["probe.first_samples=4", "probe.max_samples=4"]
    small += ["phase2={num_problems: 2, problems_per_step: 2, group_size: 4, num_steps: 2}", "eval.samples_per_problem=1"]
    small += ["phase2={pass_rate_low: 0.05, pass_rate_high: 0.95}", "rollout.max_num_batched_tokens=2048"]
    small += ["phase2.answers=null"]  # one preset trains on problems that are known by theirs
    if experiment.endswith("gpu"):  # all of it but where its processes are placed
        one = ("cluster.learner_ranks", "rollout.num_engines", "rollout.tensor_parallel_size")
        small += ["cluster=local", *(f"{key}=1" for key in one)]
    monkeypatch.setattr(sys, "argv", ["conclip", "two-phase", *own, *small, "name=own"])
    main()
    folder = tmp_path / "outputs/two-phase/own/attempt-001"
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps] == [1, 2]
    whole = ("1.5b" in experiment and "24gb" not in experiment) or experiment == "paper/r1_7b_8gpu"
    assert (folder / "checkpoints/phase2-best/adapter").is_dir() is not whole
    AutoModelForCausalLM.from_pretrained(folder / "checkpoints/phase2-best")


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
