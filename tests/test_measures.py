"""Measures of rows: literals by hand, brute force, simulation."""

import itertools
import json
import math
import random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conclip.evaluation.measures import (
    accuracy_at_budgets,
    avg_at_k,
    details,
    efficiency_score,
    lengths_by_outcome,
    maj_at_k,
    majority_share,
    mean_pass_at_k,
    token_complexity,
    transitions,
)
from conclip.stats import bootstrap_interval, clustered_interval, pass_at_k
from conclip.types import EvalRow, Outcome
from tests.conftest import make_row

RIGHT, WRONG, CUT = Outcome.CORRECT, Outcome.WRONG, Outcome.TRUNCATED
VOTES = [(RIGHT, "3"), (WRONG, "4"), (WRONG, "4")]
"""The outcomes of three responses, each with its answer."""


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_is_brute_force(correct: list[bool], data: st.DataObject):
    k = data.draw(st.integers(1, len(correct)))
    brute = fmean(any(subset) for subset in itertools.combinations(correct, k))
    assert pass_at_k(len(correct), sum(correct), k) == pytest.approx(brute)


def test_pass_at_k_needs_k_samples():
    with pytest.raises(ValueError, match="pass@5 needs"):
        pass_at_k(4, 1, 5)


def samples(problem: str, *outcomes: Outcome, answers: str = "", tokens: tuple[int, ...] = ()) -> list[EvalRow]:
    return [
        make_row(
            problem,
            outcome,
            tokens[n] if tokens else 10,
            n,
            extracted=answers[n] if answers else None,
        )
        for n, outcome in enumerate(outcomes)
    ]


def test_avg_and_pass_at_k_by_hand():
    rows = [*samples("p", RIGHT, WRONG, WRONG, WRONG), *samples("q", RIGHT, RIGHT, CUT, WRONG)]
    assert avg_at_k(rows) == pytest.approx((1 / 4 + 2 / 4) / 2)
    assert mean_pass_at_k(rows, 2) == pytest.approx((1 / 2 + 5 / 6) / 2)


def test_majority_by_hand():
    assert majority_share(samples("p", RIGHT, RIGHT, WRONG, answers="334")) == 1
    assert majority_share(samples("p", RIGHT, RIGHT, WRONG, WRONG, answers="3344")) == 0.5
    assert majority_share(samples("p", RIGHT, WRONG, WRONG, answers="344")) == 0
    assert majority_share(samples("p", RIGHT, WRONG, WRONG, answers="345")) == pytest.approx(1 / 3)
    assert majority_share(samples("p", CUT, CUT)) == 0
    rows = samples("p", RIGHT, WRONG, WRONG, answers="344")
    assert maj_at_k(rows, 3) == 0 and maj_at_k(rows, 1) == pytest.approx(1 / 3, abs=0.15)
    assert maj_at_k(rows, 1) == maj_at_k(rows, 1)


def test_the_majority_over_problems_by_hand():
    tied = samples("tied", RIGHT, RIGHT, WRONG, WRONG, answers="3344")  # one half
    silent = [*samples("silent", RIGHT, WRONG, WRONG, answers="344"), make_row("silent", Outcome.NO_ANSWER, 10, 3)]  # 0
    scattered = [*samples("scattered", RIGHT, WRONG, WRONG, answers="345"), make_row("scattered", CUT, 10, 3, extracted="3")]
    assert maj_at_k([*tied, *silent, *scattered], 4) == pytest.approx((1 / 2 + 0 + 1 / 3) / 3)
    assert maj_at_k([*scattered, *tied, *silent], 4) == pytest.approx(5 / 18)


def test_right_answers_vote_together_and_wrong_ones_by_their_spelling():
    right = [make_row("p", RIGHT, 10, n, extracted=answer) for n, answer in enumerate(["0.5", r"\frac12", "1/2"])]
    same = [make_row("p", WRONG, 10, 3 + n, extracted=answer) for n, answer in enumerate([r"\dfrac{1}{3}", r"\frac{1}{3}"])]
    assert maj_at_k([*right[:2], *same], 4) == 0.5 and maj_at_k([*right, *same], 5) == 1
    assert maj_at_k([right[0], *same], 3) == 0


def test_ungraded_responses_have_no_vote_and_do_not_count_as_samples():
    lost = [
        make_row("p", Outcome.GRADER_ERROR, 10, n, extracted="3") for n in (0, 1)
    ]  # beside the right ones they would win
    graded = [make_row("p", outcome, 10, n + 2, extracted=answer) for n, (outcome, answer) in enumerate(VOTES)]
    assert maj_at_k([*lost, *graded], 3) == maj_at_k(graded, 3) == 0
    with pytest.raises(ValueError, match="maj@4 needs at least 4 samples, problem 'p' has 3"):
        maj_at_k([*lost, *graded], 4)
    other = samples("q", RIGHT, RIGHT, WRONG, answers="334")
    assert maj_at_k([*lost, *graded, *other], 3) == 0.5
    assert maj_at_k([*lost, *other], 3) == 1  # a problem of which nothing was graded has no majority


