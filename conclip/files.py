"""Files that are whole whenever they have their name, and folders that share their content."""

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from conclip.config import UserError


def write_text(path: Path, content: str) -> None:
    """Write aside, sync and rename: a reader, or a run after a crash, never sees half a file."""
    aside = path.with_name(path.name + ".part")
    aside.write_text(content, encoding="utf-8")
    put(aside, path)


def put(aside: Path, path: Path) -> None:
    """Give a file that was written aside its name, once all of it is on the disk."""
    sync(aside)
    aside.replace(path)
    sync(path.parent)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is no file, or a damaged one. Raises OSError when it cannot be read: what is
    written in its place must not lose it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return {}
    return cast(dict[str, Any], content) if isinstance(content, dict) else {}


def expanded(path: str) -> Path:
    """A path of a config, `~` and `~name` written out. Raises UserError when there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"'{path}': no home of such a user here; give the whole path") from error


def newest_attempt(path: Path) -> Path:
    """Of `outputs/<subcommand>/<name>` the attempt that began last; any other path as it is."""
    latest = path / "latest"
    return latest if latest.exists() else path


def check_target(path: Path, option: str) -> None:
    """Raise UserError when a file cannot be made at `path`, the value of `option`."""
    if path.is_dir():
        raise UserError(f"{option}: '{path}' is a folder; give a file")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{option}: no folder '{path.parent}'")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """`write_text` of a JSON object."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def finite(value: Any) -> Any:
    """JSON-like values, their infinite bounds (an interval of one problem) and NaN as None, which JSON can say."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in cast(Mapping[str, Any], value).items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in cast(list[Any], value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sync(path: Path) -> None:
    """Have a file or folder on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def drop_cut_line(path: Path) -> None:
    """Cut a file of lines after its last whole one: a killed writer may have left a part of a line."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


def link(source: Path, target: Path, *, without: str | None = None) -> None:
    """The same file or folder at another place: hard links, or copies across file systems. `without`: the name of a
    subfolder that stays behind. `target` is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(target.name + ".part")
    if source.is_dir():
        for path in (aside, target):
            shutil.rmtree(path, ignore_errors=True)
        ignore = shutil.ignore_patterns(without) if without else None
        shutil.copytree(source, aside, copy_function=_link_file, ignore=ignore)
    else:
        aside.unlink(missing_ok=True)
        _link_file(source, aside)
    aside.replace(target)


def break_links(path: Path) -> None:
    """Give a file, or all below a folder, content of its own: what is written here must not change another place."""
    for file in path.rglob("*") if path.is_dir() else [path] if path.exists() else []:
        if file.is_file() and file.stat().st_nlink > 1:
            aside = file.with_name(file.name + ".part")
            shutil.copy2(file, aside)
            aside.replace(file)


def _link_file(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
