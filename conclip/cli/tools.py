"""The subcommands that take arguments instead of a config: `PLAIN_SUBCOMMANDS`."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, get_args

from rich.text import Text

from conclip.cli.completion import SCRIPTS, script
from conclip.cli.doctor import config_checks, machine_checks
from conclip.cli.subcommands import PLAIN_SUBCOMMANDS, SUBCOMMANDS
from conclip.config.compose import compose_config
from conclip.config.groups import DeviceConfig, Dtype
from conclip.config.schema import SCHEMAS, BaseConfig
from conclip.errors import EXIT_FAILED_RUN, UserError
from conclip.evaluation import compare as paired_results
from conclip.evaluation.regrade import Columns, grade_file
from conclip.evaluation.rows import read_rows, select_rows
from conclip.experiments.inputs import Inputs, checked
from conclip.experiments.memory import memory_table, place_of
from conclip.experiments.memory_plan import memory_of_run
from conclip.grading.verifier import find_verifier
from conclip.processes import prepare_gpu
from conclip.redact import terminal_safe
from conclip.report.data import RunData, read_run
from conclip.report.export import write_files
from conclip.report.page import write_page
from conclip.runs.files import check_target, expanded, finite, write_text
from conclip.runs.terminal import open_console

if TYPE_CHECKING:
    from conclip.rollout.session import Prompts


def _budget(text: str) -> int | None:
    if text != "none" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"takes a whole number of tokens, or none, got '{text}'")
    return None if text == "none" else int(text)


ROW_FILTERS: dict[str, Callable[[str], str | float | None]] = {
    "model": str,
    "prompt": str,
    "template": str,
    "thinking_budget": _budget,
    "temperature": float,
}
"""Columns by which `compare` selects rows, and the functions that convert their values."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors end like all bad input: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def grade(arguments: list[str]) -> None:
    parser = Parser(
        prog="conclip grade",
        description="Grade rows with columns gold and response (optional: choices, precision, finish_reason), or conclip's "
        "own rows-*.jsonl. What stands inside a thinking part is no answer; another tool's response without \\boxed{} is "
        "taken whole, from behind that part. Adds outcome, extracted, method and grader_version to each row.",
    )
    parser.add_argument("source", metavar="IN", type=Path, help="JSON lines, CSV or Parquet")
    parser.add_argument("target", metavar="OUT", type=Path, help="the graded JSON lines")
    parser.add_argument("--gold", default="gold", metavar="COLUMN", help="column of the gold answer: --gold doc.answer")
    parser.add_argument(
        "--gold-index", metavar="COLUMN", help="where the gold column lists options: column of the right one's index"
    )
    parser.add_argument(
        "--gold-pattern",
        metavar="REGEX",
        help=r"expression with one group around the answer in a gold solution: '#### (.+)'",
    )
    parser.add_argument("--response", default="response", metavar="COLUMN", help="column of the response: resps.0.0")
    parser.add_argument("--audit", action="store_true", help="grade with a second, independent comparison too")
    parser.add_argument(
        "--verifier", metavar="FILE.py:FUNCTION", help="function of your own that judges whole responses (docs/yours.md)"
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes that grade (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    if options.verifier is not None and (options.audit or options.gold_index or options.gold_pattern):
        parser.error("--verifier judges whole responses: leave out --audit, --gold-index and --gold-pattern")
    columns = Columns(
        gold=options.gold,
        response=options.response,
        gold_index=options.gold_index,
        gold_pattern=options.gold_pattern,
        verifier=None if options.verifier is None else find_verifier("--verifier", options.verifier),
    )
    notes: list[str] = []
    files = (options.source, options.target)
    counts = grade_file(*files, audit=options.audit, columns=columns, notes=notes, num_workers=options.jobs)
    for note in notes:
        sys.stderr.write(terminal_safe(f"note: {note}\n"))
    for name, count in sorted(counts.items()):
        sys.stdout.write(f"{count:>8}  {name}\n")
    sys.stdout.write(terminal_safe(f"graded rows: {options.target}\n"))


def compare(arguments: list[str]) -> None:
    parser = Parser(
        prog="conclip compare",
        usage="conclip compare FIRST [SECOND] [--model A [B]] [--prompt A [B]] [--template A [B]] "
        "[--thinking-budget A [B]] [--temperature A [B]] [OPTIONS]",
        description="Differences in accuracy and length between two evaluations, of one run or of two, paired by problem: "
        "intervals, permutation tests, non-inferiority, and which outcomes turned into which.",
    )
    parser.add_argument(
        "first",
        metavar="FIRST",
        type=Path,
        help="a run that evaluated (outputs/<subcommand>/<name>, or an attempt in it), or a file with its rows",
    )
    parser.add_argument(
        "second", metavar="SECOND", type=Path, nargs="?", help="the same, of what is compared with it; default: FIRST"
    )
    parser.add_argument(
        "--margin", type=float, default=0.03, help="largest drop of accuracy that counts as kept, as a share; default: 0.03"
    )
    for name, convert in ROW_FILTERS.items():
        words = name.replace("_", " ")
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=convert,
            nargs="+",
            help=f"one {words} for both sides, or two: FIRST's, then SECOND's"
            + ("; none: without a budget" if convert is _budget else ""),
        )
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    options = parser.parse_intermixed_args(arguments)
    for name in ROW_FILTERS:
        if len(getattr(options, name) or ()) > 2:
            parser.error(
                f"--{name.replace('_', '-')} takes one value or two (runs stand before it, or after another option)"
            )
    if not 0 < options.margin < 1:
        parser.error(f"--margin is a share: it must lie in (0, 1), got {options.margin:g}")
    if options.json:
        check_target(options.json, "--json", inputs=[options.first, *([options.second] if options.second else [])])
    chosen = {name: getattr(options, name) for name in ROW_FILTERS if getattr(options, name)}
    if options.second is None and all(len(values) == 1 for values in chosen.values()):
        options_there = ", ".join(f"--{name.replace('_', '-')}" for name in ROW_FILTERS)
        parser.error(f"nothing to compare FIRST with; give SECOND, or two values of one of {options_there}")
    sides = [
        select_rows(read_rows(path), **{name: values[min(side, len(values) - 1)] for name, values in chosen.items()})
        for side, path in enumerate((options.first, options.second or options.first))
    ]
    results = paired_results.paired(*sides)
    console = open_console()
    for text in paired_results.differences(*sides):
        console.print(f"warning: {text}", style="yellow", soft_wrap=True)
    console.print(paired_results.INTERVALS)
    for result in results:
        for line in paired_results.sentences(result, options.margin):
            console.print(line, soft_wrap=True)
        console.print(paired_results.transition_table(result))
    if options.json:
        numbers = finite([paired_results.to_json(result) for result in results])
        write_text(options.json, json.dumps(numbers, indent=2, allow_nan=False) + "\n")


def report(arguments: list[str]) -> None:
    parser = Parser(
        prog="conclip report",
        description="One HTML page of a run, or of several side by side: result, figures, every response, lineage. It opens "
        "from disk and loads nothing.",
    )
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="outputs/<subcommand>/<name>, or an attempt in it")
    parser.add_argument("--out", type=Path, help="the page; default: report.html in the run's folder, or here for several")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="also figures as SVG and PNG, tables as .md and .tex")
    options = parser.parse_intermixed_args(arguments)
    runs = disambiguate_names([read_run(path) for path in options.runs])
    page = options.out or (runs[0].folder / "report.html" if len(runs) == 1 else Path("report.html"))
    check_target(page, "--out")
    if page.suffix not in (".html", ".htm"):
        raise UserError(f"--out: '{page}' must end in .html")
    if options.figures is not None and options.figures.exists() and not options.figures.is_dir():
        raise UserError(f"--figures: '{options.figures}' is a file; give a folder")
    write_page(runs, page)
    sys.stdout.write(terminal_safe(f"report: {page}\n"))
    if options.figures is not None:
        for path in write_files(runs, options.figures):
            sys.stdout.write(terminal_safe(f"{path}\n"))


