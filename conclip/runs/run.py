"""The run folder, the log and the messages of a run.

`outputs/<subcommand>/<name>/attempt-NNN/` is made only after validation has passed. It contains everything that traces a
number back to the response, the config and the code. A run with the same identity (result-relevant config and inputs) as an
earlier attempt resumes in its folder.
"""

import json
import logging
import math
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.table import Table

from conclip.config.schema import BaseConfig
from conclip.errors import MACHINE_ERRORS, UserError, check_folder
from conclip.redact import hide_in, learn_secrets, terminal_safe
from conclip.runs.attempts import (
    BEGINS_ANEW,
    MANIFEST,
    attempts_in,
    exclusive,
    find_attempt,
    lenders,
    lock,
    new_attempt,
    point_latest,
    run_home,
)
from conclip.runs.display import Display, open_display
from conclip.runs.environment import changed_versions, describe_environment, earlier_environments, versions_of
from conclip.runs.files import (
    appending,
    check_content,
    clean_text,
    copy_file,
    drop_cut_line,
    expanded,
    finite,
    read_object,
    write_json,
    write_text,
    writing,
)
from conclip.runs.json_lines import json_lines, run_lines
from conclip.runs.sampling_progress import SamplingProgress
from conclip.runs.terminal import as_text, discard_output, divert_output
from conclip.runs.trackers import TrackerRun, Trackers
from conclip.types import Rollout, RolloutGroup

SCHEMA_VERSION = 1
"""The schema version of every file in a run folder."""


