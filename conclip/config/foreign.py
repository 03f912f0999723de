"""Guards against configs of other people: they cannot run code (but for a verifier, of which a note tells), read this
machine's environment, or grow without bounds.

They run while a config is composed (`conclip.config.compose`) and before it is resolved (`conclip.config.typed`). Each
failure is one UserError that names the key or the file.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TextIO, cast

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.resolvers import oc

from conclip.errors import UserError
from conclip.redact import looks_secret

MAX_NODES = 50_000
"""Largest number of values of a config, once its aliases are followed."""

MAX_DEPTH = 50
MAX_FILE_CHARS = 4_000_000
MAX_VALUE_CHARS = 1_000_000
"""Largest length of one value, once its interpolations are resolved."""

PATH_KEYS = re.compile(r"paths\.\w+|pass_rates|data\.\w+\.[^.]+\.(path|shots_path|verifier)|model\.path|checkpoints\.[^.]+")
"""Keys of files and folders on this machine: no other keys may read the environment."""

HUB_KEYS = re.compile(r"model\.path|checkpoints\.[^.]+")
"""Those of these keys whose value goes to the hub unless it is an absolute path."""

RESOLVERS = ("oc.env", "oc.select", "oc.decode", "oc.deprecated", "now")
"""Resolvers that `${name:...}` may call."""

_QUIET = {"version": 1, "root": None, "disable_existing_loggers": False}
"""Hydra's `none` option of its loggers."""

_INNERMOST = re.compile(r"(?<!\\)\$\{([^${}]*)\}")


@contextmanager
def limit_yaml_size() -> Iterator[None]:
    """Check each config file that Hydra reads meanwhile: its aliases must not make it too large. Raises UserError naming the
    file."""
    load = OmegaConf.load

    def checked_load(file_: Any) -> DictConfig | ListConfig:
        if hasattr(file_, "read"):
            stream = cast(TextIO, file_)
            text = stream.read(MAX_FILE_CHARS + 1)
            stream.seek(0)
            check_yaml(str(getattr(file_, "name", "a config file")), text)
        return load(file_)

    OmegaConf.load = staticmethod(checked_load)
    try:
        yield
    finally:
        OmegaConf.load = staticmethod(load)


def check_yaml(name: str, text: str) -> None:
    """Raise UserError when a YAML text is too long, nested too deeply, or too large once its aliases are followed. A text
    that is no YAML is left to its reader."""
    if len(text) > MAX_FILE_CHARS:
        raise UserError(f"'{name}' has more than {MAX_FILE_CHARS:,} characters; that is no config")
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    try:
        for event in yaml.parse(text, Loader=yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):
            size, anchor = 0, getattr(event, "anchor", None)
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((anchor, 1))
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, size = open_nodes.pop()
            elif isinstance(event, yaml.AliasEvent):
                size = sizes.get(cast(str, anchor), 1)
            elif isinstance(event, yaml.ScalarEvent):
                size = 1
            if size:
                if anchor is not None and not isinstance(event, yaml.AliasEvent):
                    sizes[anchor] = size
                open_nodes[-1] = (open_nodes[-1][0], open_nodes[-1][1] + size)
            if len(open_nodes) > MAX_DEPTH or size > MAX_NODES or open_nodes[-1][1] > MAX_NODES:
                raise UserError(
                    f"'{name}' is nested too deeply, or its aliases (*name) make it too large; that is no config"
                )
    except yaml.YAMLError:
        return


def check_hydra(hydra: Mapping[str, Any]) -> None:
    """Raise UserError when a config sets what Hydra would run or set in this process: none of it is conclip's."""
    job = hydra.get("job") or {}
    for key, is_set in (
        ("hydra.callbacks", bool(hydra.get("callbacks"))),
        ("hydra.job.env_set", bool(job.get("env_set"))),
        ("hydra.job.env_copy", bool(job.get("env_copy"))),
        ("hydra.job_logging", hydra.get("job_logging") not in (None, _QUIET)),
        ("hydra.hydra_logging", hydra.get("hydra_logging") not in (None, _QUIET)),
    ):
        if is_set:
            raise UserError(f"config key '{key}' may run code or change the environment, and is not conclip's; leave it out")


