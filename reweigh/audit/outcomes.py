"""What an estimator did as numbers, each with its interval and what it means."""

import math
from collections.abc import Mapping
from dataclasses import replace

from reweigh.audit.result import TrialRow
from reweigh.audit.trial import Outcome
from reweigh.stats.intervals import Number, bernoulli_kl, t_quantile
from reweigh.stats.tail import MAX_SHARE

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


def numbers_of(trial: TrialRow, outcome: Outcome) -> dict[str, Number]:
    """Numbers of one part of a trial, which has units.

    Shares have Chernoff intervals and the mean weight has a t interval, at the number of independent units that
    clusters leave of the part.
    """
    n = max(1.0, trial.independent * outcome.units / trial.all.units)
    effective, largest = outcome.effective_share, _exp(outcome.log_largest)
    found = {
        "kept_share": _share(outcome.kept_share, n),
        "kept_tokens_share": _share(outcome.kept_tokens_share, n),
        "bounded_share": _share(outcome.bounded_share, n),
        "mean_weight": _mean_weight(outcome, n),
        "effective_share": Number(effective, sample=effective),
        "largest_weight": Number(largest, sample=largest),
    }
    return {name: replace(x, meaning=MEANINGS[name]) for name, x in found.items()}


def _share(value: float, n: float) -> Number:
    return Number(value, *bernoulli_kl(value, n), value)


def _mean_weight(outcome: Outcome, n: float) -> Number:
    mean = _exp(outcome.log_mean_weight)
    heavy = mean > 0 and outcome.log_largest - outcome.log_weight > math.log(MAX_SHARE)
    if n < 2 or heavy or mean == math.inf:  # too few units, or one of them decides it
        return Number(mean, sample=mean)
    square = math.exp(outcome.log_square - math.log(outcome.units)) if mean else 0.0
    half = t_quantile(0.975, max(1, int(n) - 1)) * math.sqrt(max(0.0, square - mean * mean) / n)
    return Number(mean, max(0.0, mean - half), mean + half, mean)


def _exp(log_x: float) -> float:
    return math.exp(log_x) if log_x < _LARGEST else math.inf
