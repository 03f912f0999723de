"""The one real engine of a test process.

It takes seconds to start, and vLLM can have one at a time in a process: closing a second one takes the first one's groups of
workers with it. So tests borrow it, with the weights of the model they name, and it is closed where a test needs another.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from conclip.config.compose import load_config
from conclip.config.groups import RolloutConfig
from conclip.models.folder import LAB_MODEL
from conclip.rollout.vllm_engine import VllmEngine

SEAM = "conclip.rollout.vllm_engine.VllmEngine"
"""What is replaced where a run is to have another engine than one of its own."""

ROLLOUT = dataclasses.replace(load_config("eval").rollout, max_num_seqs=64, kv_cache_gib=0.25)
SETTINGS: dict[str, Any] = {"dtype": "float32", "seed": 0, "max_model_len": 1024}
"""Of the engine that is lent, and of those which are compared with it."""

SHAPE = ("architectures", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def shape_of(model: Path) -> list[Any]:
    config = json.loads((model / "config.json").read_text())
    return [config[name] for name in SHAPE]


class Lent:
    """The engine as a run of its own would have it: `close` gives it back."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def close(self) -> None:
        self._engine.abort()


class Engines:
    """At most one real engine of the lab's shape."""

    def __init__(self) -> None:
        self._engine: Any = None

    def lend(self, model: Path, rollout: RolloutConfig = ROLLOUT, **settings: Any) -> Lent:
        """An engine with the model's weights at version 0, called as `VllmEngine` is."""
        wanted = SETTINGS | settings
        assert shape_of(model) == shape_of(LAB_MODEL) and rollout.tensor_parallel_size == 1, "this needs its own engine"
        assert wanted["dtype"] == SETTINGS["dtype"] and wanted["max_model_len"] <= SETTINGS["max_model_len"]
        assert not wanted.get("stop_tokens") and wanted.get("thinking_tags") is None
        if self._engine is None:
            self._engine = VllmEngine(LAB_MODEL, ROLLOUT, **SETTINGS)
        self._engine.update_weights(model, 0)
        return Lent(self._engine)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def shifting_adapter(folder: Path) -> Path:
    """Make the folder of an adapter for `scripted.WithAdapters`."""
    folder.mkdir()
    save_file({"shift": torch.full((128,), 0.5)}, folder / "adapter_model.safetensors")
    return folder
