"""Sums over raw ratios that merge, over micro-batches, ranks and files, with one `+`; and their copy on the host."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from reweigh.batch import Batch, log_ratio_of, tame
from reweigh.layout import CHUNK_ROWS, WIDTH, Packed, Padded, Tiles, in_a_graph, may_look, ones_of, operator
from reweigh.levels import SEQUENCE, TOKEN, TURN, Level, heads
from reweigh.native import walk
from reweigh.stats.intervals import Interval, bounded, design_effect
from reweigh.transforms import MIN_TAIL, smoothed_tail, tail_length, tail_over

Array = NDArray[np.float64]

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
SERIES_LIMIT = 0.01  # nats: the first term left out, l^3 / 6, is then at most a third of a percent of l^2 / 2
TOP = 256  # largest log ratios kept, for the tail index: enough for 3 sqrt(n) up to n = 7,000, a fixed tail beyond

MIN_UNITS = 25  # fewer leave under five tail points for the tail index (Vehtari et al. 2024)
PLATEAU_STEP = math.log(2)  # nats of the largest ratio over a plateau; of less than twice it nobody fears a tail
TAIL_OF = 7225  # units whose tail, 3 sqrt(n) = 255 of them, is the one that was kept

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
        """Make the stats of nothing: the zero of `+`."""
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
        if not isinstance(batch, Batch):  # type: ignore[reportUnnecessaryIsInstance] - of a caller without types
            raise ValueError(
                f"RatioStats.of: takes a Batch, got {type(batch).__name__}\n"
                "hint: RatioStats.of(Batch.padded(log_pi, log_mu, mask), TOKEN), or .packed, or .from_lists."
            )
        for level in levels:
            if not isinstance(level, Level):  # type: ignore[reportUnnecessaryIsInstance]
                raise ValueError(
                    f"RatioStats.of: level must be a Level, got {level!r}\nhint: reweigh.TOKEN, SEQUENCE or TURN"
                )
            if level.name not in ("token", "turn", "sequence"):
                raise ValueError(f"RatioStats.of: level must be TOKEN, TURN or SEQUENCE, got {level.name.upper()}")
        if in_a_graph(batch.log_pi):
            return _in_one_call(batch, levels)
        if (made := _compiled(batch, levels)) is not None:
            return made
        if batch.layout.num_seqs == 0 or batch.log_pi.numel() == 0 or len(batch.layout.tiles[0]) == 0:
            return tuple(replace(cls.empty(x, batch.log_pi.device), dropped=_dropped(batch)) for x in levels)
        names = {level.name for level in levels}
        made = _in_one_pass(batch, token="token" in names, sequence="sequence" in names)
        if "turn" in names:
            made["turn"] = _of_turns(batch)
        return tuple(made[level.name] for level in levels)

    @cached_property
    def host(self) -> "HostSums":
        """Copy the sums to the host as NumPy arrays: one synchronisation, at the first call."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "level"}
        flat = torch.cat([t.reshape(-1) for t in tensors.values()]).cpu().numpy()
        parts = np.split(flat, np.cumsum([t.numel() for t in tensors.values()])[:-1])
        arrays = {name: part.reshape(tuple(tensors[name].shape)) for name, part in zip(tensors, parts, strict=True)}
        moments, clusters, dropped = (arrays.pop(name) for name in ("moments", "clusters", "dropped"))
        return HostSums(
            self.level.name,
            moments=dict(zip(MOMENTS, moments, strict=True)),
            clusters=dict(zip(CLUSTER, clusters.T, strict=True)),
            dropped=float(dropped),
            n=float(moments[0].sum()),
            total={name: float(row.sum()) for name, row in zip(MOMENTS, moments, strict=True)},
            shift_max=float(arrays["shift"].max()),
            tiny=bool(max(arrays["peaks"][0], arrays["peaks"][1]) < SERIES_LIMIT),
            **arrays,
        )

    def __add__(self, other: "RatioStats") -> "RatioStats":
        """Merge with other stats, as if both had been of one batch.

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
        """Write the stats with other shifts: `[bins]` and `[3]`, nats, no smaller than its own."""
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


@dataclass(frozen=True)
class HostSums:
    """`RatioStats` as NumPy arrays on the host; what is worked out of them alone is worked out once.

    Attributes, beside those of `RatioStats`:
        n: number of units.
        total: each of the moments over all length bins.
        shift_max: the largest shift, nats: what `clusters` is scaled by.
        tiny: whether all log ratios are so small that a series in them is exact to 0.5%, and sums of e^l are rounding.
    """

    level: str
    moments: dict[str, Array]
    shift: Array
    powers: Array
    grid: Array
    blocks: Array
    peaks: Array
    top: Array
    clusters: dict[str, Array]
    dropped: float
    n: float
    total: dict[str, float]
    shift_max: float
    tiny: bool

    @cached_property
    def variance(self) -> float:
        """Variance of the log ratio, nats squared."""
        return self.total["l2"] / self.n - (self.total["l"] / self.n) ** 2

    @cached_property
    def renyi2(self) -> float:
        """`log(n sum r^2 / (sum r)^2) = log(n / ESS)`, nats: log(1 + chi2), self-normalised.

        Dividing by the sample's own mean ratio takes out most of the noise that the mean of r^2 shares with it, and
        keeps the figure and the effective share of units one statement.
        """
        if self.tiny:  # the variance of the log ratio: float32 sums resolve it long after they have lost e^l - 1
            return max(0.0, self.variance)
        return math.log(self.n) + self.log_power(2.0) - 2 * self.log_power(1.0)

    @cached_property
    def effective_n(self) -> float:
        """Number of independent units that would know the total variation as well as these clustered ones do."""
        mean = self.total["tv"] / self.n
        variance = max(0.0, self.total["tv2"] / self.n - mean * mean)
        return self.n / design_effect(self.clusters["tv"], self.clusters["n"], self.n, variance)

    @cached_property
    def tv_interval(self) -> Interval:
        """95% interval of the total variation."""
        n = self.n
        return bounded(self.total["tv"] / n, self.total["tv2"] / n, n, self.effective_n)

    def log_power(self, k: float) -> float:
        """log of the sum of r^k over all units, nats; -inf if there are none."""
        row = self.powers[POWERS.index(k)]
        top = k * self.shift_max
        total = float((row * np.exp(k * self.shift - top)).sum())
        if total > 0:
            return math.log(total) + top
        # Every ratio is below what a float64 can hold: the largest ones, kept as logs, are what there is to go by.
        largest = k * self.top[np.isfinite(self.top)]
        return float(np.logaddexp.reduce(largest)) if len(largest) else -math.inf

    @cached_property
    def tail(self) -> "TailFit":
        """Fit a Pareto tail to the largest ratios."""
        top = self.top[np.isfinite(self.top)]
        n = int(min(self.n, TAIL_OF))
        if n < MIN_UNITS:
            return TailFit()
        # Only the tail is read, so what stands for the body may be anything below it.
        sample = np.full(n, top[-1] - 1.0)
        sample[: min(n, len(top))] = top[:n]
        fit, most = smoothed_tail(sample), tail_length(n)
        foot, over, different = tail_over(np.sort(sample))
        if fit is not None:
            return TailFit(fit[1], np.sort(fit[0])[::-1][: min(most, len(top))], plateau=most - over)
        if top[0] - foot <= PLATEAU_STEP:
            return TailFit()  # all alike, or as good as
        why = "the Pareto fit to the largest ratios is not finite"
        if different < MIN_TAIL:
            some = "" if different == over else f", in {different} different values"
            why = (
                f"{over} of the {most} largest ratios are over a plateau of equal ones{some}, by up to "
                f"{math.exp(min(700.0, top[0] - foot)):.2g} times: too few for a tail index"
            )
        return TailFit(plateau=most - over, unfit=why)


@dataclass(frozen=True, eq=False)
class TailFit:
    """A generalised Pareto fit to the largest ratios.

    Attributes:
        khat: tail index; None if there is no fit: too few units, or too many ties.
        smoothed: log ratios that the fit has in place of the largest, in falling order, as far as its tail goes.
        plateau: how many of the largest are not in the fit, as they tie with the next below.
        unfit: why there is no fit to a tail that may be heavy; empty if there is a fit, or no tail.
    """

    khat: float | None = None
    smoothed: Array = field(default_factory=lambda: np.empty(0))
    plateau: int = 0
    unfit: str = ""


def _compiled(batch: Batch, levels: Sequence[Level]) -> tuple[RatioStats, ...] | None:
    """Make the stats by the compiled walk (`reweigh/native`), where it is and may be used; what follows is the same."""
    if not may_look(batch.log_pi):
        return None
    layout, names = batch.layout, [level.name for level in levels]
    own = batch.log_pi, batch.log_mu, batch.given, layout.mask, layout.runs, layout.turn if "turn" in names else None
    fields = walk.statistics(*own, batch.group, list(dict.fromkeys(names)))
    if fields is None:
        return None
    dropped = {"dropped": _dropped(batch)}
    return tuple(RatioStats(level, **(fields[level.name] | dropped)) for level in levels)


def _in_one_pass(batch: Batch, *, token: bool, sequence: bool) -> dict[str, RatioStats]:
    """Sum token ratios, sequence ratios, or both in one pass over the tokens; by name of the level."""
    layout = batch.layout
    tiles, _ = layout.tiles
    bins = length_bin(layout.lengths)
    total = torch.zeros(layout.num_seqs, dtype=torch.float64, device=bins.device)  # log ratio of each sequence
    over = torch.zeros_like(total)  # sum of (min(r_t, top of the grid) - r)_+
    sums: list[Tensor] = []
    blocks: list[Tensor] = []  # log ratio of each block of 16 slots, -inf unless all of them are tokens
    pending = _Pending(batch, tiles, bins)
    for part in tiles.parts if token or sequence else ():
        l, live, log_mu = _rows_of(batch, part)
        if token:
            sums, less_one = _row_sums(l, live)
            pending.add([*sums, *_gaps(log_mu, l, live, less_one)])
        else:
            less_one = l.expm1()
        if sequence:
            total.index_add_(0, part.seq, (sums[1] if token else l.sum(-1)).double())
            # No sequence is in two parts, so those of this one are summed by now.
            whole = total[part.seq].clamp(max=GRID_TOP).expm1().to(l.dtype)
            above = (less_one.clamp(max=math.expm1(GRID_TOP)) - whole[:, None]).relu_().mul_(live).sum(-1)
            over.index_add_(0, part.seq, above.double())
            full = live.view(len(l), -1, BLOCK_SIZES[0]).sum(-1) == BLOCK_SIZES[0]
            blocks.append(torch.where(full, l.view(len(l), -1, BLOCK_SIZES[0]).sum(-1), -torch.inf))
    made: dict[str, RatioStats] = {}
    if token:
        made["token"] = pending.stats(TOKEN, batch)
    if sequence:
        some = layout.lengths > 0
        l, live = torch.where(some, total, 0)[:, None], some.double()[:, None]
        # Sequences are rows of one unit.
        ratios, everyone = RatioSums.zero(bins), torch.arange(len(l), device=l.device)
        sums, _ = _row_sums(l, live)
        ratios.add(torch.stack(sums), everyone, lambda which: (l, live) if which is None else (l[which], live[which]))
        made["sequence"] = _stats_of(
            batch,
            SEQUENCE,
            ratios,
            _largest(torch.where(some, l[:, 0], -torch.inf)),
            over=over,
            longer=l[:, 0].clamp(max=GRID_TOP).expm1() * layout.lengths,
            blocks=_larger_blocks(torch.cat(blocks), tiles),
        )
    return made


def _of_turns(batch: Batch) -> RatioStats:
    """Sum the ratios of turns, each standing on the first token of its turn."""
    first = heads(batch.layout)
    values = torch.where(first, TURN.fold(batch.log_ratio, batch.layout), 0)
    turns = Batch(batch.log_pi, batch.log_mu, batch.layout.masked(first), given=values)
    tiles, _ = turns.layout.tiles
    pending = _Pending(turns, tiles, length_bin(batch.layout.lengths))
    for part in tiles.parts:
        l, live, _ = _rows_of(turns, part)
        pending.add(_row_sums(l, live)[0])
    return pending.stats(TURN, batch)


def _stats_of(
    batch: Batch,
    level: Level,
    ratios: "RatioSums",
    top: Tensor,
    *,
    gap: Tensor | None = None,
    largest_gap: Tensor | None = None,
    over: Tensor | None = None,
    longer: Tensor | None = None,
    blocks: Tensor | None = None,
) -> RatioStats:
    """Bring what was summed by sequence to length bins and clusters.

    Args:
        batch: says lengths and clusters.
        level: whose ratios these are.
        ratios: sums over the level's ratios.
        top: `[256]`, the largest log ratios in falling order, -inf after the last.
        gap: `[2, S]`, sums of |pi - mu| and of 1 - min(pi, mu), at TOKEN level.
        largest_gap: 0-d, the largest |pi - mu|, at TOKEN level.
        over: `[S]`, sum of `(min(r_t, top of the grid) - r)_+`, at SEQUENCE level, as is what follows.
        longer: `[S]`, `(min(r, top of the grid) - 1)` times the length.
        blocks: `[3, 4]`, see `RatioStats`.
    """
    lengths, bins = batch.layout.lengths, ratios.bins
    plain, powers = ratios.by_seq.split([len(PLAIN), len(POWERS)])
    n, l1, l2, abs_l, tv, tv2, _ = plain
    shift = n.new_zeros(NUM_BINS).scatter_reduce(0, bins, ratios.shift, "amax")
    seq_powers = powers * torch.exp(exponents(n.device) * (ratios.shift - shift[bins]))
    some, none = (n > 0).double(), torch.zeros_like(n)
    gap = none.new_zeros(2, len(none)) if gap is None else gap
    over, longer = none if over is None else over, none if longer is None else longer
    moments = torch.stack([n, some, l1, l2, abs_l, tv, tv2, *gap, over, over * over, longer, lengths * some])
    by_seq = torch.cat([moments, seq_powers])
    by_bin = by_seq.new_zeros(len(by_seq), NUM_BINS).index_add(1, bins, by_seq)
    moments, powers = by_bin.split([len(MOMENTS), len(POWERS)])
    down = torch.exp(shift - shift.max())[bins]
    per_cluster = torch.stack([n, l1, abs_l, l2, tv, seq_powers[1] * down, seq_powers[2] * down.square()], -1)
    peak = none.new_full((), -torch.inf) if largest_gap is None else largest_gap
    return RatioStats(
        level,
        moments=moments,
        shift=shift,
        powers=powers,
        grid=ratios.cells(moments[0]),
        blocks=none.new_zeros(len(BLOCK_SIZES), 4) if blocks is None else blocks,
        peaks=torch.stack([top[0], torch.where(n.sum() > 0, -ratios.low, -torch.inf), peak]),
        top=top,
        clusters=none.new_zeros(NUM_BUCKETS, len(CLUSTER)).index_add(0, bucket(batch), per_cluster),
        dropped=_dropped(batch),
    )


def _dropped(batch: Batch) -> Tensor:
    if batch.dropped is None:
        return torch.zeros((), dtype=torch.float64, device=batch.log_pi.device)
    return batch.dropped.sum(dtype=torch.int32).double()


# What is summed over the units of each row; the powers are scaled down by `e^(k shift)`.
PLAIN = ("n", "l", "l2", "abs", "tv", "tv2", "below")
NUM_SUMS = len(PLAIN) + len(POWERS)

# Copies of the grid that neighbouring units take turns in: most fall into a few cells, and adding to the same one again
# and again would wait for the last sum each time.
LANES = 8
ONE = round(-GRID_LOW / GRID_STEP) + 1  # cell of the grid that a ratio of 1 begins
NONE = 3e38  # what a row without a unit has in place of a largest log ratio, below 0
NEAR = GRID_STEP * (1 - 1e-6)  # |log ratio| that is surely in one of the two cells around 1


Rows = tuple[Tensor, Tensor]  # log ratios `[R, W]`, 0 where there is no unit; and 1.0 where there is one, else 0.0


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
        """Begin with nothing, given the length bin of each sequence."""
        by_seq = torch.zeros(NUM_SUMS, len(bins), dtype=torch.float64, device=bins.device)
        grid = by_seq.new_zeros(3, LANES * NUM_BINS * (GRID_CELLS + 1))
        near = by_seq.new_zeros(3, 2, NUM_BINS)
        return cls(by_seq, torch.zeros_like(by_seq[0]), grid, near, bins, by_seq.new_zeros(()))

    def add(self, sums: Float[Tensor, "14 R"], seq: Int[Tensor, " R"], rows: Callable[[Tensor | None], Rows]) -> None:
        """Add rows, all those that their sequences have.

        Args:
            sums: what `_row_sums` makes of them.
            seq: sequence of each row.
            rows: gives some of the rows again, or all for None, to look at closely.
        """
        top, low = sums[-2:]
        near = (top < NEAR) & (low > -NEAR)
        for which in _some(near.logical_not()):
            # Each ratio goes to the cell that it is in; a slot without a unit adds a ratio of 1.
            r = rows(which)[0].exp()
            r2 = r * r
            # The exponent of r^2 counts half octaves, exactly.
            double = r.dtype == torch.float64
            exponent, bias = (r2.view(torch.int64) >> 52, 1023) if double else (r2.view(torch.int32) >> 23, 127)
            index = (exponent - (bias - ONE)).clamp_(0, GRID_CELLS)
            first = self.bins[seq if which is None else seq[which]] * (GRID_CELLS + 1)
            lane = (torch.arange(r.shape[1], device=r.device) % LANES) * (self.grid.shape[1] // LANES)
            index = index.add_(first.to(index.dtype)[:, None]).long().add_(lane).view(-1)
            r, r2 = r.double().view(-1), r2.double().view(-1)
            for cells, value in zip(self.grid, (torch.ones_like(r), r, r2), strict=True):
                cells.scatter_add_(0, index, value)
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

    def cells(self, units: Float[Tensor, " bins"]) -> Float[Tensor, "3 bins cells"]:
        """Bring the grid together: counts, and sums of r and of r^2, these 0 in the cell over the top.

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
    """Find where flags are set, a part at a time; all of them, as None, if values may not be looked at."""
    if not may_look(flags):
        return [None]
    which = flags.nonzero().squeeze(1)
    return [*which.split(CHUNK_ROWS)] if len(which) else []


