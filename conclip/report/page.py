"""The report: one HTML file that opens from disk, needs no network, and shows what a run did."""

import base64
import gzip
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from conclip.evaluation.metrics import Comparison
from conclip.evaluation.tables import (
    benchmarks_of,
    by_condition,
    describe_comparison,
    effort_cells,
    efforts,
    headline_comparisons,
    numbers_of_problems,
    power_line,
    results_cells,
    summaries,
    verdict,
)
from conclip.grading.thinking import DEFAULT_TAGS, joined
from conclip.report.changes import changes, seed_tables
from conclip.report.charts import Figure, figures, label
from conclip.report.data import RunData, count_problems
from conclip.runs.files import finite, write_text
from conclip.types import EvalRow, Outcome, condition_name

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """The change from the first to the last model of a run, on one benchmark at one temperature."""

    where: str
    first: str
    last: str
    tokens: str
    tokens_interval: str
    tokens_high: float
    accuracy: str
    accuracy_interval: str
    verdict: str
    tone: str
    """`good` where accuracy rose or was kept, `bad` where it fell, else empty: nothing is shown."""
    power: str
    """How many problems would show that accuracy was kept; empty where nothing is to be said."""


def write_page(runs: Sequence[RunData], path: Path) -> None:
    """Write the page of one run, or of several side by side."""
    drawn = figures(runs)
    several = len(runs) > 1
    shown = [
        (figure, [(f"chart-{figure.name}-{i}", *item) for i, item in enumerate(figure.specs.items())]) for figure in drawn
    ]
    rows = rows_for_browser(runs)
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    text = environment.get_template("page.html").render(
        title=" and ".join(filter(None, (", ".join(run.name for run in runs[:-1]), runs[-1].name))),
        subtitle=_subtitle(runs),
        subcommand=", ".join(dict.fromkeys(run.subcommand for run in runs)),
        version=version("conclip"),
        sections=_sections(runs, drawn),
        notes=[note for run in runs for note in run.notes],
        headlines=[headline for run in runs for headline in headlines(run, several)],
        tables=[*result_tables(runs), *seed_tables(runs)],
        effort=effort_tables(runs),
        sentences=[sentence for run in runs for sentence in sentences(run)] if not several else [],
        figures=[
            {
                "name": figure.file_name,
                "title": figure.title,
                "caption": figure.caption,
                "columns": figure.columns,
                "panels": [{"id": key, "title": title, "height": spec["height"]} for key, title, spec in panels],
            }
            for figure, panels in shown
        ],
        num_rows=len(rows["rows"]),
        chosen=[
            (
                f"{run.name}, {phase or 'probe'}" if several else phase or "chosen",
                count_problems([choice.problem_id for choice in choices], run.asked.get(phase, ())),
                choices,
            )
            for run in runs
            for phase, choices in run.chosen.items()
            if choices
        ],
        lineage=[_lineage(run) for run in runs],
        folders=", ".join(f"{run.subcommand}/{run.name}/{run.folder.name}" for run in runs),
        charts_json=in_script({key: spec for _, panels in shown for key, _, spec in panels}),
        rows_packed=base64.b64encode(gzip.compress(json.dumps(rows).encode(), mtime=0)).decode() if rows["rows"] else "",
        vega=vl_convert.javascript_bundle(),  # pyright: ignore[reportCallIssue]
        css=(TEMPLATES / "page.css").read_text(encoding="utf-8"),
        js=(TEMPLATES / "page.js").read_text(encoding="utf-8"),
    )
    write_text(path, text)


def in_script(value: Any) -> str:
    """Return JSON that cannot end the script element it is put into. Infinite bounds (an interval of one problem) and NaN
    become null."""
    return json.dumps(finite(value), allow_nan=False).replace("<", "\\u003c")


def headlines(run: RunData, several: bool) -> list[Headline]:
    """Return the headlines of a run; none when it has one model only."""
    of_run = f": {run.name}" if several else ""
    return [
        _headline(f"{change.where}{of_run}", change.first, change.last, change.comparison, run.margin)
        for change in changes(run)
    ]


def _headline(where: str, first: str, last: str, comparison: Comparison, margin: float) -> Headline:
    tokens, accuracy = comparison.tokens_ratio, comparison.accuracy_difference
    return Headline(
        where=where,
        first=first,
        last=last,
        tokens=f"{100 * (tokens.mean - 1):+.1f} %",
        tokens_interval=f"{100 * (tokens.low - 1):+.1f} to {100 * (tokens.high - 1):+.1f} %",
        tokens_high=tokens.high - 1,
        accuracy=f"{100 * accuracy.mean:+.1f} points",
        accuracy_interval=f"{100 * accuracy.low:+.1f} to {100 * accuracy.high:+.1f} points",
        verdict=verdict(accuracy, margin),
        tone="good" if accuracy.low > -margin else "bad" if accuracy.high < 0 else "",
        power=power_line(comparison, margin) or "",
    )


