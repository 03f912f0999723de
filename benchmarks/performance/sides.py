"""What is timed, one function a side. Each runs in a process of its own and returns a JSON object of numbers."""

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch

from benchmarks.performance.arithmetic import operations, share_reached
from benchmarks.performance.comparisons import Numbers
from benchmarks.performance.watch import peak_gib
from benchmarks.performance.work import Work
from conclip.cluster.threads import threads
from conclip.config.compose import load_config
from conclip.config.schema import LearnConfig
from conclip.experiments.inputs import Inputs, load_inputs

ROUNDS = 3
"""Rounds within one process; the first one warms up and is not counted."""

OFF_STEP = {"time/validate_s", "time/save_s"}
"""Parts of a step's time that only some steps have, and the other side has not: they are left out."""


PROMPT = 48
"""Tokens of a prompt in the sequences that updates are timed with."""


def config_of(work: Work, *more: str) -> tuple[LearnConfig, Inputs]:
    config = load_config("train-phase2", *work.overrides, *more)
    assert isinstance(config, LearnConfig)
    return config, load_inputs(config)


def counted(seconds: Sequence[float], tokens: Sequence[int]) -> Numbers:
    """The median time of 1,000 tokens over all rounds but the first."""
    return {"s_per_1000": median(1000 * s / n for s, n in zip(seconds[1:], tokens[1:], strict=True))}


def rounds(work: Work, count: Callable[[Any, Inputs, Path], int], *more: str) -> Numbers:
    """Rounds of sampling with one engine. `count` samples in a runtime, with a folder for files, and returns the tokens."""
    from conclip.rollout.session import encode_prompts, open_runtime
    from conclip.runs.run import Run

    with tempfile.TemporaryDirectory() as folder:
        config, inputs = config_of(work, f"paths.outputs={folder}", *more)
        run, prompts = Run("bench", config, ""), encode_prompts(config, inputs.model_path, inputs.pool)
        seconds, tokens = list[float](), list[int]()
        with open_runtime(config, run, inputs.model_path, prompts) as runtime:
            for number in range(ROUNDS):
                runtime.config = replace(config, seed=number)  # a copy of the runtime would start an engine of its own
                began = time.monotonic()
                tokens.append(count(runtime, inputs, Path(folder)))
                seconds.append(time.monotonic() - began)
        run.close()
    return counted(seconds, tokens)


def sample(work: Work, *more: str) -> Numbers:
    """conclip's sampling of a step's responses, with decoding and grading."""

    def count(runtime: Any, inputs: Inputs, _: Path) -> int:
        groups = runtime.sample_groups("bench", inputs.pool, runtime.training_spec, work.group_size, "bench")
        return sum(r.completion.num_tokens for group in groups for r in group.rollouts)

    return rounds(work, count, *more)


def sample_one_thread(work: Work) -> Numbers:
    """The same with one engine of one thread."""
    with threads(1):
        return sample(work, "rollout.num_engines=1")


def evaluate(work: Work) -> Numbers:
    """conclip's evaluation of as many responses, with decoding, grading in both ways, and rows written."""
    from conclip.evaluation.evaluate import evaluate as evaluate_model
    from conclip.evaluation.units import RowFile

    chosen = load_config("eval", f"eval.max_tokens={work.max_tokens}", "eval.temperatures=[1]").evaluation
    assert chosen is not None
    settings = replace(chosen, samples_per_problem=work.group_size)

    def count(runtime: Any, inputs: Inputs, folder: Path) -> int:
        seed = str(runtime.config.seed)
        file = RowFile(folder / f"rows-{seed}.jsonl", model="bench", model_hash=seed)
        return sum(row.num_tokens for row in evaluate_model("bench", runtime, inputs.pool, settings, file))

    return rounds(work, count, "rollout.num_engines=1")


