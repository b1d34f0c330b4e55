"""What one compiled walk over the tokens of some records gives to the audit's pictures and cuts."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reweigh.levels import GEOMETRIC, SEQUENCE, WORST, k1, k2, k3, log_ratio
from reweigh.native import walk
from reweigh.scan.tokens import Shared
from reweigh.stats.sums import bucket

# Cells of the density: half octaves of |log ratio| from 2^-14 to 2^7 nats on both sides of 0, and of -log mu from 2^-20
# to 2^5. A float32's sign, exponent and first digit behind the point are a cell, so that no logarithm is taken.
Y_LOW, Y_HIGH, X_LOW, X_HIGH = -14, 7, -20, 5
DENSITY_ROWS = 2 * 2 * (Y_HIGH - Y_LOW) + 1
DENSITY_COLUMNS = 2 * (X_HIGH - X_LOW)


def _of_bits() -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Give the start of the column, and the row, of each value of a float32's first 10 bits."""
    bits = np.arange(1 << 10)
    place, middle = (bits & 511) - 2 * 127, DENSITY_ROWS // 2  # half octaves from 2^0, by magnitude
    column = (place - 2 * X_LOW).clip(0, DENSITY_COLUMNS - 1) * DENSITY_ROWS
    magnitude = (place - 2 * Y_LOW + 1).clip(0, middle)
    return column.astype(np.int32), (middle + np.where(bits >= 512, -magnitude, magnitude)).astype(np.int32)


COLUMN_OF_BITS, ROW_OF_BITS = _of_bits()


@dataclass(frozen=True, eq=False)
class Walked:
    """Sums of one walk; tokens off the mask are in none of them.

    Attributes:
        buckets: `[S]`: hash of each sequence's prompt.
        sequences: `[5, S]` float64: number of tokens, and sums of l, |l|, l^2 and r - 1.
        positions: `[53, 5, 64]`: the same by place in the response and by hash.
        probabilities: `[25, 4, 64]`: the first four by probability under mu.
        shapes: `[2^14]` int64: tokens by the first 14 bits of their log ratio as float32.
        density: `[columns, rows]` int64: by half octaves of -log mu and of the log ratio.
    """

    buckets: NDArray[np.int64]
    sequences: NDArray[np.float64]
    positions: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    shapes: NDArray[np.int64]
    density: NDArray[np.int64]

    @classmethod
    def of(cls, shared: Shared) -> "Walked | None":
        """Walk over a batch; None without the compiled kernel, and where log-probs are not float32.

        What estimators fold of it is remembered with the batch.
        """
        batch, where = shared.batch, bucket(shared.batch)
        log_ratio, log_mu = batch.log_ratio, batch.log_mu.detach()
        if log_ratio.dtype != torch.float32 or log_mu.dtype != torch.float32:
            return None
        tables = torch.from_numpy(COLUMN_OF_BITS), torch.from_numpy(ROW_OF_BITS)
        found = walk.where(log_ratio, log_mu, shared.runs.mask, shared.runs.runs, where, *tables)
        if found is None:
            return None
        _remember(shared, found["sequences"])
        by = {name: x.numpy() for name, x in found.items()}
        return cls(
            where.numpy(),
            by["sequences"].T[:5],
            by["positions"].transpose(0, 2, 1),
            by["probabilities"].transpose(0, 2, 1),
            by["shapes"][:-1],
            by["density"][:-1].reshape(DENSITY_COLUMNS, DENSITY_ROWS),
        )


def _remember(shared: Shared, sums: Tensor) -> None:
    some = shared.runs.lengths > 0
    l, squares, k3_sum, high, low = (sums[:, i] for i in (1, 3, 5, 6, 7))
    ends = torch.stack([torch.where(some, high, 0), torch.where(some, low, 0)])
    worst = {log_ratio: high, k1: -low}  # k2 and k3 are largest at an end
    worst |= {k2: (ends * ends / 2).amax(0), k3: (torch.expm1(ends) - ends).amax(0)}
    for of, total in ((log_ratio, l), (k1, -l), (k2, squares / 2), (k3, k3_sum)):
        shared.remember(of, SEQUENCE, total.float())
        shared.remember(of, GEOMETRIC, total.float() / shared.runs.lengths.clamp(min=1))
        shared.remember(of, WORST, torch.where(some, worst[of], -torch.inf).float())
