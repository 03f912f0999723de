"""Phases that tests train: whole, cut, and gone on with."""

import json
import math
from typing import Any

import pytest

from conclip.config.schema import TrainRunConfig
from conclip.experiments.inputs import Inputs
from conclip.models.folder import LAB_MODEL, model_hash
from conclip.rollout.session import Runtime
from conclip.runs.run import Run
from conclip.training import ranks
from conclip.training.phase import PhaseInputs, TrainResult
from conclip.training.ranks import Learners
from conclip.training.trainer import Trainer
from tests.conftest import by_hand, make_trainer, train_config


def steps_of(runtime: tuple[Runtime, Inputs], stage: str, *overrides: str) -> list[dict[str, float]]:
    """Train a phase of two steps; its metrics."""
    opened, inputs = runtime
    settings = train_config(*overrides)
    chosen = by_hand([problem for problem in inputs.pool if problem.level == 4][:4])
    trainer = make_trainer(opened, inputs, stage, settings, chosen)
    result = trainer.train()
    assert result.history[0].step == 0 and result.history[-1].step == 2
    rows = [json.loads(line) for line in (opened.run.folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["stage"] == stage]
    assert all(value is not None and math.isfinite(value) for row in steps for k, value in row.items() if k != "stage")
    return steps


def check_algorithm(runtime: tuple[Runtime, Inputs], algo: str, *overrides: str) -> None:
    steps = steps_of(runtime, "-".join([algo, *overrides]).replace("/", "-").replace("=", "-"), f"algo={algo}", *overrides)
    warmup = train_config(f"algo={algo}").algo.critic_warmup_steps
    assert [row["step"] for row in steps] == list(range(1 - warmup, 3))
    assert all(("policy/loss" in row) == (row["step"] > 0) for row in steps)
    assert all(row["policy/sampler_drift_max"] < 1e-4 for row in steps)
    assert steps[-1]["optim/policy_grad_norm"] > 0


class Cut(Exception):
    pass


def saving(*overrides: str, num_steps: int = 4) -> TrainRunConfig:
    """A phase that saves its state after each step."""
    return train_config(f"phase.num_steps={num_steps}", "trainer.save_every=1", *overrides)


def resumable(opened: Runtime, inputs: Inputs, key: str, settings: TrainRunConfig, stage: str = "phase2") -> Trainer:
    return make_trainer(opened, inputs, stage, settings, by_hand(inputs.pool[:4]), key)


def train(
    runtime: tuple[Runtime, Inputs], stage: str, key: str, settings: TrainRunConfig, cut_at: int | None = None
) -> TrainResult:
    """Train a stage, or go on with the one of this key; it breaks off as step `cut_at` begins."""
    trainer = resumable(*runtime, key, settings, stage)
    step = trainer._step

    def until_cut(number: int) -> None:
        if number == cut_at:
            raise Cut
        step(number)

    trainer._step = until_cut  # type: ignore[method-assign]
    return trainer.train()


def left_by(run: Run, result: TrainResult) -> dict[str, Any]:
    steps = run.stage_metrics("phase2")
    kept = [{k: v for k, v in step.items() if not k.startswith(("time/", "perf/"))} for step in steps]
    return {"steps": kept, "history": result.history, "best": result.best, "weights": model_hash(result.checkpoint)}


def trained_by(runtime: tuple[Runtime, Inputs], key: str, config: TrainRunConfig, learners: Learners) -> dict[str, Any]:
    """Train phase 2 by these learners, as a run does."""
    opened, inputs = runtime
    phase = PhaseInputs(
        stage="phase2",
        settings=config.phase,
        model_path=LAB_MODEL,
        selection=by_hand(inputs.pool[:4]),
        validation=inputs.validation,
        key=key,
    )
    result, wall_s = ranks.train(phase, config, opened, learners)
    assert wall_s > 0
    return left_by(opened.run, result)


ALGORITHMS = [["algo=ppo", "algo.critic_warmup_steps=1"], ["algo=grpo", "algo.kl_target=0.01"]]
ADAPTED = ["model/adapter=lora", "optim.moments=8bit", "algo.critic_warmup_steps=1"]


def check_cut(runtime: tuple[Runtime, Inputs], algorithm: list[str], steps: list[int], num_steps: int = 4) -> None:
    settings, run = saving(*algorithm, num_steps=num_steps), runtime[0].run
    alone = left_by(run, train(runtime, "phase2", f"alone {algorithm}", settings))
    for cut_at in steps:
        key = f"cut at {cut_at} {algorithm}"
        with pytest.raises(Cut):
            train(runtime, "phase2", key, settings, cut_at)
        found = left_by(run, train(runtime, "phase2", key, settings))
        assert found == alone, cut_at
        assert all(step for step in found["steps"])
