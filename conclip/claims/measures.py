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

LEAST_GAPS = 5
"""Problems with both correct and wrong responses that a seed's `gap` takes at least: the mean of a few is mostly noise."""


def difference(contrast: Contrast, first: RunData, second: RunData | None) -> float | None:
    """Return the measure of the first run minus that of the second, or of another model of the first one; None where
    the responses leave nothing to measure. Raises UserError where a run does not have what is measured."""
    value, other = _value(contrast, first, contrast.model), 0.0
    if second is not None:
        other = _value(contrast, second, contrast.model)
    elif contrast.than is not None:
        other = _value(contrast, first, contrast.than)
    return None if value is None or other is None else value - other


def graded_problems(contrast: Contrast, run: RunData) -> set[tuple[str, str]]:
    """Return the test problems, with their sets, that a difference in accuracy rests on in one run."""
    rows = _rows(run, contrast.model, contrast.temperature, contrast.test)
    return {(row.benchmark, row.problem_id) for row in rows if row.outcome is not Outcome.GRADER_ERROR}


@dataclass(frozen=True, slots=True)
class RunNumbers:
    """What came of one run with one seed: its last model's test responses against those of the base model."""

    folder: str
    tokens: float
    """mean length [% more]"""
    accuracy: float | None
    """accuracy [points more]; None where no response could be graded"""
    truncated: float
    """share of truncated responses"""


def numbers(run: RunData) -> RunNumbers:
    """Return the numbers of the model that a run ended with, over all temperatures. Raises UserError where it did not
    evaluate the base model."""
    model = run.rows[-1].model if run.rows else BASE
    rows, base = _rows(run, model), _rows(run, BASE)
    return RunNumbers(
        folder=run.folder.parent.name,
        tokens=_longer(rows, base),
        accuracy=_more_accurate(rows, base),
        truncated=fmean(row.outcome is Outcome.TRUNCATED for row in rows),
    )


def _value(contrast: Contrast, run: RunData, model: str) -> float | None:
    if contrast.measure.startswith("metrics."):
        return _monitor(run, model, contrast.measure.removeprefix("metrics."))
    rows = _rows(run, model, contrast.temperature, contrast.test)
    if contrast.measure == "gap":
        found = gaps(rows)
        return fmean(found) if len(found) >= LEAST_GAPS else None
    base = _rows(run, BASE, contrast.temperature, contrast.test)
    return _more_accurate(rows, base) if contrast.measure == "accuracy" else _longer(rows, base)


def _longer(rows: Sequence[EvalRow], base: Sequence[EvalRow]) -> float:
    return 100 * (fmean(r.num_tokens for r in rows) / fmean(r.num_tokens for r in base) - 1)


def _more_accurate(rows: Sequence[EvalRow], base: Sequence[EvalRow]) -> float | None:
    ours, before = _accuracy(rows), _accuracy(base)
    return None if ours is None or before is None else 100 * (ours - before)


def _of_model(run: RunData, model: str) -> list[EvalRow]:
    """Return a model's rows, asked as the run's first row was: how models are asked is no part of a claim."""
    return [row for row in run.rows if row.model == model and row.prompt_condition == run.rows[0].prompt_condition]


def _rows(run: RunData, model: str, temperature: float | None = None, test: str | None = None) -> list[EvalRow]:
    rows = [row for row in _of_model(run, model) if temperature in (None, row.temperature) and test in (None, row.benchmark)]
    if not rows:
        where = ("" if temperature is None else f" at temperature {temperature:g}") + (f" on {test}" if test else "")
        raise UserError(f"'{run.folder}' has no rows of '{model}'{where}; its recipe must evaluate that model")
    return rows


def _accuracy(rows: Sequence[EvalRow]) -> float | None:
    graded = [is_correct(row) for row in rows if row.outcome is not Outcome.GRADER_ERROR]
    return fmean(graded) if graded else None


def gaps(rows: Sequence[EvalRow]) -> list[float]:
    """Return by how much wrong responses are longer than correct ones [% of the mean length of both], for each problem that
    has both; truncated ones are left out.

    Where outcome and length have nothing to do with each other the mean is 0. The ratio of the two means would be above 1:
    one over the mean of a few lengths that differ widely is above one over their expectation.
    """
    found: list[float] = []
    for mine in by_problem(rows).values():
        right = [row.num_tokens for row in mine if row.outcome is Outcome.CORRECT]
        wrong = [row.num_tokens for row in mine if row.outcome is Outcome.WRONG]
        if right and wrong:
            found.append(100 * (fmean(wrong) - fmean(right)) / fmean(right + wrong))
    return found


def _monitor(run: RunData, stage: str, name: str) -> float:
    values = [value for step in run.steps.get(stage, []) if isinstance(value := step.get(name), (int, float))]
    if not values:
        raise UserError(f"'{run.folder}' has no metric '{name}' of '{stage}' that is a number")
    return fmean(values[-max(1, len(values) // 4) :])
