"""Problems from the rows of a file or a hub data set."""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from typing import Any, cast

from conclip.answers import extract_boxed
from conclip.config import ProblemSetConfig, UserError
from conclip.problems.tables import Row, read_rows
from conclip.seeding import python_stream
from conclip.types import Problem


def load_dataset(key: str, name: str, settings: ProblemSetConfig) -> tuple[list[Problem], list[str]]:
    """The problems of a set, columns named by `settings`, and what people should know of them.

    Level and subject filters come first, then a shuffle when `settings.seed` is not 0, then `num_problems` from `offset` on.
    Ids come from the column `problem_id`, or else from name, place and content, so that they are stable. Raises UserError
    with file and line on anything unusable, and when `expected_problems` is not what the filters leave.
    """
    pattern = _compile(key, settings.answer_pattern)
    rows = [row for row in read_rows(key, settings) if _wanted(row, settings)]
    if not rows:
        raise UserError(f"{key}: holds no problems{' after the filters' if settings.levels or settings.subjects else ''}")
    shots = _shots(key, settings)
    problems = [_problem(number, name, row, settings, pattern, shots) for number, row in enumerate(rows, start=1)]
    if settings.expected_problems is not None and len(problems) != settings.expected_problems:
        raise UserError(
            f"{key}: {len(problems)} problems where {settings.expected_problems} are expected; another version of the data, "
            f"or a part of it? Set {key}.expected_problems=null to use it all the same"
        )
    notes: list[str] = []
    num_repeated = len(problems) - len({" ".join(problem.question.split()) for problem in problems})
    if num_repeated:
        notes.append(f"{key}: {num_repeated} of {len(problems)} problems repeat the text of another one (kept)")
    if settings.seed:
        problems = python_stream("file", settings.seed).sample(problems, len(problems))
    if settings.offset >= len(problems):
        raise UserError(f"{key}.offset: there are {len(problems)} problems, none from {settings.offset} on")
    problems = problems[settings.offset :]
    if settings.num_problems is not None and settings.num_problems > len(problems):
        raise UserError(f"{key}.num_problems: there are {len(problems)} problems, not {settings.num_problems}")
    return problems[: settings.num_problems], notes


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


def _wanted(row: Row, settings: ProblemSetConfig) -> bool:
    _, columns = row
    good_level = not settings.levels or _level(columns, settings) in settings.levels
    return good_level and (not settings.subjects or _subject(columns, settings) in settings.subjects)


def _level(columns: dict[str, Any], settings: ProblemSetConfig) -> int | None:
    """The first number in the level's column ("Level 5" is 5)."""
    found = re.search(r"\d+", str(columns.get(settings.level, "")))
    return int(found.group()) if found else None


def _problem(
    number: int,
    name: str,
    row: Row,
    settings: ProblemSetConfig,
    pattern: re.Pattern[str] | None,
    shots: Mapping[str, list[str]],
) -> Problem:
    where, columns = row
    question, answer, choices = _question(row, settings, pattern)
    subject = _subject(columns, settings)
    examples = shots.get(subject or "", [])
    if len(examples) < settings.shots:
        raise UserError(f"{where}: {settings.shots} examples asked for, subject '{subject}' has {len(examples)}")
    if settings.problem_id is not None:
        problem_id = _text(where, columns, settings.problem_id, "problem_id")
    else:
        digest = hashlib.sha256(f"{question}\n{answer}".encode()).hexdigest()[:10]
        problem_id = f"{name}-{number}-{digest}"
    return Problem(
        problem_id=problem_id,
        question=question,
        examples=tuple(examples),
        answer=answer,
        choices=choices,
        source=name,
        level=_level(columns, settings),
        subject=subject,
    )


def _question(
    row: Row, settings: ProblemSetConfig, pattern: re.Pattern[str] | None
) -> tuple[str, str, tuple[str, ...] | None]:
    """(question with its options, gold answer, options)."""
    where, columns = row
    question = _text(where, columns, settings.question, "question")
    if settings.choices is None:
        return question, _gold(row, settings, pattern), None
    if isinstance(settings.choices, str):
        options = columns.get(settings.choices)
        if not isinstance(options, list) or len(cast(list[Any], options)) < 2:
            raise UserError(f"{where}: column '{settings.choices}' (choices) is no list of options")
        texts = tuple(str(option).strip() for option in cast(list[Any], options))
        gold = _letter(where, columns.get(settings.answer), len(texts), settings.answer)
    else:
        # columns of options, the right one first: their order is drawn from the question
        right, *wrong = (_text(where, columns, column, "choices").strip() for column in settings.choices)
        shuffled = python_stream("choices", question).sample([right, *wrong], 1 + len(wrong))
        texts, gold = tuple(shuffled), chr(ord("A") + shuffled.index(right))
    lines = [f"{chr(ord('A') + index)}) {text}" for index, text in enumerate(texts)]
    return "\n".join([question, *lines]), gold, texts


def _letter(where: str, value: Any, count: int, column: str) -> str:
    """The letter of the right option, from an index (0 is A) or a letter."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < count:
        return chr(ord("A") + value)
    text = str(value).strip().upper()
    if len(text) == 1 and 0 <= ord(text) - ord("A") < count:
        return text
    if text.isdecimal() and int(text) < count:
        return chr(ord("A") + int(text))
    raise UserError(f"{where}: column '{column}' (answer) names none of the {count} options: {value!r}")


def _gold(row: Row, settings: ProblemSetConfig, pattern: re.Pattern[str] | None) -> str:
    where, columns = row
    value = columns.get(settings.answer)
    if isinstance(value, list):  # several final answers
        parts = [_text(where, {settings.answer: part}, settings.answer, "answer") for part in cast(list[Any], value)]
        columns = columns | {settings.answer: ", ".join(parts)}
    answer = _text(where, columns, settings.answer, "answer")
    if settings.answer_boxed:
        found, how = extract_boxed(answer), "\\boxed{}"
    elif pattern is not None:
        match = pattern.search(answer)
        found, how = match and match.group(1), "answer_pattern"
    else:
        return answer
    if found is None or not found.strip():
        raise UserError(f"{where}: no answer in column '{settings.answer}': {how} finds none")
    return found.strip()


def _shots(key: str, settings: ProblemSetConfig) -> dict[str, list[str]]:
    """Worked examples by subject ("" where rows have none): the first `shots` rows of each in their split or file."""
    if not settings.shots:
        return {}
    if settings.path and not settings.shots_path:
        raise UserError(f"{key}.shots_path: needs a file with the examples, as {key}.path is one")
    source = dataclasses.replace(settings, path=settings.shots_path, split=settings.shots_split)
    pattern = _compile(key, settings.answer_pattern)
    examples: dict[str, list[str]] = {}
    for row in read_rows(f"{key} (examples)", source):
        mine = examples.setdefault(_subject(row[1], settings) or "", [])
        if len(mine) < settings.shots and _wanted(row, settings):
            question, gold, _ = _question(row, settings, pattern)
            mine.append(f"{question}\nAnswer: \\boxed{{{gold}}}")
    return examples


def _subject(columns: dict[str, Any], settings: ProblemSetConfig) -> str | None:
    value = columns.get(settings.subject)
    return None if value is None else str(value)


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
