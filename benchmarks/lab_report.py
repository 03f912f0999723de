"""Measure the embedded model: accuracy and length by level, spread of lengths, and what re-checks are worth.

    make lab-report

Two measures of a re-check. *Observed*: accuracy of the responses that made 0, 1-2, 3-5, ... re-checks; confounded, since
hard moments may call for more. *Forced*: the same prompts and seeds with the token "wait " forbidden; a causal number.
Everything is sampled at temperature 1 on held-out problems; intervals are 95 %, clustered by problem.
"""

import argparse
from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean, median

from bare import bare_llm
from vllm import LLM, SamplingParams, TokensPrompt

from conclip.config.groups import ModelConfig
from conclip.grading.answers import extract_boxed
from conclip.lab.arithmetic import generate
from conclip.models.folder import LAB_MODEL
from conclip.models.load import load_tokenizer
from conclip.problems.prompts import encode_prompt
from conclip.seeding import derive_seed
from conclip.stats import clustered_ratio
from conclip.types import Problem

LEVELS = {"chain": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10), "search": (1, 2, 3, 4)}
PLAIN = ModelConfig(path="lab", dtype="float32", prompt="{question}", system=None, trust_remote_code=False)
BINS = ((0, 0), (1, 2), (3, 5), (6, 10), (11, 99))


@dataclass(frozen=True, kw_only=True)
class Response:
    problem_id: str
    correct: bool
    num_tokens: int
    num_rechecks: int
    truncated: bool


def sample(llm: LLM, tokenizer, problems: list[Problem], num_samples: int, *, allow_wait: bool) -> list[Response]:
    wait = tokenizer.encode("wait ", add_special_tokens=False)
    prompts, parameters, owners = [], [], []
    for problem in problems:
        ids = encode_prompt(tokenizer, problem.question, PLAIN)
        for index in range(num_samples):
            prompts.append(TokensPrompt(prompt_token_ids=list(ids)))
            owners.append(problem)
            parameters.append(
                SamplingParams(
                    temperature=1.0,
                    max_tokens=640,
                    seed=derive_seed("lab-report", problem.problem_id, index),
                    logit_bias=None if allow_wait else {wait[0]: -100.0},
                    detokenize=False,
                    stop_token_ids=[tokenizer.eos_token_id],
                )
            )
    responses = []
    for problem, output in zip(owners, llm.generate(prompts, parameters, use_tqdm=False), strict=True):
        (completion,) = output.outputs
        text = tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        responses.append(
            Response(
                problem_id=problem.problem_id,
                correct=completion.finish_reason == "stop" and extract_boxed(text) == problem.answer,
                num_tokens=len(completion.token_ids),
                num_rechecks=text.count("wait "),
                truncated=completion.finish_reason != "stop",
            )
        )
    return responses


def accuracy(responses: list[Response]) -> str:
    """Accuracy with its interval; problems weigh equally."""
    by_problem: dict[str, list[bool]] = defaultdict(list)
    for response in responses:
        by_problem[response.problem_id].append(response.correct)
    means = [fmean(values) for values in by_problem.values()]
    mean, low, high = clustered_ratio(means, [1.0] * len(means), ends=(0, 1))
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def mean_or_dash(values: list[int]) -> str:
    return f"{fmean(values):.1f}" if values else "-"


def spread(responses: list[Response]) -> float:
    """Median over problems of the 90th over the 10th percentile of length."""
    by_problem: dict[str, list[int]] = defaultdict(list)
    for response in responses:
        by_problem[response.problem_id].append(response.num_tokens)
    ratios = []
    for lengths in by_problem.values():
        lengths.sort()
        ratios.append(lengths[int(0.9 * len(lengths))] / lengths[int(0.1 * len(lengths))])
    return median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=24, help="per level")
    parser.add_argument("--samples", type=int, default=64, help="per problem")
    parser.add_argument("--model", default=str(LAB_MODEL))
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(arguments.model)
    llm = bare_llm(arguments.model)
    for family, levels in LEVELS.items():
        print(f"\n{family}: {arguments.problems} test problems a level x {arguments.samples} samples, temperature 1\n")
        print("| level | accuracy | tokens | if correct | if wrong | p90/p10 | truncated | accuracy without re-checks |")
        print("|---:|---|---:|---:|---:|---:|---:|---|")
        everything: list[Response] = []
        for level in levels:
            problems = generate(
                family, levels=(level,), split="test", num_problems=arguments.problems, seed=0, source=family
            )
            free = sample(llm, tokenizer, problems, arguments.samples, allow_wait=True)
            banned = sample(llm, tokenizer, problems, arguments.samples, allow_wait=False)
            everything += free
            print(
                f"| {level} | {accuracy(free)} | {fmean(r.num_tokens for r in free):.1f} "
                f"| {mean_or_dash([r.num_tokens for r in free if r.correct])} "
                f"| {mean_or_dash([r.num_tokens for r in free if not r.correct])} "
                f"| {spread(free):.1f} | {fmean(r.truncated for r in free):.4f} | {accuracy(banned)} |",
                flush=True,
            )
        print("\n| re-checks in the response | responses | accuracy |\n|---|---:|---|")
        for low, high in BINS:
            chosen = [r for r in everything if low <= r.num_rechecks <= high]
            if chosen:
                print(f"| {low}-{high} | {len(chosen)} | {accuracy(chosen)} |")


if __name__ == "__main__":
    main()
