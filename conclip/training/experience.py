"""Conversion of scored tokens to the inputs of an update: token rewards, advantages and returns."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from conclip.algo.advantages import (
    distillation,
    gae,
    group_relative,
    leave_one_out,
    length_adaptive_lambda,
    monte_carlo,
    shortest_correct,
)
from conclip.algo.losses import kl_k1
from conclip.algo.masking import masked_whiten
from conclip.config.groups import AlgoConfig
from conclip.training.batch import ExperienceBatch, TokenBatch, trains
from conclip.types import Outcome, RolloutGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """The models' outputs for a batch before the update; all [B, T], 0 off the response mask."""

    old_logprobs: Tensor | None
    """None where only the update needs them, which then has them on its way."""
    ref_logprobs: Tensor | None
    """None when no KL term needs a reference."""
    old_values: Tensor | None
    """None without a critic."""


def outcome_rewards(tokens: TokenBatch) -> Tensor:
    """Return each row's reward on its last sampled token, [B, T]."""
    last = tokens.response_mask & (tokens.response_mask.flip(-1).cumsum(-1).flip(-1) == 1)
    return last * tokens.rewards.unsqueeze(-1)


def kl_rewards(tokens: TokenBatch, scores: Scores, algo: AlgoConfig, kl_coef: float) -> Tensor:
    """Return -kl_coef * k1 for each sampled token (KL in the reward), [B, T]; zeros where the reward has no KL term."""
    if algo.kl != "reward" or scores.ref_logprobs is None:
        return torch.zeros_like(tokens.sampler_logprobs)
    assert scores.old_logprobs is not None
    return -kl_coef * kl_k1(scores.old_logprobs, scores.ref_logprobs) * tokens.response_mask


def make_experience(tokens: TokenBatch, scores: Scores, algo: AlgoConfig, *, kl_coef: float) -> ExperienceBatch:
    """Return the advantages and returns of the config's estimator. Whitening is over all tokens of the step that train."""
    zeros = torch.zeros_like(tokens.sampler_logprobs)
    token_rewards = outcome_rewards(tokens) + kl_rewards(tokens, scores, algo, kl_coef)
    bootstrap = _bootstrap(tokens, scores, algo)
    returns, sampled_returns = zeros, None
    if algo.advantage == "gae":
        assert scores.old_values is not None
        policy_lambda = _policy_lambda(tokens, algo)
        estimate = [token_rewards, scores.old_values, tokens.response_mask]
        advantages, returns = gae(*estimate, gamma=algo.gamma, gae_lambda=policy_lambda, bootstrap=bootstrap)
        if algo.critic_gae_lambda is not None:
            _, returns = gae(*estimate, gamma=algo.gamma, gae_lambda=algo.critic_gae_lambda, bootstrap=bootstrap)
        no_bootstrap = torch.zeros_like(bootstrap)
        sampled_returns = monte_carlo(token_rewards, tokens.response_mask, gamma=algo.gamma, bootstrap=no_bootstrap)
    elif algo.advantage == "distillation":
        assert scores.old_logprobs is not None and scores.ref_logprobs is not None
        advantages = distillation(scores.old_logprobs, scores.ref_logprobs, tokens.response_mask)
    elif algo.advantage == "monte_carlo":
        advantages = monte_carlo(token_rewards, tokens.response_mask, gamma=algo.gamma, bootstrap=bootstrap)
    else:
        per_row = _row_advantages(tokens, algo).unsqueeze(-1)
        advantages = torch.where(tokens.response_mask, per_row, zeros)
        if algo.advantage == "shortest_correct":
            tokens = dataclasses.replace(tokens, loss_mask=tokens.loss_mask & (per_row > 0))
    if algo.whiten_advantages:
        advantages = masked_whiten(advantages, tokens.loss_mask)
    return ExperienceBatch(
        tokens=tokens,
        old_logprobs=scores.old_logprobs,
        ref_logprobs=scores.ref_logprobs if scores.ref_logprobs is not None else zeros,
        old_values=scores.old_values if scores.old_values is not None else zeros,
        advantages=advantages,
        returns=returns,
        sampled_returns=sampled_returns,
    )


