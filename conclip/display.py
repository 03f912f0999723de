"""What people see while a run works: a live view on a terminal, plain lines elsewhere, JSON lines for programs, or little.

No result is only here: messages, warnings and tables stand in run.log, all numbers in metrics.jsonl.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from conclip.config import DisplayMode
from conclip.terminal import open_console
from conclip.types import Outcome, Sampling

PLAIN_PROGRESS_S = 60.0
"""How often a run that is not looked at live says how far it is."""

KEPT_WARNINGS = 3
"""So many stay in view."""

WIDTH = 100
"""Columns of the live view, at most."""

NARROW = 80
"""In fewer columns bars give way to words."""

BAR = 24

STYLES = {
    Outcome.CORRECT: ("green", "█"),
    Outcome.WRONG: ("red", "▓"),
    Outcome.NO_ANSWER: ("yellow", "▒"),
    Outcome.TRUNCATED: ("magenta", "░"),
    Outcome.GRADER_ERROR: ("cyan", "?"),
}
"""Colour and fill of an outcome's part of the bar: told apart without colours, too."""

BLOCKS = "▁▂▃▄▅▆▇█"


class Display(Protocol):
    """Where a run's events become visible."""

    def message(self, text: str, *, result: bool = False) -> None:
        """A line; `result` marks what a run was made for."""

    def warning(self, text: str) -> None: ...

    def table(self, table: Table, *, result: bool = False) -> None: ...

    def stage(self, name: str, num_steps: int | None, step: int, steps: Sequence[Mapping[str, float]]) -> None:
        """A stage begins, or goes on after `step`; `steps` are the metrics of those it has done."""

    def step(self, stage: str, step: int, metrics: Mapping[str, float]) -> None: ...

    def sampling(self, now: Sampling) -> None: ...

    def file(self, kind: str, path: str, *, result: bool = True) -> None:
        """Something a run makes, and where it is."""

    def results(self, content: Mapping[str, Any]) -> None:
        """What results.json says, for programs: people see tables."""

    def close(self) -> None: ...


def open_display(mode: DisplayMode, title: str, stream: TextIO) -> Display:
    """`auto` is live on a terminal and plain elsewhere."""
    if mode == "json":
        return JsonDisplay(stream)
    console = open_console(stream)
    if mode == "quiet":
        return PlainDisplay(console, quiet=True)
    able = stream.isatty() and console.is_interactive and not console.is_dumb_terminal
    live = mode == "live" or (mode == "auto" and able)
    return LiveDisplay(console, title) if live else PlainDisplay(console)


class Now:
    """Whether it is time again to say something."""

    def __init__(self, every_s: float) -> None:
        self._every_s, self._last = every_s, time.monotonic()

    def is_due(self) -> bool:
        due = time.monotonic() - self._last > self._every_s
        if due:
            self._last = time.monotonic()
        return due


