"""Turns overrides into a config: Hydra composes conf/, `conclip.config.typed` types and checks the result."""

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins import file_config_source
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict

from conclip.config.foreign import check_hydra, limit_yaml_size
from conclip.config.groups import ProblemSetConfig
from conclip.config.machine import has_gpu, native_dtype, num_cores
from conclip.config.schema import SCHEMAS, BaseConfig
from conclip.config.typed import REMOVED_KEYS, schema_keys, text_keys, to_config, unknown_key
from conclip.errors import UserError

# Hydra reads files as UTF-8, where a byte order mark would hide the header (`# @package`).
file_config_source.open = lambda path, encoding: open(path, encoding=f"{encoding}-sig")  # pyright: ignore  # noqa: SIM115


OmegaConf.register_new_resolver("settings_of", lambda model: "lab" if model == "lab" else "hf")  # for defaults lists


class OwnFolderFirst(SearchPathPlugin):
    """Has Hydra search the user's folder before conf/: a file there replaces conclip's of the same name."""

    folder: ClassVar[Path | None] = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if self.folder is not None:
            search_path.prepend("--config-dir", f"file://{self.folder}", anchor="main")


Plugins.instance().register(OwnFolderFirst)


def config_folder() -> Path:
    """Return conf/: beside the package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def config_folders(config_dir: str | Path | None) -> list[Path]:
    """Return the folders of configs, the user's (`--config-dir`) first. Raises UserError where there is no such folder."""
    if config_dir is None:
        return [config_folder()]
    if not Path(config_dir).is_dir():
        raise UserError(f"--config-dir: no folder '{config_dir}'")
    return [Path(config_dir).resolve(), config_folder()]


def load_config(subcommand: str, *overrides: str) -> BaseConfig:
    """Return a subcommand's typed and checked config, as the command line would make it. Raises UserError."""
    return to_config(SCHEMAS[subcommand], compose_config(subcommand, overrides)[0])


def compose_config(
    subcommand: str, overrides: Sequence[str], *, primary: str | None = None, config_dir: str | None = None
) -> tuple[DictConfig, Mapping[str, str | None]]:
    """Return one job's config as Hydra composes it, and the option chosen in each group.

    `primary` names another primary file than the subcommand's own, `config_dir` a folder that is searched before conf/.
    Raises UserError, with the nearest name for an unknown key.
    """
    known = schema_keys(SCHEMAS[subcommand])
    folders = config_folders(config_dir)
    OwnFolderFirst.folder = folders[0] if config_dir is not None else None
    name = primary or subcommand.replace("-", "_")
    plain, named = for_hydra(overrides, known)
    for text, override in zip(plain, _parsed(plain), strict=True):
        _check_option(text, override, folders)
    try:
        with limit_yaml_size(), initialize_config_dir(str(config_folder()), version_base="1.3"):
            composed = compose(name, overrides=plain, return_hydra_config=True)
    except UserError:
        raise
    except MissingConfigException as error:
        raise UserError(_missing_option(error)) from error
    except Exception as error:  # whatever Hydra raises is caused by the overrides or the files they name
        text = str(error)
        for override in plain:
            key = override.lstrip("+~").split("=", 1)[0]
            unknown = (f"'{key}'" in text and "is not in struct" in text) or f"Could not override '{key}'" in text
            if unknown and key not in known:
                raise UserError(unknown_key(key, known)) from error
        if foreign := OF_ANOTHER.search(text):
            chosen = next((o.lstrip("+") for o in plain if o.lstrip("+").startswith("experiment=")), foreign[1])
            raise UserError(
                f"{chosen} sets '{foreign[2]}', which {subcommand} has not; use it with conclip two-phase"
            ) from error
        merged = next((override for override in plain if text.endswith(f"rror merging override {override}")), None)
        if merged is not None and (cause := error.__cause__) is not None:
            key, why = merged.lstrip("+").partition("=")[0], str(cause).splitlines()[0]
            why = f"{key} has named entries: {key}={{name: value}}" if "merge DictConfig" in why else f"{why}; see --cfg job"
            raise UserError(f"'{merged.removeprefix('++')}': {why}") from error
        raise UserError(text.replace("\n", " ")) from error
    with open_dict(composed):
        for entry in named:
            if OmegaConf.select(composed, entry.where) is None:
                raise UserError(unknown_key(entry.key, known))
            entry.put(composed)
        hydra = composed.pop("hydra")
        select = partial(OmegaConf.select, composed, throw_on_resolution_failure=False)  # `to_config` names what fails
        planned_for = select("device.kind")
        if select("model.dtype") == "auto":
            composed.model.dtype = "bfloat16" if planned_for == "gpu" else native_dtype()
        by_device = ("num_engines", "max_num_seqs", "unit_responses")
        if unset := [key for key in by_device if select(f"rollout.{key}", default=1) is None]:
            on_cpu = planned_for == "cpu" or (planned_for is None and not has_gpu())
            several = on_cpu and num_cores() > 1 and select("cluster.kind") != "ray"
            numbers = zip(by_device, (2 if several else 1, *((64, 256) if on_cpu else (256, 2_048))), strict=True)
            composed.rollout.update({key: number for key, number in numbers if key in unset})
    check_hydra(hydra)
    return composed, hydra.runtime.choices


