"""Accuracy x length of every algorithm and length reward on the lab, for an equal budget of sampled tokens.

    make frontier                      # all of it; continues where it was cut
    make frontier ARGS="--seeds 1 --only ppo,grpo"

One engine serves all runs. Per seed, the base model is probed once and the same eight problems (pass rate 0.2 to 0.8) train
everything; each run ends after the same number of sampled training tokens and is evaluated as it ends, best or not. One JSON
line a run goes to `outputs/frontier/results.jsonl`; the table of docs/algorithms.md and a picture are made from it.
"""

import argparse
import dataclasses
import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from conclip.compose import load_config
from conclip.config import TwoPhaseConfig
from conclip.evaluation.evaluate import evaluate
from conclip.evaluation.metrics import compare, summarise
from conclip.inputs import load_inputs
from conclip.probe import pass_rates, select
from conclip.runlog import Run
from conclip.runtime import Runtime, open_runtime
from conclip.training.trainer import Trainer
from conclip.types import EvalRow

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
    "phase2.num_steps=200",  # the budget ends the phase
    "phase2.group_size=8",
    "phase2.stop_accuracy_drop=1.0",
    "trainer.validate_every=5",
    "data.validation.chain.num_problems=40",
    "data.test.chain.num_problems=200",
    "optim.min_lr_fraction=1.0",
    "rollout.max_tokens=384",
    "eval.max_tokens=384",
)
"""A constant learning rate: with a schedule, equal budgets would be at unequal points of it."""


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
    done = {row["name"] for row in read(results) if row["seed"] == seed}
    if not set(wanted) - done:
        return
    config = load(seed)
    inputs = load_inputs(config)
    run = Run("frontier", dataclasses.replace(config, name=f"seed-{seed}"))
    with open_runtime(config, run, inputs.model_path, inputs.problems, config.eval.max_tokens) as runtime:
        groups = runtime.sample_groups("probe", inputs.pool, runtime.training_spec, 12, "probe base")
        problems = select("phase2", inputs.pool, pass_rates(groups), config.phase2, seed)
        base = evaluate("base", runtime, inputs.test, config.eval, run.folder / "rows-base.jsonl")
        if "base" not in done:
            append(results, {"name": "base", "seed": seed} | measures(base, base))
        for name, overrides in wanted.items():
            if name in done:
                continue
            mine = load(seed, *overrides)
            phase = dataclasses.replace(mine.phase2, max_sampled_tokens=budget)
            stage = name.replace(" ", "-")
            trainer = Trainer(
                stage, mine, phase, runtime, model_path=inputs.model_path, problems=problems, validation=inputs.validation
            )
            result = trainer.train()
            rows = evaluate(stage, runtime, inputs.test, config.eval, run.folder / f"rows-{stage}.jsonl")
            curve = [(point.step, point.accuracy, point.mean_tokens) for point in result.history]
            append(results, {"name": name, "seed": seed, "curve": curve} | measures(base, rows) | trace(runtime, stage))
    run.close()


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
    """The monitors of one run, first and last step."""
    steps = [row for row in map(json.loads, (runtime.run.folder / "metrics.jsonl").open()) if row["stage"] == stage]
    names = (
        "policy/share_zero_advantage_groups",
        "policy/kl_gradient_share",
        "policy/entropy",
        "value/explained_variance",
        "policy/end_probability_wrong",
    )
    monitors = {name: [steps[0].get(name), steps[-1].get(name)] for name in names} if steps else {}
    return {"num_steps": len(steps), "monitors": monitors}


def read(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.open()] if results.exists() else []


def append(results: Path, row: dict[str, Any]) -> None:
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a") as out:
        out.write(json.dumps(row) + "\n")


def table(results: Path) -> str:
    """Markdown: one line a method, means over seeds and the range of the seeds."""
    by_name: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in read(results):
        by_name[row["name"]].append(row)
    lines = [
        "| method | seeds | accuracy | tokens | tokens [%] | accuracy [points] | steps |",
        "|---|---:|---|---|---|---|---:|",
    ]
    for name, rows in sorted(by_name.items(), key=lambda item: fmean(row["tokens"] for row in item[1])):
        change = [100 * (row["tokens_ratio"]["mean"] - 1) for row in rows]
        points = [100 * row["accuracy_difference"]["mean"] for row in rows]
        means = [fmean(row[key] for row in rows) for key in ("accuracy", "tokens")]
        steps = fmean(row.get("num_steps", 0) for row in rows)
        lines.append(
            f"| {name} | {len(rows)} | {means[0]:.3f} | {means[1]:.1f} "
            f"| {fmean(change):+.1f} ({min(change):+.1f} to {max(change):+.1f}) "
            f"| {fmean(points):+.1f} ({min(points):+.1f} to {max(points):+.1f}) | {steps:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", type=int, default=80_000, help="sampled training tokens of each run")
    parser.add_argument("--only", default="", help="names of runs, separated by commas; default: all")
    parser.add_argument("--out", type=Path, default=Path("outputs/frontier"))
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    arguments = parser.parse_args()
    results = arguments.out / "results.jsonl"
    if not arguments.table:
        wanted = {k: v for k, v in runs().items() if not arguments.only or k in arguments.only.split(",")}
        for seed in range(arguments.seeds):
            run_seed(seed, wanted, arguments.budget, results)
    print(table(results))


if __name__ == "__main__":
    main()