class PlainDisplay:
    """Lines as they come, and one a minute of how far the sampling is. Quiet: warnings and results only."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console, self._quiet = console, quiet
        self._now = Now(PLAIN_PROGRESS_S)

    def message(self, text: str, *, result: bool = False) -> None:
        if result or not self._quiet:
            self._console.print(text, markup=False, soft_wrap=True)

    def warning(self, text: str) -> None:
        self._console.print(f"warning: {text}", style="yellow", markup=False, soft_wrap=True)

    def table(self, table: Table, *, result: bool = False) -> None:
        if result or not self._quiet:
            self._console.print(table)

    def stage(self, name: str, num_steps: int | None, step: int, steps: Sequence[Mapping[str, float]]) -> None:
        pass

    def step(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def sampling(self, now: Sampling) -> None:
        if not self._quiet and self._now.is_due():
            done = f"{now.label}: {now.done} of {now.whole} responses"
            self.message(f"{done}, {now.tokens_per_s:.0f} tokens/s{_left(now.seconds_left)}")

    def file(self, kind: str, path: str, *, result: bool = True) -> None:
        self.message(f"{kind}: {path}", result=result)

    def results(self, content: Mapping[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


class NoDisplay:
    """What a run goes on with when its terminal or its reader is gone: run.log and metrics.jsonl have everything."""

    def message(self, text: str, *, result: bool = False) -> None: ...

    def warning(self, text: str) -> None: ...

    def table(self, table: Table, *, result: bool = False) -> None: ...

    def stage(self, name: str, num_steps: int | None, step: int, steps: Sequence[Mapping[str, float]]) -> None: ...

    def step(self, stage: str, step: int, metrics: Mapping[str, float]) -> None: ...

    def sampling(self, now: Sampling) -> None: ...

    def file(self, kind: str, path: str, *, result: bool = True) -> None: ...

    def results(self, content: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class JsonDisplay:
    """One JSON object a line: `event` is message, warning, stage, step, sampling, table, file or results."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._now = Now(PLAIN_PROGRESS_S)

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

    def sampling(self, now: Sampling) -> None:
        if self._now.is_due():
            self._write(
                "sampling",
                label=now.label,
                num_finished=now.done,
                num_total=now.whole,
                tokens_per_s=round(now.tokens_per_s, 1),
            )

    def file(self, kind: str, path: str, *, result: bool = True) -> None:
        self._write("file", kind=kind, path=path, result=result)

    def results(self, content: Mapping[str, Any]) -> None:
        self._write("results", results=content)

    def close(self) -> None:
        pass

    def _write(self, event: str, **values: Any) -> None:
        line = json.dumps({"event": event, "time": round(time.time(), 3), **values}, ensure_ascii=False, allow_nan=False)
        self._stream.write(line + "\n")
        self._stream.flush()


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the live view shows."""

    title: str
    began: float
    stage: str = "starting"
    stage_began: float
    num_steps: int | None = None
    step: int = 0
    steps_before: int = 0
    """Done in an earlier start: they do not tell how long a step takes."""
    accuracies: tuple[float, ...] = ()
    lengths: tuple[float, ...] = ()
    shares: Mapping[Outcome, float] = field(default_factory=dict[Outcome, float])
    sampling: Sampling | None = None
    warnings: tuple[str, ...] = ()


class LiveDisplay:
    """Lines scroll by above a view of the present stage, which goes when the run ends."""

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
        """For rich's thread, where an exception would end all drawing."""
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
            accuracies=tuple(metrics["outcome/correct"] for metrics in steps),
            lengths=tuple(metrics["length/mean_tokens"] for metrics in steps),
            warnings=self._view.warnings,
        )

    def step(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        self._view = replace(
            self._view,
            step=max(step, 0),
            accuracies=(*self._view.accuracies, metrics["outcome/correct"]),
            lengths=(*self._view.lengths, metrics["length/mean_tokens"]),
            shares={outcome: metrics[f"outcome/{outcome.value}"] for outcome in Outcome},
            sampling=None,
        )

    def sampling(self, now: Sampling) -> None:
        view = self._view
        graded = sum(now.outcomes.values())
        shares = {outcome: count / graded for outcome, count in now.outcomes.items()} if graded else view.shares
        self._view = replace(view, sampling=now, shares=shares)

    def file(self, kind: str, path: str, *, result: bool = True) -> None:
        self._lines.file(kind, path)

    def results(self, content: Mapping[str, Any]) -> None:
        pass

    def close(self) -> None:
        self._live.stop()


def render(view: View, now: float, width: int) -> RenderableType:
    """The live view at a moment, so many columns wide."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(no_wrap=True, overflow="ellipsis", width=width - 16)
    bar_width = BAR if width >= NARROW else 0
    sampling = view.sampling
    if view.num_steps is not None:
        left = remaining(now - view.stage_began, view.step - view.steps_before, view.num_steps - view.step)
        grid.add_row(
            view.stage, _bar(view.step, view.num_steps, f"step {view.step} of {view.num_steps}{_left(left)}", bar_width)
        )
    else:
        grid.add_row(view.stage, Text(f"since {clock(now - view.stage_began)}"))
    if sampling is not None:
        said = f"{sampling.done} of {sampling.whole} responses, {sampling.tokens_per_s:,.0f} tokens/s"
        said += _left(sampling.seconds_left) if view.num_steps is None else ""
        grid.add_row("sampling", Text(sampling.label, style="dim"))
        grid.add_row("", _bar(sampling.done, sampling.whole, said, bar_width))
    if view.accuracies:
        grid.add_row("accuracy", _trend(view.accuracies, "{:.3f}"))
        grid.add_row("tokens", _trend(view.lengths, "{:.1f}"))
    elif sampling is not None and sampling.num_finished:
        grid.add_row("tokens", Text(f"{sampling.mean_tokens:.1f}"))
    if view.shares:
        grid.add_row("outcomes", outcome_bar(view.shares, bar_width))
    for text in view.warnings:
        grid.add_row(Text("warning", style="yellow"), Text(text, style="yellow"))
    title = Text.assemble((view.title, "bold"), f"  {clock(now - view.began)}")
    title.truncate(width - 8, overflow="ellipsis")
    return Panel(Group(grid), title=title, title_align="left", width=width, border_style="dim")


def remaining(seconds: float, done: int, left: int) -> float | None:
    """Seconds that the rest takes at the speed so far; None before anything is done."""
    return seconds * left / done if done > 0 else None


def clock(seconds: float) -> str:
    """h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """The last `width` values as blocks between the lowest and the highest of them."""
    shown = values[-width:]
    low, high = min(shown), max(shown)
    steps = len(BLOCKS) - 1
    return "".join(BLOCKS[round((value - low) / (high - low) * steps) if high > low else steps // 2] for value in shown)


def outcome_bar(shares: Mapping[Outcome, float], width: int = BAR) -> Text:
    """A bar divided by outcome, and the shares in words."""
    bar, words = Text(), Text()
    ends, covered = 0, 0.0
    for outcome, (colour, fill) in STYLES.items():
        covered += shares.get(outcome, 0.0)
        cells = round(covered * width) - ends
        ends += cells
        bar.append(fill * cells, style=colour)
        if shares.get(outcome, 0.0) > 0:
            words.append(f"  {fill} ", style=colour).append(f"{outcome.value.replace('_', ' ')} {shares[outcome]:.0%}")
    return bar + words


def _trend(values: Sequence[float], form: str) -> Text:
    first, last = form.format(values[0]), form.format(values[-1])
    return Text(f"{first} -> {last}  ").append(sparkline(values), style="cyan")


def _bar(done: int, total: int, said: str, width: int) -> RenderableType:
    if not width:
        return Text(said)
    row = Table.grid(padding=(0, 1, 0, 0))
    row.add_row(
        ProgressBar(total=total, completed=done, width=width, complete_style="cyan", finished_style="cyan"), Text(said)
    )
    return row


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f", about {clock(seconds)} left"
