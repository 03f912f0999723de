"""Trackers: metrics in TensorBoard, Weights & Biases and MLflow, named as in metrics.jsonl: `<stage>/<metric>` at its step.

Each tracker runs in its own thread, so that a slow one delays no step; one that fails is dropped with a warning. Steps that
run again after an interruption are logged again, with the same values except times.
"""

import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from conclip.config.groups import TrackerName
from conclip.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

CLOSE_S = 20.0
"""The longest that a run waits at its end for its trackers [s]."""

MODULES: dict[TrackerName, str] = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""The module that each tracker imports."""


class Tracker(Protocol):
    """The run in one tracking tool."""

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self, *, failed: bool) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackerRun:
    """The description of a run for its trackers."""

    project: str
    name: str
    identity: str
    """An id drawn when an attempt is made; each start of the attempt has the same one."""
    folder: Path
    config: Mapping[str, Any]


def check_installed(names: Iterable[TrackerName]) -> None:
    """Raise UserError for a tracker whose package is missing."""
    for name in names:
        if find_spec(name) is None:  # trackers have the names of their packages
            raise UserError(f"logger.trackers: {name} is not installed; pip install {name}, or leave it out")


class Trackers:
    """All trackers of a run."""

    def __init__(self, names: Iterable[TrackerName], run: TrackerRun, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._workers = [_Worker(name, run) for name in dict.fromkeys(names)]
        self._report_failures()

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        for worker in self._workers:
            worker.events.put((stage, step, dict(metrics)))
        self._report_failures()

    def close(self, *, failed: bool) -> None:
        """Close the trackers, waiting for up to `CLOSE_S`; `failed`: the run did not complete, and waits less."""
        for worker in self._workers:
            worker.events.put(failed)
        timeout_s = CLOSE_S / 4 if failed else CLOSE_S
        deadline = time.monotonic() + timeout_s
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))
            if worker.is_alive():
                self._warn(f"{worker.name} did not take all metrics within {timeout_s:g} s; metrics.jsonl has them")
        self._report_failures()

    def _report_failures(self) -> None:
        for worker in [worker for worker in self._workers if worker.failure is not None]:
            self._warn(f"{worker.name} gets no more metrics ({worker.failure}); metrics.jsonl has them")
            self._workers.remove(worker)


class _Worker(threading.Thread):
    """A thread that passes metrics to one tracker until it fails."""

    def __init__(self, name: TrackerName, run: TrackerRun) -> None:
        super().__init__(name=name, daemon=True)
        self.events: queue.Queue[tuple[str, int, dict[str, float]] | bool] = queue.Queue()
        """Metrics, and at the end whether the run failed."""
        self.failure: str | None = None
        self._tracker_name: TrackerName = name
        self._tracker_run = run
        try:
            import_module(MODULES[name])  # here, so that the main thread never sees a half-imported module
        except Exception as error:
            self.failure = _reason(error)
        else:
            self.start()

    def run(self) -> None:
        tracker: Tracker | None = None
        try:
            tracker = OPENERS[self._tracker_name](self._tracker_run)
            while not isinstance(event := self.events.get(), bool):
                tracker.log(*event)
            tracker.close(failed=event)
        except Exception as error:
            self.failure = _reason(error)
            logging.getLogger("conclip").exception("%s failed", self._tracker_name)
            if tracker is not None:
                with suppress(Exception):
                    tracker.close(failed=True)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


class TensorBoard:
    """A tracker that writes event files to the run folder's tensorboard/."""

    def __init__(self, run: TrackerRun) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter  # noqa: PLC0415  only where selected

        self._writer = SummaryWriter(str(run.folder / "tensorboard"))

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(f"{stage}/{name}", value, step)
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        self._writer.close()


class WandB:
    """A tracker that keeps its run of Weights & Biases in the run folder's wandb/."""

    def __init__(self, run: TrackerRun) -> None:
        import wandb  # noqa: PLC0415  only where selected

        # a prompt for the key would block unseen
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
            # Arguments, repository (remote, changes) and script are not sent: any may contain a token. environment.json has
            # what is needed to repeat the run.
            settings=wandb.Settings(console="off", silent=True, x_disable_meta=True, disable_git=True, disable_code=True),
        )
        self._stages: set[str] = set()

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        if stage not in self._stages:  # each stage counts its own steps
            self._run.define_metric(f"{stage}/step", hidden=True)
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self._stages.add(stage)
        self._run.log({f"{stage}/step": step} | {f"{stage}/{name}": value for name, value in metrics.items()})

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
        self._teardown()  # waits for the writing process, as finish does not


class MLflow:
    """A tracker that logs to the MLflow server or folder in MLFLOW_TRACKING_URI."""

    def __init__(self, run: TrackerRun) -> None:
        from mlflow import MlflowClient  # noqa: PLC0415  only where selected
        from mlflow.entities import Param  # noqa: PLC0415

        self._client = client = MlflowClient()
        experiment = client.get_experiment_by_name(run.project)
        experiment_id = experiment.experiment_id if experiment else _create_experiment(client, run.project)
        earlier = client.search_runs([experiment_id], f"tags.conclip_run = '{run.identity}'")
        if earlier:
            self._run_id = earlier[0].info.run_id
            client.update_run(self._run_id, status="RUNNING")
            return
        created = client.create_run(experiment_id, run_name=run.name, tags={"conclip_run": run.identity})
        self._run_id = created.info.run_id
        client.log_batch(self._run_id, params=[Param(key, str(value)) for key, value in _flat(run.config)])

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric  # noqa: PLC0415

        now = int(time.time() * 1000)
        named = {re.sub(r"[^\w\-. :/]", "_", f"{stage}/{name}"): value for name, value in metrics.items()}  # no others
        self._client.log_batch(self._run_id, [Metric(name, value, now, step) for name, value in named.items()])

    def close(self, *, failed: bool) -> None:
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")


def _create_experiment(client: "MlflowClient", project: str) -> str:
    """Create an experiment, or return the one that another run has created meanwhile."""
    try:
        return client.create_experiment(project)
    except Exception:
        experiment = client.get_experiment_by_name(project)
        if experiment is None:
            raise
        return experiment.experiment_id


OPENERS: dict[TrackerName, Callable[[TrackerRun], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
