"""Advantage estimators. Shapes: B sequences, T decisions; column t is the decision taken in state t."""

from typing import Literal, cast

import torch
from torch import Tensor

from conclip.algo.masking import equal

AdvantageScale = Literal["group", "batch", "none"]


def gae(
    token_rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, gae_lambda: float | Tensor, bootstrap: Tensor
) -> tuple[Tensor, Tensor]:
    """Return advantages by generalised advantage estimation over each row's response (Schulman et al. 2015, eq. 16).

    delta_t = r_t + gamma * V_{t+1} - V_t and A_t = delta_t + gamma * gae_lambda * A_{t+1}, where t + 1 is the row's next
    masked decision. After a row's last one stand A = 0 and V = `bootstrap` ([B]; 0 for a response that ended itself).

    token_rewards, values: [B, T]; mask: [B, T] bool; gae_lambda: one number or one for each row ([B]). Returns advantages
    and returns (advantages + values), [B, T], 0 off the mask. Nothing off the mask is read.

    Example: rewards [0, 1], values [0.5, 0.5], gamma 1, gae_lambda 0.5, bootstrap 0: deltas are [0, 0.5], the
    advantages [0.25, 0.5].
    """
    advantages = torch.zeros_like(values)
    next_value = bootstrap.to(values)
    carry = torch.zeros_like(next_value)
    for t in reversed(range(values.shape[1])):
        here = mask[:, t]
        delta = token_rewards[:, t] + gamma * next_value - values[:, t]
        carry = torch.where(here, delta + gamma * gae_lambda * carry, carry)
        advantages[:, t] = torch.where(here, carry, torch.zeros_like(carry))
        next_value = torch.where(here, values[:, t], next_value)
    returns = torch.where(mask, advantages + values, torch.zeros_like(values))
    return advantages, returns


def length_adaptive_lambda(mask: Tensor, alpha: float) -> Tensor:
    """Return max(0, 1 - 1 / (alpha * T_i)) for each row (VAPO, Yue et al. 2025, section 4.2): the horizon is the same share
    of the response, whatever its length.

    mask: [B, T] bool. Returns [B]. Example: alpha 0.05: 0.8 at 100 tokens, 0.98 at 1,000, 0 up to 20.
    """
    return (1.0 - 1.0 / (alpha * mask.sum(-1).clamp(min=1))).clamp(min=0.0)


def monte_carlo(token_rewards: Tensor, mask: Tensor, *, gamma: float, bootstrap: Tensor) -> Tensor:
    """Return the discounted sum of the rewards from each decision on, without a baseline (REINFORCE; with `bootstrap` after
    the last).

    Shapes as in `gae`. Returns [B, T], 0 off the mask.
    """
    nothing = torch.zeros_like(token_rewards)
    return gae(token_rewards, nothing, mask, gamma=gamma, gae_lambda=1.0, bootstrap=bootstrap)[0]


def group_relative(rewards: Tensor, groups: Tensor, *, scale: AdvantageScale, eps: float = 1e-6) -> Tensor:
    """Return A_i = (r_i - mean of its group) / scale.

    `group`  its group's standard deviation: GRPO (Shao et al. 2024, section 4.1)
    `batch`  the deviation of all rewards: Lite PPO (Liu et al. 2025, section 4), as in TRL (`scale_rewards="batch"`)
    `none`   1: Dr. GRPO (Liu et al. 2025, section 3.2)

    rewards: [B]; groups: [B] integer group of each sequence. Deviations are the sample ones (n - 1); a group of one, or of
    equal rewards, gets exactly 0 at every scale. Returns [B].

    Example: one group with rewards [1, 0, 0, 0]: mean 0.25, deviation 0.5, advantages [1.5, -0.5, -0.5, -0.5].
    """
    sizes, centred = _centred(rewards, groups)
    if scale == "none":
        return centred
    if scale == "group":
        deviation = (_group_sums(centred**2, groups) / (sizes - 1).clamp(min=1)).sqrt()
    else:
        deviation = rewards.std(correction=1) if len(rewards) > 1 else torch.ones_like(rewards)
    return torch.where(centred == 0, centred, centred / (deviation + eps))


