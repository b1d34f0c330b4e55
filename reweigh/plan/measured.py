"""Measure a plan's inputs on records: KL a token, lengths, spread, and what each estimator did to these very units."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reweigh.batch import Batch
from reweigh.estimators import Estimator, Weights
from reweigh.levels import SEQUENCE, TOKEN, heads
from reweigh.plan.model import Band, Expected, MixedRatio
from reweigh.scan.measure import Family
from reweigh.scan.run import Scanned
from reweigh.scan.tokens import Part
from reweigh.stats.summary import Summary, summarise
from reweigh.stats.sums import RatioStats

Array = NDArray[np.float64]

MOST_KL = 1e4  # nats a token; in the model nothing is left of any weight long before
_LENGTHS = 24  # groups of sequences of nearly one length, for the model


@final
@dataclass(frozen=True)
class WeightTally:
    """Sums over what an estimator did; `a + b` adds up both. Weights in logs: a sequence ratio may be e^800."""

    units: float = 0.0
    kept: float = 0.0
    bounded: float = 0.0
    log_sum: float = -math.inf
    log_squares: float = -math.inf

    @classmethod
    def of(cls, w: Weights) -> "WeightTally":
        """Add up one batch."""
        one_each = heads(w.layout) if w.unit == "turn" else w.valid
        log_w = w.log_w[w.keep & one_each].double()
        units, kept, bounded = (float(x) for x in (w.num_units, w.num_kept, w.num_bounded))
        return cls(units, kept, bounded, _log_sum(log_w), _log_sum(2 * log_w))

    def __add__(self, other: "WeightTally") -> "WeightTally":
        """Add up both."""
        return WeightTally(
            self.units + other.units,
            self.kept + other.kept,
            self.bounded + other.bounded,
            float(np.logaddexp(self.log_sum, other.log_sum)),
            float(np.logaddexp(self.log_squares, other.log_squares)),
        )

    def expected(self, normalised: bool = False) -> Expected | None:
        """Means over the units; None if there are none, or if no float64 holds them."""
        if self.units == 0 or self.log_squares - math.log(self.units) > 700:
            return None
        kept, capped = self.kept / self.units, self.bounded / self.units
        mean, square = (math.exp(x - math.log(self.units)) for x in (self.log_sum, self.log_squares))
        if normalised and mean > 0:
            mean, square = kept, square * (kept / mean) ** 2
        return Expected(kept, capped, mean, square)


@final
@dataclass(frozen=True, eq=False)
class SequenceFigures:
    """Three numbers of each sequence with a token; 20 bytes each are kept.

    Attributes:
        log_ratio: `[S]` nats.
        length: `[S]` tokens that count.
        squares: `[S]`: sum of squared log ratios of its tokens, nats squared.
        fourths: sum over all tokens of the fourth power.
    """

    log_ratio: Array
    length: NDArray[np.int32]
    squares: Array
    fourths: float

    @classmethod
    def of(cls, batch: Batch) -> "SequenceFigures":
        """Take the numbers of one batch, whose log ratios are there."""
        l, layout = batch.log_ratio.double(), batch.layout
        some = layout.lengths > 0
        sums, squares = (layout.sum_zeroed(x)[some].numpy() for x in (l, l.square()))
        return cls(sums, layout.lengths[some].int().numpy(), squares, float(l.square().square().sum()))

    @classmethod
    def joined(cls, parts: "list[SequenceFigures]") -> "SequenceFigures":
        """Put parts one after the other."""
        return cls(
            np.concatenate([p.log_ratio for p in parts]),
            np.concatenate([p.length for p in parts]),
            np.concatenate([p.squares for p in parts]),
            sum(p.fourths for p in parts),
        )

    def spread(self) -> float:
        """Squared coefficient of variation between sequences of the mean squared log ratio of their tokens.

        `((sum (v_i - m T_i)^2 - s^2 sum T_i) / sum T_i^2)_+ / m^2`, with v_i the sum of squares, m and s^2 mean and
        variance of a token's square: what is left when the chance of the tokens is taken away. 0: all are alike.
        """
        t = self.length.astype(np.float64)
        mean = self.squares.sum() / t.sum()
        if mean == 0:
            return 0.0
        chance = max(0.0, self.fourths / t.sum() - mean**2) * t.sum()
        between = (((self.squares - mean * t) ** 2).sum() - chance) / (t * t).sum()
        return float(max(0.0, between) / mean**2)

    def variance(self, kl: float) -> float:
        """`sum (l_i + KL T_i)^2 / sum T_i`: of a sequence's log ratio over its tokens; 2 KL in the model."""
        t = self.length.astype(np.float64)
        return float(((self.log_ratio + kl * t) ** 2).sum() / t.sum())

    def within(self, band: Band) -> float:
        """Share of the sequences that a band keeps, each at its own length."""
        t = self.length.astype(np.float64)
        return float((np.abs(self.log_ratio + band.kl * t) <= band.width * np.sqrt(t)).mean())

    def grouped(self) -> list[tuple[float, float]]:
        """Mean length and share of at most 24 groups of sequences of nearly one length."""
        groups = np.array_split(np.sort(self.length), min(_LENGTHS, len(self.length)))
        return [(float(g.mean()), len(g) / len(self.length)) for g in groups]


