"""Do to a run what machines do to runs, and see what comes of it; writes the table of docs/reliability.md.

    make faults                               # every fault (about half an hour)
    make faults ARGS="--only disk-full ..."   # some; nothing is written to docs/ then

All faults strike a small `train-phase2` (`benchmarks/kills.py` has the command) after its third step, for real: signals,
SIGKILL, a full tmpfs, immutable folders, address-space limits. Where the run does not end well by itself, the cause is
removed, the same command is given again, and everything it leaves is compared with an undisturbed run. Some faults need
root; those are said to be left out without it.
"""

import argparse
import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil
from kills import CASES, ENVIRONMENT, RUN, differences, finish, folder_of, left_by, start
from pages import DOCS, into_page

CASE = "train-phase2"
SETTLED_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One line of the table."""

    happens: str
    code: int | None
    """Exit code of the disturbed run; None for one that was killed."""
    same: bool
    """Whether the run, or its second start, left what an undisturbed one leaves."""


class LeftOut(RuntimeError):
    """This machine does not allow the fault."""


class Bench:
    """A place for runs, and what an undisturbed one left."""

    def __init__(self, place: Path) -> None:
        self.place = place
        finish(start(CASE, place / "alone"))
        self.alone = left_by(folder_of(CASE, place / "alone"))

    def new(self, name: str) -> Path:
        here = self.place / name
        here.mkdir()
        return here

    def running(self, here: Path, *more: str) -> subprocess.Popen[str]:
        """A run that has done three steps."""
        process = start(CASE, here, *more)
        metrics = folder_of(CASE, here) / "metrics.jsonl"
        deadline = time.monotonic() + SETTLED_S
        while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no third step:\n{process.communicate()[0][-3000:]}")
            time.sleep(0.01)
        return process

    def again(self, here: Path, *more: str) -> bool:
        """Give the command again; whether everything is as if nothing had been."""
        finish(start(CASE, here, *more))
        return self.same(here)

    def same(self, here: Path, *, but: tuple[str, ...] = ()) -> bool:
        attempts = sorted((here / "outputs" / CASE / RUN).glob("attempt-*"))
        differing = [name for name in differences(self.alone, left_by(attempts[-1])) if not name.endswith(but or ("\0",))]
        if differing:
            print(f"    differs: {differing}")
        return not differing


def last_line(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def stopped_by(number: signal.Signals) -> Callable[[Bench, Path], Outcome]:
    def fault(bench: Bench, here: Path) -> Outcome:
        process = bench.running(here, "trainer.save_every=100")
        began = time.monotonic()
        process.send_signal(number)
        said = finish(process, 128 + number)
        assert time.monotonic() - began < 20
        steps = len((folder_of(CASE, here) / "metrics.jsonl").read_text().splitlines())
        assert f"step {steps} is saved" in said, said
        happens = "stops within the step and saves its state"
        return Outcome(happens=happens, code=process.returncode, same=bench.again(here))

    return fault


def children(process: subprocess.Popen[str], part: str) -> list[psutil.Process]:
    """Child processes with a word in their command line; there must be some."""
    found = [c for c in psutil.Process(process.pid).children(recursive=True) if part in " ".join(c.cmdline())]
    assert found, part
    return found


ENGINE = ("config.yaml", "README.md", "manifest.json")
"""Files that name the kind of engine."""


def goes_on(
    bench: Bench, here: Path, process: subprocess.Popen[str], happens: str, sign: str, *, but: tuple[str, ...] = ()
) -> Outcome:
    """Of a run that must end by itself as if nothing had been, with a sign in its log that there was something."""
    finish(process)
    assert sign in (folder_of(CASE, here) / "run.log").read_text(), sign
    return Outcome(happens=happens, code=0, same=bench.same(here, but=but))


def engine_killed(bench: Bench, here: Path) -> Outcome:
    process = bench.running(here, "rollout.engine=child_process")
    for child in children(process, "spawn_main"):
        child.kill()
    return goes_on(bench, here, process, "restarted; its unit of work is repeated", "started again", but=ENGINE)


def engine_memory(bench: Bench, here: Path) -> Outcome:
    process = bench.running(here, "rollout.engine=child_process")
    for child in children(process, "spawn_main"):
        resource.prlimit(child.pid, resource.RLIMIT_AS, (child.memory_info().vms, -1))
    return goes_on(bench, here, process, "restarted; its unit of work is repeated", "started again", but=ENGINE)


def graders_killed(bench: Bench, here: Path) -> Outcome:
    process = bench.running(here)
    for worker in children(process, "grading.worker"):
        worker.kill()
    return goes_on(bench, here, process, "replaced; the answers are graded again", "grader worker died")


def killed_run(bench: Bench, here: Path) -> Path:
    """The folder of a run that was killed after its third step."""
    process = bench.running(here)
    process.kill()
    process.communicate()
    return folder_of(CASE, here)


def checkpoint_damaged(bench: Bench, here: Path) -> Outcome:
    folder = killed_run(bench, here)
    newest = max(path for path in folder.glob("checkpoints/phase2/step-*") if path.suffix != ".part")
    weights = newest / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 255
    weights.write_bytes(content)
    said = finish(start(CASE, here))
    assert f"'{newest.relative_to(here)}' is damaged" in said, said
    return Outcome(happens="reported; an earlier one is used", code=None, same=bench.same(here))


def lines_cut(bench: Bench, here: Path) -> Outcome:
    folder = killed_run(bench, here)
    for name in ("metrics.jsonl", "probe_rows-probe.jsonl"):
        with (folder / name).open("r+b") as file:
            file.truncate((folder / name).stat().st_size - 7)
    return Outcome(happens="the cut line is dropped and produced again", code=None, same=bench.again(here))


def nan_gradient(bench: Bench, here: Path) -> Outcome:
    poisoned = (
        "import sys, torch; from conclip.training.learner import Learner; step, calls = Learner._step, []\n"
        "def poison(self, optimizer, module):\n"
        "    calls.append(0)\n"
        "    if len(calls) == 8: next(module.parameters()).grad.fill_(float('nan'))\n"
        "    return step(self, optimizer, module)\n"
        "Learner._step = poison\n"
        "from conclip.cli.main import main; main()"
    )
    subcommand, *overrides = CASES[CASE]
    command = [sys.executable, "-c", poisoned, subcommand, *overrides, f"name={RUN}", "logger.display=plain"]
    process = subprocess.run(command, cwd=here, env=ENVIRONMENT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    metrics = [json.loads(line) for line in (folder_of(CASE, here) / "metrics.jsonl").open()]
    skipped = sum(row["optim/skipped_updates"] for row in metrics)
    return Outcome(happens="the update is skipped and counted; the run continues", code=0, same=skipped == 1)


@contextmanager
def small_disk(here: Path, megabytes: int) -> Iterator[Callable[[int], None]]:
    """`outputs/` on a disk of its own; call what is given to change its size."""
    outputs = here / "outputs"
    outputs.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", outputs]).returncode:
        raise LeftOut("needs root, to mount a small disk")

    def resize(size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}m", outputs], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", outputs], check=True)


def disk_full(bench: Bench, here: Path) -> Outcome:
    with small_disk(here, 50) as resize:
        said = finish(start(CASE, here), 3)
        assert "no space left" in last_line(said), said
        kept = [path.name for path in folder_of(CASE, here).glob("checkpoints/phase2/step-*") if path.suffix != ".part"]
        assert kept, "no checkpoint is left"
        resize(700)
        return Outcome(happens="stops; the last checkpoint remains", code=3, same=bench.again(here))


def read_only(bench: Bench, here: Path) -> Outcome:
    process = bench.running(here)
    folder = folder_of(CASE, here)
    frozen = [folder, folder / "checkpoints/phase2"]
    if subprocess.run(["chattr", "+i", *frozen]).returncode:
        process.kill()
        raise LeftOut("needs root and a file system with immutable files")
    try:
        said = finish(process, 3)
        assert "no permission" in last_line(said), said
    finally:
        subprocess.run(["chattr", "-i", *frozen], check=True)
    return Outcome(happens="stops; the last checkpoint remains", code=3, same=bench.again(here))


def folder_removed(bench: Bench, here: Path) -> Outcome:
    process = bench.running(here)
    folder_of(CASE, here).rename(here / "removed")  # at once, while a checkpoint may be on its way into it
    said = finish(process, 3)
    assert "is gone" in last_line(said), said
    return Outcome(happens="stops within the step; the next start begins from scratch", code=3, same=bench.again(here))


def learner_memory(bench: Bench, here: Path) -> Outcome:
    process = bench.running(here)
    resource.prlimit(process.pid, resource.RLIMIT_AS, (psutil.Process(process.pid).memory_info().vms, -1))
    said = finish(process, 3)
    assert "out of memory" in last_line(said), said
    return Outcome(happens="stops; the last checkpoint remains", code=3, same=bench.again(here))


def two_runs(bench: Bench, here: Path) -> Outcome:
    first = bench.running(here)
    said = finish(start(CASE, here), 2)
    assert "another process" in last_line(said), said
    finish(first)
    return Outcome(happens="the second is refused; the first continues", code=2, same=bench.same(here))


def clock_jumps(bench: Bench, here: Path) -> Outcome:
    found = find_spec("libfaketime")
    if found is None or found.origin is None:
        raise LeftOut("needs the package libfaketime")
    library = next(Path(found.origin).parent.rglob("libfaketime*.so*"))
    clock = here / "clock"
    clock.write_text("+0")
    before = dict(ENVIRONMENT)
    ENVIRONMENT.update(
        LD_PRELOAD=str(library), FAKETIME_TIMESTAMP_FILE=str(clock), FAKETIME_NO_CACHE="1", DONT_FAKE_MONOTONIC="1"
    )
    try:
        process = bench.running(here)
        clock.write_text("-40d")
        return goes_on(bench, here, process, "nothing: no decision depends on the time of day", "step   8")
    finally:
        ENVIRONMENT.clear()
        ENVIRONMENT.update(before)


FAULTS: dict[str, tuple[str, Callable[[Bench, Path], Outcome]]] = {
    "sigterm": ("SIGTERM (preemption)", stopped_by(signal.SIGTERM)),
    "sigint": ("SIGINT (Ctrl-C)", stopped_by(signal.SIGINT)),
    "engine-killed": ("engine's process killed (`rollout.engine=child_process`)", engine_killed),
    "engine-memory": ("engine's process out of memory (`rollout.engine=child_process`)", engine_memory),
    "graders-killed": ("all grader workers killed", graders_killed),
    "nan-gradient": ("NaN gradient in one update", nan_gradient),
    "checkpoint-damaged": ("killed, and a byte of the newest checkpoint flipped", checkpoint_damaged),
    "lines-cut": ("killed, and the last lines of metrics and rows cut", lines_cut),
    "learner-memory": ("learner, or engine in process, out of memory", learner_memory),
    "disk-full": ("disk full", disk_full),
    "read-only": ("run folder made read-only", read_only),
    "folder-removed": ("run folder removed", folder_removed),
    "two-runs": ("the same command started twice", two_runs),
    "clock-jumps": ("clock set back by 40 days", clock_jumps),
}


def table(outcomes: dict[str, Outcome | str]) -> str:
    lines = ["| fault | what happens | exit code | then |", "|---|---|---|---|"]
    for name, outcome in outcomes.items():
        title = FAULTS[name][0]
        if isinstance(outcome, str):
            lines.append(f"| {title} | {outcome} | | |")
            continue
        code = "killed" if outcome.code is None else str(outcome.code)
        again = "gives the undisturbed result" if outcome.code in (0, 2) else "the same command gives the undisturbed result"
        then = "one update fewer; the rest is done" if name == "nan-gradient" else again
        lines.append(f"| {title} | {outcome.happens} | {code} | {then if outcome.same else 'DIFFERS'} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS))
    arguments = parser.parse_args()
    outcomes: dict[str, Outcome | str] = {}
    with tempfile.TemporaryDirectory() as place:
        bench = Bench(Path(place))
        for name in arguments.only:
            try:
                outcomes[name] = FAULTS[name][1](bench, bench.new(name))
            except LeftOut as why:
                outcomes[name] = f"not tried: {why}"
            except (AssertionError, RuntimeError) as wrong:
                outcomes[name] = f"FAILED: {' '.join(str(wrong).split())[-300:]}"
            print(f"{name}: {outcomes[name]}", flush=True)
    text = table(outcomes)
    print(text)
    if len(arguments.only) == len(FAULTS):
        into_page(DOCS / "reliability.md", "faults", text)
    good = [not o.startswith("FAILED") if isinstance(o, str) else o.same for o in outcomes.values()]
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
