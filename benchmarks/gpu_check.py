"""What a machine with a CUDA GPU shows in some eight minutes, as a table: the learner against the processor's, what repeats
bit for bit, memory against its plan, and, where vLLM is installed, the engine beside the learner.

    make gpu-check                        # without a GPU: the same steps on the processor with a tiny model, a rehearsal
    make gpu-check ARGS="--only memory"   # the checks with this word in their name

Needs torch, transformers and peft; vLLM only for the engine. A check that fails is a row of the table, and the others go on.
"""

import argparse
import copy
import dataclasses
import gc
import importlib.util
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from memory import responses
from transformers import Qwen2Config, Qwen2ForCausalLM

from conclip.config.compose import load_config
from conclip.config.groups import OptimConfig
from conclip.config.schema import LearnConfig
from conclip.experiments.memory import ModelSize, Part, Place, memory_parts
from conclip.models.folder import LAB_MODEL
from conclip.processes import prepare_gpu
from conclip.seeding import torch_stream
from conclip.training.backend import Backend
from conclip.training.batch import TokenBatch, collate
from conclip.training.experience import make_experience
from conclip.training.learner import Learner
from conclip.training.optimizer import make_optimizer
from conclip.types import Request, SamplingSpec

ON_GPU = torch.cuda.is_available()
GPU = torch.device("cuda" if ON_GPU else "cpu")
CPU = torch.device("cpu")
LARGE: dict[str, Any] = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12}
LARGE |= {"num_key_value_heads": 2, "vocab_size": 151_936, "tie_word_embeddings": False}
"""The shape of Qwen2.5-1.5B."""
TINY: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY |= {"num_key_value_heads": 2, "vocab_size": 512, "tie_word_embeddings": False}

Row = tuple[str, bool | None, str]
"""What was checked; whether it holds, None for a mere figure; and the figures."""


def config_of(*overrides: str) -> LearnConfig:
    config = load_config("train-phase2", "algo.updates_per_rollout=1", *overrides)
    assert isinstance(config, LearnConfig)
    return config


def batch(vocabulary: int, num_responses: int, num_tokens: int) -> TokenBatch:
    return collate(responses(vocabulary, num_responses, num_tokens), train_on_truncated=True)


def updated(config: LearnConfig, model: Path, tokens: TokenBatch, device: torch.device, *, updates: int = 1) -> Learner:
    """A learner after some updates on this batch."""
    learner = Learner(Backend(model, config, num_updates=10, device=device), config)
    for number in range(updates):
        experience = make_experience(tokens, learner.score(tokens), config.algo, kl_coef=config.algo.kl_coef)
        learner.update(experience, torch_stream("order", number), kl_coef=config.algo.kl_coef)
    return learner


def difference(first: Learner, second: Learner, tokens: TokenBatch) -> float:
    """The largest difference of two learners' log-probs [nats]."""
    one, other = (learner.logprobs(tokens) for learner in (first, second))
    return float((one - other).abs().max())


def same_bits(first: Learner, second: Learner) -> bool:
    one, other = (dict(learner.backend.models.weights()) for learner in (first, second))
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def learner_checks() -> Iterator[Row]:
    tokens = batch(128, 8, 60)
    for adapter in ("none", "lora"):
        config = config_of(f"model/adapter={adapter}")
        for updates, bound in ((0, 1e-4), (2, 1e-3)):
            here, there = (updated(config, LAB_MODEL, tokens, device, updates=updates) for device in (GPU, CPU))
            most = difference(here, there, tokens)
            yield (
                f"learner: lab, adapter {adapter}, {updates} updates, against the processor",
                most < bound,
                f"{most:.1e} nats",
            )
    config = config_of("optim.moments=8bit")
    learner = updated(config, LAB_MODEL, tokens, GPU)
    with TemporaryDirectory() as folder:
        learner.backend.models.write(Path(folder), learner.backend.models.saved())
        again = Learner(Backend(LAB_MODEL, config, num_updates=10, device=GPU), config)
        again.backend.load_state(Path(folder), copy.deepcopy(learner.backend.state()))
    yield "learner: saved and restored, 8-bit moments", same_bits(learner, again), "weights bit for bit"
    del learner, again
    _free()
    repeats = "rollout.deterministic=true"  # else backward passes on a GPU may differ
    try:
        plain = updated(config_of(repeats), LAB_MODEL, tokens, GPU, updates=2)
        before = torch.cuda.memory_allocated() if ON_GPU else 0
        rested = updated(config_of(repeats, "trainer.offload=true"), LAB_MODEL, tokens, GPU, updates=2)
    finally:
        torch.use_deterministic_algorithms(False)
    held = f"; {(torch.cuda.memory_allocated() - before) / 2**20:.1f} MiB stay on the GPU" if ON_GPU else ""
    yield "learner: offload between two updates", same_bits(plain, rested), f"weights bit for bit{held}"
    for base in ("float32", "bfloat16", "4bit"):
        config = config_of("model/adapter=lora", "model.dtype=bfloat16", f"model.adapter.base={base}")
        adapted = Learner(Backend(LAB_MODEL, config, num_updates=10, device=GPU), config)
        ref_logprobs = adapted.score(tokens).ref_logprobs
        assert ref_logprobs is not None
        equal = torch.equal(adapted.logprobs(tokens), ref_logprobs)
        yield f"learner: a new adapter on a base in {base} changes nothing", equal, "policy and reference bit for bit"


