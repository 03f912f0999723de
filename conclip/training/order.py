"""Which problems a step asks."""

from collections import deque
from collections.abc import Sequence
from random import Random

from conclip.types import Problem


class ProblemOrder:
    """Endless passes over the problems, each in a fresh order; no draw holds a problem twice."""

    def __init__(self, problems: Sequence[Problem], stream: Random) -> None:
        self._problems, self._stream = list(problems), stream
        self._next: deque[Problem] = deque()

    def draw(self, count: int) -> list[Problem]:
        """The next `count` problems, all different; one that would come twice waits for the next draw. Raises ValueError
        when there are fewer problems than that."""
        if count > len(self._problems):
            raise ValueError(f"{count} different problems asked for, there are {len(self._problems)}")
        chosen: dict[str, Problem] = {}
        waiting: list[Problem] = []
        while len(chosen) < count:
            if not self._next:
                self._next.extend(self._stream.sample(self._problems, len(self._problems)))
            problem = self._next.popleft()
            if problem.problem_id in chosen:
                waiting.append(problem)
            else:
                chosen[problem.problem_id] = problem
        self._next.extendleft(reversed(waiting))
        return list(chosen.values())
