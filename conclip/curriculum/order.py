"""Draws the problems of each step, and keeps the set they come from useful."""

from collections import deque
from collections.abc import Mapping, Sequence
from random import Random
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict  # pydantic's own dependency: it needs this one below Python 3.12

from conclip.config.groups import PhaseConfig
from conclip.curriculum.pooling import JEFFREYS
from conclip.curriculum.selection import Selection
from conclip.runs.checked import Count, NonNegative
from conclip.types import Outcome, Problem, RolloutGroup

_Words = Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=625, max_length=625)]
"""State of Python's random generator, and the position in it."""


class _SavedOrder(TypedDict):
    problems: list[str]
    next: list[str]
    stream: tuple[Literal[3], _Words, float | None]


class _SavedRefresher(TypedDict):
    reserve: list[str]
    counts: dict[str, tuple[NonNegative, NonNegative]]
    num_retired: Count


_ORDER, _REFRESHER = TypeAdapter(_SavedOrder), TypeAdapter(_SavedRefresher)


class ProblemOrder:
    """Draws problems in endless passes, each in a fresh order; no draw holds a problem twice."""

    def __init__(self, problems: Sequence[Problem], stream: Random) -> None:
        self.problems, self._stream = list(problems), stream
        self._next: deque[Problem] = deque()

    def draw(self, count: int) -> list[Problem]:
        """Return the next `count` problems, all different; one that would come twice waits for the next draw. Raises
        ValueError when there are fewer problems than that."""
        if count > len(self.problems):
            raise ValueError(f"{count} different problems asked for, there are {len(self.problems)}")
        chosen: dict[str, Problem] = {}
        waiting: list[Problem] = []
        while len(chosen) < count:
            if not self._next:
                self._next.extend(self._stream.sample(self.problems, len(self.problems)))
            problem = self._next.popleft()
            if problem.problem_id in chosen:
                waiting.append(problem)
            else:
                chosen[problem.problem_id] = problem
        self._next.extendleft(reversed(waiting))
        return list(chosen.values())

    def replace(self, old: Problem, new: Problem) -> None:
        """Put `new` in the place of `old`, in the present pass too if `old` is still to come there."""
        self.problems[self.problems.index(old)] = new
        self._next = deque(new if problem == old else problem for problem in self._next)

    def state_dict(self) -> dict[str, Any]:
        """Return JSON-like state, with problems by id."""
        return {
            "problems": [problem.problem_id for problem in self.problems],
            "next": [problem.problem_id for problem in self._next],
            "stream": self._stream.getstate(),
        }

    def load_state_dict(self, state: Mapping[str, Any], known: Mapping[str, Problem]) -> None:
        """Restore a state; `known` has every problem it may name, by id. Raises ValueError when the state does not fit."""
        saved = _ORDER.validate_python(state)
        problems, following = _problems_by_id(saved["problems"], known), _problems_by_id(saved["next"], known)
        if len({*saved["problems"]}) != len(self.problems) or len(problems) != len(self.problems):
            raise ValueError(f"it has other than {len(self.problems)} problems")
        version, internal, gauss = saved["stream"]
        self._stream.setstate((version, tuple(internal), gauss))
        self.problems, self._next = problems, deque(following)


class Refresher:
    """Replaces problems that became always or never solved by the next candidates of the probe.

    Each problem's belief is a Beta posterior (Jeffreys' prior) over its probed and trained responses, in which the
    newest step's evidence counts whole and all earlier evidence `memory` as much as before: the policy changes.
    """

    def __init__(
        self,
        order: ProblemOrder,
        reserve: Sequence[Problem],
        counts: Mapping[str, tuple[float, float]],
        *,
        memory: float,
        retire_below: float,
        retire_above: float,
    ) -> None:
        """`counts`: (correct, not correct) responses of the probe by problem id."""
        self._order, self._reserve = order, deque(reserve)
        self._counts = dict(counts)
        self._memory, self._low, self._high = memory, retire_below, retire_above
        self.num_retired = 0

    def observe(self, groups: Sequence[RolloutGroup]) -> None:
        """Count the outcomes of a step, then retire the problems that these settle, while there are replacements."""
        for group in groups:
            judged = [r.grade.outcome for r in group.rollouts if r.grade.outcome is not Outcome.GRADER_ERROR]
            correct = sum(outcome is Outcome.CORRECT for outcome in judged)
            before = self._counts.get(group.problem.problem_id, (0.0, 0.0))
            added = (correct, len(judged) - correct)
            self._counts[group.problem.problem_id] = (
                self._memory * before[0] + added[0],
                self._memory * before[1] + added[1],
            )
        for group in groups:
            settled = not self._low <= self.belief(group.problem) <= self._high
            if settled and self._reserve and group.problem in self._order.problems:
                self._order.replace(group.problem, self._reserve.popleft())
                self.num_retired += 1

    def belief(self, problem: Problem) -> float:
        """Return posterior mean of the problem's pass rate.

        Example: probed 6 of 12, then a group of 16 all correct at memory 0.5: (0.5 + 3 + 16) / (1 + 6 + 16) = 0.848.
        """
        correct, wrong = self._counts.get(problem.problem_id, (0.0, 0.0))
        return (JEFFREYS[0] + correct) / (sum(JEFFREYS) + correct + wrong)

    def metrics(self) -> dict[str, float]:
        """Return the working set as it is."""
        beliefs = [self.belief(problem) for problem in self._order.problems]
        return {
            "rollout/working_set_problems": float(len(beliefs)),
            "rollout/working_set_pass_rate": sum(beliefs) / len(beliefs),
            "rollout/retired_problems": float(self.num_retired),
            "rollout/reserve_problems": float(len(self._reserve)),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return JSON-like state, with problems by id."""
        reserve = [problem.problem_id for problem in self._reserve]
        return {"reserve": reserve, "counts": dict(self._counts), "num_retired": self.num_retired}

    def load_state_dict(self, state: Mapping[str, Any], known: Mapping[str, Problem]) -> None:
        """Restore a state, after that of the order. Raises ValueError when the two do not fit."""
        saved = _REFRESHER.validate_python(state)
        named = [*saved["reserve"], *(problem.problem_id for problem in self._order.problems)]
        if len({*named}) != len(named):
            raise ValueError("a problem in reserve is there twice, or in use")
        self._reserve = deque(_problems_by_id(saved["reserve"], known))
        self._counts, self.num_retired = dict(saved["counts"]), saved["num_retired"]


def _problems_by_id(problem_ids: Sequence[str], known: Mapping[str, Problem]) -> list[Problem]:
    if unknown := [problem_id for problem_id in problem_ids if problem_id not in known]:
        raise ValueError(f"'{unknown[0][:50]}' is no problem of this phase")
    return [known[problem_id] for problem_id in problem_ids]


def make_refresher(order: ProblemOrder, selection: Selection, phase: PhaseConfig) -> Refresher:
    """Return the refresher of a phase, which starts from the counts of the probe."""
    rated = [choice.rate for choice in selection.candidates if choice.rate is not None]
    return Refresher(
        order,
        [choice.problem for choice in selection.reserve],
        {rate.problem_id: (rate.num_correct, rate.num_samples - rate.num_correct) for rate in rated},
        memory=phase.refresh_memory,
        retire_below=phase.retire_below,
        retire_above=phase.retire_above,
    )