HELD_ROWS = 8 * CHUNK_ROWS  # sums of rows that are held before they are brought to sequences


class _Pending:
    """Holds sums of rows and brings them to sequences some thousand rows at a time, so that little of it is held."""

    def __init__(self, batch: Batch, tiles: Tiles, bins: Tensor) -> None:
        self.batch, self.tiles = batch, tiles
        self.ratios = RatioSums.zero(bins)
        self.gap = self.ratios.shift.new_zeros(2, len(bins))
        self.largest_gap = self.gap.new_full((), -torch.inf)
        self.tops: list[Tensor] = []
        self._columns: list[list[Tensor]] = []
        self._held = self._done = 0

    def add(self, columns: list[Tensor]) -> None:
        """Add the rows of the next part: what `_row_sums` gives, and then what `_gaps` gives, if it is known."""
        self._columns.append(columns)
        self._held += len(columns[0])
        if may_look(columns[0]) and self._held >= HELD_ROWS:
            self._flush()

    def _flush(self) -> None:
        columns = [torch.cat(column) for column in zip(*self._columns, strict=True)]
        # All rows are the tiles themselves, which know how to be read without an index an element.
        whole = self._held == len(self.tiles)
        group = self.tiles if whole else self.tiles[self._done : self._done + self._held]
        sums, gap = columns[: NUM_SUMS + 2], columns[NUM_SUMS + 2 :]  # the sums, and the top and the low of each row
        self.tops.append(sums[-2])

        def again(which: Tensor | None) -> tuple[Tensor, Tensor]:
            l, live, _ = _rows_of(self.batch, group if which is None else group[which])
            return l, live

        self.ratios.add(torch.stack(sums), group.seq, again)
        if gap:
            *both, largest_of_rows = gap
            self.gap.index_add_(1, group.seq, torch.stack(both).double())
            self.largest_gap = torch.maximum(self.largest_gap, largest_of_rows.amax().double())
        self._done, self._held, self._columns = self._done + self._held, 0, []

    def stats(self, level: Level, batch: Batch) -> RatioStats:
        """Make the stats of all rows that were added; the batch says lengths and clusters."""
        if self._columns:
            self._flush()
        tiles, tops = self.tiles, torch.cat(self.tops)
        if len(tops) > TOP:  # the largest log ratios lie in the rows with the largest maxima
            tiles = tiles[tops.topk(TOP).indices.sort().values]
        l, live, _ = _rows_of(self.batch, tiles)
        top = _largest(torch.where(live > 0, l, -torch.inf))
        return _stats_of(batch, level, self.ratios, top, gap=self.gap, largest_gap=self.largest_gap)


