"""The memory plan of a run: what takes how much at which moment, before anything is loaded."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from conclip.config.groups import DeviceConfig
from conclip.config.machine import available_memory_gib, gpu_memory_gib
from conclip.config.schema import BaseConfig, LearnConfig
from conclip.experiments.inputs import Inputs
from conclip.models.folder import head_shape, layer_number, linear_shapes, num_parameters, ties_its_head

if TYPE_CHECKING:
    from conclip.rollout.session import Prompts

GIB = 2**30

LIBRARIES = {"cpu": 1.2, "gpu": 1.5}
"""What processes take before a model is loaded [GiB]: on a CPU, torch, vLLM and the grader's two workers (measured); on a
GPU, the contexts and kernels of torch and vLLM (assumed)."""

ENGINE_ROOM_GIB = 1.5
"""What an engine needs on a GPU besides its weights, to start with some room for responses (assumed)."""

MOMENTS = ("sampling", "transfer", "update")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one thing takes [GiB], while responses are sampled, while weights go to the engine, and during an update."""

    name: str
    sampling: float = 0.0
    transfer: float = 0.0
    update: float = 0.0
    exact: bool = True
    """Whether it follows from shapes and precisions; else it is an estimate."""


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


def place_of(device: DeviceConfig) -> Place:
    """Return the memory of the device that the config names: by default the GPU of this machine or, without one, what is
    free of its main memory."""
    on_gpu = None if device.kind == "cpu" or device.memory_gib is not None else gpu_memory_gib()
    kind = device.kind or ("cpu" if on_gpu is None else "gpu")
    return Place(kind=kind, memory_gib=device.memory_gib or on_gpu or available_memory_gib(), name=device.name)


def memory_parts(config: BaseConfig, model: ModelSize, longest: int, place: Place) -> list[Part]:
    """Return the parts of the memory that a run takes at its peak. `longest`: tokens of the longest prompt and response.

    Trained weights are fp32 with a gradient and two moments. Where adapters train, that is said of their weights; the base
    is there once, and a layer of it again, in fp32, while merged weights go to the engine.
    """
    parts = list(_engine(config, model, place))
    if (learning := config.learning) is not None:
        parts += [*_weights(learning, model, place), *_update(learning, model, longest)]
    everywhere = LIBRARIES[place.kind]
    parts.append(Part(name="libraries", sampling=everywhere, transfer=everywhere, update=everywhere, exact=False))
    return [part for part in parts if max(part.sampling, part.transfer, part.update) > 0]


def _engine(config: BaseConfig, model: ModelSize, place: Place) -> Iterator[Part]:
    weights = engine_weights_gib(config, model, place)
    if place.kind == "gpu":  # it takes its share when it starts, and sleeps during updates
        share = engine_share(config, model, place) * place.memory_gib
        if share < weights + ENGINE_ROOM_GIB:
            share = math.inf  # it would not start
        yield Part(name="engine: its share", sampling=share, transfer=share)
        return
    cache = config.rollout.kv_cache_gib
    yield Part(name="engine: weights", sampling=weights, transfer=weights, update=weights)
    yield Part(name="engine: KV cache", sampling=cache, transfer=cache, update=cache)


def engine_share(config: BaseConfig, model: ModelSize, place: Place) -> float:
    """Return the share of a GPU's memory that the engine gets: that of the config or, without one, what the learner leaves
    while responses are sampled, in steps of 0.05, at most 0.9."""
    if config.rollout.gpu_memory_utilization is not None:
        return config.rollout.gpu_memory_utilization
    held = LIBRARIES[place.kind]
    if (learning := config.learning) is not None:
        held += sum(max(part.sampling, part.transfer) for part in _weights(learning, model, place))
    return min(0.9, max(1, math.floor(20 * (1 - held / place.memory_gib))) / 20)


def engine_weights_gib(config: BaseConfig, model: ModelSize, place: Place) -> float:
    """Return the weights that the engine holds on each of its devices."""
    each, learning = 2 if config.model.dtype == "bfloat16" else 4, config.learning
    apart = learning is not None and config.model.adapter.wanted_apart(config.model.dtype, on_cpu=place.kind == "cpu")
    beside = trained_parameters(learning, model)[0] if learning is not None and apart else 0
    return (model.num_parameters + beside) * each / config.rollout.tensor_parallel_size / GIB


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
    for name, size in always.items():
        resting = 0.0 if name in for_updates else size / GIB
        yield Part(name=name, sampling=resting, transfer=resting, update=size / GIB)
    if config.trainer.save_in_background and place.kind == "cpu":  # written while the next responses are sampled
        copy = (4 + moments) * trained / GIB
        yield Part(name="copy for a checkpoint", sampling=copy, transfer=copy)
    adapter = config.model.adapter
    apart = adapter.wanted_apart(config.model.dtype, on_cpu=place.kind == "cpu")
    if adapter.kind == "lora" and (adapter.base == "4bit" or not apart):
        yield Part(name="merged weights of a layer", transfer=4.0 * model.largest_layer / GIB)
    yield Part(name="gradients", update=4.0 * trained / GIB)


