"""Evaluation rows as files: JSON lines while evaluating, Parquet when done; and where a run folder keeps them."""

# pyarrow ships no annotations.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from conclip.config import UserError
from conclip.files import check_content, newest_attempt, writing_bytes
from conclip.redact import hide_known
from conclip.types import EvalRow, Outcome

SCHEMA = 2
"""Of a row."""


def to_dict(row: EvalRow) -> dict[str, Any]:
    """Plain data, without secrets of this process: a server may have sent its key back."""
    plain = {"outcome": row.outcome.value, "lenient_outcome": row.lenient_outcome.value}
    values = {"schema": SCHEMA, **asdict(row), **plain}
    return {name: hide_known(value) if isinstance(value, str) else value for name, value in values.items()}


def from_dict(values: dict[str, Any]) -> EvalRow:
    """Raises UserError for a row of another schema."""
    if values.get("schema") != SCHEMA:
        raise UserError(f"rows have schema {values.get('schema')}, this version reads {SCHEMA}; evaluate again")
    known: dict[str, Any] = {field.name: values[field.name] for field in fields(EvalRow)}
    known |= {name: Outcome(known[name]) for name in ("outcome", "lenient_outcome")}
    return EvalRow(**known)


def read_lines(path: Path) -> Iterator[EvalRow]:
    """Rows of a JSON-lines file; a last line that was cut is left out."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield from_dict(json.loads(line))


def write_parquet(rows: Sequence[EvalRow], path: Path) -> None:
    with writing_bytes(path) as out:
        pq.write_table(pa.Table.from_pylist([to_dict(row) for row in rows]), out)


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


def select_rows(rows: Sequence[EvalRow], **wanted: str | float) -> list[EvalRow]:
    """The rows whose columns have the wanted values. Raises UserError, with what there is, when none has."""
    found = [row for row in rows if all(getattr(row, column) == value for column, value in wanted.items())]
    if not found:
        there = {column: sorted({getattr(row, column) for row in rows}) for column in wanted}
        raise UserError(
            "no rows with "
            + ", ".join(f"{column} {value}" for column, value in wanted.items())
            + "; there are "
            + ", ".join(f"{column} {' '.join(map(str, values))}" for column, values in there.items())
        )
    return found
