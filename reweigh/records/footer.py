"""What a Parquet file's footer says of its row groups and the columns in them, read without Arrow's accessors.

Arrow checks a column's metadata where it is asked for, and one that is damaged ends the process there instead of
raising. So what is needed before anything is read, how many values in how many bytes, is read here; what Arrow finds
damaged when it reads is an error like any other.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

_MAGIC = b"PAR1"
_MOST_DEPTH = 32  # of structures in one another; a footer has about six
# Types of Thrift's compact protocol.
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT, _UUID = 1, 2, 3, 7, 8, 9, 10, 11, 12, 13
_INTEGERS = (4, 5, 6)


@dataclass(frozen=True, slots=True)
class Chunk:
    """One column of a row group.

    Attributes:
        path: its name, with dots to what it is nested in.
        num_values: how many values it has, a null or an empty list counted as one.
        packed: bytes that it takes in the file.
        unpacked: bytes that it takes once it is decompressed.
    """

    path: str
    num_values: int
    packed: int
    unpacked: int


@dataclass(frozen=True, slots=True)
class Group:
    """One row group."""

    num_rows: int
    chunks: tuple[Chunk, ...]

    def chunk(self, name: str) -> Chunk | None:
        """Give a column by its name, a list's too; None if there is none."""
        return next((one for one in self.chunks if one.path.split(".")[0] == name), None)


def read_groups(file: IO[bytes]) -> tuple[Group, ...]:
    """Read the row groups off a file that is open at any place.

    Raises:
        ValueError: the footer is damaged.
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - 8))
    end = file.read(8)
    length = int.from_bytes(end[:4], "little")
    if end[4:] != _MAGIC or length + 8 > size:
        raise ValueError("no footer of Parquet at its end")
    file.seek(size - 8 - length)
    try:
        return _Footer(file.read(length)).groups()
    except (IndexError, RecursionError, UnicodeDecodeError):
        raise ValueError("the footer is damaged") from None


class _Footer:
    """Bytes of Thrift, gone through once: who reads a value leaves `_at` behind it, who does not asks `_behind`."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def groups(self) -> tuple[Group, ...]:
        found = tuple[Group, ...]()
        for number, kind in self._fields():
            if (number, kind) == (4, _LIST):
                return tuple(self._group() for _ in self._items())
            self._at = self._behind(kind, self._at)
        return found

    def _group(self) -> Group:
        rows, chunks = 0, list[Chunk]()
        for number, kind in self._fields():
            if (number, kind) == (1, _LIST):
                chunks = [self._chunk() for _ in self._items()]
            elif number == 3 and kind in _INTEGERS:
                rows = self._signed()
            else:
                self._at = self._behind(kind, self._at)
        return Group(rows, tuple(chunks))

    def _chunk(self) -> Chunk:
        names, numbers = list[str](), {5: 0, 6: 0, 7: 0}
        for number, kind in self._fields():
            if (number, kind) != (3, _STRUCT):
                self._at = self._behind(kind, self._at)
                continue
            for inner, its in self._fields():
                if (inner, its) == (3, _LIST):
                    names = [self._text() for _ in self._items()]
                elif inner in numbers and its in _INTEGERS:
                    numbers[inner] = self._signed()
                else:
                    self._at = self._behind(its, self._at)
        return Chunk(sys.intern(".".join(names)), numbers[5], numbers[7], numbers[6])

    def _fields(self) -> Iterator[tuple[int, int]]:
        """Give number and type of the fields of a structure, each at its value; who takes it goes behind it."""
        number = 0
        while head := self._data[self._at]:
            self._at += 1
            number = number + (head >> 4) if head >> 4 else self._signed()
            yield number, head & 15
        self._at += 1

    def _items(self) -> Iterator[None]:
        """Stand at each value of a list in turn; who takes it goes behind it."""
        _, count, self._at = self._head(self._at)
        for _ in range(count):
            yield

    def _head(self, at: int) -> tuple[int, int, int]:
        head, at = self._data[at], at + 1
        count = head >> 4
        if count == 15:
            count, at = self._integer(at), self._at
        if count > len(self._data):
            raise IndexError(count)
        return head & 15, count, at

    def _integer(self, at: int) -> int:
        value = shift = 0
        while True:
            byte = self._data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                self._at = at
                return value
            shift += 7
            if shift > 63:
                raise IndexError(at)

    def _signed(self) -> int:
        value = self._integer(self._at)
        return (value >> 1) ^ -(value & 1)

    def _text(self) -> str:
        size = self._integer(self._at)
        start, self._at = self._at, self._at + size
        return self._data[start : start + size].decode()

    def _behind(self, kind: int, at: int, in_list: bool = False, depth: int = 0) -> int:
        """Say where a value ends."""
        if depth > _MOST_DEPTH:
            raise IndexError(at)
        if kind in _INTEGERS:
            while self._data[at] > 127:
                at += 1
            return at + 1
        if kind == _BINARY:
            return self._integer(at) + self._at
        if kind in (_TRUE, _FALSE):
            return at + in_list
        if kind == _STRUCT:
            while head := self._data[at]:
                at += 1
                if not head >> 4:
                    self._integer(at)
                    at = self._at
                at = self._behind(head & 15, at, depth=depth + 1)
            return at + 1
        if kind in (_LIST, _SET):
            inner, count, at = self._head(at)
            for _ in range(count):
                at = self._behind(inner, at, in_list=True, depth=depth + 1)
            return at
        if kind == _MAP:
            count, at = self._integer(at), self._at
            if not count:
                return at
            kinds, at = self._data[at], at + 1
            for _ in range(min(count, len(self._data))):
                at = self._behind(kinds >> 4, at, in_list=True, depth=depth + 1)
                at = self._behind(kinds & 15, at, in_list=True, depth=depth + 1)
            return at
        if kind in (_BYTE, _DOUBLE, _UUID):
            return at + {_BYTE: 1, _DOUBLE: 8, _UUID: 16}[kind]
        raise IndexError(at)
