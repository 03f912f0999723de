"""The learner updates the models with one step's experience: losses, micro-batches and optimiser steps."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from pydantic import TypeAdapter
from torch import Tensor

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
from conclip.cluster.ranks import OnAllRanks, Ranks
from conclip.config.groups import Dtype
from conclip.config.schema import LearnConfig
from conclip.rollout.engine import Discarding, RolloutEngine, WeightsLost
from conclip.runs.checked import Count
from conclip.training.backend import Backend
from conclip.training.batch import (
    ExperienceBatch,
    TokenBatch,
    largest_micro_batch,
    micro_batches,
    row_lengths,
    select_rows,
    to_device,
)
from conclip.training.experience import Scores
from conclip.training.schedule import StepPlan, rows_per_group

_COUNT = TypeAdapter[int](Count)


class NonFiniteGradient(OnAllRanks):
    """Too many updates in a row had a gradient of NaN or infinity, of the policy or of the critic. They were skipped: both
    models are as before the first of them."""


NARROW_CLIP = 0.05
"""The clip range [distance of the ratio from 1] below which bfloat16's rounding of log-probs interferes. The log-probs of
one response in two micro-batches differ by up to 0.1 at single tokens, and by 1e-3 in the mean over the response (lab
model)."""


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def on_all_ranks(
    method: Callable[Concatenate["Learner", Arguments], Result],
) -> Callable[Concatenate["Learner", Arguments], Result]:
    """Have a method of the first rank's learner run on all ranks."""

    @wraps(method)
    def call(learner: "Learner", *arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        with learner.backend.ranks.calling(method.__name__, *arguments, **named):
            return method(learner, *arguments, **named)

    return call


class Learner:
    """The part that turns experience into updates. It is independent of engines, problems, devices and their number."""

    def __init__(self, backend: Backend, config: LearnConfig) -> None:
        self.backend = backend
        self._algo, self._optim, self._trainer = config.algo, config.optim, config.trainer
        self._dtype: Dtype = config.model.dtype
        self._skipped_in_a_row = 0
        self._scored: Tensor | None = None
        """The log-probs from `score`, until the policy changes."""

    def state(self) -> dict[str, Any]:
        """Return JSON-like values: with `saved` and `tensors`, `load` needs no more to resume exactly."""
        return {"skipped_in_a_row": self._skipped_in_a_row}

    @on_all_ranks
    def saved(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds of the policy."""
        return self.backend.models.saved()

    @on_all_ranks
    def tensors(self) -> dict[str, Tensor]:
        """Return what else a checkpoint holds, as this rank holds it: the critic and the optimisers' moments."""
        return self.backend.state()

    @on_all_ranks
    def write_tensors(self, folder: Path) -> None:
        """Write what `tensors` returns into a folder, each rank its share."""
        self.backend.ranks.write(self.backend.state(), folder)

    @on_all_ranks
    def load(self, values: Mapping[str, Any], policy: Path, tensors: Path) -> None:
        """Restore what `state` returned, the policy from a checkpoint's folder and `tensors` from another. Raises ValueError
        or KeyError for anything else."""
        self._skipped_in_a_row, self._scored = _COUNT.validate_python(values["skipped_in_a_row"]), None
        self.backend.load_state(policy, self.backend.read_state(tensors))

    def push(self, engine: RolloutEngine, version: int) -> None:
        """Make the engine sample from the policy, as version `version`."""
        lost: WeightsLost | None = None
        with self.backend.ranks.calling("join_push", engine.takes_adapters(), version):
            try:
                self.backend.models.push(engine, version)
            except WeightsLost as error:  # every rank has gathered the weights, and is done
                lost = error
        if lost is not None:
            raise lost

    def join_push(self, takes_adapters: bool, version: int) -> None:
        """Take part in a push of the first rank, which has the engine."""
        self.backend.models.push(Discarding(takes_adapters), version)

    @on_all_ranks
    def complete(self, folder: Path) -> None:
        """Make a whole model of a checkpoint's folder. The policy is that one from then on."""
        self.backend.models.complete(folder, written=self.backend.ranks.is_first)

    def export(self, folder: Path) -> None:
        """Write the policy as a whole model."""
        self.backend.models.write(folder, self.saved())
        self.complete(folder)

    @on_all_ranks
    @torch.no_grad()
    def score(self, tokens: TokenBatch, asked: TokenBatch | None = None) -> Scores:
        """Return the log-probs of policy and reference and the critic's values, before any update. `asked`: the same
        responses after the prompts that the reference is to see; None: those that the policy sees."""
        self.backend.wake()
        parts: dict[str, Tensor] = {}
        for rows, counts in self._micro_batches(tokens, torch.arange(len(tokens))):
            part = select_rows(tokens, rows)
            scored = {
                "old_logprobs": self.backend.logprobs(part)[0],
                "ref_logprobs": self.backend.ref_logprobs(part) if asked is None else None,
                "old_values": self.backend.values(part),
            }
            for name, values in scored.items():
                if values is not None:
                    full = parts.setdefault(name, torch.zeros(tokens.response_mask.shape, dtype=values.dtype))
                    full[rows, : values.shape[1]] = values.cpu() * counts
        parts = {name: self.backend.ranks.merged(full) for name, full in parts.items()}
        if asked is not None:
            parts["ref_logprobs"] = self._teacher_logprobs(tokens, asked)
        self._scored = parts["old_logprobs"]
        return Scores(
            old_logprobs=parts["old_logprobs"],
            ref_logprobs=parts.get("ref_logprobs"),
            old_values=parts.get("old_values"),
        )

    def _teacher_logprobs(self, tokens: TokenBatch, asked: TokenBatch) -> Tensor:
        """Return the reference's log-probs of the responses in `asked`, at the places that they have in `tokens`, [B, T]."""
        scored = torch.zeros(asked.response_mask.shape)
        for rows, counts in self._micro_batches(asked, torch.arange(len(asked))):
            values = self.backend.ref_logprobs(select_rows(asked, rows))
            assert values is not None
            scored[rows, : values.shape[1]] = values.cpu().to(scored.dtype) * counts
        scored = self.backend.ranks.merged(scored)
        placed = torch.zeros(tokens.response_mask.shape)
        return placed.masked_scatter(tokens.response_mask, scored[asked.response_mask])  # row by row, token by token

    def _micro_batches(self, tokens: TokenBatch, rows: Tensor) -> Iterator[tuple[Tensor, bool]]:
        """Yield this rank's micro-batches, and whether each counts (`Ranks.share`)."""
        return self.backend.ranks.share(micro_batches(tokens, rows, self._trainer.max_tokens_per_micro_batch))

    @on_all_ranks
    def update(
        self,
        experience: ExperienceBatch,
        generator: torch.Generator,
        *,
        kl_coef: float,
        train_policy: bool = True,
        plan: StepPlan | None = None,
    ) -> dict[str, float]:
        """Make one pass over the rows that train, in the optimiser batches of the plan (None: those of a full step after the
        previous one). Returns mean statistics.

        `train_policy=False` updates only the critic. An update whose gradient is not finite is skipped; raises
        NonFiniteGradient after more than `max_skipped_updates` of them in a row.
        """
        self.backend.wake()
        plan = plan or self._next_plan(experience.tokens)
        trained = experience.tokens.loss_mask.any(-1).nonzero().squeeze(-1)
        batches = plan.split(trained[torch.randperm(len(trained), generator=generator)])
        totals: dict[str, float] = {"optim/skipped_updates": 0.0}
        if train_policy:
            experience = self._with_matching_logprobs(experience, batches)
        for index, rows in enumerate(batches):
            self.backend.set_position(plan.position(index, len(batches)))
            stats, finite = self._update_once(experience, rows, kl_coef=kl_coef, train_policy=train_policy)
            totals["optim/skipped_updates"] += not finite
            for name, value in stats.items():
                totals[name] = totals.get(name, 0.0) + value / len(batches)
        self.backend.set_position(plan.end)
        self.backend.rest()
        return totals

    @on_all_ranks
    def rehearse(self, longest: int) -> None:
        """Compute the gradients of the largest micro-batch of sequences of up to `longest` tokens, and drop them. Nothing
        changes; but what does not fit on the device fails before anything is sampled."""
        num_rows, length = largest_micro_batch(longest, self._trainer.max_tokens_per_micro_batch)
        ids, zeros = torch.zeros(num_rows, length, dtype=torch.long), torch.zeros(num_rows, length - 1)
        of_rows, everywhere = torch.zeros(num_rows), torch.ones_like(zeros, dtype=torch.bool)
        tokens = TokenBatch(
            input_ids=ids,
            response_mask=everywhere,
            loss_mask=everywhere,
            sampler_logprobs=zeros,
            rewards=of_rows,
            groups=of_rows.long(),
            truncated=of_rows.bool(),
            correct=of_rows.bool(),
        )
        experience = ExperienceBatch(
            tokens=tokens, old_logprobs=zeros, ref_logprobs=zeros, old_values=zeros, advantages=zeros, returns=zeros
        )
        part = to_device(experience, self.backend.device)
        self.backend.wake()
        moments = self.backend.missing_moments()
        for backward in self._backwards(True, 0.0):
            for _ in range(2):  # the second micro-batch finds the gradients of the first
                backward(part, part.advantages)
        del moments
        self.backend.drop_gradients()
        self.backend.rest()

    def _next_plan(self, tokens: TokenBatch) -> StepPlan:
        begin, size = self.backend.update_number, self._algo.updates_per_rollout
        sizes = tokens.groups.unique(return_counts=True)[1].tolist()
        num_rows = sum(rows_per_group(self._algo, group_size) for group_size in sizes)
        return StepPlan(begin=begin, end=begin + size, num_updates=size, num_rows=num_rows)

    @torch.no_grad()
    def _with_matching_logprobs(self, experience: ExperienceBatch, batches: Sequence[Tensor]) -> ExperienceBatch:
        """Recompute `old_logprobs` on the same micro-batches that will train, where the clip range is finer than bfloat16's
        rounding (GSPO).

        In bfloat16 a log-prob depends on the padding and on the other rows. Between two passes over one micro-batch only the
        policy differs, so the ratio is exactly 1 until the policy changes. This costs one forward pass of the policy.
        Log-probs that are not those of the current policy (from `score`) stay unchanged.
        """
        algo = self._algo
        narrow = algo.policy_loss in ("ppo_clip", "gspo") and min(algo.clip_low, algo.clip_high) < NARROW_CLIP
        if not (narrow and self._dtype == "bfloat16"):
            return experience
        if self._scored is None or not torch.equal(self._scored, experience.old_logprobs):
            return experience
        scored = torch.zeros_like(experience.old_logprobs)
        for rows in batches:
            for micro, counts in self._micro_batches(experience.tokens, rows):
                part = select_rows(experience.tokens, micro)
                scored[micro, : part.response_mask.shape[1]] = self.backend.logprobs(part)[0].cpu() * counts
        trained = torch.zeros(len(experience), dtype=torch.bool)
        trained[torch.cat(list(batches))] = True
        scored = self.backend.ranks.merged(scored)
        old_logprobs = torch.where(trained.unsqueeze(-1), scored, experience.old_logprobs)
        return dataclasses.replace(experience, old_logprobs=old_logprobs)

    def _update_once(
        self, experience: ExperienceBatch, rows: Tensor, *, kl_coef: float, train_policy: bool
    ) -> tuple[dict[str, float], bool]:
        """Take one optimiser step on the given rows. Micro-batches bound the memory and do not change the result. Returns
        the statistics, and whether all gradients were finite."""
        algo, tokens = self._algo, experience.tokens
        weights = torch.zeros(tokens.loss_mask.shape)
        weights[rows] = aggregation_weights(
            tokens.loss_mask[rows], algo.loss_aggregation, constant_tokens=algo.constant_tokens
        )
        stats = {"perf/padded_tokens": 0.0}
        backwards = self._backwards(train_policy, kl_coef)
        for backward in backwards:  # one model after the other: the policy's logits never meet the critic's gradients
            for micro, counts in self._micro_batches(tokens, rows):
                part = to_device(select_rows(experience, micro), self.backend.device)
                stats["perf/padded_tokens"] += part.tokens.input_ids.numel() * counts
                share = (weights[micro, : part.advantages.shape[1]] * counts).to(self.backend.device)
                for name, value in backward(part, share).items():
                    stats[name] = stats.get(name, 0.0) + value
        stats = self.backend.ranks.totals(stats)
        num_tokens = len(backwards) * float(row_lengths(tokens)[rows].sum())
        stats["perf/padding_share"] = 1.0 - num_tokens / stats.pop("perf/padded_tokens")
        if "policy/kl_gradient" in stats:
            kl, policy = stats.pop("policy/kl_gradient"), stats.pop("policy/policy_gradient")
            stats["policy/kl_gradient_share"] = kl / (kl + policy) if kl + policy > 0 else 0.0
        norms = self.backend.step(train_policy=train_policy)
        stats |= {f"optim/{name}_grad_norm": norm for name, norm in norms.items()}
        if train_policy:
            stats["optim/lr"] = self.backend.policy_lr
            self._scored = None
        broken = [name for name, norm in norms.items() if not math.isfinite(norm)]
        self._count_skipped(broken)
        return stats, not broken

    def _count_skipped(self, broken: Sequence[str]) -> None:
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if broken else 0
        if self._skipped_in_a_row > self._optim.max_skipped_updates:
            models = " and ".join(f"the {name}'s" for name in broken)
            raise NonFiniteGradient(
                f"{self._skipped_in_a_row} updates in a row were skipped, since {models} gradient was NaN or infinite; "
                "neither policy nor critic has changed since"
            )

    def _backwards(self, train_policy: bool, kl_coef: float) -> list[Callable[[ExperienceBatch, Tensor], dict[str, float]]]:
        """Return what accumulates the gradients of each model that trains, on a micro-batch with its weights."""
        policy = [partial(self._backward_policy, kl_coef=kl_coef)] if train_policy else []
        return policy if self.backend.models.critic is None else [*policy, self._backward_critic]

    def _backward_policy(self, part: ExperienceBatch, share: Tensor, *, kl_coef: float) -> dict[str, float]:
        """Accumulate the gradients of the policy's loss on one micro-batch. Returns sums of its statistics, weighted like
        the loss."""
        algo = self._algo
        logprobs, entropy = self.backend.logprobs(part.tokens, entropy_gradient=algo.entropy_coef > 0)
        policy_loss, bounded = self._policy_loss(part, logprobs)
        loss = (policy_loss * share).sum()
        sums: dict[str, float] = {}
        if part.ref_logprobs is not None and algo.kl == "loss":
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
        """Return the loss of each token and where it was clipped, both [b, T]."""
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

    def _backward_critic(self, part: ExperienceBatch, share: Tensor) -> dict[str, float]:
        values = self.backend.values(part.tokens)
        assert values is not None
        loss = clipped_value_loss(values, part.old_values, part.returns, value_clip=self._algo.value_clip_eps)
        (loss * share).sum().backward()  # pyright: ignore[reportUnknownMemberType]
        return {"value/loss": float((loss.detach() * share).sum())}


def make_learner(model_path: Path, config: LearnConfig, *, num_updates: int, ranks: Ranks | None = None) -> Learner:
    """Load the models of a phase, and return its learner."""
    return Learner(Backend(model_path, config, num_updates=num_updates, ranks=ranks), config)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """Return 1 - Var(returns - values) / Var(returns) over the mask, in double precision; 0 when the returns do not vary."""
    inside, error = returns[mask].double(), (returns - values)[mask].double()
    if not len(inside) or bool(equal(*returns[mask].aminmax())):
        return 0.0
    return float(1 - error.var(correction=0) / inside.var(correction=0))
