"""JSON lines: one record an object a line, plain or gzipped, with the run's metadata on the first line."""
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false
# pyarrow ships no types, and makes the functions of pyarrow.compute when it is imported.

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reweigh.records.reader import FilePart
from reweigh.records.rows import table_of
from reweigh.records.schema import BY_NAME, COLUMNS, RunInfo
from reweigh.records.table import lengths_of, single
from reweigh.records.violation import Origin, Report, UnreadableFileError

_KEY = "reweigh"
_MAX_ROWS = 65_536  # of one table, however short the rows
_TOKEN_BYTES = 24  # about what a token takes: two numbers of nine digits, their commas, and now and then a mask


def open_lines(path: Path, mode: str) -> IO[bytes]:
    """Open for reading ("rb") or writing ("wb"), through gzip if the name ends in .gz."""
    if path.suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path, mode))
    return open(path, mode)


def read_jsonl_info(path: Path) -> RunInfo:
    """The metadata on the first line; all unknown if it holds none."""
    for _, record in _records(FilePart(path)):
        return _info(path, record) if _is_info(record) else RunInfo(schema_version=None)
    return RunInfo(schema_version=None)


def cut_jsonl(path: Path, tokens: int) -> Iterator[FilePart]:
    """Parts of about so many tokens, cut at the ends of lines; a gzipped file cannot be cut, and is one part."""
    if path.suffix == ".gz":
        yield FilePart(path)
        return
    with open(path, "rb") as file:
        start = at = row = rows = 0
        first = 1
        for line, text in enumerate(file, start=1):
            if rows and at - start + len(text) > tokens * _TOKEN_BYTES:
                yield FilePart(path, start, at, row, first, rows, (at - start) // _TOKEN_BYTES)
                start, first, row, rows = at, line, row + rows, 0
            at += len(text)
            rows += bool(text.strip()) and not (line == 1 and _is_info(_record(path, line, text)))
        if rows or start == 0:
            yield FilePart(path, start, at, row, first, rows, (at - start) // _TOKEN_BYTES)


def read_jsonl(
    part: FilePart, columns: Sequence[str] | None, max_tokens: int, report: Report
) -> Iterator[tuple[pa.Table, Origin]]:
    """Tables of about `max_tokens` tokens, in the file's order."""
    path, first_row = part.path, part.first_row
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    tokens = 0
    for line, record in _records(part):
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


def jsonl_names(path: Path) -> list[str]:
    """Names of the first record's fields."""
    for line, record in _records(FilePart(path)):
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
        if column.per_token:
            body = pc.binary_join(_texts(values), ",").to_pylist()
            texts = [None if x is None else f"[{x}]" for x in body]
        elif pa.types.is_string(column.type):
            texts = [None if x is None else json.dumps(x) for x in values.to_pylist()]
        else:
            texts = _number_texts(values).to_pylist()
        fields.append([None if x is None else f'"{column.name}":{x}' for x in texts])
    rows = zip(*fields, strict=True)
    return "".join("{" + ",".join(x for x in row if x is not None) + "}\n" for row in rows).encode()


def _texts(lists: pa.Array) -> pa.Array:
    # Arrow prints a float32 as the shortest decimal that reads back as the same float32.
    texts = pc.fill_null(_number_texts(lists.flatten()), "null")
    offsets = np.concatenate([[0], np.cumsum(lengths_of(lists))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), texts, mask=lists.is_null())


def _number_texts(values: pa.Array) -> pa.Array:
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_finite(values), values, None)
    return values.cast(pa.string())


def numbered_lines(part: FilePart) -> Iterator[tuple[int, bytes]]:
    """The lines of a part, blank ones too, each with its number in the file."""
    with open_lines(part.path, "rb") as file:
        at = file.seek(part.start)
        for number, line in enumerate(file, start=part.first_line):
            if part.stop is not None and at >= part.stop:
                break
            at += len(line)
            yield number, line


def _records(part: FilePart) -> Iterator[tuple[int, dict[str, Any]]]:
    path, number = part.path, 0
    try:
        for number, line in numbered_lines(part):
            if line.strip():
                yield number, _record(path, number, line)
    except gzip.BadGzipFile as e:
        raise UnreadableFileError(f"{path}: not a gzip file, though its name ends in .gz: {e}") from None
    except (EOFError, zlib.error) as e:
        raise UnreadableFileError(
            f"{path}: truncated or damaged gzip after line {number}: {e}\n"
            f"hint: copy the file again; what can be saved: gzip -dc {path} > saved.jsonl, then drop its last line."
        ) from None


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as e:
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
        raise UnreadableFileError(f"{path}:1: metadata must be an object, got {values!r}")
    try:
        return RunInfo.from_dict(values)
    except ValueError as e:
        raise UnreadableFileError(f"{path}:1: {e}") from None
