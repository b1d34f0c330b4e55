"""Record files as a stream of packed batches: which files a name means, how a format is cut, and how it is read."""
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false

import glob
import gzip
import io
import json
import math
import os
import re
import sys
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from reweigh.batch import Batch, Candidates
from reweigh.guard import LimitError, is_unfinished, limited_lines, loads, open_regular, opened_regular
from reweigh.records.arrays import numbers, valid
from reweigh.records.footer import Group, read_groups
from reweigh.records.schema import (
    BY_NAME,
    COLUMNS,
    REQUIRED,
    Column,
    Origin,
    Report,
    RunInfo,
    UnreadableFileError,
    Violation,
    fail,
)
from reweigh.records.table import (
    Ragged,
    aligned,
    batch_of,
    check_names,
    check_values,
    conform,
    lengths_of,
    single,
    table_of,
    token_values,
    twice,
)

Format = Literal["parquet", "jsonl"]
Paths = str | PathLike[str] | Iterable[str | PathLike[str]]

_FORMATS: tuple[tuple[str, Format], ...] = (
    (".parquet", "parquet"),
    (".pq", "parquet"),
    (".jsonl", "jsonl"),
    (".jsonl.gz", "jsonl"),
)
_IN_FOLDERS = (".parquet", ".jsonl", ".jsonl.gz")


def format_of(path: Path) -> Format:
    """Parquet or JSONL, by the name's ending."""
    for ending, name in _FORMATS:
        if path.name.endswith(ending):
            return name
    raise ValueError(
        f"{path}: records are {', '.join(ending for ending, _ in _FORMATS)}, got {path.suffix or 'no extension'}\n"
        "hint: rename the file if it is one of these."
    )


def expand(paths: Paths) -> list[Path]:
    """List the record files, in the order given; a folder's or glob's files by name, and each file once.

    Args:
        paths: one or many files, folders (their `*.parquet`, `*.jsonl` and `*.jsonl.gz`, in subfolders too) or globs.

    Raises:
        FileNotFoundError: nothing is there; a folder has no record file; a glob matches none.
        ValueError: a file's extension is none of those.
    """
    given = [paths] if isinstance(paths, str | PathLike) else list(paths)
    if not given:
        raise ValueError("expand: no path was given\nhint: name at least one file, folder or glob of records.")
    chosen: dict[Path, Path] = {}
    for item in given:
        for path in _expand_one(Path(item)):
            format_of(path)
            chosen.setdefault(path.resolve(), path)
    return list(chosen.values())


def _expand_one(path: Path) -> list[Path]:
    if path.is_dir():
        files = [path for path in files_in(path, _IN_FOLDERS) if not is_unfinished(path)]
        if not files:
            raise FileNotFoundError(
                f"{path}: the folder has no record file ({', '.join('*' + e for e in _IN_FOLDERS)})\n"
                "hint: subfolders are searched too, but for those whose name starts with . or _"
            )
        return files
    if path.exists():
        return [path]
    if glob.has_magic(str(path)):
        files = sorted(matching(path))
        if not files:
            raise FileNotFoundError(f"{path}: no file matches\nhint: quote the glob, and check it with ls.")
        return files
    raise FileNotFoundError(f"{path}: no such file or folder")


def matching(pattern: Path) -> list[Path]:
    """List the files that a glob means, without hidden ones and parts of files whose writer was stopped.

    `**` does not follow links, which may lead round and round.
    """
    text = str(pattern)
    if "**" in text:
        top = Path(pattern.anchor) if pattern.is_absolute() else Path()
        inner = str(pattern.relative_to(pattern.anchor) if pattern.is_absolute() else pattern)
        found = top.glob(f"{inner}/*" if inner.endswith("**") else inner)
    else:
        found = map(Path, glob.glob(text))
    return [path for path in dict.fromkeys(found) if path.is_file() and not is_unfinished(path)]


def files_in(folder: Path, endings: tuple[str, ...]) -> Iterator[Path]:
    """List a folder's files of these names' endings, in subfolders too, by name with numbers in it as numbers; without
    those that are hidden or whose writer has not finished: their name, or a subfolder's, starts with . or _."""
    found = (path for path in folder.rglob("*") if path.name.endswith(endings) and not is_hidden(path, folder))
    yield from sorted((path for path in found if path.is_file()), key=natural)