def _update(config: LearnConfig, model: ModelSize, longest: int) -> Iterator[Part]:
    """Yield what a micro-batch needs for its gradient."""
    from conclip.algo.logprobs import PEAK_BLOCKS, logits_at_a_time  # noqa: PLC0415  imports torch
    from conclip.models.activations import activations  # noqa: PLC0415
    from conclip.training.batch import largest_micro_batch  # noqa: PLC0415

    rows, longest = largest_micro_batch(longest, config.trainer.max_tokens_per_micro_batch)
    if model.head is not None:
        logits = min(logits_at_a_time(*model.head), rows * longest * model.head[0])
        yield Part(name="logits", update=PEAK_BLOCKS * 4 * logits / GIB, exact=False)
    kept = activations(model.folder, rows, longest, config.model.adapter, config.model.dtype)
    if kept is not None:
        peak = kept.peak(recompute=config.trainer.recompute_activations)
        yield Part(name="activations", update=peak / GIB, exact=False)


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
    for name in ("part", "sampling", "weights to the engine", "update"):
        table.add_column(name, justify="left" if name == "part" else "right")
    for part in parts:
        shown = [f"{gib:.2f}" if gib else "" for gib in (part.sampling, part.transfer, part.update)]
        table.add_row(part.name if part.exact else f"{part.name} (estimate)", *shown)
    table.add_section()
    sums = [sum(getattr(part, moment) for part in parts) for moment in MOMENTS]
    table.add_row("in all", *(f"{gib:.2f}" for gib in sums))
    return table


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of the config that saves memory."""

    overrides: str
    price: str
    values: Mapping[str, Any]
    """The keys that the overrides change, as far as they decide about memory."""


def changes(config: BaseConfig, model: ModelSize, longest: int, place: Place) -> Iterator[Change]:
    """Yield what would save memory, the cheapest first."""
    if config.learning is not None and place.kind == "cpu":
        key = "trainer.save_in_background"
        yield Change(overrides=f"{key}=false", price="training waits for checkpoints", values={key: False})
    key, value = "rollout.kv_cache_gib", 0.5
    if place.kind == "gpu":
        key = "rollout.gpu_memory_utilization"
        value = math.ceil(20 * (engine_weights_gib(config, model, place) + ENGINE_ROOM_GIB) / place.memory_gib) / 20
    lower = place.kind == "cpu" and config.rollout.kv_cache_gib > value
    if lower or (place.kind == "gpu" and value < 1 and config.rollout.gpu_memory_utilization is not None):
        yield Change(overrides=f"{key}={value}", price="what the engine needs at least", values={key: value})
    if (learning := config.learning) is None:
        return
    if place.kind == "gpu" and learning.optim.moments != "paged_8bit":
        key = "trainer.offload"
        yield Change(overrides=f"{key}=true", price="each step waits for the transfer", values={key: True})
    if config.model.dtype == "bfloat16" and learning.algo.has_reference and learning.model.adapter.kind == "none":
        key = "algo.reference_dtype"
        yield Change(overrides=f"{key}=bfloat16", price="a rounded reference", values={key: "bfloat16"})
    key = "trainer.max_tokens_per_micro_batch"
    if learning.trainer.max_tokens_per_micro_batch > longest:
        yield Change(overrides=f"{key}={longest}", price="more, smaller passes", values={key: longest})
    key = "trainer.recompute_activations"
    yield Change(overrides=f"{key}=true", price="a third more compute", values={key: True})
    yield Change(overrides="optim.moments=8bit", price="rounded moments", values={"optim.moments": "8bit"})
    lora, override = {"model.adapter.kind": "lora"}, "model/adapter=lora"
    if learning.algo.reference_dtype != "float32":  # the base is the reference then
        lora, override = lora | {"algo.reference_dtype": "float32"}, f"{override} algo.reference_dtype=float32"
    yield Change(overrides=override, price="adapters train, not all weights", values=lora)
    for base in ("bfloat16", "4bit"):
        yield Change(
            overrides=f"{override} model.adapter.base={base}",
            price=f"adapters on a base in {base}",
            values=lora | {"model.adapter.base": base},
        )
    yield Change(overrides="algo=grpo", price="no critic", values={"algo.advantage": "group_relative"})


def with_values(config: Any, values: Mapping[str, Any]) -> Any:
    """Return the config with other values of some dotted keys."""
    for key, value in values.items():
        name, _, rest = key.partition(".")
        config = dataclasses.replace(config, **{name: with_values(getattr(config, name), {rest: value}) if rest else value})
    return config


def remedies(config: BaseConfig, fits: Callable[[BaseConfig], bool], possible: Sequence[Change]) -> str:
    """Return in words the changes that would make a run fit: up to three that do so alone, else as few together as it
    takes."""
    alone = [change for change in possible if fits(with_values(config, change.values))][:3]
    if alone:
        return "any of these makes it fit: " + "; ".join(f"{change.overrides} ({change.price})" for change in alone)
    taken: list[Change] = []
    for change in possible:  # the cheapest first, until it fits; then what was not needed goes again
        taken.append(change)
        if fits(_with_all(config, taken)):
            break
    else:
        return "no setting makes it fit: take a smaller model, or a device with more memory"
    for change in list(taken):
        fewer = [other for other in taken if other is not change]
        if fits(_with_all(config, fewer)):
            taken = fewer
    return "these together make it fit: " + "; ".join(f"{change.overrides} ({change.price})" for change in taken)


def _with_all(config: BaseConfig, taken: Sequence[Change]) -> BaseConfig:
    for change in taken:
        config = with_values(config, change.values)
    return config


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What a run would take of a place."""

    config: BaseConfig
    model: ModelSize
    longest: int
    place: Place
    parts: Sequence[Part]

    @property
    def peak(self) -> float:
        """Return the largest sum of a moment [GiB]."""
        return peak_gib(self.parts)

    @property
    def fits(self) -> bool:
        return self.peak <= self.place.memory_gib

    @property
    def impossible(self) -> bool:
        """Whether what is known exactly exceeds the memory already."""
        return peak_gib(self.parts, exact_only=True) > self.place.memory_gib

    @property
    def settled(self) -> BaseConfig:
        """The config with the engine's share of a GPU as a number."""
        if self.place.kind == "cpu":
            return self.config
        share = engine_share(self.config, self.model, self.place)
        return with_values(self.config, {"rollout.gpu_memory_utilization": share})

    def verdict(self) -> str:
        """Return in words whether the run fits and, where it does not, what would make it fit."""
        total, weights = self.place.memory_gib, engine_weights_gib(self.config, self.model, self.place)
        free = "free " if self.place.kind == "cpu" else ""
        said = f"about {self.peak:.1f} GiB at its peak, of {total:.1f} {free}on {self.place.name}"
        if math.isinf(self.peak):
            share = engine_share(self.config, self.model, self.place) * total
            said = (
                f"the engine's share of the GPU, {share:.1f} of {total:.1f} GiB, does not hold its weights of {weights:.1f} "
                f"GiB and {ENGINE_ROOM_GIB} to work in"
            )
        if self.fits:
            return said
        possible = list(changes(self.config, self.model, self.longest, self.place))
        return f"{said}; {remedies(self.config, lambda config: self._with(config).fits, possible)}"

    def _with(self, config: BaseConfig) -> "MemoryPlan":
        return plan_memory(config, self.model, self.longest, self.place)


def plan_memory(config: BaseConfig, model: ModelSize, longest: int, place: Place) -> MemoryPlan:
    """Return the plan of a run of this model; arguments as of `memory_parts`."""
    parts = memory_parts(config, model, longest, place)
    return MemoryPlan(config=config, model=model, longest=longest, place=place, parts=parts)


def memory_of_run(config: BaseConfig, inputs: Inputs, prompts: "Mapping[Path, Prompts]", place: Place) -> MemoryPlan | None:
    """Return the plan of a run for the largest of its models; None where a server has the model."""
    if inputs.served_name is not None:
        return None
    from conclip.rollout.session import longest_training_sequence  # noqa: PLC0415  imports torch

    largest = max((ModelSize.of(path) for path in inputs.models.values()), key=lambda model: model.num_parameters)
    longest = longest_training_sequence(config, prompts[largest.folder])
    return plan_memory(config, largest, longest, place)
