"""How often the intervals hold the truth, how often "accuracy kept" is said in error, and what it could have shown at most.

    python benchmarks/coverage.py                       # the table of docs/evaluation.md; about seven minutes of a core
    python benchmarks/coverage.py --problems 100 --samples 4 --accuracies 0.5 --evaluations 2000

Each simulated evaluation draws problems with a solve rate each, and responses of two models to each. Six families of solve
rates were used to choose the interval (`TUNED`), two others are reported (`REPORTED`). The second model's accuracy is the
first's, or lower by exactly the margin in one of five ways (`lower`), of which the last loses the fewest problems that make
up that drop.

Thresholds, written before the final run: "kept" in at most 2.5 % of the evaluations with a true drop of the margin, coverage
of at least 94 %, each with three Monte-Carlo errors of grace; power at no change at most ten points below the oracle. The
oracle is Student's t with the critical value that is right in a cell: right for the worst of its five ways to lose (they
share one no-change distribution), or, "blind" to the others, for one of them.
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from conclip.stats import ALPHA, chance_not_positive, drop_p_values

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

MARGIN = 0.03
CHUNK = 1000
LOST = ("many", "half", "churn", "few", "easiest")


def beta(accuracy: float, shape: tuple[int, int], rng: np.random.Generator, concentration: float) -> Array:
    return rng.beta(concentration * accuracy, concentration * (1 - accuracy), shape)


def mixture(accuracy: float, shape: tuple[int, int], rng: np.random.Generator, middling: float) -> Array:
    """Some problems at any rate, the others always or never solved."""
    share = min(middling, 2 * accuracy, 2 * (1 - accuracy))
    always = (accuracy - share / 2) / (1 - share)
    return np.where(rng.random(shape) < share, rng.random(shape), rng.random(shape) < always)


def logistic(accuracy: float, shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Normal difficulties of standard deviation 2 on the logit scale."""
    points, weights = np.polynomial.hermite_e.hermegauss(80)

    def excess(centre: float) -> float:
        return float(special.expit(centre + 2 * points) @ weights / weights.sum()) - accuracy

    return special.expit(optimize.root_scalar(excess, bracket=(-20, 20)).root + 2 * rng.standard_normal(shape))


