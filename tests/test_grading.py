"""The grader on the real path: extraction, math-verify in worker processes, kills."""

from collections.abc import Iterator

import pytest

from conclip.grading import Grader, extract_boxed, normalise
from conclip.types import Outcome


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    grader = Grader()
    yield grader
    grader.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{7}", "7"),
        (r"\boxed{1} no, \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{ 3 }", "3"),
        (r"\boxed{}", None),
        (r"\boxed{12", None),
        (r"\boxed{1} then \boxed{2", "1"),
        ("7", None),
        (r"\fboxed{4}", "4"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    ],
)
def test_extract_boxed(text: str, expected: str | None):
    assert extract_boxed(text) == expected


@pytest.mark.parametrize(("a", "b"), [("1,234", "1234"), ("$5$", "5"), (r"x \, + 1", "x+1"), ("3.", "3")])
def test_normalise_joins(a: str, b: str):
    assert normalise(a) == normalise(b)


def test_normalise_keeps_what_differs():
    assert normalise("1,2") != normalise("12")


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        ("7", "7", Outcome.CORRECT),
        ("7", "4", Outcome.WRONG),
        ("1/2", r"\frac{1}{2}", Outcome.CORRECT),
        ("0.5", r"\frac12", Outcome.CORRECT),
        ("2x+2", "2(x+1)", Outcome.CORRECT),
        ("1234", "1,234", Outcome.CORRECT),
        ("[1,2]", "(1,2)", Outcome.WRONG),
        ("5", "five hundred", Outcome.WRONG),
    ],
)
def test_verdicts(grader: Grader, gold: str, answer: str, expected: Outcome):
    assert grader.grade(gold=gold, text=f"so \\boxed{{{answer}}}").outcome is expected


def test_truncated_and_missing_answers_are_outcomes_of_their_own(grader: Grader):
    cut = grader.grade(gold="7", text=r"\boxed{7} wait", finish_reason="length")
    assert cut.outcome is Outcome.TRUNCATED and cut.extracted == "7"
    assert grader.grade(gold="7", text="it is 7").outcome is Outcome.NO_ANSWER


def test_a_stuck_worker_is_killed_and_the_rest_is_graded():
    grader = Grader(num_workers=1, wall_limit_s=3.0)
    try:
        grader.submit("tower", gold="3", text=r"\boxed{9^{9^{9^{9^{9}}}} + \sin(9^{9^{9}})}", finish_reason="stop")
        grader.submit("easy", gold="1/2", text=r"\boxed{\frac{2}{4}}", finish_reason="stop")
        verdicts = {}
        while len(verdicts) < 2:
            verdicts |= dict(grader.poll(1.0))
        assert verdicts["tower"].outcome is not Outcome.CORRECT
        assert verdicts["easy"].outcome is Outcome.CORRECT
    finally:
        grader.close()


def test_a_worker_that_overruns_is_a_grader_error_never_wrong():
    grader = Grader(num_workers=1, wall_limit_s=0.01)  # shorter than a worker needs to start
    try:
        assert grader.grade(gold="7", text=r"\boxed{4}").outcome is Outcome.GRADER_ERROR
    finally:
        grader.close()


def test_a_worker_that_dies_is_replaced(grader: Grader):
    grader.grade(gold="1", text=r"\boxed{2}")
    for worker in grader._workers:
        worker.process.kill()
        worker.process.wait()
    assert grader.grade(gold="1", text=r"\boxed{3}").outcome is Outcome.GRADER_ERROR
    assert grader.grade(gold="1", text=r"\boxed{4}").outcome is Outcome.WRONG
