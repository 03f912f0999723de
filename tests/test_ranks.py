"""A learner divided among processes computes what one process does, on any number of them, and outlives the death of one."""

import copy
import dataclasses
import errno
import os
import re
import signal
import weakref
from collections.abc import Iterator
from datetime import timedelta
from multiprocessing import Pipe
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
import torch
from torch import Tensor
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]  documented, but not exported
from transformers import AutoModelForCausalLM

import conclip.cluster.followers
import conclip.training.ranks
from conclip.cluster import group, launch, shares
from conclip.cluster.followers import LEFT_ALONE, MAKE, follow, follow_under_torchrun
from conclip.cluster.group import Group
from conclip.cluster.launch import Worker
from conclip.cluster.ranks import OnAllRanks, RankDied, is_of_group
from conclip.cluster.shares import write_shares
from conclip.config.compose import load_config
from conclip.config.groups import ClusterConfig
from conclip.config.schema import TrainRunConfig
from conclip.errors import UserError, explain
from conclip.experiments.inputs import Inputs
from conclip.models.folder import LAB_MODEL
from conclip.models.load import load_tokenizer
from conclip.rollout.session import Runtime
from conclip.runs.interrupts import SIGNALS, Interrupted
from conclip.seeding import torch_stream
from conclip.training.experience import make_experience
from conclip.training.learner import Learner
from conclip.training.ranks import Learners, train
from conclip.training.schedule import StepPlan
from conclip.training.trainer import Trainer
from tests.golden.replay import LOSSES, recorded_batch
from tests.phases import saving, trained_by

NUM_UPDATES = 10

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.fixture(scope="module")
def divided() -> Iterator[dict[int, Learners]]:
    """Learners on one and on two processes, which start when they are first used."""
    made = {size: Learners(ClusterConfig(learner_ranks=size)) for size in (1, 2)}
    yield made
    for learners in made.values():
        learners.close()


@pytest.fixture
def three(divided: dict[int, Learners]) -> Iterator[Learners]:
    """Learners on three processes: where one is gone, two others hear of it."""
    divided[2].close()  # a process belongs to one group at a time
    learners = Learners(ClusterConfig(learner_ranks=3))
    yield learners
    learners.close()


def settings(*overrides: str) -> TrainRunConfig:
    small = ["algo.updates_per_rollout=1", "rollout.max_tokens=256", "trainer.max_tokens_per_micro_batch=512"]
    loaded = load_config("train-phase2", *small, *overrides)
    assert isinstance(loaded, TrainRunConfig)
    return loaded


def updates(
    learner: Learner, config: TrainRunConfig, first: int, last: int, *, moved: bool = True
) -> list[dict[str, float]]:
    """The losses of updates on the recorded rollouts, each scored by the current policy. `moved`: as if the policy had moved
    since, so that ratios differ from 1, and clipping and the KL take part."""
    tokens = recorded_batch()
    losses: list[dict[str, float]] = []
    for number in range(first, last):
        before = learner.logprobs(tokens) * (1.01 if moved else 1.0)
        experience = make_experience(tokens, learner.score(tokens), config.algo, kl_coef=config.algo.kl_coef)
        if moved:
            experience = dataclasses.replace(experience, old_logprobs=before)
        random = torch_stream("ranks", number)
        plan = StepPlan(begin=number, end=number + 1, num_updates=1, num_rows=len(tokens))
        updated = learner.update(experience, random, kl_coef=config.algo.kl_coef, plan=plan)
        torch.testing.assert_close(updated.old_logprobs, before, rtol=0, atol=1e-5)
        stats = updated.stats
        losses.append({name: stats[name] for name in (*LOSSES, "perf/padding_share") if name in stats})
    return losses


