"""Sums as bytes and back: how they travel between processes and into a file. Reading them runs no code."""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch

from reweigh.audit.accumulate import Sums
from reweigh.audit.pictures import Density, Histogram, Worst, WorstSequence
from reweigh.audit.slices import Slices
from reweigh.audit.trial import Trial
from reweigh.audit.where import Strata
from reweigh.levels import LEVELS, Level
from reweigh.stats.sums import RatioStats

_MAGIC = b"reweigh1"
_TYPES: Mapping[str, type] = {
    t.__name__: t for t in (Sums, RatioStats, Trial, Histogram, Density, Strata, Worst, WorstSequence, Slices)
}
_LEVELS: Mapping[str, Level] = {level.name: level for level in LEVELS}


def pack(value: Any) -> bytes:
    """A tree of dicts, lists, plain values, tensors and the audit's sums: a JSON header, then the tensors' numbers.

    Raises:
        TypeError: something else is in it.
    """
    arrays: list[np.ndarray] = []
    head = json.dumps(_tree(value, arrays)).encode()
    body = b"".join(array.tobytes() for array in arrays)
    return b"".join((_MAGIC, len(head).to_bytes(8, "little"), head, body))


def unpack(data: bytes) -> Any:
    """What `pack` was given.

    Raises:
        ValueError: it is not what `pack` writes, or not all of it.
    """
    start = len(_MAGIC) + 8
    end = start + int.from_bytes(data[len(_MAGIC) : start], "little")
    if data[: len(_MAGIC)] != _MAGIC or len(data) < end:
        raise ValueError(f"unpack: not sums of an audit, or cut short: {len(data)} bytes that start {data[:8]!r}")
    return _value(json.loads(data[start:end]), _Body(memoryview(data)[end:]))


def _tree(value: Any, arrays: list[np.ndarray]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        array = value.numpy()
        arrays.append(array)
        return {"tensor": array.dtype.str, "shape": list(array.shape)}
    if isinstance(value, Level):
        return {"level": value.name}
    if isinstance(value, list | tuple):
        return {"list": [_tree(x, arrays) for x in value]}  # type: ignore[reportUnknownVariableType]
    if isinstance(value, dict):
        return {"dict": [[k, _tree(x, arrays)] for k, x in value.items()]}  # type: ignore[reportUnknownVariableType]
    if is_dataclass(value) and type(value).__name__ in _TYPES:
        return {
            "type": type(value).__name__,
            "fields": {f.name: _tree(getattr(value, f.name), arrays) for f in fields(value)},
        }
    raise TypeError(f"pack: cannot write {type(value).__name__}")


class _Body:
    """The numbers, taken from the front."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def take(self, dtype: str, shape: list[int]) -> torch.Tensor:
        """The next tensor."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        piece = self._data[self._at : self._at + size]
        if len(piece) < size:
            raise ValueError(f"unpack: cut short: {size} bytes wanted at {self._at}, {len(piece)} there")
        self._at += size
        return torch.from_numpy(np.frombuffer(piece, dtype).reshape(shape).copy())


def _value(tree: Any, body: _Body) -> Any:
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        return body.take(tree["tensor"], tree["shape"])
    if "level" in tree:
        return _LEVELS[tree["level"]]
    if "list" in tree:
        return [_value(x, body) for x in tree["list"]]
    if "dict" in tree:
        return {k: _value(x, body) for k, x in tree["dict"]}
    return _TYPES[tree["type"]](**{name: _value(x, body) for name, x in tree["fields"].items()})
