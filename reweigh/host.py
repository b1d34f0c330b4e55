"""The sums of `RatioStats` on the host, as NumPy arrays."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from reweigh.intervals import Interval, bounded, design_effect
from reweigh.stats import RatioStats
from reweigh.sums import CLUSTER, MOMENTS, POWERS

Array = NDArray[np.float64]
SERIES_LIMIT = 0.01  # nats: the first term left out, l^3 / 6, is then at most a third of a percent of l^2 / 2


@dataclass(frozen=True)
class HostSums:
    """The sums as NumPy arrays on the host."""

    level: str
    moments: dict[str, Array]
    shift: Array
    powers: Array
    grid: Array
    blocks: Array
    peaks: Array
    top: Array
    clusters: dict[str, Array]
    dropped: float

    @property
    def n(self) -> float:
        """Number of units."""
        return float(self.moments["n"].sum())

    @property
    def renyi2(self) -> float:
        """`log(n sum r^2 / (sum r)^2) = log(n / ESS)`, nats: log(1 + chi2), self-normalised.

        Dividing by the sample's own mean ratio takes out most of the noise that the mean of r^2 shares with it, and
        keeps the figure and the effective share of units one statement.
        """
        if self.tiny:  # the variance of the log ratio: float32 sums resolve it long after they have lost e^l - 1
            return max(0.0, self.total("l2") / self.n - (self.total("l") / self.n) ** 2)
        return math.log(self.n) + self.log_power(2.0) - 2 * self.log_power(1.0)

    @property
    def tiny(self) -> bool:
        """Whether all log ratios are so small that a series in them is exact to 0.5%, and sums of e^l are rounding."""
        return bool(max(self.peaks[0], self.peaks[1]) < SERIES_LIMIT)

    @property
    def shift_max(self) -> float:
        """The largest shift, nats: what `clusters` is scaled by."""
        return float(self.shift.max())

    @cached_property
    def effective_n(self) -> float:
        """Number of independent units that would know the total variation as well as these clustered ones do."""
        mean = self.total("tv") / self.n
        variance = max(0.0, self.total("tv2") / self.n - mean * mean)
        return self.n / design_effect(self.clusters["tv"], self.clusters["n"], self.n, variance)

    @cached_property
    def tv_interval(self) -> Interval:
        """95% interval of the total variation."""
        n = self.n
        return bounded(self.total("tv") / n, self.total("tv2") / n, n, self.effective_n)

    def total(self, name: str) -> float:
        """A moment over all length bins."""
        return float(self.moments[name].sum())

    def log_power(self, k: float) -> float:
        """log of the sum of r^k over all units, nats; -inf if there are none."""
        row = self.powers[POWERS.index(k)]
        top = k * self.shift_max
        total = float((row * np.exp(k * self.shift - top)).sum())
        if total > 0:
            return math.log(total) + top
        # Every ratio is below what a float64 can hold: the largest ones, kept as logs, are what there is to go by.
        largest = k * self.top[np.isfinite(self.top)]
        return float(np.logaddexp.reduce(largest)) if len(largest) else -math.inf


def to_host(stats: RatioStats) -> HostSums:
    """Bring the sums over: one copy, one synchronisation."""
    names = ("moments", "shift", "powers", "grid", "blocks", "peaks", "top", "clusters", "dropped")
    tensors = [getattr(stats, name) for name in names]
    flat = torch.cat([t.reshape(-1) for t in tensors]).cpu().numpy()
    parts = np.split(flat, np.cumsum([t.numel() for t in tensors])[:-1])
    a = {name: part.reshape(tuple(t.shape)) for name, part, t in zip(names, parts, tensors, strict=True)}
    return HostSums(
        stats.level.name,
        dict(zip(MOMENTS, a["moments"], strict=True)),
        a["shift"],
        a["powers"],
        a["grid"],
        a["blocks"],
        a["peaks"],
        a["top"],
        dict(zip(CLUSTER, a["clusters"].T, strict=True)),
        float(a["dropped"]),
    )
