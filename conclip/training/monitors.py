"""Metrics of one step, as pure functions of its rollouts and tensors."""

from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from torch import Tensor

from conclip.algo.masking import equal, masked_mean
from conclip.config.groups import Dtype
from conclip.training.batch import ExperienceBatch
from conclip.types import TRUNCATION_ADVICE, WARNING_SHARE, Outcome, RolloutGroup


def rollout_metrics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Return outcome shares, rewards and lengths of one step's rollouts. Lengths count generated token ids."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    metrics = {"rollout/num_responses": float(len(rollouts))}
    for outcome in Outcome:
        metrics[f"outcome/{outcome.value}"] = fmean(r.grade.outcome is outcome for r in rollouts)
    rewards = [r.reward for r in rollouts if r.reward is not None]
    metrics["reward/mean"] = fmean(rewards) if rewards else 0.0
    lengths = [r.completion.num_tokens for r in rollouts]
    metrics["rollout/num_tokens"] = float(sum(lengths))
    metrics["length/mean_tokens"] = fmean(lengths)
    metrics["length/max_tokens"] = float(max(lengths))
    for outcome in (Outcome.CORRECT, Outcome.WRONG):
        lengths = [r.completion.num_tokens for r in rollouts if r.grade.outcome is outcome]
        if lengths:
            metrics[f"length/{outcome.value}_mean_tokens"] = fmean(lengths)
    rates = [rate for group in groups if (rate := group.pass_rate) is not None]
    metrics["rollout/share_groups_all_correct"] = fmean(rate == 1 for rate in rates) if rates else 0.0
    metrics["rollout/share_groups_none_correct"] = fmean(rate == 0 for rate in rates) if rates else 0.0
    return metrics


def experience_metrics(experience: ExperienceBatch, *, bootstraps_truncated: bool = False) -> dict[str, float]:
    """Return metrics of a step's experience: drift between sampler and trainer, KL to the reference where there is
    one, the critic's explained variance where there is a critic (of returns at lambda 1, which contain none of its own
    values), the share of groups without a signal, and the mean advantages and end-token probabilities of correct responses
    and of others that ended (`wrong`: with an answer that is, or without any), advantages also by length.

    `bootstraps_truncated`: truncated responses are bootstrapped (algo.truncated_bootstrap=value). Their returns are unknown,
    so the critic is not measured on them."""
    tokens, old_logprobs = experience.tokens, experience.old_logprobs
    assert old_logprobs is not None
    mask = tokens.response_mask
    drift = (old_logprobs - tokens.sampler_logprobs).abs()
    metrics = {
        "policy/sampler_drift_mean": float(masked_mean(drift, mask)),
        "policy/sampler_drift_max": float(torch.where(mask, drift, 0.0).max()),
        "policy/share_zero_advantage_groups": zero_advantage_share(experience),
    }
    if bool(experience.ref_logprobs.any()):
        metrics["policy/kl_to_reference"] = float(masked_mean(old_logprobs - experience.ref_logprobs, mask))
    if experience.sampled_returns is not None:
        measured = tokens.loss_mask & ~(tokens.truncated & bootstraps_truncated).unsqueeze(-1)  # what the critic trains on
        metrics["value/explained_variance"] = explained_variance(experience.old_values, experience.sampled_returns, measured)
    positions = torch.arange(mask.shape[1])
    last = (mask * positions).argmax(-1, keepdim=True)
    end_probability = old_logprobs.gather(1, last).squeeze(1).exp()
    wrong = ~tokens.correct & ~tokens.truncated & tokens.loss_mask.any(-1)  # what could not be graded trains nothing
    for name, rows in (("correct", tokens.correct), ("wrong", wrong)):
        metrics[f"policy/advantage_{name}"] = float(
            masked_mean(experience.advantages, tokens.loss_mask & rows.unsqueeze(-1))
        )
        if bool(rows.any()):
            metrics[f"policy/end_probability_{name}"] = float(end_probability[rows].mean())
        for third, value in advantage_by_length(experience, rows).items():
            metrics[f"policy/advantage_{name}_{third}"] = value
    return metrics


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """Return 1 - Var(returns - values) / Var(returns) over the mask, in double precision; 0 when the returns do not vary."""
    inside, error = returns[mask].double(), (returns - values)[mask].double()
    if not len(inside) or bool(equal(*returns[mask].aminmax())):
        return 0.0
    return float(1 - error.var(correction=0) / inside.var(correction=0))


