"""How well a probe sorts problems into below, inside and above a band: sequential against fixed, on the lab's pass rates.

    make probing

First 500 lab problems are sampled 256 times each (about 20 minutes on 2 cores; done once, `outputs/probe/bank`): these rates
are the truth. Then every probe draws responses with exactly these probabilities, five seeds of all problems. An error is a
problem further than 0.05 from the band's ends whose verdict is not the truth's. Selection takes eight problems from the
measured rates, twenty times a seed, with several demands on their certainty, and counts how many truly lie in the band.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from lab_runs import DOCS, into_page

from conclip.compose import load_config
from conclip.config import PhaseConfig, ProbeConfig, ProbeRunConfig, UserError
from conclip.probe import Band, PassRate, next_round, read_pass_rates
from conclip.selection import select
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
BANDS = {"phase 2": Band(low=0.2, high=0.8), "phase 1": Band(low=0.05, high=0.2)}
CONFIDENCES = (0.0, 0.5, 0.8, 0.9, 0.95)
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


def sampled_by(settings: ProbeConfig) -> Probe:
    def probe(truth: dict[str, float], band: Band, random: np.random.Generator) -> Counts:
        counts: Counts = dict.fromkeys(truth, (0, 0, 0))
        while wanted := next_round(counts, band, settings):
            for name, more in wanted.items():
                correct, judged, sampled = counts[name]
                counts[name] = (correct + int(random.binomial(more, truth[name])), judged + more, sampled + more)
        return counts

    return probe


def probes() -> dict[str, Probe]:
    """The shipped ones, and fixed ones of other sizes."""
    shipped, sequential = settings_of("probe=default"), settings_of("probe=sequential")
    fixed = {number: replace(shipped, first_samples=number, max_samples=number) for number in (16, 32)}
    found = {
        "`probe=sequential`": sampled_by(sequential),
        f"`probe=default` (fixed {shipped.max_samples})": sampled_by(shipped),
    }
    return found | {f"fixed {number}": sampled_by(settings) for number, settings in fixed.items()}


def settings_of(override: str) -> ProbeConfig:
    config = load_config("probe", override)
    assert isinstance(config, ProbeRunConfig)
    return config.probe


def errors(counts: Counts, truth: dict[str, float], band: Band) -> float:
    """Share of wrong verdicts among the problems outside the indifference zone [%]."""
    clear = [n for n, rate in truth.items() if min(abs(rate - band.low), abs(rate - band.high)) > ZONE]
    return 100 * float(np.mean([band.holds(counts[n][0] / counts[n][1]) != band.holds(truth[n]) for n in clear]))


def hits(probe: Probe, rates: list[PassRate], phase: PhaseConfig, band: Band, seeds: int) -> list[float]:
    """Share of the chosen problems whose true rate lies in the band [%], seed by seed; empty with too few candidates."""
    truth = {rate.problem_id: rate.pass_rate for rate in rates}
    problems = [Problem(problem_id=name, question=name, answer="", source="") for name in truth]
    shares: list[float] = []
    for seed in range(seeds):
        counts = probe(truth, band, np.random.default_rng(seed))
        found = {name: {"num_correct": correct, "num_samples": judged} for name, (correct, judged, _) in counts.items()}
        measured = [replace(rate, **found[rate.problem_id]) for rate in rates]
        try:
            chosen = [p for number in range(SETS) for p in select("phase", problems, measured, phase, number).problems]
        except UserError:
            return []
        shares.append(100 * float(np.mean([band.holds(truth[problem.problem_id]) for problem in chosen])))
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    rates = bank()
    truth = {rate.problem_id: rate.pass_rate for rate in rates}
    config = load_config("probe")
    assert isinstance(config, ProbeRunConfig)
    made = probes()
    lines = ["| band | probe | responses a problem | errors outside the zone |", "|---|---|---:|---|"]
    for title, band in BANDS.items():
        for name, probe in made.items():
            found = [probe(truth, band, np.random.default_rng(seed)) for seed in range(arguments.seeds)]
            spent = np.mean([sampled for counts in found for _, _, sampled in counts.values()])
            mean, low, high = clustered_interval([errors(counts, truth, band) for counts in found])
            lines.append(f"| {ends(band)} ({title}) | {name} | {spent:.1f} | {mean:.2f} % [{low:.2f}, {high:.2f}] |")
    lines += ["", "| band | probe | `band_confidence` | chosen problems truly in the band |", "|---|---|---:|---|"]
    for title, band in BANDS.items():
        for name, probe in list(made.items())[:2]:
            for confidence in CONFIDENCES:
                settings = {"pass_rate_low": band.low, "pass_rate_high": band.high, "band_confidence": confidence}
                phase = replace(config.phase, num_problems=8, problems_per_step=8, **settings)
                shares = hits(probe, rates, phase, band, arguments.seeds)
                mean, low, high = clustered_interval(shares) if shares else (0.0, 0.0, 0.0)
                said = f"{mean:.1f} % [{low:.1f}, {min(100.0, high):.1f}]" if shares else "too few candidates"
                lines.append(f"| {ends(band)} ({title}) | {name} | {confidence:g} | {said} |")
    text = "\n".join(lines)
    print(text)
    if arguments.seeds >= 5:
        into_page(DOCS / "selection.md", "probing", text)


def ends(band: Band) -> str:
    return f"{band.low:g} to {band.high:g}"


if __name__ == "__main__":
    main()
