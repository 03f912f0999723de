"""Shared fixtures. No test needs the network or a GPU."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
import yaml
from transformers import Qwen2ForCausalLM

from benchmarks.lab_model.pretrain import model_config
from benchmarks.lab_model.tokenizer import build_tokenizer
from conclip.config.compose import load_config
from conclip.config.schema import TrainRunConfig
from conclip.curriculum.selection import Choice, Selection
from conclip.experiments.inputs import Inputs, load_inputs
from conclip.models.folder import LAB_MODEL
from conclip.rollout.session import Runtime, encode_prompts, open_runtime
from conclip.runs.run import Run
from conclip.training.batch import ExperienceBatch
from conclip.training.learner import Learner
from conclip.training.phase import PhaseInputs
from conclip.training.trainer import Trainer
from conclip.types import Completion, EvalRow, FinishReason, Grade, Outcome, Problem, Rollout, RolloutGroup
from tests.engines import ROLLOUT, SEAM, SETTINGS, Engines
from tests.scripted import ScriptedEngine

# The same examples in every run, and none fails for being slow on a busy machine
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def _config_files_are_parsed_once() -> Iterator[None]:
    """Hydra reads some twenty files for a config, the same ones for hundreds of tests; parsing them is most of its time."""
    load, parsed = yaml.load, dict[str, Any]()

    def load_once(stream: Any, Loader: Any) -> Any:
        if Loader.__name__ != "OmegaConfLoader" or not hasattr(stream, "read"):
            return load(stream, Loader)
        text = stream.read()
        if text not in parsed:
            stream.seek(0)  # the stream's name stands in what is said of its faults
            parsed[text] = load(stream, Loader)
        return parsed[text]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(yaml, "load", load_once)
        yield


@pytest.fixture(autouse=True)
def _a_run_that_fails_ends_its_test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """`main` ends its process at once where the machine failed a run; here that is the process of all tests."""
    monkeypatch.setattr("conclip.cli.main._leave", sys.exit)


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    """An engine in this process sets variables that processes started by later tests would inherit."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of the lab's shape with random weights: for what must hold of any model."""
    folder = tmp_path_factory.mktemp("random-model")
    torch.manual_seed(7)
    tokenizer = build_tokenizer()
    Qwen2ForCausalLM(model_config(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def here() -> ScriptedEngine:
    """An engine in this process, to compare those in others with."""
    return ScriptedEngine(LAB_MODEL, ROLLOUT, **SETTINGS)


@pytest.fixture
def said() -> list[str]:
    """What the owner of an engine in another process is warned of."""
    return []


@cache
def train_config(*overrides: str) -> TrainRunConfig:
    """A phase of two small steps."""
    small = ["debug=train", "phase.num_steps=2", "trainer.validate_every=2", "data.validation.chain.num_problems=2"]
    loaded = load_config("train-phase2", *small, *overrides)
    assert isinstance(loaded, TrainRunConfig)
    return loaded


def runtime_with(engine: Callable[..., Any], outputs: Path) -> Iterator[tuple[Runtime, Inputs]]:
    """What a phase of two small steps is trained with, on this engine."""
    settings = train_config(f"paths.outputs={outputs}")
    inputs = load_inputs(settings)
    run = Run("train-phase2", settings, "test")
    try:
        prompts = encode_prompts(settings, inputs.model_path, inputs.problems)
        with open_runtime(settings, run, inputs.model_path, prompts) as opened:
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(SEAM, engine)
                assert opened.engine.policy_version == 0  # it starts when it is first used
            yield opened, inputs
    finally:
        run.close()


@pytest.fixture(scope="session")
def engines() -> Iterator[Engines]:
    """The real engine of this process; only tests marked `engine` may start one."""
    engines = Engines()
    yield engines
    engines.close()


@pytest.fixture(scope="module")
def runtime(engines: Engines, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Runtime, Inputs]]:
    """With the real engine."""
    yield from runtime_with(engines.lend, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def scripted_runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Runtime, Inputs]]:
    """With an engine that samples nothing: for what is not about sampling."""
    yield from runtime_with(ScriptedEngine, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process get an engine that samples nothing."""
    monkeypatch.setattr(SEAM, ScriptedEngine)


@pytest.fixture
def lent(monkeypatch: pytest.MonkeyPatch, engines: Engines) -> None:
    """Runs in this process borrow the real engine."""
    monkeypatch.setattr(SEAM, engines.lend)


def pytest_make_parametrize_id(val: object) -> str | None:
    """A long text is no name: it would stand in each report, once or more often."""
    return f"{val[:40]!a}...{len(val)}" if isinstance(val, str | bytes) and len(val) > 200 else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What uses the real engine runs in one process, which starts it once."""
    for item in items:
        if item.get_closest_marker("engine") and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group("engine"))


