"""Writing and converting record files, so that what was written stays readable if the run that writes is stopped."""
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from reweigh.guard import claimed, written_to
from reweigh.records.files import (
    MAX_TOKENS,
    RECORDS,
    Formats,
    Paths,
    format_of,
    info_line,
    lines_of,
    open_lines,
    read_info,
    read_tables,
)
from reweigh.records.schema import (
    ARROW_SCHEMA,
    BY_NAME,
    COLUMNS,
    ROLLOUT_REQUIRED,
    SCHEMA_VERSION,
    Column,
    Origin,
    Report,
    RunInfo,
    fail,
)
from reweigh.records.table import aligned, check_names, check_units, check_values, single, table_of, unknown_name

# pyarrow ships no types, and makes the functions of pyarrow.compute when it is imported.


def _leaf(column: Column) -> str:
    inner = ".list.element" * (column.per_token + column.many)
    return f"{column.name}{inner}"


# Log-probs hardly repeat: split into byte planes they take 3.4 bytes a token with zstd, in a dictionary 5.2; ids of a
# support 1.4 each in place of 2.2.
_PLANES = [c for c in COLUMNS if pa.types.is_floating(c.value_type) or c.many]
_ENCODING: dict[str, Any] = {
    "compression": "zstd",
    "use_byte_stream_split": [_leaf(c) for c in _PLANES],
    "use_dictionary": [_leaf(c) for c in COLUMNS if c not in _PLANES],
}


