"""Sums over raw ratios that merge: over micro-batches, ranks and files, all with one `+`."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reweigh.batch import Batch
from reweigh.levels import SEQUENCE, TOKEN, Level
from reweigh.sums import (
    BLOCK_SIZES,
    CHUNK,
    CLUSTER,
    GRID_CELLS,
    GRID_TOP,
    MOMENTS,
    NUM_BINS,
    NUM_BUCKETS,
    POWERS,
    ROWS,
    SHIFT_STEP,
    TOP,
    blocks,
    bucket,
    gaps,
    hybrid,
    length_bin,
    ratio_sums,
    sum_by_bin,
    tops,
    unit_values,
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
        if level.name not in ("token", "turn", "sequence"):
            raise ValueError(f"RatioStats.of: level must be TOKEN, TURN or SEQUENCE, got {level.name.upper()}")
        single, whole = level.name == TOKEN.name, level.name == SEQUENCE.name
        if batch.layout.num_seqs == 0 or batch.log_pi.numel() == 0:
            return cls.empty(level, batch.log_pi.device)
        lengths, bins = batch.layout.lengths, length_bin(batch.layout.lengths)
        l, units = unit_values(batch, level)
        live = torch.where(units.mask, l, -torch.inf)
        peak, top = tops(live, units, bins, TOP)
        shift = (peak / SHIFT_STEP).floor().clamp(min=0) * SHIFT_STEP
        # The compiler fuses by itself, and would only unroll the chunks.
        slots = batch.log_pi.numel() if torch.compiler.is_compiling() else CHUNK
        parts = batch.layout.chunks(slots)
        unit_parts = parts if single else units.chunks(slots)
        rows, grid = ratio_sums(l, live, units, unit_parts, bins, shift)
        plain, powers = rows.split([len(ROWS) - len(POWERS), len(POWERS)])
        n = units.lengths.double()
        zero = torch.zeros_like(n)
        gap, largest_gap = (
            gaps(batch, parts) if single else (torch.stack([zero, zero]), torch.full_like(shift[0], -torch.inf))
        )
        over = hybrid(batch, l.squeeze(-1), parts) if whole else zero
        some = (n > 0).double()
        longer = (torch.exp(l.squeeze(-1).clamp(max=GRID_TOP)) - 1) * lengths if whole else zero
        moments = torch.stack([n, some, *plain, *gap, over, over * over, longer * some, lengths * some])
        down = torch.exp(shift - shift.max())[bins]
        l1, _, abs_l, tv, _ = plain
        per_cluster = torch.stack([n, l1, abs_l, plain[1], tv, powers[1] * down, powers[2] * down.square()], -1)
        empty = cls.empty(level, l.device)
        return cls(
            level,
            moments=sum_by_bin(moments, bins),
            shift=shift,
            powers=sum_by_bin(powers, bins),
            grid=grid,
            blocks=blocks(batch, parts) if whole else empty.blocks,
            peaks=torch.stack([peak.max(), (-l.amin()).double(), largest_gap]),
            top=top,
            clusters=empty.clusters.index_add(0, bucket(batch), per_cluster),
            dropped=empty.dropped if batch.dropped is None else batch.dropped.sum(dtype=torch.int32).double(),
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
        k = torch.tensor(POWERS, dtype=torch.float64, device=shift.device)[:, None]
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
