"""The learner updates the models with one step's experience: losses, micro-batches and optimiser steps."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from conclip.training.backend import Backend, Loss
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
from conclip.training.models import Role
from conclip.training.schedule import StepPlan, rows_per_group

LossOf = Callable[[ExperienceBatch, Tensor], Loss]
"""Returns a model's loss on a micro-batch with the weights of its tokens, and statistics."""

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
        models, everything = self.backend.models, [torch.arange(len(tokens))]
        self._scored = self._scored_by(self._logprobs, tokens, everything)
        ref_logprobs = None
        if models.reference is not None:
            ref_logprobs = self._scored_by(self.backend.ref_logprobs, tokens if asked is None else asked, everything)
        if asked is not None and ref_logprobs is not None:  # at the places that the responses have in `tokens`
            placed = torch.zeros(tokens.response_mask.shape, dtype=ref_logprobs.dtype)
            ref_logprobs = placed.masked_scatter(tokens.response_mask, ref_logprobs[asked.response_mask])
        old_values = None if models.critic is None else self._scored_by(self.backend.values, tokens, everything)
        return Scores(old_logprobs=self._scored, ref_logprobs=ref_logprobs, old_values=old_values)

    def _logprobs(self, tokens: TokenBatch) -> Tensor:
        return self.backend.logprobs(tokens)[0]

    def _scored_by(
        self, score: Callable[[TokenBatch], Tensor | None], tokens: TokenBatch, batches: Iterable[Tensor]
    ) -> Tensor:
        """Return a model's values of the rows in `batches`, micro-batch by micro-batch, [B, T]; 0 in other rows."""
        shares = [share for rows in batches for share in self._micro_batches(tokens, rows)]
        tasks = (partial(torch.no_grad()(score), select_rows(tokens, rows)) for rows, _ in shares)
        full: Tensor | None = None
        for (rows, counts), values in zip(shares, self.backend.side_by_side.run(tasks), strict=True):
            assert values is not None
            full = torch.zeros(tokens.response_mask.shape, dtype=values.dtype) if full is None else full
            full[rows, : values.shape[1]] = values.cpu() * counts
        assert full is not None
        return self.backend.ranks.merged(full)

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
        for role, loss_of in self._losses(True, 0.0):
            for _ in self.backend.gradients(role, 2 * [partial(loss_of, part, part.advantages)]):
                pass  # the second micro-batch finds the gradients of the first
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
        scored = self._scored_by(self._logprobs, experience.tokens, batches)
        trained = torch.zeros(len(experience), dtype=torch.bool)
        trained[torch.cat(list(batches))] = True
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
        shares, lengths = list(self._micro_batches(tokens, rows)), row_lengths(tokens)
        stats = {"perf/padded_tokens": float(sum(len(m) * int(lengths[m].max()) * counts for m, counts in shares))}
        for role, loss_of in self._losses(train_policy, kl_coef):  # the policy's logits never meet the critic's gradients
            losses = (partial(loss_of, *self._part(experience, weights, *share)) for share in shares)
            for of_part in self.backend.gradients(role, losses):
                for name, value in of_part.items():
                    stats[name] = stats.get(name, 0.0) + value
        stats = self.backend.ranks.totals(stats)
        stats["perf/padding_share"] = 1.0 - float(lengths[rows].sum()) / stats.pop("perf/padded_tokens")
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

    def _part(
        self, experience: ExperienceBatch, weights: Tensor, micro: Tensor, counts: bool
    ) -> tuple[ExperienceBatch, Tensor]:
        """Return a micro-batch and the weights of its tokens, on the device."""
        part = to_device(select_rows(experience, micro), self.backend.device)
        return part, (weights[micro, : part.advantages.shape[1]] * counts).to(self.backend.device)

    def _losses(self, train_policy: bool, kl_coef: float) -> Iterator[tuple[Role, LossOf]]:
        """Yield what computes the loss of each model that trains, on a micro-batch with its weights."""
        if train_policy:
            yield "policy", partial(self._policy_loss, kl_coef=kl_coef)
        if self.backend.models.critic is not None:
            yield "critic", self._critic_loss

    def _policy_loss(self, part: ExperienceBatch, share: Tensor, *, kl_coef: float) -> Loss:
        """Return the policy's loss on one micro-batch, and sums of its statistics, weighted like the loss."""
        algo = self._algo
        logprobs, entropy = self.backend.logprobs(part.tokens, entropy_gradient=algo.entropy_coef > 0)
        policy_loss, bounded = self._token_losses(part, logprobs)
        loss = (policy_loss * share).sum()
        sums: dict[str, Tensor] = {}
        if part.ref_logprobs is not None and algo.kl == "loss":
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
            "policy/approx_kl": kl_k3(part.old_logprobs, logprobs),
        }
        return loss, sums | {name: (value.detach() * share).sum() for name, value in per_token.items()}

    def _token_losses(self, part: ExperienceBatch, logprobs: Tensor) -> tuple[Tensor, Tensor]:
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

    def _critic_loss(self, part: ExperienceBatch, share: Tensor) -> Loss:
        """Return the critic's loss on one micro-batch, and the same as a statistic."""
        values = self.backend.values(part.tokens)
        assert values is not None
        loss = clipped_value_loss(values, part.old_values, part.returns, value_clip=self._algo.value_clip_eps)
        loss = (loss * share).sum()
        return loss, {"value/loss": loss.detach()}


def make_learner(model_path: Path, config: LearnConfig, *, num_updates: int, ranks: Ranks | None = None) -> Learner:
    """Load the models of a phase, and return its learner."""
    return Learner(Backend(model_path, config, num_updates=num_updates, ranks=ranks), config)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """Return 1 - Var(returns - values) / Var(returns) over the mask, in double precision; 0 when the returns do not vary."""
    inside, error = returns[mask].double(), (returns - values)[mask].double()
    if not len(inside) or bool(equal(*returns[mask].aminmax())):
        return 0.0
    return float(1 - error.var(correction=0) / inside.var(correction=0))
