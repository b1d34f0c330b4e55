"""Sums over raw ratios that merge: over micro-batches, ranks and files, all with one `+`."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reweigh.batch import Batch, tame
from reweigh.layout import CHUNK_ROWS, WIDTH, Packed, Padded, Tiles, in_a_graph, may_look, ones_of, operator
from reweigh.levels import SEQUENCE, TOKEN, TURN, Level, heads

# The grid of caps: half octaves, 2^-4 to 2^20. Cell 0 is below the grid, the last cell above it.
GRID_LOW, GRID_STEP, GRID_CELLS = -4 * math.log(2), math.log(2) / 2, 49
GRID_TOP = GRID_LOW + (GRID_CELLS - 1) * GRID_STEP  # log of the largest cap, nats
CAPS = tuple(math.exp(GRID_LOW + i * GRID_STEP) for i in range(GRID_CELLS))
# Length bins: below 16, then octaves, then 65,536 and over.
FIRST_EDGE = 4
LENGTH_EDGES = tuple(2**k for k in range(FIRST_EDGE, 17))
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
# Columns of `clusters`: per bucket, additive after the shift.
CLUSTER = ("n", "l", "abs", "l2", "tv", "w1", "w2")


def length_bin(lengths: Tensor) -> Tensor:
    """Length bin of each sequence."""
    # Made on the device: a copy from the host would wait for it.
    edges = 2 ** torch.arange(FIRST_EDGE, FIRST_EDGE + NUM_BINS - 1, device=lengths.device)
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
    return bucket_of(key)


def bucket_of(group: Tensor) -> Tensor:
    """Bucket of each cluster's hash."""
    # Multiplicative hashing (Knuth): the high bits of key times a large odd number.
    return (group.long() * 0x9E3779B97F4A7C1 >> 40) % NUM_BUCKETS


def exponents(device: torch.device) -> Tensor:
    """`POWERS` as `[5, 1]`, made on the device."""
    whole = torch.arange(len(POWERS), dtype=torch.float64, device=device)
    return torch.where(whole > 0, whole, POWERS[0])[:, None]


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


def rows_of(batch: Batch, tiles: Tiles) -> tuple[Tensor, Tensor, Tensor]:
    """Of some rows, `[R, 64]`: log ratios, 0 where there is no token; 1.0 where there is one; and log mu, as it stands.

    Args:
        batch: the tokens.
        tiles: which rows.
    """
    dtype = batch.dtype
    live = ones_of(tiles.take(batch.layout.mask), dtype)
    log_mu = tiles.take(batch.log_mu).to(dtype)
    if batch.given is not None:
        return tiles.take(batch.given).to(dtype), live, log_mu
    return tame(tiles.take(batch.log_pi).to(dtype) - log_mu).mul_(live), live, log_mu


def turn_batch(batch: Batch) -> Batch:
    """The batch whose tokens are the first of each turn, and whose log ratios are the turns'."""
    first = heads(batch.layout)
    values = torch.where(first, TURN.fold(batch.log_ratio, batch.layout), 0)
    return Batch(batch.log_pi, batch.log_mu, batch.layout.masked(first), given=values)


def gaps(log_mu: Float[Tensor, "R W"], l: Float[Tensor, "R W"], live: Float[Tensor, "R W"]) -> list[Tensor]:
    """Bounds of the total variation at visited states: of each row the sums of |pi - mu| and 1 - min(pi, mu).

    Returns:
        The sums, each `[R]`, and each row's largest |pi - mu|.
    """
    log_mu = tame(log_mu * live)
    pi, mu = (log_mu + l).exp_(), log_mu.exp_()  # both 1 where there is no token
    most = torch.rsub(torch.minimum(pi, mu), 1).sum(-1)
    gap = pi.sub_(mu).abs_()
    return [gap.sum(-1), most, gap.amax(-1)]