def merge(arguments: list[str]) -> None:
    parser = Parser(
        prog="conclip merge",
        description="Make one model folder of an adapter (LoRA, as conclip and TRL write them) and its base, or of a model "
        "folder in another precision, for eval, training, serving or the hub.",
    )
    parser.add_argument("source", metavar="SOURCE", help="folder of an adapter, a checkpoint with one, or a model")
    parser.add_argument("target", metavar="OUT", type=Path, help="the new folder")
    parser.add_argument("--base", metavar="MODEL", help="the adapter's base: a folder or a hub id; by default as it says")
    parser.add_argument("--dtype", choices=get_args(Dtype), default="bfloat16", help="precision of OUT (default: bfloat16)")
    options = parser.parse_args(arguments)
    from conclip.experiments.merge import merge as make  # noqa: PLC0415  imports torch

    base = make(options.source, options.target, base=options.base, dtype=options.dtype)
    of = "" if base == Path(options.source) else f" and '{base}'"
    sys.stdout.write(terminal_safe(f"{options.dtype} model of '{options.source}'{of}: {options.target}\n"))


def claims(arguments: list[str]) -> None:
    from conclip.cli.claims import add_arguments, run  # noqa: PLC0415  imports what draws figures

    parser = Parser(
        prog="conclip claims",
        description="Run the experiments behind the paper's claims, and say which hold. Runs that ended are not run again.",
    )
    add_arguments(parser)
    run(parser.parse_intermixed_args(arguments))


