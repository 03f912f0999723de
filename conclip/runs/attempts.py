"""The attempts of a run: folders `attempt-NNN` in `outputs/<subcommand>/<name>/`, of which `latest` is the newest one."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from conclip.config.schema import BaseConfig
from conclip.errors import UserError
from conclip.runs.files import ATTEMPT, appending, expanded, read_object

MANIFEST = "manifest.json"
"""The file with the run's identity, its starts and its stages (`conclip.runs.manifest`)."""

BEGINS_ANEW = "begins_anew"
"""The key in it of an attempt made with `resume=never`."""


def run_home(subcommand: str, config: BaseConfig) -> Path:
    """Return the folder of a run's attempts."""
    return expanded(config.paths.outputs) / subcommand / config.name


def attempts(home: Path) -> list[Path]:
    """Return the folders of all attempts, newest first."""
    return sorted((p for p in home.glob("attempt-*") if ATTEMPT.fullmatch(p.name)), key=lambda p: -int(p.name[8:]))


def attempts_in(place: Path) -> set[Path]:
    """Return all attempts in a folder of runs or of one run, or the attempt that the folder itself is."""
    if ATTEMPT.fullmatch(place.resolve().name):
        return {place.resolve()}
    return {folder.resolve() for home in (place, *place.iterdir()) for folder in attempts(home)}


def find_attempt(home: Path, identity: str) -> Path | None:
    """Return the newest attempt with this identity; None where there is none."""
    return next((path for path in attempts(home) if read_object(path / MANIFEST).get("identity") == identity), None)


def lenders(home: Path) -> list[Path]:
    """Return the attempts whose stages and rows others of the run may take over, newest first: those since the newest one
    that `resume=never` began. It and what goes on from it take nothing from those before."""
    found = attempts(home)
    first = next((number for number, path in enumerate(found) if read_object(path / MANIFEST).get(BEGINS_ANEW)), len(found))
    return found[: first + 1]


@contextmanager
def exclusive(home: Path) -> Iterator[None]:
    """Let one process at a time choose or make an attempt. Raises UserError where `latest` cannot be a link."""
    latest = home / "latest"
    if latest.is_dir() and not latest.is_symlink():
        raise UserError(f"'{latest}' is a folder, where the link to the newest attempt must be; move it away")
    home.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(home, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def new_attempt(home: Path) -> Path:
    """Make the folder of the next attempt."""
    newest = next(iter(attempts(home)), None)
    folder = home / f"attempt-{1 + (int(newest.name[8:]) if newest else 0):03d}"
    folder.mkdir()
    return folder


def lock(folder: Path) -> IO[str]:
    """Lock an attempt until the file is closed or this process ends, however it ends. Raises UserError when another process
    has locked it."""
    held = appending(folder / "lock", shared=True)  # a copy would be another lock
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        held.close()
        raise UserError(f"'{folder}' is being worked on by another process; wait for it, or choose another name=") from error
    return held


def point_latest(home: Path, folder: Path) -> None:
    """Make `latest` a link to an attempt."""
    link = home / "latest"
    temporary = home / f".latest-{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder.name)
    temporary.replace(link)
