"""Facts about this machine: its processor, memory and GPU, without importing torch."""

import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil

from conclip.errors import UserError

Fact = TypeVar("Fact")

NATIVE_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}
"""Flags of processors that multiply bfloat16 matrices themselves. Others convert back and forth: on an AVX2 machine bfloat16
took six times as long as float32 (SmolLM2-135M, 1,024 tokens at once)."""


BFLOAT16_FROM = 8.0
"""The compute capability of the first GPUs that multiply bfloat16; vLLM refuses it on others."""

REPEATS_FROM = 9.0
"""The compute capability of the first GPUs for which vLLM has kernels that repeat."""

CPU_INFO = Path("/proc/cpuinfo")
"""What the kernel says of processors."""

GROUPS = Path("/sys/fs/cgroup")
"""What the kernel says of control groups."""

OWN_GROUP = Path("/proc/self/cgroup")
"""The path in it of this process's group."""


def cpu_flags() -> set[str]:
    """Return the flags of the processor; none where the system does not tell."""
    return _of_processor("flags", "features")


def is_intel() -> bool:
    """Return whether the processor is Intel's, as far as the system tells."""
    return "GenuineIntel" in _of_processor("vendor_id")


def _of_processor(*fields: str) -> set[str]:
    """Return the words that the system has for the processor in these fields."""
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        return set()
    return {word for line in lines if line.lower().startswith(fields) for word in line.split()}


def num_cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota() -> float | None:
    """Return how many processors this process may use, according to its control groups; None without a limit."""
    quotas: list[float] = []
    for group in _groups():
        with suppress(OSError, ValueError):
            quota, period = (group / "cpu.max").read_text().split()
            quotas.append(int(quota) / int(period))  # "max": no limit
    return min(quotas, default=None)


def available_memory_gib() -> float:
    """Return the memory [GiB] this process may still take: that of the machine, or of one of its control groups where that
    is less. Files that a group has read do not count: the kernel drops them for whoever needs the room."""
    available = [psutil.virtual_memory().available]
    for group in _groups():
        with suppress(OSError, ValueError, KeyError):
            limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
            held = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            available.append(limit - used + sum(int(held[name]) for name in ("active_file", "inactive_file")))
    return min(available) / 2**30


def _groups() -> list[Path]:
    """Return the folders of this process's control group and of those around it, such as the job of a cluster's scheduler.
    A container sees its own as the root."""
    own = ""
    with suppress(OSError):
        lines = OWN_GROUP.read_text().splitlines()
        own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "")
    folder = GROUPS / own.lstrip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(GROUPS))]


def gpu_memory_gib() -> float | None:
    """Return the memory [GiB] of the first GPU that this environment shows; None where there is none."""
    return next(iter(_shown(_gpu_memories_gib())), None)


def num_gpus() -> int:
    """Return how many GPUs processes of this environment see."""
    return len(_shown(_gpu_memories_gib()))


def num_gpus_of_host() -> int:
    """Return how many GPUs this host has, whatever CUDA_VISIBLE_DEVICES hides."""
    return len(_gpu_memories_gib())


def check_repeats(capability: float | None = None) -> None:
    """Raise UserError for a GPU for which vLLM has no kernels that repeat and have gradients where they replace torch's in
    the whole process: those for older ones have none. `capability`: its compute capability; None: the lowest of
    those that this environment shows, as far as the driver tells."""
    if capability is None:
        capability = min(_shown(_asked_of_gpus("compute_cap")), default=REPEATS_FROM)
    if capability < REPEATS_FROM:
        raise UserError("rollout.deterministic: it needs a GPU of compute capability 9.0 (H100) or newer; set it to false")


def gpu_names() -> list[str]:
    """Return what CUDA_VISIBLE_DEVICES calls each of the GPUs that processes of this environment see."""
    number, named = num_gpus(), _named()
    return [str(n) for n in range(number)] if named is None else named[:number]


def gpu_models() -> list[str]:
    """Return what each of the GPUs is that processes of this environment see, as far as the driver tells: NVIDIA H200."""
    return _shown(_told_of_gpus("name"))


def _named() -> list[str] | None:
    """Return the GPUs that CUDA_VISIBLE_DEVICES names; None where it is not set, and shows all."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if names is None else [name.strip() for name in names.split(",") if name.strip() not in ("", "-1")]


def _shown(facts: list[Fact]) -> list[Fact]:
    """Return those of the GPUs that CUDA_VISIBLE_DEVICES names, by number; by their long names as many of the first ones."""
    if (named := _named()) is None:
        return facts
    if all(name.isdecimal() for name in named):
        return [facts[int(name)] for name in named if int(name) < len(facts)]
    return facts[: len(named)]


def _gpu_memories_gib() -> list[float]:
    return [mib / 1024 for mib in _asked_of_gpus("memory.total")]


def _asked_of_gpus(what: str) -> list[float]:
    """Return a number for each GPU of this host, by the name that nvidia-smi has for it; none where it does not tell."""
    try:
        return [float(line) for line in _told_of_gpus(what)]
    except ValueError:
        return []


def _told_of_gpus(what: str) -> list[str]:
    """Return what `_asked_of_gpus` does, as text."""
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
    return [line.strip() for line in shown.splitlines() if line.strip()]


def has_gpu() -> bool:
    """Return whether processes of this environment see a GPU."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and (Path("/proc/driver/nvidia/version").exists() or gpu_memory_gib() is not None)


def native_dtype() -> str:
    """Return the precision that this machine is fast in: bfloat16 on GPUs and on processors that multiply in it, else
    float32."""
    if has_gpu():
        return (
            "bfloat16" if min(_shown(_asked_of_gpus("compute_cap")), default=BFLOAT16_FROM) >= BFLOAT16_FROM else "float32"
        )
    return "bfloat16" if NATIVE_BFLOAT16 & cpu_flags() else "float32"