def repeat_checks() -> Iterator[Row]:
    tokens = batch(128, 8, 200)
    for deterministic in (False, True):
        config = config_of(f"rollout.deterministic={deterministic}", "model.dtype=bfloat16")
        try:
            first, second = (updated(config, LAB_MODEL, tokens, GPU, updates=3) for _ in range(2))
            held = True if deterministic else None
            equal = same_bits(first, second)
            yield f"repeat: deterministic={deterministic}", equal if held else None, "same bits" if equal else "other bits"
        finally:
            torch.use_deterministic_algorithms(False)


def memory_checks() -> Iterator[Row]:
    shape, num_responses, num_tokens = (LARGE, 2, 5000) if ON_GPU else (TINY, 2, 50)
    cases = {
        "GRPO, all weights": ("algo=grpo",),
        "GRPO, all weights, 8-bit moments": ("algo=grpo", "optim.moments=8bit"),
        "PPO, all weights, 8-bit moments": ("optim.moments=8bit",),
        "PPO, adapters on bfloat16": ("model/adapter=lora", "model.adapter.base=bfloat16"),
        "PPO, adapters on 4 bits": ("model/adapter=lora", "model.adapter.base=4bit"),
    }
    with TemporaryDirectory() as name:
        folder = Path(name)
        with GPU:
            model: Any = Qwen2ForCausalLM(Qwen2Config(**shape))
        model.to(torch.bfloat16).save_pretrained(folder)
        del model
        tokens = batch(int(shape["vocab_size"]), num_responses, num_tokens)
        longest = tokens.input_ids.shape[1]
        for what, overrides in cases.items():
            config = config_of(
                "model.dtype=bfloat16",
                "trainer.recompute_activations=true",
                f"trainer.max_tokens_per_micro_batch={longest}",
                f"rollout.max_tokens={num_tokens}",
                *overrides,
            )
            _free()
            began = time.monotonic()
            learner = updated(config, folder, tokens, GPU)
            loaded, began = time.monotonic() - began, time.monotonic()
            experience = make_experience(tokens, learner.score(tokens), config.algo, kl_coef=0.01)
            learner.update(experience, torch_stream("again"), kl_coef=0.01)
            seconds = time.monotonic() - began
            parts = memory_parts(config, ModelSize.of(folder), longest, Place(kind="gpu", memory_gib=80.0))
            mine = [part for part in parts if _of_learner(part)]
            planned = max(sum(part.update for part in mine), sum(part.critic_update for part in mine))
            figures, held = f"load and first update {loaded:.0f} s, second {seconds:.1f} s", None
            if ON_GPU:
                peak = torch.cuda.max_memory_allocated() / 2**30
                figures, held = f"peak {peak:.1f} GiB, planned {planned:.1f}; {figures}", abs(peak / planned - 1) < 0.15
            yield f"memory: {what}", held, figures
            del learner, experience


def _of_learner(part: Part) -> bool:
    return not part.name.startswith("engine") and part.name not in ("libraries", "merged weights of a layer")


