"""Metrics that frameworks log, out of the levels, statistics and transforms of the core."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from reweigh.batch import Batch
from reweigh.estimators import Statistic
from reweigh.levels import GEOMETRIC, Level, log_ratio
from reweigh.rosetta.parts import Rule, as_it_comes
from reweigh.rosetta.profile import View

Equal = Callable[[View, str], Tensor | float]
Then = Callable[[Tensor], Tensor]


def same(x: Tensor) -> Tensor:
    """x."""
    return x


def ratio(x: Tensor) -> Tensor:
    """`e^x`."""
    return x.exp()


def chi2(x: Tensor) -> Tensor:
    """`r^2 - 1` of a log ratio x: its mean over samples of mu is chi-square."""
    return x.exp().square() - 1


def surprise_pi(batch: Batch) -> Tensor:
    """`-log pi`: its mean over a sequence is the log of pi's perplexity."""
    return torch.where(batch.layout.mask, -batch.log_pi, 0)


def surprise_mu(batch: Batch) -> Tensor:
    """`-log mu`."""
    return torch.where(batch.layout.mask, -batch.log_mu, 0)


def over_tokens(of: Statistic, then: Then = same, rule: Rule = as_it_comes) -> Equal:
    """Mean over the tokens of the mask."""

    def equal(view: View, _: str) -> Tensor:
        batch = view.batch(rule)
        return then(of(batch))[batch.layout.mask].mean()

    return equal


def over_rows(
    level: Level, of: Statistic, then: Then = same, rule: Rule = as_it_comes, fold_rule: Rule = as_it_comes
) -> Equal:
    """Mean over sequences of a sequence-level value."""

    def equal(view: View, _: str) -> Tensor:
        batch = view.batch(rule)
        rows = level.fold(of(batch), batch.layout)
        return view.mean_over_rows(then(fold_rule(rows) if view.plan.metrics_as_they else rows), batch)

    return equal


def over_row_means(of: Statistic, then: Then = same, rule: Rule = as_it_comes) -> Equal:
    """Mean over sequences of the mean over their tokens."""

    def equal(view: View, _: str) -> Tensor:
        batch = view.batch(rule)
        x = torch.where(batch.layout.mask, then(of(batch)), 0)
        return view.mean_over_rows(GEOMETRIC.fold(x, batch.layout), batch)

    return equal


def extreme(level: Level, of: Statistic, sign: int, then: Then = same, rule: Rule = as_it_comes) -> Equal:
    """Largest (sign +1) or smallest (-1) value of a level's units."""

    def equal(view: View, _: str) -> Tensor:
        batch = view.batch(rule)
        x, units = level.fold(of(batch), batch.layout), level.valid(batch.layout)
        x = x if level.unit == "sequence" and view.plan.empty_rows else x[units]
        return then(x).max() if sign > 0 else then(x).min()

    return equal


def beyond(level: Level, low: float, high: float, of: Statistic = log_ratio) -> Callable[[View], Tensor]:
    """Share of a level's units with a value outside [low, high]."""

    def share(view: View) -> Tensor:
        batch = view.batch()
        x, units = level.fold(of(batch), batch.layout), level.valid(batch.layout)
        outside = ((x < low) | (x > high)).float()
        if level.unit == "sequence":
            return view.mean_over_rows(outside, batch)
        return outside[units].mean()

    return share


def mean_weight(view: View, _: str) -> Tensor:
    """Mean over the tokens of the mask of what multiplies the loss, dropped ones as 0, before screens."""
    return view.outcome.alone[view.batch().layout.mask].mean()


def mean_weight_of_rows(view: View, _: str) -> Tensor:
    """Mean over sequences of the mean weight of their tokens."""
    batch = view.batch()
    return view.mean_over_rows(GEOMETRIC.fold(view.outcome.alone, batch.layout), batch)


def log(bound: float) -> float:
    """Of a ratio; -inf of 0."""
    return -math.inf if bound == 0 else math.log(bound)
