"""What people see while a run works."""

import json
import os
import pty
import re
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from conclip.runs.display import LiveDisplay, open_display
from conclip.runs.sampling_progress import BatchContext, SamplingProgress
from conclip.runs.terminal import as_text, open_console
from conclip.runs.view import View, clock, outcome_bar, render, sparkline
from conclip.types import Outcome, step_accuracy

STEP = {f"outcome/{outcome.value}": 0.0 for outcome in Outcome} | {
    "outcome/correct": 0.75,
    "outcome/wrong": 0.25,
    "length/mean_tokens": 61.5,
}


EQUAL = dict.fromkeys(Outcome, 0.2)


def sampling(**changes: object) -> SamplingProgress:
    values = {
        "label": "phase2 step 8",
        "num_finished": 30,
        "num_total": 120,
        "num_tokens": 3000,
        "tokens_per_s": 1500.0,
        "mean_tokens": 61.0,
        "outcomes": {Outcome.CORRECT: 15, Outcome.TRUNCATED: 15},
        "seconds": 10.0,
    }
    return SamplingProgress(**(values | changes))  # type: ignore[arg-type]


def test_the_view_says_stage_step_time_left_speed_and_outcomes():
    view = View(
        title="two-phase x",
        began=0.0,
        stage="phase2",
        stage_began=3000.0,
        num_steps=16,
        step=8,
        steps_before=4,
        step_ended=3600.0,
        accuracies=(0.5, 0.75),
        lengths=(90.0, 61.5),
        shares={Outcome.CORRECT: 0.75, Outcome.WRONG: 0.25},
        sampling=sampling(),
        warnings=("watch out",),
    )
    shown = as_text(render(view, now=3720.0, width=90))
    assert "two-phase x  1:02:00" in shown
    assert "step 8 of 16, about 18:00 left" in shown  # four steps of this start took 10 minutes, the fifth began 2 ago
    assert "30 of 120 responses, 1,500 tokens/s" in shown and "phase2 step 8" in shown
    assert "0.500 -> 0.750" in shown and "90.0 -> 61.5" in shown
    assert "correct 75%" in shown and "wrong 25%" in shown and "truncated" not in shown
    assert "watch out" in shown
    assert max(len(line) for line in shown.splitlines()) == 90


@pytest.mark.parametrize("width", [40, 60, 100])
def test_the_view_keeps_to_its_width(width: int):
    view = View(
        title="t" * 90, began=0.0, stage_began=0.0, sampling=sampling(label="x" * 200), warnings=("w" * 300,), shares=EQUAL
    )
    assert all(len(line) == width for line in as_text(render(view, now=1.0, width=width)).splitlines())


def test_batches_of_one_evaluation_count_together():
    now = sampling(context=BatchContext(num_before=200, num_after=180, num_sampled=120, seconds=50.0))
    assert (now.overall_finished, now.overall_total) == (230, 500)
    assert now.seconds_left == pytest.approx(60.0 / 150 * 270)  # 80 of those before were there already


def test_no_time_is_told_from_the_first_few_responses():
    assert sampling(num_finished=11).seconds_left is None
    assert sampling(num_finished=12).seconds_left == pytest.approx(10.0 / 12 * 108)
    assert sampling(num_finished=1, context=BatchContext(num_sampled=120, seconds=40.0)).seconds_left is not None


def test_clock_sparkline_and_outcome_bar():
    assert [clock(s) for s in (0, 59.9, 61, 3600, 36_061)] == ["0:00", "0:59", "1:01", "1:00:00", "10:01:01"]
    assert sparkline([1, 2, 3]) == "▁▅█" and sparkline([2, 2]) == "▄▄" and len(sparkline(range(99))) == 40
    bar = outcome_bar(dict.fromkeys(Outcome, 0.2), width=24).plain
    assert sum(bar[:24].count(fill) for fill in "█▓▒░?") == 24


def test_quiet_shows_warnings_and_results_only(capsys: pytest.CaptureFixture[str]):
    display = open_display("quiet", "t", sys.stdout)
    display.message("on the way")
    display.message("the result", result=True)
    display.table(Table("a"))
    display.warning("careful")
    display.sampling(sampling())
    display.close()
    assert capsys.readouterr().out.splitlines() == ["the result", "warning: careful"]


