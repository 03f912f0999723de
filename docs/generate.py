"""Writes the two pages of docs/ that are made from other files: `make docs` runs this, then builds the site.

- config.md: every config key with its type, default and meaning, from the schema and the comments in conf/.
- index.md: README.md with its links rewritten for the site.
"""

import ast
import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType

from omegaconf import OmegaConf

from conclip.cli.help import group_files, group_meanings, leaves, read_meanings, spelled
from conclip.config.compose import compose_config, config_folder
from conclip.config.groups import ProblemSetConfig
from conclip.config.ranges import range_of
from conclip.config.recipe import StageConfig
from conclip.config.schema import SCHEMAS
from conclip.config.typed import entry_schema

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"

GROUPS = {
    "model": "two-phase",
    "model/adapter": "two-phase",
    "data": "two-phase",
    "rollout": "two-phase",
    "probe": "two-phase",
    "phase": "train-phase2",
    "algo": "two-phase",
    "reward": "two-phase",
    "length": "two-phase",
    "optim": "two-phase",
    "trainer": "two-phase",
    "warm_up": "two-phase",
    "eval": "two-phase",
    "logger": "two-phase",
    "paths": "two-phase",
    "device": "two-phase",
    "cluster": "two-phase",
}
"""Each config group, and a subcommand that has it."""

HEAD = "| key | type | default | meaning |\n|---|---|---|---|"

INTRODUCTION = """# What does each config key mean?

`make docs` generates this page from the schema and from the comments in `conf/`. `conclip SUBCOMMAND --help` shows the same
keys with the values that a command would use.

- `key=value` changes a key. `group=option` selects another file of a group.
- The defaults are those of the embedded model. With `model=hf` the files rollout=hf, optim=hf and trainer=hf differ
  ([yours.md](yours.md#which-settings-come-with-the-model)); `conclip two-phase model=hf model.path=MODEL --help` shows them.
- `experiment=` and `debug=` select a preset that changes keys of several groups.
- Lengths are in tokens. Counts are in problems, responses or steps, as the name says.
- `two-phase` and `run` name their phases: the keys are `phases.phase1.*` and `phases.phase2.*` (short: `phase1.*` and
  `phase2.*`), and `phase@phases.phase2=one` selects another file. The defaults of `phase` below are those of phase 2;
  `conclip two-phase --help` shows both phases.
"""


def main() -> None:
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """Name of each generated page -> its text."""
    return {"config.md": config_page(), "index.md": index_page()}


def index_page() -> str:
    """README.md as the site's first page. Links to docs/ become relative; files outside docs/ are named without a link."""
    text = README.read_text(encoding="utf-8").replace("](docs/", "](")
    return re.sub(r"\[(\w+\.md)\]\(\1\)", r"`\1`", text)


def config_page() -> str:
    parts = [INTRODUCTION, *_own_keys(), *(part for group in GROUPS for part in _group(group)), *_recipe(), *_presets()]
    return "\n".join(parts).rstrip() + "\n"


def _own_keys() -> Iterator[str]:
    """The keys of each subcommand that belong to no group."""
    yield "## Keys of the subcommands\n"
    yield HEAD
    seen: dict[str, list[str]] = {}
    rows: dict[str, str] = {}
    for subcommand, schema in SCHEMAS.items():
        primary = subcommand.replace("-", "_")
        composed, meanings = compose_config(subcommand, [])[0], read_meanings(config_folder() / f"{primary}.yaml")[1]
        for item in dataclasses.fields(schema):
            if not dataclasses.is_dataclass(item.type) and entry_schema(item.type) is None:
                meaning = meanings[item.name].replace(f"outputs/{subcommand}/", "outputs/SUBCOMMAND/")
                rows[item.name] = _row(item.name, item.type, _plain(composed[item.name]), meaning)
                seen.setdefault(item.name, []).append(subcommand)
    for name, row in rows.items():
        where = "" if len(seen[name]) == len(SCHEMAS) else f" ({', '.join(seen[name])})"
        yield row.removesuffix(" |") + f"{where} |"
    yield ""


