"""What estimators would do on these records: what they keep, how wrong and how noisy they can be."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reweigh import native
from reweigh.batch import Batch
from reweigh.estimators import Estimator, Factor, Weights
from reweigh.levels import PREFIX, TOKEN, Unit, heads, log_ratio
from reweigh.named import (
    NAMED,
    dppo_tv,
    geo_rs,
    k3_rs,
    naive,
    opsm,
    prefix_tis,
    seq_is,
    seq_mis,
    seq_tis,
    token_mis,
    token_tis,
    trm,
    turn_tis,
)
from reweigh.native import walk
from reweigh.native.walk import Tried
from reweigh.scan.tokens import Runs, Shared
from reweigh.stats.intervals import Number, bernoulli_kl, bounded, clustered, design_effect, t_quantile
from reweigh.stats.sums import NUM_BINS, NUM_BUCKETS, SHIFT_STEP, bucket
from reweigh.stats.tail import MAX_SHARE
from reweigh.transforms import AtMost, Clip, Identity, Power, Reject, Screen, Shrink, SoftKernel

READS_BATCH = (
    "looks at a whole batch (it normalises, sorts or fits), and records are read in parts of no particular size: "
    "try its factors without that step, or call it on one batch"
)


@dataclass(frozen=True)
class Asked:
    """Says what a user wants tried.

    Attributes:
        estimators: by the name to show.
        refused: why others that were asked for are not tried, by name.
    """

    estimators: Mapping[str, Estimator]
    refused: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def of(cls, estimators: Mapping[str, Estimator]) -> "Asked":
        """Tell those that records can be tried with from those whose result would depend on how they are cut."""
        wrong = {name: READS_BATCH for name, one in estimators.items() if one.reads_batch}
        return cls({name: one for name, one in estimators.items() if name not in wrong}, wrong)


def default_estimators(batch: Batch) -> dict[str, Estimator]:
    """Estimators worth trying, as one would write them; those that need turns or advantages only if the batch has them.

    Example:
        >>> import torch
        >>> from reweigh import Batch
        >>> list(default_estimators(Batch.padded(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1))))[:3]
        ['naive', 'token_tis(2)', 'prefix_tis(2)']
    """
    return possible(_worth_trying(), batch)


def all_estimators() -> dict[str, Estimator]:
    """Every named estimator as it is by default, and the default set; each once.

    Example:
        >>> found = all_estimators()
        >>> print("geo_rs(0.99, 1.01) * token_tis(2)" in found, "snis" in found, "vespo((2, 3), (3, 2))" in found)
        True True True
    """
    found = _worth_trying()
    for name, make in NAMED.items():
        one = make()
        if one not in found.values():
            found[_written(name, make)] = one
    return found


def possible(estimators: Mapping[str, Estimator], batch: Batch) -> dict[str, Estimator]:
    """Choose those that a batch has all columns for."""
    have = {"turns": batch.layout.turn is not None, "advantage": batch.advantage is not None}
    return {name: one for name, one in estimators.items() if all(have[column] for column in needs(one))}


def needs(estimator: Estimator) -> tuple[str, ...]:
    """Columns beside the log-probs that it reads: "turns", "advantage"."""
    turns = any(factor.level.unit == "turn" for factor in estimator.factors)
    sign = any(factor.sign for factor in estimator.factors)
    return (*(("turns",) if turns else ()), *(("advantage",) if sign else ()))


def refuse_batch_readers(estimators: Mapping[str, Estimator]) -> None:
    """Raise if what an estimator does depends on how the records are cut into batches."""
    for name, estimator in estimators.items():
        if estimator.reads_batch:
            raise ValueError(
                f"audit: {name} looks at a whole batch (it normalises, sorts or fits), and records are read "
                "in parts of no particular size\nhint: try its factors without that step, or call it on one batch."
            )


def _worth_trying() -> dict[str, Estimator]:
    return {
        "naive": naive(),
        "token_tis(2)": token_tis(2.0),
        "prefix_tis(2)": prefix_tis(2.0),
        "token_mis(0.5, 5)": token_mis(0.5, 5.0),
        "seq_is": seq_is(),
        "seq_tis(2)": seq_tis(2.0),
        "seq_mis(0, 2)": seq_mis(0.0, 2.0),
        "geo_rs(0.999, 1.001)": geo_rs(0.999, 1.001),
        "geo_rs(0.99, 1.01) * token_tis(2)": geo_rs(0.99, 1.01) * token_tis(2.0),
        "k3_rs(0.01)": k3_rs(0.01),
        "trm(0.1, 0.002)": trm(0.1, 0.002),
        "turn_tis(2)": turn_tis(2.0),
        "opsm(0.05)": opsm(0.05),
        "dppo_tv(0.2, 0.2)": dppo_tv(0.2, 0.2),
    }


def _written(name: str, make: Any) -> str:
    """`geo_rs(0.999, 1.001)`: a call with its default arguments."""
    values = [parameter.default for parameter in inspect.signature(make).parameters.values()]
    return f"{name}({', '.join(map(_value, values))})" if values else name


def _value(x: Any) -> str:
    return f"({', '.join(map(_value, x))})" if isinstance(x, tuple) else f"{x:g}"  # type: ignore[reportUnknownArgumentType]


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
    """Says what a weight of an estimator can be.

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
        """Work it out from its factors alone, whatever the data."""
        low, high = 1.0, 1.0
        for factor in estimator.factors:
            match factor.transform:
                case Screen() | AtMost():
                    a, b = 0.0, 1.0
                case Shrink(lam):
                    a, b = 0.0, math.sqrt(lam) / 2
                case SoftKernel(alpha, beta):
                    a, b = 0.0, (alpha / beta) ** alpha * math.exp(beta - alpha)
                case Power(0):
                    a, b = 1.0, 1.0
                case Clip(a, b):
                    pass
                case Reject(_, b):
                    a = 0.0
                case _:
                    a, b = 0.0, math.inf
            if factor.sign:  # tokens of the other sign pass with weight 1
                a, b = min(a, 1.0), max(b, 1.0)
            low, high = low * a, (high * b if high and b else 0.0)
        return cls(low, high, len(estimator.factors) == 1 and _below(estimator.factors[0]))


