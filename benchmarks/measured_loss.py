"""The loss that runs have measured, response by response, beside the closed form of docs/theory.md: the table there, and its
figure.

    make measured-loss     # some minutes; one seed of claim c6's runs, with all transcripts kept

A response's loss before a step's first update is minus its mean advantage, which transcripts hold. The closed form says that
it is -(R - V) times a factor of its length and lambda alone. The one number R - V is fitted, for correct and wrong responses
of each quarter of the steps, and compared is how much of the losses it then explains.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import altair as alt

from conclip.claims.config import claim_files, load_claim
from conclip.claims.runs import PlannedRun, carry_out, planned
from conclip.report.export import write_figure
from conclip.report.figure import OUTCOMES, WIDTH, Chart, Figure, Values
from conclip.types import Outcome

PICTURE = Path(__file__).parents[1] / "docs/pictures/measured-loss.svg"
SHOWN = (Outcome.CORRECT, Outcome.WRONG)


@dataclass(frozen=True, slots=True)
class Trained:
    """A response that trained, as its transcript has it."""

    outcome: Outcome
    tokens: int
    loss: float


def length_factor(tokens: int, gae_lambda: float) -> float:
    """Return what multiplies -(R - V) in the loss of a response (docs/theory.md)."""
    return 1.0 if gae_lambda == 1 else (1 - gae_lambda**tokens) / (tokens * (1 - gae_lambda))


def surprise(responses: Sequence[Trained], gae_lambda: float) -> tuple[float, float]:
    """Return R - V, fitted by least squares, and the share of the losses' squares that the closed form then explains."""
    factors = [length_factor(one.tokens, gae_lambda) for one in responses]
    fitted = -sum(f * one.loss for f, one in zip(factors, responses, strict=True)) / sum(f * f for f in factors)
    left = sum((one.loss + fitted * f) ** 2 for f, one in zip(factors, responses, strict=True))
    return fitted, 1 - left / sum(one.loss**2 for one in responses)


def read_steps(run: PlannedRun) -> list[list[Trained]]:
    """Return the responses of each step that trained."""
    steps: list[list[Trained]] = []
    for path in sorted((run.folder / "latest/rollouts").glob("phase2-[0-9]*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        trained = [row for row in rows if row["advantage"] is not None]
        steps.append([Trained(Outcome(row["outcome"]), row["num_tokens"], -row["advantage"]) for row in trained])
    return steps


def parts(steps: Sequence[list[Trained]]) -> dict[str, list[Trained]]:
    """Return the responses of the first step, in which the critic knows nothing, and of each quarter of the others."""
    rest = steps[1:]
    ends = [len(rest) * quarter // 4 for quarter in range(5)]
    found = {"first step": steps[0]}
    for quarter, (begin, end) in enumerate(pairwise(ends), 1):
        found[f"quarter {quarter}"] = [one for step in rest[begin:end] for one in step]
    return found


def lambda_of(run: PlannedRun) -> float:
    """Return the lambda that a run sets."""
    return float(next(text for text in run.overrides if text.startswith("algo.gae_lambda=")).partition("=")[2])


def table(runs: dict[float, dict[str, list[Trained]]]) -> str:
    lines = ["| lambda | steps | correct: R - V | explained | wrong: R - V | explained |", "|---:|---|---:|---:|---:|---:|"]
    for gae_lambda, found in runs.items():
        for name, responses in found.items():
            cells = [f"{gae_lambda:g}", name]
            for outcome in SHOWN:
                mine = [one for one in responses if one.outcome is outcome]
                fitted, explained = surprise(mine, gae_lambda) if mine else (math.nan, math.nan)
                cells += [f"{fitted:+.2f}", f"{explained:.0%}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def panel(responses: Sequence[Trained], gae_lambda: float) -> Chart:
    points: Values = [
        {"tokens": r.tokens, "loss": r.loss, "outcome": r.outcome.value} for r in responses if r.outcome in SHOWN
    ]
    lines: Values = []
    for outcome in SHOWN:
        mine = [one for one in responses if one.outcome is outcome]
        if not mine:
            continue
        fitted = surprise(mine, gae_lambda)[0]
        span = range(min(one.tokens for one in mine), max(one.tokens for one in mine) + 1, 2)
        lines += [{"tokens": n, "loss": -fitted * length_factor(n, gae_lambda), "outcome": outcome.value} for n in span]
    names = [outcome.value for outcome in SHOWN]
    color = alt.Color("outcome:N", title=None, scale=alt.Scale(domain=names, range=[OUTCOMES[one] for one in SHOWN]))
    x, y = alt.X("tokens:Q", title="tokens of the response"), alt.Y("loss:Q", title="its loss")
    dots = alt.Chart(alt.Data(values=points)).mark_point(size=14, opacity=0.35, filled=True)
    curve = alt.Chart(alt.Data(values=lines)).mark_line(strokeWidth=2)
    return alt.layer(dots.encode(x=x, y=y, color=color), curve.encode(x=x, y=y, color=color)).properties(
        width=WIDTH, height=150
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/measured-loss"), help="where the runs are kept")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    claim = load_claim("c6", claim_files()["c6"])
    claim = replace(claim, common=[*claim.common, "trainer.transcripts_per_group=8"])
    runs = planned("c6", claim, [options.seed], options.out, quick=False)
    carry_out(runs, options.out, jobs=2, tell=lambda run, seconds: print(f"{run.run}: {seconds:.0f} s", flush=True))
    found = {lambda_of(run): parts(read_steps(run)) for run in runs}
    print(f"\n{table(found)}")
    panels = {
        f"lambda {gae_lambda:g}, {name}": panel(of_run[name], gae_lambda)
        for gae_lambda, of_run in found.items()
        for name in ("first step", "quarter 3")
    }
    caption = "Loss of each response against its length, and the closed form."
    write_figure(Figure(name="measured-loss", title="Loss and length", caption=caption, panels=panels, columns=2), PICTURE)


if __name__ == "__main__":
    main()
