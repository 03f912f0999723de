"""Policy, reference and critic, and how one step's experience updates them.

Computation is device-agnostic: it was only ever run on CPU by the project's own tests.
"""

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import (
    Any,
    Required,  # pydantic's own dependency: it needs this one below Python 3.12
)

import torch
from pydantic import TypeAdapter
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import TypedDict

from conclip.algo.logprobs import chosen_logprobs
from conclip.algo.losses import (
    aggregation_weights,
    cispo_loss,
    clipped_value_loss,
    gspo_loss,
    importance_weights,
    kl_k3,
    ppo_clip_loss,
)
from conclip.algo.masking import equal
from conclip.config.groups import Dtype
from conclip.config.schema import LearnConfig
from conclip.models.critic import Critic
from conclip.models.load import OutputHead, autocast, checkpoint_weights, load_policy, recompute_activations
from conclip.runs.checked import Count
from conclip.training.batch import ExperienceBatch, TokenBatch, micro_batches, row_lengths, select_rows, to_device
from conclip.training.experience import Scores
from conclip.training.schedule import Scheduled, StepPlan, lr_scale, rows_per_group


class NonFiniteGradient(RuntimeError):
    """More updates in a row than allowed had a gradient of NaN or infinity, of the policy or of the critic. None of them was
    made: both are what they were before the first."""


class _Place(TypedDict):
    last_epoch: Count


class _SavedOptimizer(TypedDict):
    schedule: _Place


class _SavedLearner(TypedDict, total=False):
    skipped_in_a_row: Required[Count]
    policy: Required[_SavedOptimizer]
    critic: _SavedOptimizer


_SAVED = TypeAdapter(_SavedLearner)

NARROW_CLIP = 0.05
"""Clip [distance of the ratio from 1] below which bfloat16's rounding of log-probs acts on it. Of the same response on two
micro-batches they differ by up to 0.1 at single tokens, and by 1e-3 in the mean over a response (the lab's model)."""