def _group(group: str) -> Iterator[str]:
    subcommand = GROUPS[group]
    composed, choices = compose_config(subcommand, [])
    option = choices[group]
    assert option is not None
    yield f"## {group}\n"
    files = group_files([config_folder()], group, "*.yaml")
    meanings = group_meanings(files, option)
    if group == "data":
        yield "`data.pool`, `data.validation` and `data.test` each hold problem sets by name (`*`).\n"
        yield HEAD
        for item in dataclasses.fields(ProblemSetConfig):
            yield _row(f"data.*.*.{item.name}", item.type, item.default, meanings[f"*.{item.name}"])
    else:
        schema: type = SCHEMAS[subcommand]
        for part in group.split("/"):
            (schema,) = (f.type for f in dataclasses.fields(schema) if f.name == part and isinstance(f.type, type))
        package = group.replace("/", ".")
        chosen = OmegaConf.select(composed, package)
        yield HEAD
        written = OmegaConf.to_container(chosen, resolve=False)
        assert isinstance(written, dict)
        if group == "rollout":
            chosen.num_engines = None  # composing replaces it by what suits this machine
        values = dict(leaves(chosen)) | {
            name: value for name, value in written.items() if isinstance(value, str) and value.startswith("${")
        }
        for item in dataclasses.fields(schema):
            if not dataclasses.is_dataclass(item.type):  # a group of its own
                yield _row(f"{package}.{item.name}", item.type, _plain(values.get(item.name)), meanings[item.name])
    yield ""
    if len(files) > 1:
        yield "| option | |\n|---|---|"
        for name in sorted(files, key=lambda name: (name != option, name)):
            default = " (default)" if name == option else ""
            yield f"| `{group}={name}`{default} | {_prose(read_meanings(files[name])[0])} |"
        yield ""


def _recipe() -> Iterator[str]:
    """The keys of a recipe's stages."""
    yield "## recipe\n"
    yield "The stages of a run by name (`*`), in order. [recipes.md](recipes.md#run-a-recipe-of-my-own) has an example.\n"
    yield HEAD
    meanings = field_docs(StageConfig)
    for item in dataclasses.fields(StageConfig):
        default = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
        yield _row(f"recipe.*.{item.name}", item.type, default, meanings[item.name])
    yield ""
    yield from _options("recipe")


def field_docs(schema: type) -> dict[str, str]:
    """Field of a dataclass -> the docstring below it."""
    (body,) = (node.body for node in ast.parse(inspect.getsource(schema)).body if isinstance(node, ast.ClassDef))
    return {
        field.target.id: " ".join(str(doc.value.value).split())
        for field, doc in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(doc, ast.Expr)
        and isinstance(doc.value, ast.Constant)
    }


def _presets() -> Iterator[str]:
    for group in ("experiment", "debug"):
        yield f"## {group}\n"
        yield from _options(group)


def _options(group: str) -> Iterator[str]:
    yield "| option | |\n|---|---|"
    for option, path in group_files([config_folder()], group, "**/*.yaml").items():
        yield f"| `{group}={option}` | {_prose(read_meanings(path)[0])} |"
    yield ""


ALSO_WRITTEN = {"model.dtype": " or `auto`", "rollout.num_engines": "; or null"}
"""Values that a config file may hold beside those of the schema: composing replaces them."""


def _row(key: str, kind: typing.Any, default: typing.Any, meaning: str) -> str:
    return f"| `{key}` | {_escape(describe(kind) + ALSO_WRITTEN.get(key, ''))} | {_value(default)} | {_prose(meaning)} |"


def describe(kind: typing.Any) -> str:
    """A type as the page names it."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        limits = range_of(kind)
        return describe(parts[0]) + (f", {limits}" if limits is not None else "")
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in parts)
    if origin in (typing.Union, UnionType):
        return " or ".join(describe(part) for part in parts)
    if origin is list:
        return f"list of {describe(parts[0])}"
    if origin is dict:
        return f"map from name to {describe(parts[1])}"
    if kind is typing.Any:
        return "anything"
    return {int: "integer", float: "number", str: "text", bool: "true or false", NoneType: "null"}[kind]


def _plain(value: typing.Any) -> typing.Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _value(value: typing.Any) -> str:
    if value is dataclasses.MISSING:
        return "must be given"
    return "`" + (_escape(spelled(value)) or '""') + "`"


def _prose(text: str) -> str:
    """A comment as text of a table cell: `<name>` is no HTML tag."""
    return _escape(text).replace("<", "&lt;")


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
