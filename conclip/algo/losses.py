"""Losses per token, and the weights that sum them to one number. Shapes: B sequences, T decisions."""

from typing import Literal

import torch
from torch import Tensor

LossAggregation = Literal["sequence_mean", "token_mean", "constant"]


def aggregation_weights(mask: Tensor, aggregation: LossAggregation, *, constant_tokens: int = 1) -> Tensor:
    """Return the weight of each token in the loss of a whole optimiser batch: loss = sum(weights * per-token loss).

    `sequence_mean`  mean over each response's tokens, then over responses (the paper's; 1 / (N * T_i))
    `token_mean`     every token counts the same (DAPO; 1 / sum T_i)
    `constant`       a fixed length for all (Dr. GRPO; 1 / (N * constant_tokens))

    mask: [B, T] bool, the tokens that train. N counts rows with at least one such token. Computed over the whole
    optimiser batch *before* it is split, the weights make the loss independent of micro-batches and padding.
    """
    tokens = mask.sum(-1, keepdim=True).float()
    num_sequences = (tokens > 0).sum().clamp(min=1)
    if aggregation == "sequence_mean":
        weights = 1.0 / (num_sequences * tokens.clamp(min=1.0))
    elif aggregation == "token_mean":
        weights = (1.0 / tokens.sum().clamp(min=1.0)).expand_as(tokens)
    else:
        weights = (1.0 / (num_sequences.float() * constant_tokens)).expand_as(tokens)
    return torch.where(mask, weights.expand(mask.shape), torch.zeros(mask.shape, device=mask.device))


def ppo_clip_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """Return -min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A) per token (Schulman et al. 2017, eq. 7).

    All [B, T]. Returns the loss and a bool tensor that marks tokens whose gradient the clip removed.
    """
    return _clipped(torch.exp(logprobs - old_logprobs), advantages, clip_low=clip_low, clip_high=clip_high)


def _clipped(ratio: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float) -> tuple[Tensor, Tensor]:
    unclipped = ratio * advantages
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages
    return -torch.minimum(unclipped, clipped), clipped < unclipped


def gspo_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """Return PPO's clip of the sequence's ratio s_i = exp(mean over t of log ratio_t) (GSPO, Zheng et al. 2025, eq. 5 to 7).

    In the token form s_{i,t} = sg[s_i] * pi_t / sg[pi_t] (eq. 14): with `sequence_mean` it has the sequence form's value
    and gradient where a row's advantages are equal, and is defined where they are not. All [B, T]; returns as
    `ppo_clip_loss`.
    """
    log_ratio = torch.where(mask, logprobs - old_logprobs, torch.zeros_like(logprobs))
    sequence = (log_ratio.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)).detach()
    ratio = torch.exp(sequence + logprobs - logprobs.detach())
    return _clipped(ratio, advantages, clip_low=clip_low, clip_high=clip_high)


def cispo_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """Return -sg[clip(ratio, 1 - clip_low, 1 + clip_high)] * A * log pi per token (CISPO, MiniMax-M1 2025, eq. 4 and 5).

    The clip bounds a token's weight and never takes its gradient away. All [B, T]; returns as `ppo_clip_loss`, the mark
    being where the weight was bounded.
    """
    ratio = torch.exp(logprobs - old_logprobs).detach()
    weight = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    return -weight * advantages * logprobs, weight != ratio


def importance_weights(
    old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, *, level: Literal["token", "sequence"], largest: float
) -> Tensor:
    """Return min(pi_old / pi_sampler, largest): truncated importance sampling, because the engine samples under slightly
    other numbers than the trainer computes (Yao et al. 2025).

    `token`: each token's own ratio; `sequence`: the product over the row, for all of its tokens. All [B, T]; 1 off the
    mask; no gradient.
    """
    log_ratio = torch.where(mask, old_logprobs - sampler_logprobs, torch.zeros_like(old_logprobs)).detach()
    if level == "sequence":
        log_ratio = torch.where(mask, log_ratio.sum(-1, keepdim=True), torch.zeros_like(log_ratio))
    return torch.exp(log_ratio).clamp(max=largest)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, value_clip: float) -> Tensor:
    """Return 0.5 * max((V - R)^2, (V_clip - R)^2) per token, with V_clip within `value_clip` of the old value. All [B,
    T]."""
    clipped = old_values + (values - old_values).clamp(-value_clip, value_clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)


def next_kl_coef(kl_coef: float, kl: float, target: float) -> float:
    """Return kl_coef * (1 + 0.1 * clip(kl / target - 1, -0.2, 0.2)): the adaptive coefficient of Ziegler et al. 2019,
    section 2.2.

    kl, target: nats per token. Example: 0.01 at twice the target or more becomes 0.0102, at the target it stays.
    """
    return kl_coef * (1.0 + 0.1 * min(0.2, max(-0.2, kl / target - 1.0)))


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return log(pi / pi_ref) at the sampled token: unbiased for KL(pi || pi_ref), may be negative (Schulman 2020)."""
    return logprobs - ref_logprobs


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return exp(-k1) - 1 + k1 at the sampled token: unbiased and never negative (Schulman 2020; GRPO eq. 4)."""
    difference = ref_logprobs - logprobs
    return torch.exp(difference) - 1.0 - difference