def _below(factor: Factor) -> bool:
    """Tell whether the weight is never over the sequence ratio."""
    if factor.level.name != "sequence" or factor.of is not log_ratio or factor.scale != 1 or factor.sign:
        return False
    match factor.transform:
        case Identity() | Reject():
            return True
        case Clip(low, _):
            return low == 0
        case _:
            return False


def sums_of(estimator: Estimator, weights: Weights | Tensor, shared: Shared, top: float) -> Tensor:
    """Add up what the worst case needs of one batch, by cluster: `[64, 5]`, see `ROWS`. No weight is over `top`.

    Weights are those of the batch, or what the compiled walk found, see `reweigh.native.walk.weigh`.

    With w the weights of a response's tokens, r its sequence ratio and all means over its tokens, `m = (mean w)^2`, and
    `v = 2 mean (w - r)_+ - mean w` if the weights are bounded: then v is bounded, and `1 + E v = E mean |w - r|` as `E
    r = 1`. Otherwise v is `mean |w - r|` itself.
    """
    runs = shared.runs
    log_r = _log_ratios(shared).double().numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        if not estimator.factors:  # 1 for all: no need to look at tokens
            mean, over, under = np.ones_like(log_r), _above(np.zeros_like(log_r), log_r), np.zeros_like(log_r)
        elif isinstance(weights, Tensor):
            lengths = np.maximum(runs.lengths.numpy(), 1)
            mean, over = weights[:, 3].numpy() / lengths, weights[:, 5].numpy() / lengths
            under = np.zeros_like(over)
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


def _log_ratios(shared: Shared) -> Tensor:
    return shared.estimator(_RATIO)(shared.batch).log_w


