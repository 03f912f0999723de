"""The figures of training: pass rates, monitors, and where the time went. Pure functions of run data."""

from collections import Counter

import altair as alt

from conclip.config.recipe import label
from conclip.curriculum.pass_rates import graded
from conclip.report.data import RunData
from conclip.report.figure import MODELS, WIDTH, Chart, Figure, Values
from conclip.training.summary import MONITORS

PARTS = {
    "generate": "sampling",
    "grade": "waiting for grades",
    "score": "scoring",
    "advantages": "advantages",
    "update": "update",
    "push_weights": "weights to the engine",
    "validate": "validation",
    "save": "waiting for checkpoints",
    "other": "the rest",
}
"""What a step's time goes to, in order."""


def pass_rates(run: RunData, phase: str, several: bool) -> Figure | None:
    """Draw measured pass rates, with the chosen problems marked."""
    chosen = {choice.problem_id for choice in run.chosen.get(phase, ())}
    rates = graded(run.rates[phase])
    counts = Counter((min(9, int(10 * rate.pass_rate)), rate.problem_id in chosen) for rate in rates)
    values: Values = [
        {"from": tenth / 10, "to": (tenth + 1) / 10, "problems": count, "kind": "chosen" if is_chosen else "not chosen"}
        for (tenth, is_chosen), count in sorted(counts.items())
    ]
    chart = (
        alt.Chart(alt.Data(values=values))
        .mark_bar()
        .encode(
            x=alt.X("from:Q", bin=alt.Bin(binned=True, step=0.1), title="measured pass rate"),
            x2="to:Q",
            y=alt.Y("problems:Q", stack="zero", title="problems"),
            color=alt.Color(
                "kind:N",
                scale=alt.Scale(domain=["chosen", "not chosen"], range=[MODELS[1], "#a9afb8"]),
                legend=alt.Legend(orient="top", title=None),
            ),
            tooltip=["kind:N", "from:Q", "to:Q", "problems:Q"],
        )
        .properties(width=WIDTH, height=200)
    )
    ungraded = len(run.rates[phase]) - len(rates)
    title = f"Pass rates before {label(phase)}" if phase else "Pass rates"
    return Figure(
        name=f"pass-rates-{phase or 'probe'}" + (f"-{run.name}" if several else ""),
        title=title + (f": {run.name}" if several else ""),
        caption=f"{len(run.rates[phase])} problems were probed, {len(chosen)} chosen to train on"
        + (f"; of {ungraded}, no response could be graded." if ungraded else "."),
        panels={"": chart},
    )


def monitors(run: RunData, several: bool) -> Figure | None:
    """Draw the monitors of every step, a panel each, phase after phase; those that stayed 0 are left out."""
    values: Values = []
    offset = 0
    for phase, steps in run.steps.items():
        offset += max(0, 1 - min((row["step"] for row in steps), default=1))  # steps up to 0 warm up the critic
        for row in steps:
            values += [
                {"monitor": title, "phase": phase, "step": offset + row["step"], "value": row[name]}
                for name, title in MONITORS.items()
                if row.get(name) is not None
            ]
        offset += steps[-1]["step"] if steps else 0
    panels: dict[str, Chart] = {}
    for title in MONITORS.values():
        mine = [value for value in values if value["monitor"] == title]
        if any(value["value"] for value in mine):
            panels[title] = (
                alt.Chart(alt.Data(values=mine))
                .mark_line(point=alt.OverlayMarkDef(size=14), color=MODELS[1])
                .encode(
                    x=alt.X("step:Q", title="step"),
                    y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
                    detail="phase:N",
                    tooltip=["phase:N", "step:Q", alt.Tooltip("value:Q", format=".4g")],
                )
                .properties(width=WIDTH, height=110)
            )
    if not panels:
        return None
    return Figure(
        name="monitors" + (f"-{run.name}" if several else ""),
        title="Monitors of every step" + (f": {run.name}" if several else ""),
        caption=f"Panels over {offset} steps: {', '.join(panels)}. The means of their first and last quarter, their lowest "
        "and their highest stand in training-<phase>.json.",
        panels=panels,
        columns=3,
    )


def step_times(run: RunData, several: bool) -> Figure | None:
    """Draw what the time of each phase's steps went to, as a bar."""
    values: Values = []
    described: list[str] = []
    for phase, steps in run.steps.items():
        seconds = {part: sum(row.get(f"time/{part}_s") or 0.0 for row in steps) for part in PARTS}
        total = sum(seconds.values())
        if total > 0:
            values += [
                {"phase": phase, "part": PARTS[part], "order": order, "seconds": spent, "share": spent / total}
                for order, (part, spent) in enumerate(seconds.items())
            ]
            most = sorted(seconds, key=lambda part: -seconds[part])[:3]
            shares = ", ".join(f"{PARTS[part]} {seconds[part] / total:.0%}" for part in most)
            sampled = steps[-1].get("rollout/num_sampled_tokens") or 0.0
            # of a step that was sampled ahead, only the wait is known
            is_timed = seconds["generate"] > 0 and not any(row.get("rollout/steps_behind") for row in steps)
            pace = f", {sampled / seconds['generate']:,.0f} sampled tokens/s" if is_timed else ""
            described.append(f"{phase}: {len(steps)} steps of {total / len(steps):.1f} s ({shares}{pace})")
    if not values:
        return None
    chart = (
        alt.Chart(alt.Data(values=values))
        .mark_bar()
        .encode(
            x=alt.X("sum(seconds):Q", title="seconds"),
            y=alt.Y("phase:N", title=None, sort=None),
            color=alt.Color(
                "part:N",
                title=None,
                scale=alt.Scale(domain=list(PARTS.values()), range=MODELS),
                legend=alt.Legend(orient="top", columns=2, labelLimit=0),
            ),
            order=alt.Order("order:Q"),
            tooltip=["phase:N", "part:N", alt.Tooltip("seconds:Q", format=".1f"), alt.Tooltip("share:Q", format=".1%")],
        )
        .properties(width=WIDTH, height=40 * len(described))
    )
    return Figure(
        name="times" + (f"-{run.name}" if several else ""),
        title="Where the time of the steps went" + (f": {run.name}" if several else ""),
        caption=f"{'; '.join(described)}.",
        panels={"": chart},
    )
