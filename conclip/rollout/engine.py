"""The interface of rollout engines: token ids in, token ids out, completions as they finish."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from conclip.errors import MachineFailure
from conclip.types import Completion, Request, SamplingSpec

if TYPE_CHECKING:
    import torch


class EngineDied(MachineFailure):
    """An engine's process or a server is gone. Where starting or asking it again does not help, it ends the run."""


class WeightsLost(EngineDied):
    """An engine has died, and only the learner has the weights that it was sent: they are to be sent again."""


class TakesWeights(Protocol):
    """What receives a policy's weights."""

    def takes_adapters(self) -> bool:
        """Return whether `update_weights` takes an adapter beside the weights."""
        ...

    def update_weights(
        self, source: Path | Iterable[tuple[str, torch.Tensor]], version: int, adapter: Path | None = None
    ) -> None:
        """Replace the weights by those of a Hugging Face folder or by named tensors (Hugging Face names), and drop cached
        prefixes. Allowed only when nothing is in flight. Ends `sleep`. Afterwards `policy_version == version`.

        `adapter`: a folder with peft's files of a LoRA adapter that is applied beside these weights, which are named tensors
        then. It may go once this returns."""
        ...


class RolloutEngine(TakesWeights, Protocol):
    """The engine as probing, training and evaluation use it. Its callers do not know where generation runs."""

    @property
    def policy_version(self) -> int:
        """Return the version of the weights that the engine samples from."""
        ...

    def submit(self, requests: Sequence[Request], spec: SamplingSpec) -> None:
        """Queue requests and return at once. Request ids must be unique among those in flight."""
        ...

    def poll(self) -> list[Completion]:
        """Return the completions that finished since the last call, in any order. Blocks for at most one step of the engine;
        an empty list with requests in flight means "call again". Raises EngineDied when the engine has died."""
        ...

    def progress(self) -> int:
        """Return the tokens generated since the engine started, unfinished responses included; for live display."""
        ...

    def abort(self) -> None:
        """Drop all requests in flight; none of them is returned later."""
        ...

    def reset_cache(self) -> None:
        """Drop cached prefixes, so that the next unit of work starts from a cold cache and is bit-reproducible."""
        ...

    def sleep(self) -> None:
        """Release the device's memory until `update_weights`, where the platform can; nothing is sampled until then."""
        ...

    def close(self) -> None:
        """Stop and release everything, child processes included. It may be called twice."""
        ...


class Discarding:
    """What takes the place of an engine where there is none: it reads the weights that it is given, and drops them."""

    def __init__(self, takes_adapters: bool) -> None:
        self._takes_adapters = takes_adapters

    def takes_adapters(self) -> bool:
        return self._takes_adapters

    def update_weights(
        self, source: Path | Iterable[tuple[str, torch.Tensor]], version: int, adapter: Path | None = None
    ) -> None:
        if not isinstance(source, Path):
            for _ in source:
                pass
