"""The table of docs/theory.md: exact pressure on length of an enumerable policy, by lambda, aggregation, whitening and KL.

    make theory

At each of N decisions the policy stops with probability sigmoid(logit) or writes one more token; at the last it must stop.
A response of T tokens is correct with probability `p_correct[T - 1]`. One number, a shift of all stop logits, is trained.
`length_pressure` gives the change of the expected length per unit of a small gradient step on the advantages
of the project's `gae`, with the weights of each aggregation and whitening as they are in the limit of an infinite batch: no
sampling, no noise.

The table has responses of 1 to 30 tokens, stop probability 0.12 at each decision, rewards 1 and -0.5. Its numbers are d
E[length] / d step size in tokens per unit; only their signs and ratios within a column mean something.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from conclip.algo.advantages import gae
from conclip.algo.losses import LossAggregation


@dataclass(frozen=True, slots=True, kw_only=True)
class StopPolicy:
    """The policy and its world. N = len(p_correct) is the longest response."""

    logit: float
    """Stop logit at every decision but the last, where stopping is certain."""
    p_correct: Tensor
    """[N] probability of being correct for a response of 1, 2, ... N tokens."""
    reward_correct: float = 1.0
    reward_wrong: float = -0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Surrogate:
    """What is asked of the update. Defaults are the paper's."""

    gae_lambda: float = 0.95
    aggregation: LossAggregation = "sequence_mean"
    whiten: bool = False
    kl_coef: float = 0.0
    """k1 against a policy whose stop logit is `ref_logit`, in the reward."""
    ref_logit: float = 0.0
    value: Literal["exact"] | float = "exact"
    """The critic: the true expected reward of each state, or one number for all of them."""


def length_pressure(policy: StopPolicy, surrogate: Surrogate) -> float:
    """d E[length] / d step size of gradient descent on the surrogate loss at ratio 1; below 0: responses get shorter.

    The loss is -sum over responses and tokens of probability * weight * advantage * log pi, its denominators those of
    `aggregation_weights` in a batch that holds every response as often as its probability says (`constant`: N tokens).
    """
    size = len(policy.p_correct)
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    stop = torch.full((size,), policy.logit, dtype=torch.float64) + shift
    log_stop = torch.nn.functional.logsigmoid(stop)
    log_go = torch.nn.functional.logsigmoid(-stop)
    last = torch.arange(size) == size - 1
    log_stop, log_go = torch.where(last, 0.0, log_stop), torch.where(last, 0.0, log_go)

    # Row T - 1 and row N + T - 1: the correct and the wrong response of T tokens. Column t: its decision t.
    mask = torch.ones(size, size).tril().bool().repeat(2, 1)
    ends = torch.eye(size).bool().repeat(2, 1)
    logprobs = torch.where(ends, log_stop, log_go) * mask
    p_correct = policy.p_correct.double()
    p_outcome = torch.cat([p_correct, 1.0 - p_correct])
    probability = logprobs.sum(-1).exp() * p_outcome
    lengths = mask.sum(-1).double()
    expected_length = (probability * lengths).sum()

    rewards = torch.full((2 * size,), policy.reward_wrong, dtype=torch.float64)
    rewards[:size] = policy.reward_correct
    weight = probability.detach()
    token_rewards = ends * rewards.unsqueeze(-1)
    if surrogate.kl_coef > 0:
        token_rewards = token_rewards - surrogate.kl_coef * (logprobs.detach() - _reference(surrogate, mask, ends))
    values = _values(surrogate, weight, token_rewards, mask)
    bootstrap = torch.zeros(2 * size, dtype=torch.float64)
    advantages, _ = gae(token_rewards, values, mask, gamma=1.0, gae_lambda=surrogate.gae_lambda, bootstrap=bootstrap)
    if surrogate.whiten:
        share = weight.unsqueeze(-1) * mask / (weight * lengths).sum()
        mean = (share * advantages).sum()
        advantages = (advantages - mean) / (share * (advantages - mean) ** 2).sum().sqrt().clamp(min=1e-12) * mask
    token_weight = {
        "sequence_mean": 1.0 / lengths,
        "token_mean": torch.ones_like(lengths) / (weight * lengths).sum(),
        "constant": torch.ones_like(lengths) / size,
    }[surrogate.aggregation]
    loss = -((weight * token_weight).unsqueeze(-1) * advantages * logprobs).sum()
    (descent,) = torch.autograd.grad(loss, shift, retain_graph=True)
    (lengthening,) = torch.autograd.grad(expected_length, shift)
    return float(-descent * lengthening)


def _reference(surrogate: Surrogate, mask: Tensor, ends: Tensor) -> Tensor:
    """[2N, N] log-probs of the reference policy."""
    logit = torch.tensor(surrogate.ref_logit, dtype=torch.float64)
    stop, go = torch.nn.functional.logsigmoid(logit), torch.nn.functional.logsigmoid(-logit)
    free = torch.arange(mask.shape[1]) < mask.shape[1] - 1
    return torch.where(ends, stop, go) * (mask & free)


def _values(surrogate: Surrogate, weight: Tensor, token_rewards: Tensor, mask: Tensor) -> Tensor:
    """[2N, N] value of each state: the mean reward to go of all responses that come through it, or a constant."""
    if surrogate.value != "exact":
        return torch.full(mask.shape, surrogate.value, dtype=torch.float64) * mask
    to_go = token_rewards.flip(-1).cumsum(-1).flip(-1)
    through = weight.unsqueeze(-1) * mask
    return (through * to_go).sum(0) / through.sum(0).clamp(min=1e-300) * mask


FLAT = StopPolicy(logit=-2.0, p_correct=torch.full((30,), 0.5))
FALLING = StopPolicy(logit=-2.0, p_correct=0.9 - 0.02 * torch.arange(30))

CASES = {
    "critic exact": (FLAT, {}),
    "critic 0.5 too low": (FLAT, {"value": -0.25}),
    "critic 0.5 too high": (FLAT, {"value": 0.75}),
    "shorter is right more often, critic exact": (FALLING, {}),
}

ROWS = {
    f"lambda {gae_lambda}, {aggregation}": Surrogate(gae_lambda=gae_lambda, aggregation=aggregation)
    for gae_lambda in (0.9, 0.95, 0.99, 1.0)
    for aggregation in ("sequence_mean", "token_mean", "constant")
} | {
    "lambda 0.95, sequence_mean, whitened": Surrogate(whiten=True),
    "lambda 1.0, sequence_mean, whitened": Surrogate(gae_lambda=1.0, whiten=True),
    "lambda 0.95, sequence_mean, KL 0.01 to a policy that stops half as often": Surrogate(kl_coef=0.01, ref_logit=-2.8),
    "lambda 0.95, sequence_mean, KL 0.01 to a policy that stops twice as often": Surrogate(kl_coef=0.01, ref_logit=-1.2),
}


def main() -> None:
    print("| | " + " | ".join(CASES) + " |")
    print("|---|" + "---:|" * len(CASES))
    for name, surrogate in ROWS.items():
        cells = [length_pressure(policy, replace(surrogate, **changes)) for policy, changes in CASES.values()]
        print(f"| {name} | " + " | ".join(f"{value:+.4f}" if abs(value) > 1e-9 else "0" for value in cells) + " |")


if __name__ == "__main__":
    main()