def make_trainer(
    opened: Runtime, inputs: Inputs, stage: str, settings: TrainRunConfig, selection: Selection, key: str = "any"
) -> Trainer:
    """A phase of the lab's model on the runtime's engine."""
    phase = PhaseInputs(
        stage=stage,
        settings=settings.phase,
        model_path=LAB_MODEL,
        selection=selection,
        validation=inputs.validation,
        key=key,
    )
    return Trainer(phase, settings, opened)


def by_hand(problems: Sequence[Problem]) -> Selection:
    return Selection(chosen=tuple(Choice(problem=p, reason="by hand", rate=None) for p in problems), reserve=())


def make_rollout(
    token_ids: Sequence[int],
    *,
    prompt: Sequence[int] = (5, 6),
    outcome: Outcome = Outcome.CORRECT,
    reward: float | None = 1.0,
    problem_id: str = "p",
    sample: int = 0,
    finish_reason: FinishReason = "stop",
) -> Rollout:
    """A rollout made by hand; log-probs are -0.1, -0.2, ... by position."""
    return Rollout(
        problem=Problem(problem_id=problem_id, question="q", answer="1", source="test"),
        sample=sample,
        prompt_token_ids=tuple(prompt),
        completion=Completion(
            request_id=f"{problem_id}/{sample}",
            token_ids=tuple(token_ids),
            logprobs=tuple(-0.1 * (i + 1) for i in range(len(token_ids))),
            finish_reason=finish_reason,
            policy_version=1,
        ),
        text="",
        grade=Grade(outcome=outcome, extracted=None),
        reward=reward,
    )


def make_row(problem: str, outcome: Outcome, tokens: int, sample: int = 0, **changes: Any) -> EvalRow:
    """An evaluation row made by hand."""
    values: dict[str, Any] = {
        "benchmark": "b",
        "problem_id": problem,
        "level": None,
        "subject": None,
        "model": "model",
        "prompt": "plain",
        "sample": sample,
        "seed": 0,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": -1,
        "max_tokens": 512,
        "outcome": outcome,
        "extracted": None,
        "lenient_outcome": outcome,
        "lenient_extracted": None,
        "method": None,
        "grader_version": 2,
        "answer": "1",
        "num_tokens": tokens,
        "num_prompt_tokens": 3,
        "finish_reason": "length" if outcome is Outcome.TRUNCATED else "stop",
        "key": f"{problem}/{sample}",
        "text": "",
    }
    return EvalRow(**(values | changes))


def make_group(*rollouts: Rollout) -> RolloutGroup:
    return RolloutGroup(problem=rollouts[0].problem, rollouts=rollouts)


def gradient_of(learner: Learner, experience: ExperienceBatch, *, kl_coef: float) -> tuple[torch.Tensor, dict[str, float]]:
    """The gradient of one update over all rows (policy, then critic), before it is clipped, and the update's statistics."""
    gradients: list[torch.Tensor] = []

    def keep(module: torch.nn.Module) -> float:
        gradients.append(flat_gradient(module))
        module.zero_grad()
        return 0.0

    learner.backend.clip = keep  # type: ignore[method-assign]
    stats = learner.update(experience, torch.Generator().manual_seed(0), kl_coef=kl_coef).stats
    return torch.cat(gradients), stats


def flat_gradient(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