class Run:
    """One attempt of a run: its folder, log, display and trackers."""

    def __init__(self, subcommand: str, config: BaseConfig, identity: str) -> None:
        """Make or resume an attempt. `identity`: hash of everything that decides the run's results
        (`conclip.runs.identity`). Raises UserError when the folder cannot be used."""
        learn_secrets()
        self.home = run_home(subcommand, config)
        self._stages_from = config.paths.stages_from
        try:
            with exclusive(self.home):
                continued = find_attempt(self.home, identity) if config.resume == "auto" else None
                if continued:
                    check_content(continued)
                self.folder = continued or new_attempt(self.home)
                self._lock = lock(self.folder)
                self.update_manifest(subcommand=subcommand, identity=identity)
                if config.resume == "never":
                    self.update_manifest(**{BEGINS_ANEW: True})
                point_latest(self.home, self.folder)
        except OSError as error:
            if error.errno in MACHINE_ERRORS:
                raise
            reason = error.strerror or str(error)
            raise UserError(f"paths.outputs: cannot make or use '{error.filename}' ({reason}); choose another") from error
        write_text(self.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(hide_in(asdict(config)))))
        environment = describe_environment(subcommand)
        self.versions = versions_of(environment)
        self.write_json("environment.json", environment)
        earlier = earlier_environments(read_object(self.folder / MANIFEST).get("starts"))
        self.update_manifest(starts=[*earlier, environment])
        drop_cut_line(self.folder / "metrics.jsonl")
        self._metrics = appending(self.folder / "metrics.jsonl")
        _log_to(self.folder / "run.log")
        self._display = Display()
        # comes last: an error before it must reach the terminal
        with appending(self.folder / "run.log") as log:
            self._screen, self._restore_output = divert_output(log)
        try:
            self._open_views(subcommand, config)
        except BaseException:
            self._display.close()
            self._restore_output()
            raise
        self.goes_on = continued is not None
        """Whether this attempt had begun before."""
        if continued:
            self.say("going on where it was (same config, same inputs)")
            of_starts = [changed_versions(versions_of(start), self.versions) for start in earlier]
            if changed := sorted({name for names in of_starts for name in names}):
                self.warn(
                    f"another version of {', '.join(changed)} worked on this attempt before; what is half done goes on with "
                    "this one; resume=never begins anew"
                )
        self.point_to("run folder", self.folder, result=False)

    def _open_views(self, subcommand: str, config: BaseConfig) -> None:
        """Open the display and the trackers."""
        title = f"{subcommand} {config.name}"
        self._display = open_display(config.logger.display, title, self._screen)
        tracker_id = read_object(self.folder / MANIFEST).get("tracker_id")
        if not (isinstance(tracker_id, str) and re.fullmatch(r"[0-9a-f]{16}", tracker_id)):
            tracker_id = secrets.token_hex(8)
        self.update_manifest(tracker_id=tracker_id)
        tracker_run = TrackerRun(
            project=config.logger.project,
            name=title,
            identity=tracker_id,
            folder=self.folder,
            config=hide_in(asdict(config)),
        )
        self._trackers = Trackers(config.logger.trackers, tracker_run, self.warn)

    def say(self, text: str, *, result: bool = False) -> None:
        """Show one line, also written to run.log. `result`: the line is a result of the run."""
        logging.getLogger("conclip").info(text)
        self._emit(lambda display: display.message(text, result=result))

    def warn(self, text: str) -> None:
        logging.getLogger("conclip").warning(text)
        self._emit(lambda display: display.warning(text))

    def show(self, table: Table, *, result: bool = False) -> None:
        """Show a table, also written to run.log."""
        logging.getLogger("conclip").info("\n" + as_text(table))
        self._emit(lambda display: display.table(table, result=result))

    def point_to(self, kind: str, path: Path, *, result: bool = True) -> None:
        """Show where an output of the run is."""
        logging.getLogger("conclip").info(f"{kind}: {path}")
        self._emit(lambda display: display.file(kind, str(path), result=result))

    def write_results(self, content: Mapping[str, Any]) -> None:
        """Write results.json, with NaN and infinity as null, and pass it to the display."""
        strict = finite(content)
        self.write_json("results.json", strict)
        self._emit(lambda display: display.results(strict))

    def _emit(self, show: Callable[[Display], None]) -> None:
        """Call the display; the run continues without one when its terminal or reader is gone."""
        try:
            show(self._display)
        except Exception as error:
            logging.getLogger("conclip").exception("the display failed")
            failed, self._display = self._display, Display()
            if isinstance(error, OSError):
                discard_output(self._screen)
            with suppress(Exception):
                failed.close()

    def log_metrics(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Append one JSON line, with NaN and infinity as null; complete lines stay readable whatever happens later. The
        trackers and the display get the same numbers. Raises MachineFailure when the folder was removed."""
        check_folder(self.folder)
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        row = {"schema": SCHEMA_VERSION, "stage": stage, "step": step, **dict.fromkeys(metrics), **finite}
        self._metrics.write(json.dumps(row) + "\n")
        self._metrics.flush()
        self._emit(lambda display: display.step(stage, step, finite))
        self._trackers.log(stage, step, finite)

    def update_manifest(self, **changes: Any) -> None:
        """Change some entries of `manifest.json` atomically."""
        self.write_json(MANIFEST, read_object(self.folder / MANIFEST) | changes)

    def other_attempts(self) -> list[Path]:
        """Return the folders of this run's other attempts that may lend, newest first. Raises UserError for a folder that
        contains links."""
        others = [path for path in lenders(self.home) if path != self.folder]
        for path in others:
            check_content(path)
        return others

    def lending_attempts(self) -> Iterator[Path]:
        """Yield the folders whose stages this attempt may take over: this run's other attempts, newest first, then those of
        the runs in `paths.stages_from`."""
        yield from self.other_attempts()
        if self._stages_from is not None:
            found = attempts_in(expanded(self._stages_from))
            yield from sorted(folder for folder in found if folder.parent != self.home.resolve())

    def remove_metrics(self, stage: str, after_step: float = -math.inf) -> None:
        """Remove the metrics of a stage's steps that will run again: all, or those after a step."""
        rows = _metric_rows(self.folder)
        self._rewrite_metrics(row for row in rows if row["stage"] != stage or row["step"] <= after_step)

    def stage_metrics(self, stage: str) -> list[Mapping[str, float]]:
        """Return the metrics of a stage's steps so far, with null as NaN."""
        rows = [row for row in _metric_rows(self.folder) if row.pop("stage") == stage]
        return [{k: math.nan if v is None else v for k, v in row.items() if k not in ("schema", "step")} for row in rows]

    def copy_metrics(self, folder: Path, stage: str) -> None:
        """Copy the metrics and transcripts of a stage from another attempt; the trackers get the metrics too."""
        copied = [row for row in _metric_rows(folder) if row["stage"] == stage]
        self._rewrite_metrics([*(row for row in _metric_rows(self.folder) if row["stage"] != stage), *copied])
        for row in copied:
            numbers = {k: v for k, v in row.items() if k not in ("schema", "stage", "step") and v is not None}
            self._trackers.log(stage, row["step"], numbers)
        for path in (folder / "rollouts").glob(f"{stage}-[-0-9]*.jsonl"):  # steps of the critic's warm-up are below 1
            (self.folder / "rollouts").mkdir(exist_ok=True)
            copy_file(path, self.folder / "rollouts" / path.name)

    def _rewrite_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        path = self.folder / "metrics.jsonl"
        content = "".join(json.dumps(row) + "\n" for row in rows)
        self._metrics.close()
        write_text(path, content)
        self._metrics = appending(path)

    def write_json(self, name: str, content: Mapping[str, Any], *, is_data: bool = False) -> None:
        write_json(self.folder / name, {"schema": SCHEMA_VERSION, **content}, is_data=is_data)

    def sync(self) -> None:
        """Wait until all metrics are on the disk, since a checkpoint relies on them."""
        self._metrics.flush()
        os.fsync(self._metrics.fileno())

    def write_transcripts(
        self, stage: str, step: int, groups: Iterable[RolloutGroup], advantages: Iterable[float], per_group: int
    ) -> None:
        """Write the best, the worst and other responses of each group as JSON lines in rollouts/. `advantages`: the mean one
        of each response's tokens, group by group; nan for a response that does not train."""
        check_folder(self.folder)
        folder, left = self.folder / "rollouts", iter(advantages)
        folder.mkdir(exist_ok=True)
        with writing(folder / f"{stage}-{step:04d}.jsonl") as out:
            for group in groups:
                of_sample = {rollout.sample: next(left) for rollout in group.rollouts}
                for rollout in _pick_transcripts(group, per_group):
                    out.write(json.dumps(transcript(rollout, of_sample[rollout.sample])) + "\n")

    def begin(self, stage: str, num_steps: int | None = None, step: int = 0) -> None:
        """Show that a stage, or its steps after `step`, begins; it only affects the display."""
        steps = self.stage_metrics(stage) if num_steps is not None else []
        self._emit(lambda display: display.stage(stage, num_steps, step, steps))

    def show_sampling(self, progress: SamplingProgress) -> None:
        self._emit(lambda display: display.sampling(progress))

    def track(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Pass numbers only to the trackers; another file of the run folder has them."""
        self._trackers.log(stage, step, metrics)

    def close(self, *, failed: bool = False) -> None:
        """Close everything. `failed`: the run did not complete, which the trackers record."""
        with ExitStack() as closing:  # in reverse order, each even if others fail
            closing.callback(clean_text, self.folder / "run.log")
            closing.callback(self._restore_output)
            closing.callback(self._metrics.close)
            closing.callback(self._lock.close)
            closing.callback(self._emit, lambda display: display.close())
            closing.callback(self._trackers.close, failed=failed)


def transcript(rollout: Rollout, advantage: float) -> dict[str, Any]:
    """Return a rollout and its mean advantage as a flat JSON object."""
    return {
        "schema": SCHEMA_VERSION,
        "problem_id": rollout.problem.problem_id,
        "question": rollout.problem.question,
        "answer": rollout.problem.shown_answer,
        "sample": rollout.sample,
        "outcome": rollout.grade.outcome.value,
        "extracted": rollout.grade.extracted,
        "reward": rollout.reward,
        "advantage": advantage if math.isfinite(advantage) else None,
        "num_tokens": rollout.completion.num_tokens,
        "policy_version": rollout.completion.policy_version,
        "text": rollout.text,
    }


def _pick_transcripts(group: RolloutGroup, count: int) -> list[Rollout]:
    """Return the best rollout (shortest of the highest reward), the worst (longest of the lowest), then the first ones."""
    ranked = sorted(group.rollouts, key=lambda r: (-(r.reward or 0.0), r.completion.num_tokens))
    chosen = [ranked[0], ranked[-1], *group.rollouts] if ranked else []
    unique = {rollout.sample: rollout for rollout in chosen[: count + 2]}
    return list(unique.values())[:count]


def _metric_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the metrics of an attempt; cut and damaged lines are left out."""
    lines = run_lines(folder / "metrics.jsonl", errors="replace")
    return [row for _, row in json_lines(lines, cut_line="drop", damaged="skip") if is_metrics(row)]


def is_metrics(row: Any) -> bool:
    """Return whether a line of metrics.jsonl has a stage, a step, and otherwise only numbers and null."""
    try:
        values = [row[name] for name in row.keys() - {"stage"} if row[name] is not None]
        plain = all(isinstance(value, (int, float)) and math.isfinite(float(value)) for value in values)
        return plain and isinstance(row["stage"], str) and type(row["step"]) is int
    except (KeyError, TypeError, AttributeError, OverflowError):
        return False


class _LogFile(logging.FileHandler):
    """A log handler that appends to a plain file and never follows a link."""

    def _open(self) -> Any:
        return appending(Path(self.baseFilename))


class _Lines(logging.Formatter):
    """A formatter that removes secrets and control characters, whoever logs them."""

    def format(self, record: logging.LogRecord) -> str:
        return terminal_safe(super().format(record))


def _log_to(path: Path) -> None:
    """Send all logging, that of libraries included, to the run's log file instead of the terminal."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(_Lines("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
