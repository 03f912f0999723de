"""Accuracy x length of every algorithm and length reward on the lab, for an equal budget of sampled tokens.

    make frontier                                   # everything, three seeds; continues where it was cut (hours)
    make frontier ARGS="--seeds 1 --only ppo,grpo"  # some of it
    make frontier ARGS=--render                     # only the table and the picture of docs/algorithms.md

Per seed, the base model is probed once and the same eight problems (pass rate 0.2 to 0.8) train everything; each run ends
after the same number of sampled training tokens and is evaluated as it ends, best or not. Seeds redraw problems, sampling
and training. One JSON line a run goes to `outputs/frontier/seed-N.jsonl`, so seeds may run side by side, in processes of
their own.
"""

import argparse
import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

from conclip.compose import load_config
from conclip.config import TwoPhaseConfig
from conclip.evaluation.evaluate import evaluate
from conclip.evaluation.metrics import compare, summarise
from conclip.evaluation.units import RowFile
from conclip.inputs import Inputs, load_inputs
from conclip.runlog import Run
from conclip.runtime import Runtime
from conclip.selection import select
from conclip.stages import Stages
from conclip.stats import clustered_interval
from conclip.training.trainer import Trainer
from conclip.types import EvalRow

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ALGORITHMS = ("ppo", "vapo", "grpo", "dr_grpo", "dapo", "rloo", "reinforce_pp", "gspo", "cispo", "shortest_sft")
VARIANTS = {
    "ppo lambda 1": ("algo.gae_lambda=1.0",),
    "ppo token_mean": ("algo.loss_aggregation=token_mean",),
    "ppo whitened": ("algo.whiten_advantages=true",),
    "ppo no KL": ("algo.kl=none", "algo.kl_coef=0"),
}
STRENGTHS = {
    "kimi": (0.1, 0.4, 1.6),
    "arora": (0.1, 0.2, 0.4),
    "l1_exact": (0.4, 1.23, 4.0),
    "l1_max": (0.4, 1.23, 4.0),
    "shorter_better": (0.6, 2.0, 6.0),
    "laser": (0.25, 0.5, 1.0),
    "laser_d": (0.25, 0.5, 1.0),
    "l_grpo": (0.25, 0.5, 1.0),
    "gr3": (0.1, 0.33, 1.0),
    "alp": (0.1, 0.5, 2.0),
    "dapo_overlong": (0.5, 1.0, 2.0),
    "cosine": (0.1, 0.3, 1.0),
}
LIMITS = {"gentle": "[1.0,0.75]", "published": "[1.0,0.75,0.5]", "hard": "[0.6,0.4,0.25]"}
"""ThinkPrune's strengths are its limits."""

COMMON = (
    "phase2.num_steps=500",  # the budget ends the phase
    "phase2.group_size=8",
    "phase2.stop_accuracy_drop=1.0",
    "trainer.validate_every=50",
    "data.validation.chain.num_problems=40",
    "data.test.chain.num_problems=200",
    "optim.min_lr_fraction=1.0",
    "rollout.max_tokens=384",
    "eval.max_tokens=384",
    "length.scale_tokens=192",
    "length.target_tokens=64",
)
"""A constant learning rate: with a schedule, equal budgets would be at unequal points of it. The token scale is about twice
the base model's mean length, the target about half of it."""

TRACED = (
    "outcome/correct",
    "outcome/truncated",
    "length/mean_tokens",
    "policy/share_zero_advantage_groups",
    "policy/kl_gradient_share",
    "policy/entropy",
    "policy/end_probability_wrong",
    "optim/policy_grad_norm",
    "value/explained_variance",
)
DOCS = Path(__file__).parent.parent / "docs"


def runs() -> dict[str, tuple[str, ...]]:
    """name -> overrides."""
    everything: dict[str, tuple[str, ...]] = {name: (f"algo={name}",) for name in ALGORITHMS}
    everything |= VARIANTS
    for kind, strengths in STRENGTHS.items():
        for strength in strengths:
            everything[f"{kind} {strength:g}"] = (
                "algo=grpo",
                "reward=binary",
                f"length={kind}",
                f"length.strength={strength}",
                *(("trainer.validate_every=5",) if kind == "laser_d" else ()),  # it looks at the validation lengths
            )
    for name, limits in LIMITS.items():
        everything[f"thinkprune {name}"] = ("algo=grpo", "reward=binary", "length=thinkprune", f"length.limits={limits}")
    everything["grpo binary"] = ("algo=grpo", "reward=binary")
    return everything


