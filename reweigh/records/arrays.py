"""Turns Arrow arrays into NumPy's and back by their buffers.

pyarrow's own ways (`to_numpy`, `pa.array`, a Python number given to a function of `pyarrow.compute`) import pandas
wherever it is installed, though no object of pandas is near: a third of a second of each command.
"""
# pyright: reportUnknownParameterType=false
# pyarrow ships no types.

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def numbers(array: pa.Array, null: float = 0) -> NDArray[Any]:
    """Give the values of an array of numbers or booleans, with `null` where there is none.

    A view of the array's own memory, read-only, where it can be: of numbers none of which is null.
    """
    kind, n = array.type, len(array)
    if not n:
        return np.empty(0, _dtype(kind))
    if pa.types.is_boolean(kind):
        values = _bits(array.buffers()[1], array.offset, n)
    else:
        values = np.frombuffer(array.buffers()[1], _dtype(kind), array.offset + n)[array.offset :]
    if not array.null_count:
        return values
    values = values.copy()
    values[~valid(array)] = null
    return values


def valid(array: pa.Array) -> NDArray[np.bool_]:
    """Tell where an array of any type has a value, and not null."""
    if not array.null_count:
        return np.ones(len(array), np.bool_)
    there = array.is_valid()
    return _bits(there.buffers()[1], there.offset, len(there))


def arrow(values: NDArray[Any], kind: pa.DataType, there: NDArray[np.bool_] | None = None) -> pa.Array:
    """Make an array of numbers or booleans, null where `there` is False; the numbers must fit the type."""
    if pa.types.is_boolean(kind):
        body = np.packbits(values.astype(np.bool_, copy=False), bitorder="little")
    else:
        body = np.ascontiguousarray(values, _dtype(kind))
    return pa.Array.from_buffers(kind, len(values), [_validity(there), pa.py_buffer(body)])


def arrow_texts(values: Sequence[str | None]) -> pa.Array:
    """Make an array of strings."""
    encoded = [b"" if x is None else x.encode(errors="backslashreplace") for x in values]
    ends = np.concatenate([[0], np.cumsum([len(x) for x in encoded], dtype=np.int64)])
    if ends[-1] > np.iinfo(np.int32).max:
        raise ValueError(f"records: {ends[-1]} bytes of text in one column; read fewer rows at a time")
    there = None if None not in values else np.array([x is not None for x in values])
    buffers = [_validity(there), pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(values), buffers)


def _validity(there: NDArray[np.bool_] | None) -> pa.Buffer | None:
    return None if there is None else pa.py_buffer(np.packbits(there, bitorder="little"))


def _dtype(kind: pa.DataType) -> np.dtype[Any]:
    if pa.types.is_boolean(kind):
        return np.dtype(np.bool_)
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise TypeError(f"records: {kind} is no type of numbers")
    letter = "f" if pa.types.is_floating(kind) else "i" if pa.types.is_signed_integer(kind) else "u"
    return np.dtype(f"{letter}{kind.bit_width // 8}")


def _bits(buffer: pa.Buffer, offset: int, n: int) -> NDArray[np.bool_]:
    """Unpack booleans, which Arrow holds eight a byte: ten times as fast as `to_numpy`."""
    first, skip = divmod(offset, 8)
    packed = np.frombuffer(buffer, np.uint8)[first : -(-(offset + n) // 8)]
    return np.unpackbits(packed, bitorder="little")[skip : skip + n].view(np.bool_)
