"""Problems from a JSON-lines file."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, cast

from conclip.config import ProblemSetConfig, UserError
from conclip.seeding import python_stream
from conclip.types import Problem


def read_jsonl(key: str, name: str, settings: ProblemSetConfig) -> list[Problem]:
    """One problem per line, columns named by `settings`; the first `num_problems` rows, or a shuffled choice when
    `settings.seed` is not 0. Raises UserError with file and line number on anything unusable."""
    if not settings.path:
        raise UserError(f"config key '{key}.path' has no value; give a .jsonl file with one problem a line")
    path = Path(settings.path).expanduser()
    if not path.is_file():
        raise UserError(f"{key}.path: no file '{path}'; give a .jsonl file with one problem a line")
    pattern = _compile(key, settings.answer_pattern)
    problems: list[Problem] = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                problems.append(_parse_line(f"{path}:{number}", name, line, settings, pattern))
    if not problems:
        raise UserError(f"{key}.path: '{path}' holds no problems; each line must be a JSON object")
    if settings.num_problems is None:
        return problems
    if settings.num_problems > len(problems):
        raise UserError(f"{key}.num_problems: '{path}' holds {len(problems)} problems, not {settings.num_problems}")
    if settings.seed:
        problems = python_stream("file", settings.seed).sample(problems, len(problems))
    return problems[: settings.num_problems]


def _compile(key: str, pattern: str | None) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"{key}.answer_pattern: not a regular expression: {error}") from error
    if compiled.groups < 1:
        raise UserError(f"{key}.answer_pattern: needs one (group) around the answer")
    return compiled


def _parse_line(where: str, name: str, line: str, settings: ProblemSetConfig, pattern: re.Pattern[str] | None) -> Problem:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg}, column {error.colno}); each line must be one object") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: a JSON {type(row).__name__}, not an object with columns")
    row = cast(dict[str, Any], row)
    question = _text(where, row, settings.question, "question")
    answer = _text(where, row, settings.answer, "answer")
    if pattern is not None:
        match = pattern.search(answer)
        if match is None:
            raise UserError(f"{where}: answer_pattern finds no answer in column '{settings.answer}'")
        answer = match.group(1).strip()
    if settings.problem_id is not None:
        problem_id = _text(where, row, settings.problem_id, "problem_id")
    else:
        digest = hashlib.sha256(f"{question}\n{answer}".encode()).hexdigest()[:10]
        problem_id = f"{name}-{where.rsplit(':', 1)[1]}-{digest}"
    level = row.get("level")
    return Problem(
        problem_id=problem_id,
        question=question,
        answer=answer,
        source=name,
        level=level if isinstance(level, int) else None,
        subject=str(row["subject"]) if "subject" in row else None,
    )


def _text(where: str, row: dict[str, Any], column: str, role: str) -> str:
    value = row.get(column)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str) and value.strip():
        return value
    found = ", ".join(sorted(row)) or "none"
    if column not in row:
        raise UserError(f"{where}: no column '{column}' for the {role}; columns here: {found}")
    raise UserError(f"{where}: column '{column}' ({role}) is empty or not text")
