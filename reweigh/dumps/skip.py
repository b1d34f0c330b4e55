"""Record files of which what is no good is left out and listed, as readers of dumps do it: rows, lines and files."""
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false
# pyarrow ships no types, and makes the functions of pyarrow.compute when it is imported.

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa

from reweigh.dumps.form import Skipped
from reweigh.records.arrays import arrow
from reweigh.records.files import FilePart, Opened, Source, source_of
from reweigh.records.schema import ROLLOUT_REQUIRED, Origin, Report, RunInfo, UnreadableFileError, Violation
from reweigh.records.table import aligned, check_names, conform


def unreadable(path: object, error: Exception) -> Violation:
    """Say of a file that it cannot be read, in the form that is counted."""
    detail, _, hint = str(error).partition("\nhint: ")
    return Violation("file: unreadable", str(path), detail.removeprefix(f"{path}: "), hint, counted="files")


def without_bad(file: Opened, skipped: Skipped) -> Source:
    """Know how to read a file of records, and leave out what is no good.

    Args:
        file: of records.
        skipped: told of it; of a file that cannot be read, once.
    """
    source = source_of(file, skipped)
    return replace(
        source,
        info=partial(_info, source),
        names=partial(_names, source),
        parts=partial(_parts, source),
        read=partial(_read, source, skipped),
    )


def _info(source: Source) -> RunInfo:
    try:
        return source.info()
    except UnreadableFileError:  # reading it says so
        return RunInfo(schema_version=None)


def _names(source: Source) -> list[str]:
    try:
        names = source.names()
    except UnreadableFileError:
        return []
    return names if set(ROLLOUT_REQUIRED) <= set(names) else []


def _parts(source: Source, tokens: int) -> Iterator[FilePart]:
    try:
        yield from source.parts(tokens)
    except UnreadableFileError:
        yield FilePart(source.path)


def _read(
    source: Source, skipped: Skipped, part: FilePart, columns: Sequence[str] | None, max_tokens: int, report: Report
) -> Iterator[tuple[pa.Table, Origin]]:
    try:
        source.info()
        for raw, origin in source.read(part, columns, max_tokens, skipped):
            table = conform(raw, origin, skipped)
            if not set(ROLLOUT_REQUIRED) <= set(table.schema.names):
                check_names(table.schema.names, ROLLOUT_REQUIRED, origin.place(0), skipped)
                continue
            whole = aligned(table, origin, ROLLOUT_REQUIRED, skipped)
            kept = [int(i) for i in np.flatnonzero(whole)]
            yield table.filter(arrow(whole, pa.bool_())), origin if whole.all() else origin.keep(kept)
    except UnreadableFileError as e:
        skipped(unreadable(part.path, e))
