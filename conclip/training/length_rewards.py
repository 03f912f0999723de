"""Rewards that penalise length: the alternatives to the paper's method, each a pure function of one group of responses.

By default a run uses none of them. A shaper takes a `GradedGroup` and returns one reward for each of its responses. It
starts from the outcome's reward in the table (`conf/reward/`) and leaves it unchanged where its formula does not apply.
Lengths count generated tokens. Constants that papers give per token are given here per `scale_tokens` tokens, so that they
have the same effect on responses of 100 tokens as on those of 10,000.

Every formula is tested with hand-computed numbers. "Published" names the setting of the paper or of its code.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import Literal, TypeAlias

from scipy.special import expit

from conclip.config.groups import LengthConfig
from conclip.types import RolloutGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class GradedGroup:
    """The judged responses of one problem in one step, all sequences of the same length (>= 1).

    Example: ``GradedGroup(rewards=(1.0, -0.5), correct=(True, False), truncated=(False, False), num_tokens=(40, 90))``.
    """

    rewards: tuple[float, ...]
    """Each response's reward for its outcome."""
    correct: tuple[bool, ...]
    truncated: tuple[bool, ...]
    num_tokens: tuple[int, ...]
    monitored: "Monitored" = field(default_factory=dict["Band", Sequence[int]])
    """Lengths of the responses in the last validation; only LASER-D reads them."""

    @property
    def correct_tokens(self) -> list[int]:
        return [length for length, good in zip(self.num_tokens, self.correct, strict=True) if good]

    @property
    def pass_rate(self) -> float:
        return fmean(self.correct)


Band = Literal["low", "medium", "high"]
"""Of pass rates: up to 1/3, up to 2/3, above."""

Monitored: TypeAlias = Mapping[Band, Sequence[int]]
"""Lengths of the responses to the validation problems of each band, right or not."""

Shaper = Callable[[GradedGroup], list[float]]


def monitored_lengths(groups: Iterable[RolloutGroup]) -> dict[Band, list[int]]:
    """Return what LASER-D monitors of the groups of a validation. Problems of which nothing was judged are left out."""
    found: dict[Band, list[int]] = {"low": [], "medium": [], "high": []}
    for group in groups:
        if (rate := group.pass_rate) is not None:
            band: Band = "low" if rate <= 1 / 3 else "medium" if rate <= 2 / 3 else "high"
            found[band] += [rollout.completion.num_tokens for rollout in group.rollouts]
    return found


def kimi(group: GradedGroup, *, weight: float) -> list[float]:
    """Return reward + weight * lambda_i if correct, reward + weight * min(0, lambda_i) if not, with
    lambda_i = 0.5 - (L_i - L_min) / (L_max - L_min) over the group; 0 where all lengths are equal.

    Kimi k1.5 (Kimi Team 2025, section 2.3.3). The weight is not published; 0.4 in LASER's re-implementation.
    """
    shortest, longest = min(group.num_tokens), max(group.num_tokens)
    spread = longest - shortest

    def term(length: int, good: bool) -> float:
        share = 0.5 - (length - shortest) / spread if spread else 0.0
        return share if good else min(0.0, share)

    return _add(group, [weight * term(n, good) for n, good in zip(group.num_tokens, group.correct, strict=True)])


def arora(group: GradedGroup, *, alpha: float) -> list[float]:
    """Return reward * (1 - alpha * sigmoid((L_i - mean) / (std + 1e-7))) if correct, with mean and std over the group's
    correct responses.

    Arora & Zanette 2025, eq. 3 and 4 (published: alpha 0.1, rewards 1 and 0: `reward=binary`).
    """
    lengths = group.correct_tokens
    if not lengths:
        return list(group.rewards)
    mean, deviation = fmean(lengths), pstdev(lengths)

    def factor(length: int) -> float:
        return 1.0 - alpha * float(expit((length - mean) / (deviation + 1e-7)))  # one correct response: no deviation

    return _scale(group, [factor(length) for length in group.num_tokens])


