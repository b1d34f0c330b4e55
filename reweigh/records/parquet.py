"""Parquet files of records, read in runs of row groups that hold about as many tokens as asked."""
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false
# pyarrow ships no types, and makes the functions of pyarrow.compute when it is imported.

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from reweigh.records.reader import FilePart
from reweigh.records.schema import COLUMNS, RunInfo
from reweigh.records.violation import Origin, Report, UnreadableFileError

_MAGIC = b"PAR1"
_MAX_ROWS = 65_536  # of one table, however short the rows


def read_parquet_info(path: Path) -> RunInfo:
    """The run's metadata; all unknown if the file holds none."""
    with _opened(path) as file:
        try:
            return RunInfo.from_metadata(file.metadata.metadata)
        except ValueError as e:
            raise UnreadableFileError(f"{path}: {e}") from None


def parquet_names(path: Path) -> list[str]:
    """Names of the file's columns."""
    with _opened(path) as file:
        return list(file.schema_arrow.names)


def cut_parquet(path: Path, tokens: int) -> Iterator[FilePart]:
    """Parts of about so many tokens. A row group is never cut: its pages cannot be read from the middle."""
    with _opened(path) as file:
        row = 0
        for groups, rows, size in _runs(file.metadata, range(file.metadata.num_row_groups), tokens):
            yield FilePart(path, groups[0], groups[-1] + 1, row, rows=rows, tokens=size)
            row += rows


def read_parquet(
    part: FilePart, columns: Sequence[str] | None, max_tokens: int, report: Report
) -> Iterator[tuple[pa.Table, Origin]]:
    """Raw tables of about `max_tokens` tokens (more if rows of one row group differ much), in the file's order."""
    path = part.path
    with _opened(path) as file:
        have = file.schema_arrow.names
        wanted = [c.name for c in COLUMNS if c.name in have and (columns is None or c.name in columns)]
        row = part.first_row
        every = range(file.metadata.num_row_groups)
        for groups, rows, tokens in _runs(file.metadata, every[part.start : part.stop], max_tokens):
            size = max(1, min(rows, _MAX_ROWS, rows * max_tokens // max(tokens, 1)))
            try:
                for batch in file.iter_batches(batch_size=size, row_groups=groups, columns=wanted):
                    yield pa.Table.from_batches([batch]), Origin(path, row)
                    row += batch.num_rows
            except (pa.ArrowException, OSError) as e:
                raise UnreadableFileError(
                    f"{path}: damaged after row {row} of {file.metadata.num_rows}: {_line(e)}\n"
                    "hint: the footer is whole but data pages are not; copy the file again from where it was written."
                ) from None


def _runs(metadata: pq.FileMetaData, groups: Sequence[int], max_tokens: int) -> Iterator[tuple[list[int], int, int]]:
    """Row groups to read together, with their rows and tokens."""
    run: list[int] = []
    run_tokens = run_rows = 0
    for i in groups:
        group = metadata.row_group(i)
        tokens = _num_tokens(group)
        if run and (run_tokens + tokens > max_tokens or run_rows + group.num_rows > _MAX_ROWS):
            yield run, run_rows, run_tokens
            run, run_tokens, run_rows = [], 0, 0
        run.append(i)
        run_tokens += tokens
        run_rows += group.num_rows
    if run:
        yield run, run_rows, run_tokens


def _num_tokens(group: pq.RowGroupMetaData) -> int:
    """Values of log_mu, an empty list counted as one; the number of rows if there is no such column."""
    for i in range(group.num_columns):
        if group.column(i).path_in_schema.split(".")[0] == "log_mu":
            return group.column(i).num_values
    return group.num_rows


@contextmanager
def _opened(path: Path) -> Generator[pq.ParquetFile, None, None]:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as e:
        raise _unreadable(path, e) from None
    with file:
        yield file


def _unreadable(path: Path, error: Exception) -> Exception:
    if isinstance(error, FileNotFoundError | PermissionError):
        return error
    size = path.stat().st_size
    with open(path, "rb") as file:
        starts = file.read(len(_MAGIC))
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
