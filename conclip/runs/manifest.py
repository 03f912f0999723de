"""The stages of a run and their manifest: each runs once, is recorded, and is skipped while its inputs are unchanged.

`manifest.json` has for each stage the hashes of its inputs and output files, its main numbers, sampled tokens and wall time.
A stage counts as done when its inputs are the same and its files are intact. One of another attempt of the same run, or of
a run in `paths.stages_from`, is reused by hard links or copies.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from conclip.errors import UserError
from conclip.runs.attempts import MANIFEST
from conclip.runs.checked import Count, Finite
from conclip.runs.environment import changed_versions
from conclip.runs.files import break_links, check_content, is_inside, link, read_object
from conclip.runs.identity import content_files, digest, path_hash
from conclip.runs.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOutput:
    """The outcome of running a stage."""

    outputs: Sequence[str]
    """Files and folders that it made, relative to the run folder."""
    numbers: Mapping[str, float] = field(default_factory=dict[str, float])
    num_tokens: int
    """Tokens sampled."""
    wall_s: float | None = None
    """The stage's own measure of its time; None to use the time of this start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """The record of one stage in `manifest.json`."""

    key: str
    """The hash of all inputs."""
    inputs: dict[str, str]
    outputs: dict[str, str]
    """The hash of each output file, by its path relative to the run folder."""
    numbers: dict[str, Finite]
    num_tokens: Count
    wall_s: Finite
    finished: str
    made_by: dict[str, str]
    """The versions of the packages and of the project's code that ran it."""
    taken_from: str | None = None
    """The attempt that ran it, if it was another one; "NAME/ATTEMPT" if it was one of another run."""

    @property
    def mean_tokens(self) -> float:
        """The mean length of its responses [tokens]; 0 where nothing tells it."""
        return self.numbers.get("mean_tokens") or self.num_tokens / self.numbers["num_responses"]

    @property
    def is_of_one_start(self) -> bool:
        """Whether tokens and time are those of all responses. Probes and evaluations that went on, or took responses over,
        have those of their last start."""
        if not self.numbers.get("num_responses"):
            return True  # it samples nothing
        return self.num_tokens > 0.99 * self.mean_tokens * self.numbers["num_responses"]


_STAGE = TypeAdapter(StageRecord)


class Pipeline:
    """The runner and cache of the stages of one run."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def run_stage(self, name: str, inputs: Mapping[str, Any], work: Callable[[], StageOutput]) -> StageRecord:
        """Run a stage unless it is done already, and return its record. The stage's results are the files it names."""
        hashes, key = input_hashes(inputs), stage_key(name, inputs)
        before = read_stages(self._run.folder).get(name)
        record = self._done(name, before, key) or self._reuse(name, key)
        if record is not None:
            source = f" in {record.taken_from}" if record.taken_from else ""
            self._run.say(f"{name}: done before{source} ({record.wall_s:.0f} s), taken over")
            if changed := changed_versions(record.made_by, self._run.versions):
                lent = " paths.stages_from=null" if "/" in (record.taken_from or "") else ""
                self._run.warn(
                    f"{name} was done with another version of {', '.join(changed)}; resume=never{lent} does it anew"
                )
            return record
        for path in before.outputs if before is not None else ():
            break_links(self._run.folder / path)
        self._run.begin(name)
        began = time.monotonic()
        output = work()
        record = StageRecord(
            key=key,
            inputs=hashes,
            outputs=self._hashes(output.outputs),
            numbers={name: number for name, number in output.numbers.items() if math.isfinite(number)},
            num_tokens=output.num_tokens,
            wall_s=round(time.monotonic() - began if output.wall_s is None else output.wall_s, 3),
            made_by=self._run.versions,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self._write(name, record)
        return record

    def _hashes(self, outputs: Sequence[str]) -> dict[str, str]:
        """Return the hash of every file, those below folders one by one, so that files which people add to a folder do not
        matter."""
        folder = self._run.folder
        files = [file for path in outputs for file in content_files(folder / path)]
        return {str(file.relative_to(folder)): path_hash(file) for file in files}

    def _done(self, name: str, record: StageRecord | None, key: str) -> StageRecord | None:
        """Return the record of a stage of this attempt if it has these inputs and its files are intact."""
        if record is None or record.key != key:
            return None
        if changed := changed_files(self._run.folder, record):
            self._run.warn(f"{name} was done before, but '{changed[0]}' is not what it left; it is done again")
            return None
        return record

    def _reuse(self, name: str, key: str) -> StageRecord | None:
        """Reuse the stage from the first attempt that has it: link its files here and return its record."""
        for folder in self._run.lending_attempts():
            record = read_stages(folder).get(name)
            if record is None or record.key != key:
                continue
            check_content(folder)
            if changed_files(folder, record):
                continue
            for path in record.outputs:
                link(folder / path, self._run.folder / path)
            self._run.copy_metrics(folder, name)
            record = replace(record, taken_from=self._origin(folder, record.taken_from or folder.name))
            self._write(name, record)
            return record
        return None

    def _origin(self, folder: Path, attempt: str) -> str:
        """Return how this run's records name an attempt that the record of a stage in `folder` names."""
        own = "/" in attempt or folder.parent.resolve() == self._run.home.resolve()
        return attempt if own else f"{folder.parent.name}/{attempt}"

    def _write(self, name: str, record: StageRecord) -> None:
        stages = {key: asdict(value) for key, value in read_stages(self._run.folder).items()}
        self._run.update_manifest(stages=stages | {name: asdict(record)})


def input_hashes(inputs: Mapping[str, Any]) -> dict[str, str]:
    """Return the hash of each input; strings are taken for hashes."""
    return {key: value if isinstance(value, str) else digest(value) for key, value in inputs.items()}


def stage_key(name: str, inputs: Mapping[str, Any]) -> str:
    """Return the hash of a stage's name and inputs."""
    return digest([name, input_hashes(inputs)])


def read_stages(folder: Path) -> dict[str, StageRecord]:
    """Return the stages recorded in a run folder; none when it has no manifest. Records of another version are left out.
    Raises UserError when a stage names files outside of the folder: they would be replaced or removed."""
    recorded = read_object(folder / MANIFEST).get("stages", {})
    stages: dict[str, StageRecord] = {}
    for name, record in recorded.items() if isinstance(recorded, dict) else ():
        with suppress(ValidationError):
            stages[str(name)] = _STAGE.validate_python(record)
    for stage in stages.values():
        if outside := [path for path in stage.outputs if not is_inside(path)]:
            raise UserError(
                f"'{folder / MANIFEST}' names '{outside[0]}', which lies outside of the run folder; do not use it"
            )
    return stages


def changed_files(folder: Path, record: StageRecord) -> list[str]:
    """Return the outputs of a stage that are missing or changed."""
    return [path for path, expected in record.outputs.items() if path_hash(folder / path) != expected]