def l1_exact(group: GradedGroup, *, alpha: float, target_tokens: float, scale_tokens: float) -> list[float]:
    """Return reward - alpha * |target - L_i| / scale.

    L1-Exact (Aggarwal & Welleck 2025, eq. 1; published: 0.0003 per token at 4,096 tokens, so alpha 1.23). The paper draws
    the target per problem and writes it into the prompt ("Think for n tokens."); here it is one number.
    """
    return _add(group, [-alpha * abs(target_tokens - length) / scale_tokens for length in group.num_tokens])


def l1_max(group: GradedGroup, *, alpha: float, target_tokens: float, scale_tokens: float) -> list[float]:
    """Return reward * clip(alpha * (target - L_i) / scale + 0.5, 0, 1) if correct.

    L1-Max (Aggarwal & Welleck 2025, eq. 2; published: 0.0003 per token at 4,096 tokens and delta 0.5). Prompt as in
    `l1_exact` ("Think for maximum n tokens.").
    """
    return _scale(
        group, [min(1.0, max(0.0, alpha * (target_tokens - length) / scale_tokens + 0.5)) for length in group.num_tokens]
    )


def shorter_better(group: GradedGroup, *, beta: float, scale_tokens: float) -> list[float]:
    """Return 2 * reward if correct, else reward, minus beta * |L_i - L_sol| / scale. L_sol is the group's shortest correct
    length, or its mean length when none is correct.

    ShorterBetter (Yi & Wang 2025, eq. 3 and 4; published: weight 2 for a correct answer, beta 0.001 per token at 6,000
    tokens, so beta 6; rewards 1 and 0).
    """
    lengths = group.correct_tokens
    best = min(lengths) if lengths else fmean(group.num_tokens)
    return [
        (2.0 * reward if good else reward) - beta * abs(length - best) / scale_tokens
        for reward, good, length in zip(group.rewards, group.correct, group.num_tokens, strict=True)
    ]


def laser(group: GradedGroup, *, alpha: float, target_tokens: float) -> list[float]:
    """Return reward + alpha if correct and no longer than the target.

    LASER (Liu et al. 2025, eq. 5; published: alpha 0.5, targets 2,048 to 8,192 tokens, wrong -0.5).
    """
    return _add(
        group, [alpha * (good and n <= target_tokens) for n, good in zip(group.num_tokens, group.correct, strict=True)]
    )


