"""The options of a multiple-choice problem, and which of them are right."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from conclip.grading.choices import choice_letters, label_and_text, without_choice_word, without_label
from conclip.grading.spelling import plain
from conclip.problems.cells import NoAnswer, cell, cell_text, missing
from conclip.seeding import python_stream

MAX_DIGITS = 9
"""No index has so many."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def options_in_column(where: str, columns: Mapping[str, Any], name: str) -> tuple[tuple[str, ...], Sequence[str] | None]:
    """Return (options, what the answer calls them) from one column: a list of texts, or an object with the lists `text` and
    `label`, as ARC and CommonsenseQA have them. Without labels the answer names an option as `letter` describes."""
    value, labels = cell(columns, name), None
    if isinstance(value, dict):
        value, labels = (cast(dict[str, Any], value).get(part) for part in ("text", "label"))
    if not isinstance(value, list) or len(options := cast(list[Any], value)) < 2:
        raise NoAnswer(f"{where}: column '{name}' (choices) is no list of options")
    if any(cell_text(option) is None and option != "" for option in options):
        raise NoAnswer(f"{where}: column '{name}' (choices) lacks the text of an option")
    texts = tuple((cell_text(option) or "").strip() for option in options)
    if labels is None:
        return texts, None
    names = [cell_text(label) for label in cast(list[Any], labels)] if isinstance(labels, list) else []
    if len(names) != len(texts) or None in names or len(set(names)) < len(names):
        raise NoAnswer(f"{where}: column '{name}' (choices) has not a label of its own for each option")
    return texts, [label or "" for label in names]


def options_in_columns(where: str, columns: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    """Return the options that have a column each."""
    texts = [cell_text(cell(columns, name)) for name in names]
    for name, text in zip(names, texts, strict=True):
        if text is None:
            raise NoAnswer(missing(where, columns, name, "choices"))
    return tuple((text or "").strip() for text in texts)


def shuffled(question: str, options: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Return options of which the first is right in an order that the question seeds, and the right one's letter."""
    texts = tuple(python_stream("choices", question).sample(options, len(options)))
    return texts, LETTERS[texts.index(options[0])]


def by_label(where: str, value: Any, column: str, labels: Sequence[str], options: Sequence[str]) -> str:
    """Return the letter of the option whose label is the answer, also in brackets or before its text. Raises NoAnswer for an
    answer that is none."""
    text = (cell_text(value) or "").strip()
    text = text if text in labels else _written_as(text, labels, options) or text
    if text not in labels:
        raise NoAnswer(f"{where}: column '{column}' (answer) is none of the labels {', '.join(labels)}: {value!r}")
    return LETTERS[labels.index(text)]


def letter(where: str, value: Any, column: str, options: Sequence[str], names: Sequence[str] = ()) -> str:
    """Return the letter of the option that an answer names: by the name of its column where each has one (`names`), by its
    letter, also in brackets or before its text, its index (0 is A), or its text alone. Raises NoAnswer for an answer that
    names none, or names two: '2' may be an index and the text of another option, and so may 'A'."""
    text = (cell_text(value) or "").strip()
    if text in names:
        return LETTERS[names.index(text)]
    is_index = text.isdecimal() and len(text) < MAX_DIGITS and int(text) < len(options)
    is_letter = len(text) == 1 and text.upper() in LETTERS[: len(options)]
    readings = {
        "that letter": LETTERS.index(text.upper()) if is_letter else None,
        "that index (0 is A)": int(text) if is_index else None,
        "that text": options.index(text) if isinstance(value, str) and options.count(text) == 1 else None,
    }
    meant = {way: found for way, found in readings.items() if found is not None}
    if not meant and (written := _written_as(text, LETTERS[: len(options)], options)) is not None:
        return written
    if not meant:
        raise NoAnswer(f"{where}: column '{column}' (answer) names none of the {len(options)} options: {value!r}")
    if len(set(meant.values())) > 1:
        raise NoAnswer(
            f"{where}: column '{column}' (answer) is {value!r}, which may mean the option of {' or '.join(meant)}"
        )
    return LETTERS[next(iter(meant.values()))]


def _written_as(text: str, labels: Sequence[str], options: Sequence[str]) -> str | None:
    """Return the label of ``(A)``, ``A.`` or ``A) its text``, as the grader reads responses; None for other texts, as
    ``A. Lincoln`` is where option A is another."""
    text = without_choice_word(text)
    letters = choice_letters(text)
    if len(letters) != 1 or letters[0] not in labels:
        return None
    number, parts = labels.index(letters[0]), label_and_text(text)
    own = {_folded(options[number]), _folded(without_label(options[number], number))}
    return letters[0] if parts is None or _folded(parts[1]) in own else None


def _folded(text: str) -> str:
    return " ".join(plain(text).replace("\\ ", " ").casefold().split()).rstrip(".")
