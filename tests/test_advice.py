"""Advice on responses: the right cause, its remedy, and silence where nothing is wrong."""

import random

import pytest

from conclip.evaluation.advice import advice, is_loop, loops
from conclip.types import EvalRow, Outcome
from tests.conftest import make_row as row

LIMIT = "eval.max_tokens=256"


def unboxed(problem: str, outcome: Outcome) -> EvalRow:
    """A response with an answer outside of a box."""
    return row(
        problem, Outcome.NO_ANSWER, 10, lenient_outcome=outcome, lenient_extracted="7", method="number", extracted=None
    )


@pytest.mark.parametrize(
    ("text", "looping"),
    [
        ("Wait, let me check that again. " * 20, True),
        ("A sum of a kind.\n" + "Step 7: add 3.\nStep 8: add 3.\n" * 8, True),
        ("".join(f"Step {number}: add {number * 7}. " for number in range(40)), True),  # only numbers change
        ("no no no " + "x" * 300, True),
        ("x" * 150, False),  # too short to tell
        ("a passage of its own, said twice. " * 2, False),
        (
            "Wait, let me check that again. " * 20 + "So it is 9, as the third line says, and the sum is what was asked.",
            False,
        ),
    ],
)
def test_a_loop_is_told_from_long_thought(text: str, looping: bool):
    assert loops(text) is looping


def test_random_text_is_no_loop():
    drawn = random.Random(0)
    for _ in range(200):
        text = " ".join(drawn.choice(("so", "then", "add", "the", "sum", "is", "wait", "check")) for _ in range(300))
        assert not loops(text)


def test_only_a_response_that_was_cut_counts_as_looping():
    text = "and again " * 50
    assert is_loop(row("p", Outcome.TRUNCATED, 9, text=text))
    assert is_loop(row("p", Outcome.TRUNCATED, 9, text="", reasoning=text))
    assert not is_loop(row("p", Outcome.WRONG, 9, text=text))


def test_nothing_is_said_where_nothing_is_wrong():
    rows = [row(f"p{i}", Outcome.CORRECT, 10) for i in range(9)] + [row("p9", Outcome.TRUNCATED, 10)]
    assert advice(rows, LIMIT) == {}


def test_a_missing_box_comes_before_everything_and_says_what_other_forms_would_give():
    right = [unboxed(f"p{i}", Outcome.CORRECT) for i in range(6)]
    wrong = [unboxed(f"q{i}", Outcome.WRONG) for i in range(4)]
    said = advice([*right, *wrong, *(row(f"r{i}", Outcome.TRUNCATED, 10) for i in range(10))], LIMIT)
    assert list(said) == ["no answer", "truncated"]
    assert said["no answer"].startswith("50% of the responses") and "6 of these 10 are right" in said["no answer"]
    assert "rollout.extraction=lenient" in said["no answer"] and "recipe=warm_up" in said["no answer"]
    said = advice(wrong, LIMIT)
    assert "none of them right" in said["no answer"] and "warm_up" not in said["no answer"]


def test_more_room_is_advised_unless_the_room_is_filled_with_repetition():
    long = [row(f"p{i}", Outcome.TRUNCATED, 10, text="a thought of its own, number and all") for i in range(3)]
    assert "give more room" in advice(long, LIMIT)["truncated"]
    circling = [row(f"p{i}", Outcome.TRUNCATED, 10, text="and again " * 50) for i in range(4)]
    said = advice([*long, *circling], LIMIT)["truncated"]
    assert "4 of these 7 only repeat themselves" in said and "give more room" not in said


def test_more_room_is_no_remedy_for_what_a_server_withheld():
    rows = [row(f"p{i}", Outcome.TRUNCATED, 10, text="so", finish_reason="content_filter") for i in range(5)]
    assert advice(rows, LIMIT) == {}


def test_by_lenient_extraction_other_forms_count():
    rows = [unboxed(f"p{i}", Outcome.CORRECT).by("lenient") for i in range(5)]
    assert {r.outcome for r in rows} == {Outcome.CORRECT} and advice(rows, LIMIT) == {}
    assert [r.by("strict") for r in rows] == [unboxed(f"p{i}", Outcome.CORRECT) for i in range(5)]
