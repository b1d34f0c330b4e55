"""Which of the estimators that were tried to use, why, and which are out of the question."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reweigh.audit.causes import first_cause
from reweigh.audit.limits import Limits
from reweigh.audit.numerals import of_log, two
from reweigh.audit.result import Audit, TrialRow
from reweigh.audit.tried import Asked, needs
from reweigh.doctor.causes import ABOUT, CauseId
from reweigh.doctor.diagnosis import NAMED
from reweigh.number import Number

CORRECTABLE: frozenset[CauseId] = frozenset(cause for cause, known in ABOUT.items() if known.correctable)
"""Causes that leave the log-probs right and make the sampler another policy: weights are made for those."""
NO_GRADIENT = 1.0  # K: the worst error of an estimator that gives no gradient at all
NOTHING_SURE = 0.9  # K: from here on the worst case is no guide, as nine tenths of a gradient may be lost
NO_GRADIENTS = (
    "not ranked: needs the gradient of each response, or a sketch of it, and records have no column for it; "
    "`reweigh.audit.progress` ranks estimators where you have them"
)
_FIRST = "fix the cause first"


@dataclass(frozen=True)
class Ranked:
    """An estimator and its worst-case error.

    Attributes:
        name: as one would write it.
        limits: its worst-case bias and second moment of one response.
        error: root mean squared error of a batch, in units of K, see `reweigh.audit.limits.Limits.error`.
        why_not: why it is not recommended whatever its rank; empty if nothing speaks against it.
    """

    name: str
    limits: Limits
    error: Number
    why_not: str = ""


@dataclass(frozen=True)
class Recommendation:
    """What to use.

    Attributes:
        use: name of the estimator; None if the cause is to be fixed first, or none is any good.
        reason: one sentence.
        n: responses averaged in one step.
        ranked: those whose worst-case error is known, the smallest that the data vouch for first.
        refused: why the others are not ranked, by name.
        progress: the ranking by guaranteed progress, or why there is none.
    """

    use: str | None
    reason: str
    n: float
    ranked: tuple[Ranked, ...]
    refused: Mapping[str, str]
    progress: str = NO_GRADIENTS

    def __str__(self) -> str:
        """For a terminal or a log line."""
        return f"{'use ' + self.use if self.use else 'none'}: {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            "use": self.use,
            "reason": self.reason,
            "responses_of_a_step": self.n,
            "ranked": [_plain(x) for x in self.ranked],
            "refused": [{"name": name, "reason": reason} for name, reason in self.refused.items()],
            "guaranteed_progress": self.progress,
        }


def recommend(audit: Audit, asked: Asked | None = None, n: float | None = None) -> Recommendation:
    """The estimator with the smallest worst-case error that the data vouch for, if the gap is one to be corrected.

    What ranks is the upper end of the interval, so that an estimator whose error cannot be known from so few responses
    is not preferred for a lucky sample. Nothing is recommended if the log-probs are not those of what was sampled, if a
    doctor has named a cause that no weight mends, or if the gap is larger than numerics explain and no doctor says that
    it is another policy's. Where every estimator may lose nearly all of the gradient, as with long responses, the worst
    case is no guide; then it is the token-level cap that moves least weight.

    Args:
        audit: with its trials; and its diagnosis, if there is one.
        asked: what was to be tried, for those that were not; what was tried if not given.
        n: responses averaged in one step; those of the records if not given.

    Raises:
        ValueError: n is below 1.
    """
    size = float(audit.levels["sequence"].n if n is None else n)
    if not size >= 1:
        raise ValueError(f"recommend: n must be >= 1, got {size:g}")
    refused = dict(asked.refused) if asked is not None else {}
    if asked is not None:
        have = {trial.name for trial in audit.trials}
        for name, estimator in asked.estimators.items():
            if name not in have:
                refused[name] = f"needs {' and '.join(needs(estimator))}, which no record has"
    ranked: list[Ranked] = []
    for trial in audit.trials:
        error = trial.limits.error(size)
        if error.value is None:
            refused[trial.name] = error.refused
        else:
            ranked.append(Ranked(trial.name, trial.limits, error, _why_not(trial)))
    ranked.sort(key=lambda x: (x.error.high, x.error.value))
    use, reason = _choice(audit, ranked, size)
    return Recommendation(use, reason, size, tuple(ranked), refused)


def _why_not(trial: TrialRow) -> str:
    if not trial.all.kept:
        return "drops everything"
    if math.isinf(trial.high):
        return "its weights have no upper bound: one response can decide a step"
    return ""


def _choice(audit: Audit, ranked: list[Ranked], n: float) -> tuple[str | None, str]:
    blocked = _blocked(audit)
    if blocked:
        return None, blocked
    fit = [x for x in ranked if not x.why_not]
    if not fit:
        return None, "no estimator that was tried has bounded weights and keeps anything"
    best, surest = min(fit, key=lambda x: x.error.value or 0.0), fit[0]
    assert best.error.value is not None
    if best.error.value >= NOTHING_SURE:
        return _by_token(audit, best)
    if (surest.error.high or 0.0) < NO_GRADIENT:
        return (
            surest.name,
            f"its worst-case error at N = {n:,.0f} is the smallest, {_shown(surest.error)} K{_naive(fit)}",
        )
    return best.name, (
        f"its worst-case error at N = {n:,.0f} is the smallest in this sample, {_shown(best.error)} K, but so few "
        "responses cannot vouch that any estimator is better than no gradient at all"
    )


def _by_token(audit: Audit, best: Ranked) -> tuple[str | None, str]:
    """What corrects each token by itself and moves least weight, where the worst case of no estimator is any good."""
    at_best = f"the best: {best.name}, {_shown(best.error)} K"
    said = f"over all rewards no estimator tried is surely better than none ({at_best})"
    fit = [x for x in audit.trials if x.unit == "token" and x.caps and x.all.kept_tokens_share > 0.5]
    if not fit:
        return None, f"{said}: make the gap smaller, with fresher weights or shorter responses"
    use = min(fit, key=lambda x: abs(x.all.log_mean_weight))
    return use.name, (
        f"{said}; it corrects each token by itself, at a mean weight of {of_log(use.all.log_mean_weight)}, and leaves "
        "how states and returns differ; a smaller gap or shorter responses would let more be said"
    )


def _blocked(audit: Audit) -> str:
    cause = first_cause(audit.diagnosis)
    named = cause is not None and cause.confidence >= NAMED
    if cause is not None and named and cause.id not in CORRECTABLE:
        return f"{_FIRST}: {ABOUT[cause.id].title}, and no weight mends that"
    if not all(level.identity for level in audit.levels.values()):
        return f"{_FIRST}: the mean ratio is not 1, so the log-probs are not of what was sampled and no weight is right"
    if audit.verdict.level == "fail" and not (named and cause is not None):
        return f"{_FIRST}: {audit.verdict.reason}"
    return ""


def _naive(fit: list[Ranked]) -> str:
    """What not to correct would cost."""
    naive = next((x for x in fit if x.name == "naive"), None)
    return "" if naive is None or naive is fit[0] else f"; without a correction it is {_shown(naive.error)}"


def _shown(x: Number) -> str:
    ends = "" if x.low is None or x.high is None else f" [{two(x.low)}, {two(x.high)}]"
    return f"{two(x.value or 0.0)}{ends}"


def _plain(x: Ranked) -> dict[str, Any]:
    numbers = {"worst_bias": x.limits.bias, "worst_second_moment": x.limits.second, "worst_error": x.error}
    return {"name": x.name, "why_not": x.why_not or None} | {
        name: {"value": _finite(one.value), "low": _finite(one.low), "high": _finite(one.high), "unit": one.unit}
        for name, one in numbers.items()
    }


def _finite(x: float | None) -> float | None:
    return x if x is not None and math.isfinite(x) else None
