"""Where the tokens of responses go: thinking or answer, before or after the right answer is first written, and how often a
response thinks again. Diagnostics of text, by rules that are stated here; accuracy and lengths do not depend on them.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import fmean

from conclip.evaluation.measures import by_problem
from conclip.evaluation.metrics import Estimate, to_estimate
from conclip.grading.answers import normalise
from conclip.stats import clustered_interval, correlation_if_any
from conclip.types import EvalRow, Outcome, Problem

_NUMBER = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\d])")
_RETHOUGHT = re.compile(
    r"(?:^|[.!?\n>]\s*)(?:but |so |no,? |hmm,? )?"
    r"(?:wait|hold on|hmm|actually|alternatively|on second thought|double[- ]check"
    r"|let me (?:re-?|double[- ]?)?(?:check|verify|think again|compute again|calculate again|consider again|try again))\b",
    re.IGNORECASE,
)
"""The beginning of a sentence that takes back or checks what was said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """Where the tokens of one model's responses to one benchmark go."""

    thinking_tokens: float | None
    """Mean tokens of the thinking part; None where it is not known of some response."""
    answer_tokens: float | None
    """Mean tokens behind it."""
    tokens_to_answer: float | None
    """Mean tokens up to the first place where the right answer is written, of correct responses in which it is known."""
    tokens_after_answer: float | None
    """Mean tokens behind that place, of the same responses."""
    rethoughts: float
    """Mean number of sentences that take back or check what was said."""
    length_correlation: Estimate | None
    """Mean over problems of the correlation of length and correctness among responses to one problem; None where no problem
    has correct and other responses of different lengths. Below 0: correct responses are the shorter ones."""
    num_mixed: int
    """Number of such problems."""


def first_mention(text: str, problem: Problem) -> int | None:
    """Return where the first mention of a gold answer ends [characters]; None where there is none, where the question
    itself states it, and where a verifier judges.

    Numbers count by value (1,000 is 1000.0), letters of choices in a bracket or after "answer", "option" or "is", other
    answers by their spelling as a word of its own.
    """
    if problem.verifier is not None:
        return None
    places = [place for gold in problem.golds if (place := _mention(text, gold, problem)) is not None]
    stated = any(_mention(problem.question, gold, problem) is not None for gold in problem.golds)
    return min(places) if places and not stated else None


def _mention(text: str, gold: str, problem: Problem) -> int | None:
    gold = gold.strip()
    if problem.choices is not None:
        found = re.search(rf"(?:[({{\[]|\b(?i:is|option|choice|answer)[: ]+){re.escape(gold)}\b", text)
        return found.end() if found else None
    plain = gold.strip("$")
    if _NUMBER.fullmatch(plain):
        value = Decimal(plain.replace(",", ""))
        return next((m.end() for m in _NUMBER.finditer(text) if Decimal(m[0].replace(",", "")) == value), None)
    ends = [m.end() for spelling in (gold, normalise(gold)) if spelling and (m := _as_a_word(spelling).search(text))]
    return min(ends, default=None)


def _as_a_word(spelling: str) -> re.Pattern[str]:
    """Return what finds a spelling that is no part of a longer word or number: `no` is not in "another"."""
    before, after = (r"(?<!\w)" if spelling[0].isalnum() else "", r"(?!\w)" if spelling[-1].isalnum() else "")
    return re.compile(before + re.escape(spelling) + after)


def tokens_up_to(place: int, token_ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> int:
    """Return the number of tokens whose text reaches `place` [characters]."""
    if place == 0:
        return 0
    return bisect_left(range(len(token_ids)), place, key=lambda number: len(decode(token_ids[:number])))


def rethoughts(text: str) -> int:
    """Return the number of sentences that begin by taking back or checking what was said: "Wait", "Actually", "Let me
    check", and others of `_RETHOUGHT`."""
    return len(_RETHOUGHT.findall(text))


def effort(rows: Sequence[EvalRow]) -> Effort:
    """Return where the tokens of these rows go."""
    known = [row.num_thinking_tokens for row in rows if row.num_thinking_tokens is not None]
    all_known = len(known) == len(rows)
    reached = [
        (row.num_tokens_to_answer, row.num_tokens)
        for row in rows
        if row.outcome is Outcome.CORRECT and row.num_tokens_to_answer is not None
    ]
    correlations = [value for group in by_problem(rows).values() if (value := length_correlation(group)) is not None]
    return Effort(
        thinking_tokens=fmean(known) if all_known else None,
        answer_tokens=fmean(row.num_tokens for row in rows) - fmean(known) if all_known else None,
        tokens_to_answer=fmean(number for number, _ in reached) if reached else None,
        tokens_after_answer=fmean(total - number for number, total in reached) if reached else None,
        rethoughts=fmean(rethoughts((row.reasoning or "") + row.text) for row in rows),
        length_correlation=to_estimate(clustered_interval(correlations)) if correlations else None,
        num_mixed=len(correlations),
    )


def length_correlation(responses: Sequence[EvalRow]) -> float | None:
    """Return the correlation of length and correctness among the responses to one problem (point-biserial); None where all
    are right, none is, or all have one length. Left out are grader errors, and truncated responses, which are the longest
    by their limit and would be wrong."""
    return correlation_of((row.outcome, row.num_tokens) for row in responses)


def correlation_of(responses: Iterable[tuple[Outcome, int]]) -> float | None:
    """Return `length_correlation` of responses that are known by outcome and length."""
    ended = [one for one in responses if one[0] not in (Outcome.GRADER_ERROR, Outcome.TRUNCATED)]
    return correlation_if_any([length for _, length in ended], [outcome is Outcome.CORRECT for outcome, _ in ended])
