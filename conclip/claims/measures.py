"""What a contrast measures, from the rows and metrics of one finished run."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from conclip.claims.config import Contrast
from conclip.config.recipe import BASE
from conclip.errors import UserError
from conclip.evaluation.measures import by_problem, is_correct
from conclip.report.data import RunData
from conclip.types import EvalRow, Outcome


def difference(contrast: Contrast, first: RunData, second: RunData | None) -> float:
    """Return the measure of the first run minus that of the second, or of another model of the first one. Raises UserError
    where a run does not have what is measured."""
    value = _value(contrast, first, contrast.model)
    if second is not None:
        return value - _value(contrast, second, contrast.model)
    return value if contrast.than is None else value - _value(contrast, first, contrast.than)


@dataclass(frozen=True, slots=True)
class RunNumbers:
    """What came of one run with one seed: its last model's test responses against those of the base model."""

    folder: str
    tokens: float
    """mean length [% more]"""
    accuracy: float
    """accuracy [points more]"""
    truncated: float
    """share of truncated responses"""


def numbers(run: RunData) -> RunNumbers:
    """Return the numbers of the model that a run ended with, over all temperatures. Raises UserError where it did not
    evaluate the base model."""
    model = run.rows[-1].model if run.rows else BASE
    tokens, accuracy = (
        difference(Contrast(measure=measure, first="", expect="less", relevant=1, model=model), run, None)
        for measure in ("tokens", "accuracy")
    )
    rows = _of_model(run, model)
    truncated = fmean(row.outcome is Outcome.TRUNCATED for row in rows)
    return RunNumbers(folder=run.folder.parent.name, tokens=tokens, accuracy=accuracy, truncated=truncated)


def _value(contrast: Contrast, run: RunData, model: str) -> float:
    if contrast.measure.startswith("metrics."):
        return _monitor(run, model, contrast.measure.removeprefix("metrics."))
    rows = _rows(run, model, contrast)
    if contrast.measure == "gap":
        return _gap(run, rows)
    base = _rows(run, BASE, contrast)
    if contrast.measure == "accuracy":
        return 100 * (_accuracy(rows) - _accuracy(base))
    return 100 * (fmean(r.num_tokens for r in rows) / fmean(r.num_tokens for r in base) - 1)


def _of_model(run: RunData, model: str) -> list[EvalRow]:
    """Return a model's rows, asked as the run's first row was: how models are asked is no part of a claim."""
    return [row for row in run.rows if row.model == model and row.prompt_condition == run.rows[0].prompt_condition]


def _rows(run: RunData, model: str, contrast: Contrast) -> list[EvalRow]:
    temperature, test = contrast.temperature, contrast.test
    rows = [row for row in _of_model(run, model) if temperature in (None, row.temperature) and test in (None, row.benchmark)]
    if not rows:
        where = ("" if temperature is None else f" at temperature {temperature:g}") + (f" on {test}" if test else "")
        raise UserError(f"'{run.folder}' has no rows of '{model}'{where}; its recipe must evaluate that model")
    return rows


def _accuracy(rows: Sequence[EvalRow]) -> float:
    return fmean(is_correct(row) for row in rows if row.outcome is not Outcome.GRADER_ERROR)


def _gap(run: RunData, rows: Sequence[EvalRow]) -> float:
    """Return by how much wrong responses are longer than correct ones to the same problem [%], mean over the problems that
    have both; truncated ones are left out."""
    gaps: list[float] = []
    for mine in by_problem(rows).values():
        right = [row.num_tokens for row in mine if row.outcome is Outcome.CORRECT]
        wrong = [row.num_tokens for row in mine if row.outcome is Outcome.WRONG]
        if right and wrong:
            gaps.append(100 * (fmean(wrong) / fmean(right) - 1))
    if not gaps:
        raise UserError(f"'{run.folder}': no problem has correct and wrong responses; evaluate more samples per problem")
    return fmean(gaps)


def _monitor(run: RunData, stage: str, name: str) -> float:
    values = [float(step[name]) for step in run.steps.get(stage, []) if step.get(name) is not None]
    if not values:
        raise UserError(f"'{run.folder}' has no metric '{name}' of '{stage}'")
    return fmean(values[-max(1, len(values) // 4) :])
