"""The page of all claims: a table of verdicts, then each claim with its numbers and a figure, as Markdown."""

import shlex
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean

from conclip.claims.figures import SHOWN, figure, legend, values_of
from conclip.claims.outcome import (
    HEADINGS,
    Outcome,
    contrast_rows,
    outcome_file,
    recorded,
    with_interval,
    write_outcome,
)
from conclip.report import escape
from conclip.report.export import write_figure
from conclip.runs.files import write_text
from conclip.stats import clustered_interval

HEAD = """# Which of the paper's claims hold here?

`conclip claims` runs this page's experiments and writes it. Each claim is a file in `conf/claims/`, with its runs, what
decides and the smallest difference that matters, fixed before the runs; "To read it" says what was changed after them.
Seeds redraw generated problems, sampling and training. Problems read from a file are the same with every seed, so that
intervals of runs on those do not cover other problems.
All runs of a claim start from one pretrained model (those of `c11` from another one, `make careful-model`): no interval
covers what a different model would give. Differences are paired by seed; their intervals are Student's t over seeds, at
95 % for all contrasts of a claim together (Bonferroni). An interval of accuracy is never narrower than the error that
problems which were not drawn may hide: 0.5 points to either side with 1,000 problems and five contrasts. Intervals rest
on differences that are about normal: with five seeds no test without that assumption could reach 5 %. Claims that share
runs are not independent: `c1` and `c8` share all of theirs, `c4`, `c4_longer` and `c4_order` phase 1, and `c4` and
`c4_order` the whole run of two phases; `c6`, `c9`, `algorithms`, `adapters` and `sample_ahead` share PPO's, `algorithms`
and `adapters` GRPO's, `c9` and `length_rewards` those of five length rewards. A contrast is one of three kinds:

| expected | holds where the interval | does not hold where it |
|---|---|---|
| less, more | lies on that side of 0, however near | does not, and excludes the smallest one that matters |
| less or more, by a size at least | lies beyond that size | lies short of it |
| not less, not more | excludes the drop (the rise) that matters | lies beyond that drop (rise) |

**Power** is the chance that as many seeds, of the spread that was seen, would show the smallest difference that matters
(of "not less" and "not more": would exclude it if nothing had changed; of a size at least: would lie beyond that size if
the truth lay the smallest difference that matters beyond it). Beside it stands how many seeds would have a power of 0.8.
A claim **holds** if all of its contrasts do, and **does not hold** if one does not. Otherwise it is **underpowered**
if a contrast of which neither is shown has less power than 0.8: the seeds differ too much for so few of them. Else it is
**not separable**. Values that are equal with every seed have no interval, but where all are 0 in accuracy that of problems
not drawn. A seed is missing where its run left too little to measure: no response that could be graded, or fewer than five
problems with both correct and wrong responses, of whose lengths to take the difference.

From a number to its responses: each claim's file below names the folders of its runs (`outputs/claims/run/FOLDER`), which
have every response as a row, the metrics and the config. To try a claim on a model and problems of your own, add them:
`conclip claims c4 model=hf model.path=MODEL data=DATA --page DIR`.

"Again" is the verdict of another set of seeds, where there is one. Claims of `conf/claims/` that are not below have not
been run; `conclip claims --list` names them.
"""


def write_claims(outcomes: Sequence[Outcome], folder: Path, *, quick: bool = False) -> Path:
    """Write claims.md (claims-quick.md) into a folder, and into its folder `claims` what came of each claim, and a figure.
    Claims that are there already stay on the page. Returns its path."""
    kept, page = folder / "claims", folder / ("claims-quick.md" if quick else "claims.md")
    kept.mkdir(parents=True, exist_ok=True)
    for outcome in outcomes:
        write_outcome(outcome, kept)
    shown = [list(of_claim) for _, of_claim in groupby(recorded(kept, quick=quick), lambda outcome: outcome.name)]
    parts = [HEAD, _verdicts(shown)]
    for outcome, *again in shown:
        write_figure(figure(outcome), kept / _figure_file(outcome))
        parts.append(_section(outcome, again))
    write_text(page, "\n".join(parts))
    return page


def _figure_file(outcome: Outcome) -> str:
    return f"{outcome.name}{'-quick' if outcome.quick else ''}.svg"


