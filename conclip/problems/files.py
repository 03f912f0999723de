"""Problems from the rows of a file or a hub data set."""

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any, cast

from conclip.config.groups import ProblemSetConfig
from conclip.errors import UserError
from conclip.grading.answers import extract_boxed
from conclip.grading.verifier import find_verifier
from conclip.problems.cells import (
    NoAnswer,
    cell,
    cell_text,
    columns_of,
    has_column,
    missing,
    text_of,
    text_or_json,
    written,
)
from conclip.problems.options import LETTERS, by_label, letter, options_in_column, options_in_columns, shuffled
from conclip.problems.overlap import single_spaced
from conclip.problems.tables import Row, read_rows
from conclip.seeding import python_stream
from conclip.types import Problem

MAX_SKIPPED_SHARE = 0.01
"""Largest share of rows without a usable answer that are skipped; with more of them, the data or the settings are wrong."""

MAX_NAMED_ROWS = 3
"""Skipped rows that are named with their reason; the others are only counted."""

MAX_LEVEL_DIGITS = 9
"""The longest number that is a level; columns of rows hold 64 bits."""


def load_dataset(key: str, name: str, settings: ProblemSetConfig) -> tuple[list[Problem], list[str]]:
    """Return the problems of a set, whose columns `settings` names, and notes for people.

    Level and subject filters come first, then a shuffle when `settings.seed` is not 0, then the `share`, then `num_problems`
    from `offset` on (of a share, whose size depends on the file, at most so many).
    Ids come from the column `problem_id`, or else from name, place and content, so that they are stable. Rows without a
    usable answer are skipped with a note, up to MAX_SKIPPED_SHARE of all rows. Raises UserError with file and line when more
    rows have none, when anything else is unusable, and when `expected_problems` does not match what is left.
    """
    pattern = compile_pattern(f"{key}.answer_pattern", settings.answer_pattern)
    verifier = None if settings.verifier is None else find_verifier(f"{key}.verifier", settings.verifier)
    rows = [(n, row) for n, row in enumerate(read_rows(key, settings), start=1) if _passes_filters(row, settings)]
    if not rows:
        raise UserError(f"{key}: holds no problems{' after the filters' if settings.levels or settings.subjects else ''}")
    _check_columns(key, [row for _, row in rows], settings)
    problems: list[Problem] = []
    left_out: list[NoAnswer] = []
    for number, row in rows:
        try:
            problems.append(dataclasses.replace(_problem(number, name, row, settings, pattern), verifier=verifier))
        except NoAnswer as reason:
            left_out.append(reason)
    notes = [_left_out(key, left_out, len(rows))] if left_out else []
    if settings.expected_problems is not None and len(problems) != settings.expected_problems:
        left = "".join(f" ({note})" for note in notes)
        raise UserError(
            f"{key}: {len(problems)} problems where {settings.expected_problems} are expected; another version of the data, "
            f"or a part of it? Set {key}.expected_problems=null to use it all the same{left}"
        )
    asked = {single_spaced(problem.question) for problem in problems}
    if num_repeated := len(problems) - len(asked):
        notes.append(f"{key}: {num_repeated} of {len(problems)} problems repeat the text of another one")
    if settings.shots:
        problems = _with_examples(key, problems, _shots(key, settings, asked), settings.shots)
    if settings.seed:
        problems = python_stream("file", settings.seed).sample(problems, len(problems))
    if settings.share is not None:
        begin, end = (round(share * len(problems)) for share in settings.share)
        problems = problems[begin:end]
        if not problems:
            raise UserError(f"{key}.share: {settings.share} of the problems there are is none; give more problems")
    if settings.offset >= len(problems):
        raise UserError(f"{key}.offset: there are {len(problems)} problems, none from {settings.offset} on")
    problems = problems[settings.offset :]
    if settings.num_problems is not None and settings.share is None and settings.num_problems > len(problems):
        raise UserError(
            f"{key}.num_problems: there are {len(problems)} problems, not {settings.num_problems}; null takes all"
        )
    return problems[: settings.num_problems], notes


def _check_columns(key: str, rows: Sequence[Row], settings: ProblemSetConfig) -> None:
    """Raise UserError naming the columns of question and answer that no row has, all at once, and the keys that say them."""
    where, columns = rows[0]
    wanted = dict.fromkeys(columns_of(columns, settings.question), "question")
    if settings.answer is not None and not isinstance(settings.choices, list):
        wanted[settings.answer] = "answer"
    missed = {name: role for name, role in wanted.items() if not any(has_column(row, name) for _, row in rows)}
    if missed:
        named = ", ".join(f"no column '{name}' for the {role}" for name, role in missed.items())
        keys = " ".join(f"{key}.{role}=COLUMN" for role in dict.fromkeys(missed.values()))
        raise UserError(f"{where}: {named}; columns here: {', '.join(sorted(columns)) or 'none'}; name yours: {keys}")


