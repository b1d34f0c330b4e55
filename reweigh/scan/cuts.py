"""What records are cut by, for every command alike: the number or name of each token or response, and how ranges of
numbers and the names beyond the most are put together."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from reweigh.batch import Batch
from reweigh.layout import Packed
from reweigh.scan.tokens import MISSING, Ints, Part, step_of
from reweigh.stats.sums import LENGTH_EDGES, length_bin

By = Literal["step", "env", "length", "position", "lag", "turn", "source"]
"""What records can be cut by."""
BYS: tuple[By, ...] = get_args(By)
"""All that records can be cut by."""
NAMES: frozenset[By] = frozenset({"env", "source"})  # cut by name; the others by number
RANGED: frozenset[By] = frozenset({"step", "lag", "turn"})  # by number, of which neighbours are joined into ranges
COLUMNS_OF: Mapping[By, tuple[str, ...]] = {"step": ("step",), "env": ("env",), "lag": ("versions", "trainer_version")}
"""Columns without which a cut tells nothing."""
CUT_COLUMNS = ("step", "env", "versions", "trainer_version")
"""Columns that cuts are read from, beside those of a batch."""
OTHER = -1  # the key of names that are not told apart

Key = int | str | None
"""The first number of a range, a name, an index of a bin, or None where the records do not say."""


class _Adds(Protocol):
    def __add__(self, other: Any, /) -> Any: ...


_V = TypeVar("_V", bound=_Adds)
_K = TypeVar("_K")


def refuse_other_cuts(command: str, by: Iterable[str]) -> tuple[By, ...]:
    """Give each cut once.

    Raises:
        ValueError: one is none; with those that there are.
    """
    given = tuple(dict.fromkeys(by))
    for name in given:
        if name not in BYS:
            raise ValueError(f"{command}: by must be one of {', '.join(BYS)}, got {name!r}")
    return given  # type: ignore[return-value] - each is one of them


@dataclass(frozen=True, eq=False)
class Codes:
    """What some records are cut by, `MISSING` where they do not say.

    Attributes:
        token: `[N]`: number of each token; None if it is its response's.
        sequence: `[S]`: number of each response; None if it has none.
        names: what the numbers stand for, of a cut by name.
    """

    token: Tensor | None
    sequence: Tensor | None
    names: tuple[Key, ...] = ()


def codes(by: By, part: Part) -> Codes:
    """Say what each token and response is cut by. By lag, a response has its largest."""
    layout = part.batch.layout
    if by in NAMES:
        names: list[Key] = [str(part.path)] * layout.num_seqs if by == "source" else _envs(part)
        index = {name: i for i, name in enumerate(dict.fromkeys(names))}
        return Codes(None, torch.tensor([index[name] for name in names], dtype=torch.int64), tuple(index))
    if by == "length":
        return Codes(None, length_bin(layout.lengths))
    if by == "position":
        return Codes(length_bin(positions(part.batch)), None)
    if by == "turn":
        return Codes(torch.from_numpy(part.turns), None)
    if by == "step":
        step = step_of(part.whole_numbers("step"), part.whole_numbers("trainer_version"))
        return Codes(None, _or_missing(step, layout.num_seqs))
    lag = _or_missing(part.lag, len(layout.mask))
    return Codes(lag, largest_lag(lag, part.batch))


def _envs(part: Part) -> list[Key]:
    values = part.column("env")
    return [None] * part.batch.layout.num_seqs if values is None else values.tolist()


def _or_missing(numbers: Ints | None, size: int) -> Tensor:
    return torch.from_numpy(np.full(size, MISSING) if numbers is None else numbers)


def positions(batch: Batch) -> Tensor:
    """Index of each token in its response, from 0, whether in the mask or not."""
    layout = batch.layout
    assert isinstance(layout, Packed)
    return torch.arange(layout.mask.shape[0]) - layout.spread(layout.cu_seqlens[:-1])


def largest_lag(lag: Tensor, batch: Batch) -> Tensor:
    """`[S]`: the largest lag of each sequence's tokens, missing if one of them is."""
    layout = batch.layout
    unknown = layout.sum((lag == MISSING).double()) > 0
    largest = layout.max(lag.double())  # float64 holds every version exactly
    known = torch.isfinite(largest) & ~unknown
    return torch.where(known, torch.where(known, largest, 0).long(), MISSING)


def merge(a: Mapping[_K, _V], b: Mapping[_K, _V]) -> dict[_K, _V]:
    """Put both together, with what they share added up."""
    return {**a, **{key: a[key] + value if key in a else value for key, value in b.items()}}


def width_of(by: str, keys: Iterable[Key], most: int) -> int:
    """The least range of 1, 2, 4, 8, ... by which there are no more than `most` of them; 1 of what is not cut so."""
    if by not in RANGED:
        return 1
    known, width = [n for n in keys if isinstance(n, int) and n != MISSING], 1
    while len({n // width for n in known}) > most:
        width *= 2
    return width


def names_of(by: str, keys: Collection[Key], most: int) -> set[Key] | None:
    """Which names are told apart where there are more than `most`; None if all are, or it is no cut by name.

    By hash and not by who came first, so that they are the same however records are cut.
    """
    if by not in NAMES or len(keys) <= most + 1:
        return None
    return set(sorted(keys, key=_hash)[:most])


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


def _hash(name: Key) -> bytes:
    return b"\xff" * 9 if name == OTHER else hashlib.blake2b(str(name).encode(), digest_size=8).digest()


def bin_label(index: int, first: int) -> str:
    """`16-31` for the second bin of lengths or positions; `first` is the smallest value there is."""
    if index == len(LENGTH_EDGES):
        return f"{LENGTH_EDGES[-1]:,}+"
    low = LENGTH_EDGES[index - 1] if index else first
    return f"{low:,}-{LENGTH_EDGES[index] - 1:,}"


def label(by: str, key: Key, width: int) -> str:
    """Say what a slice is called."""
    if by in ("length", "position") and isinstance(key, int):
        return bin_label(key, 1 if by == "length" else 0)
    if by in NAMES:
        return "other" if key == OTHER else range_label(key, 1)
    return range_label(key, width)


def range_label(key: Key, width: int) -> str:
    """`8 to 15`, or the name."""
    if key is None:
        return "not recorded"
    return str(key) if width == 1 or not isinstance(key, int) else f"{key} to {key + width - 1}"
