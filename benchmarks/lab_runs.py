"""Runs of the lab for an equal budget of sampled tokens, several seeds, and their table, for `frontier.py`.

Per seed, the base model is probed once; each run ends after the same number of sampled training tokens and is evaluated as
it ends, best or not. Seeds redraw problems, sampling and training. One JSON line a run goes to `OUT/seed-N.jsonl`, so seeds
may run side by side, in processes of their own, and what was cut goes on.
"""

import argparse
import dataclasses
import json
import math
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from conclip.config.compose import load_config
from conclip.config.schema import RecipeRunConfig
from conclip.curriculum.selection import select
from conclip.evaluation.evaluate import evaluate
from conclip.evaluation.metrics import compare, summarise
from conclip.evaluation.units import RowFile
from conclip.experiments.commands import all_prompts
from conclip.experiments.inputs import Inputs, load_inputs
from conclip.experiments.stages import Stages
from conclip.rollout.session import Runtime
from conclip.runs.run import Run
from conclip.stats import clustered_interval
from conclip.training.phase import PhaseInputs
from conclip.training.trainer import Trainer
from conclip.types import EvalRow

DOCS = Path(__file__).parent.parent / "docs"

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
"""A constant learning rate after its warm-up, which follows the budget. The token scale is about twice
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


def load(seed: int, *overrides: str) -> RecipeRunConfig:
    config = load_config("two-phase", f"seed={seed}", *COMMON, *overrides)
    assert isinstance(config, RecipeRunConfig)
    return config


def run_seed(seed: int, wanted: dict[str, tuple[str, ...]], budget: int, results: Path, common: Sequence[str]) -> None:
    """The runs of one seed that `results` does not have yet; problems are chosen for each by its own phase-2 settings."""
    done = {row["name"] for row in read(results)}
    if not set(wanted) - done:
        return
    config = load(seed, *common)
    inputs = load_inputs(config)
    run = Run(results.parent.name, dataclasses.replace(config, name=f"seed-{seed}", resume="never"), "benchmark")
    with Stages(config, inputs, run, all_prompts(config, inputs)) as stages:
        rates = stages.probe("probe-base", inputs.model_path, inputs.pool, config.phases["phase2"])
        runtime = stages.runtime_with(inputs.model_path)
        base = measured(runtime, "base", inputs, config)
        if "base" not in done:
            append(results, {"name": "base", "seed": seed} | measures(base, base))
        for name, overrides in wanted.items():
            if name in done:
                continue
            mine = load(seed, *common, *overrides)
            settings = mine.phases["phase2"]
            selection = select("phases.phase2", inputs.pool, rates, settings, seed)
            phase = dataclasses.replace(settings, max_sampled_tokens=settings.max_sampled_tokens or budget)
            stage = name.replace(" ", "-")
            phase_inputs = PhaseInputs(
                stage=stage,
                settings=phase,
                model_path=inputs.model_path,
                selection=selection,
                validation=inputs.validation,
                key=stage,
            )
            result = Trainer(phase_inputs, mine, runtime).train()
            rows = measured(runtime, stage, inputs, config)
            curve = [(point.step, point.accuracy, point.mean_tokens) for point in result.history]
            append(results, {"name": name, "seed": seed, "curve": curve} | measures(base, rows) | trace(runtime, stage))
    run.close()


def measured(runtime: Runtime, name: str, inputs: Inputs, config: RecipeRunConfig) -> list[EvalRow]:
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
        percent, points = (
            f"{m:+.1f} [{low:+.1f}, {high:+.1f}]" if math.isfinite(low) else f"{m:+.1f}"
            for m, low, high in (line.percent, line.points)
        )
        text.append(
            f"| {line.name} | {line.num_seeds} | {line.num_steps:.0f} | {percent} | {points} | {line.accuracy:.3f} "
            f"| {line.truncated:.3f} | {line.silent:.2f} |"
        )
    return "\n".join(text)


def differences(rows: Sequence[dict[str, Any]], pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    """The differences that the pages tell of: first - second, paired by seed, mean and Student's t interval."""
    by_run = {(row["name"], row["seed"]): row for row in rows}
    for first, second in pairs:
        same = [(by_run[first, seed], by_run[second, seed]) for name, seed in by_run if name == first]
        for label, value in (
            ("accuracy [points]", lambda row: 100 * row["accuracy"]),
            ("tokens", lambda row: row["tokens"]),
            ("tokens [% of base]", lambda row: 100 * row["tokens_ratio"]["mean"]),
        ):
            mean, low, high = clustered_interval([value(one) - value(other) for one, other in same])
            yield f"{first} - {second}: {label} {mean:+.1f} [{low:+.1f}, {high:+.1f}], {len(same)} seeds"


def into_page(page: Path, marker: str, text: str) -> None:
    """Put generated text between the page's `<!-- marker -->` and `<!-- /marker -->`."""
    begin, end = f"<!-- {marker} -->\n", f"<!-- /{marker} -->"
    before, rest = page.read_text().split(begin)
    page.write_text(before + begin + text + "\n" + end + rest.split(end)[1])


def keep_rows(out: Path, docs: Path) -> list[dict[str, Any]]:
    """All rows of `out`, copied to `docs`; those of `docs` where `out` has none."""
    docs.mkdir(exist_ok=True)
    for results in out.glob("seed-*.jsonl"):
        shutil.copyfile(results, docs / results.name)
    files = sorted((out if any(out.glob("seed-*.jsonl")) else docs).glob("seed-*.jsonl"))
    return [row for results in files for row in read(results)]


def main(
    doc: str,
    everything: dict[str, tuple[str, ...]],
    render: Callable[[Path], None],
    *,
    out: Path,
    seeds: str,
    common: Sequence[str] = (),
) -> None:
    """The command line of a benchmark of such runs."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default=seeds, help="separated by commas")
    parser.add_argument("--budget", type=int, default=100_000, help="sampled training tokens of each run")
    parser.add_argument("--only", default="", help="names of runs, separated by commas; default: all")
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--render", action="store_true", help="run nothing; write tables and pictures from what is there")
    arguments = parser.parse_args()
    if arguments.render:
        render(arguments.out)
        return
    names = arguments.only.split(",") if arguments.only else list(everything)
    if unknown := [name for name in names if name not in everything]:
        parser.error(f"no run named {', '.join(unknown)}; there are: {', '.join(everything)}")
    wanted = {name: everything[name] for name in names}
    for seed in map(int, arguments.seeds.split(",")):
        run_seed(seed, wanted, arguments.budget, arguments.out / f"seed-{seed}.jsonl", common)
    print(table(lines(row for path in sorted(arguments.out.glob("seed-*.jsonl")) for row in read(path))))
