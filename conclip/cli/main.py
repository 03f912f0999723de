"""The command line: subcommand -> Hydra main, exit codes, and nothing else.

Exit codes: 0 done, 1 a bug of ours (traceback), 2 bad input (one line), 3 the machine failed the run (one line: disk,
memory, a process that was killed), 130, 143 and 129 stopped by SIGINT, SIGTERM and SIGHUP.
"""

import difflib
import errno
import os
import sys
import traceback
from contextlib import contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from conclip.cli.subcommands import PLAIN_SUBCOMMANDS, SUBCOMMANDS, USAGE
from conclip.errors import EXIT_FAILED_RUN, UserError, explain
from conclip.processes import (
    ask_for_gpus_without_using_one,
    end_at_once,
    lasting,
    let_threads_sleep,
    preload_allocator,
    prepare_gpu,
    protect_children,
    start_again,
)
from conclip.redact import learn_secrets, terminal_safe
from conclip.runs.interrupts import Interrupted, handle_signals

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator

    from omegaconf import DictConfig


MAX_LINE = 1000
"""Longest error line [characters]; of a longer one, both ends are shown."""

EXIT_BAD_INPUT = 2
"""Exit code of bad input."""


def command() -> None:
    """Run the console script. What samples and trains, or measures how fast that is, starts again with a better
    allocator, if there is one."""
    if sys.argv[1:2] and sys.argv[1] in (*SUBCOMMANDS, "doctor") and preload_allocator():
        start_again()
    try:
        main()
    except SystemExit as end:
        if end.code != EXIT_BAD_INPUT:
            raise
        _leave(EXIT_BAD_INPUT)  # a run may meet it late
    end_at_once()


def main() -> None:
    """Run a subcommand in this process."""
    if sys.stdout is None:  # closed; libraries write to it all the same
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    arguments = sys.argv[1:] or ["--help"]
    subcommand = arguments[0]
    sys.argv = [f"conclip {subcommand}", *arguments[1:]]
    try:
        if subcommand in ("-h", "--help", "help"):
            rows = "\n".join(f"  {name:<14} {what}" for name, what in (SUBCOMMANDS | PLAIN_SUBCOMMANDS).items())
            print(USAGE.format(rows=rows), end="")  # noqa: T201
        elif subcommand in ("-V", "--version"):
            from importlib.metadata import version  # noqa: PLC0415  0.03 s to import

            print("conclip", version("conclip"))  # noqa: T201
        else:
            _start(subcommand, arguments[1:])
        sys.stdout.flush()  # while an error of it can still be told
    except UserError as error:
        fail(f"conclip {subcommand}", str(error))
    except BrokenPipeError:  # the reader (`| head`) has closed the pipe
        from conclip.runs.terminal import discard_output  # noqa: PLC0415

        discard_output(sys.stdout)
    except Interrupted as stopped:
        begins_anew = subcommand in PLAIN_SUBCOMMANDS or "resume=never" in arguments
        goes_on = "" if begins_anew else "; finished work is saved: repeat the command to resume"
        _say(f"\nstopped by {stopped}{goes_on}\n")
        _leave(stopped.exit_code)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            fail(f"conclip {subcommand}", f"a path is too long for this file system: '{str(error.filename)[:80]}...'")
        message = explain(error)
        if message is None:
            raise
        _say(_line(f"conclip {subcommand}", message))
        _leave(EXIT_FAILED_RUN)


def fail(command: str, message: str) -> NoReturn:
    """End with one line on stderr and the exit code of bad input."""
    _say(_line(command, message))
    sys.exit(EXIT_BAD_INPUT)


def _line(command: str, message: str) -> str:
    line = " ".join(terminal_safe(message).split())
    if len(line) > MAX_LINE:
        line = f"{line[: MAX_LINE // 2]} ... {line[-MAX_LINE // 2 :]}"
    return f"{command}: error: {line}\n"


