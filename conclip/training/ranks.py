"""The learners of a run, on one rank or on several, and how training survives a rank that dies."""

import gc
from collections.abc import Callable

from conclip.cluster.followers import OnRanks
from conclip.cluster.launch import Launcher, Local
from conclip.cluster.ranks import RankDied
from conclip.config.groups import ClusterConfig
from conclip.config.schema import LearnConfig
from conclip.rollout.session import Runtime
from conclip.training.learner import Learner, make_learner
from conclip.training.phase import PhaseInputs, TrainResult
from conclip.training.trainer import Trainer

MAX_RESTARTS = 3
"""Times that the ranks of one training stage are started again."""


class Learners(OnRanks[Learner]):
    """Makes the learners of a run."""

    def __init__(self, config: ClusterConfig, launcher: Callable[[], Launcher] = Local) -> None:
        super().__init__(make_learner, config, launcher)


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
        if not learners.starts_ranks:
            raise RankDied(f"{lost}; torchrun starts all of them again if --max-restarts lets it, and they go on")
        if not restarts_left:
            raise RankDied(f"{lost}; {MAX_RESTARTS} restarts did not help")
        runtime.run.warn(f"{lost}; all are started again, and {phase.stage} goes on from its last checkpoint")
    raise AssertionError("unreachable")
