"""How time and memory grow: with the length of responses, their number and the threads; and how soon a command is there.

    python -m benchmarks.performance.scaling        # ten minutes

Each point is measured in a process of its own, with the embedded model.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace

import torch

from benchmarks.performance.comparisons import Numbers
from benchmarks.performance.sides import sample, updates
from benchmarks.performance.work import LAB
from conclip.processes import let_threads_sleep

TOKENS = 32_768
"""Of each batch whose lengths differ."""

COMMANDS = {
    "`conclip --help`": ("--help",),
    "`conclip two-phase --help`": ("two-phase", "--help"),
    "`conclip two-phase --dry-run`": ("two-phase", "--dry-run"),
}


def learn(length: int, responses: int) -> Numbers:
    """Updates with so many responses of this length, prompts included."""

    def random(number: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(number)
        return torch.randint(3, 120, (responses, length), generator=generator).tolist()

    return updates(replace(LAB, group_size=min(8, responses)), random)


def rollout(length: int, responses: int) -> Numbers:
    """Sampling of so many responses with this limit, hardly one of which ends before it."""
    work = replace(LAB, num_problems=max(1, responses // 8), group_size=min(8, responses), max_tokens=length)
    return sample(work, "rollout.temperature=2", f"rollout.max_model_len={length + 256}")


KINDS = {"learn": learn, "rollout": rollout}


def timed(kind: str, length: int, responses: int, threads: int) -> Numbers:
    command = [sys.executable, "-m", "benchmarks.performance.scaling", "--point", kind, str(length), str(responses)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
    return json.loads(next(line for line in output.splitlines() if line.startswith('{"s_per_1000"')))


def processor_seconds(arguments: tuple[str, ...]) -> tuple[float, float]:
    """Run `conclip` once. Returns seconds by the clock, and those of the processor."""
    with tempfile.TemporaryDirectory() as folder:
        before, began = os.times(), time.monotonic()
        subprocess.run([sys.executable, "-m", "conclip", *arguments], stdout=subprocess.DEVNULL, check=True, cwd=folder)
        after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.monotonic() - began, used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--point", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        kind, length, responses = options.point
        print(json.dumps(KINDS[kind](int(length), int(responses))))
        return
    let_threads_sleep()
    threads = len(os.sched_getaffinity(0))
    points = [("learn", length, TOKENS // length, threads) for length in (64, 256, 1024, 4096)]
    points += [("learn", 256, responses, threads) for responses in (32, 512, 2048)]
    points += [("learn", 256, TOKENS // 256, 1)]
    points += [("rollout", length, 64, threads) for length in (64, 256, 1024)]
    points += [("rollout", 256, responses, threads) for responses in (8, 256)]
    points += [("rollout", 256, 64, 1)]
    print("| what | tokens each | responses | threads | s per 1,000 tokens | peak [GiB] |\n|---|---:|---:|---:|---:|---:|")
    for kind, length, responses, number in points:
        found = timed(kind, length, responses, number)
        what = "update" if kind == "learn" else "sampling"
        print(f"| {what} | {length} | {responses} | {number} | {found['s_per_1000']:.3f} | {found['gib']:.2f} |", flush=True)
    print("\n| command | s by the clock | s of the processor |\n|---|---:|---:|")
    for name, arguments in COMMANDS.items():
        processor_seconds(arguments)  # what is read from disk is read now
        clock, used = processor_seconds(arguments)
        print(f"| {name} | {clock:.2f} | {used:.2f} |", flush=True)


if __name__ == "__main__":
    main()
