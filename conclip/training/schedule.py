"""The position of a step in its phase. Learning rates and the number of optimiser batches follow the phase, not the updates
done: a step in which few rows train, or none, still counts as a step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from conclip.config.groups import AlgoConfig, OptimConfig, PhaseConfig

LEARNING_RATES = ((1_000_000_000, 5e-7, 9e-6), (200_000_000, 1e-6, 1e-5), (0, 5e-6, 5e-5))
"""Parameters from which on they hold, and the peak learning rates of policy and critic: those of the paper's scripts for 1.5
and 7 billion, of verl's PPO examples for 0.5 billion and more, and a guess below."""


ADAPTER_FACTOR = 10.0
"""How much higher the learning rate of a LoRA adapter is than that of all weights: about ten times at any size and rank, in
reinforcement learning too (Schulman et al. 2025, "LoRA Without Regret")."""


def learning_rates(optim: OptimConfig, num_parameters: int, *, adapted: bool = False) -> dict[str, float]:
    """Return the peak learning rates of policy and critic: the config's, else those of the model's size. `adapted`: only
    adapters train."""
    policy, critic = next(rates for size, *rates in LEARNING_RATES if num_parameters >= size)
    factor = ADAPTER_FACTOR if adapted else 1.0
    return {"policy": optim.policy_lr or factor * policy, "critic": optim.critic_lr or factor * critic}


def lr_scale(update: int, num_updates: int, *, warmup_fraction: float, min_lr_fraction: float) -> float:
    """Return the factor on the learning rate: linear warm-up, then a cosine from 1 to `min_lr_fraction`, then constant.
    `update` counts from 0."""
    warmup = math.ceil(num_updates * warmup_fraction)
    if update < warmup:
        return (update + 1) / warmup
    progress = min(1.0, (update - warmup) / max(1, num_updates - warmup))
    return min_lr_fraction + (1 - min_lr_fraction) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """The plan of one step, which does not depend on its rollouts."""

    begin: int
    """Updates in the phase's schedule before the step, those of the critic's warm-up included."""
    end: int
    """Updates in the schedule up to the end of the step."""
    num_updates: int
    """The number of optimiser batches of a full step."""
    num_rows: int
    """The number of responses that train in a full step."""

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Split the rows that train ([b] long, in training order) into optimiser batches about as large as those of a full
        step: a quarter of the responses makes a quarter of the updates, instead of as many updates on noise.

        Example: four updates planned on 64 rows. 64, 62 or 49 rows make four batches, 32 make two, 1 to 16 one.
        """
        number = min(self.num_updates, len(rows), math.ceil(self.num_updates * len(rows) / self.num_rows))
        return rows.tensor_split(number) if number else ()

    def position(self, batch: int, num_batches: int) -> int:
        """Return the position in the schedule of an optimiser batch of the step; batches are spread over it evenly."""
        return self.begin + batch * (self.end - self.begin) // num_batches


def plan_step(
    step: int, phase: PhaseConfig, algo: AlgoConfig, *, tokens: tuple[int, int], tokens_of_warmup: int
) -> StepPlan:
    """Return the plan of a step; steps up to 0 are the critic's warm-up.

    The position in the schedule is the larger of two shares: the step's number in `num_steps` and, where the phase has
    `max_sampled_tokens`, the tokens sampled in that budget. `tokens` are those of the phase before the step and after its
    sampling; the warm-up's are subtracted from both.
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


def share_spent(phase: PhaseConfig, tokens: int, *, tokens_of_warmup: int) -> float:
    """Return the share of `max_sampled_tokens` that is sampled, the critic's warm-up left out; 0 without such a budget."""
    if phase.max_sampled_tokens is None:
        return 0.0
    return (tokens - tokens_of_warmup) / max(1, phase.max_sampled_tokens - tokens_of_warmup)


def rows_per_group(algo: AlgoConfig, group_size: int) -> int:
    """Return the largest number of a group's responses that train."""
    return 1 if algo.advantage == "shortest_correct" else group_size


def tokens_limit(stages: Sequence[float] | None, max_tokens: int, progress: float) -> int:
    """Return the token limit of a response when `progress` (0 to 1) of the phase is done: equal stages, each with its share
    of `max_tokens`.

    ThinkPrune (Hou et al. 2025; published: 4,096, 3,072 and 2,048 tokens). A response that reaches the limit is truncated.

    Example: stages (1, 0.5) of 200 tokens give 200 until half of the phase is done, then 100.
    """
    if stages is None:
        return max_tokens
    stage = min(int(progress * len(stages)), len(stages) - 1)
    return max(1, int(stages[stage] * max_tokens + 1e-9))  # 0.29 of 100 is 29, not 28.999...
