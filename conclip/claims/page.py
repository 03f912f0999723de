"""The page of all claims: a table of verdicts, then each claim with its numbers and a figure, as Markdown."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean

import altair as alt

from conclip.claims.config import Contrast
from conclip.claims.measures import RunNumbers
from conclip.claims.outcome import (
    HEADINGS,
    Outcome,
    contrast_rows,
    outcome_file,
    recorded,
    unit,
    with_interval,
    write_outcome,
)
from conclip.report import escape
from conclip.report.export import write_figure
from conclip.report.figure import WIDTH, Chart, Figure, Values
from conclip.runs.files import write_text
from conclip.stats import clustered_interval

HEAD = """# Which of the paper's claims hold here?

`conclip claims` runs this page's experiments and writes it. Each claim is a file in `conf/claims/`, with its runs, what
decides and the smallest difference that matters, fixed before the runs; "To read it" says what was changed after them.
Seeds redraw problems, sampling and training; all start from one pretrained model, so that no interval covers what another
one would give. Differences are paired by seed; their intervals are Student's t over seeds, at 95 % for all contrasts of a
claim together (Bonferroni). They rest on differences that are about normal: with five seeds no test without that
assumption could reach 5 %. Claims that share runs are not independent: `c1` and `c8` share all of theirs, `c4` and
`c4_longer` phase 1; `c6`, `c9`, `algorithms`, `adapters` and `sample_ahead` share PPO's, `algorithms`, `adapters` and
`length_rewards` GRPO's. A contrast is one of three kinds:

| expected | holds where the interval | does not hold where it |
|---|---|---|
| less, more | lies on that side of 0, however near | excludes the smallest difference that matters, on that side |
| less or more, by a size at least | lies beyond that size | lies short of it |
| not less, not more | excludes the drop (the rise) that matters | lies beyond that drop (rise) |

**Power** is the chance that as many seeds, of the spread that was seen, would show the smallest difference that matters
(of "not less" and "not more": would exclude it if nothing had changed); beside it stands how many seeds would have a power
of 0.8. A claim **holds** if all of its contrasts do, and **does not hold** if one does not. Otherwise it is **underpowered**
if a contrast of which neither is shown has less power than 0.8: the seeds differ too much for so few of them. Else it is
**not separable**. Values that are equal with every seed have no interval. A seed is missing where its run left
nothing to measure: no response that could be graded, or no problem with both correct and wrong responses, of whose lengths
to take the difference.

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
        mark = r" \*" if o.claim.remarks else ""
        lines.append(f"| [{o.name}](#{o.name}) | {escape.markdown(o.claim.claim)} | {_word(o)}{mark} | {words} |")
    note = '\\*: its section says what was changed after a first look, or what else to know: "To read it".'
    return "\n".join(lines) + "\n\n" + note + "\n"


def _word(outcome: Outcome) -> str:
    word = f"**{outcome.word()}**" + (" (quick: two seeds, smaller runs)" if outcome.quick else "")
    holding = sum(cells[-1] == "holds" for cells in contrast_rows(outcome))
    total = len(outcome.claim.contrasts)
    return word if holding == total else f"{word}: {holding} of {total} differences hold"


def _section(outcome: Outcome, again: Sequence[Outcome]) -> str:
    claim = outcome.claim
    lines = [f"## {outcome.name}", "", escape.markdown(claim.claim), "", f"Verdict: {_word(outcome)}", ""]
    lines += _differences(outcome)
    alt = f"{claim.claim}: {outcome.word()}"
    lines += ["", f"![{escape.markdown(alt)}](claims/{_figure_file(outcome)})", "", LEGENDS[len(claim.runs) > 1]]
    lines += ["", *_runs_table(outcome), ""]
    for other in again:
        seeds = f"seeds {other.seeds.start} to {other.seeds.stop - 1}"
        lines += [f"**Again, with {seeds}:** {_word(other)}", "", *_differences(other), ""]
    if claim.designed:
        lines += [f"**The lab's design:** {escape.markdown(claim.designed)}", ""]
    if claim.remarks:
        lines += [f"**To read it:** {escape.markdown(claim.remarks)}", ""]
    files = ", ".join(f"[{file}](claims/{file})" for file in map(outcome_file, (outcome, *again)))
    lines += [
        f"To reproduce: `conclip claims {outcome.name}{' --quick' if outcome.quick else ''}` "
        f"({outcome.seconds / 3600:.1f} hours of one process, without what other claims had run before; {outcome.machine}). "
        f"What came of each run with each seed: {files}.",
        "",
    ]
    return "\n".join(lines)


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
        measured = [_of(found, measure) for measure in SHOWN]
        cells += [_mean(values) for values in measured]
        lines.append(f"| {' | '.join(cells)} | {fmean(one.truncated for one in found):.3f} |")
    return lines


def _mean(values: Sequence[float]) -> str:
    """Return a mean with its interval; of one value, which has no spread, the value."""
    return with_interval(*clustered_interval(values)) if len(values) > 1 else f"{values[0]:+.1f}" if values else ""


