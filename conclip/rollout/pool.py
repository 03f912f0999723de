"""Several engines behind the interface of one, each in a process of its own."""

import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import wait
from operator import methodcaller
from pathlib import Path
from typing import Any, cast

import torch

from conclip.cluster.memory_folder import MemoryFolder
from conclip.config.groups import RolloutConfig
from conclip.rollout.child import POLL_S, ChildEngine, vllm_engine
from conclip.rollout.engine import RolloutEngine
from conclip.rollout.weights import as_folder
from conclip.types import Completion, Request, SamplingSpec


def with_threads(num_threads: int, start: Callable[..., RolloutEngine], *arguments: Any, **settings: Any) -> RolloutEngine:
    """Start an engine that computes with so many threads."""
    torch.set_num_threads(num_threads)
    return start(*arguments, **settings)


class EnginePool:
    """A `RolloutEngine` of `rollout.num_engines` engines, which share the processor's threads.

    The k-th request of a submission goes to engine k modulo their number, whichever is faster: the same requests give the
    same responses again. An engine whose process dies is started again, as `ChildEngine` does.
    """

    def __init__(
        self, model_path: Path, config: RolloutConfig, *, start: Callable[..., RolloutEngine] = vllm_engine, **settings: Any
    ) -> None:
        """Start the engines side by side. All arguments are those of `ChildEngine`."""
        number = config.num_engines
        start = partial(with_threads, max(1, torch.get_num_threads() // number), start)
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

    def _all(self, name: str, *arguments: Any) -> None:
        """Give every engine a command, all at once: it takes as long as the slowest."""
        with ThreadPoolExecutor(len(self._engines)) as threads:
            list(threads.map(methodcaller(name, *arguments), self._engines))

    def submit(self, requests: Sequence[Request], spec: SamplingSpec) -> None:
        for index, engine in enumerate(self._engines):
            if mine := requests[index :: len(self._engines)]:
                engine.submit(mine, spec)

    def poll(self) -> list[Completion]:
        wait([pipe for engine in self._engines if (pipe := engine.awaited) is not None], POLL_S)
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
        if not isinstance(source, Path):
            self._shared = as_folder(source, self._dtype)
            source = Path(self._shared.name)
            if adapter is not None:
                adapter = Path(shutil.copytree(adapter, source / "adapter"))
        self._all("update_weights", source, version, adapter)
        if old is not None:
            old.cleanup()

    def reset_cache(self) -> None:
        self._all("reset_cache")

    def sleep(self) -> None:
        self._all("sleep")

    def close(self) -> None:
        if self._engines:
            self._all("close")
        if self._shared is not None:
            self._shared.cleanup()
