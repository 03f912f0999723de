"""Advantage estimators. Shapes: B sequences, T decisions; column t is the decision taken in state t."""

import torch
from torch import Tensor


def gae(
    token_rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, gae_lambda: float, bootstrap: Tensor
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over each row's response (Schulman et al. 2015, eq. 16).

    delta_t = r_t + gamma * V_{t+1} - V_t and A_t = delta_t + gamma * gae_lambda * A_{t+1}, where t + 1 is the row's next
    masked decision. After a row's last one stand A = 0 and V = `bootstrap` ([B]; 0 for a response that ended itself).

    token_rewards, values: [B, T]; mask: [B, T] bool. Returns advantages and returns (advantages + values), [B, T], 0 off
    the mask. Nothing off the mask is read.

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


def group_relative(rewards: Tensor, groups: Tensor, *, scale: bool, eps: float = 1e-6) -> Tensor:
    """A_i = (r_i - mean of its group) / (standard deviation of its group), as in GRPO (Shao et al. 2024, section 4.1).

    rewards: [B]; groups: [B] integer group of each sequence. `scale=False` leaves the division out (Dr. GRPO, Liu et al.
    2025). The deviation is the sample one (n - 1); a group of one, or of equal rewards, gets 0. Returns [B].

    Example: one group with rewards [1, 0, 0, 0]: mean 0.25, deviation 0.5, advantages [1.5, -0.5, -0.5, -0.5].
    """
    advantages = torch.zeros_like(rewards)
    for group in range(int(groups.max()) + 1 if len(groups) else 0):
        rows = groups == group
        if not bool(rows.any()):
            continue
        centred = rewards[rows] - rewards[rows].mean()
        if scale and len(centred) > 1:
            centred = centred / (centred.pow(2).sum().div(len(centred) - 1).sqrt() + eps)
        advantages[rows] = centred
    return advantages
