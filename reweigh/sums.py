"""The sums over one batch that `RatioStats` is made of: by sequence, by length, by cell of a grid, by block."""

import math

import torch
from torch import Tensor

from reweigh.batch import Batch
from reweigh.layout import Layout, Padded
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
    "longer",  # sum over sequences of (min(r, top of grid) - 1) length: its mean is how much longer pi's responses are
    "tokens",  # tokens
)
# What `ratio_sums` sums over each sequence's units: moments l to tv2, then the powers.
ROWS = (*MOMENTS[2:7], *POWERS)
# Columns of `clusters`: per bucket, additive after the shift.
CLUSTER = ("n", "l", "abs", "l2", "tv", "w1", "w2")


# Copies of the grid that neighbouring units take turns in: nearly all fall into two cells, and adding to the same one
# again and again would wait for the last sum each time.
LANES = 8
CHUNK = 1 << 16  # slots worked on at a time: the few float32 arrays in use fit a core's second-level cache


Parts = list[tuple[slice, slice, Layout]]


def unit_values(batch: Batch, level: Level) -> tuple[Tensor, Layout]:
    """The level's log ratios, 0 where there is no unit, and the layout that sums units by sequence."""
    layout = batch.layout
    if level.unit == "sequence":
        # There are few of them: float64 costs nothing, and a sequence is a row of one unit.
        return level.fold(batch.log_ratio, layout).double()[:, None], Padded((layout.lengths > 0)[:, None])
    if level.unit == "turn":
        first = heads(layout)
        return torch.where(first, level.fold(batch.log_ratio, layout), 0), layout.masked(first)
    return level.fold(batch.log_ratio, layout), layout


