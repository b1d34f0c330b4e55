"""Sums over ratios by row, by sequence and by cell of the grid of caps."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reweigh.sums import GRID_CELLS, GRID_LOW, GRID_STEP, NUM_BINS, POWERS, SHIFT_STEP, exponents
from reweigh.tiles import CHUNK_ROWS, may_look

Rows = tuple[Tensor, Tensor]  # log ratios `[R, W]`, 0 where there is no unit; and 1.0 where there is one, else 0.0

# What is summed over the units of each row; the powers are scaled down by `e^(k shift)`.
PLAIN = ("n", "l", "l2", "abs", "tv", "tv2", "below")
NUM_SUMS = len(PLAIN) + len(POWERS)

# Copies of the grid that neighbouring units take turns in: most fall into a few cells, and adding to the same one again
# and again would wait for the last sum each time.
LANES = 8
ONE = round(-GRID_LOW / GRID_STEP) + 1  # cell of the grid that a ratio of 1 begins
NONE = 3e38  # what a row without a unit has in place of a largest log ratio, below 0
NEAR = GRID_STEP * (1 - 1e-6)  # |log ratio| that is surely in one of the two cells around 1


def row_sums(l: Float[Tensor, "R W"], live: Float[Tensor, "R W"]) -> tuple[list[Tensor], Tensor]:
    """Of each row the sums, unscaled, then its largest and its smallest log ratio; and the ratios.

    A sum that float32 cannot hold is infinite, as is such a ratio. A row without a unit has a top far below 0, and its
    smallest is at most 0. A slot without a unit has a ratio of 1.
    """
    r = l.exp()
    # Each of these works in memory that the one before has given back, which is still in the cache.
    plain = [live.sum(-1), l.sum(-1), _squares(l), l.abs().sum(-1), *_below(r)]
    return [*plain, *_powers(r * live), _top(l, live), l.amin(-1)], r


def _top(l: Tensor, live: Tensor) -> Tensor:
    return (live - 1).mul_(NONE).add_(l).amax(-1)


def _below(r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of (1 - r)_+, of its square, and of 1{r < 1}."""
    below = (1 - r).relu_()  # 0 for an infinite ratio, as it should be
    # 1 - r is exact near 1, so it is over 0 just where r < 1; a comparison that gives a bool is slow to sum.
    return below.sum(-1), _squares(below), below.sign_().sum(-1)


def _powers(e: Tensor) -> list[Tensor]:
    half, one = e.sqrt().sum(-1), e.sum(-1)
    e2 = e * e
    return [half, one, e2.sum(-1), e.mul_(e2).sum(-1), _squares(e2)]


def _squares(x: Tensor) -> Tensor:
    """Sum of squares of each row."""
    return torch.linalg.vector_norm(x, dim=-1).square_() if may_look(x) else (x * x).sum(-1)


