"""What is added up of each token, and its sums over pieces of sequences: by position, by turn, by lag."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from reweigh.audit.runs import Shared
from reweigh.sums import bucket

Array = NDArray[np.float64]
ROWS = ("n", "l", "abs", "l2", "excess")  # 1, log ratio l, |l|, l^2, r - 1; each 0 where the mask is off
POSITION_BINS = 53  # 0-3, 4-7, 8-11, 12-15, then a quarter of an octave each up to 65,536 and over
_SAFE = 80.0  # nats; beyond it e^l is computed in float64


def position_start(index: int) -> int:
    """First position of a bin."""
    octave, quarter = divmod(index - 4, 4)
    return index * 4 if index < 4 else (4 + quarter) << (octave + 2)


@dataclass(frozen=True, eq=False)
class Pieces:
    """Runs of tokens, each of one sequence, with their sums.

    Attributes:
        seq: `[P]`: which sequence.
        code: `[P]`: what the tokens of a piece have in common.
        sums: `[5, P]` float64, see `ROWS`.
    """

    seq: NDArray[np.int64]
    code: NDArray[np.int64]
    sums: Array


@dataclass(frozen=True, eq=False)
class TokenRows:
    """The rows of a batch.

    Attributes:
        shared: the batch.
        buckets: `[S]`: hash of each sequence's prompt.
        values: `[N]` each, in the order of `ROWS`.
    """

    shared: Shared
    buckets: NDArray[np.int64]
    values: tuple[NDArray[np.generic], ...]

    @classmethod
    def of(cls, shared: Shared) -> "TokenRows":
        """Of a batch on CPU; a ratio over e^709 is infinite, and so are the sums that it is in."""
        log_ratio = shared.batch.log_ratio
        l = log_ratio.numpy()
        large = bool(len(l)) and l.max() > _SAFE
        excess = torch.expm1(log_ratio.double() if large else log_ratio).numpy()
        values = (shared.runs.mask.numpy().view(np.uint8), l, np.abs(l), np.square(l), excess)
        return cls(shared, bucket(shared.batch).numpy(), values)

    def by_position(self) -> Pieces:
        """Pieces by place in the response, masked tokens counted along; see `POSITION_BINS`."""
        runs, first = self.shared.runs, np.array([position_start(i) for i in range(POSITION_BINS)])
        many = np.searchsorted(first, runs.sizes)  # bins that each sequence reaches
        seq = np.repeat(np.arange(runs.num_seqs), many)
        code = np.arange(len(seq)) - np.repeat(many.cumsum() - many, many)
        return Pieces(seq, code, self._sums(runs.starts[seq] + first[code]))

    def by_code(self, codes: NDArray[np.int64]) -> Pieces:
        """Pieces of equal codes, `[N]`."""
        runs = self.shared.runs
        some = np.flatnonzero(runs.sizes)
        starts = np.union1d(runs.starts[some], np.flatnonzero(np.diff(codes)) + 1)
        seq = some[np.searchsorted(runs.starts[some], starts, side="right") - 1]
        return Pieces(seq, codes[starts], self._sums(starts))

    def by_sequence(self, pieces: Pieces) -> Array:
        """`[5, S]`: the sums of each sequence's pieces."""
        found = [np.bincount(pieces.seq, row, self.shared.runs.num_seqs) for row in pieces.sums]
        return np.stack(found).astype(np.float64)

    def _sums(self, starts: NDArray[np.int64]) -> Array:
        if not len(starts):
            return np.zeros((len(ROWS), 0))
        return np.stack([np.add.reduceat(x, starts, dtype=np.float64) for x in self.values])
