"""Which problems a step asks: passes, no repetition within a draw, replacement of what is settled."""

import json
from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conclip.curriculum.order import ProblemOrder, Refresher
from conclip.types import Outcome, Problem, RolloutGroup
from tests.conftest import make_group, make_rollout
from tests.junk import JUNK, changed, places


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


def test_a_restored_order_goes_on_as_the_old_one_would_have():
    order = ProblemOrder(problems(5), Random(3))
    order.draw(3)
    state = json.loads(json.dumps(order.state_dict()))
    restored = ProblemOrder(problems(5), Random(0))
    restored.load_state_dict(state, {problem.problem_id: problem for problem in problems(5)})
    assert [order.draw(2) for _ in range(20)] == [restored.draw(2) for _ in range(20)]


def group(problem: Problem, outcomes: str) -> RolloutGroup:
    kinds = {"c": Outcome.CORRECT, "w": Outcome.WRONG, "e": Outcome.GRADER_ERROR}
    made = make_group(*(make_rollout([1], outcome=kinds[letter], sample=n) for n, letter in enumerate(outcomes)))
    return replace(made, problem=problem)


def refresher(reserve: int = 1) -> tuple[ProblemOrder, Refresher, list[Problem]]:
    everyone = problems(2 + reserve)
    order = ProblemOrder(everyone[:2], Random(0))
    counts = {problem.problem_id: (6.0, 6.0) for problem in everyone}
    made = Refresher(order, everyone[2:], counts, memory=0.5, retire_below=0.1, retire_above=0.9)
    return order, made, everyone


def test_belief_by_hand():
    _, found, everyone = refresher()
    assert found.belief(everyone[0]) == 0.5
    found.observe([group(everyone[0], "c" * 16)])  # counts 3 + 16 and 3 + 0 under Beta(1/2, 1/2)
    assert found.belief(everyone[0]) == pytest.approx(19.5 / 23)
    found.observe([group(everyone[0], "ewwww")])  # 9.5 and 1.5 + 4; the grader's error says nothing
    assert found.belief(everyone[0]) == pytest.approx(10 / 16)


def test_settled_problems_are_replaced_while_there_are_others():
    order, found, everyone = refresher()
    found.observe([group(everyone[0], "c" * 16), group(everyone[1], "cw" * 8)])
    assert order.problems == everyone[:2]
    found.observe([group(everyone[0], "c" * 16)])
    assert order.problems == [everyone[2], everyone[1]]
    assert everyone[0] not in {problem for _ in range(5) for problem in order.draw(2)}
    metrics = found.metrics()
    assert metrics["rollout/retired_problems"] == 1 and metrics["rollout/reserve_problems"] == 0
    assert metrics["rollout/working_set_pass_rate"] == 0.5
    for _ in range(9):
        found.observe([group(everyone[1], "w" * 16)])  # never solved, but nobody is left to take its place
    assert order.problems == [everyone[2], everyone[1]]


def test_a_restored_refresher_believes_the_same():
    order, found, everyone = refresher(reserve=3)
    known = {problem.problem_id: problem for problem in everyone}
    found.observe([group(everyone[0], "w" * 16)])
    states = [order.state_dict(), found.state_dict()]
    before = json.dumps(states)
    found.observe([group(everyone[1], "c" * 16)])
    assert json.dumps(states) == before  # a checkpoint that is still being written holds what it was given
    order, found, everyone = refresher(reserve=3)
    found.observe([group(everyone[0], "w" * 16)])
    states = json.loads(before)
    again_order, again, _ = refresher(reserve=3)
    again_order.load_state_dict(states[0], known)
    again.load_state_dict(states[1], known)
    for made in (found, again):
        made.observe([group(everyone[0], "w" * 16)])
    assert order.problems == again_order.problems != everyone[:2]
    assert found.metrics() == again.metrics()


def test_no_junk_in_a_saved_order_gets_further_than_its_loading():
    """Whatever value of it is replaced: a ValueError, or an order that draws every problem of its pass."""
    pool = problems(9)
    known = {problem.problem_id: problem for problem in pool}
    order = ProblemOrder(pool[:5], Random(0))
    order.draw(3)
    refresher = Refresher(order, pool[5:], {"1": (2, 3)}, memory=1.0, retire_below=0.2, retire_above=0.8)
    saved = json.loads(json.dumps({"order": order.state_dict(), "refresher": refresher.state_dict()}))
    refused = 0
    for place in places(saved):
        for junk in (*JUNK, saved["order"]["problems"], saved["order"]["problems"] * 2, ["0"] * 5):
            fresh = ProblemOrder(pool[:5], Random(1))
            again = Refresher(fresh, pool[5:], {}, memory=1.0, retire_below=0.2, retire_above=0.8)
            broken = changed(saved, place, junk)
            try:
                fresh.load_state_dict(broken["order"], known)
                again.load_state_dict(broken["refresher"], known)
            except (ValueError, KeyError, TypeError):  # the last two: not even the two parts are there
                refused += 1
                continue
            assert len({problem.problem_id for problem in fresh.draw(5)}) == 5
            again.observe([make_group(make_rollout([1], outcome=Outcome.CORRECT, problem_id=drawn)) for drawn in known])
            assert all(isinstance(value, float) for value in again.metrics().values())
    assert refused > 100
    with pytest.raises(ValueError, match="in use"):
        again.load_state_dict(saved["refresher"] | {"reserve": ["8", "2"]}, known)
    with pytest.raises(ValueError, match="'99' is no problem of this phase"):
        fresh.load_state_dict(saved["order"] | {"problems": ["0", "1", "2", "3", "99"]}, known)