def sample_bare(work: Work, *, logprobs: bool = True) -> Numbers:
    """`LLM.generate` on the same prompts with the same seeds, limits and log-probs, without decoding and grading."""
    from vllm import SamplingParams, TokensPrompt

    from benchmarks.bare import bare_llm
    from conclip.rollout.collect import tasks_for
    from conclip.rollout.session import TRAINING, encode_prompts
    from conclip.types import SamplingSpec

    config, inputs = config_of(work)
    prompts = encode_prompts(config, inputs.model_path, inputs.pool)
    dtype, room = config.model.dtype, config.rollout.kv_cache_gib
    llm = bare_llm(str(inputs.model_path), dtype=dtype, max_model_len=prompts.max_model_len, kv_cache_gib=room)
    spec = SamplingSpec(temperature=1.0, max_tokens=work.max_tokens)
    seconds, tokens = list[float](), list[int]()
    for number in range(ROUNDS):
        tasks = tasks_for(inputs.pool, prompts.by_variant[TRAINING], work.group_size, (number, "bench"), spec)
        stop = [cast(int, prompts.tokenizer.eos_token_id)]
        limits: dict[str, Any] = {"temperature": 1.0, "max_tokens": work.max_tokens, "detokenize": False}
        limits |= {"logprobs": 0} if logprobs else {}
        parameters = [SamplingParams(seed=task.seed, stop_token_ids=stop, **limits) for task in tasks]
        llm.reset_prefix_cache()
        began = time.monotonic()
        asked = [TokensPrompt(prompt_token_ids=list(task.prompt_token_ids)) for task in tasks]
        outputs = llm.generate(asked, parameters, use_tqdm=False)
        seconds.append(time.monotonic() - began)
        tokens.append(sum(len(output.outputs[0].token_ids) for output in outputs))
    return counted(seconds, tokens)


def sequences(work: Work, number: int = 0) -> list[list[int]]:
    """Prompts of PROMPT tokens with responses of random ones, of log-normal length around a quarter of the limit."""
    generator = torch.Generator().manual_seed(number)
    _, inputs = config_of(work)
    vocabulary = json.loads((inputs.model_path / "config.json").read_text())["vocab_size"]
    spread = torch.randn(work.num_problems * work.group_size, generator=generator).mul(0.5).exp()
    lengths = (spread * work.max_tokens / 4).long().clamp(8, work.max_tokens)
    return [torch.randint(3, vocabulary, (PROMPT + int(n),), generator=generator).tolist() for n in lengths]


def update(work: Work) -> Numbers:
    """One update of conclip's learner (GRPO: no critic, no reference, no scoring)."""
    return updates(work, partial(sequences, work))


def updates(work: Work, sequences_of: Callable[[int], list[list[int]]], *more: str) -> Numbers:
    """Updates with these sequences, whose first PROMPT tokens are prompts: a list for each round. `more`: overrides."""
    from benchmarks.memory import as_groups
    from conclip.seeding import torch_stream
    from conclip.training.backend import Backend
    from conclip.training.batch import collate
    from conclip.training.experience import make_experience
    from conclip.training.learner import Learner

    config, inputs = config_of(work, "algo=grpo", *more)
    learner = Learner(Backend(inputs.model_path, config, num_updates=ROUNDS), config)
    seconds, tokens = list[float](), list[int]()
    ids: list[list[int]] = []
    for number in range(ROUNDS):
        ids = sequences_of(number)
        batch = collate(as_groups(ids, prompt_tokens=PROMPT, group_size=work.group_size), train_on_truncated=True)
        experience = make_experience(batch, learner.score(batch), config.algo, kl_coef=0.0)
        began = time.monotonic()
        learner.update(experience, torch_stream("order"), kl_coef=0.0)
        seconds.append(time.monotonic() - began)
        tokens.append(sum(map(len, ids)))
    found = counted(seconds, tokens)
    return found | matrix_share(work, found, tokens[-1], tokens[-1] - PROMPT * len(ids))


def matrix_share(work: Work, found: Numbers, tokens: int, scored: int) -> Numbers:
    """The share of the processor's matrix rate that an update of so many tokens reached, `scored` of them by the head."""
    config, inputs = config_of(work)
    needed = operations(inputs.model_path, tokens, scored, recomputed=config.trainer.recompute_activations)
    return share_reached(found, needed, tokens, getattr(torch, config.model.dtype))


