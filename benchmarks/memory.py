"""Peak resident memory of one PPO step with a critic, and the chunked loss against one with whole [B, T, V] logits.

    python benchmarks/memory.py --model FOLDER --responses 16 --tokens 256

Needs no engine: the responses are random tokens. Prints one JSON object.
"""

import argparse
import dataclasses
import json
import resource
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel

from conclip.config.compose import load_config
from conclip.config.schema import LearnConfig
from conclip.models.load import load_policy
from conclip.seeding import torch_stream
from conclip.training.backend import Backend
from conclip.training.batch import ExperienceBatch, collate
from conclip.training.experience import make_experience
from conclip.training.learner import Learner
from conclip.types import Completion, Grade, Outcome, Problem, Rollout, RolloutGroup

PROMPT_TOKENS = 64


def as_groups(sequences: Sequence[Sequence[int]], prompt_tokens: int, group_size: int) -> list[RolloutGroup]:
    """Groups of responses with these tokens, every other one correct."""
    groups: list[RolloutGroup] = []
    for first in range(0, len(sequences), group_size):
        problem = Problem(problem_id=f"p{first}", question="q", answer="1", source="random")
        members = enumerate(sequences[first : first + group_size], first)
        groups.append(
            RolloutGroup(problem=problem, rollouts=tuple(_rollout(problem, n, ids, prompt_tokens) for n, ids in members))
        )
    return groups


def responses(vocabulary: int, num_responses: int, num_tokens: int) -> list[RolloutGroup]:
    """Two groups of random responses."""
    generator, size = torch_stream("memory"), (PROMPT_TOKENS + num_tokens,)
    ids = [torch.randint(0, vocabulary, size, generator=generator).tolist() for _ in range(num_responses)]
    return as_groups(ids, PROMPT_TOKENS, -(-num_responses // 2))


def _rollout(problem: Problem, sample: int, ids: Sequence[int], prompt_tokens: int) -> Rollout:
    correct = sample % 2 == 0
    return Rollout(
        problem=problem,
        sample=sample,
        prompt_token_ids=tuple(ids[:prompt_tokens]),
        completion=Completion(
            request_id=str(sample),
            token_ids=tuple(ids[prompt_tokens:]),
            logprobs=(-1.0,) * (len(ids) - prompt_tokens),
            finish_reason="stop",
            policy_version=1,
        ),
        text="",
        grade=Grade(outcome=Outcome.CORRECT if correct else Outcome.WRONG, extracted=None),
        reward=1.0 if correct else -0.5,
    )


@torch.no_grad()
def whole_loss(policy: PreTrainedModel, experience: ExperienceBatch, config: LearnConfig) -> float:
    """The PPO loss from the logits of all positions and the whole vocabulary at once."""
    tokens, algo = experience.tokens, config.algo
    logits = policy(input_ids=tokens.input_ids).logits[:, :-1].float() / config.rollout.temperature
    logprobs = torch.log_softmax(logits, -1).gather(-1, tokens.targets.unsqueeze(-1)).squeeze(-1)
    assert experience.old_logprobs is not None
    ratio = torch.exp(logprobs - experience.old_logprobs)
    gain = torch.minimum(
        ratio * experience.advantages, ratio.clamp(1 - algo.clip_low, 1 + algo.clip_high) * experience.advantages
    )
    return -float(((gain * tokens.loss_mask).sum(-1) / tokens.loss_mask.sum(-1)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--responses", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--micro-batch", type=int, default=1024, help="trainer.max_tokens_per_micro_batch")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--recompute", action="store_true", help="trainer.recompute_activations")
    arguments = parser.parse_args()
    loaded = load_config(
        "train-phase2",
        "model=hf",
        f"model.path={arguments.model}",
        f"model.dtype={arguments.dtype}",
        f"trainer.max_tokens_per_micro_batch={arguments.micro_batch}",
        f"trainer.recompute_activations={arguments.recompute}",
        f"rollout.max_tokens={arguments.tokens}",
        "algo.updates_per_rollout=1",
    )
    assert isinstance(loaded, LearnConfig)
    vocabulary = AutoConfig.from_pretrained(arguments.model).vocab_size
    learner = Learner(Backend(arguments.model, loaded, num_updates=10), loaded)
    tokens = collate(responses(vocabulary, arguments.responses, arguments.tokens), train_on_truncated=True)
    scores = learner.score(tokens)
    experience = make_experience(tokens, scores, loaded.algo, kl_coef=loaded.algo.kl_coef)
    # an old policy some way off, so that the ratio is not 1 and the loss not the mean advantage
    away = 0.1 * torch.randn(tokens.response_mask.shape, generator=torch_stream("away"))
    experience = dataclasses.replace(experience, old_logprobs=learner.logprobs(tokens) + away * tokens.response_mask)
    stats = learner.update(experience, torch_stream("order"), kl_coef=loaded.algo.kl_coef).stats
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    whole = whole_loss(load_policy(arguments.model, learner.backend.device), experience, loaded)
    print(json.dumps({"peak_resident_gib": peak, "policy_loss": stats["policy/loss"], "whole_policy_loss": whole}))


if __name__ == "__main__":
    main()
