"""Shows evaluation results: tables and closing sentences for people, results.json for programs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from rich.table import Table

from conclip.evaluation.measures import details, grouped
from conclip.evaluation.metrics import Comparison, Estimate, Summary, compare, summarise
from conclip.evaluation.overthinking import Effort, effort
from conclip.stats import problems_needed
from conclip.types import DEFAULT_TEMPLATE, EvalRow

Rows = Mapping[str, Sequence[EvalRow]]
"""Rows of each model, by the model's name, in the order of the table."""


def summaries(rows: Rows) -> dict[str, dict[str, Summary]]:
    """Return benchmark -> model -> summary, for the models that have rows of the benchmark."""
    by_benchmark_and_model: dict[str, dict[str, Summary]] = {}
    for name, model in rows.items():
        for benchmark, mine in grouped(model, lambda row: row.benchmark).items():
            by_benchmark_and_model.setdefault(benchmark, {})[name] = summarise(mine)
    return by_benchmark_and_model


def benchmarks_of(rows: Rows) -> list[str]:
    """Return the benchmarks in the order of `summaries`."""
    return list(dict.fromkeys(row.benchmark for model in rows.values() for row in model))


def efforts(rows: Rows, benchmark: str) -> dict[str, Effort]:
    """Return where the tokens of each model go, for the models that have rows of the benchmark."""
    mine = {name: [row for row in model if row.benchmark == benchmark] for name, model in rows.items()}
    return {name: effort(model) for name, model in mine.items() if model}


def results_table(benchmark: str, models: Mapping[str, Summary]) -> Table:
    """Return a table with one row per model: accuracy, lengths and truncation, means with 95 % intervals."""
    return _table(f"{benchmark}: {numbers_of_problems(models)} problems; ± half a 95 % interval", results_cells(models))


def numbers_of_problems(models: Mapping[str, Summary]) -> str:
    """Return the number of problems, or the different ones of models that were asked different sets."""
    return " or ".join(map(str, sorted({summary.num_problems for summary in models.values()})))


def _table(title: str, cells: Mapping[str, Mapping[str, str]]) -> Table:
    """Return a table of cells by model and column."""
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    for column in next(iter(cells.values())):
        table.add_column(column, justify="right")
    for name, row in cells.items():
        table.add_row(name, *row.values())
    return table


def results_cells(models: Mapping[str, Summary]) -> dict[str, dict[str, str]]:
    """Return model -> column -> number, the main ones ± half a 95 % interval; all models have the same columns. Accuracy by
    an extraction that does not count for all of them has a column of its own. Responses that could not be graded count in
    no accuracy; a column shows them where there are some."""
    ungraded = any(summary.grader_errors for summary in models.values())
    looping = any(summary.looping_rate for summary in models.values())
    extractions = {summary.extraction for summary in models.values()}
    unanswered = " or ".join(("no box" if one == "strict" else "no answer") for one in sorted(extractions))
    return {
        name: {
            "accuracy": _cell(summary.accuracy, ".3f"),
            **({"lenient": f"{summary.lenient_accuracy.mean:.3f}"} if "strict" in extractions else {}),
            **({"strict": f"{summary.strict_accuracy.mean:.3f}"} if "lenient" in extractions else {}),
            "tokens": _cell(summary.mean_tokens, ".1f"),
            "if correct": _cell(summary.correct_mean_tokens, ".1f"),
            "if wrong": _cell(summary.wrong_mean_tokens, ".1f"),
            unanswered: _percent(summary.no_answer_rate.mean),
            "truncated": _percent(summary.truncation_rate.mean),
        }
        | ({"looping": _percent(summary.looping_rate)} if looping else {})
        | ({"not graded": str(summary.grader_errors)} if ungraded else {})
        for name, summary in models.items()
    }


def _cell(estimate: Estimate | None, form: str, num_problems: int = 1) -> str:
    """Return a mean ± half its interval; with the number of its problems where they show no spread: `num_problems`."""
    if estimate is None:
        return "-"
    if not math.isfinite(estimate.high - estimate.low):
        return f"{estimate.mean:{form}} ({num_problems} problem{'s' if num_problems > 1 else ''})"
    return f"{estimate.mean:{form}} ±{(estimate.high - estimate.low) / 2:{form}}"


def effort_table(benchmark: str, models: Mapping[str, Effort]) -> Table:
    """Return a table of where the tokens go, with one row per model."""
    return _table(f"{benchmark}: where the tokens go (docs/evaluation.md has the rules)", effort_cells(models))


