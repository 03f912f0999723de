"""Chooses what starts the processes of a run, by its config."""

import os
import socket
from collections.abc import Sequence
from importlib.util import find_spec

from conclip.cluster.launch import Launcher, Local
from conclip.config.groups import ClusterConfig
from conclip.config.machine import check_repeats, has_gpu, num_gpus
from conclip.config.schema import BaseConfig
from conclip.errors import UserError

ANSWER_S = 10.0
"""The longest that a cluster takes to answer [s]."""


def check_machine(config: BaseConfig) -> None:
    """Raise UserError where the processes of a run could not start on this machine, or would miss their GPUs, as far as it
    is known before anything is loaded."""
    _check_cluster(config.cluster)
    _check_gpus(config)


def _check_gpus(config: BaseConfig) -> None:
    on_gpu, weights = has_gpu(), config.cluster.weights
    if config.learning is not None and weights != "files" and not on_gpu:
        raise UserError(f"cluster.weights={weights}: weights go from GPU to GPU, and this machine has none; set it to files")
    if not on_gpu or config.model.url:
        return
    if config.rollout.deterministic and config.cluster.address is None:
        check_repeats()
    ranks = config.cluster.learner_ranks or 1
    if config.cluster.kind == "ray":
        if config.cluster.address is None and (here := num_gpus()):
            _check_gpus_of_ray(config, ranks, here)
        return
    if config.learning is not None and config.cluster.kind == "local" and ranks > 1 and ranks > (here := num_gpus()):
        raise UserError(
            f"cluster.learner_ranks is {ranks}, and this machine shows {here} GPUs, of which each rank needs one"
        )
    if config.rollout.num_engines > 1:
        raise UserError(
            "rollout.num_engines: on GPUs, several engines need cluster=ray, which gives each its own; set it to 1"
        )
    if config.learning is not None and config.learning.trainer.sample_ahead:
        raise UserError("trainer.sample_ahead: on GPUs it needs cluster=ray, which gives engines their own; set it to false")


def _check_gpus_of_ray(config: BaseConfig, ranks: int, here: int) -> None:
    """Raise UserError where a cluster of this host alone, with so many GPUs, has too few for a run."""
    learners = ranks if config.learning is not None else 0
    of_engines = config.rollout.num_engines * config.rollout.tensor_parallel_size
    if learners + of_engines > here:
        raise UserError(
            f"cluster=ray: engines need {of_engines} GPUs and what trains {learners}, and this machine shows {here}; name a "
            "cluster that has them (cluster.address), or leave cluster=ray out"
        )


def _check_cluster(config: ClusterConfig) -> None:
    if config.kind == "torchrun":
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            if not os.environ.get(name, "").isdecimal():
                raise UserError(
                    f"cluster=torchrun: torchrun has not started this process ({name} is no number in its environment); "
                    "start it with 'torchrun --nproc-per-node N -m conclip ...', or leave cluster=torchrun out"
                )
    if config.kind != "ray":
        return
    if find_spec("ray") is None:
        raise UserError("cluster=ray needs Ray, which is not installed: pip install 'ray>=2.50,<3'")
    host, _, port = (config.address or "").rpartition(":")
    if port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
        except (OSError, OverflowError) as error:
            raise UserError(f"cluster.address: nothing answers at '{config.address}' ({error}); see 'ray start'") from error


def make_launcher(config: ClusterConfig, gpus: Sequence[int], *, keeps_gpu: bool) -> Launcher:
    """Return what starts the processes of a run besides this one. `gpus`: how many each of them needs, where there are any.
    `keeps_gpu`: this process has the first GPU of this host. Raises UserError for a Ray cluster that is not there or would
    give that GPU away, and MachineFailure for one without room."""
    if config.kind != "ray":
        return Local()
    from conclip.cluster.by_ray import RayLauncher  # noqa: PLC0415  an extra

    return RayLauncher(config.address, config.placement, gpus, keeps_gpu=keeps_gpu)
