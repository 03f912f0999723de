"""The memory plan of a run: what takes how much at which moment, before anything is loaded."""

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table

from conclip.config.groups import DeviceConfig
from conclip.config.machine import available_memory_gib, gpu_memory_gib
from conclip.config.schema import BaseConfig, LearnConfig
from conclip.errors import UserError
from conclip.models.folder import SHARD_BYTES, head_shape, layer_number, linear_shapes, num_parameters, ties_its_head

GIB = 2**30

LIBRARIES = {"cpu": 1.2, "gpu": 1.5}
"""What processes take before a model is loaded [GiB]: on a CPU, torch, vLLM and the grader's two workers (measured); on a
GPU, the contexts and kernels of torch and vLLM (assumed)."""

RANK_GIB = 0.4
"""What one more rank of a learner takes in main memory besides its models (measured on the lab: 0.35)."""

ENGINE_ROOM_GIB = 1.5
"""What an engine needs on a GPU besides its weights and the KV cache of a sequence (assumed)."""

FREE_SHARE = 0.02
"""The share of a GPU that the engine leaves beside the learner: no allocator uses up all of a card (assumed)."""

MOMENTS = {
    "sampling": "sampling",
    "transfer": "weights to the engine",
    "update": "the policy's update",
    "critic_update": "the critic's update",
}
"""The moments at which a part may take its own, and what tables call them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one thing takes [GiB]: while responses are sampled, while weights go to the engine, and during an update, the
    policy's gradients first and then the critic's."""

    name: str
    sampling: float = 0.0
    transfer: float = 0.0
    update: float = 0.0
    of_critic: float | None = None
    """What it takes in the critic's part of an update; None: the same."""
    exact: bool = True
    """Whether it follows from shapes and precisions; else it is an estimate."""
    beside: float = 0.0
    """What main memory holds of it for a GPU."""

    @property
    def critic_update(self) -> float:
        return self.update if self.of_critic is None else self.of_critic


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """What the memory plan needs to know of a model."""

    folder: Path
    num_parameters: int
    linear: Mapping[str, tuple[int, int]]
    """Shapes of the matrices that adapters are added to."""
    head: tuple[int, int] | None = None
    """Vocabulary and width of the output head."""
    tied: bool = True
    """Whether the output head is the embedding."""

    @classmethod
    def of(cls, folder: Path) -> "ModelSize":
        return cls(
            folder=folder,
            num_parameters=num_parameters(folder),
            linear=linear_shapes(folder),
            head=head_shape(folder),
            tied=ties_its_head(folder),
        )

    @property
    def largest_layer(self) -> int:
        """The number of parameters in the matrices of the largest layer."""
        sizes = Counter[str]()
        for name, (rows, columns) in self.linear.items():
            sizes[layer_number(name)] += rows * columns
        return max(sizes.values(), default=0)

    @property
    def kv_per_token(self) -> int:
        """The numbers that a KV cache holds for a token: the height of all key and value matrices; 0 where none are called
        so."""
        return sum(rows for name, (rows, _) in self.linear.items() if name.split(".")[-2:-1] in (["k_proj"], ["v_proj"]))

    @property
    def body(self) -> int:
        """The number of parameters below the output head, which a critic has too."""
        if self.tied or self.head is None:
            return self.num_parameters
        return self.num_parameters - self.head[0] * self.head[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where models live: one GPU, or the main memory."""

    kind: str
    """"cpu" or "gpu"."""
    memory_gib: float
    name: str = "this machine"
    beside_gib: float = math.inf
    """The main memory beside a GPU, which holds what is offloaded."""


def place_of(device: DeviceConfig) -> Place:
    """Return the memory of the device that the config names: by default the GPU of this machine or, without one, what is
    free of its main memory. Raises UserError for a GPU that neither is here nor has its memory named."""
    on_gpu = None if device.kind == "cpu" or device.memory_gib is not None else gpu_memory_gib()
    if device.kind == "gpu" and device.memory_gib is None and on_gpu is None:
        raise UserError("config key 'device.kind' is gpu, and this machine has none; name one to plan for: device=h100")
    kind = device.kind or ("cpu" if on_gpu is None else "gpu")
    beside = math.inf if on_gpu is None else available_memory_gib()
    memory = device.memory_gib or on_gpu or available_memory_gib()
    return Place(kind=kind, memory_gib=memory, name=device.name, beside_gib=beside)


def memory_parts(config: BaseConfig, model: ModelSize, longest: int, place: Place) -> list[Part]:
    """Return the parts of the memory that a run takes at its peak. `longest`: tokens of the longest prompt and response.

    Trained weights are fp32 with a gradient and two moments. Where adapters train, that is said of their weights; the base
    is there once, and a layer of it again, in fp32, while merged weights go to the engine. Of a learner in several ranks, a
    GPU has one, and main memory all.
    """
    parts = list(_engine(config, model, longest, place))
    if (learning := config.learning) is not None:
        parts += [*_weights(learning, model, place), *_of_ranks(learning, model, longest, place)]
    everywhere = LIBRARIES[place.kind]
    parts.append(Part(name="libraries", sampling=everywhere, transfer=everywhere, update=everywhere, exact=False))
    return [part for part in parts if max(part.sampling, part.transfer, part.update, part.critic_update, part.beside) > 0]


def _engine(config: BaseConfig, model: ModelSize, longest: int, place: Place) -> Iterator[Part]:
    weights = engine_weights_gib(config, model, place)
    if place.kind == "gpu":  # it takes its share when it starts, and sleeps during updates
        share = engine_share(config, model, place) * place.memory_gib
        if share < weights + engine_room_gib(config, model, longest):
            share = math.inf  # it would not start
        elif has_own_gpus(config):
            share = 0.0
        yield Part(name="engine: its share", sampling=share, transfer=share)
        return
    number = config.rollout.num_engines * config.rollout.tensor_parallel_size  # of processes, each with a cache of its own
    cache, weights = number * config.rollout.kv_cache_gib, config.rollout.num_engines * weights
    yield Part(name="engine: weights", sampling=weights, transfer=weights, update=weights)
    yield Part(name="engine: KV cache", sampling=cache, transfer=cache, update=cache)
    if number > 1:  # each is a process
        beside = number * LIBRARIES[place.kind]
        yield Part(name="engine: libraries", sampling=beside, transfer=beside, update=beside, exact=False)


def engine_room_gib(config: BaseConfig, model: ModelSize, longest: int) -> float:
    """Return what an engine needs of each GPU besides its weights: without the KV cache of the longest sequence vLLM does
    not start."""
    if config.learning is not None and config.evaluation is not None:
        longest = max(longest, config.evaluation.max_tokens)
    longest = max(longest, config.rollout.max_model_len or 0)
    each = 2 if config.model.dtype == "bfloat16" else 4
    return ENGINE_ROOM_GIB + each * model.kv_per_token * longest / config.rollout.tensor_parallel_size / GIB


def engine_share(config: BaseConfig, model: ModelSize, place: Place) -> float:
    """Return the share of a GPU's memory that the engine gets: that of the config or, without one, what the learner leaves
    while responses are sampled, without FREE_SHARE, in steps of 0.05, at most 0.9."""
    if config.rollout.gpu_memory_utilization is not None:
        return config.rollout.gpu_memory_utilization
    held = LIBRARIES[place.kind]
    if (learning := config.learning) is not None and not has_own_gpus(config):
        held += sum(max(part.sampling, part.transfer) for part in _weights(learning, model, place))
    return min(0.9, max(1, math.floor(20 * (1 - FREE_SHARE - held / place.memory_gib))) / 20)


def has_own_gpus(config: BaseConfig) -> bool:
    """Return whether engines have GPUs that nothing else uses."""
    return config.cluster.kind == "ray"


def engine_weights_gib(config: BaseConfig, model: ModelSize, place: Place) -> float:
    """Return the weights that the engine holds on each of its devices; in main memory, on all together."""
    each, learning = 2 if config.model.dtype == "bfloat16" else 4, config.learning
    adapter = config.model.adapter
    apart = learning is not None and adapter.wanted_apart(config.model.dtype, on_cpu=place.kind == "cpu")
    beside = 0.0
    if learning is not None and apart:  # vLLM keeps room for the next of the ranks it knows: 8, 16, 32, ...
        rank = max(8, 1 << (adapter.rank - 1).bit_length())
        beside = trained_parameters(learning, model)[0] * rank / adapter.rank
    shares = config.rollout.tensor_parallel_size if place.kind == "gpu" else 1
    return (model.num_parameters + beside) * each / shares / GIB


def _weights(config: LearnConfig, model: ModelSize, place: Place) -> Iterator[Part]:
    """Yield what the learner holds of models and optimiser."""
    policy, critic = trained_parameters(config, model)
    trained = policy + critic
    always: dict[str, float] = {}
    for_updates = (
        {"critic", "reference", "moments of AdamW"} if config.trainer.offload and place.kind == "gpu" else set[str]()
    )
    if config.model.adapter.kind == "lora":
        always["frozen base"] = base_bytes(config, model)
        always["adapters"] = 4.0 * trained
    else:
        always["policy"], always["critic"] = 4.0 * policy, 4.0 * critic
        each = 2.0 if config.algo.reference_dtype == "bfloat16" else 4.0
        always["reference"] = each * policy if config.algo.has_reference else 0.0
    moments = config.optim.bytes_of_moments
    always["moments of AdamW"] = moments * trained
    share = 1 / num_ranks(config) if place.kind == "gpu" else 1.0
    for name, whole in always.items():
        size = share * whole
        rests = name in for_updates
        sampling, beside = (0.0, size / GIB) if rests else (size / GIB, 0.0)
        yield Part(name=name, sampling=sampling, transfer=sampling, update=size / GIB, beside=beside)
    if config.trainer.save_in_background:  # written from main memory, while the next responses are sampled
        copy = (4 + moments) * trained / GIB
        here, beside = (copy, 0.0) if place.kind == "cpu" else (0.0, copy)
        yield Part(name="copy for a checkpoint", sampling=here, transfer=here, beside=beside)
    adapter = config.model.adapter
    apart = adapter.wanted_apart(config.model.dtype, on_cpu=place.kind == "cpu")
    if adapter.kind == "lora" and (adapter.base == "4bit" or not apart):
        yield Part(name="merged weights of a layer", transfer=4.0 * model.largest_layer / GIB)
    if adapter.kind == "lora" and place.kind == "cpu":  # written when the engine has the new weights
        largest = max(model.largest_layer, math.prod(model.head or (0,)))
        shard = min(4.0 * model.num_parameters, SHARD_BYTES + 4.0 * largest)
        yield Part(name="merged weights of a file", transfer=shard / GIB)
    yield Part(name="gradients", update=share * 4.0 * policy / GIB, of_critic=share * 4.0 * trained / GIB)


def num_ranks(config: BaseConfig) -> int:
    """Return how many processes share the learner's models: those of the config, or those that torchrun has started."""
    started = os.environ.get("WORLD_SIZE", "")
    return config.cluster.learner_ranks or (int(started) if started.isdecimal() else 1)


def _of_ranks(config: LearnConfig, model: ModelSize, longest: int, place: Place) -> Iterator[Part]:
    """Yield what the ranks of a learner need for their micro-batches, beside their shares of the models."""
    from conclip.training.side_by_side import number_at_once  # noqa: PLC0415  imports torch

    here = num_ranks(config) if place.kind == "cpu" else 1
    at_once = number_at_once(config.trainer, on_cpu=place.kind == "cpu", num_ranks=num_ranks(config))
    for part in _update(config, model, longest):
        yield replace(part, update=here * at_once * part.update, of_critic=here * at_once * part.critic_update)
    if at_once > 1:  # one of them waits to be added up
        policy, critic = (4.0 * (at_once + 1) * size / GIB for size in trained_parameters(config, model))
        yield Part(name="gradients of each micro-batch", update=policy, of_critic=critic, exact=False)
    if num_ranks(config) > 1:  # a layer and the next one, the embedding and the head, and their gradients
        gathered = 2 * model.largest_layer + (1 if model.tied else 2) * math.prod(model.head or (0,))
        yield Part(name="gathered weights", update=here * 8.0 * gathered / GIB, exact=False)
    if here > 1:
        beside = (here - 1) * RANK_GIB
        yield Part(name="ranks: libraries", sampling=beside, transfer=beside, update=beside, exact=False)


def _update(config: LearnConfig, model: ModelSize, longest: int) -> Iterator[Part]:
    """Yield what a micro-batch needs for its gradient."""
    from conclip.algo.logprobs import PEAK_BLOCKS, logits_at_a_time  # noqa: PLC0415  imports torch
    from conclip.models.activations import activations  # noqa: PLC0415
    from conclip.training.batch import largest_micro_batch  # noqa: PLC0415

    rows, longest = largest_micro_batch(longest, config.trainer.max_tokens_per_micro_batch)
    if model.head is not None:
        logits = min(logits_at_a_time(*model.head), rows * longest * model.head[0])
        yield Part(name="logits", update=PEAK_BLOCKS * 4 * logits / GIB, of_critic=0.0, exact=False)
        if config.model.adapter.kind == "none":  # one micro-batch's, before it is added to that of the others
            each = 6 if config.model.dtype == "bfloat16" else 4
            again = each * math.prod(model.head) / GIB
            yield Part(name="the head's gradient again", update=again, of_critic=0.0, exact=False)
    kept = activations(model.folder, rows, longest, config.model.adapter, config.model.dtype)
    peak = 0.0
    if kept is not None:
        peak = kept.peak(recompute=config.trainer.recompute_activations) / GIB
        yield Part(name="activations", update=peak, exact=False)
    if model.head is not None and config.algo.has_critic and config.model.adapter.kind == "none":
        again = 4 * math.prod(model.head) / GIB  # it comes last, when activations are gone
        yield Part(name="the embedding's gradient again", of_critic=max(0.0, again - peak), exact=False)


def trained_parameters(config: LearnConfig, model: ModelSize) -> tuple[int, int]:
    """Return how many parameters of policy and critic train."""
    adapter = config.model.adapter
    critic = config.algo.has_critic
    if adapter.kind == "none":
        return model.num_parameters, model.body if critic else 0
    chosen = [s for name, s in model.linear.items() if not adapter.targets or name.split(".")[-2] in adapter.targets]
    each = adapter.rank * sum(rows + columns for rows, columns in chosen)
    return each, each if critic else 0


def base_bytes(config: LearnConfig, model: ModelSize) -> float:
    """Return the bytes of the frozen base that adapters share."""
    base = config.model.adapter.base
    if base != "4bit":
        return model.num_parameters * (4.0 if base == "float32" else 2.0)
    # NF4: half a byte, and the largest value of each 64 in fp32; the rest of the model is not quantised
    quantised = sum(rows * columns for rows, columns in model.linear.values())
    rest = model.num_parameters - quantised
    return quantised * (0.5 + 4 / 64) + rest * (2.0 if config.model.dtype == "bfloat16" else 4.0)


def peak_gib(parts: Sequence[Part], *, exact_only: bool = False) -> float:
    """Return the largest sum of a moment."""
    counted = [part for part in parts if part.exact or not exact_only]
    return max(sum(getattr(part, moment) for part in counted) for moment in MOMENTS)


def memory_table(parts: Sequence[Part]) -> Table:
    """Return the parts and their sums as a table [GiB]."""
    table = Table(title="memory it needs [GiB]", title_justify="left")
    has_critic = any(part.critic_update > part.update for part in parts)
    moments = [moment for moment in MOMENTS if has_critic or moment != "critic_update"]
    for name in ("part", *(MOMENTS[moment] for moment in moments)):
        table.add_column(name, justify="left" if name == "part" else "right")
    for part in parts:
        if not any(getattr(part, moment) for moment in moments):
            continue  # it is in main memory beside the GPU
        values = [getattr(part, moment) for moment in moments]
        shown = ["" if not gib else f"{gib:.2f}" if math.isfinite(gib) else "too small" for gib in values]
        table.add_row(part.name if part.exact else f"{part.name} (estimate)", *shown)
    table.add_section()
    sums = [sum(getattr(part, moment) for part in parts) for moment in moments]
    table.add_row("in all", *(f"{gib:.2f}" if math.isfinite(gib) else "-" for gib in sums))
    return table
