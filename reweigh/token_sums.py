"""Sums over the tokens of a batch that are no sums over its ratios alone: gaps of probability, excess, blocks."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reweigh.batch import Batch
from reweigh.finite import tame
from reweigh.levels import TURN, heads
from reweigh.sums import BLOCK_SIZES, GRID_TOP
from reweigh.tiles import WIDTH, Tiles, ones_of


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