@final
@dataclass(frozen=True, eq=False)
class MeasuredRun:
    """Records, added up.

    Attributes:
        token: numbers of the tokens.
        sequence: numbers of the sequences.
        each: three numbers of each sequence.
        tallies: what each estimator did, by its name.
        turns: how many a sequence has on average; None if the records do not say.
        positive: tokens left out because a log-prob is over 0.
    """

    token: Summary
    sequence: Summary
    each: SequenceFigures
    tallies: Mapping[str, WeightTally] = field(repr=False)
    turns: float | None = None
    positive: int = 0

    @property
    def kl(self) -> float:
        """KL(mu||pi) of a token by k3, nats, at most `MOST_KL`: that of one log-prob of -9999 fits no float64."""
        return min(max(0.0, self.token.numbers["kl_k3"].sample or 0.0), MOST_KL)

    def law(self) -> MixedRatio:
        """The model with this KL, these lengths and this spread between sequences."""
        return MixedRatio.of_lengths(self.kl, self.each.grouped(), self.each.spread())


@final
@dataclass(frozen=True, eq=False)
class PlanSums:
    """The sums of a plan; `a + b` adds those of other records.

    Attributes:
        token: stats of the tokens.
        sequence: stats of the sequences.
        each: three numbers of each sequence, some records after the other.
        tallies: what each estimator did, by its name.
        turns: those of records that say so.
        with_turns: sequences of those records.
        positive: tokens left out because a log-prob is over 0.
    """

    token: RatioStats = field(default_factory=lambda: RatioStats.empty(TOKEN))
    sequence: RatioStats = field(default_factory=lambda: RatioStats.empty(SEQUENCE))
    each: tuple[SequenceFigures, ...] = ()
    tallies: Mapping[str, WeightTally] = field(default_factory=dict[str, WeightTally])
    turns: float = 0.0
    with_turns: float = 0.0
    positive: int = 0

    @classmethod
    def of(cls, estimators: Mapping[str, Estimator], part: Part) -> "PlanSums":
        """Add up some records."""
        batch = part.batch
        token, sequence = RatioStats.of_levels(batch, (TOKEN, SEQUENCE))
        turned = batch.layout.turn is not None
        tallies = {
            name: WeightTally.of(one(batch))
            for name, one in estimators.items()
            if turned or not any(f.level.name == "turn" for f in one.factors)
        }
        turns = float(heads(batch.layout).sum()) if turned else 0.0
        with_turns = float((batch.layout.lengths > 0).sum()) if turned else 0.0
        return cls(token, sequence, (SequenceFigures.of(batch),), tallies, turns, with_turns, part.positive)

    def __add__(self, other: "PlanSums") -> "PlanSums":
        """Add up both."""
        names = dict.fromkeys((*self.tallies, *other.tallies))
        tallies = {
            name: self.tallies.get(name, WeightTally()) + other.tallies.get(name, WeightTally()) for name in names
        }
        return PlanSums(
            self.token + other.token,
            self.sequence + other.sequence,
            (*self.each, *other.each),
            tallies,
            self.turns + other.turns,
            self.with_turns + other.with_turns,
            self.positive + other.positive,
        )


def family(estimators: Mapping[str, Estimator]) -> Family:
    """Ask for what a plan needs of what is scanned.

    Args:
        estimators: to run on the records, by name; those that need turns only where the records have them.
    """
    asked = {name: repr(one) for name, one in estimators.items()}
    return Family(
        "plan", partial(PlanSums.of, estimators), (), (PlanSums, SequenceFigures, WeightTally), {"estimators": asked}
    )


def measured(scanned: Scanned) -> MeasuredRun:
    """Make numbers of what was scanned.

    Raises:
        ValueError: no token counts.
    """
    sums: PlanSums = scanned.sums.get("plan", PlanSums())
    if not sum(len(p.length) for p in sums.each):
        names = ", ".join(str(file.path) for file in scanned.files)
        raise ValueError(f"plan: no token counts in {names}\nhint: `reweigh records describe` says what is in a file.")
    turns = sums.turns / sums.with_turns if sums.with_turns else None
    return MeasuredRun(
        summarise(sums.token),
        summarise(sums.sequence),
        SequenceFigures.joined(list(sums.each)),
        sums.tallies,
        turns,
        sums.positive,
    )


def _log_sum(log_w: Tensor) -> float:
    return float(torch.logsumexp(log_w, 0)) if log_w.numel() else -math.inf
