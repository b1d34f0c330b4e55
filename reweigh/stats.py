"""Sums over raw ratios that merge: over micro-batches, ranks and files, all with one `+`."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from reweigh.batch import Batch
from reweigh.layout import Packed, Padded
from reweigh.levels import SEQUENCE, TOKEN, TURN, Level
from reweigh.measure import Measured, measure, measure_turns
from reweigh.operator import operator
from reweigh.ratio_sums import PLAIN
from reweigh.sums import (
    BLOCK_SIZES,
    CLUSTER,
    GRID_CELLS,
    MOMENTS,
    NUM_BINS,
    NUM_BUCKETS,
    POWERS,
    TOP,
    bucket,
    exponents,
    sum_by_bin,
)
from reweigh.tiles import in_a_graph


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
