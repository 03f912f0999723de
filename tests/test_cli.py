"""The command line as a person meets it: help, errors in one line, nothing written before validation passes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from omegaconf import OmegaConf

from conclip import processes
from conclip.cli import main as cli_main
from conclip.cli import sweep
from conclip.cli.main import main
from conclip.processes import PYTHON, let_threads_sleep
from tests.answering import Answering, choice, completion, listening


def conclip(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "conclip", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=400)


@pytest.mark.whole
def test_usage_lists_every_subcommand(tmp_path: Path):
    outcome = conclip(cwd=tmp_path)
    assert outcome.returncode == 0
    assert all(name in outcome.stdout for name in ("probe", "train-phase1", "train-phase2", "eval", "two-phase"))
    known = conclip("--version", cwd=tmp_path).stdout.split()
    assert known[0] == "conclip" and re.fullmatch(r"\d+\.\d+\.\d+", known[1])


@pytest.mark.whole
def test_help_of_a_subcommand_names_groups_and_keys(tmp_path: Path):
    outcome = conclip("train-phase2", "--help", cwd=tmp_path)
    assert outcome.returncode == 0
    assert "gae_lambda" in outcome.stdout and "algo=ppo\n  or: cispo, dapo" in outcome.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.whole
def test_bad_input_ends_the_console_command(tmp_path: Path):
    outcome = conclip("train-phase2", "algo.gae_lamda=1", cwd=tmp_path)
    assert outcome.returncode == 2 and outcome.stdout == ""
    assert len(outcome.stderr.strip().splitlines()) == 1 and "did you mean" in outcome.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.whole
@pytest.mark.parametrize("arguments", ["", "grade --help", "probe --help"])
@pytest.mark.parametrize(
    ("output", "code", "says"), [("> /dev/full", 3, "no space left"), (">&-", 0, ""), ("| true", 0, "")]
)
def test_output_that_cannot_be_written_ends_in_no_traceback(arguments: str, output: str, code: int, says: str):
    script = f"set -o pipefail; {sys.executable} -m conclip {arguments} {output}"
    environment = os.environ | {"PYTHONUNBUFFERED": ""}
    ended = subprocess.run(["bash", "-c", script], stderr=subprocess.PIPE, text=True, env=environment, timeout=120)
    assert ended.returncode == code
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr and "ignored" not in ended.stderr


@pytest.mark.whole
@pytest.mark.parametrize("end", ["2>&-", "2> /dev/full"])
def test_exit_codes_hold_where_nobody_reads_errors(tmp_path: Path, end: str):
    script = f"{sys.executable} -m conclip probe seed=x {end}"
    assert subprocess.run(["bash", "-c", script], cwd=tmp_path, timeout=120).returncode == 2


BASH_COMPLETION = """
eval "$(conclip completion bash)"
complete_line() { COMP_LINE=$1 COMP_POINT=${#1} COMPREPLY=(); _conclip; echo "${COMPREPLY[*]}"; }
complete_line "conclip tr"
complete_line "conclip two-phase algo=gr"
COMP_WORDBREAKS=" "
complete_line "conclip two-phase algo=gr"
complete_line "conclip two-phase seed=1 phases.phase1.num_p"
complete_line "conclip report outp"
"""


@pytest.mark.whole
def test_bash_completes_subcommands_options_and_keys(tmp_path: Path):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = ["bash", "-c", BASH_COMPLETION]
    outcome = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PATH": path})
    assert outcome.stdout.splitlines() == [
        "train-phase1 train-phase2",
        "grpo",  # bash has broken off what stands before the =
        "algo=grpo",
        "phases.phase1.num_problems=",
        "",
    ]
    assert outcome.stderr == "" and list(tmp_path.iterdir()) == []


@pytest.mark.whole
def test_a_phase_2_set_with_nothing_solvable_says_what_the_pass_rates_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], scripted: None
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["conclip", "probe", "debug=probe", "data.pool.chain.levels=[2]"])
    main()
    before = sorted(tmp_path.rglob("*"))
    same_pool = ["debug=train", "data.pool.chain.levels=[2]"]
    band = ["phase.pass_rate_low=0.001", "phase.pass_rate_high=0.01"]
    monkeypatch.setattr(sys, "argv", ["conclip", "train-phase2", *same_pool, *band, "pass_rates=outputs/probe/debug"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capfd.readouterr().err
    assert "0 of 24 probed problems" in said and "always:" in said
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.whole
@pytest.mark.parametrize(("number", "module"), [(signal.SIGINT, "tests.scripted"), (signal.SIGTERM, "conclip")])
def test_a_signal_ends_a_run_within_seconds_saved_and_leaves_no_process(tmp_path: Path, number: signal.Signals, module: str):
    endless = [
        "phase.num_steps=1000",
        "phase.stop_accuracy_drop=1",
        "trainer.validate_every=1000",
        "trainer.save_every=1000",
        "name=cut",
    ]
    command = [sys.executable, "-m", module, "train-phase2", "debug=train", *endless]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=environment)
    metrics = tmp_path / "outputs/train-phase2/cut/attempt-001/metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (metrics.exists() and metrics.read_text().count("\n") >= 1):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    assert process.wait(timeout=60) == 128 + number
    psutil.wait_procs(children, timeout=60)
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    saved = [int(path.name[5:]) for path in metrics.parent.glob("checkpoints/phase2/step-*")]
    assert steps == list(range(1, max(saved) + 1))


class Cutting(Answering):
    """Every response reaches its limit."""

    def do_POST(self) -> None:
        self.body()
        self.send_json(completion(choice("one, two", "length")))


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2"])
def test_a_job_outlives_what_slurm_sends_before_it_stops_it(name: str, monkeypatch: pytest.MonkeyPatch):
    """Its launcher gets the signal, too, and then ends the job by SIGTERM, upon which it saves."""
    child = f"kill -{name[3:]} $$"  # an engine, say
    script = (
        f"import os, signal, subprocess; os.kill(os.getpid(), signal.{name}); subprocess.check_call({child!r}, shell=True)"
    )
    monkeypatch.setattr(sweep, "PYTHON", (sys.executable, "-c", script))
    assert sweep._run(sweep.Job(name="job", arguments=[])) == 0


@pytest.mark.whole
@pytest.mark.parametrize("launcher", ["basic", "submitit_local", pytest.param("ray", marks=pytest.mark.cluster)])
def test_jobs_of_a_sweep_get_the_config_they_were_checked_with(launcher: str, tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("defaults: [eval, _self_]\nname: mine\neval: {budget_tokens: 99}\n")
    small = ["debug=eval", "name=mine", "data.test.chain.num_problems=2", "eval.max_tokens=16"]
    mine = ["--config-dir", str(tmp_path), "--config-name", "mine"]
    with listening(Cutting) as (_, url):
        wanted = [*small, "model=endpoint", f"model.url={url}", "seed=3,4", f"hydra/launcher={launcher}"]
        outcome = conclip("eval", "-m", *mine, *wanted, cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    if launcher == "basic":
        assert outcome.stdout.count("100% of the responses were cut at eval.max_tokens=16") == 2
    configs = [OmegaConf.load(tmp_path / f"outputs/eval/mine-seed={seed}/latest/config.yaml") for seed in (3, 4)]
    assert [(config.seed, config.eval.budget_tokens) for config in configs] == [(3, 99), (4, 99)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml", "outputs"]


class Refusing(Answering):
    """Answers no question."""

    def do_POST(self) -> None:
        self.body()
        self.send_json({"error": {"message": "no"}}, status=400)


@pytest.mark.whole
def test_a_launcher_or_job_that_fails_is_one_line(tmp_path: Path):
    with listening(Refusing) as (_, url):
        wanted = ["eval", "-m", "debug=eval", "name=mine", "model=endpoint", f"model.url={url}", "seed=3,4"]
        outcome = conclip(*wanted, "hydra/launcher=submitit_local", cwd=tmp_path)
        assert outcome.returncode == 3 and "job mine-seed=3 ended with exit code " in outcome.stderr, outcome.stderr
        outcome = conclip(*wanted, "hydra/launcher=submitit_slurm", cwd=tmp_path)
        assert outcome.returncode == 3 and "Hydra's launcher did not run the jobs: " in outcome.stderr, outcome.stderr
        assert "Traceback" not in outcome.stderr
        outcome = conclip(*wanted, "hydra/launcher=submitit", cwd=tmp_path)
        assert outcome.returncode == 2 and "submitit_" in outcome.stderr, outcome.stderr


def test_threads_sleep_while_they_wait_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch):
    for given in ({}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}):
        for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        let_threads_sleep()
        expected = None if "OMP_WAIT_POLICY" in given else given.get("GOMP_SPINCOUNT", "3000")
        assert os.environ.get("GOMP_SPINCOUNT") == expected
        os.environ.pop("GOMP_SPINCOUNT", None)


@pytest.mark.parametrize(
    ("system", "preload", "library", "gpu", "expected"),
    [
        ("linux", None, "libtcmalloc.so.4", None, "libtcmalloc.so.4"),
        ("linux", None, None, None, None),
        ("linux", "", "libtcmalloc.so.4", None, ""),
        ("linux", "mine.so", "libtcmalloc.so.4", None, "mine.so"),
        ("linux", None, "libtcmalloc.so.4", "/dev/nvidiactl", None),
        ("linux", None, "libtcmalloc.so.4", "/dev/kfd", None),
        ("darwin", None, "libtcmalloc.so.4", None, None),
    ],
)
def test_what_trains_starts_again_with_tcmalloc_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
    system: str,
    preload: str | None,
    library: str | None,
    gpu: str | None,
    expected: str | None,
):
    monkeypatch.setenv("LD_PRELOAD", preload or "")
    if preload is None:
        monkeypatch.delenv("LD_PRELOAD")
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(processes, "tcmalloc", lambda: library)
    monkeypatch.setattr(os.path, "exists", lambda path: path == gpu)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-P", "-m", "conclip", "eval", "--help"])
    called: list[object] = []
    monkeypatch.setattr(os, "execv", lambda *arguments: called.append(arguments))
    monkeypatch.setattr(cli_main, "main", lambda: called.append("main"))
    monkeypatch.setattr(cli_main, "end_at_once", lambda: None)
    for subcommand in ("report", "eval"):
        monkeypatch.setattr(sys, "argv", ["conclip", subcommand])
        cli_main.command()
    again = (sys.executable, [sys.executable, "-P", "-m", "conclip", "eval", "--help"])
    assert os.environ.pop("LD_PRELOAD", None) == expected
    assert called[-1] == "main" and called[:-1] == (["main", again] if expected and preload is None else ["main"])


END = """
import atexit, sys
from conclip.processes import end_at_once
class Held:
    def __del__(self): sys.stderr.write("torn down ")
held = Held()
atexit.register(sys.stderr.write, "registered ")
print("done")
end_at_once()
"""


def test_a_process_ends_at_once_after_what_is_registered_for_its_end() -> None:
    environment = os.environ | {"PYTHONUNBUFFERED": ""}
    ended = subprocess.run([*PYTHON, "-c", END], capture_output=True, text=True, env=environment)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "registered ")


def test_a_process_whose_output_cannot_be_written_says_so_at_its_end() -> None:
    with open("/dev/full", "w") as full:
        environment = os.environ | {"PYTHONUNBUFFERED": ""}
        ended = subprocess.run([*PYTHON, "-c", END], stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    assert ended.returncode == 120
    assert "No space left on device" in ended.stderr
