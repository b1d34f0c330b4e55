"""What a cap takes away and what it leaves: lost weight and second moment, bounded, so that intervals hold."""

import bisect
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reweigh.host import HostSums, to_host
from reweigh.intervals import Method, bounded
from reweigh.number import Number
from reweigh.stats import RatioStats
from reweigh.sums import CAPS

Array = NDArray[np.float64]


def excess(stats: RatioStats, cap: float, method: Method = "best") -> Number:
    """`b(C) = E_mu (r - C)_+ = 1 - E_mu min(r, C)`, the weight that truncation at `cap` loses, with its interval.

    The mean of min(r, C) is bounded, and so its interval is honest under any tail; it needs `E_mu r = 1`. At a cap of
    1 it is the total variation. Between two caps of the grid (half octaves) the value is interpolated, exact to the
    spread within half an octave, and the interval covers all that the cell of the grid could hide.

    Args:
        stats: at any level.
        cap: C, a ratio pi/mu over 0.
        method: as `reweigh.intervals.bounded`: "best", "chernoff" or "bernstein". Choose before you look.

    Returns:
        A number in [0, 1]; refused without units.

    Raises:
        ValueError: unless 0 < cap < inf.

    Example:
        >>> import torch
        >>> from reweigh import SEQUENCE, Batch, RatioStats, excess
        >>> log_mu = torch.full((40, 1), -5.0)
        >>> log_ratio = torch.tensor([0.25, 1.75]).log().repeat(20)[:, None]
        >>> lost = excess(RatioStats.of(Batch.padded(log_mu + log_ratio, log_mu, torch.ones(40, 1)), SEQUENCE), 1.0)
        >>> print(f"{lost.value:.3f} in [{lost.low:.3f}, {lost.high:.3f}]")
        0.375 in [0.191, 0.589]

    Also called: hockey-stick divergence of order C.

    Source: `E_mu r = 1`; the interval as `bernoulli_kl`. Interpolation in C is from below, as min is concave.
    """
    h = to_host(stats)
    what = f"Mean weight that truncation at {cap:g} cuts off."
    return _missing(h, _truncated(h, _cap(cap), 1), method, what)


def excess_plain(stats: RatioStats, cap: float) -> Number:
    """`mean (r - C)_+` over the sample: less noisy than `excess` under a light tail, far too low under a heavy one.

    It differs from `excess` by the mean ratio less 1, and so has no interval that holds under any tail. Where the two
    disagree, trust `excess`.

    Args:
        stats: at any level.
        cap: C, a ratio pi/mu over 0.
    """
    h = to_host(stats)
    mean = _truncated(h, _cap(cap), 1)
    what = f"Mean of (r - {cap:g})_+ in this sample; low under a heavy tail."
    if not h.n:
        return Number(None, meaning=what, refused="there are no units")
    log_mean = h.log_power(1.0) - math.log(h.n)
    value = max(0.0, (math.exp(log_mean) if log_mean < 709 else math.inf) - mean.value / h.n)
    return Number(value, None, None, value, "ratio", what)


def lost(stats: RatioStats, cap: float, method: Method = "best") -> Number:
    """`P_pi(r > C) = 1 - E_mu r 1{r <= C}`, the weight that rejection over `cap` loses, with its interval.

    Times sup |f| it bounds the bias of `seq_mis`. As `excess`, it needs `E_mu r = 1` and holds under any tail. A ratio
    that equals the cap to the last bits may be counted on either side.

    Args:
        stats: at any level.
        cap: C, a ratio pi/mu over 0.
        method: as `excess`.

    Raises:
        ValueError: unless 0 < cap < inf.

    Example:
        >>> import torch
        >>> from reweigh import SEQUENCE, Batch, RatioStats
        >>> log_mu = torch.full((40, 1), -5.0)
        >>> log_ratio = torch.tensor([0.25, 1.75]).log().repeat(20)[:, None]
        >>> stats = RatioStats.of(Batch.padded(log_mu + log_ratio, log_mu, torch.ones(40, 1)), SEQUENCE)
        >>> print(f"{lost(stats, 1.0).value:.3f} {lost(stats, 2.0).value:.3f}")
        0.875 0.000
    """
    h = to_host(stats)
    return _missing(h, _rejected(h, _cap(cap)), method, f"Mean weight that rejection over {cap:g} loses.")


