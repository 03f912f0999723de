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
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.performance.comparisons import Numbers
from benchmarks.performance.record import Batch, Point, Start
from benchmarks.performance.sides import sample, updates
from benchmarks.performance.watch import watched
from benchmarks.performance.work import LAB

TOKENS = 32_768
"""Of each batch whose lengths differ."""

CONTEXT, ROOM = 1024, 256
"""The embedded model's context, and what of it is for prompts."""

COMMANDS = "--help", "two-phase --help", "two-phase --dry-run"
ONE_RESPONSE = "data.test.chain.num_problems=1", "eval.samples_per_problem=1"


def learn(batch: Batch) -> Numbers:
    """Updates with so many responses of this length, prompts included."""

    def random(number: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(number)
        return torch.randint(3, 120, (batch.responses, batch.length), generator=generator).tolist()

    size = f"trainer.max_tokens_per_micro_batch={batch.micro_batch}"
    return updates(replace(LAB, group_size=min(batch.group_size, batch.responses)), random, size)


def rollout(batch: Batch) -> Numbers:
    """Sampling of so many responses with this limit, hardly one of which ends before it."""
    number = batch.responses // batch.group_size
    work = replace(LAB, num_problems=number, group_size=batch.group_size, max_tokens=batch.length)
    room = f"rollout.max_model_len={batch.length + ROOM}"
    return sample(work, f"rollout.num_engines={batch.engines}", "rollout.temperature=2", room)


KINDS = {"update": learn, "sampling": rollout}


def timed(batch: Batch) -> Numbers:
    command = [sys.executable, "-m", "benchmarks.performance.scaling", "--batch", json.dumps(asdict(batch))]
    environment = os.environ | {"OMP_NUM_THREADS": str(batch.threads)}
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


def first_response() -> Start:
    """How soon an evaluation of one problem has a response, graded and in its file."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "conclip", "eval", f"paths.outputs={folder}", "name=first", *ONE_RESPONSE]
        began = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None and not any(file.stat().st_size for file in Path(folder).rglob("rows-*.jsonl")):
                time.sleep(0.02)
            seconds = time.monotonic() - began
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Start("conclip eval", seconds, None)


def points(known: Sequence[Point]) -> Iterator[Point]:
    """Measure how time and memory grow, but for what is known (fifteen minutes)."""
    done, threads = {point.batch for point in known}, len(os.sched_getaffinity(0))
    update, sampled = Batch("update", 256, TOKENS // 256, threads), Batch("sampling", 256, 64, threads)
    asked = [replace(update, length=length, responses=TOKENS // length) for length in (64, 256, 1024, 4096)]
    asked += [replace(update, responses=responses) for responses in (32, 512, 2048)]
    asked += [replace(update, micro_batch=tokens) for tokens in (512, 8192, 16_384)]
    asked += [replace(update, threads=1)]
    asked += [replace(sampled, length=length) for length in (64, 256, CONTEXT - ROOM)]
    asked += [replace(sampled, responses=responses) for responses in (8, 256)]
    asked += [replace(sampled, group_size=number) for number in (1, 32)]
    asked += [replace(sampled, engines=2), replace(sampled, threads=1)]
    for batch in asked:
        if batch not in done:
            found = timed(batch)
            yield Point(batch, found["s_per_1000"], found["gib"])


def starts() -> Iterator[Start]:
    """Measure how soon commands are there, each the second time: what is read from disk has been read then."""
    for arguments in COMMANDS:
        start(arguments)
        yield start(arguments)
    first_response()
    yield first_response()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=json.loads, required=True)
    batch = Batch(**parser.parse_args().batch)
    print(json.dumps(KINDS[batch.what](batch)))


if __name__ == "__main__":
    main()