OF_ANOTHER = re.compile(r"In 'experiment/([^']+)': Could not override '([^']+)'")
"""Hydra's words for an experiment that chooses an option of a group that the subcommand does not have."""

COMBINING_GROUPS = {"data", "experiment"}
"""Groups of which several options make sense together: data=[gsm8k,mmlu_stem] has the problems of both."""


def _check_option(text: str, override: Any, folders: Sequence[Path]) -> None:
    """Raise UserError for a choice in a group that is no option's name, or of several options of conclip's own that set the
    same keys."""
    group, value = override.key_or_group, override.value()
    is_group = bool(group) and any((folder / group).is_dir() for folder in folders)
    if not is_group or override.is_delete() or override.is_sweep_override() or isinstance(value, dict):
        return
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) for name in names):
        options = sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})
        raise UserError(f"'{text}': {group} is a group, which takes an option's name: {', '.join(options)}")
    ours = all((config_folder() / group / f"{name}.yaml").is_file() for name in names)
    if len(names) > 1 and ours and group not in COMBINING_GROUPS:
        remedy = "choose one, or sweep over them with -m"
        if group == "logger":
            remedy = "name them by logger.trackers=[...]"
        raise UserError(f"'{text}': they set the same keys, so that the last one would win; {remedy}")


def _missing_option(error: MissingConfigException) -> str:
    """Return the error for an unknown option, without the list of searched folders that Hydra's own message has."""
    file = error.missing_cfg_file or ""
    group = file.rstrip("/").rpartition("/")[0]
    option = file[len(group) + 1 :]
    if not error.options or not option:
        return str(error).partition("\nConfig search path")[0].replace("\n", " ")
    if (retired := REMOVED_KEYS.get(f"{group}={option}")) is not None:
        return f"{group}={option} is gone: {retired}"
    near = difflib.get_close_matches(option, error.options, n=1)
    hint = f"did you mean '{near[0]}'?" if near else "choose one of " + ", ".join(error.options)
    return f"{group}={option}: no such option; {hint}"


_FIELDS = "|".join(item.name for item in dataclasses.fields(ProblemSetConfig))
_SET = re.compile(rf"\+{{0,2}}(data\.(?:pool|validation|test))\.([^=]+?)(?:\.({_FIELDS})(?!=\s*\{{))?=(.*)", re.DOTALL)
_CHECKPOINT = re.compile(r"\+{0,2}(checkpoints)\.([^=]+)()=(.*)", re.DOTALL)
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


@dataclasses.dataclass(frozen=True, slots=True)
class NamedOverride:
    """An override of a problem set or a checkpoint with a name of the user's own, which Hydra would read as several keys, or
    refuse."""

    where: str
    name: str
    field: str | None
    text: str

    @property
    def key(self) -> str:
        return ".".join(part for part in (self.where, self.name, self.field) if part)

    @property
    def masked(self) -> str:
        """The same value under a name that Hydra reads."""
        return f"{self.where}.name={self.text}"

    def put(self, composed: DictConfig) -> None:
        """Set the value in a composed config. A set that does not exist yet begins empty."""
        parent, name = OmegaConf.select(composed, self.where), self.name
        if self.field is not None:
            parent[self.name] = parent.get(self.name, {})
            parent, name = parent[self.name], self.field
        parent[name] = _parsed([self.masked])[0].value()


def named_override(override: str) -> NamedOverride | None:
    """Parse an override of a problem set or a checkpoint whose name has dots or other signs; None for other overrides."""
    match = _SET.fullmatch(override) or _CHECKPOINT.fullmatch(override)
    if match is None or _PLAIN_NAME.fullmatch(match[2]):
        return None
    whole = match[1] == "checkpoints" or match[3] or match[4].lstrip().startswith("{")
    return NamedOverride(match[1], match[2], match[3] or None, match[4]) if whole else None