def _largest(l: Tensor) -> Tensor:
    """Find the 256 largest, in falling order, -inf after the last, float64."""
    flat = l.flatten()
    short = max(0, TOP - flat.numel())
    flat = torch.cat([flat, flat.new_full((short,), -torch.inf)]) if short else flat
    return flat.topk(TOP).values.double()


def _rows_of(batch: Batch, tiles: Tiles) -> tuple[Tensor, Tensor, Tensor]:
    """Read some rows, `[R, 64]`: log ratios, 0 where there is no token; 1.0 where there is one; log mu as it stands."""
    live = ones_of(tiles.take(batch.layout.mask), batch.dtype)
    log_mu = tiles.take(batch.log_mu).to(live.dtype)
    if batch.given is not None:
        return tiles.take(batch.given).to(live.dtype), live, log_mu
    return log_ratio_of(tiles.take(batch.log_pi), log_mu, live), live, log_mu


def _row_sums(l: Float[Tensor, "R W"], live: Float[Tensor, "R W"]) -> tuple[list[Tensor], Tensor]:
    """Sum each row, unscaled: `PLAIN`, the powers, then its largest and its smallest log ratio; and give r - 1.

    A sum that float32 cannot hold is infinite, as is such a ratio. A row without a unit has a top far below 0, and its
    smallest is at most 0. A slot without a unit has a ratio of 1. r - 1 is never a difference: of a gap of 1e-4 nats
    that would leave three digits in float32.
    """
    less_one = l.expm1()
    # Each of these works in memory that the one before has given back, which is still in the cache.
    plain = [live.sum(-1), l.sum(-1), _squares(l), l.abs().sum(-1)]
    below = less_one.neg().relu_()  # (1 - r)_+: 0 for an infinite ratio, as it should be
    # It is over 0 just where r < 1; a comparison that gives a bool is slow to sum.
    plain += [below.sum(-1), _squares(below), below.sign_().sum(-1)]
    del below
    powers = _powers(l.exp().mul_(live))
    return [*plain, *powers, (live - 1).mul_(NONE).add_(l).amax(-1), l.amin(-1)], less_one


