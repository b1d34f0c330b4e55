"""All that an audit adds up, as one value that merges: over parts of a file, and over files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from reweigh.audit.pictures import WORST_COLUMNS, Density, Histogram, Worst, WorstSequence
from reweigh.audit.slices import Slices
from reweigh.audit.trial import Trial, default_estimators, possible
from reweigh.audit.where import Cut, Strata, TokenRows, all_strata
from reweigh.estimators import Estimator
from reweigh.levels import SEQUENCE, TOKEN, TURN
from reweigh.scan.cuts import CUT_COLUMNS, By, merge
from reweigh.scan.measure import Family
from reweigh.scan.tokens import Part
from reweigh.stats.sums import RatioStats

COLUMNS = (*CUT_COLUMNS, *WORST_COLUMNS)  # what is read beside those of a batch


@dataclass(frozen=True)
class Plan:
    """What is asked of an audit: which estimators to try (None for the default ones), and what to cut by."""

    estimators: Mapping[str, Estimator] | None = None
    by: tuple[By, ...] = ()


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over records, of a size that does not depend on how many there are; `a + b` is the sums of both.

    Attributes:
        levels: stats of the raw ratios, by name of the level; TURN only where the records have turns.
        trials: what each estimator did, by its name.
        histograms: of log ratios, by name of the level.
        strata: mean and spread of log ratios by each cut that the records allow.
        density: tokens by probability and log ratio.
        worst: the sequences that are farthest off.
        slices: by what they are cut by.
        positive: tokens that were left out because a log-prob is over 0.
        steps_stand_in: rows whose lag is counted from their step, for want of the trainer's version.
    """

    levels: dict[str, RatioStats] = field(default_factory=dict[str, RatioStats])
    trials: dict[str, Trial] = field(default_factory=dict[str, Trial])
    histograms: dict[str, Histogram] = field(default_factory=dict[str, Histogram])
    strata: dict[Cut, Strata] = field(default_factory=dict[Cut, Strata])
    density: Density = field(default_factory=Density.empty)
    worst: Worst = field(default_factory=Worst)
    slices: dict[By, Slices] = field(default_factory=dict[By, Slices])
    positive: int = 0
    steps_stand_in: int = 0

    @classmethod
    def of(cls, plan: Plan, part: Part) -> "Sums":
        """Add up some records."""
        batch, shared = part.batch, part.shared
        layout = batch.layout
        levels = [TOKEN, SEQUENCE] + ([TURN] if layout.turn is not None else [])
        estimators = default_estimators(batch) if plan.estimators is None else possible(plan.estimators, batch)
        live, log_ratio = shared.runs.lengths, batch.log_ratio
        by_sequence = shared.runs.reduce(np.add, log_ratio.numpy(), 0, np.float64)
        return cls(
            {stats.level.name: stats for stats in RatioStats.of_levels(batch, levels)},
            {name: Trial.of(estimator, shared) for name, estimator in estimators.items()},
            {
                "token": Histogram.of(log_ratio).without_zeros(log_ratio.numel() - int(live.sum())),
                "sequence": Histogram.of(torch.from_numpy(by_sequence)[live > 0]),
            },
            all_strata(TokenRows.of(shared), part),
            Density.of(shared),
            Worst.of(shared, by_sequence, part),
            {by: Slices.of(by, part) for by in plan.by},
            part.positive,
            part.steps_stand_in,
        )

    def __add__(self, other: "Sums") -> "Sums":
        """The sums of both."""
        return Sums(
            merge(self.levels, other.levels),
            merge(self.trials, other.trials),
            merge(self.histograms, other.histograms),
            merge(self.strata, other.strata),
            self.density + other.density,
            self.worst + other.worst,
            merge(self.slices, other.slices),
            self.positive + other.positive,
            self.steps_stand_in + other.steps_stand_in,
        )


def family(estimators: Mapping[str, Estimator] | None = None, by: tuple[By, ...] = ()) -> Family:
    """The sums of an audit, as a family of a scan."""
    plan = Plan(estimators, by)
    return Family(
        "audit",
        partial(Sums.of, plan),
        COLUMNS,
        (Sums, Trial, Histogram, Density, Strata, Worst, WorstSequence, Slices),
        {
            "estimators": "default" if estimators is None else {name: repr(e) for name, e in estimators.items()},
            "--by": list(by),
        },
    )
