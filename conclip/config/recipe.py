"""A recipe is the stages of a run, as data: running, --dry-run, the report and the model card read it.

A recipe is a file in `conf/recipe/`, or in a folder of the user (`--config-dir`). Its stages run in order; each names the
stages it needs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

StageKind = Literal["probe", "train", "eval", "warm_up"]
BASE = "base"
"""The name of the model a run begins with."""


@dataclass(frozen=True)
class StageConfig:
    """One stage. The text below each key is its meaning in docs/config.md."""

    kind: StageKind
    """what it does; which of the other keys it reads depends on that"""
    model: str = BASE
    """probe, train, warm_up: the model it begins with, `base` or an earlier training stage or warm-up"""
    phase: str | None = None
    """probe: the phase whose band of pass rates it looks for; train: the phase whose settings it trains by"""
    rates: str | None = None
    """train: the probing stage whose pass rates choose the problems; warm_up: the one whose responses it trains on"""
    without: list[str] = field(default_factory=list[str])
    """train: earlier training stages and warm-ups, none of whose problems is chosen again"""
    models: list[str] | None = None
    """eval: the models it measures; null: all there are by then that no earlier evaluation measures"""
    evidence: bool = False
    """eval: measure the models also as they are asked for brevity, and without or with less thinking, where they think"""
    about: str = ""
    """train, warm_up: what it is for, in words; the model card says it"""


Recipe = Mapping[str, StageConfig]


def kind_of(stage: str) -> StageKind:
    """Return what a stage does, by its name in a recipe or a manifest."""
    if stage == "warm-up" or stage.startswith("warm-up-"):
        return "warm_up"
    first = stage.split("-")[0]
    return first if first == "probe" or first == "eval" else "train"


def training_stages(recipe: Recipe) -> list[str]:
    return [name for name, stage in recipe.items() if stage.kind == "train"]


def measured_by(recipe: Recipe, begin: Sequence[str] = (BASE,)) -> dict[str, list[str]]:
    """Return the models that each evaluation measures, by its name. `begin`: the models that there are before any stage."""
    models, found = list(begin), dict[str, list[str]]()
    for name, stage in recipe.items():
        if stage.kind == "eval":
            earlier = {model for measured in found.values() for model in measured}
            found[name] = [model for model in models if model not in earlier] if stage.models is None else stage.models
        elif stage.kind != "probe":
            models.append(name)
    return found


def lineage(recipe: Recipe, model: str) -> list[str]:
    """Return the training stages a model went through, first one first; empty for the base."""
    stages: list[str] = []
    while model in recipe:
        stages.insert(0, model)
        model = recipe[model].model
    return stages


def label(stage: str) -> str:
    """Return a stage's name for people: `probe-phase1` is "probe phase 1"."""
    text = stage.replace("-", " ")
    return f"{text[:-1]} {text[-1]}" if text[-1:].isdigit() and text[-2:-1].isalpha() else text


def rates_file(probe: str) -> str:
    """Return the file to which a probing stage writes pass rates."""
    return f"pass_rates{_suffix(probe)}.jsonl"


def probe_rows_file(probe: str) -> str:
    """Return the file to which a probing stage writes its responses."""
    return f"probe_rows-{probe.removeprefix('probe-')}.jsonl"


def problems_file(stage: str) -> str:
    """Return the file to which a training stage writes its problems, and why each was chosen."""
    return f"problems-{stage}.json"


def result_file(stage: str) -> str:
    """Return the file to which a training stage writes its history and the step it kept."""
    return f"training-{stage}.json"


def checkpoint_folder(stage: str) -> str:
    """Return the folder in which a training stage leaves the model it kept."""
    return f"checkpoints/{stage}-best"


def rows_file(model: str) -> str:
    """Return the file to which an evaluation writes the rows of one model."""
    return f"rows-{model}.jsonl"


def evaluation_of(model: str) -> str:
    """Return the name in the manifest of the evaluation of one model."""
    return f"eval-{model}"


def _suffix(probe: str) -> str:
    rest = probe.removeprefix("probe")
    return "" if rest in ("", f"-{BASE}") else rest
