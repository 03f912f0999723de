"""Whether a run fits a device and, where it does not, what would make it fit."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conclip.config.rules import check
from conclip.config.schema import BaseConfig
from conclip.errors import UserError
from conclip.experiments.inputs import Inputs
from conclip.experiments.memory import (
    ModelSize,
    Part,
    Place,
    engine_room_gib,
    engine_share,
    engine_weights_gib,
    has_own_gpus,
    memory_parts,
    peak_gib,
)

if TYPE_CHECKING:
    from conclip.rollout.session import Prompts


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of the config that saves memory."""

    overrides: str
    price: str
    values: Mapping[str, Any]
    """The keys that the overrides change, as far as they decide about memory."""


def changes(config: BaseConfig, model: ModelSize, longest: int, place: Place) -> list[Change]:
    """Return what would save memory and goes with the rest of the config, the cheapest first."""
    return [one for one in _changes(config, model, longest, place) if _is_allowed(with_values(config, one.values))]


def _is_allowed(config: BaseConfig) -> bool:
    try:
        check(config)
    except UserError:
        return False
    return True


def _changes(config: BaseConfig, model: ModelSize, longest: int, place: Place) -> Iterator[Change]:
    if config.rollout.num_engines > 1 and place.kind == "cpu":
        key = "rollout.num_engines"
        yield Change(overrides=f"{key}=1", price="one engine samples", values={key: 1})
    if config.cluster.learner_ranks not in (None, 1) and place.kind == "cpu":
        key = "cluster.learner_ranks"
        yield Change(overrides=f"{key}=1", price="one process learns", values={key: 1})
    if config.learning is not None:
        if config.learning.trainer.micro_batches_at_once != 1 and place.kind == "cpu":
            key = "trainer.micro_batches_at_once"
            yield Change(overrides=f"{key}=1", price="micro-batches one after another", values={key: 1})
        key = "trainer.save_in_background"
        yield Change(overrides=f"{key}=false", price="training waits for checkpoints", values={key: False})
    key, value = "rollout.kv_cache_gib", 0.5
    if place.kind == "gpu":
        key = "rollout.gpu_memory_utilization"
        least = engine_weights_gib(config, model, place) + engine_room_gib(config, model, longest)
        value = math.ceil(20 * least / place.memory_gib) / 20
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
    no_critic = {"algo.advantage": "group_relative", "algo.critic_warmup_steps": 0}
    kl = "none" if learning.algo.kl == "none" else "loss"
    yield Change(overrides="algo=grpo", price="no critic", values=no_critic | {"algo.kl": kl})


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
    def beside(self) -> float:
        """Return what main memory holds for a GPU at most [GiB]: that of the learner which only updates need, the copy for a
        checkpoint, and an engine's weights while it sleeps."""
        return sum(part.beside for part in self.parts)

    @property
    def fits(self) -> bool:
        return self.peak <= self.place.memory_gib and self.beside <= self.place.beside_gib

    @property
    def impossible(self) -> bool:
        """Whether what is known exactly exceeds the memory already."""
        exact = peak_gib(self.parts, exact_only=True)
        beside = sum(part.beside for part in self.parts if part.exact)
        return exact > self.place.memory_gib or beside > self.place.beside_gib

    def check(self, more: str = "") -> None:
        """Raise UserError where what is known exactly exceeds the memory; its message ends with `more`."""
        if self.impossible:
            raise UserError(f"this run does not fit into memory: {self.verdict()}{more}")

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
            room = engine_room_gib(self.config, self.model, self.longest)
            said = (
                f"the engine's share of the GPU, {share:.1f} of {total:.1f} GiB, does not hold its weights of {weights:.1f} "
                f"GiB and {room:.1f} to work in"
            )
        if self.beside:
            of = "" if math.isinf(self.place.beside_gib) else f" of {self.place.beside_gib:.1f} free"
            said = f"{said}; beside it {self.beside:.1f} GiB{of} of main memory"
        if self.fits:
            return said
        possible = changes(self.config, self.model, self.longest, self.place)

        def fits(config: BaseConfig) -> bool:
            return plan_memory(config, self.model, self.longest, self.place).fits

        return f"{said}; {remedies(self.config, fits, possible)}"


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
    asked = prompts[largest.folder]
    if config.learning is None:
        return plan_memory(config, largest, asked.max_model_len, place)
    plan = plan_memory(config, largest, longest_training_sequence(config, asked), place)
    if asked.budgeted is None or place.kind != "gpu" or has_own_gpus(config):
        return plan
    asleep = Part(name="engine: weights, while it sleeps", beside=engine_weights_gib(config, largest, place), exact=False)
    return dataclasses.replace(plan, parts=[*plan.parts, asleep])