class Learner:
    """Owns the trained models and their optimisers; knows nothing of engines, problems or files."""

    def __init__(self, model_path: Path, config: LearnConfig, *, num_updates: int) -> None:
        """`num_updates`: policy updates that the learning rate's schedule is spread over, `updates_per_rollout` a step."""
        self._algo, self._optim, self._trainer = config.algo, config.optim, config.trainer
        self._temperature = config.rollout.temperature
        self._dtype: Dtype = config.model.dtype
        self._trust_remote_code = config.model.trust_remote_code
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.policy: PreTrainedModel = self._load(model_path)
        wants_reference = self._algo.kl != "none" and self._algo.kl_coef > 0
        self.reference = copy.deepcopy(self.policy).requires_grad_(False) if wants_reference else None
        self.critic = Critic(self.policy) if self._algo.advantage == "gae" else None
        self._policy_optimizer = self._optimizer(self.policy, self._optim.policy_lr, num_updates)
        self._warmup = self._algo.critic_warmup_steps * self._algo.updates_per_rollout
        if self.critic is not None:
            self._critic_optimizer = self._optimizer(self.critic, self._optim.critic_lr, num_updates + self._warmup)
        self._skipped_in_a_row = 0
        self._scored: Tensor | None = None
        """What `score` said of the policy, until the policy changes."""

    def _load(self, folder: Path) -> PreTrainedModel:
        policy = load_policy(folder, self.device, trust_remote_code=self._trust_remote_code)
        if self._trainer.recompute_activations:
            recompute_activations(policy)
        return policy

    def _optimizer(self, module: torch.nn.Module, lr: float, num_updates: int) -> Scheduled:
        betas = (self._optim.beta1, self._optim.beta2)
        adamw = torch.optim.AdamW(module.parameters(), lr=lr, betas=betas, weight_decay=self._optim.weight_decay)
        schedule = partial(
            lr_scale,
            num_updates=num_updates,
            warmup_fraction=self._optim.warmup_fraction,
            min_lr_fraction=self._optim.min_lr_fraction,
        )
        return Scheduled(adamw, schedule)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The policy's weights as its checkpoints have them, for the engine."""
        yield from checkpoint_weights(self.policy)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Critic and optimiser moments, and JSON-like values: with the policy, what `load_state` goes on from exactly."""
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {"skipped_in_a_row": self._skipped_in_a_row}
        if self.critic is not None:
            tensors |= {f"critic/{key}": parameter.detach() for key, parameter in self.critic.named_parameters()}
        for name, optimizer, _ in self._trained():
            for index, moments in optimizer.optimizer.state_dict()["state"].items():
                tensors |= {f"{name}.optimizer/{index}/{key}": tensor for key, tensor in moments.items()}
            values[name] = {"schedule": {"last_epoch": optimizer.last_epoch}}
        return tensors, values

    def load_state(self, policy: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Become what `state` described, with the policy of a model folder. The optimisers' settings stay the
        config's. Raises ValueError when it is the state of another model or optimiser."""
        saved = _SAVED.validate_python(values)
        self._skipped_in_a_row, self._scored = saved["skipped_in_a_row"], None
        _copy(dict(self._load(policy).named_parameters()), self.policy)
        if self.critic is not None:
            _copy(tensors, self.critic, prefix="critic/")
        for name, optimizer, _ in self._trained():
            optimizer.load_moments(tensors, prefix=f"{name}.optimizer/")
            optimizer.place(saved[name]["schedule"]["last_epoch"])

    def _trained(self) -> list[tuple[str, Scheduled, torch.nn.Module]]:
        """Name, optimiser and module of each model that trains."""
        policy = ("policy", self._policy_optimizer, self.policy)
        return [policy, ("critic", self._critic_optimizer, self.critic)] if self.critic is not None else [policy]

    @torch.no_grad()
    def score(self, tokens: TokenBatch) -> Scores:
        """Log-probs of policy and reference, and the critic's values, before any update."""
        zeros = torch.zeros(tokens.response_mask.shape, dtype=self.policy.dtype)
        old_logprobs = zeros.clone()
        ref_logprobs = zeros.clone() if self.reference is not None else None
        old_values = zeros.clone() if self.critic is not None else None
        for rows in micro_batches(tokens, torch.arange(len(tokens)), self._trainer.max_tokens_per_micro_batch):
            part = select_rows(tokens, rows)
            width = part.response_mask.shape[1]
            old_logprobs[rows, :width] = self._logprobs(self.policy, part)[0].cpu()
            if self.reference is not None and ref_logprobs is not None:
                ref_logprobs[rows, :width] = self._logprobs(self.reference, part)[0].cpu()
            if self.critic is not None and old_values is not None:
                old_values[rows, :width] = self._values(self.critic, part).cpu()
        self._scored = old_logprobs
        return Scores(old_logprobs=old_logprobs, ref_logprobs=ref_logprobs, old_values=old_values)

    def update(
        self,
        experience: ExperienceBatch,
        generator: torch.Generator,
        *,
        kl_coef: float,
        train_policy: bool = True,
        plan: StepPlan | None = None,
    ) -> dict[str, float]:
        """One pass over the rows that train, in the optimiser batches of the plan (None: of a full step that follows the one
        before). Returns mean statistics.

        `train_policy=False` updates the critic alone. An update whose gradient is not finite is skipped; raises
        NonFiniteGradient after more than `max_skipped_updates` of them in a row.
        """
        plan = plan or self._next_plan(experience.tokens)
        trained = experience.tokens.loss_mask.any(-1).nonzero().squeeze(-1)
        batches = plan.split(trained[torch.randperm(len(trained), generator=generator)])
        totals: dict[str, float] = {"optim/skipped_updates": 0.0}
        if train_policy:
            experience = self._with_matching_logprobs(experience, batches)
        for index, rows in enumerate(batches):
            self._place(plan.place(index, len(batches)))
            stats, finite = self._update_once(experience, rows, kl_coef=kl_coef, train_policy=train_policy)
            totals["optim/skipped_updates"] += not finite
            for name, value in stats.items():
                totals[name] = totals.get(name, 0.0) + value / len(batches)
        self._place(plan.end)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # the engine wakes up next
        return totals

    def _next_plan(self, tokens: TokenBatch) -> StepPlan:
        begin, size = self._trained()[-1][1].last_epoch, self._algo.updates_per_rollout
        sizes = tokens.groups.unique(return_counts=True)[1].tolist()
        num_rows = sum(rows_per_group(self._algo, group_size) for group_size in sizes)
        return StepPlan(begin=begin, end=begin + size, num_updates=size, num_rows=num_rows)

    def _place(self, update: int) -> None:
        """Take the learning rates of a place in the phase [updates, the critic's warm-up included]."""
        self._policy_optimizer.place(max(0, update - self._warmup))
        if self.critic is not None:
            self._critic_optimizer.place(update)

    @torch.no_grad()
    def _with_matching_logprobs(self, experience: ExperienceBatch, batches: Sequence[Tensor]) -> ExperienceBatch:
        """`old_logprobs` on the very micro-batches that will train, where the clip is finer than bfloat16's rounding (GSPO).

        In bfloat16 a log-prob depends on the padding and on the rows beside it. Between two passes over one micro-batch the
        policy alone differs, so the ratio is exactly 1 until it moves. Costs one forward pass of the policy. Log-probs that
        are not those of the policy as it is (`score`) are left as they are.
        """
        algo = self._algo
        narrow = algo.policy_loss in ("ppo_clip", "gspo") and min(algo.clip_low, algo.clip_high) < NARROW_CLIP
        if not (narrow and self._dtype == "bfloat16"):
            return experience
        if self._scored is None or not torch.equal(self._scored, experience.old_logprobs):
            return experience
        old_logprobs = experience.old_logprobs.clone()
        for rows in batches:
            for micro in micro_batches(experience.tokens, rows, self._trainer.max_tokens_per_micro_batch):
                part = select_rows(experience.tokens, micro)
                old_logprobs[micro, : part.response_mask.shape[1]] = self._logprobs(self.policy, part)[0].cpu()
        return dataclasses.replace(experience, old_logprobs=old_logprobs)

    def _update_once(
        self, experience: ExperienceBatch, rows: Tensor, *, kl_coef: float, train_policy: bool
    ) -> tuple[dict[str, float], bool]:
        """One optimiser step on the given rows; micro-batches only bound the memory, never the result."""
        algo, tokens = self._algo, experience.tokens
        weights = torch.zeros(tokens.loss_mask.shape)
        weights[rows] = aggregation_weights(
            tokens.loss_mask[rows], algo.loss_aggregation, constant_tokens=algo.constant_tokens
        )
        stats: dict[str, float] = {}
        padded = 0
        for micro in micro_batches(tokens, rows, self._trainer.max_tokens_per_micro_batch):
            part = to_device(select_rows(experience, micro), self.device)
            padded += part.tokens.input_ids.numel()
            share = weights[micro, : part.advantages.shape[1]].to(self.device)
            sums = self._backward_policy(part, share, kl_coef) if train_policy else {}
            if self.critic is not None:
                sums |= self._backward_critic(self.critic, part, share)
            for name, value in sums.items():
                stats[name] = stats.get(name, 0.0) + value
        stats["perf/padding_share"] = 1.0 - float(row_lengths(tokens)[rows].sum()) / padded
        if "policy/kl_gradient" in stats:
            kl, policy = stats.pop("policy/kl_gradient"), stats.pop("policy/policy_gradient")
            stats["policy/kl_gradient_share"] = kl / (kl + policy) if kl + policy > 0 else 0.0
        trained = [item for item in self._trained() if train_policy or item[0] != "policy"]
        norms = {name: self._clip(module) for name, _, module in trained}
        stats |= {f"optim/{name}_grad_norm": norm for name, norm in norms.items()}
        if train_policy:
            stats["optim/lr"] = self._policy_optimizer.get_last_lr()[0]
            self._scored = None
        broken = [name for name, norm in norms.items() if not math.isfinite(norm)]
        for _, scheduled, _ in trained:
            if not broken:
                scheduled.optimizer.step()
            scheduled.optimizer.zero_grad(set_to_none=True)
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if broken else 0
        if self._skipped_in_a_row > self._optim.max_skipped_updates:
            whose = " and ".join(f"the {name}'s" for name in broken)
            raise NonFiniteGradient(
                f"{self._skipped_in_a_row} updates in a row were skipped, since {whose} gradient was NaN or infinite; "
                "neither policy nor critic has changed since"
            )
        return stats, not broken

    def _backward_policy(self, part: ExperienceBatch, share: Tensor, kl_coef: float) -> dict[str, float]:
        """Gradients of the policy's loss on one micro-batch; sums of its statistics, weighted like the loss."""
        algo = self._algo
        logprobs, entropy = self._logprobs(self.policy, part.tokens, entropy_gradient=algo.entropy_coef > 0)
        policy_loss, bounded = self._policy_loss(part, logprobs)
        loss = (policy_loss * share).sum()
        sums: dict[str, float] = {}
        if self.reference is not None and algo.kl == "loss":
            (pull,) = torch.autograd.grad(loss, logprobs, retain_graph=True)
            kl_loss = kl_coef * (kl_k3(logprobs, part.ref_logprobs) * share).sum()
            (kl_pull,) = torch.autograd.grad(kl_loss, logprobs, retain_graph=True)
            sums |= {"policy/policy_gradient": float(pull.abs().sum()), "policy/kl_gradient": float(kl_pull.abs().sum())}
            loss = loss + kl_loss
        if algo.entropy_coef > 0:
            loss = loss - algo.entropy_coef * (entropy * share).sum()
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        per_token = {
            "policy/loss": policy_loss,
            "policy/entropy": entropy,
            "policy/clip_fraction": bounded.float(),
            "policy/approx_kl": kl_k3(part.old_logprobs, logprobs),
        }
        return sums | {name: float((value.detach() * share).sum()) for name, value in per_token.items()}

    def _policy_loss(self, part: ExperienceBatch, logprobs: Tensor) -> tuple[Tensor, Tensor]:
        """[b, T] loss of each token, and where the clip acted."""
        algo, mask = self._algo, part.tokens.loss_mask
        clip = {"clip_low": algo.clip_low, "clip_high": algo.clip_high}
        if algo.policy_loss == "ppo_clip":
            loss, bounded = ppo_clip_loss(logprobs, part.old_logprobs, part.advantages, **clip)
        elif algo.policy_loss == "gspo":
            loss, bounded = gspo_loss(logprobs, part.old_logprobs, part.advantages, mask, **clip)
        elif algo.policy_loss == "cispo":
            loss, bounded = cispo_loss(logprobs, part.old_logprobs, part.advantages, **clip)
        else:
            loss, bounded = -logprobs, torch.zeros_like(mask)
        if algo.sampler_correction != "none":
            sampled = part.tokens.sampler_logprobs
            loss = loss * importance_weights(
                part.old_logprobs, sampled, mask, level=algo.sampler_correction, largest=algo.sampler_correction_max
            )
        return loss, bounded

    def _backward_critic(self, critic: Critic, part: ExperienceBatch, share: Tensor) -> dict[str, float]:
        values = self._values(critic, part.tokens)
        loss = clipped_value_loss(values, part.old_values, part.returns, value_clip=self._algo.value_clip_eps)
        (loss * share).sum().backward()  # pyright: ignore[reportUnknownMemberType]
        return {"value/loss": float((loss.detach() * share).sum())}

    def _clip(self, module: torch.nn.Module) -> float:
        """Scale the gradient down to `max_grad_norm`. Returns its norm before."""
        return float(torch.nn.utils.clip_grad_norm_(module.parameters(), self._optim.max_grad_norm))

    def _logprobs(
        self, model: PreTrainedModel, part: TokenBatch, *, entropy_gradient: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Log-probs of the sampled tokens and entropies, [b, T], 0 off the response mask."""
        input_ids = part.input_ids.to(self.device)
        mask = part.response_mask.to(self.device)
        with autocast(self._dtype, self.device):
            hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1]
            head = OutputHead(model)
            chosen, entropy = chosen_logprobs(
                hidden[mask],
                head,
                part.targets.to(self.device)[mask],
                self._temperature,
                entropy_gradient=entropy_gradient,
            )
        zeros = torch.zeros(mask.shape, device=self.device, dtype=chosen.dtype)
        return zeros.masked_scatter(mask, chosen), zeros.masked_scatter(mask, entropy)

    def _values(self, critic: Critic, part: TokenBatch) -> Tensor:
        with autocast(self._dtype, self.device):
            values = critic(part.input_ids.to(self.device))[:, :-1]
        return torch.where(part.response_mask.to(self.device), values, torch.zeros_like(values))


@torch.no_grad()
def _copy(saved: Mapping[str, Tensor], module: torch.nn.Module, *, prefix: str = "") -> None:
    """Give the module the saved parameters. Raises ValueError when one is missing, or of another shape."""
    for key, parameter in module.named_parameters():
        found = saved.get(f"{prefix}{key}")
        if found is None or found.shape != parameter.shape:
            raise ValueError(f"{prefix}{key} is missing, or of another shape")
        parameter.copy_(found)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the mask, in double precision; 0 when the returns do not vary."""
    inside, error = returns[mask].double(), (returns - values)[mask].double()
    if not len(inside) or bool(equal(*returns[mask].aminmax())):
        return 0.0
    return float(1 - error.var(correction=0) / inside.var(correction=0))