def check_interpolations(composed: DictConfig) -> None:
    """Raise UserError on interpolations that call what they may not, on nested ones, and on values that grow too long."""
    texts: dict[str, str] = {}
    for path, text in _texts(OmegaConf.to_container(composed, resolve=False)):
        texts[_dotted(path)] = texts.get(_dotted(path), "") + text
    lengths: dict[str, int] = {}

    def length(key: str, pending: tuple[str, ...]) -> int:
        """Return the length of a value, or of all values below a key that has some. Raises UserError on circles and on
        chains that are too deep."""
        if key in lengths:
            return lengths[key]
        if key in pending or len(pending) > MAX_DEPTH:
            raise UserError(f"config key '{key}': its interpolations go round in circles, or too deep")
        below = [name for name in texts if name.startswith(f"{key}.")] if key not in texts else []
        total = sum(length(name, (*pending, key)) for name in below)
        text = texts.get(key, "")
        total += len(text) + sum(length(name, (*pending, key)) for name in _references(key, text))
        if total > MAX_VALUE_CHARS:
            raise UserError(
                f"config key '{key}' has more than {MAX_VALUE_CHARS:,} characters once its interpolations are resolved"
            )
        lengths[key] = total
        return total

    for key in texts:
        length(key, ())


def _references(key: str, text: str) -> list[str]:
    """Return the keys that the interpolations in the value of `key` name. Raises UserError on interpolations that are not
    allowed."""
    if "${" not in text:
        return []
    names: list[str] = []
    for match in _INNERMOST.finditer(text):
        resolver, colon, arguments = match[1].partition(":")
        if colon and resolver.strip() not in RESOLVERS:
            raise UserError(f"config key '{key}': '${{{resolver}:...}}' is not read; those that are: {', '.join(RESOLVERS)}")
        for part in arguments.split(",") if colon else [match[1]]:
            names.append(_absolute_key(key, part.strip()))
    if _INNERMOST.sub("", text).replace("\\${", "").find("${") >= 0:
        raise UserError(f"config key '{key}': an interpolation within another one is not read; write it out")
    return names


def _absolute_key(key: str, name: str) -> str:
    """Return the full key that an interpolation names: `.x` is a sibling of the value that names it, `..x` is one level
    above."""
    plain = name.lstrip(".")
    up = len(name) - len(plain)
    plain = re.sub(r"\[([^\]]*)\]", r".\1", plain).lstrip(".")
    return plain if not up else ".".join([*key.split(".")[:-up], plain])


def _texts(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Yield every text of nested values, with the names and numbers that lead to it; names may have dots."""
    if isinstance(value, dict):
        for name, item in cast(dict[Any, Any], value).items():
            yield from _texts(item, (*path, name))
    elif isinstance(value, list):
        for number, item in enumerate(cast(list[Any], value)):
            yield from _texts(item, (*path, number))
    elif isinstance(value, str):
        yield path, value


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def resolve(composed: DictConfig) -> dict[str, Any]:
    """Return the config as plain values, once `check_interpolations` has passed. Raises UserError where a key other than
    that of a file or folder reads the environment, directly or through another key; also raises the errors of omegaconf."""
    read: list[str] = []
    with _recorded_environment(read):
        plain = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True))
        if read:
            for path, _ in _texts(OmegaConf.to_container(composed, resolve=False)):
                _check_reading(composed, path, read)
    return plain


def _check_reading(composed: DictConfig, path: tuple[Any, ...], read: list[str]) -> None:
    read.clear()
    value: Any = composed
    for part in path:
        value = value[part]
    key = _dotted(path)
    if OmegaConf.is_config(value):
        OmegaConf.to_container(value, resolve=True)
    if not read:
        return
    if not PATH_KEYS.fullmatch(key):
        raise UserError(
            f"config key '{key}' takes {read[0]} from this machine's environment, which only keys of files and folders may "
            "(paths.outputs, data.*.*.path, pass_rates, model.path); write the value out"
        )
    if HUB_KEYS.fullmatch(key) and not os.path.isabs(os.path.expanduser(str(value))):
        raise UserError(f"config key '{key}' takes {read[0]} from the environment, and must then be a whole path")


@contextmanager
def _recorded_environment(read: list[str]) -> Iterator[None]:
    """Record in `read` what `oc.env` reads while values are resolved. It reads no secrets."""

    def env(key: str, *default: Any) -> str | None:
        read.append(key)
        if looks_secret(key):
            raise ValueError(f"{key} looks like a secret, and is not read from the environment")
        return oc.env(key, *default)

    register = partial(OmegaConf.register_new_resolver, replace=True)
    register("oc.env", env)
    try:
        yield
    finally:
        register("oc.env", oc.env)