def update_bare(work: Work) -> Numbers:
    """A plain transformers forward and backward pass over the same sequences, none padded: those of one length together."""
    from transformers import AutoModelForCausalLM

    config, inputs = config_of(work)
    model = AutoModelForCausalLM.from_pretrained(inputs.model_path, dtype=torch.float32)
    if config.trainer.recompute_activations:
        model.gradient_checkpointing_enable()
    half = torch.autocast("cpu", torch.bfloat16, enabled=config.model.dtype == "bfloat16")
    seconds, tokens = list[float](), list[int]()
    for number in range(ROUNDS):
        by_length: dict[int, list[list[int]]] = {}
        for ids in sequences(work, number):
            by_length.setdefault(len(ids), []).append(ids)
        began = time.monotonic()
        for length, rows in by_length.items():
            size = max(1, config.trainer.max_tokens_per_micro_batch // length)
            for first in range(0, len(rows), size):
                input_ids = torch.tensor(rows[first : first + size])
                with half:
                    logits = model(input_ids=input_ids, use_cache=False).logits
                logprobs = torch.log_softmax(logits[:, :-1].float(), -1)
                loss = -logprobs.gather(-1, input_ids[:, 1:, None]).mean()
                loss.backward()
        model.zero_grad()
        seconds.append(time.monotonic() - began)
        tokens.append(sum(length * len(rows) for length, rows in by_length.items()))
    found = counted(seconds, tokens)
    return found | matrix_share(work, found, tokens[-1], tokens[-1])


def step_ours(work: Work, algo: str) -> Numbers:
    """Whole steps of `conclip train-phase2`, as its metrics have them."""
    _, inputs = config_of(work)
    names = json.dumps([problem.problem_id for problem in inputs.pool])
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        own = [f"algo={algo}", f"phase.problem_ids={names}", f"paths.outputs={folder}"]
        command = [sys.executable, "-m", "conclip", "train-phase2", *work.overrides, *own]
        peak = peak_gib(command, sys.stderr)
        whole = time.monotonic() - began
        lines = (Path(folder) / "train-phase2/speed/latest/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines][1:]
    parts = {name for step in steps for name in step if name.startswith("time/")}
    of_step = parts - OFF_STEP
    found = {
        name: median(1000 * step.get(name, 0.0) / step["rollout/num_tokens"] for step in steps) for name in sorted(of_step)
    }
    total = [math.fsum(step.get(name, 0.0) for name in of_step) for step in steps]
    per_token = [1000 * seconds / step["rollout/num_tokens"] for seconds, step in zip(total, steps, strict=True)]
    saves = [step["time/save_s"] / seconds for seconds, step in zip(total, steps, strict=True) if "time/save_s" in step]
    found |= {"save_share": median(saves)} if saves else {}
    return found | {"s_per_1000": median(per_token), "gib": peak, "run_s": whole}


def step_trl(work: Work) -> Numbers:
    """Whole steps of TRL's GRPO trainer with transformers' generation: as many prompts, responses and updates."""
    import datasets
    import trl
    from transformers import TrainerCallback

    from conclip.grading.answers import extract_boxed
    from conclip.models.load import load_policy, load_tokenizer
    from conclip.rollout.session import TRAINING, encode_prompts

    trainers: Any = trl  # its annotations do not name what it exports
    config, inputs = config_of(work)
    tokenizer = load_tokenizer(inputs.model_path)
    token_ids = encode_prompts(config, inputs.model_path, inputs.pool).by_variant[TRAINING].token_ids
    rows = [{"prompt": tokenizer.decode(list(token_ids[p.problem_id])), "gold": str(p.answer)} for p in inputs.pool]
    lengths: list[int] = []

    def reward(completions: list[str], completion_ids: list[list[int]], gold: list[str], **_: Any) -> list[float]:
        lengths.append(sum(map(len, completion_ids)))
        return [float(extract_boxed(text) == g) for g, text in zip(gold, completions, strict=True)]

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            ends.append(time.monotonic())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.monotonic())

    size = min(64, work.num_problems * work.group_size)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainers.GRPOTrainer(
            model=load_policy(inputs.model_path, torch.device("cpu")),
            reward_funcs=reward,
            args=trainers.GRPOConfig(
                output_dir=folder,
                use_cpu=True,
                bf16=config.model.dtype == "bfloat16",
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                num_generations=work.group_size,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=work.num_problems * work.group_size // size,
                gradient_checkpointing=config.trainer.recompute_activations,
                max_completion_length=work.max_tokens,
                temperature=1.0,
                beta=0.0,
                max_steps=work.num_steps,
            ),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        trainer.train()
    seconds = [end - begin for begin, end in zip(ends[::2], ends[1::2], strict=True)]
    return counted(seconds, lengths)


@contextmanager
def busy_process() -> Iterator[None]:
    """Another process of equal priority, which is never idle."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            yield
        finally:
            other.kill()


def beside_busy(work: Work) -> Numbers:
    with busy_process():
        return step_ours(work, "ppo")


SIDES: dict[str, Callable[[Work], Numbers]] = {
    "sample": lambda work: sample(work, "rollout.num_engines=1"),
    "sample_engines": lambda work: sample(work, "rollout.num_engines=2"),
    "sample_one_thread": sample_one_thread,
    "sample_bare": sample_bare,
    "evaluate": evaluate,
    "evaluate_bare": lambda work: sample_bare(work, logprobs=False),
    "update": update,
    "update_bare": update_bare,
    "step_grpo": lambda work: step_ours(work, "grpo"),
    "step_ppo": lambda work: step_ours(work, "ppo"),
    "step_ppo_busy": beside_busy,
    "step_trl": step_trl,
}
