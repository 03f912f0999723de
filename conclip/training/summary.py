"""The monitors of a whole phase: their names, the summary of their values, and its table."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from rich.table import Table

MONITORS = {
    "outcome/correct": "correct",
    "length/mean_tokens": "tokens",
    "policy/share_zero_advantage_groups": "groups without an advantage",
    "policy/kl_gradient_share": "KL's share of the gradient",
    "policy/sampler_drift_max": "engine against trainer, largest [nats]",
    "policy/end_probability_correct": "end-token probability, correct",
    "policy/end_probability_wrong": "end-token probability, not correct",
    "policy/advantage_correct_short": "advantage, correct, shortest third",
    "policy/advantage_correct_long": "advantage, correct, longest third",
    "policy/advantage_wrong_short": "advantage, not correct, shortest third",
    "policy/advantage_wrong_long": "advantage, not correct, longest third",
    "value/explained_variance": "critic's explained variance",
    "policy/entropy": "entropy [nats]",
    "policy/clip_fraction": "clipped tokens",
    "optim/policy_grad_norm": "gradient norm",
    "optim/skipped_updates": "skipped updates",
}
"""The name of each metric in the summary of a phase."""


def summarise_steps(steps: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return each monitor's mean over the first and the last quarter of its steps, and its lowest and highest value. Values
    that are not finite, such as the gradient norm of a skipped update, are left out."""
    summary: dict[str, dict[str, float]] = {}
    for name in MONITORS:
        # on a step that was sampled ahead, drift is what the step before has changed
        told = [s for s in steps if not s.get("rollout/steps_behind")] if name == "policy/sampler_drift_max" else steps
        values = [step[name] for step in told if math.isfinite(step.get(name, math.nan))]
        if values:
            quarter = max(1, len(values) // 4)
            summary[name] = {
                "first": fmean(values[:quarter]),
                "last": fmean(values[-quarter:]),
                "lowest": min(values),
                "highest": max(values),
            }
    return summary


def is_summary(name: str, values: Mapping[str, float]) -> bool:
    """Return whether a monitor has that name and the values have the keys of `summarise_steps`."""
    return name in MONITORS and values.keys() == {"first", "last", "lowest", "highest"}


def summary_table(title: str, summary: Mapping[str, Mapping[str, float]]) -> Table:
    """Return the summary as a table; monitors that stayed 0 are left out."""
    table = Table(title=title, title_justify="left")
    table.add_column("monitor")
    for column in ("first quarter", "last quarter", "lowest", "highest"):
        table.add_column(column, justify="right")
    for name, values in summary.items():
        if values["lowest"] or values["highest"]:
            table.add_row(MONITORS[name], *(f"{values[key]:.3g}" for key in ("first", "last", "lowest", "highest")))
    return table