def over_sequence(
    r: Float[Tensor, "R W"], live: Float[Tensor, "R W"], total: Float[Tensor, " R"]
) -> Float[Tensor, " R"]:
    """Of each row, the sum over its tokens of `(min(r_t, top of the grid) - r)_+`, r being the sequence's ratio.

    Args:
        r: token ratios.
        live: 1.0 where there is a token.
        total: log ratio of each row's sequence.
    """
    top = math.exp(GRID_TOP)
    whole = total.clamp(max=GRID_TOP).exp().to(r.dtype)
    return (r.clamp(max=top) - whole[:, None]).relu_().mul_(live).sum(-1)


def smallest_blocks(l: Float[Tensor, "R W"], live: Float[Tensor, "R W"]) -> Float[Tensor, "R blocks"]:
    """Log ratio of each block of 16 slots, -inf unless all of them are tokens."""
    size = BLOCK_SIZES[0]
    whole = live.view(len(l), -1, size).sum(-1) == size
    return torch.where(whole, l.view(len(l), -1, size).sum(-1), -torch.inf)


def blocks(smallest: Float[Tensor, "R blocks"], seq: Int[Tensor, " R"], place: Int[Tensor, " R"]) -> Tensor:
    """For each block size: whole blocks, the shifted sums of their ratio's square and fourth power, and the shift.

    Args:
        smallest: what `smallest_blocks` made of all rows, in order.
        seq: sequence of each row.
        place: its number in the sequence.
    """
    rows, wide = [_block_sums(smallest)], smallest.double().sum(1)
    for size in BLOCK_SIZES[1:]:
        each = size // WIDTH
        group = place // each
        changes = (seq[1:] != seq[:-1]) | (group[1:] != group[:-1])
        into = torch.cat([torch.zeros_like(seq[:1]), changes.long()]).cumsum(0)
        whole = torch.isfinite(wide)
        found = torch.zeros_like(wide).index_add_(0, into, whole.double())
        total = torch.zeros_like(wide).index_add_(0, into, torch.where(whole, wide, 0))
        rows.append(_block_sums(torch.where(found == each, total, -torch.inf)))
    return torch.stack(rows)


def _block_sums(x: Tensor) -> Tensor:
    shift = x.amax().double().clamp(min=0)
    e2 = (2 * (x - shift.to(x.dtype))).exp_()
    squares, fourths = e2.sum(dtype=torch.float64), e2.square().sum(dtype=torch.float64)
    return torch.stack([(x > -torch.inf).sum().double(), squares, fourths, shift])


def largest(batch: Batch, tiles: Tiles, tops: Float[Tensor, " R"], count: int) -> Tensor:
    """The `count` largest log ratios in falling order, -inf after the last.

    Args:
        batch: the tokens.
        tiles: all of its rows.
        tops: the largest log ratio of each.
        count: how many.
    """
    if len(tops) > count:  # they lie in the rows with the largest maxima
        tiles = tiles[tops.topk(count).indices.sort().values]
    l, live, _ = rows_of(batch, tiles)
    return top_of(torch.where(live > 0, l, -torch.inf), count)


def top_of(l: Tensor, count: int) -> Tensor:
    """The `count` largest in falling order, -inf after the last, float64."""
    flat = l.flatten()
    short = max(0, count - flat.numel())
    flat = torch.cat([flat, flat.new_full((short,), -torch.inf)]) if short else flat
    return flat.topk(count).values.double()


HELD_ROWS = 8 * CHUNK_ROWS  # sums of rows that are held before they are brought to sequences
NUM_SUMS_AND_ENDS = NUM_SUMS + 2


@dataclass(frozen=True, eq=False)
class Measured:
    """What one level's stats are made of, by sequence where that is possible.

    Attributes:
        ratios: sums over the level's ratios.
        top: `[256]`, the largest log ratios in falling order, -inf after the last.
        gap: `[2, S]`: sums of |pi - mu| and of 1 - min(pi, mu); 0 but at TOKEN level.
        largest_gap: 0-d, the largest |pi - mu|; -inf but at TOKEN level.
        over: `[S]`: sum of `(min(r_t, top of the grid) - r)_+`; 0 but at SEQUENCE level, as is what follows.
        longer: `[S]`: `(min(r, top of the grid) - 1)` times the length.
        blocks: `[3, 4]`, see `RatioStats`.
    """

    ratios: RatioSums
    top: Tensor
    gap: Tensor
    largest_gap: Tensor
    over: Tensor
    longer: Tensor
    blocks: Tensor


