"""Displays of a run: a live view on a terminal, plain lines elsewhere, JSON lines for programs, or results only.

A display never has the only copy: run.log has messages, warnings and tables, and metrics.jsonl has all numbers.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from conclip.config.groups import DisplayMode
from conclip.redact import escape_control, hide_in
from conclip.runs.sampling_progress import SamplingProgress
from conclip.runs.terminal import open_console
from conclip.runs.view import WIDTH, View, render, time_left
from conclip.types import Outcome, step_accuracy

PLAIN_PROGRESS_S = 60.0
"""The interval between reports of progress without a live view."""

KEPT_WARNINGS = 3
"""The number of warnings that stay in view."""


class Display:
    """The receiver of a run's events. This one shows nothing: a run whose terminal or reader is gone continues with it,
    since run.log and metrics.jsonl have everything."""

    def message(self, text: str, *, result: bool = False) -> None:
        """Show a line; `result` marks results, which a quiet display shows too."""

    def warning(self, text: str) -> None:
        """Show a warning."""

    def table(self, table: Table, *, result: bool = False) -> None:
        """Show a table."""

    def stage(self, name: str, num_steps: int | None, step: int, steps: Sequence[Mapping[str, float]]) -> None:
        """Show that a stage begins, or resumes after `step`; `steps` are the metrics of its completed steps."""

    def step(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of a step."""

    def sampling(self, progress: SamplingProgress) -> None:
        """Show the progress of sampling."""

    def file(self, kind: str, path: str, *, result: bool = True) -> None:
        """Show where an output of the run is."""

    def results(self, content: Mapping[str, Any]) -> None:
        """Pass on the content of results.json, for programs; people see tables."""

    def close(self) -> None:
        """Stop showing anything."""


def open_display(mode: DisplayMode, title: str, stream: TextIO) -> Display:
    """Return the display of a mode; `auto` is live on a terminal and plain elsewhere."""
    if mode == "json":
        return JsonDisplay(stream)
    console = open_console(stream)
    if mode == "quiet":
        return PlainDisplay(console, quiet=True)
    able = stream.isatty() and console.is_interactive and not console.is_dumb_terminal
    live = mode == "live" or (mode == "auto" and able)
    return LiveDisplay(console, title) if live else PlainDisplay(console)


class Throttle:
    """A timer that limits how often something is reported."""

    def __init__(self, every_s: float) -> None:
        self._every_s, self._last = every_s, time.monotonic()

    def is_due(self) -> bool:
        is_due = time.monotonic() - self._last > self._every_s
        if is_due:
            self._last = time.monotonic()
        return is_due


