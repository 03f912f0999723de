"""What the paper's claims look like on one real model, from evaluations whose rows were kept (`keep_rows.py`).

    python benchmarks/real_claims.py docs/measured/gsm8k-base.parquet docs/measured/gsm8k-eight.parquet ...

The first file is the base model, the others are what became of it. Intervals are over problems, at 95 %: they say nothing
about other models or other runs.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from conclip.claims.measures import gaps
from conclip.evaluation.measures import by_problem
from conclip.evaluation.rows import read_rows
from conclip.stats import bootstrap_interval, clustered_interval
from conclip.types import EvalRow, Outcome

Interval = tuple[float, float, float]


def lengths(rows: Sequence[EvalRow], outcome: Outcome) -> list[int]:
    return [row.num_tokens for row in rows if row.outcome is outcome]


def longer(rows: Sequence[EvalRow]) -> float:
    """Return by how much wrong responses are longer than correct ones [%], truncated ones left out."""
    return 100 * (fmean(lengths(rows, Outcome.WRONG)) / fmean(lengths(rows, Outcome.CORRECT)) - 1)


def across_problems(rows: Sequence[EvalRow]) -> Interval:
    problems = list(by_problem(rows).values())

    def of(indices: list[int]) -> float:
        return longer([row for index in indices for row in problems[index]])

    return longer(rows), *bootstrap_interval(len(problems), of, seed=0)


def within_problems(rows: Sequence[EvalRow]) -> Interval | None:
    """Return the mean over the problems that have both; None where hardly any has."""
    found = gaps(rows)
    return clustered_interval(found) if len(found) >= 10 else None


def shown(interval: Interval | None) -> str:
    return "-" if interval is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*interval)


def wrong_against_right(files: Sequence[tuple[str, list[EvalRow]]]) -> Iterator[str]:
    yield "| model | temperature | wrong against correct, across problems [% longer] | within a problem [% longer] |"
    yield "|---|---:|---|---|"
    for name, rows in files:
        yield f"| {name} | {rows[0].temperature:g} | {shown(across_problems(rows))} | {shown(within_problems(rows))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="NAME.parquet or NAME@TEMPERATURE.parquet; the base first")
    options = parser.parse_args()
    files = [(path.stem.partition("@")[0], list(read_rows(path))) for path in options.files]
    print("\n".join(wrong_against_right(files)))


if __name__ == "__main__":
    main()
