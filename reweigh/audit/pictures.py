"""Histograms and profiles with fixed bins, so that those of two files add up to those of both."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reweigh.audit.runs import Shared
from reweigh.intervals import clustered
from reweigh.sums import NUM_BUCKETS, bucket

# A histogram has 32 equal bins in each octave of |x|, from 2^-30 to 2^14 nats: fine at every scale, and the bins of any
# linear histogram of range 2^k nest in them, so the scale can be chosen when all has been read.
_SUB, _LOW, _HIGH = 32, -29, 14
_SIDE = 1 + (_HIGH - _LOW + 1) * _SUB + 1

POSITION_BINS = 53  # 0-3, 4-7, 8-11, 12-15, then a quarter of an octave each up to 65,536 and over
PROBABILITY_BINS = 25  # a quarter of a decade each from 1 down to 1e-6, then everything below


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of a signed quantity in bins of constant relative width; `a + b` is the histogram of both.

    Attributes:
        counts: `[2, bins]`: of values at or above 0, and below it, by magnitude.
    """

    counts: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Histogram":
        """Histogram of the values of a flat tensor."""
        if x.dtype == torch.float32:
            # Sign, exponent and the first five digits behind the point are a float32's first 14 bits, and are a cell.
            bits = x.numpy().view(np.uint32) >> 18
            by_bits = np.bincount(bits.astype(np.int64), minlength=len(_CELL_OF_BITS))
            counts = np.bincount(_CELL_OF_BITS, by_bits, 2 * _SIDE).astype(np.int64)  # counts are exact in float64
            return cls(torch.from_numpy(counts).view(2, _SIDE))
        return cls(torch.bincount(_cells(x), minlength=2 * _SIDE).view(2, _SIDE))

    def without_zeros(self, count: int) -> "Histogram":
        """With that many zeros less."""
        counts = self.counts.clone()
        counts[0, 0] -= count
        return Histogram(counts)

    def __add__(self, other: "Histogram") -> "Histogram":
        """The histogram of both."""
        return Histogram(self.counts + other.counts)

    @property
    def n(self) -> int:
        """Number of values."""
        return int(self.counts.sum())

    def linear(self, bins: int, outside: float = 0.0) -> "Bars":
        """Equal bins around 0, over the smallest range that leaves at most a share `outside` of the values out.

        Args:
            bins: a side, a power of two up to 32.
            outside: share of values.
        """
        below, counts = _lower_edges(), self.counts.numpy()
        for exponent in range(_LOW, _HIGH + 1):
            width = 2.0**exponent / bins
            half_steps = np.floor(below / (width / 2))  # bins are centred: their edges are odd multiples of width / 2
            place = ((half_steps + 1) // 2).astype(np.int64)
            inside = place < bins
            left = int(counts[:, ~inside].sum())
            if left <= outside * self.n or exponent == _HIGH:
                total = np.zeros(2 * bins - 1, dtype=np.int64)
                np.add.at(total, bins - 1 + place[inside], counts[0, inside])
                np.add.at(total, bins - 1 - place[inside], counts[1, inside])
                return Bars(width, total, left)
        raise AssertionError("the last exponent returns")


@dataclass(frozen=True)
class Bars:
    """Equal bins, the middle one centred on 0.

    Attributes:
        width: of each bin, in the quantity's unit.
        counts: from the lowest bin to the highest.
        outside: values beyond them.
    """

    width: float
    counts: NDArray[np.int64]
    outside: int


@dataclass(frozen=True, eq=False)
class Profile:
    """Sums of |log ratio| by some property of the token, by cluster; `a + b` is the profile of both.

    Attributes:
        sums: `[2, 64, bins]` float64: number of tokens and sum of |log ratio|, by hash of the prompt.
    """

    sums: Tensor

    @classmethod
    def of(cls, shared: Shared, bins: NDArray[Any], num_bins: int) -> "Profile":
        """Profile by `bins`, the bin of each token; a token that does not count has the bin `num_bins`."""
        width = num_bins + 1
        index = bins + np.repeat(_buckets(shared) * width, shared.runs.sizes)
        sizes = np.abs(shared.batch.log_ratio.numpy())
        sums = [np.bincount(index, weights, NUM_BUCKETS * width) for weights in (None, sizes)]
        table = np.stack(sums).astype(np.float64).reshape(2, NUM_BUCKETS, width)
        return cls(torch.from_numpy(table[..., :num_bins].copy()))

    @classmethod
    def by_position(cls, shared: Shared) -> "Profile":
        """Profile by place in the response, masked tokens counted along; see `POSITION_BINS`."""
        runs, first = shared.runs, np.array([position_start(i) for i in range(POSITION_BINS)])
        many = np.searchsorted(first, runs.sizes)  # bins that each sequence reaches
        seq = np.repeat(np.arange(runs.num_seqs), many)
        bins = np.arange(len(seq)) - np.repeat(many.cumsum() - many, many)
        index = _buckets(shared)[seq] * POSITION_BINS + bins
        starts = runs.starts[seq] + first[bins]
        found: list[NDArray[np.float64]] = []
        for x, dtype in (
            (runs.mask.numpy().view(np.uint8), np.uint32),
            (np.abs(shared.batch.log_ratio.numpy()), np.float64),
        ):
            values = np.add.reduceat(x, starts, dtype=dtype) if len(starts) else np.zeros(0)
            found.append(np.bincount(index, values, NUM_BUCKETS * POSITION_BINS).astype(np.float64))
        return cls(torch.from_numpy(np.stack(found)).view(2, NUM_BUCKETS, POSITION_BINS))

    def __add__(self, other: "Profile") -> "Profile":
        """The profile of both."""
        return Profile(self.sums + other.sums)

    def points(self) -> list["Point"]:
        """The bins that have tokens."""
        counts, totals = self.sums.numpy()
        found: list[Point] = []
        for i in range(counts.shape[1]):
            n = counts[:, i].sum()
            if n:
                low, high = clustered(totals[:, i], counts[:, i])
                found.append(Point(i, int(n), float(totals[:, i].sum() / n), max(0.0, low), high))
        return found


@dataclass(frozen=True)
class Point:
    """Mean |log ratio| of the tokens of one bin, nats, with its 95% interval; `high` may be infinite."""

    bin: int
    tokens: int
    mean: float
    low: float
    high: float


def position_start(index: int) -> int:
    """First position of a bin."""
    octave, quarter = divmod(index - 4, 4)
    return index * 4 if index < 4 else (4 + quarter) << (octave + 2)


def probability_bins(shared: Shared) -> NDArray[np.int64]:
    """Bin of each token's probability under mu, see `PROBABILITY_BINS`; that number where the mask is off."""
    quarters = shared.batch.log_mu.numpy().astype(np.float32, copy=False) * np.float32(-4 / math.log(10))
    quarters.clip(0, PROBABILITY_BINS - 1, out=quarters)
    np.copyto(quarters, PROBABILITY_BINS, where=~shared.runs.mask.numpy())
    return quarters.astype(np.int64)


def _buckets(shared: Shared) -> NDArray[np.int64]:
    return bucket(shared.batch).numpy()


def _cells(x: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(x.abs())
    cell = 1 + (exponent - _LOW) * _SUB + ((mantissa - 0.5) * (2 * _SUB)).floor().long()
    return torch.where(mantissa > 0, cell, 0).clamp(0, _SIDE - 1) + torch.where(x < 0, _SIDE, 0)


def _cell_of_bits() -> NDArray[np.int64]:
    """The cell of each value of a float32's first 14 bits; infinity and NaN do not occur in log ratios."""
    smallest = np.arange(1 << 14, dtype=np.uint32) << 18
    return _cells(torch.from_numpy(smallest.view(np.float32)).double().nan_to_num()).numpy()


_CELL_OF_BITS = _cell_of_bits()


def _lower_edges() -> NDArray[np.float64]:
    octaves = 2.0 ** (np.arange(_LOW, _HIGH + 1, dtype=np.float64) - 1)
    inner = (octaves[:, None] * (1 + np.arange(_SUB) / _SUB)).ravel()
    return np.concatenate([[0.0], inner, [2.0**_HIGH]])
