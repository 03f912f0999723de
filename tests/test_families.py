"""Every model family the docs name, as a tiny random model: sampled by the real engine, trained one step, saved, read again;
engine and learner must agree on the log-probs of what was sampled all along.

Two families run with all tests; `make families` runs every one and prints the table of docs/models.md.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from conclip.config.compose import load_config
from conclip.config.schema import TrainRunConfig
from conclip.errors import UserError
from conclip.experiments.inputs import load_inputs
from conclip.lab.arithmetic import generate
from conclip.models.architectures import implementation
from conclip.problems.prompts import encode_prompt
from conclip.rollout.engine import RolloutEngine
from conclip.rollout.pool import EnginePool
from conclip.rollout.session import start_engine
from conclip.training.backend import Backend
from conclip.training.batch import collate
from conclip.training.checkpoint import save_model
from conclip.training.experience import make_experience
from conclip.training.learner import Learner
from conclip.types import Completion, Grade, Outcome, Request, Rollout, RolloutGroup, SamplingSpec
from tests.engines import Engines
from tests.families import FAMILIES, REFUSED, TOKENIZER, make_model

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("families")]

WITH_ALL_TESTS = ("Qwen3-MoE", "Gemma 2")
PROBLEMS = generate("chain", levels=(2, 4), split="test", num_problems=4, seed=0, source="chain")
SPEC = SamplingSpec(temperature=0.8, max_tokens=40)
CLOSE = 1e-4


def settings_for(folder: Path, *overrides: str) -> TrainRunConfig:
    small = [
        "debug=train",
        "rollout.kv_cache_gib=0.25",
        "rollout.max_model_len=256",
        "rollout.max_num_seqs=32",
        "optim.policy_lr=0.01",
    ]
    loaded = load_config("train-phase2", "model=hf", f"model.path={folder}", "model.dtype=float32", *small, *overrides)
    assert isinstance(loaded, TrainRunConfig)
    return dataclasses.replace(loaded, rollout=dataclasses.replace(loaded.rollout, temperature=SPEC.temperature))


def sample(engine: RolloutEngine, prompts: Mapping[str, tuple[int, ...]]) -> list[RolloutGroup]:
    """Two responses to each problem, one said to be right."""
    engine.reset_cache()
    wanted = [
        Request(request_id=f"{problem_id}/{sample}", prompt_token_ids=prompt, seed=sample)
        for problem_id, prompt in prompts.items()
        for sample in range(2)
    ]
    engine.submit(wanted, SPEC)
    found: dict[str, Completion] = {}
    while len(found) < len(wanted):
        found |= {completion.request_id: completion for completion in engine.poll()}
    return [
        RolloutGroup(
            problem=problem,
            rollouts=tuple(
                Rollout(
                    problem=problem,
                    sample=sample,
                    prompt_token_ids=prompts[problem.problem_id],
                    completion=found[f"{problem.problem_id}/{sample}"],
                    text="",
                    grade=Grade(outcome=Outcome.CORRECT if sample else Outcome.WRONG, extracted=None),
                    reward=float(sample),
                )
                for sample in range(2)
            ),
        )
        for problem in PROBLEMS
    ]


def gap(learner: Learner, groups: Sequence[RolloutGroup]) -> float:
    """The largest difference between the engine's log-prob of a sampled token and the learner's."""
    tokens = collate(groups, train_on_truncated=True)
    difference = (learner.logprobs(tokens) - tokens.sampler_logprobs) * tokens.response_mask
    worst = float(difference.abs().max())
    assert math.isfinite(worst)
    return worst


def train(learner: Learner, groups: Sequence[RolloutGroup], config: TrainRunConfig) -> None:
    tokens = collate(groups, train_on_truncated=True)
    experience = make_experience(tokens, learner.score(tokens), config.algo, kl_coef=0.0)
    learner.update(experience, torch.Generator().manual_seed(0), kl_coef=0.0)


def as_parameters(families: Sequence[str]) -> list[Any]:
    return [pytest.param(name, marks=[] if name in WITH_ALL_TESTS else [pytest.mark.families], id=name) for name in families]


@pytest.fixture(autouse=True)
def _no_other_engine(engines: Engines) -> None:
    engines.close()


@contextmanager
def opened(folder: Path, config: TrainRunConfig) -> Iterator[RolloutEngine]:
    engine = start_engine(config, folder, max_model_len=256, warn=pytest.fail)
    try:
        assert isinstance(engine, EnginePool) == (implementation(folder) == "transformers")
        yield engine
    finally:
        engine.close()


@pytest.mark.parametrize("family", as_parameters([name for name in FAMILIES if name not in REFUSED]))
def test_a_family_is_sampled_trained_saved_and_read_again(family: str, tmp_path: Path):
    folder = make_model(family, tmp_path / "model")
    config = settings_for(folder)
    load_inputs(config)
    prompts = {p.problem_id: encode_prompt(TOKENIZER, p.question, config.model) for p in PROBLEMS}
    with opened(folder, config) as engine:
        learner = Learner(Backend(folder, config, num_updates=1), config)
        groups = sample(engine, prompts)
        before = gap(learner, groups)
        train(learner, groups, config)
        stale = gap(learner, groups)
        engine.update_weights(learner.backend.models.weights(), 1)
        after = gap(learner, sample(engine, prompts))

        saved = tmp_path / "saved"
        save_model(saved, learner.export, TOKENIZER, problems=[], earlier=[])
        engine.update_weights(folder, 2)
        back = gap(Learner(Backend(folder, config, num_updates=1), config), sample(engine, prompts))
        engine.update_weights(saved, 3)
        again = gap(Learner(Backend(saved, config, num_updates=1), config), sample(engine, prompts))
    own = "vLLM's own" if implementation(folder) == "native" else "transformers'"
    print(f"\n| {family} | {own} | {max(before, after, back, again):.1e} |")  # noqa: T201  the table of docs/models.md
    assert stale > 100 * CLOSE  # the update is large enough to be seen
    assert max(before, after, back, again) < CLOSE, (before, after, back, again)


@pytest.mark.families
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in REFUSED])
def test_an_adapter_is_trained_served_saved_and_read_again(family: str, tmp_path: Path):
    """Apart where vLLM serves adapters of the family, else merged."""
    folder = make_model(family, tmp_path / "model")
    lora = ("model/adapter=lora", "model.adapter.rank=4")
    config = settings_for(folder, *lora, "model.adapter.serving=apart")
    prompts = {p.problem_id: encode_prompt(TOKENIZER, p.question, config.model) for p in PROBLEMS}
    try:
        engine = start_engine(config, folder, max_model_len=256, warn=pytest.fail)
        assert engine.takes_adapters()
    except UserError as error:
        assert "vLLM serves no adapters of" in str(error)
        config = settings_for(folder, *lora)
        engine = start_engine(config, folder, max_model_len=256, warn=pytest.fail)
    try:
        learner = Learner(Backend(folder, config, num_updates=1), config)
        groups = sample(engine, prompts)
        before = gap(learner, groups)
        train(learner, groups, config)
        stale = gap(learner, groups)
        learner.backend.models.push(engine, 1)
        after = gap(learner, sample(engine, prompts))
        saved = tmp_path / "saved"
        save_model(saved, learner.export, TOKENIZER, problems=[], earlier=[])
        engine.update_weights(saved, 2)
        again = gap(Learner(Backend(saved, config, num_updates=1), config), sample(engine, prompts))
    finally:
        engine.close()
    how = "apart" if engine.takes_adapters() else "merged"
    print(f"\n| {family} | adapter, {how} | {max(before, after, again):.1e} |")  # noqa: T201
    assert stale > 100 * CLOSE
    assert max(before, after, again) < CLOSE, (before, after, again)


@pytest.mark.parametrize("family", as_parameters(list(REFUSED)))
def test_a_family_that_is_refused_is_refused_for_a_reason(family: str, tmp_path: Path):
    from conclip.rollout.vllm_engine import VllmEngine

    folder = make_model(family, tmp_path)
    config = settings_for(folder)
    with pytest.raises(UserError, match=REFUSED[family]):
        load_inputs(config)
    prompts = {p.problem_id: encode_prompt(TOKENIZER, p.question, config.model) for p in PROBLEMS}
    engine = VllmEngine(folder, config.rollout, dtype="float32", seed=0, max_model_len=256)
    try:
        groups = sample(engine, prompts)
    finally:
        engine.close()
    worst = gap(Learner(Backend(folder, config, num_updates=1), config), groups)
    print(f"\n| {family} | {worst:.1e} |")  # noqa: T201  the table of docs/models.md
    assert worst > 100 * CLOSE
