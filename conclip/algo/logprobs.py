"""Log-probabilities of chosen tokens without ever holding all logits of a batch.

Shapes: N token positions, H hidden width, V vocabulary.
"""

from typing import cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MAX_LOGITS = 1 << 24
"""Largest number of fp32 logits held at a time (64 MiB)."""


# torch's own annotations are incomplete here.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false


def _chunk(
    hidden: Tensor, head: torch.nn.Module, targets: Tensor, temperature: float, entropy_gradient: bool
) -> tuple[Tensor, Tensor]:
    logits = head(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    log_normalizer = torch.logsumexp(logits, dim=-1)
    chosen = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - log_normalizer
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropy = log_normalizer - (torch.softmax(logits, dim=-1) * logits).sum(-1)
    return chosen, entropy


def chosen_logprobs(
    hidden: Tensor,
    head: torch.nn.Module,
    targets: Tensor,
    temperature: float,
    *,
    entropy_gradient: bool = False,
    max_logits: int = MAX_LOGITS,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target under softmax(head(hidden) / temperature), and the entropy there.

    hidden: [N, H]; targets: [N]. Returns two tensors [N] of fp32 (fp64 for an fp64 model); the entropy carries a gradient
    when asked for. Each chunk's logits are recomputed in the backward pass, so at most `max_logits` of them live at a time.
    Temperature is applied exactly as the engine applies it, before the normalisation.
    """
    vocabulary = cast(Tensor, head.weight).shape[0]
    rows = max(1, max_logits // vocabulary)
    if len(targets) <= rows:
        return _chunk(hidden, head, targets, temperature, entropy_gradient)
    parts: list[tuple[Tensor, Tensor]] = []
    for part, part_targets in zip(hidden.split(rows), targets.split(rows), strict=True):
        if torch.is_grad_enabled():
            parts.append(checkpoint(_chunk, part, head, part_targets, temperature, entropy_gradient, use_reentrant=False))
        else:
            parts.append(_chunk(part, head, part_targets, temperature, entropy_gradient))
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
