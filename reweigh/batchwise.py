"""Transforms that look at the whole batch: what a unit weighs depends on the others."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reweigh.transforms import Transform


@final
@dataclass(frozen=True)
class MeanAtMost(Transform):
    """Drop the largest statistics until the mean of those that stay is at most `bound`; survivors weigh 1.

    The choice is made over the whole batch, so the result depends on what is in the batch. It costs one sort.

    Args:
        bound: in the statistic's unit, at least 0.

    Raises:
        ValueError: unless bound >= 0.
    """

    reads_batch: ClassVar[bool] = True
    bound: float

    def __post_init__(self) -> None:
        """Refuse a bound that would drop everything, silently."""
        if not self.bound >= 0:
            raise ValueError(f"MeanAtMost: bound must be >= 0, got {self.bound}")

    def __call__(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Sort, and keep the longest run of smallest values whose mean is within the bound."""
        # Zeros would be kept in any case, and non-units sort last, so neither changes which units stay.
        flat = torch.where(valid, x, torch.inf).flatten()
        ordered, order = flat.sort()
        count = torch.arange(1, flat.numel() + 1, device=x.device, dtype=torch.float64)
        inside = ordered.double().cumsum(0) <= self.bound * count
        keep = torch.zeros_like(inside).scatter(0, order, inside).view(x.shape)
        return torch.zeros_like(x), valid & keep


@final
@dataclass(frozen=True)
class ParetoSmooth(Transform):
    """Replace the largest ratios by the expected order statistics of a generalised Pareto fit to them (PSIS).

    The fit is over all units of the batch, by `arviz_stats` (`pip install "reweigh[audit]"`), in NumPy: it leaves the
    device and is not for `torch.compile`. Smoothed ratios are cut at the largest raw one, as PSIS prescribes. With
    fewer than 25 units there is no tail to fit and the ratios stay as they are.

    Args:
        min_units: fewest units for a fit.

    Source: Vehtari, Simpson, Gelman, Yao, Gabry (2024), Pareto smoothed importance sampling, JMLR 25.
    """

    reads_batch: ClassVar[bool] = True
    min_units: int = 25

    def __call__(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Fit, smooth and put back."""
        live = x[valid].detach().double().cpu().numpy()
        fit = smoothed_tail(live) if len(live) >= self.min_units else None
        return (x, valid) if fit is None else (x.masked_scatter(valid, torch.from_numpy(fit[0]).to(x)), valid)


def smoothed_tail(log_ratio: NDArray[np.float64]) -> tuple[NDArray[np.float64], float] | None:
    """Log ratios with their upper tail smoothed, and its index; None if the tail has too many ties for a fit."""
    from arviz_stats.base.array import array_stats

    n = len(log_ratio)
    tail = n // 5 if n <= 225 else int(3 * math.sqrt(n))  # Vehtari et al. 2024
    if np.ptp(np.sort(log_ratio)[n - tail :]) < 1e-12:  # on-policy, say
        return None
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # ties at the foot, or e^2000, make the fit NaN
        # It takes log-likelihoods, whose negatives are the log-weights.
        smoothed, index = array_stats.psislw(-log_ratio)
    if not np.isfinite(smoothed).all():
        return None
    # Its weights sum to 1. Smoothing leaves the body of the sample as it was, so its smallest member tells what to add
    # to be back on the scale of ratios.
    lowest = log_ratio.argmin()
    return smoothed + (log_ratio[lowest] - smoothed[lowest]), float(index)
