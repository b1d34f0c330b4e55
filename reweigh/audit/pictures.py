"""What is drawn of an audit: histograms that add up, the largest ratios, and the sequences farthest off."""
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false
# pyarrow ships no types, and makes the functions of pyarrow.compute when it is imported.

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reweigh.audit.walked import COLUMN_OF_BITS, DENSITY_COLUMNS, DENSITY_ROWS, ROW_OF_BITS, X_LOW, Y_LOW
from reweigh.scan.tokens import Part, Shared
from reweigh.stats.summary import Summary
from reweigh.stats.sums import RatioStats
from reweigh.stats.tail import MAX_KHAT

# A histogram has 32 equal bins in each octave of |x|, from 2^-30 to 2^14 nats: fine at every scale, and the bins of any
# linear histogram of range 2^k nest in them, so the scale can be chosen when all has been read.
_SUB, _LOW, _HIGH = 32, -29, 14
_SIDE = 1 + (_HIGH - _LOW + 1) * _SUB + 1
MAX_OUTSIDE = 0.005  # share of sequences that may lie beyond the bars of a report


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of a signed quantity in bins of constant relative width; `a + b` is the histogram of both.

    Attributes:
        counts: `[2, bins]`: of values at or above 0, and below it, by magnitude.
    """

    counts: Tensor

    @classmethod
    def of(cls, x: Tensor, zeros: int = 0) -> "Histogram":
        """Count the values of a flat tensor, without that many of its zeros."""
        if x.dtype == torch.float32:
            # Sign, exponent and the first five digits behind the point are a float32's first 14 bits, and are a cell.
            bits = x.numpy().view(np.uint32) >> 18
            counts = cls.of_shapes(np.bincount(bits.astype(np.int64), minlength=len(_CELL_OF_BITS))).counts
        else:
            counts = torch.bincount(_cells(x), minlength=2 * _SIDE).view(2, _SIDE)
        counts[0, 0] -= zeros
        return cls(counts)

    @classmethod
    def of_shapes(cls, shapes: NDArray[np.int64]) -> "Histogram":
        """Put together counts of float32 numbers by their first 14 bits."""
        found = np.bincount(_CELL_OF_BITS, shapes, 2 * _SIDE).astype(np.int64)  # counts are exact in float64
        return cls(torch.from_numpy(found).view(2, _SIDE))

    def __add__(self, other: "Histogram") -> "Histogram":
        """Count the values of both."""
        return Histogram(self.counts + other.counts)

    @property
    def n(self) -> int:
        """Count the values."""
        return int(self.counts.sum())

    def linear(self, bins: int, outside: float = 0.0) -> "Bars":
        """Make equal bins around 0, over the smallest range that leaves at most a share `outside` of the values out.

        Args:
            bins: a side, a power of two up to 32.
            outside: share of values.
        """
        counts, most = self.counts.numpy(), outside * self.n
        for exponent in range(_LOW, _HIGH + 1):
            width = 2.0**exponent / bins
            # Bins are centred: their edges are odd multiples of width / 2.
            half_steps = np.floor(_LOWER_EDGES / (width / 2))
            place = ((half_steps + 1) // 2).astype(np.int64)
            inside = place < bins
            left = int(counts[:, ~inside].sum())
            if left <= most or exponent == _HIGH:
                total = np.zeros(2 * bins - 1, dtype=np.int64)
                np.add.at(total, bins - 1 + place[inside], counts[0, inside])
                np.add.at(total, bins - 1 - place[inside], counts[1, inside])
                return Bars(width, total, left)
        raise AssertionError("the last exponent returns")

    def drawn(self, level: str) -> dict[str, Any]:
        """Make the bars that a report draws of a level's log ratios: those that are not empty, and what is between."""
        n = self.n
        bins = 32 if level == "token" or n >= 1000 else 16 if n >= 200 else 8  # on each side of 0
        bars = self.linear(bins, 0.0 if level == "token" else MAX_OUTSIDE)
        used = np.flatnonzero(bars.counts)
        first, last = (int(used[0]), int(used[-1])) if len(used) else (bins - 1, bins - 1)
        return {
            "n": n,
            "width": bars.width,
            "first": (first - bins + 1) * bars.width,
            "counts": bars.counts[first : last + 1].tolist(),
            "outside": bars.outside,
        }


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
class Density:
    """Counts of tokens by probability under mu and by log ratio; `a + b` is the density of both.

    Attributes:
        counts: `[columns, rows]` int64. Columns from tokens that mu was sure of to rare ones, rows from the lowest log
            ratio to the highest; what is beyond the grid is in its outermost cells.
    """

    counts: Tensor

    @classmethod
    def empty(cls) -> "Density":
        """Count no token."""
        return cls(torch.zeros(DENSITY_COLUMNS, DENSITY_ROWS, dtype=torch.int64))

    @classmethod
    def of(cls, shared: Shared) -> "Density":
        """Count the tokens that are not masked."""
        log_mu, log_ratio = (
            x.float().numpy().view(np.uint32) >> 22 for x in (shared.batch.log_mu, shared.batch.log_ratio)
        )
        index = np.take(COLUMN_OF_BITS, log_mu)
        index += np.take(ROW_OF_BITS, log_ratio)
        cells = DENSITY_COLUMNS * DENSITY_ROWS
        np.putmask(index, ~shared.runs.mask.numpy(), cells)
        counts = np.bincount(index, minlength=cells + 1)[:-1]
        return cls(torch.from_numpy(counts.reshape(DENSITY_COLUMNS, DENSITY_ROWS)))

    def __add__(self, other: "Density") -> "Density":
        """Count the tokens of both."""
        return Density(self.counts + other.counts)

    @staticmethod
    def row_edges() -> list[float]:
        """Say where rows end, nats; the outermost cells go on beyond."""
        above = [2.0 ** (Y_LOW + i // 2) * (1.5 if i % 2 else 1.0) for i in range(DENSITY_ROWS // 2 + 1)]
        return [-x for x in reversed(above)] + above

    @staticmethod
    def column_edges() -> list[float]:
        """Say where columns end, as -log mu, nats."""
        return [2.0 ** (X_LOW + i // 2) * (1.5 if i % 2 else 1.0) for i in range(DENSITY_COLUMNS + 1)]


def _cells(x: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(x.abs())
    cell = 1 + (exponent - _LOW) * _SUB + ((mantissa - 0.5) * (2 * _SUB)).floor().long()
    return torch.where(mantissa > 0, cell, 0).clamp(0, _SIDE - 1) + torch.where(x < 0, _SIDE, 0)


def _cell_of_bits() -> NDArray[np.int64]:
    """The cell of each value of a float32's first 14 bits; infinity and NaN do not occur in log ratios."""
    smallest = np.arange(1 << 14, dtype=np.uint32) << 18
    return _cells(torch.from_numpy(smallest.view(np.float32)).double().nan_to_num()).numpy()


_CELL_OF_BITS = _cell_of_bits()
_OCTAVES = 2.0 ** (np.arange(_LOW, _HIGH + 1, dtype=np.float64) - 1)
_LOWER_EDGES = np.concatenate([[0.0], (_OCTAVES[:, None] * (1 + np.arange(_SUB) / _SUB)).ravel(), [2.0**_HIGH]])


MAX_WORST = 10  # sequences
MAX_TOKENS = 400  # of each: a window around the token whose log ratio is farthest from 0
MAX_TEXT = 4000  # characters
MAX_NAME = 120  # characters
WORST_COLUMNS = ("token_ids", "text")


@dataclass(frozen=True, eq=False)
class WorstSequence:
    """Holds a sequence that is far off.

    Attributes:
        name: its sequence_id.
        log_ratio: its sum of log ratios, nats.
        tokens: how many of its tokens count.
        length: how many it has.
        first: place of the first token that is kept.
        log_ratios: `[T]` float32, of the tokens kept, nats; 0 where the mask is off.
        log_mu: `[T]` float32.
        mask: `[T]`.
        token_ids: `[T]`; None if the records have none.
        text: of the response, its beginning; None if the records have none.
    """

    name: str
    log_ratio: float
    tokens: int
    length: int
    first: int
    log_ratios: Tensor
    log_mu: Tensor
    mask: Tensor
    token_ids: Tensor | None = None
    text: str | None = None


@dataclass(frozen=True, eq=False)
class Worst:
    """The worst sequences, worst first; `a + b` is the worst of both, whatever the order.

    Attributes:
        found: at most `MAX_WORST`.
    """

    found: list[WorstSequence] = field(default_factory=list[WorstSequence])

    @classmethod
    def of(cls, shared: Shared, by_sequence: NDArray[np.float64], part: Part) -> "Worst":
        """Choose the worst of one batch.

        Args:
            shared: the batch.
            by_sequence: `[S]`: sum of log ratios, nats.
            part: the columns beside it.
        """
        size = np.where(shared.runs.lengths.numpy() > 0, np.abs(by_sequence), -1.0)
        if len(size) > MAX_WORST:
            least = np.partition(size, -MAX_WORST)[-MAX_WORST]
            chosen = np.flatnonzero((size >= least) & (size >= 0))
        else:
            chosen = np.flatnonzero(size >= 0)
        if len(chosen) > MAX_WORST:  # ties, as in a run without a gap: only their names tell which are kept
            names = _column(part, "sequence_id", chosen)
            order = sorted(range(len(chosen)), key=lambda i: (-size[chosen[i]], names[i]))
            chosen = chosen[order[:MAX_WORST]]
        return cls(_worst([_sequence(shared, float(by_sequence[s]), part, int(s)) for s in chosen]))

    def __add__(self, other: "Worst") -> "Worst":
        """Choose the worst of both."""
        return Worst(_worst([*self.found, *other.found]))


def _worst(found: list[WorstSequence]) -> list[WorstSequence]:
    return sorted(found, key=lambda x: (-abs(x.log_ratio), x.name))[:MAX_WORST]


def _column(part: Part, name: str, rows: NDArray[np.int64]) -> list[Any]:
    if name not in part.table.schema.names:
        return [None] * len(rows)
    column = part.table.column(name)
    return [column[int(row)].as_py() for row in rows]


def _sequence(shared: Shared, log_ratio: float, part: Part, row: int) -> WorstSequence:
    runs, batch = shared.runs, shared.batch
    start, length = int(runs.starts[row]), int(runs.sizes[row])
    sizes = np.abs(batch.log_ratio[start : start + length].numpy())
    first = min(max(0, int(sizes.argmax()) - MAX_TOKENS // 2), max(0, length - MAX_TOKENS))
    kept = slice(start + first, start + min(length, first + MAX_TOKENS))
    one = np.array([row])
    (name,), (text,), (ids,) = (_column(part, x, one) for x in ("sequence_id", "text", "token_ids"))
    if ids is not None:
        ids = torch.tensor([-1 if i is None else i for i in ids[first : first + MAX_TOKENS]], dtype=torch.int64)
    return WorstSequence(
        str(name)[:MAX_NAME],
        log_ratio,
        int(runs.lengths[row]),
        length,
        first,
        batch.log_ratio[kept].float().clone(),
        batch.log_mu[kept].float().clone(),
        runs.mask[kept].clone(),
        ids,
        None if text is None else text[:MAX_TEXT],
    )


@dataclass(frozen=True)
class Tail:
    """The largest ratios of one level.

    Attributes:
        n: units that there are.
        log_ratios: the largest, in falling order, nats. The share of units with at least the i-th, from 0, is about
            `(i + 1/2) / n`.
        fitted: what the Pareto fit has in their places, as far as its tail goes; empty without a fit.
        khat: index of the tail; None without a fit.
        limit: the index beyond which moments are refused.
    """

    n: int
    log_ratios: tuple[float, ...]
    fitted: tuple[float, ...]
    khat: float | None
    limit: float

    @classmethod
    def of(cls, stats: RatioStats, summary: Summary) -> "Tail":
        """Take the tail of some stats; `summary` is of them."""
        h = stats.host
        top = h.top[np.isfinite(h.top)]
        limit = min(MAX_KHAT, 1 - 1 / math.log10(summary.n)) if summary.n > 1 else 0.0
        return cls(summary.n, tuple(top.tolist()), tuple(h.tail.smoothed.tolist()), h.tail.khat, limit)
