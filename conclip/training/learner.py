"""Policy, reference and critic, and how one step's experience updates them.

Computation is device-agnostic: it was only ever run on CPU by the project's own tests.
"""

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from conclip.algo.logprobs import chosen_logprobs
from conclip.algo.losses import aggregation_weights, clipped_value_loss, kl_k3, ppo_clip_loss
from conclip.algo.masking import masked_mean
from conclip.batch import ExperienceBatch, TokenBatch, micro_batches, select_rows
from conclip.config import Dtype, LearnConfig
from conclip.models.critic import Critic
from conclip.models.load import autocast, load_policy
from conclip.training.experience import Scores


def lr_scale(update: int, num_updates: int, *, warmup_fraction: float, min_lr_fraction: float) -> float:
    """Linear warm-up, then a cosine from 1 down to `min_lr_fraction`; `update` counts from 0."""
    warmup = math.ceil(num_updates * warmup_fraction)
    if update < warmup:
        return (update + 1) / warmup
    progress = (update - warmup) / max(1, num_updates - warmup)
    return min_lr_fraction + (1 - min_lr_fraction) * 0.5 * (1 + math.cos(math.pi * progress))


class Learner:
    """Owns the trained models and their optimisers; knows nothing of engines, problems or files."""

    def __init__(self, model_path: Path, config: LearnConfig, *, num_updates: int) -> None:
        self._algo, self._optim, self._trainer = config.algo, config.optim, config.trainer
        self._temperature = config.rollout.temperature
        self._dtype: Dtype = config.model.dtype
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.policy: PreTrainedModel = load_policy(model_path, self.device)
        wants_reference = self._algo.kl != "none" and self._algo.kl_coef > 0
        self.reference = copy.deepcopy(self.policy).requires_grad_(False) if wants_reference else None
        self.critic = Critic(self.policy) if self._algo.advantage == "gae" else None
        self._optimizers = [self._adamw(self.policy, self._optim.policy_lr)]
        if self.critic is not None:
            self._optimizers.append(self._adamw(self.critic, self._optim.critic_lr))
        self._base_lrs = [optimizer.param_groups[0]["lr"] for optimizer in self._optimizers]
        self._num_updates = num_updates
        self._update = 0

    def _adamw(self, module: torch.nn.Module, lr: float) -> torch.optim.AdamW:
        betas = (self._optim.beta1, self._optim.beta2)
        return torch.optim.AdamW(module.parameters(), lr=lr, betas=betas, weight_decay=self._optim.weight_decay)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The policy's weights under their HF names, for the engine."""
        for name, tensor in self.policy.state_dict().items():
            yield name, tensor.detach()

    @torch.no_grad()
    def score(self, tokens: TokenBatch) -> Scores:
        """Log-probs of policy and reference, and the critic's values, before any update."""
        shape = tokens.response_mask.shape
        old_logprobs = torch.zeros(shape)
        ref_logprobs = torch.zeros(shape) if self.reference is not None else None
        old_values = torch.zeros(shape) if self.critic is not None else None
        for rows in micro_batches(tokens, torch.arange(len(tokens)), self._trainer.max_tokens_per_micro_batch):
            part = select_rows(tokens, rows)
            width = part.response_mask.shape[1]
            old_logprobs[rows, :width] = self._logprobs(self.policy, part)[0].cpu()
            if self.reference is not None and ref_logprobs is not None:
                ref_logprobs[rows, :width] = self._logprobs(self.reference, part)[0].cpu()
            if old_values is not None:
                old_values[rows, :width] = self._values(part).cpu()
        return Scores(old_logprobs=old_logprobs, ref_logprobs=ref_logprobs, old_values=old_values)

    def update(self, experience: ExperienceBatch, generator: torch.Generator) -> dict[str, float]:
        """One pass over the rows that train, in `updates_per_rollout` optimiser batches. Returns mean statistics."""
        tokens = experience.tokens
        trained = tokens.loss_mask.any(-1).nonzero().squeeze(-1)
        order = trained[torch.randperm(len(trained), generator=generator)]
        totals: dict[str, float] = {}
        num_updates = min(self._algo.updates_per_rollout, len(order))
        for rows in order.tensor_split(num_updates) if num_updates else ():
            for name, value in self._update_once(experience, rows).items():
                totals[name] = totals.get(name, 0.0) + value / num_updates
        return totals

    def _update_once(self, experience: ExperienceBatch, rows: Tensor) -> dict[str, float]:
        """One optimiser step on the given rows; micro-batches only bound the memory, never the result."""
        algo = self._algo
        tokens = experience.tokens
        weights = torch.zeros(tokens.loss_mask.shape)
        weights[rows] = aggregation_weights(
            tokens.loss_mask[rows], algo.loss_aggregation, constant_tokens=algo.constant_tokens
        )
        stats: dict[str, float] = {}

        def add(name: str, per_token: Tensor, token_weights: Tensor) -> None:
            stats[name] = stats.get(name, 0.0) + float((per_token.detach() * token_weights).sum())

        for micro in micro_batches(tokens, rows, self._trainer.max_tokens_per_micro_batch):
            part = select_rows(experience, micro)
            mask = part.tokens.loss_mask.to(self.device)
            share = weights[micro, : mask.shape[1]].to(self.device)
            old_logprobs = part.old_logprobs.to(self.device)
            advantages = part.advantages.to(self.device)
            logprobs, entropy = self._logprobs(self.policy, part.tokens)
            policy_loss, clipped = ppo_clip_loss(
                logprobs, old_logprobs, advantages, clip_low=algo.clip_low, clip_high=algo.clip_high
            )
            loss = (policy_loss * share).sum()
            if self.reference is not None and algo.kl == "loss":
                loss = loss + algo.kl_coef * (kl_k3(logprobs, part.ref_logprobs.to(self.device)) * share).sum()
            loss.backward()  # pyright: ignore[reportUnknownMemberType]
            add("policy/loss", policy_loss, share)
            add("policy/entropy", entropy, share)
            add("policy/clip_fraction", clipped.float(), share)
            add("policy/approx_kl", kl_k3(old_logprobs, logprobs), share)
            if self.critic is not None:
                values = self._values(part.tokens)
                value_loss = clipped_value_loss(
                    values,
                    part.old_values.to(self.device),
                    part.returns.to(self.device),
                    value_clip=algo.value_clip_eps,
                )
                (value_loss * share).sum().backward()  # pyright: ignore[reportUnknownMemberType]
                add("value/loss", value_loss, share)
        stats["optim/policy_grad_norm"] = self._step(0, self.policy)
        if self.critic is not None:
            stats["optim/critic_grad_norm"] = self._step(1, self.critic)
        stats["optim/lr"] = self._optimizers[0].param_groups[0]["lr"]
        self._update += 1
        return stats

    def _step(self, index: int, module: torch.nn.Module) -> float:
        optimizer = self._optimizers[index]
        scale = lr_scale(
            self._update,
            self._num_updates,
            warmup_fraction=self._optim.warmup_fraction,
            min_lr_fraction=self._optim.min_lr_fraction,
        )
        optimizer.param_groups[0]["lr"] = self._base_lrs[index] * scale
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), self._optim.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def _logprobs(self, model: PreTrainedModel, part: TokenBatch) -> tuple[Tensor, Tensor]:
        """Log-probs of the sampled tokens and entropies, [b, T], 0 off the response mask."""
        input_ids = part.input_ids.to(self.device)
        mask = part.response_mask.to(self.device)
        with autocast(self._dtype, self.device):
            hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1]
            head = cast(torch.nn.Module, model.get_output_embeddings())
            chosen, entropy = chosen_logprobs(hidden[mask], head, part.targets.to(self.device)[mask], self._temperature)
        zeros = torch.zeros(mask.shape, device=self.device)
        return zeros.masked_scatter(mask, chosen), zeros.masked_scatter(mask, entropy)

    def _values(self, part: TokenBatch) -> Tensor:
        assert self.critic is not None
        with autocast(self._dtype, self.device):
            values = self.critic(part.input_ids.to(self.device))[:, :-1]
        return torch.where(part.response_mask.to(self.device), values, torch.zeros_like(values))


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the mask; 0 when the returns do not vary."""
    mean = masked_mean(returns, mask)
    total = masked_mean((returns - mean) ** 2, mask)
    error = returns - values
    rest = masked_mean((error - masked_mean(error, mask)) ** 2, mask)
    return float(1 - rest / total) if float(total) > 1e-12 else 0.0