def min2(stats: RatioStats, cap: float, method: Method = "best") -> Number:
    """`E_mu min(r, C)^2`, the second moment that truncation at `cap` leaves, with its interval.

    With `excess` it is what the error of a truncated estimator is made of: `|f|^2 (b(C)^2 + E min^2 / N)` at most. Its
    lower end bounds 1 + chi2 from below, for a cap that was chosen beforehand. It needs no `E_mu r = 1`.

    Args:
        stats: at any level.
        cap: C, a ratio pi/mu over 0.
        method: as `excess`; values are in [0, C^2], so that at large caps neither is narrow.

    Raises:
        ValueError: unless 0 < cap < inf.
    """
    h = to_host(stats)
    what = f"Mean square of weights truncated at {cap:g}."
    if not h.n:
        return Number(None, unit="ratio^2", meaning=what, refused="there are no units")
    mean = _truncated(h, _cap(cap), 2)
    low, high = mean.interval(h, method)
    value = mean.value / h.n
    return Number(value, min(low, value), max(high, value), value, "ratio^2", what)


@dataclass(frozen=True)
class _Sum:
    """A sum over units of values in [0, top], between sums that the grid gives exactly, with bounds of the squares."""

    value: float
    least: float
    most: float
    least_squares: float
    most_squares: float
    top: float

    def interval(self, h: HostSums, method: Method) -> tuple[float, float]:
        """Of the mean: the lower end for the least values, the upper one for the most."""
        n, n_eff, top = h.n, h.effective_n, self.top
        low, high = bounded(min(self.least / n, top), self.least_squares / n, n, n_eff, top, method)
        if self.most > self.least:
            high = bounded(min(self.most / n, top), self.most_squares / n, n, n_eff, top, method)[1]
        return low, high


def _missing(h: HostSums, left: _Sum, method: Method, what: str) -> Number:
    if not h.n:
        return Number(None, unit="ratio", meaning=what, refused="there are no units")
    low, high = left.interval(h, method)
    value = max(0.0, 1 - left.value / h.n)
    # A sample whose mean ratio is over 1 can leave 1 - low below 0, where nothing is missing.
    return Number(value, max(0.0, 1 - high), max(0.0, 1 - low), value, "ratio", what)


def _cap(cap: float) -> float:
    if not 0 < cap < math.inf:
        raise ValueError(f"cap must be over 0 and finite, got {cap}")
    return cap


def _split(h: HostSums, cap: float) -> tuple[int, float, float]:
    """Cells wholly below the cap; the lower and upper edge of the next, which the cap is in or at the foot of."""
    below = bisect.bisect_right(CAPS, cap * (1 + 1e-9))
    edges = (0.0, *CAPS, math.inf)
    return below, edges[below], edges[below + 1]


def _truncated(h: HostSums, cap: float, power: Literal[1, 2]) -> _Sum:
    """Sum of min(r, C)^power."""
    counts, sums, squares = (g.sum(0) for g in h.grid)
    rows = sums if power == 1 else squares
    below, foot, head = _split(h, cap)
    top, a, b = cap**power, foot**power, head**power
    inside, over = float(counts[below]), float(counts[below + 1 :].sum())
    known, rest = float(rows[:below].sum()), top * over
    # In the cap's own cell min(x, top) lies above its chord from (a, a) to (b, top), and below top.
    slope = max(0.0, top - a) / (b - a) if b < math.inf else 0.0
    chord = inside * a + max(0.0, float(rows[below]) - inside * a) * slope
    if power == 1:
        known_squares = float(squares[:below].sum())
    else:  # x^4 is at most x^2 times the square of its cell's upper edge
        known_squares = float((squares[:below] * np.square(CAPS[:below])).sum())
    tail_squares = top * rest + inside * top * top
    value = known + chord + rest
    return _Sum(
        value, value, known + inside * top + rest, known_squares + tail_squares, known_squares + tail_squares, top
    )


def _rejected(h: HostSums, cap: float) -> _Sum:
    """Sum of r 1{r <= C}."""
    _, sums, squares = (g.sum(0) for g in h.grid)
    counts = h.grid[0].sum(0)
    below, foot, head = _split(h, cap)
    known, known_squares = float(sums[:below].sum()), float(squares[:below].sum())
    if cap <= foot * (1 + 1e-9):  # a cap of the grid
        return _Sum(known, known, known, known_squares, known_squares, cap)
    inside = float(counts[below])
    share = math.log(cap / foot) / math.log(head / foot) if foot and head < math.inf else 0.0
    value = known + share * min(float(sums[below]), inside * cap)
    return _Sum(value, known, known + inside * cap, known_squares, known_squares + inside * cap * cap, cap)
