"""Statistics of a series of steps that depend on each other: means, growth, jumps, falls, periods, spikes.

Intervals are from means of blocks of steps.
"""

import math
from dataclasses import dataclass

import numpy as np

from reweigh.doctor.diagnosis import Evidence
from reweigh.doctor.metrics.history import Array, Series
from reweigh.stats.intervals import t_quantile

FEW = 4  # steps below which nothing is said of a spread
_MOST_BLOCKS = 20
GROWS = 1.5  # times over the run that matter
SURE = 1.2  # what the lower end of the interval has to be over
JUMP = 2.0  # times, at the first update or at a fall
NOISE = 4.0  # standard deviations of a step's logarithm that a jump has to be over
CLIMB = 0.8  # rank correlation with time between falls: a level that only scatters has 0
_PERIODS = 64  # the longest period looked for, in steps
_EXPLAINED = 0.6  # share of the variance that a period has to explain, after what chance explains
_FAR = 3.0  # times its neighbours from which a step is a spike


@dataclass(frozen=True)
class OverSteps:
    """A number with its 95% interval; both ends are infinite if there are too few steps for one.

    Attributes:
        value: the estimate.
        low: lower end.
        high: upper end.
        n: steps.
        agreed: share of the blocks of steps on the side of 0 that the estimate is on: 1 if it holds all along.
    """

    value: float
    low: float
    high: float
    n: int
    agreed: float = 1.0

    @property
    def ends(self) -> tuple[float | None, float | None]:
        """Ends of the interval as an `Evidence` has them."""
        return (self.low, self.high) if math.isfinite(self.low) else (None, None)


def blocks(values: Array) -> list[Array]:
    """Cuts steps into runs of neighbours, long enough that their means depend on each other little.

    Up to 8 steps each is its own block; after that there are sqrt(n) + 2 of them, at most 20.
    """
    n = len(values)
    count = n if n < 8 else min(_MOST_BLOCKS, math.isqrt(n) + 2)
    return [b for b in np.array_split(values, max(count, 1)) if len(b)]


def mean(values: Array) -> OverSteps:
    """Takes the mean over steps; its interval from the spread of block means, by Student's t.

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
        return OverSteps(value, -math.inf, math.inf, n)
    means = np.array([b.mean() for b in blocks(values)])
    half = t_quantile(0.975, len(means) - 1) * float(means.std(ddof=1)) / math.sqrt(len(means))
    return OverSteps(value, value - half, value + half, n, float((np.sign(means) == np.sign(value)).mean()))


def fold(series: Series, noisy: bool = False) -> OverSteps:
    """Divides the level at the end of the run by that at its start, by a line through block means of its logarithm.

    Args:
        series: a level, positive.
        noisy: it may be below 0 by chance: take the logarithm of block means then.
    """
    keep = np.ones(len(series), dtype=bool) if noisy else series.values > 0
    steps, values = series.steps[keep], series.values[keep]
    n = len(steps)
    if not np.isfinite(steps).all():  # numbers of steps that no float holds
        return OverSteps(math.nan, -math.inf, math.inf, n)
    x = np.array([b.mean() for b in blocks(steps)])
    y = np.array([b.mean() if noisy else np.log(b).mean() for b in blocks(values)])
    if noisy:
        x, y = x[y > 0], np.log(y[y > 0])
    spread = float(np.square(x - x.mean()).sum()) if len(x) else 0.0
    if len(x) < FEW + 1 or not spread > 0:
        return OverSteps(math.nan, -math.inf, math.inf, n)
    slope = float(((x - x.mean()) * y).sum() / spread)
    rest = y - y.mean() - slope * (x - x.mean())
    error = math.sqrt(float(np.square(rest).sum()) / (len(x) - 2) / spread)
    half = t_quantile(0.975, len(x) - 2) * error
    span = float(steps[-1] - steps[0])
    low, middle, high = (math.exp(min(max(s * span, -700.0), 700.0)) for s in (slope - half, slope, slope + half))
    return OverSteps(middle, low, high, n)


def correlation(a: Series, b: Series) -> OverSteps:
    """Correlates the changes from step to step, so that two trends alone do not correlate.

    The interval is Fisher's, with half as many values as there are changes, because neighbouring ones share a step.
    """
    a, b = a.with_(b)
    x, y = np.diff(a.values), np.diff(b.values)
    n = len(x)
    if n < 10 or not (x.std() > 0 and y.std() > 0):
        return OverSteps(math.nan, -math.inf, math.inf, n)
    r = float(np.corrcoef(x, y)[0, 1])
    z, half = math.atanh(min(max(r, -0.999999), 0.999999)), 1.96 / math.sqrt(n / 2 - 3) if n > 8 else math.inf
    return OverSteps(r, math.tanh(z - half), math.tanh(z + half), n)


def ranks(a: Array, b: Array) -> float:
    """Correlates the ranks of two series (ties by order)."""
    x, y = (np.argsort(np.argsort(v, kind="stable"), kind="stable").astype(float) for v in (a, b))
    return float(np.corrcoef(x, y)[0, 1]) if len(x) > 2 else math.nan


def logs(series: Series) -> Series:
    """Takes logarithms where the values are positive."""
    kept = series.at(series.values > 0)
    return Series(kept.steps, np.log(kept.values))


def deviation(changes: Array) -> float:
    """Estimates the deviation of a step's value by the median change between neighbours: falls do not count."""
    return 1.4826 * float(np.median(np.abs(changes - np.median(changes)))) / math.sqrt(2)