LEGENDS = {
    False: "Points: seeds. Black: mean, and interval as in the table. Lines: no difference, and what matters or is claimed.",
    True: "Points: seeds. Black: mean and 95 % interval of each run by itself, not of a difference.",
}
"""What a figure of contrasts shows, and one of runs."""

SHOWN = {"tokens": "tokens against base [%]", "accuracy": "accuracy against base [points]"}


def _of(found: Sequence[RunNumbers], measure: str) -> list[float]:
    """Return a measure of each seed that has it."""
    return [value for one in found if (value := getattr(one, measure)) is not None]


def figure(outcome: Outcome) -> Figure:
    """Draw what came of each run if there are several, else each contrast."""
    return _of_runs(outcome) if len(outcome.claim.runs) > 1 else _of_contrasts(outcome)


def _of_runs(outcome: Outcome) -> Figure:
    """Draw tokens and accuracy of each run: a point for every seed, the mean and its interval."""
    order = list(outcome.runs)
    panels: dict[str, Chart] = {}
    said: list[str] = []
    for measure, title in SHOWN.items():
        seeds: Values = []
        means: Values = []
        for name, by_seed in outcome.runs.items():
            values = _of(list(by_seed.values()), measure)
            seeds += [{"run": name, "value": value} for value in values]
            if len(values) > 1:
                mean, low, high = clustered_interval(values)
                means.append({"run": name, "value": mean, "low": low, "high": high})
                said.append(f"{name}, {measure}: {mean:+.1f}")
        x = alt.X("value:Q", title=title, scale=alt.Scale(zero=True, padding=12))
        y = alt.Y("run:N", title=None, sort=order)
        zero: Values = [{"value": 0.0}]
        interval = alt.Chart(alt.Data(values=means))
        panels[title] = alt.layer(
            alt.Chart(alt.Data(values=zero)).mark_rule(strokeDash=[4, 4]).encode(x="value:Q"),
            alt.Chart(alt.Data(values=seeds)).mark_point(size=40, opacity=0.5).encode(x=x, y=y),
            interval.mark_rule(strokeWidth=3, color="black").encode(x="low:Q", x2="high:Q", y=y),
            interval.mark_point(filled=True, size=110, color="black", opacity=1).encode(x=x, y=y),
        ).properties(width=WIDTH, height=alt.Step(24))
    caption = f"Seeds, mean and 95 % interval of each run. {'; '.join(said)}."
    return Figure(name=outcome.name, title=outcome.claim.claim, caption=caption, panels=panels, columns=2)


def _of_contrasts(outcome: Outcome) -> Figure:
    """Draw each contrast: a point for every seed, the mean and its interval, beside 0 and the smallest that matters."""
    panels: dict[str, Chart] = {}
    for name, _, _, expected, *_, word in contrast_rows(outcome):
        panels[f"{name} (expected: {expected}): {word}"] = _panel(outcome, name, outcome.claim.contrasts[name])
    said = "; ".join(
        f"{name}: {with_interval(v.mean, v.low, v.high)}, {v.word}"
        for name in outcome.claim.contrasts
        if len(outcome.differences[name]) > 1 and (v := outcome.verdict(name))
    )
    return Figure(name=outcome.name, title=outcome.claim.claim, caption=f"Differences over seeds. {said}.", panels=panels)


def _panel(outcome: Outcome, name: str, contrast: Contrast) -> Chart:
    seeds: Values = [{"difference": value, "seed": seed} for seed, value in outcome.differences[name].items()]
    lines: Values = [{"at": 0.0, "what": "no difference"}]
    side = -1 if contrast.expect in ("less", "not less") else 1
    lines.append({"at": side * contrast.relevant, "what": "smallest that matters"})
    if contrast.at_least:
        lines[-1] = {"at": side * contrast.at_least, "what": "size that is claimed"}
    x = alt.X(
        "difference:Q",
        title=f"{contrast.measure} [{unit(contrast) or 'as measured'}]",
        scale=alt.Scale(zero=True, padding=12),
    )
    dots = alt.Chart(alt.Data(values=seeds)).mark_point(size=50, opacity=0.6).encode(x=x, tooltip=["seed:Q", "difference:Q"])
    rules = (
        alt.Chart(alt.Data(values=lines))
        .mark_rule()
        .encode(x="at:Q", strokeDash=alt.StrokeDash("what:N", title=None, legend=alt.Legend(orient="top")))
    )
    layers: list[alt.Chart] = [rules, dots]
    if len(seeds) > 1:
        v = outcome.verdict(name)
        interval: Values = [{"low": v.low, "high": v.high, "mean": v.mean}]
        base = alt.Chart(alt.Data(values=interval))
        layers += [
            base.mark_rule(strokeWidth=3, color="black").encode(x="low:Q", x2="high:Q"),
            base.mark_point(filled=True, size=110, color="black", opacity=1).encode(x="mean:Q"),
        ]
    return alt.layer(*layers).properties(width=WIDTH, height=60)