def effort_cells(models: Mapping[str, Effort]) -> dict[str, dict[str, str]]:
    """Return model -> column -> number. Tokens of thinking and answer are shown apart where some response thinks."""
    thinks = any(effort.thinking_tokens for effort in models.values())
    return {
        name: ({"thinking": _number(e.thinking_tokens), "answer": _number(e.answer_tokens)} if thinks else {})
        | {
            "to the right answer": _number(e.tokens_to_answer),
            "after it": _number(e.tokens_after_answer),
            "re-thoughts": f"{e.rethoughts:.2f}",
            "length x correct": _cell(e.length_correlation, ".2f", e.num_mixed),
        }
        for name, e in models.items()
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def describe_comparison(first: str, second: str, comparison: Comparison, margin: float) -> str:
    """Describe the change from `first` to `second` in one sentence."""
    accuracy, ratio = comparison.accuracy_difference, comparison.tokens_ratio
    return (
        f"{second} against {first}: tokens {100 * (ratio.mean - 1):+.1f} % "
        f"[{100 * (ratio.low - 1):+.1f}, {100 * (ratio.high - 1):+.1f}], accuracy {100 * accuracy.mean:+.1f} points "
        f"[{100 * accuracy.low:+.1f}, {100 * accuracy.high:+.1f}]: {verdict(accuracy, margin)}"
    )


def verdict(difference: Estimate, margin: float) -> str:
    """Return the verdict on a difference in accuracy: "kept" only when non-inferiority is shown."""
    if difference.low > 0:
        return "accuracy rose"
    if difference.low > -margin:
        return f"accuracy kept (margin {100 * margin:g} points)"
    if difference.high < 0:
        return "accuracy fell"
    return f"accuracy not shown to be kept (margin {100 * margin:g} points)"


def power_line(comparison: Comparison, margin: float) -> str | None:
    """Return how many problems it would take to show that accuracy was kept; None where it was shown, or where enough
    problems showed otherwise."""
    difference, spread = comparison.accuracy_difference, comparison.accuracy_spread
    if difference.low > -margin or difference.high < 0:
        return None
    needed = problems_needed([-spread, spread], [0.5, 0.5], margin)
    if needed <= comparison.num_problems:
        return None
    about = "about" if spread > 0 else "at least"  # no difference seen among few is not that there is none
    return (
        f"power: were nothing lost, it would take {about} {needed:,} problems like these to show it in four evaluations of "
        f"five; here are {comparison.num_problems:,}"
    )


FORM_SHIFT = 0.05
"""A change in lenient minus strict accuracy above which form, not reasoning, may explain a difference."""


def form_line(names: tuple[str, str], models: Mapping[str, Summary]) -> str | None:
    """Return a warning where the second model puts its right answers into boxes clearly more, or less, often than the first;
    None otherwise."""
    first, second = (models[name].lenient_accuracy.mean - models[name].strict_accuracy.mean for name in names)
    if abs(second - first) <= FORM_SHIFT:
        return None
    more = "more" if second < first else "fewer"
    return (
        f"{names[1]} puts {more} of its right answers into a box than {names[0]} (lenient less strict accuracy "
        f"{100 * first:+.1f} and {100 * second:+.1f} points): part of a difference between them is form"
    )


def by_condition(rows: Sequence[EvalRow], among: Sequence[EvalRow] | None = None) -> dict[str, list[EvalRow]]:
    """Group rows by model, prompt condition and temperature. Names leave out what never varies among the rows, or among the
    rows `among` which they are shown; and the default template, and that thinking has no budget."""
    beside = rows if among is None else among
    several_prompts, several_templates = len({row.prompt for row in beside}) > 1, len({row.template for row in beside}) > 1
    several_budgets = len({row.thinking_budget for row in beside}) > 1
    several_temperatures = len({row.temperature for row in beside}) > 1

    def name_of(row: EvalRow) -> str:
        name = row.model
        name += f", {row.prompt}" if several_prompts else ""
        name += f", {row.template}" if several_templates and row.template != DEFAULT_TEMPLATE else ""
        name += f", thinking <= {row.thinking_budget}" if several_budgets and row.thinking_budget is not None else ""
        return name + (f", T {row.temperature:g}" if several_temperatures else "")

    return grouped(rows, name_of)


def headline_comparisons(rows: Rows, benchmark: str) -> dict[tuple[str, str], Comparison]:
    """Return the comparisons that a run reports. At each temperature, in the first prompt condition: each model against its
    predecessor, the last against the first, and against the shortest and the most accurate of those before it. Then the
    first model in the other conditions against the first one, and the last model against them: training against asking for
    brevity, against no thinking, or against a cap on it. Pairs that were asked different problems are left out."""
    models = {name: [r for r in model if r.benchmark == benchmark] for name, model in rows.items()}
    pairs: list[tuple[str, str]] = []
    for temperature in dict.fromkeys(r.temperature for model in models.values() for r in model):
        mine = {name: model for name, model in models.items() if model and model[0].temperature == temperature}
        first_condition = next(iter(mine.values()))[0].prompt_condition
        trained = {name: model for name, model in mine.items() if model[0].prompt_condition == first_condition}
        names = list(trained)
        pairs += pairwise(names)
        if len(names) > 2:
            before = {name: summarise(trained[name]) for name in names[:-1]}
            pairs.append((names[0], names[-1]))
            pairs.append((min(before, key=lambda n: before[n].mean_tokens.mean), names[-1]))
            pairs.append((max(before, key=lambda n: before[n].accuracy.mean), names[-1]))
        base = trained[names[0]][0].model
        untrained = [name for name, model in mine.items() if model[0].model == base and name not in trained]
        pairs += [(names[0], name) for name in untrained]
        if len(names) > 1:
            pairs += [(name, names[-1]) for name in untrained]
    asked_of = {name: {row.problem_id for row in model} for name, model in models.items()}
    alike = [pair for pair in dict.fromkeys(pairs) if asked_of[pair[0]] == asked_of[pair[1]]]
    return {pair: compare(models[pair[0]], models[pair[1]]) for pair in alike}


def results_json(rows: Rows) -> dict[str, Any]:
    """Return everything in the table and the sentences, and further measures, as plain data."""
    results: dict[str, Any] = {}
    for benchmark, models in summaries(rows).items():
        comparisons = [
            {"first": first, "second": second, **asdict(comparison)}
            for (first, second), comparison in headline_comparisons(rows, benchmark).items()
        ]
        mine = {name: [row for row in rows[name] if row.benchmark == benchmark] for name in models}
        results[benchmark] = {
            "models": {
                name: asdict(summary) | {"details": details(mine[name]), "effort": asdict(effort(mine[name]))}
                for name, summary in models.items()
            },
            "comparisons": comparisons,
        }
    return results
