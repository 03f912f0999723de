"""Weights sent to engines in other processes by vLLM's weight transfer, with a transport that a CPU has."""

import dataclasses
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from conclip.cluster import choose
from conclip.config import machine
from conclip.config.compose import load_config
from conclip.errors import UserError
from conclip.experiments.inputs import Inputs
from conclip.models.folder import LAB_MODEL
from conclip.models.load import load_policy
from conclip.rollout.engine import WeightsLost
from conclip.rollout.pool import EnginePool
from conclip.rollout.session import Runtime
from conclip.rollout.transfer import Transfer
from conclip.training.learner import Learner
from conclip.training.ranks import Learners
from tests.asking import run, tokens
from tests.conftest import runtime_with
from tests.engines import ROLLOUT, SETTINGS
from tests.phases import saving, trained_by
from tests.transport import FileTrainer, Sendable, vllm_with_files

TWO = dataclasses.replace(ROLLOUT, num_engines=2)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the transport."""
    return tmp_path_factory.mktemp("sent")


@pytest.fixture(scope="module")
def sent_runtime(sent: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Runtime, Inputs]]:
    """With two engines that are sent their weights."""
    connect = partial(FileTrainer, sent)

    def pool(model: Path, _: Any, **settings: Any) -> EnginePool:
        return EnginePool(model, TWO, start=Sendable, connect=connect, **settings)

    yield from runtime_with(pool, tmp_path_factory.mktemp("runs"))


def weights_of(model: Path) -> dict[str, torch.Tensor]:
    return load_policy(model, CPU).state_dict()


@pytest.mark.whole
@pytest.mark.engine
def test_vllm_samples_from_what_it_is_sent(random_model: Path, tmp_path: Path):
    """First as files, which tells names and shapes, then by the transfer: the responses are the same."""
    connected: list[FileTrainer] = []

    def connect(transfer: Transfer) -> FileTrainer:
        connected.append(FileTrainer(tmp_path, transfer))
        return connected[-1]

    pool = EnginePool(LAB_MODEL, TWO, start=vllm_with_files, connect=connect, **SETTINGS)
    try:
        at_first = run(pool)
        pool.update_weights(weights_of(random_model).items(), 1)
        as_files = run(pool)
        pool.update_weights(weights_of(LAB_MODEL).items(), 2)
        assert tokens(run(pool)) == tokens(at_first) != tokens(as_files)
        pool.update_weights(weights_of(random_model).items(), 3)
        sent = run(pool)
        assert {key: one.logprobs for key, one in sent.items()} == {key: one.logprobs for key, one in as_files.items()}
        assert {one.policy_version for one in sent.values()} == {3} and len(connected) == 1
    finally:
        pool.close()


@pytest.mark.whole
def test_an_engine_that_dies_has_lost_what_it_was_sent(said: list[str], random_model: Path, tmp_path: Path):
    pool = EnginePool(LAB_MODEL, TWO, warn=said.append, start=Sendable, connect=partial(FileTrainer, tmp_path), **SETTINGS)
    lab, other = weights_of(LAB_MODEL), weights_of(random_model)
    try:
        pool.update_weights(lab.items(), 1)
        at_first = {key: one.logprobs for key, one in run(pool).items()}
        pool.update_weights(other.items(), 2)
        expected = run(pool)
        pool._engines[1]._process.kill()
        pool._engines[1]._process.join()
        with pytest.raises(WeightsLost, match="and with it the weights that it was sent"):
            run(pool)
        pool.abort()
        pool.update_weights(other.items(), 3)
        again = run(pool)
        assert {key: one.logprobs for key, one in again.items()} == {key: one.logprobs for key, one in expected.items()}
        pool._engines[0]._process.kill()
        pool._engines[0]._process.join()
        pool.update_weights(lab.items(), 4)  # others come: nothing is lost
        assert {key: one.logprobs for key, one in run(pool).items()} == at_first
        (tmp_path / "die").touch()
        with pytest.raises(WeightsLost, match="as it was sent weights; all engines start again"):
            pool.update_weights(other.items(), 5)
        pool.update_weights(other.items(), 6)
        last = run(pool)
        assert {key: one.logprobs for key, one in last.items()} == {key: one.logprobs for key, one in expected.items()}
        assert {one.policy_version for one in last.values()} == {6}
        pool._engines[0]._process.kill()
        pool._engines[0]._process.join()
        pool.sleep()  # drops the weights: nothing is lost
        pool.update_weights(lab.items(), 7)
        assert {key: one.logprobs for key, one in run(pool).items()} == at_first
    finally:
        pool.close()


def trained(runtime: tuple[Runtime, Inputs], key: str) -> dict[str, Any]:
    config = saving("algo=ppo", num_steps=3)
    return trained_by(runtime, key, config, Learners(config.cluster))


@pytest.mark.whole
@pytest.mark.parametrize("when", ["before", "amid", "after"])
def test_a_run_sends_lost_weights_again(
    sent_runtime: tuple[Runtime, Inputs], sent: Path, monkeypatch: pytest.MonkeyPatch, when: str
):
    """An engine is killed before new weights are sent to it, amid them, or after, so that sampling finds it."""
    engine, said, calls = sent_runtime[0].engine, list[str](), list[int]()
    assert isinstance(engine, EnginePool)
    undisturbed = trained(sent_runtime, f"undisturbed {when}")
    push = Learner.push

    def killing(learner: Learner, *arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 3 and when == "amid":
            (sent / "die").touch()
        if len(calls) == 3 and when == "before":
            engine._engines[0]._process.kill()
        push(learner, *arguments)
        if len(calls) == 3 and when == "after":
            engine._engines[0]._process.kill()

    monkeypatch.setattr(Learner, "push", killing)
    monkeypatch.setattr(sent_runtime[0].run, "warn", said.append)
    assert trained(sent_runtime, f"disturbed {when}") == undisturbed
    lost = [text for text in said if "they are sent again" in text]
    assert len(lost) == (when != "before") and ("sampled anew" in "".join(lost)) is (when == "after")


def test_workers_of_an_engine_come_after_those_of_the_engines_before():
    """Two engines of two GPUs each and the trainer: five in all."""
    told: list[tuple[str, Any]] = []
    transfer = Transfer(lambda _: None, lambda name, payloads: told.append((name, payloads)), 2)
    transfer.init_weight_transfer_engine({"rank_offset": 1, "world_size": 5})
    assert told == [
        ("init_weight_transfer_engine", [{"rank_offset": 1, "world_size": 5}, {"rank_offset": 3, "world_size": 5}])
    ]


def test_what_an_engine_has_no_place_for_is_not_sent():
    transfer = Transfer(lambda _: None, lambda name, payloads: None, 1)
    weights = {"a": torch.ones(2, 3), "head": torch.ones(1), "count": torch.ones(1, dtype=torch.long)}
    noted = dict(transfer.noted(weights.items(), torch.bfloat16, ["head"]))
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in noted.items()} == {
        "a": (torch.bfloat16, (2, 3)),
        "count": (torch.int64, (1,)),
    }


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["cluster.weights=nccl"], "ipc, for one engine"),
        (["cluster.weights=ipc", "cluster.learner_ranks=2"], "ipc, for one engine"),
        (["cluster.weights=ipc", "rollout.num_engines=2"], "ipc, for one engine"),
        (["cluster.weights=ipc", "rollout.tensor_parallel_size=2"], "ipc, for one engine"),
        (["cluster=ray", "cluster.weights=ipc"], "nccl or files with cluster=ray"),
        (["cluster.weights=ipc", "model/adapter=lora"], "files with adapters"),
    ],
)
def test_transfers_that_cannot_be_are_refused(overrides: list[str], words: str):
    with pytest.raises(UserError, match=words):
        load_config("train-phase2", *overrides)


AHEAD = ("algo.sampler_correction=token", "rollout.engine=child_process")


@pytest.mark.parametrize(
    ("on_gpu", "overrides", "words"),
    [
        (False, ["cluster.weights=ipc", "rollout.num_engines=1"], "cluster.weights=ipc: .* this machine has none"),
        (False, ["cluster=ray", "cluster.weights=nccl"], "cluster.weights=nccl: .* this machine has none"),
        (True, ["rollout.num_engines=2"], "rollout.num_engines: on GPUs"),
        (True, ["cluster.learner_ranks=3"], "cluster.learner_ranks is 3, and this machine shows 2 GPUs"),
        (True, ["cluster.learner_ranks=2"], None),
        (
            True,
            ["cluster=ray", "cluster.learner_ranks=3"],
            "engines need 1 GPUs and what trains 3, and this machine shows 2",
        ),
        (True, ["cluster=ray", "cluster.learner_ranks=3", "cluster.address=auto"], None),
        (True, ["cluster=ray"], None),
        (True, ["cluster=ray", "rollout.tensor_parallel_size=2"], "engines need 2 GPUs and what trains 1"),
        (True, ["rollout.deterministic=true"], "rollout.deterministic: it needs a GPU of compute capability 9.0"),
        (False, ["rollout.deterministic=true"], None),
        (False, ["cluster.learner_ranks=3"], None),
        (True, ["trainer.sample_ahead=true", *AHEAD], "trainer.sample_ahead: on GPUs"),
        (True, ["cluster.weights=ipc", "rollout.num_engines=1"], None),
        (True, ["cluster=ray", "cluster.weights=nccl", "rollout.num_engines=2"], "engines need 2 GPUs and what trains 1"),
        (True, ["cluster=ray", "cluster.weights=nccl", "rollout.num_engines=2", "cluster.address=auto"], None),
        (True, ["cluster=ray", "trainer.sample_ahead=true", *AHEAD], None),
        (False, ["trainer.sample_ahead=true", *AHEAD], None),
        (False, ["rollout.num_engines=2"], None),
    ],
)
def test_what_needs_gpus_or_ray_is_refused_before_anything_is_loaded(
    on_gpu: bool, overrides: list[str], words: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(choose, "has_gpu", lambda: on_gpu)
    monkeypatch.setattr(choose, "num_gpus", lambda: 2)
    monkeypatch.setattr(machine, "_asked_of_gpus", lambda what: {"compute_cap": [9.0, 8.6]}.get(what, []))
    monkeypatch.setattr(choose, "find_spec", lambda name: name)  # Ray is installed
    config = load_config("train-phase2", "rollout.num_engines=1", *overrides)
    with pytest.raises(UserError, match=words) if words else nullcontext():
        choose.check_machine(config)


@pytest.mark.parametrize(("shown", "number"), [(None, 2), ("1", 1), ("0,1,2", 2), ("", 0), ("-1", 0)])
def test_as_many_gpus_as_this_environment_sees(shown: str | None, number: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "_gpu_memories_gib", lambda: [80.0, 80.0])
    if shown is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    assert machine.num_gpus() == number
