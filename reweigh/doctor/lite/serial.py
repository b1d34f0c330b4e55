"""Means and trends of a history whose steps depend on each other: intervals from means of blocks of steps."""

import math
from dataclasses import dataclass

import numpy as np

from reweigh.doctor.lite.history import Array, Series
from reweigh.stats.intervals import t_quantile

FEW = 4  # steps below which nothing is said of a spread
_MOST_BLOCKS = 20


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval; both ends are infinite if there are too few steps for one.

    Attributes:
        value: the estimate.
        low: lower end.
        high: upper end.
        n: steps.
    """

    value: float
    low: float
    high: float
    n: int

    @property
    def ends(self) -> tuple[float | None, float | None]:
        """As an `Evidence` has them."""
        return (self.low, self.high) if math.isfinite(self.low) else (None, None)


def blocks(values: Array) -> list[Array]:
    """Runs of neighbouring steps, long enough that their means depend on each other little.

    Up to 8 steps each is its own block; after that there are sqrt(n) + 2 of them, at most 20.
    """
    n = len(values)
    count = n if n < 8 else min(_MOST_BLOCKS, math.isqrt(n) + 2)
    return [b for b in np.array_split(values, max(count, 1)) if len(b)]


def mean(values: Array) -> Estimate:
    """Mean over steps; its interval from the spread of block means, by Student's t.

    Example:
        >>> import numpy as np
        >>> e = mean(np.array([1.0, 2.0, 3.0, 4.0]))
        >>> print(f"{e.value:.1f} {e.low:.2f} {e.high:.2f}")
        2.5 0.45 4.55

    Source: batch means, for example Law (2015), section 9.5.3.
    """
    n = len(values)
    value = float(values.mean()) if n else math.nan
    if n < FEW:
        return Estimate(value, -math.inf, math.inf, n)
    means = np.array([b.mean() for b in blocks(values)])
    half = t_quantile(0.975, len(means) - 1) * float(means.std(ddof=1)) / math.sqrt(len(means))
    return Estimate(value, value - half, value + half, n)


def minus(a: Estimate, b: Estimate) -> Estimate:
    """Difference of two means of which nothing is known together: half widths add."""
    return Estimate(a.value - b.value, a.low - b.high, a.high - b.low, min(a.n, b.n))


def fold(series: Series, noisy: bool = False) -> Estimate:
    """Level at the end of the run over that at its start, by a line through block means of its logarithm.

    Args:
        series: a level, positive.
        noisy: it may be below 0 by chance: take the logarithm of block means then.
    """
    keep = np.ones(len(series), dtype=bool) if noisy else series.values > 0
    steps, values = series.steps[keep], series.values[keep]
    n = len(steps)
    x = np.array([b.mean() for b in blocks(steps)])
    y = np.array([b.mean() if noisy else np.log(b).mean() for b in blocks(values)])
    if noisy:
        x, y = x[y > 0], np.log(y[y > 0])
    spread = float(np.square(x - x.mean()).sum()) if len(x) else 0.0
    if len(x) < FEW + 1 or not spread > 0:
        return Estimate(math.nan, -math.inf, math.inf, n)
    slope = float(((x - x.mean()) * y).sum() / spread)
    rest = y - y.mean() - slope * (x - x.mean())
    error = math.sqrt(float(np.square(rest).sum()) / (len(x) - 2) / spread)
    half = t_quantile(0.975, len(x) - 2) * error
    span = float(steps[-1] - steps[0])
    low, middle, high = (math.exp(min(max(s * span, -700.0), 700.0)) for s in (slope - half, slope, slope + half))
    return Estimate(middle, low, high, n)


def correlation(a: Series, b: Series) -> Estimate:
    """Correlation of the changes from step to step, so that two trends alone do not correlate.

    The interval is Fisher's, with half as many values as there are changes, because neighbouring ones share a step.
    """
    a, b = a.with_(b)
    x, y = np.diff(a.values), np.diff(b.values)
    n = len(x)
    if n < 10 or not (x.std() > 0 and y.std() > 0):
        return Estimate(math.nan, -math.inf, math.inf, n)
    r = float(np.corrcoef(x, y)[0, 1])
    z, half = math.atanh(min(max(r, -0.999999), 0.999999)), 1.96 / math.sqrt(n / 2 - 3) if n > 8 else math.inf
    return Estimate(r, math.tanh(z - half), math.tanh(z + half), n)
