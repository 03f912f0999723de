"""How well a probe sorts problems into below, inside and above a band: sequential against fixed, on the lab's pass rates.

    make probing

First 500 lab problems are sampled 256 times each (20 minutes on 2 fast cores; done once, `outputs/probe/bank`): these
rates are the truth. Then every probe draws responses with exactly these probabilities, five seeds of all problems. An error
is a problem further than a zone of 0.05 from the band's ends that is put into a wrong class, below, inside or above: by its
measured rate alone, as is usual, or by the posterior that conclip uses, which pools the problems of a level. Selection
takes eight problems, twenty times a seed, with several demands on their certainty, and counts how many truly lie in the
band.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
from lab_runs import DOCS, into_page

from conclip.config.compose import load_config
from conclip.config.groups import PhaseConfig, ProbeConfig
from conclip.config.schema import ProbeRunConfig
from conclip.curriculum.pass_rates import Band, PassRate, next_round, pooled_probabilities, read_pass_rates
from conclip.curriculum.pooling import Stratum
from conclip.curriculum.selection import select
from conclip.stats import clustered_interval
from conclip.types import Problem

BANK = (
    "name=bank",
    "seed=11",
    "data.pool.chain.num_problems=500",
    "data.pool.chain.levels=[1,2,3,4,5,6,7,8,9,10]",
    "probe.first_samples=256",
    "probe.max_samples=256",
    "rollout.max_tokens=384",
)
BANDS = {"phase 2": Band(low=0.2, high=0.8), "phase 1": Band(low=0.1, high=0.4)}
CONFIDENCES = (0.0, 0.8, 0.95)
SETS = 20
"""Of chosen problems, for each probe."""
ZONE = 0.05
"""Half-width of the zone around a band's ends within which either verdict will do."""

Counts = dict[str, tuple[int, int, int]]
"""(correct, judged, sampled) by problem id."""
Probe = Callable[[dict[str, float], Band, np.random.Generator], Counts]
"""What the probe of problems with these true rates counts."""


def bank() -> list[PassRate]:
    """The measured truth, sampled when it is not there yet."""
    subprocess.run([sys.executable, "-m", "conclip", "probe", *BANK], check=True)
    return read_pass_rates(Path("outputs/probe/bank/latest/pass_rates.jsonl"))


def sampled_by(settings: ProbeConfig, strata: dict[str, Stratum]) -> Probe:
    def probe(truth: dict[str, float], band: Band, random: np.random.Generator) -> Counts:
        counts: Counts = dict.fromkeys(truth, (0, 0, 0))
        while wanted := next_round(counts, strata, band, settings):
            for name, more in wanted.items():
                correct, judged, sampled = counts[name]
                counts[name] = (correct + int(random.binomial(more, truth[name])), judged + more, sampled + more)
        return counts

    return probe


def probes(strata: dict[str, Stratum]) -> dict[str, Probe]:
    """The shipped ones, and fixed ones of other sizes."""
    shipped, sequential = settings_of("probe=default"), settings_of("probe=sequential")
    fixed = {number: replace(shipped, first_samples=number, max_samples=number) for number in (16, 32)}
    found = {
        "`probe=sequential`": sampled_by(sequential, strata),
        f"`probe=default` (fixed {shipped.max_samples})": sampled_by(shipped, strata),
    }
    return found | {f"fixed {number}": sampled_by(settings, strata) for number, settings in fixed.items()}


def settings_of(override: str) -> ProbeConfig:
    config = load_config("probe", override)
    assert isinstance(config, ProbeRunConfig)
    return config.probe


def as_rates(counts: Counts, bank: list[PassRate]) -> list[PassRate]:
    """The bank's problems with these counts instead."""
    return [replace(rate, num_correct=counts[rate.problem_id][0], num_samples=counts[rate.problem_id][1]) for rate in bank]


