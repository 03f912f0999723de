"""`conclip SUBCOMMAND --help`: every key with its value and meaning, read from the comments above the keys in conf/.

A YAML file of conf/ begins with a comment that says what it is, then a blank line, then keys, each below its comment.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_KEY = re.compile(r"(\s*)([A-Za-z_]\w*):")
_PROBLEM_SET = re.compile(r"^(pool|validation|test)\.[^.]+")
"""The free name of a problem set and the list it stands in; its keys mean the same in all of them."""


def read_meanings(path: Path) -> tuple[str, dict[str, str]]:
    """Return (what the file is, dotted key -> the comment above it) for one YAML file of conf/."""
    header, _, body = path.read_text(encoding="utf-8").partition("\n\n")
    lines = [line.removeprefix("#").strip() for line in header.splitlines() if line.startswith("#")]
    description = " ".join(line for line in lines if not line.startswith("@package"))
    meanings: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in body.splitlines():
        if line.lstrip().startswith("#"):
            comment.append(line.lstrip().removeprefix("#").strip())
        elif match := _KEY.match(line):
            indent = len(match[1])
            parents = [(depth, name) for depth, name in parents if depth < indent] + [(indent, match[2])]
            if comment:
                meanings[".".join(name for _, name in parents)] = " ".join(comment)
            comment = []
        else:
            comment = []
    return description, meanings


def group_files(folders: Sequence[Path], group: str, pattern: str) -> dict[str, Path]:
    """Return the files of a config group by option, each from the first of `folders` that has it."""
    found = {
        str(path.relative_to(folder / group).with_suffix("")): path
        for folder in reversed(folders)
        for path in (folder / group).glob(pattern)
    }
    return dict(sorted(found.items()))


def group_meanings(files: Mapping[str, Path], option: str) -> dict[str, str]:
    """Return the meanings of a config group's keys: the option's own comments first, then those of the other options, whose
    keys it may use."""
    merged: dict[str, str] = {}
    for _, path in sorted(files.items(), key=lambda item: item[0] == option):
        merged |= {_PROBLEM_SET.sub("*", key): text for key, text in read_meanings(path)[1].items()}
    return merged


def leaves(config: DictConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and plain values, in the order of the files."""
    for name in cast(Mapping[str, Any], config):
        value = "???" if OmegaConf.is_missing(config, name) else config[name]
        if isinstance(value, DictConfig) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def spelled(value: Any) -> str:
    """Return a value as YAML spells it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value).replace("None", "null") if isinstance(value, list) else str(value)


def help_page(folders: Sequence[Path], primary: str, composed: DictConfig, choices: Mapping[str, str | None]) -> Group:
    """Return the whole page: what the subcommand does, then its groups with options and keys, at their present values.

    `folders`: the folders of configs, the first of which that has a file counts. `choices`: group -> chosen option (Hydra's
    ``runtime.choices``).
    """
    description, own = read_meanings(group_files(folders, ".", "**/*.yaml")[primary.removesuffix(".yaml")])
    groups = {
        name: option for name, option in reversed(list(choices.items())) if not name.startswith("hydra/") and name != "hydra"
    }
    packages = {name: name.rpartition("@")[2].replace("/", ".") for name in groups}
    parts: list[Text | Table | Padding] = [Text(description + "\n")]
    grouped = tuple(f"{package}." for package in packages.values())
    parts.append(_table({k: v for k, v in leaves(composed) if not k.startswith((*grouped, "recipe."))}, own, ""))
    parts += [Text("\nrecipe: its stages, in order", style="bold"), _stages(composed.recipe)]
    for name, option in groups.items():
        group = name.partition("@")[0]
        files = group_files(folders, group, "**/*.yaml")
        package = packages[name]
        inner_groups = {other.removeprefix(f"{name}/") for other in groups if other.startswith(f"{name}/")}
        others = [other for other in files if str(Path(other).parent) not in inner_groups and other != option]
        title = Text(f"\n{name}={option or 'null'}", style="bold")
        parts.append(title)
        if others:
            parts.append(Padding(Text(f"or: {', '.join(others)}"), INDENT))
        if option is not None:
            parts.append(Padding(Text(read_meanings(files[option.removesuffix(".yaml")])[0], style="italic"), INDENT))
        values = OmegaConf.select(composed, package)
        if option is not None and package != "recipe" and isinstance(values, DictConfig):
            inner = tuple(other for other in grouped if other.startswith(f"{package}.") and other != f"{package}.")
            own = {key: value for key, value in leaves(values) if not f"{package}.{key}".startswith(inner)}
            parts.append(_table(own, group_meanings(group_files(folders, group, "*.yaml"), option), f"{package}."))
    parts.append(Text(FOOTER))
    return Group(*parts)


def _stages(recipe: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a row for each stage of a recipe."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, stage in recipe.items():
        keys = (
            f"{key}={spelled(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)}"
            for key, value in stage.items()
            if key != "about"
        )
        table.add_row(Text(f"  {name}"), Text(" ".join(keys)), Text(stage.get("about", "")))
    return table


def _table(values: Mapping[str, Any], meanings: Mapping[str, str], prefix: str) -> Table:
    """Return a row for each key. The keys of the three lists of problems mean the same, so only the first list is
    explained."""
    explained: set[str] = set()
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for key, value in values.items():
        shown = spelled(value)
        shared = _PROBLEM_SET.sub("*", key)
        meaning = "as above" if shared in explained and shared != key else meanings.get(shared, "")
        explained.add(shared)
        shown = repr(shown) if "\n" in shown else shown
        shown = shown if len(shown) <= MAX_VALUE_CHARS else f"{shown[: MAX_VALUE_CHARS - 1]}…"
        table.add_row(Text(f"  {prefix}{key}={shown}"), Text(meaning))
    return table


FOOTER = """
key=value changes one value, group=option swaps a group:
  optim.policy_lr=3e-5  algo=grpo
-m key=a,b runs one job per value, each in a process of its own.
--cfg job prints the composed config as YAML.
--dry-run says what is done, what is to do, and its cost.
--config-dir DIR adds config files of your own (docs/recipes.md).
"""
INDENT = (0, 0, 0, 2)
MAX_VALUE_CHARS = 32