@dataclass(frozen=True)
class Limits:
    """Says what an estimator can do at worst, in units of K, the largest norm of a response's term of the gradient.

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
        """Work them out from the sums of all records.

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
    """Average over the tokens of each response w, (w - r)_+ and (r - w)_+; the last only without a bound."""
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


# Stands for the log-weight of what was dropped: e^-80 is nothing, while exp is ten times as slow at -inf.
_FILL = -80.0  # nats
COUNTS = ("units", "kept", "bounded", "tokens", "kept_tokens")
Sign = Literal["negative", "none", "positive"]
SIGNS: tuple[Sign, ...] = get_args(Sign)  # of a sequence's mean advantage; "none" is 0, or not recorded


@dataclass(frozen=True, eq=False)
class Trial:
    """Sums over what an estimator did, by sign of the advantage and length of the response; `a + b` is both.

    Attributes:
        unit: what a weight belongs to.
        counts: `[5, 3, bins]` float64, see `COUNTS` and `SIGNS`.
        log_weight: `[3, bins]` nats: log of the sum of weights, in log space since a sequence ratio may be e^800.
        log_square: `[3, bins]` nats: log of the sum of their squares.
        log_largest: `[3, bins]` nats: log of the largest weight.
        limits: `[64, 5]`: what the worst case needs, see `reweigh.audit.trial.sums_of`.
        range: what a weight of a token can be, whatever the data.
        caps: whether it moves large ratios to a bound, and so has a largest weight whatever comes.
    """

    unit: Unit
    counts: Tensor
    log_weight: Tensor
    log_square: Tensor
    log_largest: Tensor
    limits: Tensor
    range: Range
    caps: bool = False

    @classmethod
    def of(cls, estimator: Estimator, shared: Shared) -> "Trial":
        """Try it on one batch."""
        return trials_of({"": estimator}, shared)[""]

    @classmethod
    def of_walk(cls, estimator: Estimator, shared: Shared, found: Tensor) -> "Trial":
        """Add up what the compiled walk found that it does to the tokens of each sequence, see `walk.weigh`."""
        lengths, range_ = shared.runs.lengths.numpy().astype(np.float64), Range.of(estimator)
        kept, bounded, top, total, square, _ = found.numpy().T
        cells = _by_bin(shared, [lengths, kept, bounded, lengths, kept], total, square, np.zeros_like(top), top)
        limits = sums_of(estimator, found, shared, range_.high)
        return cls("token", *cells, limits, range_, any(f.transform.moves_to_bound for f in estimator.factors))

    @classmethod
    def of_weights(cls, estimator: Estimator, shared: Shared) -> "Trial":
        """Add up the weights that it gives."""
        w, runs = shared.estimator(estimator)(shared.batch), shared.runs
        lengths = runs.lengths.numpy().astype(np.float64)
        caps = any(factor.transform.moves_to_bound for factor in estimator.factors)
        range_ = Range.of(estimator)
        limits = sums_of(estimator, w, shared, range_.high)
        if w.unit == "sequence":
            units, kept, bounded = (x.numpy().astype(np.float64) for x in (w.valid, w.keep, w.bounded))
            log_w = np.where(w.keep.numpy(), w.log_w.double().numpy(), -np.inf)
            rows = [units, kept, bounded, lengths, kept * lengths]
            weight = np.exp(log_w - _shift(log_w))
            cells = _by_bin(shared, rows, weight, np.square(weight), _shift(log_w), log_w)
            return cls(w.unit, *cells, limits, range_, caps)
        unit = w.valid & heads(runs) if w.unit == "turn" else w.valid
        alone = w.unit == "token"  # a token is its own unit
        one_each = w.keep if alone else w.keep & unit
        kept_tokens = runs.count(w.keep)
        rows = [
            lengths if alone else runs.count(unit),
            kept_tokens if alone else runs.count(one_each),
            runs.count(w.bounded if alone else w.bounded & unit),
            lengths,
            kept_tokens,
        ]
        top, shift, total, square = _weights(runs, w.log_w.numpy(), one_each.numpy(), rows[1])
        return cls(w.unit, *_by_bin(shared, rows, total, square, shift, top), limits, range_, caps)

    def __add__(self, other: "Trial") -> "Trial":
        """Add up what it did on both."""
        return Trial(
            self.unit,
            self.counts + other.counts,
            torch.logaddexp(self.log_weight, other.log_weight),
            torch.logaddexp(self.log_square, other.log_square),
            torch.maximum(self.log_largest, other.log_largest),
            self.limits + other.limits,
            self.range,
            self.caps,
        )

    def outcomes(self) -> list[list["Outcome"]]:
        """Say what was done: for each sign, in each length bin."""
        counts = self.counts.permute(1, 2, 0).round().long().tolist()
        logs = (x.tolist() for x in (self.log_weight, self.log_square, self.log_largest))
        return [
            [Outcome(*cell, *rest) for cell, *rest in zip(*rows, strict=True)]  # one cell of a bin
            for rows in zip(counts, *logs, strict=True)  # those of a sign
        ]


