"""How wrong and how noisy an estimator can be at worst on these ratios, over all rewards and gradients there are."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reweigh.audit.runs import Shared
from reweigh.divergences import log_ratio
from reweigh.estimators import Estimator, Factor, Weights
from reweigh.intervals import bounded, clustered, design_effect
from reweigh.named import seq_is
from reweigh.number import Number
from reweigh.sums import NUM_BUCKETS, bucket
from reweigh.transforms import AtMost, Clip, Identity, Power, Reject, Screen, Shrink, SoftKernel

Array = NDArray[np.float64]
ROWS = ("n", "v", "v2", "m", "m2")
_SAME = 1e-5  # nats, relative: a weight this near to the sequence ratio is that ratio, summed in another order
_RATIO = seq_is()

BIAS = (
    "Worst-case bias in units of K, the largest norm of a response's term: E mean_t |w_t - r|, r the sequence ratio. "
    "K is 1 for an estimator that gives no gradient at all."
)
SECOND = "Worst-case second moment of one response in units of K^2, at least its variance: E (mean_t w_t)^2."
ERROR = "Worst-case root mean squared error of a batch of N in units of K: sqrt(bias^2 + second moment / N)."
_NOT_ONE = "the mean ratio is not 1, and what is missing from 1 would be taken for bias"
_NO_TOP = "its weights have no upper bound, and "


@dataclass(frozen=True)
class Range:
    """What a weight of an estimator can be.

    Attributes:
        low: the smallest weight of a token, 0 if it can be dropped.
        high: the largest; infinite if it has none.
        below_ratio: whether it is never over the sequence ratio.
    """

    low: float
    high: float
    below_ratio: bool

    @classmethod
    def of(cls, estimator: Estimator) -> "Range":
        """From its factors alone, whatever the data."""
        low, high = 1.0, 1.0
        for factor in estimator.factors:
            a, b = _range(factor)
            if factor.sign:  # tokens of the other sign pass with weight 1
                a, b = min(a, 1.0), max(b, 1.0)
            low, high = low * a, (high * b if high and b else 0.0)
        return cls(low, high, len(estimator.factors) == 1 and _below(estimator.factors[0]))


def sums_of(estimator: Estimator, weights: Weights, shared: Shared) -> Tensor:
    """What the worst case needs of one batch: `[64, 5]`, see `ROWS`, by cluster; they add.

    With w the weights of a response's tokens, r its sequence ratio and all means over its tokens, `m = (mean w)^2`, and
    `v = 2 mean (w - r)_+ - mean w` if the weights are bounded: then v is bounded, and `1 + E v = E mean |w - r|` as `E
    r = 1`. Otherwise v is `mean |w - r|` itself.
    """
    top = Range.of(estimator).high
    runs = shared.runs
    log_r = shared.estimator(_RATIO)(shared.batch).log_w.double().numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        if not estimator.factors:  # 1 for all: no need to look at tokens
            mean, over, under = np.ones_like(log_r), _above(np.zeros_like(log_r), log_r), np.zeros_like(log_r)
        elif weights.unit == "sequence":
            log_w = np.where(weights.keep.numpy(), weights.log_w.double().numpy(), -np.inf)
            mean, over, under = np.exp(log_w), _above(log_w, log_r), _above(log_r, log_w)
        else:
            mean, over, under = _of_tokens(weights, log_r, shared, math.isfinite(top))
        v = 2 * over - mean if math.isfinite(top) else over + under
        m = np.square(mean)
        rows = np.stack([np.ones_like(v), v, np.square(v), m, np.square(m)])
    some = runs.lengths.numpy() > 0
    where = bucket(shared.batch).numpy()[some]
    sums = [np.bincount(where, row[some], NUM_BUCKETS) for row in rows]
    return torch.from_numpy(np.stack(sums, -1))


@dataclass(frozen=True)
class Limits:
    """What an estimator can do at worst, in units of K, the largest norm of a response's term of the gradient.

    Each token of a response is taken to contribute at most K / T to it, T its length, so that estimators with one
    weight a token and with one a sequence have one scale. Rewards and gradients are otherwise free: a real one is
    nearer, often by far.

    Attributes:
        bias: `E mean_t |w_t - r|`.
        second: `E (mean_t w_t)^2`, of one response.
    """

    bias: Number
    second: Number

    @classmethod
    def of(cls, sums: Tensor, range_: Range, wrong: bool, refusal: str) -> "Limits":
        """From the sums of all records.

        Args:
            sums: `[64, 5]`.
            range_: of the estimator.
            wrong: whether the mean ratio cannot be 1.
            refusal: why moments of the sequence ratio are refused; empty if they are not.
        """
        n, v, v2, m, m2 = sums.numpy().T
        count = float(n.sum())
        if not count:
            return cls(*(Number(None, meaning=x, refused="there are no units") for x in (BIAS, SECOND)))
        if not math.isfinite(range_.high):
            return cls(*(_unbounded(x, n, meaning, wrong, refusal) for x, meaning in ((v, BIAS), (m, SECOND))))
        low = -range_.high
        span = range_.high if range_.below_ratio else 2 * range_.high
        mean, least, most = _bounded(v, v2, n, low, low + span)
        bias = Number(max(0.0, 1 + mean), max(0.0, 1 + least), max(0.0, 1 + most), max(0.0, 1 + mean), "K", BIAS)
        if wrong:
            bias = Number(None, sample=bias.sample, unit="K", meaning=BIAS, refused=_NOT_ONE)
        square = _bounded(m, m2, n, range_.low**2, range_.high**2)
        return cls(bias, Number(*square, square[0], "K^2", SECOND))

    def error(self, n: float) -> Number:
        """`sqrt(bias^2 + second / N)`, its interval from the ends of both; refused if one of them is.

        Args:
            n: N, responses averaged in one step, at least 1.

        Source: bias and second moment of a mean; for truncated sequence ratios this is `bounds.tis_mse`, and no
            function of the ratio has a smaller worst case than the one at the balance cap.
        """
        if not n >= 1:
            raise ValueError(f"Limits.error: n must be >= 1, got {n}")
        refused = self.bias.refused or self.second.refused
        ends = [
            None if a is None or b is None else math.sqrt(a * a + b / n)
            for a, b in (
                (self.bias.value, self.second.value),
                (self.bias.low, self.second.low),
                (self.bias.high, self.second.high),
                (self.bias.sample, self.second.sample),
            )
        ]
        return Number(ends[0], ends[1], ends[2], ends[3], "K", ERROR, refused)


def _of_tokens(weights: Weights, log_r: Array, shared: Shared, finite: bool) -> tuple[Array, Array, Array]:
    """Of each response, the means over its tokens of w, (w - r)_+ and (r - w)_+; the last only without a bound."""
    runs, keep = shared.runs, weights.keep.numpy()
    lengths = np.maximum(runs.lengths.numpy(), 1).astype(np.float64)
    if finite:  # float32, as it is of the tokens' size: a weight has a bound, and what r is beyond it does not matter
        w = np.where(keep, weights.log_w.float().numpy(), np.float32(-np.inf))
        np.exp(w, out=w)
        total = runs.reduce(np.add, w, 0).astype(np.float64)
        ratio = np.exp(np.minimum(log_r, 80.0)).astype(np.float32)
        w -= np.repeat(ratio, runs.sizes)
        over = runs.reduce(np.add, np.maximum(w, 0, out=w), 0).astype(np.float64)
        return total / lengths, over / lengths, np.zeros_like(over)
    log_w = np.where(keep, weights.log_w.double().numpy(), -np.inf)
    every = np.repeat(log_r, runs.sizes)
    under = np.where(runs.mask.numpy(), _above(every, log_w), 0)
    parts = (np.exp(log_w), _above(log_w, every), under)
    mean, over, under = (runs.reduce(np.add, x, 0) / lengths for x in parts)
    return mean, over, under


def _above(a: Array, b: Array) -> Array:
    """`(e^a - e^b)_+`, 0 where they differ by rounding only."""
    more = a - b > _SAME * np.maximum(1.0, np.abs(a))
    return np.where(more, np.exp(a) * -np.expm1(np.where(more, b - a, 0.0)), 0.0)


def _bounded(total: Array, squares: Array, n: Array, low: float, high: float) -> tuple[float, float, float]:
    """Mean of values in [low, high], with its interval at the number of independent ones that clusters leave."""
    count = float(n.sum())
    mean = float(total.sum()) / count
    if high <= low:
        return low, low, low
    square = max(float(squares.sum()) / count, mean * mean)
    n_eff = count / design_effect(total, n, count, square - mean * mean) if count > 1 else count
    x, x2 = min(max(mean - low, 0.0), high - low), square - 2 * low * mean + low * low
    least, most = bounded(x, x2, count, n_eff, high - low)
    return mean, min(mean, low + least), max(mean, low + most)


def _unbounded(total: Array, n: Array, meaning: str, wrong: bool, refusal: str) -> Number:
    unit = "K" if meaning is BIAS else "K^2"
    mean = float(total.sum()) / float(n.sum())
    if mean == 0 and not wrong:  # the sequence ratio itself
        return Number(0.0, 0.0, 0.0, 0.0, unit, meaning)
    sample = mean if math.isfinite(mean) else None
    why = (_NOT_ONE if meaning is BIAS else "") if wrong else ""
    why = why or (_NO_TOP + refusal if refusal or sample is None else "")
    if why:
        return Number(None, sample=sample, unit=unit, meaning=meaning, refused=why)
    low, high = clustered(total, n)
    return Number(mean, max(0.0, low), high, mean, unit, meaning)


def _range(factor: Factor) -> tuple[float, float]:
    match factor.transform:
        case Screen() | AtMost():
            return 0.0, 1.0
        case Shrink(lam):
            return 0.0, math.sqrt(lam) / 2
        case SoftKernel(a, b):
            return 0.0, (a / b) ** a * math.exp(b - a)
        case Power(0):
            return 1.0, 1.0
        case Clip(low, high):
            return low, high
        case Reject(_, high):
            return 0.0, high
        case _:
            return 0.0, math.inf


def _below(factor: Factor) -> bool:
    """Whether the weight is never over the sequence ratio."""
    if factor.level.name != "sequence" or factor.of is not log_ratio or factor.scale != 1 or factor.sign:
        return False
    match factor.transform:
        case Identity() | Reject():
            return True
        case Clip(low, _):
            return low == 0
        case _:
            return False
