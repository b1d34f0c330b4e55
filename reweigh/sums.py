"""The sums over one batch that `RatioStats` is made of: by sequence, by length, by cell of a grid, by block."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from reweigh.batch import Batch, Layout
from reweigh.levels import Level, heads

# The grid of caps: half octaves, 2^-4 to 2^20. Cell 0 is below the grid, the last cell above it.
GRID_LOW, GRID_STEP, GRID_CELLS = -4 * math.log(2), math.log(2) / 2, 49
GRID_TOP = GRID_LOW + (GRID_CELLS - 1) * GRID_STEP  # log of the largest cap, nats
CAPS = tuple(math.exp(GRID_LOW + i * GRID_STEP) for i in range(GRID_CELLS))
# Length bins: below 16, then octaves, then 65,536 and over.
LENGTH_EDGES = tuple(2**k for k in range(4, 17))
NUM_BINS = len(LENGTH_EDGES) + 1
POWERS = (0.5, 1.0, 2.0, 3.0, 4.0)
BLOCK_SIZES = (16, 128, 1024)  # tokens; for extrapolating the second moment to another length
NUM_BUCKETS = 64  # clusters are hashed into this many; df of the clustered intervals is at most one less
SHIFT_STEP = 16.0  # nats: shifts are multiples, so that as a rule they are 0 and merging rounds nothing
TOP = 256  # largest log ratios kept, for the tail index: enough for 3 sqrt(n) up to n = 7,000, a fixed tail beyond

# Rows of `moments`: per length bin, float64, additive.
MOMENTS = (
    "n",  # units
    "seqs",  # sequences with a unit
    "l",  # sum of l = log ratio
    "l2",  # sum of l^2
    "abs",  # sum of |l|
    "tv",  # sum of (1 - r)_+
    "tv2",  # its squares
    "pd",  # sum over tokens of |pi - mu|: per-state TV is at least that
    "pu",  # sum over tokens of 1 - min(pi, mu): per-state TV is at most that
    "hybrid",  # sum over sequences of sum_t (min(r_t, top of grid) - r)_+
    "hybrid2",  # its squares
    "tokens",  # tokens
)
# Columns of `clusters`: per bucket, additive after the shift.
CLUSTER = ("n", "l", "abs", "l2", "tv", "w1", "w2")


@dataclass(frozen=True, eq=False)
class Units:
    """Unit values and what it takes to sum them by sequence, whichever layout or level they have."""

    layout: Layout
    valid: Tensor
    l: Tensor  # 0 where not valid, as is any function of it that is 0 at 0
    bins: Tensor
    per_seq: bool

    @classmethod
    def of(cls, layout: Layout, l: Tensor, bins: Tensor, level: Level) -> "Units":
        """Units of a level from its folded values."""
        if level.unit == "sequence":
            # There are few of them: float64 costs nothing, and then the shift leaves no rounding behind.
            return cls(layout, layout.lengths > 0, l.double(), bins, True)
        valid = heads(layout) if level.unit == "turn" else layout.mask
        return cls(layout, valid, torch.where(valid, l, 0) if level.unit == "turn" else l, bins, False)

    def rows(self, x: Tensor) -> Tensor:
        """Sum of x, which is 0 where there is no unit, over each sequence: `[S]`, float64."""
        return x if self.per_seq else self.layout.sum_zeroed(x).double()

    def at(self, by_bin: Tensor) -> Tensor:
        """Each unit's value of something by length bin."""
        s = by_bin[self.bins].to(self.l.dtype)
        return s if self.per_seq else self.layout.spread(s)

    def exp(self, shift: Tensor) -> Tensor:
        """e^(l - shift), 0 where there is no unit."""
        return torch.where(self.valid, torch.exp(self.l - self.at(shift)), 0)

    def max_by_bin(self) -> Tensor:
        """Largest l of each length bin, -inf if it has none."""
        x = torch.where(self.valid, self.l, -torch.inf)
        start = torch.full((NUM_BINS,), -torch.inf, dtype=torch.float64, device=x.device)
        return start.scatter_reduce(0, self.bins, (x if self.per_seq else self.layout.max(x)).double(), "amax")

    def lowest(self) -> Tensor:
        """Largest -l."""
        return torch.where(self.valid, -self.l, -torch.inf).amax().double()

    def largest(self, count: int) -> Tensor:
        """The `count` largest l in falling order, -inf after the last."""
        flat, width = torch.where(self.valid, self.l, -torch.inf).flatten(), 256
        short = max(0, count - flat.numel())
        flat = torch.cat([flat, flat.new_full((short + -(flat.numel() + short) % width,), -torch.inf)])
        rows = flat.view(-1, width)
        if rows.shape[0] > count:
            # The `count` largest lie in the `count` rows with the largest maxima: one cheap pass, then a small top-k.
            rows = rows[rows.amax(-1).topk(count).indices]
        return rows.flatten().topk(count).values.double()

    def grid(self, r: Tensor) -> Tensor:
        """Count, sum of r and sum of r^2 by length bin and grid cell."""
        cell = ((self.l - (GRID_LOW - GRID_STEP)) * (1 / GRID_STEP)).clamp(0, GRID_CELLS).long()
        size = NUM_BINS * (GRID_CELLS + 1)
        start = self.bins * (GRID_CELLS + 1)
        index = cell + (start if self.per_seq else self.layout.spread(start))
        index = torch.where(self.valid, index, size).flatten()
        r = torch.where(self.l < GRID_TOP, r, 0).flatten().double()
        sums = [torch.zeros(size + 1, dtype=torch.float64, device=r.device).index_add(0, index, x) for x in (r, r * r)]
        count = torch.zeros(size + 1, dtype=torch.int64, device=r.device).index_add(0, index, torch.ones_like(index))
        return torch.stack([count.double(), *sums])[:, :size].view(3, NUM_BINS, GRID_CELLS + 1)


