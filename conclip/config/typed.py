"""From what Hydra composed to a typed config: unknown keys, wrong types, ranges, then what keys ask of each other, before
anything heavy loads. Each failure is one UserError that names the key and says what to do."""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast, get_args, get_origin

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from conclip.config.foreign import check_interpolations, resolved
from conclip.config.rules import check
from conclip.config.schema import BaseConfig
from conclip.errors import UserError

Config = TypeVar("Config", bound=BaseConfig)


def to_config(schema: type[Config], composed: DictConfig) -> Config:
    """The typed, checked config. Raises UserError naming the key at fault."""
    check_interpolations(composed)
    try:
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing:
            raise UserError(f"config key '{missing[0]}' has no value; set it: {missing[0]}=...")
        plain = resolved(composed)
    except OmegaConfBaseException as error:
        raise UserError(f"config key '{error.full_key}': {str(error).splitlines()[0]}") from error
    plain = _fitted(plain, schema, plain_keys(schema))
    if isinstance(phases := plain.get("phases"), dict) and isinstance(recipe := plain.get("recipe"), dict):
        named = {stage.get("phase") for stage in recipe.values() if isinstance(stage, dict)}
        plain["phases"] = {name: phase for name, phase in phases.items() if name in named}  # presets may know of others
    if isinstance(model := plain.get("model"), dict):
        model |= {name: _new_lines(model[name]) for name in ("prompt", "system") if isinstance(model.get(name), str)}
    try:
        config = TypeAdapter(schema).validate_python(plain)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing" and first["loc"][0] == "data" and len(first["loc"]) == 4:
            raise UserError(_unknown_set([str(part) for part in first["loc"]], plain["data"])) from error
        if first["type"] == "missing":
            group = first["loc"][0]
            raise UserError(f"config group '{group}' is empty, or lacks '{key}'; choose an option: {group}=...") from error
        remedy = " (in quotes it is text)" if first["type"] == "string_type" and isinstance(first["input"], float) else ""
        raise UserError(f"config key '{key}': {first['msg']}, got {first['input']!r}{remedy}") from error
    check(config)
    return config


def _fitted(plain: Mapping[Any, Any], schema: type, known: set[str], prefix: str = "") -> dict[str, Any]:
    """`plain`, names of the user's own and whole numbers as text where the schema has text: YAML and Hydra read 2024 as a
    number. Raises UserError on a key that the schema has not."""
    kinds = {item.name: item.type for item in dataclasses.fields(schema)}
    fitted: dict[str, Any] = {}
    for name, value in plain.items():
        key, kind = f"{prefix}{name}", kinds.get(name)
        if kind is None:
            raise UserError(unknown_key(key, known))
        if isinstance(value, dict):
            nested = cast(dict[Any, Any], value)
            if dataclasses.is_dataclass(kind):
                value = _fitted(nested, cast(type, kind), known, f"{key}.")
            elif (entry := entry_schema(kind)) is not None:
                value = {
                    _text(own): _fitted(cast(Any, item), entry, known, f"{key}.{own}.") if isinstance(item, dict) else item
                    for own, item in nested.items()
                }
            elif kind == dict[str, str]:
                value = {_text(own): _digits(item) for own, item in nested.items()}
        elif kind in TEXT:
            value = _digits(value)
        elif kind in (list[str], list[str] | None) and isinstance(value, list):
            value = [_digits(item) for item in cast(list[Any], value)]
        fitted[name] = value
    return fitted


TEXT = (str, str | None)


def entry_schema(kind: Any) -> type | None:
    """Of names of the user's own to groups of keys, the schema of such a group; None of other types."""
    if get_origin(kind) is dict and dataclasses.is_dataclass(entry := get_args(kind)[1]):
        return cast(type, entry)
    return None


