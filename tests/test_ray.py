"""Processes that Ray places: the same engine, the same learner, and what happens when one of them or its host is gone."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest

from conclip.cluster.choose import make_launcher
from conclip.cluster.launch import Launcher, Worker
from conclip.config.groups import ClusterConfig
from conclip.errors import MachineFailure, UserError
from conclip.models.folder import LAB_MODEL
from conclip.rollout.child import ChildEngine
from conclip.rollout.engine import RolloutEngine
from conclip.rollout.pool import EnginePool
from conclip.training.ranks import Learners
from tests.asking import killed_amid, requests, run
from tests.engines import ROLLOUT, SETTINGS
from tests.scripted import ScriptedEngine
from tests.test_cluster import said_by
from tests.test_ranks import close, same_weights, settings, updates

ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")

from conclip.cluster import by_ray  # noqa: E402  needs Ray
from conclip.cluster.by_ray import RayLauncher, RayProcess  # noqa: E402

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("ranks")]


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    """A cluster of this host alone, whose processes find the tests."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", str(Path.cwd()))
        made = make_launcher(ClusterConfig(kind="ray"), gpus=[0] * 4, keeps_gpu=False)
        sys.stdout.write(f"Ray's logs: {ray.get_runtime_context().get_session_name()}\n")  # shown where a test fails
        yield made
        made.close()


ASKING_FOR_GPUS = """
import os, ray
from conclip.cluster import by_ray
by_ray.gpu_names = lambda: ["0", "1", "2"]
launcher = by_ray.RayLauncher(None, "pack", [1, 1], keeps_gpu=True)

@ray.remote(num_cpus=1, num_gpus=1)
def shown(): return os.environ["CUDA_VISIBLE_DEVICES"]

asked = [shown.options(scheduling_strategy=launcher._room).remote() for _ in range(4)]
print(sorted(set(ray.get(asked))), os.environ.get("CUDA_VISIBLE_DEVICES"), by_ray._gpus_of(launcher._here))
launcher.close()
"""


def test_ray_does_not_give_the_learners_gpu_away(tmp_path: Path):
    """On a host of three GPUs, as Ray is told."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    outcome = subprocess.run(
        [sys.executable, "-c", ASKING_FOR_GPUS], env=environment, capture_output=True, text=True, timeout=300, cwd=Path.cwd()
    )
    names, mine, given = outcome.stdout.strip().rsplit(" ", 2)
    assert set(json.loads(names.replace("'", '"'))) <= {"1", "2"} and (mine, given) == ("None", "2")


@pytest.mark.parametrize("elsewhere", [False, True])
def test_an_engine_that_ray_places_is_the_same_and_is_started_again(
    launcher: Launcher,
    here: RolloutEngine,
    said: list[str],
    random_model: Path,
    elsewhere: bool,
    monkeypatch: pytest.MonkeyPatch,
):
    if elsewhere:  # as if weights had to be carried
        monkeypatch.setattr(launcher, "_here", "another host")
    carried, folders = launcher.carried, set[Path]()
    monkeypatch.setattr(launcher, "carried", lambda *given: folders.add(found := carried(*given)) or found)
    engine = ChildEngine(LAB_MODEL, ROLLOUT, warn=said.append, start=ScriptedEngine, launcher=launcher, **SETTINGS)
    try:
        here.update_weights(LAB_MODEL, 0)
        assert run(engine) == run(here)
        here.update_weights(random_model, 5)
        engine.update_weights(random_model, 5)
        updated = run(here)
        assert run(engine) == updated
        assert killed_amid(engine, requests()) == updated
        process = engine._process
        assert isinstance(process, RayProcess)
        ray.kill(process.agent)  # as when its host is lost: what stands for the process there is gone
        process.join(60)  # Ray kills in its own time
        assert not engine._process.is_alive()
        assert run(engine) == updated
    finally:
        engine.close()
    assert said and all("started again" in text for text in said), said
    assert not engine._process.is_alive()
    copies = folders - {LAB_MODEL, random_model}
    assert bool(copies) is elsewhere and not any(folder.exists() for folder in copies)


def test_a_pool_that_ray_places_gives_the_responses_of_one_here(launcher: Launcher):
    two = dataclasses.replace(ROLLOUT, num_engines=2)
    local = EnginePool(LAB_MODEL, two, start=ScriptedEngine, **SETTINGS)
    placed = EnginePool(LAB_MODEL, two, start=ScriptedEngine, launcher=launcher, **SETTINGS)
    try:
        assert run(placed) == run(local)
    finally:
        local.close()
        placed.close()


def test_ranks_that_ray_places_learn_what_one_process_does(launcher: Launcher):
    config, results = settings("algo=ppo"), list[Any]()
    for learners in (Learners(ClusterConfig()), Learners(ClusterConfig(kind="ray", learner_ranks=2), lambda: launcher)):
        try:
            learner = learners.make(LAB_MODEL, config, num_updates=3)
            results.append((updates(learner, config, 0, 3), learner.saved()))
        finally:
            learners.close()
    close(results[1][0], results[0][0])
    same_weights(results[1][1], results[0][1])


def refusing() -> None:
    raise UserError("not like this")


def test_what_a_placed_process_meets_is_said(launcher: Launcher):
    worker = Worker("a worker", launcher, refusing)
    with pytest.raises(UserError, match="not like this"):
        while worker.failure() is None:
            pass
    worker.end()
    killed = Worker("a worker", launcher, os.abort)
    killed._process.join()
    assert killed.failure() == "a worker is gone (exit code -6)"
    killed.end()


def show_threads(path: Path) -> None:
    path.write_text(os.environ.get("OMP_NUM_THREADS", "none"))


@pytest.mark.parametrize("number", ["3", None])
def test_a_placed_process_has_this_ones_number_of_threads(
    launcher: Launcher, tmp_path: Path, number: str | None, monkeypatch: pytest.MonkeyPatch
):
    """Not the one that Ray sets for its own processes."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if number is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", number)
    worker = Worker("a worker", launcher, show_threads, tmp_path / "threads")
    worker._process.join()
    worker.end()
    assert (tmp_path / "threads").read_text() == (number or "none")