def _free() -> None:
    gc.collect()
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def optimizer_checks() -> Iterator[Row]:
    """AdamW as conclip makes it, against torch's default."""
    settings: OptimConfig = config_of().optim
    size = 300_000_000 if ON_GPU else 1000
    for what in ("conclip's", "torch's default"):
        _free()
        weights = [torch.nn.Parameter(torch.zeros(size // 10, device=GPU)) for _ in range(10)]
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        adamw = make_optimizer(weights, 1e-6, settings) if what == "conclip's" else torch.optim.AdamW(weights, lr=1e-6)
        adamw.step()
        if ON_GPU:
            torch.cuda.synchronize()
        began = time.monotonic()
        adamw.step()
        if ON_GPU:
            torch.cuda.synchronize()
        peak = f", {torch.cuda.max_memory_allocated() / size:.1f} bytes a parameter" if ON_GPU else ""
        yield f"optimiser: {what} AdamW", None, f"{1000 * (time.monotonic() - began):.1f} ms{peak}"
        del weights, adamw


def engine_checks() -> Iterator[Row]:
    from conclip.rollout.pool import EnginePool
    from conclip.rollout.transfer import connect_gpus
    from conclip.rollout.vllm_engine import VllmEngine

    rollout = dataclasses.replace(
        load_config("eval").rollout, max_num_seqs=64, kv_cache_gib=0.25, gpu_memory_utilization=0.3
    )
    spec = SamplingSpec(temperature=1.0, max_tokens=64)
    asked = [
        Request(request_id=str(number), prompt_token_ids=tuple(range(5, 25 + number)), seed=number) for number in range(16)
    ]
    apart = ("model/adapter=lora", "model.adapter.serving=apart", f"model.dtype={'bfloat16' if ON_GPU else 'float32'}")
    by_ipc = {"weight_transfer": "ipc", "connect": partial(connect_gpus, "ipc", "127.0.0.1", 1)}
    cases: list[tuple[str, str, tuple[str, ...], Callable[..., Any]]] = [
        ("in a process of its own", "weights", (), EnginePool),
        ("in a process of its own", "adapter", apart, EnginePool),
        ("here", "weights", (), VllmEngine),  # the last one: vLLM cannot start twice in a process that has a GPU
    ]
    if ON_GPU:
        cases.insert(2, ("in a process of its own", "weights by ipc", (), partial(EnginePool, **by_ipc)))
    for opened, what, overrides, start in cases:
        if ON_GPU:  # another process reads the learner's memory only where pages stay in their segments
            torch._C._accelerator_setAllocatorSettings(f"expandable_segments:{what != 'weights by ipc'}")
        config = config_of(*overrides)
        engine = start(
            LAB_MODEL, rollout, dtype=config.model.dtype, seed=0, max_model_len=1024, adapter=config.model.adapter
        )
        learner = Learner(Backend(LAB_MODEL, config, num_updates=10), config)
        learner.backend.models.scorer("policy")  # selects its weights
        bound = 1e-3 if config.model.dtype == "float32" else 0.1
        try:
            for version in (1, 2, 3):
                engine.sleep()
                learner.backend.models.push(engine, version)
                engine.submit(asked, spec)
                done = []
                while len(done) < len(asked):
                    done += engine.poll()
                most = 0.0
                for completion in done:
                    prompt = asked[int(completion.request_id)].prompt_token_ids
                    ids = torch.tensor([[*prompt, *completion.token_ids]], device=GPU)
                    with torch.no_grad():
                        logits = learner.backend.models.policy(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
                    mine = torch.log_softmax(logits, -1).gather(-1, ids[0, len(prompt) :, None])[:, 0].cpu()
                    most = max(most, float((mine - torch.tensor(completion.logprobs)).abs().max()))
                where = f"engine: {opened}, {what} after sleep {version}"
                yield f"{where}, log-probs against the learner", most < bound, f"{most:.1e} nats"
                with torch.no_grad():
                    for parameter in learner.backend.models.trained["policy"].parameters():
                        parameter.add_(0.01 * torch.randn_like(parameter))
        finally:
            engine.close()


CHECKS: dict[str, Callable[[], Iterator[Row]]] = {
    "learner": learner_checks,
    "repeat": repeat_checks,
    "optimiser": optimizer_checks,
    "memory": memory_checks,
    "engine": engine_checks,
}


def machine() -> str:
    device = "no GPU: a rehearsal on the processor with a tiny model, which shows nothing about a GPU"
    if ON_GPU:
        shown = torch.cuda.get_device_properties(0)
        device = f"{shown.name}, {shown.total_memory / 2**30:.1f} GiB, compute capability {shown.major}.{shown.minor}"
    return f"{device}; torch {torch.__version__}, CUDA {torch.version.cuda}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(CHECKS))
    options = parser.parse_args()
    prepare_gpu(repeatable=True, frees_pages=True)
    logging.disable(logging.WARNING)
    print(f"{machine()}\n\n| check | | figures |\n|---|---|---|", flush=True)
    failed = 0
    for name, check in CHECKS.items():
        if options.only not in (None, name):
            continue
        if name == "engine" and importlib.util.find_spec("vllm") is None:
            print("| engine | not run | vLLM is not installed |")
            continue
        try:
            for what, held, figures in check():
                failed += held is False
                print(f"| {what} | {'' if held is None else 'holds' if held else 'FAILS'} | {figures} |", flush=True)
        except Exception as error:  # a failure is what one wants to know here
            failed += 1
            print(f"| {name} | FAILS | {type(error).__name__}: {' '.join(str(error).split())[:300]} |", flush=True)
            traceback.print_exc()
        _free()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
