"""Quantities as far as data can tell, and intervals for means that are bounded, clustered, or neither."""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Number:
    """A quantity as far as the data can tell it.

    Attributes:
        value: the estimate; None if refused.
        low: lower end of its 95% interval; None if it has none.
        high: upper end.
        sample: the plug-in figure of this very sample, also when the value is refused: a fact about these units, and no
            estimate of anything beyond them.
        unit: what it is measured in.
        meaning: one sentence.
        refused: why there is no value; empty if there is one.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    sample: float | None = None
    unit: str = ""
    meaning: str = ""
    refused: str = ""


Array = NDArray[np.float64]
Interval = tuple[float, float]
Method = Literal["best", "chernoff", "bernstein"]
MANY = 4000  # units from which the better of both intervals is worth the 9% that the choice costs (docs/intervals.md)


def bernoulli_kl(mean: float, n: float, high: float = 1.0, alpha: float = 0.05) -> Interval:
    """Interval `{m : n kl(mean / high || m / high) <= log(2 / alpha)}` for the mean of values in [0, high].

    Holds at every n and for every distribution of independent values in [0, high] (Chernoff). About half as wide as an
    empirical Bernstein interval at n = 64.

    Args:
        mean: sample mean, in [0, high].
        n: number of independent values; an effective number under clustering.
        high: the largest value there can be.
        alpha: one minus the coverage.

    Returns:
        (low, high), within [0, high].

    Example:
        >>> low, high = bernoulli_kl(0.1, 100)
        >>> print(f"{low:.3f} {high:.3f}")
        0.038 0.200

    Source: Chernoff (1952); the form used for KL-UCB by Garivier and Cappe (2011).
    """
    return bernoulli_kl_end(mean, n, 0.0, high, alpha / 2), bernoulli_kl_end(mean, n, 1.0, high, alpha / 2)


def bernoulli_kl_end(mean: float, n: float, end: float, high: float = 1.0, alpha: float = 0.05) -> float:
    """One end of `bernoulli_kl`, alone at confidence 1 - alpha: the lower one for end 0, the upper one for end 1."""
    if not n > 0:
        return end * high
    share, budget = min(max(mean / high, 0.0), 1.0), math.log(1 / alpha) / n
    if _kl(share, end) <= budget:
        return high * end
    inner, outer = share, end  # the KL grows away from the share, so bisection finds where it is the budget
    for _ in range(60):  # 60 halvings of [0, 1] reach the last bit of float64
        middle = (inner + outer) / 2
        if _kl(share, middle) <= budget:
            inner = middle
        else:
            outer = middle
    return high * outer


def empirical_bernstein(mean: float, variance: float, n: float, high: float = 1.0, alpha: float = 0.05) -> Interval:
    """Interval `mean -+ (sqrt(2 V log(4 / alpha) / n) + 7 high log(4 / alpha) / (3 (n - 1)))`, values in [0, high].

    Holds at every n. Narrower than `bernoulli_kl` when V is far below the `mean (high - mean)` that a coin of 0 and
    `high` would have, and n is in the hundreds or more. For the mean of min(r, 10) with log r of variance 0.25 the
    widths are 1.4, 0.6 and 0.2 times as large at n = 64, 1,000 and 100,000; with variance 4, 1.7, 1.2 and 0.8.

    Args:
        mean: sample mean.
        variance: sample variance, with n - 1 in its denominator.
        n: number of independent values, over 1.
        high: the largest value there can be.
        alpha: one minus the coverage.

    Source: Maurer and Pontil (2009), Empirical Bernstein bounds, theorem 4, applied to both sides.
    """
    if not n > 1:
        return 0.0, high
    log_term = math.log(4 / alpha)
    half = math.sqrt(2 * variance * log_term / n) + 7 * high * log_term / (3 * (n - 1))
    return max(0.0, mean - half), min(high, mean + half)


def bounded(
    mean: float, square: float, n: float, n_eff: float, high: float = 1.0, method: Method = "best", alpha: float = 0.05
) -> Interval:
    """Interval for the mean of values in [0, high]: `bernoulli_kl`, or `empirical_bernstein`, or the overlap of both.

    Args:
        mean: sample mean.
        square: sample mean of squares, or more than that.
        n: number of values.
        n_eff: number of independent values that know as much.
        high: the largest value there can be.
        method: "best" is `bernoulli_kl` for fewer than 4,000 values, and from there the overlap of both, each with half
            of alpha: at most 9% wider than the narrower one, and several times narrower than the other.
        alpha: one minus the coverage.

    Example:
        >>> low, high = bounded(1.0, 1.01, 100_000, 100_000, high=2.0)
        >>> print(f"{low:.4f} {high:.4f}")
        0.9988 1.0012
    """
    if method == "best":
        both = n >= MANY
        low, high_end = bernoulli_kl(mean, n_eff, high, alpha / 2 if both else alpha)
        if not both:
            return low, high_end
        other = bounded(mean, square, n, n_eff, high, "bernstein", alpha / 2)
        return max(low, other[0]), min(high_end, other[1])
    if method == "chernoff":
        return bernoulli_kl(mean, n_eff, high, alpha)
    if not n_eff > 1:
        return 0.0, high
    return empirical_bernstein(mean, max(0.0, square - mean * mean) * n_eff / (n_eff - 1), n_eff, high, alpha)


def root_mean(mean: float, n: float, alpha: float = 0.05) -> Interval:
    """Interval `{m in [0, 1] : (mean - m)^2 <= (1 - m^2) / (alpha n)}` for `E sqrt(r)`, given that E r is at most 1.

    sqrt(r) is not bounded, but its second moment is: the variance is at most 1 - m^2, whatever the tail, and Chebyshev
    does the rest. It narrows to nothing as m nears 1.

    Args:
        mean: sample mean of sqrt(r).
        n: number of independent values.
        alpha: one minus the coverage.

    Returns:
        (low, high), within [0, 1].

    Example:
        >>> low, high = root_mean(0.99, 10_000)
        >>> print(f"{low:.3f} {high:.3f}")
        0.981 0.995

    Source: Chebyshev's inequality, solved for m as Wilson (1927) does for a coin.
    """
    if not n > 0:
        return 0.0, 1.0
    a = 1 / (alpha * n)
    root = math.sqrt(a * max(0.0, 1 + a - mean * mean))
    low, high = ((mean + sign * root) / (1 + a) for sign in (-1, 1))
    return min(1.0, max(0.0, low)), min(1.0, max(0.0, high))


def clustered(total: Array, count: Array, alpha: float = 0.05) -> Interval:
    """Interval of the ratio `sum total / sum count` when only whole clusters are independent.

    Linearised (sandwich) variance `sum_c (total_c - m count_c)^2 G / (G - 1) / (sum count)^2` with a t quantile of G -
    1 degrees of freedom, for G clusters. Merging clusters into larger ones keeps it valid and only costs degrees of
    freedom.

    Args:
        total: sum over each cluster, `[G]`.
        count: number of units of each cluster, `[G]`; clusters of none are left out.
        alpha: one minus the coverage.

    Returns:
        (low, high); (-inf, inf) with fewer than two clusters.

    Example:
        >>> import numpy as np
        >>> low, high = clustered(np.array([1.0, 2.0, 3.0]), np.ones(3))
        >>> print(f"{low:.2f} {high:.2f}")
        -0.48 4.48

    Source: Liang and Zeger (1986); the t correction is the usual small-sample practice.
    """
    some = count > 0
    total, count = total[some], count[some]
    groups = len(count)
    if groups < 2:
        return -math.inf, math.inf
    n = count.sum()
    mean = total.sum() / n
    with np.errstate(over="ignore", invalid="ignore"):  # of ratios of e^400: the interval is then all there is
        variance = np.square(total - mean * count).sum() * groups / (groups - 1) / n**2
    half = t_quantile(1 - alpha / 2, groups - 1) * math.sqrt(variance)
    return float(mean - half), float(mean + half)


def design_effect(total: Array, count: Array, n: float, variance: float) -> float:
    """Divide the variance of a mean under clustering by that of independent units.

    Args:
        total: sum over each cluster, `[G]`.
        count: units of each cluster, `[G]`.
        n: number of units.
        variance: variance of a unit, with n in its denominator.

    Returns:
        At least 1: a smaller estimate is noise, and units that repel each other are not a case to bank on.
    """
    some = count > 0
    groups = int(some.sum())
    if groups < 2 or not variance > 0:
        return 1.0
    residual = total[some] - total.sum() / n * count[some]
    return max(1.0, float(np.square(residual).sum() * groups / (groups - 1) / (n * variance * n / (n - 1))))


def t_quantile(p: float, df: float) -> float:
    """Quantile of Student's t by its expansion in 1 / df; within 1% for df >= 4.

    Below that the expansion falls short, so one and two degrees of freedom use their closed forms.

    Source: Abramowitz and Stegun (1964), 26.7.5.
    """
    if df == 1:
        return math.tan(math.pi * (p - 0.5))
    if df == 2:
        return (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    z = NormalDist().inv_cdf(p)
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    g4 = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + g1 / df + g2 / df**2 + g3 / df**3 + g4 / df**4


def t_below(t: float, df: float) -> float:
    """Gives the chance that Student's t is below a value, each tail to 12 digits.

    Args:
        t: the value.
        df: degrees of freedom, up to a few hundred.

    Source: Abramowitz and Stegun (1964), 26.7.1 and 26.5.2: it is half of I_x(df / 2, 1 / 2), x = df / (df + t^2).
    """
    if math.isnan(t):
        return math.nan
    square = t * t
    near = square / (df + square) if math.isfinite(square) else 1.0
    tail = _incomplete_beta(df / 2, 0.5, df / (df + square), near) / 2
    return tail if t < 0 else 1 - tail


def _incomplete_beta(a: float, b: float, x: float, y: float) -> float:
    """Takes the regularised incomplete beta function at x = 1 - y, by the even part of its continued fraction.

    Source: Press, Teukolsky, Vetterling and Flannery, Numerical Recipes (2007), 6.4; convergents by Lentz's method.
    """
    if x > (a + 1) / (a + b + 2):  # where it converges slowly, and the other end does not
        return 1 - _incomplete_beta(b, a, y, x)
    if x == 0:
        return 0.0
    front = x**a * y**b / a * math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b))
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 10_000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1 / (1 + term * d), 1 + term / c
            value *= c * d
        if abs(c * d - 1) < 1e-16:
            break
    return front * value


def _kl(p: float, q: float) -> float:
    """KL of two coins, nats."""
    left = p * math.log(p / q) if p > 0 and q > 0 else (math.inf if p > 0 else 0.0)
    right = (1 - p) * math.log((1 - p) / (1 - q)) if p < 1 and q < 1 else (math.inf if p < 1 else 0.0)
    return left + right
