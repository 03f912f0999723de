"""Metrics in TensorBoard, Weights & Biases and MLflow, by the names of metrics.jsonl: `<stage>/<metric>` at its step.

Each tracker works in a thread of its own, so that a slow one delays no step; one that fails is given up with a warning.
Steps that are done again after an interruption are logged again, with the same values.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from conclip.config import TrackerKind, UserError

CLOSE_S = 20.0
"""So long a run waits at its end for what its trackers have not written yet."""


class Tracker(Protocol):
    """One tool's run."""

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What a tracker is told about a run."""

    project: str
    name: str
    identity: str
    """The same in each start of one attempt."""
    folder: Path
    config: Mapping[str, Any]


def check_installed(kinds: Iterable[TrackerKind]) -> None:
    """Raises UserError for a tracker whose package is missing."""
    for kind in kinds:
        if find_spec(kind) is None:  # each is named like its package
            raise UserError(f"logger.trackers: {kind} is not installed; pip install {kind}, or leave it out")


class Trackers:
    """All trackers of a run."""

    def __init__(self, kinds: Iterable[TrackerKind], run: Described, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._workers = [_Worker(kind, run, warn) for kind in dict.fromkeys(kinds)]

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        for worker in self._workers:
            worker.events.put((stage, step, dict(metrics)))

    def close(self) -> None:
        for worker in self._workers:
            worker.events.put(None)
        deadline = time.monotonic() + CLOSE_S
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))
            if worker.is_alive():
                self._warn(f"{worker.name} did not take all metrics within {CLOSE_S:g} s; metrics.jsonl has them")


class _Worker(threading.Thread):
    """Writes what it is given to one tracker, until it fails."""

    def __init__(self, kind: TrackerKind, run: Described, warn: Callable[[str], None]) -> None:
        super().__init__(name=kind, daemon=True)
        self.events: queue.Queue[tuple[str, int, dict[str, float]] | None] = queue.Queue()
        self._kind: TrackerKind = kind
        self._described, self._give_warning = run, warn
        self.start()

    def run(self) -> None:
        try:
            tracker = OPENERS[self._kind](self._described)
            while (event := self.events.get()) is not None:
                tracker.log(*event)
            tracker.close()
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            self._give_warning(f"{self._kind} gets no more metrics ({reason}); metrics.jsonl has them")


class TensorBoard:
    """Event files in the run folder's tensorboard/."""

    def __init__(self, run: Described) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter  # noqa: PLC0415  only where asked for

        self._writer = SummaryWriter(str(run.folder / "tensorboard"))

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(f"{stage}/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases, its files in the run folder's wandb/."""

    def __init__(self, run: Described) -> None:
        import wandb  # noqa: PLC0415  only where asked for

        # a prompt for the key would wait unseen
        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False):
            raise ValueError("not logged in: wandb login, or WANDB_API_KEY, or WANDB_MODE=offline")
        self._teardown = wandb.teardown
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=run.identity,
            resume="allow",
            dir=run.folder,
            config=dict(run.config),
            settings=wandb.Settings(console="off", silent=True),
        )
        self._stages: set[str] = set()

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        if stage not in self._stages:  # each stage counts its own steps
            self._run.define_metric(f"{stage}/step", hidden=True)
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self._stages.add(stage)
        self._run.log({f"{stage}/step": step} | {f"{stage}/{name}": value for name, value in metrics.items()})

    def close(self) -> None:
        self._run.finish()
        self._teardown()  # waits for the process that writes: finish alone does not


class MLflow:
    """A run of MLflow, where MLFLOW_TRACKING_URI says."""

    def __init__(self, run: Described) -> None:
        from mlflow import MlflowClient  # noqa: PLC0415  only where asked for
        from mlflow.entities import Param  # noqa: PLC0415

        self._client = client = MlflowClient()
        found = client.get_experiment_by_name(run.project)
        experiment = found.experiment_id if found else client.create_experiment(run.project)
        earlier = client.search_runs([experiment], f"tags.conclip_run = '{run.identity}'")
        if earlier:
            self._run_id = earlier[0].info.run_id
            client.update_run(self._run_id, status="RUNNING")
            return
        made = client.create_run(experiment, run_name=run.name, tags={"conclip_run": run.identity})
        self._run_id = made.info.run_id
        client.log_batch(self._run_id, params=[Param(key, str(value)) for key, value in _flat(run.config)])

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric  # noqa: PLC0415

        now = int(time.time() * 1000)
        self._client.log_batch(
            self._run_id, [Metric(f"{stage}/{name}", value, now, step) for name, value in metrics.items()]
        )

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


OPENERS: dict[TrackerKind, Callable[[Described], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
