"""The time of a stage on a device that is known by its data sheet only: bounds by arithmetic, and what is usually reached of
them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from conclip.config.groups import DeviceConfig
from conclip.config.schema import BaseConfig, LearnConfig
from conclip.experiments.memory import ModelSize, num_ranks
from conclip.experiments.memory_plan import MemoryPlan
from conclip.experiments.plan import PlannedStage

REACHED = 0.4
"""The share of a data sheet's operations per second that training of dense transformers usually reaches (assumed)."""
READ = 0.6
"""The share of its memory bandwidth that sampling usually reaches (assumed)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What a device does in a second."""

    operations: float
    bytes_read: float


def speed_of(device: DeviceConfig) -> Speed | None:
    """Return what the device is assumed to reach; None where its data sheet is not in the config."""
    if device.tflops is None or device.bandwidth_gb_per_s is None:
        return None
    return Speed(operations=REACHED * 1e12 * device.tflops, bytes_read=READ * 1e9 * device.bandwidth_gb_per_s)


def by_data_sheet(config: BaseConfig, memory: MemoryPlan | None) -> Callable[[PlannedStage], float] | None:
    """Return what gives the time of a stage on the device of the config; None where its data sheet is not known."""
    speed = speed_of(config.device)
    if speed is None or memory is None:
        return None
    prompt_tokens = memory.longest - config.rollout.max_tokens
    return partial(stage_seconds, config=config, model=memory.model, prompt_tokens=prompt_tokens, speed=speed)


def stage_seconds(stage: PlannedStage, config: BaseConfig, model: ModelSize, prompt_tokens: int, speed: Speed) -> float:
    """Return the time of a stage [s], for responses of half their limit on average.

    One token of each response is sampled at a time. That reads all weights and the keys and values of all responses, or
    computes 2 operations per weight and response, whichever takes longer. Training computes 2 operations per weight and
    token forward and 4 backward, 2 more where activations are recomputed (Kaplan et al. 2020, section 2.1). With
    trainer.sample_ahead both go on at once, and the longer one counts. Engines share the responses, the GPUs of one engine
    its weights, and ranks the training, each with a device of its own; what they tell each other takes no time here.
    """
    if stage.num_responses == 0:
        return math.nan
    mean = stage.max_tokens / 2
    width = 2 if config.model.dtype == "bfloat16" else 4
    num_engines = config.rollout.num_engines if config.cluster.kind == "ray" else 1  # elsewhere they share a device
    batch = math.ceil(stage.batch / num_engines)
    at_once = min(config.rollout.max_num_seqs, batch)
    held = at_once * (prompt_tokens + mean / 2) * width * model.kv_per_token
    one_token = max(
        (width * model.num_parameters + held) / speed.bytes_read, 2 * model.num_parameters * at_once / speed.operations
    )
    one_token /= config.rollout.tensor_parallel_size
    rounds = math.ceil(stage.num_responses / stage.batch)
    seconds = rounds * max(stage.max_tokens, batch / at_once * mean) * one_token
    if stage.num_trained and (learning := config.learning) is not None:
        tokens = stage.num_trained * (prompt_tokens + mean)
        training = tokens * operations_per_token(learning, model) / speed.operations / num_ranks(learning)
        return max(seconds, training) if learning.trainer.sample_ahead else seconds + training
    return seconds


def operations_per_token(config: LearnConfig, model: ModelSize) -> float:
    """Return the operations of scoring and updating per token: the policy's pass, where it has one before the update, the
    reference's, the critic's, and a forward and a backward pass of each model that trains. With adapters the backward pass
    leaves out the gradients of the frozen weights."""
    backward = 2.0 if config.model.adapter.kind == "lora" else 4.0
    update = 2.0 + backward + (2.0 if config.trainer.recompute_activations else 0.0)
    scoring = 2.0 * (config.algo.scores_policy + config.algo.has_reference)
    policy = (scoring + update) * model.num_parameters
    return policy + ((2.0 + update) * model.body if config.algo.has_critic else 0.0)