def _digits(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _text(name: Any) -> str:
    return {True: "true", False: "false", None: "null"}[name] if name is None or isinstance(name, bool) else str(name)


_NEW_LINE = re.compile(
    r"(?<!\\)\\n(?!(?:abla|atural|e|earrow|eg|eq|ewline|exists|geq|gtr|i|leq|less|mid|ot|otin|parallel|subset|subseteq|u|warrow)"
    r"(?![A-Za-z]))"
)
r"""``\n`` typed as two characters, unless it begins a command of TeX (``\neq``)."""


def _new_lines(text: str) -> str:
    r"""A shell hands ``\n`` on as it is typed; in a prompt it means a new line."""
    return _NEW_LINE.sub("\n", text)


def plain_keys(schema: type, prefix: str = "") -> set[str]:
    """Every dotted key a schema knows; `*` stands for a free name (a benchmark of `data.test`, say)."""
    keys: set[str] = set()
    for item in dataclasses.fields(schema):
        name = f"{prefix}{item.name}"
        keys.add(name)
        if dataclasses.is_dataclass(item.type):
            keys |= plain_keys(cast(type, item.type), f"{name}.")
        elif (entry := entry_schema(item.type)) is not None:
            keys |= {f"{name}.*"} | plain_keys(entry, f"{name}.*.")
        elif item.type == dict[str, str]:
            keys.add(f"{name}.*")
    return keys


def text_keys(schema: type, prefix: str = "") -> set[str]:
    """The keys of `plain_keys` that take text."""
    keys: set[str] = set()
    for item in dataclasses.fields(schema):
        name = f"{prefix}{item.name}"
        if dataclasses.is_dataclass(item.type):
            keys |= text_keys(cast(type, item.type), f"{name}.")
        elif (entry := entry_schema(item.type)) is not None:
            keys |= text_keys(entry, f"{name}.*.")
        elif item.type == dict[str, str]:
            keys.add(f"{name}.*")
        elif item.type in TEXT:
            keys.add(name)
    return keys


RETIRED = {
    "skip_phase1": "conclip two-phase recipe=phase2_only begins with phase 2",
    "length.limits": "ThinkPrune's limits are phase.max_tokens_stages",
    "length=thinkprune": "it is no reward but a limit on sampling, phase.max_tokens_stages=[1.0,0.75,0.5]",
}
"""Keys and options of earlier versions, and what does their work now."""


def unknown_key(key: str, known: set[str]) -> str:
    """The error line for a key that no schema has, with the nearest name: of its neighbours first, then of all keys."""
    if key in RETIRED:
        return f"config key '{key}' is gone: {RETIRED[key]}"
    own = re.match(r"(?:data\.\w+|recipe|phases)\.(.+)\.", key)
    names = sorted({name.replace("*", own[1]) if own else name for name in known} - {key})
    names = [name for name in names if "*" not in name]
    parent, _, last = key.rpartition(".")
    beside = {name.rpartition(".")[2]: name for name in names if name.rpartition(".")[0] == parent}
    near = [beside[name] for name in difflib.get_close_matches(last, beside, n=1)]
    near = near or difflib.get_close_matches(key, names, n=1, cutoff=0.8)
    near = near or [name for name in names if difflib.get_close_matches(last, [name.rpartition(".")[2]], cutoff=0.75)]
    hint = f"did you mean '{near[0]}'?" if near else "see --cfg job for all keys"
    return f"unknown config key '{key}': {hint}"


def _unknown_set(place: Sequence[str], data: Mapping[str, Mapping[str, Any]]) -> str:
    """The error line for a problem set that lacks what every set has: most often its name is misspelt."""
    _, part, name, missing = place
    key = ".".join(place)
    others = [other for other in data[part] if other != name]
    near = difflib.get_close_matches(name, others, n=1)
    hint = f"did you mean 'data.{part}.{near[0]}'?" if near else f"the sets of data.{part}: {', '.join(others) or 'none'}"
    return f"config key '{key}' has no value, and no option of data= has a set '{name}' there; {hint} or set its {missing}"