def onset(series: Series, rate: Series | None) -> tuple[Evidence | None, int]:
    """Finds the jump at the first update, and how many steps stand before it.

    Args:
        series: a level.
        rate: the learning rate, if it is known: the first update is where it first is over 0; else the first step is.
    """
    level = logs(series)
    first = 1
    if rate is not None and (rate.values > 0).any():
        moved = float(rate.steps[rate.values > 0][0])
        first = int(np.searchsorted(level.steps, moved, side="right"))
    before, after = level.values[:first], level.values[first : first + 10]
    if len(level) < len(series) or len(before) < 1 or len(after) < FEW:
        return None, 0
    size = float(after.mean() - before.mean())
    noise = max(float(after.std(ddof=1)), deviation(np.diff(level.values[first:])))
    gradual = abs(float(after[0] - before[-1])) < size / 2
    if gradual or size < max(math.log(JUMP), NOISE * noise):
        return None, 0
    half = 1.96 * noise * math.sqrt(1 / len(before) + 1 / len(after))
    where = f"level after step {level.steps[first - 1]:g} over that before, the first update (n counts steps)"
    return Evidence("onset", math.exp(size), where, math.exp(size - half), math.exp(size + half), len(level)), first


def falls(series: Series) -> tuple[Evidence | None, list[float]]:
    """Finds climbs and falls, and the steps at which the level is down."""
    level = logs(series)
    if len(level) < 8:
        return None, []
    changes = np.diff(level.values)
    places = np.flatnonzero(changes < -max(math.log(JUMP), NOISE * math.sqrt(2) * deviation(changes)))
    ends = [0, *(places + 1).tolist()]
    climbs = [
        ranks(level.values[a:b], np.arange(b - a, dtype=float))
        for a, b in zip(ends, [*ends[1:], len(level)], strict=True)
        if b - a >= FEW
    ]
    if len(places) < 2 or len(climbs) < 2 or float(np.median(climbs)) < CLIMB:
        return None, []
    at = ", ".join(f"{level.steps[p + 1]:g}" for p in places[:4])
    text = f"times that the level climbs and falls back by half or more, at steps {at}: a restart, an update, a cache"
    return Evidence("falls_back", float(len(places)), text, n=len(level)), [float(level.steps[e]) for e in ends]


