"""Trackers get what metrics.jsonl has, by the same names, and none can stop a run."""

import json
import os
import re
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from conclip.runs.trackers import OPENERS, TrackerRun, Trackers

ROWS = [("phase1", 1, {"length/mean_tokens": 98.5, "outcome/correct": 0.25}), ("phase1", 2, {"length/mean_tokens": 61.0})]
EVAL = ("eval", 0, {"chain/after, concise, T 0.6/accuracy": 0.5})


def tracker_run(folder: Path, identity: str = "abc123") -> TrackerRun:
    return TrackerRun(
        project="conclip", name="two-phase x", identity=identity, folder=folder, config={"optim": {"policy_lr": 1e-4}}
    )


def track(kind: str, folder: Path) -> list[str]:
    """Log ROWS; the warnings."""
    warnings: list[str] = []
    trackers = Trackers([kind], tracker_run(folder), warnings.append)  # type: ignore[list-item]
    for row in (*ROWS, EVAL):
        trackers.log(*row)
    trackers.close(failed=False)
    return warnings


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("conclip.runs.trackers.CLOSE_S", 120)  # a busy machine takes its time
    return tmp_path


@pytest.mark.whole
def test_tensorboard_serves_the_scalars(in_folder: Path):
    assert track("tensorboard", in_folder) == []
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(in_folder), "--port", "0", "--load_fast=false"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        url = next(found[0] for line in server.stderr if (found := re.search(r"http://\S+:\d+/", line)))
        threading.Thread(target=server.stderr.read, daemon=True).start()
        for _ in range(100):
            with urllib.request.urlopen(f"{url}data/plugin/scalars/tags") as answer:
                tags = json.load(answer)
            if tags:
                break
            time.sleep(0.2)
        assert list(tags["tensorboard"]) == [
            "phase1/length/mean_tokens",
            "phase1/outcome/correct",
            "eval/chain/after, concise, T 0.6/accuracy",
        ]
        query = f"{url}data/plugin/scalars/scalars?run=tensorboard&tag=phase1%2Flength%2Fmean_tokens"
        with urllib.request.urlopen(query) as answer:
            points = json.load(answer)
    finally:
        server.terminate()
        server.wait()
    assert [(step, value) for _, step, value in points] == [(1, 98.5), (2, 61.0)]


@pytest.mark.whole
def test_wandb_writes_an_offline_run_without_the_key(in_folder: Path, monkeypatch: pytest.MonkeyPatch):
    key = "0123456789abcdef" * 2 + "87654321"
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", key)
    for command in (["init"], ["remote", "add", "origin", f"https://ghp_{key}:x-oauth-basic@github.example/o/r.git"]):
        subprocess.run(["git", *command], check=True, capture_output=True)
    monkeypatch.setattr(sys, "argv", ["conclip", "eval", f"model.path=https://me:{key}@host.example/model"])
    assert track("wandb", in_folder) == []
    (file,) = in_folder.glob("wandb/offline-run-*/run-*.wandb")
    history = read_wandb(file)
    assert history == [
        {"phase1/step": 1, "phase1/length/mean_tokens": 98.5, "phase1/outcome/correct": 0.25},
        {"phase1/step": 2, "phase1/length/mean_tokens": 61.0},
        {"eval/step": 0, "eval/chain/after, concise, T 0.6/accuracy": 0.5},
    ]
    kept = [path for path in (in_folder / "wandb").rglob("*") if path.is_file()]
    holders = [path for path in kept if key.encode() in path.read_bytes() or b"github.example" in path.read_bytes()]
    assert holders == []


BLOCK, HEADER, CHUNK = 32768, 7, struct.Struct("<IHB")
"""A .wandb file is a LevelDB log: after seven bytes of its own, blocks of chunks (checksum, length, type) of records."""


def records(content: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log."""
    position, record = HEADER, b""
    while position + CHUNK.size <= len(content):
        if BLOCK - position % BLOCK < CHUNK.size:  # padding
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = CHUNK.unpack_from(content, position)
        position += CHUNK.size
        record += content[position : position + length]
        position += length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def read_wandb(file: Path) -> list[dict[str, float]]:
    """The history rows of an offline run's file, its own keys (_step, _runtime, ...) left out."""
    from wandb.proto import wandb_internal_pb2

    rows: list[dict[str, float]] = []
    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows.append({name: value for name, value in items.items() if not name.startswith("_")})
    return rows


@pytest.mark.whole
def test_wandb_without_a_login_asks_nobody(in_folder: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(in_folder))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    script = "from tests.test_trackers import *\nfrom pathlib import Path\nprint(track('wandb', Path('.')))"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120)
    assert "gets no more metrics" in outcome.stdout and "WANDB_MODE=offline" in outcome.stdout


@pytest.mark.whole
def test_mlflow_goes_on_with_its_run(in_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{in_folder}/mlflow.db")
    assert track("mlflow", in_folder) == track("mlflow", in_folder) == []
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("conclip")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params == {"optim.policy_lr": "0.0001"} and run.info.status == "FINISHED"
    assert run.data.metrics["eval/chain/after_ concise_ T 0.6/accuracy"] == 0.5
    history = client.get_metric_history(run.info.run_id, "phase1/length/mean_tokens")
    assert {(point.step, point.value) for point in history} == {(1, 98.5), (2, 61.0)}


class Broken:
    def __init__(self, _: TrackerRun) -> None: ...

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        raise ConnectionError("the server went away")

    def close(self, *, failed: bool) -> None: ...


class Hanging(Broken):
    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        threading.Event().wait()


@pytest.mark.parametrize(
    ("opener", "patience_s", "said"), [(Broken, 60, "the server went away"), (Hanging, 0.2, "within 0.2 s")]
)
def test_a_tracker_that_fails_or_hangs_costs_a_warning(
    opener: type[Broken], patience_s: float, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("conclip.runs.trackers.CLOSE_S", patience_s)
    monkeypatch.setitem(OPENERS, "mlflow", opener)
    (warning,) = track("mlflow", tmp_path)
    assert said in warning and "metrics.jsonl has them" in warning


def test_a_tracker_that_cannot_be_imported_costs_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("conclip.runs.trackers.MODULES", {"wandb": "conclip.no_such_module"})
    (warning,) = track("wandb", tmp_path)
    assert "no_such_module" in warning


def test_a_tracker_that_is_not_installed_is_refused_before_anything_loads(monkeypatch: pytest.MonkeyPatch):
    from conclip.config.compose import load_config
    from conclip.errors import UserError
    from conclip.experiments.inputs import load_inputs

    monkeypatch.setattr("conclip.runs.trackers.find_spec", lambda _: None)
    config = load_config("probe", "debug=probe", "logger=wandb")
    with pytest.raises(UserError, match=r"logger\.trackers: wandb is not installed; pip install wandb"):
        load_inputs(config)
