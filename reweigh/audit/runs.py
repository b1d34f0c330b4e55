"""A packed layout on CPU whose sums are NumPy's and are remembered, for many estimators on one batch."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reweigh.batch import Batch
from reweigh.estimators import Estimator, Statistic
from reweigh.layout import Layout, Packed, Tiles
from reweigh.stats.sums import NUM_BINS, length_bin

_Memory = dict[Any, tuple[Any, Tensor]]


@final
class Runs(Layout):
    """The runs of a `Packed` layout. What depends on a sequence is computed from its own tokens alone.

    So its sums are the same to the last bit however sequences are put together into batches. It is several times as
    fast as indexing, but of no use where a device must not wait: it is for records in memory, not for training.

    Attributes:
        sizes: `[S]`: tokens of each sequence, masked ones included.
        starts: `[S]`: place of each sequence's first token.
    """

    def __init__(self, packed: Packed) -> None:
        self.mask, self.turn, self.lengths = packed.mask, packed.turn, packed.lengths
        self._packed = packed
        offsets = packed.offsets.numpy()
        self.sizes: NDArray[np.int64] = np.diff(offsets)
        self.starts: NDArray[np.int64] = offsets[:-1]
        self._some = np.flatnonzero(self.sizes)  # reduceat has no sum of nothing
        self._memory: _Memory = {}

    @property
    def num_seqs(self) -> int:
        """Number of sequences."""
        return len(self.sizes)

    def reduce(self, with_: np.ufunc, x: NDArray[Any], empty: float, dtype: Any = None) -> NDArray[Any]:
        """One value a sequence: all its tokens' values joined by a ufunc such as `np.add`."""
        out = np.full(self.num_seqs, empty, x.dtype if dtype is None else dtype)
        if len(self._some):
            out[self._some] = with_.reduceat(x, self.starts[self._some], dtype=out.dtype)
        return out

    def count(self, x: Tensor) -> NDArray[np.float64]:
        """How many are True in each sequence."""
        return self.reduce(np.add, x.numpy().view(np.uint8), 0, np.uint32).astype(np.float64)

    def sum_zeroed(self, x: Tensor) -> Tensor:
        """Sum over each run of tokens."""
        return self._once("sum", x, lambda: self.reduce(np.add, x.numpy(), 0))

    def max_floored(self, x: Tensor) -> Tensor:
        """Maximum of each run of tokens."""
        return self._once("max", x, lambda: self.reduce(np.maximum, x.numpy(), -np.inf))

    def cumsum_zeroed(self, x: Tensor) -> Tensor:
        """Running sum within each run of tokens."""
        return self._once("cumsum", x, lambda: self._cumsum(x))

    def spread(self, s: Tensor) -> Tensor:
        """Repeat each sequence's value."""
        return self._once("spread", s, lambda: np.repeat(s.numpy(), self.sizes))

    def masked(self, mask: Tensor) -> "Runs":
        """The same runs with another mask."""
        return Runs(self._packed.masked(mask))

    def sequences(self, which: slice) -> Layout:
        """Some of the runs."""
        return self._packed.sequences(which)

    def parts(self, slots: int) -> list[tuple[slice, slice]]:
        """One part: what is remembered is of the whole."""
        return [(slice(0, len(self.mask)), slice(0, self.num_seqs))]

    def all_tiles(self) -> Tiles:
        """Those of the packed layout."""
        return self._packed.all_tiles()

    def _cumsum(self, x: Tensor) -> NDArray[Any]:
        # In float64, so that what earlier sequences added cancels without a trace.
        total = x.double().cumsum(0).numpy()
        before = np.concatenate([[0.0], total])[self.starts]
        return (total - np.repeat(before, self.sizes)).astype(x.numpy().dtype)

    def _once(self, name: str, x: Tensor, make: Callable[[], NDArray[Any]]) -> Tensor:
        return _remembered(self._memory, (name, id(x)), x, lambda: torch.from_numpy(make()))


@dataclass(frozen=True, eq=False)
class Shared:
    """A batch as several estimators read it, each sum and statistic made once.

    Attributes:
        batch: with `Runs` for its layout.
        runs: that layout.
        bins: `[S]`: length bin of each sequence.
        cells: `[S]`: sign of its mean advantage (0: negative, 1: none, 2: positive) times the number of bins, plus bin.
        in_cell: `[S, 3 bins]` float64: 1 in the cell of the sequence, so that `rows @ in_cell` sums rows by cell.
    """

    batch: Batch
    runs: Runs
    bins: NDArray[np.int64]
    cells: NDArray[np.int64]
    in_cell: NDArray[np.float64]
    _memory: _Memory = field(default_factory=dict[Any, tuple[Any, Tensor]], repr=False)

    @classmethod
    def of(cls, batch: Batch) -> "Shared":
        """Of a packed batch on CPU."""
        assert isinstance(batch.layout, Packed)
        runs = Runs(batch.layout)
        bins = length_bin(runs.lengths).numpy()
        sign = np.ones(runs.num_seqs, np.int64)
        if batch.advantage is not None:
            total = runs.reduce(np.add, torch.where(runs.mask, batch.advantage, 0).numpy(), 0, np.float64)
            sign += (total > 0).astype(np.int64) - (total < 0)
        cells = sign * NUM_BINS + bins
        return cls(replace(batch, layout=runs), runs, bins, cells, np.eye(3 * NUM_BINS)[cells])

    def estimator(self, estimator: Estimator) -> Estimator:
        """The same estimator, which looks up a statistic that another has read from this batch."""
        factors = (replace(f, of=partial(_statistic, self._memory, f.of)) for f in estimator.factors)
        return replace(estimator, factors=tuple(factors))


def _statistic(memory: _Memory, of: Statistic, batch: Batch) -> Tensor:
    return _remembered(memory, of, of, lambda: of(batch))


def _remembered(memory: _Memory, key: Any, holds: Any, make: Callable[[], Tensor]) -> Tensor:
    # What an id belongs to is held, so that no other tensor can come to have it.
    if key not in memory:
        memory[key] = (holds, make())
    return memory[key][1]
