"""Shows pass rates to people: a histogram, and means by level."""

from collections.abc import Sequence
from statistics import fmean

from rich.table import Table

from conclip.curriculum.pass_rates import BINS, Band, PassRate, graded, histogram

BAR = 20
"""Length of the longest bar [characters]."""


def pass_rate_table(title: str, rates: Sequence[PassRate], band: Band) -> Table:
    """Return a table of pass rates in bins, with a bar for each, then one line per level (where there are several).
    Problems of which no response could be graded have a line of their own, and no part in the means."""
    table = Table(title=f"{title}: pass rates, wanted {band.low:g} to {band.high:g}", title_justify="left")
    for name in ("solved", "problems", "", "likely in band", "tokens"):
        table.add_column(name, justify="left" if name in ("solved", "") else "right")
    counts = histogram(rates)
    longest = max(1, *counts.values())
    for name in BINS:
        mine = [rate for rate in rates if histogram([rate])[name]]
        bar = "█" * round(BAR * counts[name] / longest)
        table.add_row(name, str(counts[name]), bar, str(_eligible(mine, band)), _tokens(mine))
    if ungraded := [rate for rate in rates if not rate.num_samples]:
        table.add_row("not graded", str(len(ungraded)), "", "-", _tokens(ungraded))
    levels = sorted({rate.level for rate in rates if rate.level is not None})
    if len(levels) > 1:
        table.add_section()
        for level in levels:
            mine = [rate for rate in rates if rate.level == level]
            known = [rate.pass_rate for rate in graded(mine)]
            mean = f"mean {fmean(known):.2f}" if known else "-"
            table.add_row(f"level {level}", str(len(mine)), mean, str(_eligible(mine, band)), _tokens(mine))
    return table


def _eligible(rates: Sequence[PassRate], band: Band) -> int:
    """Return how many problems most probably lie in the band and can be selected: their measured rate lies there, too."""
    return sum(rate.verdict == "inside" and band.contains(rate.pass_rate) for rate in graded(rates))


def _tokens(rates: Sequence[PassRate]) -> str:
    return f"{fmean(rate.mean_tokens for rate in rates):.0f}" if rates else "-"