def close(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert len(found) == len(expected)
    for mine, alone in zip(found, expected, strict=True):
        assert mine == pytest.approx(alone, rel=1e-5, abs=1e-6)


def same_weights(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lab model with an output head of its own."""
    folder = tmp_path_factory.mktemp("untied")
    model = AutoModelForCausalLM.from_pretrained(LAB_MODEL, dtype=torch.float32)
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = False
    other = type(model)(config)
    state = dict(model.state_dict())
    other.load_state_dict(state | {"lm_head.weight": state["lm_head.weight"] * 1.1})
    other.save_pretrained(folder)
    load_tokenizer(LAB_MODEL).save_pretrained(folder)
    return folder


KINDS = {
    "ppo": ["algo=ppo"],
    "grpo with a reference": ["algo=grpo", "algo.kl=loss", "algo.kl_coef=0.1"],
    "gspo": ["algo=gspo"],
    "adapters": ["algo=ppo", "model/adapter=lora"],
    "adapters with a reference": ["algo=grpo", "model/adapter=lora", "algo.kl=loss", "algo.kl_coef=0.1"],
    "recomputed": ["algo=ppo", "trainer.recompute_activations=true"],
    "long rows": ["algo=grpo", "trainer.max_tokens_per_micro_batch=256"],
    "old log-probs by the update": ["algo=grpo", "algo.kl=none", "algo.kl_coef=0"],
}


CASES = [(kind, True) for kind in KINDS] + [("ppo", False), ("grpo with a reference", False), ("adapters", False)]
MARKED = [pytest.param(*case, marks=pytest.mark.whole if case == ("ppo", True) else pytest.mark.cluster) for case in CASES]


@pytest.mark.parametrize(("kind", "tied"), MARKED)
def test_two_ranks_learn_what_one_process_does(divided: dict[int, Learners], untied: Path, kind: str, tied: bool):
    config, model = settings(*KINDS[kind]), LAB_MODEL if tied else untied
    results: dict[int, tuple[Any, ...]] = {}
    moments: dict[int, int] = {}
    for size, learners in divided.items():
        learner = learners.make(model, config, num_updates=NUM_UPDATES)
        moments[size] = sum(map(len, learner.backend.missing_moments()))
        losses = updates(learner, config, 0, NUM_UPDATES, moved=kind != "old log-probs by the update")
        results[size] = losses, learner.saved(), learner.tensors()
        assert losses[-1] != losses[0]
    close(results[2][0], results[1][0])
    same_weights(results[2][1], results[1][1])
    assert results[2][2].keys() == results[1][2].keys()
    assert moments[1] / 2 <= moments[2] < 0.6 * moments[1]  # a rank's share, rounded up to whole rows


@pytest.mark.cluster
@pytest.mark.parametrize("kind", ["ppo", "grpo with a reference"])
def test_each_number_of_ranks_resumes_what_another_has_saved(divided: dict[int, Learners], tmp_path: Path, kind: str):
    config = settings(*KINDS[kind])
    learner = divided[1].make(LAB_MODEL, config, num_updates=8)
    alone, losses = updates(learner, config, 0, 8), list[dict[str, float]]()
    weights, state, sizes = learner.saved(), learner.state(), list[list[int]]()
    divided[2].close()  # a process belongs to one group at a time
    four = Learners(ClusterConfig(learner_ranks=4))
    try:
        for part, learners in enumerate((divided[1], divided[2], four, divided[1])):
            learner = learners.make(LAB_MODEL, config, num_updates=8)
            folder, tensors = tmp_path / str(part), tmp_path / f"tensors-{part}"
            if part:
                learner.load(state, tmp_path / str(part - 1), tmp_path / f"tensors-{part - 1}")
            learner.backend.set_position(2 * part)
            losses += updates(learner, config, 2 * part, 2 * part + 2)
            state = learner.state()
            folder.mkdir()
            learner.export(folder)
            tensors.mkdir()
            learner.write_tensors(tensors)
            sizes.append([file.stat().st_size for file in sorted(tensors.iterdir())])
            learners.close()
    finally:
        four.close()
    close(losses, alone)
    same_weights(learner.saved(), weights)
    assert [len(files) for files in sizes] == [1, 2, 4, 1]  # each rank has written its share
    assert all(max(files) < 1.1 * sizes[0][0] / len(files) for files in sizes)


class Watched:
    """An engine that keeps the weights it is given."""

    def __init__(self, adapters: bool) -> None:
        self.adapters, self.weights = adapters, dict[str, Tensor]()

    def takes_adapters(self) -> bool:
        return self.adapters

    def update_weights(self, source: Any, version: int, adapter: Path | None = None) -> None:
        self.weights = {name: tensor.clone() for name, tensor in source}
        assert (adapter is not None) == self.adapters


@pytest.mark.cluster
@pytest.mark.parametrize(("kind", "apart"), [("ppo", False), ("adapters", False), ("adapters", True)])
def test_engines_and_exports_get_whole_weights(divided: dict[int, Learners], tmp_path: Path, kind: str, apart: bool):
    config, pushed, exported = settings(*KINDS[kind]), dict[int, dict[str, Tensor]](), dict[int, dict[str, Tensor]]()
    for size, learners in divided.items():
        learner = learners.make(LAB_MODEL, config, num_updates=NUM_UPDATES)
        updates(learner, config, 0, 3)
        engine = Watched(apart)
        learner.push(engine, 1)  # pyright: ignore[reportArgumentType]
        pushed[size] = engine.weights
        learner.export(tmp_path / str(size))
        exported[size] = AutoModelForCausalLM.from_pretrained(tmp_path / str(size), dtype=torch.float32).state_dict()
    same_weights(pushed[2], pushed[1])
    same_weights(exported[2], exported[1])


def ranks_alive() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def strike_a_rank(number: signal.Signals = signal.SIGKILL) -> None:
    os.kill(ranks_alive()[0].pid, number)


def strike_a_rank_at(monkeypatch: pytest.MonkeyPatch, number: int, struck_by: signal.Signals = signal.SIGKILL) -> list[int]:
    """Let a rank be struck by a signal as the first rank begins the update of this number. Returns a list that grows by
    each update."""
    update, updated = Learner.update, list[int]()

    def killing(*arguments: Any, **named: Any) -> Any:
        updated.append(1)
        if len(updated) == number:
            strike_a_rank(struck_by)
        return update(*arguments, **named)

    monkeypatch.setattr(Learner, "update", killing)
    return updated


@pytest.mark.cluster
def test_a_killed_rank_changes_nothing(
    three: Learners, scripted_runtime: tuple[Runtime, Inputs], monkeypatch: pytest.MonkeyPatch
):
    config, said = saving("algo=ppo", num_steps=3), list[str]()
    undisturbed = trained_by(scripted_runtime, "undisturbed", config, three)
    update = Learner.update
    updated = strike_a_rank_at(monkeypatch, 2)
    monkeypatch.setattr(scripted_runtime[0].run, "warn", said.append)
    disturbed = trained_by(scripted_runtime, "disturbed", config, three)
    assert disturbed == undisturbed and len(updated) == 4
    assert any(re.search(r"learner rank . is gone \(exit code -9\); all are started again", text) for text in said)

    monkeypatch.setattr(Learner, "update", lambda *a, **n: (strike_a_rank(), update(*a, **n))[1])
    with pytest.raises(RankDied, match="restarts did not help"):
        trained_by(scripted_runtime, "always", config, three)
    three.close()
    assert ranks_alive() == []


@pytest.mark.cluster
def test_a_rank_that_falls_silent_changes_nothing(
    three: Learners, scripted_runtime: tuple[Runtime, Inputs], monkeypatch: pytest.MonkeyPatch
):
    """As one whose host is cut off: it closes no connection, and answers nothing."""
    config, said = saving("algo=ppo", num_steps=3), list[str]()
    undisturbed = trained_by(scripted_runtime, "not silent", config, three)
    three.close()
    monkeypatch.setattr(group, "CALL_WAIT", timedelta(seconds=20))
    updated = strike_a_rank_at(monkeypatch, 2, signal.SIGSTOP)
    monkeypatch.setattr(scripted_runtime[0].run, "warn", said.append)
    assert trained_by(scripted_runtime, "silent", config, three) == undisturbed
    words = r"(have not answered for 0:00:20|it no longer reaches another rank).*; all are started again"
    assert len(updated) == 4 and any(re.search(words, text) for text in said)


@pytest.mark.cluster
def test_a_signal_counts_more_than_a_rank_that_has_died(
    divided: dict[int, Learners], scripted_runtime: tuple[Runtime, Inputs], monkeypatch: pytest.MonkeyPatch
):
    """It ends the run, from its last checkpoint, and no rank is started again."""
    config, said = saving("algo=ppo", "trainer.save_every=3", num_steps=4), list[str]()
    step, run = Trainer._step, scripted_runtime[0].run

    def struck(trainer: Trainer, number: int) -> None:
        if number == 2:
            strike_a_rank()
            raise Interrupted(signal.SIGTERM)
        step(trainer, number)

    monkeypatch.setattr(Trainer, "_step", struck)
    monkeypatch.setattr(run, "say", lambda text, **_: said.append(text))
    monkeypatch.setattr(run, "warn", said.append)
    try:
        with pytest.raises(Interrupted):
            trained_by(scripted_runtime, "signal", config, divided[2])
    finally:
        divided[2].close()
    assert re.fullmatch(
        r"phase2: stopped, and nothing can be saved \(learner rank 1 is gone.*\); the next start goes on from .*", said[-1]
    )
    assert not any("started again" in text for text in said)


def test_ranks_left_amid_a_call_are_not_called_again(divided: dict[int, Learners]):
    first = Group.__new__(Group)
    first.is_first, first.in_step = True, False
    with pytest.raises(RankDied, match="left amid a call"), first.calling("saved"):
        raise AssertionError("not reached")


def test_what_gloo_says_of_ranks_that_are_gone_is_no_bug():
    texts = ["[../gloo/transport/tcp/pair.cc:547] Connection closed by peer", "Gloo connectFullMesh failed with: refused"]
    assert all(is_of_group(RuntimeError(text)) for text in texts)
    assert not is_of_group(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_of_group(OnAllRanks("gloo"))  # all of them go on


def test_a_rank_that_dies_while_all_connect_ends_the_start(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("Gloo connectFullMesh failed with: connection refused")

    monkeypatch.setattr(group, "Group", broken)
    monkeypatch.setattr(conclip.cluster.followers, "TCPStore", Mock())
    ended = Mock(failure=lambda: "learner rank 1 is gone (exit code -9)")
    monkeypatch.setattr(conclip.cluster.followers, "Worker", lambda *_, **__: ended)
    learners = Learners(ClusterConfig(learner_ranks=2))
    with pytest.raises(RankDied, match="rank 1 is gone"):
        learners.make(LAB_MODEL, settings("algo=ppo"), num_updates=1)
    assert ended.end.called


def test_the_first_cause_is_named_before_what_came_of_it():
    learners = Learners(ClusterConfig(learner_ranks=3))
    said = [f"learner rank 1 failed: {LEFT_ALONE} (closed)", "learner rank 2 is gone (exit code -9)"]
    learners._workers = [Mock(failure=lambda text=text: text) for text in said]
    assert learners._lost() == said[1]


def test_a_rank_on_a_host_without_the_folder_of_the_run_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Before it reads a checkpoint, which would look damaged."""
    monkeypatch.setattr(launch, "SHARED_S", 0.1)
    calls = [(MAKE, (tmp_path,), {}), ("load", ({}, tmp_path / "step-1", tmp_path / "step-1"), {})]
    made = Mock()
    with pytest.raises(UserError, match="must share the folder of the run"):
        follow(Mock(next_call=Mock(side_effect=calls)), lambda *_, **__: made)
    made.load.assert_not_called()


def test_ranks_of_torchrun_are_left_to_it(scripted_runtime: tuple[Runtime, Inputs], monkeypatch: pytest.MonkeyPatch):
    learners = Learners(ClusterConfig(learner_ranks=2))
    learners.starts_ranks = False
    monkeypatch.setattr(learners, "make", Mock(side_effect=RankDied("learner ranks have not answered")))
    with pytest.raises(RankDied, match="have not answered; torchrun starts all of them again"):
        trained_by(scripted_runtime, "torchrun", saving("algo=ppo"), learners)
    assert learners.make.call_count == 1


def test_what_ended_a_rank_is_heard_while_it_still_ends():
    here, there = Pipe()
    there.send(("failed", "out of memory"))
    launcher = Mock(start=lambda *_, **__: (Mock(is_alive=lambda: True), here))
    worker = Worker("a rank", launcher, print)
    assert worker.failure() == worker.failure() == "a rank failed: out of memory"


def test_ranks_that_do_not_share_the_folder_of_the_run_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launch, "SHARED_S", 0.2)
    with pytest.raises(UserError, match=r"'.*elsewhere' is not there on host .* must share the folder of the run"):
        launch.check_shared(tmp_path / "elsewhere")
    launch.check_shared(tmp_path)


def test_a_share_that_the_disk_does_not_give_is_the_machines_failure(
    divided: dict[int, Learners], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """torch's own exception is none that anybody catches."""
    divided[2].close()  # else it would wait for the other rank
    write_shares({"a": torch.ones(2)}, tmp_path)
    monkeypatch.setattr(shares.HuggingFaceStorageReader, "read_data", Mock(side_effect=OSError(errno.EIO, "a bad sector")))
    with pytest.raises(OSError, match="a bad sector") as found:
        shares.read_shares(tmp_path, lambda name: None)
    assert explain(found.value) is not None


@pytest.mark.cluster
@pytest.mark.parametrize("amid", [3, 4])
def test_a_rank_killed_as_the_next_step_is_sampled_changes_nothing(
    divided: dict[int, Learners], scripted_runtime: tuple[Runtime, Inputs], monkeypatch: pytest.MonkeyPatch, amid: int
):
    """What is sampled ahead is not saved: the phase goes on after the last validation, which follows the second step."""
    overrides = ["algo.sampler_correction=token", "rollout.engine=child_process", "trainer.sample_ahead=true"]
    config = saving("algo=ppo", *overrides, "trainer.validate_every=2", num_steps=5)
    try:
        undisturbed = trained_by(scripted_runtime, f"undisturbed {amid}", config, divided[2])
        updated = strike_a_rank_at(monkeypatch, amid)
        disturbed = trained_by(scripted_runtime, f"disturbed {amid}", config, divided[2])
    finally:
        divided[2].close()
    assert disturbed == undisturbed and len(updated) == 5 + (amid - 2)
    assert [step["rollout/steps_behind"] for step in disturbed["steps"]] == [0, 1, 0, 1, 0]


@pytest.mark.cluster
def test_a_model_that_is_not_there_ends_all_ranks(divided: dict[int, Learners], tmp_path: Path):
    with pytest.raises(Exception, match="none"):
        divided[2].make(tmp_path / "none", settings("algo=ppo"), num_updates=1)
    divided[2].close()


def test_a_group_leaves_the_threads_as_they_were(divided: dict[int, Learners], monkeypatch: pytest.MonkeyPatch):
    """As if another rank shared the cores, twice in turn."""
    divided[2].close()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        for _ in range(2):
            alone = Group(0, 1, store=TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
            assert torch.get_num_threads() == 2
            alone.leave()
            assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_a_learner_is_gone_before_the_next_one_is_loaded(monkeypatch: pytest.MonkeyPatch):
    alive = weakref.WeakSet[Any]()
    found: list[int] = []

    class Dying:
        wall_s = 0.0

        def __init__(self, *_: Any) -> None:
            found.append(len(alive))
            alive.add(self)

        def train(self) -> None:
            try:
                raise RuntimeError(f"a connection is closed by {self}")
            except RuntimeError as error:
                raise RankDied("rank 1 is gone") from error

    monkeypatch.setattr(conclip.training.ranks, "Trainer", Dying)
    with pytest.raises(RankDied, match="rank 1 is gone; 3 restarts did not help"):
        train(Mock(), settings(), Mock(), Learners(ClusterConfig()))
    assert found == [0, 0, 0, 0]


def test_a_rank_of_torchrun_leaves_signals_to_the_first_one(monkeypatch: pytest.MonkeyPatch):
    """torchrun and terminals send them to all."""
    ignored: list[Any] = []
    monkeypatch.setattr(signal, "signal", lambda number, does: ignored.append((number, does)))
    group = Mock()
    group.next_call.return_value = ("end", (), {})
    monkeypatch.setattr(conclip.cluster.followers, "group_of_torchrun", lambda: group)
    follow_under_torchrun(Mock())
    assert ignored == [(number, signal.SIG_IGN) for number in SIGNALS]
    group.leave.assert_called_once()


@pytest.mark.parametrize("override", ["model.adapter.base=4bit", "optim.moments=8bit", "trainer.offload=true"])
def test_what_ranks_cannot_divide_is_refused(override: str):
    key = override.split("=")[0].replace(".", r"\.")
    with pytest.raises(UserError, match=f"{key}.*cluster.learner_ranks"):
        load_config("train-phase2", "model/adapter=lora", "cluster.learner_ranks=2", override)
