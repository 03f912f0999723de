"""What vLLM asks of this process and of its device, before it is imported and as it starts."""

import os

from conclip.errors import UserError
from conclip.processes import protect_children


def configure_environment(*, deterministic: bool, dtype: str | None = None) -> None:
    """Set the variables that vLLM and its kernels read when they are imported or started. `dtype`: of the engine, if any."""
    protect_children()
    os.environ["VLLM_BATCH_INVARIANT"] = str(int(deterministic))
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CONFIGURE_LOGGING"] = "0"  # our handlers receive its messages
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # this process may have used the GPU by then
    if dtype == "float32":
        os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")  # else products in attention keep ten bits of a number


def check_platform(*, engine_on_cpu: bool, learner_on_gpu: bool) -> None:
    """Raise UserError unless vLLM's build is one for the device that torch computes on."""
    if engine_on_cpu and learner_on_gpu:
        raise UserError(
            "vLLM is the CPU build, but torch sees a GPU: make clean, then make install ENGINE=cuda; or hide the GPU with "
            "CUDA_VISIBLE_DEVICES=''"
        )
    if not engine_on_cpu and not learner_on_gpu:
        raise UserError(
            "vLLM is the CUDA build, but torch sees no GPU (see nvidia-smi; the driver may be too old for this torch): make "
            "clean, then make install ENGINE=cpu"
        )
