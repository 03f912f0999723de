"""The figures of a report, as Vega-Lite charts: pure functions of run data. Pages embed them, files are made of them."""

from collections import Counter
from collections.abc import Mapping, Sequence

import altair as alt

from conclip.config.recipe import label as stage_label
from conclip.evaluation.measures import accuracy_at_budgets, by_problem, grouped
from conclip.evaluation.metrics import Summary, summarise
from conclip.report.data import RunData
from conclip.report.figure import MODELS, OUTCOMES, WIDTH, Chart, Figure, Values
from conclip.report.training_charts import monitors, pass_rates, step_times
from conclip.types import EvalRow, condition_name

NUM_BINS = 40
NUM_BUDGETS = 48


def figures(runs: Sequence[RunData]) -> list[Figure]:
    """Return every figure for which the runs have data."""
    several = len(runs) > 1
    models = {label(run, name, several): rows for run in runs for name, rows in models_of(run).items()}
    asked = {label(run, name, several): rows for run in runs for name, rows in by_asking(run.rows).items()}
    made = [
        curves(runs),
        lengths(models, columns=max(len(models_of(run)) for run in runs) if several else 1),
        scatter(asked),
        budgets(models),
        *(pass_rates(run, phase, several) for run in runs for phase in run.rates),
        *(monitors(run, several) for run in runs),
        *(step_times(run, several) for run in runs),
    ]
    return [figure for figure in made if figure is not None]


def label(run: RunData, model: str, several: bool) -> str:
    return f"{run.name}: {model}" if several else model


def models_of(run: RunData) -> dict[str, list[EvalRow]]:
    """Return the rows of each model in the first prompt condition."""
    asked_alike = (row for row in run.rows if row.prompt_condition == run.rows[0].prompt_condition)
    return grouped(asked_alike, lambda row: row.model)


def by_asking(rows: Sequence[EvalRow]) -> dict[str, list[EvalRow]]:
    """Group rows by model and prompt condition; names leave out a condition that all share."""
    several = len({row.prompt_condition for row in rows}) > 1
    return grouped(rows, lambda row: f"{row.model}, {condition_name(*row.prompt_condition)}" if several else row.model)


def by_setting(rows: Sequence[EvalRow]) -> dict[str, list[EvalRow]]:
    """Group rows by benchmark and temperature, over which no figure averages."""
    return grouped(rows, lambda row: f"{row.benchmark}, T {row.temperature:g}")


def _settings_of(models: Mapping[str, Sequence[EvalRow]]) -> list[str]:
    return list(dict.fromkeys(where for rows in models.values() for where in by_setting(rows)))


def _model_colour(models: list[str]) -> alt.Color:
    scale = alt.Scale(domain=models, range=list(MODELS))
    return alt.Color("model:N", sort=models, scale=scale, legend=alt.Legend(orient="top", title=None))


def curves(runs: Sequence[RunData]) -> Figure | None:
    """Draw validation accuracy and length over the steps, phase after phase."""
    points: Values = []
    bounds: Values = []
    for run in runs:
        offset = 0.0
        for phase, history in run.history.items():
            for point in history:
                step = offset + point["step"]
                kept = point["step"] == run.best[phase]["step"]
                points.append({"run": run.name, "phase": phase, "step": step, "kept": kept} | _named(point))
            offset += history[-1]["step"]
            bounds.append({"step": offset, "run": run.name, "phase": phase})
    if not points:
        return None
    colour = alt.Color("run:N", title="run", scale=alt.Scale(range=list(MODELS[1:])))
    shown = colour if len(runs) > 1 else alt.value(MODELS[1])
    panels: dict[str, Chart] = {}
    for field, title in (("accuracy", "validation accuracy"), ("tokens", "mean response tokens")):
        base = alt.Chart(alt.Data(values=points)).encode(
            x=alt.X("step:Q", title="training steps"),
            y=alt.Y(f"{field}:Q", title=None, scale=alt.Scale(zero=True)),
            color=shown,
            tooltip=[
                "run:N",
                "phase:N",
                "step:Q",
                alt.Tooltip("accuracy:Q", format=".3f"),
                alt.Tooltip("tokens:Q", format=".1f"),
            ],
        )
        line = base.mark_line().encode(detail=["run:N", "phase:N"])
        dots = base.mark_point(filled=True, size=45)
        kept = base.mark_point(size=220, strokeWidth=2).transform_filter("datum.kept")
        layers = [line, dots, kept]
        if len(runs) == 1 and len(bounds) > 1:
            layers.append(alt.Chart(alt.Data(values=bounds[:-1])).mark_rule(strokeDash=[4, 4]).encode(x="step:Q"))
        panels[title] = alt.layer(*layers).properties(width=WIDTH, height=190)
    described = "; ".join(
        _described([point for point in points if point["run"] == run.name], run.name) for run in runs if run.history
    )
    ended = [stage_label(bound["phase"]) for bound in bounds[:-1]] if len(runs) == 1 else []
    end = (
        f", {'dashed lines the ends' if len(ended) > 1 else 'a dashed line the end'} of {', '.join(ended)}" if ended else ""
    )
    return Figure(
        name="curves",
        title="Accuracy and length over training",
        caption=f"On the validation problems, over the steps: {described}. A ring marks the checkpoint that was kept{end}.",
        panels=panels,
        columns=2,
    )