def load(seed: int, *overrides: str) -> TwoPhaseConfig:
    config = load_config("two-phase", f"seed={seed}", *COMMON, *overrides)
    assert isinstance(config, TwoPhaseConfig)
    return config


def run_seed(seed: int, wanted: dict[str, tuple[str, ...]], budget: int, results: Path) -> None:
    done = {row["name"] for row in read(results)}
    if not set(wanted) - done:
        return
    config = load(seed)
    inputs = load_inputs(config)
    run = Run("frontier", dataclasses.replace(config, name=f"seed-{seed}", resume="never"), "frontier")
    with Stages(config, inputs, run) as stages:
        rates = stages.probe("probe-base", "probe base", inputs.model_path, inputs.pool, config.phase2, "pass_rates.jsonl")
        selection = select("phase2", inputs.pool, rates, config.phase2, seed)
        runtime = stages.runtime_with(inputs.model_path)
        base = measured(runtime, "base", inputs, config)
        if "base" not in done:
            append(results, {"name": "base", "seed": seed} | measures(base, base))
        for name, overrides in wanted.items():
            if name in done:
                continue
            mine = load(seed, *overrides)
            phase = dataclasses.replace(mine.phase2, max_sampled_tokens=budget)
            stage = name.replace(" ", "-")
            trainer = Trainer(
                stage, mine, phase, runtime, model_path=inputs.model_path, selection=selection, validation=inputs.validation
            )
            result = trainer.train()
            rows = measured(runtime, stage, inputs, config)
            curve = [(point.step, point.accuracy, point.mean_tokens) for point in result.history]
            append(results, {"name": name, "seed": seed, "curve": curve} | measures(base, rows) | trace(runtime, stage))
    run.close()


def measured(runtime: Runtime, name: str, inputs: Inputs, config: TwoPhaseConfig) -> list[EvalRow]:
    """Rows of what the engine holds, best or not."""
    file = RowFile(runtime.run.folder / f"rows-{name}.jsonl", model=name, model_hash=name)
    return evaluate(name, runtime, inputs.test, config.eval, file)


def measures(base: list[EvalRow], rows: list[EvalRow]) -> dict[str, Any]:
    summary, difference = summarise(rows), compare(base, rows)
    return {
        "accuracy": summary.accuracy.mean,
        "tokens": summary.mean_tokens.mean,
        "truncated": summary.truncation_rate.mean,
        "accuracy_difference": dataclasses.asdict(difference.accuracy_difference),
        "tokens_ratio": dataclasses.asdict(difference.tokens_ratio),
    }


def trace(runtime: Runtime, stage: str) -> dict[str, Any]:
    """The monitors of one run, step by step."""
    steps = [row for row in map(json.loads, (runtime.run.folder / "metrics.jsonl").open()) if row["stage"] == stage]
    return {"num_steps": len(steps), "trace": {name: [row.get(name) for row in steps] for name in TRACED}}


def read(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.open()] if results.exists() else []


def append(results: Path, row: dict[str, Any]) -> None:
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a") as out:
        out.write(json.dumps(row) + "\n")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One method over its seeds; intervals are Student's t over seeds."""

    name: str
    num_seeds: int
    num_steps: float
    accuracy: float
    points: tuple[float, float, float]
    """Accuracy against base [points]: mean, low, high."""
    percent: tuple[float, float, float]
    """Tokens against base [%]: mean, low, high."""
    truncated: float
    silent: float
    """Share of groups without an advantage, mean of the last quarter of the steps."""


def lines(rows: Iterable[dict[str, Any]]) -> list[Line]:
    by_name: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_name[row["name"]].append(row)
    return sorted((_line(name, mine) for name, mine in by_name.items()), key=lambda line: line.percent[0])