def trials_of(estimators: Mapping[str, Estimator], shared: Shared) -> dict[str, Trial]:
    """Try estimators on one batch, in one compiled walk as far as it can."""
    ones = _ones(shared)
    asked: dict[str, Tried] = {}
    if native.library() is not None and shared.batch.log_ratio.dtype == torch.float32:
        asked = {name: x for name, one in estimators.items() if (x := _tried(one, shared)) is not None}
    found = {name: ones for name, one in estimators.items() if not one.factors and one.normalise is None}
    if asked:
        runs, ratios = shared.runs, _log_ratios(shared).clamp(max=80.0).double().exp().float()
        sums = walk.weigh(shared.batch.log_ratio, runs.mask, runs.runs, ratios, list(asked.values()))
        found |= {} if sums is None else dict(zip(asked, sums, strict=True))
    return {
        name: Trial.of_walk(one, shared, found[name]) if name in found else Trial.of_weights(one, shared)
        for name, one in estimators.items()
    }


def _ones(shared: Shared) -> Tensor:
    """What `walk.weigh` finds of weights that are all 1; the ratio is not compared with them."""
    n = shared.runs.lengths.double()
    return torch.stack([n, torch.zeros_like(n), torch.where(n > 0, 0.0, -torch.inf), n, n, torch.zeros_like(n)], -1)


def _tried(estimator: Estimator, shared: Shared) -> Tried | None:
    """Describe an estimator to the compiled walk; None if that cannot try it, or its weights are not of tokens."""
    if (
        not estimator.factors
        or estimator.normalise
        or estimator.unit != "token"
        or not Range.of(estimator).high < math.exp(SHIFT_STEP)
    ):
        return None
    of_tokens = list[tuple[str, str, float, float, float]]()
    of_sequences = list[Factor]()
    for factor in estimator.factors:
        how = _HOW.get(type(factor.transform))
        if factor.level.unit == "sequence" and not factor.sign:
            of_sequences.append(factor)
        elif how is None or factor.sign or factor.of is not log_ratio or factor.level not in (TOKEN, PREFIX):
            return None
        else:
            low, high = (math.log(x) if x else -math.inf for x in (factor.transform.low, factor.transform.high))  # type: ignore[reportAttributeAccessIssue]
            of_tokens.append((factor.level.name, how, low, high, factor.scale))
    if not of_sequences:
        return Tried(tuple(of_tokens))
    whole = shared.estimator(Estimator(tuple(of_sequences)))(shared.batch)
    return Tried(tuple(of_tokens), whole.log_w.float(), whole.keep, whole.bounded)


_HOW: Mapping[type, str] = {Clip: "clip", Reject: "reject", Screen: "screen"}


