"""Evaluation rows as files: JSON lines while evaluating, Parquet when done; and where a run folder keeps them."""

# pyarrow ships no annotations.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

import json
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from conclip.config import UserError
from conclip.files import newest_attempt, put
from conclip.types import EvalRow, Outcome

SCHEMA = 3
"""Of a row."""
READABLE = (2, 3)
"""Rows of schema 2 lack the columns that have a default."""


def to_dict(row: EvalRow) -> dict[str, Any]:
    plain = {"outcome": row.outcome.value, "lenient_outcome": row.lenient_outcome.value}
    return {"schema": SCHEMA, **asdict(row), **plain}


def from_dict(values: dict[str, Any]) -> EvalRow:
    """Raises UserError for a row of another schema."""
    if values.get("schema") not in READABLE:
        raise UserError(f"rows have schema {values.get('schema')}, this version reads {SCHEMA}; evaluate again")
    lacking = {field.name: field.default for field in fields(EvalRow) if field.default is not MISSING}
    known = {field.name: {**lacking, **values}[field.name] for field in fields(EvalRow)}
    known |= {name: Outcome(known[name]) for name in ("outcome", "lenient_outcome")}
    return EvalRow(**known)


def read_lines(path: Path) -> Iterator[EvalRow]:
    """Rows of a JSON-lines file; a last line that was cut is left out."""
    with path.open(encoding="utf-8-sig") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield from_dict(json.loads(line))


def write_parquet(rows: Sequence[EvalRow], path: Path) -> None:
    """Write aside and rename."""
    aside = path.with_name(path.name + ".part")
    pq.write_table(pa.Table.from_pylist([to_dict(row) for row in rows]), aside)
    put(aside, path)


def read_rows(path: Path) -> list[EvalRow]:
    """The rows of a file (JSON lines or Parquet), or all of a run. Raises UserError when there are none."""
    files = [path]
    if path.is_dir():
        folder = newest_attempt(path)
        files = sorted(folder.glob("rows*.jsonl")) or sorted(folder.glob("rows*.parquet"))
        if not files:
            raise UserError(
                f"'{path}' has no rows*.jsonl; give a run that evaluated (outputs/<subcommand>/<name>, or an attempt in "
                "it), or a file with rows"
            )
    rows = [row for file in files for row in _read_file(file)]
    if not rows:
        raise UserError(f"'{path}' holds no rows")
    return rows


def _read_file(path: Path) -> list[EvalRow]:
    if not path.is_file():
        raise UserError(f"no file or folder '{path}'")
    try:
        if path.suffix == ".parquet":
            return [from_dict(values) for values in cast(list[dict[str, Any]], pq.read_table(path).to_pylist())]
        return list(read_lines(path))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"'{path}' does not hold evaluation rows ({type(error).__name__}: {error})") from error


def select_rows(rows: Sequence[EvalRow], **wanted: str | float | None) -> list[EvalRow]:
    """The rows whose columns have the wanted values. Raises UserError, with what there is, when none has."""
    found = [row for row in rows if all(getattr(row, column) == value for column, value in wanted.items())]
    if not found:
        there = {column: sorted({getattr(row, column) for row in rows}, key=str) for column in wanted}
        raise UserError(
            "no rows with "
            + ", ".join(f"{column} {value}" for column, value in wanted.items())
            + "; there are "
            + ", ".join(f"{column} {' '.join(map(str, values))}" for column, values in there.items())
        )
    return found
