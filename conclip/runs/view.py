"""The layout of the live view of a run: pure functions of a `View`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from conclip.runs.sampling_progress import SamplingProgress
from conclip.types import Outcome

WIDTH = 100
"""The largest number of columns of the live view."""

NARROW = 80
"""The number of columns below which the view has no bars."""

BAR = 24

STYLES = {
    Outcome.CORRECT: ("green", "█"),
    Outcome.WRONG: ("red", "▓"),
    Outcome.NO_ANSWER: ("yellow", "▒"),
    Outcome.TRUNCATED: ("magenta", "░"),
    Outcome.GRADER_ERROR: ("cyan", "?"),
}
"""The colour and fill of each outcome's part of the bar; the fills differ, too, for readers without colours."""

BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The state that the live view shows."""

    title: str
    began: float
    stage: str = "starting"
    stage_began: float
    num_steps: int | None = None
    step: int = 0
    steps_before: int = 0
    """Steps done in an earlier start; the time per step leaves them out."""
    step_ended: float = 0.0
    """The time at which the last step ended."""
    accuracies: tuple[float, ...] = ()
    lengths: tuple[float, ...] = ()
    shares: Mapping[Outcome, float] = field(default_factory=dict[Outcome, float])
    sampling: SamplingProgress | None = None
    warnings: tuple[str, ...] = ()


def render(view: View, now: float, width: int) -> RenderableType:
    """Render the live view at the time `now`, `width` columns wide."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(no_wrap=True, overflow="ellipsis", width=width - 16)
    bar_width = BAR if width >= NARROW else 0
    sampling = view.sampling
    if view.num_steps is not None:
        left = remaining(view.step_ended - view.stage_began, view.step - view.steps_before, view.num_steps - view.step)
        left = None if left is None else max(0.0, left - (now - view.step_ended))
        grid.add_row(
            view.stage, _bar(view.step, view.num_steps, f"step {view.step} of {view.num_steps}{time_left(left)}", bar_width)
        )
    else:
        grid.add_row(view.stage, Text(f"since {clock(now - view.stage_began)}"))
    if sampling is not None:
        progress = (
            f"{sampling.overall_finished} of {sampling.overall_total} responses, {sampling.tokens_per_s:,.0f} tokens/s"
        )
        progress += time_left(sampling.seconds_left) if view.num_steps is None else ""
        grid.add_row("sampling", Text(sampling.label, style="dim"))
        grid.add_row("", _bar(sampling.overall_finished, sampling.overall_total, progress, bar_width))
    if view.accuracies:
        grid.add_row("", Text("on the training problems, step by step:", style="dim"))
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
    """Return the seconds that the rest takes at the speed so far; None before anything is done."""
    return seconds * left / done if done > 0 else None


def clock(seconds: float) -> str:
    """Return seconds as h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Return the last `width` values as blocks, scaled between their lowest and highest."""
    shown = values[-width:]
    low, high = min(shown), max(shown)
    steps = len(BLOCKS) - 1
    return "".join(BLOCKS[round((value - low) / (high - low) * steps) if high > low else steps // 2] for value in shown)


def outcome_bar(shares: Mapping[Outcome, float], width: int = BAR) -> Text:
    """Return a bar divided by outcome, with the shares in words."""
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


def _bar(done: int, total: int, text: str, width: int) -> RenderableType:
    if not width:
        return Text(text)
    row = Table.grid(padding=(0, 1, 0, 0))
    row.add_row(
        ProgressBar(total=total, completed=done, width=width, complete_style="cyan", finished_style="cyan"), Text(text)
    )
    return row


def time_left(seconds: float | None) -> str:
    return "" if seconds is None else f", about {clock(seconds)} left"
