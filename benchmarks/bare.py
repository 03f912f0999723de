"""vLLM with nothing of conclip around it: what the benchmarks compare with, and what may use options conclip has not."""

import os

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # read when vLLM is imported
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"

from vllm import LLM


def bare_llm(model: str, *, dtype: str = "float32", max_model_len: int = 1024, kv_cache_gib: float = 1.0) -> LLM:
    """An `LLM` with the settings conclip's own engine has on a CPU."""
    return LLM(
        model=model,
        dtype=dtype,  # pyright: ignore[reportArgumentType]
        skip_tokenizer_init=True,
        enforce_eager=True,
        enable_chunked_prefill=False,
        max_model_len=max_model_len,
        max_num_batched_tokens=8192,
        max_num_seqs=256,
        kv_cache_memory_bytes=int(kv_cache_gib * 2**30),
        logprobs_mode="processed_logprobs",
    )
