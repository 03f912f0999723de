"""What a run will take, measured: a few responses and one update of this model on this machine."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import numpy as np
import torch

from conclip.config.schema import BaseConfig, LearnConfig
from conclip.experiments.inputs import Inputs
from conclip.experiments.plan import PlannedStage
from conclip.grading.grader import Grader
from conclip.rollout.session import Prompts, Runtime, open_runtime
from conclip.runs.run import Run
from conclip.training.backend import Backend
from conclip.training.batch import collate
from conclip.training.experience import make_experience
from conclip.training.learner import Learner
from conclip.training.rewards import reward_group
from conclip.types import Outcome, Rollout, RolloutGroup, SamplingSpec

NUM_PROBLEMS, NUM_SAMPLES = 8, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A first look at a model on this machine."""

    num_responses: int
    start_s: float
    """Time until the engine was ready."""
    sampling_tokens_per_s: float
    mean_tokens: float
    ended_tokens: float | None
    """Length below which 95 % of the responses that ended by themselves stayed; None where none ended."""
    shares: Mapping[Outcome, float]
    update_s_per_1000_tokens: float | None
    """Time of scoring and updating per 1,000 sampled tokens; None where nothing trains."""


def measure(config: BaseConfig, inputs: Inputs, prompts: Mapping[Path, Prompts]) -> Measured:
    """Sample four responses to each of eight problems, in one batch, and train once on them where the config trains. Writes
    nothing that stays."""
    problems = (inputs.pool or inputs.test)[:NUM_PROBLEMS]
    model = inputs.model_path
    with TemporaryDirectory() as folder:
        quiet = replace(config.logger, display="quiet", trackers=[])
        config = replace(config, logger=quiet, paths=replace(config.paths, outputs=folder))
        run = Run("measure", config, "")
        try:
            with open_runtime(config, run, model, prompts[model]) as runtime:
                began = time.monotonic()
                runtime.engine.reset_cache()
                start_s = time.monotonic() - began
                _start_workers(runtime.grader)
                began = time.monotonic()
                groups = runtime.sample_groups("first look", problems, _spec(config, runtime), NUM_SAMPLES, "measure")
                sampling_s = time.monotonic() - began
                runtime.engine.sleep()
                learning = config.learning
                update_s = _update_s(learning, model, groups) if learning is not None else None
        finally:
            run.close()
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return _measured(rollouts, start_s, sampling_s, update_s)


def _spec(config: BaseConfig, runtime: Runtime) -> SamplingSpec:
    """Return how the run samples most: for training, or for the evaluation where it has nothing else."""
    if config.probing is not None or (settings := config.evaluation) is None:
        return runtime.training_spec
    return replace(runtime.training_spec, max_tokens=settings.max_tokens, temperature=max(settings.temperatures))


def _start_workers(grader: Grader) -> None:
    """Let both of the grader's workers load: their first verdict takes seconds, which no later one does."""
    for number in (2, 3):
        fraction = rf"\boxed{{\frac{{{number}}}{{{2 * number}}}}}"
        grader.submit(f"first {number}", gold="1/2", text=fraction, finish_reason="stop")
    num_done = 0
    while num_done < 2:
        num_done += len(grader.poll(1.0))


def _measured(rollouts: Sequence[Rollout], start_s: float, sampling_s: float, update_s: float | None) -> Measured:
    lengths = [rollout.completion.num_tokens for rollout in rollouts]
    ended = [r.completion.num_tokens for r in rollouts if r.completion.finish_reason == "stop"]
    return Measured(
        num_responses=len(rollouts),
        start_s=start_s,
        sampling_tokens_per_s=sum(lengths) / sampling_s,
        mean_tokens=fmean(lengths),
        ended_tokens=float(np.quantile(ended, 0.95)) if ended else None,
        shares={outcome: fmean(r.grade.outcome is outcome for r in rollouts) for outcome in Outcome},
        update_s_per_1000_tokens=None if update_s is None else 1000 * update_s / sum(lengths),
    )


def _update_s(config: LearnConfig, model: Path, groups: Sequence[RolloutGroup]) -> float:
    """Return the time of scoring these groups and updating once on them."""
    learner = Learner(Backend(model, config, num_updates=config.algo.updates_per_rollout), config)
    began = time.monotonic()
    tokens = collate([reward_group(group, config.reward, None) for group in groups], train_on_truncated=True)
    experience = make_experience(tokens, learner.score(tokens), config.algo, kl_coef=config.algo.kl_coef)
    learner.update(experience, torch.Generator().manual_seed(0), kl_coef=config.algo.kl_coef)
    return time.monotonic() - began


def describe(measured: Measured, planned: Sequence[PlannedStage]) -> list[str]:
    """Return what was measured, and what each stage will take at this rate, in words."""
    shares = ", ".join(f"{share:.0%} {outcome.value}" for outcome, share in measured.shares.items() if share)
    lines = [
        f"engine ready after {measured.start_s:.0f} s; {measured.num_responses} responses at once: "
        f"{measured.sampling_tokens_per_s:.0f} tokens/s, {measured.mean_tokens:.0f} tokens each; {shares}",
    ]
    if measured.ended_tokens is not None:
        lines.append(f"95 % of the responses that ended by themselves took at most {measured.ended_tokens:.0f} tokens")
    if measured.update_s_per_1000_tokens is not None:
        lines.append(f"scoring and update: {measured.update_s_per_1000_tokens:.1f} s per 1,000 sampled tokens")
    total = 0.0
    for stage in (one.ended_by_tokens(measured.mean_tokens) for one in planned):
        if not stage.num_responses:
            lines.append(f"{stage.name}: not measured")
            continue
        tokens = measured.mean_tokens * stage.num_responses
        seconds = tokens / measured.sampling_tokens_per_s
        seconds += measured.mean_tokens * stage.num_trained / 1000 * (measured.update_s_per_1000_tokens or 0.0)
        total += seconds
        lines.append(f"{stage.name}: {stage.num_responses:,} responses, about {tokens:,.0f} tokens, {seconds / 60:.1f} min")
    some = "about" if all(stage.num_responses for stage in planned) else "at least"
    whole = f"in all {some} {total / 60:.0f} min at this rate"
    return [*lines, f"{whole}; larger batches sample faster, and responses shrink in phase 2"]
