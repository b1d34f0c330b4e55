"""Dumps of JSON: one object a line, plain or gzipped, or a whole file that is an object or a list of them."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from reweigh.readers.form import BadRecordError, Item, Row
from reweigh.records.jsonl import numbered_lines, open_lines
from reweigh.records.reader import FilePart
from reweigh.records.violation import UnreadableFileError

_TOKEN_BYTES = 48  # about what a token takes in these dumps: several numbers of nine digits
_WHOLE_FILE = 1 << 30  # bytes of a file that is one JSON object, at most


def cut_lines(path: Path, tokens: int) -> Iterator[FilePart]:
    """Parts of about so many tokens, cut at the ends of lines; a gzipped file is one part."""
    if path.suffix == ".gz" or not _is_lines(path):
        yield FilePart(path)
        return
    with open(path, "rb") as file:
        start = at = row = rows = 0
        first = 1
        for line, text in enumerate(file, start=1):
            if rows and at - start + len(text) > tokens * _TOKEN_BYTES:
                yield FilePart(path, start, at, row, first)
                start, first, row, rows = at, line, row + rows, 0
            at += len(text)
            rows += bool(text.strip())
        if rows or start == 0:
            yield FilePart(path, start, at, row, first)


def items_of_lines(part: FilePart, rows: Callable[[Mapping[str, Any], int], Sequence[Row]]) -> Iterator[Item]:
    """The records of a part, one a line; `rows` makes rows of a line's object and its number in the file.

    A file that is one JSON object or list, over several lines, is its objects.
    """
    path = part.path
    if part == FilePart(path) and not _is_lines(path):
        for number, record in enumerate(_documents(path)):
            yield Item(partial(_rows_of, record, number, rows), number)
        return
    number, line = part.first_row, part.first_line - 1
    try:
        for line, text in numbered_lines(part):
            if text.strip():
                yield Item(partial(_rows_of_text, text, number, rows), number, line)
                number += 1
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise UnreadableFileError(
            f"{path}: truncated or damaged gzip after line {line}: {e}\nhint: copy the file again."
        ) from None


def first_object(path: Path) -> Mapping[str, Any]:
    """The first object of a file of JSON; empty if it has none or is not JSON."""
    try:
        with open_lines(path, "rb") as file:
            text = next((x for x in file if x.strip()), b"")
        found = _parsed(text)
        if found is None:
            found = next(iter(_documents(path)), None)
    except (EOFError, zlib.error, gzip.BadGzipFile, UnreadableFileError):
        return {}
    if isinstance(found, list) and found:
        found = found[0]
    return found if isinstance(found, dict) else {}


def _rows_of_text(text: bytes, number: int, rows: Callable[[Mapping[str, Any], int], Sequence[Row]]) -> Sequence[Row]:
    try:
        record = json.loads(text)
    except ValueError as e:
        if not text.endswith(b"\n"):
            raise BadRecordError(
                "line: cut short",
                f"the last line is cut short ({len(text)} bytes, no newline at its end): {e}",
                "the writer was stopped, or still writes; the lines before it are good (--skip-bad reads them).",
            ) from None
        raise BadRecordError("line: not JSON", f"not JSON: {e}", "each line is one JSON object.") from None
    return _rows_of(record, number, rows)


def _rows_of(record: Any, number: int, rows: Callable[[Mapping[str, Any], int], Sequence[Row]]) -> Sequence[Row]:
    if isinstance(record, list):  # an engine's answer to several prompts at once
        return [row for i, one in enumerate(record) for row in _rows_of(one, (number << 16) + i, rows)]
    if not isinstance(record, dict):
        raise BadRecordError(
            "record: not an object", f"must be a JSON object, got {type(record).__name__}", "see the dump."
        )
    return rows(record, number)


def _is_lines(path: Path) -> bool:
    """Whether the first line that is not blank is a JSON value by itself."""
    with open_lines(path, "rb") as file:
        text = next((x for x in file if x.strip()), b"")
    return not text.endswith(b"\n") or _parsed(text) is not None


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _documents(path: Path) -> list[Any]:
    if path.stat().st_size > _WHOLE_FILE:
        raise UnreadableFileError(
            f"{path}: one JSON value of more than {_WHOLE_FILE >> 30} GB\nhint: write one object a line."
        )
    with open_lines(path, "rb") as file:
        try:
            found = json.load(file)
        except ValueError as e:
            raise UnreadableFileError(f"{path}: not JSON: {e}\nhint: one object a line, or one JSON value.") from None
    return found if isinstance(found, list) else [found]
