"""`conclip grade IN OUT`: any JSON lines with `gold` and `response` columns get an outcome and an extracted answer a row.

No model is needed: for old runs, other tools' outputs, and audits of the grader itself.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from conclip.errors import UserError
from conclip.grading.answers import extract_boxed
from conclip.grading.grader import GRADER_VERSION, Grader
from conclip.grading.thinking import Thinking, answer_of, tags_in
from conclip.problems.files import is_missing_value
from conclip.problems.tables import object_lines
from conclip.runs.files import check_target, writing
from conclip.types import Grade, Outcome

MAX_PENDING = 1000
"""Rows held in memory at a time."""


def grade_file(source: Path, target: Path, *, audit: bool) -> Counter[str]:
    """Grade every row of `source` into `target`, in order. Returns how many rows have each outcome and, with `audit`, how
    many the second method agrees on, disagrees on, or cannot judge.

    A row's columns stay; `outcome`, `extracted`, `method` and `grader_version` are added, `audit` when asked for. What
    stands inside a thinking part (`<think>` or other known tags) is no answer. A response without a box is taken whole, from
    behind that part, as the answer. Of a list of golds each is right by itself. Optional columns: `choices` (texts of
    options A, B, ...), `precision` (decimals to which numbers must agree). Raises UserError with the line number on unusable
    rows, before `target` is made.
    """
    if not source.is_file():
        raise UserError(f"no file '{source}'; give JSON lines with columns 'gold' and 'response'")
    if source.resolve() == target.resolve():
        raise UserError(f"'{target}' is the input; give another file for the output")
    check_target(target, "OUT")
    num_rows = sum(1 for _ in _rows(source))
    if num_rows == 0:
        raise UserError(f"'{source}' holds no rows; give JSON lines with columns 'gold' and 'response'")
    counts: Counter[str] = Counter()
    with writing(target) as out:
        for row, grade, second in _graded(source, audit=audit):
            result = {"outcome": grade.outcome.value, "extracted": grade.extracted, "method": grade.method}
            counts[grade.outcome.value] += 1
            if second is not None:
                result["audit"] = second
                counts[f"audit: {second}"] += 1
            out.write(json.dumps(row | result | {"grader_version": GRADER_VERSION}, ensure_ascii=False) + "\n")
    return counts


def _graded(source: Path, *, audit: bool) -> Iterator[tuple[dict[str, Any], Grade, str | None]]:
    """Yield rows with their verdicts, in the order of the file; workers keep busy on the rows ahead."""
    grader = Grader()
    pending: dict[str, dict[str, Any]] = {}
    verdicts: dict[str, Grade] = {}
    next_out = 0

    def ready() -> Iterator[tuple[dict[str, Any], Grade, str | None]]:
        nonlocal next_out
        while (key := str(next_out)) in verdicts and (not audit or f"{key} audit" in verdicts):
            grade = verdicts.pop(key)
            second = _agreement(grade, verdicts.pop(f"{key} audit")) if audit else None
            yield pending.pop(key), grade, second
            next_out += 1

    try:
        for number, row in enumerate(_rows(source)):
            key = str(number)
            pending[key] = row
            _submit(grader, key, row)
            if audit:
                _submit(grader, f"{key} audit", row, second=True)
            verdicts |= dict(grader.poll())
            while len(pending) >= MAX_PENDING and str(next_out) not in verdicts:
                verdicts |= dict(grader.poll(1.0))
            yield from ready()
        while pending:
            verdicts |= dict(grader.poll(1.0))
            yield from ready()
    finally:
        grader.close()


def _submit(grader: Grader, key: str, row: dict[str, Any], *, second: bool = False) -> None:
    response = str(row["response"])
    response = answer_of(response, Thinking(tags_in(response)))
    answer = extract_boxed(response)
    golds = [str(gold) for gold in _listed(row["gold"])]
    grader.submit_answer(
        key,
        gold=[extract_boxed(gold) or gold for gold in golds],
        answer=response.strip() if answer is None else answer,
        method="whole" if answer is None else "boxed",
        choices=row.get("choices"),
        decimals=row.get("precision"),
        second_method=second,
    )


def _agreement(first: Grade, second: Grade) -> str:
    if Outcome.GRADER_ERROR in (first.outcome, second.outcome):
        return "not judged"
    return "agrees" if first.outcome is second.outcome else "disagrees"


def _listed(value: Any) -> list[Any]:
    return cast(list[Any], value) if isinstance(value, list) else [value]


def _is_text(value: Any) -> bool:
    """Return whether a value is text or a number; NaN and infinity are none."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, (str, int)) and not isinstance(value, bool)


def _rows(source: Path) -> Iterator[dict[str, Any]]:
    return (_checked(where, row) for where, row in object_lines(source))


def _checked(where: str, row: dict[str, Any]) -> dict[str, Any]:
    for column in ("gold", "response"):
        if column not in row:
            raise UserError(f"{where}: no column '{column}'; columns here: {', '.join(sorted(row)) or 'none'}")
        values = _listed(row[column]) if column == "gold" else [row[column]]
        if not values or not all(map(_is_text, values)):
            raise UserError(
                f"{where}: column '{column}' must be text or a number{', or a list' if column == 'gold' else ''}"
            )
    if nothing := [gold for gold in _listed(row["gold"]) if is_missing_value(str(gold))]:
        raise UserError(f"{where}: column 'gold' holds no answer but '{nothing[0]}'")
    choices = row.get("choices")
    if choices is not None and not (isinstance(choices, list) and all(isinstance(c, str) for c in cast(list[Any], choices))):
        raise UserError(f"{where}: column 'choices' must be a list of texts, or null")
    precision = row.get("precision")
    if precision is not None and (isinstance(precision, bool) or not isinstance(precision, int) or precision < 0):
        raise UserError(f"{where}: column 'precision' must be a number of decimals, or null")
    return row