def is_hidden(path: Path, folder: Path) -> bool:
    """Whether a name in a folder says that it is not for others to read."""
    return any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)


def natural(path: Path) -> list[tuple[int, str]]:
    """Order names so that step_9 comes before step_10."""
    return [(int(x), "") if i % 2 else (-1, x) for i, x in enumerate(re.split(r"([0-9]+)", str(path)))]


# pyarrow ships no types, and makes the functions of pyarrow.compute when it is imported.


@dataclass(frozen=True)
class FilePart:
    """Some consecutive rows of one file, named without being read: a plain value that travels to other processes.

    `FilePart(path)` is the whole file.

    Attributes:
        path: the file.
        start: where the part starts, in the format's own count: row groups of Parquet, bytes of JSON lines.
        stop: where it ends; None for the end of the file.
        first_row: number of its first row in the file, from 0.
        first_line: number of its first line in the file, from 1; for formats that have lines.
        rows: how many rows it has; None if only reading tells.
        tokens: about how many tokens; None if only reading tells.
    """

    path: Path
    start: int = 0
    stop: int | None = None
    first_row: int = 0
    first_line: int = 1
    rows: int | None = None
    tokens: int | None = None


_SMALL = 1 << 20  # bytes; a file of at most so many is read whole


class Opened:
    """A file that is opened once: each reading of it has a place of its own, and none opens it again.

    What its footer said is kept where it is closed for a while, see `rest`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: _Descriptor | None = None
        self._was = self._open().identity

    def _open(self) -> "_Descriptor":
        if self._descriptor is None:
            self._descriptor = _Descriptor(self.path)
        return self._descriptor

    def rest(self) -> None:
        """Close it until it is read again; who reads it now reads on."""
        self._descriptor = None
        self.__dict__.pop("parquet", None)

    def stream(self) -> io.BufferedReader:
        """Read the bytes from the beginning."""
        descriptor = self._open()
        if descriptor.identity != self._was:  # another file by now
            self._was = descriptor.identity
            for name in ("parquet", "groups", "_head", "info"):
                self.__dict__.pop(name, None)
        return io.BufferedReader(_Reading(descriptor), 1 << 16)

    def lines(self) -> IO[bytes]:
        """Read them through gzip if the name ends in .gz."""
        return cast("IO[bytes]", gzip.GzipFile(fileobj=self.stream())) if self.path.suffix == ".gz" else self.stream()

    @cached_property
    def parquet(self) -> pq.ParquetFile:
        """The file as Parquet, its footer read once.

        Raises:
            UnreadableFileError: it is none, or not whole.
        """
        try:
            parquet = pq.ParquetFile(self._arrow())
            texts = _long_texts(self.groups)
            return pq.ParquetFile(self._arrow(), read_dictionary=texts) if texts else parquet
        except (pa.ArrowException, OSError) as e:
            raise _unreadable(self, e) from None

    def _arrow(self) -> Any:
        """Give it to Arrow, whose reads of a file of Python's cost more than all else of a small one."""
        stream = self.stream()
        return stream if self.is_large else pa.BufferReader(stream.read())

    @property
    def is_large(self) -> bool:
        """Whether it is worth more than one read and one thread."""
        return os.fstat(self._open().number).st_size > _SMALL

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """What the footer says of the row groups.

        Raises:
            UnreadableFileError: it is damaged.
        """
        try:
            return read_groups(self.stream())
        except ValueError as e:
            raise UnreadableFileError(
                f"{self.path}: not a whole Parquet file: {e}\nhint: copy the file again from where it was written."
            ) from None

    @property
    def names(self) -> tuple[str, ...]:
        """Name the columns of a Parquet file."""
        return self._head[0]

    @cached_property
    def _head(self) -> tuple[tuple[str, ...], Mapping[bytes, bytes] | None]:
        """Names of the columns, and metadata: all that is needed of a file before it is read, kept when it rests."""
        return tuple(sys.intern(name) for name in self.parquet.schema_arrow.names), self.parquet.metadata.metadata

    @cached_property
    def info(self) -> RunInfo:
        """Read what the metadata of a Parquet file say of the run; all unknown if they say nothing."""
        try:
            return RunInfo.from_metadata(self._head[1])
        except UnreadableFileError:
            raise
        except ValueError as e:
            raise UnreadableFileError(_of_info(str(self.path), e)) from None


class _Descriptor:
    """An open file of the operating system, closed when nobody reads it any more."""

    def __init__(self, path: Path) -> None:
        self.number = opened_regular(path)
        weakref.finalize(self, os.close, self.number)
        stat = os.fstat(self.number)
        self.identity = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)


class _Reading(io.RawIOBase):
    """Reads a file from a place of its own."""

    def __init__(self, descriptor: _Descriptor) -> None:
        self._descriptor, self._at = descriptor, 0

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that it has a place."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a place."""
        size = os.fstat(self._descriptor.number).st_size
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: size}[whence]
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        """Read on."""
        count = os.preadv(self._descriptor.number, [buffer], self._at)
        self._at += count
        return count


Read = Callable[[FilePart, Sequence[str] | None, int, Report], Iterator[tuple[pa.Table, Origin]]]


@dataclass(frozen=True)
class Source:
    """One file of a known format, which is opened once for all that is asked of it.

    Attributes:
        path: the file.
        info: what it says about the run that wrote it.
        names: names of its columns; of JSON lines, those of the first record.
        parts: its parts of about so many tokens each, in order, that together are the file. They depend on the file
            and that number alone.
        read: tables of a part's rows in order, with the types that the file has: given the columns wanted (all if
            None), about how many tokens a table may have, and whom to tell of values that cannot be read.
    """

    path: Path
    info: Callable[[], RunInfo]
    names: Callable[[], list[str]]
    parts: Callable[[int], Iterator[FilePart]]
    read: Read


@dataclass(frozen=True)
class Formats:
    """A set of file formats, as two functions of paths.

    Attributes:
        expand: from what a user names (files, folders, globs) to the files, each once, in the order to read them.
        source: one of them.
        ignored: files of the folders that were named which are none of these, by now.
        left_out: files that `expand` did not list though their names are as of those that it did, and why, by now.
    """

    expand: Callable[[Paths], list[Path]]
    source: Callable[[Path], Source]
    ignored: Callable[[], tuple[Path, ...]] = tuple
    left_out: Callable[[], tuple[Violation, ...]] = tuple


_MAGIC = b"PAR1"
_MAX_ROWS = 65_536  # of one table, however short the rows


def parquet_info(file: Opened) -> RunInfo:
    """Read the run's metadata; all unknown if the file holds none."""
    return file.info


def _of_info(place: str, error: ValueError) -> str:
    hint = "\nhint: what the file says of its run is damaged: write the file again with a good RunInfo."
    return f"{place}: {error}" + ("" if "\nhint: " in str(error) else hint)


def parquet_names(file: Opened) -> list[str]:
    """List the names of the file's columns.

    Raises:
        UnreadableFileError: a column of records stands twice.
    """
    names = list(file.names)
    for name in BY_NAME:
        if names.count(name) > 1:
            raise twice(name, file.path)
    return names


def cut_parquet(file: Opened, tokens: int) -> Iterator[FilePart]:
    """Cut into parts of about so many tokens. A row group is never cut: its pages cannot be read from the middle."""
    all_groups, row = file.groups if file.names else (), 0
    for groups, rows, size in _runs(all_groups, range(len(all_groups)), tokens):
        yield FilePart(file.path, groups[0], groups[-1] + 1, row, rows=rows, tokens=size)
        row += rows


