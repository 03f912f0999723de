"""Atomic writes of files, and folders that share content by hard links.

Run folders may come from other people. Everything is written through this module: a temporary file is always new (`O_EXCL`)
and no link is followed (`O_NOFOLLOW`), a file that is appended to is a plain file without other hard links, and secrets of
this process are replaced (`conclip.redact`). A run folder contains no links: `check_content`.
"""

import errno
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TextIO, cast

from conclip.errors import UserError
from conclip.redact import hide, hide_in, hide_known

ATTEMPT = re.compile(r"attempt-([0-9]{1,18})", re.ASCII)
"""The name of an attempt's folder."""

TRACKER_FOLDERS = ("tensorboard", "wandb")
"""Subfolders that belong to other tools and may contain links."""

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_AT_THE_END = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_TO_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class _WithoutSecrets(TextIOWrapper):
    def write(self, text: str, /) -> int:
        super().write(hide_known(text))
        return len(text)


@contextmanager
def writing(path: Path) -> Iterator[TextIO]:
    """Open a text file that gets its name once the block has ended and its content is on the disk: a reader, or a run after
    a crash, never sees a partial file. Raises UserError where a folder has the temporary name."""
    with writing_bytes(path) as raw:
        out = _WithoutSecrets(raw, encoding="utf-8", newline="\n")
        yield out
        out.detach()  # flushes


@contextmanager
def writing_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a file for bytes as `writing` does; they are written unchanged."""
    temporary = path.with_name(path.name + ".part")
    descriptor = _create(temporary)
    mine = os.fstat(descriptor)
    try:
        with os.fdopen(descriptor, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        if not _is(temporary, mine):
            raise UserError(f"'{path}' is being written by another command, too; wait for that one, then repeat this one")
        temporary.replace(path)
    except BaseException:
        if _is(temporary, mine):
            temporary.unlink()
        raise
    sync(path.parent)


def _is(path: Path, file: os.stat_result) -> bool:
    """Return whether a path still leads to this file."""
    try:
        return os.path.samestat(path.stat(), file)
    except OSError:
        return False


def _create(temporary: Path) -> int:
    """Return the descriptor of a new file; a file that an earlier run, or somebody else, left under its name is removed."""
    try:
        temporary.unlink(missing_ok=True)
    except (IsADirectoryError, PermissionError):
        if temporary.is_dir():
            raise UserError(f"'{temporary}' is a folder, where a file is written; remove it") from None
        raise
    return os.open(temporary, _NEW, 0o666)


def write_text(path: Path, content: str) -> None:
    """Write a text file atomically; see `writing`."""
    with writing(path) as out:
        out.write(content)


def appending(path: Path, *, shared: bool = False) -> TextIO:
    """Open a text file for appending. Raises UserError for a link and for anything but a plain file. A file with other hard
    links is copied first, unless it is to be `shared` with them."""
    try:
        descriptor = os.open(path, _AT_THE_END, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise UserError(f"'{path}' is no plain file (a link, say), where one is written; remove it") from error
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise UserError(f"'{path}' is no plain file, where one is written; remove it")
    if status.st_nlink > 1 and not shared:
        os.close(descriptor)
        break_links(path)
        return appending(path)
    return _WithoutSecrets(os.fdopen(descriptor, "ab"), encoding="utf-8", newline="\n")


def check_content(folder: Path) -> None:
    """Raise UserError when a run folder is a link, or contains one, or anything else that is neither file nor folder.
    conclip makes none; in other people's folders they would redirect reads and writes."""
    if folder.is_symlink():
        raise UserError(f"'{folder}' is a link, where a run's attempt must be a folder; give the folder it leads to")
    pending = [folder]
    while pending:
        here = pending.pop()
        try:
            found = os.scandir(here)
        except FileNotFoundError:
            if here == folder:
                raise
            continue  # the run that it belongs to has renamed or removed it meanwhile
        with found as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if not (entry.name in TRACKER_FOLDERS and Path(entry.path).parent == folder):
                        pending.append(Path(entry.path))
                elif not entry.is_file(follow_symlinks=False):
                    what = "a link" if entry.is_symlink() else "neither file nor folder"
                    raise UserError(
                        f"'{entry.path}' is {what}; none is followed in a run folder: put a file there, or remove it"
                    )


def is_inside(name: str) -> bool:
    """Return whether a relative path stays below its folder."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and "\0" not in name


def read_plain(path: Path) -> bytes | None:
    """Return the content of a file in a run folder; None where there is none. Raises UserError for a link and for anything
    but a plain file (reading a pipe would block), and OSError when it cannot be read."""
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
    """Return a JSON object; an empty one where the file is missing or damaged. Raises as `read_plain` does: a file that
    cannot be read must not be overwritten."""
    try:
        content = json.loads((read_plain(path) or b"").decode("utf-8"))
    except (ValueError, RecursionError):
        return {}
    return cast(dict[str, Any], content) if isinstance(content, dict) else {}


def expanded(path: str) -> Path:
    """Return a path of a config with `~` and `~name` expanded. Raises UserError when there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"'{path}': no home of such a user here; give the whole path") from error


