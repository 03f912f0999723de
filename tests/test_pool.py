"""Several engines in processes of their own, as one. The engines inside are scripted; test_engine.py has two of vLLM's."""

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest
import torch

from conclip.cluster.ranks import RankDied
from conclip.errors import UserError
from conclip.models.folder import LAB_MODEL
from conclip.models.load import load_policy
from conclip.rollout.collect import collect, tasks_for
from conclip.rollout.engine import RolloutEngine, WeightsLost
from conclip.rollout.pool import EnginePool
from conclip.types import Completion, Request, SamplingSpec
from tests.asking import PROBLEMS, PROMPTS, SPEC, TOKENIZER, requests, run, tokens
from tests.engines import ROLLOUT, SETTINGS, shifting_adapter
from tests.scripted import Meeting, ScriptedEngine, WithAdapters, refusing

pytestmark = pytest.mark.whole

THREE = dataclasses.replace(ROLLOUT, num_engines=3)


@pytest.fixture
def pool(said: list[str]) -> Iterator[EnginePool]:
    pool = EnginePool(LAB_MODEL, THREE, warn=said.append, start=ScriptedEngine, **SETTINGS)
    yield pool
    pool.close()
    assert not any(engine._process.is_alive() for engine in pool._engines)


def same(mine: dict[str, Completion], others: dict[str, Completion]) -> bool:
    """Whether two engines gave the same responses: tokens and versions, and log-probs up to what else was in the batch."""
    exact = [
        {key: dataclasses.replace(one, logprobs=()) for key, one in completions.items()} for completions in (mine, others)
    ]
    return exact[0] == exact[1] and all(mine[key].logprobs == pytest.approx(others[key].logprobs, abs=1e-4) for key in mine)


def test_several_engines_answer_as_one_even_when_one_is_killed(
    pool: EnginePool, here: RolloutEngine, said: list[str], random_model: Path
):
    began = run(here)
    assert same(run(pool), began)
    assert pool.progress() == sum(len(ids) for ids in tokens(began).values())
    weights = dict(load_policy(random_model, torch.device("cpu")).state_dict())
    here.update_weights(weights.items(), 5)
    pool.update_weights(weights.items(), 5)
    updated = run(here)
    through_pool = run(pool)
    assert same(through_pool, updated) and not same(updated, began) and pool.policy_version == 5
    pool.reset_cache()
    pool.submit(requests(), SPEC)
    pool._engines[1]._process.kill()
    found: dict[str, Completion] = {}
    while len(found) < len(updated):
        found |= {completion.request_id: completion for completion in pool.poll()}
    assert found == through_pool and len(said) == 1 and "started again" in said[0]
    pool.update_weights(LAB_MODEL, 6)
    assert {c.policy_version for c in run(pool).values()} == {6}


def test_a_push_that_fails_leaves_the_weights_of_before(pool: EnginePool, said: list[str], random_model: Path):
    weights = dict(load_policy(random_model, torch.device("cpu")).state_dict())
    pool.update_weights(weights.items(), 5)
    before = run(pool)

    def failing() -> Iterator[tuple[str, torch.Tensor]]:
        yield from list(weights.items())[:2]
        raise RankDied("a rank is gone as the weights are gathered")

    with pytest.raises(RankDied):
        pool.update_weights(failing(), 6)
    pool._engines[1]._process.kill()
    assert run(pool) == before and len(said) == 1 and pool.policy_version == 5


def test_requests_that_an_engine_dies_of_are_taken_back_from_the_others(
    here: RolloutEngine, monkeypatch: pytest.MonkeyPatch
):
    """Else the weights could not change, and the next unit would find them."""
    greedy = dataclasses.replace(SPEC, temperature=0.0)
    tasks = [*tasks_for(PROBLEMS[:2], PROMPTS, 1, ("test",), SPEC), *tasks_for(PROBLEMS[2:4], PROMPTS, 1, ("test",), greedy)]
    submit = here.submit

    def dying(requests: Sequence[Request], spec: SamplingSpec) -> None:
        if spec == greedy:
            raise WeightsLost("an engine is gone")
        submit(requests, spec)

    monkeypatch.setattr(here, "submit", dying)
    with pytest.raises(WeightsLost):
        next(collect(tasks, engine=here, grader=Mock(), tokenizer=TOKENIZER))
    monkeypatch.undo()
    here.reset_cache()  # refused where something is in flight
    assert here.poll() == []


def test_requests_go_to_engines_by_their_place(pool: EnginePool):
    """Seven requests to three engines: 3, 2 and 2; two requests leave one engine without work."""
    pool.submit(requests()[:7], SPEC)
    assert [len(engine._undelivered) for engine in pool._engines] == [3, 2, 2]
    pool.abort()
    assert pool.poll() == []
    pool.submit(requests()[:2], SPEC)
    found: list[Completion] = []
    while len(found) < 2:
        found += pool.poll()
    assert {completion.request_id for completion in found} == {request.request_id for request in requests()[:2]}


def test_an_adapter_reaches_every_engine_and_may_go(said: list[str], tmp_path: Path):
    pool = EnginePool(LAB_MODEL, THREE, warn=said.append, start=WithAdapters, **SETTINGS)
    weights = load_policy(LAB_MODEL, torch.device("cpu")).state_dict()
    adapter = shifting_adapter(tmp_path / "adapter")
    try:
        assert pool.takes_adapters()
        plain = run(pool)
        pool.update_weights(weights.items(), 1, adapter)
        shutil.rmtree(adapter)
        adapted = run(pool)
        assert all(adapted[key].logprobs != plain[key].logprobs for key in plain)
        pool._engines[2]._process.kill()
        assert run(pool) == adapted
        pool.sleep()
    finally:
        pool.close()


def test_engines_get_a_command_at_once(said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each waits for the others: one after the other, they would wait for ever."""
    monkeypatch.setenv("MEETING", str(tmp_path))
    (tmp_path / "wanted").write_text("3")
    pool = EnginePool(LAB_MODEL, THREE, warn=said.append, start=Meeting, **SETTINGS)
    try:
        pool.sleep()
        assert len(list(tmp_path.iterdir())) == 4 and not said
    finally:
        pool.close()


def test_an_engine_that_is_refused_leaves_no_process():
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with pytest.raises(UserError, match="refuse"):
        EnginePool(LAB_MODEL, THREE, start=refusing, **SETTINGS)
    left = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    assert not [p for p in left if "multiprocessing.spawn" in " ".join(p.cmdline())]
