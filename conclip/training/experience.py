"""From scored tokens to what an update needs: token rewards, advantages, returns."""

from dataclasses import dataclass

import torch
from torch import Tensor

from conclip.algo.advantages import gae, group_relative
from conclip.algo.losses import kl_k1
from conclip.algo.masking import masked_whiten
from conclip.batch import ExperienceBatch, TokenBatch
from conclip.config import AlgoConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What the models say of a batch before the update; all [B, T], 0 off the response mask."""

    old_logprobs: Tensor
    ref_logprobs: Tensor | None
    """None when no KL term needs a reference."""
    old_values: Tensor | None
    """None without a critic."""


def token_rewards(tokens: TokenBatch, scores: Scores, algo: AlgoConfig) -> Tensor:
    """[B, T]: the outcome's reward on the last sampled token, and -kl_coef * k1 on each (KL in the reward)."""
    last = tokens.response_mask & (tokens.response_mask.flip(-1).cumsum(-1).flip(-1) == 1)
    rewards = last * tokens.rewards.unsqueeze(-1)
    if algo.kl == "reward" and scores.ref_logprobs is not None:
        rewards = rewards - algo.kl_coef * kl_k1(scores.old_logprobs, scores.ref_logprobs) * tokens.response_mask
    return rewards


def make_experience(tokens: TokenBatch, scores: Scores, algo: AlgoConfig) -> ExperienceBatch:
    """Advantages and returns as the config says. Whitening is over all tokens of the step that train."""
    zeros = torch.zeros_like(scores.old_logprobs)
    if algo.advantage == "gae":
        assert scores.old_values is not None
        bootstrap = torch.zeros(len(tokens))
        if algo.truncated_bootstrap == "value":
            positions = torch.arange(tokens.response_mask.shape[1])
            last = (tokens.response_mask * positions).argmax(-1, keepdim=True)
            bootstrap = torch.where(tokens.truncated, scores.old_values.gather(1, last).squeeze(1), bootstrap)
        advantages, returns = gae(
            token_rewards(tokens, scores, algo),
            scores.old_values,
            tokens.response_mask,
            gamma=algo.gamma,
            gae_lambda=algo.gae_lambda,
            bootstrap=bootstrap,
        )
    else:
        judged = tokens.loss_mask.any(-1)
        per_row = torch.zeros(len(tokens))
        per_row[judged] = group_relative(tokens.rewards[judged], tokens.groups[judged], scale=algo.scale_by_group_std)
        advantages, returns = torch.where(tokens.response_mask, per_row.unsqueeze(-1), zeros), zeros
    if algo.whiten_advantages:
        advantages = masked_whiten(advantages, tokens.loss_mask)
    return ExperienceBatch(
        tokens=tokens,
        old_logprobs=scores.old_logprobs,
        ref_logprobs=scores.ref_logprobs if scores.ref_logprobs is not None else zeros,
        old_values=scores.old_values if scores.old_values is not None else zeros,
        advantages=advantages,
        returns=returns,
    )
