"""The balance cap from sums that merge: of micro-batches, ranks or many steps, without their ratios."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from reweigh.caps import largest_mean
from reweigh.stats import RatioStats
from reweigh.sums import CAPS, POWERS


@dataclass(frozen=True, eq=False)
class CapRange:
    """Where a cap lies as far as sums can tell.

    Attributes:
        low: log of the smallest cap it can be, nats.
        high: log of the largest, nats.
    """

    low: Float[Tensor, ""]
    high: Float[Tensor, ""]

    @property
    def log_cap(self) -> Float[Tensor, ""]:
        """The middle of the range in nats: the cap itself where the range is a point."""
        # A mean of infinities is NaN, and their sum over 2 is not.
        return torch.where(self.low == self.high, self.low, (self.low + self.high) / 2)


def balance_cap_of_stats(stats: RatioStats, n: float | Tensor | None = None) -> CapRange:
    """The root of `N mean(r - C)_+ = C` over all units of the stats, as `balance_cap_of_sample` would find it.

    A point when it lies over the smallest of the 256 largest ratios that the stats keep, which are all of them in a
    batch of 256 units. Else it lies between two caps of the grid, half an octave apart, where `sum (r - C)_+` is
    convex and known at both ends with its slopes, and bounded by the mean and variance of the ratios between them.
    For log-normal ratios its middle is then within 7%, where the error bound has barely risen. No host sync.

    Args:
        stats: at the level to cap; merged over ranks and steps as you like.
        n: N, units averaged in one step; the units of the stats if None.

    Returns:
        Both ends of the range; -inf if there are no units.

    Example:
        >>> import torch
        >>> from reweigh import SEQUENCE, Batch, RatioStats
        >>> log_ratio = torch.tensor([[4.0], [1.0], [0.5]], dtype=torch.float64).log()
        >>> batch = Batch.padded(log_ratio - 9, torch.full_like(log_ratio, -9), torch.ones(3, 1))
        >>> print(f"{balance_cap_of_stats(RatioStats.of(batch, SEQUENCE)).log_cap.exp():.2f}")
        2.00

    Source: `reweigh.caps.balance_cap`; the bracket is that of a convex function; ours.
    """
    units = stats.moments[0].sum().clamp(min=1)  # 0 / 0 is no ratio, and with no units at all nothing depends on it
    means = largest_mean(stats.top, units if n is None else n, units)
    point = means.amax()
    exact = (point >= stats.top[-1]) | (units <= len(stats.top))
    low, high = _on_the_grid(stats, units, units if n is None else n)
    low = torch.maximum(low, point)  # any mean of largest ratios is at most the cap
    return CapRange(torch.where(exact, point, low), torch.where(exact, point, torch.maximum(low, high)))


def _on_the_grid(stats: RatioStats, units: Tensor, n: float | Tensor) -> tuple[Tensor, Tensor]:
    """Both ends of the range from the grid alone, log."""
    edges = torch.tensor((0.0, *CAPS), dtype=torch.float64, device=stats.top.device)  # the lower end of each cell
    count, total, squares = stats.grid.sum(1)
    log_all = torch.logsumexp(stats.powers[POWERS.index(1.0)].log() + stats.shift, 0)
    # The grid does not sum what is over its top. What the lower cells leave of the sum of all is that.
    over_top = torch.where(count[-1] > 0, (log_all.exp() - total.sum()).clamp(min=0), 0)
    total = torch.cat([total[:-1], over_top[None]])
    above, sum_above = (x.flip(0).cumsum(0).flip(0) for x in (count, total))  # from each lower end on
    slack = units / n
    # At each lower end: how far sum (r - C)_+ is above the line M C / N.
    gap = sum_above - edges * (above + slack)
    i = ((gap > 0).sum() - 1).clamp(min=0)  # the root is in this cell: the gap falls
    j = (i + 1).clamp(max=len(edges) - 1)
    # A tensor as an index would stop the device; selecting by one does not.
    table = torch.stack([count, total, squares, edges, above + slack, sum_above, gap])
    here, after = table.index_select(1, torch.stack([i, j])).unbind(1)
    cell, (start, rest_here, sum_here, gap_here) = here[:3], here[3:].unbind()
    end, rest, sum_over, gap_after = after[3:].unbind()
    low = torch.maximum(sum_here / rest_here, sum_over / rest).log()
    chord = start + (end - start) * gap_here / (gap_here - gap_after)
    high = torch.minimum(chord, _spread_at_most(cell, rest, sum_over)).log()
    # Over the top there is no chord, and the sums may be infinite: the cap is below the mean with nothing taken off.
    top = i == j
    return torch.where(top, -torch.inf, low), torch.where(top, log_all - torch.log(slack), high)


def _spread_at_most(cell: Tensor, rest: Tensor, sum_over: Tensor) -> Tensor:
    """The largest root that the mean and variance of a cell allow: the cap when its ratios take two values only.

    `sum (r - C)_+` of k ratios of mean m and variance v is at most `k (sqrt(v + (m - C)^2) + m - C) / 2`.

    Args:
        cell: number of ratios in the cell, their sum, and the sum of their squares.
        rest: ratios over the cell, plus M / N.
        sum_over: sum of the ratios over the cell.

    Source: Scarf (1958), A min-max solution of an inventory problem.
    """
    count, total, squares = cell.unbind()
    some = count.clamp(min=1)
    mean = total / some
    variance = (squares / some - mean * mean).clamp(min=0)
    a, b = 1 + 2 * rest / some, 2 * (rest * mean - sum_over) / some
    off = (torch.sqrt(b * b + (a * a - 1) * variance) - a * b) / (a * a - 1)
    return torch.where(count > 0, mean + off, torch.inf)
