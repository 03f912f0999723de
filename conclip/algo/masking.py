"""Means and whitening over masked tensors. Shapes: B sequences, T decisions."""

import torch
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of `x` where `mask` is True; 0 when it is True nowhere. Same shapes; a scalar comes back."""
    mask = mask.to(x.dtype)
    return (x * mask).sum() / mask.sum().clamp(min=1.0)


def masked_whiten(x: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """`x` shifted and scaled to mean 0 and standard deviation 1 over the masked entries; 0 elsewhere.

    The deviation is the population one. Fewer than two masked entries, or equal ones, give 0.
    """
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    return torch.where(mask, (x - mean) * torch.rsqrt(variance + eps), torch.zeros_like(x))
