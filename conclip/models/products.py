"""Matrix products in float32 by oneDNN, on processors for which torch's own choice leaves half of the speed unused.

Torch multiplies float32 matrices by MKL, which computes in AVX2 on processors that are not Intel's, whatever they have.
oneDNN, with which torch multiplies in bfloat16, uses AVX-512 on all of them: 250 instead of 110 GFLOP/s on a core of an AMD
EPYC, in a product of two 2,048 x 2,048 matrices as in those of the embedded model (docs/log.md).
"""

from typing import Any

import torch
from torch import Tensor, nn

from conclip.config.machine import cpu_flags, is_intel

# torch's own annotations are incomplete here.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false


def onednn_pays() -> bool:
    """Return whether oneDNN computes this processor's float32 products faster than torch's own choice."""
    return "avx512f" in cpu_flags() and not is_intel() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def use_onednn(module: nn.Module) -> None:
    """Make all plain linear maps within a module, which is on the processor, compute by oneDNN in float32."""
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = OneDnnLinear


class OneDnnLinear(nn.Linear):
    """A linear map whose three products, forward, of the inputs' gradient and of the weights', are oneDNN's in float32."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dtype != torch.float32 or self.weight.dtype != torch.float32:
            return super().forward(input)
        return _Linear.apply(input, self.weight, self.bias)


def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return left @ right.T + bias. Neither side needs to lie in memory row by row."""
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        return _product(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (gradient,) = grad_outputs
        input, weight = ctx.saved_tensors
        of_input, of_weight, of_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            _product(gradient, weight.t()) if of_input else None,
            _product(rows.t(), input.reshape(-1, input.shape[-1]).t()) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )
