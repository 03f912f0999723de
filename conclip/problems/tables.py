"""Reads rows of data sets, each with its place: local files of several formats, folders of them, and hub data sets."""

import codecs
import csv
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from conclip.config.groups import ProblemSetConfig
from conclip.errors import UserError, explain
from conclip.redact import one_line
from conclip.runs.files import expanded
from conclip.runs.json_lines import DamagedLine, json_lines

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")

PACKED = (".gz", ".zst", ".bz2", ".xz", ".zip")

MAX_TABLE_BYTES = 4 << 30
"""Largest size of the rows of a Parquet file in memory."""

LONGEST_CELL = 2**31 - 1
"""Longest cell of a CSV file [characters]."""

SPLITS = (
    ("train", "training"),
    ("validation", "valid", "val", "dev"),
    ("test", "testing", "eval", "evaluation"),
)
"""The words by which names of files say their split, as the hub reads them."""

Row = tuple[str, dict[str, Any]]
"""The place of a row (``file.jsonl:7``), and its columns."""


def read_rows(key: str, settings: ProblemSetConfig, *, kind: str = "") -> Iterator[Row]:
    """Yield the rows of `path` where it is set, else of the hub's `dataset`. Of a folder whose files name their splits
    (`train.jsonl`, `data/test-00000-of-00001.parquet`) those of `split` are read, where it is set, and of one with a
    folder for `dataset_config` that folder.

    Raises UserError, naming keys of config key `key`: `path` and `split` with `kind` before them, where rows of another kind
    have keys of their own."""
    if settings.path:
        path = expanded(settings.path)
        if path.is_dir():
            if settings.dataset_config and (path / settings.dataset_config).is_dir():  # a data set as the hub has it
                path /= settings.dataset_config
            files = sorted(file for file in path.rglob("*") if _is_table(file.relative_to(path)))
            if packed := [file for file in sorted(path.rglob("*")) if _is_packed(file, path)]:
                raise UserError(
                    f"{key}.{kind}path: unpack '{packed[0]}', or take it out of the folder: packed, it is not read"
                )
            if not files:
                raise UserError(f"{key}.{kind}path: folder '{path}' holds no {', '.join(SUFFIXES)}")
            for file in _of_split(files, path, settings.split, f"{key}.{kind}"):
                yield from read_table(file, f"{key}.{kind}path: ")
        else:
            yield from read_table(path, f"{key}.{kind}path: ")
    elif settings.dataset:
        yield from _read_hub(key, settings, kind)
    else:
        raise UserError(f"config key '{key}.{kind}path' has no value; give a file or folder ({', '.join(SUFFIXES)})")


def _is_table(path: Path) -> bool:
    """Return whether a file in a folder is a table; hidden ones are copies that editors keep."""
    return path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _of_split(files: Sequence[Path], folder: Path, split: str | None, told: str) -> Sequence[Path]:
    """Return the files of a folder whose names there say that they are of `split`; all of them where no split is set, or no
    name says one. Raises UserError where all are of others."""
    if split is None:
        return files
    words = next((known for known in SPLITS if split in known), (split,))
    every = {split, *(word for known in SPLITS for word in known)}
    said = {file: _words(file.relative_to(folder), every) for file in files}
    if not any(said.values()):
        return files
    exact = [file for file in files if split in said[file]]
    kept = exact or [file for file in files if said[file].intersection(words)]
    if not kept:
        raise UserError(
            f"{told}split: no file in folder '{folder}' is of split '{split}' by its name ('{files[0].name}' is one); give "
            f"the split's own folder or file as {told}path, or set {told}split=null to read all {len(files)}"
        )
    return kept


def _words(path: Path, known: set[str]) -> set[str]:
    """Return which of the known words a file's name has, in any case and not as a part of a longer word; where it has none,
    that of the nearest folder above it that has some."""
    for name in (path.stem, *(folder.name for folder in path.parents)):
        found = {w for w in known if re.search(rf"(?<![^\W\d_]){re.escape(w)}(?![^\W\d_])", name, re.IGNORECASE)}
        if found:
            return found
    return set()


def _is_packed(file: Path, folder: Path) -> bool:
    """Return whether a file in a folder is a packed table, and the table itself is not there."""
    table = file.with_suffix("")
    return file.suffix.lower() in PACKED and file.is_file() and _is_table(table.relative_to(folder)) and not table.exists()


def read_table(path: Path, told: str = "") -> Iterator[Row]:
    """Yield the rows of a file. Raises UserError; what it says begins with `told` where the file itself is at fault."""
    if not path.is_file():
        raise UserError(f"{told}no file '{path}'; give one of {', '.join(SUFFIXES)}, or a folder of them")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{told}'{path}' is none of {', '.join(SUFFIXES)}; convert it to one of them")
    if suffix == ".jsonl":
        yield from object_lines(path)
    elif suffix == ".json":
        yield from _json_list(path)
    elif suffix == ".csv":
        yield from _csv(path)
    else:
        yield from _parquet(path, told)


