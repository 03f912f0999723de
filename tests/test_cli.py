"""The command line as a person meets it: help, errors in one line, nothing written before validation passes."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from conclip.cli import main
from conclip.models.folder import LAB_MODEL


def conclip(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "conclip", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Runs a command in this process, in an empty folder, and checks that it ends in one line, code 2 and no file."""
    monkeypatch.chdir(tmp_path)

    def check(*arguments: str, said: str) -> None:
        monkeypatch.setattr(sys, "argv", ["conclip", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        assert end.value.code == 2, err
        assert len(err.strip().splitlines()) == 1, err
        assert said in err
        assert out == ""
        assert list(tmp_path.iterdir()) == []

    return check


def test_usage_lists_every_subcommand(tmp_path: Path):
    outcome = conclip(cwd=tmp_path)
    assert outcome.returncode == 0
    assert all(name in outcome.stdout for name in ("probe", "train-phase1", "train-phase2", "eval", "two-phase"))


def test_help_of_a_subcommand_names_groups_and_keys(tmp_path: Path):
    outcome = conclip("train-phase2", "--help", cwd=tmp_path)
    assert outcome.returncode == 0
    assert "gae_lambda" in outcome.stdout and "algo=ppo   or: cispo, dapo" in outcome.stdout
    assert list(tmp_path.iterdir()) == []


def broken_model(tmp_path: Path, *, without: str = "", **changes: object) -> str:
    folder = tmp_path.parent / f"{tmp_path.name}-model"
    shutil.copytree(LAB_MODEL, folder)
    for path in folder.glob(without) if without else []:
        path.unlink()
    if changes:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))
    return str(folder)


def data_file(tmp_path: Path, content: str | None) -> str:
    path = tmp_path.parent / f"{tmp_path.name}.jsonl"
    if content is not None:
        path.write_text(content)
    return str(path)


GOOD = '{"question": "1+1", "answer": "2"}\n'
JSONL = ["eval", "data=mine"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train"], "train-phase1"),
        (["eval", "eval.temperature=1"], "eval.temperatures"),
        (["eval", "eval.prompts=[concise]"], "lab"),
        (["eval", "checkpoints={a: ./nowhere}"], "checkpoints.a"),
        (["train-phase2", "algo.gae_lamda=1"], "did you mean 'algo.gae_lambda'"),
        (["train-phase2", "algo=ppi"], "ppo"),
        (["train-phase2", "algo.gamma=high"], "algo.gamma"),
        (["eval", "eval.top_p=0.5,1.0"], "-m"),
        (["eval", "temperature 1"], "override"),
        (["eval", "model.path=./nowhere"], "./nowhere"),
        (["eval", "model=hf"], "model.path"),
        (["eval", "eval.max_tokens=5000"], "1024"),
        (["probe", "rollout.max_tokens=1024"], "rollout.max_tokens"),
        (["probe", "data=math500"], "data.pool"),
        (["two-phase", "phase2.problem_ids=[nobody]", "phase2.problems_per_step=1"], "nobody"),
        (["train-phase2", "algo=dapo", "phase.refresh=true"], "phase.refresh"),
        ([*JSONL], "data.test.mine.path"),
        ([*JSONL, "data.test.mine.path=./nowhere.jsonl"], "nowhere.jsonl"),
        (["train-phase2", "pass_rates=./nowhere.jsonl"], "nowhere.jsonl"),
        (["train-phase2", "phase.problem_ids=[nobody]", "phase.problems_per_step=1"], "nobody"),
        (["eval", "data.test.chain.levels=[1]"], "distinct"),
    ],
)
def test_bad_input_is_one_line_and_code_2(refused: Callable[..., None], arguments: list[str], said: str):
    refused(*arguments, said=said)


def test_bad_input_ends_the_console_command(tmp_path: Path):
    outcome = conclip("train-phase2", "algo.gae_lamda=1", cwd=tmp_path)
    assert outcome.returncode == 2 and outcome.stdout == ""
    assert len(outcome.stderr.strip().splitlines()) == 1 and "did you mean" in outcome.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("without", "changes", "said"),
    [
        ("config.json", {}, "config.json"),
        ("tokenizer.json", {}, "no tokenizer"),
        ("chat_template*", {}, "no chat template"),
        ("*.safetensors", {}, "safetensors"),
        ("", {"max_position_embeddings": 100}, "100 tokens"),
    ],
)
def test_a_broken_model_folder_is_named(
    refused: Callable[..., None], tmp_path: Path, without: str, changes: dict[str, object], said: str
):
    model = broken_model(tmp_path, without=without, **changes)
    refused("eval", f"model.path={model}", said=said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no problems"),
        (GOOD + "{broken\n", ":2: not JSON"),
        (GOOD + "[1]\n", ":2: a JSON list"),
        (GOOD + '{"question": "1+1"}\n', ":2: no column 'answer'"),
        (GOOD + '{"question": "1+1", "answer": ""}\n', ":2: column 'answer'"),
        (GOOD + '{"question": null, "answer": "2"}\n', ":2: column 'question'"),
    ],
)
def test_bad_data_is_named_with_its_line(refused: Callable[..., None], tmp_path: Path, content: str, said: str):
    refused(*JSONL, f"data.test.mine.path={data_file(tmp_path, content)}", said=said)


def test_a_test_problem_in_the_pool_is_refused(refused: Callable[..., None], tmp_path: Path):
    path = data_file(tmp_path, GOOD)
    sets = [f"data.{name}.mine.path={path}" for name in ("pool", "validation", "test")]
    refused("two-phase", "data=mine", *sets, said="disjoint")


@pytest.mark.engine
def test_a_phase_2_set_with_nothing_solvable_says_what_the_pass_rates_were(tmp_path: Path):
    rates = conclip("probe", "debug=probe", "data.pool.chain.levels=[2]", cwd=tmp_path)
    assert rates.returncode == 0, rates.stderr
    path = tmp_path / "outputs/probe/debug/latest/pass_rates.jsonl"
    before = sorted(tmp_path.rglob("*"))
    same_pool = ["debug=train", "data.pool.chain.levels=[2]"]
    band = ["phase.pass_rate_low=0.001", "phase.pass_rate_high=0.01"]
    outcome = conclip("train-phase2", *same_pool, *band, f"pass_rates={path}", cwd=tmp_path)
    assert outcome.returncode == 2
    assert "0 of 24 probed problems" in outcome.stderr and "always:" in outcome.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.engine
def test_ctrl_c_ends_a_run_within_seconds_and_leaves_no_process(tmp_path: Path):
    endless = ["phase.num_steps=1000", "phase.stop_accuracy_drop=1", "trainer.validate_every=1000", "name=cut"]
    command = [sys.executable, "-m", "conclip", "train-phase2", "debug=train", *endless]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    metrics = tmp_path / "outputs/train-phase2/cut/attempt-001/metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (metrics.exists() and metrics.read_text().count("\n") >= 1):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=15) == 130
    psutil.wait_procs(children, timeout=5)
    assert not any(child.is_running() for child in children)
    for line in metrics.read_text().splitlines():
        assert json.loads(line)["stage"] == "phase2"
