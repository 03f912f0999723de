"""Conversion of rollouts to tensors: the only place where alignment is decided.

B sequences, L = longest prompt + response, T = L - 1 decisions. ``input_ids[:, t]`` is the last token of state t and
``input_ids[:, t + 1]`` the token chosen there: **column t of every [B, T] tensor is the decision taken in state t.**
Nothing downstream shifts again. Rows are right-padded, so a causal model needs no attention mask.

Example: prompt (5, 6), response (7, 8) in a batch with L = 5::

    input_ids      5 6 7 8 0
    targets        6 7 8 0
    response_mask  . x x .
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from conclip.types import Outcome, Rollout, RolloutGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """Rollouts as tensors, before any model has scored them."""

    input_ids: Tensor
    """[B, L] long, right-padded with 0."""
    response_mask: Tensor
    """[B, T] bool: decisions that the engine sampled."""
    loss_mask: Tensor
    """[B, T] bool: decisions that train; a subset of response_mask."""
    sampler_logprobs: Tensor
    """[B, T] float: the engine's log-probs; 0 off response_mask."""
    rewards: Tensor
    """[B] float; 0 for a row without a reward (its loss_mask is empty)."""
    groups: Tensor
    """[B] long: index of each row's group."""
    truncated: Tensor
    """[B] bool."""
    correct: Tensor
    """[B] bool."""

    @property
    def targets(self) -> Tensor:
        """Return the token chosen in each state, [B, T]."""
        return self.input_ids[:, 1:]

    @property
    def response_tokens(self) -> Tensor:
        """Return the number of sampled tokens of each row, [B] float."""
        return self.response_mask.sum(-1).float()

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperienceBatch:
    """The inputs of a policy update, all fixed before the first update of the step."""

    tokens: TokenBatch
    old_logprobs: Tensor | None
    """[B, T]: the trainer's log-probs at rollout time; None: those with which the step's only update begins."""
    ref_logprobs: Tensor
    """[B, T]; zeros when no KL term needs them."""
    old_values: Tensor
    """[B, T]; zeros when there is no critic."""
    advantages: Tensor
    """[B, T]"""
    returns: Tensor
    """[B, T]: the critic's targets; zeros when there is no critic."""
    sampled_returns: Tensor | None = None
    """[B, T]: the discounted rewards that followed each decision, which the critic is measured against; None without a
    critic."""

    def __len__(self) -> int:
        return len(self.tokens)


Batch = TypeVar("Batch", TokenBatch, ExperienceBatch)


def select_rows(batch: Batch, rows: Tensor) -> Batch:
    """Return the given rows ([b] long), with every tensor cut to the longest of them."""
    tokens = batch if isinstance(batch, TokenBatch) else batch.tokens
    used = tokens.response_mask[rows].any(0).nonzero()
    num_decisions = int(used.max()) + 1 if len(used) else 1
    changes: dict[str, object] = {}
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if value is None:
            continue
        if isinstance(value, TokenBatch):
            changes[field.name] = select_rows(value, rows)
        elif value.dim() == 1:
            changes[field.name] = value[rows]
        else:
            columns = num_decisions + (field.name == "input_ids")
            changes[field.name] = value[rows, :columns]
    return dataclasses.replace(batch, **changes)  # type: ignore[arg-type]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with every tensor on `device`."""
    moved = {
        field.name: to_device(value, device) if isinstance(value, TokenBatch) else value.to(device)
        for field in dataclasses.fields(batch)
        if (value := getattr(batch, field.name)) is not None
    }
    return dataclasses.replace(batch, **moved)  # type: ignore[arg-type]