def _left_out(key: str, reasons: list[NoAnswer], num_rows: int) -> str:
    """Return the note on skipped rows. Raises UserError with the first reason when they are too many."""
    many = f"{len(reasons)} of {num_rows} rows have no usable answer"
    if len(reasons) > MAX_SKIPPED_SHARE * num_rows:
        raise UserError(f"{reasons[0]}{f'; {many}' if len(reasons) > 1 else ''}")
    named = "; ".join(map(str, reasons[:MAX_NAMED_ROWS]))
    others = f"; {len(reasons) - MAX_NAMED_ROWS} more" if len(reasons) > MAX_NAMED_ROWS else ""
    return f"{key}: {many} and are left out: {named}{others}"


def compile_pattern(name: str, pattern: str | None) -> re.Pattern[str] | None:
    """Return the pattern of an option `name`, compiled. Raises UserError unless it has a group, around the answer."""
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"{name}: not a regular expression: {error}") from error
    if compiled.groups < 1:
        raise UserError(f"{name}: needs one (group) around the answer")
    return compiled


def _passes_filters(row: Row, settings: ProblemSetConfig) -> bool:
    _, columns = row
    good_level = not settings.levels or _level(row, settings) in settings.levels
    return good_level and (not settings.subjects or _subject(columns, settings) in settings.subjects)


def _level(row: Row, settings: ProblemSetConfig) -> int | None:
    """Return the first number in the level's column ("Level 5" is 5). Raises UserError for one that is no level."""
    where, columns = row
    match = re.search(r"\d+", str(cell(columns, settings.level)))
    if match is None:
        return None
    if len(match.group()) > MAX_LEVEL_DIGITS:
        raise UserError(
            f"{where}: column '{settings.level}' (level) has a number of {len(match.group())} digits, at most "
            f"{MAX_LEVEL_DIGITS} are a level; name another column, or one that is not there"
        )
    return int(match.group())


def _problem(number: int, name: str, row: Row, settings: ProblemSetConfig, pattern: re.Pattern[str] | None) -> Problem:
    where, columns = row
    question, golds, choices = _question(row, settings, pattern)
    if settings.problem_id is not None:
        problem_id = text_of(where, columns, settings.problem_id, "problem_id")
    else:
        content = "\n".join([question, *golds])
        digest = hashlib.sha256(content.encode()).hexdigest()[:10]
        problem_id = f"{name}-{number}-{digest}"
    return Problem(
        problem_id=problem_id,
        question=question,
        answer=golds[0],
        alternatives=golds[1:],
        tolerance=settings.tolerance,
        choices=choices,
        source=name,
        level=_level(row, settings),
        subject=_subject(columns, settings),
    )


def _question(
    row: Row, settings: ProblemSetConfig, pattern: re.Pattern[str] | None
) -> tuple[str, tuple[str, ...], tuple[str, ...] | None]:
    """Return (question with its options, gold answers, each of which is right, options)."""
    where, columns = row
    question = written(where, columns, settings.question, "question")
    if settings.verifier is not None:
        of_answer = settings.answer
        return question, ("" if of_answer is None else text_or_json(where, columns, of_answer, "answer"),), None
    if settings.choices is None:
        return question, _golds(row, settings, pattern), None
    names, labels = list[str](), None
    if isinstance(settings.choices, str):
        options, labels = options_in_column(where, columns, settings.choices)
    else:
        options, names = options_in_columns(where, columns, settings.choices), settings.choices
    if len(options) > len(LETTERS):
        raise NoAnswer(f"{where}: {len(options)} options (choices), but {len(LETTERS)} letters")
    if settings.answer is None:
        options, right = shuffled(question, options)
        golds = (right,)
    elif labels is not None:
        golds = tuple(by_label(where, value, settings.answer, labels, options) for value in _values(row, settings))
    else:
        golds = tuple(letter(where, value, settings.answer, options, names) for value in _values(row, settings))
    lines = [f"{of_option}) {text}" for of_option, text in zip(LETTERS, options, strict=False)]
    return "\n".join([question, *lines]), golds, options