def for_hydra(overrides: Sequence[str], known: Set[str]) -> tuple[list[str], list[NamedOverride]]:
    """Return overrides as Hydra reads them, and those that it would misread. `known`: the subcommand's `schema_keys`."""
    texts = [quote_text(expand_phase_key(override, known)) for override in overrides]
    read = [(text, named_override(text)) for text in texts]
    return [add_prefix(text) for text, entry in read if entry is None], [entry for _, entry in read if entry is not None]


def expand_phase_key(override: str, known: Set[str]) -> str:
    """Expand `phase1` and `phase2`, which are short for `phases.phase1` and `phases.phase2`."""
    return re.sub(r"^([+~]*(?:phase@)?)(?=phase[12][.=])", r"\1phases.", override) if "phases" in known else override


OF_FREE_NAMES = ("model.chat_template_kwargs", "eval.template_kwargs", "eval.samples_of")
"""Keys below which the names are those of a chat template, or of test sets."""


def add_prefix(override: str) -> str:
    """Return the override with ++ where Hydra needs it: for a key that no file has. Names under `checkpoints` and of problem
    sets are the user's own, and a preset of `data` may leave out keys that a problem set has."""
    own = re.match(
        rf"(?:checkpoints|data\.(?:pool|validation|test)(?:\.[^.=]+(?:\.(?:{_FIELDS}))?)?)(?:\.[^.=]+)?=", override
    )
    return f"++{override}" if own or override.startswith(OF_FREE_NAMES) else override


_TEXTS = frozenset[str]().union(*(text_keys(schema) for schema in SCHEMAS.values()))


_QUOTED_KEY = re.compile(r"""([{,]\s*)(["'])([\w.-]+)\2(\s*:)""")


def quote_text(override: str) -> str:
    """Quote a value where the key takes text and Hydra would read a number or a truth value (`name=2024`), or stumble over a
    sign (`model.path=runs/lr=1`). Quotes around names, which Hydra does not read, are removed."""
    key, equals, value = override.partition("=")
    if re.match(r"\+{0,2}(checkpoints|data)\b", key) and value.lstrip().startswith("{"):
        return f"{key}=" + _QUOTED_KEY.sub(r"\1\3\4", value)
    in_set = _SET.fullmatch(override)
    pattern = f"{in_set[1]}.*.{in_set[3]}" if in_set else re.sub(r"^checkpoints\..+", "checkpoints.*", key.lstrip("+"))
    if not equals or pattern not in _TEXTS:
        return override
    try:
        meant = not isinstance(_parsed([f"key={value}"])[0].value(), (bool, int, float))
    except UserError:
        meant = re.search(r"""['",]""", value) is not None
    return override if meant else f"{key}={quoted(value.strip())}"


def quoted(value: str) -> str:
    """Quote a value so that Hydra reads it back unchanged, whatever signs it has."""
    escaped = re.sub(r"(\\*)('|$)", lambda match: 2 * match[1] + (f"\\{match[2]}" if match[2] else ""), value)
    return f"'{escaped}'"


def sweep_jobs(overrides: Sequence[str], *, sweeping: bool) -> Iterator[list[str]]:
    """Yield the overrides of every job of a sweep (of the one job when there is no sweep).

    Raises UserError on an override Hydra cannot parse, and on a sweep where none is wanted.
    """
    overrides = [quote_text(override) for override in overrides]
    parsed = _parsed([entry.masked if (entry := named_override(override)) else override for override in overrides])
    choices: list[list[str]] = []
    for text, override in zip(overrides, parsed, strict=True):
        if not override.is_sweep_override():
            choices.append([text])
        elif sweeping:
            key = text.partition("=")[0]
            try:
                choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
            except HydraException as error:
                raise UserError(f"'{text}': glob() finds nothing here; name the values: {key}=a,b") from error
        else:
            raise UserError(f"'{text}' names several values; add -m to run one job per value")
        if not choices[-1]:
            raise UserError(f"'{text}' names no value, so that the sweep has no job")
    for combination in product(*choices):
        yield list(combination)


def _parsed(overrides: Sequence[str]) -> list[Any]:
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        remedy = "overrides are key=value, and a value with signs such as ~ or ( stands in quotes: \"key='value'\""
        raise UserError(f"cannot read '{error.override}': {remedy}") from error
