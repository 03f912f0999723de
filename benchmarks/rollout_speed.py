"""Speed of `conclip eval` (sampling, decoding, grading, writing) against a bare LLM.generate: same prompts, seeds, sampling.

    make bench                           # the embedded model
    make bench ARGS="--rounds 1 model=hf model.path=MODEL data=mine data.test.mine.path=FILE eval.temperatures=[0]"

Overrides are those of `conclip eval`. Each side runs in a process of its own, several rounds with seeds of their own, the
sides in turn; the first round of each process warms up and is not counted.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from statistics import fmean

from conclip.config.compose import load_config
from conclip.config.schema import EvalRunConfig
from conclip.experiments.inputs import Inputs, load_inputs

DEFAULTS = (
    "name=bench",
    "logger.display=plain",
    "data.test.chain.levels=[4,5,6,7,8]",
    "data.test.chain.num_problems=64",
    "eval.samples_per_problem=8",
)
"""Without any override: 512 responses of the embedded model a round."""


def load(overrides: list[str]) -> tuple[EvalRunConfig, Inputs]:
    config = load_config("eval", *(overrides or DEFAULTS))
    assert isinstance(config, EvalRunConfig)
    return config, load_inputs(config)


def bare(rounds: int, overrides: list[str]) -> None:
    from bare import bare_llm
    from vllm import SamplingParams, TokensPrompt

    from conclip.models.load import load_tokenizer
    from conclip.problems.prompts import encode_prompt
    from conclip.rollout.collect import PromptSet, tasks_for
    from conclip.rollout.session import context_tokens
    from conclip.types import SamplingSpec

    config, inputs = load(overrides)
    settings, rollout = config.eval, config.rollout
    tokenizer = load_tokenizer(inputs.model_path)
    token_ids = {p.problem_id: encode_prompt(tokenizer, p.question, config.model) for p in inputs.test}
    prompts = PromptSet(token_ids=token_ids)
    llm = bare_llm(
        str(inputs.model_path),
        dtype=config.model.dtype,
        max_model_len=rollout.max_model_len or context_tokens(inputs.model_path, trust_remote_code=False) or 1024,
        kv_cache_gib=rollout.kv_cache_gib,
    )
    spec = SamplingSpec(temperature=settings.temperatures[0], max_tokens=settings.max_tokens)
    for number in range(rounds + 1):
        tasks = tasks_for(inputs.test, prompts, settings.samples_per_problem, (number, "eval"), spec)
        parameters = [
            SamplingParams(
                temperature=settings.temperatures[0],
                top_p=settings.top_p,
                top_k=settings.top_k,
                max_tokens=settings.max_tokens,
                seed=task.seed,
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


def ours(rounds: int, overrides: list[str]) -> None:
    from conclip.evaluation.evaluate import evaluate
    from conclip.evaluation.units import RowFile
    from conclip.rollout.session import encode_prompts, open_runtime
    from conclip.runs.run import Run

    with tempfile.TemporaryDirectory() as folder:
        config, inputs = load([*(overrides or DEFAULTS), f"paths.outputs={folder}"])
        run = Run("eval", config, "bench")
        with open_runtime(config, run, inputs.model_path, encode_prompts(config, inputs.model_path, inputs.test)) as runtime:
            for number in range(rounds + 1):
                began = time.monotonic()
                seeded = replace(runtime, config=replace(config, seed=number))
                file = RowFile(run.folder / f"rows-{number}.jsonl", model="model", model_hash="bench")
                rows = evaluate("model", seeded, inputs.test, config.eval, file)
                report(number, sum(row.num_tokens for row in rows), time.monotonic() - began)
        run.close()


def report(number: int, num_tokens: int, seconds: float) -> None:
    if number:
        print(f"RATE {num_tokens / seconds:.1f} {num_tokens}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", choices=("bare", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds in each process")
    parser.add_argument("--repeats", type=int, default=2, help="processes of each side, taking turns")
    parser.add_argument("overrides", nargs="*", help="of conclip eval")
    arguments = parser.parse_args()
    if arguments.side:
        {"bare": bare, "ours": ours}[arguments.side](arguments.rounds, arguments.overrides)
        return
    rates: dict[str, list[tuple[float, int]]] = {"bare": [], "ours": []}
    for _ in range(arguments.repeats):
        for side in rates:
            command = [sys.executable, __file__, "--side", side, "--rounds", str(arguments.rounds), *arguments.overrides]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            found = [line.split() for line in output.splitlines() if line.startswith("RATE")]
            rates[side] += [(float(rate), int(tokens)) for _, rate, tokens in found]
    for side, values in rates.items():
        rounds = ", ".join(f"{rate:.0f}" for rate, _ in values)
        print(f"{side:<5} {fmean(rate for rate, _ in values):8.0f} tokens/s  (rounds: {rounds})")
    same = [tokens for _, tokens in rates["bare"]] == [tokens for _, tokens in rates["ours"]]
    print(f"ours / bare: {fmean(r for r, _ in rates['ours']) / fmean(r for r, _ in rates['bare']):.3f}", end="")
    print(", the same number of tokens in every round" if same else ", with different numbers of tokens")


if __name__ == "__main__":
    main()