def _line(name: str, rows: Sequence[dict[str, Any]]) -> Line:
    silent = [row["trace"]["policy/share_zero_advantage_groups"] for row in rows if "trace" in row]
    return Line(
        name=name,
        num_seeds=len(rows),
        num_steps=fmean(row.get("num_steps", 0) for row in rows),
        accuracy=fmean(row["accuracy"] for row in rows),
        points=clustered_interval([100 * row["accuracy_difference"]["mean"] for row in rows]),
        percent=clustered_interval([100 * (row["tokens_ratio"]["mean"] - 1) for row in rows]),
        truncated=fmean(row["truncated"] for row in rows),
        silent=fmean(fmean(values[-max(1, len(values) // 4) :]) for values in silent) if silent else 0.0,
    )


def table(found: Sequence[Line]) -> str:
    """Markdown: one row a method, from shortest to longest."""
    text = [
        "| method | seeds | steps | tokens against base [%] | accuracy against base [points] | accuracy | truncated "
        "| silent groups |",
        "|---|---:|---:|---|---|---:|---:|---:|",
    ]
    for line in found:
        percent, points = (f"{m:+.1f} [{low:+.1f}, {high:+.1f}]" for m, low, high in (line.percent, line.points))
        text.append(
            f"| {line.name} | {line.num_seeds} | {line.num_steps:.0f} | {percent} | {points} | {line.accuracy:.3f} "
            f"| {line.truncated:.3f} | {line.silent:.2f} |"
        )
    return "\n".join(text)


def picture(found: Sequence[Line], path: Path) -> None:
    """Left: algorithms without a length term; right: length rewards, a line through each one's strengths."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 7), sharex=True, sharey=True, layout="constrained")
    plain = [line for line in found if line.name in (*ALGORITHMS, *VARIANTS, "base", "grpo binary")]
    for line in plain:
        _point(left, [line], line.name)
    for kind in (*STRENGTHS, "thinkprune"):
        mine = [line for line in found if line.name.rsplit(" ", 1)[0] == kind]
        order = list(STRENGTHS.get(kind, ())) or list(LIMITS)
        mine.sort(
            key=lambda line: [f"{value:g}" if kind in STRENGTHS else value for value in order].index(line.name.split()[-1])
        )
        if mine:
            _point(right, mine, kind)
    for axes, title in ((left, "algorithms, no length term"), (right, "length rewards on GRPO, three strengths")):
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
COLOURS = [*matplotlib.colormaps["tab10"].colors, "black", "navy", "darkgreen", "maroon", "indigo"]


def _point(axes: Any, mine: Sequence[Line], label: str) -> None:
    count = len(axes.containers)
    x, y = [line.percent[0] for line in mine], [line.points[0] for line in mine]
    axes.plot(
        x,
        y,
        marker=MARKERS[count % len(MARKERS)],
        color=COLOURS[count % len(COLOURS)],
        label=label,
        linewidth=0.9,
        markersize=5,
    )
    axes.errorbar(
        x,
        y,
        xerr=[
            [m - low for m, low, _ in (line.percent for line in mine)],
            [high - m for m, _, high in (line.percent for line in mine)],
        ],
        yerr=[
            [m - low for m, low, _ in (line.points for line in mine)],
            [high - m for m, _, high in (line.points for line in mine)],
        ],
        fmt="none",
        ecolor=COLOURS[count % len(COLOURS)],
        alpha=0.35,
    )


def render(out: Path) -> None:
    """The table, the picture and the rows behind them into docs/."""
    (DOCS / "frontier").mkdir(exist_ok=True)
    for results in sorted(out.glob("seed-*.jsonl")):
        (DOCS / "frontier" / results.name).write_text(results.read_text())
    found = lines(row for results in sorted(out.glob("seed-*.jsonl")) for row in read(results))
    picture(found, DOCS / "frontier" / "frontier.png")
    page = DOCS / "algorithms.md"
    text = page.read_text()
    begin, end = "<!-- frontier -->\n", "<!-- /frontier -->"
    before, rest = text.split(begin)
    page.write_text(before + begin + table(found) + "\n" + end + rest.split(end)[1])
    print(table(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", help="separated by commas")
    parser.add_argument("--budget", type=int, default=100_000, help="sampled training tokens of each run")
    parser.add_argument("--only", default="", help="names of runs, separated by commas; default: all")
    parser.add_argument("--out", type=Path, default=Path("outputs/frontier"))
    parser.add_argument("--render", action="store_true", help="run nothing; write table and picture from what is there")
    arguments = parser.parse_args()
    if arguments.render:
        render(arguments.out)
        return
    everything = runs()
    names = arguments.only.split(",") if arguments.only else list(everything)
    if unknown := [name for name in names if name not in everything]:
        parser.error(f"no run named {', '.join(unknown)}; there are: {', '.join(everything)}")
    for seed in map(int, arguments.seeds.split(",")):
        run_seed(seed, {name: everything[name] for name in names}, arguments.budget, arguments.out / f"seed-{seed}.jsonl")
    print(table(lines(row for path in sorted(arguments.out.glob("seed-*.jsonl")) for row in read(path))))


if __name__ == "__main__":
    main()
