"""Weights for engines in other processes by vLLM's own weight transfer, which leaves them on GPUs.

What is here is the trainer's side, in its terms: the client that it tells engines through, and the source that it sends.
Tests run its life cycle with a transport of their own on a CPU. Those of vLLM have never run with conclip: `ipc`, memory
that processes share on one GPU, and `nccl`, across GPUs and hosts.
"""

import collections
import math
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch

from conclip.rollout.platform import configure_environment

NamedTensors = Iterable[tuple[str, torch.Tensor]]


class Transfer:
    """The transfer to some engines. They get their first weights in another way, which tells it names and shapes."""

    def __init__(
        self, connect: Callable[["Transfer"], Any], tell: Callable[[str, Sequence[Any]], None], num_engines: int
    ) -> None:
        """`connect` returns vLLM's trainer for this client and source, connected; `tell` calls a method of vLLM's workers
        with an argument for each engine, and returns when all have answered."""
        self._connect, self._tell, self._num_engines = connect, tell, num_engines
        self._trainer: Any = None
        self._shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        self._weights: NamedTensors = ()

    @property
    def is_ready(self) -> bool:
        """Whether it knows what it will send."""
        return bool(self._shapes)

    def noted(
        self, weights: NamedTensors, dtype: torch.dtype, unread: Collection[str]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield weights that go another way, and note their names and shapes. `dtype`: the engines' precision; `unread`:
        what they have no place for."""
        self._dtype, self._unread = dtype, unread
        shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        for name, tensor in self._as_sent(weights):
            shapes[name] = (tensor.dtype, tuple(tensor.shape))
            yield name, tensor
        self._shapes = shapes

    def _as_sent(self, weights: NamedTensors) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            if name not in self._unread:
                yield name, tensor.detach().to(self._dtype if tensor.is_floating_point() else tensor.dtype)

    @property
    def largest(self) -> int:
        """The bytes of the largest tensor."""
        return max(dtype.itemsize * math.prod(shape) for dtype, shape in self._shapes.values())

    def send(self, weights: NamedTensors) -> None:
        """Send weights of the names, shapes and order that were noted. When that fails, it connects anew the next time."""
        self._weights = iter(weights)
        try:
            if torch.cuda.is_available():
                torch.cuda.current_stream().synchronize()  # vLLM reads them on streams of its own
            if self._trainer is None:
                self._trainer = self._connect(self)
            self._trainer.send_weights()
        except BaseException:
            self.disconnect()
            collections.deque(self._weights, maxlen=0)  # other ranks gather them to the end
            raise
        finally:
            self._weights = ()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # what it was sent from

    def disconnect(self) -> None:
        """Connect anew before the next weights: an engine is another process."""
        trainer, self._trainer = self._trainer, None
        if trainer is not None:
            trainer.shutdown()

    # vLLM's `WeightSource`

    def metadata(self) -> list[Any]:
        from vllm.distributed.weight_transfer.base import ParamMeta  # noqa: PLC0415  seconds to import

        return [ParamMeta(name, dtype, shape) for name, (dtype, shape) in self._shapes.items()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self._as_sent(self._weights)

    # vLLM's `VLLMWeightSyncClient`

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Each engine's workers come after those of the engines before, and the trainer."""
        of_engines = [dict(init_info) for _ in range(self._num_engines)]
        if "rank_offset" in init_info:
            workers = (init_info["world_size"] - 1) // self._num_engines
            for index, info in enumerate(of_engines):
                info["rank_offset"] += index * workers
        self._tell("init_weight_transfer_engine", of_engines)

    def start_weight_update(self) -> None:
        self._tell("start_weight_update", [{}] * self._num_engines)

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        self._tell("update_weights", [update_info] * self._num_engines)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._tell("finish_weight_update", [{}] * self._num_engines)


def connect_gpus(kind: Literal["ipc", "nccl"], host: str, num_workers: int, transfer: Transfer) -> Any:
    """Return vLLM's trainer for a transfer from this process's GPU. `host`: the address at which engines reach this process;
    `num_workers`: the GPUs of all of them."""
    configure_environment(deterministic=False)  # of this process, which samples nothing
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory  # noqa: PLC0415

    if kind == "ipc":
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo  # noqa: PLC0415

        place = IPCTrainerInitInfo(packed=True, packed_buffer_size_bytes=max(1 << 28, transfer.largest), rank=0)
    else:
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo  # noqa: PLC0415

        with socket.socket() as free:
            free.bind((host, 0))
            port = free.getsockname()[1]
        place = NCCLTrainerInitInfo(master_address=host, master_port=port, world_size=1 + num_workers, rank=0)
    source: Any = transfer
    return WeightTransferTrainerFactory.trainer_init(place, client=transfer, source=source)
