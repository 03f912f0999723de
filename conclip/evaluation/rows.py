"""Reads and writes evaluation rows: JSON lines while evaluating, Parquet when done."""

# pyarrow ships no annotations.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from conclip.config.ranges import MAX_COUNT
from conclip.config.recipe import evaluation_of
from conclip.errors import UserError
from conclip.problems.tables import parquet_rows
from conclip.redact import hide_known
from conclip.runs.attempts import MANIFEST
from conclip.runs.checked import first_fault
from conclip.runs.files import check_content, newest_attempt, writing_bytes
from conclip.runs.identity import path_hash
from conclip.runs.json_lines import CutLine, DamagedLine, json_lines
from conclip.runs.manifest import StageRecord, read_stages
from conclip.types import EvalRow

SCHEMA = 3
"""Schema version of a row."""
READABLE = (2, 3)
"""Rows of schema 2 lack the columns that have a default."""


def to_dict(row: EvalRow) -> dict[str, Any]:
    """Return plain data without the secrets of this process: a server may have sent its key back."""
    plain = {"outcome": row.outcome.value, "lenient_outcome": row.lenient_outcome.value}
    values = {"schema": SCHEMA, **asdict(row), **plain}
    return {name: hide_known(value) if isinstance(value, str) else value for name, value in values.items()}


_ROW = TypeAdapter(EvalRow)
_FIELDS = tuple(field.name for field in fields(EvalRow))
_DEFAULTS = {field.name: field.default for field in fields(EvalRow) if field.default is not MISSING}
_COUNTS = {"num_tokens", "num_prompt_tokens", "num_thinking_tokens", "num_tokens_to_answer", "sample"}


def from_dict(values: dict[str, Any]) -> EvalRow:
    """Return the row that `to_dict` described. Raises UserError for a row of another schema, ValueError or KeyError for one
    with wrong values."""
    if values.get("schema") not in READABLE:
        schemas, found = " or ".join(map(str, READABLE)), str(values.get("schema"))[:20]
        raise UserError(
            f"no row of conclip's, which have schema {schemas}, but of schema {found}; conclip grade makes rows of other "
            "tools' responses"
        )
    row = _ROW.validate_python({name: {**_DEFAULTS, **values}[name] for name in _FIELDS})
    for name in _FIELDS:
        value, given = getattr(row, name), values.get(name)
        if isinstance(value, (int, float)) and isinstance(given, (bool, str)):
            raise ValueError(f"{name} is {json.dumps(given)[:40]}, not a number")
        if isinstance(value, str):
            value.encode()  # half a surrogate pair is no text
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is no finite number")
        elif isinstance(value, int) and not (0 <= value < MAX_COUNT if name in _COUNTS else -(2**63) <= value < 2**63):
            raise ValueError(f"{name} is {'too large' if value > 0 else 'no count' if name in _COUNTS else 'too small'}")
    return row


def write_parquet(rows: Sequence[EvalRow], path: Path) -> None:
    with writing_bytes(path) as out:
        pq.write_table(pa.Table.from_pylist([to_dict(row) for row in rows]), out)


def read_rows(path: Path) -> list[EvalRow]:
    """Return the rows of a file (JSON lines or Parquet), or those of a run's evaluations that have ended. Raises UserError
    when there are none."""
    files, cut_line = [path], "drop" if path.is_dir() else "read"
    if path.is_dir():
        folder = newest_attempt(path)
        check_content(folder.resolve())
        files = sorted(folder.glob("rows*.jsonl")) or sorted(folder.glob("rows*.parquet"))
        if not files:
            raise UserError(
                f"'{path}' has no rows*.jsonl; give a run that evaluated (outputs/<subcommand>/<name>, or an attempt in "
                "it), or a file with rows"
            )
        if (folder / MANIFEST).exists():
            files = list(rows_of_run(folder, read_stages(folder))[0].values())
        if not files:
            raise UserError(f"'{path}': no evaluation in it has ended; repeat the run's command to resume it")
    rows = [row for file in files for row in _read_file(file, cut_line)]
    if not rows:
        raise UserError(f"'{path}' holds no rows; repeat the evaluation, or give another file")
    return rows


def rows_of_run(folder: Path, stages: Mapping[str, StageRecord]) -> tuple[dict[str, Path], list[str]]:
    """Return the files with the rows of a run's evaluations that have ended, by model in the order of the run, and the
    models of others. Raises UserError for a file that is not what the run wrote, as while a stage is done again."""
    files = [*folder.glob("rows-*.parquet"), *folder.glob("rows-*.jsonl")]
    there = {path.stem.removeprefix("rows-"): path for path in files}
    ended = {name: there[name] for stage in stages if (name := stage.removeprefix("eval-")) != stage and name in there}
    for name, file in ended.items():
        expected = stages[evaluation_of(name)].outputs.get(file.name)
        if expected is not None and path_hash(file) != expected:
            raise UserError(f"'{file}' is not what the run wrote (manifest.json has its hash); repeat its command")
    return ended, sorted(there.keys() - ended.keys())


def _read_file(path: Path, cut_line: CutLine) -> list[EvalRow]:
    if not path.is_file():
        raise UserError(f"no file or folder '{path}'")
    rows, where = list[EvalRow](), ""
    try:
        for place, values in _placed(path, cut_line):
            where = place
            rows.append(from_dict(values))
            where = ""  # the reader's own errors have their place, or none
    except UserError as error:
        raise UserError(f"'{path}'{', ' if where else ''}{where.removesuffix(': ')}: {error}") from error
    except DamagedLine as error:
        raise UserError(f"'{path}' does not hold evaluation rows (line {error.number}: {error})") from error
    except ValidationError as error:
        raise UserError(f"'{path}' does not hold evaluation rows ({where}{first_fault(error)})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"'{path}' does not hold evaluation rows ({where}{type(error).__name__}: {error})") from error
    return rows


def _placed(path: Path, cut_line: CutLine) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a file, each with where it stands, for an error."""
    if path.suffix == ".parquet":
        for number, values in enumerate(parquet_rows(path), start=1):
            yield f"row {number}: ", values
        return
    with path.open(encoding="utf-8-sig") as lines:
        for number, values in json_lines(lines, cut_line=cut_line):
            yield f"line {number}: ", values


def select_rows(rows: Sequence[EvalRow], **wanted: str | float | None) -> list[EvalRow]:
    """Return the rows whose columns have the wanted values. Raises UserError, with the values there are, when no row has
    them."""
    selected = [row for row in rows if all(getattr(row, column) == value for column, value in wanted.items())]
    if not selected:
        there = {column: sorted({getattr(row, column) for row in rows}, key=str) for column in wanted}
        raise UserError(
            "no rows with "
            + ", ".join(f"{column} {value}" for column, value in wanted.items())
            + "; there are "
            + ", ".join(f"{column} {' '.join(map(str, values))}" for column, values in there.items())
        )
    return selected