def disambiguate_names(runs: Sequence[RunData]) -> list[RunData]:
    """Return the runs under names that differ, as short as possible. Raises UserError when a run is given twice."""
    namings: tuple[Callable[[RunData], str], ...] = (
        lambda run: run.name,
        lambda run: f"{run.name} {run.folder.name}",
        lambda run: f"{run.subcommand} {run.name} {run.folder.name}",
        lambda run: str(run.folder),
    )
    for naming in namings:
        names = [naming(run) for run in runs]
        if len(set(names)) == len(names):
            return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]
    raise UserError(f"'{runs[-1].folder}' or another run is given twice")


def doctor(arguments: list[str]) -> None:
    parser = Parser(
        prog="conclip doctor",
        description="One line a check of this machine and, with a subcommand and its overrides, of that config and what it "
        "needs. Nothing is written. Exit code 2 when the config is refused, 3 when a check failed.",
    )
    names = list(SCHEMAS)
    parser.add_argument("subcommand", metavar="SUBCOMMAND", nargs="?", choices=names, help=", ".join(names))
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="as the subcommand takes them")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="sample a few responses, update once, and say what the run will take",
    )
    parser.add_argument(
        "--config-dir", metavar="DIR", help="a folder with config files of your own, as the subcommand takes it"
    )
    options = parser.parse_intermixed_args(arguments)
    if options.measure and options.subcommand is None:
        parser.error("--measure needs a subcommand and its overrides")
    outputs, refused, checks, measurable, memory = Path("outputs"), None, iter(()), None, None
    if options.subcommand is not None:
        try:
            composed, _ = compose_config(options.subcommand, options.overrides, config_dir=options.config_dir)
            config, inputs = checked(options.subcommand, composed)
            prepare_gpu(repeatable=config.rollout.deterministic, frees_pages=config.shares_gpu)
            from conclip.experiments.commands import all_prompts  # noqa: PLC0415  imports torch

            prompts = all_prompts(config, inputs)
            measurable = (config, inputs, prompts) if inputs.served_name is None else None
            memory = memory_of_run(config, inputs, prompts, place_of(config.device))
            outputs, checks = expanded(config.paths.outputs), config_checks(config, inputs, memory)
        except UserError as error:
            refused = error
    console, failed = open_console(), False
    for check in chain(machine_checks(outputs), checks):
        style = {"ok": "green", "note": "yellow", "FAILED": "red"}[check.state]
        line = f"{check.name:<22}{check.detail}" + (f": {check.remedy}" if check.remedy else "")
        console.print(Text.assemble((f"{check.state:<8}", style), line), soft_wrap=True)
        failed |= check.state == "FAILED"
    if refused is not None:
        raise refused
    if memory is not None:
        console.print(memory_table(memory.parts))
    if failed:
        sys.exit(EXIT_FAILED_RUN)
    if options.measure:
        if measurable is None:
            raise UserError("--measure is for models of one's own; a server's speed is its own affair")
        for line in _measure(*measurable):
            console.print(line, markup=False, soft_wrap=True)


def _measure(config: BaseConfig, inputs: Inputs, prompts: "Mapping[Path, Prompts]") -> list[str]:
    from conclip.experiments.measure import describe, measure  # noqa: PLC0415  imports torch
    from conclip.experiments.plan import planned_stages  # noqa: PLC0415

    here = memory_of_run(config, inputs, prompts, place_of(DeviceConfig()))
    settled = config if here is None else here.settled
    return describe(measure(settled, inputs, prompts), planned_stages(config, inputs, prompts))


def completion(arguments: list[str]) -> None:
    parser = Parser(
        prog="conclip completion",
        description="Prints what makes a shell complete subcommands, groups, options and keys. bash, zsh: put "
        'eval "$(conclip completion bash)" into the shell\'s start file; fish: conclip completion fish | source.',
    )
    parser.add_argument("shell", choices=SCRIPTS)
    options = parser.parse_args(arguments)
    sys.stdout.write(script(options.shell, [*SUBCOMMANDS, *PLAIN_SUBCOMMANDS], list(SCHEMAS)))
