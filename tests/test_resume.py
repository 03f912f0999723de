"""A phase that was cut ends as one that was left alone, bit for bit; damaged states are passed over."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from conclip.config import TrainRunConfig
from conclip.inputs import Inputs
from conclip.models.folder import LAB_MODEL, model_hash
from conclip.runlog import Run
from conclip.runtime import Runtime
from conclip.training.resume import PhaseState, newest_state, save_state
from conclip.training.trainer import Trainer, TrainResult
from tests.conftest import by_hand, train_config


class Cut(Exception):
    pass


def config(*overrides: str) -> TrainRunConfig:
    return train_config("phase.num_steps=4", "trainer.save_every=1", *overrides)


def train(
    runtime: tuple[Runtime, Inputs], stage: str, key: str, settings: TrainRunConfig, cut_at: int | None = None
) -> TrainResult:
    """Train a stage, or go on with the one of this key; it breaks off as step `cut_at` begins."""
    opened, inputs = runtime
    arguments: dict[str, Any] = {"model_path": LAB_MODEL, "validation": inputs.validation, "key": key}
    trainer = Trainer(stage, settings, settings.phase, opened, selection=by_hand(inputs.pool[:4]), **arguments)
    step = trainer._step

    def until_cut(number: int) -> dict[str, float]:
        if number == cut_at:
            raise Cut
        return step(number)

    trainer._step = until_cut  # type: ignore[method-assign]
    return trainer.train()


def left_by(run: Run, result: TrainResult) -> dict[str, Any]:
    steps = run.stage_metrics("phase2")
    kept = [{k: v for k, v in step.items() if not k.startswith(("time/", "perf/"))} for step in steps]
    return {"steps": kept, "history": result.history, "best": result.best, "weights": model_hash(result.checkpoint)}


@pytest.mark.engine
@pytest.mark.parametrize("algorithm", [["algo=ppo", "algo.critic_warmup_steps=1"], ["algo=grpo", "algo.kl_target=0.01"]])
def test_a_cut_phase_ends_as_one_that_was_left_alone(runtime: tuple[Runtime, Inputs], algorithm: list[str]):
    settings, run = config(*algorithm), runtime[0].run
    alone = left_by(run, train(runtime, "phase2", f"alone {algorithm}", settings))
    for cut_at in (1, 3, 4):
        key = f"cut at {cut_at} {algorithm}"
        with pytest.raises(Cut):
            train(runtime, "phase2", key, settings, cut_at)
        found = left_by(run, train(runtime, "phase2", key, settings))
        assert found == alone, cut_at
        assert all(step for step in found["steps"])


def state(step: int) -> PhaseState:
    return PhaseState(step=step, values={"step": step}, tensors={"w": torch.full((3,), float(step))})


def test_the_newest_whole_state_of_the_same_phase_is_taken(tmp_path: Path):
    said: list[str] = []
    assert newest_state(tmp_path, "key", said.append) is None
    for step in (5, 10, 15):
        save_state(tmp_path, "key", state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000010", "step-000015"]
    found = newest_state(tmp_path, "key", said.append)
    assert found is not None and found.step == 15 and found.values == {"step": 15}
    assert torch.equal(found.tensors["w"], torch.full((3,), 15.0))
    assert newest_state(tmp_path, "another key", said.append) is None and said == []


@pytest.mark.parametrize("harm", ["tensors cut", "tensors changed", "no state", "state cut", "unfinished"])
def test_a_damaged_state_is_passed_over(tmp_path: Path, harm: str):
    for step in (5, 10):
        save_state(tmp_path, "key", state(step))
    newest = tmp_path / "step-000010"
    tensors = newest / "tensors.safetensors"
    if harm == "tensors cut":
        tensors.write_bytes(tensors.read_bytes()[:-4])
    elif harm == "tensors changed":
        tensors.write_bytes(tensors.read_bytes()[:-1] + b"\x00")
    elif harm == "no state":
        (newest / "state.json").unlink()
    elif harm == "state cut":
        (newest / "state.json").write_text((newest / "state.json").read_text()[:40])
    else:
        shutil.move(newest, tmp_path / "step-000010.part")
    said: list[str] = []
    found = newest_state(tmp_path, "key", said.append)
    assert found is not None and found.step == 5
    assert len(said) == (harm != "unfinished") and all("step-000010" in text for text in said)