_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16: its mark begins with that of UTF-16
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def text_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file with their line ends. The encoding is UTF-8, or what its byte order mark says. Byte
    order marks are dropped, also those inside files that were joined. Raises UserError with the line number on bytes that
    are no text."""
    with path.open("rb") as file:
        start = file.read(4)
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if start.startswith(mark)), "utf-8")
    number = 0
    try:
        with path.open(encoding=encoding, errors="surrogateescape", newline="") as lines:
            for number, line in enumerate(lines, start=1):  # noqa: B007  errors name it
                line.encode()  # surrogateescape has turned bytes that are no text into lone surrogates
                yield line.removeprefix("\ufeff")
    except UnicodeEncodeError as error:
        byte = ord(error.object[error.start]) & 0xFF
        raise UserError(f"{path}:{number}: byte 0x{byte:02x} is no UTF-8 text; save the file as UTF-8") from None
    except UnicodeDecodeError as error:  # only UTF-16 and UTF-32 raise it
        raise UserError(
            f"{path}:{number + 1}: no {encoding.upper()} text ({error.reason}); save the file as UTF-8"
        ) from None


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_CELL)  # csv's own is shorter than a long response
    reader = csv.DictReader(text_lines(path), strict=True)
    try:
        _check_distinct(f"{path}:1", reader.fieldnames or [])
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if surplus := cast(dict[Any, list[str]], row).get(None):
                cells, columns = len(row) - 1 + len(surplus), len(row) - 1
                raise UserError(f"{where}: {cells} cells, but {columns} columns; quote cells that have commas")
            yield where, dict(row)
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num + 1}: not CSV from there on ({error})") from None


def object_lines(path: Path) -> Iterator[Row]:
    """Yield the objects of a JSON-lines file, each with where it stands. Raises UserError with the line number on a line
    that is no object."""
    try:
        for number, row in json_lines(text_lines(path), cut_line="read", parse=_parse):
            where = f"{path}:{number}"
            yield where, _object(where, row)
    except DamagedLine as error:
        where = f"{path}:{error.number}"
        raise UserError(f"{where}: {_reason(error.__cause__, '; each line must be one object')}") from None


def _json_list(path: Path) -> Iterator[Row]:
    text = "".join(text_lines(path))
    try:
        rows = _parse(text)
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path}{line}: {_reason(error)}") from None
    if not isinstance(rows, list):
        raise UserError(f"{path}: a JSON {type(rows).__name__}, not a list of objects")
    for number, row in enumerate(cast(list[Any], rows), start=1):
        where = f"{path}, item {number}"
        yield where, _object(where, row)


class _Repeated(ValueError):
    """A column that an object names more than once."""


def _parse(text: str) -> Any:
    """Parse strict JSON. Raises ValueError or RecursionError, also on repeated columns and on escapes that are no valid
    text."""
    value = json.loads(text, object_pairs_hook=_distinct)
    if "\\ud" in text.lower():
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _reason(error: BaseException | None, hint: str = "") -> str:
    """Return what is wrong with a text that `_parse` refused."""
    match error:
        case json.JSONDecodeError():
            return f"not JSON ({error.msg}, column {error.colno}){hint}"
        case UnicodeEncodeError():
            return "holds half a character (a lone surrogate); write the file as UTF-8"
        case _Repeated():
            return str(error)
        case _:
            return f"not usable JSON ({str(error)[:80]}){hint}"


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise _Repeated(_repeated([name for name, _ in pairs]))
    return values


def _repeated(names: Sequence[str]) -> str | None:
    """Return the message on a repeated column name, of which the last one would silently count; None when all names
    differ."""
    twice = next((name for name, times in Counter(names).items() if times > 1), None)
    if twice is None:
        return None
    return f"column '{twice}' stands there {names.count(twice)} times; name each column once"


def _check_distinct(where: str, names: Sequence[str]) -> None:
    if reason := _repeated(names):
        raise UserError(f"{where}: {reason}")


def _object(where: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{where}: a JSON {type(row).__name__}, not an object with columns")
    return cast(dict[str, Any], row)


def _parquet(path: Path, told: str) -> Iterator[Row]:
    try:
        for number, row in enumerate(parquet_rows(path), start=1):
            yield f"{path}, row {number}", row
    except ValueError as error:
        raise UserError(f"{told}'{path}' is not a Parquet file ({error})") from error


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file. Raises ValueError on other files, and UserError when the rows take more than
    `MAX_TABLE_BYTES` in memory: a few kilobytes of a file can expand to more than any machine has."""
    import pyarrow as pa  # noqa: PLC0415  only when such a file is read
    import pyarrow.parquet as pq  # noqa: PLC0415

    num_bytes = number = 0
    try:
        # an open file, because pyarrow may take a name for a URL; texts stay dictionary-encoded until their row is made
        with path.open("rb") as content, pq.ParquetFile(content) as file:
            _check_distinct(str(path), file.schema_arrow.names)
            texts = [field.name for field in file.schema_arrow if pa.types.is_string(field.type)]
            short = {f.name: f.type.to_pandas_dtype() for f in file.schema_arrow if f.type in (pa.float32(), pa.float16())}
            classes = _classes_of_schema(file.schema_arrow)
        with path.open("rb") as content, pq.ParquetFile(content, read_dictionary=texts) as file:
            for batch in file.iter_batches(batch_size=1024):
                names, columns = batch.schema.names, batch.columns
                for place in range(batch.num_rows):
                    number += 1
                    try:
                        row = {name: column[place].as_py() for name, column in zip(names, columns, strict=True)}
                    except UnicodeDecodeError:
                        raise UserError(f"{path}, row {number}: holds bytes that are no UTF-8 text") from None
                    for name, kind in short.items():
                        if row[name] is not None:  # the shortest decimal of its precision, as its writer saw it: 0.1
                            row[name] = float(str(kind(row[name])))
                    _name_classes(row, classes)
                    num_bytes += _size(row)
                    if num_bytes > MAX_TABLE_BYTES:
                        raise UserError(
                            f"'{path}' takes more than {MAX_TABLE_BYTES >> 30} GiB once unpacked; that is refused"
                        )
                    yield row
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error