def _powers(e: Tensor) -> list[Tensor]:
    half, one = e.sqrt().sum(-1), e.sum(-1)
    e2 = e * e
    return [half, one, e2.sum(-1), e.mul_(e2).sum(-1), _squares(e2)]


def _squares(x: Tensor) -> Tensor:
    """Sum the squares of each row."""
    return torch.linalg.vector_norm(x, dim=-1).square_() if may_look(x) else (x * x).sum(-1)


def _gaps(
    log_mu: Float[Tensor, "R W"], l: Float[Tensor, "R W"], live: Float[Tensor, "R W"], less_one: Float[Tensor, "R W"]
) -> list[Tensor]:
    """Bound the total variation at visited states: sums of |pi - mu| and 1 - min(pi, mu) of each row.

    Returns:
        The sums, each `[R]`, and each row's largest |pi - mu|.
    """
    log_mu = tame(log_mu * live)
    mu = log_mu.exp()  # 1 where there is no token
    # 1 - min(pi, mu) = (1 - mu) + mu (1 - r)_+ and pi - mu = mu (r - 1): neither takes equal numbers from each other.
    most = less_one.neg().relu_().mul_(mu).sub_(log_mu.expm1()).sum(-1)
    gap = less_one.abs().mul_(mu)
    large = l > 1  # where r may be infinite, and nothing cancels
    if not may_look(l) or bool(large.any()):
        gap = torch.where(large, (log_mu + l).exp() - mu, gap)
    return [gap.sum(-1), most, gap.amax(-1)]