def test_the_majority_of_fewer_samples_is_a_mean_over_subsets():
    """Two of R R W: R R is right, each of two R W is a tie; 0, 1/2 or 1 each, a mean of a hundred errs by 0.024."""
    rows = samples("p", RIGHT, RIGHT, WRONG, answers="334")
    assert maj_at_k(rows, 2) == pytest.approx((1 + 1 / 2 + 1 / 2) / 3, abs=0.08)
    assert maj_at_k(rows, 1) == pytest.approx(2 / 3, abs=0.15)
    assert maj_at_k(samples("p", RIGHT, RIGHT, RIGHT, answers="333"), 2) == 1


def test_lengths_by_outcome_by_hand():
    rows = samples("p", RIGHT, WRONG, CUT, RIGHT, tokens=(10, 30, 50, 20))
    found = lengths_by_outcome(rows)
    assert found["all"] is not None and (found["all"].mean, found["all"].median) == (27.5, 25)
    assert found["correct"] is not None and found["correct"].mean == 15
    assert found["truncated"] is not None and found["truncated"].quantiles[0.9] == 50
    assert found["no_answer"] is None


def test_accuracy_at_budgets_by_hand():
    rows = samples("p", RIGHT, WRONG, CUT, RIGHT, tokens=(10, 5, 50, 20))
    assert accuracy_at_budgets(rows, [5, 10, 20, 100]) == {5: 0, 10: 0.25, 20: 0.5, 100: 0.5}


def test_token_complexity_by_hand():
    assert token_complexity(samples("p", WRONG, WRONG, RIGHT, WRONG, RIGHT, tokens=(10, 20, 30, 25, 40))) == 30
    assert token_complexity(samples("p", WRONG)) is None


def test_efficiency_score_by_hand():
    weights = {"alpha": 1.0, "beta": 3.0, "gamma": 5.0}
    assert efficiency_score(0.45, 60, 0.5, 100, **weights) == pytest.approx(0.4 - 5 * 0.1)
    assert efficiency_score(0.55, 60, 0.5, 100, **weights) == pytest.approx(0.4 + 3 * 0.1)


def test_transitions_by_hand():
    first, second = samples("p", WRONG, CUT, RIGHT), samples("p", RIGHT, RIGHT, RIGHT)
    assert transitions(first, second) == {(WRONG, RIGHT): 1, (CUT, RIGHT): 1, (RIGHT, RIGHT): 1}


def test_the_bootstrap_of_a_mean_agrees_with_the_formula_and_repeats():
    stream = random.Random(3)
    values = [stream.gauss(5, 2) for _ in range(200)]

    def mean(chosen: list[int]) -> float:
        return fmean(values[index] for index in chosen)

    low, high = bootstrap_interval(200, mean, seed=1)
    _, exact_low, exact_high = clustered_interval(values)
    assert (low, high) == (pytest.approx(exact_low, abs=0.06), pytest.approx(exact_high, abs=0.06))
    assert bootstrap_interval(200, mean, seed=1) == (low, high)
    assert all(math.isnan(bound) for bound in bootstrap_interval(3, lambda _: math.nan, seed=0))


@pytest.mark.parametrize("number", [1, 5])
def test_the_bootstrap_of_few_problems_tells_nothing(number: int):
    assert bootstrap_interval(number, lambda chosen: 7.0, seed=0) == (-math.inf, math.inf)


def test_details_are_plain_data_of_all_measures():
    rows = [row for n in range(20) for row in samples(f"p{n}", RIGHT, WRONG, RIGHT, CUT, tokens=(10 + n, 20, 30, 512))]
    found = details(rows)
    assert json.loads(json.dumps(found))["maj_at_k"] == {"4": 1.0}
    assert found["avg_at_k"] == 0.5 and found["pass_at_k"] == {1: 0.5, 2: pytest.approx(5 / 6), 4: 1}
    assert found["accuracy_at_budgets"] == {64: 0.5, 128: 0.5, 192: 0.5, 256: 0.5, 384: 0.5, 512: 0.5}
    assert found["token_complexity"] == {"num_problems": 20, "median_tokens": 19.5}
    low, high = found["median_tokens_interval"]
    assert 20 <= low <= found["lengths"]["all"]["median"] <= high <= 30


def test_the_interval_of_the_median_is_of_the_responses_of_the_median():
    rows = [make_row(f"p{i}", Outcome.GRADER_ERROR if s else RIGHT, 100 if s else 10, s) for i in range(8) for s in range(3)]
    found = details(rows)
    assert found["lengths"]["all"]["median"] == 100 and found["median_tokens_interval"] == (100, 100)