def read(line: str) -> dict[str, Any]:
    """Strict JSON: NaN is none."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(line, parse_constant=refuse)


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]):
    display = open_display("json", "t", sys.stdout)
    display.message("two\nlines \u2028 end", result=True)
    table = Table("model", "accuracy", title="lab")
    table.add_row("base", "0.5")
    display.table(table)
    display.stage("phase1", 4, 0, [])
    display.step("phase1", 1, STEP)
    display.file("report", "a/report.html")
    display.results({"margin": 0.03})
    display.close()
    events = [read(line) for line in capsys.readouterr().out.rstrip("\n").split("\n")]
    assert all(event.pop("time") > 0 for event in events)
    assert [event["event"] for event in events] == ["message", "table", "stage", "step", "file", "results"]
    assert events[1] == {
        "event": "table",
        "title": "lab",
        "columns": ["model", "accuracy"],
        "rows": [["base", "0.5"]],
        "result": False,
    }
    assert events[2]["num_steps"] == 4 and events[3]["metrics"]["outcome/correct"] == 0.75
    assert events[4] == {"event": "file", "kind": "report", "path": "a/report.html", "result": True}
    assert events[5]["results"] == {"margin": 0.03}


def test_a_pipe_gets_a_line_a_minute(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    display = open_display("auto", "t", sys.stdout)
    for seconds, finished in ((30.0, 1), (61.0, 2), (62.0, 3), (125.0, 4)):
        now[0] = seconds
        display.sampling(sampling(num_finished=finished, num_total=8, seconds=seconds))
    assert capsys.readouterr().out.splitlines() == [
        "phase2 step 8: 2 of 8 responses, 1500 tokens/s, about 3:03 left",
        "phase2 step 8: 4 of 8 responses, 1500 tokens/s, about 2:05 left",
    ]


def test_the_live_view_goes_on_with_a_resumed_stage(capsys: pytest.CaptureFixture[str]):
    display = open_display("live", "t", sys.stdout)
    assert isinstance(display, LiveDisplay)
    try:
        display.stage("phase1", 10, 5, [STEP, STEP | {"outcome/correct": 0.5}])  # warm-up steps are no steps of the phase
        display.step("phase1", 6, STEP)
        shown = as_text(render(display._view, time.monotonic(), 90))  # pyright: ignore[reportPrivateUsage]
    finally:
        display.close()
    assert "step 6 of 10, about" in shown and "0.750 -> 0.750" in shown


def test_accuracy_is_that_of_the_responses_that_could_be_graded(capsys: pytest.CaptureFixture[str]):
    half, none = ({f"outcome/{o.value}": 0.0 for o in Outcome} | {"length/mean_tokens": 9.0} for _ in range(2))
    half |= {"outcome/correct": 0.25, "outcome/wrong": 0.25, "outcome/grader_error": 0.5}
    none |= {"outcome/grader_error": 1.0}
    assert step_accuracy(half) == 0.5 and step_accuracy(none) is None
    display = open_display("live", "t", sys.stdout)
    assert isinstance(display, LiveDisplay)
    try:
        display.stage("phase1", 10, 1, [half])
        display.step("phase1", 2, none)
        assert display._view.accuracies == (0.5,)  # pyright: ignore[reportPrivateUsage]
    finally:
        display.close()


def test_steps_that_warm_up_the_critic_tell_no_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    display = open_display("live", "t", sys.stdout)
    assert isinstance(display, LiveDisplay)
    try:
        monkeypatch.setattr(time, "monotonic", lambda: 100.0)
        display.stage("phase1", 10, 0, [])
        for step, now in ((-1, 150.0), (0, 200.0), (1, 230.0)):
            monkeypatch.setattr(time, "monotonic", lambda now=now: now)
            display.step("phase1", step, STEP)
        shown = as_text(render(display._view, 230.0, 90))  # pyright: ignore[reportPrivateUsage]
    finally:
        monkeypatch.undo()
        display.close()
    assert "step 1 of 10, about 4:30 left" in shown  # nine more of 30 s


def test_the_console_is_that_of_the_moment(capsys: pytest.CaptureFixture[str]):
    open_console().print("x")
    assert capsys.readouterr().out == "x\n"


ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def in_terminal(command: list[str], cwd: Path) -> str:
    """All that a command writes to a terminal of 100 columns."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.environ |= {"COLUMNS": "100", "LINES": "40", "TERM": "xterm-256color"}
        os.execv(command[0], command)
    written = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # Linux's way of saying that the other end is closed
            break
        if not part:
            break
        written += part
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, written.decode(errors="replace")[-2000:]
    return written.decode(errors="replace")


def test_the_view_fits_a_terminal_though_the_standard_streams_lead_elsewhere(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    control, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 60))
    with open(terminal, "w") as stream, open(control):
        assert open_console(stream).width == 60


@pytest.mark.whole
def test_a_run_on_a_terminal_shows_itself_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    written = in_terminal([sys.executable, "-m", "tests.scripted", "train-phase2", "debug=train"], tmp_path)
    assert "\x1b[?25l" in written and written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")  # the cursor is back
    plain = ESCAPES.sub("", written)
    assert re.search(r"step 1 of \d+, about \d+:\d\d left", plain) and "tokens/s" in plain
    folder = tmp_path / "outputs/train-phase2/debug/latest"
    log = (folder / "run.log").read_text()
    said = re.findall(r" INFO conclip: (\S.*)", log)
    assert len(said) > 8 and [line for line in said if line not in plain] == []
    assert "│" in log and plain.count("phase2 step   1/") == 1  # tables are in the log, too


@pytest.mark.whole
def test_a_run_in_json_mode_writes_nothing_but_json(tmp_path: Path):
    command = [sys.executable, "-m", "conclip", "probe", "debug=probe", "logger.display=json"]
    outcome = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    events = [read(line) for line in outcome.stdout.splitlines()]
    assert outcome.returncode == 0 and outcome.stderr == ""
    assert events[-1]["kind"] == "run folder" and {event["event"] for event in events} >= {"stage", "table"}
