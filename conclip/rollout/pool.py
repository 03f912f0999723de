"""Engines in processes of their own behind the interface of one: several of them, or one that isolates the run from its
crash."""

import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import repeat
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, cast

import torch

from conclip.cluster.memory_folder import MemoryFolder
from conclip.cluster.threads import AT_START, use_threads
from conclip.config.groups import RolloutConfig
from conclip.rollout.child import POLL_S, ChildEngine, vllm_engine
from conclip.rollout.engine import EngineDied, RolloutEngine, WeightsLost
from conclip.rollout.transfer import Transfer
from conclip.rollout.weights import as_folder
from conclip.types import Completion, Request, SamplingSpec


def with_threads(num_threads: int, start: Callable[..., RolloutEngine], *arguments: Any, **settings: Any) -> RolloutEngine:
    """Start an engine that computes with so many threads."""
    use_threads(num_threads)
    return start(*arguments, **settings)


class EnginePool:
    """A `RolloutEngine` of `rollout.num_engines` engines, which share the processor's threads.

    The k-th request of a submission goes to engine k modulo their number, whichever is faster: the same requests give the
    same responses again. An engine whose process dies is started again, as `ChildEngine` does.
    """

    def __init__(
        self,
        model_path: Path,
        config: RolloutConfig,
        *,
        start: Callable[..., RolloutEngine] = vllm_engine,
        connect: Callable[[Transfer], Any] | None = None,
        **settings: Any,
    ) -> None:
        """Start the engines side by side. `connect`: how the weights of updates are sent (`Transfer`); None: as files. All
        other arguments are those of `ChildEngine`."""
        number = config.num_engines
        self._transfer = None if connect is None else Transfer(connect, self._tell, number)
        self._connected: list[int] = []
        """The starts of the engines that the transfer is connected to."""
        if number > 1:
            start = partial(with_threads, max(1, AT_START // number), start)
        self._dtype = cast(torch.dtype, getattr(torch, settings["dtype"]))
        self._shared: MemoryFolder | None = None
        """The folder of the weights that all of them have; None for those of a model folder."""
        self._engines: list[ChildEngine] = []
        try:
            for _ in range(number):
                self._engines.append(ChildEngine(model_path, config, start=start, wait=False, **settings))
            for engine in self._engines:
                engine.ready()
        except BaseException:
            self.close()
            raise

    @property
    def policy_version(self) -> int:
        return self._engines[0].policy_version

    def _each(self, name: str, *arguments: Any) -> None:
        """Give every engine a command with what `arguments` have for it, all at once: it takes as long as the slowest."""
        with ThreadPoolExecutor(len(self._engines)) as threads:
            list(threads.map(lambda engine, *mine: getattr(engine, name)(*mine), self._engines, *arguments))

    def _all(self, name: str, *arguments: Any) -> None:
        """Give every engine the same command."""
        self._each(name, *map(repeat, arguments))

    def _tell(self, name: str, payloads: Sequence[Any]) -> None:
        """Pass a call of vLLM's weight transfer on to every engine, with its own argument."""
        self._each("transfer", repeat(name), payloads)

    def submit(self, requests: Sequence[Request], spec: SamplingSpec) -> None:
        for index, engine in enumerate(self._engines):
            if mine := requests[index :: len(self._engines)]:
                engine.submit(mine, spec)

    def poll(self) -> list[Completion]:
        for engine in self._engines:
            engine.send_submitted()
        if awaited := [pipe for engine in self._engines if (pipe := engine.awaited) is not None]:
            wait(awaited, POLL_S)
        return [completion for engine in self._engines for completion in engine.poll(0.0)]

    def progress(self) -> int:
        return sum(engine.progress() for engine in self._engines)

    def abort(self) -> None:
        self._all("abort")

    def takes_adapters(self) -> bool:
        return all(engine.takes_adapters() for engine in self._engines)

    def update_weights(
        self, source: Path | Iterable[tuple[str, torch.Tensor]], version: int, adapter: Path | None = None
    ) -> None:
        old, self._shared = self._shared, None
        try:
            folder = source if isinstance(source, Path) else self._sent(source)
            if adapter is not None and self._shared is not None:
                adapter = Path(shutil.copytree(adapter, Path(self._shared.name) / "adapter"))
        except BaseException:
            new, self._shared = self._shared, old  # an engine that is started again needs the weights of before
            if new is not None:
                new.cleanup()
            raise
        try:
            self._all("update_weights", folder, version, adapter)
        finally:
            if old is not None:
                old.cleanup()

    def _sent(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Path | None:
        """Send the weights to all engines, or return the folder from which they can read them. Raises WeightsLost when an
        engine dies as they are sent: all engines are begun anew then, since none knows what it has got."""
        if self._transfer is not None:
            if self._transfer.is_ready:
                for engine in self._engines:
                    engine.forget_weights()
                self._all("unread")  # starts those that have died
                starts = [engine.num_starts for engine in self._engines]
                if starts != self._connected:
                    self._transfer.disconnect()
                try:
                    self._transfer.send(weights)
                except BaseException as error:
                    for engine in self._engines:
                        engine.discard()
                    if isinstance(error, EngineDied):
                        raise WeightsLost(f"{error} as it was sent weights; all engines start again") from error
                    raise
                self._connected = starts
                return None
            weights = self._transfer.noted(weights, self._dtype, self._engines[0].unread())
        self._shared = as_folder(weights, self._dtype)
        return Path(self._shared.name)

    def reset_cache(self) -> None:
        self._all("reset_cache")

    def sleep(self) -> None:
        self._all("sleep")

    def close(self) -> None:
        if self._engines:
            self._all("close")
        if self._shared is not None:
            self._shared.cleanup()
