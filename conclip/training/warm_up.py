"""The format warm-up: fine-tuning on a few correct responses of the model itself, ended in the form that counts.

A model that never writes `\\boxed{}` has no pass rate above 0 to learn from. Its responses that are right in another form
show it the one that counts; nothing else about them changes.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from conclip.config.groups import WarmUpConfig
from conclip.config.schema import LearnConfig
from conclip.models.chat_template import end_of_turn
from conclip.seeding import python_stream, torch_stream
from conclip.training.batch import ExperienceBatch, collate
from conclip.training.learner import Learner
from conclip.training.schedule import ADAPTER_FACTOR, StepPlan
from conclip.types import Completion, EvalRow, Grade, Outcome, Problem, Rollout, RolloutGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A response to fine-tune on."""

    problem: Problem
    prompt_token_ids: tuple[int, ...]
    response: str


def choose_rows(rows: Sequence[EvalRow], settings: WarmUpConfig, seed: int) -> list[EvalRow]:
    """Return rows that are right in any form: at most `samples_per_problem` of each problem, and `num_examples` in all,
    drawn by the seed."""
    right = [row for row in rows if row.lenient_outcome is Outcome.CORRECT]
    taken: Counter[str] = Counter()
    chosen: list[EvalRow] = []
    for row in python_stream(seed, "warm-up", "examples").sample(right, len(right)):
        if taken[row.problem_id] < settings.samples_per_problem and len(chosen) < settings.num_examples:
            taken[row.problem_id] += 1
            chosen.append(row)
    return chosen


def boxed(row: EvalRow) -> str:
    """Return a correct response with its answer in a box at the end, unless it has one.

    Example: "3 + 4 = 7, so 7 apples." becomes "3 + 4 = 7, so 7 apples.\\n\\nThe final answer is \\\\boxed{7}."
    """
    if row.method == "boxed":
        return row.text
    return f"{row.text.rstrip()}\n\nThe final answer is \\boxed{{{row.lenient_extracted}}}."


def fine_tune(
    model_path: Path,
    config: LearnConfig,
    settings: WarmUpConfig,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    make_learner: Callable[..., Learner],
) -> tuple[Learner, list[float]]:
    """Fine-tune the model on the examples: cross-entropy, the mean over each response, then over responses. Returns its
    learner and the mean loss [nats per token] of each pass."""
    algo = dataclasses.replace(
        config.algo,
        advantage="shortest_correct",
        policy_loss="nll",
        kl="none",
        kl_coef=0.0,
        entropy_coef=0.0,
        sampler_correction="none",
        loss_aggregation="sequence_mean",
        critic_warmup_steps=0,
    )
    factor = ADAPTER_FACTOR if config.model.adapter.kind == "lora" else 1.0
    optim = dataclasses.replace(config.optim, policy_lr=factor * settings.policy_lr)
    num_updates = -(-len(examples) // settings.batch_size)
    num_epochs = max(settings.num_epochs, -(-settings.min_updates // num_updates))
    learning = dataclasses.replace(config, algo=algo, optim=optim)
    learner = make_learner(model_path, learning, num_updates=num_updates * num_epochs)
    experience = _experience(examples, tokenizer)
    losses: list[float] = []
    for epoch in range(num_epochs):
        begin = epoch * num_updates
        plan = StepPlan(begin=begin, end=begin + num_updates, num_updates=num_updates, num_rows=len(examples))
        random = torch_stream(config.seed, "warm-up", "update", epoch)
        losses.append(learner.update(experience, random, kl_coef=0.0, plan=plan).stats["policy/loss"])
    return learner, losses


def _experience(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> ExperienceBatch:
    """Return the examples as a batch in which every token of every response trains, the end of the turn included."""
    (end, *_) = end_of_turn(tokenizer) or tokenizer.encode(str(tokenizer.eos_token), add_special_tokens=False)
    groups: list[RolloutGroup] = []
    for number, example in enumerate(examples):
        ids = (*tokenizer.encode(example.response, add_special_tokens=False), end)
        rollout = Rollout(
            problem=example.problem,
            sample=number,
            prompt_token_ids=example.prompt_token_ids,
            completion=Completion(
                request_id=str(number), token_ids=ids, logprobs=(0.0,) * len(ids), finish_reason="stop", policy_version=0
            ),
            text=example.response,
            grade=Grade(outcome=Outcome.CORRECT, extracted=None),
            reward=1.0,
        )
        groups.append(RolloutGroup(problem=example.problem, rollouts=(rollout,)))
    tokens = collate(groups, train_on_truncated=True)
    zeros = torch.zeros_like(tokens.sampler_logprobs)
    return ExperienceBatch(
        tokens=tokens, old_logprobs=zeros, ref_logprobs=zeros, old_values=zeros, advantages=zeros, returns=zeros
    )