def _described(points: Values, name: str) -> str:
    first, last = points[0], points[-1]
    return (
        f"{name}, accuracy from {first['accuracy']:.3f} to {last['accuracy']:.3f}, mean tokens from {first['tokens']:.0f} "
        f"to {last['tokens']:.0f}"
    )


def _named(point: Mapping[str, float]) -> dict[str, float]:
    return {"accuracy": point["accuracy"], "tokens": point["mean_tokens"]}


def lengths(models: Mapping[str, Sequence[EvalRow]], *, columns: int) -> Figure | None:
    """Draw histograms of response lengths by model, benchmark, temperature and outcome."""
    if not models:
        return None
    longest = max(row.num_tokens for rows in models.values() for row in rows)
    width = max(1, -(-longest // NUM_BINS))
    settings = _settings_of(models)
    several = len(settings) > 1
    models = {
        f"{name} ({where})" if several else name: mine
        for name, rows in models.items()
        for where, mine in by_setting(rows).items()
    }
    counts = {name: Counter((row.num_tokens // width, row.outcome) for row in rows) for name, rows in models.items()}
    present = [
        outcome for outcome in OUTCOMES if any(key[1] is outcome for by_outcome in counts.values() for key in by_outcome)
    ]
    panels: dict[str, Chart] = {}
    for name, rows in models.items():
        values: Values = [
            {"from": number * width, "to": (number + 1) * width, "outcome": o.value, "share": 100 * count / len(rows)}
            for (number, o), count in sorted(counts[name].items())
        ]
        panels[name] = (
            alt.Chart(alt.Data(values=values))
            .mark_bar()
            .encode(
                x=alt.X("from:Q", bin="binned", title="response tokens", scale=alt.Scale(domain=[0, longest + width])),
                x2="to:Q",
                y=alt.Y("share:Q", stack="zero", title="% of responses"),
                color=alt.Color(
                    "outcome:N",
                    scale=alt.Scale(domain=[o.value for o in present], range=[OUTCOMES[o] for o in present]),
                    legend=alt.Legend(orient="top", title=None),
                ),
                tooltip=["outcome:N", "from:Q", "to:Q", alt.Tooltip("share:Q", format=".2f", title="% of responses")],
            )
            .properties(width=WIDTH, height=130)
        )
    means = ", ".join(f"{name} {sum(r.num_tokens for r in rows) / len(rows):.0f}" for name, rows in models.items())
    return Figure(
        name="lengths",
        title="How long responses are",
        caption=f"Histograms of response length by outcome, one for each model{' and benchmark' if several else ''}, on one "
        f"scale of tokens. Mean tokens: {means}.",
        panels=panels,
        columns=min(3, len(settings)) if several else columns,
    )


def scatter(models: Mapping[str, Sequence[EvalRow]]) -> Figure | None:
    """Draw accuracy against length, with 95 % intervals, by model and way of asking, benchmark and temperature."""
    values: Values = [
        {"model": name, "where": where} | _point(summarise(mine))
        for name, rows in models.items()
        for where, mine in by_setting(rows).items()
    ]
    if not values:
        return None
    settings = _settings_of(models)
    base = alt.Chart(alt.Data(values=values)).encode(
        color=_model_colour(list(models)),
        tooltip=["model:N", "where:N", alt.Tooltip("accuracy:Q", format=".3f"), alt.Tooltip("tokens:Q", format=".1f")],
    )
    across = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("tokens_low:Q", title="mean response tokens", scale=alt.Scale(zero=False, padding=15)),
        x2="tokens_high:Q",
        y="accuracy:Q",
    )
    up = base.mark_rule(strokeWidth=2).encode(
        x="tokens:Q",
        y=alt.Y("accuracy_low:Q", title="accuracy", scale=alt.Scale(zero=False, padding=15)),
        y2="accuracy_high:Q",
    )
    dots = base.mark_point(filled=True, size=90, opacity=1).encode(x="tokens:Q", y="accuracy:Q")
    if len(settings) > 1:
        dots = dots.encode(shape=alt.Shape("where:N", title=None, legend=alt.Legend(orient="top")))
    described = "; ".join(
        f"{v['model']} ({v['where']}): accuracy {v['accuracy']:.3f} at {v['tokens']:.0f} tokens" for v in values
    )
    return Figure(
        name="scatter",
        title="Accuracy against length",
        caption=f"With 95 % intervals, clustered by problem. {described}.",
        panels={"": alt.layer(across, up, dots).properties(width=WIDTH, height=300)},
    )


def _point(summary: Summary) -> dict[str, float]:
    return {
        "accuracy": summary.accuracy.mean,
        "accuracy_low": summary.accuracy.low,
        "accuracy_high": summary.accuracy.high,
        "tokens": summary.mean_tokens.mean,
        "tokens_low": summary.mean_tokens.low,
        "tokens_high": summary.mean_tokens.high,
    }


def budgets(models: Mapping[str, Sequence[EvalRow]]) -> Figure | None:
    """Draw the share of responses that are right within a number of tokens, a panel for each benchmark and temperature."""
    settings = _settings_of(models)
    if not settings:
        return None
    panels: dict[str, Chart] = {}
    described: list[str] = []
    for where in settings:
        mine = {name: by_setting(rows).get(where, []) for name, rows in models.items()}
        there = {name: rows for name, rows in mine.items() if by_problem(rows)}  # where some response could be graded
        if not there:
            continue
        longest = max(row.num_tokens for rows in there.values() for row in rows)
        panels[where if len(settings) > 1 else ""] = _budget_panel(there, longest, list(models))
        reached = [f"{n} {accuracy_at_budgets(rows, [longest // 4])[longest // 4]:.3f}" for n, rows in there.items()]
        described.append(f"{f'{where}, within' if len(settings) > 1 else 'Within'} {longest // 4}: {', '.join(reached)}")
    if not panels:
        return None
    return Figure(
        name="budgets",
        title="Accuracy at token budgets",
        caption=f"Share of responses that are right within a number of tokens. {'; '.join(described)}.",
        panels=panels,
        columns=min(2, len(panels)),
    )


def _budget_panel(there: Mapping[str, Sequence[EvalRow]], longest: int, models: Sequence[str]) -> Chart:
    marks = sorted({max(1, longest * number // NUM_BUDGETS) for number in range(1, NUM_BUDGETS + 1)})
    values: Values = [
        {"model": name, "budget": budget, "accuracy": accuracy}
        for name, rows in there.items()
        for budget, accuracy in accuracy_at_budgets(rows, marks).items()
    ]
    return (
        alt.Chart(alt.Data(values=values))
        .mark_line(interpolate="step-after", strokeWidth=2)
        .encode(
            x=alt.X("budget:Q", title="token budget"),
            y=alt.Y("accuracy:Q", title="right within the budget", scale=alt.Scale(domain=[0, 1])),
            color=_model_colour(list(models)),
            tooltip=["model:N", "budget:Q", alt.Tooltip("accuracy:Q", format=".3f")],
        )
        .properties(width=WIDTH, height=260)
    )
