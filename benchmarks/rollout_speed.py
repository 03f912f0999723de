"""Rollout speed: our `collect` (sampling, decoding, grading) against a bare LLM.generate, same prompts, seeds and log-probs.

    make bench

Each side runs in a process of its own, several rounds in turn; the first round warms up and is not counted.
"""

import argparse
import subprocess
import sys
import time
from statistics import fmean

NUM_PROBLEMS, NUM_SAMPLES, MAX_TOKENS = 64, 8, 512


def problems_and_prompts():
    from conclip.config import ModelConfig
    from conclip.models.folder import LAB_MODEL
    from conclip.models.load import load_tokenizer
    from conclip.problems.arithmetic import generate
    from conclip.prompts import encode_prompt

    problems = generate("chain", levels=(4, 5, 6, 7, 8), split="test", num_problems=NUM_PROBLEMS, seed=0, source="chain")
    tokenizer = load_tokenizer(LAB_MODEL)
    plain = ModelConfig(path="lab", dtype="float32", prompt="{question}", system=None)
    prompts = {problem.problem_id: encode_prompt(tokenizer, problem.question, plain) for problem in problems}
    return problems, prompts, tokenizer


def bare(rounds: int) -> None:
    from bare import bare_llm
    from vllm import SamplingParams, TokensPrompt

    from conclip.models.folder import LAB_MODEL
    from conclip.rollout.collect import tasks_for

    problems, prompts, tokenizer = problems_and_prompts()
    llm = bare_llm(str(LAB_MODEL))
    for number in range(rounds + 1):
        tasks = tasks_for(problems, prompts, num_samples=NUM_SAMPLES, seed_parts=("bench", number))
        parameters = [
            SamplingParams(
                temperature=1.0,
                max_tokens=MAX_TOKENS,
                seed=task.seed,
                logprobs=0,
                detokenize=False,
                stop_token_ids=[tokenizer.eos_token_id],
            )
            for task in tasks
        ]
        llm.reset_prefix_cache()
        began = time.monotonic()
        outputs = llm.generate(
            [TokensPrompt(prompt_token_ids=list(task.prompt_token_ids)) for task in tasks], parameters, use_tqdm=False
        )
        report(number, sum(len(output.outputs[0].token_ids) for output in outputs), time.monotonic() - began)


def ours(rounds: int) -> None:
    from conclip.config import RolloutConfig
    from conclip.grading import Grader
    from conclip.models.folder import LAB_MODEL
    from conclip.rollout.collect import collect, tasks_for
    from conclip.rollout.vllm_engine import VllmEngine
    from conclip.types import SamplingSpec

    problems, prompts, tokenizer = problems_and_prompts()
    config = RolloutConfig(
        engine="in_process",
        temperature=1.0,
        max_tokens=MAX_TOKENS,
        max_model_len=1024,
        max_num_seqs=256,
        max_num_batched_tokens=8192,
        kv_cache_gib=1.0,
        gpu_memory_utilization=0.4,
        tensor_parallel_size=1,
        enforce_eager=True,
    )
    engine = VllmEngine(LAB_MODEL, config, dtype="float32", seed=0, max_model_len=1024)
    grader = Grader()
    for number in range(rounds + 1):
        tasks = tasks_for(problems, prompts, num_samples=NUM_SAMPLES, seed_parts=("bench", number))
        began = time.monotonic()
        spec = SamplingSpec(temperature=1.0, max_tokens=MAX_TOKENS)
        rollouts = list(collect(tasks, spec, engine=engine, grader=grader, tokenizer=tokenizer))
        report(number, sum(rollout.completion.num_tokens for rollout in rollouts), time.monotonic() - began)
    grader.close()
    engine.close()


def report(number: int, num_tokens: int, seconds: float) -> None:
    if number:
        print(f"RATE {num_tokens / seconds:.1f} {num_tokens}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", choices=("bare", "ours"))
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds in each process")
    parser.add_argument("--repeats", type=int, default=2, help="processes of each side, taking turns")
    arguments = parser.parse_args()
    if arguments.side:
        {"bare": bare, "ours": ours}[arguments.side](arguments.rounds)
        return
    rates: dict[str, list[float]] = {"bare": [], "ours": []}
    for _ in range(arguments.repeats):
        for side in rates:
            command = [sys.executable, __file__, "--side", side, "--rounds", str(arguments.rounds)]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            rates[side] += [float(line.split()[1]) for line in output.splitlines() if line.startswith("RATE")]
    for side, values in rates.items():
        print(f"{side:<5} {fmean(values):8.0f} tokens/s  (rounds: {', '.join(f'{v:.0f}' for v in values)})")
    print(f"ours / bare: {fmean(rates['ours']) / fmean(rates['bare']):.3f}")


if __name__ == "__main__":
    main()