def laser_d(group: GradedGroup, *, alpha: float) -> list[float]:
    """Return `laser` with a target per difficulty: the shortest length that would still keep one correct response.

    A group is of the band `high` from a pass rate of 2/3 on, `medium` from 1/3 on, else `low`; a group of n in it has at
    least m = floor(2n/3), floor(n/3) or 1 correct ones. Its target is the smallest length L with floor(coverage(L) * m) at
    least 1, where coverage is the share within L of the lengths that were monitored in the band (LASER-D, Liu et al. 2025,
    section 4.2, and its code, where the ends of the bands differ between groups and monitor; published: alpha 0.5, monitored
    every 20 steps). A band in which nothing was monitored has no target: all correct ones are within it.
    """
    size, rate = len(group.rewards), group.pass_rate
    band: Band = "high" if rate >= 2 / 3 else "medium" if rate >= 1 / 3 else "low"
    least = {"high": 2 * size // 3, "medium": size // 3, "low": 1}[band]
    ordered = sorted(group.monitored.get(band, ()))
    needed = math.ceil(len(ordered) / max(1, least))
    return laser(group, alpha=alpha, target_tokens=ordered[needed - 1] if ordered else math.inf)


def l_grpo(group: GradedGroup, *, weight: float, scale_tokens: float) -> list[float]:
    """Return reward + weight * (1 - L_i / scale) if *every* response of the group is correct, else the reward alone.

    The gate is ConciseR's L-GRPO (Song & Zheng 2025, section 3.3); we did not find its exact length term, so this one is
    ours.
    """
    if not all(group.correct):
        return list(group.rewards)
    return _add(group, [weight * (1.0 - length / scale_tokens) for length in group.num_tokens])


def gr3(group: GradedGroup, *, alpha: float) -> list[float]:
    """Return reward / (1 + alpha * L_i / mean length of the group) if the reward is above 0, else the reward.

    GR3 (2026, arXiv 2603.10535; published: alpha 0.33, rewards 1 and 0: `reward=binary`).
    """
    mean = fmean(group.num_tokens)
    return [
        reward / (1.0 + alpha * length / mean) if reward > 0 else reward
        for reward, length in zip(group.rewards, group.num_tokens, strict=True)
    ]


def alp(group: GradedGroup, *, beta: float, scale_tokens: float) -> list[float]:
    """Return reward - beta * L_i / scale * max(pass rate, 1 / K), where K is the group's size.

    ALP (2025, arXiv 2506.05256; published: 1e-7 per token before the group's normalisation).
    """
    share = max(group.pass_rate, 1.0 / len(group.rewards))
    return _add(group, [-beta * share * length / scale_tokens for length in group.num_tokens])


def dapo_overlong(group: GradedGroup, *, weight: float, scale_tokens: float) -> list[float]:
    """Return reward + weight * max(-1, min(0, (limit - cache - L_i) / cache)): a ramp over the last fifth of the limit.

    DAPO's soft overlong punishment (Yu et al. 2025, eq. 13; published: limit 20,480 with a cache of 4,096, weight 1);
    limit = scale_tokens, cache = limit / 5. Overlong *filtering* is `algo.train_on_truncated=false`.
    """
    cache = scale_tokens / 5
    ramp = [min(0.0, max(-1.0, (scale_tokens - cache - length) / cache)) for length in group.num_tokens]
    return _add(group, [weight * value for value in ramp])


def cosine(group: GradedGroup, *, strength: float, scale_tokens: float) -> list[float]:
    """Return a reward that ignores the table: with c = (1 + cos(pi * L_i / scale)) / 2, 1 + strength * c if correct,
    -10 * strength * c if wrong, -10 * strength if truncated or longer than the scale.

    Yeo et al. 2025, section 4.1 (published, at strength 1: correct 2 -> 1, wrong -10 -> 0, exceeding -10).
    """

    def value(length: int, good: bool, cut: bool) -> float:
        if cut or length > scale_tokens:
            return -10.0 * strength
        share = (1.0 + math.cos(math.pi * length / scale_tokens)) / 2.0
        return 1.0 + strength * share if good else -10.0 * strength * share

    return [value(n, good, cut) for n, good, cut in zip(group.num_tokens, group.correct, group.truncated, strict=True)]


def make_shaper(config: LengthConfig) -> Shaper | None:
    """Return the shaper that a config selects; None where rewards stay those of the table."""
    strength, scale, target = config.strength, config.scale_tokens, config.target_tokens
    shapers: dict[str, Shaper] = {
        "kimi": lambda group: kimi(group, weight=strength),
        "arora": lambda group: arora(group, alpha=strength),
        "l1_exact": lambda group: l1_exact(group, alpha=strength, target_tokens=target, scale_tokens=scale),
        "l1_max": lambda group: l1_max(group, alpha=strength, target_tokens=target, scale_tokens=scale),
        "shorter_better": lambda group: shorter_better(group, beta=strength, scale_tokens=scale),
        "laser": lambda group: laser(group, alpha=strength, target_tokens=target),
        "laser_d": lambda group: laser_d(group, alpha=strength),
        "l_grpo": lambda group: l_grpo(group, weight=strength, scale_tokens=scale),
        "gr3": lambda group: gr3(group, alpha=strength),
        "alp": lambda group: alp(group, beta=strength, scale_tokens=scale),
        "dapo_overlong": lambda group: dapo_overlong(group, weight=strength, scale_tokens=scale),
        "cosine": lambda group: cosine(group, strength=strength, scale_tokens=scale),
    }
    return None if config.kind == "none" else shapers[config.kind]


def _add(group: GradedGroup, terms: Sequence[float]) -> list[float]:
    return [reward + term for reward, term in zip(group.rewards, terms, strict=True)]


def _scale(group: GradedGroup, factors: Sequence[float]) -> list[float]:
    """Return each correct response's reward times its factor, and the others' rewards unchanged."""
    return [
        reward * factor if good else reward
        for reward, factor, good in zip(group.rewards, factors, group.correct, strict=True)
    ]
