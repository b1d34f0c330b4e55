"""What an estimator would do on these records: how much it keeps, caps and weighs, by length of the response."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reweigh.audit.limits import Range, sums_of
from reweigh.audit.runs import Runs, Shared
from reweigh.audit.tried import default_estimators as default_estimators
from reweigh.audit.tried import refuse_batch_readers as refuse_batch_readers
from reweigh.estimators import Estimator
from reweigh.levels import Unit, heads
from reweigh.sums import NUM_BINS, SHIFT_STEP

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
        limits: `[64, 5]`: what the worst case needs, see `reweigh.audit.limits.sums_of`.
        low: the smallest weight of a token there can be, whatever the data; high: the largest.
        below_ratio: whether a weight is never over the sequence ratio.
        caps: whether it moves large ratios to a bound, and so has a largest weight whatever comes.
    """

    unit: Unit
    counts: Tensor
    log_weight: Tensor
    log_square: Tensor
    log_largest: Tensor
    limits: Tensor
    low: float
    high: float
    below_ratio: bool
    caps: bool = False

    @classmethod
    def of(cls, estimator: Estimator, shared: Shared) -> "Trial":
        """The trial on one batch."""
        w, runs = shared.estimator(estimator)(shared.batch), shared.runs
        lengths = runs.lengths.numpy().astype(np.float64)
        caps = any(factor.transform.moves_to_bound for factor in estimator.factors)
        range_ = Range.of(estimator)
        limits = (sums_of(estimator, w, shared), range_.low, range_.high, range_.below_ratio)
        if w.unit == "sequence":
            units, kept, bounded = (x.numpy().astype(np.float64) for x in (w.valid, w.keep, w.bounded))
            log_w = np.where(w.keep.numpy(), w.log_w.double().numpy(), -np.inf)
            rows = [units, kept, bounded, lengths, kept * lengths]
            weight = np.exp(log_w - _shift(log_w))
            return cls(w.unit, *_by_bin(shared, rows, weight, np.square(weight), _shift(log_w), log_w), *limits, caps)
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
        return cls(w.unit, *_by_bin(shared, rows, total, square, shift, top), *limits, caps)

    def __add__(self, other: "Trial") -> "Trial":
        """The trial on both."""
        return Trial(
            self.unit,
            self.counts + other.counts,
            torch.logaddexp(self.log_weight, other.log_weight),
            torch.logaddexp(self.log_square, other.log_square),
            torch.maximum(self.log_largest, other.log_largest),
            self.limits + other.limits,
            self.low,
            self.high,
            self.below_ratio,
            self.caps,
        )

    @property
    def range(self) -> Range:
        """What its weights can be."""
        return Range(self.low, self.high, self.below_ratio)

    def outcomes(self) -> list[list["Outcome"]]:
        """What was done: for each sign, in each length bin."""
        return [self._row(i) for i in range(len(SIGNS))]

    def by_bin(self) -> list["Outcome"]:
        """What was done in each length bin."""
        return [sum(column, Outcome()) for column in zip(*self.outcomes(), strict=True)]

    def by_sign(self) -> dict[Sign, "Outcome"]:
        """What was done for each sign of the advantage."""
        return {sign: sum(row, Outcome()) for sign, row in zip(SIGNS, self.outcomes(), strict=True)}

    def _row(self, sign: int) -> list["Outcome"]:
        logs = (x[sign].tolist() for x in (self.log_weight, self.log_square, self.log_largest))
        found: list[Outcome] = []
        for counts, *rest in zip(self.counts[:, sign].T.tolist(), *logs, strict=True):
            units, kept, bounded, tokens, kept_tokens = (round(n) for n in counts)
            found.append(Outcome(units, kept, bounded, tokens, kept_tokens, *rest))
        return found


def _weights(
    runs: Runs, log_w: NDArray[Any], one_each: NDArray[np.bool_], kept: NDArray[np.float64], fill: float = _FILL
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Of each sequence: the largest log-weight, the shift, and the sums of e^(log-weight - shift) and of its square.

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
    """What is taken off before exp, nats: by steps, as a rule 0, so that no part of the records rounds as another."""
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
    """What an estimator did to some units.

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
        """What it did to all of them."""
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
