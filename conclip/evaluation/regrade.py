"""`conclip grade IN OUT`: rows with a gold answer and a response, or conclip's own, get an outcome and an extracted answer
each.

No model is needed: for old runs, other tools' outputs, and audits of the grader itself.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

from conclip.errors import UserError
from conclip.grading.answers import extract_boxed
from conclip.grading.golds import check_golds
from conclip.grading.grader import GRADER_VERSION, Grader
from conclip.grading.thinking import DEFAULT_TAGS, Thinking, answer_of, joined, tags_in
from conclip.grading.verifier import check_verifier
from conclip.problems.cells import cell, cell_text, missing, text_or_json
from conclip.problems.files import compile_pattern, is_missing_value
from conclip.problems.options import LETTERS
from conclip.problems.tables import object_lines, read_table
from conclip.runs.files import check_target, finite, writing
from conclip.types import ExtractionRule, FinishReason, Grade, Outcome, Verifier

MAX_PENDING = 1000
"""Rows held in memory at a time."""

MAX_DIGITS = 9
"""Longest index, or number of decimals, that is read."""

MAX_CHECKED = 1000
"""Different gold answers, of the first rows, that are looked at before any is compared."""

TABLES = (".csv", ".parquet")
"""Files of other kinds hold JSON lines, whatever they are called."""

OWN_COLUMNS = {"problem_id", "answer", "text", "finish_reason"}
"""Columns by which a row of conclip's own is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What the columns of a file are called; also of what is inside them (`cell`)."""

    gold: str = "gold"
    response: str = "response"
    gold_index: str | None = None
    """Where the gold column lists options, the column with the index of the right one, or with several."""
    gold_pattern: str | None = None
    """A regular expression with one group around the answer in the gold column, where that holds more."""
    verifier: Verifier | None = None
    """What judges whole responses, in place of the comparison with the gold column."""

    @property
    def are_ours(self) -> bool:
        """Whether gold and response have conclip's own names, so that `choices` and `precision` must be what they are here;
        else they are read where they can be."""
        return (self.gold, self.response) == ("gold", "response")


Questions = Mapping[str, Mapping[str, Any]]
"""The test problems of a run, by id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    """A row and what the grader gets of it."""

    row: dict[str, Any]
    golds: list[str]
    response: str
    choices: list[str] | None
    decimals: int | None = None
    tolerance: float = 0.0
    finish_reason: FinishReason | None = None
    """How the response ended, in a row of conclip's own or where it was cut; None: the response is taken whole where it has
    no box."""
    extraction: ExtractionRule = "strict"
    """By which rule an outcome counts, in a row of conclip's own."""
    verifier: Verifier | None = None
    is_guessed: bool = False
    """Whether a row of conclip's own is graded by its column `answer`, as its problem is not known."""


