"""Whether gold answers are ones that the grader can compare with."""

from collections.abc import Sequence

from conclip.errors import UserError
from conclip.grading.grader import Grader

MAX_ANSWER_LINE = 200
"""A longer gold answer that is not understood is a solution [characters], and so is one of several lines."""

Golds = tuple[Sequence[str], Sequence[str] | None]
"""The gold answers of a problem, each of which is right, and its options."""


def check_golds(grader: Grader, where: str, problems: Sequence[tuple[str, Golds]], remedy: str) -> str | None:
    """Return a note on gold answers that the grader does not understand, so that for them only the same spelling is right;
    None where it understands all. `problems`: each with a name for messages. Raises UserError with the `remedy` where most
    of them are whole solutions, which no answer can equal."""
    unread = [problems[n] for n in grader.unreadable([golds for _, golds in problems])]
    if not unread:
        return None
    solutions = [(name, gold) for name, (golds, _) in unread for gold in golds[:1] if _is_solution(gold)]
    if 2 * len(solutions) > len(problems):
        name, gold = solutions[0]
        raise UserError(
            f"{where}: {len(solutions)} of {len(problems)} gold answers are whole solutions, which no answer equals "
            f"({name}: {' '.join(gold.split())!r:.60}); {remedy}"
        )
    some = ", ".join(f"{' or '.join(golds)!r:.60} ({name})" for name, (golds, _) in unread[:3])
    return (
        f"{where}: {len(unread)} of {len(problems)} gold answers are not understood as mathematics, words or a letter; for "
        f"them only the same spelling is right: {some}{', ...' if len(unread) > 3 else ''}"
    )


def _is_solution(gold: str) -> bool:
    return "\n" in gold.strip() or len(gold) > MAX_ANSWER_LINE