def measure(batch: Batch, *, token: bool, sequence: bool) -> dict[str, Measured]:
    """Measure the levels asked for, by name, in one pass over the tokens.

    Args:
        batch: the tokens.
        token: whether to measure token ratios.
        sequence: whether to measure sequence ratios.
    """
    layout = batch.layout
    tiles, _ = layout.tiles
    bins = length_bin(layout.lengths)
    none = torch.zeros(layout.num_seqs, dtype=torch.float64, device=bins.device)
    total, over = none.clone(), none.clone()
    sums: list[Tensor] = []
    pending = _Pending(batch, tiles, bins)
    small: list[Tensor] = []
    for part in tiles.parts if token or sequence else ():
        l, live, log_mu = rows_of(batch, part)
        if token:
            sums, r = row_sums(l, live)
            pending.add([*sums, *gaps(log_mu, l, live)])
        else:
            r = l.exp()
        if sequence:
            total.index_add_(0, part.seq, (sums[1] if token else l.sum(-1)).double())
            # No sequence is in two parts, so those of this one are summed by now.
            over.index_add_(0, part.seq, over_sequence(r, live, total[part.seq]).double())
            small.append(smallest_blocks(l, live))
    out: dict[str, Measured] = {}
    if token:
        out["token"] = pending.measured()
    if sequence:
        some = layout.lengths > 0
        l = torch.where(some, total, 0)
        longer = (torch.exp(l.clamp(max=GRID_TOP)) - 1) * layout.lengths
        top = top_of(torch.where(some, l, -torch.inf), TOP)
        of_blocks = blocks(torch.cat(small), tiles.seq, tiles.place)
        out["sequence"] = _of_units(_of_sequences(l, some, bins), top, over=over, longer=longer, blocks=of_blocks)
    return out


def measure_turns(batch: Batch) -> Measured:
    """Measure the ratios of turns."""
    bins, units = length_bin(batch.layout.lengths), turn_batch(batch)
    tiles, _ = units.layout.tiles
    pending = _Pending(units, tiles, bins)
    for part in tiles.parts:
        pending.add(row_sums(*rows_of(units, part)[:2])[0])
    return pending.measured()


class _Pending:
    """What is summed by row, and brought to sequences some thousand rows at a time, so that little of it is held."""

    def __init__(self, batch: Batch, tiles: Tiles, bins: Tensor) -> None:
        self.batch, self.tiles = batch, tiles
        self.ratios = RatioSums.zero(bins)
        self.gap = self.ratios.shift.new_zeros(2, len(bins))
        self.largest_gap = self.gap.new_full((), -torch.inf)
        self.tops: list[Tensor] = []
        self._columns: list[list[Tensor]] = []
        self._held = self._done = 0

    def add(self, columns: list[Tensor]) -> None:
        """Add the rows of the next part: what `row_sums` gives, and then what `gaps` gives, if it is known."""
        self._columns.append(columns)
        self._held += len(columns[0])
        if may_look(columns[0]) and self._held >= HELD_ROWS:
            self._flush()

    def _flush(self) -> None:
        columns = [torch.cat(column) for column in zip(*self._columns, strict=True)]
        # All rows are the tiles themselves, which know how to be read without an index an element.
        whole = self._held == len(self.tiles)
        group = self.tiles if whole else self.tiles[self._done : self._done + self._held]
        sums, gap = columns[:NUM_SUMS_AND_ENDS], columns[NUM_SUMS_AND_ENDS:]
        self.tops.append(sums[-2])
        self.ratios.add(
            torch.stack(sums), group.seq, lambda which: self._rows(group if which is None else group[which])
        )
        if gap:
            *both, largest_of_rows = gap
            self.gap.index_add_(1, group.seq, torch.stack(both).double())
            self.largest_gap = torch.maximum(self.largest_gap, largest_of_rows.amax().double())
        self._done, self._held, self._columns = self._done + self._held, 0, []

    def _rows(self, tiles: Tiles) -> Rows:
        l, live, _ = rows_of(self.batch, tiles)
        return l, live

    def measured(self) -> Measured:
        """Of all rows that were added."""
        if self._columns:
            self._flush()
        top = largest(self.batch, self.tiles, torch.cat(self.tops), TOP)
        return _of_units(self.ratios, top, gap=self.gap, largest_gap=self.largest_gap)


