"""Laws of the ratio in closed form, and what truncation, rejection and a band would do to it."""

import math
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


_LARGEST = 709.0  # nats: the exponential of more is no float64


@final
@dataclass(frozen=True)
class LogNormalRatio:
    """`log r ~ N(-s2/2, s2)` under mu, hence `N(+s2/2, s2)` under pi: the model of many small independent gaps.

    Good to 4-30% up to a chi-square of about 1. Beyond that real tails are heavier: at an exact chi-square of 8.7 the
    model from the variance of log r says 2.7 (from the KL: 4.4), while its `tv` and its balance cap stay within
    15-30%. It is a model, and no estimate of a tail.

    Args:
        s2: variance of log r, nats squared: 2 KL, or KL(mu||pi) of a token times 2 times the tokens.

    Raises:
        ValueError: if s2 is negative, infinite or NaN.

    Example:
        >>> law = LogNormalRatio.of_length(kl=1e-3, length=1024)
        >>> print(f"{law.ess_fraction:.2f} {1 - law.excess(2.0):.2f}")
        0.13 0.64

    Source: closed forms of the log-normal distribution (Black and Scholes 1973 for the excess).
    """

    s2: float

    def __post_init__(self) -> None:
        if not 0 <= self.s2 < math.inf:
            raise ValueError(f"LogNormalRatio: s2 must be >= 0 and finite, got {self.s2}")

    @classmethod
    def of_length(cls, kl: float, length: float) -> "LogNormalRatio":
        """`s2 = 2 KL T`: the sequence ratio of `length` independent tokens with KL(mu||pi) = `kl` each, nats."""
        return cls(2 * kl * length)

    @property
    def kl(self) -> float:
        """`s2 / 2`, nats: KL(mu||pi) and KL(pi||mu) alike."""
        return self.s2 / 2

    @property
    def renyi2(self) -> float:
        """`log(1 + chi2) = s2`, nats."""
        return self.s2

    @property
    def chi2(self) -> float:
        """`e^s2 - 1`; infinite when no float64 holds it."""
        return math.expm1(self.s2) if self.s2 < 709 else math.inf

    @property
    def ess_fraction(self) -> float:
        """`e^-s2`: the effective share of samples under importance sampling."""
        return math.exp(-self.s2)

    @property
    def tv(self) -> float:
        """`2 Phi(s/2) - 1`: the total variation."""
        return math.erf(math.sqrt(self.s2 / 8))

    @property
    def hellinger2(self) -> float:
        """`1 - e^(-s2/8)`: the squared Hellinger distance."""
        return -math.expm1(-self.s2 / 8)

    def above(self, cap: float) -> float:
        """`P_mu(r > C) = Phi((-ln C - s2/2) / s)`."""
        return math.exp(self._log_phi_of(-1, cap, 0.5))

    def lost(self, cap: float) -> float:
        """`P_pi(r > C) = Phi((-ln C + s2/2) / s)`."""
        return math.exp(self._log_phi_of(-1, cap, -0.5))

    def excess(self, cap: float) -> float:
        """`E_mu (r - C)_+ = P_pi(r > C) - C P_mu(r > C)`."""
        if cap == 0:
            return 1.0
        over = math.exp(math.log(cap) + self._log_phi_of(-1, cap, 0.5))
        return max(0.0, self.lost(cap) - over)

    def mis_m2(self, cap: float) -> float:
        """`E_mu r^2 1{r <= C} = e^s2 Phi((ln C - 3 s2/2) / s)`: the second moment that rejection leaves."""
        return math.exp(self.s2 + self._log_phi_of(1, cap, 1.5))

    def min2(self, cap: float) -> float:
        """`E_mu min(r, C)^2`: the second moment that truncation leaves."""
        if cap == 0:
            return 0.0
        return self.mis_m2(cap) + math.exp(2 * math.log(cap) + self._log_phi_of(-1, cap, 0.5))

    def within(self, low: float, high: float) -> float:
        """`P_mu(low <= r <= high)`."""
        return max(0.0, self.above(low) - self.above(high))

    def geo_accept(self, low: float, high: float, length: float) -> float:
        """`P_mu(low <= r^(1/T) <= high)`: the share that a band on the geometric ratio keeps.

        `Phi((T ln high + s2/2) / s) - Phi((T ln low + s2/2) / s)`. The geometric ratio tends to `e^-KL` of a token, so
        a band around 1 is a threshold on that KL, soft for short sequences and sharp for long ones.
        """
        if self.s2 == 0:
            return 1.0 if low <= 1 <= high else 0.0
        ends = ((length * math.log(x) + self.s2 / 2) / math.sqrt(2 * self.s2) for x in (low, high))
        below, upto = (math.erfc(-z) / 2 for z in ends)
        return upto - below

    def minimax(self, n: float) -> float:
        """`sup_C P_pi(r > C)^2 (1 - P_mu(r > C))^N`: times the square of sup |f|, no estimator's error is less.

        See `reweigh.theory.bounds.minimax_mse`. Events {r > C} are the best ones (Neyman and Pearson), so this is the
        sup over all events. By golden-section search in ln C: the logarithm has one maximum.
        """
        s = math.sqrt(self.s2)
        if s == 0:
            return 0.0

        def value(log_cap: float) -> float:
            cap = math.exp(log_cap)
            return 2 * math.log(self.lost(cap) or 1e-300) + n * math.log1p(-min(self.above(cap), 1 - 1e-16))

        low, high = -self.s2 / 2 - 8 * s, min(self.s2 / 2 + 8 * s, 700.0)
        shrink = (math.sqrt(5) - 1) / 2
        for _ in range(100):  # each keeps 0.618 of the range
            a, b = high - shrink * (high - low), low + shrink * (high - low)
            low, high = (low, b) if value(a) > value(b) else (a, high)
        return math.exp(value((low + high) / 2))

    def _log_phi_of(self, sign: int, cap: float, shift: float) -> float:
        """`log Phi((sign ln C - shift s2) / s)`."""
        if not cap >= 0:
            raise ValueError(f"LogNormalRatio: a cap must be >= 0, got {cap}")
        x = (sign * math.log(cap) if cap > 0 else -sign * math.inf) - shift * self.s2
        if self.s2 == 0:  # r is 1: over the cap only if the cap is below 1
            return 0.0 if x > 0 or (x == 0 and sign > 0) else -math.inf
        return _log_phi(x / math.sqrt(self.s2))