def result_tables(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Return one table per benchmark, with rows of all runs."""
    made: list[dict[str, Any]] = []
    for benchmark, models in summaries(_rows_by_label(runs)).items():
        caption = f"{benchmark}: {numbers_of_problems(models)} problems; ± half a 95 % interval, clustered by problem"
        made.append(_table(benchmark, results_cells(models)) | {"caption": caption})
    return made


def effort_tables(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Return one table per benchmark of where the tokens go, with rows of all runs."""
    rows = _rows_by_label(runs)
    return [_table(benchmark, effort_cells(efforts(rows, benchmark))) for benchmark in benchmarks_of(rows)]


def _table(benchmark: str, cells: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Return a table from cells by model and column."""
    columns = list(next(iter(cells.values())))
    body = [(name, list(row.values())) for name, row in cells.items()]
    return {"benchmark": benchmark, "head": "model", "columns": columns, "rows": body}


def _rows_by_label(runs: Sequence[RunData]) -> dict[str, list[EvalRow]]:
    """Return the rows of each run, model and condition."""
    several = len(runs) > 1
    everything = [row for run in runs for row in run.rows]
    return {label(run, name, several): mine for run in runs for name, mine in by_condition(run.rows, everything).items()}


def sentences(run: RunData) -> list[str]:
    """Return the closing sentences of the run."""
    columns = by_condition(run.rows)
    return [
        f"{benchmark}: {describe_comparison(first, second, comparison, run.margin)}"
        for benchmark in benchmarks_of(columns)
        for (first, second), comparison in headline_comparisons(columns, benchmark).items()
    ]


def rows_for_browser(runs: Sequence[RunData]) -> dict[str, Any]:
    """Return problems, models, sampling conditions and responses, with indices in place of names."""
    several = len(runs) > 1
    outcomes = [outcome.value for outcome in Outcome]
    problems: list[dict[str, Any]] = []
    models: dict[str, int] = {}
    conditions: dict[str, int] = {}
    places: dict[tuple[str, str, str, str], int] = {}  # sets may give the same id to different problems
    rows: list[list[Any]] = []
    for run in runs:
        for row in run.rows:
            question = run.questions.get(row.problem_id, "")
            place = places.setdefault((row.benchmark, row.problem_id, question, row.answer), len(problems))
            if place == len(problems):
                problem = {"id": row.problem_id, "question": question, "answer": row.answer}
                problems.append(problem | {"level": row.level, "benchmark": row.benchmark})
            model = models.setdefault(label(run, row.model, several), len(models))
            condition = conditions.setdefault(
                f"{condition_name(*row.prompt_condition)}, temperature {row.temperature:g}", len(conditions)
            )
            outcome = outcomes.index(row.outcome.value)
            rows.append([place, model, condition, row.sample, outcome, row.num_tokens, row.extracted, _full_response(row)])
    return {
        "problems": problems,
        "models": list(models),
        "conditions": list(conditions),
        "outcomes": outcomes,
        "rows": rows,
    }


def _full_response(row: EvalRow) -> str:
    """Return a response with its thinking part, whether or not the server sent that separately."""
    return row.text if row.reasoning is None else joined(row.reasoning, row.text, DEFAULT_TAGS)


def _subtitle(runs: Sequence[RunData]) -> str:
    started = [str(run.environment.get("started", ""))[:10] for run in runs]
    problems = len({(row.benchmark, row.problem_id, row.answer) for run in runs for row in run.rows})
    parts = [f"started {', '.join(dict.fromkeys(started))}"]
    return ", ".join(parts + ([f"{problems} test problems"] if problems else []))


def _sections(runs: Sequence[RunData], drawn: Sequence[Figure]) -> list[tuple[str, str]]:
    has_rows = any(run.rows for run in runs)
    present = {
        "result": has_rows,
        "figures": bool(drawn),
        "responses": has_rows,
        "problems-trained": any(choices for run in runs for choices in run.chosen.values()),
        "lineage": True,
    }
    names = {"problems-trained": "Training problems"}
    return [(anchor, names.get(anchor, anchor.capitalize())) for anchor, shown in present.items() if shown]


def _lineage(run: RunData) -> dict[str, Any]:
    environment = run.environment
    git: Mapping[str, Any] = environment.get("git") or {}
    facts = {
        "command": shlex.join(["conclip", run.subcommand, *environment.get("arguments", [])]),
        "started": environment.get("started"),
        "machine": f"{environment.get('machine')}, {environment.get('num_cpus')} processors, {environment.get('platform')}",
        "Python": environment.get("python"),
        "packages": ", ".join(
            f"{name} {package_version}" for name, package_version in environment.get("packages", {}).items()
        ),
        "revision": f"{git.get('revision')}{', with local changes' if git.get('dirty') else ''}" if git else "no checkout",
    }
    stages = [
        {
            "name": name,
            "responses": f"{stage.numbers['num_responses']:.0f}" if "num_responses" in stage.numbers else "",
            "tokens": f"{stage.num_tokens:,}".replace(",", "\u202f"),
            "time": f"{stage.wall_s:.0f} s"
            + ("" if stage.is_of_one_start else " (of its last start only, as are the tokens)"),
            "finished": stage.finished.replace("T", " ")[:16],
            "made": f"in {stage.taken_from}" if stage.taken_from else "here",
            "inputs": ", ".join(f"{key} {value[:8]}" for key, value in stage.inputs.items() if value),
        }
        for name, stage in run.stages.items()
    ]
    return {"name": run.name, "stages": stages, "config": run.config, "environment": list(facts.items())}