def test_a_host_that_cannot_start_a_process_says_why(launcher: Launcher, monkeypatch: pytest.MonkeyPatch):
    """It is no lost host, after which others would be tried."""
    assert isinstance(launcher, RayLauncher)
    Worker("an earlier one", launcher, os.abort).end()  # with which Ray gets the agents' code, as it is
    monkeypatch.setattr(by_ray, "THREADS", "another")
    with pytest.raises(MachineFailure, match=r"cannot start a process \(KeyError: 'OMP_NUM_THREADS'\)"):
        Worker("a worker", launcher, os.abort)


@pytest.mark.parametrize(("num_killed", "num_asked"), [(1, 2), (9, 3)])
def test_a_process_that_is_killed_before_it_connects_is_started_again(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, num_killed: int, num_asked: int
):
    assert isinstance(launcher, RayLauncher)
    asked: list[str] = []
    connection_of = launcher._connection_of

    def killing(name: str, process: RayProcess) -> Any:
        asked.append(name)
        if len(asked) <= num_killed:
            process.kill()
        return connection_of(name, process)

    monkeypatch.setattr(launcher, "_connection_of", killing)
    helps = num_killed < num_asked
    with nullcontext() if helps else pytest.raises(MachineFailure, match="started 3 times, and lost each time"):
        worker = Worker("a worker", launcher, show_threads, tmp_path / "threads")
        worker._process.join()
        worker.end()
    assert len(asked) == num_asked and (tmp_path / "threads").exists() == helps


def test_whoever_connects_and_says_nothing_holds_up_nobody(launcher: Launcher):
    assert isinstance(launcher, RayLauncher)
    with socket.create_connection(cast(tuple[str, int], launcher._listener.address)):
        worker = Worker("a worker", launcher, os.abort)
        worker._process.join()
        worker.end()


def test_a_host_that_is_cut_off_amid_a_message_does_not_hold_up_the_run(launcher: Launcher):
    """It closes nothing: the system asks whether it is there."""
    worker = Worker("a worker", launcher, os.abort)
    with socket.socket(fileno=os.dup(worker._pipe.fileno())) as end:
        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert [end.getsockopt(socket.IPPROTO_TCP, option) for option in by_ray.KEEP_ALIVE] == [15, 5, 6]
    worker._process.join()
    worker.end()


def test_a_cluster_without_room_is_said_and_none_of_it_stays_reserved(launcher: Launcher, monkeypatch: pytest.MonkeyPatch):
    """As if other runs had the rest: room is for all processes or for none."""
    assert isinstance(launcher, RayLauncher)
    monkeypatch.setattr("conclip.cluster.by_ray.PLACE_S", 1.0)
    with pytest.raises(MachineFailure, match=r"no room for 3 processes \(1 processor each, and 0 GPUs\)"):
        launcher._reserved("pack", [0] * 3)  # of four, the cluster has promised four
    monkeypatch.setattr(launcher, "_has_gpus", True)
    with pytest.raises(
        MachineFailure, match=r"2 processes \(1 processor each, and 3 GPUs\).* free are 0 processors and 0 GPUs"
    ):
        launcher._reserved("spread", [2, 1])
    states = [group["state"] for group in ray.util.placement_group_table().values()]
    assert sorted(states) == ["CREATED", "REMOVED", "REMOVED"]


def test_a_model_that_a_host_does_not_see_is_said(launcher: Launcher, tmp_path: Path):
    with pytest.raises(UserError, match=r"'/.*none' is not there on host"):
        ChildEngine(tmp_path / "none", ROLLOUT, start=ScriptedEngine, launcher=launcher, **SETTINGS)


def test_a_cluster_that_does_not_answer_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    place = ["cluster.address=127.0.0.1:9", f"paths.outputs={tmp_path / 'outputs'}"]
    text = said_by(capsys, monkeypatch, "two-phase", "debug=two_phase", "cluster=ray", *place)
    assert "cluster.address" in text and "ray start" in text and len(text.splitlines()) == 1
    assert not (tmp_path / "outputs").exists()