@final
@dataclass(frozen=True, eq=False)
class FiniteRatio:
    """The exact law of a ratio that takes finitely many values, such as the sequence ratio of an enumerated world.

    Args:
        log_ratio: `[n]`, log pi/mu of each outcome, nats; -inf where pi is 0.
        probability: `[n]`, its probability under mu.

    Raises:
        ValueError: if the probabilities are negative or do not sum to 1, those of pi sum to more than 1, or the shapes
            differ.

    Example:
        >>> import numpy as np
        >>> law = FiniteRatio(np.log([0.5, 1.5]), np.array([0.5, 0.5]))
        >>> print(law.tv, law.excess(1.0), law.chi2)
        0.25 0.25 0.25
    """

    log_ratio: Array
    probability: Array

    def __post_init__(self) -> None:
        l, p = self.log_ratio, self.probability
        if l.ndim != 1 or l.shape != p.shape:
            raise ValueError(f"FiniteRatio: two lists of one length are needed, got shapes {l.shape} and {p.shape}")
        if not (p >= 0).all() or abs(p.sum() - 1) > 1e-9:
            raise ValueError(f"FiniteRatio: probabilities must be >= 0 and sum to 1, got a sum of {p.sum():.9g}")
        if np.isnan(l).any() or (l == np.inf).any():
            raise ValueError("FiniteRatio: log_ratio must be finite or -inf: where mu is 0, leave the outcome out")
        if (mean := p @ np.exp(l)) > 1 + 1e-9:
            raise ValueError(f"FiniteRatio: the mean of pi/mu under mu is at most 1, got {mean:.9g}")

    def mean(self, values: Array) -> float:
        """`E_mu` of one value an outcome."""
        return float(self.probability @ values)

    @property
    def m2(self) -> float:
        """`E_mu r^2`: 1 + chi-square where mu covers pi."""
        down = max(0.0, 2 * float(self.log_ratio.max()) - _LARGEST)
        scaled = self.mean(np.exp(2 * self.log_ratio - down))
        if down == 0 or scaled == 0:
            return scaled
        return math.exp(math.log(scaled) + down)  # at most the largest ratio, whose mean is at most 1

    @property
    def chi2(self) -> float:
        """`E_mu r^2 - 1`: the chi-square of pi from mu where mu covers pi."""
        return self.m2 - 1

    @property
    def tv(self) -> float:
        """`E_mu (1 - r)_+`: the total variation."""
        return self.mean(np.maximum(-np.expm1(self.log_ratio), 0))

    @property
    def hellinger2(self) -> float:
        """`1 - E_mu sqrt(r)`: the squared Hellinger distance."""
        return self.mean(-np.expm1(self.log_ratio / 2))

    def excess(self, cap: float) -> float:
        """`E_mu (r - C)_+`."""
        return self.mean(np.maximum(np.exp(self.log_ratio) - cap, 0))

    def lost(self, cap: float) -> float:
        """`E_mu r 1{r > C}`: `P_pi(r > C)` where mu covers pi."""
        return self.mean(np.where(self._over(cap), np.exp(self.log_ratio), 0))

    def above(self, cap: float) -> float:
        """`P_mu(r > C)`."""
        return self.mean(self._over(cap).astype(np.float64))

    def min2(self, cap: float) -> float:
        """`E_mu min(r, C)^2`."""
        return self.mean(np.minimum(np.exp(self.log_ratio), cap) ** 2)

    def mis_m2(self, cap: float) -> float:
        """`E_mu r^2 1{r <= C}`."""
        return self.mean(np.where(self._over(cap), 0, np.exp(2 * self.log_ratio)))

    def minimax(self, n: float) -> float:
        """`sup_C P_pi(r >= C)^2 (1 - P_mu(r >= C))^N` over the values the ratio takes; see `LogNormalRatio.minimax`.

        The sup over all events can be a little more where outcomes are few.
        """
        order = np.argsort(-self.log_ratio)
        mu = np.cumsum(self.probability[order])
        pi = np.cumsum((self.probability * np.exp(self.log_ratio))[order])
        return float(np.max(pi**2 * np.maximum(1 - mu, 0) ** n))

    def _over(self, cap: float) -> NDArray[np.bool_]:
        # In logs, where a ratio that is the cap is the same number.
        return self.log_ratio > (math.log(cap) if cap > 0 else -math.inf)


def _log_phi(x: float) -> float:
    """log of the standard normal distribution function, to about 1e-15 for x > -30 and 1e-8 below."""
    if x == -math.inf:
        return x
    if x > -30:
        return math.log(math.erfc(-x / math.sqrt(2)) / 2)
    y = 1 / (x * x)
    # Abramowitz and Stegun (1964), 26.2.12
    return -x * x / 2 - math.log(-x * math.sqrt(2 * math.pi)) + math.log1p(-y * (1 - 3 * y * (1 - 5 * y)))
