"""What the machine does to a run is told apart from bugs; signals strike where nothing is half-changed."""

import errno
import itertools
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from conclip.cli import tools
from conclip.cli.doctor import Check, config_checks, machine_checks
from conclip.config.compose import load_config
from conclip.errors import MachineFailure, UserError, check_folder, explain
from conclip.experiments import inputs
from conclip.experiments.commands import all_prompts
from conclip.experiments.inputs import load_inputs
from conclip.experiments.memory import place_of
from conclip.experiments.memory_plan import memory_of_run
from conclip.models.folder import LAB_MODEL, head_shape, linear_shapes, num_parameters
from conclip.runs.interrupts import SIGNALS, Interrupted, deferred, handle_signals


def from_cause(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "rows.jsonl"), "no space left on the disk ('rows.jsonl')"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "no space left"),
        (OSError(errno.EROFS, "Read-only file system", "x"), "no permission ('x')"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "no permission ('x')"),
        (MemoryError(), "out of memory (MemoryError)"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), "out of memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out of GPU memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "out of GPU memory"),
        (
            ValueError("Free memory on device (3/80 GiB) is less than desired GPU memory utilization (0.9)"),
            "out of GPU memory",
        ),
        (MachineFailure("the engine process is gone"), "the engine process is gone"),
        (from_cause(ValueError("cannot write"), OSError(errno.ENOSPC, "No space left on device")), "no space left"),
    ],
)
def test_failures_of_the_machine_are_said(error: Exception, said: str):
    found = explain(error)
    assert found is not None and found.startswith(said)


