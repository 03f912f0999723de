"""The figure of a claim: what came of each run, and the differences that decide, each beside where it would hold."""

from collections.abc import Mapping, Sequence
from math import isfinite

import altair as alt

from conclip.claims.config import Contrast
from conclip.claims.measures import RunNumbers
from conclip.claims.outcome import Outcome, unit, with_interval
from conclip.claims.verdict import Word, margin_of
from conclip.report.figure import WIDTH, Chart, Figure, Values
from conclip.stats import clustered_interval

SHOWN = {"tokens": "tokens against base [%]", "accuracy": "accuracy against base [points]"}
"""What is shown of each run."""

VERDICTS: Mapping[Word, tuple[str, str]] = {
    "holds": ("#2f7d4f", "circle"),
    "does not hold": ("#c2452d", "cross"),
    "not separable": ("#5b6472", "square"),
    "underpowered": ("#b9801f", "diamond"),
}
"""Colour and shape of a verdict."""

LEGEND = (
    "{runs}Points are seeds. Differences that decide: mean and interval as in the table; one holds if its bar lies within "
    "the green. Values without an interval have no bar."
)
RUNS_LEGEND = "Runs: mean and 95 % interval of each by itself. "

ROW = alt.Step(26)
NAMES = alt.Axis(labelLimit=320)


def legend(outcome: Outcome) -> str:
    """Return what to know to read the figure."""
    return LEGEND.format(runs=RUNS_LEGEND if _has_runs(outcome) else "")


def _has_runs(outcome: Outcome) -> bool:
    return len(outcome.claim.runs) > 1


def figure(outcome: Outcome) -> Figure:
    """Draw the runs, where there are several, and all contrasts, one panel for each measure."""
    panels = {f"each run: {name}": _runs(outcome, name) for name in SHOWN} if _has_runs(outcome) else {}
    measures = dict.fromkeys(contrast.measure for contrast in outcome.claim.contrasts.values())
    for measure in measures:
        contrasts = {name: c for name, c in outcome.claim.contrasts.items() if c.measure == measure}
        title = f"differences in {measure.removeprefix('metrics.')} (green: where one holds)"
        panels[title] = _contrasts(outcome, contrasts)
    said = "; ".join(
        f"{name}: {with_interval(v.mean, v.low, v.high)}, {v.word}"
        for name in outcome.claim.contrasts
        if len(outcome.differences[name]) > 1 and (v := outcome.verdict(name))
    )
    caption = f"{legend(outcome)} {said}."
    return Figure(name=outcome.name, title=outcome.claim.claim, caption=caption, panels=panels)


def values_of(found: Sequence[RunNumbers], measure: str) -> list[float]:
    """Return a measure of each seed that has it."""
    return [value for one in found if (value := getattr(one, measure)) is not None]


def _runs(outcome: Outcome, measure: str) -> Chart:
    """Draw a measure of each run: a point for every seed, the mean and its interval."""
    seeds: Values = []
    means: Values = []
    for name, by_seed in outcome.runs.items():
        values = values_of(list(by_seed.values()), measure)
        seeds += [{"name": name, "value": value} for value in values]
        if len(values) > 1:
            mean, low, high = clustered_interval(values)
            means.append({"name": name, "mean": mean, "low": low, "high": high})
    x = alt.X("value:Q", title=SHOWN[measure], scale=alt.Scale(zero=True, padding=12))
    y = alt.Y("name:N", title=None, sort=list(outcome.runs), axis=NAMES)
    interval = alt.Chart(alt.Data(values=means))
    return alt.layer(
        alt.Chart(alt.Data(values=[{"value": 0.0}])).mark_rule(strokeDash=[4, 4]).encode(x="value:Q"),
        alt.Chart(alt.Data(values=seeds)).mark_point(size=40, opacity=0.5).encode(x=x, y=y),
        interval.mark_rule(strokeWidth=3, color="black").encode(x="low:Q", x2="high:Q", y=y),
        interval.mark_point(filled=True, size=110, color="black", opacity=1).encode(x="mean:Q", y=y),
    ).properties(width=WIDTH, height=ROW)


def _contrasts(outcome: Outcome, contrasts: Mapping[str, Contrast]) -> Chart:
    """Draw contrasts of one measure: a point for every seed, the mean and its interval, and the range in which it holds."""
    seeds: Values = []
    means: Values = []
    borders: dict[str, tuple[float, float]] = {}
    for name, contrast in contrasts.items():
        found = outcome.differences[name]
        seeds += [{"name": name, "seed": seed, "value": value} for seed, value in found.items()]
        side, margin = margin_of(contrast.expect, contrast.relevant, contrast.at_least)
        borders[name] = side * margin, side
        if len(found) > 1:
            v = outcome.verdict(name)
            low, high = (v.low, v.high) if isfinite(v.low) else (v.mean, v.mean)
            means.append({"name": name, "mean": v.mean, "low": low, "high": high, "verdict": v.word})
    first, last = _domain(
        [0.0, *(border for border, _ in borders.values()), *(one["value"] for one in seeds)],
        [one[key] for one in means for key in ("low", "high")],
    )
    ranges: Values = [
        {"name": name, "from": border, "to": last if side > 0 else first} for name, (border, side) in borders.items()
    ]
    of = next(iter(contrasts.values()))
    x = alt.X("value:Q", title=unit(of) or "as measured", scale=alt.Scale(domain=[first, last], nice=False))
    y = alt.Y("name:N", title=None, sort=list(contrasts), axis=NAMES)
    colour = alt.Scale(domain=list(VERDICTS), range=[colour for colour, _ in VERDICTS.values()])
    shape = alt.Scale(domain=list(VERDICTS), range=[shape for _, shape in VERDICTS.values()])
    interval = alt.Chart(alt.Data(values=means))
    return alt.layer(
        alt.Chart(alt.Data(values=ranges)).mark_bar(color="#d9efe0", height=22).encode(x="from:Q", x2="to:Q", y=y),
        alt.Chart(alt.Data(values=[{"value": 0.0}])).mark_rule(strokeDash=[4, 4]).encode(x="value:Q"),
        alt.Chart(alt.Data(values=seeds)).mark_point(size=40, opacity=0.5).encode(x=x, y=y, tooltip=["seed:Q", "value:Q"]),
        interval.mark_rule(strokeWidth=3, color="black", clip=True).encode(x="low:Q", x2="high:Q", y=y),
        interval.mark_point(filled=True, size=130, opacity=1).encode(
            x="mean:Q",
            y=y,
            color=alt.Color("verdict:N", title=None, scale=colour, legend=alt.Legend(orient="top")),
            shape=alt.Shape("verdict:N", title=None, scale=shape, legend=alt.Legend(orient="top")),
        ),
    ).properties(width=WIDTH, height=ROW)


def _domain(shown: Sequence[float], ends: Sequence[float]) -> tuple[float, float]:
    """Return the range of an axis: of all values to be shown, and of the ends of intervals unless they lie farther out than
    the values do from each other. Such an interval leaves the picture."""
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    low, high = (max(low - span, min(low, *ends)), min(high + span, max(high, *ends))) if ends else (low, high)
    return low - 0.05 * span, high + 0.05 * span
