"""Record files as a stream of packed Batches, whole or in parts that can be read apart."""
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false
# pyarrow ships no types, and makes the functions of pyarrow.compute when it is imported.

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from reweigh.batch import Batch
from reweigh.records.formats import Formats
from reweigh.records.jsonl import cut_jsonl, jsonl_names, read_jsonl, read_jsonl_info
from reweigh.records.packed import batch_of
from reweigh.records.parquet import cut_parquet, parquet_names, read_parquet, read_parquet_info
from reweigh.records.paths import Format, Paths, expand, format_of
from reweigh.records.reader import FilePart, Reader
from reweigh.records.rules import check_values
from reweigh.records.schema import BY_NAME, REQUIRED, Column, RunInfo
from reweigh.records.table import aligned, check_names, conform, lengths_of, single, token_values
from reweigh.records.violation import Origin, Report, fail

MAX_TOKENS = 1 << 20
_OF_BATCH = (*REQUIRED, "prompt_id", "mask", "advantage", "turns")
_READERS: Mapping[Format, Reader] = {
    "parquet": Reader(read_parquet_info, parquet_names, cut_parquet, read_parquet),
    "jsonl": Reader(read_jsonl_info, jsonl_names, cut_jsonl, read_jsonl),
}


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
        return None if values is None else values.to_numpy(zero_copy_only=False)

    def tokens(self, name: str) -> np.ndarray | None:
        """A list column end to end, as long as the Batch; None if the file has not got it, or not for these rows.

        Read-only. Null is NaN in a float column, -1 in an integer column, True in the mask.
        """
        if not _known(name).per_token:
            raise ValueError(f"RecordBatch.tokens: {name} has one value a row\nhint: use .column({name!r}).")
        values = self._values(name)
        return None if values is None else token_values(values, self.lengths).to_numpy(zero_copy_only=False)

    def check(self) -> "RecordBatch":
        """Raise on the first value that breaks a rule (see `reweigh records validate`), with file, row and token."""
        check_values(self.table, self.origin, fail)
        return self

    def _values(self, name: str) -> pa.Array | None:
        if name not in self.table.schema.names:
            return None
        values = single(self.table, name)
        return None if values.null_count == len(values) else values


def reader_of(path: Path) -> Reader:
    """How to read a file, by its name's ending."""
    return _READERS[format_of(path)]


RECORDS = Formats(expand, reader_of)
"""Record files and nothing else; `reweigh.readers.formats()` has the dumps of training frameworks too."""


def read_info(path: str | Path, formats: Formats = RECORDS) -> RunInfo:
    """What a file says about the run that wrote it."""
    path = Path(path)
    return formats.reader_of(path).info(path)


def read_names(path: Path, formats: Formats = RECORDS) -> list[str]:
    """Names of a file's columns; of JSON lines, those of the first record."""
    return formats.reader_of(path).names(path)


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
    found: list[FilePart] = []
    for path in formats.expand(paths):
        _check_file(path, required, formats)
        found += formats.reader_of(path).cut(path, tokens)
    return found


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
        formats: what files may be; `reweigh.readers.formats()` takes dumps of training frameworks too.

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
        columns = (*_OF_BATCH, *columns)
    for table, origin in read_tables(paths, columns=columns, max_tokens=max_tokens, formats=formats):
        yield RecordBatch(batch_of(table), table, origin)


def read_part(
    part: FilePart,
    *,
    columns: Sequence[str] | None = None,
    max_tokens: int = MAX_TOKENS,
    formats: Formats = RECORDS,
) -> Iterator[RecordBatch]:
    """Stream one part that `cut` named; see `read_batches`."""
    if columns is not None:
        columns = (*_OF_BATCH, *columns)
    for table, origin in _read_tables(part, _wanted(columns, REQUIRED), REQUIRED, max_tokens, formats):
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
    wanted = _wanted(columns, required)
    for path in formats.expand(paths):
        _check_file(path, required, formats)
        yield from _read_tables(FilePart(path), wanted, required, max_tokens, formats)


def read_raw(
    path: Path, columns: tuple[str, ...] | None, max_tokens: int, report: Report, formats: Formats = RECORDS
) -> Iterator[tuple[pa.Table, Origin]]:
    """Stream one file's rows as they are, with the types that the file has."""
    return formats.reader_of(path).read(FilePart(path), columns, max_tokens, report)


def _check_file(path: Path, required: Sequence[str], formats: Formats) -> None:
    read_info(path, formats)  # refuses another version of the schema
    names = read_names(path, formats)
    if names:  # JSON lines without a record have none
        check_names(names, required, str(path), fail)


def _wanted(columns: Sequence[str] | None, required: Sequence[str]) -> tuple[str, ...] | None:
    return None if columns is None else tuple(dict.fromkeys(_known(name).name for name in (*required, *columns)))


def _read_tables(
    part: FilePart, wanted: Sequence[str] | None, required: Sequence[str], max_tokens: int, formats: Formats
) -> Iterator[tuple[pa.Table, Origin]]:
    for raw, origin in formats.reader_of(part.path).read(part, wanted, max_tokens, fail):
        table = conform(raw, origin, fail)
        # a JSONL file may drop a column part of the way
        check_names(table.schema.names, required, origin.place(0), fail)
        aligned(table, origin, required, fail)
        for start, length in _parts(lengths_of(single(table, "log_mu")), max_tokens):
            yield table.slice(start, length), origin.slice(start, length)


def _parts(lengths: np.ndarray, max_tokens: int) -> Iterator[tuple[int, int]]:
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