def _larger_blocks(smallest: Float[Tensor, "R blocks"], tiles: Tiles) -> Float[Tensor, "3 4"]:
    """Sum each block size: whole blocks, the shifted sums of their ratio's square and fourth power, and the shift.

    Args:
        smallest: log ratio of each block of 16 slots of all rows, in order; -inf unless all of them are tokens.
        tiles: the rows.
    """
    rows, wide = [_block_sums(smallest)], smallest.double().sum(1)
    for size in BLOCK_SIZES[1:]:
        each = size // WIDTH
        group = tiles.place // each
        changes = (tiles.seq[1:] != tiles.seq[:-1]) | (group[1:] != group[:-1])
        into = torch.cat([torch.zeros_like(tiles.seq[:1]), changes.long()]).cumsum(0)
        whole = torch.isfinite(wide)
        count = torch.zeros_like(wide).index_add_(0, into, whole.double())
        total = torch.zeros_like(wide).index_add_(0, into, torch.where(whole, wide, 0))
        rows.append(_block_sums(torch.where(count == each, total, -torch.inf)))
    return torch.stack(rows)


def _block_sums(x: Tensor) -> Tensor:
    shift = x.amax().double().clamp(min=0)
    e2 = (2 * (x - shift.to(x.dtype))).exp_()
    squares, fourths = e2.sum(dtype=torch.float64), e2.square().sum(dtype=torch.float64)
    return torch.stack([(x > -torch.inf).sum().double(), squares, fourths, shift])


