"""Responses sampled while the step before trains: with which weights, and that nothing else depends on it."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from conclip.cli.main import main
from conclip.config.schema import TrainRunConfig
from conclip.errors import UserError
from conclip.experiments.inputs import Inputs
from conclip.rollout.engine import WeightsLost
from conclip.rollout.session import Runtime
from conclip.runs.interrupts import Interrupted
from conclip.training.learner import Learner
from tests.conftest import train_config
from tests.phases import Cut, left_by, resumable, saving, train
from tests.test_cli import conclip
from tests.test_resume import signals_handled

CORRECTED = ["rollout.engine=child_process", "algo.sampler_correction=token"]


def settings_of(*overrides: str, every: int = 3, num_steps: int = 5) -> TrainRunConfig:
    often = [f"trainer.validate_every={every}", "trainer.save_every=100"]
    return saving(*CORRECTED, *often, *overrides, num_steps=num_steps)


def test_weights_are_one_step_old_but_after_a_validation(scripted_runtime: tuple[Runtime, Inputs]):
    run = scripted_runtime[0].run
    train(scripted_runtime, "phase2", "one after another", settings_of())
    usual = run.stage_metrics("phase2")
    train(scripted_runtime, "phase2", "ahead", settings_of("trainer.sample_ahead=true"))
    ahead = run.stage_metrics("phase2")
    assert [row["rollout/steps_behind"] for row in ahead] == [0, 1, 1, 0, 1]
    assert [row["policy/sampler_drift_max"] < 1e-4 for row in ahead] == [True, False, False, True, False]
    assert all("rollout/steps_behind" not in row and row["policy/sampler_drift_max"] < 1e-4 for row in usual)
    for row, one in zip(ahead, usual, strict=True):  # the script's responses do not depend on weights
        for name in ("reward/mean", "length/mean_tokens", "rollout/num_sampled_tokens", "outcome/correct"):
            assert row[name] == one[name], name


def test_a_budget_of_tokens_ends_the_phase_where_it_does_otherwise(scripted_runtime: tuple[Runtime, Inputs]):
    budget = ["phase.max_sampled_tokens=3000", "phase.stop_accuracy_drop=1"]
    ends = [
        train(scripted_runtime, "phase2", f"budget {ahead}", settings_of(*budget, *ahead, num_steps=50)).num_tokens
        for ahead in ([], ["trainer.sample_ahead=true"])
    ]
    assert ends[0] == ends[1]


def test_new_groups_for_silent_ones_come_with_the_same_weights(scripted_runtime: tuple[Runtime, Inputs]):
    dynamic = ["algo.dynamic_sampling_rounds=4", "trainer.sample_ahead=true"]
    train(scripted_runtime, "phase2", "dynamic", settings_of(*dynamic))
    assert all(row["policy/share_zero_advantage_groups"] == 0 for row in scripted_runtime[0].run.stage_metrics("phase2"))


@pytest.mark.whole
def test_two_engines_sample_ahead_and_a_run_repeats_though_one_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = [*CORRECTED, "rollout.num_engines=2", "phase.num_steps=3", "trainer={validate_every: 3, save_every: 3}"]
    command = ["train-phase2", "debug=train", "trainer.sample_ahead=true", *settings, f"paths.outputs={tmp_path}"]
    for name in ("one", "another"):
        ended = conclip(*command, f"name={name}", cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
    update, push, engines = Learner.update, Learner.push, list[Any]()

    def pushing(learner: Learner, engine: Any, version: int) -> None:
        engines.append(engine)
        push(learner, engine, version)

    def killing(*arguments: Any, **named: Any) -> Any:
        if len(engines) == 2:  # the second step trains, the third one is being sampled
            engines[0]._engines[1]._process.kill()
        return update(*arguments, **named)

    monkeypatch.setattr(Learner, "push", pushing)
    monkeypatch.setattr(Learner, "update", killing)
    monkeypatch.setattr(sys, "argv", ["conclip", *command, "name=killed"])
    main()
    assert "the engine process is gone" in (tmp_path / "train-phase2/killed/latest/run.log").read_text()
    found: list[list[dict[str, float]]] = []
    for name in ("one", "another", "killed"):
        lines = (tmp_path / f"train-phase2/{name}/latest/metrics.jsonl").read_text().splitlines()
        found.append([{k: v for k, v in json.loads(line).items() if not k.startswith(("time/", "perf/"))} for line in lines])
    assert found[0] == found[1] == found[2]
    assert [row["rollout/steps_behind"] for row in found[0]] == [0, 1, 1]
    assert [row["policy/sampler_drift_max"] < 1e-4 for row in found[0]] == [True, False, False]


@pytest.mark.whole
@pytest.mark.parametrize("cut_at", [2, 3, 4, 5, 6])
def test_a_cut_phase_goes_on_from_its_last_validation_and_ends_the_same(
    scripted_runtime: tuple[Runtime, Inputs], cut_at: int
):
    refreshed = ["phase.refresh=true", "phase.retire_above=0.9", "algo.critic_warmup_steps=1"]
    settings, run = settings_of("trainer.sample_ahead=true", *refreshed, every=2, num_steps=6), scripted_runtime[0].run
    alone = left_by(run, train(scripted_runtime, "phase2", f"alone {cut_at}", settings))
    with pytest.raises(Cut):
        train(scripted_runtime, "phase2", f"cut {cut_at}", settings, cut_at)
    again = resumable(*scripted_runtime, f"cut {cut_at}", settings)
    again._recovery.restore()
    assert again._progress.step == ((cut_at - 1) // 2 * 2 or -1)  # before any other the one at the phase's beginning
    assert left_by(run, train(scripted_runtime, "phase2", f"cut {cut_at}", settings)) == alone


@pytest.mark.whole
@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_signal_amid_an_update_costs_the_steps_since_the_last_validation(
    scripted_runtime: tuple[Runtime, Inputs], step: int
):
    settings, (opened, inputs) = settings_of("trainer.sample_ahead=true", every=2, num_steps=4), scripted_runtime
    alone = left_by(opened.run, train(scripted_runtime, "phase2", f"signalled alone {step}", settings))
    trainer = resumable(opened, inputs, f"signalled {step}", settings)
    update = trainer._learner.update

    def told_to_stop(*arguments: Any, **keywords: Any) -> Any:
        if trainer._progress.step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(*arguments, **keywords)

    trainer._learner.update = told_to_stop  # type: ignore[method-assign]
    with signals_handled(), pytest.raises(Interrupted):
        trainer.train()
    trainer._sampler.wait()  # the engine outlives the run here
    again = resumable(opened, inputs, f"signalled {step}", settings)
    again._recovery.restore()
    assert again._progress.step == step // 2 * 2  # the second step's update completes, and its validation is left
    assert left_by(opened.run, train(scripted_runtime, "phase2", f"signalled {step}", settings)) == alone


def test_what_is_lost_with_an_engines_weights_is_sampled_anew(
    scripted_runtime: tuple[Runtime, Inputs], monkeypatch: pytest.MonkeyPatch
):
    opened, said = scripted_runtime[0], list[str]()
    monkeypatch.setattr(opened.run, "warn", said.append)
    sample, lost = opened.sample_groups, list[bool]()

    def lose(label: str, *arguments: Any) -> Any:
        if label == "phase2 step 2" and lost:
            lost.clear()
            raise WeightsLost("the engine process is gone")
        return sample(label, *arguments)

    monkeypatch.setattr(opened, "sample_groups", lose)
    settings = settings_of("trainer.sample_ahead=true", "phase.problems_per_step=2")
    undisturbed = train(scripted_runtime, "phase2", "not lost", settings)
    lost.append(True)
    assert train(scripted_runtime, "phase2", "lost", settings).num_tokens == undisturbed.num_tokens  # the same problems
    assert [row["rollout/steps_behind"] for row in opened.run.stage_metrics("phase2")] == [0, 0, 1, 0, 1]
    assert [text for text in said if "gone" in text] == [
        "the engine process is gone; step 2 is sampled anew, with the weights of now"
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.engine=child_process"], "needs algo.sampler_correction=token or sequence"),
        (["algo.sampler_correction=token", "rollout.num_engines=1"], "needs an engine in a process of its own"),
        ([*CORRECTED, "trainer.validate_every=1"], "does nothing where every step is validated"),
        ([*CORRECTED, "trainer.offload=true"], "needs a device that the engine keeps"),
    ],
)
def test_what_sampling_ahead_needs(overrides: list[str], message: str):
    with pytest.raises(UserError, match=message):
        train_config("trainer.sample_ahead=true", "trainer.validate_every=2", *overrides)
