"""Histograms and profiles with fixed bins, so that those of two files add up to those of both."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reweigh.batch import Batch
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
        mantissa, exponent = torch.frexp(x.abs())
        cell = 1 + (exponent - _LOW) * _SUB + ((mantissa - 0.5) * (2 * _SUB)).floor().long()
        cell = torch.where(mantissa > 0, cell, 0).clamp(0, _SIDE - 1) + torch.where(x < 0, _SIDE, 0)
        return cls(torch.bincount(cell, minlength=2 * _SIDE).view(2, _SIDE))

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
    def of(cls, batch: Batch, bins: Tensor, num_bins: int) -> "Profile":
        """Profile by `bins`, the bin of each token of a packed batch."""
        mask = batch.layout.mask
        index = (batch.layout.spread(bucket(batch)) * num_bins + bins)[mask]
        values = batch.log_ratio[mask].double().abs()
        zero = torch.zeros(NUM_BUCKETS * num_bins, dtype=torch.float64)
        sums = [zero.index_add(0, index, x) for x in (torch.ones_like(values), values)]
        return cls(torch.stack(sums).view(2, NUM_BUCKETS, num_bins))

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


def position_bins(position: Tensor) -> Tensor:
    """Bin of each position in the response, see `POSITION_BINS`."""
    octave = (position.clamp(min=16).double().log2() + 1e-12).floor().clamp(max=16).long()  # exact below 2^40
    quarter = (position // torch.pow(2, octave - 2)) - 4
    return torch.where(position < 16, position // 4, 4 + (octave - 4) * 4 + quarter).clamp(max=POSITION_BINS - 1)


def position_start(index: int) -> int:
    """First position of a bin."""
    octave, quarter = divmod(index - 4, 4)
    return index * 4 if index < 4 else (4 + quarter) << (octave + 2)


def probability_bins(batch: Batch) -> Tensor:
    """Bin of each token's probability under mu, see `PROBABILITY_BINS`."""
    quarters = torch.where(batch.layout.mask, batch.log_mu.float() * (-4 / math.log(10)), 0)
    return quarters.clamp(0, PROBABILITY_BINS - 1).long()


def _lower_edges() -> NDArray[np.float64]:
    octaves = 2.0 ** (np.arange(_LOW, _HIGH + 1, dtype=np.float64) - 1)
    inner = (octaves[:, None] * (1 + np.arange(_SUB) / _SUB)).ravel()
    return np.concatenate([[0.0], inner, [2.0**_HIGH]])
