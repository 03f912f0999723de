"""What came of a claim: the differences of each contrast, seed by seed, its verdict, and a file that holds all of it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path

from pydantic import TypeAdapter

from conclip.claims.config import QUICK_SEEDS, Claim, Contrast, by_number, check_claim, is_file_name
from conclip.claims.measures import RunNumbers, difference, graded_problems, numbers
from conclip.claims.runs import PlannedRun
from conclip.claims.verdict import MOST_SEEDS, Verdict, Word, judge, overall
from conclip.errors import UserError
from conclip.report.data import RunData, read_run
from conclip.runs.checked import Finite, NonNegative, Positive, read_as
from conclip.runs.files import read_object, write_json
from conclip.runs.identity import digest


@dataclass(frozen=True, slots=True)
class Outcome:
    """A claim with its differences; verdicts are computed from them."""

    name: str
    claim: Claim
    quick: bool
    differences: dict[str, dict[int, Finite]]
    """contrast -> seed -> difference"""
    runs: dict[str, dict[int, RunNumbers]]
    """run -> seed -> what came of it"""
    seconds: NonNegative
    """time of its runs, one after another; those of the same config count once"""
    machine: str = ""
    """what they ran on"""
    num_problems: dict[str, Positive] = field(default_factory=dict[str, int])
    """contrast of accuracy -> the different test problems of its seeds together; older files lack it, and their intervals
    have no least width"""

    @property
    def seeds(self) -> range:
        """From the first seed to the last one that any run had."""
        found = [seed for by_seed in self.runs.values() for seed in by_seed]
        return range(min(found), max(found) + 1) if found else range(0)

    @property
    def num_fixed(self) -> int:
        """Return how many seeds the claim fixed before its runs."""
        return QUICK_SEEDS if self.quick else self.claim.seeds

    def verdict(self, contrast: str) -> Verdict:
        settings = self.claim.contrasts[contrast]
        values = list(self.differences[contrast].values())
        return judge(
            values,
            settings.expect,
            settings.relevant,
            at_least=settings.at_least,
            num_contrasts=len(self.claim.contrasts),
            num_problems=self.num_problems.get(contrast),
        )

    def word(self) -> Word:
        """Return the verdict on the claim; a contrast of fewer than two seeds is underpowered."""
        found = self.differences.items()
        return overall([self.verdict(name).word if len(values) > 1 else "underpowered" for name, values in found])

    def qualification(self) -> str:
        """Return what stands behind the verdict where it is not one by the rules that were fixed before the runs."""
        quick = " (quick: two seeds, smaller runs)" if self.quick else ""
        number = len(self.seeds)
        if number == self.num_fixed:
            return quick
        more = "; more of them are a choice made after a look" if number > self.num_fixed else ""
        return f"{quick} ({number} seeds, where the claim fixes {self.num_fixed}{more})"


_OUTCOME = TypeAdapter(Outcome)


def outcome_of(name: str, claim: Claim, runs: Sequence[PlannedRun], *, quick: bool) -> Outcome:
    """Return what the runs that are done say, with the seeds of which both runs of a contrast are. Raises UserError where
    several versions of the grader judged them."""
    done = [run for run in runs if run.is_done()]
    data = {(run.run, run.seed): read_run(run.folder) for run in done}
    _check_grader(name, {run.folder: data[run.run, run.seed] for run in done})
    differences = {key: _differences(contrast, data) for key, contrast in claim.contrasts.items()}
    return Outcome(
        name=name,
        claim=claim,
        quick=quick,
        differences=differences,
        runs={name: {seed: numbers(found) for (run, seed), found in data.items() if run == name} for name in claim.runs},
        seconds=sum({run.folder: run.seconds for run in done}.values()),
        machine=", ".join(sorted({_machine(run) for run in data.values()})),
        num_problems=_num_problems(claim, differences, data),
    )


def _check_grader(name: str, runs: Mapping[Path, RunData]) -> None:
    judged = {row.grader_version: folder for folder, run in runs.items() for row in run.rows}
    if len(judged) > 1:
        oldest = min(judged)
        raise UserError(
            f"claim '{name}': version {oldest} of the grader judged responses in '{judged[oldest]}', version {max(judged)} "
            "those of other runs; remove done.json from that folder and give the command again"
        )


def _machine(run: RunData) -> str:
    """Return processor and GPUs of the machine of a run, in words."""
    processor = f"{run.environment.get('num_cpus', '?')}-core {run.environment.get('machine', 'unknown')} CPU"
    gpus = Counter[str](run.environment.get("gpus", []))
    named = [f"{number} x {name}" if number > 1 else name for name, number in gpus.items()]
    return f"{processor} with {' and '.join(named)}" if named else processor


def _differences(contrast: Contrast, data: Mapping[tuple[str, int], RunData]) -> dict[int, float]:
    found: dict[int, float] = {}
    for seed in sorted({seed for _, seed in data}):
        first = data.get((contrast.first, seed))
        second = data.get((contrast.second, seed)) if contrast.second is not None else None
        if first is not None and (second is not None or contrast.second is None):
            measured = difference(contrast, first, second)
            found |= {} if measured is None else {seed: measured}
    return found


def _num_problems(
    claim: Claim, differences: Mapping[str, Mapping[int, float]], data: Mapping[tuple[str, int], RunData]
) -> dict[str, int]:
    """Return how many test problems each difference in accuracy rests on; one that several seeds have counts once."""
    found: dict[str, set[tuple[str, str]]] = {}
    for name, contrast in claim.contrasts.items():
        if contrast.measure == "accuracy":
            runs = (data[contrast.first, seed] for seed in differences[name])
            found[name] = {problem for run in runs for problem in graded_problems(contrast, run)}
    return {name: len(problems) for name, problems in found.items() if problems}


HEADINGS = (
    "difference",
    "seeds",
    "mean and interval",
    "expected",
    "smallest that matters",
    "power",
    "seeds for 0.8",
    "verdict",
)


def contrast_rows(outcome: Outcome) -> list[tuple[str, ...]]:
    """Return the cells of `HEADINGS` for each contrast."""
    rows: list[tuple[str, ...]] = []
    for name, contrast in outcome.claim.contrasts.items():
        matters = f"{contrast.relevant:g}"
        expected = contrast.expect + (f", by {contrast.at_least:g} at least" if contrast.at_least else "")
        if len(outcome.differences[name]) < 2:
            rows.append((name, str(len(outcome.differences[name])), "", expected, matters, "", "", "underpowered"))
            continue
        v = outcome.verdict(name)
        interval = with_interval(v.mean, v.low, v.high, unit(contrast), digits=1 if unit(contrast) else 2)
        needed = str(v.seeds_needed or (f"over {MOST_SEEDS}" if isfinite(v.low) else ""))
        word = _away_from_0(contrast, v) + v.word
        rows.append((name, str(v.num_seeds), interval, expected, matters, f"{v.power:.2f}", needed, word))
    return rows


def _away_from_0(contrast: Contrast, verdict: Verdict) -> str:
    """Return what is shown of a difference of which it is open, or nothing, whether it is as large as what matters."""
    is_open = contrast.expect in ("not less", "not more") and verdict.word in ("not separable", "underpowered")
    if not is_open or verdict.low <= 0 <= verdict.high:
        return ""
    return f"{'lower' if verdict.high < 0 else 'higher'}; by more than {contrast.relevant:g}: "


def with_interval(mean: float, low: float, high: float, unit: str = "", *, digits: int = 1) -> str:
    """Return a mean over seeds with its interval, which equal values do not have."""
    unit, shown = f" {unit}" if unit else "", f"{mean:+.{digits}f}"
    return f"{shown} [{low:+.{digits}f}, {high:+.{digits}f}]{unit}" if isfinite(low) else f"{shown}{unit} with every seed"


UNITS = {"tokens": "% of base", "accuracy": "points", "gap": "%"}


def unit(contrast: Contrast) -> str:
    return UNITS.get(contrast.measure, "")


def outcome_file(outcome: Outcome) -> str:
    """Return the name of the file that holds an outcome: one for each claim, set of seeds, and overrides of the command."""
    seeds = f"-seeds-{outcome.seeds.start}" if outcome.seeds.start else ""
    given = f"-with-{digest(outcome.claim.given)[:8]}" if outcome.claim.given else ""
    return f"{outcome.name}{given}{seeds}{'-quick' if outcome.quick else ''}.json"


def check_page(name: str, claim: Claim, seeds: Sequence[int], shown: Sequence[Outcome], folder: Path) -> None:
    """Raise UserError where what a page shows, of the outcomes in a folder, had other overrides, has more of these seeds
    than a claim would have now, some of them in another set, or other seeds by another definition of the claim."""
    for other in shown:
        if other.claim.given != claim.given:
            had = " ".join(other.claim.given) or "no overrides"
            raise UserError(f"--page: '{folder}' has '{other.name}' with {had}; give another folder")
        if other.name != name:
            continue
        if not set(other.seeds) & set(seeds):
            _check_same(name, claim, other, folder)
            continue
        if other.seeds.start != seeds[0]:
            raise UserError(
                f"--first-seed: '{folder}' has seeds {other.seeds.start} to {other.seeds.stop - 1} of '{name}' already"
            )
        if len(other.seeds) > len(seeds):
            raise UserError(
                f"--seeds: '{folder}' has {len(other.seeds)} seeds of '{name}' already; give as many, or another --page"
            )


def _check_same(name: str, claim: Claim, other: Outcome, folder: Path) -> None:
    """Raise UserError where another set of seeds had other runs or contrasts, so that it does not say it again."""
    parts = ("contrasts", "runs", "common", *(["quick"] if other.quick else []))
    if changed := [part for part in parts if getattr(other.claim, part) != getattr(claim, part)]:
        raise UserError(
            f"--page: '{folder}' has seeds {other.seeds.start} to {other.seeds.stop - 1} of '{name}' with other "
            f"{' and '.join(changed)} than its file has now; remove '{outcome_file(other)}' there, or give another folder"
        )


def write_outcome(outcome: Outcome, folder: Path) -> None:
    write_json(folder / outcome_file(outcome), {"schema": 1, "outcome": asdict(outcome), "verdict": outcome.word()})


def recorded(folder: Path, *, quick: bool) -> list[Outcome]:
    """Return all outcomes that a folder holds: c2 before c10, and of one claim the first seeds first."""
    outcomes = [from_json(path) for path in folder.glob("*.json")]
    chosen = (outcome for outcome in outcomes if outcome.quick == quick)
    return sorted(chosen, key=lambda outcome: (by_number(outcome.name), outcome.seeds.start))


def from_json(path: Path) -> Outcome:
    """Return the outcome that a file holds. Raises UserError where it holds none."""
    content = read_object(path)
    if "outcome" not in content:
        raise UserError(f"'{path}' holds no outcome of a claim; 'conclip claims' writes it")
    outcome = read_as(_OUTCOME, content["outcome"], f"'{path}'")
    check_claim(outcome.claim, path)
    named = set(outcome.differences) == set(outcome.claim.contrasts) >= set(outcome.num_problems)
    if not named or not set(outcome.runs) <= set(outcome.claim.runs):
        raise UserError(f"'{path}' is damaged: its differences or runs are not those of its claim; run the claim again")
    if not is_file_name(outcome.name):
        raise UserError(f"'{path}': the claim's name {outcome.name!r} has other characters than letters, digits, - and _")
    return outcome
