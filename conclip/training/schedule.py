"""Where a step lies in its phase. Learning rates and the number of optimiser batches follow the phase, not the updates done:
a step in which few rows train, or none, is a step all the same."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from conclip.config.groups import AlgoConfig, PhaseConfig


def lr_scale(update: int, num_updates: int, *, warmup_fraction: float, min_lr_fraction: float) -> float:
    """Linear warm-up, then a cosine from 1 down to `min_lr_fraction`, where it stays; `update` counts from 0."""
    warmup = math.ceil(num_updates * warmup_fraction)
    if update < warmup:
        return (update + 1) / warmup
    progress = min(1.0, (update - warmup) / max(1, num_updates - warmup))
    return min_lr_fraction + (1 - min_lr_fraction) * 0.5 * (1 + math.cos(math.pi * progress))


class Scheduled:
    """An optimiser whose learning rate is set by a place in a schedule."""

    def __init__(self, optimizer: torch.optim.Optimizer, scale: Callable[[int], float]) -> None:
        """`scale`: place -> factor on each of the optimiser's learning rates."""
        self.optimizer, self._scale = optimizer, scale
        self._highest: list[float] = [group["lr"] for group in optimizer.param_groups]
        self.place(0)

    def place(self, update: int) -> None:
        """Take the learning rate of this place [updates of the schedule]."""
        self.last_epoch = update
        for group, highest in zip(self.optimizer.param_groups, self._highest, strict=True):
            group["lr"] = highest * self._scale(update)

    def load_moments(self, saved: Mapping[str, Tensor], *, prefix: str) -> None:
        """Take the moments that stand under `<prefix><index of the parameter>/<key>`; none stand there before the first
        update. Raises ValueError when they are not those of this optimiser, which is an AdamW."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in saved.items():
            if name.startswith(prefix):
                index, _, key = name.removeprefix(prefix).partition("/")
                moments.setdefault(int(index), {})[key] = tensor
        for index, found in moments.items():
            if not 0 <= index < len(parameters):
                raise ValueError(f"{prefix}{index} belongs to no parameter")
            shape = parameters[index].shape
            shapes = {key: (tensor.shape, tensor.is_floating_point()) for key, tensor in found.items()}
            if shapes != {"step": ((), True), "exp_avg": (shape, True), "exp_avg_sq": (shape, True)}:
                raise ValueError(f"{prefix}{index} is no state of AdamW, or of a parameter of another shape")
            if not (found["step"] >= 1 and bool((found["exp_avg_sq"] >= 0).all())):
                raise ValueError(f"{prefix}{index} is no state of AdamW: a step before 1, or a square below 0")
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})

    def get_last_lr(self) -> list[float]:
        """The learning rate of each of the optimiser's groups; named, as `last_epoch`, as torch's schedulers have it."""
        return [group["lr"] for group in self.optimizer.param_groups]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """What the phase has in mind for one step, whatever its rollouts turn out to be."""

    begin: int
    """Updates of the phase's schedule that lie before the step, those of the critic's warm-up included."""
    end: int
    """The same after it."""
    num_updates: int
    """Optimiser batches of a full step."""
    num_rows: int
    """Responses that train in a full step."""

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The rows that train ([b] long, in the order to take them) as optimiser batches, about as large as a full step's:
        with a quarter of the responses there is a quarter of the updates, not as many updates on noise.

        Example: four updates planned on 64 rows. 64, 62 or 49 rows make four batches, 32 make two, 1 to 16 one.
        """
        number = min(self.num_updates, len(rows), math.ceil(self.num_updates * len(rows) / self.num_rows))
        return rows.tensor_split(number) if number else ()

    def place(self, batch: int, num_batches: int) -> int:
        """Where in the schedule an optimiser batch of the step lies; batches are spread over it evenly."""
        return self.begin + batch * (self.end - self.begin) // num_batches


def plan_step(
    step: int, phase: PhaseConfig, algo: AlgoConfig, *, tokens: tuple[int, int], tokens_of_warmup: int
) -> StepPlan:
    """The plan of a step; steps up to 0 are the critic's warm-up.

    The place in the schedule follows the step's number or, where `phase.max_sampled_tokens` ends the phase and more of it is
    spent, the tokens sampled: those of the phase before the step and after its sampling (`tokens`), less the warm-up's.
    """
    size = algo.updates_per_rollout
    begin, end = (step - 1) * size, step * size
    if phase.max_sampled_tokens is not None and step > 0:
        budget = max(1, phase.max_sampled_tokens - tokens_of_warmup)
        spent = [min(count - tokens_of_warmup, budget) for count in tokens]
        begin = max(begin, phase.num_steps * size * spent[0] // budget)
        end = max(end, phase.num_steps * size * spent[1] // budget)
    warmup = algo.critic_warmup_steps * size
    return StepPlan(
        begin=warmup + begin,
        end=warmup + end,
        num_updates=size,
        num_rows=phase.problems_per_step * rows_per_group(algo, phase.group_size),
    )


def rows_per_group(algo: AlgoConfig, group_size: int) -> int:
    """Of a group's responses, those that train at most."""
    return 1 if algo.advantage == "shortest_correct" else group_size