def _show_bug(error_type: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Write a traceback as Python does, without secrets and control characters."""
    _say(terminal_safe("".join(traceback.format_exception(error_type, error, trace))))


def _say(text: str) -> None:
    """Write to stderr, if anybody reads it: exit codes hold without."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        from conclip.runs.terminal import discard_output  # noqa: PLC0415

        discard_output(sys.stderr)


def _leave(code: int) -> NoReturn:
    """End at once. Run folder, engine and grader are closed by now; tearing down torch and vLLM object by object would cost
    seconds, and waiting for threads that talk to a server longer."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    os._exit(code)


def _start(subcommand: str, arguments: list[str]) -> None:
    known = [*SUBCOMMANDS, *PLAIN_SUBCOMMANDS]
    if subcommand not in known:
        near = difflib.get_close_matches(subcommand, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"choose one of {', '.join(known)}"
        fail("conclip", f"unknown subcommand '{subcommand}': {hint}")
    learn_secrets()
    sys.excepthook = _show_bug
    protect_children()
    let_threads_sleep()
    ask_for_gpus_without_using_one()
    handle_signals()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # an error that reaches the user is a bug: show the whole traceback
    if subcommand in SUBCOMMANDS:
        return _run(subcommand, arguments)
    from conclip.cli import tools  # noqa: PLC0415  only what is used gets imported

    try:
        getattr(tools, subcommand)(arguments)
    except SystemExit as end:
        if end.code:
            raise  # else it has shown its help


def _run(subcommand: str, arguments: list[str]) -> None:
    from hydra._internal.utils import get_args_parser  # noqa: PLC0415  the usage page above should not wait for it

    from conclip.cli.help import help_page  # noqa: PLC0415
    from conclip.config.compose import compose_config, config_folders, sweep_jobs  # noqa: PLC0415
    from conclip.runs.terminal import open_console  # noqa: PLC0415

    dry_run = "--dry-run" in arguments
    parser = get_args_parser()
    parser.error = _refuse_flag
    flags = parser.parse_intermixed_args([argument for argument in arguments if argument != "--dry-run"])
    if flags.config_path or flags.experimental_rerun:
        raise UserError("--config-path and --experimental-rerun are not conclip's; --config-dir adds a folder of configs")
    if (flags.resolve or flags.package) and not flags.cfg:
        raise UserError("--resolve and --package say how --cfg shows the config; add --cfg job")
    primary = flags.config_name or subcommand.replace("-", "_")
    compose = partial(compose_config, subcommand, primary=flags.config_name, config_dir=flags.config_dir)
    if flags.help:
        with _resolving():
            return open_console().print(help_page(config_folders(flags.config_dir), primary, *compose(flags.overrides)))
    if flags.cfg or flags.info or flags.hydra_help or flags.shell_completion:
        with _resolving():
            return _show_hydra(subcommand, primary, flags, compose)
    if not flags.multirun:
        (overrides,) = sweep_jobs(flags.overrides, sweeping=False)
        return (_plan if dry_run else _execute)(subcommand, compose(overrides)[0])
    from conclip.cli.sweep import Job, job_names, launch, run_here  # noqa: PLC0415
    from conclip.config.compose import quoted  # noqa: PLC0415
    from conclip.runs.files import expanded  # noqa: PLC0415

    of_hydra = [override for override in flags.overrides if override.startswith(("hydra/", "hydra."))]
    combinations = list(sweep_jobs([o for o in flags.overrides if o not in of_hydra], sweeping=True))
    composed = [compose([*own, *of_hydra])[0] for own in combinations]
    launchers = [override.partition("=")[2] for override in of_hydra if override.startswith("hydra/launcher=")]
    here = launchers in ([], ["basic"])
    names = job_names([one.name for one in composed], combinations)
    for one, job_name in zip(composed, names, strict=True):
        one.name = job_name
    if dry_run:
        return _plan_all(subcommand, composed)
    for one in composed:  # check all jobs before the first one runs
        _check(subcommand, one, here=here)
    named = (("--config-dir", flags.config_dir), ("--config-name", flags.config_name))
    where = [part for flag, value in named if value is not None for part in (flag, value)]
    where += [override for override in of_hydra if override.startswith("hydra.searchpath=")]
    jobs = [
        Job(one.name, [subcommand, *where, *own, f"name={quoted(one.name)}"])
        for own, one in zip(combinations, composed, strict=True)
    ]
    if here:
        return run_here(jobs)
    folder = expanded(composed[0].paths.outputs).resolve() / "sweeps"
    return launch(jobs, of_hydra, folder, flags.config_dir)


def _plan_all(subcommand: str, jobs: "list[DictConfig]") -> None:
    """Show the plan of each job. Raises UserError at the end where one is refused: the others' plans are of use all the
    same."""
    refused: list[str] = []
    for job in jobs:
        try:
            _plan(subcommand, job)
        except UserError as error:
            refused.append(f"{job.name}: {error}")
    if refused:
        raise UserError(refused[0] + f"; {len(refused) - 1} more jobs are refused" * (len(refused) > 1))


@contextmanager
def _resolving() -> "Iterator[None]":
    """Raise UserError for a value that cannot be resolved as it is shown."""
    from omegaconf.errors import OmegaConfBaseException  # noqa: PLC0415

    from conclip.config.typed import unresolved  # noqa: PLC0415

    try:
        yield
    except OmegaConfBaseException as error:
        raise unresolved(error) from error


def _show_hydra(
    subcommand: str, primary: str, flags: "Namespace", compose: "Callable[[list[str]], tuple[DictConfig, object]]"
) -> None:
    """Show the composed config, or what else Hydra tells about itself."""
    import hydra  # noqa: PLC0415
    from omegaconf import OmegaConf  # noqa: PLC0415

    from conclip.config.compose import config_folder, for_hydra  # noqa: PLC0415
    from conclip.config.foreign import limit_yaml_size  # noqa: PLC0415
    from conclip.config.schema import SCHEMAS  # noqa: PLC0415
    from conclip.config.typed import schema_keys  # noqa: PLC0415

    if flags.cfg or flags.info:
        composed = compose(flags.overrides)[0]
        if flags.resolve:
            OmegaConf.to_container(composed, resolve=True)
        if flags.cfg == "job" and flags.package is None:
            sys.stdout.write(OmegaConf.to_yaml(composed, resolve=flags.resolve))
            return
    sys.argv[1:] = for_hydra(sys.argv[1:], schema_keys(SCHEMAS[subcommand]))[0]
    with limit_yaml_size():
        hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=primary)(lambda _: None)()


def _refuse_flag(message: str) -> NoReturn:
    raise UserError(f"{message}; see --help and --hydra-help")


def _execute(subcommand: str, composed: "DictConfig") -> None:
    from conclip.cluster.choose import check_machine  # noqa: PLC0415
    from conclip.experiments.inputs import checked  # noqa: PLC0415

    config, inputs = checked(subcommand, composed)
    check_machine(config)
    prepare_gpu(repeatable=config.rollout.deterministic, frees_pages=config.shares_gpu)
    if config.cluster.kind == "torchrun" and os.environ.get("RANK", "0") != "0":
        if config.learning is not None:
            from conclip.cluster.followers import follow_under_torchrun  # noqa: PLC0415
            from conclip.training.learner import make_learner  # noqa: PLC0415

            follow_under_torchrun(make_learner)
        return
    with lasting():
        from conclip.experiments.commands import execute  # noqa: PLC0415  imports torch: only now

    execute(subcommand, config, inputs)


def _check(subcommand: str, composed: "DictConfig", *, here: bool) -> None:
    """Check all that is checked of a run before its engine loads. `here`: whether it would run on this machine."""
    from conclip.cluster.choose import check_machine  # noqa: PLC0415
    from conclip.experiments.inputs import checked  # noqa: PLC0415

    config, inputs = checked(subcommand, composed)
    if here:
        check_machine(config)
    with lasting():
        from conclip.experiments.commands import all_prompts  # noqa: PLC0415
    all_prompts(config, inputs)


def _plan(subcommand: str, composed: "DictConfig") -> None:
    """Say what would be done, what of it is done already, and what the rest will cost. Nothing is written. Raises UserError
    at the end where the run itself would be refused for its memory."""
    from conclip.cluster.choose import check_machine  # noqa: PLC0415
    from conclip.experiments.inputs import checked, model_identity  # noqa: PLC0415

    config, inputs = checked(subcommand, composed)
    with lasting():
        from conclip.experiments.commands import all_prompts, run_identity  # noqa: PLC0415
    from conclip.experiments.memory import memory_table, place_of  # noqa: PLC0415
    from conclip.experiments.memory_plan import memory_of_run  # noqa: PLC0415
    from conclip.experiments.plan import plan_table, planned_stages, power_lines  # noqa: PLC0415
    from conclip.experiments.timing import by_data_sheet  # noqa: PLC0415
    from conclip.runs.attempts import run_home  # noqa: PLC0415
    from conclip.runs.terminal import open_console  # noqa: PLC0415

    prompts = all_prompts(config, inputs)
    planned = planned_stages(config, inputs, prompts)
    memory = memory_of_run(config, inputs, prompts, place_of(config.device))
    home, identity = run_home(subcommand, config), run_identity(subcommand, config, inputs)
    console = open_console()
    model = model_identity(config, inputs)
    seconds, from_scratch = by_data_sheet(config, memory), config.resume == "never"
    console.print(plan_table(planned, home, identity, model, from_scratch=from_scratch, by_data_sheet=seconds))
    lines = power_lines(config, inputs)
    if memory is not None:
        console.print(memory_table(memory.parts))
        if not memory.impossible:
            lines.append(f"memory: {memory.verdict()}")
    notes = list(inputs.notes)
    try:
        check_machine(config)
    except UserError as error:  # a plan may be made elsewhere
        notes.append(f"here the run itself would be refused: {error}")
    for line in (*lines, *(f"warning: {note}" for note in notes)):
        console.print(line, markup=False, soft_wrap=True)
    if memory is not None:
        memory.check("" if config.device.kind else "; device=NAME plans for another machine")