def nearest_existing(path: Path) -> Path:
    """Return `path`, or the nearest folder around it that is there, in which it would be made."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def newest_attempt(path: Path) -> Path:
    """Return the newest attempt for `outputs/<subcommand>/<name>`, and any other path unchanged. Raises UserError when
    `latest` points anywhere but to an attempt beside it."""
    latest = path / "latest"
    if latest.is_symlink():
        name = os.readlink(latest)
        if not ATTEMPT.fullmatch(name) or (path / name).is_symlink():
            raise UserError(f"'{latest}' leads to '{name}', which is no attempt beside it; give the attempt's folder itself")
    if latest.exists() or latest.is_symlink():
        return latest if latest.exists() else path
    attempts = [place for place in path.glob("attempt-*") if ATTEMPT.fullmatch(place.name) and not place.is_symlink()]
    return max(attempts, key=lambda place: int(place.name.rpartition("-")[2]), default=path)  # a copy may have lost the link


def check_target(path: Path, option: str, *, inputs: Sequence[Path] = ()) -> None:
    """Raise UserError when a file cannot be made at `path`, the value of `option`, or is one of the inputs, or there already
    in a folder of them."""
    for source in inputs if path.exists() else ():
        if path.resolve().is_relative_to(source.resolve()):
            raise UserError(f"{option}: '{path}' is an input; give another file")
    if path.is_dir():
        raise UserError(f"{option}: '{path}' is a folder; give a file")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UserError(f"{option}: '{path}' is a link or no plain file; give a file")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{option}: no folder '{path.parent}'")


def write_json(path: Path, content: Mapping[str, Any], *, is_data: bool = False) -> None:
    """Write a JSON object atomically, without credentials in its URLs; of data, such as ids of problems, only known secrets
    are replaced."""
    clean = hide_in(content, by=hide_known if is_data else hide)
    write_text(path, json.dumps(clean, indent=2, ensure_ascii=False) + "\n")


def finite(value: Any) -> Any:
    """Return JSON-like values with NaN and infinity (bounds of an interval of one problem) as None, since JSON has
    neither."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in cast(Mapping[str, Any], value).items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in cast(list[Any], value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Wait until a file, or a folder and all that is in it, is on the disk."""
    for each in (*path.rglob("*"), path):
        if not each.is_symlink():
            sync(each)


def settle(temporary: Path, target: Path) -> None:
    """Give a file or folder its name once all of it is on the disk."""
    sync_tree(temporary)
    temporary.replace(target)
    sync(target.parent)


def drop_cut_line(path: Path) -> None:
    """Truncate a file after its last complete line: a killed writer may have left part of a line."""
    content = read_plain(path) or b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with writing_bytes(path) as out:
            out.write(content[:whole])


def clean_text(path: Path) -> None:
    """Replace the secrets that libraries and child processes wrote to a log. The file is changed in place, since they may
    have it open."""
    text = (read_plain(path) or b"").decode("utf-8", errors="surrogateescape")
    if (clean := hide(text)) != text:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "wb") as file:
            file.write(clean.encode("utf-8", errors="surrogateescape"))
            file.truncate()


def link(source: Path, target: Path, *, without: str | None = None, complete: Callable[[Path], None] | None = None) -> None:
    """Give a file or folder a second place, by hard links, or by copies across file systems. `without`: the name of a
    subfolder to leave out; `complete` adds to the new folder before it gets its name. `target` is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".part")
    if source.is_dir():
        for path in (temporary, target):
            shutil.rmtree(path, ignore_errors=True)
        ignore = shutil.ignore_patterns(without) if without else None
        shutil.copytree(source, temporary, copy_function=_link_file, ignore=ignore, symlinks=True)
    else:
        _link_file(source, temporary)
    if complete is not None:
        complete(temporary)
    settle(temporary, target)


def break_links(path: Path) -> None:
    """Replace hard links by copies, of one file or of all files below a folder, so that writing to them changes no other
    place."""
    for file in path.rglob("*") if path.is_dir() else [path] if path.exists() else []:
        if file.is_file() and not file.is_symlink() and file.stat().st_nlink > 1:
            temporary = file.with_name(file.name + ".part")
            copy_file(file, temporary)
            temporary.replace(file)


def _link_file(source: str | Path, target: str | Path) -> None:
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        copy_file(Path(source), Path(target))


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's content and times to a new file."""
    with source.open("rb") as content, os.fdopen(_create(target), "wb") as out:
        shutil.copyfileobj(content, out)
    shutil.copystat(source, target, follow_symlinks=False)
