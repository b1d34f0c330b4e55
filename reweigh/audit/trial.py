"""What an estimator would do on these records: how much it keeps, caps and weighs, by length of the response."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reweigh.audit.runs import Runs, Shared
from reweigh.batch import Batch
from reweigh.estimators import Estimator
from reweigh.levels import Unit, heads
from reweigh.named import (
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
from reweigh.sums import NUM_BINS, SHIFT_STEP

# Stands for the log-weight of what was dropped: e^-80 is nothing, while exp is ten times as slow at -inf.
_FILL = -80.0  # nats
COUNTS = ("units", "kept", "bounded", "tokens", "kept_tokens")


def default_estimators(batch: Batch) -> dict[str, Estimator]:
    """Estimators worth trying, as one would write them; those that need turns or advantages only if the batch has them.

    Example:
        >>> import torch
        >>> from reweigh import Batch
        >>> list(default_estimators(Batch.padded(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1))))[:3]
        ['naive', 'token_tis(2)', 'prefix_tis(2)']
    """
    found = {
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
    }
    if batch.layout.turn is not None:
        found["turn_tis(2)"] = turn_tis(2.0)
    if batch.advantage is not None:
        found["opsm(0.05)"] = opsm(0.05)
        found["dppo_tv(0.2, 0.2)"] = dppo_tv(0.2, 0.2)
    return found


def refuse_batch_readers(estimators: Mapping[str, Estimator]) -> None:
    """Raise if what an estimator does depends on how the records are cut into batches."""
    for name, estimator in estimators.items():
        if estimator.reads_batch:
            raise ValueError(
                f"audit: {name} looks at a whole batch (it normalises, sorts or fits), and records are read "
                "in parts of no particular size\nhint: try its factors without that step, or call it on one batch."
            )


@dataclass(frozen=True, eq=False)
class Trial:
    """Sums over what an estimator did, by length of the response; `a + b` is the trial on both.

    Attributes:
        unit: what a weight belongs to.
        counts: `[5, bins]` float64, see `COUNTS`.
        log_weight: `[bins]` nats: log of the sum of weights, in log space since a sequence ratio may be e^800.
        log_largest: `[bins]` nats: log of the largest weight.
    """

    unit: Unit
    counts: Tensor
    log_weight: Tensor
    log_largest: Tensor

    @classmethod
    def of(cls, estimator: Estimator, shared: Shared) -> "Trial":
        """The trial on one batch."""
        w, runs = shared.estimator(estimator)(shared.batch), shared.runs
        lengths = runs.lengths.numpy().astype(np.float64)
        if w.unit == "sequence":
            units, kept, bounded = (x.numpy().astype(np.float64) for x in (w.valid, w.keep, w.bounded))
            log_w = np.where(w.keep.numpy(), w.log_w.double().numpy(), -np.inf)
            rows = [units, kept, bounded, lengths, kept * lengths]
            return cls(w.unit, *_by_bin(shared, rows, np.exp(log_w - _shift(log_w)), _shift(log_w), log_w))
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
        top, shift, total = _weights(runs, w.log_w.numpy(), one_each.numpy(), rows[1])
        return cls(w.unit, *_by_bin(shared, rows, total, shift, top))

    def __add__(self, other: "Trial") -> "Trial":
        """The trial on both."""
        return Trial(
            self.unit,
            self.counts + other.counts,
            torch.logaddexp(self.log_weight, other.log_weight),
            torch.maximum(self.log_largest, other.log_largest),
        )

    def by_bin(self) -> list["Outcome"]:
        """What was done in each length bin."""
        columns = zip(self.counts.T.tolist(), self.log_weight.tolist(), self.log_largest.tolist(), strict=True)
        found: list[Outcome] = []
        for counts, log_weight, log_largest in columns:
            units, kept, bounded, tokens, kept_tokens = (round(n) for n in counts)
            found.append(Outcome(units, kept, bounded, tokens, kept_tokens, log_weight, log_largest))
        return found


def _weights(
    runs: Runs, log_w: NDArray[Any], one_each: NDArray[np.bool_], kept: NDArray[np.float64], fill: float = _FILL
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Of each sequence: the largest log-weight, the shift, and the sum of e^(log-weight - shift).

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
    total = runs.reduce(np.add, torch.from_numpy(filled).exp_().numpy(), 0)
    return top, shift, np.where(kept > 0, total, 0)


def _shift(top: NDArray[Any]) -> NDArray[Any]:
    """What is taken off before exp, nats: by steps, as a rule 0, so that no part of the records rounds as another."""
    return np.where(np.isfinite(top), np.floor(top / SHIFT_STEP).clip(0) * SHIFT_STEP, 0).astype(top.dtype)


def _by_bin(
    shared: Shared, rows: list[NDArray[Any]], total: NDArray[Any], shift: NDArray[Any], top: NDArray[Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, log of the sum of weights and log of the largest, by length bin.

    Args:
        shared: the batch.
        rows: `[5]` of `[S]`, see `COUNTS`.
        total: `[S]`: sum of e^(log-weight - shift).
        shift: `[S]`, nats.
        top: `[S]`: largest log-weight, nats.
    """
    bins = shared.bins
    largest = np.full(NUM_BINS, -np.inf)
    np.maximum.at(largest, bins, top)
    base = _shift(largest)
    scaled = total * np.exp(shift.astype(np.float64) - base[bins])
    sums = np.stack([*rows, scaled]) @ shared.in_bin
    with np.errstate(divide="ignore"):  # log 0 where nothing was kept
        return torch.from_numpy(sums[:5]), torch.from_numpy(np.log(sums[5]) + base), torch.from_numpy(largest)


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
        log_largest: log of the largest weight, nats.
    """

    units: int = 0
    kept: int = 0
    bounded: int = 0
    tokens: int = 0
    kept_tokens: int = 0
    log_weight: float = -math.inf
    log_largest: float = -math.inf

    def __add__(self, other: "Outcome") -> "Outcome":
        """What it did to all of them."""
        high, low = max(self.log_weight, other.log_weight), min(self.log_weight, other.log_weight)
        return Outcome(
            self.units + other.units,
            self.kept + other.kept,
            self.bounded + other.bounded,
            self.tokens + other.tokens,
            self.kept_tokens + other.kept_tokens,
            high if low == -math.inf else high + math.log1p(math.exp(low - high)),
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
