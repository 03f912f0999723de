"""The written-out reasoning the lab model learns from, and what is designed into it.

Every trace is a legible solution that ends in ``\\boxed{}``. Three things are designed, and documented as such:

1. *Verbosity*: each trace draws how often it re-checks a step, independently of the problem and of being right.
2. *Fatigue* (`chain`): the k-th step is written wrong with probability ``FATIGUE * k``, so long problems are hard.
3. *Idle re-checks* (`chain`): a re-check repeats the step with the same error rate and its result is adopted. On average
   it neither repairs nor harms. In `search` a re-check is a fresh guess, tested against the equation: it repairs.

Whether a *model* trained on this is right more often when it is short is measured, not designed.

With `repairing`, `chain` is another family, which only the careful lab model learned: a re-check starts from the step's own
numbers and is almost always right. Long responses are right more often then, by design.
"""

import random

from conclip.lab.arithmetic import Chain, apply

FATIGUE = 0.04
"""Extra error probability of each further step of a `chain` trace."""

RECHECK_RATES = (0.0, 1.0, 2.0, 3.0, 5.0)
"""Mean re-checks per step of a `chain` trace; one is drawn per trace."""

REPAIR_SLIP = 0.01
"""Error probability of a re-check that repairs."""

MAX_TRIES = 8
"""A `search` trace has patience for 1 to MAX_TRIES guesses, drawn per trace; the last one is not tested."""

SEARCH_SLIP = 0.01
"""Error probability of one operation inside a `search` test."""

_VARIABLES = "abcdefghijklmnopqrstu"


def _slip(value: int, probability: float, generator: random.Random) -> int:
    if generator.random() < probability:
        return (value + generator.randrange(1, 10)) % 10
    return value


def chain_trace(chain: Chain, generator: random.Random, *, repairing: bool = False) -> str:
    """Write a forward evaluation with fatigue and re-checks, which are idle unless `repairing`."""
    rate = generator.choice(RECHECK_RATES)
    lines: list[str] = []
    value = chain.start
    for k, (operator, operand) in enumerate(chain.operations, start=1):
        rechecks = sum(generator.random() < rate / 8 for _ in range(8))
        left = value
        for attempt in range(1 + rechecks):
            slip = REPAIR_SLIP if repairing and attempt else FATIGUE * k
            value = _slip(apply(operator, left, operand), slip, generator)
            opening = "wait " if attempt else f"{_VARIABLES[k]}={_VARIABLES[k - 1]}{operator}{operand}="
            lines.append(f"{opening}{left}{operator}{operand}={value}\n")
    return "".join(lines) + f"\\boxed{{{value}}}"


def search_trace(chain: Chain, generator: random.Random) -> str:
    """Guess, test, and guess again until a test says yes; the last guess that a trace has patience for is given untested."""
    guesses = generator.sample(range(10), k=generator.randint(1, MAX_TRIES))
    target, last = chain.values[-1], _VARIABLES[len(chain.operations) - 1]
    lines: list[str] = []
    guess = guesses[0]
    for attempt, guess in enumerate(guesses):
        lines.append(f"{'wait ' if attempt else ''}x={guess}\n")
        if attempt == len(guesses) - 1:
            break
        value = guess
        for index, (operator, operand) in enumerate(chain.operations):
            left = value
            value = _slip(apply(operator, left, operand), SEARCH_SLIP, generator)
            names = f"{_VARIABLES[index]}={('x' + _VARIABLES)[index]}"
            lines.append(f"{names}{operator}{operand}={left}{operator}{operand}={value}\n")
        missing = apply("-", target, value)
        lines.append(f"{last}?{target}-{value}={missing} {'no' if missing else 'yes'}\n")
        if not missing:
            break
    return "".join(lines) + f"\\boxed{{{guess}}}"


def trace(chain: Chain, generator: random.Random, *, repairing: bool = False) -> str:
    """Write one trace for a chain of either family."""
    return chain_trace(chain, generator, repairing=repairing) if chain.family == "chain" else search_trace(chain, generator)
