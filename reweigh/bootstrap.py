"""Bootstrap intervals from per-cluster sums: an optimistic companion, for a look beside the intervals that hold."""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from reweigh.host import HostSums, to_host
from reweigh.intervals import Interval
from reweigh.stats import RatioStats
from reweigh.tail import exp

Array = NDArray[np.float64]
DRAWS = 1000  # the ends of a 95% interval then move by about 2% of its width from seed to seed (Efron 1987)
Columns = dict[str, Array]


def bootstrap(stats: RatioStats, alpha: float = 0.05, draws: int = DRAWS, seed: int = 0) -> dict[str, Interval]:
    """Percentile intervals of the numbers of `summarise` that are ratios of sums, by resampling whole clusters.

    Clusters are the 64 buckets of prompts (or of sequences, if the batch has no `group`) that stats keep, so that it
    merges: the intervals of `a + b` are those of one batch. **Optimistic**: nothing that the sample has not seen can be
    in it. For the total variation it covers nearly as often as it says; for `renyi2` and `ess_fraction` of a heavy
    tail hardly ever (docs/intervals.md has the shares). It never overrules a refusal.

    Args:
        stats: at any level.
        alpha: one minus the coverage that it aims at.
        draws: resamples.
        seed: of the resamples; the same one gives the same intervals.

    Returns:
        By name: mean_ratio, unseen, kl_k1, kl_k3, mean_abs, sd, tv, renyi2 and ess_fraction; kl_k3 at TOKEN level
        only. (-inf, inf) each with fewer than two clusters.

    Raises:
        ValueError: unless 0 < alpha < 1 and draws >= 1.

    Example:
        >>> import torch
        >>> from reweigh import TOKEN, Batch, RatioStats
        >>> g = torch.Generator().manual_seed(0)
        >>> log_mu = -2 - torch.rand(64, 100, generator=g)
        >>> batch = Batch.padded(log_mu + 0.1 * torch.randn(64, 100, generator=g), log_mu, torch.ones(64, 100))
        >>> low, high = bootstrap(RatioStats.of(batch, TOKEN))["mean_abs"]
        >>> print(f"{low:.3f} {high:.3f}")
        0.079 0.082

    Source: Efron (1979); whole clusters as Davison and Hinkley (1997), section 3.8.
    """
    h = to_host(stats)
    scale = exp(h.shift_max)
    log_scale = h.shift_max

    def of(statistic: Callable[[Columns], Array]) -> Interval:
        return resample(h.clusters, h.clusters["n"], statistic, alpha, draws, seed)

    def renyi2(c: Columns) -> Array:
        return np.maximum(0.0, _renyi2(h, c))

    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        out = {
            "mean_ratio": of(lambda c: np.exp(np.log(c["w1"] / c["n"]) + log_scale)),
            "unseen": of(lambda c: 1 - np.exp(np.log(c["w1"] / c["n"]) + log_scale)),
            "kl_k1": of(lambda c: -c["l"] / c["n"]),
            "mean_abs": of(lambda c: c["abs"] / c["n"]),
            "sd": of(lambda c: np.sqrt(np.maximum(0.0, c["l2"] / c["n"] - (c["l"] / c["n"]) ** 2))),
            "tv": of(lambda c: c["tv"] / c["n"]),
            "renyi2": of(renyi2),
            "ess_fraction": of(lambda c: np.exp(-renyi2(c))),
        }
        if h.level == "token":
            out["kl_k3"] = of(lambda c: c["l2"] / c["n"] / 2 if h.tiny else (c["w1"] * scale - c["l"]) / c["n"] - 1)
    return out


def resample(
    columns: Columns,
    count: Array,
    statistic: Callable[[Columns], Array],
    alpha: float = 0.05,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Percentile interval of any function of cluster sums: clusters drawn with replacement, as many as there are.

    Args:
        columns: by name, the sum over each cluster, `[G]`.
        count: units of each cluster, `[G]`; clusters of none are left out.
        statistic: from sums by name, each `[draws]`, to values `[draws]`.
        alpha: one minus the coverage that it aims at.
        draws: resamples.
        seed: of the resamples.

    Returns:
        (low, high); (-inf, inf) with fewer than two clusters.

    Raises:
        ValueError: unless 0 < alpha < 1 and draws >= 1.

    Example:
        >>> import numpy as np
        >>> values = {"x": np.arange(30.0), "n": np.ones(30)}
        >>> low, high = resample(values, values["n"], lambda c: c["x"] / c["n"])
        >>> print(f"{low:.1f} {high:.1f}")
        11.5 17.6
    """
    if not 0 < alpha < 1 or draws < 1:
        raise ValueError(f"bootstrap: 0 < alpha < 1 and draws >= 1 are needed, got alpha={alpha}, draws={draws}")
    some = count > 0
    groups = int(some.sum())
    if groups < 2:
        return -math.inf, math.inf
    sums = _times(groups, draws, seed) @ np.stack([x[some] for x in columns.values()], -1)
    values = statistic(dict(zip(columns, sums.T, strict=True)))
    low, high = np.quantile(values, [alpha / 2, 1 - alpha / 2])
    return float(low), float(high)


@lru_cache(maxsize=8)
def _times(groups: int, draws: int, seed: int) -> Array:
    """How often each cluster is drawn in each resample, `[draws, groups]`."""
    times = np.random.default_rng(seed).multinomial(groups, [1 / groups] * groups, size=draws)
    return times.astype(np.float64)


def _renyi2(h: HostSums, c: Columns) -> Array:
    if h.tiny:
        return c["l2"] / c["n"] - (c["l"] / c["n"]) ** 2
    return np.log(c["n"]) + np.log(c["w2"]) - 2 * np.log(c["w1"])
