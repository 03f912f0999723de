"""Times from a data sheet, by hand: a device of 1 TFLOPS and 10 GB/s, of which 0.4 and 0.6 are reached."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from conclip.cli.main import main
from conclip.config.compose import load_config
from conclip.config.groups import DeviceConfig
from conclip.config.schema import LearnConfig
from conclip.experiments.memory import ModelSize
from conclip.experiments.plan import PlannedStage
from conclip.experiments.timing import operations_per_token, speed_of, stage_seconds
from conclip.models.folder import LAB_MODEL

SPEED = speed_of(DeviceConfig(tflops=1.0, bandwidth_gb_per_s=10.0))
SHAPES = {"layers.0.k_proj.weight": (3, 8), "layers.0.v_proj.weight": (3, 8), "layers.0.q_proj.weight": (6, 8)}
MODEL = ModelSize(folder=LAB_MODEL, num_parameters=10**9, linear=SHAPES)


def config_of(*overrides: str) -> LearnConfig:
    config = load_config("train-phase2", "trainer.recompute_activations=false", *overrides)
    assert isinstance(config, LearnConfig)
    return config


def test_sampling_reads_the_weights_once_a_token():
    """4e9 bytes at 6e9 a second: 2/3 s a token; the cache of 8 responses of 50 tokens adds 8 x 50 x 4 x 6 bytes. 16
    responses in two rounds of 100 tokens, the limit of the longest."""
    assert SPEED is not None and MODEL.kv_per_token == 6
    stage = PlannedStage(name="probe", num_responses=16, max_tokens=100, batch=8)
    seconds = stage_seconds(stage, config_of(), MODEL, 25, SPEED)
    assert seconds == pytest.approx(2 * 100 * (4e9 + 8 * 50 * 4 * 6) / 6e9)


def test_many_responses_at_once_are_bound_by_arithmetic():
    """2 x 10^9 x 256 operations a token at 0.4 x 10^12: 1.28 s; 1,024 responses in one batch, 256 at a time: four times the
    mean of 50 tokens."""
    assert SPEED is not None
    stage = PlannedStage(name="eval", num_responses=1024, max_tokens=100, batch=1024)
    assert stage_seconds(stage, config_of(), MODEL, 25, SPEED) == pytest.approx(200 * 1.28)


def test_training_counts_every_pass():
    """PPO: the policy scores (2), trains (6), the reference scores (2); the critic scores and trains (8)."""
    assert operations_per_token(config_of(), MODEL) == 18e9
    assert operations_per_token(config_of("trainer.recompute_activations=true"), MODEL) == 22e9
    assert operations_per_token(config_of("algo=grpo", "algo.kl=none", "algo.kl_coef=0"), MODEL) == 8e9
    assert operations_per_token(config_of("algo=grpo", "algo.kl=none", "algo.kl_coef=0", "model/adapter=lora"), MODEL) == 6e9
    one_update = config_of("algo=grpo", "algo.kl=none", "algo.kl_coef=0", "algo.updates_per_rollout=1")
    assert operations_per_token(one_update, MODEL) == 6e9  # which has the log-probs on its way
    assert SPEED is not None
    sampled = PlannedStage(name="phase2", num_responses=8, max_tokens=100, batch=8)
    trained = PlannedStage(name="phase2", num_responses=8, max_tokens=100, batch=8, num_trained=8)
    both = [stage_seconds(stage, config_of(), MODEL, 50, SPEED) for stage in (sampled, trained)]
    assert both[1] - both[0] == pytest.approx(8 * 100 * 18e9 / 0.4e12)


def test_devices_share_the_work():
    """Two engines of two GPUs: 512 responses each, 256 at a time, half of the time a token; four ranks: a quarter."""
    assert SPEED is not None
    shared = config_of("rollout.num_engines=2", "rollout.tensor_parallel_size=2", "cluster=ray", "cluster.learner_ranks=4")
    stage = PlannedStage(name="phase2", num_responses=1024, max_tokens=100, batch=1024)
    assert stage_seconds(stage, shared, MODEL, 25, SPEED) == pytest.approx(100 * 1.28 / 2)
    trained = replace(stage, num_trained=1024)
    one, four = (stage_seconds(trained, config, MODEL, 25, SPEED) for config in (config_of(), shared))
    assert four - 100 * 1.28 / 2 == pytest.approx((one - 200 * 1.28) / 4)
    here = config_of("rollout.num_engines=2")
    assert stage_seconds(stage, here, MODEL, 25, SPEED) == pytest.approx(200 * 1.28)


def test_with_sampling_ahead_the_longer_of_both_counts():
    """8 responses of 100 tokens, with prompts: 36 s of training beside 67 s of sampling, 360 s for ten times as many."""
    ahead = "trainer={sample_ahead: true, validate_every: 2}", "algo.sampler_correction=token", "rollout.num_engines=2"
    assert SPEED is not None
    sampled = PlannedStage(name="phase2", num_responses=8, max_tokens=100, batch=8)
    times = [stage_seconds(replace(sampled, num_trained=n), config_of(*ahead), MODEL, 50, SPEED) for n in (0, 8, 80)]
    assert 66 < times[0] == times[1] < 67 and times[2] == pytest.approx(360)


def test_a_gpu_that_is_planned_for_multiplies_in_bfloat16():
    assert load_config("eval", "model=hf", "model.path=x", "device=h100").model.dtype == "bfloat16"
    given = load_config("eval", "model=hf", "model.path=x", "device=h100", "model.dtype=float32")
    assert given.model.dtype == "float32"


def test_nothing_is_said_of_a_device_without_a_data_sheet():
    assert speed_of(DeviceConfig()) is None


def test_a_dry_run_plans_for_another_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["conclip", "train-phase2", "device=rtx4090", "--dry-run"])
    main()
    said = capfd.readouterr().out
    assert "engine: its share" in said and "data sheet" in said and "24.0 on RTX 4090" in said
    assert list(tmp_path.iterdir()) == []