def tops(live: Tensor, units: Layout, bins: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Largest l of each length bin, and the `count` largest of all in falling order; -inf where there is none.

    Args:
        live: log ratios, -inf where there is no unit.
        units: their layout.
        bins: length bin of each sequence.
        count: how many.
    """
    by_bin = torch.full((NUM_BINS,), -torch.inf, dtype=torch.float64, device=live.device)
    by_bin = by_bin.scatter_reduce(0, bins, units.max_floored(live).double(), "amax")
    flat, width = live.flatten(), 64
    short = max(0, count - flat.numel())
    pad = short + -(flat.numel() + short) % width
    rows = (torch.cat([flat, flat.new_full((pad,), -torch.inf)]) if pad else flat).view(-1, width)
    if rows.shape[0] > count:
        # The `count` largest lie in the `count` rows with the largest maxima: one cheap pass, then a small top-k.
        rows = rows[rows.amax(-1).topk(count).indices]
    return by_bin, rows.flatten().topk(count).values.double()


def ratio_sums(
    l: Tensor, live: Tensor, units: Layout, parts: Parts, bins: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """What is summed over units: the rows of `ROWS` by sequence, and the grid.

    Args:
        l: log ratios, 0 where there is no unit.
        live: log ratios, -inf where there is no unit.
        units: their layout.
        parts: its chunks.
        bins: length bin of each sequence.
        shift: `[bins]`, nats.

    Returns:
        `[10, S]`, and `[3, bins, cells]`: count, sum of r and sum of r^2, the latter two 0 in the cell over the top.
    """
    rows = torch.zeros(len(ROWS), units.num_seqs, dtype=torch.float64, device=l.device)
    cells = NUM_BINS * (GRID_CELLS + 1)
    grid = torch.zeros(3, LANES * cells, dtype=torch.float64, device=l.device)
    by_seq, start = shift[bins].to(l.dtype), (bins * (GRID_CELLS + 1)).to(l.dtype)
    widest = parts[0][2].mask.numel()  # the first part is as large as any
    lane = (torch.arange(LANES, device=l.device) * cells).to(l.dtype).repeat(widest // LANES + 1)
    one = torch.ones(widest, dtype=torch.float64, device=l.device)
    for tokens, seqs, part in parts:
        x, y, total = l[tokens], live[tokens], part.sum_zeroed
        e = (y - part.spread(by_seq[seqs])).exp_()
        e2 = e * e
        r = x.clamp(max=GRID_TOP).exp_()  # 1 where there is no unit
        below = (1 - r).clamp_(min=0)
        # Each product is summed as it is made: ten of them at once would not fit the cache.
        sums = [total(x), total(x * x), total(x.abs()), total(below), total(below * below)]
        sums += [total(e.sqrt()), total(e), total(e2), total(e2 * e), total(e2 * e2)]
        rows[:, seqs] += torch.stack(sums).double()
        cell = (y - (GRID_LOW - GRID_STEP)).mul_(1 / GRID_STEP).clamp_(0, GRID_CELLS).floor_()
        index = cell.add_(part.spread(start[seqs])).flatten().add_(lane[: cell.numel()]).long()
        r = r.flatten().double()
        grid[0].scatter_add_(0, index, one[: r.numel()])
        grid[1].scatter_add_(0, index, r)
        grid[2].scatter_add_(0, index, r * r)
    grid = grid.view(3, LANES, NUM_BINS, GRID_CELLS + 1).sum(1)
    grid[1:, :, -1] = 0
    # Slots without a unit were counted in the lowest cell, each with r = 1: take them out again.
    grid[:, :, 0] -= grid[0].sum(-1) - sum_by_bin(units.lengths[None].double(), bins)[0]
    return rows, grid


def gaps(batch: Batch, parts: Parts) -> tuple[Tensor, Tensor]:
    """Bounds of the total variation at visited states: sums of |pi - mu| and 1 - min(pi, mu), and the largest gap.

    Returns:
        `[2, S]`, and 0-d: -inf if there is no token.
    """
    layout, lr = batch.layout, batch.log_ratio
    rows = torch.zeros(2, layout.num_seqs, dtype=torch.float64, device=lr.device)
    peak = torch.full((), -torch.inf, dtype=lr.dtype, device=lr.device)
    for tokens, seqs, part in parts:
        log_mu = torch.where(part.mask, batch.log_mu.detach()[tokens], -torch.inf).to(lr.dtype)
        pi, mu = (log_mu + lr[tokens]).exp_(), log_mu.exp_()
        short = part.lengths - part.sum_zeroed(torch.minimum(pi, mu))
        gap = pi.sub_(mu).abs_()
        rows[:, seqs] += torch.stack([part.sum_zeroed(gap), short]).double()
        peak = torch.maximum(peak, gap.amax())
    return rows, torch.where(layout.lengths.sum() > 0, peak, -torch.inf).double()


def hybrid(batch: Batch, l: Tensor, parts: Parts) -> Tensor:
    """Per sequence, `sum_t (r_t - r)_+` over live tokens: half of what bounds the bias of token importance sampling.

    Where lengths vary, the other half is how much longer pi's responses are (`longer`): after its end a response has
    token ratios of 1, which no sum over its tokens sees.

    Args:
        batch: the tokens.
        l: `[S]`, log ratio of each sequence.
        parts: chunks of the batch's layout.
    """
    r = torch.exp(l.clamp(max=GRID_TOP)).to(batch.log_ratio.dtype)
    total = torch.zeros_like(l, dtype=torch.float64)
    for tokens, seqs, part in parts:
        over = batch.log_ratio[tokens].clamp(max=GRID_TOP).exp_().sub_(part.spread(r[seqs]))
        total[seqs] += part.sum(over.clamp_(min=0)).double()
    return total


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


def blocks(batch: Batch, parts: Parts) -> Tensor:
    """For each block size: whole blocks of live tokens, the shifted sums of their ratio's square and fourth power."""
    layout, lengths = batch.layout, batch.layout.lengths
    values, rows, previous = _smallest_blocks(batch, parts), [], BLOCK_SIZES[0]
    seq, rank, inside = _block_places(lengths, previous, values.numel())
    for size in BLOCK_SIZES:
        if size > previous:
            into = _block_starts(lengths, size)[seq] + rank // (size // previous)
            bound = values.numel() // (size // previous) + layout.num_seqs + 1
            values = values.new_zeros(bound).index_add(0, into.clamp(max=bound - 1), values)
            seq, rank, inside = _block_places(lengths, size, values.numel())
        whole = inside & ((rank + 1) * size <= lengths[seq])
        x = torch.where(whole, values.double(), -torch.inf)
        shift = x.amax().clamp(min=0)
        e2 = torch.exp(2 * (x - shift))
        rows.append(torch.stack([whole.sum().double(), e2.sum(), e2.square().sum(), shift]))
        previous = size
    return torch.stack(rows)


def _smallest_blocks(batch: Batch, parts: Parts) -> Tensor:
    """Log ratio of each block of the smallest size, sequence after sequence, 0 behind the last."""
    layout, lr, size = batch.layout, batch.log_ratio, BLOCK_SIZES[0]
    # A bound that shapes alone give: the number of blocks is a value, and reading it would stop the device.
    values = lr.new_zeros(lr.numel() // size + layout.num_seqs + 2)
    start = _block_starts(layout.lengths, size).float()  # exact to 2^24 blocks, and faster than int64
    done = torch.full_like(start, size - 1)
    for tokens, seqs, part in parts:
        # Counted from 1, so that slots before a sequence's first live token fall into the slot before its first block,
        # to which they add 0.
        block = part.cumsum_zeroed(part.mask.float()).add_(part.spread(done[seqs])).mul_(1 / size).floor_()
        index = block.add_(part.spread(start[seqs])).flatten().long()
        values.scatter_add_(0, index, lr[tokens].flatten())
        done[seqs] += part.lengths
    return values[1:]


def _block_starts(lengths: Tensor, size: int) -> Tensor:
    per_seq = (lengths + size - 1) // size  # the last one may not be whole
    return per_seq.cumsum(0) - per_seq


def _block_places(lengths: Tensor, size: int, slots: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each slot for a block: its sequence, its place there, and whether there is a block at all."""
    per_seq = (lengths + size - 1) // size
    ends = per_seq.cumsum(0)
    slot = torch.arange(slots, device=lengths.device)
    bump = torch.zeros(slots + 1, dtype=torch.int64, device=lengths.device)
    seq = bump.index_add(0, ends, torch.ones_like(ends)).cumsum(0)[:slots].clamp(max=len(lengths) - 1)
    return seq, slot - (ends - per_seq)[seq], slot < ends[-1]
