"""The state of a phase between two steps, from which it goes on exactly: written aside, renamed, checked when read.

`resume/<stage>/step-NNNNNN/` holds `tensors.safetensors` (weights and optimiser moments) and `state.json` (all else, and the
hash of the tensors).
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from conclip.identity import path_hash

SCHEMA = 1
RESUME = "resume"
"""Folder of the states in a run folder."""
KEPT = 2
"""Newest states that stay: the last one may turn out to be damaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseState:
    """Everything a phase needs to go on after `step`."""

    step: int
    values: Mapping[str, Any]
    """JSON-like."""
    tensors: Mapping[str, Tensor]


def save_state(folder: Path, key: str, state: PhaseState) -> None:
    """`key`: hash of all inputs of the phase; only the same phase goes on from it."""
    target = folder / f"step-{state.step:06d}"
    aside = folder / f"{target.name}.part"
    for path in (aside, target):
        shutil.rmtree(path, ignore_errors=True)
    aside.mkdir(parents=True)
    tensors = {name: tensor.contiguous() for name, tensor in state.tensors.items()}
    save_file(tensors, aside / "tensors.safetensors")
    head = {"schema": SCHEMA, "key": key, "step": state.step, "hash": path_hash(aside / "tensors.safetensors")}
    (aside / "state.json").write_text(json.dumps(head | {"values": state.values}), encoding="utf-8")
    for path in (*aside.iterdir(), aside):
        _sync(path)
    aside.rename(target)
    _sync(folder)
    for old in _states(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def newest_state(folder: Path, key: str, warn: Callable[[str], None]) -> PhaseState | None:
    """The newest whole state of the phase with this key; what is passed over is said."""
    for path in _states(folder):
        try:
            saved = json.loads((path / "state.json").read_text(encoding="utf-8"))
            if saved["key"] != key or saved["schema"] != SCHEMA:
                continue
            if path_hash(path / "tensors.safetensors") != saved["hash"]:
                raise ValueError("its tensors are not those that were saved")
            tensors = load_file(path / "tensors.safetensors")
            return PhaseState(step=saved["step"], values=saved["values"], tensors=tensors)
        except (OSError, ValueError, KeyError, TypeError) as error:
            warn(f"'{path}' is damaged ({error}); it is passed over")
    return None


def _states(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted((path for path in folder.glob("step-*") if path.suffix != ".part"), reverse=True)


def _sync(path: Path) -> None:
    """Have a file or folder on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
