"""Golds whose value is known apart from the grader: each must equal itself however it is written, and none another value.

make bench-golds                          # 5,000 made golds, 20,000 near pairs, 7,000 changed digits
make bench-golds ARGS="--golds FILE"      # and the gold answers of a file (JSON lines with a column `answer`)
"""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import mpmath

sys.path.insert(0, str(Path(__file__).parent.parent))
from conclip.grading.equivalence import same_answer
from conclip.grading.formulas import read_formula
from conclip.grading.functions import Unreadable
from conclip.grading.spelling import clean
from tests.known_values import Known, known_values, one_digit_changed, spellings


def itself(golds: Sequence[str]) -> None:
    """Each gold against its own spellings, both ways round."""
    pairs = [(gold, other) for gold in golds for other in spellings(gold)]
    failed = [(a, b) for a, b in pairs if not (same_answer(a, b) and same_answer(b, a))]
    whole = len(golds) - len({a for a, _ in failed})
    print(f"golds that equal all their spellings: {whole} of {len(golds)} ({100 * whole / len(golds):.2f} %); {failed[:5]}")


def others(known: Sequence[Known], count: int) -> None:
    """Each value against its neighbours by size."""
    ordered = sorted(known, key=lambda k: k.value)
    distances = range(1, 1 + -(-count // len(ordered)))
    near = islice(((a, b) for d in distances for a, b in zip(ordered, ordered[d:], strict=False)), count)
    differ = [(a, b) for a, b in near if abs(a.value - b.value) > mpmath.mpf(10) ** -50 * abs(a.value)]
    accepted = [(a.latex, b.latex) for a, b in differ if same_answer(a.latex, b.latex)]
    print(f"near pairs of other values that are accepted: {len(accepted)} of {len(differ)}; {accepted[:5]}")


def changed_digits(golds: Sequence[str], count: int) -> None:
    generator = random.Random(3)
    tried, accepted = 0, list[tuple[str, str]]()
    while tried < count:
        gold = generator.choice(golds)
        other = one_digit_changed(gold, generator)
        if other is None or clean(gold) == clean(other):
            continue
        tried += 1
        try:
            same = read_formula(clean(gold)) == read_formula(clean(other))
        except Unreadable:
            same = False
        accepted += [(gold, other)] if not same and same_answer(gold, other) else []
    print(f"changed digits that are accepted: {len(accepted)} of {tried}; {accepted[:5]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--golds", type=Path)
    arguments = parser.parse_args()
    known = list(known_values(arguments.count, seed=1))
    itself([k.latex for k in known])
    others(known, 4 * arguments.count)
    golds = [k.latex for k in known]
    if arguments.golds:
        golds = [json.loads(line)["answer"] for line in arguments.golds.read_text().splitlines()]
        plain = [gold for gold in golds if _is_number(gold)]
        print(f"{arguments.golds.name}: {len(golds)} golds, {len(plain)} of them plain numbers")
        itself(plain)
    changed_digits(golds, 7 * arguments.count // 5)


def _is_number(gold: str) -> bool:
    """A number without a unit of its own."""
    try:
        return "%" not in gold and "\\circ" not in gold and not read_formula(clean(gold)).free_symbols
    except Unreadable:
        return False


if __name__ == "__main__":
    main()