def zero_advantage_share(experience: ExperienceBatch) -> float:
    """Return the share of groups in which no training token has an advantage, so that they teach nothing (with GRPO: all
    correct or all wrong)."""
    tokens = experience.tokens
    largest = torch.where(tokens.loss_mask, experience.advantages.abs(), 0.0).amax(-1)
    groups = tokens.groups.unique()
    return float(torch.stack([largest[tokens.groups == group].max() < 1e-8 for group in groups]).float().mean())


def advantage_by_length(experience: ExperienceBatch, rows: Tensor) -> dict[str, float]:
    """Return the mean over the given rows ([B] bool) of each row's mean advantage, by thirds of length: short, middle, long.

    Thirds with no row are left out. A per-response mean loss weights each row by this same mean over its tokens.
    """
    tokens, per_row = experience.tokens, mean_advantages(experience)
    chosen = (rows & tokens.loss_mask.any(-1)).nonzero().squeeze(-1)
    order = chosen[torch.argsort(tokens.response_tokens[chosen], stable=True)]
    thirds = zip(("short", "middle", "long"), order.tensor_split(3), strict=True)
    return {name: float(per_row[part].mean()) for name, part in thirds if len(part)}


def mean_advantages(experience: ExperienceBatch) -> Tensor:
    """Return [B] the mean advantage of each row's training tokens, nan where none trains. With the per-response mean, it is
    minus the row's loss before the first update."""
    mask = experience.tokens.loss_mask
    return torch.where(mask, experience.advantages, 0.0).sum(-1) / mask.sum(-1)


REPORTED = (
    "outcome/correct",
    "outcome/grader_error",
    "outcome/no_answer",
    "outcome/truncated",
    "length/mean_tokens",
    "reward/mean",
    "rollout/share_groups_all_correct",
    "policy/sampler_drift_max",
    "policy/sampler_drift_mean",
    "policy/share_zero_advantage_groups",
)
"""The metrics that every step has; its report and warnings read them."""

MAX_SAMPLER_DRIFT: dict[Dtype, float] = {"float32": 1e-3, "bfloat16": 0.03}
"""The mean |engine - trainer| log-prob per token [nats] above which something is wrong; conf/trainer has the
measurements."""


def step_warnings(metrics: Mapping[str, float], *, max_drift: float, cuts_responses: bool = False) -> dict[str, str]:
    """Return the warnings that one step's metrics call for: a stable name for each, and its text. `cuts_responses`: the
    schedule truncates responses on purpose."""
    warnings: dict[str, str] = {}
    drift = metrics["policy/sampler_drift_mean"]
    if drift > max_drift:
        warnings["drift"] = (
            f"engine and trainer disagree by {drift:.2g} nats a token, above trainer.max_sampler_drift={max_drift:g}: "
            "stale weights in the engine, or too coarse an arithmetic; model.dtype=float32 or algo.sampler_correction helps"
        )
    if metrics["rollout/share_groups_all_correct"] == 1:
        warnings["solved"] = "every response of every problem is correct: choose harder problems, or stop here"
    elif metrics["policy/share_zero_advantage_groups"] == 1:
        warnings["silent"] = "no group has an advantage (each is all right or all wrong): this step taught nothing but KL"
    without = metrics["outcome/no_answer"]
    if without > WARNING_SHARE:
        warnings["no answer"] = (
            f"{without:.0%} of the responses ended without an answer that counts and earn reward.no_answer, so the phase "
            "trains the form of answers, too; where answers are compared, rollout.extraction=lenient counts other "
            "forms, and recipe=warm_up teaches the form first"
        )
    truncated = metrics["outcome/truncated"]
    if truncated > WARNING_SHARE and not cuts_responses:
        warnings["truncated"] = (
            f"{truncated:.0%} of the responses were cut at rollout.max_tokens, which penalises length: {TRUNCATION_ADVICE}; "
            "or leave them out (algo.train_on_truncated=false)"
        )
    if metrics.get("optim/skipped_updates", 0) > 0:
        warnings["skipped"] = "an update was skipped: its gradient was NaN or infinite"
    return warnings
