"""What policy and critic are trained for: the loss of each on a micro-batch, and from which responses it learns."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, TypeAlias, assert_never

import torch
from torch import Tensor

from conclip.algo.losses import (
    cispo_loss,
    clipped_value_loss,
    gspo_loss,
    importance_weights,
    kl_k3,
    ppo_clip_loss,
)
from conclip.config.groups import AlgoConfig
from conclip.training.backend import Backend
from conclip.training.batch import ExperienceBatch
from conclip.training.models import Role

MEANS = ("policy/entropy", "policy/clip_fraction", "policy/approx_kl")
"""Statistics that are means over tokens, whatever the loss divides by."""


class Noted(NamedTuple):
    """What comes with the loss of a micro-batch."""

    sums: dict[str, Tensor]
    """Statistics: sums over its tokens, weighted like the loss."""
    logprobs: Tensor | None = None
    """[b, T]: the policy's log-probs, with which the loss was computed."""


LossOf: TypeAlias = Callable[[ExperienceBatch, Tensor], tuple[Tensor, Noted]]
"""Returns a model's loss on a micro-batch with the weights of its tokens ([b, T])."""


class Objective:
    """The losses of policy and critic, as the config has them."""

    def __init__(self, backend: Backend, algo: AlgoConfig) -> None:
        self._backend, self._algo = backend, algo

    def losses(self, train_policy: bool, kl_coef: float) -> Iterator[tuple[Role, LossOf]]:
        """Yield what computes the loss of each model that trains."""
        if train_policy:
            yield "policy", partial(self._policy_loss, kl_coef=kl_coef)
        if self._backend.models.critic is not None:
            yield "critic", self._critic_loss

    def teaching(self, role: Role, experience: ExperienceBatch, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Split `rows` ([b] long) into those from which the model learns, and those whose loss has no gradient, which need
        no backward pass: every advantage is 0, as in a group of one outcome, and nothing else is in the loss. The first
        part always has a row: an optimiser's step on gradients of 0 is another one than no step."""
        algo = self._algo
        by_advantage = algo.policy_loss in ("ppo_clip", "gspo", "cispo")  # all of the loss is a multiple of it
        if role == "critic" or not by_advantage or algo.kl == "loss" or algo.entropy_coef > 0:
            return rows, rows[:0]
        teaches = (experience.advantages * experience.tokens.loss_mask)[rows].any(-1)
        teaches[0] |= ~teaches.any()
        return rows[teaches], rows[~teaches]

    def _policy_loss(self, part: ExperienceBatch, share: Tensor, *, kl_coef: float) -> tuple[Tensor, Noted]:
        algo = self._algo
        logprobs, entropy = self._backend.logprobs(part.tokens, entropy_gradient=algo.entropy_coef > 0)
        old_logprobs = logprobs.detach() if part.old_logprobs is None else part.old_logprobs
        policy_loss, bounded = self._token_losses(part, logprobs, old_logprobs)
        loss = (policy_loss * share).sum()
        sums: dict[str, Tensor] = {}
        if algo.kl == "loss" and kl_coef > 0:
            (pull,) = torch.autograd.grad(loss, logprobs, retain_graph=True)
            kl_loss = kl_coef * (kl_k3(logprobs, part.ref_logprobs) * share).sum()
            (kl_pull,) = torch.autograd.grad(kl_loss, logprobs, retain_graph=True)
            sums |= {"policy/policy_gradient": pull.abs().sum(), "policy/kl_gradient": kl_pull.abs().sum()}
            loss = loss + kl_loss
        if algo.entropy_coef > 0:
            loss = loss - algo.entropy_coef * (entropy * share).sum()
        per_token = {
            "policy/loss": policy_loss,
            "policy/entropy": entropy,
            "policy/clip_fraction": bounded.float(),
            "policy/approx_kl": kl_k3(old_logprobs, logprobs),
        }
        sums |= {name: (value.detach() * share).sum() for name, value in per_token.items()}
        return loss, Noted(sums, logprobs.detach())

    def _token_losses(self, part: ExperienceBatch, logprobs: Tensor, old_logprobs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each token and where it was clipped, both [b, T]."""
        algo, mask = self._algo, part.tokens.loss_mask
        clip = {"clip_low": algo.clip_low, "clip_high": algo.clip_high}
        if algo.policy_loss == "ppo_clip":
            loss, bounded = ppo_clip_loss(logprobs, old_logprobs, part.advantages, **clip)
        elif algo.policy_loss == "gspo":
            loss, bounded = gspo_loss(logprobs, old_logprobs, part.advantages, mask, **clip)
        elif algo.policy_loss == "cispo":
            loss, bounded = cispo_loss(logprobs, old_logprobs, part.advantages, **clip)
        elif algo.policy_loss == "nll":
            loss, bounded = -logprobs, torch.zeros_like(mask)
        else:
            assert_never(algo.policy_loss)
        if algo.sampler_correction != "none":
            sampled = part.tokens.sampler_logprobs
            loss = loss * importance_weights(
                old_logprobs, sampled, mask, level=algo.sampler_correction, largest=algo.sampler_correction_max
            )
        return loss, bounded

    def _critic_loss(self, part: ExperienceBatch, share: Tensor) -> tuple[Tensor, Noted]:
        values = self._backend.values(part.tokens)
        assert values is not None
        loss = clipped_value_loss(values, part.old_values, part.returns, value_clip=self._algo.value_clip_eps)
        loss = (loss * share).sum()
        return loss, Noted({"value/loss": loss.detach()})
