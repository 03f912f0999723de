"""How fast conclip is, against what people would use instead, as tables.

    make bench                                             # the embedded model (an hour or more)
    make bench ARGS="--smollm2 FOLDER --qwen FOLDER"       # and real ones (hours)
    make bench ARGS="--guard"                              # fail where a ratio has fallen by more than 10 %
    make bench ARGS="--only update --pairs 3"              # one comparison, fewer pairs
    make bench ARGS="--page"                               # docs/performance.md from recorded.json

Each comparison is made in pairs: the two sides run one after the other, each in a process of its own, and what is shown is
the median of the pairs' ratios, with the smallest and the largest. Then how time and memory grow, and how soon commands
are there. Results are kept in a file, pair by pair; --continue leaves out what is there.
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path

from benchmarks.performance.comparisons import COMPARISONS, Numbers, fallen
from benchmarks.performance.record import Record
from benchmarks.performance.scaling import points, starts
from benchmarks.performance.sides import SIDES
from benchmarks.performance.watch import watched
from benchmarks.performance.work import LAB, Work, real
from conclip.processes import let_threads_sleep, preload_allocator

RECORDED = Path(__file__).with_name("recorded.json")
"""The results that docs/performance.md shows."""
PAGE = Path(__file__).parents[2] / "docs/performance.md"
CHOICES = (*COMPARISONS, "scaling")


def this_machine() -> str:
    """Return the processor's name and how many of its cores this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{len(os.sched_getaffinity(0))} cores of {next(names, platform.machine())}"


def timed(side: str, work: Work) -> Numbers:
    """Run one side in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.performance", "--side", side, work.to_json()]
    printed, peak = watched(command, "side")
    return {"gib": peak} | printed["numbers"]  # a side that only starts a run has measured that


def pair(work: Work, name: str, number: int) -> tuple[Numbers, Numbers]:
    """Run both sides, one after the other: ours first in pairs of an even number."""
    ours, other = COMPARISONS[name].ours, COMPARISONS[name].other
    order = (ours, other) if number % 2 == 0 else (other, ours)
    numbers = {side: timed(side, work) for side in order}
    print(work.name, ours, other, *(f"{numbers[side]['s_per_1000']:.3f}" for side in (ours, other)), flush=True)
    return numbers[ours], numbers[other]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", nargs=2, metavar=("SIDE", "WORK"), help=argparse.SUPPRESS)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=CHOICES, default=CHOICES, help="these alone")
    parser.add_argument("--smollm2", type=Path, help="a folder with SmolLM2-135M-Instruct")
    parser.add_argument("--qwen", type=Path, help="a folder with Qwen2.5-Coder-0.5B-Instruct")
    parser.add_argument("--no-lab", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("outputs/performance.json"), help="where results are kept")
    parser.add_argument("--continue", dest="goes_on", action="store_true", help="leave out what the file has")
    parser.add_argument(
        "--guard", action="store_true", help=f"compare with {RECORDED.name}; exit code 1 where a ratio has fallen"
    )
    parser.add_argument("--page", action="store_true", help=f"write docs/performance.md from {RECORDED.name}, and no more")
    options = parser.parse_args()
    if options.side:
        side, work = options.side
        print(json.dumps({"side": side, "numbers": SIDES[side](Work(**json.loads(work)))}))
        return
    if (options.guard or options.page) and not RECORDED.exists():
        parser.error(f"there is no {RECORDED.name}; copy the results of a whole run there")
    if options.page:
        PAGE.write_text(Record.read(RECORDED).page())
        return
    let_threads_sleep()  # every side inherits what commands set
    preload_allocator()
    works = [] if options.no_lab else [LAB]
    if options.smollm2:
        works.append(real("SmolLM2-135M", options.smollm2, num_problems=8, group_size=8, max_tokens=128))
    if options.qwen:
        works.append(real("0.5B", options.qwen, num_problems=4, group_size=8, max_tokens=128))
    record = Record(this_machine())
    if options.goes_on and options.out.exists():
        record = Record.read(options.out)
    for work in works:
        for name in options.only:
            if name not in COMPARISONS or (COMPARISONS[name].only_lab and work is not LAB):
                continue
            pairs = record.pairs_of(work.name, name)
            while len(pairs) < options.pairs:
                pairs.append(pair(work, name, len(pairs)))
                record.write(options.out)
    if "scaling" in options.only and not options.no_lab:
        for point in points(tuple(record.points)):
            record.points.append(point)
            record.write(options.out)
        record.starts = record.starts or list(starts())
        record.write(options.out)
    print(f"\n{record.page()}")
    if options.guard and (slower := fallen(record.comparisons, Record.read(RECORDED).comparisons)):
        sys.exit("slower than recorded:\n" + "\n".join(slower))


if __name__ == "__main__":
    main()
