"""How far a run changed its model, and what runs say together that differ in their seed only."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from conclip.evaluation.metrics import Comparison, compare
from conclip.report.charts import models_of
from conclip.report.data import RunData
from conclip.stats import clustered_interval

OF_A_JOB = ("seed", "name", "resume", "paths", "logger")
"""Keys of a config that tell jobs of one sweep over seeds apart, or change no result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The change from the first to the last model of a run, on one benchmark at one temperature."""

    benchmark: str
    temperature: float
    first: str
    last: str
    comparison: Comparison

    @property
    def where(self) -> str:
        return f"{self.benchmark}, temperature {self.temperature:g}"


def changes(run: RunData) -> list[Change]:
    """Return the changes of a run; none when it evaluated one model only."""
    models = list(models_of(run).items())
    if len(models) < 2:
        return []
    (first, before), (last, after) = models[0], models[-1]
    found: list[Change] = []
    for benchmark, temperature in dict.fromkeys((row.benchmark, row.temperature) for row in before):
        one, two = (
            [r for r in rows if (r.benchmark, r.temperature) == (benchmark, temperature)] for rows in (before, after)
        )
        found.append(
            Change(benchmark=benchmark, temperature=temperature, first=first, last=last, comparison=compare(one, two))
        )
    return found


def seed_tables(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Return a table for each set of runs that differ in their seed only: means of their changes over seeds, and Student's t
    intervals over seeds, at 95 % each."""
    groups: dict[str, list[RunData]] = {}
    for run in runs:
        setting = {key: value for key, value in run.settings.items() if key not in OF_A_JOB}
        groups.setdefault(json.dumps([run.subcommand, setting], sort_keys=True, default=str), []).append(run)
    tables = [_over_seeds(group) for group in groups.values()]
    return [table for table in tables if table["rows"]]


def _over_seeds(group: Sequence[RunData]) -> dict[str, Any]:
    of_seed: dict[int, RunData] = {}
    for run in group:
        if isinstance(seed := run.settings.get("seed"), int):
            of_seed.setdefault(seed, run)
    runs = list(of_seed.values())
    found: dict[str, list[Comparison]] = {}
    for change in (change for run in runs for change in changes(run)):
        found.setdefault(f"{change.last} against {change.first}, {change.where}", []).append(change.comparison)
    rows = [
        (
            what,
            [
                str(len(comparisons)),
                _interval([100 * (one.tokens_ratio.mean - 1) for one in comparisons], " %"),
                _interval([100 * one.accuracy_difference.mean for one in comparisons if one.num_problems], " points"),
            ],
        )
        for what, comparisons in found.items()
        if len(comparisons) > 1
    ]
    caption = f"over seeds ({', '.join(run.name for run in runs)}): mean, and 95 % interval of Student's t over seeds"
    if again := [run.name for run in group if not any(run is one for one in runs)]:
        caption += f"; without {', '.join(again)}, whose seed is one of theirs"
    return {"caption": caption, "head": "change", "columns": ["seeds", "tokens", "accuracy"], "rows": rows}


def _interval(values: Sequence[float], unit: str) -> str:
    if not values:
        return "unknown"
    mean, low, high = clustered_interval(values)
    return f"{mean:+.1f}{unit}" + (f" [{low:+.1f}, {high:+.1f}]" if math.isfinite(low) else "")
