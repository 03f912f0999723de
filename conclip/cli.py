"""The command line: subcommand -> Hydra main, exit codes, and nothing else.

Exit codes: 0 done, 1 a bug of ours (traceback), 2 bad input (one line), 130 interrupted.
"""

import difflib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from conclip.config import BaseConfig
    from conclip.inputs import Inputs

SUBCOMMANDS = {
    "probe": "measure the pass rate of each problem",
    "train-phase1": "train on hard problems, for accuracy",
    "train-phase2": "train on a few occasionally solvable problems, for brevity",
    "eval": "accuracy and length of a model on test problems",
    "two-phase": "the whole recipe: probe, phase 1, probe, phase 2, proof on held-out problems",
}

USAGE = """usage: conclip SUBCOMMAND [key=value | group=option ...]

Shortens the chains of thought of a reasoning model with reinforcement learning, and proves that accuracy held.

{rows}

  conclip SUBCOMMAND --help        groups, keys and their present values
  conclip SUBCOMMAND --cfg job     the composed config
  conclip SUBCOMMAND -m key=a,b    one run per value, each in a process of its own

Examples
  conclip two-phase
  conclip eval model=hf model.path=/path/to/model data=gsm8k data.test.gsm8k.path=test.jsonl
  conclip train-phase2 algo=grpo phase.num_steps=10
"""

INTERRUPTED = 130


def main() -> None:
    """Entry point of the console script."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        rows = "\n".join(f"  {name:<14} {what}" for name, what in SUBCOMMANDS.items())
        sys.stdout.write(USAGE.format(rows=rows))
        return
    subcommand = arguments[0]
    if subcommand not in SUBCOMMANDS:
        near = difflib.get_close_matches(subcommand, SUBCOMMANDS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"choose one of {', '.join(SUBCOMMANDS)}"
        fail("conclip", f"unknown subcommand '{subcommand}': {hint}")
    sys.argv = [f"conclip {subcommand}", *arguments[1:]]
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # a traceback that reaches the user is a bug: show all of it
    try:
        _run(subcommand, arguments[1:])
    except BrokenPipeError:  # the reader of a page (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; what was written so far is whole\n")
        sys.exit(INTERRUPTED)


def fail(command: str, message: str) -> NoReturn:
    """One line on stderr, exit code 2."""
    sys.stderr.write(f"{command}: error: {' '.join(message.split())}\n")
    sys.exit(2)


def config_folder() -> Path:
    """conf/ beside the package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def _run(subcommand: str, arguments: list[str]) -> None:
    import hydra  # noqa: PLC0415  the usage page above should not wait for it
    from hydra._internal.utils import get_args_parser  # noqa: PLC0415

    from conclip.config import UserError  # noqa: PLC0415

    flags = get_args_parser().parse_args(arguments)
    primary = flags.config_name or subcommand.replace("-", "_")
    compose = partial(_compose, subcommand, primary, flags.config_dir)
    try:
        if flags.help:
            return _show_help(primary, *compose(flags.overrides))
        if flags.multirun:
            for overrides in sweep_jobs(flags.overrides, sweeping=True):
                _check(subcommand, compose(overrides)[0])
        elif flags.cfg or flags.info:
            compose(flags.overrides)
        elif not (flags.hydra_help or flags.shell_completion):
            (overrides,) = sweep_jobs(flags.overrides, sweeping=False)
            return _execute(subcommand, compose(overrides)[0])
    except UserError as error:
        fail(f"conclip {subcommand}", str(error))

    def job(composed: "DictConfig") -> None:
        from hydra.core.hydra_config import HydraConfig  # noqa: PLC0415

        number, overrides = HydraConfig.get().job.num, list(HydraConfig.get().overrides.task)
        _run_in_own_process(subcommand, flags.config_dir, overrides, composed.name, number)

    hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=primary)(job)()


def _compose(
    subcommand: str, primary: str, config_dir: str | None, overrides: list[str]
) -> "tuple[DictConfig, Mapping[str, str | None]]":
    """One job's config as Hydra composes it, and the option chosen in each group. Raises UserError, with the nearest
    name for an unknown key."""
    from hydra import compose, initialize_config_dir  # noqa: PLC0415
    from hydra.errors import HydraException  # noqa: PLC0415
    from omegaconf import open_dict  # noqa: PLC0415
    from omegaconf.errors import OmegaConfBaseException  # noqa: PLC0415

    from conclip.config import SCHEMAS, UserError  # noqa: PLC0415
    from conclip.validate import plain_keys, unknown_key  # noqa: PLC0415

    known = plain_keys(SCHEMAS[subcommand])
    where = [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"] if config_dir is not None else []
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            composed = compose(primary, overrides=[*where, *overrides], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        text = str(error)
        for override in overrides:
            key = override.lstrip("+~").split("=", 1)[0]
            if (f"'{key}'" in text and "is not in struct" in text) or f"Could not override '{key}'" in text:
                raise UserError(unknown_key(key, known)) from error
        raise UserError(text.replace("\n", " ")) from error
    with open_dict(composed):
        return composed, composed.pop("hydra").runtime.choices


def sweep_jobs(overrides: list[str], *, sweeping: bool) -> Iterator[list[str]]:
    """The overrides of every job of a sweep (of the one job when there is no sweep).

    Raises UserError on an override Hydra cannot parse.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser  # noqa: PLC0415
    from hydra.errors import HydraException  # noqa: PLC0415

    from conclip.config import UserError  # noqa: PLC0415

    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise UserError(f"cannot read an override: {str(error).splitlines()[0]}; overrides are key=value") from error
    choices: list[list[str]] = []
    for text, override in zip(overrides, parsed, strict=True):
        if not override.is_sweep_override():
            choices.append([text])
        elif sweeping:
            choices.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        else:
            raise UserError(f"'{text}' names several values; add -m to run one job per value")
    for combination in product(*choices):
        yield list(combination)


def _show_help(primary: str, composed: "DictConfig", choices: "Mapping[str, str | None]") -> None:
    from conclip.help import show_help  # noqa: PLC0415

    show_help(config_folder(), primary, composed, choices)


def _check(subcommand: str, composed: "DictConfig") -> "tuple[BaseConfig, Inputs]":
    """The typed config and what it points at, found and read. Raises UserError; nothing is written."""
    from conclip.config import SCHEMAS  # noqa: PLC0415
    from conclip.inputs import load_inputs  # noqa: PLC0415
    from conclip.validate import to_config  # noqa: PLC0415

    config = to_config(SCHEMAS[subcommand], composed)
    return config, load_inputs(config)


def _execute(subcommand: str, composed: "DictConfig") -> None:
    config, inputs = _check(subcommand, composed)
    from conclip.commands import execute  # noqa: PLC0415  imports torch and vLLM: only now
    from conclip.runlog import Run  # noqa: PLC0415

    run = Run(subcommand, config)
    try:
        execute(subcommand, config, inputs, run)
        run.say(f"run folder: {run.folder}")
    finally:
        run.close()


def _run_in_own_process(subcommand: str, config_dir: str | None, overrides: list[str], name: str, number: int) -> None:
    """One job of a sweep. The engine keeps global state, so two jobs cannot share a process."""
    where = ["--config-dir", config_dir] if config_dir is not None else []
    named = [override for override in overrides if not override.startswith("name=")]
    command = [sys.executable, "-m", "conclip", subcommand, *where, *named, f"name={name}-{number}"]
    outcome = subprocess.run(command, check=False)
    if outcome.returncode != 0:
        sys.exit(outcome.returncode)