def jump(series: Series) -> tuple[Evidence | None, float]:
    """Finds the step from which the level is another one, if there is one such step and no slope; and that step."""
    level = logs(series)
    y, n = level.values, len(level)
    if n < 2 * (FEW + 2):
        return None, 0.0
    noise = max(deviation(np.diff(y)), 1e-3)
    cuts = range(FEW, n - FEW + 1)
    gain = [abs(y[c:].mean() - y[:c].mean()) / math.sqrt(1 / c + 1 / (n - c)) for c in cuts]
    cut = cuts[int(np.argmax(gain))]
    size = float(np.median(y[cut:]) - np.median(y[:cut]))
    near = float(np.median(y[cut : cut + 3]) - np.median(y[cut - 3 : cut]))
    error = noise * math.sqrt(1 / cut + 1 / (n - cut))
    x = np.arange(n, dtype=float)
    by_line = y - np.polyval(np.polyfit(x, y, 1), x)
    by_step = np.concatenate([y[:cut] - y[:cut].mean(), y[cut:] - y[cut:].mean()])
    fits = float(np.square(by_step).sum()) < 0.5 * float(np.square(by_line).sum())
    if abs(size) < max(math.log(JUMP), 8 * error) or near / size < 0.6 or not fits:
        return None, 0.0
    at = float(level.steps[cut])
    half = 1.96 * error
    text = f"level from step {at:g} on over that before (n counts steps)"
    return Evidence("jump", math.exp(size), text, math.exp(size - half), math.exp(size + half), n), at


@dataclass(frozen=True)
class Period:
    """A level that repeats itself.

    Attributes:
        steps: its length.
        climbs: True if it climbs over the period and then falls back.
        evidence: the number, in words.
    """

    steps: int
    climbs: bool
    evidence: Evidence


def period(series: Series) -> Period | None:
    """Finds the period with which the level repeats itself, where steps are evenly spaced."""
    level = logs(series)
    n = len(level)
    gaps = np.diff(level.steps)
    if n < 16 or not len(gaps) or gaps.min() != gaps.max():
        return None
    x = np.arange(n, dtype=float)
    y = level.values - np.polyval(np.polyfit(x, level.values, 1), x)
    whole = float(np.square(y).sum())
    best: tuple[float, int, Array] | None = None
    for p in range(2, min(n // 4, _PERIODS) + 1):
        phases = np.array([y[i::p].mean() for i in range(p)])
        rest = float(np.square(y - phases[np.arange(n) % p]).sum()) / (n - p) * (n - 1)
        explained = 1 - rest / whole if whole > 0 else 0.0
        if best is None or explained > best[0] + 0.05:  # a multiple of a period explains as much
            best = (explained, p, phases)
    if best is None or best[0] < _EXPLAINED or math.exp(np.ptp(best[2])) < GROWS:
        return None
    explained, p, phases = best
    turned = np.roll(phases, -int(np.argmin(phases)))
    climbs = p > 2 and ranks(turned, np.arange(p, dtype=float)) > CLIMB
    how = "climbs and falls back" if climbs else "repeats itself"
    size = math.exp(float(np.ptp(phases)))
    text = (
        f"steps after which the level {how}, by a factor of {size:.2g}; that explains {explained:.0%} of its variance"
    )
    return Period(p, climbs, Evidence("period", float(p * gaps[0]), text, n=n))


def spikes(series: Series) -> tuple[list[float], float]:
    """Finds single steps far above the rest: their places, and the largest over the median."""
    level = logs(series)
    if len(level) < 8:
        return [], 1.0
    middle = float(np.median(level.values))
    noise = max(deviation(np.diff(level.values)), 1e-3)
    far = level.values - middle > max(math.log(_FAR), 6 * noise)
    return level.steps[far].tolist(), math.exp(min(float(level.values.max()) - middle, 700.0))
