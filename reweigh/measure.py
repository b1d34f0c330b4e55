"""One pass over the tokens of a batch, a part that fits the cache at a time, for all that `RatioStats` is made of."""

from dataclasses import dataclass

import torch
from torch import Tensor

from reweigh.batch import Batch
from reweigh.ratio_sums import NUM_SUMS, RatioSums, Rows, row_sums
from reweigh.sums import BLOCK_SIZES, GRID_TOP, TOP, length_bin
from reweigh.tiles import CHUNK_ROWS, Tiles, may_look
from reweigh.token_sums import blocks, gaps, largest, over_sequence, rows_of, smallest_blocks, top_of, turn_batch

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
