"""The overlap guard: a model is not evaluated on problems it was trained on, unless the user insists; then the result says
so."""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from conclip.errors import UserError
from conclip.runs.files import write_text
from conclip.types import Problem

RECORD = "trained_on.json"
"""File in a checkpoint folder that holds the questions of every phase it went through."""

NGRAM_TOKENS = 8
"""Questions of at least this many words overlap when half of their n-grams of this many tokens are in a training
question. What a fifth of a source's questions have in common, three or more, counts for none of them."""

FEWEST_TEXTS = 3
"""Fewest different questions whose common n-grams are taken for an instruction: two may be one problem in other words."""


def single_spaced(question: str) -> str:
    """Return the text by which a question is known to be asked twice."""
    return " ".join(question.split())


def normalise_question(text: str) -> str:
    """Return the lower-case words, numbers and signs of a text, separated by single spaces."""
    return " ".join(re.findall(r"\w+|[^\w\s]", text.casefold()))


def overlapping(questions: Iterable[Problem], trained: Sequence[str], *, near: bool = True) -> list[Problem]:
    """Return the problems whose normalised text is one of `trained` or, with `near`, shares half of its own n-grams with
    them."""
    problems = list(questions)
    known = {normalise_question(text) for text in trained}
    grams = {gram for text in known for gram in _ngrams(text)} if near else set[str]()

    def overlaps(text: str, mine: Sequence[str]) -> bool:
        return text in known or (bool(mine) and 2 * sum(gram in grams for gram in mine) >= len(mine))

    own = _own_ngrams(problems)
    return [problem for problem, asked in zip(problems, own, strict=True) if overlaps(*asked)]


def apart_from(problems: Sequence[Problem], questions: Sequence[Problem], *, near: bool = True) -> list[Problem]:
    """Return the problems without those of which training a model, on each by itself, would make `overlapping` name one of
    the questions."""
    if not questions:
        return list(problems)
    asked = _own_ngrams(questions)
    texts = {text for text, _ in asked}
    of_gram: dict[str, list[int]] = {}
    for number, (_, grams) in enumerate(asked):
        for gram in grams if near else ():
            of_gram.setdefault(gram, []).append(number)

    def is_apart(problem: Problem) -> bool:
        text = normalise_question(problem.question)
        shared = Counter(number for gram in set(_ngrams(text)) for number in of_gram.get(gram, ()))
        return text not in texts and all(2 * count < len(asked[number][1]) for number, count in shared.items())

    return [problem for problem in problems if is_apart(problem)]


def _own_ngrams(questions: Sequence[Problem]) -> list[tuple[str, list[str]]]:
    """Return the normalised text of each question and its own n-grams: without those that stand in many questions of its
    source, an instruction that comes with all of them or, in a mixture, with some. (What many training questions share may
    be one problem in other words.)"""
    texts = [normalise_question(question.question) for question in questions]
    of_source: dict[str, set[str]] = {}
    for question, text in zip(questions, texts, strict=True):
        of_source.setdefault(question.source, set()).add(text)
    common = {source: _common_ngrams(different) for source, different in of_source.items()}
    return [(text, _without(text, common[question.source])) for question, text in zip(questions, texts, strict=True)]


def _without(text: str, common: Collection[str]) -> list[str]:
    """Return the n-grams of a text that are not among the common ones; none where few words are outside of those."""
    grams, tokens = _ngrams(text), text.split()
    shared = [start for start, gram in enumerate(grams) if gram in common]
    covered = {position for start in shared for position in range(start, start + NGRAM_TOKENS)}
    own = [token for position, token in enumerate(tokens) if position not in covered]
    return [gram for gram in grams if gram not in common] if _has_words(own) else []


def _common_ngrams(texts: Collection[str]) -> set[str]:
    """Return the n-grams that a fifth of the texts have, `FEWEST_TEXTS` or more."""
    num_texts = Counter(gram for text in texts for gram in set(_ngrams(text)))
    return {gram for gram, number in num_texts.items() if number >= FEWEST_TEXTS and 5 * number >= len(texts)}


def _ngrams(text: str) -> list[str]:
    """Return the n-grams of a text; none where it has few words."""
    tokens = text.split()
    if not _has_words(tokens):
        return []
    return [" ".join(tokens[i : i + NGRAM_TOKENS]) for i in range(len(tokens) - NGRAM_TOKENS + 1)]


def _has_words(tokens: Sequence[str]) -> bool:
    """Return whether a text says enough to be known by a part of it: formulas share their signs without being the same
    problem."""
    return sum(len(token) > 1 and token.isalpha() for token in tokens) >= NGRAM_TOKENS


def trained_on(model_path: Path) -> list[str]:
    """Return the questions a checkpoint was trained on, according to its folder; none for other models. Raises UserError
    when the record is damaged."""
    file = model_path / RECORD
    if not file.is_file():
        return []
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return [str(question) for question in record["questions"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"'{file}' is damaged ({type(error).__name__}); it says what the model was trained on") from error


def write_record(folder: Path, earlier: Sequence[str], problems: Sequence[Problem]) -> None:
    """Record what the model in `folder` was trained on: `earlier` questions, and those of this phase."""
    questions = list(dict.fromkeys([*earlier, *(problem.question for problem in problems)]))
    text = json.dumps({"schema": 1, "questions": questions}, ensure_ascii=False, indent=1) + "\n"
    write_text(folder / RECORD, text)


def check_overlap(
    key: str, model_path: Path, questions: Sequence[Problem], *, allowed: bool, near: bool = True
) -> str | None:
    """Return None when the model at config key `key` was trained on none of the questions, nor (`near`) on their like, else
    a note when that is allowed. Raises UserError when it is not."""
    overlap = overlapping(questions, trained_on(model_path), near=near)
    if not overlap:
        return None
    message = f"{key}: trained on {len(overlap)} of the {len(questions)} test problems ('{overlap[0].problem_id}' is one)"
    if not allowed:
        templates = "; of problems made from templates, eval.near_overlap=false compares whole texts" if near else ""
        raise UserError(
            f"{message}; take other test problems (of a file, data=one_file takes its test share), or set "
            f"eval.allow_overlap=true, which marks the result{templates}"
        )
    return f"{message}; the result is no evidence of anything but memory"
