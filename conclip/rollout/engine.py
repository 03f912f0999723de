"""The seam between the project and whatever generates: token ids in, token ids out, completions as they finish."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from conclip.errors import MachineFailure
from conclip.types import Completion, Request, SamplingSpec

if TYPE_CHECKING:
    import torch


class EngineDied(MachineFailure):
    """The engine's process is gone; what was in flight is lost, the weights and the run are not."""


class RolloutEngine(Protocol):
    """What probing, training and evaluation need of an engine. Nobody above this line knows where generation runs."""

    @property
    def policy_version(self) -> int:
        """Version of the weights the engine samples from now."""
        ...

    def submit(self, requests: Sequence[Request], spec: SamplingSpec) -> None:
        """Queue requests; returns at once. Request ids must be unique among those in flight."""
        ...

    def poll(self) -> list[Completion]:
        """Completions finished since the last call, in any order. Blocks for one unit of the engine's work at most;
        an empty list with requests in flight means "call again". Raises EngineDied when the engine is gone."""
        ...

    def progress(self) -> int:
        """Tokens generated since the engine started, unfinished responses included; for live display."""
        ...

    def abort(self) -> None:
        """Drop everything in flight; nothing of it is returned later."""
        ...

    def update_weights(self, source: Path | Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Replace the weights by an HF folder's or by named tensors (HF names) and drop cached prefixes.
        Only when nothing is in flight. Ends `sleep`. Afterwards `policy_version == version`."""
        ...

    def reset_cache(self) -> None:
        """Forget cached prefixes, so that the next unit of work starts cold and repeats bit for bit."""
        ...

    def sleep(self) -> None:
        """Give the device's memory back until `update_weights`, where the platform can; until then nothing is sampled."""
        ...

    def close(self) -> None:
        """Stop and release everything, child processes included. May be called twice."""
        ...