def read_parquet(
    file: Opened, part: FilePart, columns: Sequence[str] | None, max_tokens: int, report: Report
) -> Iterator[tuple[pa.Table, Origin]]:
    """Read raw tables of about `max_tokens` tokens (more if rows of one row group differ much), in the file's order."""
    path, parquet = file.path, file.parquet
    have = parquet_names(file)
    wanted = [c.name for c in COLUMNS if c.name in have and (columns is None or c.name in columns)]
    row = part.first_row
    some = range(len(file.groups))[part.start : part.stop]
    for group in some:
        _check_growth(path, file.groups[group], group)
    for groups, rows, tokens in _runs(file.groups, some, max_tokens):
        size = max(1, min(rows, _MAX_ROWS, rows * max_tokens // max(tokens, 1)))
        try:
            for batch in parquet.iter_batches(size, groups, columns=wanted, use_threads=file.is_large):
                yield pa.Table.from_batches([batch]), Origin(path, row)
                row += batch.num_rows
        except (pa.ArrowException, OSError) as e:
            raise UnreadableFileError(
                f"{path}: damaged after row {row} of {parquet.metadata.num_rows}: {_line(e)}\n"
                "hint: the footer is whole but data pages are not; copy the file again from where it was written."
            ) from None


def _long_texts(groups: Sequence[Group]) -> list[str]:
    """Name the columns of text in which one long text may stand for many rows: they are read as a dictionary."""
    found: dict[str, None] = {}
    for group in groups:
        for chunk in group.chunks:
            column = BY_NAME.get(chunk.path)
            long = chunk.unpacked * chunk.num_values > _LONG_TEXTS
            if long and column is not None and pa.types.is_string(column.type):
                found[column.name] = None
    return list(found)


def _check_growth(path: Path, group: Group, number: int) -> None:
    """Refuse a row group whose values, once unpacked, would take memory out of proportion to the file.

    The footer says how many values each column has, and how many bytes they take packed.
    """
    chunks = {one.path.split(".")[0]: one for one in group.chunks}
    tokens = chunks["log_mu"].num_values if "log_mu" in chunks else group.num_rows
    for name, chunk in chunks.items():
        column = BY_NAME.get(name)
        if column is None:
            continue
        size = chunk.num_values * _WIDTHS.get(str(column.value_type), 4)
        packed = max(1, chunk.packed)
        if column.per_token and name == "log_mu":
            grown = size > GROWTH_FREE and size > GROWTH_TIMES * packed
        elif column.per_token:
            most = _MANY_VALUES if column.many else _MORE_VALUES
            grown = size > GROWTH_FREE and chunk.num_values > most * (tokens + group.num_rows)
        else:
            grown = size > GROWTH_FREE and chunk.num_values > 2 * group.num_rows
        if grown:
            raise UnreadableFileError(
                f"{path}: {name} of row group {number} has {chunk.num_values:,} values in {packed:,} bytes: not read, "
                "as it may be made to fill the memory\n"
                "hint: if it is a good file, write it again in row groups of fewer rows."
            )


GROWTH_TIMES, GROWTH_FREE = 10, 256 << 20
_MORE_VALUES = 4
_MANY_VALUES = 256  # of a column of many values a token, in the mean
_LONG_TEXTS = 1 << 30  # bytes that all texts of a row group could come to, from which on they are read as a dictionary
_WIDTHS = {"float": 4, "int32": 4, "int64": 8, "bool": 1}


def _runs(all_groups: Sequence[Group], groups: Sequence[int], max_tokens: int) -> Iterator[tuple[list[int], int, int]]:
    """Row groups to read together, with their rows and tokens."""
    run: list[int] = []
    run_tokens = run_rows = 0
    for i in groups:
        group = all_groups[i]
        # values of log_mu, an empty list counted as one; the number of rows if there is no such column
        log_mu = group.chunk("log_mu")
        tokens = group.num_rows if log_mu is None else log_mu.num_values
        if run and (run_tokens + tokens > max_tokens or run_rows + group.num_rows > _MAX_ROWS):
            yield run, run_rows, run_tokens
            run, run_tokens, run_rows = [], 0, 0
        run.append(i)
        run_tokens += tokens
        run_rows += group.num_rows
    if run:
        yield run, run_rows, run_tokens


def _unreadable(file: Opened, error: Exception) -> Exception:
    path, stream = file.path, file.stream()
    starts, size = stream.read(len(_MAGIC)), stream.seek(0, io.SEEK_END)
    if starts == _MAGIC or size == 0:
        return UnreadableFileError(
            f"{path}: truncated or not closed: {size} bytes and no Parquet footer at the end\n"
            "hint: the writer was stopped before it closed the file, or the copy is not complete. Copy it again, or "
            "write again; reweigh.records.RecordWriter closes the file when its block is left by an error."
        )
    return UnreadableFileError(
        f"{path}: not a Parquet file: it starts with {starts!r}, not {_MAGIC!r}: {_line(error)}\n"
        "hint: name JSON lines *.jsonl or *.jsonl.gz."
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


_KEY = "reweigh"
_TOKEN_BYTES = 24  # about what a token takes: two numbers of nine digits, their commas, and now and then a mask


def open_lines(path: Path, mode: str) -> IO[bytes]:
    """Open for reading ("rb") or writing ("wb"), through gzip if the name ends in .gz."""
    file = open_regular(path) if mode == "rb" else open(path, mode)  # noqa: SIM115 - it is what is returned
    if path.suffix != ".gz":
        return cast("IO[bytes]", file)
    return cast("IO[bytes]", _Packed(file, mode))


class _Packed(gzip.GzipFile):
    """Closes the file that it stands on too, which it is given open."""

    def __init__(self, file: Any, mode: str) -> None:
        self._below = file
        super().__init__(filename="", mode=mode, fileobj=file, mtime=0)

    def close(self) -> None:
        """Close both."""
        try:
            super().close()
        finally:
            self._below.close()


def jsonl_info(file: Opened) -> RunInfo:
    """Read the metadata on the first line; all unknown if it holds none."""
    for _, record in _records(file, FilePart(file.path)):
        return _info(file.path, record) if _is_info(record) else RunInfo(schema_version=None)
    return RunInfo(schema_version=None)


def cut_jsonl(opened: Opened, tokens: int) -> Iterator[FilePart]:
    """Cut into parts of about so many tokens, at the ends of lines; a gzipped file cannot be cut, and is one part."""
    path = opened.path
    if path.suffix == ".gz":
        yield FilePart(path)
        return

    def is_row(line: int, text: bytes) -> bool:
        return bool(text.strip()) and not (line == 1 and _is_info(_record(path, line, text)))

    with opened.stream() as file:
        for part in cut_at_lines(path, file, tokens * _TOKEN_BYTES, is_row):
            yield replace(part, tokens=(cast("int", part.stop) - part.start) // _TOKEN_BYTES)


def cut_at_lines(path: Path, file: IO[bytes], most: int, is_row: Callable[[int, bytes], bool]) -> Iterator[FilePart]:
    """Cut a file into parts of at most so many bytes, unless one row has more; `is_row` of a line's number and text."""
    start = at = row = rows = 0
    first = 1
    for line, text in enumerate(limited_lines(file, path), start=1):
        if rows and at - start + len(text) > most:
            yield FilePart(path, start, at, row, first, rows)
            start, first, row, rows = at, line, row + rows, 0
        at += len(text)
        rows += is_row(line, text)
    if rows or start == 0:
        yield FilePart(path, start, at, row, first, rows)


def read_jsonl(
    file: Opened,
    part: FilePart,
    columns: Sequence[str] | None,
    max_tokens: int,
    report: Report,
    bad_line: Report | None = None,
) -> Iterator[tuple[pa.Table, Origin]]:
    """Read tables of about `max_tokens` tokens, in the file's order.

    Args:
        file: opened.
        part: of it.
        columns: those wanted; all if None.
        max_tokens: of a table.
        report: told of values that cannot be read.
        bad_line: told of lines that are no JSON objects, which are then left out; without it the first is an error.
    """
    path, first_row = part.path, part.first_row
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    tokens = 0
    for line, record in _records(file, part, bad_line):
        if line == 1 and _is_info(record):
            _info(path, record)
            continue
        size = len(record["log_mu"]) if isinstance(record.get("log_mu"), list) else 1
        if rows and (tokens + size > max_tokens or len(rows) == _MAX_ROWS):
            origin = Origin(path, first_row, tuple(lines))
            yield table_of(rows, origin, report), origin
            first_row += len(rows)
            rows, lines, tokens = [], [], 0
        rows.append(record if columns is None else {k: v for k, v in record.items() if k in columns})
        lines.append(line)
        tokens += size
    if rows:
        origin = Origin(path, first_row, tuple(lines))
        yield table_of(rows, origin, report), origin


def jsonl_names(file: Opened) -> list[str]:
    """List the names of the first record's fields."""
    for line, record in _records(file, FilePart(file.path)):
        if not (line == 1 and _is_info(record)):
            return list(record)
    return []


def info_line(info: RunInfo) -> bytes:
    """The first line of a file."""
    return json.dumps({_KEY: info.to_dict()}).encode() + b"\n"


def lines_of(table: pa.Table) -> bytes:
    """A canonical table as lines; null values are left out, and NaN and infinity, which JSON lacks, become null."""
    fields: list[list[str | None]] = []
    for column in COLUMNS:
        if column.name not in table.schema.names:
            continue
        values = single(table, column.name)
        if column.many:
            texts = [None if x is None else json.dumps(_finite(x), separators=(",", ":")) for x in values.to_pylist()]
        elif column.per_token:
            body = pc.binary_join(_texts(values), ",").to_pylist()
            texts = [None if x is None else f"[{x}]" for x in body]
        elif pa.types.is_string(column.type):
            texts = [None if x is None else json.dumps(x) for x in values.to_pylist()]
        else:
            texts = _number_texts(values).to_pylist()
        fields.append([None if x is None else f'"{column.name}":{x}' for x in texts])
    rows = zip(*fields, strict=True)
    return "".join("{" + ",".join(x for x in row if x is not None) + "}\n" for row in rows).encode()


def _finite(places: list[Any]) -> list[Any]:
    return [None if x is None else [v if v is not None and math.isfinite(v) else None for v in x] for x in places]


def _texts(lists: pa.Array) -> pa.Array:
    # Arrow prints a float32 as the shortest decimal that reads back as the same float32.
    texts = pc.fill_null(_number_texts(lists.flatten()), "null")
    offsets = np.concatenate([[0], np.cumsum(lengths_of(lists))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), texts, mask=lists.is_null())


def _number_texts(values: pa.Array) -> pa.Array:
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_finite(values), values, None)
    return values.cast(pa.string())


def numbered_lines(part: FilePart, opened: Opened | None = None) -> Iterator[tuple[int, bytes]]:
    """List the lines of a part, blank ones too, each with its number in the file; opens it unless it is open."""
    with open_lines(part.path, "rb") if opened is None else opened.lines() as file:
        at = file.seek(part.start)
        for number, line in enumerate(limited_lines(file, part.path), start=part.first_line):
            if part.stop is not None and at >= part.stop:
                break
            at += len(line)
            yield number, line


def _records(file: Opened, part: FilePart, bad_line: Report | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    path, number = part.path, 0
    try:
        for number, line in numbered_lines(part, file):
            if not line.strip():
                continue
            try:
                record = _record(path, number, line)
            except UnreadableFileError as e:
                if bad_line is None:
                    raise
                detail, _, hint = str(e).partition("\nhint: ")
                bad_line(
                    Violation("line: not read", f"{path}:{number}", detail.removeprefix(f"{path}:{number}: "), hint)
                )
                continue
            yield number, record
    except gzip.BadGzipFile as e:
        raise UnreadableFileError(f"{path}: not a gzip file, though its name ends in .gz: {e}") from None
    except (EOFError, zlib.error) as e:
        raise UnreadableFileError(
            f"{path}: truncated or damaged gzip after line {number}: {e}\n"
            f"hint: copy the file again; what can be saved: gzip -dc {path} > saved.jsonl, then drop its last line."
        ) from None


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = loads(line)
    except ValueError as e:
        if isinstance(e, LimitError):
            raise UnreadableFileError(
                f"{path}:{number}: {e}\nhint: each line is one JSON object of one record."
            ) from None
        if not line.endswith(b"\n"):
            raise UnreadableFileError(
                f"{path}:{number}: the last line is cut short ({len(line)} bytes, no newline at its end): {e}\n"
                "hint: the writer was stopped, or the copy is not complete; delete the last line to read the others."
            ) from None
        raise UnreadableFileError(
            f"{path}:{number}: not JSON: {e}\nhint: each line is one JSON object; NaN is written as null."
        ) from None
    if not isinstance(record, dict):
        raise UnreadableFileError(f"{path}:{number}: a line must be a JSON object, got {type(record).__name__}")
    return record


def _is_info(record: dict[str, Any]) -> bool:
    return _KEY in record and not any(name in record for name in BY_NAME)


def _info(path: Path, record: dict[str, Any]) -> RunInfo:
    values = record[_KEY]
    if not isinstance(values, dict):
        raise UnreadableFileError(f"{path}:1: metadata must be an object, got {type(values).__name__}")
    try:
        return RunInfo.from_dict(values)
    except ValueError as e:
        raise UnreadableFileError(_of_info(f"{path}:1", e)) from None


MAX_TOKENS = 1 << 20
OF_BATCH = (*REQUIRED, "prompt_id", "mask", "advantage", "turns")


@dataclass(frozen=True, eq=False)
class RecordBatch:
    """Some rows of one file: as a Batch, and as the columns beside it.

    Attributes:
        batch: packed, one sequence a row. `group` is a hash of prompt_id, or of sequence_id where that is null, which
            is the same in every file and process.
        table: these rows in canonical types, the columns that the file has and that were asked for.
        origin: where they came from.
    """

    batch: Batch
    table: pa.Table
    origin: Origin

    @property
    def path(self) -> Path:
        """The file."""
        return self.origin.path

    @property
    def first_row(self) -> int:
        """Number of the first row in its file, from 0."""
        return self.origin.first_row

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each response, masked ones included."""
        return lengths_of(single(self.table, "log_mu"))

    def column(self, name: str) -> np.ndarray | None:
        """A column of one value a row; None if the file has not got it, or not for these rows.

        Strings come as objects with None for null; integers with a null among them as float64 with NaN.
        """
        if _known(name).per_token:
            raise ValueError(f"RecordBatch.column: {name} has one value a token\nhint: use .tokens({name!r}).")
        values = self._values(name)
        return None if values is None else _objects_or_numbers(values)

    def tokens(self, name: str) -> np.ndarray | None:
        """A list column end to end, as long as the Batch; None if the file has not got it, or not for these rows.

        Read-only. Null is NaN in a float column, -1 in an integer column, True in the mask.
        """
        if not _known(name).per_token:
            raise ValueError(f"RecordBatch.tokens: {name} has one value a row\nhint: use .column({name!r}).")
        if _known(name).many:
            raise ValueError(f"RecordBatch.tokens: {name} has many values a token\nhint: use .many({name!r}).")
        values = self._values(name)
        return None if values is None else numbers(token_values(values, self.lengths))

    def many(self, name: str) -> Ragged | None:
        """A column of many values a token, end to end; None if the file has not got it, or not for these rows."""
        if not _known(name).many:
            raise ValueError(f"RecordBatch.many: {name} has not many values a token\nhint: use .tokens({name!r}).")
        values = self._values(name)
        return None if values is None else Ragged.of(values, self.lengths)

    @property
    def candidates(self) -> Candidates | None:
        """The sampler's likeliest tokens of each place under both policies, for `Batch`; None if not all is known."""
        ids, log_mu, log_pi = map(self.many, ("top_ids", "top_log_mu", "top_log_pi"))
        if ids is None or log_mu is None or log_pi is None:
            return None
        mu, pi = (torch.from_numpy(x.padded(-np.inf).astype(np.float32)) for x in (log_mu, log_pi))
        return Candidates(torch.from_numpy(ids.padded(-1).astype(np.int64)), mu, pi)

    def check(self) -> "RecordBatch":
        """Raise on the first value that breaks a rule (see `reweigh records validate`), with file, row and token."""
        check_values(self.table, self.origin, fail)
        return self

    def _values(self, name: str) -> pa.Array | None:
        if name not in self.table.schema.names:
            return None
        values = single(self.table, name)
        return None if values.null_count == len(values) else values


def _objects_or_numbers(values: pa.Array) -> np.ndarray:
    if pa.types.is_string(values.type):
        return np.array([*values.to_pylist(), None], dtype=object)[:-1]
    if not values.null_count or pa.types.is_floating(values.type):
        return numbers(values, np.nan)
    return np.where(valid(values), numbers(values).astype(np.float64), np.nan)


def source_of(file: Path | Opened, bad_line: Report | None = None) -> Source:
    """Know how to read a file of records, by its name's ending; open it unless it is open.

    Args:
        file: its path, or itself.
        bad_line: told of lines that are no JSON objects, which are then left out; without it the first is an error.
    """
    file = file if isinstance(file, Opened) else Opened(file)
    if format_of(file.path) == "parquet":
        info, names, parts, read = parquet_info, parquet_names, cut_parquet, read_parquet
    else:
        info, names, parts, read = jsonl_info, jsonl_names, cut_jsonl, partial(read_jsonl, bad_line=bad_line)
    return Source(file.path, partial(info, file), partial(names, file), partial(parts, file), partial(read, file))


RECORDS = Formats(expand, source_of)
"""Record files and nothing else; `reweigh.dumps.formats()` has the dumps of training frameworks too."""


def read_info(path: str | Path, formats: Formats = RECORDS) -> RunInfo:
    """Read what a file says about the run that wrote it."""
    return formats.source(Path(path)).info()


def cut(paths: Paths, tokens: int, *, required: Sequence[str] = REQUIRED, formats: Formats = RECORDS) -> list[FilePart]:
    """Parts of about `tokens` tokens, which can be read apart from each other and in any process; in the files' order.

    Every file's footer or first lines are read, and no more of Parquet: a file that cannot be read, or has not got a
    required column, is refused before the work begins.

    Args:
        paths: files, folders or globs, see `expand`.
        tokens: of one part. A Parquet row group or a gzipped file is never cut, however large.
        required: columns that must be there.
        formats: what files may be.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file is not readable, or a required column is missing.
    """
    cuts: list[FilePart] = []
    for path in formats.expand(paths):
        source = formats.source(path)
        _check_file(source, required)
        cuts += source.parts(tokens)
    return cuts


def read_batches(
    paths: Paths,
    *,
    columns: Sequence[str] | None = None,
    max_tokens: int = MAX_TOKENS,
    formats: Formats = RECORDS,
) -> Iterator[RecordBatch]:
    """Stream records as packed Batches, without a copy of the log-probs and without a loop over rows.

    Args:
        paths: files, folders or globs, see `expand`.
        columns: which columns to read beside those that a Batch is made of; all if not given. Reading fewer is faster.
        max_tokens: tokens of one Batch, at most, unless one row has more.
        formats: what files may be; `reweigh.dumps.formats()` takes dumps of training frameworks too.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a required column or value is missing, a type is wrong, lists differ in length, or a file is not
            readable; with file, row and remedy. Rules on values are for `RecordBatch.check`.

    Example:
        >>> from reweigh.records import read_batches
        >>> for part in read_batches("runs/2026-11/", columns=("step",)):  # doctest: +SKIP
        ...     stats += RatioStats.of(part.batch, SEQUENCE)
    """
    if columns is not None:
        columns = (*OF_BATCH, *columns)
    for table, origin in read_tables(paths, columns=columns, max_tokens=max_tokens, formats=formats):
        yield RecordBatch(batch_of(table), table, origin)


def read_tables(
    paths: Paths,
    *,
    columns: Sequence[str] | None = None,
    required: Sequence[str] = REQUIRED,
    max_tokens: int = MAX_TOKENS,
    formats: Formats = RECORDS,
) -> Iterator[tuple[pa.Table, Origin]]:
    """Stream records as canonical Arrow tables; with `required=ROLLOUT_REQUIRED`, of rollouts yet to be rescored."""
    wanted = None if columns is None else tuple(dict.fromkeys(_known(name).name for name in (*required, *columns)))
    for path in formats.expand(paths):
        source = formats.source(path)
        _check_file(source, required)
        for raw, origin in source.read(FilePart(path), wanted, max_tokens, fail):
            table = conform(raw, origin, fail)
            # a JSONL file may drop a column part of the way
            check_names(table.schema.names, required, origin.place(0), fail)
            aligned(table, origin, required, fail)
            for start, length in slices_of(lengths_of(single(table, "log_mu")), max_tokens):
                yield table.slice(start, length), origin.slice(start, length)


def _check_file(source: Source, required: Sequence[str]) -> None:
    source.info()  # refuses another version of the schema
    names = source.names()
    if names:  # JSON lines without a record have none
        check_names(names, required, str(source.path), fail)


def slices_of(lengths: np.ndarray, max_tokens: int) -> Iterator[tuple[int, int]]:
    """Cut rows of these lengths into slices, each a first row and a number of rows, of at most so many tokens."""
    ends = np.cumsum(lengths)
    start = done = 0
    while start < len(lengths):
        stop = max(start + 1, int(np.searchsorted(ends, done + max_tokens, side="right")))
        yield start, stop - start
        start, done = stop, int(ends[stop - 1])


def _known(name: str) -> Column:
    if name not in BY_NAME:
        raise ValueError(f"records: {name!r} is not a column; the columns are {', '.join(BY_NAME)}")
    return BY_NAME[name]
