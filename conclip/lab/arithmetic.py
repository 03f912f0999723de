"""Generated arithmetic modulo 10: two problem families of graded difficulty.

`chain`   evaluate forwards. ``a=3;b=a+4;c=b*7;c?`` asks for the last variable; the level is the number of operations.
`search`  solve backwards. ``a=x+4;b=a*7;b?6`` asks for the x that makes b equal 6; the level is again the number of
          operations.

Everything is modulo 10 and multipliers are 3, 7 or 9, which are invertible there: an error in one step is never healed
by a later one, and every `search` problem has exactly one answer. A blind guess is right one time in ten.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

from conclip.types import Problem

FAMILIES = ("chain", "search")
SPLITS = ("pretrain", "train", "validation", "test")
MAX_LEVEL = {"chain": 20, "search": 6}

_SPLIT_OF_BUCKET = ("pretrain",) * 8 + ("train",) * 4 + ("validation",) * 2 + ("test",) * 6
_VARIABLES = "abcdefghijklmnopqrstu"
_MULTIPLIERS = (3, 7, 9)


def apply(operator: str, left: int, right: int) -> int:
    """Return `left operator right` modulo 10, for ``+``, ``-`` and ``*``."""
    if operator == "+":
        return (left + right) % 10
    if operator == "-":
        return (left - right) % 10
    return (left * right) % 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A start digit and the operations applied to it, before it is written as a question."""

    family: str
    start: int
    operations: tuple[tuple[str, int], ...]

    @property
    def values(self) -> list[int]:
        """The value of every variable in order, the start included (length: level + 1)."""
        values = [self.start]
        for operator, operand in self.operations:
            values.append(apply(operator, values[-1], operand))
        return values

    @property
    def question(self) -> str:
        if self.family == "chain":
            statements = [f"a={self.start}"]
            names = _VARIABLES
        else:
            statements = []
            names = "x" + _VARIABLES
        for index, (operator, operand) in enumerate(self.operations):
            statements.append(f"{names[index + 1]}={names[index]}{operator}{operand}")
        last = names[len(self.operations)]
        if self.family == "chain":
            return ";".join([*statements, f"{last}?"])
        return ";".join([*statements, f"{last}?{self.values[-1]}"])

    @property
    def answer(self) -> str:
        return str(self.values[-1] if self.family == "chain" else self.start)

    @property
    def split(self) -> str:
        """The split this question belongs to for ever: a hash of its text decides, so no two splits share a question."""
        digest = hashlib.sha256(self.question.encode()).digest()
        return _SPLIT_OF_BUCKET[int.from_bytes(digest[:4], "big") % len(_SPLIT_OF_BUCKET)]


def sample_chain(family: str, level: int, generator: random.Random) -> Chain:
    """Return one random chain with `level` operations."""
    operations: list[tuple[str, int]] = []
    for _ in range(level):
        operator = generator.choice("+-*")
        operand = generator.choice(_MULTIPLIERS) if operator == "*" else generator.randrange(1, 10)
        operations.append((operator, operand))
    return Chain(family=family, start=generator.randrange(10), operations=tuple(operations))


def iterate_chains(family: str, levels: tuple[int, ...], split: str, seed: int) -> Iterator[Chain]:
    """Yield distinct chains of one split, the levels taking turns. Ends when a whole round of every level finds none.

    Level 1 has only a few hundred questions in all; it runs dry first and is then left out.
    """
    generator = random.Random(f"{seed}/{family}/{split}")
    seen: set[str] = set()
    alive = list(levels)
    while alive:
        for level in list(alive):
            for _ in range(1000):
                chain = sample_chain(family, level, generator)
                if chain.split == split and chain.question not in seen:
                    seen.add(chain.question)
                    yield chain
                    break
            else:
                alive.remove(level)


def generate(
    family: str, *, levels: tuple[int, ...], split: str, num_problems: int, seed: int, source: str
) -> list[Problem]:
    """Return `num_problems` distinct problems of one family and split, spread evenly over `levels`; `source` names the set.

    Raises ValueError when a name is unknown, a level is out of range, or the levels hold too few distinct problems.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown arithmetic family '{family}'; choose one of {', '.join(FAMILIES)}")
    if split not in SPLITS:
        raise ValueError(f"unknown arithmetic split '{split}'; choose one of {', '.join(SPLITS)}")
    wrong = [level for level in levels if not 1 <= level <= MAX_LEVEL[family]]
    if wrong or not levels:
        raise ValueError(f"arithmetic levels of '{family}' go from 1 to {MAX_LEVEL[family]}, got {list(levels)}")
    problems: list[Problem] = []
    for chain in iterate_chains(family, levels, split, seed):
        if len(problems) == num_problems:
            break
        digest = hashlib.sha256(chain.question.encode()).hexdigest()[:10]
        problems.append(
            Problem(
                problem_id=f"{family}-{len(chain.operations)}-{digest}",
                question=chain.question,
                answer=chain.answer,
                source=source,
                level=len(chain.operations),
            )
        )
    if len(problems) < num_problems:
        raise ValueError(
            f"'{family}' has only {len(problems)} distinct {split} problems at levels {list(levels)}, "
            f"not {num_problems}; ask for fewer or add higher levels"
        )
    return problems
