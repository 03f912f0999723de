"""Ranks of a torch process group, whose models FSDP2 shards (Zhao et al. 2023; torch's `fully_shard`)."""

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]  documented, but not exported
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from conclip.cluster.ranks import OnAllRanks, RankDied, is_of_group, matching, whole
from conclip.cluster.shares import write_shares
from conclip.cluster.threads import use_threads
from conclip.runs.interrupts import deferred

CALL_WAIT = timedelta(minutes=30)
"""The longest that ranks wait for each other as they join, and within a call. One that dies closes its connections, which
the others notice at once; a host that is cut off closes nothing."""

LONGEST_WAIT = timedelta(days=7)
"""The longest that a rank waits for the next call of the first one, which samples and validates meanwhile."""

Call = tuple[str, tuple[Any, ...], dict[str, Any]]
"""A method's name, its arguments and its named arguments."""

# torch's own annotations are incomplete here.
# pyright: reportUnknownMemberType=false


class Group:
    """One rank of a process group. All ranks make the same collective operations in the same order."""

    def __init__(
        self,
        rank: int,
        size: int,
        *,
        store: Store | None = None,
        host: str | None = None,
        local_rank: int | None = None,
        announce: Callable[[], None] = lambda: None,
        lost: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Join the group. `store`: where its ranks meet, and `host`: the address of the first one; None: as the environment
        has it, which torchrun sets. `local_rank`: the number of this rank's GPU among those it sees; None: `rank`.
        `announce` is called when nothing is left but to join. `lost`: returns which rank has ended, where this rank can
        know."""
        self.size, self.is_first, self._lost = size, rank == 0, lost
        self.in_step = True
        """Whether the other ranks wait for the next call; else they may be amid one that this rank has left."""
        self._num_threads = torch.get_num_threads()
        gpu = torch.cuda.is_available()
        self.device = torch.device("cuda", rank if local_rank is None else local_rank) if gpu else torch.device("cpu")
        if gpu:
            torch.cuda.set_device(self.device)
        else:
            use_threads(max(1, self._num_threads // int(os.environ.get("LOCAL_WORLD_SIZE", size))))
        if host is not None:  # gloo would take the address that this host's name has
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface_to(host))
        announce()
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo",
            init_method="env://" if store is None else None,
            store=store,
            rank=rank,
            world_size=size,
            timeout=CALL_WAIT,
        )
        self._rank = rank
        self._mesh = init_device_mesh(self.device.type, (size,))

    @contextmanager
    def calling(self, name: str, *arguments: Any, **named: Any) -> Iterator[None]:
        """Raises RankDied when another rank has ended."""
        if not self.is_first:
            yield
            return
        if not self.in_step:
            raise RankDied("the learner's ranks were left amid a call")
        with deferred():  # a signal between two collective operations would part the ranks
            try:
                # another host has another working directory
                placed = tuple(value.absolute() if isinstance(value, Path) else value for value in arguments)
                dist.broadcast_object_list([(name, placed, named)])
                yield
            except OnAllRanks:
                raise
            except BaseException as error:
                self.in_step = False
                silent = f"learner ranks have not answered for {CALL_WAIT}" if "timed out" in str(error).lower() else None
                if is_of_group(error) and (lost := self._lost() or silent) is not None:
                    raise RankDied(lost) from error
                raise

    def next_call(self) -> Call:
        """Wait for what the first rank calls next. Raises RuntimeError when it has ended."""
        calls: list[Call | None] = [None]
        _wait_at_most(LONGEST_WAIT)
        dist.broadcast_object_list(calls)
        _wait_at_most(CALL_WAIT)
        return cast(Call, calls[0])

    def loads_on(self, device: torch.device) -> torch.device:
        return torch.device("cpu" if self.is_first else "meta")  # sharding takes a layer at a time to the device

    def shard(self, module: nn.Module) -> None:
        weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
        if not self.is_first:
            _give_room(module)
        for layer in module.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                fully_shard(layer, mesh=self._mesh)
        fully_shard(module, mesh=self._mesh, reshard_after_forward=True)
        for part in module.modules():
            if isinstance(part, FSDPModule):
                # losses are sums with weights that were counted over all ranks, so gradients add up
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)
        self.fill(module, weights)
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)

    @torch.no_grad()
    def fill(self, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in module.named_parameters():
            whole = torch.empty(parameter.shape, dtype=parameter.dtype, device=self.device)
            if self.is_first:
                whole.copy_(matching(weights, name, parameter))
            of_rank = cast(DTensor, parameter)
            parameter.copy_(distribute_tensor(whole, of_rank.device_mesh, of_rank.placements, src_data_rank=0))

    def share(self, micro_batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, bool]]:
        """Deal the micro-batches in turn: neighbours are of similar length, so that ranks wait little for each other."""
        dealt = list(micro_batches)
        for begin in range(0, len(dealt), self.size):
            index = begin + self._rank
            yield (dealt[index], True) if index < len(dealt) else (dealt[-1], False)

    def merged(self, tensor: Tensor) -> Tensor:
        total = tensor.cpu()
        dist.all_reduce(total)
        return total

    def totals(self, numbers: Mapping[str, float]) -> dict[str, float]:
        names = sorted(numbers)
        sums = self.merged(torch.tensor([numbers[name] for name in names], dtype=torch.float64)).tolist()
        return dict(zip(names, sums, strict=True))

    def kept(self, tensor: Tensor) -> Tensor:
        full = whole(tensor.detach())
        return full.cpu() if self.is_first else full.to("meta")

    def write(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        write_shares(tensors, folder)

    def leave(self) -> None:
        dist.destroy_process_group()
        use_threads(self._num_threads)


def _give_room(module: nn.Module) -> None:
    """Give tensors of the meta device room in main memory, without content; what is tied stays so. The system keeps no page
    of them until it is written, so that a rank takes as much as its share."""
    parameters: dict[nn.Parameter, nn.Parameter] = {}
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if parameter.is_meta:
                if parameter not in parameters:
                    room = torch.empty_like(parameter, device="cpu")
                    parameters[parameter] = nn.Parameter(room, requires_grad=parameter.requires_grad)
                setattr(owner, name, parameters[parameter])
        for name, buffer in owner.named_buffers(recurse=False):
            if buffer.is_meta:
                setattr(owner, name, torch.empty_like(buffer, device="cpu"))


def _wait_at_most(limit: timedelta) -> None:
    """Let operations of the group take so long from now on."""
    dist.distributed_c10d._set_pg_timeout(limit)  # pyright: ignore[reportPrivateUsage]  there is no public way


def interface_to(host: str) -> str:
    """Return the name of the network interface by which this host reaches an address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # nothing is sent
        mine = probe.getsockname()[0]
    names = [name for name, places in psutil.net_if_addrs().items() if any(place.address == mine for place in places)]
    return names[0]
