"""Accuracy x length of every algorithm and length reward on the lab, for an equal budget of sampled tokens.

    make frontier                                   # everything, three seeds; continues where it was cut (hours)
    make frontier ARGS="--seeds 1 --only ppo,grpo"  # some of it
    make frontier ARGS=--render                     # only the table and the picture of docs/algorithms.md

Per seed, the base model is probed once and the same eight problems (pass rate 0.2 to 0.8) train everything; each run ends
after the same number of sampled training tokens and is evaluated as it ends, best or not. Seeds redraw problems, sampling
and training. One JSON line a run goes to `outputs/frontier/seed-N.jsonl`, so seeds may run side by side, in processes of
their own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib
from lab_runs import DOCS, Line, differences, into_page, keep_rows, lines, main, table

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import ListedColormap

ALGORITHMS = ("ppo", "vapo", "grpo", "dr_grpo", "dapo", "rloo", "reinforce_pp", "gspo", "cispo", "shortest_sft")
LORA = ("model/adapter=lora", "optim.policy_lr=1.0e-3", "optim.critic_lr=5.0e-3")
"""Ten times the learning rates of all weights, as for models whose config leaves them open."""
VARIANTS = {
    "ppo lambda 1": ("algo.gae_lambda=1.0",),
    "ppo token_mean": ("algo.loss_aggregation=token_mean",),
    "ppo whitened": ("algo.whiten_advantages=true",),
    "ppo no KL": ("algo.kl=none", "algo.kl_coef=0"),
    "ppo LoRA": LORA,
    "grpo LoRA": ("algo=grpo", *LORA),
}
STRENGTHS = {
    "kimi": 0.4,
    "arora": 0.1,
    "l1_exact": 1.23,
    "l1_max": 1.23,
    "shorter_better": 6.0,
    "laser": 0.5,
    "laser_d": 0.5,
    "l_grpo": 0.5,
    "gr3": 0.33,
    "alp": 0.5,
    "dapo_overlong": 1.0,
    "cosine": 1.0,
}
"""The published strength; where there is none, or one per token (ALP), ours."""


def runs() -> dict[str, tuple[str, ...]]:
    """name -> overrides."""
    everything: dict[str, tuple[str, ...]] = {name: (f"algo={name}",) for name in ALGORITHMS}
    everything |= VARIANTS
    for kind, strength in STRENGTHS.items():
        everything[f"{kind} {strength:g}"] = (
            "algo=grpo",
            "reward=binary",
            f"length={kind}",
            f"length.strength={strength}",
            *(("trainer.validate_every=5",) if kind == "laser_d" else ()),  # it looks at the validation lengths
        )
    everything["thinkprune"] = ("algo=grpo", "reward=binary", "phase2.max_tokens_stages=[1.0,0.75,0.5]")
    everything["grpo binary"] = ("algo=grpo", "reward=binary")
    return everything


def picture(found: Sequence[Line], path: Path) -> None:
    """Left: algorithms without a length term; right: length rewards, beside GRPO and PPO without any."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 7), sharex=True, sharey=True, layout="constrained")
    plain = [line for line in found if line.name in (*ALGORITHMS, *VARIANTS, "base", "grpo binary")]
    for line in plain:
        _point(left, line, line.name)
        if line.name in ("grpo binary", "ppo"):
            _point(right, line, f"{line.name}, no length term")
    for line in found:
        if line not in plain:
            _point(right, line, line.name)
    for axes, title in ((left, "algorithms, no length term"), (right, "length rewards on GRPO")):
        axes.set_title(title)
        axes.set_xlabel("tokens against base [%]")
        axes.axhline(0, color="0.7", linewidth=0.8)
        axes.axvline(0, color="0.7", linewidth=0.8)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False)
    left.set_ylabel("accuracy against base [points]")
    figure.savefig(path, dpi=110)
    plt.close(figure)


MARKERS = "osD^v<>Ph*Xp8"
COLOURS = [
    *cast(Any, cast(ListedColormap, matplotlib.colormaps["tab10"]).colors),
    "black",
    "navy",
    "darkgreen",
    "maroon",
    "indigo",
]


def _point(axes: Any, line: Line, label: str) -> None:
    count = len(axes.containers)
    (x, left, right), (y, low, high) = line.percent, line.points
    colour = COLOURS[count % len(COLOURS)]
    axes.scatter([x], [y], s=30, marker=MARKERS[count % len(MARKERS)], color=colour, label=label, zorder=3)
    interval = {"xerr": [[x - left], [right - x]], "yerr": [[y - low], [high - y]]}
    axes.errorbar([x], [y], **interval, fmt="none", ecolor=colour, linewidth=0.8, alpha=0.22)


PAIRS = (
    ("ppo", "grpo"),
    ("grpo LoRA", "grpo"),
    *((name, "ppo") for name in (*VARIANTS, "shortest_sft", "thinkprune") if name != "grpo LoRA"),
    ("ppo", "grpo LoRA"),
    ("thinkprune", "shortest_sft"),
    *((f"{kind} {strength:g}", "grpo binary") for kind, strength in STRENGTHS.items()),
    ("thinkprune", "grpo binary"),
)


def render(out: Path) -> None:
    """The table, the picture and the rows behind them into docs/."""
    rows = keep_rows(out, DOCS / "frontier")
    found = lines(rows)
    picture(found, DOCS / "frontier" / "frontier.png")
    into_page(DOCS / "algorithms.md", "frontier", table(found))
    print(table(found), *differences(rows, PAIRS), sep="\n")


if __name__ == "__main__":
    main(__doc__ or "", runs(), render, out=Path("outputs/frontier"), seeds="0,1,2")
