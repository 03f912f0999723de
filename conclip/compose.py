"""From overrides to a config: Hydra composes conf/, `conclip.validate` types and checks the outcome."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, open_dict

from conclip.config import SCHEMAS, BaseConfig, ProblemSetConfig, UserError
from conclip.foreign import bounded_files, check_hydra
from conclip.validate import plain_keys, to_config, unknown_key


def config_folder() -> Path:
    """conf/ beside the package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def load_config(subcommand: str, *overrides: str) -> BaseConfig:
    """A subcommand's typed and checked config, as the command line would make it. Raises UserError."""
    return to_config(SCHEMAS[subcommand], compose_config(subcommand, overrides)[0])


def compose_config(
    subcommand: str, overrides: Sequence[str], *, primary: str | None = None, config_dir: str | None = None
) -> tuple[DictConfig, Mapping[str, str | None]]:
    """One job's config as Hydra composes it, and the option chosen in each group.

    `primary` names another primary file than the subcommand's own, `config_dir` a folder that is searched as well. Raises
    UserError, with the nearest name for an unknown key.
    """
    known = plain_keys(SCHEMAS[subcommand])
    if several := [text for text in overrides if text.startswith("logger=[")]:
        raise UserError(f"'{several[0]}': the last one would win; name them by logger.trackers=[...]")
    if config_dir is not None and not Path(config_dir).is_dir():
        raise UserError(f"--config-dir: no folder '{config_dir}'")
    name = primary or subcommand.replace("-", "_")
    folders = [config_folder(), *([Path(config_dir).resolve()] if config_dir is not None else [])]
    folders.sort(key=lambda folder: not (folder / f"{name}.yaml").is_file())  # Hydra wants the primary file in the first
    where = [f"hydra.searchpath=[file://{folder}]" for folder in folders[1:]]
    try:
        with bounded_files(), initialize_config_dir(str(folders[0]), version_base="1.3"):
            composed = compose(name, overrides=[*where, *map(free_key, overrides)], return_hydra_config=True)
    except UserError:
        raise
    except Exception as error:  # whatever Hydra stumbles over stands in the overrides or the files they name
        text = str(error)
        for override in overrides:
            key = override.lstrip("+~").split("=", 1)[0]
            if (f"'{key}'" in text and "is not in struct" in text) or f"Could not override '{key}'" in text:
                raise UserError(unknown_key(key, known)) from error
        raise UserError(text.replace("\n", " ")) from error
    with open_dict(composed):
        hydra = composed.pop("hydra")
    check_hydra(hydra)
    return composed, hydra.runtime.choices


def free_key(override: str) -> str:
    """The override as Hydra takes it: a key that no file has needs ++. Names under `checkpoints` are the user's own, and a
    preset of `data` may leave out keys that a problem set has."""
    in_set = re.match(r"data\.(pool|validation|test)\.\w+\.(\w+)=", override)
    known = in_set is not None and in_set[2] in {item.name for item in dataclasses.fields(ProblemSetConfig)}
    return f"++{override}" if known or override.startswith("checkpoints") else override


def sweep_jobs(overrides: Sequence[str], *, sweeping: bool) -> Iterator[list[str]]:
    """The overrides of every job of a sweep (of the one job when there is no sweep).

    Raises UserError on an override Hydra cannot parse, and on a sweep where none is wanted.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        remedy = "overrides are key=value, and a value with signs such as ~ or ( stands in quotes: \"key='value'\""
        raise UserError(f"cannot read '{error.override}': {remedy}") from error
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