def test_bugs_are_not_blamed_on_the_machine():
    assert explain(ValueError("shapes do not match")) is None
    assert explain(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None
    try:
        try:
            raise PermissionError(errno.EPERM, "not permitted", "x")
        except PermissionError:
            raise KeyError("a bug in the fall-back")  # noqa: B904
    except KeyError as error:
        assert explain(error) is None


def test_a_folder_that_is_gone_is_noticed(tmp_path: Path):
    check_folder(tmp_path)
    with pytest.raises(MachineFailure, match="is gone"):
        check_folder(tmp_path / "removed")


@pytest.fixture
def signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # pytest itself may run under nohup
    handle_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_waits_for_the_end_of_a_change(signals: None):
    done: list[str] = []
    with pytest.raises(Interrupted) as stopped, deferred():
        with deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("inner")
        done.append("outer")
    assert done == ["inner", "outer"] and stopped.value.exit_code == 143
    with deferred():
        pass  # it struck once


def test_what_another_thread_does_holds_up_no_signal(signals: None):
    begun, ended = threading.Event(), threading.Event()

    def sample() -> None:
        with deferred():
            begun.set()
            ended.wait()

    with ThreadPoolExecutor(1) as other:
        sampling = other.submit(sample)
        begun.wait()
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
        ended.set()
        sampling.result()


def test_a_second_signal_waits_for_nothing(signals: None):
    done: list[str] = []
    with pytest.raises(Interrupted), deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("first")
        os.kill(os.getpid(), signal.SIGINT)
        done.append("second")
    assert done == ["first"]


def test_what_a_stopped_run_still_saves_ends_with_the_second_signal(signals: None):
    with pytest.raises(Interrupted):
        os.kill(os.getpid(), signal.SIGTERM)  # amid sampling: it strikes at once
    done: list[str] = []
    with pytest.raises(Interrupted), deferred():
        done.append("saving")
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("saved")
    assert done == ["saving"]


def test_a_closed_terminal_stops_a_run_but_not_under_nohup(signals: None):
    with pytest.raises(Interrupted) as stopped:
        os.kill(os.getpid(), signal.SIGHUP)
    assert stopped.value.exit_code == 129
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup starts it
    handle_signals()
    os.kill(os.getpid(), signal.SIGHUP)


def test_a_signal_outside_strikes_at_once(signals: None):
    with pytest.raises(Interrupted) as stopped:
        os.kill(os.getpid(), signal.SIGINT)
    assert stopped.value.exit_code == 130


def checks(*overrides: str) -> dict[str, Check]:
    config = load_config("train-phase2", *overrides)
    loaded = load_inputs(config)
    memory = memory_of_run(config, loaded, all_prompts(config, loaded), place_of(config.device))
    return {check.name: check for check in config_checks(config, loaded, memory)}


@pytest.mark.whole
def test_doctor_knows_what_a_config_needs(monkeypatch: pytest.MonkeyPatch):
    found = checks()
    assert [check.state for check in found.values()] == ["ok"] * 3 and "pool" in found["config"].detail
    monkeypatch.setattr(inputs, "SMALL_MODEL", num_parameters(LAB_MODEL) - 1)
    assert checks()["note"].detail.startswith("optim.policy_lr=0.0001 for 1 million parameters is high")
    assert "note" not in checks("optim=paper") and "note" not in checks("model/adapter=lora")
    found = checks("rollout.kv_cache_gib=1000000")
    assert found["memory it needs"].state == "FAILED" and "rollout.kv_cache_gib=0.5" in found["memory it needs"].detail


def test_a_head_that_is_tied_and_stored_counts_once(tmp_path: Path):
    tensors = {"model.embed_tokens.weight": torch.zeros(8, 4), "lm_head.weight": torch.zeros(8, 4)}
    save_file(tensors, tmp_path / "model.safetensors")
    for tied, number in ((True, 32), (False, 64)):
        (tmp_path / "config.json").write_text(json.dumps({"tie_word_embeddings": tied}))
        assert num_parameters(tmp_path) == number


def test_the_matrices_of_a_model_leave_out_embedding_and_head():
    shapes = linear_shapes(LAB_MODEL)
    assert len(shapes) == 28 and shapes["model.layers.0.mlp.up_proj.weight"] == (384, 128)


def test_the_shape_of_a_head_is_the_models_config(tmp_path: Path):
    assert head_shape(LAB_MODEL) == (128, 128)
    for content in ("{}", "[", "[]", '{"vocab_size": "9", "hidden_size": 2}', '{"vocab_size": 9, "hidden_size": null}'):
        (tmp_path / "config.json").write_text(content)
        assert head_shape(tmp_path) is None


@pytest.mark.whole
def test_doctor_knows_what_a_config_needs_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Only the driver's answer is made up: an 80 GiB card, and one of 1 MiB."""
    driver = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for mib, state in ((81920, "ok"), (1, "FAILED")):
        driver.write_text(f"#!/bin/sh\necho {mib}\n")
        driver.chmod(0o755)
        found = checks()["memory it needs"]
        assert found.state == state and f"of {mib / 1024:.1f} " in found.detail
    assert "no setting makes it fit" in found.detail


def test_doctor_refuses_a_bad_config_after_its_checks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(tools, "machine_checks", lambda outputs: iter([Check(name="memory", state="ok", detail="plenty")]))
    with pytest.raises(UserError, match=r"did you mean 'algo\.gae_lambda'"):
        tools.doctor(["train-phase2", "algo.gae_lamda=1"])
    assert "plenty" in capsys.readouterr().out


@pytest.mark.whole
def test_doctor_finds_this_machine_fit_and_says_what_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    found = {check.name: check for check in machine_checks(tmp_path / "outputs")}
    assert found["allocator"].state == ("note" if sys.platform == "linux" else "ok")
    assert {found[name].state for name in ("packages", "vLLM", "grader")} == {"ok"}
    assert {"memory", "disk"} <= found.keys()  # what they say is the machine's
    monkeypatch.setenv("OMP_NUM_THREADS", "999")
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libtcmalloc_minimal.so.4")
    threads, _, allocator = itertools.islice(machine_checks(tmp_path), 2, 5)
    assert threads.state == "FAILED" and "OMP_NUM_THREADS" in threads.remedy
    assert (allocator.name, allocator.state, allocator.detail) == ("allocator", "ok", "tcmalloc")
