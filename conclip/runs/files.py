"""Files that are whole whenever they have their name, and folders that share their content.

Run folders may come from other people. Whatever is written goes through here: a file aside is new (`O_EXCL`) and never
followed where it is a link (`O_NOFOLLOW`), one that is appended to is a plain file that no other place shares, and secrets
of this process are replaced on the way (`conclip.redact`). Inside a run folder there are no links: `check_content`.
"""

import errno
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TextIO, cast

from conclip.errors import UserError
from conclip.redact import hide, hide_in, hide_known

ATTEMPT = re.compile(r"attempt-([0-9]{1,18})", re.ASCII)
"""Name of an attempt's folder."""

TRACKERS_OWN = ("tensorboard", "wandb")
"""Subfolders that other tools fill, with links of their own."""

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_AT_THE_END = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_TO_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class _WithoutSecrets(TextIOWrapper):
    def write(self, text: str, /) -> int:
        super().write(hide_known(text))
        return len(text)


@contextmanager
def writing(path: Path) -> Iterator[TextIO]:
    """A text file that gets its name once the block has ended and all of it is on the disk: a reader, or a run after a
    crash, never sees half a file. Raises UserError where there is a folder in its way."""
    with writing_bytes(path) as raw:
        out = _WithoutSecrets(raw, encoding="utf-8", newline="\n")
        yield out
        out.detach()  # flushes


@contextmanager
def writing_bytes(path: Path) -> Iterator[BinaryIO]:
    """The same for bytes, which are written as they are."""
    aside = path.with_name(path.name + ".part")
    try:
        with os.fdopen(_new(aside), "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def _new(aside: Path) -> int:
    """Descriptor of a file that was not there; what an earlier run, or somebody else, left under its name is removed."""
    try:
        aside.unlink(missing_ok=True)
    except (IsADirectoryError, PermissionError):
        if aside.is_dir():
            raise UserError(f"'{aside}' is a folder, where a file is written; remove it") from None
        raise
    return os.open(aside, _NEW, 0o666)


def write_text(path: Path, content: str) -> None:
    """One text as a whole file; see `writing`."""
    with writing(path) as out:
        out.write(content)


def appending(path: Path) -> TextIO:
    """A text file to write at the end of. Raises UserError on a link and on what is no plain file; one that has other names
    (hard links) becomes a file of its own first."""
    try:
        descriptor = os.open(path, _AT_THE_END, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise UserError(f"'{path}' is no plain file (a link, say), where one is written; remove it") from error
        raise
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise UserError(f"'{path}' is no plain file, where one is written; remove it")
    if found.st_nlink > 1:
        os.close(descriptor)
        break_links(path)
        return appending(path)
    return _WithoutSecrets(os.fdopen(descriptor, "ab"), encoding="utf-8", newline="\n")


def check_content(folder: Path) -> None:
    """Raise UserError when a run folder is a link, or holds one, or anything else that is neither file nor folder. conclip
    makes none; in a folder of other people it would lead reading and writing elsewhere."""
    if folder.is_symlink():
        raise UserError(f"'{folder}' is a link, where a run's attempt must be a folder; give the folder it leads to")
    pending = [folder]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if not (entry.name in TRACKERS_OWN and Path(entry.path).parent == folder):
                        pending.append(Path(entry.path))
                elif not entry.is_file(follow_symlinks=False):
                    what = "a link" if entry.is_symlink() else "neither file nor folder"
                    raise UserError(
                        f"'{entry.path}' is {what}; none is followed in a run folder: put a file there, or remove it"
                    )


def is_inside(name: str) -> bool:
    """Whether a relative path names something below the folder it is relative to."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and "\0" not in name


def read_plain(path: Path) -> bytes | None:
    """The content of a file in a run folder; None where there is none. Raises UserError on a link and on what is no plain
    file (a pipe would be waited for), OSError when it cannot be read."""
    try:
        descriptor = os.open(path, _TO_READ)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise UserError(f"'{path}' is no plain file (a link, say); put a file there, or remove it") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"'{path}' is no plain file; put a file there, or remove it")
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is no file, or a damaged one. Raises as `read_plain` does: what is written in
    its place must not lose it."""
    try:
        content = json.loads((read_plain(path) or b"").decode("utf-8"))
    except (ValueError, RecursionError):
        return {}
    return cast(dict[str, Any], content) if isinstance(content, dict) else {}


def expanded(path: str) -> Path:
    """A path of a config, `~` and `~name` written out. Raises UserError when there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"'{path}': no home of such a user here; give the whole path") from error


def newest_attempt(path: Path) -> Path:
    """Of `outputs/<subcommand>/<name>` the attempt that began last; any other path as it is. Raises UserError when `latest`
    leads anywhere but to an attempt beside it."""
    latest = path / "latest"
    if latest.is_symlink():
        name = os.readlink(latest)
        if not ATTEMPT.fullmatch(name) or (path / name).is_symlink():
            raise UserError(f"'{latest}' leads to '{name}', which is no attempt beside it; give the attempt's folder itself")
    return latest if latest.exists() else path


def check_target(path: Path, option: str) -> None:
    """Raise UserError when a file cannot be made at `path`, the value of `option`."""
    if path.is_dir():
        raise UserError(f"{option}: '{path}' is a folder; give a file")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UserError(f"{option}: '{path}' is a link or no plain file; give a file")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{option}: no folder '{path.parent}'")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """`write_text` of a JSON object, without what stands for secrets in its URLs."""
    write_text(path, json.dumps(hide_in(content), indent=2, ensure_ascii=False) + "\n")


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
    content = read_plain(path) or b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with writing_bytes(path) as out:
            out.write(content[:whole])


def clean_text(path: Path) -> None:
    """Replace the secrets that others (libraries, child processes) wrote into a log while it was theirs; in place, since
    they may hold it open."""
    text = (read_plain(path) or b"").decode("utf-8", errors="surrogateescape")
    if (clean := hide(text)) != text:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "wb") as file:
            file.write(clean.encode("utf-8", errors="surrogateescape"))
            file.truncate()


def link(source: Path, target: Path, *, without: str | None = None) -> None:
    """The same file or folder at another place: hard links, or copies across file systems. `without`: the name of a
    subfolder that stays behind. `target` is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(target.name + ".part")
    if source.is_dir():
        for path in (aside, target):
            shutil.rmtree(path, ignore_errors=True)
        ignore = shutil.ignore_patterns(without) if without else None
        shutil.copytree(source, aside, copy_function=_link_file, ignore=ignore, symlinks=True)
    else:
        _link_file(source, aside)
    aside.replace(target)


def break_links(path: Path) -> None:
    """Give a file, or all below a folder, content of its own: what is written here must not change another place."""
    for file in path.rglob("*") if path.is_dir() else [path] if path.exists() else []:
        if file.is_file() and not file.is_symlink() and file.stat().st_nlink > 1:
            aside = file.with_name(file.name + ".part")
            copy_file(file, aside)
            aside.replace(file)


def _link_file(source: str | Path, target: str | Path) -> None:
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        copy_file(Path(source), Path(target))


def copy_file(source: Path, target: Path) -> None:
    """The same content in a new file."""
    with source.open("rb") as content, os.fdopen(_new(target), "wb") as out:
        shutil.copyfileobj(content, out)
    shutil.copystat(source, target, follow_symlinks=False)
