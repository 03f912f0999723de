"""Where tokens go, by hand."""

import pytest

from conclip.evaluation.overthinking import effort, first_mention, length_correlation, rethoughts, tokens_up_to
from conclip.evaluation.tables import effort_cells
from conclip.types import Outcome, Problem
from tests.conftest import make_row as row


def problem(answer: str, question: str = "How many?", choices: tuple[str, ...] | None = None) -> Problem:
    return Problem(problem_id="p", question=question, answer=answer, source="s", choices=choices)


@pytest.mark.parametrize(
    ("text", "answer", "seen"),
    [
        ("3 + 4 = 7, and 7 it is", "7", "3 + 4 = 7"),
        ("17 and 7.5, then 70, at last 7.", "7", "17 and 7.5, then 70, at last 7"),
        ("that is 1,000 in all", "1000", "that is 1,000"),
        ("that is 1000.0 in all", "1,000", "that is 1000.0"),
        ("-7, so 7", "7", "-7, so 7"),
        (r"so \frac{1}{2} is left", r"\frac{1}{2}", r"so \frac{1}{2}"),
        ("nothing of the kind", "7", None),
        ("another note, so no", "no", "another note, so no"),
        ("12 cases: 1,2 it is", "1,2", "12 cases: 1,2"),
        ("so 12,000 it is", "$12,000$", "so 12,000"),
        ("2x and xy are not it; x is", "x", "2x and xy are not it; x"),
        (r"\text{(B, C)} or (B, C)", "(B, C)", r"\text{(B, C)"),
    ],
)
def test_the_first_mention_of_the_answer(text: str, answer: str, seen: str | None):
    place = first_mention(text, problem(answer))
    assert (None if place is None else text[:place]) == seen


def test_a_letter_is_mentioned_as_a_choice_only():
    asked = problem("A", choices=("one", "two"))
    assert first_mention("A train leaves. The answer is A.", asked) == len("A train leaves. The answer is A")
    assert first_mention("Either (A) or (B)", asked) == len("Either (A")
    assert first_mention("Answer: A\n", asked) == len("Answer: A")
    assert first_mention("Option A fits", asked) == len("Option A")
    assert first_mention("Answer: a train", asked) is None  # the letter itself is a capital


def test_what_the_question_states_is_no_finding():
    assert first_mention("5 and 7", problem("7", question="Is it 7?")) is None


def test_tokens_up_to_a_place():
    pieces = ["3 + ", "4 =", " 7", ", so", " it is"]

    def decode(ids: object) -> str:
        return "".join(pieces[i] for i in ids)  # type: ignore[attr-defined]

    ids = list(range(5))
    assert [tokens_up_to(place, ids, decode) for place in (0, 1, 4, 5, 9, 10)] == [0, 1, 1, 2, 3, 4]


def test_rethoughts_begin_a_sentence():
    assert rethoughts("It is 7. Wait, no. Hmm, 8? Let me double-check.\nActually 9. Alternatively, 10.") == 5
    assert rethoughts("<think>Wait. But wait, it is 7.") == 2
    assert rethoughts("I will wait for the check and actually verify it.") == 0


def test_correlation_within_a_problem_by_hand():
    mixed = [row("p", Outcome.CORRECT, 10), row("p", Outcome.WRONG, 30, 1)]
    assert length_correlation(mixed) == pytest.approx(-1)
    # lengths 10, 20, 30, 40 and right, wrong, right, wrong: covariance -5 (n), deviations sqrt(125) and 1/2
    four = [row("p", (Outcome.CORRECT, Outcome.WRONG)[i % 2], 10 * (i + 1), i) for i in range(4)]
    assert length_correlation(four) == pytest.approx(-2.5 / (125**0.5 * 0.5))
    assert length_correlation([row("p", Outcome.CORRECT, 10), row("p", Outcome.CORRECT, 20, 1)]) is None
    assert length_correlation([row("p", Outcome.CORRECT, 10), row("p", Outcome.GRADER_ERROR, 20, 1)]) is None
    assert length_correlation([*four, row("p", Outcome.TRUNCATED, 400, 9)]) == length_correlation(four)


def test_effort_by_hand():
    rows = [
        row("p", Outcome.CORRECT, 10, 0, num_thinking_tokens=4, num_tokens_to_answer=3, text="Wait. 7"),
        row("p", Outcome.WRONG, 30, 1, num_thinking_tokens=20, num_tokens_to_answer=9, text="7. No."),
        row("q", Outcome.CORRECT, 20, 0, num_thinking_tokens=0, text="8"),
        row("q", Outcome.CORRECT, 20, 1, num_thinking_tokens=0, text="8"),
    ]
    found = effort(rows)
    assert (found.thinking_tokens, found.answer_tokens) == (6, 14)
    assert (found.tokens_to_answer, found.tokens_after_answer) == (3, 7)  # correct responses only
    assert found.rethoughts == 0.25 and found.num_mixed == 1
    assert found.length_correlation is not None and found.length_correlation.mean == pytest.approx(-1)
    assert effort([row("p", Outcome.CORRECT, 10)]).thinking_tokens is None


def test_equal_correlations_of_several_problems_show_how_many_there_are():
    rows = [row(p, o, t, i) for p in "pq" for i, (o, t) in enumerate([(Outcome.CORRECT, 10), (Outcome.WRONG, 30)])]
    assert effort_cells({"m": effort(rows)})["m"]["length x correct"] == "-1.00 (2 problems)"