def leave_one_out(rewards: Tensor, groups: Tensor) -> Tensor:
    """Return A_i = r_i - mean of the *other* rewards of its group (RLOO, Ahmadian et al. 2024, eq. 8). A group of one, or of
    equal rewards, gets exactly 0.

    rewards, groups: [B]. Returns [B]: n / (n - 1) times the unscaled group-relative advantage, n its group's size.

    Example: one group with rewards [1, 0, 0, 0]: [1, -1/3, -1/3, -1/3].
    """
    sizes, centred = _centred(rewards, groups)
    return centred * sizes / (sizes - 1).clamp(min=1)


CLOSE = 1e-3
"""Spread of a group's rewards, relative to the largest, below which the rounding of their mean is visible in the
differences."""


def _centred(rewards: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Return the size of each row's own group, and its reward less the group's mean; [B] each. Equal rewards give exactly 0.

    The single-precision mean of 64 times -9.7 is off by 7e-6, and dividing by the deviation, which is the same error, makes
    an advantage of 0.86 of it. So sums are in double precision and, where rewards lie close together, differences, too.
    """
    numbers = _numbered(groups)
    sizes = _group_sums(torch.ones_like(rewards), groups)
    means = _group_sums(rewards.double(), groups) / sizes
    low, high = (rewards.scatter_reduce(0, numbers, rewards, how, include_self=False)[numbers] for how in ("amin", "amax"))
    close = high - low < CLOSE * torch.maximum(low.abs(), high.abs())
    centred = torch.where(close, (rewards.double() - means).to(rewards.dtype), rewards - means.to(rewards.dtype))
    return sizes, torch.where(equal(low, high), torch.zeros_like(centred), centred)


def _group_sums(x: Tensor, groups: Tensor) -> Tensor:
    """Return the sum over each row's own group, [B]."""
    numbers = _numbered(groups)
    return torch.zeros_like(x).index_add_(0, numbers, x)[numbers]


def _numbered(groups: Tensor) -> Tensor:
    """Return the groups that occur, numbered from 0, [B]. Where few rows train, whole groups may be missing."""
    return cast(Tensor, groups.unique(return_inverse=True)[1])  # pyright: ignore[reportUnknownMemberType]


def shortest_correct(correct: Tensor, num_tokens: Tensor, groups: Tensor) -> Tensor:
    """Return 1 for the shortest correct response of each group (the first of equals), 0 for the others: what long-to-short
    fine-tuning imitates (Kimi k1.5, Kimi Team 2025, section 2.4: shortest rejection sampling).

    correct: [B] bool; num_tokens, groups: [B] integers. Returns [B] float.

    Example: lengths [9, 5, 5], correct [1, 1, 1], one group: [0, 1, 0].
    """
    chosen = torch.zeros(len(groups))
    best: dict[int, int] = {}
    for row in range(len(groups)):
        group = int(groups[row])
        if bool(correct[row]) and (group not in best or num_tokens[row] < num_tokens[best[group]]):
            best[group] = row
    chosen[list(best.values())] = 1.0
    return chosen


def distillation(old_logprobs: Tensor, teacher_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Return the teacher's log-prob of each sampled token minus the policy's own, [B, T], 0 off the mask.

    In expectation over the policy's tokens this is minus the reverse KL of policy from teacher, so that the policy gradient
    lowers it token by token; what a token does to later ones is left out, as in on-policy distillation (Lu and Thinking
    Machines Lab 2025). With a teacher that is the model itself, asked to be concise, it is CRISP (2026).

    Example: probabilities 0.5 (policy) and 0.25 (teacher): -log 2.
    """
    return torch.where(mask, teacher_logprobs - old_logprobs, torch.zeros_like(old_logprobs))
