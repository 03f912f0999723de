"""A phase that was cut ends as one that was left alone, bit for bit; damaged states are passed over."""

import errno
import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file

from conclip.cluster.ranks import OneRank
from conclip.errors import MachineFailure, UserError, explain
from conclip.experiments.inputs import Inputs
from conclip.rollout.session import Runtime
from conclip.runs.interrupts import SIGNALS, Interrupted, handle_signals
from conclip.training.checkpoint import Checkpoints, PhaseState, remove_training_state
from conclip.training.monitors import REPORTED
from conclip.training.progress import Progress
from tests.junk import JUNK, changed, places
from tests.phases import ADAPTED, ALGORITHMS, Cut, check_cut, left_by, resumable, saving, train


@pytest.mark.whole
@pytest.mark.parametrize("algorithm", [*ALGORITHMS, ADAPTED])
def test_a_cut_phase_ends_as_one_that_was_left_alone_wherever_it_was_cut(
    scripted_runtime: tuple[Runtime, Inputs], algorithm: list[str]
):
    check_cut(scripted_runtime, algorithm, [1, 4])


@pytest.mark.whole
@pytest.mark.parametrize("moment", ["sampling", "update", "validation"])
def test_a_signal_costs_the_step_in_flight_at_most(scripted_runtime: tuple[Runtime, Inputs], moment: str):
    """SIGTERM while step 3 samples, is amid its update, or is looked at; no checkpoint was due before it."""
    settings, (opened, inputs) = saving("trainer.save_every=100", "trainer.validate_every=3"), scripted_runtime
    alone = left_by(opened.run, train(scripted_runtime, "phase2", f"alone {moment}", settings))
    key = f"stopped in {moment}"
    trainer = resumable(opened, inputs, key, settings)
    name = {"sampling": "take", "update": "push_weights", "validation": "_validate"}[moment]
    owner = trainer if moment == "validation" else trainer._sampler
    original = getattr(owner, name)

    def told_to_stop(*arguments: Any) -> Any:
        if trainer._progress.step == (3 if moment == "validation" else 2):
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    setattr(owner, name, told_to_stop)
    with signals_handled(), pytest.raises(Interrupted) as stopped:
        trainer.train()
    assert stopped.value.exit_code == 143
    again = resumable(opened, inputs, key, settings)
    again._recovery.restore()
    assert again._progress.step == (2 if moment == "sampling" else 3)
    assert left_by(opened.run, train(scripted_runtime, "phase2", key, settings)) == alone


@contextmanager
def signals_handled() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    handle_signals()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


OTHERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "learner of another shape": lambda values: values.update(learner=[1]),
    "no learner": lambda values: values.pop("learner"),
    "a count below 0": lambda values: values["learner"].update(skipped_in_a_row=-1),
    "order of other problems": lambda values: values["order"].update(problems=["p", "q", "r", "s"]),
    "one problem four times": lambda values: values["order"].update(problems=values["order"]["problems"][:1] * 4),
    "random state cut": lambda values: values["order"]["stream"][1].pop(),
    "a step of the future": lambda values: values["progress"].update(step=3),
    "another best": lambda values: values["progress"].update(best_checkpoint=1),
    "trained on others": lambda values: values["progress"].update(asked=["p"]),
    "no first validation": lambda values: values["progress"].update(history=[]),
    "metrics without names": lambda values: values["progress"].update(unreported={}),
}


@pytest.mark.whole
def test_a_whole_checkpoint_that_says_something_else_is_refused_in_one_line(scripted_runtime: tuple[Runtime, Inputs]):
    settings, key = saving(), "other states"
    with pytest.raises(Cut):
        train(scripted_runtime, "phase2", key, settings, 3)
    file = scripted_runtime[0].run.folder / "checkpoints/phase2/step-000002/training/state.json"
    written = file.read_text()
    for name, change in OTHERS.items():
        head = json.loads(written)
        change(head["values"])
        file.write_text(json.dumps(head))
        with pytest.raises(UserError, match="is whole, but no checkpoint of this phase") as refused:
            resumable(*scripted_runtime, key, settings)._recovery.restore()
        assert "\n" not in str(refused.value), name
    file.write_text(written)
    again = resumable(*scripted_runtime, key, settings)
    load, again._learner.load = again._learner.load, Mock(side_effect=UserError("another host lacks it"))
    with pytest.raises(UserError, match=r"^another host lacks it$"):  # no reason to remove the checkpoint
        again._recovery.restore()
    again._learner.load = load
    again._recovery.restore()
    assert again._progress.step == 2


def state(number: int, best: int = 5) -> PhaseState:
    write_tensors = partial(OneRank().write, {"w": torch.full((3,), float(number))})
    return PhaseState(number=number, best=best, values={"step": number}, write_tensors=write_tensors)


