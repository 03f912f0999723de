"""An engine in a process of its own: what is said of it, and what is done when it dies.

The engine inside is scripted; one test of test_engine.py has vLLM there.
"""

import dataclasses
import shutil
import signal
import time
from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest

from conclip.cluster.launch import Local
from conclip.errors import MachineFailure, UserError
from conclip.models.folder import LAB_MODEL
from conclip.rollout.child import ChildEngine
from conclip.rollout.engine import EngineDied, RolloutEngine
from conclip.types import Completion
from tests.asking import SPEC, killed_amid, requests, run, tokens
from tests.engines import ROLLOUT, SETTINGS, shifting_adapter
from tests.scripted import ScriptedEngine, WithAdapters, broken, failing, refusing, with_worker

pytestmark = pytest.mark.whole


@pytest.fixture
def child(said: list[str]) -> Iterator[ChildEngine]:
    engine = ChildEngine(LAB_MODEL, ROLLOUT, warn=said.append, start=ScriptedEngine, **SETTINGS)
    yield engine
    engine.close()
    assert not engine._process.is_alive()


def logprobs(completions: dict[str, Completion]) -> dict[str, tuple[float, ...]]:
    """What the weights say of the responses, which the script does not write by them."""
    return {key: completion.logprobs for key, completion in completions.items()}


def test_a_child_that_is_killed_is_started_again_as_it_was(
    child: ChildEngine, here: RolloutEngine, said: list[str], random_model: Path
):
    began = run(here)
    assert run(child) == began
    num_tokens = child.progress()
    here.update_weights(random_model, 5)
    child.update_weights(random_model, 5)
    child._process.kill()  # between two units
    updated = run(child)
    assert updated == run(here) and logprobs(updated) != logprobs(began)
    assert {completion.policy_version for completion in updated.values()} == {5}
    assert killed_amid(child, requests()) == updated
    assert child.progress() == num_tokens + 2 * sum(len(ids) for ids in tokens(updated).values())
    assert len(said) == 2 and all("started again" in text for text in said)
    child.update_weights(LAB_MODEL, 6)
    assert logprobs(run(child)) == logprobs(began)


def test_a_child_that_dies_between_units_brings_nothing_of_the_last_one(child: ChildEngine, here: RolloutEngine):
    """The same request ids, other seeds: as in two steps of training."""
    other = [dataclasses.replace(request, seed=request.seed + 1) for request in requests()]
    first, elsewhere = tokens(run(here)), tokens(run(here, wanted=other))
    assert first != elsewhere
    assert tokens(run(child)) == first
    child._process.kill()
    child.update_weights(LAB_MODEL, 2)
    assert tokens(run(child, wanted=other)) == elsewhere
    child.submit(requests(), SPEC)
    child._process.kill()
    child.abort()  # starts nothing
    assert not child._process.is_alive() and tokens(run(child)) == first


def test_what_is_submitted_is_there_before_the_first_step(child: ChildEngine, here: RolloutEngine):
    """However long the second submission takes: a step's batch must not depend on the clock."""
    greedy = dataclasses.replace(SPEC, temperature=0.0)
    first: list[set[str]] = []
    for engine in (here, child):
        engine.reset_cache()
        engine.submit(requests()[:12], SPEC)
        time.sleep(0.5)
        engine.submit(requests()[12:], greedy)
        found: list[Completion] = []
        while not found:
            found = engine.poll()
        first.append({completion.request_id for completion in found})
        engine.abort()
    assert first[1] == first[0]
    names = [request.request_id for request in requests()]
    assert first[0] & set(names[:12]) and first[0] & set(names[12:])


class LosingItsFirst(Local):
    """Starts processes here; the first one ends as it starts, in silence."""

    def __init__(self, exitcode: int | None) -> None:
        self.num_starts, self.exitcode = 0, exitcode

    def start(self, *arguments: Any, **named: Any) -> Any:
        self.num_starts += 1
        if self.num_starts > 1:
            return super().start(*arguments, **named)
        here, there = Pipe()
        there.close()
        return Mock(exitcode=self.exitcode, is_alive=lambda: False), here


