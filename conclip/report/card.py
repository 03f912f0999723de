"""Writes the README.md of a checkpoint: its origin, costs and gains, and how to reproduce it."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from conclip.config.recipe import BASE, lineage, problems_file, result_file
from conclip.config.schema import LearnConfig
from conclip.evaluation.metrics import Estimate, compare, summarise
from conclip.evaluation.tables import describe_comparison
from conclip.models.folder import public_name, public_revision
from conclip.report import escape
from conclip.report.data import count_problems
from conclip.runs.files import write_text
from conclip.runs.run import Run
from conclip.types import EvalRow

MAX_PROBLEMS = 32
"""Largest number of training problems that a card lists per stage; the run folder has all."""


PATH_NAMES = ("path", "outputs", "pass_rates", "shots_path", "url", "verifier")
PATHS = tuple(f"{name}:" for name in PATH_NAMES)
"""Keys whose values are paths of one machine."""


def write_card(run: Run, config: LearnConfig, checkpoint: Path, stage: str, *, rows: Sequence[EvalRow]) -> None:
    """Write the model card of the checkpoint that a training stage left; `rows` are those of the base and the trained
    models, where the run evaluated them."""
    base = "conclip-lab" if config.model.is_lab else public_name(config.model.path)
    stages = lineage(config.recipe, stage)
    data = ModelCardData(
        base_model=None if config.model.is_lab else base,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["conclip", "reinforcement-learning", "concise-reasoning"],
    )
    named, revision = escape.markdown(base), public_revision(config.model.path)
    of_base = f"{named}, revision {escape.markdown(revision)}" if revision else named
    title = f"# {named}, after {' and '.join(stages)} of conclip"
    parts = [
        f"---\n{data.to_yaml()}\n---\n\n{title}\n",
        f"Trained by conclip, after the two-phase method of [Fatemi et al. 2025](https://arxiv.org/abs/2504.05185): "
        f"{', then '.join(config.recipe[name].about or name for name in stages)}. Base model: {of_base}.",
        _results(stage, rows, config),
        _problems(run.folder, stages),
        _reproduction(run.folder),
        _limits(config, [row for row in rows if row.model == stage]),
    ]
    write_text(checkpoint / "README.md", "\n".join(part for part in parts if part))


def _results(model: str, rows: Sequence[EvalRow], config: LearnConfig) -> str:
    mine = [row for row in rows if row.model in (BASE, model) and row.prompt_condition == rows[0].prompt_condition]
    if {row.model for row in mine} != {BASE, model} or config.evaluation is None:
        return "\n## Results\n\nNot evaluated in the run that made it.\n"
    text = ["\n## Before and after\n", "| benchmark | model | accuracy | tokens | truncated |", "|---|---|---|---|---|"]
    sentences: list[str] = []
    for benchmark in dict.fromkeys(row.benchmark for row in mine):
        for temperature in dict.fromkeys(row.temperature for row in mine):
            sides = {
                name: [r for r in mine if (r.benchmark, r.temperature, r.model) == (benchmark, temperature, name)]
                for name in (BASE, model)
            }
            for name, side in sides.items():
                summary = summarise(side)
                label = "this model" if name == model else name
                text.append(
                    f"| {escape.markdown(benchmark)}, temperature {temperature:g}, {summary.num_problems} problems, "
                    f"{summary.num_responses} responses | {label} | {_interval(summary.accuracy, '.3f')} "
                    f"| {_interval(summary.mean_tokens, '.1f')} | {summary.truncation_rate.mean:.4f} |"
                )
            difference = compare(sides[BASE], sides[model])
            sentence = describe_comparison(BASE, "this model", difference, config.evaluation.margin)
            sentences.append(escape.markdown(f"{sentence} ({benchmark}, temperature {temperature:g})"))
    return "\n".join([*text, "", "95 % intervals, clustered by problem.", "", *(f"- {line}" for line in sentences), ""])


def _interval(estimate: Estimate, form: str) -> str:
    return f"{estimate.mean:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]"


def _problems(folder: Path, stages: Sequence[str]) -> str:
    text = ["\n## Training problems\n"]
    for stage in stages:
        saved: dict[str, Any] = json.loads((folder / problems_file(stage)).read_text(encoding="utf-8"))
        chosen: list[dict[str, str]] = saved["chosen"]
        result = folder / result_file(stage)  # a warm-up has none
        asked: list[str] = json.loads(result.read_text(encoding="utf-8"))["asked"] if result.is_file() else []
        count = count_problems([c["problem_id"] for c in chosen], asked)
        text.append(f"{stage}: {count}, set hash `{saved['hash']}`\n")
        text += [f"- {escape.code(c['problem_id'])}: {escape.markdown(c['reason'])}" for c in chosen[:MAX_PROBLEMS]]
        more = len(chosen) - MAX_PROBLEMS
        text.append(f"- and {more} more in {problems_file(stage)} of the run folder\n" if more > 0 else "")
    text.append("`trained_on.json` beside this file has every training question; `conclip eval` refuses to test on them.\n")
    return "\n".join(text)


def _reproduction(folder: Path) -> str:
    environment: dict[str, Any] = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    git = environment["git"]
    revision = f"conclip at `{git['revision']}`{' with local changes' if git['dirty'] else ''}, " if git else ""
    lines = (folder / "config.yaml").read_text(encoding="utf-8").splitlines()
    config = "\n".join(line for line in lines if not line.lstrip().startswith(PATHS))
    arguments = [a for a in environment["arguments"] if not a.partition("=")[0].split(".")[-1].startswith(PATH_NAMES)]
    command = shlex.join(["conclip", environment["subcommand"], *arguments])
    return (
        f"\n## How to make it again\n\n{escape.block(command, 'sh')}\n\n{revision}{packages}; "
        f"Python {environment['python']}, {environment['machine']}, {environment['num_cpus']} processors. "
        "Paths are left out.\n\n"
        f"<details><summary>The whole config</summary>\n\n{escape.block(config, 'yaml')}\n\n</details>\n"
    )


def _limits(config: LearnConfig, rows: Sequence[EvalRow]) -> str:
    where = escape.markdown(", ".join(dict.fromkeys(row.benchmark for row in rows)))
    measured = f"Measured on {where} only, at the temperatures of the table" if rows else "Nothing was measured"
    form = "" if config.data.trains_by_verifier else "It was trained to end its answers in `\\boxed{}`. "
    return (
        f"\n## Limits\n\n- {measured}; other tasks, languages and longer problems may behave otherwise.\n"
        f"- {form}Ask it with the base model's chat template.\n"
        "- Shorter reasoning shows less of what the answer rests on.\n"
    )
