"""A run folder as plain values, for everything that shows it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from conclip.config import UserError
from conclip.evaluation.rows import read_rows
from conclip.files import newest_attempt
from conclip.pipeline import StageRecord, read_stages
from conclip.probe import PassRate, read_pass_rates
from conclip.runlog import MANIFEST
from conclip.types import EvalRow

QUESTIONS = "questions.jsonl"
"""File with the test problems of a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A training problem and why it was chosen."""

    problem_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """What a run folder holds; lists are empty where the run has none of a kind."""

    name: str
    folder: Path
    subcommand: str
    rows: Sequence[EvalRow]
    questions: Mapping[str, str]
    """Test problem -> its text."""
    steps: Mapping[str, Sequence[Mapping[str, Any]]]
    """Phase -> metrics of each step."""
    history: Mapping[str, Sequence[Mapping[str, float]]]
    """Phase -> step, accuracy and mean_tokens of each validation."""
    best: Mapping[str, Mapping[str, float]]
    """Phase -> the validation of the checkpoint that was kept."""
    rates: Mapping[str, Sequence[PassRate]]
    """Phase whose problems were chosen from them -> pass rates."""
    chosen: Mapping[str, Sequence[Choice]]
    """Phase -> its training problems."""
    stages: Mapping[str, StageRecord]
    config: str
    environment: Mapping[str, Any]
    notes: Sequence[str]
    margin: float


def read_run(path: Path) -> RunData:
    """Raises UserError when it is no run folder."""
    folder = newest_attempt(path)
    manifest = _json(folder / MANIFEST)
    if "identity" not in manifest:
        raise UserError(f"'{path}' is no run folder (no {MANIFEST}); give outputs/<subcommand>/<name>, or an attempt in it")
    results, phases = _json(folder / "results.json"), ("phase1", "phase2")
    training = {phase: found for phase in phases if (found := _json(folder / f"training-{phase}.json"))}
    steps: dict[str, list[Mapping[str, Any]]] = {}
    for row in _lines(folder / "metrics.jsonl"):
        steps.setdefault(row["stage"], []).append(row)
    stages = read_stages(folder)
    rows, unfinished = _rows(folder, stages)
    config = _config(folder)
    return RunData(
        name=str(yaml.safe_load(config)["name"]) if config else folder.resolve().parent.name,
        folder=folder.resolve(),
        subcommand=str(manifest.get("subcommand", "")),
        rows=rows,
        questions={row["problem_id"]: row["question"] for row in _lines(folder / QUESTIONS)},
        steps=steps,
        history={phase: found["history"] for phase, found in training.items()},
        best={phase: found["best"] for phase, found in training.items()},
        rates=_rates(folder, manifest.get("subcommand", ""), "phase1" in training),
        chosen={phase: _chosen(folder / f"problems-{phase}.json") for phase in phases}
        | {"": _chosen(folder / "problems.json")},
        stages=stages,
        config=config,
        environment=_json(folder / "environment.json"),
        notes=[
            *results.get("notes", []),
            *(f"the evaluation of {name} has not ended; it is left out" for name in unfinished),
        ],
        margin=results.get("margin", 0.03),
    )


def _rows(folder: Path, stages: Mapping[str, StageRecord]) -> tuple[list[EvalRow], list[str]]:
    """Rows of the evaluations that have ended, model by model in the order of the run, and the models of the others."""
    files = [*folder.glob("rows-*.parquet"), *folder.glob("rows-*.jsonl")]
    there = {path.stem.removeprefix("rows-"): path for path in files}
    ended = [name for stage in stages if (name := stage.removeprefix("eval-")) != stage and name in there]
    return [row for name in ended for row in read_rows(there[name])], sorted(there.keys() - set(ended))


def _config(folder: Path) -> str:
    path = folder / "config.yaml"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _rates(folder: Path, subcommand: str, has_phase1: bool) -> dict[str, list[PassRate]]:
    """The pass rates of `pass_rates.jsonl` chose for the first phase there is, those of the second file for phase 2."""
    first = "" if subcommand == "probe" else "phase1" if has_phase1 or subcommand == "train-phase1" else "phase2"
    files = {first: "pass_rates.jsonl"} | ({"phase2": "pass_rates-phase1.jsonl"} if first == "phase1" else {})
    return {phase: read_pass_rates(folder / name) for phase, name in files.items() if (folder / name).is_file()}


def _chosen(path: Path) -> list[Choice]:
    return [Choice(problem_id=choice["problem_id"], reason=choice["reason"]) for choice in _json(path).get("chosen", [])]


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty when there is none. Raises UserError on a damaged one."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"'{path}' is damaged ({error})") from error


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a last line that was cut is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    try:
        return [json.loads(line) for line in lines[:-1] if line]
    except ValueError as error:
        raise UserError(f"'{path}' is damaged ({error})") from error
