"""Turns what Hydra composed into a typed config. It checks for unknown keys, wrong types and ranges, then cross-field rules,
before anything heavy loads. Each failure is one UserError that names the key and says what to do."""

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, cast, get_args, get_origin

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from conclip.config.foreign import check_interpolations, resolve
from conclip.config.rules import check
from conclip.config.schema import BaseConfig
from conclip.errors import UserError

Config = TypeVar("Config", bound=BaseConfig)


def to_config(schema: type[Config], composed: DictConfig) -> Config:
    """Return the typed, checked config. Raises UserError naming the key at fault."""
    check_interpolations(composed)
    try:
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing:
            raise UserError(f"config key '{missing[0]}' has no value; set it: {missing[0]}=...")
        plain = resolve(composed)
    except OmegaConfBaseException as error:
        raise unresolved(error) from error
    plain = _coerce(plain, schema, schema_keys(schema))
    if isinstance(phases := plain.get("phases"), dict) and isinstance(recipe := plain.get("recipe"), dict):
        named = {stage.get("phase") for stage in recipe.values() if isinstance(stage, dict)}
        plain["phases"] = {name: phase for name, phase in phases.items() if name in named}  # presets may hold other phases
    if isinstance(model := plain.get("model"), dict):
        model |= {name: _unescape_newlines(model[name]) for name in ("prompt", "system") if isinstance(model.get(name), str)}
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


def unresolved(error: OmegaConfBaseException) -> UserError:
    """Return the error of a value that cannot be resolved, in one line."""
    return UserError(f"config key '{error.full_key}': {str(error).splitlines()[0]}")


def _coerce(plain: Mapping[Any, Any], schema: type, known: set[str], prefix: str = "") -> dict[str, Any]:
    """Return `plain` with names of the user's own, and whole numbers where the schema has text, as text: YAML and Hydra read
    2024 as a number. Raises UserError on an unknown key."""
    annotations = {item.name: item.type for item in dataclasses.fields(schema)}
    fitted: dict[str, Any] = {}
    for name, value in plain.items():
        key, annotation = f"{prefix}{name}", annotations.get(name)
        if annotation is None:
            raise UserError(unknown_key(key, known))
        given = cast(list[Any], value if isinstance(value, list) else [value])
        if any(isinstance(item, bool) for item in given) and not _takes_truth(annotation):
            raise UserError(
                f"config key '{key}': takes no truth value, got {str(value).lower()} (YAML reads yes and no as one)"
                + (f"; choose one of {', '.join(get_args(annotation))}" if get_origin(annotation) is Literal else "")
            )
        if isinstance(value, dict):
            nested = cast(dict[Any, Any], value)
            if dataclasses.is_dataclass(annotation):
                value = _coerce(nested, cast(type, annotation), known, f"{key}.")
            elif (entry := entry_schema(annotation)) is not None:
                value = {
                    _text(own): _coerce(cast(Any, item), entry, known, f"{key}.{own}.") if isinstance(item, dict) else item
                    for own, item in nested.items()
                }
            elif annotation == dict[str, str]:
                value = {_text(own): _number_to_text(item) for own, item in nested.items()}
        elif annotation in TEXT_TYPES:
            value = _number_to_text(value)
        elif annotation in (list[str], list[str] | None) and isinstance(value, list):
            value = [_number_to_text(item) for item in cast(list[Any], value)]
        fitted[name] = value
    return fitted


TEXT_TYPES = (str, str | None)


def entry_schema(annotation: Any) -> type | None:
    """Return the schema of the entries of a mapping from the user's own names to groups of keys; None for other types."""
    if get_origin(annotation) is dict and dataclasses.is_dataclass(entry := get_args(annotation)[1]):
        return cast(type, entry)
    return None


