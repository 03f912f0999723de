"""How many responses differ between one engine and two, and how close were the candidates where they first do?

    python -m benchmarks.ties            # the lab's model, 4,096 sampled responses and 1,024 greedy ones (minutes)

Each number of engines makes other batches, with other threads, whose sums have another order, so that log-probs differ in
their last digits. A token can differ only where two candidates were tied: where either one is chosen once its log-prob is
raised by a small amount. That amount is reported, by log-probs of transformers and the engine's own way to choose with a
request's seed. That these are what the engine had is checked on responses which agree: they must choose the tokens that
were sampled.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conclip.config.compose import load_config
from conclip.lab.arithmetic import generate
from conclip.models.folder import LAB_MODEL
from conclip.models.load import load_policy, load_tokenizer
from conclip.problems.prompts import encode_prompt
from conclip.rollout.collect import PromptSet, tasks_for
from conclip.rollout.pool import EnginePool
from conclip.types import Completion, Request, SamplingSpec

NUM_CHECKED = 50
"""Responses that agree, whose tokens are chosen again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What came of one way to sample."""

    num_responses: int
    num_tokens: int
    num_differ: int
    """Responses that differ between one engine and two."""
    widest_gap: float
    """The most that a candidate's log-prob must be raised to be chosen, where such a response first differs [nats]."""
    checked: float
    """Share of the tokens that are chosen again, in responses which agree."""


def sampled(num_engines: int, wanted: list[Request], spec: SamplingSpec) -> dict[str, Completion]:
    """Sample with so many engines, which share the cores, from a cold cache."""
    rollout = dataclasses.replace(load_config("eval").rollout, num_engines=num_engines, kv_cache_gib=0.5)
    pool = EnginePool(LAB_MODEL, rollout, dtype="float32", seed=0, max_model_len=1024)
    try:
        pool.submit(wanted, spec)
        done: dict[str, Completion] = {}
        while len(done) < len(wanted):
            done |= {completion.request_id: completion for completion in pool.poll()}
        return done
    finally:
        pool.close()


class Choices:
    """Chooses tokens again, with a transformers model's log-probs and the requests' own seeds."""

    def __init__(self) -> None:
        from vllm.platforms import current_platform

        current_platform.import_kernels()
        self._policy = load_policy(LAB_MODEL, torch.device("cpu"))

    @torch.no_grad()
    def logprobs(self, request: Request, token_ids: tuple[int, ...], temperature: float) -> Tensor:
        """Return the log-probs [tokens, vocabulary] of the candidates for each token of a response."""
        prompt = request.prompt_token_ids
        logits = self._policy(input_ids=torch.tensor([prompt + token_ids])).logits[0, len(prompt) - 1 : -1]
        return torch.log_softmax(logits / (temperature or 1.0), -1)

    def chosen(self, logprobs: Tensor, seeds: Tensor, temperature: float) -> Tensor:
        """Return the tokens [n] that are chosen with log-probs [n, vocabulary] and a seed for each."""
        return torch.ops._C.fused_gumbel_argmax(logprobs, seeds) if temperature else logprobs.argmax(-1)

    def gap(self, logprobs: Tensor, seed: Tensor, rivals: tuple[int, int], temperature: float) -> float:
        """Return how much the log-prob of either rival must be raised for it to be chosen, as a power of ten."""
        for gap in (10.0**exponent for exponent in range(-7, 3)):
            raised = logprobs.repeat(2, 1)
            for row, token in enumerate(rivals):
                raised[row, token] += gap
            if tuple(self.chosen(raised, seed.repeat(2), temperature).tolist()) == rivals:
                return gap
        raise ValueError(f"neither of {rivals} is chosen, however likely it is made")


def seeds_of(request: Request, num_tokens: int) -> Tensor:
    """Return the seed that vLLM's CPU sampler draws for each token of a request."""
    own = torch.Generator().manual_seed(request.seed)
    return torch.cat([torch.randint(0, 2**31, (1,), generator=own) for _ in range(num_tokens)])


def counts(wanted: list[Request], spec: SamplingSpec) -> Counts:
    """Sample the same requests with one engine and with two, and compare."""
    one, two = sampled(1, wanted, spec), sampled(2, wanted, spec)
    return compared(wanted, one, two, spec)


def compared(
    wanted: list[Request], one: Mapping[str, Completion], two: Mapping[str, Completion], spec: SamplingSpec
) -> Counts:
    """Compare the responses to the same requests, of which some must agree."""
    choices, gaps, chosen_again, checked = Choices(), list[float](), list[bool](), 0
    for request in wanted:
        first, second = one[request.request_id].token_ids, two[request.request_id].token_ids
        same = first == second
        if same and checked == NUM_CHECKED:
            continue
        logprobs, seeds = choices.logprobs(request, first, spec.temperature), seeds_of(request, len(first))
        if same:
            checked += 1
            chosen_again += (choices.chosen(logprobs, seeds, spec.temperature) == torch.tensor(first)).tolist()
        else:
            place = next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
            rivals = first[place], second[place]
            gaps.append(choices.gap(logprobs[place : place + 1], seeds[place], rivals, spec.temperature))
    return Counts(
        num_responses=len(wanted),
        num_tokens=sum(completion.num_tokens for completion in one.values()),
        num_differ=len(gaps),
        widest_gap=max(gaps, default=0.0),
        checked=sum(chosen_again) / len(chosen_again),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=4, help="of each problem, besides a greedy one")
    options = parser.parse_args()
    tokenizer, model = load_tokenizer(LAB_MODEL), load_config("eval").model
    problems = generate("chain", levels=(2, 4, 6), split="test", num_problems=options.problems, seed=0, source="chain")
    prompts = PromptSet(token_ids={p.problem_id: encode_prompt(tokenizer, p.question, model) for p in problems})
    found: dict[str, Any] = {}
    for name, temperature, num_samples in (("sampled", 1.0, options.samples), ("greedy", 0.0, 1)):
        spec = SamplingSpec(temperature=temperature, max_tokens=512)
        tasks = tasks_for(problems, prompts, num_samples, ("ties",), spec)
        found[name] = dataclasses.asdict(counts([task.request for task in tasks], spec))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