class PlainDisplay(Display):
    """A display of plain lines, with the progress of sampling once a minute. `quiet` shows warnings and results only."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console, self._quiet = console, quiet
        self._throttle = Throttle(PLAIN_PROGRESS_S)

    def message(self, text: str, *, result: bool = False) -> None:
        if result or not self._quiet:
            self._console.print(text, soft_wrap=True)

    def warning(self, text: str) -> None:
        self._console.print(f"warning: {text}", style="yellow", soft_wrap=True)

    def table(self, table: Table, *, result: bool = False) -> None:
        if result or not self._quiet:
            self._console.print(table)

    def sampling(self, progress: SamplingProgress) -> None:
        if not self._quiet and self._throttle.is_due():
            done = f"{progress.label}: {progress.overall_finished} of {progress.overall_total} responses"
            self.message(f"{done}, {progress.tokens_per_s:.0f} tokens/s{time_left(progress.seconds_left)}")

    def file(self, kind: str, path: str, *, result: bool = True) -> None:
        self.message(f"{kind}: {path}", result=result)


class JsonDisplay(Display):
    """A display of one JSON object per line; its `event` is message, warning, stage, step, sampling, table, file or
    results."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._throttle = Throttle(PLAIN_PROGRESS_S)

    def message(self, text: str, *, result: bool = False) -> None:
        self._write("message", text=text, result=result)

    def warning(self, text: str) -> None:
        self._write("warning", text=text)

    def table(self, table: Table, *, result: bool = False) -> None:
        columns = [[str(cell) for cell in column.cells] for column in table.columns]
        header = [str(column.header) for column in table.columns]
        rows = [list(row) for row in zip(*columns, strict=True)]
        self._write("table", title=str(table.title or ""), columns=header, rows=rows, result=result)

    def stage(self, name: str, num_steps: int | None, step: int, steps: Sequence[Mapping[str, float]]) -> None:
        self._write("stage", stage=name, num_steps=num_steps, step=step)

    def step(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        self._write("step", stage=stage, step=step, metrics=dict(metrics))

    def sampling(self, progress: SamplingProgress) -> None:
        if self._throttle.is_due():
            self._write(
                "sampling",
                label=progress.label,
                num_finished=progress.overall_finished,
                num_total=progress.overall_total,
                tokens_per_s=round(progress.tokens_per_s, 1),
            )

    def file(self, kind: str, path: str, *, result: bool = True) -> None:
        self._write("file", kind=kind, path=path, result=result)

    def results(self, content: Mapping[str, Any]) -> None:
        self._write("results", results=content)

    def _write(self, event: str, **values: Any) -> None:
        content = {"event": event, "time": round(time.time(), 3), **hide_in(values)}
        line = json.dumps(content, ensure_ascii=False, allow_nan=False)
        self._stream.write(escape_control(line) + "\n")
        self._stream.flush()


class LiveDisplay(Display):
    """A display of lines that scroll above a live view of the current stage, which disappears when the run ends."""

    def __init__(self, console: Console, title: str) -> None:
        now = time.monotonic()
        self._console, self._lines = console, PlainDisplay(console)
        self._view = View(title=title, began=now, stage_began=now)
        self._live = Live(
            get_renderable=self._picture,
            console=console,
            transient=True,
            refresh_per_second=4,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def _picture(self) -> RenderableType:
        """Render the view. It runs in rich's thread, where an exception would stop all drawing."""
        try:
            return render(self._view, time.monotonic(), min(WIDTH, self._console.width))
        except Exception:
            logging.getLogger("conclip").exception("the live view failed")
            return Text(self._view.stage)

    def message(self, text: str, *, result: bool = False) -> None:
        self._lines.message(text)

    def warning(self, text: str) -> None:
        self._lines.warning(text)
        self._view = replace(self._view, warnings=(*self._view.warnings, text)[-KEPT_WARNINGS:])

    def table(self, table: Table, *, result: bool = False) -> None:
        self._lines.table(table)

    def stage(self, name: str, num_steps: int | None, step: int, steps: Sequence[Mapping[str, float]]) -> None:
        self._view = View(
            title=self._view.title,
            began=self._view.began,
            stage=name,
            stage_began=time.monotonic(),
            num_steps=num_steps,
            step=step,
            steps_before=step,
            accuracies=_accuracies(steps),
            lengths=tuple(metrics["length/mean_tokens"] for metrics in steps),
            warnings=self._view.warnings,
        )

    def step(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        now = time.monotonic()
        self._view = replace(
            self._view,
            step=max(step, 0),
            step_ended=now,
            stage_began=now if step <= 0 else self._view.stage_began,  # steps that warm up the critic tell no time left
            accuracies=(*self._view.accuracies, *_accuracies([metrics])),
            lengths=(*self._view.lengths, metrics["length/mean_tokens"]),
            shares={outcome: metrics[f"outcome/{outcome.value}"] for outcome in Outcome},
            sampling=None,
        )

    def sampling(self, progress: SamplingProgress) -> None:
        view = self._view
        graded = sum(progress.outcomes.values())
        shares = {outcome: count / graded for outcome, count in progress.outcomes.items()} if graded else view.shares
        self._view = replace(view, sampling=progress, shares=shares)

    def file(self, kind: str, path: str, *, result: bool = True) -> None:
        self._lines.file(kind, path)

    def close(self) -> None:
        self._live.stop()


def _accuracies(steps: Sequence[Mapping[str, float]]) -> tuple[float, ...]:
    """Return the accuracy of each step that has one."""
    return tuple(found for metrics in steps if (found := step_accuracy(metrics)) is not None)