@dataclass(eq=False)
class RatioSums:
    """Running sums of ratios, by sequence and by cell of the grid.

    Attributes:
        by_seq: `[12, S]` float64: `PLAIN`, then the powers.
        shift: `[S]` float64 nats: of the powers.
        grid: `[3, lanes * bins * cells]` float64: what was sorted into cells one by one.
        near: `[3, 2, bins]` float64: what is known to lie in the two cells around 1.
        bins: `[S]`: length bin of each sequence.
        low: 0-d: smallest log ratio so far, at most 0.
    """

    by_seq: Float[Tensor, "12 S"]
    shift: Float[Tensor, " S"]
    grid: Float[Tensor, "3 lanes_cells"]
    near: Float[Tensor, "3 2 bins"]
    bins: Int[Tensor, " S"]
    low: Tensor

    @classmethod
    def zero(cls, bins: Tensor) -> "RatioSums":
        """Of nothing yet, given the length bin of each sequence."""
        by_seq = torch.zeros(NUM_SUMS, len(bins), dtype=torch.float64, device=bins.device)
        grid = by_seq.new_zeros(3, LANES * NUM_BINS * (GRID_CELLS + 1))
        near = by_seq.new_zeros(3, 2, NUM_BINS)
        return cls(by_seq, torch.zeros_like(by_seq[0]), grid, near, bins, by_seq.new_zeros(()))

    def add(self, sums: Float[Tensor, "14 R"], seq: Int[Tensor, " R"], rows: Callable[[Tensor | None], Rows]) -> None:
        """Add rows, all those that their sequences have.

        Args:
            sums: what `row_sums` makes of them.
            seq: sequence of each row.
            rows: gives some of the rows again, or all for None, to look at closely.
        """
        top, low = sums[-2:]
        near = (top < NEAR) & (low > -NEAR)
        for which in _some(near.logical_not()):
            l, _ = rows(which)
            self._sort(l.exp(), seq if which is None else seq[which])
        sums = sums[:-2].double()
        if may_look(near):
            n, below, tv, tv2, r, r2 = torch.where(near, sums[[0, 6, 4, 5, 8, 9]], 0).unbind()
            less = torch.stack([below, below - tv, below - 2 * tv + tv2])
            both = torch.stack([less, torch.stack([n, r, r2]) - less], 1)
            self.near.index_add_(2, self.bins[seq], both)
        self.by_seq.index_add_(1, seq, self._scaled(sums, top, seq, rows))
        self.low = torch.minimum(self.low, low.amin().double())

    def _scaled(self, sums: Tensor, top: Tensor, seq: Tensor, rows: Callable[[Tensor | None], Rows]) -> Tensor:
        """Make the powers of rows again, where one could overflow, and give each sequence one shift."""
        steps = (top.clamp(min=0) / SHIFT_STEP).floor_() * SHIFT_STEP
        changed = False
        for which in _some(steps > 0):
            l, live = rows(which)
            down = steps if which is None else steps[which]
            sums[len(PLAIN) :, slice(None) if which is None else which] = torch.stack(
                _powers((l - down[:, None]).exp_().mul_(live))
            ).double()
            changed = True
        if not changed:
            return sums
        steps = steps.double()
        self.shift = self.shift.scatter_reduce(0, seq, steps, "amax")
        k = exponents(steps.device)
        sums[len(PLAIN) :] *= torch.exp(k * (steps - self.shift[seq]))
        return sums

    def _sort(self, r: Tensor, seq: Tensor) -> None:
        """Add ratios to the cell that each is in; a slot without a unit adds a ratio of 1."""
        # The exponent of r^2 counts half octaves, exactly.
        r2 = r * r
        double = r.dtype == torch.float64
        exponent, bias = (r2.view(torch.int64) >> 52, 1023) if double else (r2.view(torch.int32) >> 23, 127)
        index = (exponent - (bias - ONE)).clamp_(0, GRID_CELLS)
        lane = (torch.arange(r.shape[1], device=r.device) % LANES) * (self.grid.shape[1] // LANES)
        index = index.add_((self.bins[seq] * (GRID_CELLS + 1)).to(index.dtype)[:, None]).long().add_(lane).view(-1)
        r, r2 = r.double().view(-1), r2.double().view(-1)
        self.grid[0].scatter_add_(0, index, torch.ones_like(r))
        self.grid[1].scatter_add_(0, index, r)
        self.grid[2].scatter_add_(0, index, r2)

    def cells(self, units: Float[Tensor, " bins"]) -> Float[Tensor, "3 bins cells"]:
        """The grid: counts, and sums of r and of r^2, these 0 in the cell over the top.

        Args:
            units: of each length bin.
        """
        grid = self.grid.view(3, LANES, NUM_BINS, GRID_CELLS + 1).sum(1)
        grid[1:, :, -1] = 0
        # What is left of a difference of equal sums is rounding.
        grid[:, :, ONE - 1 : ONE + 1] += torch.where(self.near[0] > 0, self.near, 0).transpose(1, 2)
        grid[:, :, ONE] -= grid[0].sum(-1) - units  # the slots without a unit
        return grid


def _some(flags: Tensor) -> list[Tensor | None]:
    """Where the flags are set, a part at a time; all of them, as None, if values may not be looked at."""
    if not may_look(flags):
        return [None]
    which = flags.nonzero().squeeze(1)
    return [*which.split(CHUNK_ROWS)] if len(which) else []