def length_bin(lengths: Tensor) -> Tensor:
    """Length bin of each sequence."""
    # Made on the device: a copy from the host would wait for it.
    edges = 2 ** torch.arange(FIRST_EDGE, FIRST_EDGE + NUM_BINS - 1, device=lengths.device)
    return (lengths[:, None] >= edges).sum(-1)


def bucket(batch: Batch) -> Tensor:
    """Bucket of each sequence's cluster: by hash of its group, or by its place if it has none."""
    key = batch.group
    if key is None:
        key = torch.arange(batch.layout.num_seqs, device=batch.log_pi.device)
        return key % NUM_BUCKETS
    return bucket_of(key)


def bucket_of(group: Tensor) -> Tensor:
    """Tell the bucket of each cluster's hash."""
    # Multiplicative hashing (Knuth): the high bits of key times a large odd number.
    return (group.long() * 0x9E3779B97F4A7C1 >> 40) % NUM_BUCKETS


def exponents(device: torch.device) -> Tensor:
    """`POWERS` as `[5, 1]`, made on the device."""
    whole = torch.arange(len(POWERS), dtype=torch.float64, device=device)
    return torch.where(whole > 0, whole, POWERS[0])[:, None]


def _in_one_call(batch: Batch, levels: Sequence[Level]) -> tuple[RatioStats, ...]:
    """Make stats from within a compiled graph on a CPU, which calls it as one operator.

    What is fast here, to look at values and to leave work out, a compiler cannot do.
    """
    layout = batch.layout
    own = (batch.log_pi.detach(), batch.log_mu.detach(), layout.mask, layout.runs)
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
    made = RatioStats.of_levels(batch, [by_name[name] for name in levels.split(",")])
    return [x.clone() for stats in made for x in _tensors(stats)]  # no two may share memory


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
