"""The processes of a learner's ranks: they start, repeat on objects of their own what the first one calls, and end."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]  documented, but not exported

from conclip.cluster.launch import Launcher, Local, Worker, check_shared, check_there
from conclip.cluster.ranks import OnAllRanks, OneRank, RankDied, Ranks, is_of_group
from conclip.config.groups import ClusterConfig
from conclip.redact import one_line
from conclip.runs.interrupts import ignore_signals

if TYPE_CHECKING:
    from conclip.cluster.group import Group

START_POLL_S, END_S = 0.1, 5.0
"""How often the start of ranks is looked at, and the longest that a rank which has failed takes to end [s]."""

MAKE, DROP, END = "make", "drop", "end"
"""What ranks are told besides the methods of what they have made: to make it, to drop it, to end."""

LEFT_ALONE = "it no longer reaches another rank"
"""What a rank says that ends because another one has."""

Made = TypeVar("Made")
"""What every rank makes: a learner with its share of the models."""


class OnRanks(Generic[Made]):
    """Makes the same on all ranks, one at a time. The other ranks start with the first one made, and anew after `close`."""

    def __init__(self, make: Callable[..., Made], config: ClusterConfig, launcher: Callable[[], Launcher] = Local) -> None:
        """`make`: a module-level function of a model's folder, what else it needs, and `ranks`. `launcher` returns what
        starts the ranks besides this one."""
        self._make, self._launcher = make, launcher
        self._size = config.learner_ranks or 1
        self._workers: list[Worker] = []
        self._group: Group | None = None
        self.starts_ranks = config.kind != "torchrun"
        """Whether the other ranks can be started anew; those of torchrun only by itself, with this one."""
        if not self.starts_ranks:  # they wait for this one, whether or not it trains
            self._group = group_of_torchrun()

    def make(self, folder: Path, *arguments: Any, **named: Any) -> Made:
        """Call `make` on all ranks, and return what this one has made. What is called of it must be called on all ranks
        (`Ranks.calling`)."""
        ranks = self._ranks()
        with ranks.calling(MAKE, folder, *arguments, **named):
            return self._make(folder, *arguments, ranks=ranks, **named)

    def drop(self) -> None:
        """Release on the other ranks what was made last."""
        if self._group is not None:
            with self._group.calling(DROP):
                pass

    def close(self) -> None:
        """End the other ranks."""
        group, self._group = self._group, None
        in_step = group is not None and group.in_step
        if group is not None:
            if in_step:
                with suppress(RuntimeError), group.calling(END):
                    pass
            group.leave()
        for worker in self._workers:
            worker.end(wait_s=END_S if in_step else 0.0)
        self._workers = []

    def _ranks(self) -> Ranks:
        if self._group is None and self._size == 1:
            return OneRank()
        if self._group is None:
            from conclip.cluster.group import Group  # noqa: PLC0415

            launcher = self._launcher()
            host = launcher.host
            store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
            try:
                for rank in range(1, self._size):
                    name, local_rank = f"learner rank {rank}", rank if isinstance(launcher, Local) else 0
                    place = (rank, self._size, host, store.port, local_rank)
                    self._workers.append(Worker(name, launcher, _follow_in_child, self._make, *place, num_gpus=1))
                while not store.check([_arrival(rank) for rank in range(1, self._size)]):  # joining would wait for ever
                    if (lost := self._lost(wait_s=START_POLL_S)) is not None:
                        raise RankDied(lost)
                self._group = Group(0, self._size, store=store, host=host, lost=self._lost)
            except BaseException as error:
                try:
                    if is_of_group(error):
                        raise RankDied(self._lost() or f"learner ranks did not join ({error})") from error
                    raise
                finally:
                    self.close()
        return self._group

    def _lost(self, wait_s: float = END_S) -> str | None:
        """Return which rank has ended, or ends within `wait_s`, the first cause before what came of it; None where all
        run."""
        deadline = time.monotonic() + wait_s
        while True:
            failures = [failure for worker in self._workers if (failure := worker.failure()) is not None]
            if failures or time.monotonic() >= deadline:
                return min(failures, key=lambda failure: LEFT_ALONE in failure, default=None)
            time.sleep(0.02)


def follow(group: Group, make: Callable[..., Any]) -> None:
    """Do what the first rank does, until it ends; then leave the group. Raises RankDied when another one has ended."""
    try:
        _repeat_calls(group, make)
    except Exception as error:
        if is_of_group(error):
            raise RankDied(f"{LEFT_ALONE} ({one_line(str(error))})") from error
        raise
    group.leave()


def _repeat_calls(group: Group, make: Callable[..., Any]) -> None:
    made: Any = None
    while True:
        name, arguments, named = group.next_call()
        if name == END:
            return
        if name in (MAKE, DROP):
            made = None
            gc.collect()
        if name == MAKE:
            check_there(arguments[0])
            made = make(*arguments, ranks=group, **named)
        elif name != DROP:
            for folder in (value for value in arguments if isinstance(value, Path)):
                check_shared(folder)
            with suppress(OnAllRanks):  # the first one decides what follows
                getattr(made, name)(*arguments, **named)


def _follow_in_child(make: Callable[..., Any], rank: int, size: int, host: str, port: int, local_rank: int) -> None:
    from conclip.cluster.group import Group  # noqa: PLC0415  half a second to import, for several ranks only

    store = TCPStore(host, port, is_master=False)
    announce = partial(store.set, _arrival(rank), "")
    follow(Group(rank, size, store=store, host=host, local_rank=local_rank, announce=announce), make)


def follow_under_torchrun(make: Callable[..., Any]) -> None:
    """Be the rank that torchrun's environment names, until the first one ends."""
    ignore_signals()
    follow(group_of_torchrun(), make)


def group_of_torchrun() -> Group:
    """Join the group that torchrun's environment names."""
    from conclip.cluster.group import Group  # noqa: PLC0415

    rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Group(rank, size, local_rank=local_rank)


def _arrival(rank: int) -> str:
    """Return the key that a rank sets in the store when it is there."""
    return f"conclip/{rank}"
