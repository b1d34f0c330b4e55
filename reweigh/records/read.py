"""Record files as a stream of packed Batches, with the log-probs still in the buffers that the file was read into."""
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false
# pyarrow ships no types, and makes the functions of pyarrow.compute when it is imported.

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from reweigh.batch import Batch
from reweigh.records.jsonl import jsonl_names, read_jsonl, read_jsonl_info
from reweigh.records.parquet import parquet_names, read_parquet, read_parquet_info
from reweigh.records.paths import Paths, expand, format_of
from reweigh.records.rules import check_values
from reweigh.records.schema import BY_NAME, REQUIRED, Column, RunInfo
from reweigh.records.table import aligned, check_names, conform, lengths_of, single, token_values
from reweigh.records.violation import Origin, Report, fail

MAX_TOKENS = 1 << 20
_OF_BATCH = (*REQUIRED, "prompt_id", "mask", "advantage", "turns")


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


def read_info(path: str | Path) -> RunInfo:
    """What a file says about the run that wrote it."""
    path = Path(path)
    return read_parquet_info(path) if format_of(path) == "parquet" else read_jsonl_info(path)


def read_names(path: Path) -> list[str]:
    """Names of a file's columns; of JSON lines, those of the first record."""
    return parquet_names(path) if format_of(path) == "parquet" else jsonl_names(path)


def read_batches(
    paths: Paths, *, columns: Sequence[str] | None = None, max_tokens: int = MAX_TOKENS
) -> Iterator[RecordBatch]:
    """Stream records as packed Batches, without a copy of the log-probs and without a loop over rows.

    Args:
        paths: files, folders or globs, see `expand`.
        columns: which columns to read beside those that a Batch is made of; all if not given. Reading fewer is faster.
        max_tokens: tokens of one Batch, at most, unless one row has more.

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
    for table, origin in read_tables(paths, columns=columns, max_tokens=max_tokens):
        yield RecordBatch(_batch(table), table, origin)


def read_tables(
    paths: Paths,
    *,
    columns: Sequence[str] | None = None,
    required: Sequence[str] = REQUIRED,
    max_tokens: int = MAX_TOKENS,
) -> Iterator[tuple[pa.Table, Origin]]:
    """Stream records as canonical Arrow tables; with `required=ROLLOUT_REQUIRED`, of rollouts yet to be rescored."""
    wanted = None if columns is None else tuple(dict.fromkeys(_known(name).name for name in (*required, *columns)))
    for path in expand(paths):
        read_info(path)  # refuses another version of the schema
        names = read_names(path)
        if names:  # JSON lines without a record have none
            check_names(names, required, str(path), fail)
        for raw, origin in read_raw(path, wanted, max_tokens, fail):
            table = conform(raw, origin, fail)
            # a JSONL file may drop a column part of the way
            check_names(table.schema.names, required, origin.place(0), fail)
            aligned(table, origin, required, fail)
            for start, length in _parts(lengths_of(single(table, "log_mu")), max_tokens):
                yield table.slice(start, length), origin.slice(start, length)


def read_raw(
    path: Path, columns: tuple[str, ...] | None, max_tokens: int, report: Report
) -> Iterator[tuple[pa.Table, Origin]]:
    """Stream one file's rows as they are, with the types that the file has."""
    if format_of(path) == "parquet":
        return read_parquet(path, columns, max_tokens)
    return read_jsonl(path, columns, max_tokens, report)


def stable_hashes(values: pa.Array, kind: str) -> np.ndarray:
    """One int64 a value, the same in every process and on every machine; 0 for null."""
    coded = values.dictionary_encode()
    unique = [int.from_bytes(_digest(kind, text), "little", signed=True) for text in coded.dictionary.to_pylist()]
    codes = coded.indices.fill_null(len(unique)).to_numpy(zero_copy_only=False)
    return np.array([*unique, 0], dtype=np.int64)[codes]


def _digest(kind: str, text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8, person=kind.encode()).digest()


def _batch(table: pa.Table) -> Batch:
    lengths = lengths_of(single(table, "log_mu"))
    cu_seqlens = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])

    def per_token(name: str) -> Tensor | None:
        if name not in table.schema.names:
            return None
        lists = single(table, name)
        if lists.null_count == len(lists):
            return None
        values = token_values(lists, lengths)
        if pa.types.is_boolean(values.type):  # Arrow packs bits
            return torch.from_numpy(values.to_numpy(zero_copy_only=False))
        return torch.from_dlpack(values)  # a view, and unlike from_numpy it takes Arrow's read-only buffers

    log_pi, log_mu = (token_values(single(table, name), lengths) for name in ("log_pi", "log_mu"))
    return Batch.packed(
        torch.from_dlpack(log_pi),
        torch.from_dlpack(log_mu),
        torch.from_numpy(cu_seqlens),
        per_token("mask"),
        advantage=per_token("advantage"),
        group=torch.from_numpy(_groups(table)),
        turn=per_token("turns"),
    )


def _groups(table: pa.Table) -> np.ndarray:
    ids = single(table, "sequence_id")
    if "prompt_id" not in table.schema.names:
        return stable_hashes(ids, "sequence")
    prompts = single(table, "prompt_id")
    groups = stable_hashes(prompts, "prompt")
    if prompts.null_count == 0:
        return groups
    return np.where(prompts.is_null().to_numpy(zero_copy_only=False), stable_hashes(ids, "sequence"), groups)


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
