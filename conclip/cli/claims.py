"""The subcommand `claims`: runs the claims' experiments, and says what holds."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from conclip.claims.config import QUICK_SEEDS, Claim, check_runs, claim_files, load_claim, on_other, run_hash
from conclip.claims.outcome import HEADINGS, Outcome, check_page, contrast_rows, outcome_of, recorded, write_outcome
from conclip.claims.page import write_claims
from conclip.claims.runs import PlannedRun, carry_out, mean_seconds, planned
from conclip.errors import UserError
from conclip.redact import terminal_safe
from conclip.runs.files import nearest_existing
from conclip.runs.terminal import open_console
from conclip.runs.view import clock, remaining

MAX_SEEDS = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names",
        metavar="NAME|KEY=VALUE",
        nargs="*",
        help="claims (--list names them); without one ALL run, which takes more than a day. Overrides come last in every "
        "run: model=hf model.path=MODEL data=DATA tries a claim on another model and other problems",
    )
    parser.add_argument("--list", action="store_true", help="name the claims and what is done of them; run nothing")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SEEDS} seeds and smaller runs")
    parser.add_argument("--seeds", type=int, metavar="N", help="number of seeds; default: the claim's own")
    parser.add_argument(
        "--first-seed",
        type=int,
        default=0,
        metavar="K",
        help="seeds K, K+1, ...: another set, which a page shows beside the first",
    )
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs side by side, each with its share of the cores"
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/claims"), metavar="DIR", help="default: outputs/claims")
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help="a folder of your own with DIR/claims/, and configs")
    parser.add_argument(
        "--page",
        type=Path,
        metavar="DIR",
        help="also write claims.md into DIR, with these claims and those that DIR has (--quick: claims-quick.md)",
    )


def run(options: argparse.Namespace) -> None:
    """Run what is left, claim by claim, and show the verdicts."""
    claims = _chosen(options)
    if options.jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {options.jobs}")
    if options.seeds is not None and not 1 <= options.seeds <= MAX_SEEDS:
        raise UserError(f"--seeds must be 1 to {MAX_SEEDS}, got {options.seeds}")
    if options.first_seed < 0:
        raise UserError(f"--first-seed must be at least 0, got {options.first_seed}")
    for option, folder in (("--out", options.out), ("--page", options.page)):
        if folder is not None and not nearest_existing(folder).is_dir():
            raise UserError(f"{option}: '{folder}' is a file, or in one; give a folder")
    console = open_console()
    if options.page is not None:
        kept = options.page / "claims"
        shown = recorded(kept, quick=options.quick)
        for name, claim in claims.items():
            check_page(name, claim, _seeds(claim, options), shown, kept)
    todo = {name: _planned(name, claim, options) for name, claim in claims.items()}
    console.print(_costs(claims, todo, quick=options.quick))
    if options.list:
        return
    outcomes: list[Outcome] = []
    for name, claim in claims.items():
        left = [one for one in todo[name] if not one.is_done()]
        ended: list[float] = []

        def tell(one: PlannedRun, seconds: float, left: list[PlannedRun] = left, ended: list[float] = ended) -> None:
            ended.append(seconds)
            rest = remaining(sum(ended) / options.jobs, len(ended), len(left) - len(ended)) or 0.0
            console.print(f"{one.claim}: {one.run}, seed {one.seed}: {clock(seconds)}; {clock(rest)} left", markup=False)

        def check(one: PlannedRun, claim: Claim = claim) -> None:
            where = {"quick": options.quick, "config_dir": options.config_dir}
            if run_hash(one.claim, claim, one.run, **where) != one.config:
                raise UserError(
                    f"claim '{one.claim}': the config of '{one.run}' has changed since the command began; repeat it"
                )

        carry_out(todo[name], options.out, jobs=options.jobs, tell=tell, check=check)
        outcomes.append(outcome_of(name, claim, todo[name], quick=options.quick))
        write_outcome(outcomes[-1], options.out)
    console.print(_verdicts(outcomes))
    if options.page is not None:
        page = write_claims(outcomes, options.page, quick=options.quick)
        sys.stdout.write(terminal_safe(f"page: {page}\n"))


def is_override(argument: str) -> bool:
    return "=" in argument or argument.startswith(("+", "~"))


def _chosen(options: argparse.Namespace) -> dict[str, Claim]:
    files = claim_files(options.config_dir)
    given = [name for name in options.names if is_override(name)]
    names = [name for name in options.names if name not in given]
    if unknown := [name for name in names if name not in files]:
        raise UserError(f"no claim '{unknown[0]}'; there are: {', '.join(files)}")
    return {name: on_other(load_claim(name, files[name]), given) for name in names or files}


def _planned(name: str, claim: Claim, options: argparse.Namespace) -> list[PlannedRun]:
    where = {"quick": options.quick, "config_dir": options.config_dir}
    plan = partial(planned, name, claim, _seeds(claim, options), options.out, **where)
    if not options.list:
        return plan(configs=check_runs(name, claim, **where))
    begun = dict.fromkeys(one.run for one in plan() if one.is_done())  # only these: a run takes a quarter of a second
    return plan(configs={run: _hash_if_any(name, claim, run, **where) for run in begun})


def _hash_if_any(name: str, claim: Claim, run: str, *, quick: bool, config_dir: Path | None) -> str:
    """Return what `run_hash` does; of a run that would be refused now "", so that none of it is done."""
    try:
        return run_hash(name, claim, run, quick=quick, config_dir=config_dir)
    except UserError:
        return ""


def _seeds(claim: Claim, options: argparse.Namespace) -> range:
    number = options.seeds or (QUICK_SEEDS if options.quick else claim.seeds)
    return range(options.first_seed, options.first_seed + number)


def _costs(claims: dict[str, Claim], todo: dict[str, list[PlannedRun]], *, quick: bool) -> Table:
    """Return what is left of each claim and, of several, of all: by the runs that have ended here, else by its file."""
    table = Table("claim", "", "runs", "done", "left, one process")
    left: dict[Path, float | None] = {}
    sure = True
    for name, planned_runs in todo.items():
        runs = _different(planned_runs)
        mine = [one for one in runs if not one.is_done()]
        here, elsewhere = mean_seconds(runs), claims[name].seconds_a_run()
        each = elsewhere if here is None else here
        sure &= not mine or here is not None
        left |= {one.folder: each for one in mine if each is not None or one.folder not in left}
        cost = "-" if not mine else _cost([each] * len(mine), sure=here is not None, quick=quick)
        table.add_row(name, escape(claims[name].claim), str(len(runs)), str(len(runs) - len(mine)), cost)
    if len(todo) > 1 and left:
        table.add_section()
        all_runs = _different([one for runs in todo.values() for one in runs])
        cost = _cost(list(left.values()), sure=sure, quick=quick)
        table.add_row("all", "runs that claims share counted once", str(len(all_runs)), str(len(all_runs) - len(left)), cost)
    return table


def _different(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Return runs without those that another one stands for, with the same overrides."""
    return list({one.folder: one for one in runs}.values())


def _cost(seconds: list[float | None], *, sure: bool, quick: bool) -> str:
    """Return the time of runs that are left, of some of which it may not be known. `sure`: measured here; else it is that of
    the claims' files, whose runs took over what earlier ones had finished."""
    known = [one for one in seconds if one is not None]
    if not known:
        return "not known before a run has ended"
    about = "" if sure else "less than " if quick else "at least "
    return about + clock(sum(known)) + (f", and {len(seconds) - len(known)} runs" if len(known) < len(seconds) else "")


def _verdicts(outcomes: Sequence[Outcome]) -> Table:
    table = Table("claim", *HEADINGS)
    for outcome in outcomes:
        for cells in contrast_rows(outcome):
            table.add_row(outcome.name, *map(escape, cells))
        word = outcome.word() + outcome.qualification()
        table.add_row(outcome.name, *[""] * (len(HEADINGS) - 1), word, style="bold", end_section=True)
    return table