def errors(rates: list[PassRate], truth: dict[str, float], band: Band) -> tuple[float, float]:
    """Share of problems outside the zone put into a wrong class [%]: by the measured rate, by the pooled posterior."""
    clear = [min(abs(truth[r.problem_id] - band.low), abs(truth[r.problem_id] - band.high)) > ZONE for r in rates]
    true = class_of(np.array([truth[rate.problem_id] for rate in rates]), band)
    measured = class_of(np.array([rate.pass_rate for rate in rates]), band)
    likeliest = pooled_probabilities(rates, band).argmax(0)
    return 100 * float((measured != true)[clear].mean()), 100 * float((likeliest != true)[clear].mean())


def class_of(rates: np.ndarray, band: Band) -> np.ndarray:
    """0 below, 1 inside, 2 above the band."""
    return (rates >= band.low).astype(int) + (rates > band.high)


def hits(measured: list[list[PassRate]], phase: PhaseConfig, truth: dict[str, float], band: Band) -> list[float]:
    """Share of the chosen problems whose true rate lies in the band [%], probe by probe."""
    problems = [
        Problem(problem_id=r.problem_id, question=r.problem_id, answer="", source="", level=r.level) for r in measured[0]
    ]
    shares: list[float] = []
    for rates in measured:
        chosen = [p for number in range(SETS) for p in select("phase", problems, rates, phase, number).problems]
        shares.append(100 * float(np.mean([band.contains(truth[problem.problem_id]) for problem in chosen])))
    return shares


def pools() -> dict[str, list[PassRate]]:
    """The bank; the bank as if it stated no levels; and rates of a shape that is common, most of them near 0 and 1."""
    rates = bank()
    drawn = np.random.default_rng(0).beta(0.3, 0.7, size=len(rates))
    unlevelled = [replace(rate, level=None) for rate in rates]
    simulated = [
        replace(rate, num_samples=1_000_000, num_correct=round(1e6 * p)) for rate, p in zip(unlevelled, drawn, strict=True)
    ]
    return {"lab": rates, "lab, levels unknown": unlevelled, "simulated, Beta(0.3, 0.7)": simulated}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    config = load_config("probe")
    assert isinstance(config, ProbeRunConfig)
    lines = [
        "| pool | band | probe | responses a problem | errors, measured rate | errors, pooled posterior |",
        "|---|---|---|---:|---|---|",
    ]
    chosen = ["| pool | band | probe | `band_confidence` | chosen problems truly in the band |", "|---|---|---|---:|---|"]
    for (pool, rates), (title, band) in product(pools().items(), BANDS.items()):
        truth = {rate.problem_id: rate.pass_rate for rate in rates}
        for name, probe in probes({rate.problem_id: rate.stratum for rate in rates}).items():
            counts = [probe(truth, band, np.random.default_rng(seed)) for seed in range(arguments.seeds)]
            spent = np.mean([sampled for found in counts for _, _, sampled in found.values()])
            measured = [as_rates(found, rates) for found in counts]
            plain, likeliest = zip(*(errors(found, truth, band) for found in measured), strict=True)
            where = f"| {pool} | {band.low:g} to {band.high:g} ({title}) | {name} |"
            lines.append(f"{where} {spent:.1f} | {percent(plain)} | {percent(likeliest)} |")
            if "`" in name:  # as shipped
                for confidence in CONFIDENCES:
                    settings = {"pass_rate_low": band.low, "pass_rate_high": band.high, "band_confidence": confidence}
                    phase = replace(config.phase, num_problems=8, problems_per_step=8, **settings)
                    chosen.append(f"{where} {confidence:g} | {percent(hits(measured, phase, truth, band))} |")
    text = "\n".join([*lines, "", *chosen])
    print(text)
    if arguments.seeds >= 5:
        into_page(DOCS / "selection.md", "probing", text)


def percent(shares: Sequence[float]) -> str:
    """Mean and interval over seeds."""
    mean, low, high = clustered_interval(shares)
    return f"{mean:.2f} % [{max(0.0, low):.2f}, {min(100.0, high):.2f}]"


if __name__ == "__main__":
    main()
