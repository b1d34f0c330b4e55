"""What records are cut by: the number or name of each token or sequence, and how many of them are told apart."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reweigh.batch import Batch
from reweigh.records import RecordBatch
from reweigh.stats.sums import LENGTH_EDGES

MISSING = -(2**62)  # stands for the number of what the records do not say
OTHER = -1  # the key of environments that are not told apart

Key = int | str | None
"""The first number of a range, a name, an index of a bin, or None where the records do not say."""


class _Adds(Protocol):
    def __add__(self, other: Any, /) -> Any: ...


_V = TypeVar("_V", bound=_Adds)


def integers(values: NDArray[np.generic] | None, size: int) -> NDArray[np.int64]:
    """A column of integers, `MISSING` where it has none."""
    if values is None:
        return np.full(size, MISSING)
    if values.dtype.kind == "f":  # integers with nulls among them
        null = np.isnan(values)
        return np.where(null, MISSING, np.where(null, 0, values).astype(np.int64))
    return values.astype(np.int64)


def lags(batch: Batch, part: RecordBatch) -> Tensor:
    """`[N]`: trainer version less the version that sampled the token."""
    layout = batch.layout
    versions = part.tokens("versions")
    now = layout.spread(torch.from_numpy(integers(part.column("trainer_version"), layout.num_seqs)))
    then = torch.full_like(now, -1) if versions is None else torch.from_numpy(versions.astype(np.int64))
    return torch.where((then >= 0) & (now != MISSING), now - then, MISSING)


def largest_lag(lag: Tensor, batch: Batch) -> Tensor:
    """`[S]`: the largest lag of each sequence's tokens, missing if one of them is."""
    layout = batch.layout
    unknown = layout.sum((lag == MISSING).double()) > 0
    largest = layout.max(lag.double())  # float64 holds every version exactly
    known = torch.isfinite(largest) & ~unknown
    return torch.where(known, torch.where(known, largest, 0).long(), MISSING)


def width_of(numbers: Iterable[int], most: int) -> int:
    """The least range of 1, 2, 4, 8, ... by which there are no more than `most` of them."""
    known, width = [n for n in numbers if n != MISSING], 1
    while len({n // width for n in known}) > most:
        width *= 2
    return width


def coarse(codes: Tensor, width: int) -> Tensor:
    """The first number of each one's range."""
    return torch.where(codes == MISSING, codes, torch.div(codes, width, rounding_mode="floor") * width)


def rekey(values: Mapping[Key, _V], name: Callable[[Key], Key]) -> dict[Key, _V]:
    """The same under other keys; what then shares one is added up."""
    out: dict[Key, _V] = {}
    for key, value in values.items():
        new = name(key)
        out[new] = out[new] + value if new in out else value
    return out


def in_ranges(values: Mapping[Key, _V], width: int) -> dict[Key, _V]:
    """The same by ranges of numbers."""
    return rekey(values, lambda key: key // width * width if isinstance(key, int) else key)


def without(values: Mapping[Key, _V], kept: set[Key]) -> dict[Key, _V]:
    """The same with all other names as one."""
    return rekey(values, lambda key: key if key in kept or key is None else OTHER)


def first_by_hash(keys: Iterable[Key], most: int) -> set[Key]:
    """So many of the names: by hash and not by who came first, so that it is the same however records are cut."""
    return set(sorted(keys, key=_hash)[:most])


def _hash(name: Key) -> bytes:
    return b"\xff" * 9 if name == OTHER else hashlib.blake2b(str(name).encode(), digest_size=8).digest()


def bin_label(index: int, first: int) -> str:
    """`16-31` for the second bin of lengths or positions; `first` is the smallest value there is."""
    if index == len(LENGTH_EDGES):
        return f"{LENGTH_EDGES[-1]:,}+"
    low = LENGTH_EDGES[index - 1] if index else first
    return f"{low:,}-{LENGTH_EDGES[index] - 1:,}"


def range_label(key: Key, width: int) -> str:
    """`8 to 15`, or the name."""
    if key is None:
        return "not recorded"
    return str(key) if width == 1 or not isinstance(key, int) else f"{key} to {key + width - 1}"
