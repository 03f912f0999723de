"""How often the 95 % intervals of accuracy hold the truth, by simulation.

    python benchmarks/coverage.py

Each simulated evaluation draws problems whose solve rates follow a Beta distribution (concentration 1: most problems are
nearly always or nearly never solved) and four samples of each. The truth is the mean of that distribution.
"""

import argparse

import numpy as np

from conclip.stats import clustered_proportion

CONCENTRATION = 1.0
SAMPLES = 4


def coverage(num_problems: int, accuracy: float, *, num_evaluations: int, seed: int) -> float:
    """Share of simulated evaluations whose interval holds `accuracy`."""
    generator = np.random.default_rng(seed)
    held = 0
    for _ in range(num_evaluations):
        rates = generator.beta(CONCENTRATION * accuracy, CONCENTRATION * (1 - accuracy), num_problems)
        _, low, high = clustered_proportion((generator.binomial(SAMPLES, rates) / SAMPLES).tolist())
        held += low <= accuracy <= high
    return held / num_evaluations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=2000)
    arguments = parser.parse_args()
    print("| problems | accuracy 0.1 | accuracy 0.5 | accuracy 0.9 |\n|---:|---:|---:|---:|")
    for num_problems in (30, 100, 1000):
        cells = [coverage(num_problems, a, num_evaluations=arguments.evaluations, seed=1) for a in (0.1, 0.5, 0.9)]
        print(f"| {num_problems} | " + " | ".join(f"{value:.3f}" for value in cells) + " |")


if __name__ == "__main__":
    main()