class RecordWriter:
    """Write records to one file, a call a row group: Parquet, or JSON lines if the name ends in .jsonl or .jsonl.gz.

    Each call of `write` checks all its rows before it writes any: a bad row loses no row written before it. The file is
    closed, and so readable, when the with-block is left in whatever way: at its end, by an error, by Ctrl-C.

    Args:
        path: the file; an older one of that name is replaced.
        info: what to say of the run.

    Example:
        >>> import tempfile
        >>> from reweigh.records import RecordWriter, RunInfo, read_batches
        >>> path = tempfile.mkdtemp() + "/records.parquet"
        >>> with RecordWriter(path, RunInfo(engine="vllm", temperature=1.0)) as writer:
        ...     writer.write([{"sequence_id": "a", "log_mu": [-1.0, -0.5], "log_pi": [-1.1, -0.5]}])
        >>> [part.batch.log_ratio.shape for part in read_batches(path)]
        [torch.Size([2])]
    """

    def __init__(self, path: str | PathLike[str], info: RunInfo | None = None) -> None:
        self.path = Path(path)
        self.rows_written = 0
        info = RunInfo() if info is None else info
        self._lines: IO[bytes] | None = None
        self._parquet: pq.ParquetWriter | None = None
        with written_to(self.path):
            if format_of(self.path) == "parquet":
                schema = ARROW_SCHEMA.with_metadata(info.to_metadata())
                self._parquet = pq.ParquetWriter(self.path, schema, **_ENCODING)
            else:
                self._lines = open_lines(self.path, "wb")
                self._lines.write(info_line(info))

    def __enter__(self) -> "RecordWriter":
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file, also after an error."""
        self.close()

    def write(self, rows: Sequence[Mapping[str, Any]], report: Report = fail) -> None:
        """Check and write rows: mappings from column name to value, in lists, arrays or tensors.

        `log_pi` may be left out, for a rollout that a trainer has yet to rescore. One advantage a row is written once
        a token.

        Args:
            rows: of this call.
            report: told of values that break a rule, such as a log-prob that is NaN, which are then written as they
                are; the default raises.

        Raises:
            ValueError: an unknown column, a wrong type, lists of unequal lengths, or a value that breaks a rule (for
                example a positive log-prob in the mask), with the row's index in this call. Nothing of it is written.
        """
        origin = _Call(self.path, 0)
        for i, row in enumerate(rows):
            for name in row:
                if name not in BY_NAME:
                    raise ValueError(
                        f"{origin.place(i)}: {unknown_name(name)}\nhint: the columns are {', '.join(BY_NAME)}."
                    )
        if not rows:
            return
        table = table_of(rows, origin, fail)
        check_names(table.schema.names, ROLLOUT_REQUIRED, origin.place(0), fail)
        aligned(table, origin, ROLLOUT_REQUIRED, fail)
        check_values(table, origin, report)
        self.write_table(table)

    def write_table(self, table: pa.Table) -> None:
        """Write a canonical table, as `read_tables` yields it, as one row group; its values are not checked again."""
        if self._parquet is not None:
            # every row group has every column; one that is null throughout takes a few bytes
            columns = [
                single(table, c.name) if c.name in table.schema.names else pa.nulls(table.num_rows, c.type)
                for c in COLUMNS
            ]
            whole = pa.Table.from_arrays(columns, schema=self._parquet.schema)
            with written_to(self.path):
                self._parquet.write_table(whole, row_group_size=max(table.num_rows, 1))
        elif self._lines is not None:
            lines = lines_of(table)
            with written_to(self.path):
                self._lines.write(lines)
                self._lines.flush()
        else:
            raise ValueError(f"RecordWriter: {self.path} is closed")
        self.rows_written += table.num_rows

    def close(self) -> None:
        """Finish the file. Closing twice does nothing."""
        parquet, lines = self._parquet, self._lines
        self._parquet = self._lines = None
        with written_to(self.path):
            if parquet is not None:
                parquet.close()
            if lines is not None:
                lines.close()


class _Call(Origin):
    def place(self, row: int) -> str:
        return f"RecordWriter.write({self.path.name}): row {self.first_row + row}"


def convert(
    inputs: Paths,
    output: Path,
    *,
    rows_per_group: int | None = None,
    force: bool = False,
    formats: Formats = RECORDS,
    on_rows: Callable[[int], None] | None = None,
    report: Report | None = None,
) -> int:
    """Read all inputs and write them, in order, as one file in canonical types.

    The output appears under its name only when it is complete.

    Args:
        inputs: files, folders or globs.
        output: the file to write; its extension is its format.
        rows_per_group: rows of a Parquet row group; as many as make a million tokens if not given.
        force: merge files whose metadata disagree (what differs becomes unknown), and replace an existing output.
        formats: what inputs may be; `reweigh.dumps.formats()` takes dumps of training frameworks too.
        on_rows: called with the number of rows just written, for a progress bar.
        report: told of values that break a rule, such as a log-prob that is missing; they are written as they are.

    Returns:
        The number of rows written.

    Raises:
        ValueError: metadata disagree, or an input is not good records.
        FileExistsError: the output is there already.
    """
    files = formats.expand(inputs)
    format_of(output)
    if not files:
        raise ValueError(
            "convert: no file is left that can be read\nhint: the same command without --skip-bad says why."
        )
    if output.exists():
        if any(output.samefile(path) for path in files):
            raise ValueError(f"convert: {output} is an input and the output\nhint: give the output another name.")
        if not force:
            raise FileExistsError(f"convert: {output} exists\nhint: --force replaces it.")
    info = merged_info(files, force=force, formats=formats)
    for one in formats.left_out():
        if report is not None:
            report(one)
    partial = output.with_name(f".partial-{os.getpid()}-{output.name}")  # hidden: nobody reads it
    try:
        with claimed(output), written_to(output, partial), RecordWriter(partial, info) as writer:
            tables = read_tables(files, required=ROLLOUT_REQUIRED, max_tokens=MAX_TOKENS, formats=formats)
            for table in _regrouped(_told(tables, report), rows_per_group):
                writer.write_table(table)
                if on_rows is not None:
                    on_rows(table.num_rows)
            writer.close()
            os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)
    return writer.rows_written


def _told(tables: Iterable[tuple[pa.Table, Origin]], report: Report | None) -> Iterator[pa.Table]:
    for table, origin in tables:
        if report is not None:
            check_values(table, origin, report)
            check_units(table, origin, report)
        yield table


def merged_info(files: list[Path], *, force: bool = False, formats: Formats = RECORDS) -> RunInfo:
    """Keep what is true of all the files' runs; refuses to merge runs that disagree, unless forced."""
    known = merged = read_info(files[0], formats)
    for path in files[1:]:
        info = read_info(path, formats)
        differ = known.disagreements(info)
        if differ and not force:
            listed = ", ".join(f"{name} was {a!r} and is {b!r}" for name, (a, b) in differ.items())
            raise ValueError(
                f"convert: {path} is not of the same run as the files before it: {listed}\n"
                "hint: convert them to separate files, or --force to merge them with these as unknown."
            )
        merged = merged.merged(info)
        known = RunInfo.from_dict({**info.to_dict(), **known.to_dict()})
    return replace(merged, schema_version=SCHEMA_VERSION)


def _regrouped(tables: Iterator[pa.Table], rows: int | None) -> Iterator[pa.Table]:
    if rows is None:
        yield from tables
        return
    held: list[pa.Table] = []
    num_held = 0
    for table in tables:
        while num_held + table.num_rows >= rows:
            take = rows - num_held
            yield _joined([*held, table.slice(0, take)])
            table, held, num_held = table.slice(take), [], 0
        if table.num_rows:
            held.append(table)
            num_held += table.num_rows
    if held:
        yield _joined(held)


def _joined(tables: list[pa.Table]) -> pa.Table:
    # files differ in which optional columns they have
    return pa.concat_tables(tables, promote_options="default")
