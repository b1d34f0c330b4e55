"""Metrics that frameworks log, out of the levels, statistics and transforms of the core."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from reweigh.batch import Batch
from reweigh.estimators import Statistic
from reweigh.levels import GEOMETRIC, SEQUENCE, Level, k1, k3, log_ratio
from reweigh.rosetta.parts import Clamped, Rule, as_it_comes
from reweigh.rosetta.plan import Options, Outcome, Plan, Situation, Tensors

SAFE = Clamped(20.0)
"""The clamp of log ratios that verl, slime, SkyRL and ms-swift share: SAFETY_BOUND, nats."""


@dataclass(frozen=True, eq=False)
class View:
    """The batch, the plan that ran and what came out: a metric is computed from these."""

    situation: Situation
    plan: Plan
    outcome: Outcome

    @property
    def options(self) -> Options:
        """The options in force."""
        return self.situation.options

    @property
    def tensors(self) -> Tensors:
        """The recorded log-probs and mask."""
        return self.situation.tensors

    def batch(self, rule: Rule = as_it_comes) -> Batch:
        """Give the batch: ours, or under a quirk the framework's, by the rule that it has for this metric."""
        return self.tensors.batch(rule if self.plan.metrics_as_they else None)

    def spoilt(self, of: Statistic, then: Rule = as_it_comes, rule: Rule = as_it_comes) -> Tensor:
        """Tell which sequences have a masked slot where a statistic is infinite or NaN, if the quirk is on that such a
        slot is multiplied by 0 and so makes their sums NaN."""
        slots = self.tensors.masked_slots
        if "folds_multiply" not in self.plan.flags:
            return torch.zeros(len(slots), dtype=torch.bool)
        everywhere = replace(self.tensors, mask=self.tensors.mask | slots).batch(rule)
        return (slots & ~torch.isfinite(then(of(everywhere)))).any(-1)

    def mean_over_rows(self, rows: Tensor, batch: Batch) -> Tensor:
        """Average `[S]` over sequences with a token; under a quirk over all rows, empty ones as they are."""
        return rows.mean() if self.plan.empty_rows else rows[batch.layout.lengths > 0].mean()

    def mean_of_row_means(self, values: Tensor, batch: Batch) -> Tensor:
        """Average the means of sequences over their tokens; a sequence with no token has 0."""
        x = torch.where(batch.layout.mask, values, 0)
        return self.mean_over_rows(GEOMETRIC.fold(x, batch.layout), batch)


Equal = Callable[[View, str], Tensor | float]
"""A metric out of our functions, given its name."""


def chi2(x: Tensor) -> Tensor:
    """Give `r^2 - 1` of a log ratio x: its mean over samples of mu is chi-square."""
    return x.exp().square() - 1


def surprise_pi(batch: Batch) -> Tensor:
    """Give `-log pi`: its mean over a sequence is the log of pi's perplexity."""
    return torch.where(batch.layout.mask, -batch.log_pi, 0)


def surprise_mu(batch: Batch) -> Tensor:
    """Give `-log mu`."""
    return torch.where(batch.layout.mask, -batch.log_mu, 0)


@final
@dataclass(frozen=True)
class OverTokens:
    """Mean over the tokens of the mask."""

    of: Statistic
    then: Rule = as_it_comes
    rule: Rule = as_it_comes

    def __call__(self, view: View, _: str) -> Tensor:
        """Compute the metric."""
        batch = view.batch(self.rule)
        mean = self.then(self.of(batch))[batch.layout.mask].mean()
        return torch.where(view.spoilt(self.of, self.then, self.rule).any(), torch.nan, mean)


@final
@dataclass(frozen=True)
class OverRows:
    """Mean over sequences of a sequence-level value, which `fold_rule` changes first where the framework does so."""

    level: Level
    of: Statistic
    then: Rule = as_it_comes
    fold_rule: Rule = as_it_comes

    def __call__(self, view: View, _: str) -> Tensor:
        """Compute the metric."""
        batch = view.batch()
        rows = self.level.fold(self.of(batch), batch.layout)
        rows = torch.where(view.spoilt(self.of), torch.nan, rows)
        return view.mean_over_rows(self.then(self.fold_rule(rows) if view.plan.metrics_as_they else rows), batch)


@final
@dataclass(frozen=True)
class Extreme:
    """Largest (sign +1) or smallest (-1) value of a level's units."""

    level: Level
    of: Statistic
    sign: int
    then: Rule = as_it_comes
    rule: Rule = as_it_comes

    def __call__(self, view: View, _: str) -> Tensor:
        """Compute the metric."""
        batch = view.batch(self.rule)
        x, units = self.level.fold(self.of(batch), batch.layout), self.level.valid(batch.layout)
        spoilt = view.spoilt(self.of, rule=self.rule)
        x = torch.where(spoilt, torch.nan, x) if self.level.unit == "sequence" else x
        x = self.then(x if self.level.unit == "sequence" and view.plan.empty_rows else x[units])
        return x.max() if self.sign > 0 else x.min()


def share_beyond(view: View, level: Level, low: float, high: float) -> Tensor:
    """Count the level's units with a log ratio outside [low, high] (ratios), as a share."""
    batch = view.batch()
    x, units = level.fold(batch.log_ratio, batch.layout), level.valid(batch.layout)
    outside = ((x < log(low)) | (x > log(high))).float()
    return view.mean_over_rows(outside, batch) if level.unit == "sequence" else outside[units].mean()


def mean_weight(view: View, _: str) -> Tensor:
    """Mean over the tokens of the mask of what multiplies the loss, dropped ones as 0, before screens."""
    return view.outcome.alone[view.batch().layout.mask].mean()


def mean_weight_of_rows(view: View, _: str) -> Tensor:
    """Mean over sequences of the mean weight of their tokens."""
    batch = view.batch()
    return view.mean_over_rows(GEOMETRIC.fold(view.outcome.alone, batch.layout), batch)


EQUALS: Mapping[str, Equal] = {
    "mean_weight": mean_weight,
    "mean_weight_of_rows": mean_weight_of_rows,
    "mean_k1": OverTokens(k1),
    "mean_k3": OverTokens(k3),
    "log_ppl_pi": OverRows(GEOMETRIC, surprise_pi),
    "ppl_pi": OverRows(GEOMETRIC, surprise_pi, torch.exp),
    "log_ppl_mu": OverRows(GEOMETRIC, surprise_mu),
    "ppl_mu": OverRows(GEOMETRIC, surprise_mu, torch.exp),
    "row_k1": OverRows(GEOMETRIC, k1),
    "abs_row_k1": OverRows(GEOMETRIC, k1, torch.abs),
    "max_row_k1": Extreme(GEOMETRIC, k1, +1),
    "min_row_k1": Extreme(GEOMETRIC, k1, -1),
    "inverse_geometric": OverRows(GEOMETRIC, k1, torch.exp),
    "chi2_token": OverTokens(log_ratio, chi2, SAFE),
    "chi2_sequence": OverRows(SEQUENCE, log_ratio, chi2, SAFE),
    "chi2_geometric": OverRows(GEOMETRIC, log_ratio, chi2, SAFE),
}
"""Metrics that several frameworks log; a data file names them."""


def log(bound: float) -> float:
    """Give the logarithm of a ratio; -inf of 0."""
    return -math.inf if bound == 0 else math.log(bound)
