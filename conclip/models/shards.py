"""Model weights in several files, as transformers and vLLM read them, written without holding them all."""

import json
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from conclip.models.folder import INDEX, SHARD_BYTES


def write_weights(folder: Path, weights: Iterable[tuple[str, Tensor]], *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write named tensors to `model.safetensors` or, where they exceed one shard, to numbered files with an index. What the
    folder had of them before goes."""
    for old in [*folder.glob("model*.safetensors"), folder / INDEX]:
        old.unlink(missing_ok=True)
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    total = 0

    def write() -> None:
        save_file(held, folder / f"part-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(held))
        held.clear()

    for name, tensor in weights:
        if held and sum(t.nbytes for t in held.values()) + tensor.nbytes > shard_bytes:
            write()
        held[name] = tensor.contiguous()
        total += tensor.nbytes
    write()
    if len(shards) == 1:
        (folder / "part-0").rename(folder / "model.safetensors")
        return
    places: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        (folder / f"part-{number}").rename(folder / file)
        places |= dict.fromkeys(names, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2) + "\n")
