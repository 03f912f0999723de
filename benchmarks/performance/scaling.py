"""How time and memory grow: with the length of responses, their number and the threads; and how soon a command is there.

Each point is measured in a process of its own, with the embedded model.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from benchmarks.performance.comparisons import Numbers
from benchmarks.performance.record import Point, Start
from benchmarks.performance.sides import sample, updates
from benchmarks.performance.watch import watched
from benchmarks.performance.work import LAB

TOKENS = 32_768
"""Of each batch whose lengths differ."""

CONTEXT, ROOM = 1024, 256
"""The embedded model's context, and what of it is for prompts."""

COMMANDS = "--help", "two-phase --help", "two-phase --dry-run"


def learn(length: int, responses: int) -> Numbers:
    """Updates with so many responses of this length, prompts included."""

    def random(number: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(number)
        return torch.randint(3, 120, (responses, length), generator=generator).tolist()

    return updates(replace(LAB, group_size=min(8, responses)), random)


def rollout(length: int, responses: int) -> Numbers:
    """Sampling of so many responses with this limit, hardly one of which ends before it."""
    work = replace(LAB, num_problems=max(1, responses // 8), group_size=min(8, responses), max_tokens=length)
    return sample(work, "rollout.num_engines=1", "rollout.temperature=2", f"rollout.max_model_len={length + ROOM}")


KINDS = {"learn": learn, "rollout": rollout}


def timed(kind: str, length: int, responses: int, threads: int) -> Numbers:
    command = [sys.executable, "-m", "benchmarks.performance.scaling", "--point", kind, str(length), str(responses)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    numbers, peak = watched(command, "s_per_1000", environment)
    return numbers | {"gib": peak}


def start(arguments: str) -> Start:
    """Run `conclip` once. What it preloads takes time to find, too: it begins without."""
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    with tempfile.TemporaryDirectory() as folder:
        before, began = os.times(), time.monotonic()
        command = [sys.executable, "-m", "conclip", *arguments.split()]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True, cwd=folder, env=environment)
        after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return Start(f"conclip {arguments}", time.monotonic() - began, used)


def points(known: Sequence[Point]) -> Iterator[Point]:
    """Measure how time and memory grow, but for what is known (ten minutes)."""
    done = {(point.what, point.length, point.responses, point.threads) for point in known}
    threads = len(os.sched_getaffinity(0))
    asked = [("learn", length, TOKENS // length, threads) for length in (64, 256, 1024, 4096)]
    asked += [("learn", 256, responses, threads) for responses in (32, 512, 2048)]
    asked += [("learn", 256, TOKENS // 256, 1)]
    asked += [("rollout", length, 64, threads) for length in (64, 256, CONTEXT - ROOM)]
    asked += [("rollout", 256, responses, threads) for responses in (8, 256)]
    asked += [("rollout", 256, 64, 1)]
    for kind, length, responses, number in asked:
        what = "update" if kind == "learn" else "sampling"
        if (what, length, responses, number) in done:
            continue
        found = timed(kind, length, responses, number)
        yield Point(what, length, responses, number, found["s_per_1000"], found["gib"])


def starts() -> Iterator[Start]:
    """Measure how soon commands are there, each the second time: what is read from disk has been read then."""
    for arguments in COMMANDS:
        start(arguments)
        yield start(arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--point", nargs=3, required=True)
    kind, length, responses = parser.parse_args().point
    print(json.dumps(KINDS[kind](int(length), int(responses))))


if __name__ == "__main__":
    main()
