"""Tensors on disk of which each rank has a share: every rank writes its own into a file, and any number of ranks reads them
(torch.distributed.checkpoint, in the format of safetensors)."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

# torch's own annotations are incomplete here.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false


def write_shares(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write this rank's share of the tensors; all ranks call it with the same names. Raises on all of them what one of them
    met, such as OSError."""
    with _as_met():
        save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def read_shares(folder: Path, like: Callable[[str], Tensor | None]) -> dict[str, Tensor]:
    """Return the tensors that a folder's files hold, whoever has written them. `like`: for the name of a tensor one that
    stands for it in this process; where that is sharded and of the same shape, this rank reads its share, else all of it."""
    reader = HuggingFaceStorageReader(str(folder))
    tensors: dict[str, Tensor] = {}
    for name, found in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(found, TensorStorageMetadata)  # files of safetensors hold nothing else
        other, dtype = like(name), found.properties.dtype
        if other is not None and hasattr(other, "device_mesh") and other.shape == found.size:
            tensors[name] = torch.empty_like(other, dtype=dtype)
        else:
            tensors[name] = torch.empty(found.size, dtype=dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it should be in one process
        with _as_met():
            load(tensors, storage_reader=reader, no_dist=not dist.is_initialized())
    return tensors


@contextmanager
def _as_met() -> Iterator[None]:
    """Raise what a rank met, such as OSError, instead of torch's exception for all of them, which is no Exception."""
    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error
