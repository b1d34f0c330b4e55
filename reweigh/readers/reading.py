"""Dumps as tables of the record schema: the one loop that all readers share, and its report of bad records."""
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false
# pyarrow ships no types, and makes the functions of pyarrow.compute when it is imported.

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from reweigh.readers.folders import find
from reweigh.readers.form import BadRecordError, Format, Item, Row, Skipped
from reweigh.readers.recognition import named, recognise
from reweigh.readers.values import check_row
from reweigh.records.formats import Formats
from reweigh.records.paths import Paths
from reweigh.records.read import reader_of as records_reader_of
from reweigh.records.reader import FilePart, Reader
from reweigh.records.rows import table_of
from reweigh.records.schema import RunInfo
from reweigh.records.violation import Origin, Report, UnreadableFileError, Violation, fail

_SHAPE_HINT = "the dump is damaged, or of another version of the framework."
_MAX_ROWS = 65_536  # of one table, however short the rows


@dataclass(frozen=True)
class DumpRow:
    """One row of a dump.

    Attributes:
        columns: by name of the record schema; arrays are of NumPy, and what the dump has not got is left out or None.
        prompt_ids: token ids of the prompt, where the dump has them.
        place: file and line, or file and record.
    """

    columns: dict[str, Any]
    prompt_ids: Sequence[int] | None
    place: str


def reader_of(path: Path, reader: str | None = None, skipped: Skipped | None = None) -> Reader:
    """How to read a file, whoever wrote it: a dump by its content, records by their name.

    Args:
        path: the file.
        reader: a format's name, to not look into the file.
        skipped: where to list records that are no good; without it the first of them is an error.
    """
    one = recognise(path) if reader is None else named(reader)
    if one is None:
        return records_reader_of(path)
    return Reader(one.info, partial(_names, one), one.parts, partial(_tables, one, skipped))


def formats(reader: str | None = None, skipped: Skipped | None = None) -> Formats:
    """Dumps and records alike, for the functions that read record files.

    Args:
        reader: a format's name, to not look into the files.
        skipped: where to list records that are no good; without it the first of them is an error.
    """
    return Formats(partial(_expand, reader), partial(reader_of, reader=reader, skipped=skipped))


def _expand(reader: str | None, paths: Paths) -> list[Path]:
    return list(find(paths, reader).paths)


def info_of(path: Path, reader: str | None = None) -> RunInfo:
    """What a file says of the run."""
    return reader_of(path, reader).info(path)


def read(
    paths: Paths,
    *,
    reader: str | None = None,
    skip_bad: bool = False,
    skipped: Skipped | None = None,
) -> Iterator[DumpRow]:
    """Stream the rows of dumps, one at a time. Those of a rollout-side dump have no `log_pi`.

    Args:
        paths: files, folders or globs of dumps, not of records.
        reader: a format's name, to not look into the files.
        skip_bad: leave out records that are no good, and list them in `skipped`.
        skipped: the list; one of your own, to look at afterwards.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a record or file is no good, with its place and what to do.

    Example:
        >>> from reweigh.readers import Skipped, read
        >>> skipped = Skipped()
        >>> for row in read("dumps/train_data", skip_bad=True, skipped=skipped):  # doctest: +SKIP
        ...     print(row.columns["sequence_id"], len(row.columns["log_mu"]))
    """
    report: Report = fail
    if skip_bad:
        report = Skipped() if skipped is None else skipped
    for path in find(paths, reader).paths:
        try:
            one = recognise(path) if reader is None else named(reader)
            if one is None:
                raise UnreadableFileError(
                    f"{path}: is a file of records, not a dump\nhint: reweigh.records.read_batches reads it."
                )
            for item, row in _good(one, FilePart(path), report):
                columns = dict(row)
                yield DumpRow(columns, columns.pop("prompt_ids", None), item.place(path))
        except UnreadableFileError as e:
            if report is fail:
                raise
            report(_of_file(path, e))


def _of_file(path: Path, error: UnreadableFileError) -> Violation:
    detail, _, hint = str(error).partition("\nhint: ")
    return Violation("file: unreadable", str(path), detail.removeprefix(f"{path}: "), hint, counted="files")


def _shape(one: Format, error: Exception) -> str:
    return f"not as {one.name} writes it: {type(error).__name__}: {error}"


def _items(one: Format, part: FilePart) -> Iterator[Item]:
    try:
        yield from one.items(part)
    except (KeyError, TypeError, IndexError, AttributeError) as e:
        raise UnreadableFileError(f"{part.path}: {_shape(one, e)}\nhint: {_SHAPE_HINT}") from e


def _good(one: Format, part: FilePart, report: Report) -> Iterator[tuple[Item, Row]]:
    """Rows with the record they are of; records that are no good are reported instead."""
    for item in _items(one, part):
        try:
            rows = item.load()
            for row in rows:
                check_row(row)
        except BadRecordError as e:
            report(Violation(e.rule, item.place(part.path), e.detail, e.hint))
            continue
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as e:
            report(Violation("record: another shape", item.place(part.path), _shape(one, e), _SHAPE_HINT))
            continue
        for row in rows:
            yield item, row


def _names(one: Format, path: Path) -> list[str]:
    """Columns of the first good row."""
    for _, row in _good(one, FilePart(path), lambda violation: None):
        return [name for name, value in row.items() if value is not None and name != "prompt_ids"]
    return []


def _origin(path: Path, items: Sequence[Item]) -> Origin:
    lines = tuple(item.line for item in items if item.line is not None)
    if len(lines) == len(items):
        return Origin(path, items[0].number, lines)
    numbers = [item.number for item in items]
    first = numbers[0]
    as_counted = numbers == list(range(first, first + len(numbers)))
    return Origin(path, first) if as_counted else Origin(path, 0, kept=numbers)


def _tables(
    one: Format,
    skipped: Skipped | None,
    part: FilePart,
    columns: Sequence[str] | None,
    max_tokens: int,
    report: Report,
) -> Iterator[tuple[pa.Table, Origin]]:
    rows: list[Row] = []
    items: list[Item] = []
    tokens = 0

    def table() -> tuple[pa.Table, Origin]:
        origin = _origin(part.path, items)
        return table_of(rows, origin, report), origin

    try:
        for item, row in _good(one, part, report if skipped is None else skipped):
            size = len(row["log_mu"])
            if rows and (tokens + size > max_tokens or len(rows) == _MAX_ROWS):
                yield table()
                rows, items, tokens = [], [], 0
            rows.append(row if columns is None else {k: v for k, v in row.items() if k in columns})
            items.append(item)
            tokens += size
    except UnreadableFileError as e:
        if skipped is None:
            raise
        skipped(_of_file(part.path, e))
    if rows:
        yield table()
