"""Log-probabilities of chosen tokens without ever holding all logits of a batch.

Shapes: N token positions, H hidden width, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MIN_LOGITS, MAX_LOGITS = 1 << 24, 1 << 28
"""Number of fp32 logits that may always be held at a time (64 MiB), and that is never exceeded (1 GiB)."""

PEAK_BLOCKS = 5
"""Approximate number of blocks of the size of one chunk's logits at the peak of its backward pass."""


# torch's own annotations are incomplete here.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false


def logits_at_a_time(vocabulary: int, width: int) -> int:
    """Return how many logits of one chunk are worth their memory: as many as the head has weights, within MIN_ and
    MAX_LOGITS.

    Each chunk reads and writes the whole head some ten times (cast, forward, recomputation, gradient) and each row its
    logits, so with H rows a chunk the two cost alike: longer chunks save less than half of what is left, and shorter ones
    cost it again. The peak is about PEAK_BLOCKS of them. vocabulary: V; width: H, of the head's input.

    Example: V 151,936 and H 1,536: 1,536 rows, 0.9 GiB. The lab's model (V 128, H 128): 131,072 rows, so no batch is split.
    """
    return min(MAX_LOGITS, max(MIN_LOGITS, vocabulary * width))


Head = Callable[[Tensor], Tensor]


def _cast_once(head: torch.nn.Module) -> Head:
    """Return the head with its weights cast as autocast would cast them. Autocast itself casts frozen weights, and all
    weights in each recomputation, again for every chunk."""
    if type(head) is not torch.nn.Linear or not torch.is_autocast_enabled(head.weight.device.type):
        return head
    dtype = torch.get_autocast_dtype(head.weight.device.type)
    bias = cast(Tensor | None, head.bias)
    weight, bias = head.weight.to(dtype), None if bias is None else bias.to(dtype)
    return partial(torch.nn.functional.linear, weight=weight, bias=bias)


def _chunk(hidden: Tensor, head: Head, targets: Tensor, temperature: float, entropy_gradient: bool) -> tuple[Tensor, Tensor]:
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
    max_logits: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each target under softmax(head(hidden) / temperature), and the entropy there.

    hidden: [N, H]; targets: [N]. Returns two tensors [N] of fp32 (fp64 for an fp64 model); the entropy carries a gradient
    when asked for. Each chunk's logits are recomputed in the backward pass, so at most `max_logits` of them live at a time
    (None: `logits_at_a_time`); chunks are of one size, and no longer than the micro-batch. Temperature is applied exactly as
    the engine applies it, before the normalisation.
    """
    vocabulary = cast(Tensor, head.weight).shape[0]
    rows = max(1, (max_logits or logits_at_a_time(vocabulary, hidden.shape[-1])) // vocabulary)
    num_chunks = -(-len(targets) // rows)
    if num_chunks <= 1:
        return _chunk(hidden, head, targets, temperature, entropy_gradient)
    project = _cast_once(head)
    parts: list[tuple[Tensor, Tensor]] = []
    for part, part_targets in zip(hidden.tensor_split(num_chunks), targets.tensor_split(num_chunks), strict=True):
        if torch.is_grad_enabled():
            parts.append(checkpoint(_chunk, part, project, part_targets, temperature, entropy_gradient, use_reentrant=False))
        else:
            parts.append(_chunk(part, project, part_targets, temperature, entropy_gradient))
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