def write_model(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weights of " + folder.name.encode())


def opened(folder: Path, said: list[str], key: str = "key", **changes: Any) -> Checkpoints:
    return Checkpoints(folder, key=key, warn=said.append, **({"keep_last": 2, "in_background": True} | changes))


def saved(folder: Path, said: list[str], *numbers: int, **changes: Any) -> Checkpoints:
    checkpoints = opened(folder, said, **changes)
    for number in numbers:
        checkpoints.save(state(number), write_model)
    checkpoints.wait()
    return checkpoints


@pytest.mark.parametrize("in_background", [True, False])
def test_the_newest_checkpoints_and_the_best_are_kept(tmp_path: Path, in_background: bool):
    said: list[str] = []
    assert opened(tmp_path, said).newest() is None
    checkpoints = saved(tmp_path, said, 5, 10, 15, 20, in_background=in_background)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000005", "step-000015", "step-000020"]
    found = checkpoints.newest()
    assert found is not None and found["number"] == 20 and found["values"] == {"step": 20}
    assert torch.equal(load_file(checkpoints.path(20) / "training/tensors.safetensors")["w"], torch.full((3,), 20.0))
    assert said == [] and opened(tmp_path, said, "another key").newest() is None
    assert said == [f"the checkpoints in '{tmp_path}' are of other inputs or of another version; the phase starts anew"]


def test_damaged_checkpoints_do_not_count_as_newer_than_what_follows(tmp_path: Path):
    said: list[str] = []
    checkpoints = saved(tmp_path, said, 5, 10, keep_last=1)
    (checkpoints.path(10) / "model.safetensors").write_bytes(b"other")
    found = checkpoints.newest()
    assert found is not None and found["number"] == 5
    checkpoints.save(state(7), write_model)
    checkpoints.wait()
    found = checkpoints.newest()
    assert found is not None and found["number"] == 7


def test_no_junk_in_the_state_of_a_checkpoint_gets_past_its_reading(tmp_path: Path):
    """Whatever value is replaced: an earlier checkpoint is taken, or this one with values of the right types."""
    said: list[str] = []
    state_file = saved(tmp_path / "whole", said, 5, 10).path(10) / "training" / "state.json"
    written = json.loads(state_file.read_text())
    passed_over = 0
    for place in places(written):
        for junk in JUNK:
            shutil.rmtree(tmp_path / "broken", ignore_errors=True)
            shutil.copytree(tmp_path / "whole", tmp_path / "broken")
            (tmp_path / "broken/step-000010/training/state.json").write_text(json.dumps(changed(written, place, junk)))
            try:
                found = opened(tmp_path / "broken", said).newest()
            except UserError as error:  # junk that names another best checkpoint
                assert "the best one so far" in str(error)
                continue
            assert found is None or (type(found["number"]), type(found["best"])) == (int, int)
            assert found is None or (found["number"] in (5, 10) and isinstance(found["values"], dict))
            passed_over += found is None or found["number"] == 5
    assert passed_over > 80 and "damaged" in said[0]


PROGRESS = {
    "step": 2,
    "kl_coef": 0.1,
    "unreported": dict.fromkeys(REPORTED, 0.5),
    "monitored": {"high": [7], "low": []},
    "history": [{"step": 0, "accuracy": 0.5, "mean_tokens": 9.0}],
    "first_accuracies": {"a": 0.5},
    "best": {"step": 0, "accuracy": 0.5, "mean_tokens": 9.0},
    "best_checkpoint": 0,
    "asked": ["a"],
    "warned": ["drift"],
    "ended": False,
}


def accepted(values: Any) -> Progress | None:
    try:
        progress = Progress.from_json(values)
        progress.check(first_step=-2, last_step=4, problem_ids={"a"}, metrics=REPORTED)
    except ValueError:
        return None
    return progress


def test_no_junk_in_what_is_known_of_a_phase_gets_past_its_reading():
    assert accepted(PROGRESS) is not None
    refused = 0
    for place in places(PROGRESS):
        for junk in JUNK:
            found = accepted(changed(PROGRESS, place, junk))
            refused += found is None
            if found is not None:
                assert json.loads(json.dumps(found.to_json()))["history"] and math.isfinite(found.kl_coef)
                assert found.step in range(-2, 5) and 0 <= found.history[0].accuracy <= 1
    assert refused > 200
    for name in REPORTED:
        lacking = {key: value for key, value in PROGRESS["unreported"].items() if key != name}
        assert accepted(PROGRESS | {"unreported": lacking}) is None
    for changes in ({"step": 5}, {"step": -3}, {"history": []}, {"first_accuracies": {}}, {"asked": ["b"]}, {"best": None}):
        assert accepted(PROGRESS | changes) is None


def test_a_machine_that_lets_nothing_be_read_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    checkpoints = saved(tmp_path, said, 5, 10)

    def refused(path: Path) -> str:
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    with monkeypatch.context() as patched:
        patched.setattr("conclip.training.checkpoint.path_hash", refused)
        with pytest.raises(OSError, match="Too many open files") as failed:
            checkpoints.newest()
    assert "ulimit -n" in str(explain(failed.value)) and said == []
    found = checkpoints.newest()
    assert found is not None and found["number"] == 10


def test_a_damaged_best_checkpoint_is_found_out(tmp_path: Path):
    said: list[str] = []
    checkpoints = saved(tmp_path, said, 5, 10)
    (checkpoints.path(5) / "model.safetensors").write_bytes(b"other")
    with pytest.raises(MachineFailure, match="step-000005"):
        checkpoints.publish(5, tmp_path / "best")
    assert not (tmp_path / "best").exists()


def test_a_whole_checkpoint_is_not_removed_because_the_best_one_is_damaged(tmp_path: Path):
    """It may be days of work, and the best one may come back from a copy."""
    said: list[str] = []
    checkpoints = saved(tmp_path, said, 5, 10)
    content = (checkpoints.path(5) / "model.safetensors").read_bytes()
    (checkpoints.path(5) / "model.safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match=r"step-000010' is whole, but the best one so far, '.*step-000005', is damaged"):
        checkpoints.newest()
    (checkpoints.path(5) / "model.safetensors").write_bytes(content)
    found = checkpoints.newest()
    assert found is not None and found["number"] == 10 and said == []
    shutil.rmtree(checkpoints.path(5))
    with pytest.raises(UserError, match=r"remove '.*step-000010'"):
        checkpoints.newest()
    shutil.rmtree(checkpoints.path(10))
    assert checkpoints.newest() is None


def test_a_checkpoint_off_schedule_stays_only_while_it_is_the_newest(tmp_path: Path):
    checkpoints = saved(tmp_path, [], 5, 10, 15)
    checkpoints.save(state(17), write_model, scheduled=False)
    checkpoints.wait()
    assert checkpoints.path(17).exists() and checkpoints.path(15).exists()
    checkpoints.save(state(20), write_model)
    checkpoints.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000005", "step-000015", "step-000020"]


def test_a_checkpoint_cut_while_it_replaced_another_is_there_as_it_was(tmp_path: Path):
    checkpoints = saved(tmp_path, [], 5, 10)
    checkpoints.path(10).rename(tmp_path / "step-000010.old")
    (tmp_path / "step-000010.part").mkdir()
    found = checkpoints.newest()
    assert found is not None and found["number"] == 10
    checkpoints.save(state(15), write_model)
    checkpoints.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000005", "step-000010", "step-000015"]


def test_a_phase_that_is_done_leaves_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On the disk: the next stage removes what they could be made from again."""
    checkpoints = saved(tmp_path / "phase", [], 5, 10)
    synced: list[str] = []
    monkeypatch.setattr("conclip.runs.files.sync", lambda path: synced.append(path.name))
    checkpoints.publish(5, tmp_path / "phase-best", complete=lambda folder: (folder / "config.json").touch())
    assert {"model.safetensors", "config.json", "phase-best.part"} == set(synced[:-1]) and synced[-1] == tmp_path.name
    (tmp_path / "phase-best/config.json").unlink()
    assert [path.name for path in (tmp_path / "phase-best").iterdir()] == ["model.safetensors"]
    remove_training_state(tmp_path / "phase")
    assert not list(tmp_path.rglob("training")) and checkpoints.newest() is None
    assert (tmp_path / "phase/step-000010/model.safetensors").exists()


def test_a_checkpoint_that_cannot_be_written_is_said_by_the_next_wait(tmp_path: Path):
    checkpoints = opened(tmp_path, [])

    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    checkpoints.save(state(5), full)
    with pytest.raises(OSError, match="No space"):
        checkpoints.wait()
    assert checkpoints.newest() is None
    checkpoints.save(state(5), write_model)
    checkpoints.wait()
    assert checkpoints.newest() is not None


@pytest.mark.parametrize(
    "harm",
    ["tensors cut", "tensors changed", "model changed", "model gone", "no state", "state cut", "unfinished"],
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, harm: str):
    said: list[str] = []
    checkpoints = saved(tmp_path, said, 5, 10)
    newest = checkpoints.path(10)
    tensors, model, head = (
        newest / name for name in ("training/tensors.safetensors", "model.safetensors", "training/state.json")
    )
    if harm == "tensors cut":
        tensors.write_bytes(tensors.read_bytes()[:-4])
    elif harm == "tensors changed":
        tensors.write_bytes(tensors.read_bytes()[:-1] + b"\x00")
    elif harm == "model changed":
        model.write_bytes(b"other")
    elif harm == "model gone":
        model.unlink()
    elif harm == "no state":
        head.unlink()
    elif harm == "state cut":
        head.write_text(head.read_text()[:40])
    elif harm == "unfinished":
        shutil.move(newest, newest.with_name(newest.name + ".part"))
    found = checkpoints.newest()
    assert found is not None and found["number"] < int(newest.name[5:])
    assert len(said) == (harm != "unfinished") and all(newest.name in text for text in said)