def kl_reward_share(tokens: TokenBatch, scores: Scores, algo: AlgoConfig, kl_coef: float) -> float:
    """Return the share of the advantages that comes from the KL in the reward: sum |A_kl| / (sum |A_kl| + sum |A - A_kl|)
    over the tokens that train. Advantages are linear in the rewards, so the two parts add up. 0 where the reward has no KL
    term."""
    if algo.kl != "reward" or algo.advantage not in ("gae", "monte_carlo"):
        return 0.0
    zeros = torch.zeros_like(tokens.sampler_logprobs)
    gae_lambda = _policy_lambda(tokens, algo) if algo.advantage == "gae" else 1.0

    def size(rewards: Tensor, values: Tensor, bootstrap: Tensor) -> float:
        part, _ = gae(rewards, values, tokens.response_mask, gamma=algo.gamma, gae_lambda=gae_lambda, bootstrap=bootstrap)
        return float(part[tokens.loss_mask].abs().sum())

    priced = size(kl_rewards(tokens, scores, algo, kl_coef), zeros, zeros[:, 0])
    values = scores.old_values if scores.old_values is not None else zeros
    rest = size(outcome_rewards(tokens), values, _bootstrap(tokens, scores, algo))
    return priced / (priced + rest) if priced + rest > 0 else 0.0


def _policy_lambda(tokens: TokenBatch, algo: AlgoConfig) -> float | Tensor:
    if algo.length_adaptive_alpha is None:
        return algo.gae_lambda
    return length_adaptive_lambda(tokens.response_mask, algo.length_adaptive_alpha)


def _bootstrap(tokens: TokenBatch, scores: Scores, algo: AlgoConfig) -> Tensor:
    """Return the bootstrap value after each row's last decision, [B]: the critic's for truncated rows where
    `algo.truncated_bootstrap` is `value`, else 0."""
    zeros = torch.zeros(len(tokens))
    if algo.truncated_bootstrap == "zero" or scores.old_values is None:
        return zeros
    positions = torch.arange(tokens.response_mask.shape[1])
    last = (tokens.response_mask * positions).argmax(-1, keepdim=True)
    return torch.where(tokens.truncated, scores.old_values.gather(1, last).squeeze(1), zeros)


def _row_advantages(tokens: TokenBatch, algo: AlgoConfig) -> Tensor:
    """Return one advantage for each response, [B]; rows that do not train get 0 and do not count in the others'."""
    per_row = torch.zeros(len(tokens))
    rows = tokens.loss_mask.any(-1)
    rewards, groups = tokens.rewards[rows], tokens.groups[rows]
    if algo.advantage == "group_relative":
        per_row[rows] = group_relative(rewards, groups, scale=algo.advantage_scale)
    elif algo.advantage == "leave_one_out":
        per_row[rows] = leave_one_out(rewards, groups)
    else:
        assert algo.advantage == "shortest_correct", algo.advantage
        per_row[rows] = shortest_correct(tokens.correct[rows], tokens.response_tokens[rows], groups)
    return per_row


def has_signal(group: RolloutGroup, *, train_on_truncated: bool) -> bool:
    """Return whether a group gives a training signal: the responses that train include correct and wrong ones, as graded
    whatever their rewards, and some reward differs from the others.

    A length term alone is no signal: in a group of wrong responses it would favour the shorter ones.
    """
    rollouts = [rollout for rollout in group.rollouts if trains(rollout, train_on_truncated=train_on_truncated)]
    if len({rollout.grade.outcome is Outcome.CORRECT for rollout in rollouts}) < 2:
        return False
    rewards = torch.tensor([rollout.reward for rollout in rollouts])
    return bool(leave_one_out(rewards, torch.zeros(len(rewards), dtype=torch.long)).any())
