"""Which problems a step asks: passes, no repetition within a draw."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conclip.training.order import ProblemOrder
from conclip.types import Problem


def problems(count: int) -> list[Problem]:
    return [Problem(problem_id=str(n), question="q", answer="1", source="s") for n in range(count)]


@given(size=st.integers(1, 12), draws=st.lists(st.integers(1, 12), min_size=1, max_size=30), seed=st.integers(0, 999))
def test_draws_hold_different_problems_and_use_all_of_them_evenly(size: int, draws: list[int], seed: int):
    order = ProblemOrder(problems(size), Random(seed))
    counts = Counter({str(n): 0 for n in range(size)})
    for count in draws:
        drawn = [problem.problem_id for problem in order.draw(min(count, size))]
        assert len(set(drawn)) == min(count, size)
        counts.update(drawn)
        assert max(counts.values()) - min(counts.values()) <= 2


def test_a_pass_is_in_a_fresh_order_and_whole():
    order = ProblemOrder(problems(8), Random(0))
    passes = [tuple(problem.problem_id for problem in order.draw(8)) for _ in range(5)]
    assert all(sorted(one) == [str(n) for n in range(8)] for one in passes)
    assert len(set(passes)) == 5


def test_more_problems_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="there are 2"):
        ProblemOrder(problems(2), Random(0)).draw(3)
