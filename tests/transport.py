"""A transport for vLLM's weight transfer that a CPU has: files, a few tensors at a time."""

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from conclip.config.groups import RolloutConfig
from conclip.rollout.engine import RolloutEngine
from conclip.rollout.transfer import Transfer
from tests.scripted import ScriptedEngine

NAME = "files of a test"
AT_A_TIME = 5


class FileTrainer:
    """What vLLM's trainers do, with the client and source that they get."""

    def __init__(self, folder: Path, transfer: Transfer) -> None:
        self._folder, self._transfer = folder, transfer
        transfer.init_weight_transfer_engine({"folder": str(folder), "rank_offset": 1, "world_size": 5})

    def shutdown(self) -> None: ...

    def send_weights(self) -> None:
        transfer, sent = self._transfer, list[tuple[str, torch.Tensor]]()
        transfer.start_weight_update()
        weights = iter(transfer)
        while some := list(islice(weights, AT_A_TIME)):
            sent += some
            save_file({name: tensor.clone() for name, tensor in some}, self._folder / f"{len(sent)}.safetensors")
            transfer.update_weights({"file": f"{len(sent)}.safetensors"})
        assert [(m.name, m.dtype, m.shape) for m in transfer.metadata()] == [(n, t.dtype, tuple(t.shape)) for n, t in sent]
        transfer.finish_weight_update()


@dataclass
class Place:
    folder: str
    rank_offset: int
    world_size: int


@dataclass
class Piece:
    file: str


def vllm_with_files(model: Path, config: RolloutConfig, **settings: Any) -> RolloutEngine:
    """vLLM's engine, which knows the transport."""
    from conclip.rollout.platform import configure_environment
    from conclip.rollout.vllm_engine import VllmEngine

    configure_environment(deterministic=False)
    from vllm.distributed.weight_transfer.base import WeightTransferEngine
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    class FileTransfer(WeightTransferEngine[Any, Any]):
        """As vLLM's transports are, but for where the tensors come from."""

        init_info_cls, update_info_cls = Place, Piece

        def init_transfer_engine(self, init_info: Place) -> None:
            self._folder = Path(init_info.folder)

        def start_weight_update(self) -> None:
            initialize_layerwise_reload(self.model)

        def receive_weights(self, update_info: Piece) -> None:
            self.model.load_weights(load_file(self._folder / update_info.file).items())  # type: ignore[operator]

        def finish_weight_update(self) -> None:
            finalize_layerwise_reload(self.model, self.model_config)

        def shutdown(self) -> None: ...

    WeightTransferEngineFactory.register_engine(NAME, FileTransfer)
    return VllmEngine(model, config, weight_transfer=NAME, **settings)


class Sendable(ScriptedEngine):
    """Takes weights by the transport, in the order that vLLM's workers insist on. It dies of a piece where its folder has a
    file `die`."""

    _is_open = False

    def unread(self) -> tuple[str, ...]:
        return ("lm_head.weight",)

    def transfer(self, name: str, payload: Any) -> None:
        if name == "init_weight_transfer_engine":
            self._place = Place(**payload)
        elif name == "start_weight_update":
            assert not self._is_open, "an update has begun already, as vLLM's workers say"
            self._sent: dict[str, torch.Tensor] = {}
            self._is_open = True
        elif name == "update_weights":
            assert self._is_open
            self._sent |= load_file(Path(self._place.folder) / payload["file"])
            with suppress(FileNotFoundError):  # one of several engines dies
                (Path(self._place.folder) / "die").unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        else:
            assert name == "finish_weight_update" and self._is_open
            self._is_open = False

    def update_weights(
        self, source: Path | Iterable[tuple[str, torch.Tensor]] | None, version: int, adapter: Path | None = None
    ) -> None:
        super().update_weights(self._sent.items() if source is None else source, version, adapter)
