"""The stages of a run and their manifest: each is done once, recorded, and skipped while nothing it rests on has changed.

`manifest.json` has for each stage the hashes of its inputs, the files it made with theirs, its main numbers, sampled tokens
and wall time. A stage counts as done when its inputs are the same and its files are unharmed, in this attempt or, by hard
links or copies, in another one of the same run.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from conclip.files import break_links, link
from conclip.identity import digest, path_hash
from conclip.runlog import MANIFEST, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What doing a stage gave."""

    outputs: Sequence[str]
    """Files and folders it made, relative to the run folder."""
    numbers: Mapping[str, float] = field(default_factory=dict[str, float])
    num_tokens: int
    """Sampled."""
    wall_s: float | None = None
    """Where the stage knows better than the time of this start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """One stage in `manifest.json`."""

    key: str
    """Hash of all inputs."""
    inputs: dict[str, str]
    outputs: dict[str, str]
    """Path relative to the run folder -> hash of its content."""
    numbers: dict[str, float]
    num_tokens: int
    wall_s: float
    finished: str
    made_by: dict[str, str]
    """Versions of the packages and of the project's code that did it."""
    taken_from: str | None = None
    """The attempt that did it, when it was another one."""


class Pipeline:
    """Does the stages of one run, in the order they are asked for."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def do(self, name: str, inputs: Mapping[str, Any], work: Callable[[], Work]) -> StageRecord:
        """The record of a stage, done now unless it is done already. Its results are the files it names."""
        hashes, key = input_hashes(inputs), stage_key(name, inputs)
        record = self.done(name, key) or self._adopt(name, key)
        if record is not None:
            source = f" in {record.taken_from}" if record.taken_from else ""
            self._run.say(f"{name}: done before{source} ({record.wall_s:.0f} s), taken over")
            if record.made_by != self._run.versions:
                changed = sorted(k for k, v in self._run.versions.items() if record.made_by.get(k) != v)
                self._run.warn(f"{name} was done with another version of {', '.join(changed)}; resume=never does it anew")
            return record
        if before := read_stages(self._run.folder).get(name):
            for path in before.outputs:
                break_links(self._run.folder / path)
        self._run.begin(name)
        began = time.monotonic()
        done = work()
        record = StageRecord(
            key=key,
            inputs=hashes,
            outputs={path: path_hash(self._run.folder / path) for path in done.outputs},
            numbers=dict(done.numbers),
            num_tokens=done.num_tokens,
            wall_s=round(time.monotonic() - began if done.wall_s is None else done.wall_s, 3),
            made_by=self._run.versions,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self._write(name, record)
        return record

    def done(self, name: str, key: str) -> StageRecord | None:
        """The record of a stage of this attempt that has these inputs and whose files are unharmed."""
        record = read_stages(self._run.folder).get(name)
        return record if record is not None and record.key == key and unharmed(self._run.folder, record) else None

    def _adopt(self, name: str, key: str) -> StageRecord | None:
        """The same from another attempt of this run, newest first, its files linked here."""
        for folder in self._run.other_attempts():
            record = read_stages(folder).get(name)
            if record is None or record.key != key or not unharmed(folder, record):
                continue
            for path in record.outputs:
                link(folder / path, self._run.folder / path)
            self._run.adopt_metrics(folder, name)
            record = replace(record, taken_from=record.taken_from or folder.name)
            self._write(name, record)
            return record
        return None

    def _write(self, name: str, record: StageRecord) -> None:
        stages = {key: asdict(value) for key, value in read_stages(self._run.folder).items()}
        self._run.update_manifest(stages=stages | {name: asdict(record)})


def input_hashes(inputs: Mapping[str, Any]) -> dict[str, str]:
    """Inputs that are hashes already stay, all others are hashed."""
    return {key: value if isinstance(value, str) else digest(value) for key, value in inputs.items()}


def stage_key(name: str, inputs: Mapping[str, Any]) -> str:
    """Hash of a stage and everything it rests on."""
    return digest([name, input_hashes(inputs)])


def read_stages(folder: Path) -> dict[str, StageRecord]:
    """Stages recorded in a run folder; none when it has no manifest, or one of another version."""
    try:
        stages = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["stages"]
        return {name: StageRecord(**record) for name, record in stages.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def unharmed(folder: Path, record: StageRecord) -> bool:
    """Whether every file a stage made is as it was."""
    paths = {folder / path: known for path, known in record.outputs.items()}
    return all(path.exists() and path_hash(path) == known for path, known in paths.items())
