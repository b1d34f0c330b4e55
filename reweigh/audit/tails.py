"""The upper tail of the ratios of a level: its largest, and the Pareto curve whose index is khat."""

import math
from dataclasses import dataclass

import numpy as np

from reweigh.batchwise import smoothed_tail
from reweigh.stats import RatioStats
from reweigh.summary import Summary
from reweigh.tail import MAX_KHAT, MIN_UNITS

_KEPT = 7225  # units whose tail, 3 sqrt(n) of them, is as long as what is kept


@dataclass(frozen=True)
class Tail:
    """The largest ratios of one level.

    Attributes:
        n: units that there are.
        log_ratios: the largest, in falling order, nats. The share of units with at least the i-th, from 0, is about
            `(i + 1/2) / n`.
        fitted: what the Pareto fit has in their places, as far as its tail goes; empty without a fit.
        khat: index of the tail; None without a fit.
        limit: the index beyond which moments are refused.
    """

    n: int
    log_ratios: tuple[float, ...]
    fitted: tuple[float, ...]
    khat: float | None
    limit: float


def tail_of(stats: RatioStats, summary: Summary) -> Tail:
    """The tail of some stats; `summary` is of them."""
    top = stats.top.cpu().numpy()
    top = top[np.isfinite(top)]
    limit = min(MAX_KHAT, 1 - 1 / math.log10(summary.n)) if summary.n > 1 else 0.0
    khat = summary.numbers["khat"].value
    fitted: tuple[float, ...] = ()
    if khat is not None and summary.n >= MIN_UNITS:
        n = min(summary.n, _KEPT)
        body = np.full(n, top[-1] - 1.0)  # only the tail is read, so what stands for the rest may be anything below it
        body[: min(n, len(top))] = top[:n]
        length = n // 5 if n <= 225 else int(3 * math.sqrt(n))  # Vehtari et al. 2024
        fit = smoothed_tail(body)
        if fit is not None:
            fitted = tuple(np.sort(fit[0])[::-1][: min(length, len(top))].tolist())
    return Tail(summary.n, tuple(top.tolist()), fitted, khat, limit)
