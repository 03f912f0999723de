"""A run folder as plain values, for everything that shows it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired

import yaml
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict  # pydantic's own dependency: it needs this one below Python 3.12

from conclip.config.foreign import check_yaml
from conclip.config.recipe import Recipe, StageConfig, problems_file, rates_file, result_file, training_stages
from conclip.curriculum.pass_rates import PassRate, read_pass_rates
from conclip.errors import UserError
from conclip.evaluation.rows import read_rows, rows_of_run
from conclip.runs.attempts import MANIFEST
from conclip.runs.checked import Finite, Whole, read_as
from conclip.runs.files import check_content, newest_attempt, read_plain
from conclip.runs.json_lines import DamagedLine, json_lines, run_lines
from conclip.runs.manifest import StageRecord, read_stages
from conclip.runs.run import is_metrics
from conclip.types import EvalRow

QUESTIONS = "questions.jsonl"
"""File with the test problems of a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenProblem:
    """A training problem and why it was chosen."""

    problem_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """The content of a run folder; collections are empty where the run has nothing for them."""

    name: str
    folder: Path
    subcommand: str
    rows: Sequence[EvalRow]
    questions: Mapping[str, str]
    """Test problem -> its question."""
    steps: Mapping[str, Sequence[Mapping[str, Any]]]
    """Phase -> metrics of each step."""
    history: Mapping[str, Sequence[Mapping[str, float]]]
    """Phase -> step, accuracy and mean_tokens of each validation."""
    best: Mapping[str, Mapping[str, float]]
    """Phase -> the validation of the checkpoint that was kept."""
    rates: Mapping[str, Sequence[PassRate]]
    """Phase whose problems were chosen from them -> pass rates."""
    chosen: Mapping[str, Sequence[ChosenProblem]]
    """Phase -> its training problems."""
    asked: Mapping[str, Sequence[str]]
    """Phase -> ids of all problems it trained on, also of those that came later (phase.refresh)."""
    stages: Mapping[str, StageRecord]
    config: str
    settings: Mapping[str, Any]
    """What `config` says."""
    environment: Mapping[str, Any]
    notes: Sequence[str]
    margin: float


class _Point(TypedDict):
    step: Whole
    accuracy: Finite
    mean_tokens: Finite


class _Training(TypedDict):
    history: Annotated[list[_Point], Field(min_length=1)]
    best: _Point
    asked: NotRequired[list[str]]


class _ChosenProblems(TypedDict, total=False):
    chosen: list[ChosenProblem]


class _Results(TypedDict, total=False):
    notes: list[str]
    margin: Annotated[float, Field(gt=0, lt=1)]


class _Environment(TypedDict, total=False):
    arguments: list[str]
    started: str | None
    machine: str | None
    platform: str | None
    python: str | None
    num_cpus: int | None
    gpus: list[str]
    packages: dict[str, str]
    git: dict[str, str | bool] | None


class _Question(TypedDict):
    problem_id: str
    question: str


class _Manifest(TypedDict, total=False):
    identity: str
    subcommand: str


_MANIFEST, _TRAINING, _CHOSEN = TypeAdapter(_Manifest), TypeAdapter(_Training), TypeAdapter(_ChosenProblems)
_RECIPE = TypeAdapter(dict[str, StageConfig])
_RESULTS, _ENVIRONMENT, _QUESTION = TypeAdapter(_Results), TypeAdapter(_Environment), TypeAdapter(_Question)


def read_run(path: Path) -> RunData:
    """Read a run folder. Raises UserError when it is none, when a file in it is not what conclip writes, and when it holds
    links."""
    folder = newest_attempt(path)
    manifest = read_as(_MANIFEST, _json(folder / MANIFEST), f"'{folder / MANIFEST}'")
    if "identity" not in manifest:
        raise UserError(f"'{path}' is no run folder (no {MANIFEST}); give outputs/<subcommand>/<name>, or an attempt in it")
    check_content(folder.resolve())
    subcommand = manifest.get("subcommand", "")
    config = (read_plain(folder / "config.yaml") or b"").decode("utf-8", errors="replace")
    written = _config(config, folder)
    recipe = _recipe(written, folder)
    phases = training_stages(recipe)
    results = read_as(_RESULTS, _json(folder / "results.json"), f"'{folder / 'results.json'}'")
    training: dict[str, _Training] = {}
    for phase in phases:
        if result := _json(file := folder / result_file(phase)):
            training[phase] = read_as(_TRAINING, result, f"'{file}'")
    steps: dict[str, list[Mapping[str, Any]]] = {}
    for row in _metrics(folder / "metrics.jsonl"):
        steps.setdefault(row["stage"], []).append(row)
    stages = read_stages(folder)
    rows, unfinished = _rows(folder, stages)
    questions = [read_as(_QUESTION, row, where) for where, row in _lines(folder / QUESTIONS)]
    return RunData(
        name=_name(written, folder),
        folder=folder.resolve(),
        subcommand=subcommand,
        rows=rows,
        questions={question["problem_id"]: question["question"] for question in questions},
        steps=steps,
        history={phase: [_numbers(point) for point in result["history"]] for phase, result in training.items()},
        best={phase: _numbers(result["best"]) for phase, result in training.items()},
        rates=_rates(folder, recipe),
        chosen={
            name: _chosen(folder / problems_file(name))
            for name, stage in recipe.items()
            if stage.kind in ("train", "warm_up")
        }
        | {"": _chosen(folder / "problems.json")},
        asked={phase: result.get("asked", []) for phase, result in training.items()},
        stages=stages,
        config=config,
        settings=written or {},
        environment=read_as(_ENVIRONMENT, _json(folder / "environment.json"), f"'{folder / 'environment.json'}'"),
        notes=[
            *results.get("notes", []),
            *(f"the evaluation of {name} has not ended; it is left out" for name in unfinished),
        ],
        margin=results.get("margin", 0.03),
    )