def _size(value: Any) -> int:
    """Return the number of characters of the texts in nested values, plus some bytes for each value."""
    if isinstance(value, (str, bytes)):
        return 50 + len(value)
    if isinstance(value, dict):
        return 50 + sum(50 + len(name) + _size(item) for name, item in cast(dict[str, Any], value).items())
    if isinstance(value, list):
        return 50 + sum(map(_size, cast(list[Any], value)))
    return 50


def _read_hub(key: str, settings: ProblemSetConfig, kind: str) -> Iterator[Row]:
    """Yield rows from the hub's cache or the hub. Offline, the error says what to download and how to use a local copy."""
    import datasets  # noqa: PLC0415  a second to import

    name = f"{settings.dataset}" + (f", config {settings.dataset_config}" if settings.dataset_config else "")
    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs every attempt to connect
    assert settings.dataset is not None
    try:
        rows = datasets.load_dataset(
            settings.dataset, settings.dataset_config, split=settings.split or "test", revision=settings.revision
        )
    except Exception as error:
        if explain(error) is not None:
            raise
        what = f"{key}: cannot get data set {name}, split {settings.split} ({type(error).__name__}: {one_line(str(error))})"
        revision = f" --revision {settings.revision}" if settings.revision else ""
        raise UserError(
            f"{what}; set {key}.dataset_config and {key}.{kind}split to what there is, or get it, with a network: hf "
            f"download --repo-type dataset {settings.dataset}{revision}; without: copy the split's file here and set "
            f"{key}.{kind}path=FILE"
        ) from error
    classes = _classes(cast(Any, rows).features)
    for number, row in enumerate(cast(Any, rows), start=1):
        columns = dict(row)
        _name_classes(columns, classes)
        yield f"{settings.dataset}/{settings.split}, row {number}", columns


Classes = Mapping[str, Sequence[str]]
"""The names of the classes of columns that hold their numbers (`datasets.ClassLabel`)."""


def _classes(features: Mapping[str, Any]) -> Classes:
    """Return the names of classes by column; without columns whose classes are called by numbers, which would be taken for
    those of options."""
    named = {column: getattr(feature, "names", None) for column, feature in features.items()}
    return {column: names for column, names in named.items() if names and not any(map(str.isdecimal, names))}


def _classes_of_schema(schema: "pa.Schema") -> Classes:
    """Return the names of classes that a Parquet file from the hub says in its metadata."""
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    from datasets import Features  # noqa: PLC0415  a second to import

    try:
        return _classes(Features.from_arrow_schema(schema))
    except (ValueError, TypeError, KeyError, AttributeError):  # of another version, or no description at all
        return {}


def _name_classes(row: dict[str, Any], classes: Classes) -> None:
    """Replace the numbers of classes in a row by their names; one that has none, as -1 in test sets without labels, by
    null."""
    for column, names in classes.items():
        number = row.get(column)
        if isinstance(number, int):
            row[column] = names[number] if 0 <= number < len(names) else None