@pytest.mark.parametrize(("exitcode", "words"), [(None, "its host is lost"), (-signal.SIGKILL, "exit code -9")])
def test_an_engine_that_is_killed_as_it_starts_is_started_again(
    said: list[str], here: RolloutEngine, exitcode: int | None, words: str
):
    launcher = LosingItsFirst(exitcode)
    child = ChildEngine(LAB_MODEL, ROLLOUT, warn=said.append, start=ScriptedEngine, launcher=launcher, **SETTINGS)
    try:
        assert tokens(run(child)) == tokens(run(here))
        assert launcher.num_starts == 2 and len(said) == 1 and words in said[0]
    finally:
        child.close()


@pytest.mark.parametrize("exitcode", [1, -signal.SIGSEGV])
def test_an_engine_that_ends_by_itself_as_it_starts_would_end_so_again(exitcode: int):
    launcher = LosingItsFirst(exitcode)
    with pytest.raises(EngineDied, match=f"exit code {exitcode}"):
        ChildEngine(LAB_MODEL, ROLLOUT, start=ScriptedEngine, launcher=launcher, **SETTINGS)
    assert launcher.num_starts == 1


def test_a_child_that_dies_as_it_is_put_to_sleep_sleeps(child: ChildEngine):
    child._process.kill()
    child.sleep()
    with pytest.raises(RuntimeError, match="samples nothing"):
        run(child)


def test_a_child_that_is_started_again_has_its_adapter(said: list[str], tmp_path: Path):
    child = ChildEngine(LAB_MODEL, ROLLOUT, warn=said.append, start=WithAdapters, **SETTINGS)
    model = Path(shutil.copytree(LAB_MODEL, tmp_path / "model"))
    adapter = shifting_adapter(model / "adapter")
    try:
        assert child.takes_adapters()
        plain = logprobs(run(child))
        child.update_weights(model, 1, adapter)
        adapted = run(child)
        assert logprobs(adapted) != plain
        assert killed_amid(child, requests()) == adapted and len(said) == 1
        child.update_weights(model, 2)
        assert logprobs(run(child)) == plain
    finally:
        child.close()


@pytest.mark.parametrize("killed", [False, True])
def test_processes_of_a_childs_engine_end_with_it(killed: bool):
    child = ChildEngine(LAB_MODEL, dataclasses.replace(ROLLOUT, tensor_parallel_size=2), start=with_worker, **SETTINGS)
    (worker,) = psutil.Process(child._process.pid).children(recursive=True)
    if killed:
        child._process.kill()
        child._process.join()
    assert worker.is_running()
    child.close()
    psutil.wait_procs([worker], timeout=10)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def test_a_child_that_cannot_be_started_again_is_given_up(child: ChildEngine):
    number = child._process.pid

    def start() -> None:
        raise EngineDied("the engine process failed: out of memory")

    child._start = start  # type: ignore[method-assign]
    child._process.kill()
    with pytest.raises(EngineDied, match="restarts did not help"):
        run(child)
    child.close()
    assert number is not None and not psutil.pid_exists(number)


def test_a_host_that_starts_nothing_is_said(monkeypatch: pytest.MonkeyPatch):
    launcher = Local()

    def start(*_: Any, **__: Any) -> Any:
        raise MachineFailure("a host did not connect")

    monkeypatch.setattr(launcher, "start", start)
    with pytest.raises(MachineFailure, match="did not connect"):
        ChildEngine(LAB_MODEL, ROLLOUT, launcher=launcher, **SETTINGS)


@pytest.mark.parametrize(
    ("start", "kind", "words"),
    [
        (refusing, UserError, "^vLLM refuses model"),
        (failing, EngineDied, "out of memory"),
        (broken, RuntimeError, "in the engine process: Traceback(.|\n)*KeyError"),
    ],
)
def test_what_ends_a_child_as_it_starts_is_said_as_what_it_is(start: Any, kind: type[Exception], words: str):
    with pytest.raises(kind, match=words):
        ChildEngine(LAB_MODEL, ROLLOUT, start=start, **SETTINGS)