def _takes_truth(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(map(_takes_truth, get_args(annotation)))


def _number_to_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _text(name: Any) -> str:
    return {True: "true", False: "false", None: "null"}[name] if name is None or isinstance(name, bool) else str(name)


_ESCAPED_NEWLINE = re.compile(
    r"(?<!\\)\\n(?!(?:abla|atural|e|earrow|eg|eq|ewline|exists|geq|gtr|i|leq|less|mid|ot|otin|parallel|subset|subseteq|u|warrow)"
    r"(?![A-Za-z]))"
)
r"""``\n`` typed as two characters, unless it begins a command of TeX (``\neq``)."""


def _unescape_newlines(text: str) -> str:
    r"""Turn ``\n`` into a new line: a shell passes it on as it is typed."""
    return _ESCAPED_NEWLINE.sub("\n", text)


def _keys(schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every dotted key that a schema knows, with its type."""
    for item in dataclasses.fields(schema):
        name = f"{prefix}{item.name}"
        yield name, item.type
        if dataclasses.is_dataclass(item.type):
            yield from _keys(cast(type, item.type), f"{name}.")
        elif (entry := entry_schema(item.type)) is not None:
            yield f"{name}.*", entry
            yield from _keys(entry, f"{name}.*.")
        elif item.type == dict[str, str]:
            yield f"{name}.*", str


def schema_keys(schema: type) -> set[str]:
    """Return every dotted key that a schema knows; `*` stands for a free name (a benchmark of `data.test`, say)."""
    return {name for name, _ in _keys(schema)}


def text_keys(schema: type) -> set[str]:
    """Return the keys of `schema_keys` that take text."""
    return {name for name, annotation in _keys(schema) if annotation in TEXT_TYPES}


REMOVED_KEYS = {
    "skip_phase1": "conclip two-phase recipe=phase2_only begins with phase 2",
    "length.limits": "ThinkPrune's limits are phase.max_tokens_stages",
    "model/adapter": "only subcommands that train have adapters; what they leave is a whole model, which others read",
    "model.adapter.dropout": "dropout would make the learner's log-probs differ from the engine's",
    "pass_rates": "train-phase1 and train-phase2 take those of an earlier probe; a recipe has probes of its own",
    "eval.n": "the responses to a test problem are eval.samples_per_problem",
    "learning_rate": "the policy's is optim.policy_lr, the critic's optim.critic_lr",
    "num_generations": "the responses to a problem in a step are phase.group_size",
    "max_completion_length": "the limit on a response is rollout.max_tokens, and eval.max_tokens in evaluations",
    "beta": "the weight of KL is algo.kl_coef",
    "report_to": "trackers are named by logger.trackers=[wandb]",
    "length=thinkprune": "it is no reward but a limit on sampling, phase.max_tokens_stages=[1.0,0.75,0.5]",
}
"""Keys and options of earlier versions, of other subcommands or of other tools, and what does their work, or why nothing
does."""


def unknown_key(key: str, known: set[str]) -> str:
    """Return the error line for an unknown key, with the nearest name: first among its neighbours, then among all keys."""
    if key in REMOVED_KEYS:
        return f"config key '{key}' does not exist: {REMOVED_KEYS[key]}"
    own = re.match(r"(?:data\.\w+|recipe|phases)\.(.+)\.", key)
    names = sorted({name.replace("*", own[1]) if own else name for name in known} - {key})
    groups = {name.rpartition(".")[0] for name in known if not name.endswith(".*")}
    names = [name for name in names if "*" not in name and not (name in groups and key.startswith(f"{name}."))]
    parent, _, last = key.rpartition(".")
    beside = {name.rpartition(".")[2]: name for name in names if name.rpartition(".")[0] == parent}
    near = [beside[name] for name in difflib.get_close_matches(last, beside, n=1)]
    near = near or difflib.get_close_matches(key, names, n=1, cutoff=0.8)
    near = near or [name for name in names if difflib.get_close_matches(last, [name.rpartition(".")[2]], cutoff=0.75)]
    hint = f"did you mean '{near[0]}'?" if near else "see --cfg job for all keys"
    return f"unknown config key '{key}': {hint}"


def _unknown_set(place: Sequence[str], data: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the error line for a problem set that lacks a key which every set has: most often its name is misspelt."""
    _, part, name, missing = place
    key = ".".join(place)
    others = [other for other in data[part] if other != name]
    near = difflib.get_close_matches(name, others, n=1)
    hint = f"did you mean 'data.{part}.{near[0]}'?" if near else f"the sets of data.{part}: {', '.join(others) or 'none'}"
    return f"config key '{key}' has no value, and no option of data= has a set '{name}' there; {hint} or set its {missing}"
