"""Which problems to train phase 2 on: how many, of what pass rate, and whether to replace them on the way.

    make selection                      # everything, five seeds; continues where it was cut (hours)
    make selection ARGS="--seeds 0"     # some of it
    make selection ARGS=--render        # only the tables and pictures of docs/selection.md

PPO as shipped on the lab, 64 responses a step, four updates a step, constant learning rate, until 100,000 training tokens
are sampled (200,000 for refresh against fixed, both looked at every second step).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from lab_runs import DOCS, Line, differences, into_page, keep_rows, lines, main, table

from conclip.stats import clustered_interval

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SIZES = (1, 4, 8, 32, 128)
BANDS = ((0.05, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 0.95))
POOL = ("data.pool.chain.num_problems=700", "data.pool.chain.levels=[2,3,4,5,6,7,8,9,10]")
LOOKS = ("phase2.max_sampled_tokens=200000", "trainer.validate_every=2")


def runs() -> dict[str, tuple[str, ...]]:
    """name -> overrides."""
    everything: dict[str, tuple[str, ...]] = {}
    for size in SIZES:
        per_step = min(size, 8)
        everything[f"size {size}"] = (
            f"phase2.num_problems={size}",
            f"phase2.problems_per_step={per_step}",
            f"phase2.group_size={64 // per_step}",
        )
    for low, high in BANDS:
        everything[f"band {low:g}-{high:g}"] = (f"phase2.pass_rate_low={low}", f"phase2.pass_rate_high={high}")
    everything["fixed"] = LOOKS
    everything["refresh"] = (*LOOKS, "phase2.refresh=true")
    return everything


def picture(found: Sequence[Line], path: Path) -> None:
    """Tokens and accuracy against base, by size of the set and by pass rate."""
    figure, panels = plt.subplots(2, 2, figsize=(10, 7), sharey="row", layout="constrained")
    for column, (kind, label) in enumerate((("size", "training problems"), ("band", "pass rate of the training problems"))):
        mine = {line.name: line for line in found if line.name.startswith(kind)}
        chosen = [mine[name] for name in runs() if name in mine]
        ticks = [line.name.split(" ")[1] for line in chosen]
        for row, (values, text) in enumerate(
            (
                ([line.percent for line in chosen], "tokens against base [%]"),
                ([line.points for line in chosen], "accuracy against base [points]"),
            )
        ):
            axes = panels[row][column]
            mean = [m for m, _, _ in values]
            bars = [[m - low for m, low, _ in values], [high - m for m, _, high in values]]
            axes.errorbar(range(len(mean)), mean, yerr=bars, fmt="o-", capsize=3, color=f"C{row}")
            axes.set_xticks(range(len(ticks)), ticks)
            axes.set_xlabel(label)
            axes.grid(alpha=0.25)
            axes.axhline(0, color="0.7", linewidth=0.8)
            if column == 0:
                axes.set_ylabel(text)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def refresh_picture(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Validation accuracy and length by step, mean and interval over seeds, as long as all seeds go on."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for number, name in enumerate(("fixed", "refresh")):
        curves = [
            {step: (accuracy, tokens) for step, accuracy, tokens in row["curve"]} for row in rows if row["name"] == name
        ]
        steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
        for side, axes in enumerate(panels):
            values = [clustered_interval([curve[step][side] for curve in curves]) for step in steps]
            axes.plot(steps, [m for m, _, _ in values], "o-", color=f"C{number}", label=name, markersize=4)
            axes.fill_between(steps, [v[1] for v in values], [v[2] for v in values], color=f"C{number}", alpha=0.2)
    for axes, label in zip(panels, ("validation accuracy", "mean response tokens"), strict=True):
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


PAIRS = (
    ("refresh", "fixed"),
    ("band 0.8-0.95", "band 0.5-0.8"),
    *((f"size {size}", "size 8") for size in SIZES if size != 8),
)


def render(out: Path) -> None:
    """Tables, pictures and the rows behind them into docs/."""
    folder = DOCS / "selection"
    rows = keep_rows(out, folder)
    found = lines(rows)
    picture(found, folder / "selection.png")
    refresh_picture(rows, folder / "refresh.png")
    order = list(runs())
    into_page(
        DOCS / "selection.md",
        "selection",
        table(sorted((line for line in found if line.name in order), key=lambda line: order.index(line.name))),
    )
    print(table(found), *differences(rows, PAIRS), sep="\n")


if __name__ == "__main__":
    main(__doc__ or "", runs(), render, out=Path("outputs/selection"), seeds="0,1,2,3,4", common=POOL)
