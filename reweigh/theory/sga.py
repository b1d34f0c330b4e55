"""The stochastic-gradient-ascent lemma: how much progress a biased, noisy gradient is sure to make."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Vector = Sequence[float] | Array


@dataclass(frozen=True)
class Gain:
    """The three terms of the lemma; they say what one step adds to the objective at least.

    Attributes:
        ascent: term A, `step (1 - L step / 2) |g|^2`: what the true gradient would gain.
        bias: term B, `step (1 - L step) <g, bias>`: of either sign, for a bias can help.
        noise: term C, `L step^2 / 2 (variance / N + |bias|^2)`: what noise and the size of the bias cost.
    """

    ascent: float
    bias: float
    noise: float

    @property
    def total(self) -> float:
        """`A + B - C`: the objective grows by at least this in the mean."""
        return self.ascent + self.bias - self.noise


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of a gradient estimator that the lemma asks for; every formula of it is a method.

    Assumes that the objective is `smoothness`-smooth everywhere, plain gradient ascent (not Adam), and a batch of N
    independent units that the parameters did not see.

    Args:
        gradient: g, the true gradient, `[d]`.
        mean: m, mean of the estimator, `[d]`; its bias is m - g.
        variance: trace of the covariance of the estimator of *one* unit.

    Raises:
        ValueError: if the two vectors differ in length, or anything is NaN, infinite or a negative variance.

    Example:
        >>> exact = Moments(gradient=[1.0, 0.0], mean=[1.0, 0.0], variance=3.0)
        >>> print(exact.efficiency(1), exact.efficiency(9))
        0.25 0.75
        >>> print(exact.best_step(smoothness=2.0, n=1), exact.guaranteed_gain(smoothness=2.0, n=1))
        0.125 0.0625

    Source: Li and Liu (2025), Part 1, for the terms; best step and efficiency are ours.
    """

    gradient: Vector
    mean: Vector
    variance: float

    def __post_init__(self) -> None:
        g, m = self._vectors
        if g.ndim != 1 or g.shape != m.shape:
            raise ValueError(f"Moments: gradient and mean must be vectors of one length, got {g.shape} and {m.shape}")
        for name, x in (("gradient", g), ("mean", m)):
            if not np.isfinite(x).all():
                at = int(np.argmin(np.isfinite(x)))
                raise ValueError(f"Moments: {name} must be finite, got {x[at]} at index {at}")
        if not 0 <= self.variance < math.inf:
            raise ValueError(f"Moments: variance must be >= 0 and finite, got {self.variance}")

    @property
    def bias_norm(self) -> float:
        """`|m - g|`."""
        g, m = self._vectors
        return float(np.linalg.norm(m - g))

    def second_moment(self, n: float = 1) -> float:
        """`E |ghat_N|^2 = |m|^2 + variance / N`."""
        _, m = self._vectors
        return float(m @ m) + self.variance / _batch("second_moment", n)

    def mse(self, n: float = 1) -> float:
        """`E |ghat_N - g|^2 = |bias|^2 + variance / N`."""
        return self.bias_norm**2 + self.variance / _batch("mse", n)

    def gain(self, step: float, smoothness: float, n: float = 1) -> Gain:
        """`E J(theta + step ghat_N) - J(theta) >= A + B - C`.

        From smoothness, `J(theta + d) >= J + <g, d> - L |d|^2 / 2`, in the mean over the batch.

        Args:
            step: the learning rate, at least 0.
            smoothness: L, largest curvature of the objective, over 0; see `softmax_smoothness`.
            n: N, independent units of the batch, at least 1.

        Raises:
            ValueError: outside those ranges.
        """
        if not 0 <= step < math.inf:
            raise ValueError(f"gain: step must be >= 0 and finite, got {step}")
        curvature, n = _curvature("gain", smoothness), _batch("gain", n)
        g, m = self._vectors
        bias = m - g
        return Gain(
            ascent=step * (1 - curvature * step / 2) * float(g @ g),
            bias=step * (1 - curvature * step) * float(g @ bias),
            noise=curvature * step**2 / 2 * (self.variance / n + float(bias @ bias)),
        )

    def best_step(self, smoothness: float, n: float = 1) -> float:
        """`<g, m>_+ / (L (|m|^2 + variance / N))`: the step of the largest guaranteed gain; 0 if m points away from g.

        Raises:
            ValueError: if smoothness is not over 0 or n is below 1.
        """
        curvature, second = _curvature("best_step", smoothness), self.second_moment(n)
        return self._along / (curvature * second) if self._along > 0 else 0.0

    def guaranteed_gain(self, smoothness: float, n: float = 1) -> float:
        """`<g, m>_+^2 / (2 L (|m|^2 + variance / N))`: the gain at `best_step`, `efficiency |g|^2 / (2 L)`.

        Raises:
            ValueError: if smoothness is not over 0 or n is below 1.
        """
        return self.best_step(smoothness, n) * self._along / 2

    def efficiency(self, n: float = 1) -> float:
        """`Gamma_N = <g, m>_+^2 / (|g|^2 (|m|^2 + variance / N))`: the share of the possible gain that is guaranteed.

        In [0, 1], 1 for the true gradient. It is the squared cosine of g and m times SNR / (1 + SNR) with `SNR = N
        |m|^2 / variance`, and unlike the mean squared error it does not change when the estimator is scaled: a
        smaller gradient is no better gradient.

        Raises:
            ValueError: if n is below 1, or the true gradient is 0: then there is no gain to have a share of.
        """
        g, _ = self._vectors
        size, second = float(g @ g), self.second_moment(n)
        if size == 0:
            raise ValueError(
                "efficiency: the true gradient is 0, so there is no gain to have a share of\n"
                "hint: guaranteed_gain is 0 here, and mse still tells estimators apart"
            )
        return self._along**2 / (size * second) if self._along > 0 else 0.0

    @property
    def _vectors(self) -> tuple[Array, Array]:
        return np.asarray(self.gradient, np.float64), np.asarray(self.mean, np.float64)

    @property
    def _along(self) -> float:
        g, m = self._vectors
        return max(0.0, float(g @ m))


def softmax_smoothness(half_range: float, visits: float = 1) -> float:
    """`L = half_range visits`: smoothness of the expected reward in the logits of a tabular softmax policy.

    Args:
        half_range: (max reward - min reward) / 2; shifting the reward changes no gradient.
        visits: how often one sequence can meet the same row of logits at most: 1 if every prefix has its own, the
            length if one row serves all.

    Raises:
        ValueError: if either is negative or NaN.

    Example:
        >>> softmax_smoothness(half_range=0.5, visits=7)
        3.5

    Source: the Hessian is `E R (S S' + S')`; scores are martingale differences and a softmax has covariance at most
        1/2, so each half is at most `visits / 2` per unit of reward; ours.
    """
    if not (half_range >= 0 and visits >= 0):
        raise ValueError(
            f"softmax_smoothness: half_range and visits must be >= 0, got half_range={half_range}, visits={visits}"
        )
    return half_range * visits


def _curvature(method: str, smoothness: float) -> float:
    if not 0 < smoothness < math.inf:
        raise ValueError(f"{method}: smoothness must be > 0 and finite, got {smoothness}")
    return smoothness


def _batch(method: str, n: float) -> float:
    if not n >= 1:
        raise ValueError(f"{method}: n must be >= 1, got {n}")
    return n
