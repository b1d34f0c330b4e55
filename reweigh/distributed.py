"""The same sums over many processes: two collectives of a few kilobytes, whatever the batch."""

import torch
import torch.distributed as dist
from torch import Tensor

from reweigh.estimators import Weights
from reweigh.levels import heads
from reweigh.stats import TOP, RatioStats


def all_reduce(stats: RatioStats, process_group: dist.ProcessGroup | None = None) -> RatioStats:
    """Stats of all ranks' units, on every rank. Ranks may have any number of units, none included.

    Two collectives: the maximum of the shifts and peaks, then one sum. Every rank of the group must call it.

    Args:
        stats: this rank's; `RatioStats.empty(level)` if it saw nothing.
        process_group: None is the default group.
    """
    bins, blocks, peaks = stats.shift.numel(), stats.blocks.shape[0], stats.peaks.numel()
    highest = torch.cat([stats.shift, stats.blocks[:, 3], stats.peaks])
    dist.all_reduce(highest, dist.ReduceOp.MAX, group=process_group)
    shift, block_shift, top_peaks = highest.split([bins, blocks, peaks])
    own = stats.rescaled(shift, block_shift)
    # Each rank writes its largest ratios into its own row; the sum then gathers them without another collective.
    # -inf would turn 0 * -inf into NaN under a sum, so the rows hold e^-x-safe finite stand-ins for it.
    world, rank = dist.get_world_size(process_group), dist.get_rank(process_group)
    rows = own.top.new_zeros(world, TOP)
    rows[rank] = torch.where(torch.isfinite(own.top), own.top, _NOTHING)
    additive = (own.moments, own.powers, own.grid, own.blocks[:, :3], own.clusters, own.dropped, rows)
    flat = torch.cat([t.reshape(-1) for t in additive])
    dist.all_reduce(flat, dist.ReduceOp.SUM, group=process_group)
    parts = [p.view(t.shape) for p, t in zip(flat.split([t.numel() for t in additive]), additive, strict=True)]
    moments, powers, grid, sums, clusters, dropped, rows = parts
    top = rows.flatten().topk(TOP).values
    return RatioStats(
        stats.level,
        moments,
        shift,
        powers,
        grid,
        torch.cat([sums, block_shift[:, None]], 1),
        top_peaks,
        torch.where(top > _NOTHING / 2, top, -torch.inf),
        clusters,
        dropped,
    )


def log_normaliser(weights: Weights, process_group: dist.ProcessGroup | None = None) -> Tensor:
    """`log(sum of weights / number)` over the kept units of all ranks, 0-d nats, for `self_normalised(e)(batch, it)`.

    Two collectives of one and two numbers. 0 if no rank keeps a unit.

    Args:
        weights: of the estimator *before* self-normalisation.
        process_group: None is the default group.
    """
    units = weights.keep & heads(weights.layout) if weights.unit == "turn" else weights.keep
    log_w = torch.where(units, weights.log_w, -torch.inf).double().flatten()
    top = torch.cat([log_w, log_w.new_full((1,), -torch.inf)]).max()
    dist.all_reduce(top, dist.ReduceOp.MAX, group=process_group)
    shift = torch.where(torch.isfinite(top), top, 0)
    sums = torch.stack([torch.exp(log_w - shift).sum(), units.sum().double()])
    dist.all_reduce(sums, dist.ReduceOp.SUM, group=process_group)
    total, count = sums.unbind()
    return torch.where(count > 0, shift + (total / count).log(), 0).to(weights.log_w.dtype)


_NOTHING = -1e300  # nats: stands for "no unit here" in the gathered rows; no log ratio comes near it