def grade_file(
    source: Path,
    target: Path,
    *,
    audit: bool,
    columns: Columns = Columns(),
    notes: list[str] | None = None,
    num_workers: int = 2,
) -> Counter[str]:
    """Grade every row of `source` into `target`, in order. Returns how many rows have each outcome and, with `audit`, how
    many the second method agrees on, disagrees on, or cannot judge. Notes for people are added to `notes`: where gold
    answers are not understood, and where the problems of conclip's own rows are not known.

    A row's columns stay; `outcome`, `extracted`, `method` and `grader_version` are added, `audit` when asked for. What
    stands inside a thinking part (`<think>` or other known tags) is no answer. A response without a box is taken whole, from
    behind that part, as the answer. Of a list of golds each is right by itself. Optional columns: `finish_reason` ("length"
    where a response was cut: it is truncated then, as in conclip's own evaluations, whatever it says), `choices` (texts of
    options A, B, ...) and `precision` (decimals to which numbers must agree); in files of other tools the latter two are
    read where they can be.

    Rows of conclip's own are graded as in their run, by its rule of extraction, and their lenient columns, too: golds,
    choices and tolerance are those of questions.jsonl beside the file, else the row's `answer`. (Whether a prompt had opened
    the thinking part, they do not say: one that never closes counts as an answer.) Raises UserError with the line number on
    unusable rows, and where most golds are whole solutions, before `target` is made.
    """
    if not source.is_file():
        raise UserError(f"no file '{source}'; give rows with columns '{columns.gold}' and '{columns.response}'")
    compile_pattern("--gold-pattern", columns.gold_pattern)
    check_target(target, "OUT", inputs=(source, source.parent / "questions.jsonl"))
    counts: Counter[str] = Counter()
    notes = [] if notes is None else notes
    with closing(Grader(num_workers=num_workers, warn=notes.append)) as grader:
        notes += _check(grader, source, columns)
        with writing(target) as out:
            for row, grade, second in _graded(grader, source, columns, audit=audit):
                result = {"outcome": grade.outcome.value, "extracted": grade.extracted, "method": grade.method}
                if "lenient_outcome" in row and grade.lenient_outcome is not None:
                    result |= {"lenient_outcome": grade.lenient_outcome.value, "lenient_extracted": grade.lenient_extracted}
                counts[grade.outcome.value] += 1
                if second is not None:
                    result["audit"] = second
                    counts[f"audit: {second}"] += 1
                graded = row | result | {"grader_version": GRADER_VERSION}
                out.write(json.dumps(finite(graded), ensure_ascii=False, default=str) + "\n")  # Parquet has dates, and NaN
    return counts


def _check(grader: Grader, source: Path, columns: Columns) -> list[str]:
    """Read all rows, and return notes on golds that are not understood or not known in full. Raises UserError on unusable
    rows, where there are none, where a verifier has none to judge, and where most golds are whole solutions."""
    kinds: dict[tuple[tuple[str, ...], tuple[str, ...]], int] = {}
    number, num_guessed, verified = 0, 0, False
    for number, item in enumerate(_items(source, columns), start=1):
        num_guessed += item.is_guessed
        if item.verifier is not None:
            if not verified:
                check_verifier("--verifier", item.verifier, item.golds[0])
            verified = True
            continue
        kind = tuple(item.golds), tuple(item.choices or ())
        if len(kinds) < MAX_CHECKED:
            kinds.setdefault(kind, number)
    if number == 0:
        raise UserError(f"'{source}' holds no rows; give rows with columns '{columns.gold}' and '{columns.response}'")
    if columns.verifier is not None and not verified:
        raise UserError("--verifier: no row of this file was judged by one; leave it out to compare with gold answers")
    remedy = r"name the answer in them by --gold-pattern '####\s*(.+)', an expression with one group around it"
    note = check_golds(
        grader,
        f"column '{columns.gold}'",
        [(f"row {number}", (golds, choices or None)) for (golds, choices), number in kinds.items()],
        remedy,
    )
    guessed = (
        f"the problems of {num_guessed} rows are not in '{source.parent / 'questions.jsonl'}'; they are graded by their "
        "column 'answer' alone, without further golds, options or a tolerance"
    )
    notes = [] if note is None else [note]
    return [*notes, guessed] if num_guessed else notes


def _graded(
    grader: Grader, source: Path, columns: Columns, *, audit: bool
) -> Iterator[tuple[dict[str, Any], Grade, str | None]]:
    """Yield rows with their verdicts, in the order of the file; workers keep busy on the rows ahead."""
    pending: dict[str, _Item] = {}
    verdicts: dict[str, Grade] = {}
    next_out = 0

    def is_ready(key: str) -> bool:
        return key in verdicts and (not audit or f"{key} audit" in verdicts)

    def ready() -> Iterator[tuple[dict[str, Any], Grade, str | None]]:
        nonlocal next_out
        while is_ready(key := str(next_out)):
            item = pending.pop(key)
            grade = verdicts.pop(key).by(item.extraction)
            second = _agreement(grade, verdicts.pop(f"{key} audit")) if audit else None
            yield item.row, grade, second
            next_out += 1

    for number, item in enumerate(_items(source, columns)):
        key = str(number)
        pending[key] = item
        _submit(grader, key, item)
        if audit:
            _submit(grader, f"{key} audit", item, second=True)
        verdicts |= dict(grader.poll())
        while len(pending) >= MAX_PENDING and not is_ready(str(next_out)):
            verdicts |= dict(grader.poll(1.0))
        yield from ready()
    while pending:
        verdicts |= dict(grader.poll(1.0))
        yield from ready()