def _of_sequences(l: Tensor, some: Tensor, bins: Tensor) -> RatioSums:
    """Sums of the sequences' own ratios: rows of one unit."""
    l, live = l[:, None], some.double()[:, None]
    ratios, everyone = RatioSums.zero(bins), torch.arange(len(l), device=l.device)
    sums, _ = row_sums(l, live)
    ratios.add(torch.stack(sums), everyone, lambda which: (l, live) if which is None else (l[which], live[which]))
    return ratios


def _of_units(
    ratios: RatioSums,
    top: Tensor,
    *,
    gap: Tensor | None = None,
    largest_gap: Tensor | None = None,
    over: Tensor | None = None,
    longer: Tensor | None = None,
    blocks: Tensor | None = None,
) -> Measured:
    none = torch.zeros_like(ratios.shift)
    return Measured(
        ratios,
        top,
        gap=none.new_zeros(2, len(none)) if gap is None else gap,
        largest_gap=none.new_full((), -torch.inf) if largest_gap is None else largest_gap,
        over=none if over is None else over,
        longer=none if longer is None else longer,
        blocks=none.new_zeros(len(BLOCK_SIZES), 4) if blocks is None else blocks,
    )


@dataclass(frozen=True, eq=False)
class RatioStats:
    """Every sum of raw ratios that a later question may need, at one level; `a + b` is the stats of both.

    With l the log ratio of a unit and, per length bin, a shift just below `max(0, max l)`, no stored power overflows:
    a sequence ratio of e^300 is no special case, and merging rescales by the exp of a difference of shifts.
    Nothing here synchronises with the host; `summarise(stats)` does, once.

    All tensors are float64; what comes from tokens is computed in float32 or better and summed in float64.

    Attributes:
        level: TOKEN, TURN or SEQUENCE: whose ratios these are.
        moments: `[13, bins]`, see `MOMENTS`, by length of the sequence.
        shift: `[bins]`, nats.
        powers: `[5, bins]`: sum of `e^(k (l - shift))` for k in `POWERS`.
        grid: `[3, bins, cells]`: count, sum of r and sum of r^2 of units in each cell of the log grid; only the count
            in the cell over the top.
        blocks: `[3, 4]`: for each block size the count of whole blocks, the shifted sums of r^2 and r^4, the shift.
        peaks: `[3]`: max l, max(0, -l), and at TOKEN level max |pi - mu|; -inf if there are none.
        top: `[256]`: the largest l, in falling order, -inf after the last.
        clusters: `[64, 7]`, see `CLUSTER`: sums by hash of the cluster (the prompt, or else the sequence); `w1` and
            `w2` are scaled by the largest shift.
        dropped: tokens of the mask that had a non-finite log-prob.
    """

    level: Level
    moments: Tensor
    shift: Tensor
    powers: Tensor
    grid: Tensor
    blocks: Tensor
    peaks: Tensor
    top: Tensor
    clusters: Tensor
    dropped: Tensor

    @classmethod
    def empty(cls, level: Level, device: Any = None) -> "RatioStats":
        """The stats of nothing: the zero of `+`."""
        zero = torch.zeros((), dtype=torch.float64, device=device)
        return cls(
            level,
            moments=zero.new_zeros(len(MOMENTS), NUM_BINS),
            shift=zero.new_zeros(NUM_BINS),
            powers=zero.new_zeros(len(POWERS), NUM_BINS),
            grid=zero.new_zeros(3, NUM_BINS, GRID_CELLS + 1),
            blocks=zero.new_zeros(len(BLOCK_SIZES), 4),
            peaks=zero.new_full((3,), -torch.inf),
            top=zero.new_full((TOP,), -torch.inf),
            clusters=zero.new_zeros(NUM_BUCKETS, len(CLUSTER)),
            dropped=zero,
        )

    @classmethod
    def of(cls, batch: Batch, level: Level) -> "RatioStats":
        """Stats of a batch's raw ratios at a level. No host sync; `torch.compile(fullgraph=True)`-clean.

        Args:
            batch: its `group`, if given, says which sequences are one cluster; else each sequence is its own.
            level: TOKEN, TURN or SEQUENCE.

        Raises:
            ValueError: at another level, whose values are not ratios of what was sampled.
        """
        return cls.of_levels(batch, (level,))[0]

    @classmethod
    def of_levels(cls, batch: Batch, levels: Sequence[Level]) -> "tuple[RatioStats, ...]":
        """Stats at several levels; TOKEN and SEQUENCE together take one pass over the tokens in place of two.

        Args:
            batch: as of `of`.
            levels: each TOKEN, TURN or SEQUENCE.

        Raises:
            ValueError: at another level.

        Example:
            >>> import torch
            >>> from reweigh import SEQUENCE, TOKEN, Batch, RatioStats
            >>> batch = Batch.padded(torch.full((30, 4), -1.0), torch.full((30, 4), -1.5), torch.ones(30, 4))
            >>> token, sequence = RatioStats.of_levels(batch, (TOKEN, SEQUENCE))
            >>> token.moments[0].sum().item(), sequence.moments[0].sum().item()
            (120.0, 30.0)
        """
        for level in levels:
            if level.name not in ("token", "turn", "sequence"):
                raise ValueError(f"RatioStats.of: level must be TOKEN, TURN or SEQUENCE, got {level.name.upper()}")
        if in_a_graph(batch.log_pi):
            return _in_one_call(batch, levels)
        if batch.layout.num_seqs == 0 or batch.log_pi.numel() == 0 or len(batch.layout.tiles[0]) == 0:
            empty = (cls.empty(level, batch.log_pi.device) for level in levels)
            return tuple(replace(e, dropped=_count(batch.dropped, e.dropped)) for e in empty)
        names = [level.name for level in levels]
        passed = measure(batch, token="token" in names, sequence="sequence" in names)
        return tuple(cls._made(batch, level, passed.get(level.name) or measure_turns(batch)) for level in levels)

    @classmethod
    def _made(cls, batch: Batch, level: Level, m: Measured) -> "RatioStats":
        """Bring what was measured by sequence to length bins and clusters."""
        ratios, lengths, bins = m.ratios, batch.layout.lengths, m.ratios.bins
        plain, powers = ratios.by_seq.split([len(PLAIN), len(POWERS)])
        n, l1, l2, abs_l, tv, tv2, _ = plain
        shift = n.new_zeros(NUM_BINS).scatter_reduce(0, bins, ratios.shift, "amax")
        k = exponents(n.device)
        seq_powers = powers * torch.exp(k * (ratios.shift - shift[bins]))
        some = (n > 0).double()
        moments = torch.stack(
            [n, some, l1, l2, abs_l, tv, tv2, *m.gap, m.over, m.over * m.over, m.longer, lengths * some]
        )
        by_bin = sum_by_bin(torch.cat([moments, seq_powers]), bins)
        moments, powers = by_bin.split([len(MOMENTS), len(POWERS)])
        down = torch.exp(shift - shift.max())[bins]
        per_cluster = torch.stack([n, l1, abs_l, l2, tv, seq_powers[1] * down, seq_powers[2] * down.square()], -1)
        empty = cls.empty(level, n.device)
        return cls(
            level,
            moments=moments,
            shift=shift,
            powers=powers,
            grid=ratios.cells(moments[0]),
            blocks=m.blocks,
            peaks=torch.stack([m.top[0], torch.where(n.sum() > 0, -ratios.low, -torch.inf), m.largest_gap]),
            top=m.top,
            clusters=empty.clusters.index_add(0, bucket(batch), per_cluster),
            dropped=_count(batch.dropped, empty.dropped),
        )

    def __add__(self, other: "RatioStats") -> "RatioStats":
        """The stats of both, as if they had been one batch.

        Raises:
            ValueError: if the levels differ.
        """
        if self.level.name != other.level.name:
            raise ValueError(f"RatioStats: cannot add {self.level.name} stats and {other.level.name} stats")
        shift = torch.maximum(self.shift, other.shift)
        block_shift = torch.maximum(self.blocks[:, 3], other.blocks[:, 3])
        a, b = self.rescaled(shift, block_shift), other.rescaled(shift, block_shift)
        return RatioStats(
            self.level,
            a.moments + b.moments,
            shift,
            a.powers + b.powers,
            a.grid + b.grid,
            torch.cat([a.blocks[:, :3] + b.blocks[:, :3], block_shift[:, None]], 1),
            torch.maximum(a.peaks, b.peaks),
            torch.cat([a.top, b.top]).topk(TOP).values,
            a.clusters + b.clusters,
            a.dropped + b.dropped,
        )

    def rescaled(self, shift: Tensor, block_shift: Tensor) -> "RatioStats":
        """The same stats written with other shifts: `[bins]` and `[3]`, nats, no smaller than its own."""
        k = exponents(shift.device)
        down = torch.exp(self.blocks[:, 3] - block_shift)
        largest = torch.exp(self.shift.max() - shift.max())
        scale = torch.stack([torch.ones_like(largest)] * 5 + [largest, largest.square()])
        sums = self.blocks[:, :3] * torch.stack([torch.ones_like(down), down**2, down**4], 1)
        return RatioStats(
            self.level,
            moments=self.moments,
            shift=shift,
            powers=self.powers * torch.exp(k * (self.shift - shift)),
            grid=self.grid,
            blocks=torch.cat([sums, block_shift[:, None]], 1),
            peaks=self.peaks,
            top=self.top,
            clusters=self.clusters * scale,
            dropped=self.dropped,
        )


