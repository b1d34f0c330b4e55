"""What an estimator would do on these records: how much it keeps, caps and weighs, by length of the response."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

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
from reweigh.sums import NUM_BINS, length_bin, sum_by_bin

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
    def of(cls, estimator: Estimator, batch: Batch) -> "Trial":
        """The trial on one batch."""
        w, layout = estimator(batch), batch.layout
        lengths = layout.lengths
        bins = length_bin(lengths)
        whole = w.unit == "sequence"
        unit = w.valid & heads(layout) if w.unit == "turn" else w.valid

        def per_seq(x: Tensor) -> Tensor:
            return x.double() if whole else layout.sum_zeroed(x.double())

        kept = w.keep & unit
        log_w = torch.where(kept, w.log_w.double(), -torch.inf)
        nothing = log_w.new_full((NUM_BINS,), -torch.inf)
        top = nothing.scatter_reduce(0, bins, log_w if whole else layout.max(log_w), "amax")
        shift = torch.where(torch.isfinite(top), top, 0)
        counts = [unit, kept, w.bounded & unit, layout.mask, w.keep_tokens]
        rows = [per_seq(x) for x in counts[:3]] + [layout.sum_zeroed(x.double()) for x in counts[3:]]
        rows.append(per_seq(torch.exp(log_w - (shift[bins] if whole else layout.spread(shift[bins])))))
        sums = sum_by_bin(torch.stack(rows), bins)
        return cls(w.unit, sums[:5], sums[5].log() + shift, top)

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