def _submit(grader: Grader, key: str, item: _Item, *, second: bool = False) -> None:
    response = answer_of(item.response, Thinking(tags_in(item.response)))
    settings: dict[str, Any] = {"choices": item.choices, "decimals": item.decimals, "tolerance": item.tolerance}
    if (item.finish_reason is not None and not second) or item.verifier is not None:
        ended = item.finish_reason or "stop"
        grader.submit(key, gold=item.golds, text=response, finish_reason=ended, verifier=item.verifier, **settings)
        return
    answer = extract_boxed(response)
    grader.submit_answer(
        key,
        gold=item.golds,
        answer=response.strip() if answer is None else answer,
        method="whole" if answer is None else "boxed",
        second_method=second,
        **settings,
    )


def _agreement(first: Grade, second: Grade) -> str:
    """Compare what both methods say of an answer; that there is none, or that a response was cut, is no verdict on it."""
    judged = first.lenient_outcome or first.outcome
    if not {judged, second.outcome} <= {Outcome.CORRECT, Outcome.WRONG}:
        return "not judged"
    return "agrees" if judged is second.outcome else "disagrees"


def _listed(value: Any) -> list[Any]:
    return cast(list[Any], value) if isinstance(value, list) else [value]


def _items(source: Path, columns: Columns) -> Iterator[_Item]:
    file = source.parent / "questions.jsonl"
    questions = {str(row.get("problem_id")): row for _, row in object_lines(file)} if file.is_file() else {}
    for where, row in read_table(source) if source.suffix.lower() in TABLES else object_lines(source):
        is_own = replace(columns, verifier=None) == Columns() and "gold" not in row and row.keys() >= OWN_COLUMNS
        yield _own(where, row, questions, columns.verifier) if is_own else _checked(where, row, columns)


def _own(where: str, row: dict[str, Any], questions: Questions, verifier: Verifier | None) -> _Item:
    """Return a row of conclip's own. Its problem says what the row does not: several golds, choices and a tolerance. Raises
    UserError for one that a verifier judged, unless one is given: a file of rows must not choose what is run here."""
    judged_by = row.get("verifier")
    if judged_by is not None and verifier is None:
        raise UserError(f"{where}: judged by the verifier {judged_by!r:.80}; name it by --verifier FILE.py:FUNCTION")
    verifier = None if judged_by is None else verifier
    known = questions.get(str(row["problem_id"]))
    problem = {"answer": row["answer"]} if known is None else known
    golds = [problem.get("answer"), *_listed(problem.get("alternatives") or [])]
    texts = [row["text"], row.get("reasoning") or "", *golds]
    if not all(isinstance(text, str) for text in texts) or row["finish_reason"] not in get_args(FinishReason):
        raise UserError(f"{where}: the columns {', '.join(sorted(OWN_COLUMNS))} are not those of conclip's rows")
    if known is not None:
        where = f"{where}: its problem in questions.jsonl"
    reasoning, tolerance = row.get("reasoning"), problem.get("tolerance") or 0.0
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not 0 <= tolerance < 1:
        raise UserError(f"{where}: column 'tolerance' must be a number in [0, 1), or null")
    named = {} if verifier is None else {"verifier": verifier.short_name}
    return _Item(
        row={name: value for name, value in row.items() if name != "check"} | named,
        golds=[str(gold) if verifier is not None else extract_boxed(str(gold)) or str(gold) for gold in golds],
        verifier=verifier,
        response=row["text"] if reasoning is None else joined(reasoning, row["text"], DEFAULT_TAGS),
        choices=_choices(where, problem),
        tolerance=float(tolerance),
        finish_reason=row["finish_reason"],
        extraction="lenient" if row.get("extraction") == "lenient" else "strict",
        is_guessed=known is None and verifier is None,
    )