def power(accuracy: float, shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """A power of an even number."""
    return rng.random(shape) ** ((1 - accuracy) / accuracy)


def levels(accuracy: float, shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Five levels of difficulty."""
    rates = np.array([0.0, 0.15, 0.5, 0.85, 1.0])

    def shares(tilt: float) -> Array:
        return special.softmax(tilt * rates)

    found = optimize.root_scalar(lambda tilt: float(shares(tilt) @ rates) - accuracy, bracket=(-60, 60))
    return rng.choice(rates, size=shape, p=shares(found.root))


def rare(accuracy: float, shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Just as many problems as make up the margin are always solved, the others all at one lower rate."""
    return np.where(rng.random(shape) < MARGIN, 1.0, (accuracy - MARGIN) / (1 - MARGIN))


Family = Callable[[float, tuple[int, int], np.random.Generator], Array]
TUNED: dict[str, Family] = {
    "beta 0.5": lambda a, shape, rng: beta(a, shape, rng, 0.5),
    "beta 2": lambda a, shape, rng: beta(a, shape, rng, 2),
    "beta 8": lambda a, shape, rng: beta(a, shape, rng, 8),
    "mixture 0.1": lambda a, shape, rng: mixture(a, shape, rng, 0.1),
    "levels": levels,
    "rare": rare,
}
REPORTED: dict[str, Family] = {"logistic": logistic, "power": power}


def lower(rates: Array, accuracy: float, way: str, rng: np.random.Generator) -> Array:
    """Rates of a second model whose accuracy is lower by the margin."""
    draw = rng.random(rates.shape)
    if way == "many":  # each problem loses the same share of its rate
        return rates * (1 - MARGIN / accuracy)
    if way == "half":  # some lose half of it
        return np.where(draw < 2 * MARGIN / accuracy, rates / 2, rates)
    if way == "few":  # some are lost altogether
        return np.where(draw < MARGIN / accuracy, 0, rates)
    if way == "churn":  # some are lost, and fewer won
        won, gone = draw > 1 - 0.02 / (1 - accuracy), draw < (MARGIN + 0.02) / accuracy
        return np.where(gone, 0, np.where(won, 1, rates))
    # The easiest are lost, as few as make up the drop: the fewest problems for that drop.
    falling = np.sort(rates.ravel())[::-1]
    sums = np.cumsum(falling) / falling.size
    threshold = falling[np.searchsorted(sums, MARGIN)]
    above, tied = rates > threshold, rates == threshold
    rest = (MARGIN - (rates * above).mean()) / (rates * tied).mean()
    return np.where(above | (tied & (draw < rest)), 0, rates)


def tables(cells: Counts, width: int) -> Array:
    """[R, n] indices below `width` -> [R, width] counts."""
    flat = (cells + width * np.arange(len(cells))[:, None]).ravel()
    return np.bincount(flat, minlength=width * len(cells)).reshape(len(cells), width).astype(np.float64)


def t_statistics(values: Array, counts: Array, mean: float) -> Array:
    """Of the null hypothesis `mean`; infinite without spread."""
    number = counts.sum(axis=1)
    centre = counts @ values / number
    variance = counts @ values**2 / number - centre**2
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (centre - mean) / np.sqrt(np.maximum(variance, 0) / (number - 1))
    return np.where(variance < 1e-12, np.where(centre > mean, math.inf, -math.inf), t)


def shown(values: Array, counts: Array, mean: float) -> NDArray[np.bool_]:
    """Whether the lower bound of the difference lies above `mean`. It never does where t is below 1.2, and always where t is
    above 5 and too many problems were seen for a loss of `mean` to hide."""
    t, hidden = t_statistics(values, counts, mean), (1 + min(mean, 0)) ** counts[0].sum()
    found, clear = t > 1.2, (t > 5) & (hidden < 1e-3)
    for begin in range(0, len(counts), CHUNK):
        rows = begin + np.flatnonzero((found & ~clear)[begin : begin + CHUNK])
        if len(rows):
            found[rows] = drop_p_values(values, counts[rows], mean) < ALPHA
    return found


def outside(residuals: Array, worst: Array) -> NDArray[np.bool_]:
    """Whether the lower bound of `clustered_ratio` lies above the ratio at which these are the residuals [R, J], `worst` the
    one of the added problem."""
    t = residuals.mean(axis=1) / (residuals.std(axis=1) / math.sqrt(residuals.shape[1]) + 1e-12)
    found = t > 1.2
    rows = np.flatnonzero(found)
    for part in np.array_split(rows, max(1, len(rows) * residuals.shape[1] // 30_000)):
        if len(part):
            values = np.column_stack([residuals[part], worst[part]])
            found[part] = chance_not_positive(values, np.ones_like(values)) < ALPHA
    return found


def share_outside(counts: Array, values: Array, accuracy: float) -> NDArray[np.bool_]:
    """The same of a share, from tables."""
    one = np.ones((len(counts), 1))
    weights = np.hstack([counts, one])
    found = t_statistics(values, counts, accuracy) > 1.2
    if found.any():
        residuals = np.broadcast_to(np.append(values, 0.0) - accuracy, weights.shape)
        found[found] = chance_not_positive(residuals[found], weights[found]) < ALPHA
    return found


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What was found for one number of problems and samples, family and accuracy."""

    family: str
    num_problems: int
    num_samples: int
    accuracy: float
    kept: dict[str, float]
    """Share of evaluations that say "kept" or "rose": by way of losing the margin, and "none" without a change."""
    rose: float
    """Share that say "rose" without a change."""
    covered: dict[str, float]
    """Of the paired difference."""
    accuracy_covered: float
    oracle: dict[str, float]
    """Its power at no change, calibrated in each way to lose."""


def simulate(name: str, num_problems: int, num_samples: int, accuracy: float, *, num_evaluations: int, seed: int) -> Cell:
    """One cell. Deterministic."""
    rng = np.random.default_rng([seed, num_problems, num_samples, round(1000 * accuracy), *map(ord, name)])
    family, k = (TUNED | REPORTED)[name], num_samples
    rights: list[Array] = []
    changes: dict[str, list[Array]] = {way: [] for way in ("none", *LOST)}
    for begin in range(0, num_evaluations, CHUNK):
        rates = family(accuracy, (min(CHUNK, num_evaluations - begin), num_problems), rng)
        before, same = rng.binomial(k, rates), rng.binomial(k, rates)
        rights.append(tables(before, k + 1))
        for way, found in changes.items():
            after = same
            if way != "none":
                lowered = lower(rates, accuracy, way, rng)
                moved = lowered != rates  # most ways leave most problems alone: their responses are drawn once
                after = same.copy()
                after[moved] = rng.binomial(k, lowered[moved])
            found.append(tables(after - before + k, 2 * k + 1))
    values, share = np.arange(-k, k + 1) / k, np.arange(k + 1) / k
    kept, covered, t = {}, {}, {}
    rose = 0.0
    for way, parts in changes.items():
        counts = np.concatenate(parts)
        t[way] = t_statistics(values, counts, -MARGIN)
        above = shown(values, counts, -MARGIN)
        kept[way] = float(above.mean())
        truth = 0.0 if way == "none" else -MARGIN
        over = shown(values, counts, 0.0) if way == "none" else above
        rose = float(over.mean()) if way == "none" else rose
        covered[way] = 1 - float((over | shown(-values, counts, -truth)).mean())
    counts = np.concatenate(rights)
    missed = share_outside(counts, share, accuracy) | share_outside(counts, 1 - share, 1 - accuracy)
    oracle = {way: float((t["none"] > np.quantile(t[way], 1 - ALPHA, method="higher")).mean()) for way in LOST}
    return Cell(
        family=name,
        num_problems=num_problems,
        num_samples=k,
        accuracy=accuracy,
        kept=kept,
        rose=rose,
        covered=covered,
        accuracy_covered=1 - float(missed.mean()),
        oracle=oracle,
    )


LENGTHS = {
    "even": (0.5, 0.4, 0.2, math.inf),
    "long-tailed": (1.0, 0.6, 0.5, math.inf),
    "truncated": (1.0, 0.6, 0.5, 2.0),
}
"""Standard deviations of log length: between problems, between responses, of the change; and the cap, in medians."""


def ratio_coverage(kind: str, num_problems: int, num_samples: int, *, num_evaluations: int, seed: int) -> float:
    """How often the interval of the ratio of tokens holds the truth where the second model halves the first's lengths."""
    between, within, change, cap = LENGTHS[kind]
    rng = np.random.default_rng([seed, num_problems, num_samples, *map(ord, kind)])

    def draw(rows: int, number: int, samples: int) -> tuple[Array, Array]:
        levels = between * rng.standard_normal((rows, number))
        factor = math.log(0.5) + change * rng.standard_normal((rows, number))
        sides = [np.zeros((rows, number)), np.zeros((rows, number))]
        for _ in range(samples):
            for side, level in enumerate((levels, levels + factor)):
                noise = within * rng.standard_normal((rows, number))
                sides[side] += np.minimum(np.exp(level + noise), cap) / samples
        return sides[0], sides[1]

    before, after = draw(1000, 4000, 1)
    truth = after.mean() / before.mean()
    missed = 0
    for begin in range(0, num_evaluations, CHUNK):
        before, after = draw(min(CHUNK, num_evaluations - begin), num_problems, num_samples)
        size = before.mean(axis=1)
        ratio = after.mean(axis=1) / size
        residuals, seen = after - truth * before, after - ratio[:, None] * before
        low = outside(residuals, -np.maximum(ratio * size, 1.5 * (-seen).max(axis=1)))
        high = outside(-residuals, -np.maximum(ratio * size, 1.5 * seen.max(axis=1)))
        missed += int((low | high).sum())
    return 1 - missed / num_evaluations


def not_monotone(num_samples: int, *, num_tables: int, seed: int) -> int:
    """How many of random tables of 2 to 300 problems get a larger p-value when one wrong response of the second model turns
    right, beyond the precision of the integral."""
    rng = np.random.default_rng(seed)
    width = 2 * num_samples + 1
    numbers = rng.choice([2, 10, 30, 100, 300], num_tables)
    shares = rng.dirichlet(np.full(width, 0.3), num_tables)
    counts = np.stack([rng.multinomial(n, share) for n, share in zip(numbers, shares, strict=True)]).astype(np.float64)
    better = counts.copy()
    for row, table in zip(better, counts, strict=True):
        found = np.flatnonzero(table[:-1])
        if len(found):
            step = rng.choice(found)
            row[step] -= 1
            row[step + 1] += 1
    values = np.arange(-num_samples, num_samples + 1) / num_samples
    before, after = (drop_p_values(values, table, -MARGIN) for table in (counts, better))
    return int((after > before * (1 + 1e-4) + 1e-6).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, nargs="+", default=[30, 100, 300, 1000])
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--accuracies", type=float, nargs="+", default=[0.1, 0.3, 0.5, 0.8, 0.95])
    parser.add_argument("--families", nargs="+", choices=[*TUNED, *REPORTED], default=[*REPORTED])
    parser.add_argument("--evaluations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--cells", type=Path, help="write every cell here, one JSON object a line")
    options = parser.parse_args()
    how = {"num_evaluations": options.evaluations, "seed": options.seed}
    if options.cells:
        options.cells.write_text("")
    worse = sum(not_monotone(k, num_tables=options.evaluations // 4, seed=options.seed) for k in (1, 2, 4, 16))
    print(f"tables that one more right response harms: {worse} of {options.evaluations // 4 * 4:,}\n")
    header = "problems, samples | kept in error, worst | power, oracle | blind oracle, worst | difference | accuracy | " + (
        " | ".join(LENGTHS)
    )
    print(f"| {header} |\n|---|{'---:|' * header.count('|')}", flush=True)
    for number in options.problems:
        for k in options.samples:
            cells = [simulate(f, number, k, a, **how) for f in options.families for a in options.accuracies]
            if options.cells:
                with options.cells.open("a") as file:
                    file.writelines(json.dumps(asdict(cell)) + "\n" for cell in cells)
            print(summary(cells, [ratio_coverage(kind, number, k, **how) for kind in LENGTHS]), flush=True)


def summary(cells: list[Cell], ratios: list[float]) -> str:
    """One row: the worst of all cells of one number of problems and samples."""
    wrong = max(value for cell in cells for way, value in cell.kept.items() if way != "none")
    farthest = max(cells, key=lambda cell: min(cell.oracle.values()) - cell.kept["none"])
    blind, power = max(((v, c.kept["none"]) for c in cells for v in c.oracle.values()), key=lambda pair: pair[0] - pair[1])
    columns = [
        f"{cells[0].num_problems} x {cells[0].num_samples}",
        f"{wrong:.4f}",
        f"{farthest.kept['none']:.2f}, {min(farthest.oracle.values()):.2f}",
        f"{power:.2f}, {blind:.2f}",
        f"{min(value for cell in cells for value in cell.covered.values()):.3f}",
        f"{min(cell.accuracy_covered for cell in cells):.3f}",
        *(f"{value:.3f}" for value in ratios),
    ]
    return f"| {' | '.join(columns)} |"


if __name__ == "__main__":
    main()
