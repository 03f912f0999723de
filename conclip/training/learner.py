"""The learner updates the models with one step's experience: micro-batches and optimiser steps."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from pydantic import TypeAdapter
from torch import Tensor

from conclip.algo.losses import aggregation_weights
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
from conclip.training.objective import MEANS, Objective
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


@dataclass(frozen=True, slots=True)
class Updated:
    """What comes of an update."""

    stats: dict[str, float]
    """Means over its optimiser batches."""
    old_logprobs: Tensor
    """[B, T]: the policy's log-probs before it."""


class Learner:
    """The part that turns experience into updates. It is independent of engines, problems, devices and their number."""

    def __init__(self, backend: Backend, config: LearnConfig) -> None:
        self.backend = backend
        self._algo, self._optim, self._trainer = config.algo, config.optim, config.trainer
        self._dtype: Dtype = config.model.dtype
        self._objective = Objective(backend, config.algo)
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
        responses after the prompts that the reference is to see; None: those that the policy sees. The policy's are left
        out where the update makes them on its way (`AlgoConfig.scores_policy`)."""
        self.backend.wake()
        models, everything = self.backend.models, [torch.arange(len(tokens))]
        self._scored = self._scored_by(self._logprobs, tokens, everything) if self._algo.scores_policy else None
        ref_logprobs = None
        if models.reference is not None:
            ref_logprobs = self._scored_by(self.backend.ref_logprobs, tokens if asked is None else asked, everything)
        if asked is not None and ref_logprobs is not None:  # at the places that the responses have in `tokens`
            placed = torch.zeros(tokens.response_mask.shape, dtype=ref_logprobs.dtype)
            ref_logprobs = placed.masked_scatter(tokens.response_mask, ref_logprobs[asked.response_mask])
        old_values = None if models.critic is None else self._scored_by(self.backend.values, tokens, everything)
        return Scores(old_logprobs=self._scored, ref_logprobs=ref_logprobs, old_values=old_values)

    @on_all_ranks
    @torch.no_grad()
    def logprobs(self, tokens: TokenBatch) -> Tensor:
        """Return the policy's log-probs of the sampled tokens, [B, T], 0 off the response mask."""
        self.backend.wake()
        return self._scored_by(self._logprobs, tokens, [torch.arange(len(tokens))])

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
    ) -> Updated:
        """Make one pass over the rows that train, in the optimiser batches of the plan (None: those of a full step after the
        previous one).

        `train_policy=False` updates only the critic. An update whose gradient is not finite is skipped; raises
        NonFiniteGradient after more than `max_skipped_updates` of them in a row.
        """
        self.backend.wake()
        plan = plan or self._next_plan(experience.tokens)
        trained = experience.tokens.loss_mask.any(-1).nonzero().squeeze(-1)
        batches = plan.split(trained[torch.randperm(len(trained), generator=generator)])
        totals: dict[str, float] = {"optim/skipped_updates": 0.0}
        old_logprobs = experience.old_logprobs
        if old_logprobs is None:
            old_logprobs = self._left_out(experience.tokens, batches if train_policy else ())
        elif train_policy:
            experience = self._with_matching_logprobs(experience, old_logprobs, batches)
        for index, rows in enumerate(batches):
            self.backend.set_position(plan.position(index, len(batches)))
            stats, finite, own = self._update_once(experience, rows, kl_coef=kl_coef, train_policy=train_policy)
            old_logprobs = old_logprobs if own is None else old_logprobs + own
            totals["optim/skipped_updates"] += not finite
            for name, value in stats.items():
                totals[name] = totals.get(name, 0.0) + value / len(batches)
        self.backend.set_position(plan.end)
        self.backend.rest()
        return Updated(totals, old_logprobs)

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
        for role, loss_of in self._objective.losses(True, 0.0):
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
    def _left_out(self, tokens: TokenBatch, batches: Sequence[Tensor]) -> Tensor:
        """Return the log-probs of the rows that are in no batch, [B, T]; 0 in other rows. An update that makes the old
        log-probs on its way has one batch: the policy of a second one would be another."""
        if len(batches) > 1:
            raise ValueError(f"{len(batches)} optimiser batches need the log-probs from before the first")
        left = torch.ones(len(tokens), dtype=torch.bool)
        for rows in batches:
            left[rows] = False
        if not left.any():
            return torch.zeros(tokens.response_mask.shape)
        return self._scored_by(self._logprobs, tokens, [left.nonzero().squeeze(-1)])

    @torch.no_grad()
    def _with_matching_logprobs(
        self, experience: ExperienceBatch, old_logprobs: Tensor, batches: Sequence[Tensor]
    ) -> ExperienceBatch:
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
        if self._scored is None or not torch.equal(self._scored, old_logprobs):
            return experience
        parts = [part for rows in batches for part in self._objective.teaching("policy", experience, rows)]
        scored = self._scored_by(self._logprobs, experience.tokens, parts)
        trained = torch.zeros(len(experience), dtype=torch.bool)
        trained[torch.cat(list(batches))] = True
        matching = torch.where(trained.unsqueeze(-1), scored, old_logprobs)
        return dataclasses.replace(experience, old_logprobs=matching)

    def _update_once(
        self, experience: ExperienceBatch, rows: Tensor, *, kl_coef: float, train_policy: bool
    ) -> tuple[dict[str, float], bool, Tensor | None]:
        """Take one optimiser step on the given rows. Returns the statistics, whether all gradients were finite and, if the
        experience has no old log-probs, those of the rows, [B, T]."""
        stats, own = self._add_gradients(experience, rows, kl_coef=kl_coef, train_policy=train_policy)
        stats["perf/padding_share"] = 1.0 - stats.pop("perf/tokens") / stats.pop("perf/padded_tokens")
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
        return stats, not broken, own

    def _add_gradients(
        self, experience: ExperienceBatch, rows: Tensor, *, kl_coef: float, train_policy: bool
    ) -> tuple[dict[str, float], Tensor | None]:
        """Compute the gradients of the losses on the given rows. Micro-batches bound the memory and leave the result as it
        is. Returns sums of statistics and, where the experience has no old log-probs, those of the rows, [B, T]."""
        algo, tokens, lengths = self._algo, experience.tokens, row_lengths(experience.tokens)
        weights = torch.zeros(tokens.loss_mask.shape)
        weights[rows] = aggregation_weights(
            tokens.loss_mask[rows], algo.loss_aggregation, constant_tokens=algo.constant_tokens
        )
        stats, own = dict[str, float](), torch.zeros(tokens.response_mask.shape)
        for role, loss_of in self._objective.losses(train_policy, kl_coef):  # one model after the other
            teaching, others = self._objective.teaching(role, experience, rows)
            for run, part in ((partial(self.backend.gradients, role), teaching), (self.backend.without_gradients, others)):
                shares = list(self._micro_batches(tokens, part))
                losses = (partial(loss_of, *self._part(experience, weights, *share)) for share in shares)
                for (micro, counts), noted in zip(shares, run(losses), strict=True):
                    sums = {name: float(value) for name, value in noted.sums.items()}
                    sums["perf/tokens"] = float(lengths[micro].sum() * counts)
                    sums["perf/padded_tokens"] = float(len(micro) * lengths[micro].max() * counts)
                    for name, value in sums.items():
                        stats[name] = stats.get(name, 0.0) + value
                    if experience.old_logprobs is None and noted.logprobs is not None:
                        own[micro, : noted.logprobs.shape[1]] = noted.logprobs.float().cpu() * counts
        stats = self.backend.ranks.totals(stats)
        if algo.loss_aggregation == "constant":  # whose weights do not add up to 1
            stats |= {name: stats[name] / float(weights.sum()) for name in MEANS if name in stats}
        return stats, self.backend.ranks.merged(own) if experience.old_logprobs is None else None

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


def make_learner(model_path: Path, config: LearnConfig, *, num_updates: int, ranks: Ranks | None = None) -> Learner:
    """Load the models of a phase, and return its learner."""
    return Learner(Backend(model_path, config, num_updates=num_updates, ranks=ranks), config)
