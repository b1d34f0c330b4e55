"""One pass over the tokens of a batch, a part that fits the cache at a time, for all that `RatioStats` is made of."""

from dataclasses import dataclass

import torch
from torch import Tensor

from reweigh.batch import Batch
from reweigh.ratio_sums import RatioSums, Rows, row_sums
from reweigh.sums import BLOCK_SIZES, GRID_TOP, TOP, length_bin
from reweigh.tiles import Tiles
from reweigh.token_sums import blocks, gaps, largest, over_sequence, rows_of, smallest_blocks, top_of, turn_batch


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
    total, over, gap = none.clone(), none.clone(), none.new_zeros(2, len(none))
    columns: list[list[Tensor]] = []
    small: list[Tensor] = []
    peaks: list[Tensor] = []
    for part in tiles.parts if token or sequence else ():
        l, live, log_mu = rows_of(batch, part)
        if token:
            sums, r = row_sums(l, live)
            peak, gap_sums = gaps(log_mu, l, live)
            columns.append([*sums, *gap_sums])
            peaks.append(peak)
        else:
            r = l.exp()
        if sequence:
            total.index_add_(0, part.seq, (columns[-1][1] if token else l.sum(-1)).double())
            # No sequence is in two parts, so those of this one are summed by now.
            over.index_add_(0, part.seq, over_sequence(r, live, total[part.seq]).double())
            small.append(smallest_blocks(l, live))
    out: dict[str, Measured] = {}
    if token:
        *sums, low, high = (torch.cat(column) for column in zip(*columns, strict=True))
        gap.index_add_(1, tiles.seq, torch.stack([low, high]).double())
        largest_gap = torch.stack(peaks).amax().double()
        out["token"] = _of_units(*_of_rows(batch, tiles, torch.stack(sums), bins), gap=gap, largest_gap=largest_gap)
    if sequence:
        some = layout.lengths > 0
        l = torch.where(some, total, 0)
        longer = (torch.exp(l.clamp(max=GRID_TOP)) - 1) * layout.lengths
        top = top_of(torch.where(some, l, -torch.inf), TOP)
        sums = blocks(torch.cat(small), tiles.seq, tiles.place)
        out["sequence"] = _of_units(_of_sequences(l, some, bins), top, over=over, longer=longer, blocks=sums)
    return out


def measure_turns(batch: Batch) -> Measured:
    """Measure the ratios of turns."""
    bins, units = length_bin(batch.layout.lengths), turn_batch(batch)
    tiles, _ = units.layout.tiles
    columns = [row_sums(*rows_of(units, part)[:2])[0] for part in tiles.parts]
    sums = torch.stack([torch.cat(column) for column in zip(*columns, strict=True)])
    return _of_units(*_of_rows(units, tiles, sums, bins))


def _of_rows(batch: Batch, tiles: Tiles, sums: Tensor, bins: Tensor) -> tuple[RatioSums, Tensor]:
    """Ratio sums and the largest log ratios, from what `row_sums` made of all rows."""

    def rows(which: Tensor | None) -> Rows:
        l, live, _ = rows_of(batch, tiles if which is None else tiles[which])
        return l, live

    ratios = RatioSums.zero(bins)
    ratios.add(sums, tiles.seq, rows)
    return ratios, largest(batch, tiles, sums[-2], TOP)


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