def length_bin(lengths: Tensor) -> Tensor:
    """Length bin of each sequence."""
    edges = torch.tensor(LENGTH_EDGES, device=lengths.device)
    return (lengths[:, None] >= edges).sum(-1)


def sum_by_bin(rows: Tensor, bins: Tensor) -> Tensor:
    """Sum `[K, S]` over the sequences of each length bin: `[K, bins]`."""
    return torch.zeros(rows.shape[0], NUM_BINS, dtype=torch.float64, device=rows.device).index_add(1, bins, rows)


def bucket(batch: Batch) -> Tensor:
    """Bucket of each sequence's cluster: by hash of its group, or by its place if it has none."""
    key = batch.group
    if key is None:
        key = torch.arange(batch.layout.num_seqs, device=batch.log_pi.device)
        return key % NUM_BUCKETS
    # Multiplicative hashing (Knuth): the high bits of key times a large odd number.
    return (key.long() * 0x9E3779B97F4A7C1 >> 40) % NUM_BUCKETS


def gaps(batch: Batch) -> tuple[Tensor, Tensor]:
    """Bounds of the total variation at visited states: sums of |pi - mu| and 1 - min(pi, mu), and the largest gap."""
    layout, lr = batch.layout, batch.log_ratio
    mu = torch.exp(torch.where(layout.mask, batch.log_mu.detach(), -torch.inf).to(lr.dtype))
    gap = mu * torch.expm1(lr)  # pi - mu
    shortfall = layout.sum_zeroed(gap.clamp(max=0)) + layout.sum_zeroed(mu)  # of min(pi, mu)
    sums = torch.stack([layout.sum_zeroed(gap.abs()), layout.lengths - shortfall]).double()
    return sums, torch.where(layout.mask, gap.abs(), -torch.inf).amax().double()


def hybrid(batch: Batch, l: Tensor) -> Tensor:
    """Per sequence, `sum_t (r_t - r)_+`: its mean bounds the bias of token importance sampling."""
    r_seq = torch.exp(l.clamp(max=GRID_TOP))
    r_tok = torch.exp(batch.log_ratio.clamp(max=GRID_TOP))
    return batch.layout.sum((r_tok - batch.layout.spread(r_seq)).clamp(min=0)).double()


def _take(values: Tensor, index: Tensor) -> Tensor:
    return values[index]


def blocks(batch: Batch, lengths: Tensor) -> Tensor:
    """For each block size: whole blocks of live tokens, the shifted sums of their ratio's square and fourth power."""
    layout, mask = batch.layout, batch.layout.mask
    rank = layout.cumsum(mask.float()) - 1  # float32 counts exactly to 2^24, and is much faster than int64
    values, rows, previous = batch.log_ratio.flatten(), [], 1
    at = layout.spread
    for size in BLOCK_SIZES:
        per_seq = (lengths + size - 1) // size  # the last one may not be whole
        ends = per_seq.cumsum(0)
        start = ends - per_seq
        # A bound that shapes alone give: the number of blocks is a value, and reading it would stop the device.
        bound = values.numel() // (size // previous) + layout.num_seqs + 1
        index = (rank * (previous / size)).floor().clamp(min=0) + at(start.float())
        values = values.new_zeros(bound).index_add(0, index.flatten().long().clamp(max=bound - 1), values)
        slot = torch.arange(bound, device=values.device)
        bump = torch.zeros(bound + 1, dtype=torch.int64, device=values.device)
        seq = bump.index_add(0, ends, torch.ones_like(ends)).cumsum(0)[:bound].clamp(max=layout.num_seqs - 1)
        rank, at = (slot - start[seq]).float(), partial(_take, index=seq)
        whole = (slot < ends[-1]) & ((rank + 1) * size <= lengths[seq])
        x = torch.where(whole, values.double(), -torch.inf)
        shift = x.amax().clamp(min=0)
        e2 = torch.exp(2 * (x - shift))
        rows.append(torch.stack([whole.sum().double(), e2.sum(), e2.square().sum(), shift]))
        previous = size
    return torch.stack(rows)
