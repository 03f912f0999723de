"""Means and whitening over masked tensors. Shapes: B sequences, T decisions."""

import torch
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of `x` where `mask` is True, a scalar; 0 when it is True nowhere. Both have the same shape."""
    mask = mask.to(x.dtype)
    return (x * mask).sum() / mask.sum().clamp(min=1.0)


def masked_whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Return `x` shifted and scaled to mean 0 and standard deviation 1 over the masked entries, and 0 elsewhere.

    The deviation is the population one. Fewer than two masked entries, or equal ones, give exactly 0.
    """
    inside = x[mask]
    if not len(inside) or bool(equal(inside.min(), inside.max())):
        return torch.zeros_like(x)
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    return torch.where(mask, (x - mean) * torch.rsqrt(variance + 1e-8), torch.zeros_like(x))


def equal(low: Tensor, high: Tensor) -> Tensor:
    """Return whether the ends of a range are no further apart than rounding, four units in the last place of the larger.

    What divides by a deviation asks this first. The mean of equal numbers is not always that number, and neither are numbers
    always equal that should be: 0.1 + 0.2 and 0.3.
    """
    return high - low <= 4 * torch.finfo(high.dtype).eps * torch.maximum(high.abs(), low.abs())
