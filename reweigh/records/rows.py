"""Rows as Python mappings (of lists, arrays or tensors) -> the canonical Arrow table."""
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false
# pyarrow ships no types, and makes the functions of pyarrow.compute when it is imported.

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from reweigh.records.schema import BY_NAME, COLUMNS, Column
from reweigh.records.violation import Origin, Report, Violation

_INT32 = np.iinfo(np.int32)
_INT64 = np.iinfo(np.int64)


def table_of(rows: Sequence[Mapping[str, Any]], origin: Origin, report: Report) -> pa.Table:
    """Build the columns that any row has; a value of the wrong type is reported, and null in the table."""
    present = {name for row in rows for name in row}
    arrays: dict[str, pa.Array] = {}
    for column in COLUMNS:
        if column.name not in present:
            continue
        values: list[Any] = []
        for i, row in enumerate(rows):
            try:
                values.append(_value(row, column))
            except ValueError as e:
                rule, hint = f"{column.name}: wrong type", f"write {column.name} as {column.type}."
                report(Violation(rule, origin.place(i), str(e), hint))
                values.append(None)
        arrays[column.name] = _lists(values, column) if column.per_token else pa.array(values, column.type)
    return pa.table(arrays) if arrays else pa.table({"sequence_id": pa.nulls(len(rows), pa.string())})


def unknown_name(name: str) -> str:
    """What to say of a column that the schema does not have."""
    near = difflib.get_close_matches(name, BY_NAME, n=1)
    return f"{name} is not a column of the schema" + (f"; did you mean {near[0]}?" if near else "")


def _lists(values: Sequence[np.ndarray | None], column: Column) -> pa.Array:
    lengths = np.array([0 if v is None else len(v) for v in values], dtype=np.int64)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    parts = [v for v in values if v is not None]
    flat = pa.array(np.concatenate(parts) if parts else [], column.value_type)
    return pa.ListArray.from_arrays(offsets, flat, type=column.type, mask=pa.array([v is None for v in values]))


def _value(row: Mapping[str, Any], column: Column) -> Any:
    value = row.get(column.name)
    if value is None:
        return None
    if column.name == "advantage" and np.ndim(value) == 0:
        return np.full(_length(row), _number(value, column), dtype=np.float32)
    if column.per_token:
        return _token_array(value, column)
    if pa.types.is_string(column.type):
        if not isinstance(value, str):
            raise ValueError(f"{column.name} must be a string, got {value!r}")
        return value
    return _number(value, column)


def _length(row: Mapping[str, Any]) -> int:
    log_mu = row.get("log_mu")
    return 0 if log_mu is None else len(log_mu)


def _number(value: Any, column: Column) -> float | int:
    array = _numpy(value)
    integer = pa.types.is_integer(column.type)
    if array.ndim or array.dtype.kind not in ("iu" if integer else "fiu"):
        raise ValueError(f"{column.name} must be {'an integer' if integer else 'a number'}, got {value!r}")
    if integer and not _INT64.min <= int(array) <= _INT64.max:
        raise ValueError(f"{column.name} must fit in 64 bits, got {value!r}")
    return array.item()


def _token_array(value: Any, column: Column) -> np.ndarray:
    try:
        array = _numpy(value)
    except ValueError:
        raise ValueError(f"{column.name} must be a flat list, got one of unequal lists") from None
    if array.ndim != 1:
        raise ValueError(f"{column.name} must be a flat list, got {_short(value)}")
    if array.size == 0:
        array = array.astype(np.int8)  # an empty list says nothing of its type
    if pa.types.is_floating(column.value_type):
        if array.dtype.kind == "O" and all(v is None or isinstance(v, float | int) for v in array):
            array = array.astype(np.float64)  # None becomes NaN
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{column.name} must be a list of numbers, got {_short(value)}")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is reported as that
            return array.astype(np.float32)
    if pa.types.is_boolean(column.value_type):
        if array.dtype.kind not in "biu" or (array.dtype.kind != "b" and not np.isin(array, (0, 1)).all()):
            raise ValueError(f"{column.name} must be a list of true and false (or 1 and 0), got {_short(value)}")
        return array.astype(bool)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{column.name} must be a list of integers, got {_short(value)}")
    if array.size and (int(array.min()) < _INT32.min or int(array.max()) > _INT32.max):
        raise ValueError(f"{column.name} must fit in 32 bits, got {int(array.min())} to {int(array.max())}")
    return array.astype(np.int32)


def _numpy(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return np.asarray(value)


def _short(value: Any) -> str:
    text = repr(value if not isinstance(value, np.ndarray | torch.Tensor) else value.tolist())
    return text if len(text) <= 60 else text[:57] + "..."
