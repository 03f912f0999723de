"""Every algorithm and every length reward takes real steps: one engine, the lab model, the trainer as users run it."""

import json
import math
from collections.abc import Iterator

import pytest

from conclip.compose import config_folder, load_config
from conclip.config import TrainRunConfig
from conclip.inputs import Inputs, load_inputs
from conclip.models.folder import LAB_MODEL
from conclip.runlog import Run
from conclip.runtime import Runtime, open_runtime
from conclip.training.trainer import StaleEngine, Trainer

pytestmark = pytest.mark.engine


def config(*overrides: str) -> TrainRunConfig:
    small = ["debug=train", "phase.num_steps=2", "trainer.validate_every=2", "data.validation.chain.num_problems=2"]
    loaded = load_config("train-phase2", *small, *overrides)
    assert isinstance(loaded, TrainRunConfig)
    return loaded


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Runtime, Inputs]]:
    settings = config(f"paths.outputs={tmp_path_factory.mktemp('runs')}")
    inputs = load_inputs(settings)
    run = Run("train-phase2", settings)
    try:
        with open_runtime(settings, run, inputs.model_path, inputs.problems, settings.rollout.max_tokens) as opened:
            yield opened, inputs
    finally:
        run.close()


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))


def train(runtime: tuple[Runtime, Inputs], stage: str, *overrides: str) -> list[dict[str, float]]:
    opened, inputs = runtime
    settings = config(*overrides)
    trainer = Trainer(
        stage,
        settings,
        settings.phase,
        opened,
        model_path=LAB_MODEL,
        problems=[problem for problem in inputs.pool if problem.level == 4][:4],
        validation=inputs.validation,
    )
    result = trainer.train()
    assert result.history[0].step == 0 and result.history[-1].step == 2
    rows = [json.loads(line) for line in (opened.run.folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["stage"] == stage]
    assert all(value is not None and math.isfinite(value) for row in steps for k, value in row.items() if k != "stage")
    return steps


@pytest.mark.parametrize("algo", options("algo"))
def test_an_algorithm_takes_its_steps(runtime: tuple[Runtime, Inputs], algo: str):
    steps = train(runtime, algo, f"algo={algo}")
    warmup = config(f"algo={algo}").algo.critic_warmup_steps
    assert [row["step"] for row in steps] == list(range(1 - warmup, 3))
    assert all(("policy/loss" in row) == (row["step"] > 0) for row in steps)
    assert all(row["policy/sampler_drift_max"] < 1e-4 for row in steps)
    assert steps[-1]["optim/policy_grad_norm"] > 0


@pytest.mark.parametrize("length", [name for name in options("length") if name != "none"])
def test_a_length_reward_takes_its_steps(runtime: tuple[Runtime, Inputs], length: str):
    steps = train(runtime, f"length-{length}", "algo=grpo", "reward=binary", f"length={length}")
    assert len(steps) == 2


def test_thinkprune_cuts_responses_at_its_limit(runtime: tuple[Runtime, Inputs]):
    steps = train(runtime, "cut", "algo=grpo", "length=thinkprune", "length.limits=[1.0,0.25]")
    assert steps[0]["length/max_tokens"] > 48 >= steps[1]["length/max_tokens"]  # a quarter of 192
    assert steps[1]["outcome/truncated"] > steps[0]["outcome/truncated"]


def test_dynamic_sampling_leaves_no_group_without_a_signal(runtime: tuple[Runtime, Inputs]):
    steps = train(runtime, "dynamic", "algo=dapo", "algo.dynamic_sampling_rounds=6")
    assert all(row["policy/share_zero_advantage_groups"] == 0 for row in steps)
    assert all(row["rollout/share_groups_all_correct"] == row["rollout/share_groups_none_correct"] == 0 for row in steps)


def test_the_kl_coefficient_adapts(runtime: tuple[Runtime, Inputs]):
    steps = train(runtime, "adaptive", "algo.kl_target=1e-6")
    assert steps[0]["policy/kl_coef"] == 0.01 and steps[1]["policy/kl_coef"] != 0.01


def test_an_engine_at_another_version_does_not_train(runtime: tuple[Runtime, Inputs]):
    opened, inputs = runtime
    settings = config()
    trainer = Trainer(
        "stale",
        settings,
        settings.phase,
        opened,
        model_path=LAB_MODEL,
        problems=inputs.pool[:4],
        validation=inputs.validation,
    )
    opened.engine.update_weights(LAB_MODEL, opened.engine.policy_version + 1)  # behind the trainer's back
    with pytest.raises(StaleEngine, match="the learner is at"):
        trainer.train()


def test_a_budget_of_tokens_ends_the_phase(runtime: tuple[Runtime, Inputs]):
    opened, inputs = runtime
    settings = config("phase.num_steps=50", "phase.max_sampled_tokens=3000", "phase.stop_accuracy_drop=1")
    problems = inputs.pool[:4]
    trainer = Trainer(
        "budget", settings, settings.phase, opened, model_path=LAB_MODEL, problems=problems, validation=inputs.validation
    )
    assert 0 < trainer.train().history[-1].step < 10
    rows = [json.loads(line) for line in (opened.run.folder / "metrics.jsonl").read_text().splitlines()]
    sampled = [row["rollout/num_sampled_tokens"] for row in rows if row["stage"] == "budget"]
    assert sampled[-1] >= 3000 and all(count < 3000 for count in sampled[:-1])
