"""Transforms: how a unit's value becomes its log-weight, and whether it is kept; alone or in view of the batch."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor


class Transform(ABC):
    """`(x, valid) -> (log_w, keep)`: x is the level's value of each unit, valid says which units exist.

    `keep` is never True where `valid` is False. What `log_w` holds at a unit that is not kept is not read.

    Attributes:
        reads_batch: whether a unit's result depends on the other units of the batch; False unless a subclass says so.
        moves_to_bound: whether a weight that is not the ratio is a bound, to be counted; False unless a subclass says
            so.
    """

    reads_batch: ClassVar[bool] = False
    moves_to_bound: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Log-weight of each unit, in nats, and which units stay."""


@final
@dataclass(frozen=True)
class Identity(Transform):
    """The weight is the ratio: `log w = x`."""

    def __call__(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Leave every ratio as it is."""
        return x, valid


@final
@dataclass(frozen=True)
class Clip(Transform):
    """A ratio outside [low, high] moves to the nearest bound: `w = min(max(r, low), high)`.

    Args:
        low: ratio pi/mu, at least 0.
        high: ratio pi/mu, at least low.

    Raises:
        ValueError: unless 0 <= low <= high.
    """

    moves_to_bound: ClassVar[bool] = True
    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        """Refuse bounds that cross."""
        _check_bounds("Clip", self.low, self.high)

    def __call__(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Move values to the bounds."""
        return x.clamp(_log(self.low), _log(self.high)), valid


def Truncate(cap: float) -> Clip:  # noqa: N802 - it is a name of the algebra, used like one
    """A ratio over `cap` weighs `cap`: `w = min(r, cap)`; that is `Clip(high=cap)`."""
    return Clip(high=cap)


@final
@dataclass(frozen=True)
class Reject(Transform):
    """A unit with its ratio outside [low, high] is dropped; the others keep their ratio as weight.

    Args:
        low: ratio pi/mu, at least 0; the bound itself is kept.
        high: ratio pi/mu, at least low; the bound itself is kept.

    Raises:
        ValueError: unless 0 <= low <= high.
    """

    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        """Refuse bounds that cross."""
        _check_bounds("Reject", self.low, self.high)

    def __call__(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Drop what is outside."""
        return x, valid & (x >= _log(self.low)) & (x <= _log(self.high))


@final
@dataclass(frozen=True)
class Screen(Transform):
    """A unit with its ratio outside [low, high] is dropped; the others weigh 1.

    Args:
        low: ratio pi/mu, at least 0; the bound itself is kept.
        high: ratio pi/mu, at least low; the bound itself is kept.

    Raises:
        ValueError: unless 0 <= low <= high.
    """

    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        """Refuse bounds that cross."""
        _check_bounds("Screen", self.low, self.high)

    def __call__(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Drop what is outside; weigh the rest 1."""
        return torch.zeros_like(x), valid & (x >= _log(self.low)) & (x <= _log(self.high))


@final
@dataclass(frozen=True)
class Outside(Transform):
    """A unit with its ratio strictly between low and high is dropped; the others weigh 1. `Screen` turned round.

    Args:
        low: ratio pi/mu, at least 0; the bound itself is kept.
        high: ratio pi/mu, at least low; the bound itself is kept.

    Raises:
        ValueError: unless 0 <= low <= high.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        """Refuse bounds that cross."""
        _check_bounds("Outside", self.low, self.high)

    def __call__(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Drop what is between; weigh the rest 1."""
        return torch.zeros_like(x), valid & ((x <= _log(self.low)) | (x >= _log(self.high)))


@final
@dataclass(frozen=True)
class AtMost(Transform):
    """A unit whose statistic is over `bound` is dropped; the others weigh 1.

    Args:
        bound: in the statistic's unit: nats for k1, k2, k3 and binary_kl, a probability for prob_diff.

    Raises:
        ValueError: if bound is NaN.
    """

    bound: float

    def __post_init__(self) -> None:
        """Refuse a bound that nothing can be compared with."""
        if math.isnan(self.bound):
            raise ValueError("AtMost: bound must be a number, got nan")

    def __call__(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Drop what is over the bound; weigh the rest 1."""
        return torch.zeros_like(x), valid & (x <= self.bound)


@final
@dataclass(frozen=True)
class Shrink(Transform):
    """Smooth shrinkage of large ratios: `w = lam r / (r^2 + lam)`.

    Small ratios stay (`w -> r`), large ones fall back to 0 (`w -> lam / r`); the peak is `sqrt(lam) / 2` at `r =
    sqrt(lam)`. Unlike truncation it is not monotone: it distrusts extreme ratios, as rejection does, without an edge.
    At r = 1 the weight is `lam / (1 + lam)`.

    Args:
        lam: ratio squared, over 0. `lam -> inf` gives the ratio itself.

    Raises:
        ValueError: unless lam > 0.

    Source: Su, Dimakopoulou, Krishnamurthy, Dudik (2020), Doubly robust off-policy evaluation with shrinkage, the
    "optimistic" weight.
    """

    lam: float

    def __post_init__(self) -> None:
        """Refuse a constant that would make the weight 0 or negative."""
        if not self.lam > 0:
            raise ValueError(f"Shrink: lam must be > 0, got {self.lam}")

    def __call__(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Shrink in log space."""
        if math.isinf(self.lam):
            return x, valid
        log_lam = math.log(self.lam)
        return x - torch.logaddexp(2 * x - log_lam, torch.zeros_like(x)), valid


@final
@dataclass(frozen=True)
class Power(Transform):
    """The ratio to a power: `w = r^alpha`; 0 is naive, 1 is importance sampling.

    Args:
        alpha: in [0, 1].

    Raises:
        ValueError: unless 0 <= alpha <= 1.

    Also called: exponential smoothing of the weights. Source: Aouali, Brunel, Rohde, Korba (2023), Exponential
    smoothing for off-policy learning.
    """

    alpha: float

    def __post_init__(self) -> None:
        """Refuse powers that would sharpen the weights or turn them round."""
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"Power: alpha must be in [0, 1], got {self.alpha}")

    def __call__(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Scale the log ratio."""
        return self.alpha * x, valid


@final
@dataclass(frozen=True)
class SoftKernel(Transform):
    """A smooth gate around a ratio of 1: `w = r^a e^(b (1 - r))`, largest at `r = a / b`.

    Args:
        a: power at small ratios, over 0.
        b: rate of decay at large ratios, over 0.

    Raises:
        ValueError: unless a > 0 and b > 0.

    Source: Shen, Zhao, Cheng, Huang, Yu (2026), VESPO, eq. 17.
    """

    a: float
    b: float

    def __post_init__(self) -> None:
        """Refuse shapes that do not fall off."""
        if not (self.a > 0 and self.b > 0):
            raise ValueError(f"SoftKernel: a and b must be > 0, got a={self.a}, b={self.b}")

    def __call__(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Where exp(x) overflows, the weight is 0, as it should be."""
        return self.a * x - self.b * torch.expm1(x), valid


@final
@dataclass(frozen=True)
class SigmoidGate(Transform):
    """A smooth trust region: `w = r sech^2(tau (r - 1) / 2)`, what `4 sigmoid(tau (r - 1)) / tau` has for a slope.

    An objective of that sigmoid moves a token's score by its derivative times r, `4 s (1 - s) r`, which is this.
    It is 1 at r = 1, like r for small ratios, and falls as `4 r e^(-tau r)` for large ones.

    Args:
        tau: temperature, over 0; the larger, the narrower.

    Raises:
        ValueError: unless tau > 0.

    Source: Gao et al. (2025), Soft adaptive policy optimization, 2511.20347.
    """

    tau: float

    def __post_init__(self) -> None:
        """Refuse a temperature that would turn the gate round."""
        if not self.tau > 0:
            raise ValueError(f"SigmoidGate: tau must be > 0, got {self.tau}")

    def __call__(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """`log sech^2(h) = 2 (log 2 - |h| - log(1 + e^(-2 |h|)))`, so that no cosh overflows."""
        half = (self.tau / 2 * torch.expm1(x)).abs()
        return x + 2 * (math.log(2) - half - torch.log1p(torch.exp(-2 * half))), valid


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


@runtime_checkable
class Cap(Protocol):
    """Anything that chooses a cap in view of the units that it caps; `reweigh.caps` has the rules."""

    def log_cap(self, log_ratio: Float[Tensor, "*unit"], valid: Bool[Tensor, "*unit"]) -> Float[Tensor, ""]:
        """Log of the cap, nats, 0-d.

        Args:
            log_ratio: of each unit, nats.
            valid: which of them are units.
        """
        ...


@final
@dataclass(frozen=True)
class TruncateAt(Transform):
    """A ratio over the rule's cap weighs the cap: `w = min(r, C)`, C being chosen on the batch or on the rule's stats.

    At TURN level a turn counts once for each of its tokens; give the rule stats of that level to count it once.

    Args:
        rule: `Balance()`, `Tradeoff()`, `Post()`, `PostBatch()`, `Cubic()`, `SqrtN()` of `reweigh.caps`, or any other.
    """

    reads_batch: ClassVar[bool] = True
    moves_to_bound: ClassVar[bool] = True
    rule: Cap

    def __call__(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the cap, then truncate at it."""
        return torch.minimum(x, self.rule.log_cap(x, valid).to(x.dtype)), valid


@final
@dataclass(frozen=True)
class ParetoSmooth(Transform):
    """Replace the largest ratios by the expected order statistics of a generalised Pareto fit to them (PSIS).

    The fit is over all units of the batch, in NumPy: it leaves the device and is not for `torch.compile`. Smoothed
    ratios are cut at the largest raw one, as PSIS prescribes. With fewer than 25 units there is no tail to fit and the
    ratios stay as they are.

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
    """Smooth the upper tail of log ratios: these, and the tail's index; None if it has too many ties for a fit.

    The tail is the `tail_length(n)` largest without those that tie with the largest below them, at least
    `MIN_TAIL` different ones. Each is moved to the quantile of the fitted distribution that its rank stands for, at
    most to the largest ratio there is.
    """
    n = len(log_ratio)
    order = np.argsort(log_ratio)
    foot_log, tail, different = tail_over(log_ratio[order])
    log_tail = log_ratio[order[n - tail :]]
    if different < MIN_TAIL or log_tail[-1] - foot_log < 1e-12:  # on-policy, say
        return None
    largest = log_tail[-1]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # what the fit cannot carry comes out as NaN
        foot = np.exp(foot_log - largest)  # ratios of the largest, so that e^2000 is no matter
        index, scale = pareto_fit(np.exp(log_tail - largest) - foot)
        rank = (np.arange(tail) + 0.5) / tail
        quantiles = foot + scale * np.expm1(-index * np.log1p(-rank)) / index
        smoothed = np.minimum(np.log(quantiles) + largest, largest)
    if not (np.isfinite(smoothed).all() and scale > 0):
        return None
    out = log_ratio.copy()
    out[order[n - tail :]] = smoothed
    return out, index


MIN_TAIL = 5  # different ratios of a tail that a distribution is fitted to (Vehtari et al. 2024)


def tail_over(rising: NDArray[np.float64]) -> tuple[float, int, int]:
    """Give the largest log ratio below the tail, its foot; how many of the tail are over it; and how many different.

    Args:
        rising: log ratios in rising order.
    """
    most = tail_length(len(rising))
    foot, tail = rising[len(rising) - most - 1], rising[len(rising) - most :]
    over = tail[tail > foot]
    return float(foot), len(over), int((np.diff(over) > 0).sum()) + bool(len(over))


def tail_length(n: int) -> int:
    """Count the units of a tail: `3 sqrt(n)`, at most a fifth (Vehtari et al. 2024)."""
    return n // 5 if n <= 225 else int(3 * math.sqrt(n))


def pareto_fit(excess: NDArray[np.float64]) -> tuple[float, float]:
    """Fit a generalised Pareto distribution: its index and its scale.

    With `theta = -k / scale` the likelihood is profiled over the index, `k(theta) = mean log(1 - theta x)`, and theta
    is averaged over a grid under it. The index is drawn to 1/2 as if by ten more units.

    Args:
        excess: what lies over the threshold, in rising order, more than 0.

    Source: Zhang, Stephens (2009), A new and efficient estimation method for the generalized Pareto distribution,
        Technometrics 51, equation 7; Vehtari et al. (2024), appendix C, for the prior.
    """
    n = len(excess)
    points = 30 + math.isqrt(n)
    place = np.arange(1, points + 1) - 0.5
    quartile = excess[int(n / 4 + 0.5) - 1]
    theta = (1 - np.sqrt(points / place)) / (3 * quartile) + 1 / excess[-1]
    k = np.log1p(-theta[:, None] * excess).mean(1)
    log_likelihood = n * (np.log(-theta / k) - k - 1)
    weight = np.exp(log_likelihood - log_likelihood.max())
    weight[weight < 10 * np.finfo(float).eps * weight.sum()] = 0.0
    mean_theta = float((weight * theta).sum() / weight.sum())
    index = float(np.log1p(-mean_theta * excess).mean())
    return (n * index + 10 * 0.5) / (n + 10), -index / mean_theta


def _check_bounds(name: str, low: float, high: float) -> None:
    if not 0 <= low <= high:
        rule = "low must be <= high" if low >= 0 else "low must be >= 0"
        raise ValueError(f"{name}: {rule}, got low={low}, high={high}")


def _log(ratio: float) -> float:
    return -math.inf if ratio == 0 else math.log(ratio)
