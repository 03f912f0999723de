"""The table of docs/theory.md: exact pressure on length of an enumerable policy, by lambda, aggregation, whitening and KL.

    make theory

Responses of 1 to 30 tokens, stop probability 0.12 at each decision, rewards 1 and -0.5. Numbers are d E[length] / d step
size in tokens per unit; only their signs and ratios within a column mean something.
"""

from dataclasses import replace

import torch

from conclip.algo.stop_policy import StopPolicy, Surrogate, length_pressure

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
