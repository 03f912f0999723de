"""Accuracy and length over the steps of the training phases, as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from conclip.training.trainer import Validation

ACCURACY, LENGTH = "#1b6ca8", "#c8553d"


def draw_curve(phases: Mapping[str, Sequence[Validation]], path: Path) -> None:
    """Validation accuracy and mean response length, phase after phase; the format follows the file's suffix."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    offset = 0
    for index, (name, history) in enumerate(phases.items()):
        steps = [offset + point.step for point in history]
        upper.plot(steps, [point.accuracy for point in history], "o-", color=ACCURACY, markersize=4)
        lower.plot(steps, [point.mean_tokens for point in history], "s-", color=LENGTH, markersize=4)
        if index:
            for axis in (upper, lower):
                axis.axvline(offset, color="0.6", linewidth=1, linestyle="--")
        upper.text((steps[0] + steps[-1]) / 2, 1.03, name, ha="center", color="0.3")
        offset = steps[-1]
    upper.set_ylim(0, 1)
    upper.set_ylabel("validation accuracy")
    lower.set_ylim(bottom=0)
    lower.set_ylabel("mean response tokens")
    lower.set_xlabel("training steps")
    for axis in (upper, lower):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
