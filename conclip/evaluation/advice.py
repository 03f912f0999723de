"""Advice on responses: what keeps them from being right that has nothing to do with reasoning, and what to do about it."""

import re
from collections.abc import Sequence
from functools import lru_cache

from conclip.types import TRUNCATION_ADVICE, WARNING_SHARE, EvalRow, Outcome

MIN_LOOP_CHARS, MIN_LOOP_REPEATS = 200, 3
MAX_LOOP_CHARS = 10_000
"""How much of a response's end is searched for a loop."""


@lru_cache(maxsize=100_000)  # tables, cards and figures ask of the same responses
def loops(text: str) -> bool:
    """Return whether a text ends in a loop: its last 200 characters or more are one passage, at least three times in a row.
    Numbers may differ from one time to the next ("Step 7: ... Step 8: ...").

    Example: a sum followed by "Wait, let me check again." twenty times loops; the sum alone does not.
    """
    backwards = re.sub(r"\d+", "0", text[-MAX_LOOP_CHARS:])[::-1]
    matches = _self_matches(backwards)
    return any(
        period + matches[period] >= max(MIN_LOOP_CHARS, MIN_LOOP_REPEATS * period)
        for period in range(1, len(backwards) // MIN_LOOP_REPEATS + 1)
    )


def _self_matches(text: str) -> list[int]:
    """Return how many characters from each position on are those of the beginning (the Z function)."""
    matches = [len(text)] + [0] * (len(text) - 1)
    begin = end = 0
    for position in range(1, len(text)):
        number = min(matches[position - begin], end - position) if position < end else 0
        while position + number < len(text) and text[number] == text[position + number]:
            number += 1
        matches[position] = number
        if position + number > end:
            begin, end = position, position + number
    return matches


def is_loop(row: EvalRow) -> bool:
    """Return whether a response was cut in a loop."""
    return row.outcome is Outcome.TRUNCATED and loops((row.reasoning or "") + row.text)


def advice(rows: Sequence[EvalRow], limit: str) -> dict[str, str]:
    """Return a sentence for each cause that keeps more than a tenth of the responses from counting, by its name, with the
    likeliest remedy: no answer in a box, then the token limit (`limit` is its key and value)."""
    sentences: dict[str, str] = {}
    without = [row for row in rows if row.outcome is Outcome.NO_ANSWER]
    if len(without) > WARNING_SHARE * len(rows):
        share = len(without) / len(rows)
        sentences["no answer"] = f"{share:.0%} of the responses ended without an answer {_remedy(without, rows)}"
    cut = [row for row in rows if row.outcome is Outcome.TRUNCATED and row.finish_reason == "length"]
    if len(cut) > WARNING_SHARE * len(rows):
        text = f"{len(cut) / len(rows):.0%} of the responses were cut at {limit}, which counts as not correct"
        looping = sum(map(is_loop, cut))
        if looping > len(cut) / 2:
            text += (
                f"; {looping} of these {len(cut)} only repeat themselves, which more room does not help: try another "
                "temperature, a prompt in the format the model was trained on, or a model with more training"
            )
        else:
            text += f"; {TRUNCATION_ADVICE}" + (f" ({looping} of these {len(cut)} repeat themselves)" if looping else "")
        sentences["truncated"] = text
    return sentences


def _remedy(without: Sequence[EvalRow], rows: Sequence[EvalRow]) -> str:
    if rows[0].extraction == "lenient":
        return "of any form; read some in the run's rows: the prompt (model.prompt) may not fit the model"
    right = sum(row.lenient_outcome is Outcome.CORRECT for row in without)
    stated = sum(row.lenient_outcome is not Outcome.NO_ANSWER for row in without)
    if not right:
        return (
            f"in \\boxed{{}}; {stated} of these {len(without)} state one in another form, none of them right: the problems "
            "may be too hard, or the prompt (model.prompt) may not fit the model"
        )
    return (
        f"in \\boxed{{}}, which counts as not correct; {right} of these {len(without)} are right in another form: count "
        "those forms too (rollout.extraction=lenient), teach the form first (recipe=warm_up), or ask for it in another way "
        "(model.prompt)"
    )
