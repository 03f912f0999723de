"""Runs what claims need: each run with each seed is one `conclip run` in a process of its own, and is done once, whichever
claims rest on it."""

import math
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from conclip.claims.config import SUBCOMMAND, Claim, overrides
from conclip.config.compose import quoted
from conclip.config.machine import num_cores
from conclip.errors import MachineFailure
from conclip.processes import PYTHON
from conclip.runs.files import newest_attempt, read_object, write_json
from conclip.runs.identity import digest
from conclip.runs.interrupts import end_with_parent


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of a claim with one seed."""

    claim: str
    run: str
    seed: int
    overrides: tuple[str, ...]
    folder: Path
    """where its attempts are; runs with the same overrides share it"""
    config_dir: Path | None = None
    """a folder with configs of the user's own"""
    config: str | None = None
    """the hash of its config, where that has been composed"""

    @property
    def done_file(self) -> Path:
        return self.folder / "done.json"

    def is_done(self) -> bool:
        """Return whether it ended, with these overrides and, where it is known, this config."""
        ended = read_object(self.done_file) if self.done_file.is_file() else {}
        return ended.get("overrides") == list(self.overrides) and self.config in (None, ended.get("config"))

    @property
    def seconds(self) -> float:
        """Return how long it took, all starts of its last attempt together, as far as that is known."""
        return _as_seconds(read_object(self.done_file).get("seconds"))

    @property
    def attempt(self) -> str:
        """Return the name of its last attempt; before its first one, that of its folder."""
        return newest_attempt(self.folder).resolve().name

    @property
    def times_file(self) -> Path:
        return self.folder / "times.json"

    @property
    def times(self) -> dict[str, float]:
        """Return how long each attempt took, all of its starts together [s]."""
        if not self.times_file.is_file():
            return {self.attempt: self.seconds}  # of before there were such files
        return {attempt: _as_seconds(took) for attempt, took in read_object(self.times_file).items()}


def _as_seconds(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else 0.0


def planned(
    name: str,
    claim: Claim,
    seeds: Sequence[int],
    out: Path,
    *,
    quick: bool,
    config_dir: Path | None = None,
    configs: Mapping[str, str] | None = None,
) -> list[PlannedRun]:
    """Return the runs of a claim, seed by seed, so that what is cut off early has whole seeds. `configs`: what
    `run_hash` returned of each; None, or without a run: not composed."""
    found: list[PlannedRun] = []
    for seed in seeds:
        for run in claim.runs:
            wanted = overrides(claim, run, quick=quick)
            own = digest([*wanted, str(config_dir.resolve())] if config_dir is not None else wanted)[:10]
            folder = out / SUBCOMMAND / f"{own}-{seed}"
            config = (configs or {}).get(run)
            found.append(PlannedRun(name, run, seed, (*wanted, f"seed={seed}"), folder, config_dir, config))
    return found


def mean_seconds(runs: Sequence[PlannedRun]) -> float | None:
    """Return how long the runs that are done took on average; None where none is."""
    took = [run.seconds for run in runs if run.is_done()]
    return fmean(took) if took else None


def carry_out(
    runs: Sequence[PlannedRun],
    out: Path,
    *,
    jobs: int,
    tell: Callable[[PlannedRun, float], None],
    check: Callable[[PlannedRun], None] = lambda run: None,
) -> None:
    """Run what is not done, `jobs` processes side by side, each with its share of the cores. `tell` hears of each that ended
    and of its seconds, with those of earlier starts; `check` may refuse one that is about to start. Raises what it raises,
    and MachineFailure naming the log of a run that failed, after stopping the others."""
    left = iter({run.folder: run for run in in_order(runs, jobs) if not run.is_done()}.values())
    threads = max(1, num_cores() // jobs)
    going: dict[subprocess.Popen[bytes], tuple[PlannedRun, float]] = {}
    try:
        while True:
            while len(going) < jobs and (run := next(left, None)) is not None:
                if run.is_done():
                    continue  # another command has done it meanwhile
                check(run)
                going[_start(run, out, threads)] = (run, time.monotonic())
            if not going:
                return
            ended = [process for process in going if process.poll() is not None]
            for process in ended:
                run, began = going.pop(process)
                seconds = _with_earlier(run, time.monotonic() - began)
                if process.returncode != 0:
                    what = f"{run.claim}: {run.run}, seed {run.seed}"
                    raise MachineFailure(f"{what} ended with code {process.returncode}; see '{_log(run)}'")
                done = {"overrides": list(run.overrides), "config": run.config, "seconds": round(seconds, 1)}
                write_json(run.done_file, done)
                tell(run, seconds)
            time.sleep(0.2)
    finally:
        for process in going:
            process.terminate()
        for process, (run, began) in going.items():
            process.wait()
            _with_earlier(run, time.monotonic() - began)


def _with_earlier(run: PlannedRun, seconds: float) -> float:
    """Add the time of a start to that of earlier ones of the attempt it worked on, and keep it. Returns their sum."""
    attempt, times = run.attempt, run.times
    total = times.get(attempt, 0.0) + seconds
    write_json(run.times_file, times | {attempt: round(total, 1)})
    return total


def in_order(runs: Sequence[PlannedRun], jobs: int) -> list[PlannedRun]:
    """Return runs in the order to start them: `jobs` seeds at a time, so that runs side by side have different seeds, and
    take over what an earlier one measured with the same seed."""
    places = {seed: place for place, seed in enumerate(dict.fromkeys(run.seed for run in runs))}
    names = {name: place for place, name in enumerate(dict.fromkeys(run.run for run in runs))}
    return sorted(runs, key=lambda run: (places[run.seed] // jobs, names[run.run], places[run.seed]))


def _start(run: PlannedRun, out: Path, threads: int) -> subprocess.Popen[bytes]:
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(run.times_file, run.times)  # before done.json goes, which alone has it in folders of earlier versions
    run.done_file.unlink(missing_ok=True)  # of another config: its results are not the newest any more
    place = [f"paths.outputs={quoted(str(out))}", f"paths.stages_from={quoted(str(run.folder.parent))}"]
    own = [f"name={quoted(run.folder.name)}", *place]
    where = ["--config-dir", str(run.config_dir)] if run.config_dir is not None else []
    command = [*PYTHON, "-m", "conclip", SUBCOMMAND, *where, *run.overrides, *own]
    with _log(run).open("ab") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            start_new_session=True,
            preexec_fn=end_with_parent,
        )


def _log(run: PlannedRun) -> Path:
    return run.folder / "output.log"