def _count(flags: Tensor | None, zero: Tensor) -> Tensor:
    return zero if flags is None else flags.sum(dtype=torch.int32).double()


def _in_one_call(batch: Batch, levels: Sequence[Level]) -> tuple[RatioStats, ...]:
    """The same from a compiled graph on a CPU, which calls it as one operator.

    What is fast here, to look at values and to leave work out, a compiler cannot do.
    """
    layout = batch.layout
    offsets = layout.offsets if isinstance(layout, Packed) else None
    own = (batch.log_pi.detach(), batch.log_mu.detach(), layout.mask, offsets)
    names = ",".join(level.name for level in levels)
    flat = _stats_op(*own, layout.turn, batch.group, batch.dropped, batch.given, names)
    each = len(flat) // len(levels)
    return tuple(RatioStats(level, *flat[i * each : (i + 1) * each]) for i, level in enumerate(levels))


def _tensors(stats: RatioStats) -> list[Tensor]:
    return [getattr(stats, f.name) for f in fields(stats) if f.name != "level"]


def _stats_alone(
    log_pi: Tensor,
    log_mu: Tensor,
    mask: Tensor,
    offsets: Tensor | None,
    turn: Tensor | None,
    group: Tensor | None,
    dropped: Tensor | None,
    given: Tensor | None,
    levels: str,
) -> list[Tensor]:
    layout = Padded(mask, turn) if offsets is None else Packed(mask, offsets, turn)
    batch = Batch(log_pi, log_mu, layout, group=group, dropped=dropped, given=given)
    by_name = {level.name: level for level in (TOKEN, TURN, SEQUENCE)}
    found = RatioStats.of_levels(batch, [by_name[name] for name in levels.split(",")])
    return [x.clone() for stats in found for x in _tensors(stats)]  # no two may share memory


def _shapes(log_pi: Tensor, *rest: Any) -> list[Tensor]:
    """Neither the tokens nor the levels change the shapes."""
    return [x for _ in rest[-1].split(",") for x in _tensors(RatioStats.empty(TOKEN, log_pi.device))]


_stats_op = operator(
    "ratio_stats",
    _stats_alone,
    "(Tensor log_pi, Tensor log_mu, Tensor mask, Tensor? offsets, Tensor? turn, Tensor? group, Tensor? dropped,"
    " Tensor? given, str levels) -> Tensor[]",
    _shapes,
)
