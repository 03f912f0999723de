"""How fast conclip is, against what people would use instead, as tables.

    make bench                                             # the embedded model
    make bench ARGS="--smollm2 FOLDER --qwen FOLDER"       # and real ones (hours)

Each comparison is made in pairs: the two sides run one after the other, each in a process of its own, and what is shown is
the median of the pairs' ratios, with the smallest and the largest.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.performance.sides import SIDES
from benchmarks.performance.work import LAB, Work, real
from conclip.processes import let_threads_sleep

COMPARISONS = {
    "sampling, against `LLM.generate` of vLLM": ("sample_ours", "sample_bare"),
    "update, against a bare forward and backward pass": ("update_ours", "update_bare"),
    "GRPO step, against TRL's": ("step_grpo", "step_trl"),
    "PPO step, against our GRPO step": ("step_ppo", "step_grpo"),
}
"""What is compared: ours, and the other side. Ratios are the other side's time over ours, so more is better."""

Measured = dict[str, float]


def timed(side: str, work: Work) -> Measured:
    """Run one side in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.performance", "--side", side, work.to_json()]
    output = subprocess.run(command, stdout=subprocess.PIPE, stderr=sys.stderr, text=True, check=True).stdout
    return json.loads(next(line for line in output.splitlines() if line.startswith('{"side"')))["numbers"]


def pairs(work: Work, ours: str, other: str, number: int) -> list[tuple[Measured, Measured]]:
    """Run both sides `number` times, one after the other, and every other time the other way round."""
    found: list[tuple[Measured, Measured]] = []
    for pair in range(number):
        order = (ours, other) if pair % 2 == 0 else (other, ours)
        numbers = {side: timed(side, work) for side in order}
        found.append((numbers[ours], numbers[other]))
        print(work.name, ours, other, *(f"{numbers[side]['s_per_1000']:.3f}" for side in (ours, other)), flush=True)
    return found


def row(work: Work, title: str, found: Sequence[tuple[Measured, Measured]]) -> str:
    ratios = [other["s_per_1000"] / ours["s_per_1000"] for ours, other in found]
    times = [median(numbers[side]["s_per_1000"] for numbers in found) for side in (0, 1)]
    peaks = [median(numbers[side]["gib"] for numbers in found) for side in (0, 1)]
    spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return f"| {work.name} | {title} | {times[0]:.3f} | {times[1]:.3f} | {spread} | {peaks[0]:.1f} | {peaks[1]:.1f} |"


def budget(work: Work, found: Sequence[Measured]) -> str:
    """Where a step's time goes, as shares of a step without validation and saving."""
    whole = [numbers["s_per_1000"] for numbers in found]
    names = sorted({name for numbers in found for name in numbers if name.startswith("time/")})
    shares = [median(numbers.get(name, 0.0) / total for numbers, total in zip(found, whole, strict=True)) for name in names]
    return f"| {work.name} | " + ", ".join(
        f"{name[5:-2].replace('_', ' ')} {share:.1%}" for name, share in zip(names, shares, strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", nargs=2, metavar=("SIDE", "WORK"), help=argparse.SUPPRESS)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", help="comparisons whose name contains this")
    parser.add_argument("--smollm2", type=Path, help="a folder with SmolLM2-135M-Instruct")
    parser.add_argument("--qwen", type=Path, help="a folder with Qwen2.5-Coder-0.5B-Instruct")
    parser.add_argument("--no-lab", action="store_true")
    options = parser.parse_args()
    if options.side:
        side, work = options.side
        print(json.dumps({"side": side, "numbers": SIDES[side](Work(**json.loads(work)))}))
        return
    let_threads_sleep()  # every side inherits what commands set
    works = [] if options.no_lab else [LAB]
    if options.smollm2:
        works.append(real("SmolLM2-135M", options.smollm2, num_problems=8, group_size=8, max_tokens=128))
    if options.qwen:
        works.append(real("0.5B", options.qwen, num_problems=4, group_size=8, max_tokens=128))
    lines = ["| model | what | ours [s per 1,000 tokens] | other | other / ours | ours [GiB] | other |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|")
    budgets = ["| model | where a step's time goes |", "|---|---|"]
    for work in works:
        for title, (ours, other) in COMPARISONS.items():
            if options.only and options.only not in title:
                continue
            found = pairs(work, ours, other, options.pairs)
            lines.append(row(work, title, found))
            if ours.startswith("step"):
                budgets.append(budget(work, [one for one, _ in found]))
    print("\n".join(["", *lines, "", *budgets]))


if __name__ == "__main__":
    main()