def _checked(where: str, row: dict[str, Any], columns: Columns) -> _Item:
    response = cell(row, columns.response)
    response = response if isinstance(response, str) else cell_text(response)
    if response is None:
        raise UserError(f"{missing(where, row, columns.response, 'response')}; --response names another")
    finish_reason: FinishReason | None = "length" if row.get("finish_reason") == "length" else None
    if columns.verifier is not None:
        gold = "" if columns.are_ours and "gold" not in row else text_or_json(where, row, columns.gold, "gold answer")
        return _Item(
            row=row, golds=[gold], response=response, choices=None, verifier=columns.verifier, finish_reason=finish_reason
        )
    values = _listed(cell(row, columns.gold))
    golds = [text for value in values if (text := cell_text(value)) is not None]
    if golds and len(golds) < len(values):
        raise UserError(f"{where}: column '{columns.gold}' (gold answer) lists one that is empty")
    if not golds:
        raise UserError(f"{missing(where, row, columns.gold, 'gold answer')}; --gold names another")
    if nothing := [gold for gold in golds if is_missing_value(gold)]:
        raise UserError(f"{where}: column '{columns.gold}' holds no answer but '{nothing[0]}'")
    return _Item(
        row=row,
        golds=[_answer(where, gold, columns) for gold in _chosen(where, row, golds, columns)],
        response=response,
        choices=_choices(where, row, must=columns.are_ours),
        decimals=_decimals(where, row, must=columns.are_ours),
        finish_reason=finish_reason,
    )


def _chosen(where: str, row: dict[str, Any], golds: list[str], columns: Columns) -> list[str]:
    """Return those of the listed golds that are right: all, or the ones at the indices in column `gold_index`."""
    if columns.gold_index is None:
        if len(golds) > 1 and golds == list(LETTERS[: len(golds)]) and not columns.are_ours:
            raise UserError(
                f"{where}: column '{columns.gold}' lists the letters of all options; name the column with the index of the "
                "right one by --gold-index"
            )
        return golds
    chosen: list[str] = []
    for index in _listed(cell(row, columns.gold_index)):
        text = cell_text(index)
        if text is None or not text.isdecimal() or len(text) > MAX_DIGITS or int(text) >= len(golds):
            raise UserError(f"{where}: column '{columns.gold_index}' has no index of {len(golds)} golds but {index!r}")
        chosen.append(golds[int(text)])
    if not chosen:
        raise UserError(f"{where}: column '{columns.gold_index}' has no index of {len(golds)} golds")
    return chosen


def _answer(where: str, gold: str, columns: Columns) -> str:
    """Return the answer in a gold one: what the pattern finds, or its last box, or all of it."""
    if columns.gold_pattern is None:
        return extract_boxed(gold) or gold
    found = re.search(columns.gold_pattern, gold)
    if found is None or not (found.group(1) or "").strip():
        raise UserError(f"{where}: --gold-pattern finds no answer in column '{columns.gold}'")
    return found.group(1).strip()


def _decimals(where: str, row: Mapping[str, Any], *, must: bool) -> int | None:
    """Return the decimals to which numbers must agree. Raises UserError where column `precision` has none but must."""
    value = row.get("precision")
    text = cell_text(value)
    if text is not None and text.isdecimal() and len(text) < MAX_DIGITS:
        return int(text)
    # null, as CSV and as Parquet files write it
    is_empty = value is None or value == "" or (isinstance(value, float) and math.isnan(value))
    if must and not is_empty:
        raise UserError(f"{where}: column 'precision' must be a number of decimals, or null")
    return None


def _choices(where: str, row: Mapping[str, Any], *, must: bool = True) -> list[str] | None:
    """Return the texts of the options. Raises UserError where column `choices` has none but must."""
    choices = row.get("choices") or None  # an empty cell of a CSV file
    if isinstance(choices, list) and all(isinstance(choice, str) for choice in cast(list[Any], choices)):
        return cast(list[str], choices)
    if must and choices is not None:
        raise UserError(f"{where}: column 'choices' must be a list of texts, or null")
    return None
