"""The learners of a run: in its own process, or divided among ranks, processes that repeat what the first one calls."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch.distributed import DistError, TCPStore  # pyright: ignore[reportPrivateImportUsage]  documented, but not exported

from conclip.cluster.launch import Launcher, Local, Worker, check_there
from conclip.cluster.ranks import OnAllRanks, OneRank, RankDied, Ranks
from conclip.config.groups import ClusterConfig
from conclip.config.schema import LearnConfig
from conclip.rollout.session import Runtime
from conclip.runs.interrupts import ignore_signals
from conclip.training.learner import Learner, make_learner
from conclip.training.phase import PhaseInputs, TrainResult
from conclip.training.trainer import Trainer

if TYPE_CHECKING:
    from conclip.cluster.group import Group

START_POLL_S, END_S = 0.1, 5.0
"""How often the start of ranks is looked at, and the longest that a rank which has failed takes to end [s]."""

MAX_RESTARTS = 3
"""Times that the ranks of one training stage are started again."""

BEGIN, DROP, END = "begin", "drop", "end"
"""What ranks are told besides the calls of a learner's methods: to load a learner, to drop it, to end."""


def follow(ranks: Group) -> None:
    """Do what the first rank does, until it ends."""
    learner: Learner | None = None
    while True:
        name, arguments, named = ranks.next_call()
        if name == END:
            return
        if name in (BEGIN, DROP):
            learner = None
            gc.collect()
        if name == BEGIN:
            check_there(arguments[0])
            learner = make_learner(*arguments, ranks=ranks, **named)
        elif name != DROP:
            with suppress(OnAllRanks):  # the first one decides what follows
                getattr(learner, name)(*arguments, **named)


def _follow_in_child(rank: int, size: int, host: str, port: int, local_rank: int) -> None:
    from conclip.cluster.group import Group  # noqa: PLC0415  half a second to import, for several ranks only

    store = TCPStore(host, port, is_master=False)
    announce = partial(store.set, _arrival(rank), "")
    group = Group(rank, size, store=store, host=host, local_rank=local_rank, announce=announce)
    follow(group)
    group.leave()


def follow_under_torchrun() -> None:
    """Be the rank that torchrun's environment names, until the first one ends."""
    ignore_signals()
    group = _group_of_torchrun()
    follow(group)
    group.leave()


def _group_of_torchrun() -> Group:
    from conclip.cluster.group import Group  # noqa: PLC0415

    rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Group(rank, size, local_rank=local_rank)


def _arrival(rank: int) -> str:
    """Return the key that a rank sets in the store when it is there."""
    return f"conclip/{rank}"


class Learners:
    """Makes the learners of a run, one at a time. Their ranks start with the first one, and anew after `close`."""

    def __init__(self, config: ClusterConfig, launcher: Callable[[], Launcher] = Local) -> None:
        """`launcher` returns what starts the ranks besides this one."""
        self._launcher = launcher
        self._size = config.learner_ranks or 1
        self._workers: list[Worker] = []
        self._group: Group | None = None
        if config.kind == "torchrun":  # its processes wait for this one, whether or not it trains
            self._group = _group_of_torchrun()

    def make(self, model_path: Path, config: LearnConfig, *, num_updates: int) -> Learner:
        """Load the models of a phase on all ranks, and return the learner of this one."""
        ranks = self._ranks()
        with ranks.calling(BEGIN, model_path, config, num_updates=num_updates):
            return make_learner(model_path, config, num_updates=num_updates, ranks=ranks)

    def drop(self) -> None:
        """Release the models of the last learner on the other ranks."""
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
                    self._workers.append(Worker(name, launcher, _follow_in_child, *place, num_gpus=1))
                while not store.check([_arrival(rank) for rank in range(1, self._size)]):  # joining would wait for ever
                    if (lost := self._lost(wait_s=START_POLL_S)) is not None:
                        raise RankDied(lost)
                self._group = Group(0, self._size, store=store, host=host, lost=self._lost)
            except DistError as error:
                lost = self._lost() or f"learner ranks did not join ({error})"
                self.close()
                raise RankDied(lost) from error
            except BaseException:
                self.close()
                raise
        return self._group

    def _lost(self, wait_s: float = END_S) -> str | None:
        """Return which rank has ended, or ends within `wait_s`; None where all run."""
        deadline = time.monotonic() + wait_s
        while True:
            failures = [failure for worker in self._workers if (failure := worker.failure()) is not None]
            if failures or time.monotonic() >= deadline:
                return next(iter(failures), None)
            time.sleep(0.02)


def train(phase: PhaseInputs, config: LearnConfig, runtime: Runtime, learners: Learners) -> tuple[TrainResult, float]:
    """Train one phase; where a rank of its learner dies, go on from the last checkpoint. Returns the result, and the time
    spent on it [s]."""
    for restarts_left in reversed(range(MAX_RESTARTS + 1)):
        trainer: Trainer | None = None
        try:
            trainer = Trainer(phase, config, runtime, learners.make)
            result = trainer.train()
            learners.drop()
            return result, trainer.wall_s
        except RankDied as error:
            lost = str(error)
        trainer = None  # its models, before others are loaded; the error held them, too
        gc.collect()
        learners.close()
        if not restarts_left:
            raise RankDied(f"{lost}; {MAX_RESTARTS} restarts did not help")
        runtime.run.warn(f"{lost}; all are started again, and {phase.stage} goes on from its last checkpoint")
    raise AssertionError("unreachable")
