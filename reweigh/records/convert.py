"""Record files to one record file: Parquet to JSON lines, back, and many into one."""
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false
# pyarrow ships no types, and makes the functions of pyarrow.compute when it is imported.

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from reweigh.records.formats import Formats
from reweigh.records.paths import Paths, format_of
from reweigh.records.read import MAX_TOKENS, RECORDS, read_info, read_tables
from reweigh.records.schema import ROLLOUT_REQUIRED, SCHEMA_VERSION, RunInfo
from reweigh.records.write import RecordWriter


def convert(
    inputs: Paths,
    output: Path,
    *,
    rows_per_group: int | None = None,
    force: bool = False,
    formats: Formats = RECORDS,
    on_rows: Callable[[int], None] | None = None,
) -> int:
    """Read all inputs and write them, in order, as one file in canonical types.

    The output appears under its name only when it is complete.

    Args:
        inputs: files, folders or globs.
        output: the file to write; its extension is its format.
        rows_per_group: rows of a Parquet row group; as many as make a million tokens if not given.
        force: merge files whose metadata disagree (what differs becomes unknown), and replace an existing output.
        formats: what inputs may be; `reweigh.readers.formats()` takes dumps of training frameworks too.
        on_rows: called with the number of rows just written, for a progress bar.

    Returns:
        The number of rows written.

    Raises:
        ValueError: metadata disagree, or an input is not good records.
        FileExistsError: the output is there already.
    """
    files = formats.expand(inputs)
    format_of(output)
    if output.exists():
        if any(output.samefile(path) for path in files):
            raise ValueError(f"convert: {output} is an input and the output\nhint: give the output another name.")
        if not force:
            raise FileExistsError(f"convert: {output} exists\nhint: --force replaces it.")
    info = merged_info(files, force=force, formats=formats)
    partial = output.with_name(f"partial-{os.getpid()}-{output.name}")
    try:
        with RecordWriter(partial, info) as writer:
            for table in _regrouped(_tables(files, formats), rows_per_group):
                writer.write_table(table)
                if on_rows is not None:
                    on_rows(table.num_rows)
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)
    return writer.rows_written


def merged_info(files: list[Path], *, force: bool = False, formats: Formats = RECORDS) -> RunInfo:
    """What is true of all the files' runs; refuses to merge runs that disagree, unless forced."""
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


def _tables(files: list[Path], formats: Formats) -> Iterator[pa.Table]:
    for table, _ in read_tables(files, required=ROLLOUT_REQUIRED, max_tokens=MAX_TOKENS, formats=formats):
        yield table


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