def _verdicts(shown: Sequence[Sequence[Outcome]]) -> str:
    lines = ["| | claim | verdict | again |", "|---|---|---|---|"]
    for o, *again in shown:
        words = ", ".join(map(_word, again)) or "-"
        mark = r" \*" if o.claim.remarks and not o.claim.given else ""
        lines.append(f"| [{o.name}](#{o.name}) | {escape.markdown(o.claim.claim)} | {_word(o)}{mark} | {words} |")
    note = '\\*: its section says what was changed after a first look, or what else to know: "To read it".'
    hours = sum(outcome.seconds for of_claim in shown for outcome in of_claim) / 3600
    cost = (
        f"These claims took {hours:.1f} hours of one process. A run that several of them share is counted with each; stages "
        "that a run took over from an earlier one are not. `--jobs 2` runs two side by side, each on one of two cores."
    )
    return "\n".join(lines) + f"\n\n{note}\n\n{cost}\n"


def _word(outcome: Outcome) -> str:
    word = f"**{outcome.word()}**{outcome.qualification()}"
    holding = sum(cells[-1] == "holds" for cells in contrast_rows(outcome))
    total = len(outcome.claim.contrasts)
    return word if holding == total else f"{word}: {holding} of {total} differences hold"


def _section(outcome: Outcome, again: Sequence[Outcome]) -> str:
    claim = outcome.claim
    lines = [f"## {outcome.name}", "", escape.markdown(claim.claim), "", f"Verdict: {_word(outcome)}", ""]
    lines += _differences(outcome)
    alt = f"{claim.claim}: {outcome.word()}"
    lines += ["", f"![{escape.markdown(alt)}](claims/{_figure_file(outcome)})", "", legend(outcome)]
    lines += ["", *_runs_table(outcome), ""]
    for other in again:
        seeds = f"seeds {other.seeds.start} to {other.seeds.stop - 1}"
        lines += [f"**Again, with {seeds}:** {_word(other)}", "", *_differences(other), ""]
    if claim.designed and not claim.given:
        lines += [f"**The lab's design:** {escape.markdown(claim.designed)}", ""]
    if claim.remarks and not claim.given:
        lines += [f"**To read it:** {escape.markdown(claim.remarks)}", ""]
    files = ", ".join(f"[{file}](claims/{file})" for file in map(outcome_file, (outcome, *again)))
    lines += [
        f"To reproduce: `{_command(outcome)}` "
        f"({outcome.seconds / 3600:.1f} hours of one process; {outcome.machine}). "
        f"What came of each run with each seed: {files}.",
        "",
    ]
    return "\n".join(lines)


def _command(outcome: Outcome) -> str:
    """Return the command whose runs the outcome is of."""
    seeds = outcome.seeds
    options = [f"--seeds {len(seeds)}"] * (len(seeds) != outcome.num_fixed)
    options += [f"--first-seed {seeds.start}"] * (seeds.start > 0) + ["--quick"] * outcome.quick
    return " ".join(["conclip claims", outcome.name, *map(shlex.quote, outcome.claim.given), *options])


def _differences(outcome: Outcome) -> list[str]:
    lines = [f"| {' | '.join(HEADINGS)} |", "|---|---:|---|---|---|---:|---:|---|"]
    return lines + [f"| {' | '.join(map(escape.markdown, cells))} |" for cells in contrast_rows(outcome)]


def _runs_table(outcome: Outcome) -> list[str]:
    """Return what came of each run, with Student's t intervals of its own."""
    lines = [
        "Each run by itself, over all of its temperatures and test sets; intervals at 95 % each:",
        "",
        "| run | seeds | tokens against base [%] | accuracy against base [points] | truncated |",
        "|---|---:|---|---|---:|",
    ]
    for name, by_seed in outcome.runs.items():
        found = list(by_seed.values())
        if not found:
            continue
        cells = [escape.markdown(name), str(len(found))]
        measured = [values_of(found, measure) for measure in SHOWN]
        cells += [_mean(values) for values in measured]
        lines.append(f"| {' | '.join(cells)} | {fmean(one.truncated for one in found):.3f} |")
    return lines


def _mean(values: Sequence[float]) -> str:
    """Return a mean with its interval; of one value, which has no spread, the value."""
    return with_interval(*clustered_interval(values)) if len(values) > 1 else f"{values[0]:+.1f}" if values else ""
