"""Train on the lab for an hour and watch memory, processes and file handles.

    make soak                        # an hour; writes docs/reliability/soak.png and the text of docs/reliability.md
    make soak ARGS="--minutes 2"     # a trial; nothing is written to docs/

One `train-phase2` of endless steps, engine and grader up the whole time, a checkpoint every fifth step, stopped by SIGTERM
at the end. After each step: resident memory of the run and its children together, its open files, threads and children.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import matplotlib
import psutil
from pages import DOCS, into_page

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COMMAND = (
    "train-phase2",
    "name=soak",
    "phase.num_steps=1000000",
    "phase.stop_accuracy_drop=1",
    "optim.warmup_fraction=0",
    "optim.min_lr_fraction=1",
    "optim.policy_lr=1e-7",  # the same kind of work in the last step as in the first
    "optim.critic_lr=1e-7",
    "trainer.validate_every=10",
    "data.validation.chain.num_problems=20",
    "logger.display=plain",
)
SETTLED_STEPS = 20
LARGEST_GROWTH = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The run and its children after one step."""

    step: int
    minutes: float
    memory_mib: float
    num_files: int
    num_threads: int
    num_children: int


def look(process: psutil.Process, step: int, began: float) -> Look:
    children = process.children(recursive=True)
    return Look(
        step=step,
        minutes=(time.monotonic() - began) / 60,
        memory_mib=sum(p.memory_info().rss for p in (process, *children)) / 2**20,
        num_files=process.num_fds(),
        num_threads=process.num_threads(),
        num_children=len(children),
    )


def soak(place: Path, minutes: float) -> tuple[list[Look], int]:
    """A look after each step, and the number of processes that were left over."""
    command = [sys.executable, "-m", "conclip", *COMMAND]
    run = subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL)
    process, metrics = psutil.Process(run.pid), place / "outputs/train-phase2/soak/attempt-001/metrics.jsonl"
    looks: list[Look] = []
    began = time.monotonic()
    while (time.monotonic() - began) / 60 < minutes:
        assert run.poll() is None, "the run ended"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        if lines and (step := json.loads(lines[-1])["step"]) > (looks[-1].step if looks else 0):
            looks.append(look(process, step, began))
            if len(looks) % 50 == 1:
                print(looks[-1], flush=True)
        time.sleep(0.05)
    children = process.children(recursive=True)
    run.send_signal(signal.SIGTERM)
    code = run.wait(60)
    assert code == 128 + signal.SIGTERM, code
    _, left = psutil.wait_procs(children, timeout=15)
    return looks, len(left)


def sentence(looks: list[Look], left: int) -> tuple[str, bool]:
    """What was found, and whether it holds."""
    settled = [one for one in looks if one.step > SETTLED_STEPS]
    first, last = settled[: max(1, len(settled) // 10)], settled[-max(1, len(settled) // 10) :]
    before, after = fmean(one.memory_mib for one in first), fmean(one.memory_mib for one in last)
    peak = max(one.memory_mib for one in settled)
    base = looks[SETTLED_STEPS - 1].memory_mib
    same = {name: {getattr(one, name) for one in settled} for name in ("num_files", "num_threads", "num_children")}
    ranges = ", ".join(f"{name.removeprefix('num_')} {min(found)} to {max(found)}" for name, found in same.items())
    text = (
        f"{looks[-1].minutes:.0f} minutes, {looks[-1].step} steps (2-core x86-64 CPU, `make soak`): resident memory of the "
        f"run and its children {base:.0f} MiB after step {SETTLED_STEPS}, {before:.0f} in the first and {after:.0f} in the "
        f"last tenth of the steps after it ({100 * (after / before - 1):+.1f} %), at most {peak:.0f} "
        f"({100 * (peak / base - 1):+.1f} % against step {SETTLED_STEPS}); {ranges}; {left} processes "
        "left over after SIGTERM."
    )
    grows = [found for name, found in same.items() if getattr(last[-1], name) > max(getattr(one, name) for one in first)]
    return text, peak / base - 1 < LARGEST_GROWTH and not left and not grows


def picture(looks: list[Look], path: Path) -> None:
    figure, (memory, counts) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    minutes = [one.minutes for one in looks]
    memory.plot(minutes, [one.memory_mib for one in looks])
    memory.set_ylim(0, 1.15 * max(one.memory_mib for one in looks))
    memory.set_ylabel("resident memory, children included [MiB]")
    for name in ("num_files", "num_threads", "num_children"):
        counts.plot(minutes, [getattr(one, name) for one in looks], label=name.removeprefix("num_"))
    counts.set_ylim(bottom=0)
    counts.legend()
    for axes in (memory, counts):
        axes.set_xlabel("minutes")
        axes.grid(alpha=0.25)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        looks, left = soak(Path(place), arguments.minutes)
    text, holds = sentence(looks, left)
    print(text)
    if arguments.minutes >= 60:
        picture(looks, DOCS / "reliability" / "soak.png")
        into_page(DOCS / "reliability.md", "soak", f"{text}\n\n![memory and handles over an hour](reliability/soak.png)")
    sys.exit(not holds)


if __name__ == "__main__":
    main()
