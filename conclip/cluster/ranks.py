"""The ranks of a learner: processes that each hold a share of its models and compute a share of its micro-batches.

A learner's code is the same on every rank. What one process does and what several do differs in a few operations, which
`Ranks` names: `OneRank` is the learner of one process, `cluster.group.Group` one of several.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed import DistError  # pyright: ignore[reportPrivateImportUsage]  documented, but not exported

from conclip.errors import MachineFailure


class OnAllRanks(RuntimeError):
    """An error that every rank raises alike, so that all of them can go on."""


class RankDied(MachineFailure):
    """A rank has ended, and with it what all of them computed; the checkpoints are whole."""


def is_of_group(error: BaseException) -> bool:
    """Return whether torch raised an error because ranks cannot reach each other: gloo raises plain RuntimeErrors."""
    return isinstance(error, DistError) or (type(error) is RuntimeError and "gloo" in str(error).lower())


class Ranks(Protocol):
    """One of `size` ranks, as the learner on it sees the others."""

    size: int
    is_first: bool
    """Whether this is the rank that samples, writes and decides; the others repeat its calls."""

    @property
    def device(self) -> torch.device:
        """Return the device that this rank computes on."""
        ...

    def calling(self, name: str, *arguments: Any, **named: Any) -> AbstractContextManager[None]:
        """Have every other rank call its learner's method `name` with these arguments while the first calls its own."""
        ...

    def loads_on(self, device: torch.device) -> torch.device:
        """Return where this rank loads a model that `device` is to compute with; ranks that have no need of its content load
        it on the meta device."""
        ...

    def shard(self, module: nn.Module) -> None:
        """Leave this rank its share of the module's weights, as the first rank has them. The module gathers them in its
        forward and backward passes."""
        ...

    def fill(self, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Set this rank's share of the module's parameters to whole tensors, as the first rank has them. Raises ValueError
        there when one is missing or has another shape."""
        ...

    def share(self, micro_batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, bool]]:
        """Yield this rank's share of the micro-batches, as many as on every other rank, and whether each counts. One that
        does not makes up the number: weights are gathered by all ranks at once."""
        ...

    def merged(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks, in main memory."""
        ...

    def totals(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Return the sums of numbers over the ranks, which all have the same names."""
        ...

    def kept(self, tensor: Tensor) -> Tensor:
        """Return the whole of a tensor that may be sharded, in main memory; on other ranks than the first, without its
        content."""
        ...

    def write(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        """Write tensors into a folder, each rank its share; all ranks call it. `cluster.shares.read_shares` reads them."""
        ...


class OneRank:
    """A learner in one process: nothing is shared, and nothing copied."""

    size = 1
    is_first = True

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def calling(self, name: str, *arguments: Any, **named: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def loads_on(self, device: torch.device) -> torch.device:
        return device

    def shard(self, module: nn.Module) -> None: ...

    def fill(self, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
        copy_parameters(weights, module)

    def share(self, micro_batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, bool]]:
        return ((rows, True) for rows in micro_batches)

    def merged(self, tensor: Tensor) -> Tensor:
        return tensor

    def totals(self, numbers: Mapping[str, float]) -> dict[str, float]:
        return dict(numbers)

    def kept(self, tensor: Tensor) -> Tensor:
        return tensor

    def write(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "tensors.safetensors")


def matching(saved: Mapping[str, Tensor], name: str, parameter: Tensor) -> Tensor:
    """Return the saved tensor of a parameter. Raises ValueError when it is missing or has another shape."""
    tensor = saved.get(name)
    if tensor is None or tensor.shape != parameter.shape:
        raise ValueError(f"{name} is missing, or of another shape")
    return tensor


@torch.no_grad()
def copy_parameters(saved: Mapping[str, Tensor], module: nn.Module, *, prefix: str = "") -> None:
    """Copy the saved parameters, which every rank has, into the module. Raises ValueError when one is missing or has another
    shape."""
    for key, parameter in module.named_parameters():
        parameter.copy_(divided_like(matching(saved, f"{prefix}{key}", parameter), parameter))


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor, which all ranks gather at once if it is sharded."""
    gather = getattr(tensor, "full_tensor", None)  # of a DTensor, whose module takes half a second to import
    return tensor if gather is None else cast(Tensor, gather())


def of_this_rank(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor."""
    local = getattr(tensor, "to_local", None)  # of a DTensor
    return tensor if local is None else cast(Tensor, local())


def divided_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return a whole tensor, which every rank has, as this rank holds its share of `other`; a share as it is."""
    mesh = getattr(other, "device_mesh", None)
    if mesh is None or hasattr(tensor, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415  only what is used gets imported

    shared = tensor.to(other.device, other.dtype)
    return distribute_tensor(shared, mesh, cast(Any, other).placements, src_data_rank=None)