def collate(groups: Sequence[RolloutGroup], *, train_on_truncated: bool) -> TokenBatch:
    """Return one row per rollout, in order. Rollouts without a reward (grader errors) get an empty loss mask.

    Raises ValueError when a completion has no log-prob for each of its tokens.
    """
    rollouts = [(index, rollout) for index, group in enumerate(groups) for rollout in group.rollouts]
    length = max(len(r.prompt_token_ids) + r.completion.num_tokens for _, r in rollouts)
    size = len(rollouts)
    input_ids = torch.zeros(size, length, dtype=torch.long)
    response_mask = torch.zeros(size, length - 1, dtype=torch.bool)
    loss_mask = torch.zeros(size, length - 1, dtype=torch.bool)
    sampler_logprobs = torch.zeros(size, length - 1)
    for row, (_, rollout) in enumerate(rollouts):
        completion = rollout.completion
        if len(completion.logprobs) != completion.num_tokens:
            raise ValueError(f"completion {completion.request_id} has no log-prob for each of its tokens")
        begin = len(rollout.prompt_token_ids)
        end = begin + completion.num_tokens
        input_ids[row, :begin] = torch.tensor(rollout.prompt_token_ids)
        input_ids[row, begin:end] = torch.tensor(completion.token_ids)
        response_mask[row, begin - 1 : end - 1] = True
        sampler_logprobs[row, begin - 1 : end - 1] = torch.tensor(completion.logprobs)
        loss_mask[row, begin - 1 : end - 1] = trains(rollout, train_on_truncated=train_on_truncated)
    return TokenBatch(
        input_ids=input_ids,
        response_mask=response_mask,
        loss_mask=loss_mask,
        sampler_logprobs=sampler_logprobs,
        rewards=torch.tensor([r.reward or 0.0 for _, r in rollouts]),
        groups=torch.tensor([index for index, _ in rollouts]),
        truncated=torch.tensor([r.grade.outcome is Outcome.TRUNCATED for _, r in rollouts]),
        correct=torch.tensor([r.grade.outcome is Outcome.CORRECT for _, r in rollouts]),
    )


def with_prompts(groups: Sequence[RolloutGroup], prompts: Mapping[str, tuple[int, ...]]) -> list[RolloutGroup]:
    """Return the same responses as if they had answered other prompts, which are given by problem id."""
    return [
        dataclasses.replace(
            group,
            rollouts=tuple(
                dataclasses.replace(rollout, prompt_token_ids=prompts[rollout.problem.problem_id])
                for rollout in group.rollouts
            ),
        )
        for group in groups
    ]


def trains(rollout: Rollout, *, train_on_truncated: bool) -> bool:
    """Return whether a rollout's tokens enter the loss."""
    if rollout.reward is None:
        return False
    return train_on_truncated or rollout.grade.outcome is not Outcome.TRUNCATED


MAX_PADDING = 0.1
"""The largest share of padding in a micro-batch."""


def row_lengths(tokens: TokenBatch) -> Tensor:
    """Return the number of tokens of each row, prompt and response without padding, [B] long."""
    positions = torch.arange(1, tokens.response_mask.shape[1] + 1)
    return (tokens.response_mask * positions).amax(-1) + 1


def largest_micro_batch(longest: int, max_tokens: int) -> tuple[int, int]:
    """Return the rows and the tokens of each in the largest micro-batch of sequences of up to `longest` tokens.

    Example: up to 1,174 tokens, at most 2,048 in all: two rows of 1,024.
    """
    num_rows = max(1, -(-max_tokens // longest))
    return (1, longest) if num_rows == 1 else (num_rows, max_tokens // num_rows)


def micro_batches(tokens: TokenBatch, rows: Tensor, max_tokens: int) -> Iterator[Tensor]:
    """Split `rows` ([b] long) into micro-batches of rows of similar length. Each has at most `max_tokens` tokens, padding
    included, of which at most the share MAX_PADDING is padding; a single longer row makes a micro-batch of its own."""
    lengths = row_lengths(tokens)[rows]
    piece: list[int] = []
    filled = 0
    for index in torch.argsort(lengths, stable=True).tolist():
        length = int(lengths[index])
        size = (len(piece) + 1) * length
        if piece and (size > max_tokens or filled + length < (1 - MAX_PADDING) * size):
            yield rows[piece]
            piece, filled = [], 0
        piece.append(index)
        filled += length
    if piece:
        yield rows[piece]