def _weights(
    runs: Runs, log_w: NDArray[Any], one_each: NDArray[np.bool_], kept: NDArray[np.float64], fill: float = _FILL
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Give each sequence's largest log-weight, shift, and sums of e^(log-weight - shift) and of its square.

    Args:
        runs: the sequences.
        log_w: `[N]` nats.
        one_each: `[N]`: kept units, each at one token.
        kept: `[S]`: how many there are in each sequence.
        fill: what stands for a log-weight elsewhere.
    """
    filled = np.where(one_each, log_w, np.array(fill, log_w.dtype))
    top = np.where(kept > 0, runs.reduce(np.maximum, filled, -np.inf), np.array(-np.inf, log_w.dtype))
    if fill > -np.inf and (top[kept > 0] < fill / 2).any():  # so small that the fill is no longer nothing beside them
        return _weights(runs, log_w, one_each, kept, -np.inf)
    shift = _shift(top)
    if shift.any():
        filled -= np.repeat(shift, runs.sizes)
    weight = torch.from_numpy(filled).exp_().numpy()
    total = runs.reduce(np.add, weight, 0)
    small = bool((top[kept > 0] < _FILL / 4).any())  # the square of e^-60 is no float32
    square = runs.reduce(np.add, np.square(weight, dtype=np.float64 if small else None), 0)
    return top, shift, np.where(kept > 0, total, 0), np.where(kept > 0, square, 0)


def _shift(top: NDArray[Any]) -> NDArray[Any]:
    """Choose what to take off before exp, nats: by steps, as a rule 0, so that all parts of the records round alike."""
    return np.where(np.isfinite(top), np.floor(top / SHIFT_STEP).clip(0) * SHIFT_STEP, 0).astype(top.dtype)


def _by_bin(
    shared: Shared,
    rows: list[NDArray[Any]],
    total: NDArray[Any],
    square: NDArray[Any],
    shift: NDArray[Any],
    top: NDArray[Any],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Counts, logs of the sum of weights and of squares, and log of the largest, by sign and length bin.

    Args:
        shared: the batch.
        rows: `[5]` of `[S]`, see `COUNTS`.
        total: `[S]`: sum of e^(log-weight - shift).
        square: `[S]`: sum of its square.
        shift: `[S]`, nats.
        top: `[S]`: largest log-weight, nats.
    """
    cells, shape = shared.cells, (len(SIGNS), NUM_BINS)
    largest = np.full(shared.in_cell.shape[1], -np.inf)
    np.maximum.at(largest, cells, top)
    base = _shift(largest)
    down = np.exp(shift.astype(np.float64) - base[cells])
    sums = np.stack([*rows, total * down, square * np.square(down)]) @ shared.in_cell
    with np.errstate(divide="ignore"):  # log 0 where nothing was kept
        logs = np.log(sums[5]) + base, np.log(sums[6]) + 2 * base, largest
    counts = torch.from_numpy(sums[:5].reshape(5, *shape))
    return counts, *(torch.from_numpy(x.reshape(shape)) for x in logs)  # type: ignore[return-value]


@dataclass(frozen=True)
class Outcome:
    """Says what an estimator did to some units.

    Attributes:
        units: how many there are.
        kept: units that were not dropped.
        bounded: kept units whose ratio was moved to a bound.
        tokens: tokens of those units.
        kept_tokens: tokens that were not dropped.
        log_weight: log of the sum of weights, nats; -inf if it is 0.
        log_square: log of the sum of their squares, nats.
        log_largest: log of the largest weight, nats.
    """

    units: int = 0
    kept: int = 0
    bounded: int = 0
    tokens: int = 0
    kept_tokens: int = 0
    log_weight: float = -math.inf
    log_square: float = -math.inf
    log_largest: float = -math.inf

    def __add__(self, other: "Outcome") -> "Outcome":
        """Add up what it did to all of them."""
        return Outcome(
            self.units + other.units,
            self.kept + other.kept,
            self.bounded + other.bounded,
            self.tokens + other.tokens,
            self.kept_tokens + other.kept_tokens,
            _log_sum(self.log_weight, other.log_weight),
            _log_sum(self.log_square, other.log_square),
            max(self.log_largest, other.log_largest),
        )

    @property
    def kept_share(self) -> float:
        """Share of units that were kept."""
        return self.kept / self.units

    @property
    def kept_tokens_share(self) -> float:
        """Share of tokens that were kept."""
        return self.kept_tokens / self.tokens

    @property
    def bounded_share(self) -> float:
        """Share of all units whose ratio was moved to a bound."""
        return self.bounded / self.units

    @property
    def log_mean_weight(self) -> float:
        """log of the mean weight over all units, dropped ones included at weight 0; nats."""
        return self.log_weight - math.log(self.units)

    @property
    def effective_share(self) -> float:
        """`(sum w)^2 / sum w^2` of the weights as applied, over all units: dropped ones weigh 0. 0 if nothing is left.

        A cap or a drop raises it by making weights alike. It says how even they are, not how near to pi they bring one.
        """
        return math.exp(2 * self.log_weight - self.log_square) / self.units if self.log_weight > -math.inf else 0.0


def _log_sum(a: float, b: float) -> float:
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


MEANINGS: Mapping[str, str] = {
    "kept_share": "Share of units that are not dropped.",
    "kept_tokens_share": "Share of tokens that are not dropped.",
    "bounded_share": "Share of units whose ratio is moved to a bound.",
    "mean_weight": "Mean weight over all units, dropped ones at 0: what caps and drops take away is missing from 1.",
    "effective_share": (
        "Effective share of the weights as applied, dropped units at 0: how even they are, not how near to pi they "
        "bring one. A cap raises it at the price of bias. A fact about these units, without an interval."
    ),
    "largest_weight": "Largest weight of a unit. A fact about these units, without an interval.",
}
_LARGEST = 300.0  # nats; a weight beyond it has no square that a float64 can hold


@dataclass(frozen=True)
class TrialRow:
    """Says what one estimator would do.

    Attributes:
        name: as one would write it.
        unit: what a weight belongs to.
        all: on all units.
        by_bin: by bin of response length (`reweigh.stats.sums.LENGTH_EDGES`); some have no units.
        by_sign: by sign of the sequence's mean advantage; all are "none" where no advantage is recorded.
        raw: the share of its units that would be effective under their raw ratios; refused as the level's is.
        independent: how many independent units know as much as these clustered ones; for intervals.
        caps: whether it moves large ratios to a bound.
        limits: how wrong and how noisy it can be at worst.
        high: the largest weight there can be, whatever the data; infinite if it has none.
    """

    name: str
    unit: Unit
    all: Outcome
    by_bin: tuple[Outcome, ...]
    by_sign: Mapping[Sign, Outcome]
    raw: Number
    independent: float
    caps: bool
    limits: Limits
    high: float

    def number(self, outcome: Outcome, name: str) -> Number:
        """Work out a number of a part of it that has units, with what it means; `name` is one of `MEANINGS`.

        Shares have Chernoff intervals and the mean weight has a t interval, at the number of independent units that
        clusters leave of the part.
        """
        n = max(1.0, self.independent * outcome.units / self.all.units)
        if name == "mean_weight":
            mean = _exp(outcome.log_mean_weight)
            heavy = mean > 0 and outcome.log_largest - outcome.log_weight > math.log(MAX_SHARE)
            found = Number(mean, sample=mean)
            if n >= 2 and not heavy and mean < math.inf:  # otherwise too few units, or one of them decides it
                square = math.exp(outcome.log_square - math.log(outcome.units)) if mean else 0.0
                half = t_quantile(0.975, max(1, int(n) - 1)) * math.sqrt(max(0.0, square - mean * mean) / n)
                found = Number(mean, max(0.0, mean - half), mean + half, mean)
        elif name == "largest_weight":
            largest = _exp(outcome.log_largest)
            found = Number(largest, sample=largest)
        elif name == "effective_share":
            found = Number(outcome.effective_share, sample=outcome.effective_share)
        else:
            share: float = getattr(outcome, name)
            found = Number(share, *bernoulli_kl(share, n), share)
        return replace(found, meaning=MEANINGS[name])


def _exp(log_x: float) -> float:
    return math.exp(log_x) if log_x < _LARGEST else math.inf
