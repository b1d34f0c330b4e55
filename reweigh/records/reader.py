"""What a format of record files must offer: what a file says of itself, how to cut it, and how to read one piece."""
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false
# pyarrow ships no types, and makes the functions of pyarrow.compute when it is imported.

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from reweigh.records.schema import RunInfo
from reweigh.records.violation import Origin, Report


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


Read = Callable[[FilePart, Sequence[str] | None, int, Report], Iterator[tuple[pa.Table, Origin]]]


@dataclass(frozen=True)
class Reader:
    """One format of files.

    Attributes:
        info: what a file says about the run that wrote it.
        names: names of a file's columns; of JSON lines, those of the first record.
        cut: the parts of a file of about so many tokens each, in order, that together are the file. It depends on
            the file and that number alone.
        read: tables of a part's rows in order, with the types that the file has: given the columns wanted (all if
            None), about how many tokens a table may have, and whom to tell of values that cannot be read.
    """

    info: Callable[[Path], RunInfo]
    names: Callable[[Path], list[str]]
    cut: Callable[[Path, int], Iterator[FilePart]]
    read: Read