def _values(row: Row, settings: ProblemSetConfig) -> list[Any]:
    """Return the items of the answer column where it holds a list, else its one value. Raises NoAnswer when there is
    none."""
    where, columns = row
    assert settings.answer is not None
    value = cell(columns, settings.answer)
    values = [item for item in _items(value) if cell_text(item) is not None]
    if not values:
        columned = value is None and isinstance(settings.choices, list)
        remedy = "; is the first of choices right? Then set answer=null" if columned else ""
        raise NoAnswer(missing(where, columns, settings.answer, "answer") + remedy)
    return values


def _items(value: Any) -> list[Any]:
    return cast(list[Any], value) if isinstance(value, list) else [value]


def _golds(row: Row, settings: ProblemSetConfig, pattern: re.Pattern[str] | None) -> tuple[str, ...]:
    """Return the gold answers of a row; any one of them is right."""
    where, columns = row
    golds = [_gold(where, cell_text(value) or "", settings, pattern) for value in _values(row, settings)]
    if settings.answers == "any":
        return tuple(dict.fromkeys(golds))
    if len(golds) < len(_items(cell(columns, settings.answer or ""))):
        raise NoAnswer(f"{where}: column '{settings.answer}' (answer) lacks one of several answers")
    return (", ".join(golds),)


def _gold(where: str, text: str, settings: ProblemSetConfig, pattern: re.Pattern[str] | None) -> str:
    answer, reason = text, ""
    if settings.answer_boxed:
        answer, reason = extract_boxed(text), "\\boxed{} finds none"
    elif pattern is not None:
        match = pattern.search(text)
        answer, reason = match and match.group(1), "answer_pattern finds none"
    if answer is None or not answer.strip():
        raise NoAnswer(f"{where}: no answer in column '{settings.answer}': {reason}")
    if is_missing_value(answer):
        raise NoAnswer(
            f"{where}: no answer in column '{settings.answer}': '{answer.strip()}' is how programs write a missing one"
        )
    if _WRITTEN_LIST.match(answer):
        raise NoAnswer(
            f"{where}: column '{settings.answer}' (answer) holds a list written as text: '{_short(answer)}'; give a list "
            "(JSON, Parquet) or one answer"
        )
    return answer.strip()


_MISSING = re.compile(r"\s*(?:[+-]?(?i:nan|inf|infinity)|None|null|<NA>)?\s*")


def is_missing_value(answer: str) -> bool:
    """Return whether an answer is blank, or what pandas, Python or JSON print for a missing or undefined number."""
    return _MISSING.fullmatch(answer) is not None


_WRITTEN_LIST = re.compile(r"""\s*\[\s*["']""")
"""Start of a list as CSV files of pandas hold it; no formula begins so."""


def _with_examples(key: str, problems: list[Problem], shots: Mapping[str, list[str]], number: int) -> list[Problem]:
    """Return the problems with the worked examples of their subject. Raises UserError where those are too few."""
    for subject in dict.fromkeys(problem.subject for problem in problems):
        if (found := len(shots.get(subject or "", []))) < number:
            of_subject = f" of subject '{subject}'" if subject else ""
            raise UserError(
                f"{key}: {number} examples asked for, there are {found}{of_subject} that are not asked themselves"
            )
    return [dataclasses.replace(problem, examples=tuple(shots[problem.subject or ""])) for problem in problems]


def _shots(key: str, settings: ProblemSetConfig, asked: Set[str]) -> dict[str, list[str]]:
    """Return worked examples by subject ("" where rows have none): the first `shots` rows of each in their split or file,
    but for questions that are `asked` (with single spaces)."""
    if settings.path and not settings.shots_path:
        raise UserError(f"{key}.shots_path: needs a file with the examples, as {key}.path is one")
    source = dataclasses.replace(settings, path=settings.shots_path, split=settings.shots_split)
    pattern = compile_pattern(f"{key}.answer_pattern", settings.answer_pattern)
    examples: dict[str, list[str]] = {}
    for row in read_rows(key, source, kind="shots_"):
        mine = examples.setdefault(_subject(row[1], settings) or "", [])
        if len(mine) < settings.shots and _passes_filters(row, settings):
            try:
                question, golds, _ = _question(row, settings, pattern)
            except NoAnswer:
                continue
            if single_spaced(question) in asked:
                continue
            mine.append(f"{question}\nAnswer: \\boxed{{{golds[0]}}}")
    return examples


def _subject(columns: dict[str, Any], settings: ProblemSetConfig) -> str | None:
    return cell_text(cell(columns, settings.subject))


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"