def count_problems(chosen: Sequence[str], asked: Sequence[str]) -> str:
    """Return how many problems a stage trained on, in words, from the ids of those it began with and of those it asked."""
    began = f"{len(chosen)} problem{'' if len(chosen) == 1 else 's'}"
    return f"began with {began}, trained on {len(asked)} in all" if set(asked) - set(chosen) else began


def _numbers(point: _Point) -> dict[str, float]:
    return {"step": point["step"], "accuracy": point["accuracy"], "mean_tokens": point["mean_tokens"]}


def _config(text: str, folder: Path) -> Mapping[str, Any] | None:
    """Return what config.yaml says; None where there is no such file."""
    if not text:
        return None
    where = f"'{folder / 'config.yaml'}'"
    check_yaml(where.strip("'"), text)
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{where} is no YAML; it is damaged") from error
    if not isinstance(content, dict) or not isinstance(content.get("name"), (str, int)):
        raise UserError(f"{where} has no name; it is damaged, or was not written by conclip")
    return content


def _name(config: Mapping[str, Any] | None, folder: Path) -> str:
    """Return the run's name from its config, or from its folder where there is no config."""
    return folder.resolve().parent.name if config is None else str(config["name"])


def _recipe(config: Mapping[str, Any] | None, folder: Path) -> Recipe:
    if config is None or "recipe" not in config:
        return {}
    return read_as(_RECIPE, config["recipe"], f"'{folder / 'config.yaml'}', recipe")


def _rows(folder: Path, stages: Mapping[str, StageRecord]) -> tuple[list[EvalRow], list[str]]:
    """Return the rows of the evaluations that have ended, model by model in the order of the run, and the models of the
    others."""
    files, others = rows_of_run(folder, stages)
    rows = {name: read_rows(file) for name, file in files.items()}
    first = next(iter(files), "")
    covered = {name: {(r.benchmark, r.temperature, r.problem_id) for r in mine} for name, mine in rows.items()}
    for name, problems in covered.items():
        if problems != covered[first] or len({row.model for row in rows[name]}) > 1:
            raise UserError(
                f"'{files[name]}' covers other problems than '{files[first]}', or holds rows of several models; it is "
                "damaged, or was not written by conclip"
            )
    return [row for mine in rows.values() for row in mine], others


def _rates(folder: Path, recipe: Recipe) -> dict[str, list[PassRate]]:
    """Return pass rates by the training stage whose problems they chose; those that chose for none are under ""."""
    asked_by: dict[str, str] = {}
    for name, stage in recipe.items():
        if stage.rates is not None:
            asked_by.setdefault(stage.rates, name)
    probes = {asked_by.get(name, ""): folder / rates_file(name) for name, stage in recipe.items() if stage.kind == "probe"}
    return {stage: read_pass_rates(path) for stage, path in probes.items() if path.is_file()}


def _chosen(path: Path) -> list[ChosenProblem]:
    return read_as(_CHOSEN, _json(path), f"'{path}'").get("chosen", [])


def _json(path: Path) -> dict[str, Any]:
    """Return a JSON object; an empty one where there is no file. Raises UserError on a damaged one."""
    content = read_plain(path)
    if content is None:
        return {}
    try:
        value = json.loads(content.decode("utf-8", errors="surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is damaged ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"'{path}' is damaged, or was not written by conclip (no JSON object)")
    return value


def _metrics(path: Path) -> list[dict[str, Any]]:
    lines = _lines(path)
    for where, row in lines:
        if not is_metrics(row):
            raise UserError(f"{where} is damaged, or was not written by conclip (no metrics of a step)")
    return [row for _, row in lines]


def _lines(path: Path) -> list[tuple[str, Any]]:
    """Return the values of a JSON-lines file, each with its place; a last line that was cut is dropped."""
    try:
        return [(f"'{path}', line {number}", value) for number, value in json_lines(run_lines(path), cut_line="drop")]
    except DamagedLine as error:
        raise UserError(f"'{path}', line {error.number} is damaged ({error})") from error
