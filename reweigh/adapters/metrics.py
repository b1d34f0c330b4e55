"""What went through a correction, as sums that add and as one flat dict that any logger takes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from reweigh.batch import Batch
from reweigh.divergences import k3
from reweigh.estimators import Weights
from reweigh.levels import SEQUENCE, TOKEN, heads
from reweigh.stats import RatioStats
from reweigh.summary import Summary, summarise

PREFIX = "reweigh/"
SHOWN = {
    "token": ("mean_ratio", "kl_k1", "kl_k3", "mean_abs", "tv", "beyond_2x", "largest_gap"),
    "sequence": ("mean_ratio", "kl_k1", "sd", "tv", "renyi2", "ess_fraction", "largest_share", "khat"),
}
"""By level, the numbers of a `Summary` that go to a logger; docs/intervals.md says what they are."""


def per_token(batch: Batch, weights: Weights) -> dict[str, Tensor]:
    """For hooks that add up tokens by themselves: token-shaped float32, 0 off the mask; `kl_*` in nats of mu to pi.

    Args:
        batch: its raw ratios.
        weights: what an estimator made of them.
    """
    on = batch.layout.mask
    values = {
        "weight": weights.per_token,
        "rejected": on & ~weights.keep_tokens,
        "kl_k1": -batch.log_ratio,
        "kl_k3": torch.where(on, k3(batch), 0),
    }
    return {f"{PREFIX}{name}": value.float() for name, value in values.items()}


@dataclass(frozen=True, eq=False)
class WeightSums:
    """Sums over the weights that were multiplied in; `a + b` is that of both. 0-d tensors, no host sync.

    Attributes:
        units: how many exist; kept: of these; bounded: of the kept, those whose ratio was moved to a bound.
        total: sum of kept weights, largest: the largest of them.
    """

    units: Tensor
    kept: Tensor
    bounded: Tensor
    total: Tensor
    largest: Tensor

    @classmethod
    def of(cls, weights: Weights) -> "WeightSums":
        """Of one batch's weights."""
        w = weights.per_unit.double()
        once = w * heads(weights.layout) if weights.unit == "turn" else w
        largest = w.amax() if w.numel() else w.new_zeros(())
        return cls(weights.num_units, weights.num_kept, weights.num_bounded, once.sum(), largest)

    def __add__(self, other: "WeightSums") -> "WeightSums":
        """Of both."""
        return WeightSums(
            self.units + other.units,
            self.kept + other.kept,
            self.bounded + other.bounded,
            self.total + other.total,
            torch.maximum(self.largest, other.largest),
        )


@dataclass(frozen=True, eq=False)
class Seen:
    """Raw ratios at two levels, before any bound, and the weights after; `a + b` is what both have seen.

    Example:
        >>> import torch
        >>> from reweigh import Batch, seq_tis
        >>> batch = Batch.padded(torch.full((30, 4), -1.0), torch.full((30, 4), -1.1), torch.ones(30, 4))
        >>> logged = Seen.of(batch, seq_tis(1.2)(batch)).flat()
        >>> print(round(logged["reweigh/sequence/mean_ratio"], 3), round(logged["reweigh/weight/mean"], 3))
        1.492 1.2
    """

    token: RatioStats
    sequence: RatioStats
    weights: WeightSums | None = None

    @classmethod
    def of(cls, batch: Batch, weights: Weights | None = None) -> "Seen":
        """Of one batch and the weights that it got, if they were ours. No host sync."""
        token, sequence = RatioStats.of_levels(batch, (TOKEN, SEQUENCE))
        return cls(token, sequence, None if weights is None else WeightSums.of(weights))

    def __add__(self, other: "Seen") -> "Seen":
        """Of both; of the weights of both only if both have them."""
        both = None if self.weights is None or other.weights is None else self.weights + other.weights
        return Seen(self.token + other.token, self.sequence + other.sequence, both)

    def flat(self, prefix: str = PREFIX, *, intervals: bool = False) -> dict[str, float]:
        """Names to finite floats: for `wandb.log`, `trackio.log`, `mlflow.log_metrics`, TensorBoard, a trainer's own.

        A number that the data cannot carry is left out, and `refused` of its level is 1; what the sample alone says
        stands under `..._in_sample` in any case. `identity` is 0 if the mean ratio cannot be 1: then the log-probs
        are not those that were sampled from, and no correction is right. One host sync.

        Args:
            prefix: before every name.
            intervals: also `..._low` and `..._high`, the ends of each 95% interval.
        """
        out = {
            f"{prefix}{summary.level}/{name}": value
            for summary in (summarise(self.token), summarise(self.sequence))
            for name, value in _numbers(summary, intervals)
        }
        if self.weights is not None:
            out |= {f"{prefix}weight/{name}": value for name, value in _of_weights(self.weights)}
        return {name: value for name, value in out.items() if math.isfinite(value)}


def _of_weights(sums: WeightSums) -> Iterator[tuple[str, float]]:
    units, kept, bounded, total, largest = torch.stack([x.double() for x in vars(sums).values()]).tolist()
    if units:
        yield "kept_fraction", kept / units
    if kept:
        yield "mean", total / kept
        yield "max", largest
        yield "bounded_fraction", bounded / kept


def _numbers(summary: Summary, intervals: bool) -> Iterator[tuple[str, float]]:
    yield "n", float(summary.n)
    yield "dropped", float(summary.dropped)
    if not summary.n:
        return
    yield "identity", float(summary.identity)
    yield "refused", float(bool(summary.refusal))
    for name in SHOWN[summary.level]:
        number = summary[name]
        if number.value is not None:
            yield name, number.value
        elif number.sample is not None:
            yield f"{name}_in_sample", number.sample
        if intervals and number.low is not None:
            yield f"{name}_low", number.low
        if intervals and number.high is not None:
            yield f"{name}_high", number.high
