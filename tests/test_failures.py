"""What the machine does to a run is told apart from bugs; signals strike where nothing is half-changed."""

import errno
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from conclip.cli import tools
from conclip.cli.doctor import Check, config_checks, machine_checks, memory_needed_gib
from conclip.config.compose import load_config
from conclip.config.schema import LearnConfig
from conclip.errors import MachineFailure, UserError, check_folder, explain
from conclip.experiments import inputs
from conclip.experiments.inputs import load_inputs
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
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory"),
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
    return {check.name: check for check in config_checks(config, load_inputs(config))}


def test_doctor_knows_what_a_config_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The lab: 872,000 parameters or so. PPO in fp32 with KL: 16 bytes for policy and critic each, 4 for the reference."""
    monkeypatch.setattr("conclip.cli.doctor.gpu_memory_gib", lambda: None)
    size = num_parameters(LAB_MODEL)
    assert 0.8e6 < size < 1e6
    config = load_config("train-phase2")
    assert isinstance(config, LearnConfig)
    needed = memory_needed_gib(config, size)
    assert needed["learner"] == size * 36 / 2**30 and needed["checkpoint"] == size * 24 / 2**30
    assert needed["engine"] == size * 4 / 2**30 + config.rollout.kv_cache_gib
    assert "logits" not in needed
    found = checks()
    assert [check.state for check in found.values()] == ["ok"] * 3 and "pool" in found["config"].detail
    monkeypatch.setattr(inputs, "SMALL_MODEL", size - 1)
    assert checks()["note"].detail.startswith("optim.policy_lr=0.0001 for 1 million parameters is high")
    assert "note" not in checks("optim=paper")
    found = checks("rollout.kv_cache_gib=1000000")
    assert found["memory it needs"].state == "FAILED" and "kv_cache_gib" in found["memory it needs"].remedy


@pytest.mark.parametrize(
    ("overrides", "of_learner", "of_checkpoint"),
    [
        # one base of 2 * 3 + 4 parameters, 6 of them in a matrix; adapters of rank 2 on it: 2 * (2 + 3) each, twice for PPO
        ((), 10 * 4 + 20 * 16, 20 * 12),
        (("algo=grpo",), 10 * 4 + 10 * 16, 10 * 12),
        (("optim.moments=8bit",), 10 * 4 + 20 * 10, 20 * 6),
        (("model.dtype=bfloat16", "model.adapter.base=bfloat16"), 10 * 2 + 20 * 16, 20 * 12),
        (("model.adapter.base=4bit",), 6 * 0.5625 + 4 * 4 + 20 * 16, 20 * 12),
        (("model.adapter.targets=[k_proj]",), 10 * 4, 0),
    ],
)
def test_doctor_counts_adapters(overrides: tuple[str, ...], of_learner: float, of_checkpoint: float):
    config = load_config("train-phase2", "model/adapter=lora", "model.adapter.rank=2", *overrides)
    needed = memory_needed_gib(config, 10, linear={"layers.0.q_proj.weight": (2, 3)})
    assert needed["learner"] == of_learner / 2**30 and needed["checkpoint"] == of_checkpoint / 2**30
    assert needed["merged weights"] == 40 / 2**30


def test_a_head_that_is_tied_and_stored_counts_once(tmp_path: Path):
    tensors = {"model.embed_tokens.weight": torch.zeros(8, 4), "lm_head.weight": torch.zeros(8, 4)}
    save_file(tensors, tmp_path / "model.safetensors")
    for tied, number in ((True, 32), (False, 64)):
        (tmp_path / "config.json").write_text(json.dumps({"tie_word_embeddings": tied}))
        assert num_parameters(tmp_path) == number


def test_the_matrices_of_a_model_leave_out_embedding_and_head():
    shapes = linear_shapes(LAB_MODEL)
    assert len(shapes) == 28 and shapes["model.layers.0.mlp.up_proj.weight"] == (384, 128)


@pytest.mark.parametrize(
    ("vocabulary", "width", "tokens", "num_logits"),
    [
        (151_936, 1536, 32_768, 151_936 * 1536),  # a chunk of as many rows as the head is wide: 233 million logits
        (151_936, 1536, 1024, 151_936 * 1024),  # no chunk is longer than a micro-batch
        (151_936, 8192, 32_768, 2**28),  # 1 GiB of logits at most
        (32_000, 64, 32_768, 2**24),  # 64 MiB always
        (128, 128, 2048, 128 * 2048),  # the lab: one micro-batch is never split
    ],
)
def test_doctor_counts_the_logits(vocabulary: int, width: int, tokens: int, num_logits: int):
    """Five blocks of fp32: the first row's are 4.3 GiB, as much as the embedding and all its training state."""
    config = load_config("train-phase2", f"trainer.max_tokens_per_micro_batch={tokens}")
    needed = memory_needed_gib(config, 10**6, (vocabulary, width))
    assert needed["logits"] == num_logits * 20 / 2**30
    assert "logits" not in memory_needed_gib(load_config("eval"), 10**6, (vocabulary, width))


def test_the_shape_of_a_head_is_the_models_config(tmp_path: Path):
    assert head_shape(LAB_MODEL) == (128, 128)
    for content in ("{}", "[", "[]", '{"vocab_size": "9", "hidden_size": 2}', '{"vocab_size": 9, "hidden_size": null}'):
        (tmp_path / "config.json").write_text(content)
        assert head_shape(tmp_path) is None
    assert "logits 0.0" in checks()["memory it needs"].detail


def test_doctor_knows_what_a_config_needs_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Only the driver's answer is made up: an 80 GiB card, and one of 1 MiB."""
    driver = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for mib, state in ((81920, "ok"), (1, "FAILED")):
        driver.write_text(f"#!/bin/sh\necho {mib}\n")
        driver.chmod(0o755)
        found = checks()["memory it needs"]
        assert found.state == state and f"of the GPU's {mib / 1024:.1f} GiB" in found.detail
    assert "rollout.gpu_memory_utilization" in found.remedy


def test_doctor_refuses_a_bad_config_after_its_checks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(tools, "machine_checks", lambda outputs: iter([Check(name="memory", state="ok", detail="plenty")]))
    with pytest.raises(UserError, match=r"did you mean 'algo\.gae_lambda'"):
        tools.doctor(["train-phase2", "algo.gae_lamda=1"])
    assert "plenty" in capsys.readouterr().out


@pytest.mark.whole
def test_doctor_finds_this_machine_fit_and_says_what_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = {check.name: check for check in machine_checks(tmp_path / "outputs")}
    assert {found[name].state for name in ("packages", "vLLM", "grader")} == {"ok"}
    assert {"memory", "disk"} <= found.keys()  # what they say is the machine's
    monkeypatch.setenv("OMP_NUM_THREADS", "999")
    threads = next(check for check in machine_checks(tmp_path) if check.name == "threads")
    assert threads.state == "FAILED" and "OMP_NUM_THREADS" in threads.remedy
