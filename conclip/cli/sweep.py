"""The jobs of a sweep: one after another in processes of this host, or wherever a launcher of Hydra's starts them."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conclip.errors import MachineFailure
from conclip.processes import PYTHON
from conclip.runs.interrupts import Interrupted, end_with_parent


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a sweep."""

    name: str
    arguments: list[str]
    """of conclip, its subcommand first"""


MAX_LABEL = 80
"""Longest name of what a job has of its own; a folder is called by it."""


def job_names(names: Sequence[str], combinations: Sequence[Sequence[str]]) -> list[str]:
    """Return a name for each job of a sweep: that of its config, and the overrides that it does not share with all jobs
    (`mine-seed=0`), so that a sweep over more values of the same keys goes on with the jobs of a shorter one. Where those
    make no plain, short and different names, its number. `combinations`: the overrides of each job."""
    from conclip.config.rules import MAX_NAME_BYTES  # noqa: PLC0415

    shared = set(combinations[0]).intersection(*combinations)
    own = [[o for o in overrides if o not in shared and not o.startswith("name=")] for overrides in combinations]
    labels = ["-".join(map(_label, overrides)) for overrides in own]
    made = [f"{name}-{label}" if label else name for name, label in zip(names, labels, strict=True)]
    are_plain = all(re.fullmatch(rf"[\w.+=-]{{0,{MAX_LABEL}}}", label) for label in labels)
    if len(set(made)) == len(made) and are_plain and all(len(name.encode()) <= MAX_NAME_BYTES for name in made):
        return made
    return [f"{name}-{number}" for number, name in enumerate(names)]


def _label(override: str) -> str:
    """Return an override without the groups that its key stands in: `num_steps=3`."""
    key, _, value = override.partition("=")
    return f"{re.split(r'[./@]', key.lstrip('+~'))[-1]}={value}"


def run_here(jobs: Sequence[Job]) -> None:
    """Run jobs one after another. The first that fails ends the sweep, with its exit code."""
    for job in jobs:
        if code := _run(job):
            sys.exit(code)


def launch(jobs: Sequence[Job], choices: Sequence[str], folder: Path, config_dir: str | None) -> None:
    """Have a launcher of Hydra's run the jobs. `choices`: the overrides that select and configure it, of the command line
    alone, since launchers run commands. `folder`: where it keeps files of its own. `config_dir`: a folder with launchers of
    the user's. Raises MachineFailure naming a job that failed, where the others run to their end, or what the launcher
    says."""
    from hydra import main as hydra_main  # noqa: PLC0415

    from conclip.config.compose import quoted  # noqa: PLC0415

    def run(config: Mapping[str, Any]) -> None:
        job = jobs[config["job"]]
        if code := _run(job):
            raise MachineFailure(f"job {job.name} ended with exit code {code}; the launcher's files are in '{folder}'")

    numbers = ",".join(map(str, range(len(jobs))))
    quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null"]
    where = ["--config-dir", config_dir] if config_dir is not None else []
    sys.argv[1:] = ["--multirun", *where, f"+job={numbers}", f"hydra.sweep.dir={quoted(str(folder))}", *quiet, *choices]
    os.environ["HYDRA_MAIN_MODULE"] = __name__
    names = ", ".join(job.name for job in jobs)
    sys.stderr.write(f"Hydra's launcher runs {names}, and keeps its files in '{folder}'\n")
    try:
        hydra_main(version_base="1.3", config_path=None)(run)()
    except MachineFailure:
        raise
    except Exception as error:  # a launcher is a stranger's code
        said = " ".join(str(error).split()) or type(error).__name__
        raise MachineFailure(f"Hydra's launcher did not run the jobs: {said}") from error
    sys.stderr.write(f"done: {names}\n")


def _begin() -> None:
    """Make a job end with this process, and leave to it what schedulers tell all processes before they stop them (USR1 and
    USR2, which would end those that do not expect them)."""
    end_with_parent()
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _run(job: Job) -> int:
    """Run one job in a process of its own: the engine keeps global state. Returns its exit code."""
    # The job gets its own session, so that each signal reaches it once, from here. It does not outlive this process.
    command = [*PYTHON, "-m", "conclip", *job.arguments]
    process = subprocess.Popen(command, start_new_session=True, preexec_fn=_begin)
    interrupted: Interrupted | None = None
    while True:
        try:
            code = process.wait()
            break
        except Interrupted as stopped:
            interrupted = stopped
            process.send_signal(stopped.signal_number)
    if interrupted is not None:
        raise interrupted
    if code < 0:
        raise MachineFailure(f"job {job.name} was killed by {signal.Signals(-code).name}; the same command resumes the run")
    return code
