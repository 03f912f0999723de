"""Kill runs at random moments, start them again, and compare everything they leave with an uninterrupted run.

    make kills                                 # 40 kills: 10 each of probe, train-phase2, eval and two-phase (about an hour)
    make kills ARGS="--kills 1 --only eval"    # fewer

Each kill is SIGKILL, at a moment drawn between the command's start and the time the uninterrupted run took; those of
train-phase2 strike while a checkpoint is being written, and every other two-phase run is killed in its second start as well.
Then the same command runs to its end. Everything but durations, starts and versions of the engine's weights must be the
same: metrics, rows, pass rates, transcripts, chosen problems, weights, results, model cards, pictures, and the manifest's
hashes and counts. No process may be left over.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from conclip.runs.identity import path_hash

RUN = "run"
CASES = {
    "probe": ("probe", "debug=probe"),
    "train-phase2": ("train-phase2", "debug=train", "phase.num_steps=8", "trainer.save_every=1"),
    "eval": ("eval", "debug=eval", "eval.temperatures=[0,1]", "rollout.unit_responses=8"),
    "two-phase": ("two-phase", "debug=two_phase"),
}
PER_RUN = ("environment.json", "report.html", "run.log", "lock")
"""What says when and by which starts a run was made."""
OF_STAGES = ("key", "inputs", "outputs", "numbers")
"""What the manifest says of a stage, apart from when, by what and in how many starts it was done."""
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
GONE_S = 15.0
"""So long the children of a killed run may take to notice."""


def start(case: str, place: Path, *more: str) -> subprocess.Popen[str]:
    """A command of the table, in a folder of its own."""
    place.mkdir(parents=True, exist_ok=True)
    subcommand, *overrides = CASES[case]
    command = [sys.executable, "-m", "conclip", subcommand, *overrides, f"name={RUN}", "logger.display=plain", *more]
    return subprocess.Popen(command, cwd=place, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str], expected: int = 0) -> str:
    """What a command said; it must end with the expected code."""
    said, _ = process.communicate()
    if process.returncode != expected:
        raise RuntimeError(f"{process.args} ended with {process.returncode}, not {expected}:\n{said[-3000:]}")
    return said


def folder_of(case: str, place: Path) -> Path:
    return place / "outputs" / case / RUN / "attempt-001"


def left_by(folder: Path) -> dict[str, Any]:
    """Everything a run leaves that must not depend on interruptions, by file."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in PER_RUN]
    return {str(path.relative_to(folder)): content(path) for path in files}


def content(path: Path) -> Any:
    if path.name == "manifest.json":
        stages = json.loads(path.read_text(encoding="utf-8"))["stages"]
        return {name: {key: stage[key] for key in OF_STAGES} for name, stage in stages.items()}
    if path.suffix == ".jsonl":
        return [kept(json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return path.read_text(encoding="utf-8") if path.name == "README.md" else path_hash(path)


def kept(line: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in line.items() if not k.startswith(("time/", "perf/")) and k != "policy_version"}


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Files that are not the same."""
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


def leftovers(children: list[psutil.Process]) -> int:
    """Processes of a dead run that do not end by themselves."""
    return len(psutil.wait_procs(children, timeout=GONE_S)[1])


def killed(process: subprocess.Popen[str], strike: Callable[[], bool]) -> tuple[bool, int]:
    """Kill a run once `strike` says so; whether it was still alive, and how many processes it left over."""
    while process.poll() is None and not strike():
        time.sleep(0.001)
    alive = process.poll() is None
    children = psutil.Process(process.pid).children(recursive=True) if alive else []
    process.kill()
    process.communicate()
    return alive, leftovers(children)


def while_saving(folder: Path, after: int) -> Callable[[], bool]:
    """True while a checkpoint is being written, from the `after`-th one on."""
    seen: set[str] = set()

    def strike() -> bool:
        seen.update(path.name for path in folder.glob("checkpoints/*/step-*.part"))
        return len(seen) >= after

    return strike


def at(moment: float) -> Callable[[], bool]:
    return lambda: time.monotonic() > moment


def log(text: str) -> None:
    print(text, flush=True)


def run_case(case: str, place: Path, kills: int, seed: int) -> Iterator[dict[str, Any]]:
    """One uninterrupted run, then so many killed ones: a row for each of these."""
    moments = random.Random(f"{seed} {case}")
    began = time.monotonic()
    finish(start(case, place / "alone"))
    duration = time.monotonic() - began
    alone = left_by(folder_of(case, place / "alone"))
    log(f"{case}: uninterrupted {duration:.0f} s, {len(alone)} files")
    number = 0
    while number < kills:
        here = place / f"killed-{number}"
        began, after = time.monotonic(), moments.uniform(0, duration)
        process = start(case, here)
        saving = case == "train-phase2"
        strike = while_saving(folder_of(case, here), moments.randint(1, 9)) if saving else at(began + after)
        alive, left = killed(process, strike)
        half_written = list(folder_of(case, here).glob("checkpoints/*/step-*.part"))
        if not alive or (saving and not half_written):
            log(f"{case}: ended, or its checkpoint was whole, before it was killed; drawn anew")
            shutil.rmtree(here)
            continue
        moment = time.monotonic() - began
        if case == "two-phase" and number % 2:
            left += killed(start(case, here), at(time.monotonic() + moments.uniform(0, duration)))[1]
        finish(start(case, here))
        differing = differences(alone, left_by(folder_of(case, here)))
        what = "a checkpoint half written" if saving else "anywhere"
        result = f"DIFFERS in {differing}" if differing else "same"
        log(f"{case}: killed at {moment:.1f} s ({what}): {result}{f', {left} processes left over' if left else ''}")
        yield {"case": case, "moment": moment, "of": duration, "differing": differing, "leftovers": left}
        number += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="of each command")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="commands")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, help="append one JSON line a kill here")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        for case in arguments.only:
            for row in run_case(case, Path(place) / case, arguments.kills, arguments.seed):
                rows.append(row)
                if arguments.out:
                    with arguments.out.open("a") as out:
                        out.write(json.dumps(row) + "\n")
    good = sum(not row["differing"] and not row["leftovers"] for row in rows)
    print(f"{good} of {len(rows)} the same as the uninterrupted run")
    sys.exit(good != len(rows))


if __name__ == "__main__":
    main()
