"""AdamW with 8-bit moments on a CPU, where bitsandbytes computes with a whole parameter's moments in float32."""

from typing import Any

import torch
from bitsandbytes.functional import optimizer_update_8bit_blockwise
from bitsandbytes.optim.adamw import AdamW8bit
from torch import Tensor

SLICE = 1 << 22
"""Numbers of a parameter that are updated at a time: 16 MiB in float32, of which some five copies live. An embedding of half
a gigabyte would need five times its size."""

BLOCK = 256
"""Numbers that share a scale in bitsandbytes."""


class SlicedAdamW8bit(AdamW8bit):
    """Updates large parameters slice by slice. Blocks do not depend on each other, so that the bits are the same."""

    def update_step(self, group: dict[str, Any], p: torch.nn.Parameter, gindex: int, pindex: int) -> None:
        state: dict[str, Any] = self.state[p]
        if state["state1"].dtype != torch.uint8 or p.numel() <= SLICE or not p.is_contiguous():
            super().update_step(group, p, gindex, pindex)  # pyright: ignore[reportUnknownMemberType]
            return
        assert p.grad is not None
        state["step"] += 1
        config: dict[str, Any] = self.get_config(gindex, pindex, group)
        (beta1, beta2), grad = config["betas"], p.grad.contiguous()
        of_numbers = [tensor.view(-1) for tensor in (grad, p.data, state["state1"], state["state2"])]
        of_blocks: list[Tensor] = [state["absmax1"], state["absmax2"]]
        for first in range(0, p.numel(), SLICE):
            blocks = slice(first // BLOCK, (first + SLICE) // BLOCK)
            optimizer_update_8bit_blockwise(
                self.optimizer_name,
                *(numbers[first : first + SLICE] for numbers in of_numbers),
                beta1=beta1,
                beta2=beta2,
                beta3=0.0,
                alpha=0.0,
                eps=config["eps"],
                step=state["step"],
                lr=config["lr"],
                qmap1=state["qmap1"],
                qmap2=state["qmap2"],
                absmax1=of_blocks[0][blocks],
                absmax2=of_blocks[1][blocks],
                weight_decay=config["weight_decay"],
            )
